"""The model on planes: analysis, synthesis from non-zeros, and the correlations that an M-step needs."""

import numpy as np

from emdl._kernels.compiler import jit
from emdl._kernels.correlate import correlate, tile_width


@jit
def analyze(r, bank, K, w, sh, sw, i0, i1, j0, j1, out):
    """Write D^T r at the code positions [i0, i1) x [j0, j1); `bank` holds the K atoms of width `w` (`pack_atoms`)."""
    width = tile_width(K, w, sh, sw, j1 - j0)
    tile = np.empty((bank.shape[0], (i1 - i0) * width), r.dtype)
    correlate(r, bank, K, w, sh, sw, i0, i1, j0, j1, tile)
    for k in range(K):
        for i in range(i1 - i0):
            for j in range(j1 - j0):
                out[k, i0 + i, j0 + j] = tile[k, i * width + j]


@jit
def add_atom(r, D, k, i, j, weight):
    """Add `weight` times atom k to the signal, its corner at sample (i, j)."""
    C, h, w = D.shape[1:]
    for c in range(C):
        for a in range(h):
            for b in range(w):
                r[c, i + a, j + b] += weight * D[k, c, a, b]


@jit
def correlate_atom(r, D, k, i, j):
    """Return <d_k, r> with the corner of the atom at sample (i, j)."""
    C, h, w = D.shape[1:]
    total = D.dtype.type(0)
    for c in range(C):
        for a in range(h):
            for b in range(w):
                total += r[c, i + a, j + b] * D[k, c, a, b]
    return total


@jit
def synthesize(index, value, D, sh, sw, PW, sign, y):
    """Add sign * D z to one signal, at the cost of the non-zeros of z."""
    K = D.shape[0]
    for m in range(index.size):
        p = index[m] // K
        add_atom(y, D, index[m] % K, (p // PW) * sh, (p % PW) * sw, sign * value[m])


@jit
def correlate_codes(index, value, K, h, w, sh, sw, PH, PW, phi):
    """Add corr(z_k, z_l) of one signal, lags of less than an atom, to phi (K, K, 2h-1, 2w-1)."""
    row = np.zeros(PH + 1, np.int64)  # where each row of positions begins
    for m in range(index.size):
        row[index[m] // K // PW + 1] += 1
    for i in range(PH):
        row[i + 1] += row[i]
    lags_h, lags_w = (h - 1) // sh, (w - 1) // sw
    for i in range(PH):
        for other in range(i, min(PH, i + lags_h + 1)):
            first = row[other]
            for m in range(row[i], row[i + 1]):
                k, j = index[m] % K, index[m] // K % PW
                while first < row[other + 1] and index[first] // K % PW < j - lags_w:
                    first += 1
                q = m if other == i else first
                while q < row[other + 1]:
                    v = index[q] // K % PW - j
                    if v > lags_w:
                        break
                    other_k = index[q] % K
                    u = (other - i) * sh
                    term = np.float64(value[m]) * np.float64(value[q])
                    phi[k, other_k, h - 1 + u, w - 1 + v * sw] += term
                    if q != m:
                        phi[other_k, k, h - 1 - u, w - 1 - v * sw] += term
                    q += 1


@jit
def correlate_signals(index, value, y, K, sh, sw, PW, psi):
    """Add corr(z_k, y) of one signal to psi (K, C, h, w)."""
    C, h, w = psi.shape[1:]
    for m in range(index.size):
        k, p = index[m] % K, index[m] // K
        i, j = (p // PW) * sh, (p % PW) * sw
        for c in range(C):
            for a in range(h):
                for b in range(w):
                    psi[k, c, a, b] += np.float64(value[m]) * np.float64(y[c, i + a, j + b])
