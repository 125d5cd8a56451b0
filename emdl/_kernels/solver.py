"""Coordinate descent on active codes, tile by tile and cell by cell, with a duality gap certificate.

The code positions of each signal are cut into *cells* no shorter than an atom, so that codes act on their own cell and
on the eight around it only, and cells are gathered into ``n_rows`` x ``n_columns`` *tiles*; tile t of signal s has the
number ``(s * n_rows + row) * n_columns + column``. It owns the samples from its first position on to the next tile's,
and a list of *slots*, its active codes, sorted by cell: entries ``begin[t]`` to ``begin[t] + count[t]`` of the arrays

    key    int64        position * K + atom, within the signal
    slot   float64      (4, capacity): code z, its penalty, squared norm of its atom and one over that

``cell`` (2, n_cells) holds where the slots of each cell begin and end, ``tension`` (n_cells) by how much its codes may
violate their conditions, in units of the penalty; only cells whose tension is too high are worked on. Tiles that are
not neighbours do not meet, so four colours of tiles, one after the other, can be shared among threads without changing
a bit of the result. Codes and sums are float64; signals, atoms and correlations have the dtype of the data.
"""

import numpy as np
from numba import types
from numba.extending import overload

from emdl._kernels.atomic import fetch_add, give_way, load, store
from emdl._kernels.clusters import MOST, join, settle, survey
from emdl._kernels.compiler import OPTIONS, jit, part
from emdl._kernels.correlate import correlate, tile_width
from emdl._kernels.patches import add_patch, dot_patch

NEAR, FALL = 0.9, 0.5  # idle codes get a slot above NEAR + FALL * (worst of the block - 1), all in units of the penalty
INNER = 0.05  # violation left by the updates between two sweeps
SETTLED = 0.2  # the same on one axis, over the tolerance
EVERY, STEPS = 5, 10  # conjugate gradients: after so many rounds, so many steps
SOLVED = 1e-10  # squared gradient over the first one at which they end
HOPE, TRIES = 20, 3  # a gap at most so many times too large is tried to be closed by shrinking, so often

SPINS = 1000  # looks at a counter before the core is given to whoever wants it
PATIENCE = 25  # sweeps without a better gap before a signal is given up


@part
def refresh(t, y, scale, mask, D, sh, sw, rows, columns, PW, begin, count, key, slot, r, sums):
    """Write r = scale * y - D z at the samples that tile t owns, and ``sums[:, t] = ||r||^2, <y, r>, penalty``."""
    K, C, h, w = D.shape
    H, W = y.shape[2:]
    n_rows, n_columns = rows.size - 1, columns.size - 1
    s, gi, gj = t // (n_rows * n_columns), t // n_columns % n_rows, t % n_columns
    top, left = rows[gi] * sh, columns[gj] * sw
    bottom = H if gi == n_rows - 1 else rows[gi + 1] * sh
    right = W if gj == n_columns - 1 else columns[gj + 1] * sw
    own = np.empty((C, bottom - top, right - left))
    for c in range(C):
        for i in range(bottom - top):
            for j in range(right - left):
                own[c, i, j] = scale * np.float64(y[s, c, top + i, left + j])
    penalty = 0.0
    for up in range(2):
        for back in range(2):
            if gi - up < 0 or gj - back < 0:
                continue
            other = t - up * n_columns - back
            for m in range(begin[other], begin[other] + count[other]):
                z, k, p = slot[0, m], key[m] % K, key[m] // K
                i, j = p // PW * sh - top, p % PW * sw - left
                if up + back == 0:
                    penalty += slot[1, m] * abs(z)
                if i + h <= 0 or j + w <= 0:
                    continue
                a0, a1, b0, b1 = max(0, -i), min(h, bottom - top - i), max(0, -j), min(w, right - left - j)
                for c in range(C):
                    for a in range(a0, a1):
                        for b in range(b0, b1):
                            own[c, i + a, j + b] -= z * np.float64(D[k, c, a, b])
    energy, cross = 0.0, 0.0
    for c in range(C):
        for i in range(bottom - top):
            for j in range(right - left):
                e = own[c, i, j]
                if mask.size:
                    e *= mask[s, c, top + i, left + j]
                energy += e * e
                cross += e * scale * np.float64(y[s, c, top + i, left + j])
                r[s, c, top + i, left + j] = e
    sums[0, t], sums[1, t], sums[2, t] = energy, cross, penalty


@part
def sweep(
    t, r, only, bank, D, mask, weights, by_position, sh, sw, rows, columns, PH, PW, size, positive, bh, bw, low,
    norms, begin, count, key, slot, cell, tension, peak, sums, c, high,
):  # fmt: skip
    """Write the largest |correlation| / penalty of tile t to ``sums[3, t]``; give slots to idle codes that violate.

    `peak` takes the largest at each position. With `only` that is all, and the largest goes to ``sums[6, t]``.
    """
    K, n_rows, n_columns = D.shape[0], rows.size - 1, columns.size - 1
    s, gi, gj = t // (n_rows * n_columns), t // n_columns % n_rows, t % n_columns
    filled = begin[t]
    for m in range(begin[t], begin[t] + (0 if only else count[t])):
        if slot[0, m] != 0:
            key[filled] = key[m]
            for f in range(4):
                slot[f, filled] = slot[f, m]
            filled += 1
    top, active, held = 0.0, filled, np.empty(high.size, r.dtype)
    for i in range(rows[gi], rows[gi + 1], size[0]):
        for j in range(columns[gj], columns[gj + 1], size[1]):
            if not only:
                tension[cell_of(s, i, j, PH, PW, size)] = 0
    first = s * PH * PW if by_position else -1
    for i0 in range(rows[gi], rows[gi + 1], low):
        i1, j0, j1 = min(i0 + low, rows[gi + 1]), columns[gj], columns[gj + 1]
        width = tile_width(K, D.shape[3], sh, sw, j1 - j0)
        n = (i1 - i0) * width
        correlate(r[s], bank, K, D.shape[3], sh, sw, i0, i1, j0, j1, c)
        held[:n] = 0
        for m in range(begin[t], active):
            k, i, j = key[m] % K, key[m] // K // PW, key[m] // K % PW
            if i0 <= i < i1:
                at = (i - i0) * width + j - j0
                pull = np.float64(c[k, at]) / slot[1, m]
                g = cell_of(s, i, j, PH, PW, size)
                tension[g] = max(tension[g], abs(pull - (1 if slot[0, m] > 0 else -1)))
                c[k, at] = 0
                held[at] = max(held[at], r.dtype.type(pull if positive else abs(pull)))
        for p in range(n):
            high[p] = 0
        for k in range(K):
            row = c[k]
            if by_position:
                for i in range(i1 - i0):
                    for j in range(j1 - j0):
                        row[i * width + j] /= weights[first + (i0 + i) * PW + j0 + j, k]
            scale = r.dtype.type(1 if by_position else 1 / weights[0, k])
            for p in range(n):
                value = row[p] * scale if positive else abs(row[p]) * scale
                row[p] = value
                high[p] = value if value > high[p] else high[p]
        for i in range(i1 - i0):
            for j in range(j1 - j0):
                largest = max(high[i * width + j], held[i * width + j])
                peak[s, i0 + i, j0 + j] = largest
                top = max(top, np.float64(largest))
        if only:
            continue
        limits(i1 - i0, j1 - j0, width, bh, bw, high)
        for k in range(K):
            row = c[k]
            for p0 in range(0, n, 64):
                stop, hits = min(p0 + 64, n), 0
                for p in range(p0, stop):
                    hits += row[p] > high[p]
                if hits == 0:
                    continue
                for p in range(p0, stop):
                    if row[p] > high[p]:
                        i, j = i0 + p // width, j0 + p % width
                        g = cell_of(s, i, j, PH, PW, size)
                        tension[g] = max(tension[g], row[p] - 1)
                        if filled < begin[t + 1]:
                            key[filled] = (i * PW + j) * K + k
                            slot[0, filled] = 0
                            set_slot(D, mask, weights, norms, s, first, i, j, sh, sw, PW, k, filled, slot)
                            filled += 1
    if only:
        sums[6, t] = top
        return
    count[t] = filled - begin[t]
    sums[3, t] = top
    sort_slots(
        s, rows[gi], rows[gi + 1], columns[gj], columns[gj + 1], begin[t], filled, K, PH, PW, size, key, slot, cell
    )


@part
def shrink(t, again, y, scale, r, h, w, sh, sw, rows, columns, PH, PW, peak, theta, sums):
    """Divide the residual that tile t owns by the largest |correlation| / penalty > 1 of the codes above each sample.

    The result, in `theta`, comes from `theta` itself when this is done `again`; ``sums[4:6, t] = <y, theta>, energy``.
    """
    C, H, W = y.shape[1:]
    n_rows, n_columns = rows.size - 1, columns.size - 1
    s, gi, gj = t // (n_rows * n_columns), t // n_columns % n_rows, t % n_columns
    top, left = rows[gi] * sh, columns[gj] * sw
    bottom = H if gi == n_rows - 1 else rows[gi + 1] * sh
    right = W if gj == n_columns - 1 else columns[gj + 1] * sw
    up, line = np.ones((bottom - top, right - left), r.dtype), np.ones(right - left, r.dtype)
    for i in range(max(0, (top - h + sh) // sh), min(PH, (bottom - 1) // sh + 1)):
        line[:] = 1
        for j in range(max(0, (left - w + sw) // sw), min(PW, (right - 1) // sw + 1)):
            value = peak[s, i, j]
            if value > 1:
                for e in range(max(left, j * sw) - left, min(right, j * sw + w) - left):
                    line[e] = max(line[e], value)
        for a in range(max(top, i * sh) - top, min(bottom, i * sh + h) - top):
            for e in range(right - left):
                up[a, e] = max(up[a, e], line[e])
    cross, energy = 0.0, 0.0
    for c in range(C):
        for a in range(bottom - top):
            old = theta[s, c, top + a] if again else r[s, c, top + a]
            for e in range(right - left):
                value = old[left + e] / up[a, e]
                theta[s, c, top + a, left + e] = value
                energy += np.float64(value) * np.float64(value)
                cross += np.float64(value) * scale * np.float64(y[s, c, top + a, left + e])
    sums[4, t], sums[5, t] = cross, energy


@part
def cell_of(s, i, j, PH, PW, size):
    """Return the cell of a code position of signal s."""
    down, across = (PH + size[0] - 1) // size[0], (PW + size[1] - 1) // size[1]
    return (s * down + i // size[0]) * across + j // size[1]


@part
def sort_slots(s, i0, i1, j0, j1, start, stop, K, PH, PW, size, key, slot, cell):
    """Sort the slots of a tile by cell."""
    old_key, old_slot = key[start:stop].copy(), slot[:, start:stop].copy()
    for i in range(i0, i1, size[0]):
        for j in range(j0, j1, size[1]):
            cell[1, cell_of(s, i, j, PH, PW, size)] = 0
    for q in range(stop - start):
        p = old_key[q] // K
        cell[1, cell_of(s, p // PW, p % PW, PH, PW, size)] += 1
    at = start
    for i in range(i0, i1, size[0]):
        for j in range(j0, j1, size[1]):
            g = cell_of(s, i, j, PH, PW, size)
            at += cell[1, g]
            cell[0, g] = cell[1, g] = at - cell[1, g]
    for q in range(stop - start):
        p = old_key[q] // K
        g = cell_of(s, p // PW, p % PW, PH, PW, size)
        m = cell[1, g]
        key[m] = old_key[q]
        for f in range(4):
            slot[f, m] = old_slot[f, q]
        cell[1, g] = m + 1


@part
def limits(rows, columns, width, bh, bw, high):
    """Replace each of `high` by the limit above which a code of its block gets a slot."""
    for bi in range(0, rows, bh):
        for bj in range(0, columns, bw):
            best = 1.0
            for i in range(bi, min(bi + bh, rows)):
                for j in range(bj, min(bj + bw, columns)):
                    best = max(best, np.float64(high[i * width + j]))
            for i in range(bi, min(bi + bh, rows)):
                for j in range(bj, min(bj + bw, columns)):
                    high[i * width + j] = NEAR + FALL * (best - 1)
    for i in range(rows):
        for j in range(columns, width):
            high[i * width + j] = np.inf


@part
def set_slot(D, mask, weights, norms, s, first, i, j, sh, sw, PW, k, m, slot):
    """Write penalty and norm of atom k at position (i, j) to slot m; first < 0: one penalty for each atom."""
    norm = norms[k]
    if mask.size:
        norm = 0.0
        for c in range(D.shape[1]):
            for a in range(D.shape[2]):
                for b in range(D.shape[3]):
                    norm += np.float64(D[k, c, a, b]) ** 2 * mask[s, c, i * sh + a, j * sw + b]
    slot[1, m] = weights[first + i * PW + j if first >= 0 else 0, k]
    slot[2, m] = norm
    slot[3, m] = 1 / norm if norm > 0 else 0.0


@jit
def fill(index, value, s, D, mask, weights, norms, by_position, sh, sw, rows, columns, PH, PW, begin, count, key, slot):
    """Put the codes of signal s into the slots of its tiles; with begin[-1] == 0 only count them."""
    K, n_rows, n_columns = D.shape[0], rows.size - 1, columns.size - 1
    for q in range(index.size):
        if value[q] == 0:
            continue
        p = index[q] // K
        i, j = p // PW, p % PW
        gi = np.searchsorted(rows, i, side="right") - 1
        gj = np.searchsorted(columns, j, side="right") - 1
        t = (s * n_rows + gi) * n_columns + gj
        if begin[-1] > 0:
            m = begin[t] + count[t]
            key[m], slot[0, m] = index[q], value[q]
            set_slot(
                D, mask, weights, norms, s, s * PH * PW if by_position else -1, i, j, sh, sw, PW, index[q] % K, m, slot
            )
        count[t] += 1


@part
def descend(
    s, i0, i1, j0, j1, r, corner, atoms, patch, mask, K, sh, sw, width, PH, PW, size, positive, passes, turns, enough,
    key, slot, cell, tension,
):  # fmt: skip
    """Update the codes of those cells of a tile whose tension is more than `enough`, each exactly and in turn."""
    length = patch.size * 8
    down, across = (PH + size[0] - 1) // size[0], (PW + size[1] - 1) // size[1]
    for _ in range(passes):
        dirty = False
        for i in range(i0, i1, size[0]):
            for j in range(j0, j1, size[1]):
                g = cell_of(s, i, j, PH, PW, size)
                if tension[g] <= enough:
                    continue
                moved, worst = 0.0, 0.0
                for turn in range(turns):
                    worst = 0.0
                    for m in range(cell[0, g], cell[1, g]):
                        old = slot[0, m]
                        if old == 0 and turn > 0:
                            continue
                        k, p = key[m] % K, key[m] // K
                        at = corner + p // PW * sh * width + p % PW * sw
                        inverse = slot[3, m]
                        u = old + np.float64(dot_patch(r, at, patch, atoms, k * length)) * inverse
                        new = max(abs(u) - slot[1, m] * inverse, 0.0)
                        if u < 0:
                            new = 0.0 if positive else -new
                        step = r.dtype.type(new - old)
                        if step != 0:
                            slot[0, m] = old + np.float64(step) if new != 0 else 0.0
                            add_patch(r, at, patch, atoms, k * length, -step)
                            if mask.size:
                                for row in patch:
                                    for lane in range(8):
                                        r[at + row + lane] *= mask[at + row + lane]
                            worst = max(worst, abs(new - old) * slot[2, m] / slot[1, m])
                    if worst <= enough:
                        break
                    moved = max(moved, worst)
                tension[g] = worst
                if moved > 0:
                    dirty = True
                    a, b = i // size[0], j // size[1]
                    for u in range(max(0, a - 1), min(down, a + 2)):
                        for v in range(max(0, b - 1), min(across, b + 2)):
                            if u != a or v != b:
                                other = (s * down + u) * across + v
                                tension[other] = max(tension[other], moved)
        if not dirty:
            break


def _act_on_plane(
    what, t, s, control, D, bank, atoms, patch, gram, low, mask, masks, weights, by_position, norms,
    sh, sw, rows, columns, PH, PW, size, positive, bh, bw, begin, count, key, slot, cell, tension,
    r, theta, peak, flat, sums, enough, tol, passes, turns, c, high, room,
):  # fmt: skip
    n_columns, x = columns.size - 1, r if what == 1 else theta
    i, j = t // n_columns % (rows.size - 1), t % n_columns
    if what == 2:
        descend(
            s, rows[i], rows[i + 1], columns[j], columns[j + 1], flat, s * (flat.size // r.shape[0]), atoms, patch,
            masks, D.shape[0], sh, sw, r.shape[3], PH, PW, size, positive, passes, turns, enough[s], key, slot, cell,
            tension,
        )  # fmt: skip
    else:
        sweep(
            t, x, what == 4, bank, D, mask, weights, by_position, sh, sw, rows, columns, PH, PW, size, positive, bh, bw,
            low, norms, begin, count, key, slot, cell, tension, peak, sums, c, high,
        )  # fmt: skip


def _act_on_line(
    what, t, s, control, D, bank, atoms, patch, gram, low, mask, masks, weights, by_position, norms,
    sh, sw, rows, columns, PH, PW, size, positive, bh, bw, begin, count, key, slot, cell, tension,
    r, theta, peak, flat, sums, enough, tol, passes, turns, c, high, room,
):  # fmt: skip
    j, start, x = t % (columns.size - 1), s * (flat.size // r.shape[0]), r if what == 1 else theta
    if what != 2:
        survey(
            t, s, columns[j], columns[j + 1], x, what == 4, bank, D, mask, weights, by_position, norms, sw, PW, size,
            positive, bw, 0.1 * tol, begin, count, key, slot, tension, peak, sums, c, high,
        )  # fmt: skip
    elif control[5] % 4 < 2:
        fresh, odd = control[6] > 0 and control[5] < 2, control[5] // 4 % 2 == 1
        short = settle(
            t, s, columns[j], columns[j + 1], fresh, odd, r, flat, start, bank, D, atoms, patch, mask, masks, weights,
            by_position, norms, gram, sw, PW, size, positive, bw, enough[s], begin, count, key, slot, tension, c, high,
            room,
        )  # fmt: skip
        if short:
            control[7] = 1
    else:
        join(
            t, s, (columns[j] + columns[j + 1]) // 2, (columns[j + 1] + columns[j + 2]) // 2, flat, start, patch, atoms,
            D, mask, masks, gram, sw, PW, size, positive, enough[s], begin, count, key, slot, tension, room,
        )  # fmt: skip


def act(*arguments):
    """Sweep, measure or descend on tile t, on two axes where `gram` is None, else on one; for kernels alone."""
    raise NotImplementedError


@overload(act, jit_options=OPTIONS)
def _choose(
    what, t, s, control, D, bank, atoms, patch, gram, low, mask, masks, weights, by_position, norms,
    sh, sw, rows, columns, PH, PW, size, positive, bh, bw, begin, count, key, slot, cell, tension,
    r, theta, peak, flat, sums, enough, tol, passes, turns, c, high, room,
):  # fmt: skip
    return _act_on_plane if isinstance(gram, types.NoneType) else _act_on_line


@jit
def work(
    leader, control, todo, y, scale, mask, masks, D, bank, atoms, patch, gram, low, weights, by_position, sh, sw,
    rows, columns, PH, PW, size, positive, bh, bw, norms, begin, count, key, slot, cell, tension,
    r, theta, peak, flat, sums, enough, tol, max_iter, rounds, passes, turns, result,
):  # fmt: skip
    """Minimise: the leader decides what comes next, and all workers take tiles from its list until it is done.

    ``control`` holds the ticket counter, the number of finished tiles and what to do.
    """
    K = D.shape[0]
    high_rows, wide = 0, 0
    for i in range(rows.size - 1):
        high_rows = max(high_rows, rows[i + 1] - rows[i])
    for j in range(columns.size - 1):
        wide = max(wide, columns[j + 1] - columns[j])
    most = min(low, high_rows) * tile_width(K, D.shape[3], sh, sw, wide)
    c, high = np.empty((bank.shape[0], most), r.dtype), np.empty(most, r.dtype)
    state, room = np.zeros(8, np.int64), np.empty(2 * MOST * (MOST + 3))
    state[0] = -1
    n = 0
    seen = np.int64(0)
    per_signal = (rows.size - 1) * (columns.size - 1)
    turn = np.int64(0)
    while True:
        if leader:
            state[5] |= control[7]
            n = plan(
                state,
                todo,
                rows.size - 1,
                columns.size - 1,
                begin,
                count,
                sums,
                PH,
                PW,
                size,
                rows,
                columns,
                tension,
                enough,
                tol,
                max_iter,
                rounds,
                result,
            )
            if state[0] == 2 and state[2] != turn and state[2] % EVERY == 0:
                for s in range(result.shape[1]):
                    if not result[2, s]:
                        conjugate(
                            s, STEPS, flat, atoms, patch, masks, sh, sw, r.shape[3], PW, K, per_signal,
                            y.shape[0], enough, begin, count, key, slot, tension,
                        )  # fmt: skip
            turn = state[2]
            control[3], control[4], control[5] = state[0], state[6], 4 * state[2] + state[3]
            control[6] = state[1]
            store(control, 1, 0)
            phase = (np.int64(load(control, 0)) >> 40) + 1
            store(control, 0, (phase << 40) | (np.int64(n) << 20))
        else:
            waited = 0
            while (load(control, 0) >> 40) == seen:
                waited += 1
                if waited > SPINS:
                    give_way()
        while True:
            ticket = fetch_add(control, 0, 1)
            seen = ticket >> 40
            total, place = (ticket >> 20) & 1048575, ticket & 1048575
            if place >= total:
                break
            t, what = todo[place], control[3]
            s = t // ((rows.size - 1) * (columns.size - 1))
            if what == 0:
                refresh(t, y, scale, mask, D, sh, sw, rows, columns, PW, begin, count, key, slot, r, sums)
            elif what == 3:
                shrink(
                    t, control[4] > 1, y, scale, r, D.shape[2], D.shape[3], sh, sw, rows, columns, PH, PW, peak, theta,
                    sums,
                )  # fmt: skip
            else:
                act(
                    what, t, s, control, D, bank, atoms, patch, gram, low, mask, masks, weights, by_position, norms,
                    sh, sw, rows, columns, PH, PW, size, positive, bh, bw, begin, count, key, slot, cell, tension,
                    r, theta, peak, flat, sums, enough, tol, passes, turns, c, high, room,
                )  # fmt: skip
            fetch_add(control, 1, 1)
        if total == 0:
            break
        if leader:
            waited = 0
            while load(control, 1) < n:
                waited += 1
                if waited > SPINS:
                    give_way()
    return state


@part
def conjugate(
    s, steps, flat, atoms, patch, masks, sh, sw, width, PW, K, per_signal, n_signals,
    enough, begin, count, key, slot, tension,
):  # fmt: skip
    """Minimise over the codes of signal s that are not zero, signs held, by conjugate gradients; keep what is lower."""
    cells, tense = tension.size // n_signals, 0
    for e in range(s * cells, (s + 1) * cells):
        tense += tension[e] > enough[s]
    if 16 * tense < cells:  # too few are left to work on all codes
        return
    t0, t1, size, length = s * per_signal, (s + 1) * per_signal, flat.size // n_signals, patch.size * 8
    start, n = s * size, 0
    which, place = np.empty(0, np.int64), np.empty(0, np.int64)
    for fill in range(2):
        n = 0
        for t in range(t0, t1):
            for m in range(begin[t], begin[t] + count[t]):
                if slot[0, m] != 0:
                    if fill:
                        p = key[m] // K
                        which[n], place[n] = m, start + p // PW * sh * width + p % PW * sw
                    n += 1
        if not fill:
            which, place = np.empty(n, np.int64), np.empty(n, np.int64)
    old, g, d, sign, atom = np.empty(n), np.empty(n), np.zeros(n), np.empty(n), np.empty(n, np.int64)
    r, image = flat[start : start + size], np.empty(size, flat.dtype)
    kept, before = r.copy(), 0.0
    for e in range(size):
        before += 0.5 * np.float64(r[e]) ** 2
    for q in range(n):
        old[q] = slot[0, which[q]]
        atom[q] = key[which[q]] % K * length
        sign[q] = slot[1, which[q]] if old[q] > 0 else -slot[1, which[q]]
        before += abs(old[q]) * slot[1, which[q]]
    last, first = 0.0, 0.0
    for _ in range(steps):
        rho, energy = 0.0, 0.0
        for q in range(n):
            g[q] = np.float64(dot_patch(flat, place[q], patch, atoms, atom[q])) - sign[q]
            rho += g[q] * g[q]
        image[:] = 0
        first = max(first, rho)
        if rho <= SOLVED * first:  # what is left is rounding, along which steps have no bound
            break
        beta = rho / last if last > 0 else 0.0
        last = rho
        for q in range(n):
            d[q] = g[q] + beta * d[q]
            add_patch(image, place[q] - start, patch, atoms, atom[q], flat.dtype.type(d[q]))
        if masks.size:
            for e in range(size):
                image[e] *= masks[start + e]
        for e in range(size):
            energy += np.float64(image[e]) ** 2
        if not energy > 0:
            break
        alpha = rho / energy
        for q in range(n):
            slot[0, which[q]] += alpha * d[q]
        weight = flat.dtype.type(alpha)
        for e in range(size):
            r[e] -= weight * image[e]
    after = 0.0
    for q in range(n):
        new = slot[0, which[q]]
        if new * sign[q] < 0:
            add_patch(flat, place[q], patch, atoms, atom[q], flat.dtype.type(new))
            slot[0, which[q]] = new = 0.0
        after += new * sign[q]
    if masks.size:
        for e in range(size):
            r[e] *= masks[start + e]
    for e in range(size):
        after += 0.5 * np.float64(r[e]) ** 2
    if not after < before:
        r[:] = kept
        for q in range(n):
            slot[0, which[q]] = old[q]
        return
    for e in range(s * cells, (s + 1) * cells):
        tension[e] = max(tension[e], 2 * enough[s])


@part
def plan(
    state, todo, n_rows, n_columns, begin, count, sums, PH, PW, size, rows, columns, tension, enough,
    tol, max_iter, rounds, result,
):  # fmt: skip
    """Write the tiles to work on next to `todo` and return their number, 0 at the end.

    state: 0 what comes (0 refresh, 1 sweep, 2 descend, 3 shrink, 4 measure), 1 number of sweeps, 2 round, 3 colour, 4
    tiles worked on in this round, 5 whether a tile is full, 6 how often the residual was shrunk since the sweep, 7
    whether it is wanted back.
    result: for each signal primal, gap, whether it is done, the largest correlation, the best gap and the number of
    sweeps since, whether to go on shrinking, the largest dual value.
    """
    per_signal = n_rows * n_columns
    if state[0] < 0:
        state[0] = 0
        return _unfinished(todo, per_signal, result)
    if state[0] == 0 and PH == 1 and enough[0] == 0 and count.sum() == 0:  # all is found and solved on the way
        tension[:] = np.inf
        enough[:] = SETTLED * tol
        state[0], state[2], state[3], state[4] = 2, 0, -1, 1
    elif state[0] == 0 and state[7]:  # the residual is back where it was shrunk
        state[0], state[2], state[3], state[4], state[7] = 2, 0, -1, 1, 0
    elif state[0] == 0:
        state[0] = 1
        state[1] += 1
        return _unfinished(todo, per_signal, result)
    if state[0] == 1 or state[0] == 4:
        certify(per_signal, sums, tol, state[0] == 4, result)
        state[6] = state[6] + 1 if state[0] == 4 else 1
        n = _hopeful(todo, per_signal, result)
        if n > 0 and state[6] <= TRIES:
            state[0] = 3
            return n
        left = _unfinished(todo, per_signal, result)
        if left == 0 or state[1] >= max_iter:
            return 0
        for q in range(left):
            t = todo[q]
            state[5] |= PH > 1 and begin[t] + count[t] == begin[t + 1]
        for s in range(enough.size):
            if PH == 1:
                enough[s] = max(0.3 * enough[s], 0.01 * tol) if enough[s] > 0 else SETTLED * tol
            else:
                enough[s] = max(INNER * (result[3, s] - 1), 0.2 * tol)
        if PH == 1 and state[0] == 4:
            state[0], state[7] = 0, 1
            return left
        state[0], state[2], state[3], state[4] = 2, 0, -1, 1
    elif state[0] == 3:
        state[0] = 4
        return _hopeful(todo, per_signal, result)
    while state[2] < rounds and not (PH == 1 and state[5]):
        state[3] += 1
        if state[3] == 4:
            if state[4] == 0:
                break
            state[2] += 1
            state[3] = state[4] = 0
        n = 0
        for t in range(count.size):
            i, j = t // n_columns % n_rows, t % n_columns
            s = t // per_signal
            across = PH == 1 and state[3] > 1  # the ends of tiles, but for the last
            if (
                (2 * (i % 2) + j % 2 != state[3] - (2 if across else 0))
                or result[2, s]
                or (across and j == n_columns - 1)
            ):
                continue
            j0, j1 = columns[j], columns[j + 1]
            if across:
                j0, j1 = max(j0, j1 - size[1]), min(columns[j + 2], j1 + size[1])
            if _is_dirty(s, rows[i], rows[i + 1], j0, j1, PH, PW, size, tension, enough[s]):
                todo[n] = t
                n += 1
        state[4] += n
        if n:
            return n
    if state[5]:
        return 0
    state[0] = 0
    return _unfinished(todo, per_signal, result)


@part
def _is_dirty(s, i0, i1, j0, j1, PH, PW, size, tension, enough):
    for i in range(i0, i1, size[0]):
        for j in range(j0, j1, size[1]):
            if tension[cell_of(s, i, j, PH, PW, size)] > enough:
                return True
    return False


@part
def _unfinished(todo, per_signal, result):
    n = 0
    for s in range(result.shape[1]):
        if not result[2, s]:
            for t in range(s * per_signal, (s + 1) * per_signal):
                todo[n] = t
                n += 1
    return n


@part
def _hopeful(todo, per_signal, result):
    n = 0
    for s in range(result.shape[1]):
        if not result[2, s] and result[6, s]:
            for t in range(s * per_signal, (s + 1) * per_signal):
                todo[n] = t
                n += 1
    return n


@part
def certify(per_signal, sums, tol, again, result):
    """Write primal and gap of every signal that is not done: the dual value is half ||y||^2 - half ||y - a r||^2.

    The minimum lies above every dual value of the same problem, so the largest one counts. With `again` r is the shrunk
    residual, and shrinking goes on only where the worst code is still the hindrance.
    """
    at_cross, at_energy, at_largest = (4, 5, 6) if again else (1, 0, 3)
    for s in range(result.shape[1]):
        if result[2, s] or (again and not result[6, s]):
            continue
        energy, cross, penalty, largest = 0.0, 0.0, 0.0, 1.0
        for t in range(s * per_signal, (s + 1) * per_signal):
            energy += sums[at_energy, t]
            cross += sums[at_cross, t]
            penalty += sums[2, t]
            largest = max(largest, sums[at_largest, t])
        a = min(max(cross / energy, 0.0), 1 / largest) if energy > 0 else 0.0
        result[7, s] = max(result[7, s], a * cross - 0.5 * a * a * energy)
        if again:
            gap = result[0, s] - result[7, s]
            result[4, s] = min(result[4, s], gap)
            result[6, s] = (largest - 1) * result[0, s] > 0.1 * gap
        else:
            result[0, s], result[3, s] = 0.5 * energy + penalty, largest
            gap = result[0, s] - result[7, s]
            if gap < 0.8 * result[4, s] or result[4, s] == 0:
                result[4, s], result[5, s] = gap, 0
            else:
                result[5, s] += 1
            result[6, s] = gap <= HOPE * tol * result[0, s] and largest > 1
        result[1, s] = gap
        result[2, s] = gap <= tol * result[0, s] or result[5, s] >= PATIENCE


@jit
def move(begin, count, key, slot, new_begin, new_key, new_slot):
    """Copy the slots of all tiles to new places."""
    for t in range(count.size):
        shift = new_begin[t] - begin[t]
        for m in range(begin[t], begin[t] + count[t]):
            new_key[m + shift] = key[m]
            for f in range(4):
                new_slot[f, m + shift] = slot[f, m]
