"""Arrays that another process can open: what travels to it is where they lie, not what they hold."""

import contextlib
import io
import mmap
import os
import pickle
import socket
import sys

import numpy as np

from emdl.errors import FileFormatError, InputError

LARGEST = 1 << 26  # bytes of what is not in a file that may travel all the same
_SMALL = 1 << 20  # bytes of an array that are not worth a look at where it comes from


def pack(value, name="y"):
    """Return a value as bytes that `unpack` turns into the same in another process.

    Memory-mapped arrays, however they were sliced, and data sets of HDF5 become the name of their file and the place in
    it. What opens itself again (Zarr, a Dask array, functions around these) does so.

    Parameters
    ----------
    value : object
        An array, or anything that holds arrays.
    name : str
        What to call it, for the messages.

    Returns
    -------
    bytes

    Raises
    ------
    InputError
        If more than 64 MB of it are in memory only, or it holds something that another process cannot open.
    """
    import cloudpickle

    class Packer(cloudpickle.Pickler):
        def reducer_override(self, item):
            found = _place_of(item, name)
            return super().reducer_override(item) if found is None else found

    buffer = io.BytesIO()
    try:
        Packer(buffer, pickle.HIGHEST_PROTOCOL).dump(value)
    except InputError:
        raise
    except (TypeError, ValueError, AttributeError, pickle.PicklingError) as error:
        raise InputError(
            f"{name} cannot be opened by another process ({error}); store it as .npy, raw binary, HDF5 or Zarr"
        ) from error
    _check_size(buffer.tell(), name)
    return buffer.getvalue()


def unpack(packed):
    """Return what `pack` was given, its files opened again.

    Parameters
    ----------
    packed : bytes
        From `pack`.

    Returns
    -------
    object

    Raises
    ------
    FileFormatError
        If a file cannot be seen from here; the message names the machine and the file.
    """
    return pickle.loads(packed)


def _place_of(item, name):
    """Return how to open an array again as `pickle` wants it, None for what needs no such care."""
    if isinstance(item, np.ndarray) and (isinstance(item, np.memmap) or item.nbytes > _SMALL):
        root = _mapped(item)
        if root is None:
            _check_size(item.nbytes, name)
            return None
        path, here, start = (os.path.abspath(root.filename), *map(_address, (item, root)))
        place = (path, os.path.getsize(path), root.offset + here - start, item.dtype, item.shape, item.strides)
        return _open_mapped, place
    h5py = sys.modules.get("h5py")
    if h5py is not None and isinstance(item, h5py.Dataset):
        return _open_dataset, (os.path.abspath(item.file.filename), item.name, item.shape, item.dtype)
    return None


def _mapped(array):
    """Return the memory map that an array is a view of, None if there is none of a file with a name."""
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap):
            return array if array.filename is not None and array.mode != "c" else None
        array = array.base
    return None


def _address(array):
    return array.__array_interface__["data"][0]


def _check_size(size, name):
    if size > LARGEST:
        raise InputError(
            f"{size / 1e6:,.0f} MB of {name} are in the memory of this process, and data do not travel from here to "
            "the workers: store them in a file that all workers see, np.save('y.npy', y), and hand over "
            "np.load('y.npy', mmap_mode='r'), a data set of HDF5, a Zarr array or a Dask array"
        )


def _open_mapped(path, size, offset, dtype, shape, strides):
    """Return a view of a file as it was in the process that packed it."""
    with seen(path):
        found = os.path.getsize(path)
        if found < size:
            raise FileFormatError(
                f"{path} has {found:,} bytes on {socket.gethostname()} and {size:,} where the fit was started: it is "
                "not the same file"
            )
        return np.ndarray(shape, dtype, np.memmap(path, np.uint8, "r"), offset, strides)


def _open_dataset(path, name, shape, dtype):
    """Return a data set of an HDF5 file."""
    import h5py

    with seen(path):
        found = h5py.File(path, "r").get(name)
        if found is None or found.shape != shape or found.dtype != dtype:
            raise FileFormatError(
                f"{path} on {socket.gethostname()} holds no data set {name} of shape {shape} and type {dtype}"
            )
        return found


@contextlib.contextmanager
def seen(path):
    """Return a context that turns the error of a file which cannot be opened into one that names the machine."""
    try:
        yield
    except FileFormatError:
        raise
    except OSError as error:
        raise FileFormatError(
            f"the worker on {socket.gethostname()} cannot read {path} ({error.strerror or error}); put the file where "
            "all workers see it under this name"
        ) from error
