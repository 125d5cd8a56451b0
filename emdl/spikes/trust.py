"""Which units to believe: those that neither noise, nor many neurons, nor another unit would explain as well."""

import numpy as np
import scipy.signal

from emdl.backend import parallel_map
from emdl.spikes import decision, kernels, trains
from emdl.spikes.number import pool
from emdl.spikes.snippets import best_lag, delay

_DECOYS = 0.3  # spikes found in the residual turned upside down, per spike
FREE = 0.05  # share of a recording without spikes, below which it says nothing of the noise
_MIXED = 0.5  # intervals in the refractory period, per interval there if spikes came at random
_STRONG = 8.0  # mean amplitude from which on a unit may have short intervals: two neurons, but no noise
_PIECE = 1 << 16  # samples looked at by one thread
_LEFT = 0.15  # share of a waveform that two spikes of other units leave over, beside the noise
_SAME_SHAPE = 0.9  # cosine from which on small spikes may be the later ones of a burst
_RARE = 0.3  # spikes of a unit made of others, per spike of the rarer of them
_BESIDE = 0.5  # share of spikes beyond chance, that come with those of another unit
_ABOVE = 0.9  # standard deviations of the noise between mean amplitude and threshold


def firm(units):
    """Return which units stand clear of their threshold, (K,) of bool: else more than half of the spikes are missed."""
    return units.mean - units.threshold > _ABOVE


def review(x, units, scale, density=None):
    """Return the units in the order of belief, and what speaks against those not believed.

    Parameters
    ----------
    x : array (C, N)
        Whitened signal.
    units : Units
        At least one.
    scale : Scale
        Durations.
    density : float, optional
        As in `decision.decide`.

    Returns
    -------
    Units
        Those to believe, by decreasing size, and after them the background: what is no single neuron, but would be
        taken for spikes of the others if it were not in the model.
    n_units : int
        How many to believe.
    notes : list of str
        A sentence for each of the others.
    """
    events, residual = decision.decide(x, units, scale.unit, density=density, rest=False)
    count = np.bincount(events.unit, minlength=len(units))
    decoy, clear = decoys(residual, events, units, scale.unit), firm(units)
    units, burst = join_bursts(events, units, scale)
    believed, background, notes = [], [], []
    for k in np.argsort(-units.mean, kind="stable").tolist():
        times = events.time[events.unit == k]
        short = trains.short_intervals(times, x.shape[1], scale.unit)
        if k in burst:
            continue
        if composed(units, count, k, scale):
            notes.append((k, "spikes of other units on top of each other look like it"))
            continue
        if difference(events, units, k, x.shape[1], scale):
            notes.append((k, "they come with those of another unit, and both together look like a third"))
            continue
        if not clear[k] or decoy[k] > _DECOYS * max(count[k], 1):
            reason = "most of its spikes drown in the noise"
        elif units.mean[k] < _STRONG and short > _MIXED:
            reason = f"its intervals are as short as those of many neurons ({short:.0%} of chance)"
        elif trains.clocked(times, scale.unit):
            reason = "they come at equal intervals, like those of a clock or a stimulator"
        elif trains.tied(times, events, units, k, x.shape[1], scale):
            reason = "they lie beside the spikes of larger units"
        else:
            believed.append(k)
            continue
        background.append(k)
        notes.append((k, reason))
    said = [f"no unit: {count[k]} events of {units.mean[k]:.1f} times the noise, as {why}" for k, why in notes]
    return units.take(np.array(believed + background, int)), len(believed), said


def join_bursts(events, units, scale):
    """Return units that are one neuron as one: small spikes of the same shape that follow large ones in a burst.

    Parameters
    ----------
    events : Events
        All spikes.
    units : Units
        All units.
    scale : Scale
        Durations.

    Returns
    -------
    Units
        Those that others were joined to have a wider spread of amplitudes.
    joined : set of int
        Which were joined to others, and are to be left out.
    """
    count, joined = np.bincount(events.unit, minlength=len(units)), set()
    order = np.argsort(units.mean).tolist()
    for small in order:
        for large in reversed(order):
            m = units.mean[[large, small]]
            if not (m[1] > kernels.LEAST * m[0] and m[0] > m[1]) or small in joined:
                continue
            if best_lag(units.D[large], units.D[small], scale.unit // 3)[1] < _SAME_SHAPE:
                continue
            if trains.follows(events.time[events.unit == small], events.time[events.unit == large], scale.unit):
                units = pool(units, large, small, count[[large, small]])
                joined.add(small)
    return units, joined


def decoys(residual, events, units, unit_length):
    """Return how many spikes of each unit a signal that holds none would give: those of the residual upside down, (K,).

    Parameters
    ----------
    residual : array (C, N)
        Without spikes.
    events : Events
        The spikes; what they leave over is no noise, so it is left out, and the count is scaled up.
    units : Units
        Templates and amplitudes.
    unit_length : int
        Duration unit, samples.

    Returns
    -------
    ndarray (K,)
    """
    s, ready = units.D.shape[-1], decision.prepare(units)
    n = residual.shape[1] - s + 1
    free = free_of(events, n, s)
    if free.mean() < FREE:
        return np.zeros(len(units))

    def counted(start):
        product = -decision.products(residual[:, start : start + _PIECE + s - 1], ready)
        product[:, ~free[start : start + _PIECE]] = 0
        return [
            len(scipy.signal.find_peaks(p, height=threshold, distance=max(1, unit_length // 2))[0])
            for p, threshold in zip(product, units.threshold, strict=True)
        ]

    return np.sum(parallel_map(counted, range(0, n, _PIECE)), axis=0) / free.mean()


def free_of(events, n, s):
    """Return at which of n places a template of s samples overlaps none of some spikes, (n,) of bool."""
    edge = np.zeros(n + 1, np.int64)
    np.add.at(edge, np.maximum(events.time - s, 0), 1)
    np.add.at(edge, np.minimum(events.time + s, n), -1)
    return np.cumsum(edge)[:-1] == 0


def composed(units, count, k, scale):
    """Return whether a unit is two spikes of other units on top of each other.

    Parameters
    ----------
    units : Units
        All units.
    count : array (K,) of int
        Their spikes.
    k : int
        Which unit.
    scale : Scale
        Durations.

    Returns
    -------
    bool
    """
    common = np.flatnonzero(_RARE * count > count[k])
    if len(common) < 2:
        return False
    s = units.D.shape[-1]
    x = np.pad(units.mean[k] * units.D[k], ((0, 0), (s, s))).astype(np.float32)
    events, residual = decision.decide(x, units.take(common), scale.unit)
    return len(events) > 1 and float(np.linalg.norm(residual)) < 1 + _LEFT * units.mean[k]


def difference(events, units, k, n_samples, scale):
    """Return whether a unit is what one unit has beyond another: its spikes complete those of that to the former.

    Parameters
    ----------
    events : Events
        All spikes.
    units : Units
        All units.
    k : int
        Which unit.
    n_samples : int
        Of the signal.
    scale : Scale
        Durations.

    Returns
    -------
    bool
    """
    times = events.time[events.unit == k]
    waveform = units.mean[:, None, None] * units.D
    for j in range(len(units)):
        others = events.time[events.unit == j]
        if j == k or len(others) < len(times) or len(times) == 0:
            continue
        lag = trains.nearest(others, times) - times
        beside = np.abs(lag) < scale.unit // 2
        chance = 1 - np.exp(-scale.unit * len(others) / n_samples)
        if beside.mean() < chance + _BESIDE * (1 - chance):
            continue
        both = delay(waveform[k], -int(np.median(lag[beside]))) + waveform[j]
        for i in np.setdiff1d(np.arange(len(units)), (j, k)):
            product = units.mean[i] * best_lag(both, units.D[i], scale.unit // 2)[1]
            left = np.square(both).sum() + units.mean[i] ** 2 - 2 * product
            if left < (1 + _LEFT * units.mean[i]) ** 2:
                return True
    return False
