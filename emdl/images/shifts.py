"""The paper's autoencoder for images: a strided encoder whose reconstructions are averaged over all shifts of its grid.

With a stride the code positions form a coarse grid, and what is decoded depends on where the grid lies. So the image is
extended by reflection until every pixel lies inside a grid of atoms for every shift, encoded once for each of the
stride_1 * stride_2 shifts, decoded, and the reconstructions are averaged:

x_hat = mean over shifts s of  crop_s B z_T(crop_s^T y)

The loss is taken on the average, so its gradient reaches every shift with the same error image, divided by their
number. The threshold of an atom is proportional to the noise level, theta_k = scale_k sigma step: this is
theta = lmbd sigma^2 step with rates lmbd_k = scale_k / sigma, and it makes one encoder serve all noise levels.
"""

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np

from emdl.backend import as_dictionary, as_signals, as_stride, check_count, check_number
from emdl.errors import FileFormatError, InputError
from emdl.gradients import backward_full, reconstruction_loss
from emdl.model import Model, load
from emdl.ops import as_rates, lipschitz, synthesize_full
from emdl.optim import normalize_atoms
from emdl.unrolled import unroll_full

TASK = "denoise, shifts averaged"
_MOST_CODES = 40_000_000  # code positions encoded at once, which bounds the memory of a large image


@dataclass(frozen=True)
class ShiftedEncoder:
    """A dictionary with thresholds, unrolled on every shift of a strided grid.

    Attributes
    ----------
    D : array (K, C, h, w)
        Dictionary of the layers, unit norm.
    scale : array (K,)
        lmbd sigma of each atom, >= 0: the rate in units of 1 / sigma. Zero for an atom that is not thresholded. Large
        values give smooth images.
    stride : tuple of int
        Distance of neighbouring code positions, pixels; at most the size of an atom, or pixels stay uncovered.
    n_layers : int
        Layers T of FISTA.
    analysis : array (K, C, h, w) or None
        Dictionary A of u = w + step A^T (y - D w), if not `D` (untied).
    decoder : array (K, C, h, w) or None
        Dictionary B of the reconstruction, if not `D` (untied).
    centred : bool
        Take the mean of each channel of an image away first and add it in the end.
    """

    D: np.ndarray
    scale: np.ndarray
    stride: tuple = (5, 5)
    n_layers: int = 30
    analysis: np.ndarray | None = None
    decoder: np.ndarray | None = None
    centred: bool = True

    def __post_init__(self):
        D = as_dictionary(self.D)
        if D.ndim != 4:
            raise InputError(f"D has shape {D.shape}, wanted atoms of images, (n_atoms, n_channels, rows, columns)")
        stride = as_stride(self.stride, 2)
        if any(t > s for t, s in zip(stride, D.shape[2:], strict=True)):
            raise InputError(f"stride {stride} is longer than an atom of {D.shape[2:]}, which leaves pixels uncovered")
        object.__setattr__(self, "D", D)
        object.__setattr__(self, "scale", as_rates(self.scale, D, "scale"))
        object.__setattr__(self, "stride", stride)
        check_count(self.n_layers, "n_layers")
        for name in ("analysis", "decoder"):
            other = getattr(self, name)
            if other is not None and other.shape != D.shape:
                raise InputError(f"{name} has shape {other.shape}, wanted that of D, {D.shape}")

    @property
    def step(self):
        """The step of a layer: 1 / ||D^T D||, untied 1 / (||A|| ||D||)."""
        own = lipschitz(self.D, stride=self.stride)
        if self.analysis is None:
            return 1 / own
        return 1 / math.sqrt(own * lipschitz(self.analysis, stride=self.stride))

    def denoise(self, planes, sigma, *, shifts=None, n_layers=None):
        """Return images without their noise.

        Parameters
        ----------
        planes : array (n, C, H, W)
            Noisy images, any unit.
        sigma : float
            Noise standard deviation in that unit. A large value smooths.
        shifts : array (m, 2) of int, optional
            Shifts of the grid to average, by default all.
        n_layers : int, optional
            Another number of layers than that of the encoder.

        Returns
        -------
        ndarray (n, C, H, W) of float32

        Raises
        ------
        InputError
            If the images do not have the channels of the atoms, or a value is not finite.
        """
        planes = as_signals(planes, 2, "planes").astype(np.float32, copy=False)
        if planes.shape[1] != self.D.shape[1]:
            raise InputError(
                f"the images have {planes.shape[1]} channels, wanted those of the atoms, {self.D.shape[1]}"
            )
        sigma = check_number(sigma, "sigma", 0)
        if sigma == 0:
            return planes.copy()
        if n_layers is not None:
            return replace(self, n_layers=check_count(n_layers, "n_layers")).denoise(planes, sigma, shifts=shifts)
        shifts = all_shifts(self.stride) if shifts is None else np.asarray(shifts)
        step, out = self.step, np.empty_like(planes)
        each = len(self.D) * (planes[0, 0].size // math.prod(self.stride) + 1)
        pieces = np.array_split(shifts, min(len(shifts), -(-len(shifts) * each // _MOST_CODES)))
        for i in range(len(planes)):
            image, mean = self.centre(planes[i : i + 1])
            total = sum(
                self.decode(self.encode(image, sigma, part, step), part, image.shape) * len(part) for part in pieces
            )
            out[i] = (total / len(shifts) + mean)[0]
        return out

    def centre(self, planes):
        """Return images without the mean of each channel, and that mean.

        Parameters
        ----------
        planes : array (n, C, H, W)
            Images.

        Returns
        -------
        centred : array (n, C, H, W)
        mean : array (n, C, 1, 1)
        """
        mean = planes.mean(axis=(2, 3), keepdims=True, dtype=np.float64).astype(planes.dtype) * bool(self.centred)
        return planes - mean, mean

    def encode(self, planes, sigma, shifts, step):
        """Return the layers of the encoder on shifts of images.

        Parameters
        ----------
        planes : array (n, C, H, W)
            Images, centred.
        sigma : float
            Noise standard deviation.
        shifts : array (m, 2) of int
            Shifts of the grid.
        step : float
            Of one layer.

        Returns
        -------
        Trace
            Of n * m signals, the shifts of an image side by side.
        """
        dtype = planes.dtype
        D, A = (None if x is None else x.astype(dtype, copy=False) for x in (self.D, self.analysis))
        y = spread(planes, self.D.shape[2:], self.stride, shifts)
        theta = (self.scale * sigma * step).astype(dtype)
        return unroll_full(y, D, theta, step, self.n_layers, False, self.stride, analysis=A, dense=False)

    def decode(self, trace, shifts, shape):
        """Return the average over the shifts of what their codes make.

        Parameters
        ----------
        trace : Trace
            Of `encode`.
        shifts : array (m, 2) of int
            Its shifts.
        shape : tuple of int
            (n, C, H, W).

        Returns
        -------
        array (n, C, H, W)
        """
        made = synthesize_full(trace.codes[-1], self._decoder(trace.y.dtype), self.stride)
        return gather(made, shape, self.D.shape[2:], self.stride, shifts)

    def loss(self, noisy, target, sigma, *, shifts=None, step=None):
        """Return half the squared error of the averaged reconstruction, its gradients, and the layers.

        Parameters
        ----------
        noisy : array (n, C, H, W)
            Images.
        target : array (n, C, H, W)
            Clean images (supervised), or `noisy` itself.
        sigma : float
            Noise standard deviation.
        shifts : array (m, 2) of int, optional
            Shifts of the grid to average, by default all.
        step : float, optional
            Of one layer, by default the property `step`; counts as a constant.

        Returns
        -------
        loss : float
        gradients : dict of array
            ``D``, ``scale`` and, where there is one, ``analysis`` and ``decoder``.
        trace : Trace
            The layers.
        """
        shifts = all_shifts(self.stride) if shifts is None else np.asarray(shifts)
        step = self.step if step is None else step
        centred, mean = self.centre(noisy)
        trace = self.encode(centred, sigma, shifts, step)
        B, atom = self._decoder(noisy.dtype), self.D.shape[2:]
        made = synthesize_full(trace.codes[-1], B, self.stride)
        error = gather(made, noisy.shape, atom, self.stride, shifts) + mean - target
        # `reconstruction_loss` differentiates half a squared error; this target makes its error that of each shift
        wanted = made - gather_back(error, atom, self.stride, shifts)
        _, g_z, g_B = reconstruction_loss(trace, wanted, decoder=B)
        grads = backward_full(trace, g_z)
        gradients = {"D": grads.D, "scale": grads.theta.astype(np.float64) * sigma * step}
        if self.analysis is not None:
            gradients["analysis"] = grads.analysis
        if self.decoder is None:
            gradients["D"] = gradients["D"] + g_B
        else:
            gradients["decoder"] = g_B
        return 0.5 * float((error.astype(np.float64) ** 2).sum()), gradients, trace

    def _decoder(self, dtype):
        return (self.D if self.decoder is None else self.decoder).astype(dtype, copy=False)

    def normalized(self):
        """Return the encoder with all atoms at unit norm.

        Returns
        -------
        ShiftedEncoder
        """
        parts = {
            n: normalize_atoms(getattr(self, n)) for n in ("D", "analysis", "decoder") if getattr(self, n) is not None
        }
        return replace(self, **parts)

    def save(self, path):
        """Write the encoder to an HDF5 file that `emdl.load` reads too.

        Parameters
        ----------
        path : path
            A file of that name is replaced.
        """
        attributes = {"task": TASK, "n_layers": self.n_layers, "centred": int(self.centred)}
        attributes |= {n: getattr(self, n) for n in ("analysis", "decoder") if getattr(self, n) is not None}
        Model(self.D, self.scale, 1.0, False, self.stride, attributes).save(path)

    @classmethod
    def load(cls, path):
        """Return the encoder in a file that `save` wrote.

        Parameters
        ----------
        path : path
            HDF5 file.

        Returns
        -------
        ShiftedEncoder

        Raises
        ------
        FileFormatError
            If there is no such file, or it holds something else.
        """
        model = load(path)
        held = model.attributes
        if held.get("task") != TASK:
            raise FileFormatError(f"{path} holds a model for another task; wanted one that ShiftedEncoder.save wrote")
        try:
            return cls(
                model.D, model.lmbd, model.stride, int(held["n_layers"]), held.get("analysis"), held.get("decoder"),
                bool(held["centred"]),
            )  # fmt: skip
        except (InputError, KeyError) as error:
            raise FileFormatError(f"{path} holds no valid model: {error}") from error


def all_shifts(stride):
    """Return all shifts of a grid.

    Parameters
    ----------
    stride : tuple of int
        Distance of neighbouring code positions.

    Returns
    -------
    ndarray (prod(stride), 2) of int
    """
    return np.array(list(itertools.product(*map(range, stride))))


def spread(planes, atom_shape, stride, shifts):
    """Return images extended by reflection and cut where the shifted grids begin and end.

    Every pixel is covered by the grid of every shift as often as a pixel far from the border.

    Parameters
    ----------
    planes : array (n, C, H, W)
        Images.
    atom_shape, stride : tuple of int
        Of the grid.
    shifts : array (m, 2) of int
        From 0 to the stride - 1, along each axis.

    Returns
    -------
    array (n * m, C, h, w)
        The m shifts of an image side by side.
    """
    before, length, after = _margins(planes.shape[2:], atom_shape, stride)
    wide = np.pad(planes, [(0, 0), (0, 0), *zip(before, after, strict=True)], mode="reflect")
    out = np.empty((len(planes), len(shifts), planes.shape[1], *length), planes.dtype)
    for m, (a, b) in enumerate(shifts):
        out[:, m] = wide[:, :, a : a + length[0], b : b + length[1]]
    return out.reshape(-1, *out.shape[2:])


def gather(signals, shape, atom_shape, stride, shifts):
    """Return the average over the shifts of what lies inside the images.

    Parameters
    ----------
    signals : array (n * m, C, h, w)
        In the order of `spread`.
    shape : tuple of int
        (n, C, H, W) of the images.
    atom_shape, stride : tuple of int
        Of the grid.
    shifts : array (m, 2) of int
        Of the grid.

    Returns
    -------
    array (n, C, H, W)
    """
    (top, left), _, _ = _margins(shape[2:], atom_shape, stride)
    parts = signals.reshape(shape[0], len(shifts), *signals.shape[1:])
    total = np.zeros(shape, signals.dtype)
    for m, (a, b) in enumerate(shifts):
        total += parts[:, m, :, top - a : top - a + shape[2], left - b : left - b + shape[3]]
    return total / signals.dtype.type(len(shifts))


def gather_back(images, atom_shape, stride, shifts):
    """Return the gradient of signals, given that of their average: the adjoint of `gather`.

    Parameters
    ----------
    images : array (n, C, H, W)
        Gradient.
    atom_shape, stride : tuple of int
        Of the grid.
    shifts : array (m, 2) of int
        Of the grid.

    Returns
    -------
    array (n * m, C, h, w)
    """
    n, C, H, W = images.shape
    (top, left), length, _ = _margins((H, W), atom_shape, stride)
    out = np.zeros((n, len(shifts), C, *length), images.dtype)
    for m, (a, b) in enumerate(shifts):
        out[:, m, :, top - a : top - a + H, left - b : left - b + W] = images / images.dtype.type(len(shifts))
    return out.reshape(-1, C, *length)


def _margins(shape, atom_shape, stride):
    """Return how far the reflection reaches before an image, how long a shifted cut is, and how far it reaches after.

    The cut of shift a begins atom - 1 - a pixels before the image, a < stride, where the first atom lies that can reach
    its first pixel, and ends behind the last atom that reaches its last pixel.
    """
    before = [s - 1 for s in atom_shape]
    wanted = [S + 2 * s - 1 - t for S, s, t in zip(shape, atom_shape, stride, strict=True)]
    length = [w + (s - w) % t for w, s, t in zip(wanted, atom_shape, stride, strict=True)]
    after = [n + t - 1 - b - S for n, t, b, S in zip(length, stride, before, shape, strict=True)]
    return before, length, after
