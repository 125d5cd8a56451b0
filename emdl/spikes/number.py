"""What to do when the number of units is asked for."""

import numpy as np

from emdl.spikes import decision, groups, update
from emdl.spikes.decision import Units
from emdl.spikes.groups import Group
from emdl.spikes.snippets import best_lag

_ALIKE = 0.9  # cosine from which on two units may be joined to one
_FEW = 8  # spikes that a half must have


def pool(units, large, small, weight):
    """Return units in which one stands for two, with the amplitudes of both.

    Parameters
    ----------
    units : Units
        All units.
    large, small : int
        The one that stays, and the one that is joined to it; the latter is left as it is.
    weight : (float, float)
        Number of spikes of each.

    Returns
    -------
    Units
    """
    mean, spread, rate = units.mean.copy(), units.spread.copy(), units.rate.copy()
    n, m = np.array(weight, float), units.mean[[large, small]]
    mean[large] = (n * m).sum() / n.sum()
    spread[large] = np.sqrt((n * (units.spread[[large, small]] ** 2 + (m - mean[large]) ** 2)).sum() / n.sum())
    rate[large] += rate[small]
    return Units(units.D, mean, spread, rate, units.waves)


def fewer(units, n_found, n_units, unit_length):
    """Return at most `n_units` units: those that look alike are joined, then the smallest go to the background.

    Parameters
    ----------
    units : Units
        By decreasing size, the background last.
    n_found : int
        How many are no background.
    n_units : int
        How many are wanted.
    unit_length : int
        Duration unit, samples.

    Returns
    -------
    Units
    n_found : int
        At most `n_units`.
    """
    while n_found > n_units:
        pairs = [(j, i) for i in range(n_found) for j in range(i)]
        cosine = [best_lag(units.D[j], units.D[i], unit_length // 3)[1] for j, i in pairs]
        n_found -= 1
        best = int(np.argmax(cosine))
        if cosine[best] > _ALIKE:
            large, small = sorted(pairs[best], key=lambda k: -units.rate[k])
            units = pool(units, large, small, units.rate[[large, small]])
            units = units.take(np.arange(len(units)) != small)
    return units, n_found


def more(x, units, n_units, scale, density):
    """Return `n_units` units if possible: background is promoted, then units with a gap inside are halved.

    Parameters
    ----------
    x : array (C, N)
        Whitened signal.
    units : Units
        By decreasing size, the background last.
    n_units : int
        How many are wanted.
    scale : Scale
        Durations.
    density : float
        Variance of a sample of noise.

    Returns
    -------
    Units
    n_found : int
        At most `n_units`.
    """
    missing = n_units - len(units)
    if missing <= 0:
        return units, n_units
    events, residual = decision.decide(x, units, scale.unit)
    events = update.inside(events, x.shape[1], scale.length, 8)
    found = update.alone(events, len(units), scale.length)
    pieces = update.clean_spikes(residual, events, units, np.zeros(len(units), np.int64))
    for _ in range(missing):
        parts = [groups.halves(pieces[g.clean]) if len(g.clean) > 2 * _FEW else (np.inf, [], []) for g in found]
        depth = [p[0] if min(len(p[1]), len(p[2])) >= _FEW else np.inf for p in parts]
        loosest = int(np.argmin(depth)) if depth else -1
        if loosest < 0 or not np.isfinite(depth[loosest]):
            break
        clean = found.pop(loosest).clean
        found += [Group(clean[p], clean[p]) for p in parts[loosest][1:]]
    units = update.units_of(pieces, events.amplitude, found, x.shape[1], density, events.time)
    return units.take(np.argsort(-units.mean, kind="stable")), len(units)
