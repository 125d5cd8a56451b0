r"""Learning a denoising network from photographs: gradients through all layers, Adam, checkpoints.

Noise is added to a crop x of a photograph, sigma drawn anew for each crop, and the network is asked for x. The loss is

.. math:: \sum_{\mathrm{crops}} \sqrt{\|\hat x - x\|^2 / n + \sigma^2 / 100} \; / \; \sigma^{0.55}

over the n inner pixels of a crop. The power is that by which the error of a good denoiser grows with sigma, so that an
improvement by a tenth of a decibel counts the same at every level. The root lies between the squared error, in which
crops full of texture outweigh all others, and its logarithm, of which the mean PSNR of images is made; and a crop on
which the network fails altogether does not drown the rest.

Where there are noisy images alone, Stein's unbiased estimate takes the place of the squared error [1]_,

.. math:: \|\hat x - y\|^2 - n \sigma^2 + 2 \sigma^2 \sum_i \partial \hat x_i / \partial y_i,

its last sum being the slope of the network along a random direction b of independent signs: ``b^T (f(y + h b) - f(y)) /
h`` [2]_.

References
----------
.. [1] C. Stein, Estimation of the mean of a multivariate normal distribution, Ann. Statist. 9 (1981),
   doi:10.1214/aos/1176345632.
.. [2] S. Ramani, T. Blu, M. Unser, Monte-Carlo SURE: a black-box optimization of regularization parameters for general
   denoising algorithms, IEEE Trans. Image Process. 17 (2008), doi:10.1109/TIP.2008.2001404.
"""

import contextlib
import functools
import hashlib
import json
import logging
import math
import pathlib
import time
from dataclasses import dataclass

import numpy as np

from emdl.backend import check_callable, check_count, check_flag, check_number, parallel_map
from emdl.checkpoint import fingerprint
from emdl.errors import EmdlError, FileFormatError, InputError, InputTypeError
from emdl.images.network import ATOM, BLOCK, Network, frame, read_network, workspace, write_network
from emdl.images.photographs import Crops, as_photographs
from emdl.ops import lipschitz
from emdl.storage import lock, new_file, old_file, read_array, remove_parts

MARGIN = 7  # pixels at the rim of a crop that do not count: few atoms cover them
_POWER = 1.1  # by which the squared error of a good denoiser grows with the noise level
_FLOOR = 0.01  # of the mean squared error, in units of the noise: crops without detail do not count more than that
_WARM = 0.02  # share of the training in which the rate rises
_BETAS = (0.9, 0.99)
_CLIP = 4.0  # a gradient longer than this many times the usual is cut
_TIES = ("no", "layers", "all")
_STEP = 0.1  # of the slope in the estimate of the error, in units of the noise level
_LOG = logging.getLogger(__name__)
_LOST = 50  # steps in a row without a finite gradient, after which there is no hope
_PIECES = 8  # of a batch, whatever computes them
_FIRST = 1.5  # thresholds at the start, in standard deviations of the noise in a code


@dataclass(frozen=True)
class Progress:
    """Where a training stands.

    Attributes
    ----------
    step : int
        Steps taken.
    seconds : float
        Time of the training so far, interruptions left out.
    done : float
        Share of the training.
    loss : float
        Mean loss since the last report.
    share : float
        Share of the last codes that are not zero, likewise.
    psnr : dict
        {sigma: mean PSNR in dB of the validation images, peak 255}; empty without such images.
    network : Network
        As it stands.
    """

    step: int
    seconds: float
    done: float
    loss: float
    share: float
    psnr: dict
    network: Network


def start_network(n_atoms, n_layers, n_channels=1, *, stride=2, rng=None):
    """Return the network that a training starts from: all layers alike, one step of (2) each.

    The atoms are orthonormal bases of 8 x 8 patches, made of cosines and of waves, so that a layer with thresholds of
    zero gives a grey image back unchanged where the number of atoms is a multiple of 64. In colour, half of the atoms
    are for brightness and the rest for the coarse structure of the colours.

    Parameters
    ----------
    n_atoms, n_layers, n_channels, stride : int
        Size of the network.
    rng : numpy.random.Generator, optional
        Source of the small differences between atoms that would else stay alike.

    Returns
    -------
    Network
    """
    rng = np.random.default_rng(rng)
    colours = _colours(n_channels)
    counts = [n_atoms // (2 * n_channels)] * n_channels  # half for brightness, half for the colours
    counts[0] += n_atoms - sum(counts)
    parts = []
    for colour, count in zip(colours, counts, strict=True):
        bases = [_cosines(), _waves()]
        while len(bases) * ATOM**2 < count:
            bases.append(np.linalg.qr(rng.standard_normal((ATOM**2, ATOM**2)))[0])
        parts.append(colour[:, None] * np.concatenate(bases)[:count, None])
    D = np.concatenate(parts).reshape(n_atoms, n_channels, ATOM, ATOM)
    D = D + 0.01 * rng.standard_normal(D.shape)
    D /= math.sqrt(lipschitz(D, stride=stride))
    noise = np.sqrt((D**2).sum(axis=(1, 2, 3)))
    tau = _FIRST * noise
    flat = np.linalg.norm(D.mean(axis=(2, 3)), axis=1) * ATOM > 0.9 * noise
    tau[flat] *= 0.1  # brightness is no detail that could be sparse
    layers = np.broadcast_to(D, (n_layers, *D.shape))
    return Network(layers, layers, np.broadcast_to(tau, (n_layers, n_atoms)), stride)


def _colours(n_channels):
    """Return orthonormal directions of colour, a row each, the first that of brightness."""
    basis = np.cos(np.pi * (np.arange(n_channels) + 0.5) * np.arange(n_channels)[:, None] / n_channels)
    return basis / np.linalg.norm(basis, axis=1, keepdims=True)


def _cosines():
    """Return the atoms of the two-dimensional cosine transform, a row each, low frequencies first."""
    n = np.arange(ATOM)
    basis = np.cos(np.pi * (n + 0.5) * n[:, None] / ATOM) * np.where(n[:, None] == 0, 0.5**0.5, 1) * (2 / ATOM) ** 0.5
    order = np.argsort((n[:, None] + n).ravel(), kind="stable")
    return np.kron(basis, basis)[order]


def _waves():
    """Return the atoms of the two-dimensional Fourier transform in real form, a row each, low frequencies first."""
    n = np.arange(ATOM)
    signed = np.where(n > ATOM // 2, n - ATOM, n)
    rows = []
    for u in signed:
        for v in signed:
            if (-u % ATOM, -v % ATOM) < (u % ATOM, v % ATOM):
                continue
            phase = 2 * np.pi * (u * n[:, None] + v * n) / ATOM
            own = (u % ATOM, v % ATOM) == (-u % ATOM, -v % ATOM)
            for wave in (np.cos(phase),) if own else (np.cos(phase), np.sin(phase)):
                rows.append((abs(u) + abs(v), (wave / np.linalg.norm(wave)).ravel()))
    return np.array([wave for _, wave in sorted(rows, key=lambda row: row[0])])


class Parameters:
    """All numbers of a network in one vector, with views of its parts.

    Parameters
    ----------
    shape : tuple of int
        (T, K, C) of the network.
    vector : ndarray, optional
        Numbers; zero by default.
    """

    def __init__(self, shape, vector=None):
        T, K, C = shape
        size = T * K * C * ATOM**2
        self.vector = np.zeros(2 * size + T * K, np.float32) if vector is None else vector
        self.analysis = self.vector[:size].reshape(T, K * C * ATOM**2)
        self.synthesis = self.vector[size : 2 * size].reshape(T, K * C * ATOM**2)
        self.tau = self.vector[2 * size :].reshape(T, K)
        self.shape = shape

    @classmethod
    def of(cls, network):
        """Return the parameters of a network, copied."""
        out = cls(network.analysis.shape[:3])
        out.analysis[:] = network.analysis.reshape(out.analysis.shape)
        out.synthesis[:] = network.synthesis.reshape(out.synthesis.shape)
        out.tau[:] = network.tau
        return out

    def network(self, stride, attributes=None):
        """Return the network with these parameters, copied."""
        shape = (*self.shape, ATOM, ATOM)
        parts = (self.analysis.reshape(shape).copy(), self.synthesis.reshape(shape).copy(), self.tau.copy())
        return Network(*parts, stride, attributes or {})

    def packed(self, stride):
        """Return the analysis atoms as dense correlations want them, (T, ...)."""
        from emdl._kernels.convolution import pack_atoms

        return pack_atoms(self.analysis.reshape(*self.shape, ATOM, ATOM), stride)


def loss_gradient(parameters, stride, noisy, clean, weight, gradient, *, packed=None, margin=MARGIN):
    """Return the loss of one crop with a known clean version, and add its gradient to `gradient`.

    Parameters
    ----------
    parameters : Parameters
        Of the network.
    stride : int
        Of the network.
    noisy, clean : ndarray (C, H, W) of float32
        In units of the noise; H and W fit the grid of the codes.
    weight : float
        Of the crop.
    gradient : Parameters
        Added to.
    packed : ndarray, optional
        `Parameters.packed`, where it is known.
    margin : int
        Pixels at the rim that do not count.

    Returns
    -------
    loss : float
        ``weight * sqrt(mean((output - clean) ** 2) + 0.01)`` over the inner pixels.
    filled : int
        Number of non-zeros of the last codes.
    """
    run = _Run(parameters, stride, noisy.shape, packed)
    out, filled = run.forward(noisy)
    error = _inner(out - clean, margin)
    count = _count(noisy, margin)
    root = math.sqrt(float(np.vdot(error, error)) / count + _FLOOR)
    run.backward(np.float32(weight / (root * count)) * error, gradient)
    return weight * root, filled


def risk_gradient(parameters, stride, noisy, signs, weight, gradient, *, packed=None, margin=MARGIN):
    """Return the estimated squared error of one crop from its noisy version alone, and add its gradient to `gradient`.

    Parameters
    ----------
    signs : ndarray (C, H, W) of float32
        Independent, 1 or -1 with equal chance.
    weight : float
        Of the crop.
    parameters, stride, noisy, gradient, packed, margin
        As in `loss_gradient`.

    Returns
    -------
    loss : float
        ``weight`` times an estimate of ``mean((output - clean) ** 2)`` over the inner pixels; it may be negative.
    filled : int
        Number of non-zeros of the last codes.
    """
    run = _Run(parameters, stride, noisy.shape, packed)
    signs = _inner(signs, margin)
    weight = weight / _count(noisy, margin)
    push = np.float32(2 * weight / _STEP) * signs
    out, filled = run.forward(noisy)
    error = _inner(out - noisy, margin)
    run.backward(np.float32(2 * weight) * error - push, gradient)
    moved, _ = run.forward(noisy + np.float32(_STEP) * signs)
    run.backward(push, gradient)
    slope = float(np.vdot(signs, moved - out)) / _STEP
    return weight * (float(np.vdot(error, error)) - np.count_nonzero(signs) + 2 * slope), filled


class _Run:
    """The network with memory for all of its layers, for one thread."""

    def __init__(self, parameters, stride, image_shape, packed):
        T, K, _ = parameters.shape
        self.parameters = parameters
        self.packed = parameters.packed(stride) if packed is None else packed
        self.image_shape, self.shape = image_shape, frame(image_shape, stride, K)
        self.work = workspace(self.shape, T + 1, T)

    def forward(self, noisy):
        """Return the output and the number of non-zeros of the last codes."""
        from emdl._kernels.convolution import forward

        net, work, out = self.parameters, self.work, np.empty(noisy.size, np.float32)
        y = np.ascontiguousarray(noisy).ravel()
        filled = forward(
            y, self.packed, net.synthesis, net.tau, self.shape, *work.codes, work.residual, out, work.scratch
        )
        return out.reshape(self.image_shape), filled

    def backward(self, error, gradient):
        """Add to `gradient` what `error`, the gradient with respect to the last output, makes of it."""
        from emdl._kernels.convolution import backward

        net, work = self.parameters, self.work
        backward(
            error.ravel(),
            net.analysis,
            net.synthesis,
            self.shape,
            *work.codes,
            work.residual,
            gradient.analysis,
            gradient.synthesis,
            gradient.tau,
            np.empty(error.size, np.float32),
            np.empty((2, work.codes[2].shape[1]), np.float32),
        )


def _count(image, margin):
    """Return how many numbers of an image (C, H, W) do not lie at its rim."""
    return image.shape[0] * (image.shape[1] - 2 * margin) * (image.shape[2] - 2 * margin)


def _inner(image, margin):
    """Return an image (C, H, W) with its rim set to zero."""
    out = np.zeros_like(image)
    inner = (slice(None), *(slice(margin, n - margin) for n in image.shape[1:]))
    out[inner] = image[inner]
    return out


class Adam:
    """Adam, with gradients that are far longer than usual cut.

    Parameters
    ----------
    size : int
        Length of the vector.
    """

    def __init__(self, size):
        self.mean = np.zeros(size, np.float32)
        self.square = np.zeros(size, np.float32)
        self.step = 0
        self.usual = 0.0  # length of a gradient
        self.lost = 0  # steps since the last finite gradient

    def update(self, vector, gradient, rate):
        """Move `vector` by one step of length `rate`; without a finite gradient it stays, and the step counts."""
        length = float(np.linalg.norm(gradient))
        self.step += 1
        if not math.isfinite(length):
            self.lost += 1
            return
        self.lost = 0
        if self.usual and length > _CLIP * self.usual:
            gradient = gradient * np.float32(_CLIP * self.usual / length)
            length = _CLIP * self.usual
        self.usual = 0.99 * self.usual + 0.01 * length if self.usual else length
        first, second = _BETAS
        self.mean *= np.float32(first)
        self.mean += np.float32(1 - first) * gradient
        self.square *= np.float32(second)
        self.square += np.float32(1 - second) * gradient * gradient
        scale = rate * math.sqrt(1 - second**self.step) / (1 - first**self.step)
        vector -= np.float32(scale) * self.mean / (np.sqrt(self.square) + np.float32(1e-8))


def train(
    photographs,
    *,
    n_atoms=128,
    n_layers=12,
    stride=2,
    sigma=(5, 75),
    noisy=False,
    seconds=None,
    steps=None,
    batch=8,
    crop=78,
    rate=1e-3,
    tied="no",
    network=None,
    validation=None,
    checkpoint=None,
    resume=True,
    callback=None,
    every=300.0,
    pause=None,
    rng=0,
    client=None,
):
    """Return a network that was trained to remove noise from photographs.

    Parameters
    ----------
    photographs : list of array (C, H, W)
        Images almost without noise, unless `noisy`; values from 0 to 255. See `emdl.images.photographs`.
    n_atoms, n_layers, stride : int
        Size of the network: atoms per layer (a multiple of 32), layers, distance of the codes.
    sigma : (float, float) or float
        Smallest and largest noise level; with `noisy`, the noise level of the images.
    noisy : bool
        Whether the images are noisy themselves, so that no noise is to be added and the error has to be estimated.
    seconds, steps : float, int
        Length of the training, one of them. The learning rate falls to zero towards the end, by half a cosine. With
        `steps` the same seed gives the same bits, interrupted or not.
    batch : int
        Crops per step.
    crop : int
        Pixels along each axis of a crop; ``(crop - 8) / stride + 1`` must be a whole number, at least 12, and is best a
        multiple of 12.
    rate : float
        Learning rate at its highest. Too large makes the loss jump, too small wastes time.
    tied : str
        "no": every layer has its own atoms. "layers": all layers have the same A and the same B. "all": A = B as well,
        the encoder of the paper; thresholds differ from layer to layer all the same.
    network : Network, optional
        What to start from instead of `start_network`; it must be tied likewise.
    validation : list of array (C, H, W), optional
        Images that are not trained on; see `Progress.psnr`.
    checkpoint : path, optional
        Where the state is written, whole or not at all, at each report and when the training is interrupted. No other
        process can have it in the meantime.
    resume : bool
        Continue from the checkpoint where there is one; only length and learning rate may have changed since.
    callback : callable, optional
        Called with a `Progress` at each report and at the end.
    every : float
        Seconds between reports.
    pause : callable, optional
        Called without arguments after each step; what it raises ends the training with the checkpoint written.
    rng : int
        Seed.
    client : distributed.Client, optional
        Workers of Dask that compute the gradients of a batch, in eight pieces that are added in their order: the
        network has the same bits as without. Photographs of `emdl.images.photographs` are read from their files by
        each worker.

    Returns
    -------
    Network

    Raises
    ------
    ClusterError
        If the cluster is lost; the checkpoint stays.
    InputError
        If a size does not fit, or the checkpoint belongs to another training.
    FileFormatError
        If the checkpoint is damaged or belongs to a network of another size.
    EmdlError
        If no gradient is finite any more.
    """
    noisy, resume = check_flag(noisy, "noisy"), check_flag(resume, "resume")
    levels = _levels(sigma, noisy)
    if (seconds is None) == (steps is None):
        raise InputError("give the length of the training as either seconds or steps")
    if steps is None:
        seconds = check_number(seconds, "seconds", 0, strict=True)
    else:
        steps = check_count(steps, "steps")
    check_count(n_atoms, "n_atoms", BLOCK), check_count(n_layers, "n_layers"), check_count(batch, "batch")
    _check_crop(check_count(crop, "crop"), check_count(stride, "stride"))
    if tied not in _TIES:
        raise InputError(f"tied is {tied!r}, wanted one of {', '.join(_TIES)}")
    if network is not None and not isinstance(network, Network):
        raise InputTypeError(f"network is a {type(network).__name__}, wanted a Network or None")
    rate, every = check_number(rate, "rate", 0, strict=True), check_number(every, "every", 0)
    check_callable(callback, "callback"), check_callable(pause, "pause")
    validation = None if validation is None else as_photographs(validation, "validation")
    photographs = as_photographs(photographs, "photographs")
    crops, seed = Crops(photographs, crop), check_count(rng, "rng", 0)
    if network is None:
        network = start_network(n_atoms, n_layers, crops.images[0].shape[0], stride=stride, rng=seed)
    state = _State(Parameters.of(network), network.stride, 0.0)
    asked = {"sigma": [*levels], "noisy": noisy, "batch": batch, "crop": crop, "tied": tied, "rng": seed}
    draw = _Draw(crops, levels, batch, seed, noisy, network.stride, state.parameters.shape)
    with (
        contextlib.closing(_Threads(draw) if client is None else _Workers(draw, client)) as engine,
        _kept(state, checkpoint, resume, asked, photographs),
    ):
        reports = _Reports(state, validation, callback, every)
        begun, done = time.monotonic() - state.seconds, _done(state, seconds, steps)
        while done < 1:
            loss, share, gradient = engine.batch(state.parameters, state.adam.step)
            _tie(Parameters(state.parameters.shape, gradient), tied)
            state.apply(gradient, rate * _schedule(done))
            state.seconds = time.monotonic() - begun
            done = _done(state, seconds, steps)
            reports.add(loss, share, done)
            if pause is not None:
                pause()
    return state.parameters.network(network.stride, {"steps": state.adam.step, "seconds": state.seconds})


def _levels(sigma, noisy):
    """Return the smallest and the largest noise level."""
    given = (sigma, sigma) if isinstance(sigma, str) or not hasattr(sigma, "__len__") else tuple(sigma)
    if len(given) != 2:
        raise InputError(f"sigma is {sigma!r}, wanted one number or two, the smallest and the largest")
    low, high = given
    low, high = check_number(low, "sigma", 0, strict=True), check_number(high, "sigma", low)
    if noisy and low < high:
        raise InputError(f"sigma is {sigma}, wanted one number, the noise level of the noisy images")
    return low, high


def _check_crop(crop, stride):
    if (crop - ATOM) % stride or (crop - ATOM) // stride < 11 or crop <= 2 * MARGIN:
        raise InputError(
            f"a crop of {crop} does not fit stride {stride}; 8 + {stride} n with n >= 11 does, 78 by default"
        )


class _Reports:
    """What is told of a training, and when; each report writes the checkpoint too."""

    def __init__(self, state, validation, callback, every):
        self.state, self.validation, self.callback, self.every = state, validation, callback, every
        self._begin()

    def _begin(self):
        self.time, self.step, self.losses, self.shares = time.monotonic(), self.state.adam.step, [], []

    def add(self, loss, share, done):
        """Take note of a step; report if it is time, or the training is over."""
        self.losses.append(loss)
        self.shares.append(share)
        if time.monotonic() - self.time <= self.every and done < 1:
            return
        state = self.state
        now = state.parameters.network(state.stride)
        psnr = validate(now, self.validation) if self.validation else {}
        state.write()
        if self.callback is not None and state.adam.step > self.step:
            means = float(np.mean(self.losses)), float(np.mean(self.shares))
            self.callback(Progress(state.adam.step, state.seconds, min(done, 1.0), *means, psnr, now))
        self._begin()


@contextlib.contextmanager
def _kept(state, checkpoint, resume, asked, photographs):
    """Keep a state in a checkpoint: lock it, go on from it, and write it once more when it is left by an exception."""
    if checkpoint is None:
        yield
        return
    hashed = hashlib.blake2b(digest_size=16)
    for photograph in photographs:
        hashed.update(fingerprint(np.asarray(photograph)).encode())
    state.path, state.asked = pathlib.Path(checkpoint), asked | {"photographs": hashed.hexdigest()}
    with lock(checkpoint):
        remove_parts(checkpoint)
        if resume and state.path.is_file():
            state.read()
        try:
            yield
        except BaseException:
            state.write()
            raise


def _tie(gradient, tied):
    """Give parameters that are one the same gradient."""
    if tied == "no":
        return
    for part in (gradient.analysis, gradient.synthesis):
        part[:] = part.mean(axis=0)
    if tied == "all":
        gradient.analysis += gradient.synthesis
        gradient.synthesis[:] = gradient.analysis


def _done(state, seconds, steps):
    return state.seconds / seconds if steps is None else state.adam.step / steps


def _schedule(done):
    """Return the learning rate as a share of its highest."""
    return min(done / _WARM + 0.01, 1.0) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


@dataclass(frozen=True)
class _Draw:
    """What a batch is drawn from and how its loss is told; each of its pieces is the same wherever it is computed."""

    crops: Crops
    levels: tuple
    batch: int
    seed: int
    noisy: bool
    stride: int
    shape: tuple

    @property
    def n_pieces(self):
        return min(_PIECES, self.batch)

    def piece(self, parameters, packed, step, i):
        """Return loss, number of non-zeros and gradient of piece `i` of the batch of a step."""
        rng = np.random.default_rng((self.seed, step, i))
        gradient, loss, filled = Parameters(self.shape), 0.0, 0
        for _ in range(i, self.batch, self.n_pieces):
            crop = self.crops.draw(rng)
            level = rng.uniform(*self.levels)
            crop = (crop - crop.mean(axis=(1, 2), keepdims=True)) / np.float32(level)
            if self.noisy:
                signs = rng.integers(0, 2, crop.shape).astype(np.float32) * 2 - 1
                pair, function, weight = (crop, signs), risk_gradient, 1 / self.batch
            else:
                pair, function = (crop + rng.standard_normal(crop.shape, np.float32), crop), loss_gradient
                weight = level ** (1 - _POWER / 2) / self.batch
            one, nonzeros = function(parameters, self.stride, *pair, weight, gradient, packed=packed)
            loss, filled = loss + one, filled + nonzeros
        return loss, filled, gradient.vector

    def gather(self, done):
        """Return loss, share of non-zeros and gradient of a batch from those of its pieces, in their order."""
        done = iter(done)
        loss, filled, gradient = next(done)
        gradient = gradient.copy()  # what comes from a worker is read-only
        for more, nonzeros, vector in done:
            loss, filled = loss + more, filled + nonzeros
            gradient += vector
        places = ((self.crops.size - ATOM) // self.stride + 1) ** 2
        return loss, filled / (self.batch * places * self.shape[1]), gradient


class _Threads:
    """The pieces of a batch, computed by the threads of this process."""

    def __init__(self, draw):
        self.draw = draw

    def batch(self, parameters, step):
        """Return loss, share of non-zeros and gradient of the batch of a step."""
        packed = parameters.packed(self.draw.stride)
        run = functools.partial(self.draw.piece, parameters, packed, step)
        return self.draw.gather(parallel_map(run, range(self.draw.n_pieces)))

    def close(self):
        """Nothing is left behind."""


class _Workers:
    """The pieces of a batch, computed by the workers of a cluster."""

    def __init__(self, draw, client):
        from emdl.cluster import Pool

        self.draw, self.pool = draw, Pool(client, draw, "photographs")

    def batch(self, parameters, step):
        """Return loss, share of non-zeros and gradient of the batch of a step."""
        sent = self.pool.send(parameters.vector)
        return self.draw.gather(self.pool.map(_piece, [(sent, step, i) for i in range(self.draw.n_pieces)]))

    def close(self):
        """Let the workers forget the photographs."""
        self.pool.close()


def _piece(draw, task):
    """Return what a worker finds in a piece of a batch."""
    vector, step, i = task
    parameters = Parameters(draw.shape, np.array(vector))
    return draw.piece(parameters, parameters.packed(draw.stride), step, i)


class _State:
    """What a checkpoint holds."""

    def __init__(self, parameters, stride, seconds):
        self.parameters, self.stride, self.seconds = parameters, stride, seconds
        self.adam = Adam(parameters.vector.size)
        self.path, self.asked = None, {}
        self._written, self._whole = 0, True

    def apply(self, gradient, rate):
        self._whole = False  # a state that an interrupt leaves in the middle of a step must not be kept
        self.adam.update(self.parameters.vector, gradient, rate)
        np.maximum(self.parameters.tau, 0, out=self.parameters.tau)
        self._whole = True
        if self.adam.lost >= _LOST:
            raise EmdlError(
                f"the training has diverged: no gradient was finite in the last {_LOST} of {self.adam.step} steps; "
                "start anew with a smaller rate"
            )

    def write(self):
        """Write the checkpoint, if there is to be one and the state is whole and another than the last one.

        A failure, as of a full disk, does not end the training: it is logged, the file before stays, and the next
        write tries again.
        """
        if self.path is None or not self._whole or self.adam.step == self._written:
            return
        try:
            with new_file(self.path) as file:
                write_network(file, self.parameters.network(self.stride))
                held = file.create_group("training")
                held.create_dataset("mean", data=self.adam.mean)
                held.create_dataset("square", data=self.adam.square)
                held.attrs["step"], held.attrs["usual"] = self.adam.step, self.adam.usual
                held.attrs["seconds"], held.attrs["asked"] = self.seconds, json.dumps(self.asked)
        except EmdlError as error:
            _LOG.warning("the checkpoint was not written, the training goes on without: %s", error)
        else:
            self._written = self.adam.step

    def read(self):
        with old_file(self.path, "checkpoint") as file:
            parameters = Parameters.of(read_network(file))
            if parameters.shape != self.parameters.shape:
                raise FileFormatError(
                    f"the checkpoint has (layers, atoms, channels) = {parameters.shape}, wanted "
                    f"{self.parameters.shape}; give another file or the same sizes"
                )
            held = file["training"]
            asked = json.loads(held.attrs.get("asked", "{}"))  # those written before emdl 0.2 do not say
            self.adam.mean[:], self.adam.square[:] = read_array(held, "mean"), read_array(held, "square")
            step, usual, seconds = (held.attrs[name] for name in ("step", "usual", "seconds"))
        good = bool(np.isfinite(self.adam.mean).all() and np.isfinite(self.adam.square).all())
        good = good and self.adam.square.min() >= 0 and min(step, usual, seconds) >= 0
        if not good or not max(step, usual, seconds) < math.inf:
            raise FileFormatError(f"{self.path}: the checkpoint is damaged: its moments or counters are no such thing")
        for name in sorted(asked):
            if asked[name] != self.asked.get(name):
                raise InputError(
                    f"{self.path} belongs to another training: {name} was {str(asked[name])[:80]}, now it is "
                    f"{str(self.asked.get(name))[:80]}; call with the same photographs and arguments, or remove it"
                )
        self.parameters, self._written = parameters, int(step)
        self.adam.step, self.adam.usual, self.seconds = int(step), float(usual), float(seconds)


def validate(network, images, *, levels=(15, 25, 50), n_views=1):
    """Return {sigma: mean PSNR in dB, peak 255} of images with noise that is the same in each call.

    Parameters
    ----------
    network : Network
        What to judge.
    images : list of array (C, H, W)
        Values from 0 to 255.
    levels : sequence of float
        Noise levels, told to the network.
    n_views : int
        As in `Network.denoise`.

    Returns
    -------
    dict
    """
    out = {}
    for level in levels:
        ratios = []
        for i, image in enumerate(images):
            clean = np.asarray(image, np.float32)
            noise = np.random.default_rng((i, int(level))).standard_normal(clean.shape, np.float32)
            found = network.denoise((clean + np.float32(level) * noise)[None], level, n_views=n_views)[0]
            with contextlib.suppress(ZeroDivisionError):
                ratios.append(10 * math.log10(255**2 / float(np.mean((found - clean) ** 2, dtype=np.float64))))
        out[level] = float(np.mean(ratios))
    return out
