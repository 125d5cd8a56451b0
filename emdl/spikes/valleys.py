"""How well points on a line fall into two groups, when the noise is known to have variance 1.

The points are counted in bins of a tenth of the noise, so that the cost does not grow with their number.
"""

import math

import numpy as np

from emdl._kernels.compiler import jit

_FLOOR = 0.5  # smallest variance of a group; the noise has 1
_WIDTH = 0.4  # of the smoothing of a density, noise standard deviations, for a group of 100
_BIN, _MOST_BINS = 0.1, 2000
_LINE = 41  # places between the middles of the groups at which the density is looked at


def gap(values, upper=None, *, n_iter=50):
    """Return how well one line of points falls into two groups.

    Two Gaussians are fitted by EM.

    Parameters
    ----------
    values : array (n,)
        Points on a line; the noise has variance 1. At least two of them differ.
    upper : array (n,) of bool, optional
        Groups to start from; by default those on either side of the threshold that makes them narrowest.
    n_iter : int
        Most iterations.

    Returns
    -------
    valley : float
        Lowest density between the medians of the groups over the density at the lower of these: 0 for groups far apart,
        1 for one group. The density is that of the points, smoothed; tails that no Gaussian has do not matter.
    gain : float
        How much better two Gaussians are than one, in units of BIC; negative if they are worse.
    upper : ndarray (n,) of bool
        Points of the upper group.
    """
    x = np.asarray(values, dtype=np.float64)
    low, high = float(x.min()), float(x.max())
    width = max(_BIN, (high - low) / _MOST_BINS)
    at = ((x - low) * (1 / width)).astype(np.int64)
    n_bins = int((high - low) * (1 / width)) + 1
    count = np.bincount(at, minlength=n_bins)
    above = np.full(n_bins, -1) if upper is None else np.bincount(at[upper], minlength=n_bins)
    middle = low + width * (np.arange(n_bins) + 0.5)
    used = count > 0
    flag = np.zeros(n_bins, np.bool_)
    valley, gain, flag[used] = _two_groups(middle[used], count[used], above[used], float(x.var()), n_iter)
    return valley, gain, flag[at]


@jit
def _two_groups(x, count, above, variance, n_iter):
    """Return valley, gain, and which bins belong to the upper group; see `gap`."""
    n, share = count.sum(), np.empty(len(x))
    if above[0] < 0:
        cut = _threshold(x, count)
        for i in range(len(x)):
            share[i] = 1.0 if i > cut else 0.0
    else:
        for i in range(len(x)):
            share[i] = above[i] / count[i]
    before, total = -1e300, -1e299
    mass, mean, width = np.zeros(2), np.zeros(2), np.zeros(2)
    for _ in range(n_iter):
        mass[:], mean[:], width[:] = 1e-9, 0, 0
        for i in range(len(x)):
            for g in range(2):
                part = count[i] * (share[i] if g else 1 - share[i])
                mass[g] += part
                mean[g] += part * x[i]
        for g in range(2):
            mean[g] /= mass[g]
        for i in range(len(x)):
            for g in range(2):
                width[g] += count[i] * (share[i] if g else 1 - share[i]) * (x[i] - mean[g]) ** 2
        for g in range(2):
            width[g] = max(width[g] / mass[g], _FLOOR)
        if total - before < 1e-3:
            break
        before, total = total, 0.0
        scale_0 = math.log(mass[0] / n) - 0.5 * math.log(2 * math.pi * width[0])
        scale_1 = math.log(mass[1] / n) - 0.5 * math.log(2 * math.pi * width[1])
        for i in range(len(x)):
            first = scale_0 - 0.5 * (x[i] - mean[0]) ** 2 / width[0]
            second = scale_1 - 0.5 * (x[i] - mean[1]) ** 2 / width[1]
            odds = math.exp(min(second - first, 700.0))
            share[i] = odds / (1 + odds)
            total += count[i] * (second if odds > 1e200 else first + math.log1p(odds))
    single = max(variance, _FLOOR)
    gain = 2 * (total + 0.5 * n * math.log(2 * math.pi * single) + 0.5 * n * variance / single) - 3 * math.log(n)
    upper = share > 0.5 if mean[1] >= mean[0] else share < 0.5
    return _valley(x, count, upper), gain, upper


@jit
def _threshold(x, count):
    """Return the last bin below the threshold that makes the groups on either side narrowest (Otsu)."""
    n, everything = 0.0, 0.0
    for i in range(len(x)):
        n += count[i]
        everything += count[i] * x[i]
    best, at, below, sums = -1.0, 0, 0.0, 0.0
    for i in range(len(x) - 1):
        below += count[i]
        sums += count[i] * x[i]
        apart = below * (n - below) * (sums / below - (everything - sums) / (n - below)) ** 2
        if apart > best:
            best, at = apart, i
    return at


@jit
def _valley(x, count, upper):
    """Return the lowest density of points between the medians of two groups, over the density at the lower of these."""
    ends, size = np.zeros(2), np.zeros(2)
    for g in range(2):
        for i in range(len(x)):
            size[g] += count[i] if upper[i] == (g == 1) else 0
    small = min(size[0], size[1])
    if small < 2:
        return 1.0
    for g in range(2):
        passed = 0.0
        for i in range(len(x)):
            if upper[i] == (g == 1):
                passed += count[i]
                if passed >= 0.5 * size[g]:
                    ends[g] = x[i]
                    break
    width = _WIDTH * min(max((100 / small) ** 0.2, 0.75), 1.75)
    density = np.zeros(_LINE)
    for j in range(_LINE):
        place = ends[0] + (ends[1] - ends[0]) * j / (_LINE - 1)
        for i in range(len(x)):
            far = (place - x[i]) / width
            if abs(far) < 6:
                density[j] += count[i] * math.exp(-0.5 * far * far)
    return density.min() / min(density[0], density[-1])
