"""Recordings from files: which formats are read, which axis holds the channels, and what is refused.

A recording is kept as stored, (C, N), memory-mapped where the format allows it, so that a long file costs no memory
before it is filtered.
"""

import logging
import pathlib
import zipfile
import zlib
from dataclasses import dataclass

import numpy as np

from emdl.errors import FileFormatError, InputError, InputTypeError

logger = logging.getLogger(__name__)

LAYOUTS = ("channels-first", "samples-first")
RAW_SUFFIXES = (".dat", ".bin", ".raw")
HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf", ".nwb")
SAMPLE_SECONDS = 15.0
_MOST_CHANNELS = 64  # an axis longer than this may be time as well as channels
_WRITER = {".npy": "save", ".npz": "savez"}
_BLOCK = 1 << 20  # samples of one channel checked at once


@dataclass(frozen=True)
class Recording:
    """A recording of several channels.

    Attributes
    ----------
    data : ndarray or memmap, shape (C, N)
        C channels, N samples, in the data unit and the dtype of the file.
    fs : float
        Sampling rate, Hz.
    name : str
        What to call it: the name of the file.
    """

    data: np.ndarray
    fs: float
    name: str

    @property
    def n_channels(self):
        """Return the number of channels C."""
        return self.data.shape[0]

    @property
    def n_samples(self):
        """Return the number of samples N of one channel."""
        return self.data.shape[1]

    @property
    def seconds(self):
        """Return the duration, s."""
        return self.n_samples / self.fs


def sample():
    """Return the bundled sample: a simulated tetrode of 15 s, the same on every machine.

    Returns
    -------
    Recording
        4 channels, made by `emdl.simulate.tetrode` with a fixed seed. It is simulated, and its name says so.
    """
    from emdl import simulate

    made = simulate.tetrode(SAMPLE_SECONDS, rng=0)
    return Recording(made.data, float(made.fs), "simulated tetrode")


def read(path, *, fs=None, key=None, dtype=None, n_channels=None, layout=None, skip_channels=(), default_fs=None):
    """Read a recording from a file.

    Parameters
    ----------
    path : str or Path
        ``.npy``; ``.npz`` (keys ``data`` and ``fs``); raw binary ``.dat``, ``.bin`` or ``.raw``; or HDF5 (a data set
        and its attribute ``fs``, or a scalar data set ``fs`` beside it).
    fs : float, optional
        Sampling rate, Hz. Needed where the file holds none; goes before the file's own.
    key : str, optional
        Name of the array in ``.npz``, path of the data set in HDF5. Default ``data``.
    dtype : str or dtype, optional
        Type of one sample of raw binary, for instance ``int16``. Other formats know theirs.
    n_channels : int, optional
        Number of channels. Needed for raw binary; elsewhere it tells the axes apart.
    layout : {"channels-first", "samples-first"}, optional
        Which axis comes first in the file. By default an axis of at most 64 beside a longer one is taken as channels,
        raw binary as samples-first (interleaved), and the log says so.
    skip_channels : sequence of int, optional
        Channels to leave out, counted from 0.
    default_fs : float, optional
        Sampling rate, Hz, to take where neither `fs` nor the file says it; the log says so.

    Returns
    -------
    Recording
        With `data` of shape (C, N).

    Raises
    ------
    FileFormatError
        If the file is missing, empty, damaged, of an unknown format, or lacks the array asked for.
    InputError
        If something needed is not given, the axes cannot be told apart, or the data hold NaN, Inf or a dead channel.
    InputTypeError
        If the data are not real numbers.
    """
    path = pathlib.Path(path)
    suffix = _check_file(path)
    if dtype is not None and suffix not in RAW_SUFFIXES:
        raise InputError(f"dtype (--dtype) describes raw binary, but {path.name} carries its own; leave it out")
    if layout not in (None, *LAYOUTS):
        raise InputError(f"layout must be {' or '.join(LAYOUTS)}, got {layout!r}")
    data, fs_stored = _load(path, suffix, key, dtype, n_channels, fs or default_fs)
    _check_numbers(data, path.name)
    data = _channels_first(data, path, n_channels, layout)
    data = _drop_channels(data, skip_channels)
    if fs is None and fs_stored is None and default_fs is not None:
        fs = default_fs
        logger.warning("%s does not say its sampling rate; %g Hz is taken", path.name, fs)
    rate = _sampling_rate(fs, fs_stored, path.name)
    check_values(data, path.name)
    return Recording(data, rate, path.name)


def _check_file(path):
    """Return the suffix of an existing, non-empty file of a known format."""
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


def _load(path, suffix, key, dtype, n_channels, fs):
    """Return the stored array as it is, and the stored sampling rate or None."""
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
    with np.load(path, allow_pickle=False) as archive:
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


def _check_numbers(data, name):
    if data.dtype.kind not in "iuf":
        raise InputTypeError(f"{name} holds {data.dtype.name}; wanted real numbers (integers or floating point)")
    if data.ndim not in (1, 2):
        raise InputError(f"{name} has shape {data.shape}; wanted one channel (samples,) or two axes")
    if data.size == 0:
        raise InputError(f"{name} has shape {data.shape}: it holds no samples")


def _channels_first(data, path, n_channels, layout):
    """Return the data as (C, N) in native byte order, and say in the log which axis was taken as channels."""
    if not data.dtype.isnative:
        data = data.astype(data.dtype.newbyteorder("="))
    name, raw = path.name, path.suffix.lower() in RAW_SUFFIXES
    if data.ndim == 1:
        data, chosen, why = data[None], "channels-first", None
    elif raw and layout == "channels-first":
        data, chosen, why = data.reshape(data.shape[::-1]), layout, None
    elif raw:
        several = layout is None and n_channels > 1
        chosen, why = "samples-first", "raw binary is interleaved as a rule" if several else None
    elif layout is not None:
        chosen, why = layout, None
    else:
        chosen, why = _guess_layout(data.shape, n_channels, name)
    data = data if chosen == "channels-first" else data.T
    if why:
        logger.warning("%s: taken as %d channels x %d samples (%s: %s)", name, *data.shape, chosen, why)
    if n_channels not in (None, data.shape[0]):
        raise InputError(f"{name} has {data.shape[0]} channels ({chosen}), but n_channels (--channels) is {n_channels}")
    return data


def _guess_layout(shape, n_channels, name):
    """Return the layout of two axes and the reason, or raise where both are possible."""
    first, second = shape
    if n_channels is not None and first != second and n_channels in shape:
        return ("channels-first" if first == n_channels else "samples-first"), None
    for layout, channels, samples in (("channels-first", first, second), ("samples-first", second, first)):
        if channels <= _MOST_CHANNELS < samples:
            return layout, f"{channels} <= {_MOST_CHANNELS} < {samples}; --layout overrules"
    raise InputError(
        f"{name} has shape {shape}: either axis could be the channels; say which comes first with "
        f"--layout {LAYOUTS[0]} or --layout {LAYOUTS[1]}"
    )


def _drop_channels(data, skip):
    skip = sorted(set(skip))
    if not skip:
        return data
    unknown = [channel for channel in skip if not 0 <= channel < data.shape[0]]
    if unknown:
        raise InputError(f"there is no channel {unknown[0]} to skip; channels are 0 to {data.shape[0] - 1}")
    if len(skip) == data.shape[0]:
        raise InputError("every channel is to be skipped; leave at least one")
    return np.delete(data, skip, axis=0)


def _sampling_rate(given, stored, name):
    rate = given if given is not None else stored
    if rate is None:
        raise InputError(f"{name} does not say its sampling rate; give fs (--fs 30000), in Hz")
    try:
        rate = float(np.asarray(rate).item())
    except (TypeError, ValueError) as error:
        raise InputError(f"the sampling rate must be one number, got {rate!r} in {name}; give fs (--fs)") from error
    if not (np.isfinite(rate) and rate > 0):
        raise InputError(f"the sampling rate must be positive, got {rate:g} Hz for {name}; give fs (--fs)")
    if given is not None and stored is not None and float(np.asarray(stored).item()) != rate:
        logger.warning("%s says %g Hz; %g Hz is used, as asked", name, float(np.asarray(stored).item()), rate)
    return rate


def check_values(data, name="data"):
    """Raise if the data hold NaN or Inf, or a channel that never changes.

    Parameters
    ----------
    data : ndarray or memmap, shape (C, N)
        Read block by block, so that a memory-mapped file is never held as a whole.
    name : str, optional
        What to call the data in the message.

    Raises
    ------
    InputError
        If a value is NaN or Inf (the first in time is named) or a channel is constant (all are named).
    """
    low, high = data[:, 0].copy(), data[:, 0].copy()
    step = max(_BLOCK // data.shape[0], 1)
    for start in range(0, data.shape[1], step):
        block = data[:, start : start + step]
        if not np.isfinite(block).all():
            sample, channel = np.argwhere(~np.isfinite(block.T))[0]
            raise InputError(
                f"{name} holds {block[channel, sample]} at channel {channel}, sample {start + sample}; "
                "cut it out or replace it"
            )
        low = np.minimum(low, block.min(axis=1))
        high = np.maximum(high, block.max(axis=1))
    dead = np.flatnonzero(low == high)
    if len(dead) and data.shape[1] > 1:
        if len(dead) == data.shape[0]:
            raise InputError(f"{name}: every channel is constant; there is nothing to learn from it")
        listed = ", ".join(map(str, dead))
        flags = " ".join(f"--skip-channel {channel}" for channel in dead)
        which = f"channel {listed} is" if len(dead) == 1 else f"channels {listed} are"
        raise InputError(f"{name}: {which} constant (dead); leave out by skip_channels ({flags})")
