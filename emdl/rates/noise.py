"""The noise level, from the signals or from the residual."""

import math

import numpy as np

from emdl.backend import array_module
from emdl.errors import InputError

_MAD_OF_NORMAL = 0.6744897501960817  # median |v| of a standard normal v


def estimate_sigma(y):
    """Return a robust estimate of the noise level, the median absolute deviation / 0.6745.

    It takes noise for most of every channel: that events are sparse, and that each covers few samples. Where atoms
    cover much of the signal it is too large (9 times at 5 % density and 20 dB); EM then has to learn sigma.

    Parameters
    ----------
    y : array (n, C, *S)
        Signals in full form.

    Returns
    -------
    float
        Root mean square over the channels, data unit.

    Raises
    ------
    InputError
        If more than half of a channel's samples are equal.

    References
    ----------
    .. [1] D. L. Donoho, I. M. Johnstone, Ideal spatial adaptation by wavelet shrinkage, Biometrika 81 (1994),
       doi:10.1093/biomet/81.3.425.
    """
    xp = array_module(y)
    channels = xp.moveaxis(y, 1, 0).reshape(y.shape[1], -1)
    deviation = xp.abs(channels - xp.median(channels, axis=1)[:, None])
    mad = xp.median(deviation, axis=1).astype(np.float64)
    if not bool((mad > 0).all()):
        channel = int(xp.argmin(mad))
        raise InputError(
            f"channel {channel} has a median absolute deviation of 0, more than half of its samples are equal; "
            "remove it, or give sigma"
        )
    return float(xp.sqrt((mad**2).mean())) / _MAD_OF_NORMAL


def residual_sigma(sums):
    r"""Return the noise level left in the residual, corrected for the samples that the codes used up.

    .. math:: \sigma^2 = \|y - D z\|^2 / (n - \mathrm{df}),

    df the number of non-zeros. The shrinkage of the codes stays in the residual, so the value is too large where lmbd
    is too large (by 30 % at the universal threshold, 1 % density and 10 dB) and right near the best lmbd.

    Parameters
    ----------
    sums : Sums
        Of the codes.

    Returns
    -------
    float
        Data unit.

    References
    ----------
    .. [1] S. Reid, R. Tibshirani, J. Friedman, A study of error variance estimation in lasso regression, Statistica
       Sinica 26 (2016), doi:10.5705/ss.2014.042.
    """
    return math.sqrt(sums.energy / max(sums.n_samples - sums.n_nonzero, 1))
