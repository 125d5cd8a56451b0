"""One atom against the samples below it, as the vector instructions that numba's own vectoriser does not find.

A patch is read in rows of 8 numbers: row q of the patch with its corner at `base` starts at ``base + rows[q]`` of the
flat signal, and at ``8 q`` of the atom. Atoms whose width is no multiple of 8 have zeros behind, so rows may reach past
their end. Nothing is checked: the caller makes sure that every row lies inside its array.
"""

import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from emdl._kernels.compiler import part

ROW = 8
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
        n = ROW
        while n > 1:
            n //= 2
            low, high = (
                builder.shuffle_vector(
                    total,
                    ir.Constant(total.type, ir.Undefined),
                    ir.Constant(ir.VectorType(ir.IntType(32), n), list(part)),
                )
                for part in (range(n), range(n, 2 * n))
            )
            total = builder.fadd(low, high, flags=_FAST)
        return builder.extract_element(total, ir.Constant(ir.IntType(32), 0))

    return signal.dtype(signal, base, rows, atoms, at), generate


@part
def add_patch(signal, base, rows, atoms, at, weight):
    """Add `weight` times the atom whose numbers start at ``atoms[at]`` to the patch."""
    for q in range(rows.size):
        place, there = base + rows[q], at + ROW * q
        for lane in range(ROW):
            signal[place + lane] += weight * atoms[there + lane]
