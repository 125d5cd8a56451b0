"""Layers of the unrolled encoder on dense codes, by matrix products: what is cheaper where few codes are zero.

The patches of a signal are the columns of a matrix (C h w, positions), a few neighbouring positions at a time, so that
the product of a dictionary with codes, or of codes with patches, is one call of BLAS in the first-level cache, too
small for BLAS to use threads of its own: those come from `parallel_map`, over pieces that do not depend on their
number. Signals are planes (C, H, W), codes (K, positions).
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from emdl._kernels.compiler import jit
from emdl.backend import parallel_map

_PRODUCT = 2**18  # multiplications in one call of BLAS: it takes threads of its own for more
_PIECES = 16  # of a signal
_CODES = 2**18  # in one piece of a loop over codes: long against the cost of handing it to a thread


@jit
def synthesize_piece(z, flat, piece, columns, sizes, strides, chunk, out):
    """Add what the codes (K, P) at positions rows i0 ... i1, columns j0 ... j1 make to their part `out` of a signal."""
    i0, i1, j0, j1 = piece
    C, h, w = sizes
    sh, sw = strides
    codes, patches = np.zeros((len(z), chunk), z.dtype), np.empty((len(flat), chunk), z.dtype)
    for i in range(i0, i1):
        for j in range(j0, j1, chunk):
            n = min(chunk, j1 - j)
            take_codes(z, i * columns + j, n, codes)
            np.dot(flat, codes, patches)
            for c in range(C):
                for a in range(h):
                    for b in range(w):
                        line = out[c, (i - i0) * sh + a, (j - j0) * sw + b :]
                        patch = patches[(c * h + a) * w + b]
                        for q in range(n):
                            line[q * sw] += patch[q]


@jit
def correlate_piece(z, r, piece, columns, sizes, strides, chunk, total):
    """Add codes (K, P) times patches of a signal, at the positions of `synthesize_piece`, to `total` (K, C h w)."""
    i0, i1, j0, j1 = piece
    C, h, w = sizes
    sh, sw = strides
    codes, patches = np.zeros((len(z), chunk), z.dtype), np.zeros((total.shape[1], chunk), z.dtype)
    part = np.empty(total.shape, z.dtype)
    for i in range(i0, i1):
        for j in range(j0, j1, chunk):
            n = min(chunk, j1 - j)
            take_codes(z, i * columns + j, n, codes)
            for c in range(C):
                for a in range(h):
                    for b in range(w):
                        line = r[c, i * sh + a, j * sw + b :]
                        patch = patches[(c * h + a) * w + b]
                        for q in range(n):
                            patch[q] = line[q * sw]
            np.dot(codes, patches.T, part)
            for k in range(len(part)):
                for e in range(part.shape[1]):
                    total[k, e] += np.float64(part[k, e])


@jit
def take_codes(z, start, n, out):
    """Write n neighbouring codes of each atom to `out`, and zeros after them."""
    for k in range(len(z)):
        out[k, :n] = z[k, start : start + n]
        out[k, n:] = 0


@jit
def shrink_rows(w, c, before, low, high, step, beta, z):
    """Write the codes z = shrink(w + step c) to `z`, z + beta (z - before) to `w`, and return how many are not 0."""
    count = 0
    for k in range(len(w)):
        at, grad, old, new, a, b = w[k], c[k], before[k], z[k], low[k], high[k]
        for p in range(at.size):
            u = at[p] + step * grad[p]
            inner = a if u < a else u  # NaN stays NaN
            code = u - (b if inner > b else inner)  # (2)
            new[p] = code
            at[p] = code + beta * (code - old[p])
        count += np.count_nonzero(new)
    return count


@jit
def mix_codes(z, before, beta, w):
    """Write z + beta (z - before) to `w`."""
    for k in range(len(w)):
        out, new, old = w[k], z[k], before[k]
        for p in range(out.size):
            out[p] = new[p] + beta * (new[p] - old[p])


@jit
def gate_rows(g_z, z, g_u, g_theta):
    """Write g_z [z != 0] to `g_u`, and take sum sign(z) g_u from `g_theta` (K,)."""
    for k in range(len(z)):
        codes, given, out, total = z[k], g_z[k], g_u[k], 0.0
        for p in range(codes.size):
            code, g = codes[p], given[p]
            g = g if code != 0 else np.float32(0)
            out[p] = g
            total += np.float64(-g if code < 0 else g)
        g_theta[k] -= total


@jit
def return_rows(g_u, c, g_next, step, ahead, back):
    """Replace g_u by the gradient of z_{t-1}, and g_next by this layer's share of that of z_{t-2}, by (3)."""
    for k in range(len(g_u)):
        g, grad, later = g_u[k], c[k], g_next[k]
        for p in range(g.size):
            g_w = g[p] - step * grad[p]
            g[p] = later[p] + ahead * g_w
            later[p] = -back * g_w


def over_rows(kernel, *arrays):
    """Return what a kernel returns for pieces of the rows of arrays (n, K, ...), signal after signal, by threads.

    Parameters
    ----------
    kernel : callable
        Called with a few rows of each array.
    *arrays : ndarray (n, K, ...)
        Codes, or numbers of each atom of each signal.

    Returns
    -------
    list
    """
    n, K, *rest = arrays[0].shape
    each = max(1, _CODES // math.prod(rest))
    pieces = [(i, slice(k, k + each)) for i in range(n) for k in range(0, K, each)]
    return parallel_map(lambda piece: kernel(*(x[piece] for x in arrays)), pieces)


def synthesize(z, D, shape, stride):
    """Return D z.

    Parameters
    ----------
    z : ndarray (n, K, P)
        Codes.
    D : ndarray (K, C, *s)
        Dictionary.
    shape : tuple of int
        (n, C, *S), of the signals.
    stride : tuple of int
        Along each axis.

    Returns
    -------
    ndarray (n, C, *S)
    """
    out = np.zeros(shape, D.dtype)
    grid = _Grid.of(shape, D.shape, stride)
    flat = np.ascontiguousarray(D.reshape(len(D), -1).T)
    (C, h, w), (sh, sw) = grid.sizes, grid.strides

    def part(task):
        i, (i0, i1, j0, j1) = task
        made = np.zeros((C, (i1 - i0 - 1) * sh + h, (j1 - j0 - 1) * sw + w), D.dtype)
        synthesize_piece(z[i], flat, task[1], grid.columns, grid.sizes, grid.strides, _chunk(flat.size, j1 - j0), made)
        return made

    tasks = list(itertools.product(range(len(z)), grid.pieces()))
    signals = out.reshape(grid.planes)
    for (i, (i0, _, j0, _)), made in zip(tasks, parallel_map(part, tasks), strict=True):
        signals[i, :, i0 * sh : i0 * sh + made.shape[1], j0 * sw : j0 * sw + made.shape[2]] += made
    return out


def correlate(r, z, D_shape, stride):
    """Return corr(r, z), the sum over signals and positions of codes times patches.

    Parameters
    ----------
    r : ndarray (n, C, *S)
        Signals.
    z : ndarray (n, K, P)
        Codes.
    D_shape : tuple of int
        (K, C, *s).
    stride : tuple of int
        Along each axis.

    Returns
    -------
    ndarray (K, C, *s) of float64
    """
    grid = _Grid.of(r.shape, D_shape, stride)
    planes, size = r.reshape(grid.planes), (D_shape[0], math.prod(grid.sizes))

    def part(task):
        i, piece = task
        total = np.zeros(size)
        correlate_piece(
            z[i],
            planes[i],
            piece,
            grid.columns,
            grid.sizes,
            grid.strides,
            _chunk(math.prod(size), piece[3] - piece[2]),
            total,
        )
        return total

    return sum(parallel_map(part, itertools.product(range(len(z)), grid.pieces()))).reshape(D_shape)


def _chunk(size, width):
    """Return how many positions to take at once for a dictionary of so many numbers, evenly on `width` positions."""
    most = max(8, _PRODUCT // size // 8 * 8)
    return -(-width // (8 * -(-width // most))) * 8


@dataclass(frozen=True)
class _Grid:
    """Signals as planes (n, C, H, W), and the positions of patches (C, h, w) on them."""

    planes: tuple
    sizes: tuple
    strides: tuple
    rows: int
    columns: int

    @classmethod
    def of(cls, shape, D_shape, stride):
        (H, W), (h, w), (sh, sw) = (1, *shape[2:])[-2:], (1, *D_shape[2:])[-2:], (1, *stride)[-2:]
        return cls((*shape[:2], H, W), (D_shape[1], h, w), (sh, sw), (H - h) // sh + 1, (W - w) // sw + 1)

    def pieces(self):
        """Return (first row, end, first column, end) of pieces of the positions, whatever the number of threads."""
        if self.rows == 1:
            each = max(1024, -(-self.columns // _PIECES))
            return [(0, 1, j, min(j + each, self.columns)) for j in range(0, self.columns, each)]
        each = -(-self.rows // _PIECES)
        return [(i, min(i + each, self.rows), 0, self.columns) for i in range(0, self.rows, each)]
