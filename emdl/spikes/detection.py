"""Spikes of a recording of any length, found with a model, block by block."""

from dataclasses import dataclass

import numpy as np

from emdl.backend import check_number
from emdl.codes import SparseCodes
from emdl.device import choose
from emdl.errors import InputError, InputTypeError
from emdl.spikes import decision
from emdl.spikes.recordings import check_values
from emdl.spikes.whitening import whiten

_MARGIN = 6  # templates by which a block reaches into its neighbours


@dataclass(frozen=True)
class Spikes:
    """Spikes, by increasing time.

    Attributes
    ----------
    sample : ndarray (n,) of int64
        Where the waveform of the unit has its largest deflection, samples from the start of the recording.
    unit : ndarray (n,) of int64
        Which unit.
    amplitude : ndarray (n,) of float64
        Size of that deflection for this spike, data unit.
    fs : float
        Sampling rate, Hz.
    """

    sample: np.ndarray
    unit: np.ndarray
    amplitude: np.ndarray
    fs: float

    def __len__(self):
        return len(self.sample)

    @property
    def time_s(self):
        """Times, s, (n,) of float64."""
        return self.sample / self.fs


def check_recording(data, n_channels=None):
    """Return a recording with two axes, not copied.

    Parameters
    ----------
    data : array (C, N) or (N,)
        Recording; may be memory-mapped.
    n_channels : int, optional
        Channels it must have.

    Returns
    -------
    ndarray (C, N)

    Raises
    ------
    InputTypeError
        If it does not hold real numbers.
    InputError
        If it has another shape, a value is not finite, or a channel is constant.
    """
    data = data if isinstance(data, np.ndarray) else np.asarray(data)
    if data.dtype.kind not in "iuf":
        raise InputTypeError(f"the recording has dtype {data.dtype}, wanted real numbers; convert it first")
    data = data[None] if data.ndim == 1 else data
    if data.ndim != 2 or 0 in data.shape:
        raise InputError(f"the recording has shape {data.shape}, wanted (channels, samples), none of them zero")
    if data.shape[0] > data.shape[1]:
        raise InputError(
            f"the recording has shape {data.shape}: more channels than samples; transpose it to (channels, samples)"
        )
    if n_channels is not None and len(data) != n_channels:
        raise InputError(f"the recording has {len(data)} channels, but the model was learned on {n_channels}")
    check_values(data, "the recording")
    return data


def detect(data, model, *, block_s=None, device="cpu"):
    """Return the spikes of a recording.

    Each block of the whitened recording is coded and decided (see `emdl.spikes.decision`) with margins on both sides;
    neighbouring blocks are joined in the longest pause near their border, so the spikes do not depend on the blocks.

    Parameters
    ----------
    data : array (C, N)
        Recording of the sampling rate that the model was learned at; may be memory-mapped.
    model : SpikeModel
        From `emdl.spikes.fit`.
    block_s : float, optional
        Length of a block, s; by default some million values. A large one takes memory, a small one time.
    device : {"cpu", "cuda", "auto"}
        Where the sparse coding is done; ``cuda`` needs CuPy and a GPU, ``auto`` takes one where there is one. Filters
        and decisions stay on the CPU.

    Returns
    -------
    Spikes

    Raises
    ------
    InputError
        If the recording does not fit the model, is shorter than a waveform, or holds values that are not finite.
    DeviceError
        If ``cuda`` was asked for and is not there.
    """
    units, s, xp = model.units, model.waveforms.shape[2], choose(device)[0]
    data, block = _plan(data, model, block_s)
    N, found = data.shape[1], []
    height = np.abs(model.waveforms).max(axis=(1, 2), initial=0) / model.amplitude[: model.n_units]
    first = 0
    for start in range(0, N if model.n_units else 0, block):
        a, b = max(0, start - _MARGIN * s), min(N, start + block + _MARGIN * s)
        if b - a < s:
            break
        x = whiten(data, model.whitening, a, b)
        events, _ = decision.decide(x, units, model.duration_unit, xp=xp)
        last = N if start + block >= N else _pause(a + events.time, start + block, s)
        inside = (a + events.time >= first) & (a + events.time < last) & (events.unit < model.n_units)
        found.append((a + events.time[inside], events.unit[inside], events.amplitude[inside].astype(np.float64)))
        first = last
    time, unit, amplitude = (np.concatenate(parts) for parts in zip(*found, strict=True)) if found else _NOTHING
    sample = time + model.peak[unit]
    order = np.lexsort((unit, sample))
    return Spikes(sample[order], unit[order], (amplitude * height[unit])[order], model.fs)


_NOTHING = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))


def encode(data, model, *, tol=1e-4, device="cpu"):
    """Return the codes of a recording: the minimiser of (1) for the whitened signal, codes >= 0.

    Parameters
    ----------
    data : array (C, N)
        Recording; may be memory-mapped.
    model : SpikeModel
        From `emdl.spikes.fit`.
    tol : float
        Relative duality gap of each stretch between two pauses.
    device : {"cpu", "cuda", "auto"}
        Where the sparse coding is done; ``cuda`` needs CuPy and a GPU, ``auto`` takes one where there is one. Filters
        and decisions stay on the CPU.

    Returns
    -------
    SparseCodes
        Of shape (1, K, N - s + 1), in standard deviations of the noise of a matched filter. A code stands at the first
        sample of its template; `SpikeModel.peak` samples later is the peak.

    Raises
    ------
    InputError
        If the recording does not fit the model, or a parameter lies outside its range.
    """
    tol, xp = check_number(tol, "tol", 0, 1, strict=True), choose(device)[0]
    D, s = model.model.D.astype(np.float32), model.waveforms.shape[2]
    data, block = _plan(data, model, None)
    N, K = data.shape[1], len(D)
    index, value, first = [], [], 0
    for start in range(0, N if model.n_units else 0, block):
        a, b = max(0, start - _MARGIN * s), min(N, start + block + _MARGIN * s)
        if b - a < s:
            break
        codes = decision.encode(whiten(data, model.whitening, a, b), D, model.model.lmbd, tol=tol, xp=xp)
        at = a + codes.index // K
        last = N if start + block >= N else _pause(at, start + block, s)
        inside = (at >= first) & (at < last)
        index.append((codes.index + a * K)[inside])
        value.append(codes.value[inside])
        first = last
    index = np.concatenate([np.zeros(0, np.int64), *index])
    value = np.concatenate([np.zeros(0, np.float32), *value])
    return SparseCodes((1, K, N - s + 1), np.array([0, len(index)]), index, value)


def _plan(data, model, block_s):
    """Return the recording, checked, and the length of a block in samples."""
    data = check_recording(data, model.waveforms.shape[1])
    s = model.waveforms.shape[2]
    if data.shape[1] < s + model.whitening.margin:
        raise InputError(
            f"the recording is {data.shape[1]} samples long, shorter than the filter and a waveform, "
            f"{s + model.whitening.margin}; use a longer one"
        )
    if block_s is None:
        return data, max(1 << 15, (1 << 22) // len(data), 16 * s)
    return data, max(4 * s, round(check_number(block_s, "block_s", 0, strict=True) * model.fs))


def _pause(times, border, s):
    """Return the middle of the longest pause of sorted event times within two templates of a border."""
    near = times[(times > border - 2 * s) & (times < border + 2 * s)]
    edges = np.concatenate([[border - 2 * s], near, [border + 2 * s]])
    longest = int(np.diff(edges).argmax())
    return int(edges[longest] + edges[longest + 1] + 1) // 2
