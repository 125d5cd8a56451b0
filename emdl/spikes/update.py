"""The M-step of spikes: waveforms, amplitudes and rates of the units, and their number, from the spikes found."""

import numpy as np

from emdl.spikes import decision, drift, snippets, start
from emdl.spikes.decision import Units
from emdl.spikes.groups import Group

_LEAST_SPREAD, _MOST_SPREAD, _FIRST_SPREAD = 0.08, 0.35, 0.15  # of the mean amplitude
_FIRST_RATE = 0.005  # spikes in a duration unit
_RARE = 0.3  # spikes of a group per spike of another one, below which it may consist of overlaps
_HELD = 0.97  # energy that the window of a unit holds, of what it could hold elsewhere
_UPRIGHT = 1.5  # peak over trough from which on a spike is timed by its peak
_FEW = 8  # spikes below which a unit is given up
_RAGGED = (0.01, 0.1)  # energy beside the waveform, of the spike's and of the noise's, beyond which spikes are ragged
_SPARE = 4  # samples cut on either side for shifts by parts of a sample


def first_units(waveforms, scale):
    """Return units with the given waveforms, and amplitudes and rates for want of better.

    Parameters
    ----------
    waveforms : array (K, C, s)
        In whitened units.
    scale : Scale
        Durations.

    Returns
    -------
    Units
    """
    norm = np.sqrt((waveforms.astype(np.float64) ** 2).sum(axis=(1, 2)))
    D = (waveforms / np.maximum(norm, 1e-9)[:, None, None]).astype(np.float32)
    return Units(D, norm, _FIRST_SPREAD * norm, np.full(len(norm), _FIRST_RATE / scale.unit))


def join(first, second):
    """Return the units of both."""
    D, mean, spread, rate = (
        np.concatenate([getattr(first, n), getattr(second, n)]) for n in ("D", "mean", "spread", "rate")
    )
    waves = [w for u in (first, second) for w in (u.waves if u.waves is not None else [None] * len(u))]
    return Units(D, mean, spread, rate, drift.stacked(waves, D))


def clean_spikes(residual, events, units, lag, spare=_SPARE):
    """Return spikes with everything else taken out, aligned to parts of a sample.

    Parameters
    ----------
    residual : array (C, N)
        What no spike explains.
    events : Events
        Those whose windows lie inside, see `inside`.
    units : Units
        That the spikes are of.
    lag : array (K,) of int
        Samples by which the windows of each unit are moved to the right.
    spare : int
        Samples cut on either side beyond that.

    Returns
    -------
    ndarray (n, C, s) of float32
    """
    s, room = units.D.shape[-1], spare + int(np.abs(lag).max(initial=0))
    x = snippets.cut(residual, events.time - room, s + 2 * room)
    for chosen, then in decision.moments(events.time, units, residual.shape[1]):
        template = decision.bank(then.D)[events.unit[chosen], events.shift[chosen]]
        x[chosen, :, room : room + s] += events.amplitude[chosen, None, None] * template
    x = snippets.advance(x, decision.shifts()[events.shift])
    out = np.empty((len(x), x.shape[1], s), np.float32)
    for by in np.unique(lag[events.unit]):
        chosen = lag[events.unit] == by
        out[chosen] = x[chosen, :, room + by : room + by + s]
    return out


def inside(events, n_samples, length, room):
    """Return the spikes whose windows, widened by `room` samples on both sides, lie inside the signal."""
    return events.take((events.time >= room) & (events.time <= n_samples - length - room))


def alone(events, K, length):
    """Return a group per unit: all its spikes, and those that no other overlaps by half, where they are enough.

    Parameters
    ----------
    events : Events
        By increasing time.
    K : int
        Number of units.
    length : int
        Of a template, samples.

    Returns
    -------
    list of Group
        Of the units with a few spikes at least.
    """
    pause = np.diff(events.time) > length // 2
    single = np.append(True, pause) & np.append(pause, True)
    found = []
    for k in range(K):
        every = np.flatnonzero(events.unit == k)
        clean = every[single[every]]
        if len(every) >= _FEW:
            found.append(Group(clean if len(clean) >= max(15, 0.2 * len(every)) else every, every))
    return found


def main_deflection(waveform):
    """Return the sample of a waveform (C, s) at which its spikes are said to be.

    The trough, as is usual for extracellular spikes, or the peak if that is more than 1.5 times as large.
    """
    low, high = waveform.min(axis=0), waveform.max(axis=0)
    return int(high.argmax() if high.max() > _UPRIGHT * -low.min() else low.argmin())


def recentre(passed, events, groups_, before, length, least):
    """Return by how much the windows of each unit must move to hold its waveform.

    The main deflection goes where it belongs, unless another place of the window holds more of the energy.

    Parameters
    ----------
    passed : array (C, N)
        The signal in the pass band, data unit.
    events : Events
        Spikes; `before` samples on either side of their windows lie inside.
    groups_ : list of Group
        From `alone`.
    before : int
        Where the main deflection belongs, samples from the start of the window.
    length : int
        Of a window, samples.
    least : int
        Moves smaller than this are left out.

    Returns
    -------
    dict of int to int
        Lag of each unit that has a group.
    """
    lags = {}
    for group in groups_:
        mean = snippets.cut(passed, events.time[group.clean] - before, length + 2 * before).mean(axis=0)
        held = np.convolve((mean**2).sum(axis=0), np.ones(length), "valid")  # by a window that starts there
        start = int(np.clip(main_deflection(mean[:, before:-before]), 0, 2 * before))
        if held[start] < _HELD * held.max():
            start = int(held.argmax())
        lags[int(events.unit[group.every[0]])] = start - before if abs(start - before) >= least else 0
    return lags


def units_of(x, weight, groups_, n_samples, density, time=None):
    """Return the units that groups of spikes make.

    Parameters
    ----------
    x : array (n, C, s)
        Spikes, aligned.
    weight : array (n,)
        Their amplitudes.
    groups_ : list of Group
        One per unit.
    n_samples : int
        Of the signal, for the rates.
    density : float
        Variance of a sample of noise.
    time : array (n,), optional
        Of the spikes, samples; without it no drift is looked for.

    Returns
    -------
    Units
        Without the groups whose spikes look too little like each other and are so rare that they may be overlaps of the
        spikes of other units.
    """
    rows, count = [], np.array([len(group.every) for group in groups_])
    for group, n in zip(groups_, count, strict=True):
        u = None if time is None else time[group.clean] / n_samples
        d, mean, spread, waves, misfit = _unit_of(x[group.clean], weight[group.clean], u, density)
        bound = _RAGGED[0] * mean**2 + (1 + _RAGGED[1]) * density * d.size
        if misfit < bound or np.count_nonzero(n < _RARE * count) < 2:
            rows.append((d, mean, spread, n / n_samples, waves))
    if not rows:
        return Units(np.zeros((0, *x.shape[1:]), np.float32), np.zeros(0), np.zeros(0), np.zeros(0))
    D, mean, spread, rate, waves = zip(*rows, strict=True)
    return Units(np.array(D, np.float32), np.array(mean), np.array(spread), np.array(rate), drift.stacked(waves, D))


def _unit_of(x, weight, u, density):
    """Return template, mean and spread of the amplitudes, drift, and median energy that these leave over."""
    d = np.tensordot(weight, x, 1)
    d = d / np.linalg.norm(d)
    waves = None if u is None else drift.series(x, u, density)
    if waves is None:
        amplitude = np.tensordot(x, d, 2)
        mean = float(np.median(amplitude))
        spread = spread_of(amplitude, mean)
    else:
        waveform = x.mean(axis=0)
        mean = float(np.linalg.norm(waveform))
        d, now = waveform / mean, waveform + np.tensordot(drift.terms(u), waves, 1)
        size = np.sqrt((now**2).sum(axis=(1, 2)))
        amplitude = (x * now).sum(axis=(1, 2)) / size
        spread = spread_of(mean * amplitude / size, mean)
    return d, mean, spread, waves, float(np.median((x**2).sum(axis=(1, 2)) - amplitude**2))


def spread_of(amplitude, mean):
    """Return the standard deviation of amplitudes (n,) about their mean, without the noise, within bounds."""
    variance = (np.median(np.abs(amplitude - mean)) / 0.6745) ** 2 - 1  # the noise has variance 1
    return float(np.clip(np.sqrt(max(variance, 0)), _LEAST_SPREAD * mean, _MOST_SPREAD * mean))


def grow(x, residual, events, whitening, scale, rng):
    """Return units for the events that stand out of the residual, away from the spikes that are known.

    Parameters
    ----------
    x : array (C, N)
        Whitened signal.
    residual : array (C, N)
        Without the spikes.
    events : Events
        The spikes.
    whitening : Whitening
        How the signal was made.
    scale : Scale
        Durations.
    rng : Generator
        Source of the random choices.

    Returns
    -------
    Units
        Maybe none.
    """
    edge = np.zeros(x.shape[1] + 1, np.int64)
    np.add.at(edge, np.maximum(events.time - scale.unit // 2, 0), 1)
    np.add.at(edge, np.minimum(events.time + scale.length, x.shape[1]), -1)
    covered = np.cumsum(edge)[:-1] > 0
    return first_units(start.waveforms(residual, whitening, scale, rng, covered=covered)[0], scale)
