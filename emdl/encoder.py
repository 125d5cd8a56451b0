"""The E-step: `encode`, the certified minimiser, and `unroll`, exactly T layers of FISTA.

    w_t = z_{t-1} + beta_t (z_{t-1} - z_{t-2})
    u_t = w_t + step D^T (y - D w_t)
    z_t = shrink(u_t, theta)                                                                        (2)
"""

import math
import warnings
from dataclasses import dataclass

import numpy as np

from emdl import _kernels
from emdl.backend import array_module, check_count, check_number, parallel_map
from emdl.codes import SparseCodes
from emdl.errors import ConvergenceWarning, InputError
from emdl.ops import (
    add_synthesis,
    analyze_full,
    as_codes,
    as_problem,
    as_rates,
    lipschitz,
    plane_stride,
    planes,
    positions_of,
    synthesize_full,
)
from emdl.prox import shrink


@dataclass(frozen=True)
class Solution:
    """Codes with their certificate.

    Attributes
    ----------
    codes : SparseCodes, or array (n, K, *P) on a GPU
        The minimiser.
    primal : ndarray (n,)
        Half the squared error plus penalty of each signal, which is sigma^2 E(z).
    gap : ndarray (n,)
        Duality gap in the same unit: primal - minimum <= gap.
    n_iter : int
        Most sweeps that any signal took.
    """

    codes: object
    primal: np.ndarray
    gap: np.ndarray
    n_iter: int

    @property
    def relative_gap(self):
        """The largest gap / primal of all signals."""
        return float(np.max(self.gap / np.where(self.primal > 0, self.primal, 1)))


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


def encode(y, D, lmbd, sigma=1.0, *, tol=1e-4, max_iter=2000, positive=False, stride=1, z0=None, sparse=False):
    """Return the codes that minimise E(z), with a certificate.

    .. math:: E(z) = \\|y - D z\\|^2 / (2 \\sigma^2) + \\sum_k \\lambda_k \\|z_k\\|_1   (1)

    The duality gap, which bounds E(z) - min E from above, is at most ``tol * E(z)`` for each signal.

    Parameters
    ----------
    y : array S, (n, *S) or (n, C, *S)
        Signals.
    D : array (K, C, *s)
        Dictionary.
    lmbd : float or array (K,)
        Laplace rates, 1 / data unit, > 0. A large rate leaves fewer codes; above max |D^T y| / sigma^2 all are zero.
    sigma : float
        Noise standard deviation, data unit. A large value acts as a large rate.
    tol : float
        Relative duality gap. float32 reaches about 1e-5, float64 1e-8 and less.
    max_iter : int
        Most sweeps over all code positions (a sweep is followed by updates of the non-zeros alone).
    positive : bool
        Keep the codes non-negative.
    stride : int or tuple of int
        Distance of neighbouring code positions, samples.
    z0 : array (n, K, *P), optional
        Codes to start from.
    sparse : bool
        Return `emdl.codes.SparseCodes` instead of an array.

    Returns
    -------
    array (n, K, *P)
        Codes, dtype of `y`.

    Raises
    ------
    InputError
        If shapes do not fit each other, a value is not finite, or a parameter lies outside its range.

    Warns
    -----
    ConvergenceWarning
        If the tolerance was not reached; the message gives the gap that was.

    Examples
    --------
    >>> import numpy as np
    >>> encode(np.array([0.0, 1.8, 2.4, 0.0]), np.array([[[0.6, 0.8]]]), lmbd=0.5).round(2)
    array([[[0. , 2.5, 0. ]]])
    """
    y, D, stride = as_problem(y, D, stride)
    sigma, tol = check_number(sigma, "sigma", 0, strict=True), check_number(tol, "tol", 0, 1, strict=True)
    rates = as_rates(lmbd, D)
    if not bool((rates > 0).all()):
        raise InputError(f"lmbd is {lmbd!r}, wanted rates > 0; without a penalty the minimum is not unique and has no certificate")
    if z0 is not None:
        z0 = as_codes(z0, D, stride)[0]
        if z0.shape != positions_of(y, D, stride):
            raise InputError(f"z0 has shape {z0.shape}, wanted {positions_of(y, D, stride)}")
    solution = solve(
        y, D, rates * sigma**2, stride, tol=tol, max_iter=check_count(max_iter, "max_iter"), positive=positive, z0=z0
    )
    if solution.relative_gap > tol:
        warnings.warn(
            f"encode stopped after {solution.n_iter} sweeps at a relative gap of {solution.relative_gap:.1e}, "
            f"wanted {tol:.1e}; raise max_iter, or tol if the data are float32",
            ConvergenceWarning,
            stacklevel=2,
        )
    if isinstance(solution.codes, SparseCodes) and not sparse:
        return solution.codes.dense()
    return solution.codes


def solve(y, D, penalty, stride, *, tol, max_iter=2000, positive=False, z0=None):
    """Return the certified minimiser of half the squared error plus penalty, for arguments in full form.

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
        Most sweeps.
    positive : bool
        Keep the codes non-negative.
    z0 : SparseCodes or array (n, K, *P), optional
        Codes to start from.

    Returns
    -------
    Solution
    """
    if array_module(y, D) is not np:
        return _solve_by_gradient(y, D, penalty, stride, tol, max_iter, positive, z0)
    shape = positions_of(y, D, stride)
    if isinstance(z0, SparseCodes):
        z0 = z0.dense()
    start = np.zeros(shape, y.dtype) if z0 is None else np.array(z0, y.dtype)
    if positive:
        np.maximum(start, 0, out=start)
    atoms, signals, codes, (sh, sw) = planes(D), planes(y), planes(start), plane_stride(stride)
    norms = (D.reshape(len(D), -1) ** 2).sum(axis=1)
    penalty = penalty.astype(y.dtype)
    done = parallel_map(
        lambda i: _kernels.solve(signals[i], atoms, norms, penalty, sh, sw, positive, tol, max_iter, codes[i]), range(len(y))
    )
    primal, gap = np.array([d[2] for d in done]), np.array([max(d[3], 0.0) for d in done])
    return Solution(SparseCodes.stack(shape, [d[:2] for d in done], y.dtype), primal, gap, max(d[4] for d in done))


def _solve_by_gradient(y, D, penalty, stride, tol, max_iter, positive, z0):
    """FISTA with restart on dense arrays: the same minimiser and certificate as the kernel, on NumPy or CuPy."""
    xp = array_module(y)
    axes = tuple(range(1, y.ndim))
    step = 1 / max(lipschitz(D, stride=stride), np.finfo(y.dtype).tiny)
    penalty = penalty.astype(y.dtype).reshape(1, -1, *[1] * (y.ndim - 2))
    z = xp.zeros(positions_of(y, D, stride), y.dtype) if z0 is None else xp.array(z0, y.dtype)
    w, s = z, 1.0
    for n_iter in range(1, max_iter + 1):
        if n_iter % 10 == 1:
            r = (y - synthesize_full(z, D, stride)).astype(np.float64)
            c = analyze_full(r.astype(y.dtype), D, stride)
            largest = ((c if positive else xp.abs(c)) / penalty).max(axis=axes).astype(np.float64)
            energy, cross = (r**2).sum(axis=axes), (y * r).sum(axis=axes)
            primal = energy / 2 + (penalty * xp.abs(z)).sum(axis=axes, dtype=np.float64)
            a = xp.clip(cross / xp.where(energy > 0, energy, 1), 0, 1 / xp.where(largest > 0, largest, 1))
            gap = primal - a * cross + a**2 * energy / 2
            if bool((gap <= tol * primal).all()):
                break
        before, z = z, shrink(w + step * analyze_full(y - synthesize_full(w, D, stride), D, stride), step * penalty, positive=positive)
        if float(((w - z) * (z - before)).sum()) > 0:
            s = 1.0  # restart: the momentum points uphill (O'Donoghue and Candes, 2015)
        s_next = (1 + math.sqrt(1 + 4 * s * s)) / 2
        w, s = z + ((s - 1) / s_next) * (z - before), s_next
    if xp is not np:
        primal, gap = primal.get(), gap.get()
    return Solution(z, primal, np.maximum(gap, 0), n_iter)


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
