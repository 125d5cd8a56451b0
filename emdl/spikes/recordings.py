"""Recordings from files: which formats are read, which axis holds the channels, and what is refused.

A recording is kept as stored, (C, N), memory-mapped where the format allows it, so that a long file costs no memory
before it is filtered.
"""

import logging
import pathlib
from dataclasses import dataclass

import numpy as np

from emdl.errors import InputError, InputTypeError
from emdl.spikes import formats

logger = logging.getLogger(__name__)

LAYOUTS = ("channels-first", "samples-first")
SAMPLE_SECONDS = 15.0
_MOST_CHANNELS = 64  # an axis longer than this may be time as well as channels
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
    suffix = formats.check_file(path)
    if dtype is not None and suffix not in formats.RAW_SUFFIXES:
        raise InputError(f"dtype (--dtype) describes raw binary, but {path.name} carries its own; leave it out")
    if layout not in (None, *LAYOUTS):
        raise InputError(f"layout must be {' or '.join(LAYOUTS)}, got {layout!r}")
    data, fs_stored = formats.load(path, suffix, key=key, dtype=dtype, n_channels=n_channels, fs=fs or default_fs)
    _check_numbers(data, path.name)
    data = _channels_first(data, path, n_channels, layout)
    data = _drop_channels(data, skip_channels)
    if fs is None and fs_stored is None and default_fs is not None:
        fs = default_fs
        logger.warning("%s does not say its sampling rate; %g Hz is taken", path.name, fs)
    rate = _sampling_rate(fs, fs_stored, path.name)
    check_values(data, path.name)
    return Recording(data, rate, path.name)


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
    name, raw = path.name, path.suffix.lower() in formats.RAW_SUFFIXES
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
        count = f"{data.shape[0]} channel{'s' * (data.shape[0] > 1)}"
        logger.warning("%s: taken as %s x %d samples (%s: %s)", name, count, data.shape[1], chosen, why)
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
