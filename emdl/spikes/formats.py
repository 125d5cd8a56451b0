"""File formats of recordings: what each stores, as it is stored.

Nothing is pickled or unpickled, and `.npy` and raw binary are memory-mapped.
"""

import zipfile
import zlib

import numpy as np

from emdl.errors import FileFormatError, InputError, InputTypeError

RAW_SUFFIXES = (".dat", ".bin", ".raw")
HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf", ".nwb")
_WRITER = {".npy": "save", ".npz": "savez"}


def check_file(path):
    """Return the ending of the name of an existing, non-empty file of a known format.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    str
        In lower case, with the dot.

    Raises
    ------
    FileFormatError
        If the file is missing, a folder, empty or of an unknown format.
    """
    known = (".npy", ".npz", *RAW_SUFFIXES, *HDF5_SUFFIXES)
    if not path.exists():
        raise FileFormatError(f"{path} does not exist")
    if path.is_dir():
        raise FileFormatError(f"{path} is a folder; give a recording ({', '.join(known)})")
    suffix = path.suffix.lower()
    if suffix not in known:
        raise FileFormatError(
            f"{path.name} has no known ending; wanted {', '.join(known)} (raw binary: rename it .dat)"
        )
    if path.stat().st_size == 0:
        raise FileFormatError(f"{path} is empty (0 bytes)")
    return suffix


def load(path, suffix, *, key=None, dtype=None, n_channels=None, fs=None):
    """Return the stored array as it is, and the stored sampling rate or None.

    Parameters
    ----------
    path : Path
        The file.
    suffix : str
        Its ending, from `check_file`.
    key : str, optional
        Name of the array in ``.npz``, path of the data set in HDF5.
    dtype : str or dtype, optional
        Type of one sample of raw binary.
    n_channels : int, optional
        Channels of raw binary.
    fs : float, optional
        Only asked whether it is there: raw binary needs one.

    Returns
    -------
    data : ndarray or memmap
        Raw binary has the shape (N, C), samples interleaved.
    fs : object or None
        As stored, unchecked.

    Raises
    ------
    FileFormatError
        If the file is damaged or lacks the array.
    InputError
        If something needed is not given, or something given does not fit the format.
    InputTypeError
        If the array holds text or Python objects.
    """
    if suffix in RAW_SUFFIXES:
        return _load_raw(path, key, dtype, n_channels, fs), None
    if suffix in HDF5_SUFFIXES:
        return _load_hdf5(path, key)
    if suffix == ".npy" and key is not None:
        raise InputError(f"key (--key) names an array in .npz or HDF5, but {path.name} holds one array; leave it out")
    with open(path, "rb") as file:
        magic = file.read(6)
    if magic[:2] != b"PK" if suffix == ".npz" else magic != b"\x93NUMPY":
        raise FileFormatError(f"{path.name} is not a {suffix} file; write it with numpy.{_WRITER[suffix]}")
    try:
        return _load_npz(path, key) if suffix == ".npz" else (np.load(path, mmap_mode="r", allow_pickle=False), None)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if "object" in str(error).lower():  # NumPy's word for an array that only pickle could read
            raise InputTypeError(f"{path.name} holds Python objects; save the numbers as one plain array") from error
        raise FileFormatError(f"{path.name} is damaged: {error}") from error


def _load_npz(path, key):
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
        wanted = key or "data"
        if wanted not in archive.files:
            raise FileFormatError(_no_such_key(path.name, wanted, archive.files))
        fs = archive["fs"] if "fs" in archive.files else None
        return np.asarray(archive[wanted]), fs


def _load_hdf5(path, key):
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise FileFormatError(f"{path.name} is damaged or no HDF5 file: {error}") from error
    with file:
        wanted = key or "data"
        found = file.get(wanted)
        if not isinstance(found, h5py.Dataset):
            names = []
            file.visititems(lambda name, item: names.append(f"/{name}") if isinstance(item, h5py.Dataset) else None)
            raise FileFormatError(_no_such_key(path.name, wanted, names))
        if h5py.check_string_dtype(found.dtype) is not None:
            raise InputTypeError(f"{found.name} in {path.name} holds text; wanted real numbers")
        rate = found.attrs.get("fs")
        beside = found.parent.get("fs")
        if rate is None and isinstance(beside, h5py.Dataset):
            rate = beside[()]
        return found[()], rate


def _no_such_key(name, wanted, keys):
    if not keys:
        return f"{name} holds no arrays"
    return f"{name} has no array {wanted!r}; it holds {', '.join(keys)}: choose one, for instance --key {keys[0]}"


def _load_raw(path, key, dtype, n_channels, fs):
    """Map raw binary as (N, C), samples interleaved; `_channels_first` turns it round."""
    if key is not None:
        raise InputError(f"key (--key) names an array in .npz or HDF5, but {path.name} is raw binary; leave it out")
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
    size, frame = path.stat().st_size, dtype.itemsize * n_channels
    if size % frame:
        raise FileFormatError(
            f"{path.name} has {size} bytes, no whole number of samples of {frame} bytes ({n_channels} x {dtype}): "
            f"{size % frame} bytes remain; check --dtype and --channels"
        )
    return np.memmap(path, dtype=dtype, mode="r", shape=(size // frame, n_channels))
