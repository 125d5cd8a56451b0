"""What happens to codes between two convolutions, on CuPy arrays, each in one pass over memory."""

import math

import numpy as np

from emdl._cuda.compiler import launch
from emdl.backend import array_module

THREADS = 128  # as in layers.cu
_MOST_BLOCKS = 4096  # enough for the largest device; fixed, so that bits do not depend on the device


def shrink_momentum(w, c, before, theta, step, beta, positive):
    """Return z = shrink(w + step c, theta), and z + beta (z - before), the point of the next layer.   (2).

    Parameters
    ----------
    w, c, before : cupy.ndarray (n, K, *P)
        Point of this layer, D^T (y - D w), codes of the last layer.
    theta : cupy.ndarray (K,)
        Threshold, of the same dtype.
    step, beta : float
        Step, and momentum of the next layer.
    positive : bool
        One-sided.

    Returns
    -------
    z, w_next : cupy.ndarray (n, K, *P)
    """
    cupy = array_module(w, c, before, theta)
    z, w_next = _new(w, 2)
    real = w.dtype.type
    _launch(
        "shrink_momentum", w, (_blocks(w.size), 1, 1),
        (w, c, before, theta, z, w_next, real(step), real(beta), np.int32(positive), np.int32(w.shape[1]), _P(w),
         _size(w)),
        cupy,
    )  # fmt: skip
    return z, w_next


def shrink_trial(w, c, z, penalty, step, positive):
    """Return x = shrink(w + step c, step penalty), and for each signal sum (w - x) (x - z) and sum (x - w)^2.

    Parameters
    ----------
    w, c, z : cupy.ndarray (n, K, *P)
        Point of this iteration, D^T (y - D w), codes of the last.
    penalty : cupy.ndarray (K,) or (n, K, *P)
        Of the same dtype.
    step : cupy.ndarray (n,) of float64
        Step of each signal.
    positive : bool
        One-sided.

    Returns
    -------
    x : cupy.ndarray (n, K, *P)
    uphill, distance : cupy.ndarray (n,) of float64
        The two sums.
    """
    cupy, (x,), size = array_module(w, c, z, penalty, step), _new(w, 1), math.prod(w.shape[1:])
    chunks = min(_blocks(size), 256)
    partial = cupy.empty((2, len(w), chunks), np.float64)
    numbers = (np.int32(positive), np.int32(penalty.ndim > 1), _P(w), np.int64(size), np.int32(chunks))
    _launch("shrink_trial", w, (len(w) * chunks, 1, 1), (w, c, z, penalty, step, x, partial, *numbers), cupy)
    uphill, distance = (partial[i].sum(axis=1) for i in (0, 1))
    return x, uphill, distance


def advance(w, x, z, beta, accepted):
    """Return z and w of the next iteration: x and x + beta (x - z) where a signal's x is accepted, else z and w.

    Parameters
    ----------
    w, x, z : cupy.ndarray (n, ...)
        Point, trial, and codes of this iteration; or the signals that they make.
    beta : cupy.ndarray (n,) of float64
        Momentum of each signal.
    accepted : cupy.ndarray (n,) of bool
        Whether its trial is taken.

    Returns
    -------
    z, w : cupy.ndarray (n, ...)
    """
    cupy, (z_next, w_next) = array_module(w, x, z, beta, accepted), _new(w, 2)
    numbers = (np.int64(math.prod(w.shape[1:])), _size(w))
    arguments = (w, x, z, beta, accepted.astype(np.int32), z_next, w_next, *numbers)
    _launch("advance", w, (_blocks(w.size), 1, 1), arguments, cupy)
    return z_next, w_next


def extrapolate(z, before, beta):
    """Return z + beta (z - before).

    Parameters
    ----------
    z, before : cupy.ndarray (n, K, *P)
        Codes.
    beta : cupy.ndarray (n,) of float64
        Momentum of each signal.

    Returns
    -------
    cupy.ndarray (n, K, *P)
    """
    cupy, (w,) = array_module(z, before, beta), _new(z, 1)
    arguments = (z, before, beta, w, np.int64(math.prod(z.shape[1:])), _size(z))
    _launch("extrapolate", z, (_blocks(z.size), 1, 1), arguments, cupy)
    return w


def gate(g_z, z):
    """Return g_u = g_z [z != 0], and g_theta = -sum sign(z) g_u for each atom.   (3).

    Parameters
    ----------
    g_z, z : cupy.ndarray (n, K, *P)
        Gradient and value of the codes.

    Returns
    -------
    g_u : cupy.ndarray (n, K, *P)
    g_theta : cupy.ndarray (K,) of float64
    """
    cupy, (g_u,), K = array_module(g_z, z), _new(z, 1), z.shape[1]
    chunks = min(_blocks(z.size // K), 256)
    partial = cupy.empty((K, chunks), np.float64)
    arguments = (g_z, z, g_u, partial, np.int32(K), _P(z), np.int64(z.size // K))
    _launch("gate", z, (chunks, K, 1), arguments, cupy)
    return g_u, partial.sum(axis=1)


def spread(g_u, c, g_before, step, beta):
    """Return the gradients of z_{t-1} and z_{t-2}, g_before + (1 + beta) g_w and -beta g_w, g_w = g_u - step c.  (3).

    Parameters
    ----------
    g_u, c, g_before : cupy.ndarray (n, K, *P)
        Gradient of u, D^T D g_u, what layer t + 1 left for z_{t-1}.
    step, beta : float
        Step and momentum of this layer.

    Returns
    -------
    g_z, g_next : cupy.ndarray (n, K, *P)
    """
    cupy, (g_z, g_next), real = array_module(g_u, c, g_before), _new(g_u, 2), g_u.dtype.type
    arguments = (g_u, c, g_before, g_z, g_next, real(step), real(beta), _size(g_u))
    _launch("spread", g_u, (_blocks(g_u.size), 1, 1), arguments, cupy)
    return g_z, g_next


def _launch(kernel, like, grid, arguments, cupy):
    given = [cupy.ascontiguousarray(a) if isinstance(a, cupy.ndarray) else a for a in arguments]
    launch(cupy, "layers", like.dtype, kernel, grid, THREADS, given)


def _new(like, count):
    cupy = array_module(like)
    return [cupy.empty(like.shape, like.dtype) for _ in range(count)]


def _blocks(size):
    return max(1, min(_MOST_BLOCKS, -(-size // THREADS)))


def _P(codes):
    return np.int64(math.prod(codes.shape[2:]))


def _size(codes):
    return np.int64(codes.size)
