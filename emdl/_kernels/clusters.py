"""Exact minimisation on one axis, where the active codes of a signal form small clusters.

Codes farther apart than an atom do not meet, so the slots of a tile, sorted by position, fall into *clusters*: runs in
which neighbours overlap. On its Gram matrix a cluster is solved to the last digit for less than what the correlation of
all atoms with the samples below it costs.
"""

import numpy as np

from emdl._kernels.compiler import jit, part
from emdl._kernels.correlate import correlate
from emdl._kernels.patches import add_patch, dot_patch

MOST = 320  # codes solved together; longer runs are cut, elsewhere in every other round
TURNS = 12  # solves and looks around them, in a row, in one tile
LEAST = 1e-11  # pivot over the squared norm of the atom, below which an exact step is left out
FALL = 0.7  # idle codes get a slot above 1 + FALL * (worst of the block - 1)
FINE = 0.1  # share of the violation left in a tile that is left in a cluster


@jit
def gram_table(D):
    """Return the inner products (K, K, w) of atoms of which the second starts 0 to w - 1 samples after the first."""
    K, w = D.shape[0], D.shape[3]
    table = np.zeros((K, K, w))
    for k in range(K):
        for other in range(K):
            for lag in range(w):
                table[k, other, lag] = _overlap(D, np.zeros((0, 0, 0, 0), D.dtype), 0, 0, k, other, lag)
    return table


@part
def _overlap(D, mask, s, first, k, other, lag):
    total, (C, h, w) = 0.0, D.shape[1:]
    for c in range(C):
        for a in range(h):
            for b in range(lag, w):
                product = np.float64(D[k, c, a, b]) * np.float64(D[other, c, a, b - lag])
                total += product * mask[s, c, a, first + b] if mask.size else product
    return total


@part
def settle(
    t, s, j0, j1, fresh, odd, r, flat, start, bank, D, atoms, patch, mask, masks, weights, by_position, norms, gram, sw,
    PW, size, positive, bw, enough, begin, count, key, slot, tension, c, high, room,
):  # fmt: skip
    """Solve the clusters of a tile and give slots to what violates around them, until nothing does.

    `fresh`: its correlations were looked at just now. Return whether the tile is short of slots.
    """
    K, reach, cells = D.shape[0], (D.shape[3] - 1) // sw, (PW + size[1] - 1) // size[1]
    g0, n = s * cells + j0 // size[1], (j1 - j0 + size[1] - 1) // size[1]
    members = np.empty(MOST, np.int64)
    dirty, touched = np.empty(n, np.bool_), np.empty(n, np.bool_)
    for turn in range(TURNS):
        tense = False
        for g in range(n):
            dirty[g] = tension[g0 + g] > enough
            touched[g] = dirty[g] and (turn > 0 or not fresh)
            tense |= dirty[g]
            tension[g0 + g] = 0
        if not tense:
            return False
        if 4 * count[t] >= 3 * (begin[t + 1] - begin[t]) and turn > 0:
            filled = 0
            for m in range(begin[t], begin[t] + count[t]):
                filled += slot[0, m] != 0
            if 2 * filled > begin[t + 1] - begin[t]:
                for g in range(n):
                    tension[g0 + g] = np.inf if dirty[g] else 0.0
                return True
        q, stop, most = begin[t], begin[t] + count[t], MOST // 2 if odd ^ (turn % 2 == 1) else MOST
        while q < stop:
            m, solve = 0, False
            while q + m < stop and m < most:
                p = key[q + m] // K
                if m > 0 and p - key[q + m - 1] // K > reach:
                    break
                members[m] = q + m
                solve |= dirty[(p - j0) // size[1]]
                m += 1
            most = MOST
            if solve:
                moved = solve_cluster(
                    s, m, members, flat, start, patch, atoms, D, mask, masks, gram, sw, positive, FINE * enough, key,
                    slot, room,
                )  # fmt: skip
                if moved > FINE * enough:
                    low, high_p = max(0, key[q] // K - reach), min(PW - 1, key[q + m - 1] // K + reach)
                    for g in range(low // size[1], high_p // size[1] + 1):
                        if 0 <= g - j0 // size[1] < n:
                            touched[g - j0 // size[1]] = True
                        else:
                            tension[s * cells + g] = max(tension[s * cells + g], moved)
            q += m
        filled = begin[t]
        for m in range(begin[t], stop):
            if slot[0, m] != 0 or not dirty[(key[m] // K - j0) // size[1]]:
                if m > filled:
                    move_slot(m, filled, key, slot)
                filled += 1
        count[t] = filled - begin[t]
        g = 0
        while g < n:
            if not touched[g]:
                g += 1
                continue
            e = g
            while e < n and touched[e]:
                e += 1
            a, b = j0 + g * size[1], min(j1, j0 + e * size[1])
            heights(s, a, b, r, bank, D, weights, by_position, sw, PW, positive, c, high)
            for m in range(begin[t], filled):
                k, p = key[m] % K, key[m] // K
                if a <= p < b:
                    if slot[0, m] != 0:
                        cell = g0 + (p - j0) // size[1]
                        left = abs(np.float64(c[k, p - a]) - (1 if slot[0, m] > 0 else -1))
                        tension[cell] = max(tension[cell], left)
                    c[k, p - a] = 0
            admit(
                t, s, a, b, D, mask, weights, by_position, norms, sw, PW, size, positive, bw, enough, begin, count, key,
                slot, tension, c, high,
            )  # fmt: skip
            g = e
        sort_by_key(begin[t], filled, begin[t] + count[t], key, slot)
    return False


@part
def heights(s, a, b, r, bank, D, weights, by_position, sw, PW, positive, c, high):
    """Correlate the positions a ... b - 1: write |correlation| / penalty to `c`, the largest of each to `high`."""
    K, n, first = D.shape[0], b - a, s * PW if by_position else -1
    correlate(r[s], bank, K, D.shape[3], 1, sw, 0, 1, a, b, c)
    for p in range(n):
        high[p] = 0
    for k in range(K):
        row = c[k]
        if by_position:
            for p in range(n):
                row[p] /= weights[first + a + p, k]
        scale = r.dtype.type(1 if by_position else 1 / weights[0, k])
        if positive:
            for p in range(n):
                value = row[p] * scale
                row[p] = value
                high[p] = value if value > high[p] else high[p]
        else:
            for p in range(n):
                value = row[p] * scale
                row[p] = value
                value = abs(value)
                high[p] = value if value > high[p] else high[p]


@part
def admit(
    t, s, a, b, D, mask, weights, by_position, norms, sw, PW, size, positive, bw, least, begin, count, key, slot,
    tension, c, high,
):  # fmt: skip
    """Give slots to the idle codes of a tile at positions a ... b - 1 that violate most, and more than `least`."""
    K, n, first = D.shape[0], b - a, s * PW if by_position else -1
    filled, g0 = begin[t] + count[t], s * ((PW + size[1] - 1) // size[1])
    for p0 in range(0, n, bw):
        p1, best = min(p0 + bw, n), c.dtype.type(0)
        for p in range(p0, p1):
            best = high[p] if high[p] > best else best
        if not best > 1 + least:
            continue
        limit = c.dtype.type(1 + max(FALL * (best - 1), least))
        for p in range(p0, p1):
            if high[p] > limit:
                for k in range(K):
                    value = c[k, p] if positive else abs(c[k, p])
                    if not value > limit:
                        continue
                    g = g0 + (a + p) // size[1]
                    tension[g] = max(tension[g], value - 1)
                    if filled < begin[t + 1]:  # or the next look finds it
                        key[filled], slot[0, filled] = (a + p) * K + k, 0
                        slot[1, filled] = weights[first + a + p if by_position else 0, k]
                        norm = _overlap(D, mask, s, (a + p) * sw, k, k, 0) if mask.size else norms[k]
                        slot[2, filled] = 1 / norm if norm > 0 else 0.0
                        filled += 1
    count[t] = filled - begin[t]


@part
def survey(
    t, s, j0, j1, r, only, bank, D, mask, weights, by_position, norms, sw, PW, size, positive, bw, least, begin, count,
    key, slot, tension, peak, grain, sums, c, high,
):  # fmt: skip
    """Do as `solver.sweep` on one axis."""
    K, g0, top = D.shape[0], s * ((PW + size[1] - 1) // size[1]), 0.0
    heights(s, j0, j1, r, bank, D, weights, by_position, sw, PW, positive, c, high)
    for q in range((j1 - j0 + grain - 1) // grain):
        best = high[q * grain]
        for p in range(q * grain + 1, min((q + 1) * grain, j1 - j0)):
            best = high[p] if high[p] > best else best
        peak[s, 0, j0 // grain + q] = best
        top = max(top, np.float64(best))
    if only:
        sums[6, t] = top
        return
    sums[3, t] = top
    filled = begin[t]
    for g in range(g0 + j0 // size[1], g0 + (j1 - 1) // size[1] + 1):
        tension[g] = 0
    for m in range(begin[t], begin[t] + count[t]):
        if slot[0, m] == 0:
            continue
        if filled < m:
            move_slot(m, filled, key, slot)
        k, p = key[filled] % K, key[filled] // K
        g = g0 + p // size[1]
        tension[g] = max(tension[g], abs(np.float64(c[k, p - j0]) - (1 if slot[0, filled] > 0 else -1)))
        c[k, p - j0] = 0
        filled += 1
    count[t] = filled - begin[t]
    admit(
        t, s, j0, j1, D, mask, weights, by_position, norms, sw, PW, size, positive, bw, least, begin, count, key, slot,
        tension, c, high,
    )  # fmt: skip
    sort_by_key(begin[t], filled, begin[t] + count[t], key, slot)


@part
def move_slot(m, to, key, slot):
    """Copy slot m to another place."""
    key[to] = key[m]
    for f in range(3):
        slot[f, to] = slot[f, m]


@part
def join(
    t, s, middle, end, flat, start, patch, atoms, D, mask, masks, gram, sw, PW, size, positive, enough, begin, count,
    key, slot, tension, room,
):  # fmt: skip
    """Solve the cluster that lies across the end of tile t: codes from position `middle` on and before `end`."""
    K, reach, cells = D.shape[0], (D.shape[3] - 1) // sw, (PW + size[1] - 1) // size[1]
    q, e = begin[t] + count[t], begin[t + 1]
    if count[t] == 0 or count[t + 1] == 0 or key[e] // K - key[q - 1] // K > reach:
        return
    q -= 1
    while q > begin[t] and begin[t] + count[t] - q < MOST // 2 and key[q - 1] // K >= middle:
        if key[q] // K - key[q - 1] // K > reach:
            break
        q -= 1
    members, m, tense = np.empty(MOST, np.int64), 0, False
    while m < MOST and q < e + count[t + 1]:
        p = key[q] // K
        if p >= end or (m > 0 and p - key[members[m - 1]] // K > reach):
            break
        members[m] = q
        tense |= tension[s * cells + p // size[1]] > enough
        m += 1
        q = e if q == begin[t] + count[t] - 1 else q + 1
    if not tense:
        return
    moved = solve_cluster(
        s, m, members, flat, start, patch, atoms, D, mask, masks, gram, sw, positive, FINE * enough, key, slot, room,
    )  # fmt: skip
    if moved > FINE * enough:
        low, high = max(0, key[members[0]] // K - reach), min(PW - 1, key[members[m - 1]] // K + reach)
        for g in range(s * cells + low // size[1], s * cells + high // size[1] + 1):
            tension[g] = max(tension[g], moved)


@part
def sort_by_key(start, middle, stop, key, slot):
    """Insert the slots middle ... stop - 1 among those before, which are sorted."""
    for m in range(max(middle, start + 1), stop):
        at, e = key[m], m
        if key[m - 1] <= at:
            continue
        z, penalty, inverse = slot[0, m], slot[1, m], slot[2, m]
        while e > start and key[e - 1] > at:
            key[e] = key[e - 1]
            for f in range(3):
                slot[f, e] = slot[f, e - 1]
            e -= 1
        key[e], slot[0, e], slot[1, e], slot[2, e] = at, z, penalty, inverse


@part
def solve_cluster(
    s, m, members, flat, start, patch, atoms, D, mask, masks, gram, sw, positive, accuracy, key, slot, room
):  # fmt: skip
    """Minimise over the codes of a cluster and return the largest change, in units of the penalty."""
    K, w, length = D.shape[0], D.shape[3], patch.size * 8
    A, L = room[: m * m].reshape(m, m), room[m * m : 2 * m * m].reshape(m, m)
    v = room[2 * m * m : 2 * m * m + 6 * m].reshape(6, m)
    c, z, penalty = v[0], v[1], v[2]
    for q in range(m):
        k, p = key[members[q]] % K, key[members[q]] // K
        c[q] = dot_patch(flat, start + p * sw, patch, atoms, k * length)
        z[q], penalty[q] = slot[0, members[q]], slot[1, members[q]]
        A[q, q] = 1 / slot[2, members[q]] if slot[2, members[q]] > 0 else 0.0
        for e in range(q):
            j = key[members[e]] // K
            lag = (p - j) * sw
            value = 0.0
            if lag < w:
                i = key[members[e]] % K
                value = gram[i, k, lag] if gram.size else _overlap(D, mask, s, j * sw, i, k, lag)
            A[q, e] = A[e, q] = value
    moved = 0.0 if minimise(m, A, c, z, penalty, positive, accuracy, L, v[3], v[4], v[5]) else np.inf
    for q in range(m):
        at = members[q]
        step = flat.dtype.type(z[q] - slot[0, at])
        if step != 0:
            place = start + key[at] // K * sw
            add_patch(flat, place, patch, atoms, key[at] % K * length, -step)
            if masks.size:
                for row in patch:
                    for lane in range(8):
                        flat[place + row + lane] *= masks[place + row + lane]
            moved = max(moved, abs(np.float64(step)) / (slot[1, at] * slot[2, at]) if slot[2, at] > 0 else np.inf)
            slot[0, at] = slot[0, at] + np.float64(step) if z[q] != 0 else 0.0
    return moved


@part
def minimise(m, A, c, z, penalty, positive, accuracy, L, g, step, free):
    """Minimise half z A z - b z + penalty |z| over m codes, given c = b - A z, in place; return whether it is done.

    The codes that are not zero go to their minimum, signs held; the first to reach zero stays there. Then those that
    violate most are updated, and so on, as in the active set method for non-negative least squares. Row i of `L` (its
    diagonal inverted) is that of code ``free[i]`` in a Cholesky factor, to which rows are added as codes are.
    """
    n, known = 0, 0
    for q in range(m):
        if z[q] != 0:
            free[n] = q
            n += 1
    for _ in range(2 * m + 10):
        for _ in range(m):
            known = _factor(n, known, A, L, free)
            if known < n:  # too much alike
                break
            which = _step(n, m, A, c, z, penalty, L, g, step, free)
            if which < 0:
                break
            n -= 1
            known = min(known, which)
            for i in range(which, n):
                free[i] = free[i + 1]
        if known < n:
            _descend(m, A, c, z, penalty, positive)
            n, known = 0, 0
            for q in range(m):
                if z[q] != 0:
                    free[n] = q
                    n += 1
        worst = accuracy
        for e in range(m):
            if z[e] == 0:
                worst = max(worst, (c[e] if positive else abs(c[e])) / penalty[e] - 1)
        if worst <= accuracy:
            if known == n:
                return True
            continue
        for e in range(m):
            if z[e] == 0 and (c[e] if positive else abs(c[e])) / penalty[e] - 1 >= max(accuracy, 0.7 * worst):
                _update(e, m, A, c, z, penalty, positive)
                if z[e] != 0:
                    free[n] = e
                    n += 1
    return False


@part
def _descend(m, A, c, z, penalty, positive):
    for _ in range(10):
        for q in range(m):
            _update(q, m, A, c, z, penalty, positive)


@part
def _update(q, m, A, c, z, penalty, positive):
    """Go to the minimum over code q alone."""
    a = A[q, q]
    if not a > 0:  # nothing of the atom is seen
        z[q] = 0
        return
    u = z[q] * a + c[q]
    new = max(abs(u) - penalty[q], 0.0) / a
    if u < 0:
        new = 0.0 if positive else -new
    d = new - z[q]
    if d != 0:
        z[q] = new
        for e in range(m):
            c[e] -= d * A[q, e]


@part
def _factor(n, known, A, L, free):
    """Add rows to the Cholesky factor until there are n; return how many there are."""
    for i in range(known, n):
        q = np.int64(free[i])
        for j in range(i):
            total = A[q, np.int64(free[j])]
            for e in range(j):
                total -= L[i, e] * L[j, e]
            L[i, j] = total * L[j, j]
        total = A[q, q]
        for e in range(i):
            total -= L[i, e] * L[i, e]
        if not total > LEAST * A[q, q]:
            return i
        L[i, i] = 1 / np.sqrt(total)
    return n


@part
def _step(n, m, A, c, z, penalty, L, g, step, free):
    """Go to the minimum with signs held, or to where the first code falls to zero; return which does, -1: none."""
    for i in range(n):
        q = np.int64(free[i])
        total = c[q] - (penalty[q] if z[q] > 0 else -penalty[q])
        for e in range(i):
            total -= L[i, e] * g[e]
        g[i] = total * L[i, i]
    for i in range(n - 1, -1, -1):
        total = g[i] * L[i, i]
        step[i] = total
        for e in range(i):
            g[e] -= total * L[i, e]
    share, which = 1.0, -1
    for i in range(n):
        if z[np.int64(free[i])] * (z[np.int64(free[i])] + step[i]) <= 0 and -z[np.int64(free[i])] / step[i] < share:
            share, which = -z[np.int64(free[i])] / step[i], i
    for i in range(n):
        q = np.int64(free[i])
        d = -z[q] if i == which else share * step[i]
        z[q] += d
        for e in range(m):
            c[e] -= d * A[q, e]
    return which
