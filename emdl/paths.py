"""Codes along a path of rates: the largest that makes sense, and warm starts from there down."""

import numpy as np

from emdl.backend import array_module, as_real, check_count, check_flag, check_number
from emdl.encoder import encode
from emdl.errors import InputError
from emdl.ops import analyze_full, as_problem


def lambda_max(y, D, sigma=1.0, *, positive=False, stride=1):
    """Return the smallest rate for which all codes are zero, max |D^T y| / sigma^2.

    Parameters
    ----------
    y : array S, (n, *S) or (n, C, *S)
        Signals.
    D : array (K, C, *s)
        Dictionary.
    sigma : float
        Noise standard deviation, data unit.
    positive : bool
        Codes are non-negative: only positive correlations count.
    stride : int or tuple of int
        Distance of neighbouring code positions, samples.

    Returns
    -------
    float
        1 / data unit; the largest over the signals.

    Raises
    ------
    InputError
        If shapes do not fit each other, or a value is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> round(lambda_max(np.array([0.0, 1.8, 2.4, 0.0]), np.array([[[0.6, 0.8]]])), 6)
    3.0
    """
    y, D, stride = as_problem(y, D, stride)
    sigma = check_number(sigma, "sigma", 0, strict=True)
    top, positive = 0.0, check_flag(positive, "positive")
    size = 1 if array_module(y) is np else len(y)
    for first in range(0, len(y), size):
        c = analyze_full(y[first : first + size], D, stride)
        top = max(top, float(c.max()), 0.0 if positive else -float(c.min()))
    return top / sigma**2


def encode_path(y, D, sigma=1.0, *, lmbds=None, n_lmbds=10, smallest=0.01, positive=False, stride=1, **options):
    """Return codes for a falling sequence of rates, each started from the one before.

    Parameters
    ----------
    y, D, sigma, positive, stride
        As in `encode`.
    lmbds : array (m,), optional
        Rates, 1 / data unit; by default `n_lmbds` of them, spaced evenly in the logarithm, from `lambda_max` down to
        ``smallest * lambda_max``.
    n_lmbds : int
        Number of rates.
    smallest : float
        The last rate relative to the first; a small value gives denser codes and takes longer.
    **options
        `tol`, `max_iter` and `mask` of `encode`.

    Returns
    -------
    lmbds : ndarray (m,)
        The rates, falling.
    codes : list of SparseCodes, or of arrays (n, K, *P) on a GPU
        The minimiser for each.

    Raises
    ------
    InputError
        If there is no positive rate, or as in `encode`.

    Examples
    --------
    >>> import numpy as np
    >>> lmbds, codes = encode_path(np.array([0.0, 1.8, 2.4, 0.0]), np.array([[[0.6, 0.8]]]), n_lmbds=3)
    >>> [z.n_nonzero for z in codes]
    [0, 1, 1]
    """
    sparse = array_module(y, D) is np
    if lmbds is None:
        top = lambda_max(y, D, sigma, positive=positive, stride=stride)
        if top == 0:
            raise InputError("y correlates with no atom, so lambda_max is 0; give lmbds")
        smallest = check_number(smallest, "smallest", 0, 1, strict=True)
        # a hair above the top: there the codes are zero whatever the rounding
        lmbds = top * (1 + 1e-6) * np.geomspace(1, smallest, check_count(n_lmbds, "n_lmbds"))
    lmbds = np.sort(as_real(lmbds, "lmbds").astype(np.float64).ravel())[::-1]
    if not len(lmbds):
        raise InputError("lmbds is empty, wanted at least one rate")
    codes, z = [], None
    for lmbd in lmbds:
        z = encode(y, D, float(lmbd), sigma, positive=positive, stride=stride, z0=z, sparse=sparse, **options)
        codes.append(z)
    return lmbds, codes
