"""The layers (2) of the unrolled encoder and their backward pass (3), at the cost of the non-zeros.

A signal is cut into bands (of rows, or of samples where it has one axis); a kernel call works on one band. The samples
of a band are a flat image of C planes of `plane` numbers; the code positions of a band are one line, ``q = row * pitch
+ column``, whose last columns in each row are no positions. Tiles of 4 * lanes = ``1 << bits``
neighbouring q are worked on in turn. Within a tile
a code has the number ``k * TILE + (q - first q of the tile)``; layer t owns the entries ``offs[t - first, 0] : offs[t
- first, -1]`` of `index` and `value`, tile after tile. `frame` holds the numbers that describe a band, in the order of
`FRAME`.

Bands overlap: the first ``plane - shift`` samples of band b + 1 are the last ones of band b. Each band holds what its
own codes make; whoever needs the sum adds the overlaps of its neighbours, always in the same order.
"""

import numpy as np

from emdl._kernels.compiler import jit
from emdl._kernels.planes import correlate_atom
from emdl._kernels.vectors import (
    ROW,
    clear_rows,
    correlate_tile,
    lowest_bit,
    mix_rows,
    outside,
    read_rows,
    read_write_rows,
    sum_tile,
    write_rows,
)

FRAME = ("channels", "plane", "shift", "bits", "atom", "atoms", "pitch", "row_step", "sh", "sw", "width")


@jit
def corner(q, frame):
    """Return the first sample of the patch at position q of the line."""
    pitch, row_step, sw = frame[6], frame[7], frame[9]
    if row_step == pitch * sw:
        return q * sw
    return q * sw + q // pitch * (row_step - pitch * sw)


@jit
def add_neighbours(out, band, images, weight, frame):
    """Add `weight` times the images of the neighbours of a band, where they overlap with it."""
    C, plane, shift = frame[0], frame[1], frame[2]
    over = plane - shift
    if over > 0 and band > 0:
        other = images[band - 1]
        for c in range(C):
            for e in range(c * plane, c * plane + over):
                out[e] += weight * other[e + shift]
    if over > 0 and band + 1 < images.shape[0]:
        other = images[band + 1]
        for c in range(C):
            for e in range(c * plane, c * plane + over):
                out[e + shift] += weight * other[e]


@jit
def mix(out, band, x, images, s, t, c1, c2, frame):
    """Write ``x[band]`` plus c1 and c2 times what slots `s` and `t` (modulo 3) of `images` hold for this band."""
    first, second, start = images[s % 3, band], images[t % 3, band], x[band]
    for e in range(out.size):
        out[e] = start[e] + c1 * first[e] + c2 * second[e]
    if images.shape[1] > 1:
        add_neighbours(out, band, images[s % 3], c1, frame)
        add_neighbours(out, band, images[t % 3], c2, frame)


@jit
def split_phases(r, frame, out):
    """Copy an image to its sh x sw polyphase components, on which neighbouring positions are neighbouring samples."""
    C, plane, pitch, sh, sw, width = frame[0], frame[1], frame[6], frame[8], frame[9], frame[10]
    H = plane // width
    size = (H + sh - 1) // sh * pitch
    for c in range(C):
        for i in range(H):
            for b in range(sw):
                line = r[c * plane + i * width + b : c * plane + (i + 1) * width]
                start = ((c * sh + i % sh) * sw + b) * size + i // sh * pitch
                columns = (width - b + sw - 1) // sw
                part = out[start : start + columns]
                for j in range(columns):
                    part[j] = line[j * sw]


@jit
def add_layer(layer, offs, index, value, atoms, rows, frame, out):
    """Add what the codes of one layer of one band make."""
    tile, size = 1 << frame[3], frame[4]
    for number in range(offs.shape[1] - 1):
        for m in range(offs[layer, number], offs[layer, number + 1]):
            code = np.int64(index[m])
            q = number * tile + (code & (tile - 1))
            write_rows(out, corner(q, frame), rows, atoms, (code >> frame[3]) * size, value[m])


@jit
def draw(first, t, offs, index, value, atoms, rows, frame, out):
    """Write D z_t of one band; zeros for the layers before `first`."""
    out[:] = 0
    if t >= first:
        add_layer(t - first, offs, index, value, atoms, rows, frame, out)


@jit
def wipe(layer, offs, index, rows, frame, out):
    """Set to zero what the codes of one layer of one band have made."""
    tile = 1 << frame[3]
    for number in range(offs.shape[1] - 1):
        for m in range(offs[layer, number], offs[layer, number + 1]):
            q = number * tile + (np.int64(index[m]) & (tile - 1))
            clear_rows(out, corner(q, frame), rows)


@jit
def sort_codes(row, index, start, width, frame, number, order):
    """Write ``position * K + atom`` of the codes of one layer in one band, increasing, and where each stands.

    `row` is that layer's row of `offs`, `start` the first position of the band, `width` the positions in a row.
    """
    bits, K, pitch = frame[3], frame[5], frame[6]
    tile = 1 << bits
    place = np.empty(tile + 1, np.int64)
    for t in range(row.size - 1):
        place[:] = 0
        for m in range(row[t], row[t + 1]):
            place[(np.int64(index[m]) & (tile - 1)) + 1] += 1
        place[0] = row[t] - row[0]
        for j in range(tile):
            place[j + 1] += place[j]
        for m in range(row[t], row[t + 1]):
            code = np.int64(index[m])
            j = code & (tile - 1)
            q = t * tile + j
            number[place[j]] = (start + q // pitch * width + q % pitch) * K + (code >> bits)
            order[place[j]] = m
            place[j] += 1


@jit
def pack_codes(z, frame, row, index, value, count):
    """Append the non-zeros of dense codes (K, rows, columns) of a band, fill their row of `offs`, return the count."""
    bits, pitch = frame[3], frame[6]
    K, rows, columns = z.shape
    tile = 1 << bits
    row[0] = count
    for number in range(row.size - 1):
        for k in range(K):
            i, j = number * tile // pitch, number * tile % pitch
            for q in range(tile):
                if i < rows and j < columns and z[k, i, j] != 0:
                    index[count] = (k << bits) + q
                    value[count] = z[k, i, j]
                    count += 1
                j += 1
                if j == pitch:
                    i, j = i + 1, 0
        row[number + 1] = count
    return count


@jit
def correlate_codes(index, D, sh, sw, width, r, out):
    """Write <d_k, r> for the codes ``position * K + k`` of one signal (C, H, W)."""
    K = D.shape[0]
    for m in range(index.size):
        p = index[m] // K
        out[m] = correlate_atom(r, D, index[m] % K, p // width * sh, p % width * sw)


@jit
def keep(bits, buffer, at, code, low, high, step, index, value, count):
    """Append the codes of one atom in one tile, shrunk, and return the new count."""
    while bits != 0:
        j = lowest_bit(bits)
        bits &= bits - np.uint64(1)
        x = buffer[at + j]
        value[count] = step * (x - (high if x > high else low))  # (2)
        index[count] = code + j
        count += 1
    return count


@jit
def forward(
    t0, t1, first, ahead, back, step, band, y, images, r, phases, taps, analysis, synthesis, rows, low, high, valid,
    buffer, frame, offs, index, value,
):  # fmt: skip
    """Run the layers t0 ... t1 - 1 of one band; return the first layer for which `index` was too short, or t1."""
    tile, size, K = 1 << frame[3], frame[4], frame[5]
    strided = frame[8] * frame[9] > 1
    for t in range(t0, t1):
        layer = t - first
        mix(r, band, y, images, t - 1, t - 2, -ahead[t], back[t], frame)  # r_t = y - D w_t
        line = r
        if strided:
            split_phases(r, frame, phases)
            line = phases
        made = images[t % 3, band]
        made[:] = 0
        c1, c2 = ahead[t] / step, back[t] / step
        count = offs[layer - 1, offs.shape[1] - 1]
        offs[layer, 0] = count
        for number in range(offs.shape[1] - 1):
            if count + tile * K > index.size:
                return t
            a, a1 = offs[layer - 1, number], offs[layer - 1, number + 1]
            b, b1 = offs[layer - 2, number], offs[layer - 2, number + 1]
            for k in range(0, K, 4):
                correlate_tile(line, number * tile, taps, analysis, k * taps.size, buffer)
                start, end = k * tile, (k + 4) * tile
                while a < a1 and index[a] < end:
                    buffer[index[a] - start] += c1 * value[a]
                    a += 1
                while b < b1 and index[b] < end:
                    buffer[index[b] - start] -= c2 * value[b]
                    b += 1
                for i in range(min(4, K - k)):
                    bits = outside(buffer, i * tile, low[k + i], high[k + i]) & valid[number]
                    if bits != 0:
                        before = count
                        count = keep(
                            bits, buffer, i * tile, start + i * tile, low[k + i], high[k + i], step, index, value, count
                        )
                        for m in range(before, count):
                            q = number * tile + np.int64(index[m]) - start - i * tile
                            write_rows(made, corner(q, frame), rows, synthesis, (k + i) * size, value[m])
            offs[layer, number + 1] = count
    return t1


@jit
def gram_forward(
    t0, t1, first, ahead, back, step, b, gram, rows, reach, low, high, valid, quiet, total, w, buffer, frame, offs,
    index, value,
):  # fmt: skip
    """Run layers of a signal with one axis as `forward` does, by u / step = D^T y + (I / step - D^T D) w.

    Only tiles within reach of a non-zero are looked at, and those of which D^T y alone makes one (not `quiet`).
    """
    tile, K = 1 << frame[3], frame[5]
    tiles = offs.shape[1] - 1
    margin = reach * tile
    for t in range(t0, t1):
        layer = t - first
        count = offs[layer - 1, tiles]
        offs[layer, 0] = count
        for coming in range(tiles + reach):
            if coming < tiles:
                m0, m1 = offs[layer - 1, coming], offs[layer - 1, coming + 1]
                n0, n1 = offs[layer - 2, coming], offs[layer - 2, coming + 1]
                place = coming * tile + margin
                for m in range(n0, n1):
                    w[index[m]] = -back[t] * value[m]
                for m in range(m0, m1):
                    code = np.int64(index[m])
                    weight = w[code] + ahead[t] * value[m]
                    w[code] = 0
                    write_rows(
                        total, place + (code & (tile - 1)), rows, gram, (code >> frame[3]) * rows.size * ROW, weight
                    )
                for m in range(n0, n1):
                    code = np.int64(index[m])
                    if w[code] != 0:
                        write_rows(
                            total,
                            place + (code & (tile - 1)),
                            rows,
                            gram,
                            (code >> frame[3]) * rows.size * ROW,
                            w[code],
                        )
                        w[code] = 0
            number = coming - reach
            if number < 0:
                continue
            near, far = max(0, number - reach), min(tiles, number + reach + 1)
            touched = offs[layer - 1, near] < offs[layer - 1, far] or offs[layer - 2, near] < offs[layer - 2, far]
            if touched or not quiet[number]:
                if count + tile * K > index.size:
                    total[:] = 0
                    return t
                for k in range(K):
                    at = k * tiles * tile + number * tile
                    bits = sum_tile(
                        b, at, total, k * (tiles + 2 * reach) * tile + number * tile + margin, buffer, low[k], high[k]
                    )
                    bits &= valid[number]
                    if bits != 0:
                        count = keep(bits, buffer, 0, k * tile, low[k], high[k], step, index, value, count)
            offs[layer, number + 1] = count
        # what fell on the margins belongs to no position
        for k in range(K):
            line = total[k * (tiles + 2 * reach) * tile : (k + 1) * (tiles + 2 * reach) * tile]
            line[:margin] = 0
            line[margin + tiles * tile :] = 0
    return t1


@jit
def backward(
    t1, t0, stop, last, first, ahead, back, step, band, y, images, q, r, g, nothing, lean, in_order, dense,
    analysis, synthesis, rows, frame, offs, index, value, g_u, flat_a, flat_s, g_a, g_s, g_theta, g_y, g_step,
):  # fmt: skip
    """Go back through the layers t1, t1 - 1 ... t0 of one band, by (3), and add to the gradients.

    `g_u` (3, n) holds the gradients of u_t for the non-zeros of z_t in slot t modulo 3, `q` (3, n_bands, size) what
    the analysis dictionary makes of them, `images` likewise D z_t. Since (3) is linear in q, each non-zero meets each
    dictionary once. The layers before `stop` are constants: what they have to do with is the synthesis in the two
    layers after them.
    """
    tile, size = 1 << frame[3], frame[4]
    tiles = offs.shape[1] - 1
    for t in range(t1, t0 - 1, -1):
        layer = t - first
        c1, c2 = ahead[t + 1], -back[t + 2]  # zero beyond the last layer
        q1, q2, made = q[(t + 1) % 3, band], q[(t + 2) % 3, band], q[t % 3, band]
        v1, v2 = images[(t - 1) % 3, band], images[(t - 2) % 3, band]
        if not lean:
            mix(g, band, nothing, q, t + 1, t + 2, c1, c2, frame)
            mix(r, band, y, images, t - 1, t - 2, -ahead[t], back[t], frame)  # r_t = y - D w_t
            made[:] = 0
        here, next1, next2 = g_u[t % 3], g_u[(t + 1) % 3], g_u[(t + 2) % 3]
        origin = offs[layer, 0]
        for number in range(tiles):
            a = a1 = b = b1 = np.int64(0)
            if t < last:
                a0, a, a1 = offs[layer + 1, 0], offs[layer + 1, number], offs[layer + 1, number + 1]
                for m in range(a, a1):
                    dense[index[m]] = c1 * next1[m - a0]
            if t + 1 < last:
                b0, b, b1 = offs[layer + 2, 0], offs[layer + 2, number], offs[layer + 2, number + 1]
                for m in range(b, b1):
                    dense[index[m]] += c2 * next2[m - b0]
            for m in range(offs[layer, number], offs[layer, number + 1]):
                code = np.int64(index[m])
                k = code >> frame[3]
                place = corner(number * tile + (code & (tile - 1)), frame)
                patch, at = rows, place
                if lean:
                    mix_rows(g, nothing[band], q1, q2, c1, c2, place, rows)
                    mix_rows(r, y[band], v1, v2, -ahead[t], back[t], place, rows)
                    patch, at = in_order, np.int64(0)
                if t < stop:
                    read_rows(g, at, patch, synthesis, k * size, flat_s, -step * value[m])
                    continue
                slope = here[m - origin]
                if t < last:
                    slope = dense[code] - step * read_rows(g, at, patch, synthesis, k * size, flat_s, -step * value[m])
                    here[m - origin] = slope
                g_theta[k] -= np.float64(slope) if value[m] > 0 else -np.float64(slope)
                dot = read_write_rows(r, at, patch, analysis, k * size, flat_a, step * slope, made, place, rows, slope)
                g_step[band] += np.float64(slope) * np.float64(dot)
                if lean:
                    write_rows(g_y, place, rows, analysis, k * size, step * slope)
            for m in range(a, a1):
                dense[index[m]] = 0
            for m in range(b, b1):
                dense[index[m]] = 0
        for e in range(flat_a.size):
            g_a[e] += np.float64(flat_a[e])
            g_s[e] += np.float64(flat_s[e])
        flat_a[:] = 0
        flat_s[:] = 0
        if lean:
            if t + 2 <= last:
                wipe(t + 2 - first, offs, index, rows, frame, q2)
            if t - 1 >= first:
                wipe(t - 1 - first, offs, index, rows, frame, v1)
            if t - 3 >= first:
                add_layer(t - 3 - first, offs, index, value, synthesis, rows, frame, images[t % 3, band])
        else:
            for e in range(frame[0] * frame[1]):
                g_y[e] += step * made[e]
            draw(first, t - 3, offs, index, value, synthesis, rows, frame, images[t % 3, band])
