"""The two ways in which kernels are compiled."""

from typing import Any

import numba

_FAST = {"contract", "reassoc", "nsz", "arcp"}  # not nnan, ninf: a NaN must stay visible
OPTIONS: Any = {"nogil": True, "fastmath": _FAST, "error_model": "numpy"}


def jit(function):
    """Compile `function` without the interpreter lock, cached on disk where the disk can be written."""
    try:
        return numba.njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # numba finds no folder for its cache
        return numba.njit(**OPTIONS)(function)


def part(function):
    """Compile `function` for the use of other kernels alone: without an entry from Python that takes half the time."""
    return numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **OPTIONS)(function)
