"""Correlation of every atom with a tile of a signal, close to the speed of a matrix product.

Three ways, all bound by the multiply-add units. Stride 1, many atoms: the tile is copied into a *strip*, one row of
samples after the other, so that all positions of the tile make one long loop, and a register block of 4 atoms x 8 taps
reads each sample once for all four; the last columns of a row of positions reach into the next row of samples and mean
nothing. Stride 1, few atoms: the same without the copy, 3 atoms x 4 taps. A stride: the samples below 256 positions are
laid out as one row for each of 64 taps (an im2col that stays in the cache).
"""

import numpy as np

from emdl._kernels.compiler import jit, part

FEW = 8  # below this many atoms copies cost more than they bring
_CHUNK = 1024  # positions of a strip whose sums stay in the first-level cache
_POSITIONS, _TAPS = 256, 64


def pack_atoms(D):
    """Return atoms (K, C, h, w) as a bank (K', C, h, w'): zeros up to a multiple of 4 atoms and 4 columns."""
    K, C, h, w = D.shape
    bank = np.zeros((-(-K // 4) * 4, C, h, -(-w // 4) * 4), D.dtype)
    bank[:K, :, :, :w] = D
    return bank


@jit
def tile_width(K, w, sh, sw, columns):
    """Return how far apart the rows of positions of a tile stand in the output of `correlate`."""
    return columns + (w + 3) // 4 * 4 - 1 if K >= FEW and sh == 1 and sw == 1 else columns


@jit
def correlate(r, bank, K, w, sh, sw, i0, i1, j0, j1, out):
    """Write the correlation of K atoms with `r` (C, H, W) at positions [i0, i1) x [j0, j1) to `out`.

    `bank` comes from `pack_atoms`, `w` is the width of the atoms before. Row k of `out` (K', >= rows * tile_width) is
    of atom k; position (i, j) of the tile stands at ``i * tile_width + j``.
    """
    if K >= FEW and sh == 1 and sw == 1:
        _correlate_strip(r, bank, i0, i1, j0, j1, out)
    elif sw == 1 and K < FEW:
        _correlate_rows(r, bank, K, w, sh, i0, i1, j0, j1, out)
    else:
        _correlate_columns(r, bank, w, sh, sw, i0, i1, j0, j1, out)


@part
def _correlate_strip(r, bank, i0, i1, j0, j1, out):
    C, h, w = bank.shape[1:]
    width = j1 - j0 + w - 1
    n = (i1 - i0 - 1) * width + j1 - j0
    inside = min(width, r.shape[2] - j0)
    x = np.zeros((C, n + (h - 1) * width + w + 8), r.dtype)
    for c in range(C):
        for i in range(i1 - i0 + h - 1):
            for j in range(inside):
                x[c, i * width + j] = r[c, i0 + i, j0 + j]
    for first in range(0, n, _CHUNK):
        m = min(_CHUNK, n - first)
        for k in range(0, bank.shape[0], 4):
            o0, o1, o2, o3 = out[k, first:], out[k + 1, first:], out[k + 2, first:], out[k + 3, first:]
            for j in range(m):
                o0[j] = o1[j] = o2[j] = o3[j] = 0
            for c in range(C):
                for a in range(h):
                    d, e, f, g = bank[k, c, a], bank[k + 1, c, a], bank[k + 2, c, a], bank[k + 3, c, a]
                    at = first + a * width
                    b = 0
                    while b + 8 <= w:
                        s = x[c, at + b : at + b + m + 7]
                        d0, d1, d2, d3, d4, d5, d6, d7 = (
                            d[b],
                            d[b + 1],
                            d[b + 2],
                            d[b + 3],
                            d[b + 4],
                            d[b + 5],
                            d[b + 6],
                            d[b + 7],
                        )
                        e0, e1, e2, e3, e4, e5, e6, e7 = (
                            e[b],
                            e[b + 1],
                            e[b + 2],
                            e[b + 3],
                            e[b + 4],
                            e[b + 5],
                            e[b + 6],
                            e[b + 7],
                        )
                        f0, f1, f2, f3, f4, f5, f6, f7 = (
                            f[b],
                            f[b + 1],
                            f[b + 2],
                            f[b + 3],
                            f[b + 4],
                            f[b + 5],
                            f[b + 6],
                            f[b + 7],
                        )
                        g0, g1, g2, g3, g4, g5, g6, g7 = (
                            g[b],
                            g[b + 1],
                            g[b + 2],
                            g[b + 3],
                            g[b + 4],
                            g[b + 5],
                            g[b + 6],
                            g[b + 7],
                        )
                        for j in range(m):
                            s0, s1, s2, s3 = s[j], s[j + 1], s[j + 2], s[j + 3]
                            s4, s5, s6, s7 = s[j + 4], s[j + 5], s[j + 6], s[j + 7]
                            o0[j] += d0 * s0 + d1 * s1 + d2 * s2 + d3 * s3 + d4 * s4 + d5 * s5 + d6 * s6 + d7 * s7
                            o1[j] += e0 * s0 + e1 * s1 + e2 * s2 + e3 * s3 + e4 * s4 + e5 * s5 + e6 * s6 + e7 * s7
                            o2[j] += f0 * s0 + f1 * s1 + f2 * s2 + f3 * s3 + f4 * s4 + f5 * s5 + f6 * s6 + f7 * s7
                            o3[j] += g0 * s0 + g1 * s1 + g2 * s2 + g3 * s3 + g4 * s4 + g5 * s5 + g6 * s6 + g7 * s7
                        b += 8
                    if b < w:
                        s = x[c, at + b : at + b + m + 3]
                        d0, d1, d2, d3, e0, e1, e2, e3 = (
                            d[b],
                            d[b + 1],
                            d[b + 2],
                            d[b + 3],
                            e[b],
                            e[b + 1],
                            e[b + 2],
                            e[b + 3],
                        )
                        f0, f1, f2, f3, g0, g1, g2, g3 = (
                            f[b],
                            f[b + 1],
                            f[b + 2],
                            f[b + 3],
                            g[b],
                            g[b + 1],
                            g[b + 2],
                            g[b + 3],
                        )
                        for j in range(m):
                            s0, s1, s2, s3 = s[j], s[j + 1], s[j + 2], s[j + 3]
                            o0[j] += d0 * s0 + d1 * s1 + d2 * s2 + d3 * s3
                            o1[j] += e0 * s0 + e1 * s1 + e2 * s2 + e3 * s3
                            o2[j] += f0 * s0 + f1 * s1 + f2 * s2 + f3 * s3
                            o3[j] += g0 * s0 + g1 * s1 + g2 * s2 + g3 * s3


@part
def _correlate_columns(r, bank, width, sh, sw, i0, i1, j0, j1, out):
    C, h, w = bank.shape[1:]
    taps, n = C * h * w, (i1 - i0) * (j1 - j0)
    X = np.zeros(_TAPS * _POSITIONS, r.dtype)
    for first in range(0, n, _POSITIONS):
        m = min(_POSITIONS, n - first)
        for t0 in range(0, taps, _TAPS):
            block = min(_TAPS, taps - t0)
            _fill(r, h, w, width, sh, sw, i0, j0, j1, first, m, t0, block, X)
            for k in range(0, bank.shape[0], 4):
                o0, o1, o2, o3 = out[k, first:], out[k + 1, first:], out[k + 2, first:], out[k + 3, first:]
                for j in range(m if t0 == 0 else 0):
                    o0[j] = o1[j] = o2[j] = o3[j] = 0
                for t in range(0, block, 4):
                    c, a, b = (t0 + t) // (h * w), (t0 + t) // w % h, (t0 + t) % w
                    x = X[t * _POSITIONS :]
                    d, e, f, g = bank[k, c, a], bank[k + 1, c, a], bank[k + 2, c, a], bank[k + 3, c, a]
                    d0, d1, d2, d3, e0, e1, e2, e3 = (
                        d[b],
                        d[b + 1],
                        d[b + 2],
                        d[b + 3],
                        e[b],
                        e[b + 1],
                        e[b + 2],
                        e[b + 3],
                    )
                    f0, f1, f2, f3, g0, g1, g2, g3 = (
                        f[b],
                        f[b + 1],
                        f[b + 2],
                        f[b + 3],
                        g[b],
                        g[b + 1],
                        g[b + 2],
                        g[b + 3],
                    )
                    for j in range(m):
                        x0, x1, x2, x3 = x[j], x[j + _POSITIONS], x[j + 2 * _POSITIONS], x[j + 3 * _POSITIONS]
                        o0[j] += d0 * x0 + d1 * x1 + d2 * x2 + d3 * x3
                        o1[j] += e0 * x0 + e1 * x1 + e2 * x2 + e3 * x3
                        o2[j] += f0 * x0 + f1 * x1 + f2 * x2 + f3 * x3
                        o3[j] += g0 * x0 + g1 * x1 + g2 * x2 + g3 * x3


@part
def _fill(r, h, w, width, sh, sw, i0, j0, j1, first, m, t0, block, X):
    """Lay out the samples below positions first ... first + m: one row of X for each tap."""
    columns = j1 - j0
    for t in range(block):
        c, a, b = (t0 + t) // (h * w), (t0 + t) // w % h, (t0 + t) % w
        if b >= width:  # its weight is zero
            for q in range(m):
                X[t * _POSITIONS + q] = 0
            continue
        done = 0
        while done < m:
            i, j = (first + done) // columns, (first + done) % columns
            run = min(columns - j, m - done)
            row, to, left = r[c, (i0 + i) * sh + a], t * _POSITIONS + done, (j0 + j) * sw + b
            if sw == 1:
                for q in range(run):
                    X[to + q] = row[left + q]
            else:
                for q in range(run):
                    X[to + q] = row[left + q * sw]
            done += run


@part
def _correlate_rows(r, bank, K, w, sh, i0, i1, j0, j1, out):
    C, h, n = r.shape[0], bank.shape[2], j1 - j0
    for i in range(i0, i1):
        at = (i - i0) * n
        for k in range(0, K - 2, 3):
            o0, o1, o2 = out[k, at : at + n], out[k + 1, at : at + n], out[k + 2, at : at + n]
            for j in range(n):
                o0[j] = o1[j] = o2[j] = 0
            for c in range(C):
                for a in range(h):
                    row = r[c, i * sh + a, j0:]
                    d, e, f = bank[k, c, a], bank[k + 1, c, a], bank[k + 2, c, a]
                    for b in range(0, w - 3, 4):
                        x = row[b:]
                        d0, d1, d2, d3, e0, e1, e2, e3 = (
                            d[b],
                            d[b + 1],
                            d[b + 2],
                            d[b + 3],
                            e[b],
                            e[b + 1],
                            e[b + 2],
                            e[b + 3],
                        )
                        f0, f1, f2, f3 = f[b], f[b + 1], f[b + 2], f[b + 3]
                        for j in range(n):
                            x0, x1, x2, x3 = x[j], x[j + 1], x[j + 2], x[j + 3]
                            o0[j] += d0 * x0 + d1 * x1 + d2 * x2 + d3 * x3
                            o1[j] += e0 * x0 + e1 * x1 + e2 * x2 + e3 * x3
                            o2[j] += f0 * x0 + f1 * x1 + f2 * x2 + f3 * x3
                    for b in range(w // 4 * 4, w):
                        x, d0, e0, f0 = row[b:], d[b], e[b], f[b]
                        for j in range(n):
                            o0[j] += d0 * x[j]
                            o1[j] += e0 * x[j]
                            o2[j] += f0 * x[j]
        for k in range(K // 3 * 3, K):
            o0 = out[k, at : at + n]
            for j in range(n):
                o0[j] = 0
            for c in range(C):
                for a in range(h):
                    row, d = r[c, i * sh + a, j0:], bank[k, c, a]
                    for b in range(0, w - 3, 4):
                        x, d0, d1, d2, d3 = row[b:], d[b], d[b + 1], d[b + 2], d[b + 3]
                        for j in range(n):
                            o0[j] += d0 * x[j] + d1 * x[j + 1] + d2 * x[j + 2] + d3 * x[j + 3]
                    for b in range(w // 4 * 4, w):
                        x, d0 = row[b:], d[b]
                        for j in range(n):
                            o0[j] += d0 * x[j]
