"""Coordinate descent on active codes, tile by tile and cell by cell, with a duality gap certificate.

The code positions of each signal are cut into *cells* no shorter than an atom, so that codes act on their own cell and
on the eight around it only, and cells are gathered into ``n_rows`` x ``n_columns`` *tiles*; tile t of signal s has the
number ``(s * n_rows + row) * n_columns + column``. It owns the samples from its first position on to the next tile's,
and a list of *slots*, its active codes, sorted by cell: entries ``begin[t]`` to ``begin[t] + count[t]`` of the arrays

    key    int64        position * K + atom, within the signal
    slot   float64      (3, capacity): code z, its penalty, one over the squared norm of its atom (0: nothing is seen)
    spot   int32        (3, capacity): row, column and atom, on two axes alone

``cell`` (2, n_cells) holds where the slots of each cell begin and end, ``tension`` (n_cells) by how much its codes may
violate their conditions, in units of the penalty; only cells whose tension is too high are worked on. On two axes
``bound`` (n, PH, strips of 16 positions, groups of 4 atoms) bounds the heights, |correlation| / penalty, of codes
without a slot, and ``change`` (n, H, W) the squared change of the residual since the last sweep, by which it grows.

Tiles that are not neighbours do not meet, so four colours of tiles, one after the other, can be shared among threads
without changing a bit of the result. Codes and sums are float64; signals, atoms and correlations have the dtype of the
data.
"""

import numpy as np
from numba import types
from numba.extending import overload

from emdl._kernels.atomic import fetch_add, give_way, load, store
from emdl._kernels.clusters import MOST, join, settle, survey
from emdl._kernels.compiler import OPTIONS, jit, part
from emdl._kernels.patches import add_patch, correlate_group, dot_patch

NEAR, FALL = 0.9, 0.7  # idle codes get a slot above NEAR + FALL * (worst of the block - 1), all in units of the penalty
ONE = 128  # steps of a bound on heights from 0 to 1; 255 is no bound
INNER = 0.05  # violation left by the updates between two sweeps
SETTLED = 0.2  # the same on one axis, over the tolerance
EVERY, STEPS = 3, 5  # conjugate gradients: after so many rounds, so many steps
SOLVED = 1e-10  # squared gradient over the first one at which they end
HOPE, TRIES = 20, 3  # a gap at most so many times too large is tried to be closed by shrinking, so often

SPINS = 1000  # looks at a counter before the core is given to whoever wants it
PATIENCE = 25  # sweeps without a better gap before a signal is given up


@part
def refresh(
    t, y, scale, mask, D, atoms, sh, sw, rows, columns, PW, begin, count, key, slot, spot, r, before, change, sums
):  # fmt: skip
    """Write r = scale * y - D z at the samples that tile t owns, and ``sums[:, t] = ||r||^2, <y, r>, penalty``.

    On two axes `change` takes the squared difference to the residual of the last sweep, which is in `before`.
    """
    K, C, h, w = D.shape
    n_rows, n_columns = rows.size - 1, columns.size - 1
    s, gi, gj = t // (n_rows * n_columns), t // n_columns % n_rows, t % n_columns
    top, bottom, left, right = owned(t, y, sh, sw, rows, columns)
    high, wide, padded = bottom - top + 2 * h - 2, right - left + w - 1 + (w + 7) // 8 * 8, (w + 7) // 8 * 8
    own, patch = np.zeros((C, high, wide)), np.empty(C * h * padded // 8, np.int64)
    for q in range(patch.size):
        row = q // (padded // 8)
        patch[q] = (row // h * high + row % h) * wide + q % (padded // 8) * 8
    n = right - left
    for c in range(C):
        for i in range(bottom - top):
            row, seen = own[c, h - 1 + i, w - 1 :], y[s, c, top + i, left:right]
            for j in range(n):
                row[j] = scale * np.float64(seen[j])
    penalty, flat = 0.0, own.reshape(-1)
    for up in range(2):
        for back in range(2):
            if gi - up < 0 or gj - back < 0:
                continue
            other = t - up * n_columns - back
            for m in range(begin[other], begin[other] + count[other]):
                z = slot[0, m]
                if z == 0:
                    continue
                if spot.size:
                    i, j, k = np.int64(spot[0, m]), np.int64(spot[1, m]), np.int64(spot[2, m])
                else:
                    i, j, k = np.int64(0), key[m] // K, key[m] % K
                i, j = i * sh - top + h - 1, j * sw - left + w - 1
                if up + back == 0:
                    penalty += slot[1, m] * abs(z)
                if i >= 0 and j >= 0:
                    add_patch(flat, i * wide + j, patch, atoms, k * patch.size * 8, -z)
    energy, cross = 0.0, 0.0
    for c in range(C):
        for i in range(bottom - top):
            row, seen = own[c, h - 1 + i, w - 1 :], y[s, c, top + i, left:right]
            rest = r[s, c, top + i, left:right]
            if mask.size:
                for j in range(n):
                    row[j] *= mask[s, c, top + i, left + j]
            for j in range(n):
                e = row[j]
                energy += e * e
                cross += e * (scale * np.float64(seen[j]))
                rest[j] = e
            if change.size:
                last = before[s, c, top + i, left:right]
                note_change(c, rest, last, change[s, top + i, left:right])
                for j in range(n):
                    last[j] = rest[j]
    sums[0, t], sums[1, t], sums[2, t] = energy, cross, penalty


@part
def owned(t, y, sh, sw, rows, columns):
    """Return where the samples that tile t owns begin and end, down and across."""
    n_rows, n_columns = rows.size - 1, columns.size - 1
    gi, gj = t // n_columns % n_rows, t % n_columns
    bottom = y.shape[2] if gi == n_rows - 1 else rows[gi + 1] * sh
    right = y.shape[3] if gj == n_columns - 1 else columns[gj + 1] * sw
    return rows[gi] * sh, bottom, columns[gj] * sw, right


@part
def note_change(c, new, old, change):
    """Add the squared difference of two rows of samples, of channel c, to those of the channels before."""
    for j in range(change.size):
        square = (new[j] - old[j]) * (new[j] - old[j])
        change[j] = square if c == 0 else change[j] + square


@part
def sweep(
    t, x, only, n_signals, H, width, bank, taps, atoms, patch, D, mask, weights, by_position, norms, reach, sh, sw,
    rows, columns, PH, PW, size, positive, bh, bw, begin, count, key, slot, spot, cell, tension, peak, change, bound,
    sums, c, high,
):  # fmt: skip
    """Write the largest |correlation| / penalty of tile t to ``sums[3, t]``; give slots to idle codes that violate.

    `peak` takes the largest at each position where that is more than 1. With `only` that is all, the largest goes to
    ``sums[6, t]``, and `x` may be another residual than that of the last sweep.
    """
    K, C, h, w = D.shape
    n_rows, n_columns = rows.size - 1, columns.size - 1
    s, gi, gj = t // (n_rows * n_columns), t // n_columns % n_rows, t % n_columns
    i0, i1, j0, j1 = rows[gi], rows[gi + 1], columns[gj], columns[gj + 1]
    start, length, first = s * (x.size // n_signals), patch.size * 8, s * PH * PW if by_position else -1
    strips, groups, per_row = (j1 - j0 + 15) // 16, (K + 3) // 4, (PW + 15) // 16
    hidden, tops, top = np.zeros((i1 - i0) * strips * groups, np.uint64), np.empty(bh * strips * groups, x.dtype), 0.0
    for i in range(i0, i1):
        for j in range(j0, j1):
            peak[s, i, j] = 0
    if not only:
        for i in range(i0, i1, size[0]):
            for j in range(j0, j1, size[1]):
                tension[cell_of(s, i, j, PH, PW, size)] = 0
    filled = begin[t]
    for m in range(begin[t], begin[t] + count[t]):
        i, j, k = np.int64(spot[0, m]), np.int64(spot[1, m]), np.int64(spot[2, m])
        pull = np.float64(dot_patch(x, start + i * sh * width + j * sw, patch, atoms, k * length)) / slot[1, m]
        height = pull if positive else abs(pull)
        peak[s, i, j] = max(peak[s, i, j], x.dtype.type(height))
        top = max(top, height)
        if not only:
            if slot[0, m] == 0 and height <= 1:
                at = ((s * PH + i) * per_row + j // 16) * groups + k // 4
                bound[at] = max(np.int64(bound[at]), level(height))
                continue
            g = cell_of(s, i, j, PH, PW, size)
            tension[g] = max(tension[g], height - 1 if slot[0, m] == 0 else abs(pull - (1 if slot[0, m] > 0 else -1)))
            if filled < m:
                copy_slot(m, filled, key, slot, spot)
            filled += 1
        hidden[((i - i0) * strips + (j - j0) // 16) * groups + k // 4] |= one_bit(16 * (k % 4) + (j - j0) % 16)
    tail = np.uint64(0)
    for p in range(j1 - j0, 16 * strips):
        for a in range(4):
            tail |= one_bit(16 * a + p % 16)
    near, window = np.empty((i1 - i0) * strips, np.int64), np.empty(taps.size * 16 if sw > 1 else 0, x.dtype)
    patch_changes(change[s], i0, i1, j0, j1, h, w, sh, sw, reach, near)
    for b0 in range(i0, i1, bh):
        b1, best = min(b0 + bh, i1), 0.0
        for i in range(b0, b1):
            for strip in range(strips):
                line, e = ((i - b0) * strips + strip) * 16, ((i - b0) * strips + strip) * groups
                at = ((s * PH + i) * per_row + j0 // 16 + strip) * groups
                for p in range(16):
                    high[line + p] = 0
                laid = sw == 1
                for g in range(groups):
                    most = np.int64(bound[at + g]) + near[(i - i0) * strips + strip]
                    tops[e + g] = 0
                    if most <= ONE:
                        if not only:
                            bound[at + g] = most
                        continue
                    if not laid:
                        lay_out(x, start, C, h, w, H, width, i * sh, (j0 + 16 * strip) * sw, sw, window)
                        laid = True
                    hide = hidden[((i - i0) * strips + strip) * groups + g]
                    if strip == strips - 1:
                        hide |= tail
                    to = line if first < 0 else high.size - 16
                    if sw == 1:
                        place = start + i * sh * width + j0 + 16 * strip
                        value = correlate_group(
                            x, place, taps, bank, 4 * g * taps.size, hide, positive, c, 64 * (e + g), high, to
                        )
                    else:
                        value = correlate_group(
                            window, 0, taps, bank, 4 * g * taps.size, hide, positive, c, 64 * (e + g), high, to
                        )
                    if first >= 0:
                        value = x.dtype.type(0)
                        for a in range(min(4, K - 4 * g)):
                            for p in range(min(16, j1 - j0 - 16 * strip)):
                                share = c[64 * (e + g) + 16 * a + p]
                                share /= weights[first + i * PW + j0 + 16 * strip + p, 4 * g + a]
                                c[64 * (e + g) + 16 * a + p] = share
                                value, high[line + p] = max(value, share), max(high[line + p], share)
                    tops[e + g] = value
                    best = max(best, np.float64(value))
                    if not only:
                        bound[at + g] = level(value)
        top = max(top, best)
        if best > 1:
            for i in range(b0, b1):
                for j in range(j0, j1):
                    peak[s, i, j] = max(peak[s, i, j], high[(i - b0) * strips * 16 + j - j0])
        if only or not best > 1:
            continue
        limits(b1 - b0, j1 - j0, strips * 16, bh, bw, high)
        for i in range(b0, b1):
            for strip in range(strips):
                line, e = ((i - b0) * strips + strip) * 16, ((i - b0) * strips + strip) * groups
                least = high[line]
                for p in range(16):
                    least = min(least, high[line + p])
                for g in range(groups):
                    if not tops[e + g] > least:
                        continue
                    rest = 0.0
                    for q in range(64):
                        value = c[64 * (e + g) + q]
                        if not value > high[line + q % 16] or filled == begin[t + 1]:
                            rest = max(rest, np.float64(value))
                            continue
                        j, k = j0 + 16 * strip + q % 16, 4 * g + q // 16
                        key[filled], slot[0, filled] = (i * PW + j) * K + k, 0
                        spot[0, filled], spot[1, filled], spot[2, filled] = i, j, k
                        set_slot(D, mask, weights, norms, s, first, i, j, sh, sw, PW, k, filled, slot)
                        home = cell_of(s, i, j, PH, PW, size)
                        tension[home] = max(tension[home], np.float64(value) - 1)
                        filled += 1
                    bound[((s * PH + i) * per_row + j0 // 16 + strip) * groups + g] = level(rest)
    if only:
        sums[6, t] = top
        return
    count[t] = filled - begin[t]
    sums[3, t] = top
    sort_slots(s, i0, i1, j0, j1, begin[t], filled, PH, PW, size, key, slot, spot, cell)


@part
def one_bit(q):
    """Return 2 to the power q, the place of group q in a word."""
    return np.uint64(1) << np.uint64(q)


@part
def level(height):
    """Return a bound on heights, in steps of 1 / ONE, that is no less than `height`."""
    return np.int64(min(np.ceil(ONE * np.float64(height)), 255.0))


@part
def patch_changes(change, i0, i1, j0, j1, h, w, sh, sw, reach, near):
    """Write by how much heights may have changed at most, in steps, for each 16 positions of a tile."""
    strips = (j1 - j0 + 15) // 16
    line, total = np.empty((j1 - j0 - 1) * sw + w, change.dtype), np.empty(j1 - j0, change.dtype)
    for i in range(i0, i1):
        line[:] = 0
        for a in range(h):
            row = change[i * sh + a, j0 * sw :]
            for q in range(line.size):
                line[q] += row[q]
        total[:] = 0
        for b in range(w):
            if sw == 1:
                part_of = line[b:]
                for p in range(total.size):
                    total[p] += part_of[p]
            else:
                for p in range(total.size):
                    total[p] += line[p * sw + b]
        for strip in range(strips):
            largest = total[16 * strip]
            for p in range(16 * strip, min(16 * strip + 16, total.size)):
                largest = max(largest, total[p])
            step = np.sqrt(np.float64(largest)) * reach * (1 + 1e-4)
            near[(i - i0) * strips + strip] = level(step)


@part
def lay_out(x, start, C, h, w, H, width, i, j, sw, window):
    """Lay out the samples below 16 positions that are more than a sample apart: 16 numbers for each tap."""
    q = 0
    for c in range(C):
        for a in range(h):
            for b in range(w):
                at = start + (c * H + i + a) * width
                for p in range(16):
                    column = j + p * sw + b
                    window[q + p] = x[at + column] if column < width else 0
                q += 16


@part
def copy_slot(m, to, key, slot, spot):
    """Copy slot m to another place."""
    key[to] = key[m]
    for f in range(3):
        slot[f, to] = slot[f, m]
    for f in range(spot.shape[0]):
        spot[f, to] = spot[f, m]


@part
def shrink(t, again, y, scale, r, h, w, sh, sw, rows, columns, PH, PW, grain, peak, theta, change, sums):
    """Divide the residual that tile t owns by the largest |correlation| / penalty > 1 of the codes above each sample.

    The result, in `theta`, comes from `theta` itself when this is done `again`; ``sums[4:6, t] = <y, theta>, energy``.
    """
    C, s = y.shape[1], t // ((rows.size - 1) * (columns.size - 1))
    top, bottom, left, right = owned(t, y, sh, sw, rows, columns)
    up, line = np.ones((bottom - top, right - left), r.dtype), np.ones(right - left, r.dtype)
    for i in range(max(0, (top - h + sh) // sh), min(PH, (bottom - 1) // sh + 1)):
        line[:] = 1
        for j in range(max(0, (left - w + sw) // sw), min(PW, (right - 1) // sw + 1)):
            value = peak[s, i, j // grain]
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
            if change.size:
                note_change(
                    c, theta[s, c, top + a, left:right], r[s, c, top + a, left:right], change[s, top + a, left:right]
                )
    sums[4, t], sums[5, t] = cross, energy


@part
def cell_of(s, i, j, PH, PW, size):
    """Return the cell of a code position of signal s."""
    down, across = (PH + size[0] - 1) // size[0], (PW + size[1] - 1) // size[1]
    return (s * down + i // size[0]) * across + j // size[1]


@part
def sort_slots(s, i0, i1, j0, j1, start, stop, PH, PW, size, key, slot, spot, cell):
    """Sort the slots of a tile by cell."""
    old_key, old_slot, old_spot = key[start:stop].copy(), slot[:, start:stop].copy(), spot[:, start:stop].copy()
    home = np.empty(stop - start, np.int64)
    for i in range(i0, i1, size[0]):
        for j in range(j0, j1, size[1]):
            cell[1, cell_of(s, i, j, PH, PW, size)] = 0
    for q in range(home.size):
        home[q] = cell_of(s, np.int64(old_spot[0, q]), np.int64(old_spot[1, q]), PH, PW, size)
        cell[1, home[q]] += 1
    at = start
    for i in range(i0, i1, size[0]):
        for j in range(j0, j1, size[1]):
            g = cell_of(s, i, j, PH, PW, size)
            at += cell[1, g]
            cell[0, g] = cell[1, g] = at - cell[1, g]
    for q in range(home.size):
        m = cell[1, home[q]]
        key[m] = old_key[q]
        for f in range(3):
            slot[f, m] = old_slot[f, q]
        for f in range(3):
            spot[f, m] = old_spot[f, q]
        cell[1, home[q]] = m + 1


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
                    high[i * width + j] = NEAR + FALL * (best - 1) if best > 1 else np.inf
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
    slot[2, m] = 1 / norm if norm > 0 else 0.0


@jit
def fill(
    index, value, s, D, mask, weights, norms, by_position, sh, sw, rows, columns, PH, PW, begin, count, key, slot, spot
):
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
            if spot.size:
                spot[0, m], spot[1, m], spot[2, m] = i, j, index[q] % K
            set_slot(
                D, mask, weights, norms, s, s * PH * PW if by_position else -1, i, j, sh, sw, PW, index[q] % K, m, slot
            )
        count[t] += 1


@part
def descend(
    s, i0, i1, j0, j1, r, corner, atoms, patch, mask, sh, sw, width, PH, PW, size, positive, passes, turns, enough,
    slot, spot, cell, tension,
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
                        at = corner + np.int64(spot[0, m]) * sh * width + np.int64(spot[1, m]) * sw
                        atom, inverse = np.int64(spot[2, m]) * length, slot[2, m]
                        u = old + np.float64(dot_patch(r, at, patch, atoms, atom)) * inverse
                        new = max(abs(u) - slot[1, m] * inverse, 0.0) if inverse > 0 else 0.0
                        if u < 0:
                            new = 0.0 if positive else -new
                        step = r.dtype.type(new - old)
                        if step != 0:
                            slot[0, m] = old + np.float64(step) if new != 0 else 0.0
                            add_patch(r, at, patch, atoms, atom, -step)
                            if mask.size:
                                for row in patch:
                                    for lane in range(8):
                                        r[at + row + lane] *= mask[at + row + lane]
                            worst = max(worst, abs(new - old) / (slot[1, m] * inverse)) if inverse > 0 else np.inf
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
    what, t, s, control, D, bank, taps, atoms, patch, gram, mask, masks, weights, by_position, norms, reach, sh, sw,
    rows, columns, PH, PW, size, positive, bh, bw, begin, count, key, slot, spot, cell, tension, r, theta, peak, grain,
    change, bound, flat, shrunk, sums, enough, tol, passes, turns, c, high, room,
):  # fmt: skip
    n_columns, x = columns.size - 1, flat if what == 1 else shrunk
    i, j = t // n_columns % (rows.size - 1), t % n_columns
    if what == 2:
        descend(
            s, rows[i], rows[i + 1], columns[j], columns[j + 1], flat, s * (flat.size // r.shape[0]), atoms, patch,
            masks, sh, sw, r.shape[3], PH, PW, size, positive, passes, turns, enough[s], slot, spot, cell, tension,
        )  # fmt: skip
    else:
        sweep(
            t, x, what == 4, r.shape[0], r.shape[2], r.shape[3], bank, taps, atoms, patch, D, mask, weights,
            by_position, norms, reach, sh, sw, rows, columns, PH, PW, size, positive, bh, bw, begin, count, key, slot,
            spot, cell, tension, peak, change, bound, sums, c.reshape(-1), high,
        )  # fmt: skip


def _act_on_line(
    what, t, s, control, D, bank, taps, atoms, patch, gram, mask, masks, weights, by_position, norms, reach, sh, sw,
    rows, columns, PH, PW, size, positive, bh, bw, begin, count, key, slot, spot, cell, tension, r, theta, peak, grain,
    change, bound, flat, shrunk, sums, enough, tol, passes, turns, c, high, room,
):  # fmt: skip
    j, start, x = t % (columns.size - 1), s * (flat.size // r.shape[0]), r if what == 1 else theta
    if what != 2:
        survey(
            t, s, columns[j], columns[j + 1], x, what == 4, bank, D, mask, weights, by_position, norms, sw, PW, size,
            positive, bw, 0.1 * tol, begin, count, key, slot, tension, peak, grain, sums, c, high,
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
    what, t, s, control, D, bank, taps, atoms, patch, gram, mask, masks, weights, by_position, norms, reach, sh, sw,
    rows, columns, PH, PW, size, positive, bh, bw, begin, count, key, slot, spot, cell, tension, r, theta, peak, grain,
    change, bound, flat, shrunk, sums, enough, tol, passes, turns, c, high, room,
):  # fmt: skip
    return _act_on_plane if isinstance(gram, types.NoneType) else _act_on_line


@jit
def work(
    leader, control, todo, y, scale, mask, masks, D, bank, taps, atoms, patch, gram, most, weights, by_position, sh, sw,
    rows, columns, PH, PW, size, grain, positive, bh, bw, norms, reach, begin, count, key, slot, spot, cell, tension,
    r, theta, peak, change, bound, flat, shrunk, sums, enough, tol, max_iter, rounds, passes, turns, result,
):  # fmt: skip
    """Minimise: the leader decides what comes next, and all workers take tiles from its list until it is done.

    ``control`` holds the ticket counter, the number of finished tiles and what to do.
    """
    K = D.shape[0]
    c, high = np.empty(((K + 3) // 4 * 4, most), r.dtype), np.empty(most + 16, r.dtype)
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
                r,
                theta,
            )
            if PH > 1 and state[0] == 2 and state[2] != turn and state[2] % EVERY == 0:
                for s in range(result.shape[1]):
                    if not result[2, s]:
                        conjugate(
                            s, STEPS, flat, atoms, patch, masks, sh, sw, r.shape[3], per_signal, y.shape[0], enough,
                            begin, count, slot, spot, tension,
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
                refresh(
                    t, y, scale, mask, D, atoms, sh, sw, rows, columns, PW, begin, count, key, slot, spot, r, theta,
                    change, sums,
                )  # fmt: skip
            elif what == 3:
                shrink(
                    t, control[4] > 1, y, scale, r, D.shape[2], D.shape[3], sh, sw, rows, columns, PH, PW, grain, peak,
                    theta, change, sums,
                )  # fmt: skip
            else:
                act(
                    what, t, s, control, D, bank, taps, atoms, patch, gram, mask, masks, weights, by_position, norms,
                    reach, sh, sw, rows, columns, PH, PW, size, positive, bh, bw, begin, count, key, slot, spot, cell,
                    tension, r, theta, peak, grain, change, bound, flat, shrunk, sums, enough, tol, passes, turns, c,
                    high, room,
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
    s, steps, flat, atoms, patch, masks, sh, sw, width, per_signal, n_signals, enough, begin, count, slot, spot,
    tension,
):  # fmt: skip
    """Minimise over the codes of signal s that are not zero, signs held, by conjugate gradients; keep what is lower."""
    cells, tense = tension.size // n_signals, 0
    for e in range(s * cells, (s + 1) * cells):
        tense += tension[e] > enough[s]
    if 16 * tense < cells:  # too few are left to work on all codes
        return
    t0, t1, size, length = s * per_signal, (s + 1) * per_signal, flat.size // n_signals, patch.size * 8
    start, n = s * size, 0
    which, place, atom = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64)
    for fill in range(2):
        n = 0
        for t in range(t0, t1):
            for m in range(begin[t], begin[t] + count[t]):
                if slot[0, m] != 0:
                    if fill:
                        place[n] = start + np.int64(spot[0, m]) * sh * width + np.int64(spot[1, m]) * sw
                        which[n], atom[n] = m, spot[2, m] * length
                    n += 1
        if not fill:
            which, place, atom = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
    old, g, d, sign = np.empty(n), np.empty(n), np.zeros(n), np.empty(n)
    r, image = flat[start : start + size], np.empty(size, flat.dtype)
    kept, before = r.copy(), 0.0
    for e in range(size):
        before += 0.5 * np.float64(r[e]) ** 2
    for q in range(n):
        old[q] = slot[0, which[q]]
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
def _keep(theta, r, s):
    """Copy a plane; an assignment of slices takes three seconds to compile, for the words of its errors."""
    for c in range(r.shape[1]):
        for i in range(r.shape[2]):
            for j in range(r.shape[3]):
                theta[s, c, i, j] = r[s, c, i, j]


@part
def plan(
    state, todo, n_rows, n_columns, begin, count, sums, PH, PW, size, rows, columns, tension, enough,
    tol, max_iter, rounds, result, r, theta,
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
            if PH > 1 and state[0] == 4 and t % per_signal == 0:
                _keep(theta, r, t // per_signal)  # the residual of the last sweep
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
    down, across = (PH + size[0] - 1) // size[0], (PW + size[1] - 1) // size[1]
    for row in range(i0 // size[0], (i1 - 1) // size[0] + 1):
        for g in range((s * down + row) * across + j0 // size[1], (s * down + row) * across + (j1 - 1) // size[1] + 1):
            if tension[g] > enough:
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
def move(begin, count, key, slot, spot, new_begin, new_key, new_slot, new_spot):
    """Copy the slots of all tiles to new places."""
    for t in range(count.size):
        shift = new_begin[t] - begin[t]
        for m in range(begin[t], begin[t] + count[t]):
            new_key[m + shift] = key[m]
            for f in range(3):
                new_slot[f, m + shift] = slot[f, m]
            for f in range(spot.shape[0]):
                new_spot[f, m + shift] = spot[f, m]


@jit
def take(begin, count, key, slot, unit, index, value):
    """Copy the codes that are not zero, times `unit`, to `index` and `value`; return how many each tile holds."""
    held, n = np.zeros(count.size, np.int64), 0
    for t in range(count.size):
        for m in range(begin[t], begin[t] + count[t]):
            if slot[0, m] != 0:
                if index.size:
                    index[n], value[n] = key[m], slot[0, m] * unit
                n += 1
                held[t] += 1
    return held
