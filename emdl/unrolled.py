"""The paper's encoder: exactly T layers of FISTA, from zero.

w_t = z_{t-1} + beta_t (z_{t-1} - z_{t-2})
u_t = w_t + step A^T (y - D w_t)
z_t = shrink(u_t, theta)                                                                        (2)

The analysis dictionary A is D itself unless another one is given. NumPy arrays take kernels whose cost follows the
non-zeros, and matrix products as long as few codes are zero; the array version beside them is the oracle of the kernels
and the way of CuPy arrays.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emdl._kernels import bands, network, products
from emdl.backend import array_module, as_dictionary, check_count, check_flag, check_number, parallel_map
from emdl.codes import SparseCodes
from emdl.errors import InputError
from emdl.ops import analyze_full, as_problem, as_rates, lipschitz, plane_stride, planes, positions_of, residual_full
from emdl.prox import shrink_momentum

_PROBES = 8  # places at which the share of non-zeros in the first layer is estimated
_CHANGE = 4  # dense layers that cost as much as changing from products to kernels, on both ways
_MAX_NUMBER = 2**16  # codes of one tile are numbered in 16 bits


@dataclass(frozen=True)
class Trace:
    """What T layers leave behind for the backward pass.

    Attributes
    ----------
    y : array (n, C, *S)
        Signals.
    D : array (K, C, *s)
        Dictionary, dtype of `y`.
    analysis : array (K, C, *s) or None
        Analysis dictionary, None if it is `D`.
    theta : array () or (K,)
        Threshold of one layer, data unit.
    step : float
        Step of one layer.
    positive : bool
        Whether the codes are kept non-negative.
    stride : tuple of int
        Along each axis.
    codes : sequence
        z_1 ... z_T, each a `SparseCodes`, or an array on a GPU; with checkpoints only z_T and those that were kept.
    """

    y: np.ndarray
    D: np.ndarray
    analysis: np.ndarray | None
    theta: np.ndarray
    step: float
    positive: bool
    stride: tuple
    codes: Sequence

    @property
    def z(self):
        """The codes of the last layer, array (n, K, *P)."""
        if isinstance(self.codes, MixedLayers) and self.codes.sparse is None:
            return self.codes.dense[-1]
        last = self.codes[-1]
        return last.dense() if isinstance(last, SparseCodes) else last

    @property
    def n_layers(self):
        """Number of layers T."""
        return len(self.codes)


def unroll(y, D, theta, step, n_iter, *, positive=False, stride=1, analysis=None, checkpoint=None):
    """Return the trace of exactly `n_iter` layers of (2), from zero.

    Parameters
    ----------
    y : array S, (n, *S) or (n, C, *S)
        Signals.
    D : array (K, C, *s)
        Dictionary: the synthesis of the layers, and their analysis unless `analysis` is given.
    theta : float or array (K,)
        Threshold of one layer, data unit, >= 0: theta = lmbd sigma^2 step makes (1) the objective that the layers
        descend. A large value leaves fewer codes.
    step : float
        Step of one layer; at most 1 / `lipschitz` (D), else the layers may diverge.
    n_iter : int
        Number of layers T.
    positive : bool
        One-sided shrinkage: codes >= 0.
    stride : int or tuple of int
        Distance of neighbouring code positions, samples.
    analysis : array (K, C, *s), optional
        Another dictionary A for the analysis, u = w + step A^T (y - D w), as in untied (learned) encoders [2]_. The
        layers then descend no objective, and their convergence is not guaranteed.
    checkpoint : int, optional
        Keep the codes of two layers in every `checkpoint` only, and let `backward` compute the others again: memory
        falls by about checkpoint / 2, the time of `backward` rises by that of one forward pass. A value near sqrt(2 T)
        needs least.

    Returns
    -------
    Trace
        Its `z` is z_T, array (n, K, *P); `backward` takes gradients through it.

    Raises
    ------
    InputError
        If shapes do not fit each other, a value is not finite, a parameter lies outside its range, or the layers
        diverge until their codes are no longer finite.

    References
    ----------
    .. [1] A. Beck, M. Teboulle, A fast iterative shrinkage-thresholding algorithm for linear inverse problems, SIAM J.
       Imaging Sciences 2 (2009), doi:10.1137/080716542.
    .. [2] K. Gregor, Y. LeCun, Learning fast approximations of sparse coding, ICML 2010.

    Examples
    --------
    >>> import numpy as np
    >>> unroll(np.array([0.0, 1.8, 2.4, 0.0]), np.array([[[0.6, 0.8]]]), theta=0.3, step=0.5, n_iter=1).z.round(2)
    array([[[0.42, 1.2 , 0.42]]])
    """
    y, D, stride = as_problem(y, D, stride)
    theta = as_threshold(theta, D)
    if analysis is not None:
        array_module(y, analysis)
        analysis = as_dictionary(analysis, y.dtype)
        if analysis.shape != D.shape:
            raise InputError(
                f"analysis has shape {analysis.shape}, wanted that of D, {D.shape}; pad the smaller atoms with zeros"
            )
    step, n_iter = check_number(step, "step", 0, strict=True), check_count(n_iter, "n_iter")
    positive = check_flag(positive, "positive")
    checkpoint = None if checkpoint is None else check_count(checkpoint, "checkpoint")
    with np.errstate(all="ignore"):  # what diverges is seen in its codes
        trace = unroll_full(y, D, theta, step, n_iter, positive, stride, analysis=analysis, checkpoint=checkpoint)
    last = trace.codes[-1]
    values = last.value if isinstance(last, SparseCodes) else last
    if not bool(array_module(values).isfinite(values).all()):
        raise InputError(
            f"the {n_iter} layers diverged with step {step:g}: codes are no longer finite; take at most "
            f"1 / lipschitz(D) = {1 / max(lipschitz(D, stride=stride), 1e-300):.3g}"
        )
    return trace


def as_threshold(theta, D):
    """Return the threshold as an array () or (K,) of the dtype of `D`.

    Parameters
    ----------
    theta : float or array (K,)
        Threshold of one layer, data unit, >= 0.
    D : array (K, C, *s)
        Dictionary.

    Returns
    -------
    array () or (K,)

    Raises
    ------
    InputError
        If a threshold is negative or not finite, or their number is wrong.
    """
    rates = as_rates(theta, D, "theta")
    return (rates[0] if np.ndim(theta) == 0 else rates[: np.size(theta)]).astype(D.dtype)


def unroll_full(y, D, theta, step, n_iter, positive, stride, *, analysis=None, checkpoint=None, dense=None):
    """Return the trace of `n_iter` layers of (2), for arguments in full form.

    Parameters
    ----------
    y : array (n, C, *S)
        Signals.
    D : array (K, C, *s)
        Dictionary of the same dtype.
    theta : array () or (K,)
        Threshold of one layer.
    step : float
        Step of one layer.
    n_iter : int
        Number of layers.
    positive : bool
        One-sided shrinkage.
    stride : tuple of int
        Along each axis.
    analysis : array (K, C, *s), optional
        Analysis dictionary, if not `D`.
    checkpoint : int, optional
        Keep the codes of two layers in every `checkpoint` only.
    dense : bool, optional
        Take the array version; by default where the kernels cannot work, as with CuPy arrays. If False, take the
        kernels of the non-zeros in all layers; by default, in those after the share of non-zeros has fallen far enough
        below `bands.share_limit`.

    Returns
    -------
    Trace
    """
    xp = array_module(y, D)
    every = n_iter if checkpoint is None else min(checkpoint, n_iter)
    products_too = dense is None and checkpoint is None
    if dense is None:
        dense = xp is not np or len(D) * 256 // y.itemsize > _MAX_NUMBER
    arguments = (y, D, D if analysis is None else analysis, xp.asarray(theta, y.dtype), step, n_iter, positive, stride)
    codes = _dense_layers(*arguments, every) if dense else _sparse_layers(*arguments, every, products_too)
    return Trace(y, D, analysis, xp.asarray(theta, y.dtype), step, positive, stride, codes)


def momenta(n_iter):
    """Return beta_1 ... beta_T of FISTA: (s_{t-1} - 1) / s_t with s_t = (1 + sqrt(1 + 4 s_{t-1}^2)) / 2, s_0 = 1.

    Parameters
    ----------
    n_iter : int
        Number of layers T.

    Returns
    -------
    list of float
    """
    s, beta = 1.0, []
    for _ in range(n_iter):
        s_next = (1 + math.sqrt(1 + 4 * s * s)) / 2
        beta.append((s - 1) / s_next)
        s = s_next
    return beta


@dataclass(frozen=True)
class DenseLayers(Sequence):
    """Codes of the layers as arrays, with what it takes to compute those again that were not kept.

    Attributes
    ----------
    kept : dict
        Layer number, from 0 on, to array (n, K, *P).
    n : int
        Number of layers.
    again : callable
        ``again(before, z, t, end)`` returns the codes of the layers t ... end - 1, given those of t - 2 and t - 1.
    every : int
        Distance of the checkpoints.
    """

    kept: dict
    n: int
    again: object
    every: int

    @property
    def shape(self):
        """(n, K, *P)."""
        return self.kept[self.n - 1].shape

    def __len__(self):
        return self.n

    def __getitem__(self, t):
        return self.kept[_layer_number(t, self.n, self.kept)]


def _layer_number(t, n, kept):
    number = t + n if t < 0 else t
    if not 0 <= number < n:
        raise IndexError(f"layer {t} of {n}")
    if number not in kept:
        raise InputError(f"the codes of layer {number} were not kept; unroll without checkpoint")
    return number


def _dense_layers(y, D, analysis, theta, step, n_iter, positive, stride, every):
    """Return the layers by the array version."""
    xp = array_module(y)
    beta = [*momenta(n_iter), 0.0]
    threshold = xp.broadcast_to(theta.reshape(-1), (len(D),))

    def layers(before, z, t, end):
        w = z + y.dtype.type(beta[t]) * (z - before)
        for number in range(t, end):
            c = analyze_full(residual_full(y, w, D, stride), analysis, stride)
            before, (z, w) = z, shrink_momentum(w, c, z, threshold, step, beta[number + 1], positive)  # (2)
            yield z

    zero = xp.zeros(positions_of(y, D, stride), y.dtype)
    kept = {
        t: z
        for t, z in enumerate(layers(zero, zero, 0, n_iter))
        if every == n_iter or t == n_iter - 1 or t % every >= every - 2
    }
    return DenseLayers(kept, n_iter, layers, every)


@dataclass(frozen=True)
class SparseLayers(Sequence):
    """Codes of the layers as the kernels keep them.

    Attributes
    ----------
    net : bands.Network
        The network.
    shape : tuple of int
        (n, K, *P).
    segments : list of list of network.Segment
        For each signal: all layers, or the two layers before each checkpoint, and in the end the last one.
    every : int
        Distance of the checkpoints.
    """

    net: bands.Network
    shape: tuple
    segments: list
    every: int

    def __len__(self):
        return self.net.n_layers

    def __getitem__(self, t):
        kept = {layer - 1 for part in self.segments[0] for layer in range(part.first, part.end)}
        layer = _layer_number(t, len(self), kept) + 1
        pieces = []
        for parts in self.segments:
            part = next(p for p in parts if p.first <= layer < p.end)
            index, value = network.decode(self.net, part, layer, self.shape[-1])
            pieces.append((index, value))
        return SparseCodes.stack(self.shape, pieces, pieces[0][1].dtype)


@dataclass(frozen=True)
class MixedLayers(Sequence):
    """Codes of the layers, the first of which were made by matrix products.

    Attributes
    ----------
    net : bands.Network
        The network.
    dense : list of ndarray (n, K, *P)
        Codes of the first layers.
    sparse : SparseLayers or None
        The others, if any, and the last two of `dense`.
    """

    net: bands.Network
    dense: list
    sparse: SparseLayers | None

    @property
    def shape(self):
        """(n, K, *P)."""
        return self.dense[0].shape

    def __len__(self):
        return self.net.n_layers

    def __getitem__(self, t):
        number = _layer_number(t, len(self), range(len(self)))
        return (
            self.sparse[number]
            if self.sparse and number >= len(self.dense)
            else SparseCodes.from_dense(self.dense[number])
        )


def _sparse_layers(y, D, analysis, theta, step, n_iter, positive, stride, every, products_too):
    """Return the layers by the kernels."""
    shape = positions_of(y, D, stride)
    correlations = None
    if y.ndim == 3:
        correlations = analyze_full(y, analysis, stride)
        if not bands.gram_pays(correlations, D.shape, theta / y.dtype.type(step), stride[0]):
            correlations = None
    net = bands.make_network(
        planes(y),
        planes(D),
        planes(analysis),
        theta,
        step,
        momenta(n_iter),
        positive,
        plane_stride(stride),
        correlations is not None,
    )
    signals, dense = planes(y), []
    if products_too and correlations is None:
        dense = _layers_by_products(net, y, D, analysis, theta, positive, stride)
    if len(dense) == n_iter:
        return MixedLayers(net, dense, None)

    def one(i):
        signal = bands.to_bands(signals[i], net.layout)
        own = None if correlations is None else correlations[i]
        if dense:
            last = [planes(z)[i] for z in ([np.zeros_like(dense[0]), *dense])[-2:]]
            return [network.run_forward(net, signal, own, network.start_at(net, len(dense) - 1, last), n_iter)]
        part = network.empty_start(net, y.dtype)
        parts = []
        for t in range(0, n_iter, every):
            whole = network.run_forward(net, signal, own, part, min(t + every, n_iter))
            parts.append(whole if every == n_iter else part)
            part = whole.cut(whole.end - 2, whole.end)
        if every < n_iter:
            parts.append(part)
        return parts

    sparse = SparseLayers(net, shape, parallel_map(one, range(len(y))), every)
    return MixedLayers(net, dense, sparse) if dense else sparse


def _layers_by_products(net, y, D, analysis, theta, positive, stride):
    """Return the codes of the first layers, as long as their share of non-zeros is such that matrix products pay."""
    shape, T = positions_of(y, D, stride), net.n_layers
    limit = bands.share_limit(D.shape, math.prod(shape))
    high = np.broadcast_to(theta.reshape(-1), len(D))
    # halfway to 1: the first layers are the densest
    if limit >= 1 or _share_at_some(y, analysis, high / net.step, positive, stride) < (1 + limit) / 2:
        return []
    flat = (*shape[:2], math.prod(shape[2:]))
    bounds = [np.tile(b, (flat[0], 1)) for b in (np.full_like(high, -np.inf) if positive else -high, high)]
    w, before, codes = np.zeros(flat, y.dtype), np.zeros(flat, y.dtype), []
    for t in range(1, T + 1):
        r = y - products.synthesize(w, D, y.shape, stride)
        c, z, beta = analyze_full(r, analysis, stride).reshape(flat), np.empty(flat, y.dtype), net.back[t + 1]
        counts = products.over_rows(
            lambda *x, beta=beta: products.shrink_rows(*x[:5], net.step, beta, x[5]), w, c, before, *bounds, z
        )
        before = z
        codes.append(z.reshape(shape))
        if _change_pays(t, T, sum(counts) / z.size, limit):
            break
    return codes


def _change_pays(t, T, share, limit):
    """Return whether to leave the layers after layer t to the kernels: only if the change costs less than it saves."""
    return (T - t) * (1 - share / limit) > _CHANGE


def _share_at_some(y, analysis, high, positive, stride):
    """Return the share of non-zeros in the first layer, at positions spread over the first signal."""
    size, step, height = analysis.shape[2], stride[0], y.shape[2]
    length = size if y.ndim == 4 else size + 255 * step
    found = []
    for start in np.linspace(0, max(0, height - length), _PROBES).astype(int):
        c = analyze_full(np.ascontiguousarray(y[:1, :, start : start + length]), analysis, stride)
        c = c if positive else abs(c)
        found.append((c > high.reshape(-1, *[1] * (c.ndim - 2))).mean())
    return float(np.mean(found))
