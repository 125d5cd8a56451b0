"""Many channels: units are learned in neighbourhoods of a few channels, and put together.

Every channel belongs to the core of one neighbourhood; channels near the core belong to it as a margin, so that units
there are told from those of the core. The EM of a tetrode runs in each neighbourhood, and units whose largest channel
lies in the core are kept. Then the units of all are learned on together: the spikes of all are found at once, and each
waveform is averaged on the channels where it has energy. The work grows with the number of channels, not its square.
"""

import numpy as np

from emdl.spikes import decision, groups, snippets, trains, trust, update
from emdl.spikes.decision import Units

MOST = 8  # channels that are learned as one neighbourhood
_CORE, _MARGIN = 4, 4  # channels of a neighbourhood
_REACH = 24  # channels on which the waveform of a unit is looked for
_LOOKED = 400  # spikes of a unit that its waveform is averaged from
_FELT, _CERTAIN = 1.0, 4.0  # energy, and energy over that of noise, that a channel must hold of a waveform to belong
_ALIKE, _COMMON = 0.8, 0.5  # cosine and share of common energy of two waveforms that may be of one unit
_FEW = 8  # spikes below which a unit is given up


def distances(x, positions=None):
    """Return how far channels are from one another, (C, C).

    Parameters
    ----------
    x : array (C, N)
        Signals in the pass band; without places, channels are near that carry the same.
    positions : array (C, m), optional
        Places of the channels.

    Returns
    -------
    ndarray (C, C)
    """
    if positions is not None:
        return np.linalg.norm(positions[:, None] - positions, axis=2)
    some = x[:, :: max(1, x.shape[1] // 200_000)].astype(np.float64)
    return 1 - np.abs(np.corrcoef(some))


def neighbourhoods(distance):
    """Return the channels of each neighbourhood, the core first, and how many belong to the core.

    Parameters
    ----------
    distance : array (C, C)
        Of channels.

    Returns
    -------
    list of (ndarray of int, int)
    """
    C = len(distance)
    left, found = np.ones(C, bool), []
    seed = int(distance.sum(axis=1).argmax())  # at one end of the probe
    while left.any():
        nearest = np.argsort(np.where(left, distance[seed], np.inf), kind="stable")
        core = nearest[: min(_CORE, int(left.sum()))]
        left[core] = False
        to_core = distance[core].min(axis=0)
        to_core[core] = np.inf
        margin = np.argsort(to_core, kind="stable")[: min(_MARGIN, C - len(core))]
        found.append((np.concatenate([core, margin]), len(core)))
        if left.any():
            seed = int(np.where(left, distance[~left].min(axis=0), np.inf).argmin())
    return found


def in_core(units, n_core):
    """Return which units of a neighbourhood have their largest channel in its core, (K,) of bool."""
    return (units.D.astype(np.float64) ** 2).sum(axis=2).argmax(axis=1) < n_core


def nearest(distance):
    """Return the channels nearest to each channel, which a unit with its largest deflection there may reach, (C, m)."""
    return np.argsort(distance, axis=1, kind="stable")[:, :_REACH]


def spread_out(x, part, events, units, core, channels, around, scale, density, rng):
    """Return units of a neighbourhood as units of all channels, with waveforms as their spikes have them there.

    Parameters
    ----------
    x : array (C, N)
        Whitened signal of all channels.
    part : array (M, N)
        What the spikes of the neighbourhood leave over of its channels.
    events : Events
        These spikes.
    units : Units
        Of the neighbourhood.
    core : ndarray of int
        Which of them are wanted.
    channels : ndarray (M,) of int
        Of the neighbourhood.
    around : ndarray (C, m) of int
        From `nearest`.
    scale : Scale
        Durations.
    density : float
        Variance of a sample of noise.
    rng : Generator
        Chooses the spikes that waveforms are averaged from.

    Returns
    -------
    Units
        Without drift.
    """
    inside = update.inside(events, x.shape[1], scale.length, 8)
    chosen, rows = chosen_spikes(inside, units, scale, rng), []
    for k in core.tolist():
        d = np.zeros((len(x), scale.length), np.float32)
        d[channels] = units.D[k]
        mean, spread = units.mean[k], units.spread[k]
        if len(chosen[k][0]):
            there = around[np.square(d).sum(axis=1).argmax()]
            there = np.union1d(there, channels[(units.D[k] != 0).any(axis=1)])
            own, known = inside.take(chosen[k][0]), np.isin(there, channels)
            pieces = spikes_of(x, own, np.zeros_like(d), there)
            here = np.searchsorted(channels[np.argsort(channels)], there[known])
            pieces[:, known] = spikes_of(part, own, units.D[k], np.argsort(channels)[here])
            d, mean, spread = _unit_of(pieces, own.amplitude, there, len(x), density)
        rows.append((d, mean, spread, units.rate[k]))
    if not rows:
        return Units(np.zeros((0, len(x), scale.length), np.float32), np.zeros(0), np.zeros(0), np.zeros(0))
    D, mean, spread, rate = zip(*rows, strict=True)
    return Units(np.array(D, np.float32), np.array(mean), np.array(spread), np.array(rate))


def step(x, units, around, scale, density, rng, xp=np, *, opened=True):
    """Find the spikes of all units at once and return the units that their spikes make, without duplicates.

    Parameters
    ----------
    x : array (C, N)
        Whitened signal.
    units : Units
        At least one.
    around : ndarray (C, m) of int
        From `nearest`.
    scale : Scale
        Durations.
    density : float
        Variance of a sample of noise.
    rng : Generator
        Chooses the spikes that waveforms are averaged from.
    xp : module
        As in `decision.decide`.
    opened : bool
        Whether units may be split.

    Returns
    -------
    Units
        Those with a few spikes.
    events : Events
    residual : ndarray (C, N)
    """
    # No pairs: while units are missing or wrong, two others would stand for a third, and learn to.
    events, residual = decision.decide(x, units, scale.unit, xp=xp)
    inside = update.inside(events, x.shape[1], scale.length, 8)
    chosen = chosen_spikes(inside, units, scale, rng)
    rows, spikes, part = [], [], trains.parts(inside, units, scale)
    for k, (clean, every) in enumerate(chosen):
        if len(every) < _FEW or part[k] or trust.difference(inside, units, k, x.shape[1], scale):
            continue
        there = around[np.square(units.D[k]).sum(axis=1).argmax()]
        there = np.union1d(there, np.flatnonzero((units.D[k] != 0).any(axis=1)))
        pieces = spikes_of(residual, inside.take(clean), units.D[k], there)
        for some in _parts(pieces, inside.time[clean], x.shape[1]) if opened else [np.arange(len(clean))]:
            share = len(some) / len(clean) * len(every)
            own = inside.amplitude[clean[some]]
            rows.append((*_unit_of(pieces[some], own, there, len(x), density), share / x.shape[1]))
            spikes.append((clean[some], every if len(some) == len(clean) else clean[some]))
    if not rows:
        return units.take([]), events, residual
    D, mean, spread, rate = zip(*rows, strict=True)
    made = Units(np.array(D, np.float32), np.array(mean), np.array(spread), np.array(rate))
    alone = _without_duplicates(made, spikes, inside, residual, units, x.shape[1], scale)
    return made.take(alone), events, residual


def _parts(pieces, time, n_samples):
    """Return the indices of the spikes of each neuron among those of a unit, one array or two."""
    every = np.arange(len(pieces))
    return [g.clean for g in groups.split(pieces, [groups.Group(every, every)], time, n_samples)]


def chosen_spikes(events, units, scale, rng):
    """Return for each unit some spikes that no other on its channels overlaps by half, and all its spikes.

    Parameters
    ----------
    events : Events
        By increasing time.
    units : Units
        All units.
    scale : Scale
        Durations.
    rng : Generator
        Chooses some.

    Returns
    -------
    list of (ndarray of int, ndarray of int)
        Indices of spikes.
    """
    on = (units.D != 0).any(axis=2).astype(np.float32)
    near = on @ on.T > 0
    found = []
    for k in range(len(units)):
        around = np.flatnonzero(near[k][events.unit])
        gap = np.diff(events.time[around]) > scale.length // 2
        single = np.append(True, gap) & np.append(gap, True)
        own = events.unit[around] == k
        every, clean = around[own], around[own & single]
        clean = clean if len(clean) >= max(15, 0.2 * len(every)) else every
        if len(clean) > _LOOKED:
            clean = np.sort(rng.choice(clean, _LOOKED, replace=False))
        found.append((clean, every))
    return found


def spikes_of(residual, events, template, channels):
    """Return spikes of one unit on some channels with everything else taken out, aligned to parts of a sample."""
    room = 4
    s = template.shape[-1]
    x = snippets.cut(residual[channels], events.time - room, s + 2 * room)
    if template.any():
        moved = decision.bank(template[None])[0][:, channels]
        x[:, :, room : room + s] += events.amplitude[:, None, None] * moved[events.shift]
    return snippets.advance(x, decision.shifts()[events.shift])[:, :, room : room + s]


def _unit_of(x, weight, there, n_channels, density):
    """Return template on all channels, mean and spread of the amplitudes of spikes (n, m, s) on channels `there`."""
    mean = np.tensordot(weight, x, 1) / weight.sum()
    energy = (mean.astype(np.float64) ** 2).sum(axis=1)
    noise = np.maximum(x.var(axis=0, dtype=np.float64).sum(axis=1), density * x.shape[2]) / len(x)
    near = energy > np.maximum(_FELT, _CERTAIN * noise)  # what is left out is left over, and looks like a unit
    near[energy.argmax()] = True
    mean[~near] = 0
    d = np.zeros((n_channels, x.shape[2]), np.float32)
    d[there] = mean / np.linalg.norm(mean)
    amplitude = np.tensordot(x, d[there], 2)
    middle = float(np.median(amplitude))
    return d, middle, update.spread_of(amplitude, middle)


def _without_duplicates(made, chosen, events, residual, units, n_samples, scale):
    """Return the indices of units that are not the same as a larger one, (K',) of int."""
    energy = (made.D.astype(np.float64) ** 2).sum(axis=2)
    kept = []
    for k in np.argsort(-np.array([len(every) for _, every in chosen]), kind="stable").tolist():
        same = False
        for j in kept:
            common = np.minimum(energy[j], energy[k]).sum()
            if common < _COMMON or snippets.best_lag(made.D[j], made.D[k], scale.unit // 3)[1] < _ALIKE:
                continue
            lag = snippets.best_lag(made.D[j], made.D[k], scale.unit // 3)[0]
            channels = np.flatnonzero(energy[j] + energy[k] > 0)
            x = [spikes_of(residual, events.take(chosen[i][0]), units.D[int(events.unit[chosen[i][0][0]])], channels)
                 for i in (j, k)]  # fmt: skip
            times = [events.time[chosen[i][1]] for i in (j, k)]
            same = trains.one_neuron(times[0], times[1], n_samples, scale.unit) or not groups.separate(
                x[0], x[1], lag, [events.time[chosen[i][0]] for i in (j, k)], n_samples
            )
            if same:
                break
        if not same:
            kept.append(k)
    return np.sort(np.array(kept, int))
