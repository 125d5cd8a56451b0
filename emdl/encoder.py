"""The E-step: `encode`, the certified minimiser of (1)."""

import warnings
from dataclasses import dataclass

import numpy as np

from emdl import proximal
from emdl._kernels import solver as kernels
from emdl._kernels.correlate import pack_atoms
from emdl.backend import array_module, check_count, check_number, parallel_map
from emdl.codes import SparseCodes
from emdl.errors import ConvergenceWarning, InputError
from emdl.ops import (
    as_codes,
    as_problem,
    as_rates,
    plane_stride,
    planes,
    positions_of,
)


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
        raise InputError(
            f"lmbd is {lmbd!r}, wanted rates > 0; without a penalty the minimum is not unique and has no certificate"
        )
    if sparse and array_module(y) is not np:
        raise InputError("sparse codes are made on the CPU only; leave out sparse, or move the signals there")
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
        return Solution(*proximal.solve(y, D, penalty, stride, tol=tol, max_iter=max_iter, positive=positive, z0=z0))
    shape = positions_of(y, D, stride)
    if isinstance(z0, SparseCodes):
        z0 = z0.dense()
    start = np.zeros(shape, y.dtype) if z0 is None else np.array(z0, y.dtype)
    if positive:
        np.maximum(start, 0, out=start)
    atoms, signals, codes, (sh, sw) = planes(D), planes(y), planes(start), plane_stride(stride)
    norms = (D.reshape(len(D), -1) ** 2).sum(axis=1)
    penalty, bank = penalty.astype(y.dtype), pack_atoms(atoms)
    done = parallel_map(
        lambda i: kernels.solve(signals[i], atoms, bank, norms, penalty, sh, sw, positive, tol, max_iter, codes[i]),
        range(len(y)),
    )
    primal, gap = np.array([d[2] for d in done]), np.array([max(d[3], 0.0) for d in done])
    return Solution(SparseCodes.stack(shape, [d[:2] for d in done], y.dtype), primal, gap, max(d[4] for d in done))
