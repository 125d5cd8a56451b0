"""Learning the units of a recording by expectation maximisation, their number included."""

import functools
import logging
import time
from dataclasses import dataclass, field, replace
from types import ModuleType

import numpy as np
from scipy.optimize import linear_sum_assignment

from emdl import checkpoint as kept
from emdl import model as core
from emdl.backend import as_rng, check_callable, check_count, with_one_blas_thread
from emdl.device import choose
from emdl.errors import FileFormatError, InputError
from emdl.spikes import (
    decision,
    drift,
    groups,
    number,
    probes,
    scales,
    snippets,
    start,
    trains,
    trust,
    update,
    whitening,
)
from emdl.spikes.detection import check_recording
from emdl.spikes.model import SpikeModel, mark

_LOG = logging.getLogger(__name__)
_STRETCH_UNITS, _PIECE_UNITS = 60_000, 2_000  # duration units learned from, at most, and in one piece
_CALM, _STILL = 0.2, 0.05  # change of a waveform below which more units are looked for, and below which it stands still
_FIRST_EVENTS, _FIRST_PIECES = 1500, 5  # learned from first, at least
_GROWTHS = 2  # times that units are looked for in the residual
_NEAR_ITER = 8  # iterations, at most, in one neighbourhood of channels
_TOGETHER = 8  # iterations, at most, on the units of all neighbourhoods together
_OPENED = 3  # of these, in which units may be split
_SETTLE = 4  # iterations at the end in which the number of units is not touched
_HISTORY = ("objective", "n_nonzero", "sigma", "change", "seconds", "n_units", "lmbd")
_UNITS = ("D", "mean", "spread", "rate")


@dataclass(frozen=True)
class Progress:
    """One EM iteration, as the callback sees it.

    Attributes
    ----------
    iteration, max_iter : int
        Number of this iteration, from 1, and the largest allowed.
    objective : float
        Negative log posterior of the spikes, up to a constant: half the squared residual, plus
        log N(a; mean_k, spread_k^2) and log odds of (S1) for each spike, with sign changed.
    n_nonzero : int
        Spikes.
    lmbd : ndarray (K,)
        Rates of (1) for `encode`, 1 / whitened unit.
    sigma : float
        Standard deviation of the residual, 1 where the noise is as the whitening supposes.
    change : float
        Largest sqrt(1 - <d, d_before>^2) of any template; 1 if the number of units changed.
    seconds : float
        Since the start.
    D : ndarray (K, C, s)
        Templates.
    """

    iteration: int
    max_iter: int
    objective: float
    n_nonzero: int
    lmbd: np.ndarray
    sigma: float
    change: float
    seconds: float
    D: np.ndarray


@dataclass(frozen=True)
class _Task:
    """What stays the same over all iterations: the whitened stretch and the same stretch in the pass band."""

    x: np.ndarray
    passed: np.ndarray
    whitening: whitening.Whitening
    scale: scales.Scale
    rng: np.random.Generator
    xp: ModuleType


@dataclass
class _Course:
    """How far EM has come: all that decides what it does next, besides the random numbers."""

    units: decision.Units
    n_events: int  # that stand out, which decides what is learned from first
    left: int | None = None  # stages, the present one included
    iteration: int = 0
    grown: int = 0
    held: int = 0  # units before the last were grown
    history: dict = field(default_factory=lambda: {name: [] for name in _HISTORY})
    ended: str = ""
    converged: bool = False

    def note(self, row):
        """Add an iteration to the history."""
        for name in _HISTORY[:5]:
            self.history[name].append(getattr(row, name))
        self.history["n_units"].append(len(row.D))
        self.history["lmbd"].append(float(np.exp(np.log(row.lmbd).mean())))


@np.errstate(under="ignore")  # of densities far from where anything is
@with_one_blas_thread
def fit(
    data, fs, *, n_units=None, window_ms=None, band=None, max_iter=15, rng=0, callback=None, device="cpu",
    checkpoint=None, checkpoint_every=kept.EVERY, resume=False, positions=None,
):  # fmt: skip
    """Learn the units of a recording: their number, waveforms, amplitudes and rates.

    The data are whitened (`emdl.spikes.whitening`). EM starts from the groups of events that stand out, and iterates:
    find the spikes under the current units by sparse coding with their priors (`emdl.spikes.decision`); take everything
    else out of each spike; average the spikes of each unit. On the way units are split, merged, and grown from the
    residual (`emdl.spikes.groups`), and at the end those that noise, many neurons together, or the tail of another unit
    would explain as well are left out (`emdl.spikes.trust`).

    Parameters
    ----------
    data : array (C, N) or (N,)
        Recording, any unit, any real dtype; may be memory-mapped. At most a minute of spikes is learned from, taken in
        pieces from all over the recording.
    fs : float
        Sampling rate, Hz. From 5 kHz on extracellular spikes are looked for, below slow events such as heartbeats; see
        `emdl.spikes.scales`.
    n_units : int, optional
        Number of units; by default it is found. If more are found, those that look alike are joined and the smallest
        left out; if fewer, what was doubtful is taken and the loosest units are halved.
    window_ms : float, optional
        Length of a waveform, ms; by default 3, or 300 for slow events. A long one sees late parts, and costs time.
    band : (float, float), optional
        Pass band, Hz; by default 300 to 6000, or 5 to 40 for slow events.
    max_iter : int
        Most EM iterations.
    rng : Generator, int or None
        Source of the random choices; the same seed gives the same model.
    callback : callable, optional
        Called with a `Progress` after each iteration; a true return value ends the fit.
    device : {"cpu", "cuda", "auto"}
        Where the sparse coding is done; ``cuda`` needs CuPy and a GPU, ``auto`` takes one where there is one. Filters
        and decisions stay on the CPU.
    checkpoint : path, optional
        File that keeps the state of the fit, see `emdl.em_fit`.
    checkpoint_every : float
        Seconds between two writes of it.
    resume : bool
        Go on from the checkpoint, if it exists: the model then has the bits that it would have had without the
        interruption.
    positions : array (C, m), optional
        Places of the channels, any unit. With more than 8 channels units are learned in neighbourhoods of channels (see
        `emdl.spikes.probes`); without places, channels that carry the same signal are taken to be near.

    Returns
    -------
    SpikeModel
        Units by decreasing size. None at all if the recording holds nothing but noise; its message says so.

    Raises
    ------
    InputTypeError
        If the data are not real numbers.
    InputError
        If the recording is too short, a value is not finite, a channel is constant, or a parameter lies outside its
        range.
    DeviceError
        If ``cuda`` was asked for and is not there.

    References
    ----------
    .. [1] R. Quian Quiroga, Z. Nadasdy, Y. Ben-Shaul, Unsupervised spike detection and sorting with wavelets and
       superparamagnetic clustering, Neural Comput. 16 (2004), doi:10.1162/089976604774201631.

    Examples
    --------
    >>> from emdl.simulate import tetrode
    >>> recording = tetrode(5.0, 2, rng=1)
    >>> fit(recording.data, recording.fs).n_units
    2
    """
    data, max_iter = check_recording(data), check_count(max_iter, "max_iter")
    check_callable(callback, "callback")
    positions = None if positions is None else _check_positions(positions, len(data))
    scale = scales.choose(fs, band=band, window_ms=window_ms)
    n_units, began = _check_units(n_units, scale, data), time.perf_counter()
    asked = {"data": data, "fs": fs, "n_units": n_units, "window_ms": window_ms, "band": band, "max_iter": max_iter}
    asked |= ({} if positions is None else {"positions": positions}) | {"rng": rng}
    with kept.Checkpoint(checkpoint, asked, kind="spikes.fit", every=checkpoint_every, resume=resume) as keeper:
        task = _task(data, scale, as_rng(rng), choose(device)[0])
        learn = _learn if len(data) <= probes.MOST else functools.partial(_learn_probe, positions=positions)
        learned = learn(task, max_iter, callback, began, keeper)
    return replace(_finish(task, *_asked_for(task, n_units, *learned)), learned=(data.shape[1], mark(data)))


def _check_units(n_units, scale, data):
    if n_units is None:
        return None
    n_units = check_count(n_units, "n_units")
    if n_units * scale.length > data.shape[1]:
        raise InputError(f"n_units is {n_units}, more waveforms than the recording of {data.shape[1]} samples can hold")
    return n_units


def _task(data, scale, rng, xp):
    """Return what all iterations work on."""
    white = whitening.learn(data, scale)
    x, passed = _stretch(data, white, scale)
    return _Task(x, passed, white, scale, rng, xp)


def _asked_for(task, n_units, course, units, n_found, said):
    """Return units, how many are no background, course and what is to be said, with the number of units asked for."""
    if n_found and n_units is not None:
        units, n_found = number.fewer(units, n_found, n_units, task.scale.unit)
        units, n_found = number.more(task.x, units, n_units, task.scale, task.whitening.density)
        said = [*said, *([] if n_found == n_units else [f"only {n_found} of {n_units} units could be told apart"])]
    if n_found == 0:
        course.converged = True
        said = ["no units: nothing in the recording stands out of the noise again and again", *said[1:]]
    return units, n_found, course, said


def _learn(task, max_iter, callback, began, keeper):
    """Learn the units of a few channels; return the course, units, how many to believe, and what is to be said."""
    if keeper.found is None:
        waveforms, n_events = start.waveforms(task.x, task.whitening, task.scale, task.rng)
        course = _Course(update.first_units(waveforms, task.scale), n_events)
    else:
        course = _restored(keeper.found, task)
        began -= max(course.history["seconds"], default=0)
    _iterate(_stages(task, course.n_events), course, max_iter, callback, began, keeper)
    units, n_found, said = course.units, len(course.units), [course.ended]
    if n_found:
        units, n_found, notes = trust.review(task.x, units, task.scale, task.whitening.density)
        said += notes
    return course, units, n_found, said


def _learn_probe(task, max_iter, callback, began, keeper, positions):
    """Learn the units of many channels, neighbourhood by neighbourhood, then together; return what `_learn` does."""
    distance = probes.distances(task.passed, positions)
    near, around = probes.neighbourhoods(distance), probes.nearest(distance)
    C, s = len(task.x), task.scale.length
    course = _restored(keeper.found, task) if keeper.found else _Course(_no_units(C, s), 0)
    began -= max(course.history["seconds"], default=0)
    max_iter = min(max_iter, _NEAR_ITER)
    passes = len(near) * max_iter + _TOGETHER
    for i in range(course.left or 0, len(near)):
        channels, n_core = near[i]
        part = replace(
            task, x=np.ascontiguousarray(task.x[channels]), passed=task.passed[channels],
            whitening=task.whitening.of_channels(channels), rng=np.random.default_rng(task.rng.integers(1 << 30)),
        )  # fmt: skip

        def count(row, done=i * max_iter):
            return callback is not None and callback(replace(row, iteration=done + row.iteration, max_iter=passes))

        own, units, _, _ = _learn(part, max_iter, count, began, kept.Checkpoint(None, {}, kind="spikes.fit"))
        core = np.flatnonzero(probes.in_core(units, n_core)) if len(units) else np.zeros(0, int)
        if len(core):
            events, left = decision.decide(part.x, units, task.scale.unit, density=task.whitening.density, xp=task.xp)
            found = probes.spread_out(
                task.x, left, events, units, core, channels, around, task.scale, task.whitening.density, part.rng
            )
            course.units = update.join(course.units, found)
        course.left = i + 1
        keeper.offer(_state_of(course, task.rng), now=i + 1 == len(near))
        if own.ended.startswith("stopped by the callback"):
            course.ended = own.ended
            break
    _join_neighbourhoods(task, course, around, len(near) * max_iter, passes, callback, began)
    if len(course.units) == 0:
        return course, course.units, 0, [course.ended]
    units, n_found, notes = trust.review(task.x, course.units, task.scale, task.whitening.density)
    return course, units, n_found, [course.ended, *notes]


def _join_neighbourhoods(task, course, around, done, passes, callback, began):
    """Learn on with the units of all neighbourhoods together, until they stand still."""
    for i in range(_TOGETHER):
        if len(course.units) == 0 or course.ended:
            break
        units = course.units
        made, events, residual = probes.step(
            task.x, units, around, task.scale, task.whitening.density, task.rng, task.xp, opened=i < _OPENED
        )
        change, course.units = _change(units, made), made
        row = _progress(task, units, events, residual, done + i + 1, passes, change, time.perf_counter() - began)
        course.note(row)
        if callback is not None and callback(row):
            course.ended = f"stopped by the callback after {i + 1} iterations on all channels"
        elif change < _STILL:
            course.converged, course.ended = True, f"converged after {i + 1} iterations on all channels"
    course.ended = course.ended or f"stopped after {_TOGETHER} iterations on all channels"


def _no_units(C, s):
    return decision.Units(np.zeros((0, C, s), np.float32), np.zeros(0), np.zeros(0), np.zeros(0))


def _iterate(stages, course, max_iter, callback, began, keeper):
    """Run EM on each stage until it stands still, or until the end of `max_iter` iterations."""
    if course.left is not None:
        del stages[: -course.left]
    if len(course.units) == 0 and not course.ended:
        course.converged, course.ended = True, "stopped at the start"
    while not course.ended:
        course.iteration += 1
        row = _step(stages, course, max_iter, began)
        course.note(row)
        course.left, change = len(stages), row.change
        if len(course.units) == 0 or (change < _STILL and len(stages) == 1):
            course.converged, course.ended = True, f"converged after {course.iteration} iterations"
        elif course.iteration >= max_iter:
            course.ended = f"stopped after max_iter = {max_iter} iterations"
        elif change < _STILL:
            course.grown = 0
            del stages[0]
            course.left -= 1
        keeper.offer(_state_of(course, stages[-1].rng), now=bool(course.ended))
        if callback is not None and callback(row):
            course.converged, course.ended = False, f"stopped by the callback after {course.iteration} iterations"


def _step(stages, course, max_iter, began):
    """Run one iteration on the present stage; the units of the course become the new ones."""
    opened = course.iteration <= max_iter - _SETTLE
    if not opened:
        del stages[:-1]
    task, units = stages[0], course.units
    # two neurons in one group show by spikes within the rest of a unit
    events, residual = decision.decide(
        task.x, units, task.scale.unit, density=task.whitening.density, rest=False, xp=task.xp
    )
    updated, change = _maximize(task, events, residual, units, opened)
    if opened and change < _CALM and course.grown and len(updated) <= course.held:
        course.grown = _GROWTHS  # what was found in the residual has vanished; it would again
    if opened and change < _CALM and course.grown < _GROWTHS:
        course.held = len(updated)
        found = update.grow(task.x, residual, events, task.whitening, task.scale, task.rng)
        course.grown, change = (course.grown + 1, 1.0) if len(found) else (_GROWTHS, change)
        updated = update.join(updated, found)
    course.units, seconds = updated, time.perf_counter() - began
    return _progress(task, units, events, residual, course.iteration, max_iter, change, seconds)


def _state_of(course, rng):
    """Return a course and the random numbers as the state that a checkpoint keeps."""
    names = ("n_events", "left", "iteration", "grown", "held", "ended", "converged")
    state = {name: getattr(course, name) for name in names} | {"rng": kept.of_rng(rng)}
    state |= {f"units_{name}": getattr(course.units, name) for name in _UNITS}
    state |= {} if course.units.waves is None else {"units_waves": course.units.waves}
    return state | {f"history_{name}": np.array(values, float) for name, values in course.history.items()}


def _restored(state, task):
    """Return the course in a checkpoint, and put the random numbers of the task into their state."""
    n, K = (int(np.size(state.get(name))) for name in ("history_objective", "units_rate"))
    shapes = [(K, len(task.x), task.scale.length), (K,), (K,), (K,)]
    units = [kept.array_of(state, f"units_{name}", s, None) for name, s in zip(_UNITS, shapes, strict=True)]
    if "units_waves" in state:
        units.append(kept.array_of(state, "units_waves", (K, drift.TERMS, *shapes[0][1:]), np.float32))
    history = {name: kept.array_of(state, f"history_{name}", (n,), np.float64).tolist() for name in _HISTORY}
    counts = [kept.value_of(state, name, int) for name in ("n_events", "left", "iteration", "grown", "held")]
    kept.set_rng(task.rng, kept.value_of(state, "rng", dict))
    n_events, left, iteration, grown, held = counts
    if iteration != n:
        raise FileFormatError(f"the checkpoint is damaged: it tells of {n} iterations and counts {iteration}")
    ended, converged = kept.value_of(state, "ended", str), kept.value_of(state, "converged", bool)
    return _Course(decision.Units(*units), n_events, left, iteration, grown, held, history, ended, converged)


def _check_positions(positions, n_channels):
    try:
        given = np.asarray(positions, dtype=np.float64)
    except (TypeError, ValueError):
        given = np.zeros(0)
    if given.ndim != 2 or len(given) != n_channels or not np.isfinite(given).all():
        raise InputError(
            f"positions have shape {given.shape}, wanted ({n_channels}, 2): a finite place of each channel"
        )
    return given


def _stretch(data, white, scale):
    """Return what is learned from, whitened and in the pass band: the recording, or pieces from all over it."""
    N, piece = data.shape[1], _PIECE_UNITS * scale.unit
    if _STRETCH_UNITS * scale.unit >= N:
        return whitening.whiten(data, white), whitening.band_pass(data, white)
    first = np.linspace(0, N - piece, _STRETCH_UNITS // _PIECE_UNITS).astype(int).tolist()
    pause = np.zeros((len(data), scale.length), np.float32)
    made = [
        np.concatenate([part for a in first for part in (function(data, white, a, a + piece), pause)], axis=1)
        for function in (whitening.whiten, whitening.band_pass)
    ]
    return made[0], made[1]


def _stages(task, n_events):
    """Return what is learned from first, a part of the stretch that has events enough, and then all of it."""
    N, piece = task.x.shape[1], _PIECE_UNITS * task.scale.unit
    pieces = N // piece
    share = max(_FIRST_PIECES, -(-pieces * _FIRST_EVENTS // max(n_events, 1)))
    if share > pieces // 2:
        return [task]
    at = (np.linspace(0, N - piece, share).astype(int)[:, None] + np.arange(piece)).ravel()
    return [replace(task, x=np.ascontiguousarray(task.x[:, at]), passed=task.passed[:, at]), task]


def _maximize(task, events, residual, units, opened):
    """M-step: return the units, and how much they changed; 1 if the number or alignment of the firm ones did."""
    s, N = task.scale.length, task.x.shape[1]
    events = update.inside(events, N, s, s + 8)
    whole = ~trains.parts(events, units, task.scale)
    found = [g for g in update.alone(events, len(units), s) if whole[events.unit[g.every[0]]]]
    lag = np.zeros(len(units), np.int64)
    if opened:
        least = max(2, task.scale.unit // 8)
        for k, by in update.recentre(task.passed, events, found, task.scale.before, s, least).items():
            lag[k] = by
    x = update.clean_spikes(residual, events, units, lag)
    if opened:
        found = groups.merge(
            x, events.amplitude, groups.split(x, found, events.time, N), task.scale.unit // 3, events.time, N,
            one_neuron=lambda a, b: trains.one_neuron(events.time[a.every], events.time[b.every], N, task.scale.unit),
        )  # fmt: skip
    updated = update.units_of(x, events.amplitude, found, N, task.whitening.density, events.time)
    return updated, 1.0 if lag[trust.firm(units)].any() else _change(units, updated)


def _change(before, after):
    """Return the largest change of the template of a unit; those at the edge of the noise need not come to rest."""
    before, after = before.take(trust.firm(before)), after.take(trust.firm(after))
    if len(before) != len(after):
        return 1.0
    inner = np.abs(np.tensordot(after.D.astype(np.float64), before.D, ((1, 2), (1, 2))))
    row, partner = linear_sum_assignment(inner, maximize=True)  # a group that was split and merged again has moved
    return float(np.sqrt(1 - inner[row, partner].clip(0, 1) ** 2).max(initial=0))


def _progress(task, units, events, residual, iteration, max_iter, change, seconds):
    """Return the state of an iteration, and log it."""
    mean, spread, logit = units.mean[events.unit], units.spread[events.unit], units.logit[events.unit]
    prior = 0.5 * ((events.amplitude - mean) / spread) ** 2 + 0.5 * np.log(2 * np.pi * spread**2) - logit
    energy = float(np.einsum("ij,ij->", residual, residual, dtype=np.float64))
    sigma = float(np.sqrt(energy / residual.size / task.whitening.density))
    objective = energy / 2 + float(prior.sum())
    state = Progress(iteration, max_iter, objective, len(events), units.lmbd, sigma, change, seconds, units.D)
    _LOG.info("iteration %d: %d units, %d spikes, change %.2g", state.iteration, len(units), len(events), change)
    return state


def _finish(task, units, n_units, course, said):
    """Return the model, with waveforms in data units."""
    scale, white = task.scale, task.whitening
    waveforms, spread = (w[:n_units] for w in _waveforms(task, units))
    peak = np.array([update.main_deflection(w) for w in waveforms], np.int64)
    history = {name: np.array(values, float) for name, values in course.history.items()}
    none = len(units) == 0
    D = np.zeros((1, len(task.x), scale.length), np.float32) if none else units.D
    model = core.Model(D, np.ones(1) if none else units.lmbd, 1.0, positive=True)
    kind = f"taken for {scale.kind}, {scale.band[0]:g} to {scale.band[1]:g} Hz"
    return SpikeModel(
        model, scale.fs, scale.band, scale.unit, white, waveforms, spread, peak, units.mean, units.spread, units.rate,
        history, course.converged, "; ".join([*said, *_drifting(units, n_units), kind]), units.waves,
    )  # fmt: skip


def _drifting(units, n_units):
    """Return what is to be said of units that drift, a list of one sentence or none."""
    if units.waves is None:
        return []
    size = [np.linalg.norm(units.at(u).mean[:, None, None] * units.at(u).D, axis=(1, 2)) for u in np.linspace(0, 1, 11)]
    names = [str(k) for k in np.flatnonzero(np.any(units.waves[:n_units] != 0, axis=(1, 2, 3)))]
    share = (np.max(size, axis=0) / np.maximum(np.min(size, axis=0), 1e-9))[:n_units].max(initial=1)
    size = f", whose size changes up to {share:.2g} times" if share > 1.05 else ""
    return [f"drift followed in unit{'s' * (len(names) > 1)} {', '.join(names)}{size}"] if names else []


def _waveforms(task, units):
    """Return mean and standard deviation of the spikes of each unit in the pass band, (K, C, s) each, data unit."""
    s, shape = task.scale.length, units.D.shape
    mean, spread = np.zeros(shape), np.zeros(shape)
    if len(units) == 0:
        return mean, spread
    events, _ = decision.decide(task.x, units, task.scale.unit, density=task.whitening.density, xp=task.xp)
    events = update.inside(events, task.x.shape[1], s, 4)
    if len(task.x) > probes.MOST:
        chosen = probes.chosen_spikes(events, units, task.scale, task.rng)
        groups_ = [groups.Group(*pair) for pair in chosen if len(pair[1])]
    else:
        groups_ = update.alone(events, len(units), s)
    for group in groups_:
        chosen, k = events.take(group.clean), int(events.unit[group.every[0]])
        x = snippets.cut(task.passed, chosen.time - 4, s + 8)
        x = snippets.advance(x, decision.shifts()[chosen.shift])[:, :, 4:-4]
        mean[k], spread[k] = x.mean(axis=0), x.std(axis=0)
    return mean, spread
