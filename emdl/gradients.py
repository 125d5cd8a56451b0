"""The backward pass through the unrolled encoder, derived by hand.

With g_x the gradient of a loss with respect to x, layer t of (2) gives

g_u = g_z [z_t != 0]            g_theta -= sum sign(z_t) g_u
q   = A g_u                     g_y += step q             g_step += <q, y - D w_t>
g_w = g_u - step D^T q
g_A += step corr(y - D w_t, g_u)          g_D -= step corr(q, w_t)
g_{z_{t-1}} += (1 + beta_t) g_w           g_{z_{t-2}} -= beta_t g_w                             (3)

where the analysis dictionary A is D unless another one was given; then g_D is the sum of both.
"""

import math
import warnings
from dataclasses import dataclass

import numpy as np

from emdl._kernels import bands, network, products
from emdl._kernels.layers import correlate_codes as correlate_at
from emdl.backend import array_module, check_count, check_number, parallel_map
from emdl.codes import SparseCodes
from emdl.errors import ConvergenceWarning, InputError, InputTypeError
from emdl.ops import (
    analyze_full,
    as_codes,
    correlate_signals,
    plane_stride,
    planes,
    positions_of,
    residual_full,
    synthesize_full,
)
from emdl.prox import extrapolate, momentum_backward, shrink_backward_sum
from emdl.unrolled import DenseLayers, MixedLayers, Trace, momenta

_ARRAYS = 8  # of the size of the codes, at most, that a backward pass holds beside the layers


@dataclass(frozen=True)
class Grads:
    """Gradients of a loss through the unrolled encoder.

    Attributes
    ----------
    D : array (K, C, *s)
        With respect to the dictionary (the encoder's use of it; a decoder adds its own).
    theta : array () or (K,)
        With respect to the threshold.
    y : array (n, C, *S)
        With respect to the signals.
    step : float
        With respect to the step, theta held fixed.
    analysis : array (K, C, *s) or None
        With respect to the analysis dictionary, None if that is D.
    """

    D: np.ndarray
    theta: np.ndarray
    y: np.ndarray
    step: float = 0.0
    analysis: np.ndarray | None = None


def backward(trace, g_z, *, n_layers=None):
    """Return the gradients of a loss through the layers of `unroll`, by the rules (3).

    Parameters
    ----------
    trace : Trace
        Of `unroll`.
    g_z : array (n, K, *P)
        Gradient of the loss with respect to the codes z_T.
    n_layers : int, optional
        Go back through the last layers only (truncated backpropagation): the codes before them count as constants. A
        small value costs less and gives a biased gradient; near convergence the layers left out matter little.

    Returns
    -------
    Grads
        With respect to the dictionary, the threshold, the signals, the step, and the analysis dictionary if there is
        one.

    Raises
    ------
    InputError
        If `g_z` does not have the shape of the codes, or `n_layers` is not a number of layers.

    Examples
    --------
    >>> import numpy as np
    >>> from emdl import unroll
    >>> trace = unroll(np.array([0.0, 1.8, 2.4, 0.0]), np.array([[[0.6, 0.8]]]), theta=0.3, step=0.5, n_iter=1)
    >>> float(backward(trace, np.ones((1, 1, 3))).theta)
    -3.0
    """
    if not isinstance(trace, Trace):
        raise InputTypeError(f"trace is {trace!r}, wanted what unroll returns")
    array_module(trace.y, g_z)
    y, T = trace.y, trace.n_layers
    shape = positions_of(y, trace.D, trace.stride)
    g_z = as_codes(g_z, trace.D, trace.stride)[0].astype(y.dtype, copy=False)
    if g_z.shape != shape:
        raise InputError(f"g_z has shape {g_z.shape}, wanted that of the codes, {shape}")
    if n_layers is not None and check_count(n_layers, "n_layers") > T:
        raise InputError(f"n_layers is {n_layers!r}, wanted 1 ... {T}, the number of layers; None for all")
    return backward_full(trace, g_z, n_layers=n_layers)


def backward_full(trace, g_z, *, n_layers=None):
    """Return the gradients through the layers of a trace, for arguments in full form.

    Parameters
    ----------
    trace : Trace
        Of `unroll_full`.
    g_z : array (n, K, *P) or SparseCodes
        Gradient with respect to the codes z_T, of the dtype of the signals; only its values where z_T is not zero
        matter. As `SparseCodes` it must have the `index` of ``trace.codes[-1]``.
    n_layers : int, optional
        Number of last layers to go back through.

    Returns
    -------
    Grads
    """
    back = {DenseLayers: _dense_backward, MixedLayers: _mixed_backward}.get(type(trace.codes), _sparse_backward)
    stop = trace.n_layers - (n_layers or trace.n_layers) + 1  # the earliest layer, counted from one
    g_D, g_analysis, g_theta, g_y, g_step = back(trace, g_z, stop)
    if trace.analysis is None:
        g_D, g_analysis = g_D + g_analysis, None
    if trace.theta.ndim == 0 or len(trace.theta) == 1:
        g_theta = g_theta.sum().reshape(trace.theta.shape)
    dtype = trace.y.dtype
    as_dtype = None if g_analysis is None else g_analysis.astype(dtype)
    return Grads(g_D.astype(dtype), g_theta.astype(dtype), g_y, float(g_step), as_dtype)


def gradient_bytes(y, D, stride, n_layers):
    """Return the memory that one signal takes on its way through the layers and back, dense.

    Parameters
    ----------
    y : array (n, C, *S)
        Signals.
    D : array (K, C, *s)
        Dictionary.
    stride : tuple of int
        Along each axis.
    n_layers : int
        Layers T.

    Returns
    -------
    int
    """
    n_codes, n_samples = math.prod(positions_of(y, D, stride)[1:]), math.prod(y.shape[1:])
    return y.itemsize * ((n_layers + _ARRAYS) * n_codes + _ARRAYS * n_samples)


def _dense_backward(trace, g_z, stop):
    """Return the gradients of D, A, theta, y and step by the array version."""
    y, D, stride, T = trace.y, trace.D, trace.stride, trace.n_layers
    A = D if trace.analysis is None else trace.analysis
    xp = array_module(y)
    if isinstance(g_z, SparseCodes):
        g_z = g_z.dense()
    step, atom = y.dtype.type(trace.step), D.shape[2:]
    g_D, g_A, g_y, g_theta, g_step = xp.zeros(D.shape), xp.zeros(D.shape), xp.zeros_like(y), xp.zeros(len(D)), 0.0
    codes, beta = _dense_codes(trace.codes, xp.zeros_like(g_z)), momenta(T)
    g_before = xp.zeros_like(g_z)  # gradient of z_{t-1} from layer t + 1, added when its turn comes
    for t in range(T - 1, stop - 2, -1):
        z, before, older = codes(t), codes(t - 1), codes(t - 2)
        w = extrapolate(before, older, xp.full(len(y), beta[t]))
        g_u, g_threshold = shrink_backward_sum(g_z, z)
        g_theta += g_threshold
        q = synthesize_full(g_u, A, stride)
        g_y += step * q
        residual = residual_full(y, w, D, stride)
        g_step = g_step + (q.astype(np.float64) * residual).sum()
        g_A += float(step) * correlate_signals(g_u, residual, atom, stride)
        g_D -= float(step) * correlate_signals(w, q, atom, stride)
        g_z, g_before = momentum_backward(g_u, analyze_full(q, D, stride), g_before, trace.step, beta[t])  # (3)
    return g_D, g_A, g_theta, g_y, g_step


def _dense_codes(layers, zero):
    """Return a function that gives the codes of layer t, from the checkpoint before where they were not kept."""
    cache = dict(layers.kept)

    def codes(t):
        if t < 0:
            return zero
        if t not in cache:
            start = t // layers.every * layers.every
            before, z = (cache.get(s, zero) for s in (start - 2, start - 1))
            if layers.every == 1 and start > 0:
                before = cache[start - 2] if start > 1 else zero
            cache.clear()
            cache.update(layers.kept)
            cache.update(enumerate(layers.again(before, z, start, min(start + layers.every, layers.n)), start))
        return cache[t]

    return codes


def _mixed_backward(trace, g_z, stop):
    """Return the gradients of D, A, theta, y and step: by the kernels, then by products where the codes are dense."""
    y, D, stride, dense = trace.y, trace.D, trace.stride, trace.codes.dense
    A = D if trace.analysis is None else trace.analysis
    g_D, g_A, g_theta, g_y, g_step = np.zeros(D.shape), np.zeros(D.shape), np.zeros(len(D)), np.zeros_like(y), 0.0
    beta, shape = np.array([*momenta(trace.n_layers), 0, 0], y.dtype), (*dense[0].shape[:2], -1)
    if trace.codes.sparse is None:
        g, g_next = (g_z.dense() if isinstance(g_z, SparseCodes) else g_z).reshape(shape), np.zeros_like(dense[0])
    else:
        m, handed = len(dense), []
        if stop > m:
            return _sparse_backward(trace, g_z, stop, trace.codes.sparse)
        g_D, g_A, g_theta, g_y, g_step = _sparse_backward(trace, g_z, m + 1, trace.codes.sparse, handed)
        first, second = (_through_u(g_u, A, D, stride, trace.step) for g_u in handed)
        g, g_next = (1 + beta[m]) * first - beta[m + 1] * second, -beta[m] * first
    g, g_next = np.array(g.reshape(shape)), g_next.reshape(shape)
    step, zero, w = y.dtype.type(trace.step), np.zeros_like(g), np.empty_like(g)
    z = [zero, zero, *(code.reshape(zero.shape) for code in dense)]
    for t in range(len(dense), stop - 1, -1):
        slopes = np.zeros(zero.shape[:2])
        products.over_rows(products.gate_rows, g, z[t + 1], g, slopes)
        g_theta += slopes.sum(axis=0)
        q = products.synthesize(g, A, y.shape, stride)
        g_y += step * q
        products.over_rows(lambda a, b, out, beta=beta[t - 1]: products.mix_codes(a, b, beta, out), z[t], z[t - 1], w)
        residual = y - products.synthesize(w, D, y.shape, stride)
        g_step += (q.astype(np.float64) * residual).sum()
        g_A += float(step) * products.correlate(residual, g, D.shape, stride)
        g_D -= float(step) * products.correlate(q, w, D.shape, stride)
        if t > stop:
            c = analyze_full(q, D, stride).reshape(shape)
            products.over_rows(
                lambda *x, ahead=1 + beta[t - 1], back=beta[t - 1]: products.return_rows(*x, step, ahead, back),
                g, c, g_next,
            )  # fmt: skip
    return g_D, g_A, g_theta, g_y, g_step


def _through_u(g_u, A, D, stride, step):
    """Return the gradient of w of a layer, dense, given that of u: g_u - step D^T A g_u."""
    g_w = -D.dtype.type(step) * analyze_full(synthesize_full(g_u, A, stride), D, stride)
    return g_w + g_u.dense()


def _sparse_backward(trace, g_z, stop, codes=None, handed=None):
    """Return the gradients of D, A, theta, y and step by the kernels.

    `codes` are those of the trace or a part of it; to the list `handed` the gradients of u of the layers `stop` and
    stop + 1 are added.
    """
    codes = trace.codes if codes is None else codes
    net, y = codes.net, planes(trace.y)
    correlations = None
    if net.gram is not None and codes.every < net.n_layers:
        correlations = analyze_full(trace.y, trace.D if trace.analysis is None else trace.analysis, trace.stride)
    g_y, slopes = np.zeros_like(y), [None] * len(y)

    def one(i):
        signal = bands.to_bands(y[i], net.layout)
        own = None if correlations is None else correlations[i]
        given = g_z.signal(i)[1] if isinstance(g_z, SparseCodes) else g_z[i].reshape(net.shape[0], -1)
        way = network.go_back(net, signal, own, codes.segments[i], codes.every, given, codes.shape[-1], stop)
        bands.add_from_bands(g_y[i], way.g_y, net.layout)
        if handed is not None:
            slopes[i] = [way.slopes_of(t, codes.shape[-1]) for t in (stop, stop + 1)]
        return way.g_synthesis.sum(axis=0), way.g_analysis.sum(axis=0), way.g_theta.sum(axis=0), way.g_step.sum()

    sums = [sum(parts) for parts in zip(*parallel_map(one, range(len(y))), strict=True)]
    if handed is not None:
        handed += [SparseCodes.stack(codes.shape, pieces, y.dtype) for pieces in zip(*slopes, strict=True)]
    g_D, g_A = (bands.unpack_rows(g, net.shape).reshape(trace.D.shape) for g in sums[:2])
    return g_D, g_A, sums[2], g_y.reshape(trace.y.shape), sums[3]


def reconstruction_loss(trace, target, *, decoder=None):
    """Return half the squared error of the decoded codes, and its gradients with respect to the codes and the decoder.

    e = B z_T - target,  loss = ||e||^2 / 2,  g_z = B^T e,  g_B = corr(e, z_T)

    Parameters
    ----------
    trace : Trace
        Of `unroll_full`.
    target : array (n, C, *S)
        The signals themselves (unsupervised), or clean ones.
    decoder : array (K, C, *s), optional
        The dictionary B, D unless given.

    Returns
    -------
    loss : float
    g_z : SparseCodes, or array (n, K, *P) on a GPU
        For `backward_full`: with NumPy only at the codes that are not zero, since no others count.
    g_decoder : array (K, C, *s)
    """
    B, z = trace.D if decoder is None else decoder, trace.codes[-1]
    error = synthesize_full(z, B, trace.stride) - target
    loss = 0.5 * float((error.astype(np.float64) ** 2).sum())
    g_decoder = correlate_signals(z, error, B.shape[2:], trace.stride).astype(error.dtype)
    return loss, _at_codes(error, B, trace.stride, z), g_decoder


def _at_codes(r, D, stride, z):
    """Return D^T r at the codes that are not zero."""
    if not isinstance(z, SparseCodes):
        return analyze_full(r, D, stride) * (z != 0)
    rows, atoms, (sh, sw), value = planes(r), planes(D), plane_stride(stride), np.empty_like(z.value)
    parallel_map(
        lambda i: correlate_at(z.signal(i)[0], atoms, sh, sw, z.shape[-1], rows[i], value[z.start[i] : z.start[i + 1]]),
        range(len(r)),
    )
    return SparseCodes(z.shape, z.start, z.index, value)


def implicit(trace, g_z, *, tol=None, max_iter=1000):
    """Return the gradients of a loss on the minimiser of (1), given its codes: those of infinitely many layers.

    Where the codes z have converged, those that are not zero solve D_S^T (y - D_S z) = sign(z) theta / step on their
    support S. Differentiated, with x the solution of (D_S^T D_S) x = g_z and q = D_S x,

    g_y = q      g_D = corr(y - D z, x) - corr(q, z)      g_theta = -sum sign(z) x / step.

    Conjugate gradients find x. Prefer it to `backward` for codes that have converged (`encode`, or many layers): it
    costs one linear system on the support, whatever the number of layers, and stores none of them. Before convergence
    it is the gradient of something else, and on a support whose atoms depend on each other x is not unique.

    Parameters
    ----------
    trace : Trace
        Of `unroll` with enough layers to converge; its dictionary must be tied.
    g_z : array (n, K, *P)
        Gradient of the loss with respect to the codes.
    tol : float, optional
        Largest ||g_z - D_S^T D_S x|| / ||g_z||, by default 1e-8 in float64 and 1e-4 in float32. A large value saves
        iterations.
    max_iter : int
        Largest number of iterations.

    Returns
    -------
    Grads
        With respect to the dictionary, the threshold, the signals, and the step at fixed theta.

    Raises
    ------
    InputError
        If the trace has an analysis dictionary of its own, or `g_z` does not have the shape of the codes.

    Warns
    -----
    ConvergenceWarning
        If `tol` is not reached.

    References
    ----------
    .. [1] Q. Bertrand et al., Implicit differentiation for fast hyperparameter selection in non-smooth convex learning,
       JMLR 23 (2022).

    Examples
    --------
    >>> import numpy as np
    >>> from emdl import unroll
    >>> trace = unroll(np.array([0.0, 1.8, 2.4, 0.0]), np.array([[[0.6, 0.8]]]), theta=0.3, step=0.5, n_iter=60)
    >>> float(implicit(trace, np.ones((1, 1, 3))).theta.round(6))
    -2.0
    """
    if trace.analysis is not None:
        raise InputError("the trace has an analysis dictionary of its own, so its codes minimise nothing; use backward")
    array_module(trace.y, g_z)
    g_z = as_codes(g_z, trace.D, trace.stride)[0].astype(trace.y.dtype, copy=False)
    if g_z.shape != trace.codes.shape:
        raise InputError(f"g_z has shape {g_z.shape}, wanted that of the codes, {trace.codes.shape}")
    tol = (1e-4 if g_z.dtype == np.float32 else 1e-8) if tol is None else check_number(tol, "tol", 0)
    grads, reached = implicit_full(trace, g_z, tol=tol, max_iter=max_iter)
    if reached > tol:
        warnings.warn(
            f"the implicit gradient has relative residual {reached:.1e}, wanted {tol:.1e}", ConvergenceWarning, 2
        )
    return grads


def implicit_full(trace, g_z, *, tol, max_iter):
    """Return the gradients of `implicit`, and how well its linear system is solved, for arguments in full form.

    Parameters
    ----------
    trace : Trace
        Of `unroll_full`, with a tied dictionary.
    g_z : array (n, K, *P) or SparseCodes
        Gradient with respect to the codes z_T, as for `backward_full`.
    tol : float
        Largest ||g_z - D_S^T D_S x|| / ||g_z||.
    max_iter : int
        Largest number of iterations.

    Returns
    -------
    Grads
    reached : float
        The relative residual; larger than `tol` where `max_iter` came first.
    """
    xp, z, D, stride = array_module(trace.y), trace.codes[-1], trace.D, trace.stride
    sparse = isinstance(z, SparseCodes)

    def codes(value):
        return SparseCodes(z.shape, z.start, z.index, value) if sparse else value

    def values(c):
        return c.value if sparse else c

    def normal(x):
        return values(_at_codes(synthesize_full(codes(x), D, stride), D, stride, z))

    signs = xp.sign(values(z))
    given = g_z.value if isinstance(g_z, SparseCodes) else _on_support(g_z, z)
    x, reached = _conjugate_gradients(normal, given, tol, max_iter)
    q = synthesize_full(codes(x), D, stride)
    residual = trace.y - synthesize_full(z, D, stride)
    atom = D.shape[2:]
    g_D = correlate_signals(codes(x), residual, atom, stride) - correlate_signals(z, q, atom, stride)
    slope = (signs * x).astype(np.float64)
    if sparse:
        g_theta = -np.bincount(z.index % len(D), slope, minlength=len(D)) / trace.step
    else:
        g_theta = -slope.sum(axis=(0, *range(2, slope.ndim))) / trace.step
    g_step = -float((g_theta * trace.theta).sum()) / trace.step
    if trace.theta.ndim == 0 or len(trace.theta) == 1:
        g_theta = g_theta.sum().reshape(trace.theta.shape)
    return Grads(g_D.astype(D.dtype), g_theta.astype(D.dtype), q, g_step), reached


def _on_support(g_z, z):
    if not isinstance(z, SparseCodes):
        return g_z * (z != 0)
    n, K = z.shape[:2]
    signal = np.repeat(np.arange(n), np.diff(z.start))
    return g_z.reshape(n, K, -1)[signal, z.index % K, z.index // K]


def _conjugate_gradients(apply, b, tol, max_iter):
    """Return x with apply(x) = b, for a symmetric positive operator, and the relative residual reached."""
    x, r, p = b * 0, b, b
    size = energy = float((b.astype(np.float64) ** 2).sum())
    for _ in range(max_iter):
        if energy <= tol * tol * size:
            break
        h = apply(p)
        curvature = float((p.astype(np.float64) * h).sum())
        if curvature <= 0:
            break
        a = b.dtype.type(energy / curvature)
        x, r = x + a * p, r - a * h
        before, energy = energy, float((r.astype(np.float64) ** 2).sum())
        p = r + b.dtype.type(energy / before) * p
    return x, (energy / size) ** 0.5 if size else 0.0
