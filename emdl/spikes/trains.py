"""What the times of spikes say about units: one neuron, many, or a part of one."""

import numpy as np

_EXPECTED = 5.0  # short intervals to expect at random, below which their number says nothing
_TIED = 0.5  # spikes in the windows of larger units beyond chance, of those that could be
_SMALL = 0.5  # amplitude relative to that unit
_BURST, _FOLLOWING = 10, 0.6  # duration units that a burst lasts; share of spikes that follow others within one
_ALONE = 0.1  # short intervals between two trains, per interval there by chance, below which they are one neuron
_TICKS, _SLOW, _REGULAR = 9, 20, 0.8  # intervals at least; duration units of one; share of equal ones, of a clock
_PARTS = 20  # of a recording, in which chance is taken to be the same
_WITH = 0.6  # share of the spikes of a part of a waveform that come with the rest of it


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
    parts = np.linspace(0, n_samples, _PARTS + 1)  # two that are never active together tell nothing
    together = (np.histogram(first, parts)[0] * np.histogram(second, parts)[0]).sum()
    expected = 4 * unit_length * together * _PARTS / n_samples
    if expected < _EXPECTED:
        return False
    second = np.sort(second)
    near = [np.searchsorted(second, first + lag * unit_length).sum() for lag in (-2.5, -0.5, 0.5, 2.5)]
    return bool(near[1] - near[0] + near[3] - near[2] < _ALONE * expected)


def clocked(times, unit_length):
    """Return whether nearly all spikes come at one interval, to the sample, as those of a stimulator or a clock do.

    Parameters
    ----------
    times : array (n,)
        Spikes of one unit, increasing, samples.
    unit_length : int
        Duration unit, samples; shorter intervals than 20 of them, such as those of a heart, are left alone.

    Returns
    -------
    bool
    """
    interval = np.diff(times)
    if len(interval) < _TICKS:
        return False
    usual = np.median(interval)
    same = np.abs(interval - usual) <= max(1, unit_length // 15)
    return bool(usual > _SLOW * unit_length and same.mean() > _REGULAR)


def nearest(first, second):
    """Return the spike of a train, not empty and increasing, that is nearest to each spike of another, (m,)."""
    near = np.clip(np.searchsorted(first, second)[:, None] + (-1, 0), 0, len(first) - 1)
    return first[np.where(np.abs(first[near] - second[:, None]).argmin(axis=1) == 1, near[:, 1], near[:, 0])]


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
    shares = (np.any(units.D[k] != 0, axis=1) & np.any(units.D != 0, axis=2)).any(axis=1)  # a channel
    large = np.sort(events.time[(shares & (units.mean * _SMALL > units.mean[k]))[events.unit]])
    if len(large) == 0 or len(times) == 0:
        return False
    beside = (np.abs(nearest(large, times) - times) < scale.length).mean()
    chance = 1 - np.exp(-2 * scale.length * len(large) / n_samples)
    return bool(beside > chance + _TIED * (1 - chance))


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


def correlogram(first, second, reach, bins):
    """Return how often a spike of one train comes at each lag to a spike of another.

    Parameters
    ----------
    first, second : array (n,), (m,)
        Spikes, increasing; the same array twice gives the autocorrelogram, without each spike's lag 0 to itself.
    reach : float
        Largest lag, in the unit of the times.
    bins : int
        Number of bins from -reach to reach.

    Returns
    -------
    count : ndarray (bins,) of int
        By ``second - first``.
    edges : ndarray (bins + 1,)
    """
    begin, end = np.searchsorted(second, first - reach, "left"), np.searchsorted(second, first + reach, "right")
    near = end - begin
    at = np.arange(near.sum()) - np.repeat(np.cumsum(near) - near, near) + np.repeat(begin, near)
    lag = second[at] - np.repeat(first, near)
    if first is second:
        lag = lag[at != np.repeat(np.arange(len(first)), near)]
    return np.histogram(lag, bins, (-reach, reach))
