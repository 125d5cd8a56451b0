"""From the CUDA sources beside this file to kernels that can be launched."""

import functools
import importlib.resources

import numpy as np

_NAMES = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}


def source(name):
    """Return the text of a CUDA source of this package, ``planes`` or ``layers``.

    Parameters
    ----------
    name : str
        File name without its ending.

    Returns
    -------
    str
    """
    return importlib.resources.files(__package__).joinpath(f"{name}.cu").read_text(encoding="utf-8")


@functools.cache
def compiled(cupy, name, dtype):
    """Return the compiled source `name` for arrays of `dtype`; CuPy keeps what it compiled on disk too.

    Parameters
    ----------
    cupy : module
        CuPy.
    name : str
        Source.
    dtype : dtype
        float32 or float64.

    Returns
    -------
    cupy.RawModule
    """
    return cupy.RawModule(code=source(name), options=("-std=c++17", f"-DREAL={_NAMES[dtype]}"))


def launch(cupy, name, dtype, kernel, grid, threads, arguments, shared=0):
    """Launch a kernel on the current device and stream.

    Parameters
    ----------
    cupy : module
        CuPy.
    name : str
        Source.
    dtype : dtype
        Of the arrays.
    kernel : str
        Name of the kernel.
    grid : tuple of int
        Blocks along x, y, z.
    threads : int
        Of a block.
    arguments : iterable
        Contiguous arrays, and NumPy scalars of exactly the types that the kernel takes.
    shared : int
        Bytes of dynamic shared memory.
    """
    compiled(cupy, name, dtype).get_function(kernel)(grid, (threads,), tuple(arguments), shared_mem=shared)
