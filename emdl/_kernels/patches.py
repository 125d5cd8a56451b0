"""One atom against the samples below it, as the vector instructions that numba's own vectoriser does not find.

A patch is read in rows of 8 numbers: row q of the patch with its corner at `base` starts at ``base + rows[q]`` of the
flat signal, and at ``8 q`` of the atom. Atoms whose width is no multiple of 8 have zeros behind, so rows may reach past
their end. Nothing is checked: the caller makes sure that every row lies inside its array.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

ROW = 8  # numbers of an atom read together
STRIP = 16  # positions looked at together
_FAST = ("contract", "reassoc", "nsz", "arcp")
_INT = ir.IntType(64)


def pack_patches(D, height, width):
    """Return atoms (K, C, h, w) as flat rows of 8, and where the rows start in signals (C, height, width)."""
    K, C, h, w = D.shape
    atoms = np.zeros((K, C, h, -(-w // ROW) * ROW), D.dtype)
    atoms[..., :w] = D
    c, a, b = np.meshgrid(np.arange(C), np.arange(h), np.arange(0, w, ROW), indexing="ij")
    return atoms.reshape(-1), ((c * height + a) * width + b).ravel()


def _vector(builder, data, index, vector, size):
    value = builder.load(builder.bitcast(builder.gep(data, [index]), vector.as_pointer()))
    value.align = size
    return value


def _splat(builder, value, vector):
    empty, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.IntType(32), 0)
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(builder.insert_element(empty, value, first), empty, lanes)


def _halves(builder, vector):
    n = vector.type.count // 2
    empty = ir.Constant(vector.type, ir.Undefined)
    return [
        builder.shuffle_vector(vector, empty, ir.Constant(ir.VectorType(ir.IntType(32), n), list(lanes)))
        for lanes in (range(n), range(n, 2 * n))
    ]


@intrinsic
def dot_patch(typingctx, signal, base, rows, atoms, at):
    """Return the inner product of the patch and the atom whose numbers start at ``atoms[at]``."""

    def generate(context, builder, signature, args):
        kind = signature.args[0]
        size = kind.dtype.bitwidth // 8
        number = context.get_data_type(kind.dtype)
        vector = ir.VectorType(number, ROW)
        x, d, offsets = (context.make_array(signature.args[i])(context, builder, args[i]) for i in (0, 3, 2))
        totals = [cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * ROW)) for _ in range(2)]

        def add(q, total):
            place = builder.add(args[1], builder.load(builder.gep(offsets.data, [q])))
            there = builder.add(args[4], builder.shl(q, ir.Constant(_INT, 3)))
            product = builder.fmul(
                _vector(builder, x.data, place, vector, size),
                _vector(builder, d.data, there, vector, size),
                flags=_FAST,
            )
            builder.store(builder.fadd(builder.load(total), product, flags=_FAST), total)

        with cgutils.for_range(builder, builder.lshr(offsets.nitems, ir.Constant(_INT, 1))) as loop:
            q = builder.shl(loop.index, ir.Constant(_INT, 1))
            add(q, totals[0])
            add(builder.add(q, ir.Constant(_INT, 1)), totals[1])
        with builder.if_then(builder.trunc(offsets.nitems, ir.IntType(1))):
            add(builder.sub(offsets.nitems, ir.Constant(_INT, 1)), totals[0])
        total = builder.fadd(builder.load(totals[0]), builder.load(totals[1]), flags=_FAST)
        while total.type.count > 1:
            total = builder.fadd(*_halves(builder, total), flags=_FAST)
        return builder.extract_element(total, ir.Constant(ir.IntType(32), 0))

    return signal.dtype(signal, base, rows, atoms, at), generate


@intrinsic
def add_patch(typingctx, signal, base, rows, atoms, at, weight):
    """Add `weight` times the atom whose numbers start at ``atoms[at]`` to the patch, in the precision of the signal."""

    def generate(context, builder, signature, args):
        x, d, offsets = (context.make_array(signature.args[i])(context, builder, args[i]) for i in (0, 3, 2))
        size, narrow = (signature.args[i].dtype.bitwidth // 8 for i in (0, 3))
        vector = ir.VectorType(context.get_data_type(signature.args[0].dtype), ROW)
        stored = ir.VectorType(context.get_data_type(signature.args[3].dtype), ROW)
        factor = _splat(builder, args[5], vector)
        with cgutils.for_range(builder, offsets.nitems) as loop:
            place = builder.add(args[1], builder.load(builder.gep(offsets.data, [loop.index])))
            there = builder.add(args[4], builder.shl(loop.index, ir.Constant(_INT, 3)))
            atom = _vector(builder, d.data, there, stored, narrow)
            if size != narrow:
                atom = builder.fpext(atom, vector)
            product = builder.fmul(factor, atom, flags=_FAST)
            value = builder.fadd(_vector(builder, x.data, place, vector, size), product, flags=_FAST)
            pointer = builder.bitcast(builder.gep(x.data, [place]), vector.as_pointer())
            builder.store(value, pointer).align = size
        return context.get_dummy_value()

    return types.void(signal, types.int64, rows, atoms, types.int64, signal.dtype), generate


def pack_groups(D, scale):
    """Return atoms (K, C, h, w), each times its `scale`, as `correlate_group` reads them: 4 numbers for each tap."""
    K, taps = len(D), D[0].size
    bank = np.zeros((-(-K // 4) * 4, taps), D.dtype)
    bank[:K] = D.reshape(K, taps) * scale[:, None]
    return bank.reshape(-1, 4, taps).transpose(0, 2, 1).reshape(-1)


@intrinsic
def correlate_group(typingctx, signal, base, taps, bank, at, hidden, sign, out, to, high, top):
    """Correlate 4 atoms with the signal at 16 neighbouring positions; return the largest number.

    Tap i at the first position is ``signal[base + taps[i]]``, its weights in the 4 atoms ``bank[at + 4 i:][:4]``. The
    numbers (4, 16) go to ``out[to:]``: absolute values, or with `sign` correlations as they are; 0 at the bits of
    `hidden`. The largest at each position is left in ``high[top:]`` if it is more than what stands there.
    """

    def generate(context, builder, signature, args):
        kind = signature.args[0]
        size = kind.dtype.bitwidth // 8
        lanes = 64 // size
        vector = ir.VectorType(context.get_data_type(kind.dtype), lanes)
        bits, word = ir.VectorType(ir.IntType(8 * size), lanes), ir.IntType(lanes)
        arrays = [context.make_array(signature.args[i])(context, builder, args[i]) for i in (0, 2, 3, 7, 9)]
        x, offsets, d, o, h = arrays
        zero, vectors = ir.Constant(vector, [0.0] * lanes), range(16 // lanes)
        totals = [[[cgutils.alloca_once_value(builder, zero) for _ in vectors] for _ in range(4)] for _ in range(2)]

        def add(i, totals):
            place = builder.add(args[1], builder.load(builder.gep(offsets.data, [i])))
            there = builder.add(args[4], builder.shl(i, ir.Constant(_INT, 2)))
            places = [builder.add(place, ir.Constant(_INT, v * lanes)) for v in vectors]
            samples = [_vector(builder, x.data, each, vector, size) for each in places]
            for a in range(4):
                weight = builder.load(builder.gep(d.data, [builder.add(there, ir.Constant(_INT, a))]))
                weight = _splat(builder, weight, vector)
                for v in vectors:
                    product = builder.fmul(weight, samples[v], flags=_FAST)
                    builder.store(builder.fadd(builder.load(totals[a][v]), product, flags=_FAST), totals[a][v])

        with cgutils.for_range(builder, builder.lshr(offsets.nitems, ir.Constant(_INT, 1))) as loop:
            i = builder.shl(loop.index, ir.Constant(_INT, 1))
            add(i, totals[0])
            add(builder.add(i, ir.Constant(_INT, 1)), totals[1])
        with builder.if_then(builder.trunc(offsets.nitems, ir.IntType(1))):
            add(builder.sub(offsets.nitems, ir.Constant(_INT, 1)), totals[0])
        every, most = (1 << 8 * size) - 1, (1 << (8 * size - 1)) - 1
        kept = builder.select(args[6], ir.Constant(bits.element, every), ir.Constant(bits.element, most))
        kept, tops = _splat(builder, kept, bits), []
        for v in vectors:
            there = builder.add(args[10], ir.Constant(_INT, v * lanes))
            best = _vector(builder, h.data, there, vector, size)
            for a in range(4):
                value = builder.fadd(builder.load(totals[0][a][v]), builder.load(totals[1][a][v]), flags=_FAST)
                value = builder.bitcast(builder.and_(builder.bitcast(value, bits), kept), vector)
                shift = ir.Constant(_INT, 16 * a + v * lanes)
                hide = builder.trunc(builder.lshr(args[5], shift), word)
                hide = builder.bitcast(hide, ir.VectorType(ir.IntType(1), lanes))
                value = builder.select(hide, zero, value)
                there_a = builder.add(args[8], ir.Constant(_INT, 16 * a + v * lanes))
                pointer = builder.bitcast(builder.gep(o.data, [there_a]), vector.as_pointer())
                builder.store(value, pointer).align = size
                tops.append(value)
                best = builder.select(builder.fcmp_ordered(">", value, best), value, best)
            builder.store(best, builder.bitcast(builder.gep(h.data, [there]), vector.as_pointer())).align = size
        while len(tops) > 1:
            pairs = zip(tops[::2], tops[1::2], strict=True)
            tops = [builder.select(builder.fcmp_ordered(">", a, b), a, b) for a, b in pairs]
        top = tops[0]
        while top.type.count > 1:
            low, up = _halves(builder, top)
            top = builder.select(builder.fcmp_ordered(">", low, up), low, up)
        return builder.extract_element(top, ir.Constant(ir.IntType(32), 0))

    arguments = (signal, types.int64, taps, bank, types.int64, types.uint64, types.boolean, out, types.int64, high)
    return signal.dtype(*arguments, types.int64), generate
