"""File formats of recordings: what each stores, as it is stored.

Nothing is pickled or unpickled; `.npy` and raw binary are memory-mapped, HDF5 and what Neo reads are read when sliced.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from emdl import storage
from emdl.errors import FileFormatError, InputError, InputTypeError
from emdl.spikes.lazy import Stored

RAW_SUFFIXES = (".dat", ".bin", ".raw")
HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf")
NWB_SUFFIX = ".nwb"
KNOWN = (".npy", ".npz", *RAW_SUFFIXES, *HDF5_SUFFIXES, NWB_SUFFIX)
DATA_UNIT = "data unit"
_WRITER = {".npy": "save", ".npz": "savez"}
_GROWING_S = 0.2  # a file whose last sample is not whole is looked at again after this


@dataclass(frozen=True)
class Content:
    """What a file holds.

    Attributes
    ----------
    data : array with one or two axes
        As stored, or in uV where the file says how to get there.
    fs : object or None
        Sampling rate as stored, unchecked; None if the file does not say.
    layout : {"channels-first", "samples-first"} or None
        Which axis comes first; None if the format does not say.
    unit : str
        Of the data.
    positions : ndarray (C, 2) or None
        Places of the channels, um.
    start_s : float
        Time of the first sample, s.
    joints : tuple of int
        Samples at which a new segment begins, after a pause of unknown length.
    """

    data: Any
    fs: Any = None
    layout: str | None = None
    unit: str = DATA_UNIT
    positions: np.ndarray | None = None
    start_s: float = 0.0
    joints: tuple = ()


def check_file(path):
    """Return the ending of the name of an existing, non-empty file or folder.

    Parameters
    ----------
    path : Path
        The file, or the folder of a recording system.

    Returns
    -------
    str
        In lower case, with the dot; one of `KNOWN`, or what Neo or SpikeInterface may know.

    Raises
    ------
    FileFormatError
        If the file is missing or empty.
    """
    if not path.exists():
        raise FileFormatError(f"{path} does not exist")
    if path.is_file() and path.stat().st_size == 0:
        raise FileFormatError(f"{path} is empty (0 bytes)")
    return path.suffix.lower()


def load(path, suffix, *, key=None, series=None, dtype=None, n_channels=None, fs=None):
    """Return what is stored in a file.

    Parameters
    ----------
    path : Path
        The file.
    suffix : str
        Its ending, from `check_file`.
    key : str, optional
        Name of the array in ``.npz``, path of the data set in HDF5.
    series : str, optional
        Which of several recordings in one file or folder: the electrical series of NWB, the stream of Neo.
    dtype : str or dtype, optional
        Type of one sample of raw binary.
    n_channels : int, optional
        Channels of raw binary.
    fs : float, optional
        Only asked whether it is there: raw binary needs one.

    Returns
    -------
    Content

    Raises
    ------
    FileFormatError
        If the file is damaged, lacks the array, or is of an unknown format.
    InputError
        If something needed is not given, or something given does not fit the format.
    InputTypeError
        If the array holds text or Python objects.
    """
    spikeglx = suffix == ".bin" and path.with_suffix(".meta").is_file() and dtype is None
    if suffix not in KNOWN or path.is_dir() or spikeglx:
        from emdl.spikes import external

        _leave_out(key, "key (--key) names an array in .npz or HDF5", path)
        return external.load(path, series)
    if suffix == NWB_SUFFIX and key is None:
        from emdl.spikes import nwb

        return nwb.load(path, series)
    _leave_out(series, "series (--series) chooses among the recordings of NWB or of a recording system", path)
    if suffix in RAW_SUFFIXES:
        return Content(_load_raw(path, key, dtype, n_channels, fs))
    if suffix in (*HDF5_SUFFIXES, NWB_SUFFIX):
        return Content(*_load_hdf5(path, key))
    if suffix == ".npy":
        _leave_out(key, "key (--key) names an array in .npz or HDF5", path)
    with open(path, "rb") as file:
        magic = file.read(6)
    if magic[:2] != b"PK" if suffix == ".npz" else magic != b"\x93NUMPY":
        raise FileFormatError(f"{path.name} is not a {suffix} file; write it with numpy.{_WRITER[suffix]}")
    if suffix == ".npz":
        return Content(*_load_npz(path, key))
    try:
        return Content(np.load(path, mmap_mode="r", allow_pickle=False))
    except ValueError as error:
        if "object" in str(error).lower():  # NumPy's word for an array that only pickle could read
            raise InputTypeError(f"{path.name} holds Python objects; save the numbers as one plain array") from error
        raise


def _leave_out(option, what, path):
    if option is not None:
        raise InputError(f"{what}, but {path.name} is neither; leave it out")


def _load_npz(path, key):
    wanted = key or "data"
    arrays, held = storage.read_npz(path, (wanted, "fs"))
    if wanted not in arrays:
        raise FileFormatError(_no_such_key(path.name, wanted, held))
    return arrays[wanted], arrays.get("fs")


def _load_hdf5(path, key):
    import h5py

    file, wanted, names = open_hdf5(path), key or "data", []
    file.visititems(lambda name, item: names.append(f"/{name}") if isinstance(item, h5py.Dataset) else None)
    if f"/{wanted.strip('/')}" not in names:  # links are not among them, and not followed
        file.close()
        raise FileFormatError(_no_such_key(path.name, wanted, names))
    found = storage.plain_dataset(file, wanted)
    if h5py.check_string_dtype(found.dtype) is not None:
        raise InputTypeError(f"{found.name} in {path.name} holds text; wanted real numbers")
    rate = found.attrs.get("fs")
    if rate is None and "fs" in found.parent:
        rate = storage.read_array(found.parent, "fs")
    return Stored(found), rate


def open_hdf5(path):
    """Return an HDF5 file opened for reading; it stays open as long as its data sets are held.

    Raises
    ------
    FileFormatError
        If it is none, or so damaged that the HDF5 library does not survive it.
    """
    import h5py

    storage.look_through(path)
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if "unable to lock file" in str(error):
            raise FileFormatError(f"{path.name} is open in a program that writes to it; close it there") from error
        raise FileFormatError(f"{path.name} is damaged or no HDF5 file: {error}") from error


def _no_such_key(name, wanted, keys):
    if not keys:
        return f"{name} holds no arrays"
    return f"{name} has no array {wanted!r}; it holds {', '.join(keys)}: choose one, for instance --key {keys[0]}"


def _load_raw(path, key, dtype, n_channels, fs):
    """Map raw binary as (N, C), samples interleaved; `_channels_first` turns it round."""
    _leave_out(key, "key (--key) names an array in .npz or HDF5", path)
    needed = {"dtype (--dtype int16)": dtype, "n_channels (--channels 4)": n_channels, "fs (--fs 30000)": fs}
    missing = [option for option, value in needed.items() if value is None]
    if missing:
        raise InputError(f"{path.name} is raw binary and says nothing about itself; give {', '.join(missing)}")
    try:
        dtype = np.dtype(dtype)
    except TypeError as error:
        raise InputTypeError(f"dtype (--dtype) {dtype!r} is unknown; wanted int16, float32 or another type") from error
    if n_channels < 1:
        raise InputError(f"n_channels (--channels) must be at least 1, got {n_channels}")
    if dtype.hasobject or dtype.itemsize == 0:
        raise InputTypeError(f"dtype (--dtype) {dtype} cannot be read from raw binary; wanted real numbers")
    frame = dtype.itemsize * n_channels
    size = _whole_frames(path, frame, f"{n_channels} x {dtype}")
    return np.memmap(path, dtype=dtype, mode="r", shape=(size // frame, n_channels))


def _whole_frames(path, frame, what):
    """Return the size of a file in whole frames of `frame` bytes; only a file that grows may end within one."""
    size = path.stat().st_size
    if size % frame:
        time.sleep(_GROWING_S)
        if path.stat().st_size == size:
            raise FileFormatError(
                f"{path.name} has {size} bytes, no whole number of samples of {frame} bytes ({what}): "
                f"{size % frame} bytes remain; check --dtype and --channels"
            )
    if size < frame:
        raise FileFormatError(f"{path.name} has {size} bytes, less than one sample of {frame} bytes ({what})")
    return size - size % frame
