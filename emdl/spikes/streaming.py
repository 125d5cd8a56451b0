"""Spikes of a recording of any length, piece by piece, in memory that does not grow with it.

The recording is cut into pieces on a fixed grid, whatever is read at once. A piece is whitened and decided with margins
on both sides, from samples that depend on the grid alone, and neighbouring pieces are joined in the longest pause near
their border. So the spikes have the same bits however the recording is read, and wherever a search was interrupted.
"""

import logging
import time
from dataclasses import dataclass

import numpy as np

from emdl import checkpoint as kept
from emdl.backend import parallel_map
from emdl.errors import FileFormatError, InputError
from emdl.spikes import decision, whitening
from emdl.spikes.recordings import check_values

_SMALL = 1 << 24  # values up to which a recording is checked as a whole before the search
_LOOKS, _LOOK = 16, 1 << 12  # places, and samples in each, that tell whether a channel of a larger one is dead
_LOG = logging.getLogger(__name__)
KIND = "spikes.detect"  # of a checkpoint


@dataclass(frozen=True)
class Searched:
    """How far a search has come, as the callback sees it.

    Attributes
    ----------
    done_s, total_s : float
        Searched so far, and length of the recording, s.
    n_spikes : int
        Found so far.
    seconds, left : float
        Since the start of this run, and to go if it goes on like this, s.
    """

    done_s: float
    total_s: float
    n_spikes: int
    seconds: float
    left: float


@dataclass
class _Course:
    """How far a search has come: pieces done, the first sample not decided yet, and the spikes found before it."""

    done: int
    first: int
    found: list

    def state(self):
        """Return what a checkpoint keeps."""
        self.found = [tuple(np.concatenate(parts) for parts in zip(_NOTHING, *self.found, strict=True))]
        return {"done": self.done, "first": self.first} | dict(zip(_NAMES, self.found[0], strict=True))


_NAMES = ("time", "unit", "amplitude")
_NOTHING: tuple[np.ndarray, ...] = (np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))


def search(data, model, *, block, keeper, xp=np, progress=None):
    """Return the spikes of a recording that fits a model, those of the background left out.

    Parameters
    ----------
    data : array (C, N)
        Recording, or what can be sliced like one.
    model : SpikeModel
        With one unit at least.
    block : int
        Samples that are read at once, about.
    keeper : emdl.checkpoint.Checkpoint
        Entered; knows where to go on, and keeps how far the search came.
    xp : module
        As in `emdl.spikes.decision.decide`.
    progress : callable, optional
        Called with a `Searched` after each block; a true return value ends the search.

    Returns
    -------
    time : ndarray (n,) of int64
        First sample of the template, increasing.
    unit : ndarray (n,) of int32
    amplitude : ndarray (n,) of float32
        Whitened unit.

    Raises
    ------
    InputError
        If a value is not finite.
    """
    s, N, began = model.waveforms.shape[2], data.shape[1], time.monotonic()
    long = decision.piece_length(s)
    ready, starts = decision.prepare(model.units), range(0, max(N - s + 1, 1), long)
    course = _restored(keeper, starts, N)
    begun, at_once, kept_at = course.done, max(1, block // long), began
    try:
        while course.done < len(starts):
            chosen = starts[course.done : course.done + at_once]
            for events, start in zip(_pieces(data, model, ready, chosen, long, xp), chosen, strict=True):
                _take(course, events, start + long, model, N)
            if time.monotonic() - kept_at > keeper.every:
                keeper.offer(course.state(), now=True)
                kept_at = time.monotonic()
            if progress is not None and progress(_searched(course, begun, starts, N, model.fs, began)):
                break
    finally:  # an interrupt too; the course changes in whole pieces
        if course.done > begun:
            keeper.offer(course.state(), now=True)
    return tuple(np.concatenate(parts) for parts in zip(_NOTHING, *course.found, strict=True))


def partial(path):
    """Return what a search that was interrupted has found, as `search` does, and the samples that it has searched.

    Parameters
    ----------
    path : path
        The checkpoint.

    Returns
    -------
    found : tuple of ndarray
        Time, unit, amplitude.
    searched : int
        Samples from the start of the recording.

    Raises
    ------
    FileFormatError
        If the file is missing, damaged, or no checkpoint of a search.
    """
    course = _read(kept.read(path, KIND), None)
    return course.found[0], course.first


def check_values_of(data):
    """Raise if a channel of a recording is constant, or, where it is small, a value is not finite.

    The values of a large recording are looked at when it is searched.
    """
    C, N = data.shape
    if C * N > _SMALL:
        looks = np.concatenate([data[:, a : a + _LOOK] for a in np.linspace(0, N - _LOOK, _LOOKS).astype(int)], axis=1)
        if not (looks == looks[:, :1]).all(axis=1).any():
            return
    check_values(data, "the recording")


def _take(course, events, end, model, n_samples):
    """Add the spikes of the next piece to a course."""
    last = decision.border(events.time, end, n_samples, model.waveforms.shape[2])
    part = events.take((events.time >= course.first) & (events.time < last) & (events.unit < model.n_units))
    course.found.append((part.time, part.unit.astype(np.int32), part.amplitude))
    course.first, course.done = last, course.done + 1


def _pieces(data, model, ready, starts, long, xp):
    """Return the spikes of neighbouring pieces, which are read at once."""
    N, s, white = data.shape[1], model.waveforms.shape[2], model.whitening
    spare = decision.MARGIN * s
    low = max(0, starts[0] - spare - white.margin)
    x = np.asarray(data[:, low : min(N, starts[-1] + long + spare + white.margin)])
    _check_finite(x, low)

    def decided(start):
        a, b = max(0, start - spare), min(N, start + long + spare)
        return decision.piece(whitening.whiten(x, white, a - low, b - low), ready, model.duration_unit, a, xp)

    return (parallel_map if xp is np else map)(decided, starts)


def _check_finite(x, start):
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        sample, channel = np.argwhere(~np.isfinite(x.T))[0]
        raise InputError(
            f"the recording holds {x[channel, sample]} at channel {channel}, sample {start + sample}; "
            "cut it out or replace it"
        )


def _searched(course, begun, starts, n_samples, fs, began):
    seconds = time.monotonic() - began
    left = seconds / (course.done - begun) * (len(starts) - course.done)
    done = n_samples if course.done == len(starts) else starts[course.done]
    return Searched(done / fs, n_samples / fs, sum(len(part[0]) for part in course.found), seconds, left)


def _restored(keeper, starts, n_samples):
    if keeper.found is None:
        return _Course(0, 0, [])
    course = _read(keeper.found, (len(starts), n_samples))
    _LOG.info("going on at piece %d of %d", course.done, len(starts))
    return course


def _read(state, most):
    """Return the course in a checkpoint; `most` pieces and samples are possible."""
    done, first = (kept.value_of(state, name, int) for name in ("done", "first"))
    n = int(np.size(state.get("time")))
    found = tuple(kept.array_of(state, name, (n,), a.dtype) for name, a in zip(_NAMES, _NOTHING, strict=True))
    if done < 0 or first < 0 or (most is not None and (done > most[0] or first > most[1])):
        raise FileFormatError(f"the checkpoint is damaged: it has come to piece {done}, sample {first}")
    return _Course(done, first, [found])
