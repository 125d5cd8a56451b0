"""Spikes of a recording of any length, piece by piece, in memory that does not grow with it.

The recording is cut into pieces on a fixed grid, whatever is read at once. A piece is whitened and decided with margins
on both sides, from samples that depend on the grid alone, and neighbouring pieces are joined in the longest pause near
their border. So the spikes have the same bits however the recording is read, and wherever a search was interrupted.
"""

import contextlib
import logging
import time
from dataclasses import dataclass

import numpy as np

from emdl import checkpoint as kept
from emdl import cluster
from emdl.backend import parallel_map
from emdl.device import choose
from emdl.errors import FileFormatError, InputError
from emdl.spikes import decision, whitening
from emdl.spikes.recordings import check_range, check_values

_SMALL = 1 << 24  # values up to which a recording is checked as a whole before the search
_LOOKS, _LOOK = 16, 1 << 12  # places, and samples in each, that tell whether a channel of a larger one is dead
_FAR, _PER_THREAD = 4, 4  # blocks in a task of a worker, unless that makes less than so many tasks for each thread
_LOG = logging.getLogger(__name__)
KIND = "spikes.detect"  # of a checkpoint
RECORDING = "the recording (data)"  # in messages: what a command reads, and the parameter of a function


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


def search(data, model, *, block, keeper, device="cpu", progress=None, client=None):
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
    device : str
        As in `emdl.device.choose`.
    progress : callable, optional
        Called with a `Searched` after each block; a true return value ends the search.
    client : distributed.Client, optional
        Cluster of Dask whose workers read the recording and search it.

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
    starts = range(0, max(N - s + 1, 1), long)
    course = _restored(keeper, starts, N)
    begun, kept_at = course.done, began
    try:
        with contextlib.closing(_found(data, model, starts[begun:], max(1, block // long), device, client)) as found:
            for chosen, pieces in found:
                for events, start in zip(pieces, chosen, strict=True):
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
            check_range(looks.min(axis=1), looks.max(axis=1), data.dtype, RECORDING)
            return
    check_values(data, RECORDING)


def _take(course, events, end, model, n_samples):
    """Add the spikes of the next piece to a course."""
    last = decision.border(events.time, end, n_samples, model.waveforms.shape[2])
    part = events.take((events.time >= course.first) & (events.time < last) & (events.unit < model.n_units))
    course.found.append((part.time, part.unit.astype(np.int32), part.amplitude))
    course.first, course.done = last, course.done + 1


def _found(data, model, starts, at_once, device, client):
    """Give (starts, spikes of each) for neighbouring pieces that are read at once, in their order."""
    if client is not None:
        threads = sum(client.nthreads().values())
        at_once = max(1, min(_FAR * at_once, len(starts) // (_PER_THREAD * max(1, threads))))
    blocks = [starts[i : i + at_once] for i in range(0, len(starts), at_once)]
    if client is None:
        banks, xp = decision.Banks(model.units, model.whitening.density), choose(device)[0]
        yield from ((chosen, _pieces(data, model, banks, chosen, xp)) for chosen in blocks)
        return
    with contextlib.closing(
        cluster.spread(client, _far, (data, model, device), blocks, name="the recording")
    ) as pieces:
        yield from zip(blocks, pieces, strict=True)


def _far(shared, starts):
    """Return the spikes of neighbouring pieces, computed by a worker."""
    data, model, device = shared
    return _pieces(data, model, decision.Banks(model.units, model.whitening.density), starts, choose(device)[0])


def _pieces(data, model, banks, starts, xp):
    """Return the spikes of neighbouring pieces, which are read at once."""
    N, s, white = data.shape[1], model.waveforms.shape[2], model.whitening
    long = decision.piece_length(s)
    spare = decision.MARGIN * s
    low = max(0, starts[0] - spare - white.margin)
    x = np.asarray(data[:, low : min(N, starts[-1] + long + spare + white.margin)])
    _check_finite(x, low)
    lasts = model.drifted_for(data)

    def decided(start):
        a, b = max(0, start - spare), min(N, start + long + spare)
        ready = banks.at((start + long / 2) / lasts)
        return decision.piece(whitening.whiten(x, white, a - low, b - low), ready, model.duration_unit, a, xp)

    return list((parallel_map if xp is np else map)(decided, starts))


def _check_finite(x, start):
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        sample, channel = np.argwhere(~np.isfinite(x.T))[0]
        raise InputError(
            f"{RECORDING} holds {x[channel, sample]} at channel {channel}, sample {start + sample}; "
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
