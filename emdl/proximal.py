"""Certified coding on dense arrays: accelerated proximal gradient with restart, on a batch of signals at a time.

The way of CuPy arrays. Every operation works on all codes of all signals; nothing but the certificate, once in `_EVERY`
iterations, comes back to the host. The step is 1 / `lipschitz`, which is within a few per cent of the largest that is
safe, so there is nothing for a line search to find.
"""

import math

import numpy as np

from emdl.backend import array_module
from emdl.device import in_pieces, to_host
from emdl.ops import analyze_full, lipschitz, positions_of, residual_full
from emdl.prox import extrapolate, shrink_test

_EVERY = 10  # iterations between looks at the certificate, which costs about one iteration
_ARRAYS = 8  # of the size of the codes, at most, that an iteration holds at once


def solve(y, D, penalty, stride, *, tol, max_iter, positive, z0=None):
    """Return the certified minimiser of half the squared error plus penalty, on dense arrays.

    FISTA [1]_ whose momentum starts anew, signal by signal, where it points uphill [2]_. Signals that have their
    certificate leave the batch. The batch is as large as the memory of the device allows.

    Parameters
    ----------
    y : array (n, C, *S)
        Signals.
    D : array (K, C, *s)
        Dictionary of the same dtype.
    penalty : array (K,)
        lmbd_k sigma^2, data unit.
    stride : tuple of int
        Along each axis.
    tol : float
        Relative duality gap.
    max_iter : int
        Most iterations.
    positive : bool
        Keep the codes non-negative.
    z0 : array (n, K, *P), optional
        Codes to start from.

    Returns
    -------
    z : array (n, K, *P)
        Codes.
    primal, gap : ndarray (n,)
        Half the squared error plus penalty of each signal, and its duality gap, on the host.
    n_iter : int
        Most iterations that any signal took.

    References
    ----------
    .. [1] A. Beck, M. Teboulle, A fast iterative shrinkage-thresholding algorithm for linear inverse problems, SIAM J.
       Imaging Sciences 2 (2009), doi:10.1137/080716542.
    .. [2] B. O'Donoghue, E. Candes, Adaptive restart for accelerated gradient schemes, Found. Comput. Math. 15 (2015),
       doi:10.1007/s10208-013-9150-3.
    """
    xp, shape = array_module(y, D), positions_of(y, D, stride)
    step = 1 / max(lipschitz(D, stride=stride), np.finfo(y.dtype).tiny)
    z = xp.zeros(shape, y.dtype) if z0 is None else xp.array(z0, y.dtype)
    if positive and z0 is not None:
        z = xp.maximum(z, 0)
    penalty = xp.asarray(penalty, y.dtype)

    def piece(start, stop):
        part = slice(start, stop)
        return _solve_batch(y[part], D, penalty, stride, step, tol, max_iter, positive, z[part])

    n_codes, n_samples = math.prod(shape[1:]), math.prod(y.shape[1:])
    bytes_each = _ARRAYS * y.itemsize * n_codes + (4 * y.itemsize + 16) * n_samples
    primal, gap, n_iter = zip(*in_pieces(piece, len(y), bytes_each, y), strict=True)
    return z, np.concatenate(primal), np.concatenate(gap), max(n_iter)


def _solve_batch(y, D, penalty, stride, step, tol, max_iter, positive, z_out):
    """Write the minimiser over its start `z_out`; return primal, gap and the number of iterations."""
    xp, theta = array_module(y), penalty * y.dtype.type(step)
    primal, gap = np.full(len(y), np.inf), np.full(len(y), np.inf)
    left = np.arange(len(y))  # signals without a certificate, in the order of the arrays below
    w = z = before = z_out.copy()
    s = xp.ones(len(y))
    for n_iter in range(1, max_iter + 1):
        if n_iter % _EVERY == 1:
            primal[left], gap[left] = to_host(certificate(y, z, D, penalty, stride, positive))
            wanting = gap[left] > tol * primal[left]
            if not wanting.any():
                break
            if wanting.sum() <= len(left) / 2:
                z_out[xp.asarray(left)] = z
                keep, left = xp.asarray(np.flatnonzero(wanting)), left[wanting]
                y, z, before, w, s = y[keep], z[keep], before[keep], w[keep], s[keep]
        before = z
        z, uphill = shrink_test(
            w, analyze_full(residual_full(y, w, D, stride), D, stride), before, theta, step, positive
        )
        s = xp.where(uphill > 0, 1.0, s)
        s_next = (1 + xp.sqrt(1 + 4 * s * s)) / 2
        w, s = extrapolate(z, before, (s - 1) / s_next), s_next
    else:
        primal[left], gap[left] = to_host(certificate(y, z, D, penalty, stride, positive))
    z_out[xp.asarray(left)] = z
    return primal, np.maximum(gap, 0), n_iter


def certificate(y, z, D, penalty, stride, positive):
    r"""Return the primal value and the duality gap of each signal.

    With r = y - D z, a r is dual feasible for every a with a |d_k^T r| <= p_k at all positions, and

    .. math:: \mathrm{gap} = \tfrac12 \|r\|^2 + \sum_k p_k \|z_k\|_1 - a \langle y, r \rangle + \tfrac12 a^2 \|r\|^2

    Parameters
    ----------
    y : array (n, C, *S)
        Signals.
    z : array (n, K, *P)
        Codes.
    D : array (K, C, *s)
        Dictionary.
    penalty : array (K,)
        Of the same dtype.
    stride : tuple of int
        Along each axis.
    positive : bool
        Whether codes are non-negative.

    Returns
    -------
    array (2, n) of float64
        Primal value and gap.
    """
    xp, axes = array_module(y), tuple(range(1, y.ndim))
    column = penalty.reshape(-1, *[1] * (y.ndim - 2))
    r = residual_full(y, z, D, stride)
    c = analyze_full(r, D, stride)
    largest = ((c if positive else xp.abs(c)) / column).max(axis=axes).astype(np.float64)
    r = r.astype(np.float64)
    energy, cross = (r**2).sum(axis=axes), (y * r).sum(axis=axes)
    primal = energy / 2 + (column * xp.abs(z)).sum(axis=axes, dtype=np.float64)
    a = xp.clip(cross / xp.where(energy > 0, energy, 1), 0, 1 / xp.maximum(largest, np.finfo(np.float32).tiny))
    return xp.stack([primal, primal - a * cross + a**2 * energy / 2])
