"""Means over pixels that look alike: weights from one image, values from another."""

import numpy as np

from emdl._kernels.compiler import jit

REACH = 1  # pixels on each side over which two places are compared


@jit
def average(guide, values, reach, scale, first, end, out):
    """Write to rows of `out` the means of `values` over the places near a pixel that look like it in `guide`.

    A place at distance d, the mean squared difference over channels and 3 x 3 pixels, has the weight ``max(0, 1 - scale
    d) ** 4``, close to ``exp(-4 scale d)``.

    Parameters
    ----------
    guide : ndarray (C, H + 2 m, W + 2 m) of float32
        Image, continued by m = reach + 1 on each side.
    values : ndarray (M, H + 2 m, W + 2 m) of float32
        What is averaged, likewise.
    reach : int
        Places up to so many rows and columns away count.
    scale : float32
        One over the distance at which the weight vanishes.
    first, end : int
        Rows of `out` that are written.
    out : ndarray (M, H, W) of float32
        Overwritten there.
    """
    C, M = guide.shape[0], values.shape[0]
    W, m = out.shape[2], reach + REACH
    span = 2 * REACH + 1
    fall = np.float32(scale / (span * span))
    one, zero = np.float32(1), np.float32(0)
    far, weight = np.empty(W + 2 * REACH, np.float32), np.empty(W, np.float32)
    total = np.empty(W, np.float32)
    sums = np.empty((M, W), np.float32)
    for row in range(first, end):
        total[:] = 0
        sums[:] = 0
        for i in range(-reach, reach + 1):
            for j in range(-reach, reach + 1):
                far[:] = 0
                for c in range(C):
                    for a in range(-REACH, REACH + 1):
                        here = guide[c, row + m + a, reach : reach + W + 2 * REACH]
                        there = guide[c, row + m + a + i, reach + j : reach + j + W + 2 * REACH]
                        for x in range(W + 2 * REACH):
                            slope = here[x] - there[x]
                            far[x] += slope * slope
                for x in range(W):
                    d = far[x] + far[x + 1] + far[x + 2]
                    w = max(zero, one - fall * d)
                    w *= w
                    w *= w
                    weight[x] = w
                    total[x] += w
                for k in range(M):
                    taken = values[k, row + m + i, m + j : m + j + W]
                    for x in range(W):
                        sums[k, x] += weight[x] * taken[x]
        for k in range(M):
            for x in range(W):
                out[k, row, x] = sums[k, x] / total[x]
