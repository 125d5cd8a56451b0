"""Numba kernels of greedy coding of patches. One thread.

Noise has unit variance here. A code is zero or normal of variance tau^2, and to use atom k costs price_k. Atom after
atom is taken, the one that raises the log posterior most, shrink a^2 / 2 - price_k with a its product with what is left
and shrink = tau^2 / (1 + tau^2), until none raises it. After each the codes are the posterior mean on the support, from
a Cholesky factor of the Gram matrix that grows by a row.
"""

import numpy as np

from emdl._kernels.compiler import jit


@jit
def pursue(products, gram, price, shrink, index, value, count):
    """Code patches, given the products (n, K) of their atoms; fill index, value (n, most) and count (n,)."""
    n, K = products.shape
    most = index.shape[1]
    factor, row = np.zeros((most, most), np.float32), np.zeros(most, np.float32)
    half, a = np.zeros(most, np.float32), np.empty(K, np.float32)
    for i in range(n):
        first, x, m = products[i], value[i], 0
        a[:] = first
        while m < most:
            k, best = -1, np.float32(0)
            for j in range(K):
                gain = np.float32(0.5) * shrink * a[j] * a[j] - price[j]
                if gain > best:
                    k, best = j, gain
            if k < 0:
                break
            taken = False
            for q in range(m):
                taken = taken or index[i, q] == k
            if taken:
                break
            left = 1 / shrink
            for r in range(m):
                s = gram[index[i, r], k]
                for q in range(r):
                    s -= factor[r, q] * row[q]
                row[r] = s / factor[r, r]
                left -= row[r] * row[r]
            if left < 1e-3:
                break
            factor[m, :m] = row[:m]
            factor[m, m] = np.sqrt(left)
            index[i, m] = k
            m += 1
            solve(factor, index[i], first, m, half, x)
            a[:] = first
            for r in range(m):
                for j in range(K):
                    a[j] -= x[r] * gram[index[i, r], j]
        count[i] = m


@jit
def solve(factor, index, first, m, half, x):
    """Solve L L^T x = products of the atoms in the support."""
    for r in range(m):
        s = first[index[r]]
        for q in range(r):
            s -= factor[r, q] * half[q]
        half[r] = s / factor[r, r]
    for r in range(m - 1, -1, -1):
        s = half[r]
        for q in range(r + 1, m):
            s -= factor[q, r] * x[q]
        x[r] = s / factor[r, r]


@jit
def add_patches(index, value, count, D, mean, columns, out, cover):
    """Add patches, row by row of an image, to `out` (C, rows, width) and their weights to `cover` (rows, width).

    The posterior variance of a patch is about 1 + its number of codes, so that is what its weight is divided by.
    """
    C, h, w = D.shape[1:]
    made = np.empty((C, h, w), np.float32)
    for i in range(len(index)):
        top, left = i // columns, i % columns
        for c in range(C):
            made[c] = mean[i, c]
        for r in range(count[i]):
            made += value[i, r] * D[index[i, r]]
        weight = np.float32(1) / np.float32(1 + count[i])
        for c in range(C):
            out[c, top : top + h, left : left + w] += weight * made[c]
        cover[top : top + h, left : left + w] += weight
