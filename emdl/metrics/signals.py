"""Signal-to-noise ratios, each with its source."""

import numpy as np

from emdl.backend import array_module, as_real, check_number
from emdl.errors import InputError


def psnr(x, clean, *, peak):
    r"""Return the peak signal-to-noise ratio in dB, :math:`10 \log_{10}(\mathrm{peak}^2 / \mathrm{MSE})`.

    The mean squared error runs over all entries; for the mean PSNR of a set of images call it image by image. Values
    outside the range of the image are not clipped.

    Parameters
    ----------
    x, clean : array
        Estimate and truth, of the same shape.
    peak : float
        Largest value that an image can have, 255 or 1.

    Returns
    -------
    float
        Infinite where `x` equals `clean`.

    Raises
    ------
    InputError
        If the shapes differ, or `peak` is not positive.

    References
    ----------
    .. [1] Q. Huynh-Thu, M. Ghanbari, "Scope of validity of PSNR in image/video quality assessment", Electron. Lett. 44
       (2008) 800-801, doi:10.1049/el:20080522.

    Examples
    --------
    >>> import numpy as np
    >>> from emdl.metrics import psnr
    >>> round(psnr(np.full((2, 3), 130.0), np.full((2, 3), 105.0), peak=255), 2)
    20.17
    """
    error, _ = _error(x, clean)
    return _decibel(1.0, float(((error / check_number(peak, "peak", 0, strict=True)) ** 2).mean()))


def snr_db(x, clean):
    r"""Return the signal-to-noise ratio in dB, :math:`10 \log_{10}(\|\mathrm{clean}\|^2 / \|x - \mathrm{clean}\|^2)`.

    For ``x = clean + noise`` this is the power of the signal over that of the noise; for an estimate `x` it says how
    well the clean signal was recovered. Means are not subtracted.

    Parameters
    ----------
    x, clean : array
        Noisy signal or estimate, and truth, of the same shape.

    Returns
    -------
    float
        Infinite where `x` equals `clean`; 0 for ``x = 0``.

    Raises
    ------
    InputError
        If the shapes differ, or `clean` is zero.

    References
    ----------
    .. [1] S. Mallat, "A Wavelet Tour of Signal Processing", 3rd ed., Academic Press (2009), chapter 11.

    Examples
    --------
    >>> from emdl.metrics import snr_db
    >>> round(snr_db([3.1, 3.9], [3.0, 4.0]), 2)
    30.97
    """
    error, clean = _error(x, clean)
    scale = float(abs(clean).max())
    if scale == 0:
        raise InputError("clean is zero everywhere, so it has no signal-to-noise ratio; give a signal")
    return _decibel(float(((clean / scale) ** 2).sum()), float(((error / scale) ** 2).sum()))


def _decibel(signal, noise):
    return np.inf if noise == 0 else float(10 * np.log10(signal / noise))


def _error(x, clean):
    array_module(*(a for a in (x, clean) if hasattr(a, "dtype")))
    x, clean = as_real(x, "x"), as_real(clean, "clean")
    if x.shape != clean.shape or x.size == 0:
        raise InputError(f"x has shape {x.shape} and clean {clean.shape}, wanted the same shape, not empty")
    clean = clean.astype(np.float64, copy=False)
    return x - clean, clean
