"""Scores agree with their definitions, computed the slow way, and do not depend on what they should not depend on."""

import itertools
import time

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from emdl.errors import InputError, InputTypeError
from emdl.metrics import align_atoms, atom_error, match_spikes, psnr, score_spikes, snr_db


def moved(atom, shift, shape):
    """Place an atom (C, *s) at `shift` on zeros, sample by sample."""
    out = np.zeros((len(atom), *shape))
    for index in np.ndindex(*atom.shape[1:]):
        place = tuple(i + t for i, t in zip(index, shift, strict=True))
        if all(0 <= p < S for p, S in zip(place, shape, strict=True)):
            out[(slice(None), *place)] = atom[(slice(None), *index)]
    return out


def error_by_definition(h, g):
    """Try every lag."""
    h, g = h / np.linalg.norm(h), g / np.linalg.norm(g)
    lags = itertools.product(*(range(1 - s, S) for s, S in zip(g.shape[1:], h.shape[1:], strict=True)))
    best = max(abs(np.vdot(h, moved(g, lag, h.shape[1:]))) for lag in lags)
    return np.sqrt(max(0, 1 - best**2))


@pytest.mark.parametrize(
    ("shape", "true_shape"), [((4, 2, 7), (3, 2, 5)), ((3, 2, 4, 3), (2, 2, 3, 5)), ((3, 1, 5), (3, 1, 5))]
)
def test_atom_errors_follow_their_definition(rng, shape, true_shape):
    D, D_true = rng.standard_normal(shape), rng.standard_normal(true_shape)
    errors = np.array([[error_by_definition(h, g) for g in D] for h in D_true])
    best = min(sum(errors[k, j] for k, j in enumerate(p)) for p in itertools.permutations(range(len(D)), len(D_true)))
    match = atom_error(D, D_true)
    np.testing.assert_allclose(match.errors, errors[range(len(D_true)), match.permutation], rtol=1e-12)
    np.testing.assert_allclose(match.errors.sum(), best, rtol=1e-12)


@pytest.mark.parametrize("n_axes", [1, 2])
def test_order_shift_sign_and_scale_do_not_change_the_error(rng, n_axes):
    support = (8, 6)[:n_axes]
    D_true = rng.standard_normal((4, 3, *support))
    room = [(0, 0), (0, 0), *[(5, 2), (1, 3)][:n_axes]]
    order, signs = np.array([2, 0, 3, 1]), np.array([1, -1, -1, 1])
    D = np.pad(D_true, room)[order] * (signs * [1e-6, 3, 1e9, 1]).reshape(-1, *(1 for _ in D_true.shape[1:]))
    match = atom_error(D, D_true)
    assert match.errors.max() < 1e-12  # not sqrt(eps): the angle is not taken from its cosine
    np.testing.assert_array_equal(order[match.permutation], np.arange(4))
    np.testing.assert_array_equal(match.shifts, np.tile([-5, -1][:n_axes], (4, 1)))
    np.testing.assert_array_equal(match.signs, signs[match.permutation])


def test_all_lags_are_tried_up_to_an_overlap_of_one_sample():
    first, last = np.eye(1, 4)[None], np.eye(1, 6, 5)[None]
    for D, D_true, shift in [(last, first, -5), (first[..., ::-1], last[..., ::-1], -3), (first, last, 5)]:
        match = atom_error(D, D_true)
        np.testing.assert_allclose(match.errors, 0, atol=1e-12)
        assert match.shifts.tolist() == [[shift]]


def test_the_error_is_the_sine_of_the_angle(rng):
    h, e = np.linalg.qr(rng.standard_normal((30, 2)))[0].T
    # zero-padded lags of a random atom correlate less than the one at lag 0, so the angle is known
    for angle in (1e-9, 1e-3, 0.3):
        match = atom_error((np.cos(angle) * h + np.sin(angle) * e)[None, None], h[None, None])
        np.testing.assert_allclose(match.errors, np.sin(angle), rtol=1e-6)


def test_atoms_are_paired_by_the_least_sum_and_not_greedily():
    def plane(*degrees):
        return np.stack([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))], 1)[:, :, None]

    match = atom_error(plane(0, 18), plane(6, -12))  # the nearest pair, 6 degrees, would leave one of 30
    np.testing.assert_array_equal(match.permutation, [1, 0])
    np.testing.assert_allclose(match.errors, np.sin(np.deg2rad([12, 12])))


def test_true_atoms_without_a_partner_count_as_missed(rng):
    D_true = rng.standard_normal((3, 2, 5))
    match = atom_error(D_true[[2]], D_true)
    np.testing.assert_array_equal(match.permutation, [-1, -1, 0])
    np.testing.assert_array_equal(match.signs, [0, 0, 1])
    np.testing.assert_allclose(match.errors, [1, 1, 0], atol=1e-12)


def test_a_dead_atom_is_nobodys_partner(rng):
    D_true = rng.standard_normal((2, 1, 5))
    match = atom_error(np.stack([np.zeros((1, 5)), D_true[0]]), D_true)
    np.testing.assert_array_equal(match.permutation, [1, -1])
    np.testing.assert_allclose(match.errors, [0, 1], atol=1e-12)


def test_aligned_atoms_lie_on_the_true_ones(rng):
    D_true = rng.standard_normal((3, 2, 6))
    D = -2 * np.pad(D_true, [(0, 0), (0, 0), (4, 1)])[[1, 2]]
    aligned = align_atoms(D, D_true)
    np.testing.assert_allclose(aligned, 2 * D_true * np.array([0, 1, 1])[:, None, None])
    assert align_atoms(D.astype(np.float32), D_true).dtype == np.float32


@pytest.mark.parametrize(
    ("D", "D_true", "message"),
    [
        (np.ones((2, 3, 4)), np.ones((2, 1, 4)), "same number of channels"),
        (np.ones((2, 3, 4)), np.ones((2, 3, 4, 4)), "same number of channels"),
        (np.ones((2, 3, 4)), np.arange(2.0)[:, None, None] * np.ones((2, 3, 4)), "true atom 0 is zero"),
        (np.ones((2, 4)), np.ones((2, 4)), "for one channel write"),
        (np.full((1, 1, 4), np.nan), np.ones((1, 1, 4)), "not finite"),
    ],
)
def test_atoms_that_cannot_be_compared_are_refused(D, D_true, message):
    with pytest.raises(InputError, match=message):
        atom_error(D, D_true)


def best_pairs(found, true, tolerance):
    """Return number and total distance of the best pairs, by the Hungarian method on all of them."""
    distance = np.abs(np.subtract.outer(np.asarray(found, float), np.asarray(true, float)))
    cost = np.where(distance <= tolerance, distance - 1e4, 0)
    pairs = [(i, j) for i, j in zip(*linear_sum_assignment(cost), strict=True) if distance[i, j] <= tolerance]
    return len(pairs), sum(distance[i, j] for i, j in pairs)


def test_spikes_are_paired_as_well_as_by_the_hungarian_method(rng):
    """All densities, from every spike alone to every spike within reach of all, ties and repeated times included."""
    for _ in range(1500):
        sizes, length, tolerance = rng.integers(0, 9, 2), rng.integers(1, 60), rng.integers(0, 8)
        found, true = (rng.integers(0, length, size) for size in sizes)
        f, t = match_spikes(found, true, tolerance=tolerance)
        assert len(set(f)) == len(f) == len(set(t)) == len(t)
        gaps = np.abs(found[f] - true[t])
        assert gaps.max(initial=0) <= tolerance
        assert (len(f), gaps.sum()) == best_pairs(found, true, tolerance)
        assert (np.diff(true[t]) >= 0).all()


def test_fractions_of_samples_and_unsigned_times_are_paired():
    f, t = match_spikes([10.5, 20.0], np.array([11, 0], np.uint64), tolerance=0.5)
    np.testing.assert_array_equal((f, t), ([0], [0]))


def test_a_nearer_spike_wins_unless_that_costs_a_pair():
    assert [p.tolist() for p in match_spikes([6, 10], [9], tolerance=5)] == [[1], [0]]
    assert [p.tolist() for p in match_spikes([6, 10], [9, 14], tolerance=5)] == [[0, 1], [0, 1]]


def test_no_spikes_give_no_pairs():
    for found, true in [([], []), ([3], []), ([], [3, 4])]:
        assert [len(p) for p in match_spikes(found, true, tolerance=9)] == [0, 0]


def test_a_hundred_thousand_spikes_are_paired_within_a_second(rng):
    true = np.sort(rng.integers(0, 30_000 * 1000, 100_000))  # 100 spikes/s: every tenth has two candidates or more
    found = true + rng.integers(-20, 21, true.size)
    start = time.perf_counter()
    f, _ = match_spikes(found, true, tolerance=30)
    assert time.perf_counter() - start < 1
    assert len(f) == len(true)


def test_a_tolerance_as_long_as_the_recording_is_refused(rng):
    with pytest.raises(InputError, match="candidates for each found spike"):
        match_spikes(np.arange(10_000), np.arange(10_000), tolerance=1e9)


@pytest.mark.parametrize(
    ("found", "true", "tolerance"),
    [([[1]], [1], 1), ([np.nan], [1], 1), ([1], [np.inf], 1), ([1], [1], -1), ([1], [1], None)],
)
def test_times_that_make_no_sense_are_refused(found, true, tolerance):
    with pytest.raises(InputError):
        match_spikes(found, true, tolerance=tolerance)


def random_sorting(rng, n, labels, length=400):
    return rng.integers(0, length, n), rng.choice(labels, n)


def test_unit_scores_follow_their_definition(rng):
    for _ in range(60):
        found, found_units = random_sorting(rng, 70, [5, 6, 9])
        true, true_units = random_sorting(rng, 60, [0, 2, 3, 4])
        scores = score_spikes(found, found_units, true, true_units, tolerance=3)
        ks, js = scores.true_units, scores.found_units
        counts = np.array([[best_pairs(found[found_units == j], true[true_units == k], 3)[0] for j in js] for k in ks])
        np.testing.assert_array_equal(scores.counts, counts)
        n_true = np.array([np.sum(true_units == k) for k in ks])
        n_found = np.array([np.sum(found_units == j) for j in js])
        agreement = counts / (n_true[:, None] + n_found - counts)
        np.testing.assert_allclose(scores.agreement, agreement)
        best = max(sum(agreement[k, j] for j, k in enumerate(p)) for p in itertools.permutations(range(4), 3))
        has = scores.matched >= 0
        np.testing.assert_allclose(agreement[has, scores.matched[has]].sum(), best)
        for k in np.flatnonzero(has):
            j = scores.matched[k]
            tp, fn, fp = counts[k, j], n_true[k] - counts[k, j], n_found[j] - counts[k, j]
            np.testing.assert_allclose(scores.precision[k], tp / (tp + fp))
            np.testing.assert_allclose(scores.recall[k], tp / (tp + fn))
            np.testing.assert_allclose(scores.f1[k], 2 * tp / (2 * tp + fp + fn))
            np.testing.assert_allclose(scores.accuracy[k], tp / (tp + fn + fp))
            assert (scores.true_positives[k], scores.false_negatives[k], scores.false_positives[k]) == (tp, fn, fp)
        for name in ("precision", "recall", "f1", "accuracy"):
            assert getattr(scores, name)[~has].sum() == 0


def test_order_of_spikes_and_names_of_units_do_not_change_the_scores(rng):
    true, true_units = random_sorting(rng, 80, [0, 1, 2])
    found, found_units = true + rng.integers(-2, 3, 80), np.array(["c", "a", "b"])[true_units]
    shuffled = rng.permutation(80)
    scores = score_spikes(found, found_units, true, true_units, tolerance=2)
    again = score_spikes(found[shuffled], found_units[shuffled], true[::-1], true_units[::-1], tolerance=2)
    assert scores.found_units[scores.matched].tolist() == ["c", "a", "b"]
    np.testing.assert_array_equal(scores.counts, again.counts)
    np.testing.assert_array_equal(scores.accuracy, 1)


def test_a_unit_split_in_two_has_one_partner_and_one_extra():
    true = np.arange(0, 1000, 10)
    scores = score_spikes(true, (np.arange(100) < 70).astype(int), true, np.zeros(100, int), tolerance=1)
    assert scores.found_units[scores.matched].tolist() == [1]
    np.testing.assert_allclose([scores.recall[0], scores.precision[0], scores.accuracy[0]], [0.7, 1, 0.7])
    assert scores.extra_units.tolist() == [0]


def test_units_that_agree_too_little_stay_without_partner():
    found, true = [10, 1000, 2000], [10, 20, 30, 40]
    loose = score_spikes(found, [0, 0, 0], true, [0, 0, 0, 0], tolerance=1)
    strict = score_spikes(found, [0, 0, 0], true, [0, 0, 0, 0], tolerance=1, min_agreement=0.5)
    assert (loose.matched.tolist(), strict.matched.tolist()) == ([0], [-1])
    assert (strict.recall[0], strict.precision[0], strict.false_positives[0], strict.false_negatives[0]) == (0, 0, 0, 4)


def test_ignored_intervals_drop_found_and_true_spikes(rng):
    ignore = np.array([[300, 330], [100, 150], [120, 180]])
    true, true_units = random_sorting(rng, 90, [0, 1])
    found, found_units = random_sorting(rng, 80, [0, 1, 2])
    keep = [np.array([not any(a <= t < b for a, b in ignore) for t in times]) for times in (found, true)]
    scores = score_spikes(found, found_units, true, true_units, tolerance=4, ignore=ignore)
    want = score_spikes(found[keep[0]], found_units[keep[0]], true[keep[1]], true_units[keep[1]], tolerance=4)
    np.testing.assert_array_equal(scores.counts, want.counts)
    np.testing.assert_array_equal((scores.n_true.sum(), scores.n_found.sum()), (keep[1].sum(), keep[0].sum()))


def test_nothing_found_scores_zero_and_nothing_true_scores_nothing():
    scores = score_spikes([], [], [1, 2], [0, 0], tolerance=1)
    for name in ("precision", "recall", "f1", "accuracy"):
        np.testing.assert_array_equal(getattr(scores, name), [0])
    scores = score_spikes([1], [0], [], [], tolerance=1, ignore=np.zeros((0, 2)))
    assert (scores.accuracy.size, scores.extra_units.tolist()) == (0, [0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"found_units": [1, 2]}, "one unit for each spike"),
        ({"tolerance": -1}, "tolerance"),
        ({"min_agreement": 2}, "min_agreement"),
        ({"ignore": [[5, 2]]}, "start <= stop"),
        ({"ignore": [5, 2]}, "start <= stop"),
    ],
)
def test_scores_refuse_what_makes_no_sense(change, message):
    given = {"found_samples": [1], "found_units": [1], "true_samples": [1], "true_units": [1], "tolerance": 1}
    with pytest.raises(InputError, match=message):
        score_spikes(**{**given, **change})


def test_psnr_and_snr_follow_their_definitions(rng):
    clean, x = rng.uniform(0, 255, (2, 7, 5)), rng.uniform(0, 255, (2, 7, 5))
    np.testing.assert_allclose(psnr(x, clean, peak=255), 10 * np.log10(255**2 / ((x - clean) ** 2).mean()))
    np.testing.assert_allclose(snr_db(x, clean), 10 * np.log10((clean**2).sum() / ((x - clean) ** 2).sum()))


def test_snr_does_not_depend_on_the_scale(rng):
    clean, noise = rng.standard_normal((2, 50))
    for scale in (1e-150, 1e-30, 1e30, 1e200):
        np.testing.assert_allclose(snr_db(scale * (clean + noise), scale * clean), snr_db(clean + noise, clean))


def test_equal_signals_have_an_infinite_ratio():
    assert psnr([1.0, 2.0], [1.0, 2.0], peak=1) == snr_db([1.0, 2.0], [1.0, 2.0]) == np.inf


def test_integer_images_do_not_wrap_around():
    black, white = np.zeros((3, 4), np.uint8), np.full((3, 4), 255, np.uint8)
    assert psnr(black, white, peak=255) == psnr(white, black, peak=255) == 0


@pytest.mark.parametrize(
    ("score", "kind"),
    [
        (lambda: psnr(np.ones(3), np.ones(4), peak=1), InputError),
        (lambda: psnr(np.ones(3), np.ones(3), peak=0), InputError),
        (lambda: psnr(np.ones(0), np.ones(0), peak=1), InputError),
        (lambda: snr_db(np.ones((2, 3)), np.ones(3)), InputError),
        (lambda: snr_db(np.ones(3), np.zeros(3)), InputError),
        (lambda: snr_db(np.ones(3) * 1j, np.ones(3)), InputTypeError),
    ],
)
def test_ratios_refuse_what_makes_no_sense(score, kind):
    with pytest.raises(kind):
        score()
