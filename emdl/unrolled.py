"""The paper's encoder: exactly T layers of FISTA, from zero.

    w_t = z_{t-1} + beta_t (z_{t-1} - z_{t-2})
    u_t = w_t + step D^T (y - D w_t)
    z_t = shrink(u_t, theta)                                                                        (2)
"""

import math
from dataclasses import dataclass

import numpy as np

from emdl.backend import array_module, check_count, check_number
from emdl.codes import SparseCodes
from emdl.ops import analyze_full, as_problem, as_rates, positions_of, synthesize_full
from emdl.prox import shrink


@dataclass(frozen=True)
class Trace:
    """What T layers leave behind for the backward pass.

    Attributes
    ----------
    y : array (n, C, *S)
        Signals.
    D : array (K, C, *s)
        Dictionary, dtype of `y`.
    theta : array () or (K,)
        Threshold of one layer, data unit.
    step : float
        Step of one layer.
    positive : bool
        Whether the codes are kept non-negative.
    stride : tuple of int
        Along each axis.
    codes : tuple
        z_1 ... z_T, as `SparseCodes`, or as arrays on a GPU.
    """

    y: np.ndarray
    D: np.ndarray
    theta: np.ndarray
    step: float
    positive: bool
    stride: tuple
    codes: tuple

    @property
    def z(self):
        """The codes of the last layer, array (n, K, *P)."""
        last = self.codes[-1]
        return last.dense() if isinstance(last, SparseCodes) else last


def unroll(y, D, theta, step, n_iter, *, positive=False, stride=1):
    """Return the trace of exactly `n_iter` layers of (2), from zero.

    Parameters
    ----------
    y : array S, (n, *S) or (n, C, *S)
        Signals.
    D : array (K, C, *s)
        Dictionary.
    theta : float or array (K,)
        Threshold of one layer, data unit, >= 0: theta = lmbd sigma^2 step makes (1) the objective that the layers descend.
        A large value leaves fewer codes.
    step : float
        Step of one layer; at most 1 / `lipschitz` (D), else the layers may diverge.
    n_iter : int
        Number of layers T.
    positive : bool
        One-sided shrinkage: codes >= 0.
    stride : int or tuple of int
        Distance of neighbouring code positions, samples.

    Returns
    -------
    Trace
        Its `z` is z_T, array (n, K, *P); `backward` takes gradients through it.

    Raises
    ------
    InputError
        If shapes do not fit each other, a value is not finite, or a parameter lies outside its range.

    References
    ----------
    .. [1] A. Beck, M. Teboulle, A fast iterative shrinkage-thresholding algorithm for linear inverse problems, SIAM J. Imaging
       Sciences 2 (2009), doi:10.1137/080716542.

    Examples
    --------
    >>> import numpy as np
    >>> unroll(np.array([0.0, 1.8, 2.4, 0.0]), np.array([[[0.6, 0.8]]]), theta=0.3, step=0.5, n_iter=1).z.round(2)
    array([[[0.42, 1.2 , 0.42]]])
    """
    y, D, stride = as_problem(y, D, stride)
    xp = array_module(y)
    theta = as_rates(theta, D)[: np.size(theta)].reshape(np.shape(theta)) if np.ndim(theta) else xp.asarray(float(as_rates(theta, D)[0]))
    return unroll_full(
        y, D, theta.astype(y.dtype), check_number(step, "step", 0, strict=True), check_count(n_iter, "n_iter"), positive, stride
    )


def unroll_full(y, D, theta, step, n_iter, positive, stride):
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

    Returns
    -------
    Trace
    """
    xp = array_module(y, D)
    z = before = xp.zeros(positions_of(y, D, stride), y.dtype)
    threshold = theta.reshape(-1, *[1] * (y.ndim - 2))
    codes = []
    for beta in momenta(n_iter):
        w = z + y.dtype.type(beta) * (z - before)
        u = w + y.dtype.type(step) * analyze_full(y - synthesize_full(w, D, stride), D, stride)
        before, z = z, shrink(u, threshold, positive=positive)  # (2)
        codes.append(SparseCodes.from_dense(z) if xp is np else z)
    return Trace(y, D, theta, step, positive, stride, tuple(codes))


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
