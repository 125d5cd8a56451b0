"""Inner loops of the denoising network, written as LLVM vectors: patches of 8 x 8 numbers that stay in registers.

A patch is read in 8 rows of 8 numbers from a flat image: row r of the patch with its corner at `base` starts at ``base
+ r * width``. An atom holds the 64 numbers in the same order, side by side. Nothing is checked: the caller makes sure
that all that is read and written lies inside its array.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

ROW = 8  # numbers in a row of a patch, and rows of a patch
TAPS = ROW * ROW
POSITIONS = 12  # positions that `analyze_tile` works on at once
_VECTORS = 2  # of atoms, for each of them: 24 sums, as many as there are registers for
_FAST = ("contract", "reassoc", "nsz")
_INT = ir.IntType(64)
_ZERO = ir.Constant(ir.IntType(32), 0)


def _kind(array):
    """Return the type of a vector of 64 bytes of an array's numbers, and the bytes of one number."""
    number = ir.FloatType() if array.dtype == types.float32 else ir.DoubleType()
    size = array.dtype.bitwidth // 8
    return ir.VectorType(number, 64 // size), size


def _data(context, builder, kind, array):
    return context.make_array(kind)(context, builder, array).data


def _load(builder, data, index, vector, size):
    value = builder.load(builder.bitcast(builder.gep(data, [index]), vector.as_pointer()))
    value.align = size
    return value


def _store(builder, value, data, index, size):
    builder.store(value, builder.bitcast(builder.gep(data, [index]), value.type.as_pointer())).align = size


def _splat(builder, value, vector):
    empty = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(empty, value, _ZERO)
    return builder.shuffle_vector(one, empty, ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None))


def _shuffle(builder, a, b, places):
    kind = ir.VectorType(ir.IntType(32), len(places))
    return builder.shuffle_vector(a, b, ir.Constant(kind, list(places)))


def _multiply_add(builder, a, b, c):
    return builder.fadd(builder.fmul(a, b, flags=_FAST), c, flags=_FAST)


def _constant(number):
    return ir.Constant(_INT, number)


def _total(builder, vector):
    """Add up the numbers of a vector, halves onto halves."""
    n = vector.type.count
    while n > 1:
        n //= 2
        low, high = (_shuffle(builder, vector, vector, at) for at in (range(n), range(n, 2 * n)))
        vector = builder.fadd(low, high, flags=_FAST)
    return builder.extract_element(vector, _ZERO)


def _read_patch(builder, image, base, width, vector, size):
    """Load a patch into registers."""
    half = ir.VectorType(vector.element, ROW)
    rows = []
    for _ in range(ROW):
        rows.append(_load(builder, image, base, half, size))
        base = builder.add(base, width)
    if vector.count == ROW:
        return rows
    return [_shuffle(builder, rows[i], rows[i + 1], range(2 * ROW)) for i in range(0, ROW, 2)]


def _add_patch(builder, image, base, width, patch, size):
    """Add a patch in registers to an image."""
    rows = patch
    if patch[0].type.count != ROW:
        rows = [_shuffle(builder, x, x, half) for x in patch for half in (range(ROW), range(ROW, 2 * ROW))]
    for row in rows:
        _store(builder, builder.fadd(row, _load(builder, image, base, row.type, size), flags=_FAST), image, base, size)
        base = builder.add(base, width)


def _code(context, builder, signature, args, where, entry):
    """Return the atom that belongs to an entry of `index`, the argument number `where`."""
    number = builder.load(builder.gep(_data(context, builder, signature.args[where], args[where]), [entry]))
    return builder.sext(number, _INT)


@intrinsic
def analyze_tile(typingctx, image, base, step, taps, atoms, at, pitch, out, to, out_pitch):
    """Write the correlations of 12 positions with two vectors of atoms to `out`, a row per position.

    Position j has its corner at ``base + j * step``; tap i of it is ``image[corner + taps[i]]``, its weights in the
    atoms ``atoms[at + i * pitch :]``. Row j of `out` starts at ``to + j * out_pitch``.
    """

    def generate(context, builder, signature, args):
        vector, size = _kind(signature.args[0])
        x, d, o = (_data(context, builder, signature.args[i], args[i]) for i in (0, 4, 7))
        offsets = _data(context, builder, signature.args[3], args[3])
        count = context.make_array(signature.args[3])(context, builder, args[3]).nitems
        zero = ir.Constant(vector, [0.0] * vector.count)
        totals = [[cgutils.alloca_once_value(builder, zero) for _ in range(_VECTORS)] for _ in range(POSITIONS)]
        with cgutils.for_range(builder, count) as loop:
            place = builder.add(args[1], builder.load(builder.gep(offsets, [loop.index])))
            there = builder.add(args[5], builder.mul(loop.index, args[6]))
            weights = [
                _load(builder, d, builder.add(there, _constant(i * vector.count)), vector, size)
                for i in range(_VECTORS)
            ]
            for j in range(POSITIONS):
                sample = _splat(builder, builder.load(builder.gep(x, [place])), vector)
                for i in range(_VECTORS):
                    builder.store(_multiply_add(builder, sample, weights[i], builder.load(totals[j][i])), totals[j][i])
                place = builder.add(place, args[2])
        place = args[8]
        for j in range(POSITIONS):
            for i in range(_VECTORS):
                there = builder.add(place, _constant(i * vector.count))
                _store(builder, builder.load(totals[j][i]), o, there, size)
            place = builder.add(place, args[9])
        return context.get_dummy_value()

    whole = types.int64
    return types.void(image, whole, whole, taps, image, whole, whole, image, whole, whole), generate


@intrinsic
def shrink(typingctx, x, at, bound, there):
    """Shrink two vectors of numbers from ``x[at]`` on by ``bound[there:]``; return as bits which are not zero then."""

    def generate(context, builder, signature, args):
        vector, size = _kind(signature.args[0])
        data, bounds = (_data(context, builder, signature.args[i], args[i]) for i in (0, 2))
        bits = _constant(0)
        for j in range(_VECTORS):
            move = _constant(j * vector.count)
            at = builder.add(args[1], move)
            value = _load(builder, data, at, vector, size)
            limit = _load(builder, bounds, builder.add(args[3], move), vector, size)
            over = builder.fcmp_unordered(">", value, limit)
            under = builder.fcmp_unordered("<", value, builder.fneg(limit))
            taken = builder.select(under, builder.fneg(limit), builder.select(over, limit, value))
            _store(builder, builder.fsub(value, taken), data, at, size)
            word = builder.zext(builder.bitcast(builder.or_(over, under), ir.IntType(vector.count)), _INT)
            bits = builder.or_(bits, builder.shl(word, move))
        return bits

    return types.uint64(x, types.int64, x, types.int64), generate


@intrinsic
def add_atoms(typingctx, value, index, first, end, atoms, at, pitch, image, base, width):
    """Add ``sum value[e] * atom index[e]``, e = first ... end - 1, to a patch; atom k stands at ``at + k * pitch``."""

    def generate(context, builder, signature, args):
        vector, size = _kind(signature.args[0])
        values, d, x = (_data(context, builder, signature.args[i], args[i]) for i in (0, 4, 7))
        zero = ir.Constant(vector, [0.0] * vector.count)
        totals = [cgutils.alloca_once_value(builder, zero) for _ in range(TAPS // vector.count)]
        with cgutils.for_range_slice(builder, args[2], args[3], _constant(1)) as (entry, _):
            there = builder.add(args[5], builder.mul(_code(context, builder, signature, args, 1, entry), args[6]))
            weight = _splat(builder, builder.load(builder.gep(values, [entry])), vector)
            for i, total in enumerate(totals):
                atom = _load(builder, d, builder.add(there, _constant(i * vector.count)), vector, size)
                builder.store(_multiply_add(builder, weight, atom, builder.load(total)), total)
        _add_patch(builder, x, args[8], args[9], [builder.load(total) for total in totals], size)
        return context.get_dummy_value()

    whole = types.int64
    return types.void(value, index, whole, whole, value, whole, whole, value, whole, whole), generate


@intrinsic
def add_patch(typingctx, value, index, first, end, gradient, at, pitch, image, base, width):
    """Add ``value[e]`` times the patch of `image` to the gradient of atom index[e], e = first ... end - 1."""

    def generate(context, builder, signature, args):
        vector, size = _kind(signature.args[0])
        values, g, x = (_data(context, builder, signature.args[i], args[i]) for i in (0, 4, 7))
        patch = _read_patch(builder, x, args[8], args[9], vector, size)
        with cgutils.for_range_slice(builder, args[2], args[3], _constant(1)) as (entry, _):
            there = builder.add(args[5], builder.mul(_code(context, builder, signature, args, 1, entry), args[6]))
            weight = _splat(builder, builder.load(builder.gep(values, [entry])), vector)
            for i, part in enumerate(patch):
                place = builder.add(there, _constant(i * vector.count))
                _store(
                    builder,
                    _multiply_add(builder, weight, part, _load(builder, g, place, vector, size)),
                    g,
                    place,
                    size,
                )
        return context.get_dummy_value()

    whole = types.int64
    return types.void(value, index, whole, whole, value, whole, whole, value, whole, whole), generate


@intrinsic
def read_patch(typingctx, value, index, first, end, gradient, at, pitch, image, base, width, atoms, out):
    """Do as `add_patch`, and add <atom index[e], patch> to ``out[e]``."""

    def generate(context, builder, signature, args):
        vector, size = _kind(signature.args[0])
        values, g, x, d, o = (_data(context, builder, signature.args[i], args[i]) for i in (0, 4, 7, 10, 11))
        patch = _read_patch(builder, x, args[8], args[9], vector, size)
        with cgutils.for_range_slice(builder, args[2], args[3], _constant(1)) as (entry, _):
            there = builder.add(args[5], builder.mul(_code(context, builder, signature, args, 1, entry), args[6]))
            weight = _splat(builder, builder.load(builder.gep(values, [entry])), vector)
            total = None
            for i, part in enumerate(patch):
                place = builder.add(there, _constant(i * vector.count))
                changed = _multiply_add(builder, weight, part, _load(builder, g, place, vector, size))
                _store(builder, changed, g, place, size)
                product = builder.fmul(part, _load(builder, d, place, vector, size), flags=_FAST)
                total = product if total is None else builder.fadd(total, product, flags=_FAST)
            where = builder.gep(o, [entry])
            builder.store(builder.fadd(_total(builder, total), builder.load(where), flags=_FAST), where)
        return context.get_dummy_value()

    whole = types.int64
    return types.void(value, index, whole, whole, value, whole, whole, value, whole, whole, value, value), generate
