"""Counters that several threads share: numba has no atomic operations of its own."""

import os

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


def _place(context, builder, signature, args):
    array = context.make_array(signature.args[0])(context, builder, args[0])
    return builder.gep(array.data, [args[1]])


@intrinsic
def fetch_add(typingctx, counters, index, amount):
    """Add `amount` to a counter and return what it was before."""

    def generate(context, builder, signature, args):
        return builder.atomic_rmw("add", _place(context, builder, signature, args), args[2], "seq_cst")

    return types.int64(counters, types.int64, types.int64), generate


@intrinsic
def load(typingctx, counters, index):
    """Return a counter, and see what was written before it was stored."""

    def generate(context, builder, signature, args):
        return builder.load_atomic(_place(context, builder, signature, args), "seq_cst", 8)

    return types.int64(counters, types.int64), generate


@intrinsic
def store(typingctx, counters, index, value):
    """Set a counter, after all that was written before."""

    def generate(context, builder, signature, args):
        builder.store_atomic(args[2], _place(context, builder, signature, args), "seq_cst", 8)
        return context.get_constant(types.int64, 0)

    return types.int64(counters, types.int64, types.int64), generate


@intrinsic
def give_way(typingctx):
    """Let another thread have this core, where the system offers that."""

    def generate(context, builder, signature, args):
        if not hasattr(os, "sched_yield"):
            return context.get_constant(types.int32, 0)
        kind = ir.FunctionType(ir.IntType(32), [])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])

    return types.int32(), generate
