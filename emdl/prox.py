"""Soft threshold: the proximal operator of the l1 norm, and the ReLU of the paper's network.

Below it, the steps of a layer on dense codes, each in one pass over memory on a GPU.
"""

import numpy as np

from emdl._cuda import layers as cuda
from emdl.backend import array_module


def shrink(u, theta, *, positive=False):
    r"""Return the soft threshold of `u`.

    .. math:: \mathrm{shrink}(u, \theta) = \mathrm{sign}(u) \max(|u| - \theta, 0)

    or, with codes kept non-negative, :math:`\max(u - \theta, 0)`.

    Parameters
    ----------
    u : array
        Values, data unit.
    theta : float or array that broadcasts against `u`
        Threshold, data unit, >= 0. A large value sets more codes to zero and takes more off the others.
    positive : bool
        One-sided: codes >= 0.

    Returns
    -------
    array
        Shape of `u`.
    """
    xp = array_module(u)
    if positive:
        return xp.maximum(u - theta, 0)
    return xp.sign(u) * xp.maximum(xp.abs(u) - theta, 0)


def shrink_backward(g_z, z):
    r"""Return the gradients with respect to `u` and `theta`, given z = shrink(u, theta) and the gradient of `z`.

    .. math:: g_u = g_z\,[z \ne 0], \qquad g_\theta = -g_z\,\mathrm{sign}(z)

    Parameters
    ----------
    g_z, z : array
        Gradient and value of the codes, one shape.

    Returns
    -------
    g_u, g_theta : array
        Shape of `z`; `g_theta` is not yet summed over the codes that share a threshold.
    """
    xp = array_module(g_z, z)
    return g_z * (z != 0), -g_z * xp.sign(z)


def shrink_momentum(w, c, before, theta, step, beta, positive):
    """Return the codes of a layer and the point of the next.

    z = shrink(w + step c, theta),   w_next = z + beta (z - before)                              (2)

    Parameters
    ----------
    w : array (n, K, *P)
        Point of this layer.
    c : array (n, K, *P)
        D^T (y - D w).
    before : array (n, K, *P)
        Codes of the layer before.
    theta : array (K,)
        Threshold, of the same dtype.
    step, beta : float
        Step, and momentum of the next layer.
    positive : bool
        One-sided.

    Returns
    -------
    z, w_next : array (n, K, *P)
    """
    if array_module(w, c, before, theta) is not np:
        return cuda.shrink_momentum(w, c, before, theta, step, beta, positive)
    real = w.dtype.type
    z = shrink(w + real(step) * c, _column(theta, w), positive=positive)
    return z, z + real(beta) * (z - before)


def shrink_trial(w, c, z, penalty, step, positive):
    """Return a trial of the next codes, and what decides about it.

    x = shrink(w + step c, step penalty),   uphill = sum (w - x) (x - z),   distance = sum (x - w)^2

    Parameters
    ----------
    w, c, z : array (n, K, *P)
        Point of this iteration, D^T (y - D w), codes of the last.
    penalty : array (K,) or (n, K, *P)
        Of the same dtype: one for each atom, or one for each code.
    step : array (n,) of float64
        Step of each signal.
    positive : bool
        One-sided.

    Returns
    -------
    x : array (n, K, *P)
    uphill, distance : array (n,) of float64
        The momentum points uphill where `uphill` is positive.
    """
    if array_module(w, c, z, penalty, step) is not np:
        return cuda.shrink_trial(w, c, z, penalty, step, positive)
    step = step.astype(w.dtype).reshape(-1, *[1] * (w.ndim - 1))
    x = shrink(w + step * c, step * _column(penalty, w), positive=positive)
    moved = w.astype(np.float64) - x
    axes = tuple(range(1, w.ndim))
    return x, (moved * (x.astype(np.float64) - z)).sum(axis=axes), (moved**2).sum(axis=axes)


def advance(w, x, z, beta, accepted):
    """Return codes and point of the next iteration: x and x + beta (x - z) where a trial is accepted, else z and w.

    Parameters
    ----------
    w, x, z : array (n, ...)
        Point, trial and codes of this iteration; or the signals that they make.
    beta : array (n,) of float64
        Momentum of each signal.
    accepted : array (n,) of bool
        Whether its trial is taken.

    Returns
    -------
    z, w : array (n, ...)
    """
    if array_module(w, x, z, beta, accepted) is not np:
        return cuda.advance(w, x, z, beta, accepted)
    taken = accepted.reshape(-1, *[1] * (w.ndim - 1))
    return np.where(taken, x, z), np.where(taken, extrapolate(x, z, beta), w)


def extrapolate(z, before, beta):
    """Return z + beta (z - before), with one beta for each signal.

    Parameters
    ----------
    z, before : array (n, K, *P)
        Codes.
    beta : array (n,) of float64
        Momentum.

    Returns
    -------
    array (n, K, *P)
    """
    if array_module(z, before, beta) is not np:
        return cuda.extrapolate(z, before, beta)
    return z + beta.astype(z.dtype).reshape(-1, *[1] * (z.ndim - 1)) * (z - before)


def shrink_backward_sum(g_z, z):
    """Return the gradients as `shrink_backward` does, that of theta summed over the codes of each atom.

    Parameters
    ----------
    g_z, z : array (n, K, *P)
        Gradient and value of the codes.

    Returns
    -------
    g_u : array (n, K, *P)
    g_theta : array (K,) of float64
    """
    if array_module(g_z, z) is not np:
        return cuda.gate(g_z, z)
    g_u, g_theta = shrink_backward(g_z, z)
    return g_u, g_theta.sum(axis=(0, *range(2, z.ndim)), dtype=np.float64)


def momentum_backward(g_u, c, g_before, step, beta):
    """Return the gradients of the two layers before, given that of u and c = D^T A g_u.

    g_w = g_u - step c,   g_z = g_before + (1 + beta) g_w,   g_next = -beta g_w                   (3)

    Parameters
    ----------
    g_u, c, g_before : array (n, K, *P)
        Gradient of u, c, and what the layer after left for z_{t-1}.
    step, beta : float
        Step and momentum of this layer.

    Returns
    -------
    g_z, g_next : array (n, K, *P)
        Gradient of z_{t-1}, and this layer's share of that of z_{t-2}.
    """
    if array_module(g_u, c, g_before) is not np:
        return cuda.spread(g_u, c, g_before, step, beta)
    real = g_u.dtype.type
    g_w = g_u - real(step) * c
    return g_before + (1 + real(beta)) * g_w, -real(beta) * g_w


def _column(theta, codes):
    return theta if theta.ndim > 1 else theta.reshape(-1, *[1] * (codes.ndim - 2))
