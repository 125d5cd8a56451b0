"""Which units to believe: those that neither noise, nor many neurons, nor another unit would explain as well."""

import numpy as np
import scipy.signal

from emdl.ops import analyze_full
from emdl.spikes import decision, kernels
from emdl.spikes.number import pool
from emdl.spikes.snippets import best_lag

_DECOYS = 0.3  # spikes found in the residual turned upside down, per spike
_FREE = 0.05  # share of a recording without spikes, below which it says nothing of the noise
_MIXED = 0.5  # intervals in the refractory period, per interval there if spikes came at random
_STRONG = 8.0  # mean amplitude from which on a unit may have short intervals: two neurons, but no noise
_EXPECTED = 5.0  # short intervals to expect at random, below which their number says nothing
_TIED = 0.5  # spikes in the windows of larger units beyond chance, of those that could be
_SMALL = 0.5  # amplitude relative to that unit
_LEFT = 0.15  # share of a waveform that two spikes of other units leave over, beside the noise
_SAME_SHAPE, _BURST, _FOLLOWING = 0.9, 10, 0.6  # cosine; duration units; share of spikes that follow within a burst
_ALONE = 0.1  # short intervals between two trains, per interval there by chance, below which they are one neuron
_WITH = 0.6  # share of the spikes of a part of a waveform that come with the rest of it
_RARE = 0.3  # spikes of a unit made of others, per spike of the rarer of them
_ABOVE = 0.9  # standard deviations of the noise between mean amplitude and threshold


def firm(units):
    """Return which units stand clear of their threshold, (K,) of bool: else more than half of the spikes are missed."""
    return units.mean - units.threshold > _ABOVE


def review(x, units, scale):
    """Return the units in the order of belief, and what speaks against those not believed.

    Parameters
    ----------
    x : array (C, N)
        Whitened signal.
    units : Units
        At least one.
    scale : Scale
        Durations.

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
    events, residual = decision.decide(x, units, scale.unit, rest=False)
    count = np.bincount(events.unit, minlength=len(units))
    decoy, clear = decoys(residual, events, units, scale.unit), firm(units)
    units, burst = join_bursts(events, units, scale)
    believed, background, notes = [], [], []
    for k in np.argsort(-units.mean, kind="stable").tolist():
        times = events.time[events.unit == k]
        short = short_intervals(times, x.shape[1], scale.unit)
        if k in burst:
            continue
        if composed(units, count, k, scale):
            notes.append((k, "spikes of other units on top of each other look like it"))
            continue
        if not clear[k] or decoy[k] > _DECOYS * max(count[k], 1):
            reason = "most of its spikes drown in the noise"
        elif units.mean[k] < _STRONG and short > _MIXED:
            reason = f"its intervals are as short as those of many neurons ({short:.0%} of chance)"
        elif tied(times, events, units, k, x.shape[1], scale):
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
            if follows(events.time[events.unit == small], events.time[events.unit == large], scale.unit):
                units = pool(units, large, small, count[[large, small]])
                joined.add(small)
    return units, joined


def one_neuron(first, second, n_samples, unit_length):
    """Return whether two trains keep out of each other's way as only the spikes of one neuron do.

    Two neurons that fire on their own have spikes within 0.5 to 2.5 duration units of each other as often as chance has
    it; one neuron, whose spikes fell into two groups as their size changes, has none.

    Parameters
    ----------
    first, second : array (n,), (m,)
        Spikes, samples.
    n_samples : int
        Of the signal.
    unit_length : int
        Duration unit, samples.

    Returns
    -------
    bool
        False if too few are to be expected by chance.
    """
    expected = 4 * unit_length * len(first) * len(second) / n_samples
    if expected < _EXPECTED:
        return False
    second = np.sort(second)
    near = [np.searchsorted(second, first + lag * unit_length).sum() for lag in (-2.5, -0.5, 0.5, 2.5)]
    return bool(near[1] - near[0] + near[3] - near[2] < _ALONE * expected)


def parts(events, units, scale):
    """Return which units only complete the waveform of a larger one, as most of their spikes come at one lag to its.

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
    ndarray (K,) of bool
    """
    K, width = len(units), max(2, scale.unit // 4)
    times = [events.time[events.unit == k] for k in range(K)]
    part = np.zeros(K, bool)
    for small in np.argsort(units.mean, kind="stable").tolist():
        for large in np.flatnonzero((units.mean > units.mean[small]) & ~part).tolist():
            if 0 < len(times[small]) <= len(times[large]) / _WITH:
                near = np.clip(np.searchsorted(times[large], times[small])[:, None] + (-1, 0), 0, len(times[large]) - 1)
                lag = (times[small][:, None] - times[large][near]).ravel()
                lag = np.sort(lag[np.abs(lag) < scale.length])
                together = np.searchsorted(lag, lag + width, side="right") - np.arange(len(lag))
                part[small] |= together.max(initial=0) > _WITH * len(times[small])
    return part


def follows(small, large, unit_length):
    """Return whether most spikes of one train come within a burst, 10 duration units, after those of another.

    Parameters
    ----------
    small, large : array (n,), (m,)
        Spikes, increasing, samples.
    unit_length : int
        Duration unit, samples.

    Returns
    -------
    bool
    """
    if len(small) == 0 or len(large) == 0:
        return False
    lag = small - large[np.maximum(np.searchsorted(large, small) - 1, 0)]
    return bool(np.mean((lag > 0) & (lag < _BURST * unit_length)) > _FOLLOWING)


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
    product = analyze_full(-residual[None], units.D, (1,))[0]
    edge, s = np.zeros(product.shape[1] + 1, np.int64), units.D.shape[-1]
    np.add.at(edge, np.maximum(events.time - s, 0), 1)
    np.add.at(edge, np.minimum(events.time + s, product.shape[1]), -1)
    free = np.cumsum(edge)[:-1] == 0
    if free.mean() < _FREE:
        return np.zeros(len(units))
    product[:, ~free] = 0
    found = [
        len(scipy.signal.find_peaks(p, height=threshold, distance=max(1, unit_length // 2))[0])
        for p, threshold in zip(product, units.threshold, strict=True)
    ]
    return np.array(found) / free.mean()


def short_intervals(times, n_samples, unit_length):
    """Return how many intervals lie within two duration units, over how many would if spikes came at random.

    Parameters
    ----------
    times : array (n,)
        Spikes of one unit, increasing, samples.
    n_samples : int
        Of the signal.
    unit_length : int
        Duration unit, samples; intervals of less than half of it are not counted, as they cannot be told apart.

    Returns
    -------
    float
        0 if too few are to be expected.
    """
    expected = len(times) ** 2 * 1.5 * unit_length / n_samples
    interval = np.diff(times)
    found = np.count_nonzero((interval > 0.5 * unit_length) & (interval < 2 * unit_length))
    return found / expected if expected >= _EXPECTED else 0.0


def tied(times, events, units, k, n_samples, scale):
    """Return whether the spikes of a unit lie in the windows of larger ones, as what those leave over would.

    Parameters
    ----------
    times : array (n,)
        Spikes of the unit, samples.
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
    large = np.sort(events.time[units.mean[events.unit] * _SMALL > units.mean[k]])
    if len(large) == 0 or len(times) == 0:
        return False
    near = np.clip(np.searchsorted(large, times)[:, None] + (-1, 0), 0, len(large) - 1)
    beside = (np.abs(times[:, None] - large[near]) < scale.length).any(axis=1).mean()
    chance = 1 - np.exp(-2 * scale.length * len(large) / n_samples)
    return bool(beside > chance + _TIED * (1 - chance))


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
