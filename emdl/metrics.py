"""Scores against a known truth: atoms, spikes, signals."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from emdl.backend import array_module, as_dictionary, as_real, check_number
from emdl.errors import InputError

_MOST_CANDIDATES = 20_000_000


@dataclass(frozen=True, eq=False)
class AtomMatch:
    """How learned atoms pair with true ones; all arrays are NumPy's, whatever held the atoms.

    Attributes
    ----------
    errors : array (K_true,)
        Sine of the angle between a true atom and its partner, 0 (equal) to 1 (orthogonal, or no partner).
    permutation : array of int (K_true,)
        Learned atom that is the partner of each true atom; -1 where there is none.
    shifts : array of int (K_true, n_axes)
        How many samples to move the partner towards larger indices to lie on the true atom.
    signs : array of int (K_true,)
        1 or -1, to multiply the partner with; 0 where there is none.
    """

    errors: np.ndarray
    permutation: np.ndarray
    shifts: np.ndarray
    signs: np.ndarray


def atom_error(D, D_true):
    r"""Return how far the atoms `D` are from the true ones, up to order, shift and sign.

    For a true atom :math:`h` and a learned one :math:`\hat h`, both brought to unit norm,

    .. math:: \mathrm{err} = \sqrt{1 - \max_\tau \langle h, \hat h(\cdot - \tau)\rangle^2},

    the sine of the angle between them. The inner product runs over channels and support, :math:`\tau` over all lags at
    which they overlap, with zeros outside. Atoms are paired one to one so that the sum of the errors is least.

    Parameters
    ----------
    D : array (K, C, *s)
        Learned atoms; their norm does not matter, an atom of zeros is orthogonal to everything.
    D_true : array (K_true, C, *s_true)
        True atoms. Number and length may differ from those of `D`.

    Returns
    -------
    AtomMatch
        Errors, partners, shifts and signs of the true atoms.

    Raises
    ------
    InputError
        If the number of channels or axes differs, or a true atom is zero.

    References
    ----------
    .. [1] A. Agarwal, A. Anandkumar, P. Jain, P. Netrapalli, "Learning sparsely used overcomplete dictionaries via
       alternating minimization", SIAM J. Optim. 26 (2016) 2775-2799, doi:10.1137/140979861 (the distance).
    .. [2] B. Tolooshams, S. Dey, D. Ba, "Deep residual autoencoders for expectation maximization-inspired dictionary
       learning", IEEE Trans. Neural Netw. Learn. Syst. 32 (2021) 2415-2429, doi:10.1109/TNNLS.2020.3005348.

    Examples
    --------
    >>> import numpy as np
    >>> from emdl.metrics import atom_error
    >>> D_true = np.array([[[1.0, 2.0, 0.0]], [[2.0, 1.0, -3.0]]])
    >>> D = np.array([[[-2.0, -1.0, 3.0]], [[0.0, 1.0, 2.0]]])
    >>> match = atom_error(D, D_true)
    >>> match.errors.round(12), match.permutation, match.shifts[:, 0], match.signs
    (array([0., 0.]), array([1, 0]), array([-1,  0]), array([ 1, -1]))
    """
    D, D_true = _unit_atoms(D, D_true)
    score, lags = _best_lags(D, D_true)
    rows, columns = linear_sum_assignment(np.sqrt(np.maximum(1 - score**2, 0)))
    columns, rows = columns[score[rows, columns] != 0], rows[score[rows, columns] != 0]
    count, n_axes = len(D_true), D.ndim - 2
    errors, permutation = np.ones(count), np.full(count, -1)
    shifts, signs = np.zeros((count, n_axes), int), np.zeros(count, int)
    permutation[rows], shifts[rows], signs[rows] = columns, lags[rows, columns], np.sign(score[rows, columns])
    room = [(0, 0)] + [(s - 1, s - 1) for s in D.shape[2:]]  # the partner lies wholly inside, so nothing is cut off
    for k, j in zip(rows, columns, strict=True):
        h = np.pad(D_true[k], room)
        partner = _moved(D[j], lags[k, j] + np.array(D.shape[2:]) - 1, h.shape[1:])
        errors[k] = min(1.0, np.linalg.norm(h - score[k, j] * partner))  # 1 - score^2 would lose half of the digits
    return AtomMatch(errors, permutation, shifts, signs)


def align_atoms(D, D_true):
    """Return the partners of the true atoms in `D`, in their order, at their place, with their sign.

    What to plot over the true atoms, see `atom_error`.

    Parameters
    ----------
    D : array (K, C, *s)
        Learned atoms; their norm is kept.
    D_true : array (K_true, C, *s_true)
        True atoms.

    Returns
    -------
    array (K_true, C, *s_true)
        What leaves the support of the true atom is cut off; zeros where there is no partner.

    Raises
    ------
    InputError
        As `atom_error`.

    Examples
    --------
    >>> import numpy as np
    >>> from emdl.metrics import align_atoms
    >>> align_atoms(np.array([[[0.0, -1.0, -2.0]]]), np.array([[[1.0, 2.0, 0.0]]]))
    array([[[1., 2., 0.]]])
    """
    match = atom_error(D, D_true)
    D, D_true = as_dictionary(D), as_dictionary(D_true)
    aligned = array_module(D).zeros(D_true.shape, D.dtype)
    for k, j in enumerate(match.permutation):
        if j >= 0:
            aligned[k] = int(match.signs[k]) * _moved(D[j], match.shifts[k], D_true.shape[2:])
    return aligned


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
    Two pairs that cross can be uncrossed without a longer distance, so the best pairs are in order, and a recursion over
    both sorted lists finds them, as for the alignment of sequences. Spikes with a single candidate need no recursion.

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


def psnr(x, clean, *, peak):
    r"""Return the peak signal-to-noise ratio in dB, :math:`10 \log_{10}(\mathrm{peak}^2 / \mathrm{MSE})`.

    The mean squared error runs over all entries; for the mean PSNR of a set of images call it image by image. Values
    outside the range of the image are not clipped.

    Parameters
    ----------
    x, clean : array
        Estimate and truth, of the same shape.
    peak : float
        Largest value that an image can have, 255 or 1.

    Returns
    -------
    float
        Infinite where `x` equals `clean`.

    Raises
    ------
    InputError
        If the shapes differ, or `peak` is not positive.

    References
    ----------
    .. [1] Q. Huynh-Thu, M. Ghanbari, "Scope of validity of PSNR in image/video quality assessment", Electron. Lett. 44
       (2008) 800-801, doi:10.1049/el:20080522.

    Examples
    --------
    >>> import numpy as np
    >>> from emdl.metrics import psnr
    >>> round(psnr(np.full((2, 3), 130.0), np.full((2, 3), 105.0), peak=255), 2)
    20.17
    """
    error, _ = _error(x, clean)
    return _decibel(1.0, float(((error / check_number(peak, "peak", 0, strict=True)) ** 2).mean()))


def snr_db(x, clean):
    r"""Return the signal-to-noise ratio in dB, :math:`10 \log_{10}(\|\mathrm{clean}\|^2 / \|x - \mathrm{clean}\|^2)`.

    For ``x = clean + noise`` this is the power of the signal over that of the noise; for an estimate `x` it says how well
    the clean signal was recovered. Means are not subtracted.

    Parameters
    ----------
    x, clean : array
        Noisy signal or estimate, and truth, of the same shape.

    Returns
    -------
    float
        Infinite where `x` equals `clean`; 0 for ``x = 0``.

    Raises
    ------
    InputError
        If the shapes differ, or `clean` is zero.

    References
    ----------
    .. [1] S. Mallat, "A Wavelet Tour of Signal Processing", 3rd ed., Academic Press (2009), chapter 11.

    Examples
    --------
    >>> from emdl.metrics import snr_db
    >>> snr_db([1.1, 0.0, -1.0], [1.0, 0.1, -1.0])
    20.0
    """
    error, clean = _error(x, clean)
    scale = float(abs(clean).max())
    if scale == 0:
        raise InputError("clean is zero everywhere, so it has no signal-to-noise ratio; give a signal")
    return round(_decibel(float(((clean / scale) ** 2).sum()), float(((error / scale) ** 2).sum())), 12)


def _decibel(signal, noise):
    return np.inf if noise == 0 else float(10 * np.log10(signal / noise))


def _error(x, clean):
    array_module(*(a for a in (x, clean) if hasattr(a, "dtype")))
    x, clean = as_real(x, "x"), as_real(clean, "clean")
    if x.shape != clean.shape or x.size == 0:
        raise InputError(f"x has shape {x.shape} and clean {clean.shape}, wanted the same shape, not empty")
    clean = clean.astype(np.float64, copy=False)
    return x - clean, clean


def _unit_atoms(*dictionaries):
    """Return the dictionaries on the host, in double precision, with atoms of unit norm (or zero)."""
    xp = array_module(*dictionaries)
    D, D_true = (as_dictionary(d, np.float64) for d in dictionaries)
    if D.ndim != D_true.ndim or D.shape[1] != D_true.shape[1]:
        raise InputError(
            f"D has shape {D.shape} and D_true {D_true.shape}, wanted (n_atoms, n_channels, *atom_shape) with the same "
            "number of channels and axes"
        )
    units = []
    for d in (D, D_true):
        d = d if xp is np else xp.asnumpy(d)
        axes = tuple(range(1, d.ndim))
        d = d / np.maximum(np.abs(d).max(axes, keepdims=True), np.finfo(float).tiny)
        units.append(d / np.maximum(np.linalg.norm(d.reshape(len(d), -1), axis=1).reshape(-1, *(1 for _ in axes)), 0.5))
    zero = np.flatnonzero(~units[1].any(tuple(range(1, D.ndim))))
    if len(zero):
        raise InputError(f"true atom {zero[0]} is zero, so nothing can be compared with it; leave it out of D_true")
    return units


def _best_lags(D, D_true):
    """Return the correlation of largest magnitude over lags, (K_true, K), and its lag, (K_true, K, n_axes)."""
    axes = tuple(range(2, D.ndim))
    size = [a + b - 1 for a, b in zip(D.shape[2:], D_true.shape[2:], strict=True)]
    spectrum = np.conj(np.fft.rfftn(D, size, axes))
    score, lags = np.zeros((len(D_true), len(D))), np.zeros((len(D_true), len(D), len(axes)), int)
    for k, h in enumerate(D_true):  # one at a time: all pairs and lags at once would not fit for large dictionaries
        product = (np.fft.rfftn(h[None], size, axes) * spectrum).sum(1)
        corr = np.fft.irfftn(product, size, tuple(a - 1 for a in axes)).reshape(len(D), -1)
        best = np.abs(corr).argmax(1)
        score[k] = corr[np.arange(len(D)), best]
        lags[k] = np.stack(np.unravel_index(best, size), 1)
    length = np.array(D_true.shape[2:])
    return np.clip(score, -1, 1), np.where(lags < length, lags, lags - np.array(size))


def _moved(atom, shift, shape):
    """Return an atom (C, *s) moved by `shift` on a canvas (C, *shape) of zeros; what leaves the canvas is cut off."""
    canvas = array_module(atom).zeros((len(atom), *shape), atom.dtype)
    source, target = [slice(None)], [slice(None)]
    for s, S, t in zip(atom.shape[1:], shape, shift, strict=True):
        first, last = max(0, int(t)), min(S, int(t) + s)
        source.append(slice(first - int(t), max(first, last) - int(t)))
        target.append(slice(first, max(first, last)))
    canvas[tuple(target)] = atom[tuple(source)]
    return canvas


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
            f"tolerance {tolerance:g} leaves {total / max(1, len(found)):.0f} true spikes as candidates for each found one, "
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
