"""What a network for single planes leaves of an image in colour, corrected by means over pixels that look alike.

Brightness and differences of colours are denoised one by one, so an edge that is plain in brightness and faint in a
difference is blurred there. The means repair it: around each pixel the noisy planes are averaged over the places that
look like it in all denoised planes, which is non-local means [1]_ with the weights of a guide, and a share of that mean
takes the place of what the network gave.

References
----------
.. [1] A. Buades, B. Coll, J.-M. Morel, A non-local algorithm for image denoising, CVPR 2005,
   doi:10.1109/CVPR.2005.38.
"""

from dataclasses import dataclass

import numpy as np

GUIDES = 3  # planes, those with the largest variance, in which places are compared


@dataclass(frozen=True)
class Search:
    """How the mean is taken that corrects a plane.

    Attributes
    ----------
    reach : int
        Places up to so many rows and columns away count.
    width : float
        Root mean square difference, in units of the noise, at which the weight of a place has fallen to a third.
    first : float
        What a difference in the first plane counts, of one in the others.
    share : float
        Of the mean in the result.
    """

    reach: int
    width: float
    first: float
    share: float


# found on photographs that the bundled network was trained on, and four more, at sigma 10, 25 and 50
BRIGHTNESS = Search(reach=10, width=0.5, first=0.7, share=0.1)
COLOURS = Search(reach=15, width=0.7, first=0.5, share=0.4)


def corrected(noisy, clean, sigma, rows):
    """Return some rows of the denoised planes of an image, corrected.

    Parameters
    ----------
    noisy, clean : ndarray (C, H, W) of float32
        Planes before and after, C > 1, brightness first.
    sigma : ndarray (C,)
        Noise level of each plane, above zero.
    rows : slice
        Which rows.

    Returns
    -------
    ndarray (C, rows, W) of float32
    """
    scale = (1 / np.asarray(sigma[:GUIDES], np.float64))[:, None, None].astype(np.float32)
    out = clean[:, rows].copy()
    for planes, search in ((slice(0, 1), BRIGHTNESS), (slice(1, None), COLOURS)):
        mean = _mean(noisy[planes], clean[:GUIDES], scale, search, rows)
        out[planes] += np.float32(search.share) * (mean - out[planes])
    return out


def _mean(noisy, guide, scale, search, rows):
    from emdl._kernels.means import REACH, average

    margin, (H, W) = search.reach + REACH, noisy.shape[1:]
    near = _mirrored(rows.start - margin, rows.stop + margin, H)[:, None], _mirrored(-margin, W + margin, W)
    guide = np.ascontiguousarray(guide[:, *near] * scale)
    guide[0] *= np.float32(search.first)
    out = np.empty((len(noisy), rows.stop - rows.start, W), np.float32)
    fall = np.float32(1 / (4 * search.width**2))
    average(guide, np.ascontiguousarray(noisy[:, *near]), search.reach, fall, 0, out.shape[1], out)
    return out


def _mirrored(first, end, n):
    """Return the places first ... end - 1 of an axis of n that is continued by reflection."""
    period = max(2 * (n - 1), 1)
    places = np.arange(first, end) % period
    return np.minimum(places, period - places) if n > 1 else np.zeros_like(places)
