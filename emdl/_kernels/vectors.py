"""Vector instructions for the inner loops that numba's own vectorizer does not find: patches of a signal times atoms.

A patch is read or written in rows of 8 numbers: row r of the patch with its corner at `base` starts at ``base +
rows[r]`` of a flat image, and at ``8 * r`` of an atom. Nothing is checked: the caller makes sure that every row lies
inside its array.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

ROW = 8  # numbers in one row of a patch
_FAST = ("contract", "reassoc", "nsz")
_INT = ir.IntType(64)


def lanes(dtype):
    """Return how many numbers of `dtype` one vector of 64 bytes holds."""
    return 64 // dtype.itemsize


def _pointer(context, builder, kind, array):
    return context.make_array(kind)(context, builder, array).data


def _load(builder, data, index, vector, itemsize):
    value = builder.load(builder.bitcast(builder.gep(data, [index]), vector.as_pointer()))
    value.align = itemsize
    return value


def _store(builder, value, data, index, vector, itemsize):
    builder.store(value, builder.bitcast(builder.gep(data, [index]), vector.as_pointer())).align = itemsize


def _splat(builder, value, vector):
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(
        one,
        ir.Constant(vector, ir.Undefined),
        ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count),
    )


def _multiply_add(builder, a, b, c):
    return builder.fadd(builder.fmul(a, b, flags=_FAST), c, flags=_FAST)


def _total(builder, vector):
    """Add up the numbers of a vector, halves onto halves."""
    n = vector.type.count
    while n > 1:
        n //= 2
        low, high = (
            builder.shuffle_vector(
                vector, ir.Constant(vector.type, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), n), list(at))
            )
            for at in (range(n), range(n, 2 * n))
        )
        vector = builder.fadd(low, high, flags=_FAST)
    return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))


def _row_vector(kind):
    number = ir.FloatType() if kind.dtype == types.float32 else ir.DoubleType()
    return ir.VectorType(number, ROW), kind.dtype.bitwidth // 8


@intrinsic
def read_rows(typingctx, image, base, rows, atoms, at, gradient, weight):
    """Return <atom, patch> and add `weight` times the patch to the atom's `gradient`."""

    def generate(context, builder, signature, args):
        kind = signature.args[0]
        vector, size = _row_vector(kind)
        x, d, g = (_pointer(context, builder, kind, args[i]) for i in (0, 3, 5))
        offsets = _pointer(context, builder, signature.args[2], args[2])
        count = context.make_array(signature.args[2])(context, builder, args[2]).nitems
        factor = _splat(builder, args[6], vector)
        total = cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * ROW))
        with cgutils.for_range(builder, count) as loop:
            place = builder.add(args[1], builder.load(builder.gep(offsets, [loop.index])))
            there = builder.add(args[4], builder.mul(loop.index, ir.Constant(_INT, ROW)))
            patch = _load(builder, x, place, vector, size)
            builder.store(
                _multiply_add(builder, patch, _load(builder, d, there, vector, size), builder.load(total)), total
            )
            _store(
                builder,
                _multiply_add(builder, patch, factor, _load(builder, g, there, vector, size)),
                g,
                there,
                vector,
                size,
            )
        return _total(builder, builder.load(total))

    return image.dtype(image, types.int64, rows, image, types.int64, image, image.dtype), generate


@intrinsic
def write_rows(typingctx, image, base, rows, atoms, at, weight):
    """Add `weight` times the atom to the patch."""

    def generate(context, builder, signature, args):
        kind = signature.args[0]
        vector, size = _row_vector(kind)
        x, d = (_pointer(context, builder, kind, args[i]) for i in (0, 3))
        offsets = _pointer(context, builder, signature.args[2], args[2])
        count = context.make_array(signature.args[2])(context, builder, args[2]).nitems
        factor = _splat(builder, args[5], vector)
        with cgutils.for_range(builder, count) as loop:
            place = builder.add(args[1], builder.load(builder.gep(offsets, [loop.index])))
            there = builder.add(args[4], builder.mul(loop.index, ir.Constant(_INT, ROW)))
            atom = _load(builder, d, there, vector, size)
            _store(
                builder,
                _multiply_add(builder, atom, factor, _load(builder, x, place, vector, size)),
                x,
                place,
                vector,
                size,
            )
        return context.get_dummy_value()

    return types.void(image, types.int64, rows, image, types.int64, image.dtype), generate


@intrinsic
def read_write_rows(typingctx, image, base, rows, atoms, at, gradient, weight, out, place, places, code):
    """Do as `read_rows`, and add `code` times the atom to the patch of `out` at `place`, whose rows are `places`."""

    def generate(context, builder, signature, args):
        kind = signature.args[0]
        vector, size = _row_vector(kind)
        x, d, g, o = (_pointer(context, builder, kind, args[i]) for i in (0, 3, 5, 7))
        offsets, others = (_pointer(context, builder, signature.args[i], args[i]) for i in (2, 9))
        count = context.make_array(signature.args[2])(context, builder, args[2]).nitems
        factor, value = (_splat(builder, args[i], vector) for i in (6, 10))
        total = cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * ROW))
        with cgutils.for_range(builder, count) as loop:
            here = builder.add(args[1], builder.load(builder.gep(offsets, [loop.index])))
            made = builder.add(args[8], builder.load(builder.gep(others, [loop.index])))
            there = builder.add(args[4], builder.mul(loop.index, ir.Constant(_INT, ROW)))
            patch, atom = _load(builder, x, here, vector, size), _load(builder, d, there, vector, size)
            builder.store(_multiply_add(builder, patch, atom, builder.load(total)), total)
            for data, index, factors, numbers in ((g, there, factor, patch), (o, made, value, atom)):
                changed = _multiply_add(builder, factors, numbers, _load(builder, data, index, vector, size))
                _store(builder, changed, data, index, vector, size)
        return _total(builder, builder.load(total))

    arguments = (
        image,
        types.int64,
        rows,
        image,
        types.int64,
        image,
        image.dtype,
        image,
        types.int64,
        rows,
        image.dtype,
    )
    return image.dtype(*arguments), generate


@intrinsic
def mix_rows(typingctx, out, x, y, z, b, c, base, rows):
    """Write the patch of ``x + b y + c z`` to `out`, row after row."""

    def generate(context, builder, signature, args):
        kind = signature.args[0]
        vector, size = _row_vector(kind)
        o, x, y, z = (_pointer(context, builder, kind, args[i]) for i in range(4))
        offsets = _pointer(context, builder, signature.args[7], args[7])
        count = context.make_array(signature.args[7])(context, builder, args[7]).nitems
        b, c = (_splat(builder, args[i], vector) for i in (4, 5))
        with cgutils.for_range(builder, count) as loop:
            place = builder.add(args[6], builder.load(builder.gep(offsets, [loop.index])))
            x_row, y_row, z_row = (_load(builder, data, place, vector, size) for data in (x, y, z))
            total = _multiply_add(builder, c, z_row, _multiply_add(builder, b, y_row, x_row))
            _store(builder, total, o, builder.mul(loop.index, ir.Constant(_INT, ROW)), vector, size)
        return context.get_dummy_value()

    return types.void(out, out, out, out, out.dtype, out.dtype, types.int64, rows), generate


@intrinsic
def clear_rows(typingctx, image, base, rows):
    """Set a patch to zero."""

    def generate(context, builder, signature, args):
        kind = signature.args[0]
        vector, size = _row_vector(kind)
        x, offsets = (_pointer(context, builder, signature.args[i], args[i]) for i in (0, 2))
        count = context.make_array(signature.args[2])(context, builder, args[2]).nitems
        with cgutils.for_range(builder, count) as loop:
            place = builder.add(args[1], builder.load(builder.gep(offsets, [loop.index])))
            _store(builder, ir.Constant(vector, [0.0] * ROW), x, place, vector, size)
        return context.get_dummy_value()

    return types.void(image, types.int64, rows), generate


@intrinsic
def correlate_tile(typingctx, image, base, taps, atoms, at, out):
    """Write the correlations of 4 atoms with 4 vectors of neighbouring positions to `out` (4, 4 lanes), flat.

    Tap i of the patch at position `base` is ``image[base + taps[i]]``, its weights in the 4 atoms ``atoms[at + 4 * i
    :][:4]``.
    """

    def generate(context, builder, signature, args):
        kind = signature.args[0]
        size = kind.dtype.bitwidth // 8
        vector = ir.VectorType(_row_vector(kind)[0].element, 64 // size)
        x, d, o = (_pointer(context, builder, kind, args[i]) for i in (0, 3, 5))
        offsets = _pointer(context, builder, signature.args[2], args[2])
        count = context.make_array(signature.args[2])(context, builder, args[2]).nitems
        zero = ir.Constant(vector, [0.0] * vector.count)
        totals = [[cgutils.alloca_once_value(builder, zero) for _ in range(4)] for _ in range(4)]
        with cgutils.for_range(builder, count) as loop:
            place = builder.add(args[1], builder.load(builder.gep(offsets, [loop.index])))
            there = builder.add(args[4], builder.mul(loop.index, ir.Constant(_INT, 4)))
            patches = [
                _load(builder, x, builder.add(place, ir.Constant(_INT, j * vector.count)), vector, size)
                for j in range(4)
            ]
            for i in range(4):
                weight = _splat(
                    builder, builder.load(builder.gep(d, [builder.add(there, ir.Constant(_INT, i))])), vector
                )
                for j in range(4):
                    builder.store(_multiply_add(builder, weight, patches[j], builder.load(totals[i][j])), totals[i][j])
        for i in range(4):
            for j in range(4):
                _store(
                    builder, builder.load(totals[i][j]), o, ir.Constant(_INT, (4 * i + j) * vector.count), vector, size
                )
        return context.get_dummy_value()

    return types.void(image, types.int64, taps, image, types.int64, image), generate


def _bits(builder, value, low, high, j):
    """Return the positions of vector j of a tile that are not within [low, high], as bits of the tile."""
    hit = builder.or_(builder.fcmp_unordered(">", value, high), builder.fcmp_unordered("<", value, low))
    word = builder.zext(builder.bitcast(hit, ir.IntType(value.type.count)), _INT)
    return builder.shl(word, ir.Constant(_INT, j * value.type.count))


@intrinsic
def outside(typingctx, x, at, low, high):
    """Return the bits of the positions among 4 vectors from ``x[at]`` on that are not within [low, high], or NaN."""

    def generate(context, builder, signature, args):
        kind = signature.args[0]
        size = kind.dtype.bitwidth // 8
        vector = ir.VectorType(_row_vector(kind)[0].element, 64 // size)
        data = _pointer(context, builder, kind, args[0])
        low, high = (_splat(builder, args[i], vector) for i in (2, 3))
        bits = ir.Constant(_INT, 0)
        for j in range(4):
            value = _load(builder, data, builder.add(args[1], ir.Constant(_INT, j * vector.count)), vector, size)
            bits = builder.or_(bits, _bits(builder, value, low, high, j))
        return bits

    return types.uint64(x, types.int64, x.dtype, x.dtype), generate


@intrinsic
def sum_tile(typingctx, x, at, y, there, out, low, high):
    """Write ``x[at:] + y[there:]`` to `out` for 4 vectors, set `y` to zero there, return bits as `outside`."""

    def generate(context, builder, signature, args):
        kind = signature.args[0]
        size = kind.dtype.bitwidth // 8
        vector = ir.VectorType(_row_vector(kind)[0].element, 64 // size)
        x, y, o = (_pointer(context, builder, kind, args[i]) for i in (0, 2, 4))
        low, high = (_splat(builder, args[i], vector) for i in (5, 6))
        bits = ir.Constant(_INT, 0)
        for j in range(4):
            move = ir.Constant(_INT, j * vector.count)
            there = builder.add(args[3], move)
            value = builder.fadd(
                _load(builder, x, builder.add(args[1], move), vector, size), _load(builder, y, there, vector, size)
            )
            _store(builder, ir.Constant(vector, [0.0] * vector.count), y, there, vector, size)
            _store(builder, value, o, move, vector, size)
            bits = builder.or_(bits, _bits(builder, value, low, high, j))
        return bits

    return types.uint64(x, types.int64, x, types.int64, x, x.dtype, x.dtype), generate


@intrinsic
def lowest_bit(typingctx, bits):
    """Return the number of the lowest bit that is set."""

    def generate(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate
