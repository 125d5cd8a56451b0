"""The one way in which kernels are compiled."""

import numba

_FAST = {"contract", "reassoc", "nsz", "arcp"}  # not nnan, ninf: a NaN must stay visible


def jit(function):
    """Compile `function` without the interpreter lock, cached on disk where the disk can be written."""
    try:
        return numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")(function)
    except RuntimeError:  # numba finds no folder for its cache
        return numba.njit(nogil=True, fastmath=_FAST, error_model="numpy")(function)
