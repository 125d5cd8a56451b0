"""What lives on a GPU: choosing one, moving arrays to it, fitting work into its memory, sharing work among several.

CuPy is imported only where a caller asks for a GPU by name.
"""

import importlib
import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from emdl.backend import array_module
from emdl.errors import EmdlError, InputError

_LOG = logging.getLogger(__name__)
_SHARE = 0.8  # of the free memory that one batch may take; the rest is for what a pool cannot reuse

INSTALL = "pip install 'emdl[cuda12]' (or 'emdl[cuda13]' for CUDA 13) on a machine with an NVIDIA GPU and its driver"

DRIVER = "install the driver of the NVIDIA GPU, so that nvidia-smi lists it, and look at CUDA_VISIBLE_DEVICES"


class DeviceError(EmdlError, RuntimeError):
    """A GPU was asked for that is not there, or does not hold the work."""


def find_cupy():
    """Return CuPy, ready for use.

    Returns
    -------
    module

    Raises
    ------
    DeviceError
        If CuPy is not installed or does not load, or there is no CUDA device or driver; the message says which, and
        what to do.
    """
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        raise DeviceError(f"CuPy is missing ({_one_line(error)}); {INSTALL}") from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise DeviceError(f"CuPy is installed but finds no CUDA device ({_one_line(error)}); {DRIVER}") from error
    if not count:
        raise DeviceError(f"CuPy is installed but there is no CUDA device; {DRIVER}")
    return cupy


def choose(device):
    """Return the array module of a device by name, and a sentence that says what was taken.

    Parameters
    ----------
    device : {"cpu", "cuda", "auto"}
        ``cuda`` is an error where there is none; ``auto`` takes it where there is one, and says what it took.

    Returns
    -------
    xp : module
        ``numpy`` or ``cupy``.
    sentence : str

    Raises
    ------
    InputError
        If there is no such name.
    DeviceError
        If ``cuda`` was asked for and is not there.
    """
    if device not in ("cpu", "cuda", "auto"):
        raise InputError(f"device is {device!r}, wanted cpu, cuda or auto")
    if device == "cpu":
        return np, "computing on the CPU"
    try:
        cupy = find_cupy()
    except DeviceError as error:
        if device == "cuda":
            raise
        return np, f"computing on the CPU: {error}"
    name = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    return cupy, f"computing on {name}"


def to_host(x):
    """Return an array as NumPy's.

    Parameters
    ----------
    x : array
        NumPy or CuPy.

    Returns
    -------
    ndarray
        `x` itself if it is one.
    """
    return x if array_module(x) is np else x.get()


def in_pieces(function, n, bytes_each, like):
    """Return ``[function(start, stop), ...]`` over consecutive pieces of n signals that fit into the free memory.

    Where memory runs out nevertheless, the piece is halved and tried again.

    Parameters
    ----------
    function : callable
        Called with the first signal of a piece, and the first after it.
    n : int
        Number of signals.
    bytes_each : float
        Memory that one signal takes while it is worked on.
    like : array
        Of the module that will be used; with NumPy there is one piece.

    Returns
    -------
    list

    Raises
    ------
    DeviceError
        If the memory does not hold one signal.
    """
    xp = array_module(like)
    if xp is np:
        return [function(0, n)]
    results, start, size = [], 0, max(1, min(n, int(_SHARE * free_bytes(xp) / max(bytes_each, 1))))
    while start < n:
        stop = min(start + size, n)
        try:
            results.append(function(start, stop))
            start = stop
            continue
        except xp.cuda.memory.OutOfMemoryError as error:
            if stop - start == 1:
                raise DeviceError(
                    f"one signal needs about {bytes_each / 2**30:.2g} GiB, more than the device has free; "
                    "cut the signals into shorter ones, or compute on the CPU"
                ) from error
        xp.get_default_memory_pool().free_all_blocks()  # here the failed attempt holds its arrays no longer
        size = (stop - start) // 2
        _LOG.info("out of device memory: %d signals at a time from here on", size)
    return results


def free_bytes(cupy):
    """Return the memory that can be had on the current device, with what CuPy's pool holds unused.

    Parameters
    ----------
    cupy : module
        CuPy.

    Returns
    -------
    int
    """
    return cupy.cuda.Device().mem_info[0] + cupy.get_default_memory_pool().free_bytes()


def sum_over_devices(function, arrays, *, devices=None):
    """Return the sum of ``function(*parts)``, each device of this machine working on its own part of the signals.

    Whatever an M-step needs is a sum over signals, so this is all that several devices have to share. The parts and the
    order of the sum are fixed by the number of devices.

    Parameters
    ----------
    function : callable
        Called once for each part, with the parts as arrays on one device; returns a tuple of arrays of fixed shapes.
    arrays : sequence of ndarray
        With one entry per signal, on the host.
    devices : sequence of int, optional
        Numbers of the devices; by default all.

    Returns
    -------
    tuple of ndarray
        On the host.

    Raises
    ------
    DeviceError
        If there is no CUDA device.
    """
    cupy = find_cupy()
    devices = range(cupy.cuda.runtime.getDeviceCount()) if devices is None else devices
    cuts = [np.array_split(a, min(len(devices), len(a))) for a in arrays]

    def work(device, *parts):
        with cupy.cuda.Device(device):
            return [to_host(total) for total in function(*map(cupy.asarray, parts))]

    with ThreadPoolExecutor(len(cuts[0])) as pool:
        sums = list(pool.map(work, devices[: len(cuts[0])], *cuts))
    return tuple(sum(parts[1:], parts[0]) for parts in zip(*sums, strict=True))


def _one_line(error):
    return " ".join(str(error).split())[:200]
