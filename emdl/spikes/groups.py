"""The number of units: groups of spikes are split where they have a gap, merged where two have none between them.

All tests look at spikes with everything else that the model knows of taken out (residual plus own template), on the
line along which they should differ, in units of the noise there: 1, and for their variety 0.03 of the size of the
spikes.
"""

from dataclasses import dataclass

import numpy as np

from emdl.spikes import drift
from emdl.spikes.mixture import components, discriminant, project
from emdl.spikes.snippets import best_lag, delay
from emdl.spikes.valleys import gap

_SPLIT, _MERGE = 0.6, 0.7  # valley over peak: below the first a group is split, above the second two are merged
_CLEFT, _PARTS, _TELLING = 0.4, 5, 20  # such a valley in a part of the recording suffices, if both have as many spikes
_EVIDENCE = 10.0  # BIC in favour of two groups, for a split
_SMALLEST = 12  # spikes in either part of a split
_AXES = 6  # principal components of a group, or of two, in which parts are looked for
_TURNS = 4  # times that the line along which parts are looked for is turned
_SAME = 1.5  # noise standard deviations between two groups that no test tells apart
_ALIKE = 0.75  # cosine of two mean waveforms from which on they are compared at all
_NEAR = 4.0  # or distance
_CLEAR = 6.0  # noise standard deviations; smaller groups are not split, as their parts would drown in the noise
VARIETY = 0.03  # standard deviation of the shape of the spikes of one unit, of their size; adds to the noise


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


def split(x, groups, time, n_samples):
    """Return groups without gaps inside.

    Parameters
    ----------
    x : array (n, C, s)
        Spikes, aligned.
    groups : list of Group
        What there is.
    time : array (n,)
        Of the spikes, samples.
    n_samples : int
        Of the signal.

    Returns
    -------
    list of Group
        At least as many; the two parts of a split group follow each other.
    """
    out = []
    for group in groups:
        pieces = x[group.clean].reshape(len(group.clean), -1)
        size = np.linalg.norm(pieces.mean(axis=0))
        parts = _parts(pieces / _noise(size), time[group.clean], n_samples) if size > _CLEAR else None
        out += [group] if parts is None else _halved(x, group, parts)
    return out


def _halved(x, group, parts):
    """Return the two parts of a group; spikes that another overlaps go to the part they look more like."""
    clean, rest = [group.clean[p] for p in parts], np.setdiff1d(group.every, group.clean, assume_unique=True)
    mean = [x[c].mean(axis=0) for c in clean]
    second = np.tensordot(x[rest] - (mean[0] + mean[1]) / 2, mean[1] - mean[0], 2) > 0
    return [Group(c, np.sort(np.append(c, r))) for c, r in zip(clean, (rest[~second], rest[second]), strict=True)]


def _noise(size):
    """Return the standard deviation along any line of the spikes of a unit whose waveform has norm `size`."""
    return np.sqrt(1 + (VARIETY * size) ** 2)


def _parts(x, time, n_samples):
    """Return the indices of the two parts of a group, the more even ones of two ways, or None if it holds together."""
    if len(x) < 3 * _SMALLEST:
        return None
    mean, axes = components(x, 2 * _AXES)
    points = drift.without_trend(project(x, mean, axes), time, n_samples)
    points = points @ np.linalg.eigh(points.T @ points)[1][:, : -_AXES - 1 : -1]
    best, found = _SMALLEST, None
    for axis in range(2):
        upper = gap(points[:, axis])[2]
        for _ in range(_TURNS):  # turn the line to where the parts found so far differ most
            if min(upper.sum(), (~upper).sum()) < _SMALLEST:
                break
            valley, gain, upper = gap(points @ discriminant(points[upper], points[~upper]))
        small = min(upper.sum(), (~upper).sum())
        if small >= best and valley < _SPLIT and gain > _EVIDENCE:  # rather two neurons than one and its overlaps
            best, found = small + 1, (np.flatnonzero(~upper), np.flatnonzero(upper))
    return found


def halves(x):
    """Return the two parts of a group along its main axis, gap or not, and how deep the gap is.

    Parameters
    ----------
    x : array (n, C, s)
        Spikes of the group.

    Returns
    -------
    valley : float
        See `emdl.spikes.valleys.gap`.
    lower, upper : ndarray of int
        Indices.
    """
    x = x.reshape(len(x), -1)
    mean, axes = components(x, 1)
    valley, _, upper = gap((x - mean) @ axes[0])
    return valley, np.flatnonzero(~upper), np.flatnonzero(upper)


def merge(x, weight, groups, most_lag, time, n_samples, *, one_neuron=None):
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
    time : array (n,)
        Of the spikes, samples.
    n_samples : int
        Of the signal.
    one_neuron : callable, optional
        Called with two groups that look alike but have a gap between them; merge them nevertheless if it says so.

    Returns
    -------
    list of Group
        At most as many.
    """
    held = dict(enumerate(groups))
    mean = {i: average(x, weight, g) for i, g in held.items()}
    alike = [pair for i in held for j in range(i) for pair in _if_alike(i, j, mean, most_lag)]
    while alike:
        _, i, j, lag = alike.pop(alike.index(min(alike)))
        known = one_neuron is not None and one_neuron(held[i], held[j])
        times = time[held[i].clean], time[held[j].clean]
        if not known and separate(x[held[i].clean], x[held[j].clean], lag, times, n_samples):
            continue
        moved, by = (j, lag) if len(held[i].clean) >= len(held[j].clean) else (i, -lag)
        x[held[moved].every] = delay(x[held[moved].every], by)
        both, new = (held.pop(i), held.pop(j)), max(mean) + 1
        held[new] = Group(*(np.concatenate([getattr(g, name) for g in both]) for name in ("clean", "every")))
        mean[new] = average(x, weight, held[new])
        alike = [pair for pair in alike if not {i, j} & set(pair[1:3])]
        alike += [pair for k in held if k != new for pair in _if_alike(new, k, mean, most_lag)]
    return list(held.values())


def _if_alike(i, j, mean, most_lag):
    """Return [(distance, i, j, lag)] if two groups look so alike that they may be one, else []."""
    norm = float(np.linalg.norm(mean[i])), float(np.linalg.norm(mean[j]))
    lag, product = best_lag(mean[i], mean[j], most_lag)
    distance = np.sqrt(max(0.0, norm[0] ** 2 + norm[1] ** 2 - 2 * product))
    return [(distance, i, j, lag)] if product > _ALIKE * norm[0] * norm[1] or distance < _NEAR else []


def separate(first, second, lag, times, n_samples):
    """Return whether there is a gap between two groups, on the line along which they differ most.

    The line comes from one half of the spikes and is looked at with the other, and the other way round: with few spikes
    a line always separates those that it was made for. A gap counts only if it is there at any one time, or if spikes
    jump over it at some moment (see `emdl.spikes.drift`).

    Parameters
    ----------
    first, second : array (n, C, s)
        Spikes of each.
    lag : int
        By which the second is to be delayed to fit the first, samples.
    times : (array (n,), array (m,))
        Of the spikes, samples.
    n_samples : int
        Of the signal.

    Returns
    -------
    bool
    """
    x = np.concatenate([first, delay(second, lag)]).reshape(len(first) + len(second), -1)
    noise = _noise(max(np.linalg.norm(part.mean(axis=0)) for part in (x[: len(first)], x[len(first) :])))
    mean, axes = components(x, _AXES)
    points = project(x, mean, axes) / noise
    values, when, distance = [], [], []
    for half in (0, 1):
        known = [p[half::2] for p in (points[: len(first)], points[len(first) :])]
        line, middle = discriminant(*known), (known[0].mean(axis=0) + known[1].mean(axis=0)) / 2
        seen = [(p[1 - half :: 2] - middle) @ line for p in (points[: len(first)], points[len(first) :])]
        distance.append(seen[0].mean() - seen[1].mean())
        values += seen
        when += [time[1 - half :: 2] for time in times]
    if np.mean(distance) < _SAME:
        return False
    upper = np.concatenate([np.full(len(v), i % 2 == 0) for i, v in enumerate(values)])
    values, when = np.concatenate(values), np.concatenate(when)
    still = drift.without_trend(values[:, None], when, n_samples)[:, 0]
    if _gapped(values, upper) and (_gapped(still, upper) or drift.jumps(values, when, np.mean(distance))):
        return True
    window = drift.windows(when, n_samples, _PARTS)  # one of two may fade into the other for a while
    parts = [(still[window == i], upper[window == i]) for i in range(_PARTS)]
    return any(min(u.sum(), (~u).sum()) >= _TELLING and _gapped(v, u, _CLEFT) for v, u in parts)


def _gapped(values, upper, deepest=_MERGE):
    valley, gain, _ = gap(values, upper)
    return valley <= deepest and gain > 0.6 * _EVIDENCE
