"""The number of units: groups of spikes are split where they have a gap, merged where two have none between them.

All tests look at spikes with everything else that the model knows of taken out (residual plus own template), on the
line along which they should differ, in units of the noise there: 1, and for their variety 0.05 of the size of the
spikes.
"""

from dataclasses import dataclass

import numpy as np

from emdl.spikes.mixture import components, gap
from emdl.spikes.snippets import best_lag, delay

_SPLIT, _MERGE = 0.5, 0.6  # valley over peak: below the first a group is split, above the second two are merged
_EVIDENCE = 10.0  # BIC in favour of two groups, for a split
_SMALLEST = 12  # spikes in either part of a split
_SAME = 1.5  # noise standard deviations between two mean waveforms that no test tells apart
_ALIKE = 0.75  # cosine of two mean waveforms from which on they are compared at all
_NEAR = 4.0  # or distance
_CLEAR = 6.0  # noise standard deviations; smaller groups are not split, as their parts would drown in the noise
_VARIETY = 0.05  # standard deviation of the shape of the spikes of one unit, of their size; adds to the noise


@dataclass(frozen=True)
class Group:
    """Spikes of one unit.

    Attributes
    ----------
    clean : ndarray of int
        Indices of the spikes that no other overlaps, from which the waveform is learned.
    every : ndarray of int
        Indices of all its spikes.
    """

    clean: np.ndarray
    every: np.ndarray


def average(x, weight, group):
    """Return the mean waveform of a group for spikes of mean amplitude.

    Parameters
    ----------
    x : array (n, C, s)
        Spikes, aligned.
    weight : array (n,)
        Their amplitudes.
    group : Group
        Whose.

    Returns
    -------
    ndarray (C, s)
    """
    w = weight[group.clean]
    return np.tensordot(w, x[group.clean], 1) / w.sum()


def split(x, groups):
    """Return groups without gaps inside.

    Parameters
    ----------
    x : array (n, C, s)
        Spikes, aligned.
    groups : list of Group
        What there is.

    Returns
    -------
    list of Group
        At least as many; the two parts of a split group follow each other.
    """
    out = []
    for group in groups:
        pieces = x[group.clean].reshape(len(group.clean), -1)
        size = np.linalg.norm(pieces.mean(axis=0))
        parts = _parts(pieces / _noise(size)) if size > _CLEAR else None
        out += [group] if parts is None else [Group(group.clean[p], group.clean[p]) for p in parts]
    return out


def _noise(size):
    """Return the standard deviation along any line of the spikes of a unit whose waveform has norm `size`."""
    return np.sqrt(1 + (_VARIETY * size) ** 2)


def _parts(x):
    """Return the indices of the two parts of a group along one of its main axes, or None if it holds together."""
    if len(x) < 3 * _SMALLEST:
        return None
    mean, axes = components(x, 2)
    for axis in axes:
        valley, gain, upper = gap((x - mean) @ axis)
        if valley < _SPLIT and gain > _EVIDENCE and min(upper.sum(), (~upper).sum()) >= _SMALLEST:
            return np.flatnonzero(~upper), np.flatnonzero(upper)
    return None


def halves(x):
    """Return the two parts of a group along its main axis, gap or not, and how deep the gap is.

    Parameters
    ----------
    x : array (n, C, s)
        Spikes of the group.

    Returns
    -------
    valley : float
        See `emdl.spikes.mixture.gap`.
    lower, upper : ndarray of int
        Indices.
    """
    x = x.reshape(len(x), -1)
    mean, axes = components(x, 1)
    valley, _, upper = gap((x - mean) @ axes[0])
    return valley, np.flatnonzero(~upper), np.flatnonzero(upper)


def merge(x, weight, groups, most_lag):
    """Merge groups that have no gap between them; spikes are moved in place to fit the group they join.

    Parameters
    ----------
    x : array (n, C, s)
        Spikes, aligned within each group. Changed.
    weight : array (n,)
        Amplitudes.
    groups : list of Group
        What there is.
    most_lag : int
        Largest misalignment of two groups that may be one unit, samples.

    Returns
    -------
    list of Group
        At most as many.
    """
    groups = list(groups)
    mean = [average(x, weight, g) for g in groups]
    apart = set()  # pairs known to have a gap
    while True:
        pair = next(
            (p for p in _pairs(groups, mean, most_lag) if (id(groups[p[0]]), id(groups[p[1]])) not in apart), None
        )
        if pair is None:
            return groups
        i, j, lag = pair
        if separate(x[groups[i].clean], x[groups[j].clean], lag):
            apart.add((id(groups[i]), id(groups[j])))
            continue
        moved, by = (j, lag) if len(groups[i].clean) >= len(groups[j].clean) else (i, -lag)
        x[groups[moved].every] = delay(x[groups[moved].every], by)
        joined = Group(*(np.concatenate([getattr(groups[n], name) for n in (i, j)]) for name in ("clean", "every")))
        apart = {p for p in apart if id(groups[i]) not in p and id(groups[j]) not in p}
        kept = [n for n in range(len(groups)) if n not in (i, j)]
        groups, mean = [groups[n] for n in kept] + [joined], [mean[n] for n in kept] + [average(x, weight, joined)]


def _pairs(groups, mean, most_lag):
    """Yield (i, j, lag) of the pairs that look alike, the nearest first."""
    found = []
    norm = [float(np.linalg.norm(m)) for m in mean]
    for i in range(len(groups)):
        for j in range(i):
            lag, product = best_lag(mean[i], mean[j], most_lag)
            distance = np.sqrt(max(0.0, norm[i] ** 2 + norm[j] ** 2 - 2 * product))
            if product > _ALIKE * norm[i] * norm[j] or distance < _NEAR:
                found.append((distance, i, j, lag))
    for _, i, j, lag in sorted(found):
        yield i, j, lag


def separate(first, second, lag):
    """Return whether there is a gap between two groups, on the line through their means.

    The line comes from one half of the spikes and is looked at with the other, and the other way round: in as many
    dimensions as a waveform has, the line through the means of few spikes always separates those spikes.

    Parameters
    ----------
    first, second : array (n, C, s)
        Spikes of each.
    lag : int
        By which the second is to be delayed to fit the first, samples.

    Returns
    -------
    bool
    """
    both = [first.reshape(len(first), -1), delay(second, lag).reshape(len(second), -1)]
    noise = _noise(max(np.linalg.norm(x.mean(axis=0)) for x in both))
    values, distance = [], []
    for half in (0, 1):
        mean = [x[half::2].mean(axis=0) for x in both]
        line = mean[0] - mean[1]
        line /= max(np.linalg.norm(line), 1e-9)
        seen = [(x[1 - half :: 2] - (mean[0] + mean[1]) / 2) @ line / noise for x in both]
        distance.append(seen[0].mean() - seen[1].mean())
        values += seen
    if np.mean(distance) < _SAME:
        return False
    valley, gain, _ = gap(np.concatenate(values))
    return valley <= _MERGE and gain > 0.6 * _EVIDENCE
