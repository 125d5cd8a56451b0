"""The backward pass through the unrolled encoder, derived by hand.

With g_x the gradient of a loss with respect to x, layer t of (2) gives

    g_u = g_z [z_t != 0]            g_theta -= sum sign(z_t) g_u
    q   = D g_u
    g_y += step q
    g_w = g_u - step D^T q
    g_D += step corr(y - D w_t, g_u) - step corr(q, w_t)
    g_{z_{t-1}} += (1 + beta_t) g_w       g_{z_{t-2}} -= beta_t g_w                                 (3)
"""

from dataclasses import dataclass

import numpy as np

from emdl.backend import array_module
from emdl.codes import SparseCodes
from emdl.errors import InputError
from emdl.ops import analyze_full, as_codes, correlate_signals, synthesize_full
from emdl.prox import shrink_backward
from emdl.unrolled import momenta


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
    """

    D: np.ndarray
    theta: np.ndarray
    y: np.ndarray


def backward(trace, g_z):
    """Return the gradients of a loss through all layers of `unroll`, by the rules (3).

    Parameters
    ----------
    trace : Trace
        Of `unroll`.
    g_z : array (n, K, *P)
        Gradient of the loss with respect to the codes z_T.

    Returns
    -------
    Grads
        With respect to the dictionary, the threshold and the signals.

    Raises
    ------
    InputError
        If `g_z` does not have the shape of the codes.

    Examples
    --------
    >>> import numpy as np
    >>> from emdl import unroll
    >>> trace = unroll(np.array([0.0, 1.8, 2.4, 0.0]), np.array([[[0.6, 0.8]]]), theta=0.3, step=0.5, n_iter=1)
    >>> float(backward(trace, np.ones((1, 1, 3))).theta)
    -3.0
    """
    array_module(trace.y, g_z)
    y, D, stride = trace.y, trace.D, trace.stride
    g_z = as_codes(g_z, D, stride)[0].astype(y.dtype, copy=False)
    if g_z.shape != trace.codes[-1].shape:
        raise InputError(f"g_z has shape {g_z.shape}, wanted that of the codes, {trace.codes[-1].shape}")
    xp = array_module(y)
    step = y.dtype.type(trace.step)
    g_D, g_y, g_theta = xp.zeros(D.shape), xp.zeros_like(y), xp.zeros(len(D))
    axes = (0, *range(2, y.ndim))
    g_before = xp.zeros_like(g_z)  # gradient of z_{t-1} from layer t + 1, added when its turn comes
    for t, beta in reversed(list(enumerate(momenta(len(trace.codes))))):
        z, before, older = (_dense(trace.codes, i, g_z) for i in (t, t - 1, t - 2))
        w = before + y.dtype.type(beta) * (before - older)
        g_u, g_threshold = shrink_backward(g_z, z)
        g_theta += g_threshold.sum(axis=axes, dtype=np.float64)
        q = synthesize_full(g_u, D, stride)
        g_y += step * q
        g_w = g_u - step * analyze_full(q, D, stride)
        residual = y - synthesize_full(w, D, stride)
        g_D += float(step) * (correlate_signals(g_u, residual, D.shape[2:], stride) - correlate_signals(w, q, D.shape[2:], stride))
        g_z, g_before = g_before + (1 + y.dtype.type(beta)) * g_w, -y.dtype.type(beta) * g_w  # (3)
    if trace.theta.ndim == 0:
        g_theta = g_theta.sum()
    return Grads(g_D.astype(y.dtype), g_theta.astype(y.dtype), g_y)


def _dense(codes, t, like):
    if t < 0:
        return array_module(like).zeros_like(like)
    return codes[t].dense() if isinstance(codes[t], SparseCodes) else codes[t]
