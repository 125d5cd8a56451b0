"""Recordings from files and objects: which axis holds the channels, what is missing, and what is refused.

A recording is kept as stored, (C, N), memory-mapped or read slice by slice where the format allows it, so that a long
file costs no memory before it is filtered.
"""

import contextlib
import logging
import pathlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from emdl import storage
from emdl.backend import array_module
from emdl.errors import FileFormatError, InputError, InputTypeError
from emdl.spikes import external, formats, geometry
from emdl.spikes.lazy import Lazy, Stored, bridged, joined, take_channels
from emdl.spikes.scales import FASTEST

logger = logging.getLogger(__name__)

LAYOUTS = ("channels-first", "samples-first")
SAMPLE_SECONDS = 15.0
_MOST_CHANNELS = 64  # an axis longer than this may be time as well as channels
_BLOCK = 1 << 20  # samples of one channel checked at once
_GAP_S = 0.01  # all channels constant for that long are no signal
_LOOKS = 1000  # samples at least that are looked at of a recording
_MOST_GAPS = 0.5  # of a recording, beyond which it is refused
_BESIDE_GAP_S = 1e-3  # spikes nearer than this to a gap are left out
_SPANS = (1e-15, 1e15)  # between the smallest and the largest value: squares stay within single precision
_STEPS = 64  # between them that the numbers of a recording can tell apart, at least


@dataclass(frozen=True)
class Recording:
    """A recording of several channels.

    Attributes
    ----------
    data : array (C, N)
        C channels, N samples, in the dtype of the file: an ndarray, a memmap, or an object that is read when sliced, as
        ``data[:, a:b]``. Gaps are bridged by straight lines.
    fs : float
        Sampling rate, Hz.
    name : str
        What to call it: the name of the file.
    unit : str
        Of the data: ``uV`` where the file says how to get there.
    positions : ndarray (C, 2) or None
        Places of the channels, um.
    start_s : float
        Time of the first sample, s.
    gaps : ndarray (m, 2) of int
        Stretches without a signal, NaN or constant on all channels: first sample and the one after the last.
    path : Path or None
        The file, if there is one.
    n_bytes : int
        Its size when it was read.
    """

    data: Any
    fs: float
    name: str
    unit: str = formats.DATA_UNIT
    positions: np.ndarray | None = None
    start_s: float = 0.0
    gaps: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), int))
    path: pathlib.Path | None = None
    n_bytes: int = 0

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

    @property
    def covered_s(self):
        """Return the duration without the gaps, s."""
        return (self.n_samples - int((self.gaps[:, 1] - self.gaps[:, 0]).sum())) / self.fs

    def without_gaps(self):
        """Return the data (C, M) with the gaps cut out: what units are learned from."""
        if len(self.gaps) == 0:
            return self.data
        edges = np.concatenate([[0], self.gaps.ravel(), [self.n_samples]]).reshape(-1, 2)
        return joined(self.data, edges[edges[:, 1] > edges[:, 0]])

    def outside_gaps(self, samples):
        """Return which samples lie in no gap and not within 1 ms of one.

        Parameters
        ----------
        samples : array (n,) of int
            Times, samples.

        Returns
        -------
        ndarray (n,) of bool
        """
        beside = round(_BESIDE_GAP_S * self.fs)
        begun = np.searchsorted(self.gaps[:, 0] - beside, samples, "right")
        return begun == np.searchsorted(self.gaps[:, 1] + beside, samples, "right")

    def growth(self):
        """Return by how many bytes the file has grown since it was read."""
        return self.path.stat().st_size - self.n_bytes if self.path is not None and self.path.is_file() else 0


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


def read(
    path, *, fs=None, key=None, series=None, dtype=None, n_channels=None, layout=None, skip_channels=(),
    default_fs=None, probe=None,
):  # fmt: skip
    """Read a recording from a file.

    Parameters
    ----------
    path : str or Path
        ``.npy``; ``.npz`` (keys ``data`` and ``fs``); raw binary ``.dat``, ``.bin`` or ``.raw``; HDF5 (a data set and
        its attribute ``fs``, or a scalar data set ``fs`` beside it); NWB; or a file or folder of a recording system
        that Neo or SpikeInterface can read, if they are installed.
    fs : float, optional
        Sampling rate, Hz. Needed where the file holds none; goes before the file's own.
    key : str, optional
        Name of the array in ``.npz``, path of the data set in HDF5. Default ``data``.
    series : str, optional
        Which recording, where NWB or a recording system holds several.
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
    probe : str or Path, optional
        File with the places of the channels, see `emdl.spikes.geometry`; goes before the recording's own.

    Returns
    -------
    Recording
        With `data` of shape (C, N).

    Raises
    ------
    FileFormatError
        If the file is missing, empty, damaged, of an unknown format, or lacks the array asked for.
    InputError
        If something needed is not given, the axes cannot be told apart, the data hold Inf, NaN on some channels only or
        a dead channel, or more than half of the recording is gaps.
    InputTypeError
        If the data are not real numbers.
    """
    path = pathlib.Path(path)
    suffix = formats.check_file(path)
    if dtype is not None and suffix not in formats.RAW_SUFFIXES:
        raise InputError(f"dtype (--dtype) describes raw binary, but {path.name} carries its own; leave it out")
    if layout not in (None, *LAYOUTS):
        raise InputError(f"layout must be {' or '.join(LAYOUTS)}, got {layout!r}")
    size = path.stat().st_size if path.is_file() else 0
    with _named(path.name), storage.explained(path.name):
        found = formats.load(
            path, suffix, key=key, series=series, dtype=dtype, n_channels=n_channels, fs=fs or default_fs
        )
        _check_numbers(found.data, path.name)
        data = _channels_first(found.data, path, n_channels, layout or found.layout)
        if fs is None and found.fs is None and default_fs is not None:
            fs = default_fs
            logger.warning("%s does not say its sampling rate; %g Hz is taken", path.name, fs)
        rate = _sampling_rate(fs, found.fs, path.name)
        whole = replace(_describe(found, data, rate, path.name), path=path, n_bytes=size)
        if probe is not None:
            whole = replace(whole, positions=geometry.read(pathlib.Path(probe), whole.n_channels))
        return _checked(_without_channels(whole, skip_channels), found.joints)


@contextlib.contextmanager
def _named(name):
    """Put the name of the file before what is wrong with a part of it."""
    try:
        yield
    except FileFormatError as error:
        if name in str(error):
            raise
        raise FileFormatError(f"{name}: {error}") from error


def from_object(recording, *, name="recording"):
    """Return a recording of SpikeInterface as a `Recording`.

    Parameters
    ----------
    recording : spikeinterface.BaseRecording
        Segments are put one after another; traces are read when they are sliced.
    name : str
        What to call it.

    Returns
    -------
    Recording

    Raises
    ------
    InputError
        As `read`.
    InputTypeError
        If it is no recording of SpikeInterface.
    """
    if not external.is_recording(recording):
        raise InputTypeError(f"wanted a recording of SpikeInterface, got {type(recording).__name__}")
    found = external.content(recording)
    return _checked(_describe(found, found.data, float(found.fs), name), found.joints)


def from_array(data, fs, *, name="recording"):
    """Return an array as a `Recording`.

    Parameters
    ----------
    data : array (C, N) or (N,)
        Channels first; may be memory-mapped.
    fs : float
        Sampling rate, Hz.
    name : str
        What to call it.

    Returns
    -------
    Recording

    Raises
    ------
    InputError
        As `read`, and if there are more channels than samples.
    InputTypeError
        If it does not hold real numbers.
    """
    data = as_samples(data, name)
    _check_numbers(data, name)
    data = data[None] if len(data.shape) == 1 else data
    if data.shape[0] > data.shape[1]:
        raise InputError(
            f"{name} has shape {data.shape}: more channels than samples; transpose it to (channels, samples)"
        )
    return _checked(Recording(data, _sampling_rate(fs, None, name), name))


def as_samples(data, name):
    """Return data that have a shape and a dtype: as they are, or as an array.

    Parameters
    ----------
    data : object
        What was given as a recording.
    name : str
        What to call it in messages.

    Returns
    -------
    object

    Raises
    ------
    InputTypeError
        If it is masked, lies on a GPU, or is no array of numbers.
    """
    if isinstance(data, np.ma.MaskedArray):
        raise InputTypeError(f"{name} is a masked array, which would be read as if nothing were masked; fill it first")
    if hasattr(data, "shape") and hasattr(data, "dtype"):
        if array_module(data) is not np:
            raise InputTypeError(f"{name} lies on a GPU, wanted NumPy's (cupy.asnumpy); device says where work is done")
        return data
    try:
        return np.asarray(data)
    except (TypeError, ValueError) as error:
        raise InputTypeError(f"{name} is no array of numbers ({error})") from error


def _describe(found, data, fs, name):
    return Recording(data, fs, name, unit=found.unit, positions=found.positions, start_s=found.start_s)


def _check_numbers(data, name):
    if data.dtype.kind not in "iuf":
        raise InputTypeError(f"{name} holds {data.dtype.name}; wanted real numbers (integers or floating point)")
    if len(data.shape) not in (1, 2):
        raise InputError(f"{name} has shape {data.shape}; wanted one channel (samples,) or two axes")
    if 0 in data.shape:
        raise InputError(f"{name} has shape {data.shape}: it holds no samples")


def _channels_first(data, path, n_channels, layout):
    """Return the data as (C, N) in native byte order, and say in the log which axis was taken as channels."""
    name, raw = path.name, path.suffix.lower() in formats.RAW_SUFFIXES
    if len(data.shape) == 1:
        data, chosen, why = data if isinstance(data, Stored) else data[None], "channels-first", None
    elif isinstance(data, Lazy):
        chosen, why = "channels-first", None
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
    if isinstance(data, Stored):
        data = data.lazy()
    elif not data.dtype.isnative:
        stored = data
        data = Lazy(lambda a, b: stored[:, a:b], stored.shape, stored.dtype)
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


def _without_channels(recording, skip):
    skip = sorted(set(skip))
    if not skip:
        return recording
    C = recording.n_channels
    unknown = [channel for channel in skip if not 0 <= channel < C]
    if unknown:
        raise InputError(f"there is no channel {unknown[0]} to skip; channels are 0 to {C - 1}")
    if len(skip) == C:
        raise InputError("every channel is to be skipped; leave at least one")
    kept = np.delete(np.arange(C), skip)
    places = None if recording.positions is None else recording.positions[kept]
    return replace(recording, data=take_channels(recording.data, kept), positions=places)


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
    if rate > FASTEST:
        raise InputError(f"the sampling rate must be at most {FASTEST:g} Hz, got {rate:g} for {name}; give fs (--fs)")
    if given is not None and stored is not None and float(np.asarray(stored).item()) != rate:
        logger.warning("%s says %g Hz; %g Hz is used, as asked", name, float(np.asarray(stored).item()), rate)
    return rate


def _checked(recording, joints=()):
    """Return the recording with its gaps bridged, and say in the log where they are; raise as `check_values`."""
    data, fs, name = recording.data, recording.fs, recording.name
    gaps = _scan(data, name, round(_GAP_S * fs))
    missing = int((gaps[:, 1] - gaps[:, 0]).sum())
    if missing > _MOST_GAPS * data.shape[1]:
        raise InputError(
            f"{name} holds no signal for {missing / fs:.1f} of its {data.shape[1] / fs:.1f} s (NaN, or constant on all "
            "channels); cut out the part that holds one"
        )
    if len(gaps):
        first = ", ".join(f"{a / fs:.3f} to {b / fs:.3f} s" for a, b in gaps[:3]) + ", ..." * (len(gaps) > 3)
        count = "a gap" if len(gaps) == 1 else f"{len(gaps)} gaps"
        logger.warning(
            "%s has %s, %.2f s in all, where all channels are NaN or constant (%s); no spikes are looked for there",
            name, count, missing / fs, first,
        )  # fmt: skip
        data = bridged(data, gaps)
    if len(joints):
        count = f"{len(joints) + 1} segments, put one after another"
        logger.warning("%s has %s; times count samples of all of them", name, count)
        gaps = np.concatenate([gaps, np.repeat(np.array(joints)[:, None], 2, axis=1)])
        gaps = gaps[np.argsort(gaps[:, 0], kind="stable")]
    return replace(recording, data=data, gaps=gaps)


def check_values(data, name="data"):
    """Raise if the data hold NaN or Inf, or a channel that never changes.

    Parameters
    ----------
    data : array (C, N)
        Read block by block, so that a memory-mapped file is never held as a whole.
    name : str, optional
        What to call the data in the message.

    Raises
    ------
    InputError
        If a value is NaN or Inf (the first in time is named) or a channel is constant (all are named).
    """
    gaps = _scan(data, name, data.shape[1] + 1)
    if len(gaps):
        raise InputError(f"{name} holds nan at channel 0, sample {gaps[0, 0]}; cut it out or replace it")


def _scan(data, name, shortest):
    """Return the stretches that hold no signal, (m, 2): NaN on all channels, or all constant for `shortest` samples.

    Raises as `check_values`, but for NaN on all channels at once. Of integers, which hold no NaN, only some samples
    are looked at, near enough to each other to meet every stretch of `shortest` samples twice.
    """
    C, N = data.shape
    apart = max(1, min(shortest, N // _LOOKS) // 3)
    low, high = np.full(C, np.inf), np.full(C, -np.inf)
    block, lost, suspect, before = max(_BLOCK // C // apart, 1) * apart, [], [], None
    for start in range(0, N, block):
        x = data[:, start : start + block]
        if x.dtype.kind == "f" and not np.isfinite(x).all():
            lost += _lost(x, start, name)
        looks = np.asarray(x[:, ::apart])
        low, high = np.fmin(low, np.fmin.reduce(looks, axis=1)), np.fmax(high, np.fmax.reduce(looks, axis=1))
        first = looks[0] if before is None else np.append(before, looks[0])
        where = start + apart * (np.flatnonzero(first[1:] == first[:-1]) - (before is not None))
        suspect += [(int(i) - apart, int(i) + 2 * apart) for i in where]
        before = looks[0, -1]
    still = [] if shortest > N else _still(data, _joined(suspect, N), shortest)
    _refuse_dead(data, low, high, name)
    check_range(low, high, data.dtype, name)
    return np.array(_joined(_joined(lost, N) + still, N), int).reshape(-1, 2)


def check_range(low, high, dtype, name):
    """Raise if a recording cannot be told from rounding, or its squares leave the range of single precision.

    Parameters
    ----------
    low, high : array (C,)
        Smallest and largest value of each channel.
    dtype : dtype
        Of the samples.
    name : str
        What to call the recording in the message.

    Raises
    ------
    InputError
        With the channel.
    """
    span = np.asarray(high - low, np.float64)
    far = np.flatnonzero((span > _SPANS[1]) | ((span < _SPANS[0]) & (span > 0)))
    if len(far):
        raise InputError(
            f"{name} spans {span[far[0]]:.3g} on channel {far[0]}, wanted {_SPANS[0]:g} to {_SPANS[1]:g}; "
            "give it in another unit"
        )
    if dtype.kind != "f":
        return
    step = np.spacing(np.maximum(np.abs(low), np.abs(high)).astype(dtype)).astype(np.float64)
    lost = np.flatnonzero((span < _STEPS * step) & (span > 0))
    if len(lost):
        c = lost[0]
        raise InputError(
            f"{name} spans {span[c]:.3g} around {(low[c] + high[c]) / 2:.3g} on channel {c}, where numbers of type "
            f"{dtype} lie {step[c]:.3g} apart; subtract the mean before it is rounded like that"
        )


def _lost(x, start, name):
    """Return the runs of NaN on all channels; raise for other values that are not finite."""
    lost = np.isnan(x).all(axis=0)
    strange = np.argwhere(~np.isfinite(x.T) & ~lost[:, None])
    if len(strange):
        sample, channel = strange[0]
        raise InputError(
            f"{name} holds {x[channel, sample]} at channel {channel}, sample {start + sample}; cut it out or replace it"
        )
    return [(start + a, start + b) for a, b in _runs(lost)]


def _still(data, spans, shortest):
    """Return the runs of at least `shortest` samples in the spans in which no channel changes."""
    found = []
    for first, last in spans:
        runs = []
        for a in range(first, last, _BLOCK):
            x = np.asarray(data[:, a : min(last, a + _BLOCK) + 1])
            same = (x[:, 1:] == x[:, :-1]).all(axis=0)
            runs += [(a + i, a + j + 1) for i, j in _runs(same)]
        found += [(a, b) for a, b in _joined(runs, data.shape[1]) if b - a >= shortest]
    return found


def _joined(runs, n_samples):
    """Return runs in order, those that meet as one, none beyond the recording."""
    joint = []
    for a, b in sorted(runs):
        if joint and a <= joint[-1][1]:
            joint[-1] = (joint[-1][0], max(min(b, n_samples), joint[-1][1]))
        else:
            joint.append((max(a, 0), min(b, n_samples)))
    return joint


def _runs(mask):
    """Return first sample and the one after the last of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return edges.reshape(-1, 2).tolist()


def _refuse_dead(data, low, high, name):
    """Raise if a channel is constant: those that look so are read whole."""
    if not np.isfinite(low).all():
        raise InputError(f"{name} holds nothing but NaN")
    C, N = data.shape
    for start in range(0, N if (low == high).any() else 0, _BLOCK):
        x = np.asarray(data[:, start : start + _BLOCK])
        low, high = np.fmin(low, np.fmin.reduce(x, axis=1)), np.fmax(high, np.fmax.reduce(x, axis=1))
    dead = np.flatnonzero(low == high)
    if len(dead) and N > 1:
        if len(dead) == C:
            raise InputError(f"{name}: every channel is constant; there is nothing to learn from it")
        listed = ", ".join(map(str, dead))
        flags = " ".join(f"--skip-channel {channel}" for channel in dead)
        which = f"channel {listed} is" if len(dead) == 1 else f"channels {listed} are"
        raise InputError(f"{name}: {which} constant (dead); leave out by skip_channels ({flags})")
