"""Spikes of a recording of any length, found with a model, block by block."""

from dataclasses import dataclass

import numpy as np

from emdl import checkpoint as kept
from emdl.backend import check_callable, check_number
from emdl.codes import SparseCodes
from emdl.device import choose
from emdl.errors import InputError, InputTypeError
from emdl.spikes import decision, streaming
from emdl.spikes.model import SpikeModel
from emdl.spikes.recordings import as_samples
from emdl.spikes.streaming import RECORDING
from emdl.spikes.whitening import whiten

_LOOK = 1 << 12  # samples at the beginning that tell the level of a recording
_COARSE = 0.1  # standard deviations of the noise; coarser steps are noise of their own


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
        If it has another shape, or a channel is constant; of a recording of less than 16 million values also if one is
        not finite.
    """
    data = as_samples(data, RECORDING)
    if data.dtype.kind not in "iuf":
        raise InputTypeError(f"{RECORDING} has dtype {data.dtype}, wanted real numbers; convert it first")
    data = data[None] if data.ndim == 1 else data
    if data.ndim != 2 or 0 in data.shape:
        raise InputError(f"{RECORDING} has shape {data.shape}, wanted (channels, samples), none of them zero")
    if data.shape[0] > data.shape[1]:
        raise InputError(
            f"{RECORDING} has shape {data.shape}: more channels than samples; transpose it to (channels, samples)"
        )
    if n_channels is not None and len(data) != n_channels:
        raise InputError(f"{RECORDING} has {len(data)} channels, but the model was learned on {n_channels}")
    streaming.check_values_of(data)
    return data


def detect(
    data,
    model,
    *,
    block_s=None,
    device="cpu",
    progress=None,
    checkpoint=None,
    checkpoint_every=kept.EVERY,
    resume=False,
    client=None,
):
    """Return the spikes of a recording.

    Each piece of the whitened recording is decided (see `emdl.spikes.decision`) with margins on both sides, and pieces
    are joined in the longest pause near their border. The pieces lie on a fixed grid, so the spikes do not depend on
    how much is read at once, and a search that was interrupted ends with the same spikes as one that was not.

    Parameters
    ----------
    data : array (C, N)
        Recording of the sampling rate that the model was learned at; may be memory-mapped, or anything of two axes that
        has a shape and a dtype and can be sliced. It is read once, block by block.
    model : SpikeModel
        From `emdl.spikes.fit`.
    block_s : float, optional
        Length of what is read at once, s; by default some million values. A large one takes memory.
    device : {"cpu", "cuda", "auto"}
        Where the signal is correlated with the templates; ``cuda`` needs CuPy and a GPU, ``auto`` takes one where there
        is one. Filters and decisions stay on the CPU.
    progress : callable, optional
        Called with an `emdl.spikes.streaming.Searched` after each block; a true return value ends the search, and what
        was found so far is returned.
    checkpoint : path, optional
        File that keeps what was found, also when the search is interrupted; `partial` reads it.
    checkpoint_every : float
        Seconds between two writes of it.
    resume : bool
        Go on from the checkpoint, if it exists.
    client : distributed.Client, optional
        Cluster of Dask whose workers search the recording, to the same bits; they must be able to open it, see
        docs/scale.md.

    Returns
    -------
    Spikes

    Raises
    ------
    InputError
        If the recording does not fit the model, is shorter than a waveform, or holds values that are not finite; or if
        the checkpoint belongs to another recording or model, or exists and is not to be resumed.
    DeviceError
        If ``cuda`` was asked for and is not there.
    ClusterError
        If the cluster cannot be used, or is lost; what was found is in the checkpoint.
    """
    if client is None:
        choose(device)
    check_callable(progress, "progress")
    data, block = _plan(data, model, block_s)
    asked = {"data": data, "waveforms": model.waveforms, "D": model.model.D, "taps": model.whitening.taps}
    asked |= {"mixing": model.whitening.mixing, "rate": model.rate, "amplitude": model.amplitude}
    with kept.Checkpoint(checkpoint, asked, kind=streaming.KIND, every=checkpoint_every, resume=resume) as keeper:
        if model.n_units == 0:
            return _spikes(_NOTHING, model)
        return _spikes(
            streaming.search(data, model, block=block, keeper=keeper, device=device, progress=progress, client=client),
            model,
        )


def partial(checkpoint, model):
    """Return what an interrupted search has found, and how much of the recording it has searched.

    Parameters
    ----------
    checkpoint : path
        Written by `detect`.
    model : SpikeModel
        Of the search.

    Returns
    -------
    Spikes
    seconds : float
        Searched, from the start of the recording, s.

    Raises
    ------
    FileFormatError
        If the file is missing, damaged, or no checkpoint of a search.
    """
    found, searched = streaming.partial(checkpoint)
    return _spikes(found, model), searched / model.fs


def _spikes(found, model):
    """Return times of templates, units and amplitudes in whitened units as spikes."""
    time, unit, amplitude = found
    height = np.abs(model.waveforms).max(axis=(1, 2), initial=0) / model.amplitude[: model.n_units]
    sample = time + model.peak[unit]
    order = np.lexsort((unit, sample))
    return Spikes(sample[order], unit[order].astype(np.int64), (amplitude * height[unit])[order], model.fs)


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
    data, block = _plan(data, model, None)
    D, s = model.model.D.astype(np.float32), model.waveforms.shape[2]
    N, K = data.shape[1], len(D)
    index, value, first = [], [], 0
    for start in range(0, N if model.n_units else 0, block):
        a, b = max(0, start - decision.MARGIN * s), min(N, start + block + decision.MARGIN * s)
        if b - a < s:
            break
        codes = decision.encode(whiten(data, model.whitening, a, b), D, model.model.lmbd, tol=tol, xp=xp)
        at = a + codes.index // K
        last = N if start + block >= N else decision.pause(at, start + block, s)
        inside = (at >= first) & (at < last)
        index.append((codes.index + a * K)[inside])
        value.append(codes.value[inside])
        first = last
    index = np.concatenate([np.zeros(0, np.int64), *index])
    value = np.concatenate([np.zeros(0, np.float32), *value])
    return SparseCodes((1, K, N - s + 1), np.array([0, len(index)]), index, value)


def _plan(data, model, block_s):
    """Return the recording, checked, and the length of a block in samples."""
    if not isinstance(model, SpikeModel):
        raise InputTypeError(f"model is a {type(model).__name__}, wanted a SpikeModel from emdl.spikes.fit or load")
    data = check_recording(data, model.waveforms.shape[1])
    s = model.waveforms.shape[2]
    if data.shape[1] < s + model.whitening.margin:
        raise InputError(
            f"{RECORDING} is {data.shape[1]} samples long, shorter than the filter and a waveform, "
            f"{s + model.whitening.margin}; use a longer one"
        )
    _check_level(data, model.whitening)
    if block_s is None:
        return data, max(1 << 15, (1 << 22) // len(data), 16 * s)
    return data, max(4 * s, round(check_number(block_s, "block_s", 0, strict=True) * model.fs))


def _check_level(data, whitening):
    """Raise if a recording lies so far from the level that the model was learned at that rounding drowns it."""
    begin = np.asarray(data[:, :_LOOK])
    far = np.abs(np.median(begin[:, np.isfinite(begin).all(axis=0)], axis=1) - whitening.offset)
    step = np.spacing(far.astype(np.float32)).astype(float)
    lost = np.flatnonzero(step > _COARSE * whitening.noise)
    if len(lost):
        c = lost[0]
        raise InputError(
            f"{RECORDING} lies {far[c]:.3g} from the level that the model was learned at, on channel {c}, where single "
            f"precision has steps of {step[c]:.3g} and the noise is {whitening.noise[c]:.3g}; subtract the mean"
        )
