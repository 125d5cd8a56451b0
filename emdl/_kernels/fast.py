r"""Correlations at every second position by minimal filtering: three positions of a row with 6 products for 12.

Columns of an image are split by parity, so that an atom of 8 x 8 becomes 16 filters of 4 taps, and three neighbouring
positions want three neighbouring outputs of each. Those follow from 6 samples x and the filter g as ``A^T ((G g) * (B^T
x))`` [1]_, Toom's and Cook's scheme on the points 0, 1, -1, 2, -2 and infinity; products are summed over the 16 filters
before A^T is applied, once for three positions. The largest sum of absolute values in a row of B^T is 10, so rounding
grows by about that.

References
----------
.. [1] S. Winograd, Arithmetic complexity of computations, SIAM (1980), doi:10.1137/1.9781611970364; A. Lavin, S. Gray,
   Fast algorithms for convolutional neural networks, CVPR 2016, doi:10.1109/CVPR.2016.435.
"""

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from emdl._kernels.compiler import jit
from emdl._kernels.registers import (
    _constant,
    _data,
    _kind,
    _load,
    _multiply_add,
    _splat,
    _store,
)

STRIDE = 2  # that this is for
OUTPUTS = 3  # neighbouring positions that are computed at once
POINTS = 6
GROUP = 4  # of these threes: 24 sums, as many as there are registers for
_POINTS = (0, 1, -1, 2, -2)
_SCALE = (4, -6, -6, 24, 24, 1)  # moves factors from B^T to G, so that B^T holds whole numbers


def filters(atoms):
    """Return atoms as `correlate_group` wants them.

    Parameters
    ----------
    atoms : ndarray (T, K, C, 8, 8)
        K a multiple of the numbers in 64 bytes.

    Returns
    -------
    ndarray (T, K / n * C * 16 * 6 * n)
        For each n atoms, of each filter the 6 products with G, side by side; n fill 64 bytes.
    """
    T, K, C, _, _ = atoms.shape
    n = 64 // atoms.itemsize
    G = np.vander([*_POINTS], 4, increasing=True)
    G = np.concatenate([G, [[0, 0, 0, 1]]]) / np.array(_SCALE)[:, None]
    split = atoms.reshape(T, K // n, n, C, 8, 4, 2)
    made = np.einsum("fq,tbncaqp->tbcapfn", G, split, optimize=True)
    return np.ascontiguousarray(made.reshape(T, -1), atoms.dtype)


@jit
def samples(image, rows, width, columns, out):
    """Write ``B^T x`` for the samples of each row of an image to `out`: both parities, each three positions, 6 numbers.

    Parameters
    ----------
    image : ndarray (rows * width,)
        Rows, of all channels.
    rows, width : int
        How many there are, and of how many samples.
    columns : int
        Positions along a row.
    out : ndarray (rows * 2 * threes * 6,)
        Overwritten; threes is `columns` over 3, rounded up. What lies beyond the image counts as zero.
    """
    threes = (columns + OUTPUTS - 1) // OUTPUTS
    at = 0
    for row in range(rows):
        for parity in range(2):
            for three in range(threes):
                first = 2 * OUTPUTS * three + parity
                base = row * width + first
                if first + 10 < width:
                    a, b, c = image[base], image[base + 2], image[base + 4]
                    d, e, f = image[base + 6], image[base + 8], image[base + 10]
                else:
                    zero = image.dtype.type(0)
                    a, b, c, d, e = zero, zero, zero, zero, zero
                    f = zero
                    a = image[base] if first < width else zero
                    b = image[base + 2] if first + 2 < width else zero
                    c = image[base + 4] if first + 4 < width else zero
                    d = image[base + 6] if first + 6 < width else zero
                    e = image[base + 8] if first + 8 < width else zero
                out[at] = 4 * a - 5 * c + e
                out[at + 1] = (d + e) - 4 * (b + c)
                out[at + 2] = 4 * (b - c) + (e - d)
                out[at + 3] = 2 * (d - b) + (e - c)
                out[at + 4] = 2 * (b - d) + (e - c)
                out[at + 5] = 4 * b - 5 * d + f
                at += POINTS


@intrinsic
def correlate_group(typingctx, image, base, taps, atoms, at, out, to, pitch):
    """Write the correlations of 12 positions with a vector of atoms to `out`, a row per position.

    Filter i is applied to ``image[base + taps[i] :]``, a result of `samples`, its weights from ``atoms[at + i * 6 * n
    :]`` on. Row j of `out` starts at ``to + j * pitch``.
    """

    def generate(context, builder, signature, args):
        vector, size = _kind(signature.args[0])
        x, d, o = (_data(context, builder, signature.args[i], args[i]) for i in (0, 3, 5))
        offsets = _data(context, builder, signature.args[2], args[2])
        count = context.make_array(signature.args[2])(context, builder, args[2]).nitems
        zero = vector([0.0] * vector.count)
        sums = [[cgutils.alloca_once_value(builder, zero) for _ in range(POINTS)] for _ in range(GROUP)]
        with cgutils.for_range(builder, count) as loop:
            place = builder.add(args[1], builder.load(builder.gep(offsets, [loop.index])))
            there = builder.add(args[4], builder.mul(loop.index, _constant(POINTS * vector.count)))
            for i in range(POINTS):
                weights = _load(builder, d, builder.add(there, _constant(i * vector.count)), vector, size)
                for j in range(GROUP):
                    sample = builder.load(builder.gep(x, [builder.add(place, _constant(j * POINTS + i))]))
                    total = builder.load(sums[j][i])
                    builder.store(_multiply_add(builder, _splat(builder, sample, vector), weights, total), sums[j][i])
        place = args[6]
        for j in range(GROUP):
            for row in _outputs(builder, [builder.load(s) for s in sums[j]]):
                _store(builder, row, o, place, size)
                place = builder.add(place, args[7])
        return context.get_dummy_value()

    whole = types.int64
    return types.void(image, whole, taps, image, whole, image, whole, whole), generate


def _outputs(builder, m):
    """Return A^T m."""

    def plus(a, b):
        return builder.fadd(a, b, flags=("contract", "reassoc", "nsz"))

    def minus(a, b):
        return builder.fsub(a, b, flags=("contract", "reassoc", "nsz"))

    def times(a, number):
        return builder.fmul(a, a.type([float(number)] * a.type.count), flags=("contract", "reassoc", "nsz"))

    near, far = plus(m[1], m[2]), plus(m[3], m[4])
    return (
        plus(plus(m[0], near), far),
        plus(minus(m[1], m[2]), times(minus(m[3], m[4]), 2)),
        plus(plus(near, times(far, 4)), m[5]),
    )
