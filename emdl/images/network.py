r"""The layered denoiser: the encoder (2), unrolled into layers that have dictionaries and thresholds of their own.

With y the noisy image less its mean, sigma its noise level and z_0 = 0, layer t = 1 ... T computes

.. math:: z_t = \mathrm{shrink}(z_{t-1} + A_t^T (y - B_t z_{t-1}), \; \sigma \tau_t)

and the result is D z_T plus the mean.

This is (2) without momentum. A tied encoder has B_t = D and A_t = step D in all layers, and its thresholds are theta =
lmbd sigma^2 step; here each layer has its own analysis atoms A_t and synthesis atoms B_t, the step is part of A_t, and
the thresholds are a share tau of the noise level, one for each layer and atom. Rates that grow as 1 / sigma make the
two the same. Since shrinkage commutes with a change of scale, so does the network: denoise(a y, a sigma) = a
denoise(y, sigma) for a > 0, and one model serves all noise levels and units.

Codes live on every `stride`-th pixel along each axis. An image is denoised from several views of it, turned, mirrored
and shifted against the grid of the codes, and what they give is averaged.
"""

import functools
import importlib.resources
import itertools
import math
import operator
import pathlib
import threading
from dataclasses import dataclass, field

import numpy as np

from emdl.backend import array_module, as_real, check_count, parallel_map
from emdl.errors import FileFormatError, InputError
from emdl.ops import analyze_full, residual_full, synthesize_full
from emdl.prox import shrink_momentum
from emdl.storage import new_file, old_file, read_array

KIND = "denoising network"
FORMAT = 1  # of the file; rises when a reader of the old one would misread the new one
ATOM = 8  # pixels along each axis of an atom, the length of a vector register's row
BLOCK = 32  # the number of atoms is a multiple of it
N_VIEWS = 8  # that there are
USUAL_VIEWS = 4  # that are averaged
MARGIN = 8  # pixels that an image is continued by on each side
_LEAST = 30  # pixels along each axis that the kernels want
_TILE = 512  # pixels along each axis that are worked on at once
_SHIFTS = ((0, 0), (1, 1), (1, 0), (0, 1))  # against the grid of the codes
_WINDOW = 9  # pixels along each axis over which a residual is judged
_EXCESS = 1.5  # times the energy of the noise, that a residual of noise alone does not reach in such a window
_LOCAL = threading.local()


@dataclass(frozen=True)
class Network:
    """A denoising network: the atoms and thresholds of its layers.

    Attributes
    ----------
    analysis : ndarray (T, K, C, 8, 8) of float32
        A_t, the step included.
    synthesis : ndarray (T, K, C, 8, 8) of float32
        B_2 ... B_T and at the end D.
    tau : ndarray (T, K) of float32
        Thresholds in units of the noise level.
    stride : int
        Distance of neighbouring code positions along each axis, pixels.
    attributes : dict
        Names and values (numbers, strings) that travel with the network into its file.
    """

    analysis: np.ndarray
    synthesis: np.ndarray
    tau: np.ndarray
    stride: int = 2
    attributes: dict = field(default_factory=dict)

    def __post_init__(self):
        arrays = [np.ascontiguousarray(as_real(getattr(self, name), name), np.float32) for name in _ARRAYS]
        A, B, tau = arrays
        if A.ndim != 5 or A.shape[3:] != (ATOM, ATOM) or A.shape[1] % BLOCK or 0 in A.shape or B.shape != A.shape:
            raise InputError(
                f"analysis and synthesis have shapes {A.shape} and {B.shape}, wanted twice (layers, atoms, channels, "
                f"{ATOM}, {ATOM}) with a multiple of {BLOCK} atoms"
            )
        if tau.shape != A.shape[:2] or (tau < 0).any():
            raise InputError(f"tau has shape {tau.shape}, wanted {A.shape[:2]} and no number below zero")
        if not 1 <= check_count(self.stride, "stride") <= ATOM:
            raise InputError(f"stride is {self.stride}, wanted at most {ATOM}, the size of an atom")
        for name, array in zip(_ARRAYS, arrays, strict=True):
            object.__setattr__(self, name, array)

    @property
    def n_layers(self):
        """Number of layers T."""
        return self.analysis.shape[0]

    @property
    def n_atoms(self):
        """Number of atoms K of each layer."""
        return self.analysis.shape[1]

    @property
    def n_channels(self):
        """Number of channels C of an image."""
        return self.analysis.shape[2]

    @property
    def receptive(self):
        """Pixels around a tile that should be there when an image is denoised in tiles, so that no seam shows.

        What lies farther away changes a pixel by less than a thousandth of the noise level; strictly the network sees
        14 pixels per layer.
        """
        return 32

    @functools.cached_property
    def _flat(self):
        """The arrays as the kernels want them."""
        from emdl._kernels.convolution import pack_atoms

        return pack_atoms(self.analysis, self.stride), self.synthesis.reshape(self.n_layers, -1)

    def denoise(self, planes, sigma, *, n_views=USUAL_VIEWS):
        """Return images without noise.

        What the network takes away and is too strong for noise is given back, see `restore`: the network was trained
        where the noise is no weaker than 5 grey values of 256, and would else lose fine contrast where it is.

        Parameters
        ----------
        planes : array (n, C, H, W)
            Noisy images of any size, in any unit, C the number of channels of the network; NumPy or CuPy.
        sigma : float or array (n,)
            Standard deviation of the noise in each channel, in the unit of the images. 0 gives an image back as it is;
            too large a value blurs, too small a one leaves noise.
        n_views : int
            Views of an image that are averaged, 1 to 8. The time grows in proportion; 4 gain 0.1 to 0.2 dB over 1, 8
            another 0.02 dB.

        Returns
        -------
        array (n, C, H, W) of float32

        Raises
        ------
        InputError
            If the shape does not fit, a value is not finite, or sigma is negative.
        """
        return self._run(planes, sigma, n_views)[0]

    def share(self, planes, sigma, *, n_views=1):
        """Return the share of the last codes that are not zero when these images are denoised.

        Parameters
        ----------
        planes, sigma, n_views
            As in `denoise`.

        Returns
        -------
        float
        """
        return float(self._run(planes, sigma, n_views)[1])

    def _run(self, planes, sigma, n_views):
        planes = as_real(planes, "planes")
        if planes.ndim != 4 or planes.shape[1] != self.n_channels or 0 in planes.shape:
            raise InputError(
                f"planes has shape {planes.shape}, wanted (images, {self.n_channels}, rows, columns), no axis empty"
            )
        sigma = np.broadcast_to(np.asarray(sigma, np.float64), (len(planes),))
        if not (np.isfinite(sigma) & (sigma >= 0)).all():
            raise InputError(f"sigma is {sigma.tolist()}, wanted finite numbers >= 0")
        if check_count(n_views, "n_views") > N_VIEWS:
            raise InputError(f"n_views is {n_views}, wanted at most {N_VIEWS}")
        out, xp = planes.astype(np.float32), array_module(planes)
        filled = positions = 0
        for i in np.flatnonzero(sigma > 0):
            mean = planes[i].mean(axis=(1, 2), keepdims=True, dtype=np.float64)
            scaled = xp.empty(planes[i].shape, np.float32)
            xp.subtract(planes[i], mean, out=scaled, casting="same_kind")  # no copy in double precision
            scaled /= np.float32(sigma[i])
            for (rows, columns), (clean, nonzeros, codes) in self._tiles(scaled, n_views):
                out[i][:, rows, columns] = clean
                filled, positions = filled + nonzeros, positions + codes
            xp.add(restore(scaled, out[i]) * np.float32(sigma[i]), mean, out=out[i], casting="same_kind")
        return out, filled / max(positions, 1)

    def _tiles(self, image, n_views):
        """Yield (rows, columns) and what `_views` gives there, for an image (C, H, W) in units of the noise."""
        tiles = [(rows, columns) for rows in _cut(image.shape[1]) for columns in _cut(image.shape[2])]
        group = 4
        for i in range(0, len(tiles), group):
            now = tiles[i : i + group]
            tasks = [(image, self.receptive, tile, view) for tile in now for view in range(n_views)]
            # the threads of a device are its own
            done = parallel_map(self._view, tasks) if array_module(image) is np else list(map(self._view, tasks))
            for j, tile in enumerate(now):
                part = done[j * n_views : (j + 1) * n_views]
                clean = functools.reduce(operator.add, (x for x, _, _ in part)) / np.float32(n_views)
                yield tile, (clean, sum(m for _, m, _ in part), sum(m for _, _, m in part))

    def _view(self, task):
        """Return one view of a tile without noise, turned back, with its number of non-zeros and of codes."""
        image, around, tile, view = task
        (top, bottom), (left, right) = (self._widen(s, n, around) for s, n in zip(tile, image.shape[1:], strict=True))
        part = turn(image[:, top:bottom, left:right], view)
        padded, corner = _pad(part, self.stride, view)
        clean, filled, codes = self._pass(padded) if array_module(padded) is np else self._pass_on_device(padded)
        clean = clean[:, corner[0] : corner[0] + part.shape[1], corner[1] : corner[1] + part.shape[2]]
        clean = turn_back(clean, view)
        rows, columns = tile
        return clean[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left], filled, codes

    def _widen(self, part, n, around):
        """Return where a tile with its surroundings begins and ends: on the grid of the codes, from either side."""
        begin, end = max(part.start - around, 0), min(part.stop + around, n)
        return begin - begin % self.stride, end + (n - end) % self.stride

    def _pass(self, image):
        """Run the layers on an image (C, H, W) whose size fits the grid of the codes."""
        from emdl._kernels.convolution import forward

        shape = frame(image.shape, self.stride, self.n_atoms)
        work = workspace(shape, 2, 1)
        analysis, synthesis = self._flat
        out = np.empty(image.size, np.float32)
        filled = forward(
            np.ascontiguousarray(image).ravel(),
            analysis,
            synthesis,
            self.tau,
            shape,
            *work.codes,
            work.residual,
            out,
            work.scratch,
        )
        return out.reshape(image.shape), filled, shape[3] * shape[4] * self.n_atoms

    def _pass_on_device(self, image):
        """Do the same on dense codes: three launches for a layer, and no transfer."""
        cupy, stride = array_module(image), (self.stride, self.stride)
        analysis, synthesis, tau = (self._on_device(cupy, name) for name in _ARRAYS)
        image = cupy.ascontiguousarray(image)[None]
        z = cupy.zeros((1, self.n_atoms, *frame(image.shape[1:], self.stride, self.n_atoms)[3:5]), np.float32)
        for t in range(self.n_layers):
            left = residual_full(image, z, synthesis[t - 1], stride) if t else image
            z, _ = shrink_momentum(z, analyze_full(left, analysis[t], stride), z, tau[t], 1.0, 0.0, False)
        return synthesize_full(z, synthesis[-1], stride)[0], cupy.count_nonzero(z), z.size

    def _on_device(self, cupy, name):
        """Return one of the arrays on the current device, moved there once."""
        kept, key = self.__dict__.setdefault("_copies", {}), (cupy.cuda.Device().id, name)
        if key not in kept:
            kept[key] = cupy.asarray(getattr(self, name))
        return kept[key]

    def save(self, path, *, dtype=np.float32):
        """Write the network to an HDF5 file, whole or not at all.

        Parameters
        ----------
        path : path
            A file of that name is replaced once the new one is complete.
        dtype : dtype
            Of the numbers in the file; float16 halves its size.

        Raises
        ------
        FileFormatError
            If the folder cannot be written.
        """
        with new_file(path) as file:
            write_network(file, self, dtype)

    @classmethod
    def load(cls, path):
        """Return a network read from a file that `save` wrote.

        Parameters
        ----------
        path : path
            HDF5 file.

        Returns
        -------
        Network

        Raises
        ------
        FileFormatError
            If the file is missing, damaged, not a network, or of a newer format.
        """
        with old_file(path) as file:
            return read_network(file)


_ARRAYS = ("analysis", "synthesis", "tau")
_BUNDLED = {1: "denoiser.h5"}  # {channels: file}


def restore(noisy, clean):
    """Give back to images what was taken from them and is too strong for noise.

    Where the mean square v of the residual, over 9 x 9 pixels, exceeds 1.5 times that of the noise, the share ``1 -
    1.5 / v`` of the residual is added, as a Wiener filter would. Residuals of noise alone stay as they are.

    Parameters
    ----------
    noisy, clean : array (C, H, W) of float32
        Before and after, in units of the noise.

    Returns
    -------
    array (C, H, W) of float32
    """
    xp, residual = array_module(noisy, clean), noisy - clean
    v = _local_mean((residual**2).mean(axis=0))
    return clean + xp.maximum(v - _EXCESS, 0) / xp.maximum(v, _EXCESS) * residual


def _local_mean(x):
    """Return the mean of an array (H, W) over the window around each entry, mirrored at the borders."""
    xp = array_module(x)
    if xp is np:
        from scipy.ndimage import uniform_filter

        return uniform_filter(x, _WINDOW, mode="reflect")
    total = xp.pad(x.astype(np.float64), _WINDOW // 2, mode="symmetric")
    for _ in range(2):  # down, then across: sums over a window are differences of running sums
        running = xp.cumsum(xp.pad(total, ((1, 0), (0, 0))), axis=0)
        total = (running[_WINDOW:] - running[:-_WINDOW]).T
    return (total / _WINDOW**2).astype(x.dtype)


def write_network(group, network, dtype=np.float32):
    """Write a network into an empty HDF5 group."""
    group.attrs["emdl_kind"], group.attrs["emdl_format"], group.attrs["stride"] = KIND, FORMAT, network.stride
    for name in _ARRAYS:
        with np.errstate(under="ignore"):  # what float16 has no number for is zero
            values = getattr(network, name).astype(dtype)
        group.create_dataset(name, data=values, compression="gzip", shuffle=True)
    held = group.create_group("attributes")
    for name, value in network.attributes.items():
        held.attrs[name] = value


def read_network(group):
    """Return the network in an HDF5 group that `write_network` wrote.

    Raises
    ------
    FileFormatError
        If the group holds something else, or the format is newer than this program.
    """
    if group.attrs.get("emdl_kind") != KIND:
        raise FileFormatError(
            "this HDF5 file holds no denoising network; they are written by `emdl train --task denoise`"
        )
    if int(group.attrs["emdl_format"]) > FORMAT:
        raise FileFormatError(
            f"the network has format {int(group.attrs['emdl_format'])}, this emdl reads up to {FORMAT}; "
            "install a newer emdl"
        )
    attributes = {name: str(v) if isinstance(v, str) else v.item() for name, v in group["attributes"].attrs.items()}
    analysis, synthesis, tau = (read_array(group, name) for name in _ARRAYS)
    return Network(analysis, synthesis, tau, int(group.attrs["stride"]), attributes)


@functools.cache
def bundled(n_channels=1):
    """Return the network that comes with emdl; see docs/denoising.md for how it was trained.

    Parameters
    ----------
    n_channels : int
        1 for grey images, or for the planes of an image that are denoised one by one; 3 for red, green and blue.

    Returns
    -------
    Network

    Raises
    ------
    InputError
        If there is none for this number of channels.
    """
    if n_channels not in _BUNDLED:
        raise InputError(f"no network for {n_channels} channels comes with emdl, only for {sorted(_BUNDLED)}")
    path = importlib.resources.files("emdl.images") / "data" / _BUNDLED[n_channels]
    with importlib.resources.as_file(path) as file:
        return Network.load(pathlib.Path(file))


@dataclass(frozen=True)
class Workspace:
    """Memory for a run of the network.

    Attributes
    ----------
    codes : tuple of ndarray
        `start`, `index` and `value` of the kernels.
    residual, scratch : ndarray
        As the kernels want them.
    """

    codes: tuple
    residual: np.ndarray
    scratch: np.ndarray


def workspace(shape, n_codes, n_residuals):
    """Return memory for `n_codes` codes and `n_residuals` residuals at a time, the same in each call of a thread."""
    key = (shape, n_codes, n_residuals)
    if getattr(_LOCAL, "key", None) != key:
        C, plane, _, rows, columns, _, K = shape
        places = rows * columns
        _LOCAL.work = Workspace(
            (
                np.empty((n_codes, places + 1), np.int64),
                np.empty((n_codes, places * K), np.int32),
                np.empty((n_codes, places * K), np.float32),
            ),
            np.empty((n_residuals, C * plane), np.float32),
            np.empty((columns + 2) * K, np.float32),
        )
        _LOCAL.key = key
    return _LOCAL.work


def frame(image_shape, stride, n_atoms):
    """Return the tuple `shape` of `emdl._kernels.convolution` for an image (C, H, W)."""
    C, H, W = image_shape
    return C, H * W, W, (H - ATOM) // stride + 1, (W - ATOM) // stride + 1, stride, n_atoms


def turn(image, view):
    """Return an image (C, H, W), or several, mirrored and turned by quarters; view 0 of 0 ... 7 leaves it as it is."""
    image = image[..., ::-1] if view >= 4 else image
    return array_module(image).rot90(image, view % 4, axes=(-2, -1))


def turn_back(image, view):
    """Undo `turn`."""
    image = array_module(image).rot90(image, -(view % 4), axes=(-2, -1))
    return image[..., ::-1] if view >= 4 else image


def _cut(n):
    """Return slices of about equal length that cover 0 ... n - 1."""
    count = math.ceil(n / _TILE)
    edges = [n * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def _pad(image, stride, view):
    """Return an image continued by reflection to a size that fits the codes, and where its corner lies in it.

    Views 0 ... 3 lie on different places of the grid of the codes, and so do 4 ... 7.
    """
    corner = tuple(MARGIN + shift % stride for shift in _SHIFTS[view % 4])
    after = []
    for n, first in zip(image.shape[1:], corner, strict=True):
        size = max(first + n + MARGIN, _LEAST)
        size += -(size - ATOM) % stride
        after.append(size - first - n)
    pads = [(0, 0), *zip(corner, after, strict=True)]
    return array_module(image).pad(image, pads, mode="reflect"), corner
