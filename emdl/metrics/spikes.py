"""Found spikes and units against true ones."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from emdl.backend import as_real, check_number
from emdl.errors import InputError

_MOST_CANDIDATES = 20_000_000
_PARTNER, _WELL, _SHARED = (
    0.5,
    0.8,
    0.2,
)  # agreements that SpikeInterface asks of partners, good ones, and shared spikes


def match_spikes(found_samples, true_samples, *, tolerance):
    """Return the best one-to-one pairs of found and true spikes that are at most `tolerance` samples apart.

    As many pairs as possible; among the ways to do that, the one with the least sum of distances.

    Parameters
    ----------
    found_samples : array (n_found,)
        Times of spikes, samples, in any order; fractions are allowed.
    true_samples : array (n_true,)
        The same of the true spikes.
    tolerance : float
        Largest distance of a pair, samples, included. Large values pair spikes by chance.

    Returns
    -------
    found, true : array of int (n_pairs,)
        Indices into `found_samples` and `true_samples`, in the order of time.

    Raises
    ------
    InputError
        If times are not finite, `tolerance` is negative, or so large that there are millions of candidates.

    Notes
    -----
    Two pairs that cross can be uncrossed without a longer distance, so the best pairs are in order, and a recursion
    over both sorted lists finds them, as for the alignment of sequences. Spikes with a single candidate need none.

    Examples
    --------
    >>> from emdl.metrics import match_spikes
    >>> match_spikes([100, 104, 300], [105, 301, 500], tolerance=5)
    (array([1, 2]), array([0, 1]))
    """
    found, true = _samples(found_samples, "found_samples"), _samples(true_samples, "true_samples")
    f, t = _match(found, true, check_number(tolerance, "tolerance", 0))
    order = np.argsort(true[t], kind="stable")
    return f[order], t[order]


@dataclass(frozen=True, eq=False)
class SpikeScores:
    """Scores of found units against true ones; every score has one entry per true unit.

    With TP spikes found, FN missed and FP found though not there: precision TP / (TP + FP), recall TP / (TP + FN),
    f1 2 TP / (2 TP + FP + FN), accuracy TP / (TP + FN + FP). All are 0 for a unit without partner.

    Attributes
    ----------
    true_units, found_units : array (K_true,), (K_found,)
        Labels, sorted.
    n_true, n_found : array of int (K_true,), (K_found,)
        Number of spikes of each unit.
    counts : array of int (K_true, K_found)
        Number of one-to-one pairs of spikes between any two units.
    matched : array of int (K_true,)
        Index into `found_units` of the partner; -1 where there is none.
    """

    true_units: np.ndarray
    found_units: np.ndarray
    n_true: np.ndarray
    n_found: np.ndarray
    counts: np.ndarray
    matched: np.ndarray

    @property
    def agreement(self):
        """Pairs over all spikes of both units, (K_true, K_found)."""
        return _agreement(self.counts, self.n_true, self.n_found)

    @property
    def true_positives(self):
        """Number of spikes that the partner found, (K_true,)."""
        hits = np.zeros(len(self.matched), int)
        has = self.matched >= 0
        hits[has] = self.counts[has, self.matched[has]]
        return hits

    @property
    def false_negatives(self):
        """Number of spikes that the partner missed, (K_true,)."""
        return self.n_true - self.true_positives

    @property
    def false_positives(self):
        """Number of spikes that the partner found though they are not there, (K_true,)."""
        return self._n_partner - self.true_positives

    @property
    def precision(self):
        """TP / (TP + FP), (K_true,)."""
        return self.true_positives / np.maximum(self._n_partner, 1)

    @property
    def recall(self):
        """TP / (TP + FN), (K_true,)."""
        return self.true_positives / self.n_true

    @property
    def f1(self):
        """Harmonic mean of precision and recall, (K_true,)."""
        return 2 * self.true_positives / (self.n_true + self._n_partner)

    @property
    def accuracy(self):
        """TP / (TP + FN + FP), (K_true,)."""
        return self.true_positives / (self.n_true + self.false_positives)

    @property
    def extra_units(self):
        """Labels of the found units that are no true unit's partner."""
        return np.delete(self.found_units, self.matched[self.matched >= 0])

    @property
    def well_detected_units(self):
        """Labels of the true units whose partner agrees to at least 0.8."""
        return self.true_units[self.accuracy >= _WELL]

    @property
    def redundant_units(self):
        """Labels of the found units that are nobody's partner, agree to 0.2 with a true unit, and not as its best."""
        extra = self._extra
        if len(extra) == 0 or len(self.true_units) == 0:
            return self.found_units[:0]
        true = self.agreement[:, extra].argmax(axis=0)
        second = self.agreement[true].argmax(axis=1) != extra
        return self.found_units[extra[second & (self._likeness[extra] >= _SHARED)]]

    @property
    def false_positive_units(self):
        """Labels of the found units that are nobody's partner and agree with no true unit to 0.2."""
        extra = self._extra
        return self.found_units[extra[self._likeness[extra] < _SHARED]]

    @property
    def overmerged_units(self):
        """Labels of the found units that agree to more than 0.2 with several true units."""
        return self.found_units[(self.agreement > _SHARED).sum(axis=0) > 1]

    @property
    def _extra(self):
        return np.delete(np.arange(len(self.found_units)), self.matched[self.matched >= 0])

    @property
    def _likeness(self):
        """Largest agreement of each found unit with a true one, (K_found,)."""
        return self.agreement.max(axis=0, initial=0)

    @property
    def _n_partner(self):
        return np.where(self.matched >= 0, np.append(self.n_found, 0)[self.matched], 0)


def score_spikes(found_samples, found_units, true_samples, true_units, *, tolerance, ignore=None, min_agreement=0.0):
    """Return the scores of found spikes, unit by unit, against the true ones, with the units paired.

    Spikes of each true and each found unit are paired one to one within `tolerance` (see `match_spikes`); the units are
    paired one to one so that the sum of agreements, TP / (TP + FN + FP), is greatest. These are SpikeInterface's
    definitions.

    Parameters
    ----------
    found_samples, true_samples : array (n_found,), (n_true,)
        Times, samples, in any order.
    found_units, true_units : array (n_found,), (n_true,)
        Label of the unit of each spike, whole numbers or strings.
    tolerance : float
        Largest distance of a pair, samples, included; 0.4 to 1 ms are usual.
    ignore : array (m, 2), optional
        Intervals [start, stop), samples, in which true and found spikes do not count.
    min_agreement : float
        Units that agree less stay without partner. SpikeInterface takes 0.5; 0 asks for one pair of spikes.

    Returns
    -------
    SpikeScores
        One entry per true unit that has spikes outside `ignore`.

    Raises
    ------
    InputError
        If lengths differ, times are not finite, `tolerance` is negative or `ignore` is not a list of intervals.

    References
    ----------
    .. [1] A. P. Buccino et al., "SpikeInterface, a unified framework for spike sorting", eLife 9 (2020) e61834,
       doi:10.7554/eLife.61834.

    Examples
    --------
    >>> from emdl.metrics import score_spikes
    >>> scores = score_spikes([10, 52, 90, 70], [7, 7, 7, 3], [10, 50, 70], [0, 0, 1], tolerance=2)
    >>> scores.found_units[scores.matched], scores.precision.round(2), scores.recall, scores.accuracy.round(2)
    (array([7, 3]), array([0.67, 1.  ]), array([1., 1.]), array([0.67, 1.  ]))
    """
    tolerance = check_number(tolerance, "tolerance", 0)
    min_agreement = check_number(min_agreement, "min_agreement", 0, 1)
    found, found_units, found_labels = _labelled(found_samples, found_units, ignore, "found")
    true, true_units, true_labels = _labelled(true_samples, true_units, ignore, "true")
    n_true = np.bincount(true_units, minlength=len(true_labels))
    n_found = np.bincount(found_units, minlength=len(found_labels))
    counts = _count_pairs(found, found_units, len(found_labels), true, true_units, len(true_labels), tolerance)
    agreement = _agreement(counts, n_true, n_found)
    agreement[agreement < min_agreement] = 0
    rows, columns = linear_sum_assignment(agreement, maximize=True)
    matched = np.full(len(true_labels), -1)
    matched[rows] = np.where(agreement[rows, columns] > 0, columns, -1)
    return SpikeScores(true_labels, found_labels, n_true, n_found, counts, matched)


def compare_sortings(found, true, *, fs, delta_ms=0.4):
    """Return the scores of a sorting against the truth by the rules of SpikeInterface's ground-truth comparison.

    Spikes match within `delta_ms`, rounded down to samples; units are partners by the Hungarian method if they agree to
    at least 0.5; the properties `well_detected_units` (0.8), `redundant_units` and `overmerged_units` (0.2) and
    `false_positive_units` have that module's thresholds. Its counts and these are equal as long as no unit has two
    spikes within `delta_ms` (where it may count a spike twice, and this does not).

    Parameters
    ----------
    found, true : (samples, units)
        Arrays (n,) each: times of the spikes, samples, and their units; or an object with attributes ``sample`` and
        ``unit`` (`emdl.spikes.Spikes`).
    fs : float
        Sampling rate, Hz.
    delta_ms : float
        Largest distance of two spikes that match, ms.

    Returns
    -------
    SpikeScores

    Raises
    ------
    InputError
        As `score_spikes`.

    References
    ----------
    .. [1] A. P. Buccino et al., SpikeInterface, a unified framework for spike sorting, eLife 9 (2020),
       doi:10.7554/eLife.61834.
    """
    tolerance = int(check_number(delta_ms, "delta_ms", 0) / 1000 * check_number(fs, "fs", 0, strict=True))
    pairs = [(s.sample, s.unit) if hasattr(s, "sample") else s for s in (found, true)]
    return score_spikes(*pairs[0], *pairs[1], tolerance=tolerance, min_agreement=_PARTNER)


def _samples(samples, name):
    samples = as_real(samples, name)
    if samples.ndim != 1:
        raise InputError(f"{name} has shape {samples.shape}, wanted one time per spike, (n,)")
    return samples.astype(np.float64, copy=False)


def _labelled(samples, units, ignore, name):
    """Return times outside `ignore` in order, the index of their unit, and the labels of the units."""
    samples, units = _samples(samples, f"{name}_samples"), np.asarray(units)
    if units.shape != samples.shape:
        raise InputError(
            f"{name}_units has shape {units.shape} and {name}_samples {samples.shape}, wanted one unit for each spike"
        )
    if ignore is not None:
        ignore = as_real(ignore, "ignore")
        if ignore.size and (ignore.ndim != 2 or ignore.shape[1] != 2 or (ignore[:, 1] < ignore[:, 0]).any()):
            raise InputError(f"ignore has shape {ignore.shape}, wanted intervals (m, 2) with start <= stop in each")
        starts, stops = np.sort(ignore.reshape(-1, 2).astype(np.float64), axis=0).T
        inside = np.searchsorted(starts, samples, "right") > np.searchsorted(stops, samples, "right")
        samples, units = samples[~inside], units[~inside]
    order = np.argsort(samples, kind="stable")
    labels, index = np.unique(units[order], return_inverse=True)
    return samples[order], index, labels


def _agreement(counts, n_true, n_found):
    return counts / np.maximum(n_true[:, None] + n_found - counts, 1)


def _candidates(found, true, tolerance):
    """Return the indices of all pairs within `tolerance`; both times are sorted, and so are the pairs."""
    first = np.searchsorted(true, found - tolerance, "left")
    count = np.searchsorted(true, found + tolerance, "right") - first
    total = int(count.sum())
    if total > _MOST_CANDIDATES:
        raise InputError(
            f"tolerance {tolerance:g} leaves {total / len(found):.0f} candidates for each found spike, "
            "far more than neighbouring spikes; give it in samples, about 0.4 to 1 ms"
        )
    f = np.repeat(np.arange(len(found)), count)
    return f, np.arange(total) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)


def _single(keys):
    """Return for each key whether it occurs only once."""
    _, inverse, count = np.unique(keys, return_inverse=True, return_counts=True)
    return count[inverse] == 1


def _match(found, true, tolerance):
    """Return the indices of the pairs of `match_spikes`."""
    by_found, by_true = np.argsort(found, kind="stable"), np.argsort(true, kind="stable")
    f, t = _candidates(found[by_found], true[by_true], tolerance)
    alone = _single(f) & _single(t)
    rest_f, rest_t = np.unique(f[~alone]), np.unique(t[~alone])
    i, j = _match_crowded(found[by_found][rest_f], true[by_true][rest_t], tolerance)
    return by_found[np.append(f[alone], rest_f[i])], by_true[np.append(t[alone], rest_t[j])]


def _match_crowded(found, true, tolerance):
    """Return the pairs for sorted times by the recursion over both lists.

    ``best[j]``, after i found spikes, is the best value that these and the first j true ones can reach, where a pair is
    worth more than all distances together, less its own distance. It changes only for true spikes within reach.
    """
    prize = tolerance * len(found) + 1.0
    first = np.searchsorted(true, found - tolerance, "left").tolist()
    last = np.searchsorted(true, found + tolerance, "right").tolist()
    found, true = found.tolist(), true.tolist()
    best, filled, steps = [0.0] * (len(true) + 1), 0, []
    for i, time in enumerate(found):
        for j in range(filled + 1, last[i] + 1):
            best[j] = best[filled]
        filled = last[i]
        step = bytearray(last[i] - first[i])  # 0: this found spike stays alone, 1: the last true one does, 2: they pair
        before = best[first[i]]
        for j in range(first[i], last[i]):
            pair = before + prize - abs(time - true[j])
            before = best[j + 1]
            if best[j] > best[j + 1]:
                best[j + 1], step[j - first[i]] = best[j], 1
            if pair > best[j + 1]:
                best[j + 1], step[j - first[i]] = pair, 2
        steps.append(step)
    pairs, i, j = [], len(found), len(true)
    while i and j:
        j = min(j, last[i - 1])
        move = steps[i - 1][j - 1 - first[i - 1]] if j > first[i - 1] else 0
        if move == 2:
            pairs.append((i - 1, j - 1))
        i, j = i - (move != 1), j - (move != 0)
    pairs = np.array(pairs[::-1], int).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _count_pairs(found, found_units, n_found_units, true, true_units, n_true_units, tolerance):
    """Return how many one-to-one pairs any true and any found unit have, (K_true, K_found); times are sorted."""
    f, t = _candidates(found, true, tolerance)
    pair = true_units[t] * n_found_units + found_units[f]
    alone = _single(f * max(n_true_units, 1) + true_units[t]) & _single(t * max(n_found_units, 1) + found_units[f])
    counts = np.bincount(pair[alone], minlength=n_true_units * n_found_units)
    f, t, pair = f[~alone], t[~alone], pair[~alone]
    order = np.argsort(pair, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(pair[order])) + 1):
        if len(members):
            near = np.unique(f[members]), np.unique(t[members])
            counts[pair[members[0]]] += len(_match_crowded(found[near[0]], true[near[1]], tolerance)[0])
    return counts.reshape(n_true_units, n_found_units)
