"""Patches of 7 x 7 pixels of a plane: the energy of their gradients, and their pixels side by side."""

import numpy as np

from emdl._kernels.compiler import jit

SIDE = 7  # of a patch, pixels


@jit
def sum_energies(plane, width, rows, columns, out):
    """Write the sums of the squared differences across two pixels, along both axes, within patches to `out`.

    Parameters
    ----------
    plane : ndarray (H * width,) of float32
        Samples, row after row.
    width : int
        Of a row.
    rows, columns : ndarray of int64
        Where patches begin: at each of the rows in each of the columns.
    out : ndarray (rows, columns) of float32
        Overwritten.
    """
    across, down = np.zeros(width, np.float32), np.zeros(width, np.float32)
    for n in range(rows.size):
        across[:] = 0
        down[:] = 0
        for i in range(SIDE):
            base = (rows[n] + i) * width
            for j in range(width - 2):
                slope = plane[base + j + 2] - plane[base + j]
                across[j] += slope * slope
            if i < SIDE - 2:
                for j in range(width):
                    slope = plane[base + 2 * width + j] - plane[base + j]
                    down[j] += slope * slope
        for m in range(columns.size):
            total = np.float32(0)
            for j in range(columns[m], columns[m] + SIDE):
                total += down[j]
            for j in range(columns[m], columns[m] + SIDE - 2):
                total += across[j]
            out[n, m] = total


@jit
def take_patches(plane, width, first, out):
    """Write the pixels of patches to `out`, behind a one each.

    Parameters
    ----------
    plane, width
        As in `sum_energies`.
    first : ndarray (n,) of int64
        Where the first sample of each patch stands.
    out : ndarray (n, 50) of float32
        Overwritten.
    """
    for p in range(first.size):
        out[p, 0] = 1
        for i in range(SIDE):
            for j in range(SIDE):
                out[p, 1 + i * SIDE + j] = plane[first[p] + i * width + j]
