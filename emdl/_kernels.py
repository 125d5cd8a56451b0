"""Numba kernels: one thread each, without the interpreter lock, on planes.

A signal is a stack of planes (C, H, W), an atom (C, h, w), codes (K, PH, PW); a signal with one axis has H = h = 1. Threads
come from `emdl.backend.parallel_map` over pieces whose borders do not depend on the number of threads.

Codes in sparse form (`index`, `value`) are numbered ``(i * PW + j) * K + k`` and increase.
"""

import math

import numba
import numpy as np

_FAST = {"contract", "reassoc", "nsz", "arcp"}  # not nnan, ninf: a NaN must stay visible


def jit(function):
    """Compile `function` without the interpreter lock, cached on disk where the disk can be written."""
    try:
        return numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")(function)
    except RuntimeError:  # numba finds no folder for its cache
        return numba.njit(nogil=True, fastmath=_FAST, error_model="numpy")(function)


@jit
def analyze(r, D, sh, sw, i0, i1, j0, j1, out):
    """Write D^T r at the code positions [i0, i1) x [j0, j1): the correlation of every atom with the signal."""
    K, C, h, w = D.shape
    for k in range(K):
        for i in range(i0, i1):
            row = out[k, i, j0:j1]
            row[:] = 0
            for c in range(C):
                for a in range(h):
                    x = r[c, i * sh + a]
                    b = 0
                    while b + 4 <= w:
                        d0, d1, d2, d3 = D[k, c, a, b], D[k, c, a, b + 1], D[k, c, a, b + 2], D[k, c, a, b + 3]
                        if sw == 1:
                            at = x[j0 + b : j1 + b + 3]
                            for j in range(j1 - j0):
                                row[j] += d0 * at[j] + d1 * at[j + 1] + d2 * at[j + 2] + d3 * at[j + 3]
                        else:
                            for j in range(j1 - j0):
                                p = (j0 + j) * sw + b
                                row[j] += d0 * x[p] + d1 * x[p + 1] + d2 * x[p + 2] + d3 * x[p + 3]
                        b += 4
                    while b < w:
                        d0 = D[k, c, a, b]
                        for j in range(j1 - j0):
                            row[j] += d0 * x[(j0 + j) * sw + b]
                        b += 1


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
                    l = index[q] % K
                    u = (other - i) * sh
                    term = np.float64(value[m]) * np.float64(value[q])
                    phi[k, l, h - 1 + u, w - 1 + v * sw] += term
                    if q != m:
                        phi[l, k, h - 1 - u, w - 1 - v * sw] += term
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


@jit
def energy(r):
    """Return ||r||^2, summed in float64."""
    total = 0.0
    for x in r.ravel():
        total += np.float64(x) * np.float64(x)
    return total


@jit
def sweep(r, D, penalty, sh, sw, positive, active, bh, bw, buffer, found):
    """Return the largest correlation over penalty, and the worst violator among the idle codes of each block.

    `found` receives (i * PW + j) * K + k, one for each block of bh x bw positions; the second value returned counts them.
    """
    K, PH, PW = active.shape
    n_found, largest = 0, 0.0
    blocks = (PW + bw - 1) // bw
    best, place = np.zeros(blocks), np.zeros(blocks, np.int64)
    for top in range(0, PH, bh):
        best[:] = 1.0
        for i in range(top, min(top + bh, PH)):
            analyze(r, D, sh, sw, i, i + 1, 0, PW, buffer)
            for k in range(K):
                row, scale = buffer[k, i], 1.0 / penalty[k]
                for block in range(blocks):
                    high = 0.0
                    for j in range(block * bw, min(block * bw + bw, PW)):
                        high = max(high, np.float64(row[j] if positive else abs(row[j])))
                    largest = max(largest, high * scale)
                    if high * scale > best[block]:
                        for j in range(block * bw, min(block * bw + bw, PW)):
                            v = np.float64(row[j] if positive else abs(row[j])) * scale
                            if v > best[block] and not active[k, i, j]:
                                best[block], place[block] = v, (i * PW + j) * K + k
        for block in range(blocks):
            if best[block] > 1.0:
                found[n_found] = place[block]
                n_found += 1
    return largest, n_found


@jit
def descend(r, D, norms, penalty, sh, sw, positive, z, index, n_active):
    """Update each active code once, exactly and in turn; return the decrease of half the squared error plus penalty."""
    K, PW = D.shape[0], z.shape[2]
    gain = 0.0
    for m in range(n_active):
        k, p = index[m] % K, index[m] // K
        i, j = p // PW, p % PW
        if norms[k] == 0:
            continue
        old = z[k, i, j]
        u = old * norms[k] + correlate_atom(r, D, k, i * sh, j * sw)
        new = max(abs(u) - penalty[k], D.dtype.type(0)) / norms[k]
        if u < 0:
            new = D.dtype.type(0) if positive else -new
        step = new - old
        if step != 0:
            z[k, i, j] = new
            add_atom(r, D, k, i * sh, j * sw, -step)
            gain += 0.5 * norms[k] * np.float64(step) * np.float64(step)
    return gain


@jit
def solve(y, D, norms, penalty, sh, sw, positive, tol, max_iter, z):
    """Minimise half the squared error plus penalty over the codes z (K, PH, PW) of one signal, in place.

    Returns ``(index, value, primal, gap, n_sweeps)``: sorted non-zeros, objective in units of half a squared error, certified gap.
    """
    K, PH, PW = z.shape
    h, w = D.shape[2:]
    bh, bw = max(1, h // (2 * sh)), max(1, w // (2 * sw))
    active = z != 0
    index = np.empty(max(1024, 2 * active.sum()), np.int64)
    n_active = 0
    for i in range(PH):
        for j in range(PW):
            for k in range(K):
                if active[k, i, j]:
                    index[n_active] = (i * PW + j) * K + k
                    n_active += 1
    found = np.empty(((PH + bh - 1) // bh) * ((PW + bw - 1) // bw), np.int64)
    buffer = np.empty((K, PH, PW), D.dtype)
    r = y.copy()
    half = 0.5 * energy(y)
    primal, gap, n_sweeps, inner = half, np.inf, 0, 0.1
    for n_sweeps in range(1, max_iter + 1):
        r[:] = y
        l1, cross = 0.0, 0.0
        for m in range(n_active):
            k, p = index[m] % K, index[m] // K
            v = z[k, p // PW, p % PW]
            l1 += penalty[k] * abs(np.float64(v))
            add_atom(r, D, k, (p // PW) * sh, (p % PW) * sw, -v)
        for c in range(y.shape[0]):
            for i in range(y.shape[1]):
                for j in range(y.shape[2]):
                    cross += np.float64(y[c, i, j]) * np.float64(r[c, i, j])
        largest, n_found = sweep(r, D, penalty, sh, sw, positive, active, bh, bw, buffer, found)
        e = energy(r)
        primal = 0.5 * e + l1
        a = min(1.0 / largest, max(0.0, cross / e)) if largest > 0 and e > 0 else 1.0
        # dual value: half ||y||^2 - half ||y - a r||^2
        before, gap = gap, primal - a * cross + 0.5 * a * a * e
        if gap <= tol * primal:
            break
        if n_found == 0 or gap > 0.5 * before:
            inner *= 0.3
        if n_active + n_found > index.size:
            grown = np.empty(2 * (n_active + n_found), np.int64)
            grown[:n_active] = index[:n_active]
            index = grown
        for m in range(n_found):
            k, p = found[m] % K, found[m] // K
            active[k, p // PW, p % PW] = True
            index[n_active] = found[m]
            n_active += 1
        index[:n_active].sort()
        for _ in range(50):
            gain = descend(r, D, norms, penalty, sh, sw, positive, z, index, n_active)
            kept = 0
            for m in range(n_active):
                k, p = index[m] % K, index[m] // K
                if z[k, p // PW, p % PW] != 0:
                    index[kept] = index[m]
                    kept += 1
                else:
                    active[k, p // PW, p % PW] = False
            n_active = kept
            if gain <= inner * max(0.1 * gap, tol * primal):
                break
    value = np.empty(n_active, D.dtype)
    for m in range(n_active):
        k, p = index[m] % K, index[m] // K
        value[m] = z[k, p // PW, p % PW]
    return index[:n_active].copy(), value, primal, gap, n_sweeps
