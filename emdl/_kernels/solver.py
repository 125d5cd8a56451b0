"""Coordinate descent on an active set, with a duality gap certificate."""

import numpy as np

from emdl._kernels.compiler import jit
from emdl._kernels.planes import add_atom, analyze, correlate_atom


@jit
def energy(r):
    """Return ||r||^2, summed in float64."""
    total = 0.0
    for x in r.ravel():
        total += np.float64(x) * np.float64(x)
    return total


@jit
def sweep(r, bank, w, penalty, sh, sw, positive, active, bh, bw, buffer, found):
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
            analyze(r, bank, K, w, sh, sw, i, i + 1, 0, PW, buffer)
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
def solve(y, D, bank, norms, penalty, sh, sw, positive, tol, max_iter, z):
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
        largest, n_found = sweep(r, bank, w, penalty, sh, sw, positive, active, bh, bw, buffer, found)
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
