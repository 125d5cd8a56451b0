"""One layer of the denoising network on one image, forward and backward, at the cost of the non-zeros but for one step.

An image of C planes of H x W numbers is flat. The corner of the patch at position p = row * columns + column is ``row *
stride * W + column * stride``. The codes of a layer are a list: position p owns the entries ``start[p] : start[p + 1]``
of `index` (the atom, rising) and `value`. Atoms are (K, C, 64), flat, and for the dense correlations also (C, 64, K).
`shape` holds (C, H * W, W, rows, columns, stride, K).

Only the correlation of the residual with all atoms is dense. The rest, synthesis and all of the backward pass, touches
the non-zeros alone: where a code is zero its gradient is not needed.
"""

import numpy as np

from emdl._kernels import fast
from emdl._kernels.compiler import jit
from emdl._kernels.registers import POSITIONS, ROW, TAPS, add_atoms, add_patch, analyze_tile, read_patch, shrink
from emdl._kernels.vectors import lowest_bit

BLOCK = 32  # atoms that a dense correlation works on at once, in float32


def pack_atoms(atoms, stride):
    """Return the atoms of the analysis as `forward` wants them.

    Parameters
    ----------
    atoms : ndarray (T, K, C, 8, 8)
        Of each layer.
    stride : int
        Of the network.

    Returns
    -------
    ndarray (T, ...)
    """
    if stride == fast.STRIDE:
        return fast.filters(atoms)
    T, K = atoms.shape[:2]
    return np.ascontiguousarray(atoms.reshape(T, K, -1).transpose(0, 2, 1)).reshape(T, -1)


@jit
def encode_layer(image, atoms, theta, shape, old, new, scratch, spread):
    """Write ``shrink(z + atoms^T image, theta)`` to the list `new`, z being the list `old`; return the non-zeros.

    `atoms` is (C, 64, K), or for stride 2 what `fast.filters` makes of them. `scratch` has room for a row of positions
    and two more with K numbers each; `spread` for the result of `fast.samples` with stride 2.
    """
    C, plane, W, rows, columns, stride, K = shape
    start, index, value = old
    new_start, new_index, new_value = new
    block = 128 // scratch.itemsize
    if stride == fast.STRIDE:
        fast.samples(image, C * (plane // W), W, columns, spread)
        taps = _rows_of_samples(shape)
    else:
        taps = _taps(shape)
    filled = 0
    for row in range(rows):
        if stride == fast.STRIDE:
            _correlate_row_fast(spread, atoms, shape, taps, row, scratch)
        else:
            _correlate_row(image, atoms, shape, taps, row, scratch)
        for j in range(columns):
            p = row * columns + j
            new_start[p] = filled
            for e in range(start[p], start[p + 1]):
                scratch[j * K + index[e]] += value[e]
            for k in range(0, K, block):
                bits = shrink(scratch, j * K + k, theta, k)
                while bits:
                    atom = k + lowest_bit(bits)
                    bits &= bits - np.uint64(1)
                    new_index[filled] = atom
                    new_value[filled] = scratch[j * K + atom]
                    filled += 1
    new_start[rows * columns] = filled
    return filled


@jit
def _taps(shape):
    """Return where the numbers of a patch stand, from its corner on."""
    C, plane, W = shape[:3]
    taps = np.empty(C * TAPS, np.int64)
    for c in range(C):
        for i in range(TAPS):
            taps[c * TAPS + i] = c * plane + i // ROW * W + i % ROW
    return taps


@jit
def _correlate_row(image, atoms, shape, taps, row, scratch):
    """Write the correlations of a row of positions with all atoms to `scratch`."""
    _C, _plane, W, _rows, columns, stride, K = shape
    base = row * stride * W
    for first in range(0, columns, POSITIONS):
        j = min(first, columns - POSITIONS)
        for k in range(0, K, 128 // scratch.itemsize):
            analyze_tile(image, base + j * stride, stride, taps, atoms, k, K, scratch, j * K + k, K)


@jit
def _rows_of_samples(shape):
    """Return where the samples of the 16 filters of each channel begin, from those of the first on."""
    C, plane, W, _rows, columns = shape[:5]
    pitch = (columns + fast.OUTPUTS - 1) // fast.OUTPUTS * fast.POINTS
    taps = np.empty(C * 2 * ROW, np.int64)
    for c in range(C):
        for i in range(2 * ROW):
            taps[c * 2 * ROW + i] = (c * 2 * (plane // W) + i) * pitch
    return taps


@jit
def _correlate_row_fast(spread, atoms, shape, taps, row, scratch):
    """Do the same from the samples of `fast.samples`."""
    C, _plane, _W, _rows, columns, _stride, K = shape
    threes = (columns + fast.OUTPUTS - 1) // fast.OUTPUTS
    base = row * 2 * fast.STRIDE * threes * fast.POINTS
    n = 64 // scratch.itemsize
    for k in range(0, K, n):
        at = k * C * 2 * ROW * fast.POINTS
        for first in range(0, threes, fast.GROUP):
            j = min(first, threes - fast.GROUP)
            to = fast.OUTPUTS * j * K + k
            fast.correlate_group(spread, base + j * fast.POINTS, taps, atoms, at, scratch, to, K)


@jit
def add_codes(codes, atoms, shape, image):
    """Add ``atoms * z`` to an image, z being the list `codes`; `atoms` is (K, C, 64)."""
    C, plane, W, rows, columns, stride, _K = shape
    start, index, value = codes
    for row in range(rows):
        for j in range(columns):
            p = row * columns + j
            if start[p] < start[p + 1]:
                base = row * stride * W + j * stride
                for c in range(C):
                    add_atoms(
                        value,
                        index,
                        start[p],
                        start[p + 1],
                        atoms,
                        c * TAPS,
                        C * TAPS,
                        image,
                        c * plane + base,
                        W,
                    )


@jit
def add_correlations(codes, image, shape, gradient):
    """Add the correlation of an image with the list `codes` to the gradient of the atoms (K, C, 64)."""
    C, plane, W, rows, columns, stride, _K = shape
    start, index, value = codes
    for row in range(rows):
        for j in range(columns):
            p = row * columns + j
            base = row * stride * W + j * stride
            for c in range(C):
                add_patch(
                    value,
                    index,
                    start[p],
                    start[p + 1],
                    gradient,
                    c * TAPS,
                    C * TAPS,
                    image,
                    c * plane + base,
                    W,
                )


@jit
def pull_back(codes, image, atoms, shape, gradient, out):
    """Do as `add_correlations`, and write ``atoms^T image`` at the entries of the list to `out`."""
    C, plane, W, rows, columns, stride, _K = shape
    start, index, value = codes
    out[: start[rows * columns]] = 0
    for row in range(rows):
        for j in range(columns):
            p = row * columns + j
            base = row * stride * W + j * stride
            for c in range(C):
                read_patch(
                    value,
                    index,
                    start[p],
                    start[p + 1],
                    gradient,
                    c * TAPS,
                    C * TAPS,
                    image,
                    c * plane + base,
                    W,
                    atoms,
                    out,
                )


@jit
def join(start, index, g, later_start, later_index, g_later):
    """Add the gradient `g_later` of the codes after a layer to that of the codes before it, where both are there."""
    for p in range(start.size - 1):
        f, end = later_start[p], later_start[p + 1]
        for e in range(start[p], start[p + 1]):
            while f < end and later_index[f] < index[e]:
                f += 1
            if f < end and later_index[f] == index[e]:
                g[e] += g_later[f]


@jit
def add_threshold_gradient(index, value, g, gradient):
    """Subtract ``sign(value) * g`` from the gradient of the thresholds."""
    for e in range(g.size):
        gradient[index[e]] -= g[e] if value[e] > 0 else -g[e]


@jit
def forward(y, analysis, synthesis, theta, shape, start, index, value, residual, out, scratch):
    """Write the output of the network for one image to `out`; codes and residuals stay in the other arrays.

    Parameters
    ----------
    y : ndarray (C * H * W,)
        The image.
    analysis : ndarray (T, ...)
        Atoms of each layer as `pack_atoms` makes them.
    synthesis : ndarray (T, K * C * 64)
        Atoms of each layer but the first, the last row those that draw the output.
    theta : ndarray (T, K)
        Thresholds.
    shape : tuple
        As in the head of this module.
    start, index, value : ndarray (T + 1 or 2, ...)
        Codes after layer t - 1 are in row t modulo the number of rows; row 0 begins empty.
    residual : ndarray (T or 1, C * H * W)
        What layer t correlates with its atoms, numbered likewise.
    out : ndarray (C * H * W,)
        Overwritten.
    scratch : ndarray ((columns + 2) * K,)
        Overwritten.

    Returns
    -------
    int
        Number of non-zeros of the last codes.
    """
    rows = start.shape[0]
    start[0, :] = 0
    filled = 0
    threes = (shape[4] + fast.OUTPUTS - 1) // fast.OUTPUTS
    spread = np.empty(y.size // shape[2] * 2 * threes * fast.POINTS if shape[5] == fast.STRIDE else 0, y.dtype)
    for t in range(theta.shape[0]):
        here, there = t % rows, (t + 1) % rows
        old, new = (start[here], index[here], value[here]), (start[there], index[there], value[there])
        r = residual[t % residual.shape[0]]
        if t == 0:
            r[:] = y
        else:
            r[:] = 0
            add_codes(old, synthesis[t - 1], shape, r)
            for i in range(r.size):
                r[i] = y[i] - r[i]
        filled = encode_layer(r, analysis[t], theta[t], shape, old, new, scratch, spread)
    last = theta.shape[0] % rows
    out[:] = 0
    add_codes((start[last], index[last], value[last]), synthesis[-1], shape, out)
    return filled


@jit
def backward(e, atoms, synthesis, shape, start, index, value, residual, g_atoms, g_synthesis, g_theta, image, g):
    """Add the gradient of a loss to those of atoms and thresholds, after `forward` with room for all layers.

    Parameters
    ----------
    e : ndarray (C * H * W,)
        Gradient of the loss with respect to the output.
    atoms : ndarray (T, K * C * 64)
        Atoms of the analysis, in the order of those of the synthesis.
    synthesis, shape, start, index, value, residual
        As in `forward`.
    g_atoms, g_synthesis, g_theta : ndarray
        Gradients to add to, each in the shape of what it belongs to.
    image : ndarray (C * H * W,)
        Overwritten.
    g : ndarray (2, ...)
        Overwritten; as long as a row of `value`.
    """
    T = g_theta.shape[0]
    pull_back((start[T], index[T], value[T]), e, synthesis[T - 1], shape, g_synthesis[T - 1], g[T % 2])
    for t in range(T - 1, -1, -1):
        g_new = g[(t + 1) % 2]
        new = (start[t + 1], index[t + 1], g_new)
        count = start[t + 1, -1]
        add_threshold_gradient(index[t + 1], value[t + 1], g_new[:count], g_theta[t])
        add_correlations(new, residual[t], shape, g_atoms[t])
        if t > 0:
            image[:] = 0
            add_codes(new, atoms[t], shape, image)
            for i in range(image.size):
                image[i] = -image[i]
            g_old = g[t % 2]
            pull_back((start[t], index[t], value[t]), image, synthesis[t - 1], shape, g_synthesis[t - 1], g_old)
            join(start[t], index[t], g_old, start[t + 1], index[t + 1], g_new)
