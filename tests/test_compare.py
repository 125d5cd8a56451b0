"""Sortings against the truth, by SpikeInterface's rules and, where it is installed, by its own numbers."""

import numpy as np
import pytest

from emdl.metrics import compare_sortings

FS = 30_000.0


def trains(rng, seed_units=6, n=300):
    """Return a true sorting, and a found one with misses, jitter, a split, a merged, a missed and an invented unit."""
    true = [np.cumsum(rng.integers(70, 2000, n)) for _ in range(seed_units)]  # no interval within 2 ms
    moved = [np.sort(t + np.rint(rng.normal(0, 5, len(t))).astype(int)) for t in true]
    found = {
        10: moved[0][rng.random(n) < 0.95],
        11: moved[1][: n // 3],
        12: moved[1][n // 3 :],
        13: np.sort(np.concatenate([moved[2], moved[3]])),
        14: np.cumsum(rng.integers(70, 2000, n)),
        15: moved[4][rng.random(n) < 0.75],
    }
    pair = lambda d: (np.concatenate(list(d.values())), np.repeat(list(d), [len(t) for t in d.values()]))  # noqa: E731
    return pair(found), pair(dict(enumerate(true)))


def test_units_are_told_well_detected_split_merged_invented_and_missed(rng):
    found, true = trains(rng)
    scores = compare_sortings(found, true, fs=FS)
    partner = np.where(scores.matched >= 0, np.append(scores.found_units, -1)[scores.matched], -1)
    assert partner[0] == 10
    assert partner[4] == 15
    assert partner[5] == -1
    assert list(scores.well_detected_units) == [0]
    assert 14 in scores.false_positive_units
    assert 13 in scores.overmerged_units
    assert list(scores.redundant_units) == [11]


def test_the_tolerance_is_rounded_down_to_samples():
    """0.4 ms at 24,414 Hz are 9.77 samples."""
    true = (np.array([1000, 2000]), np.array([0, 0]))
    for apart, hits in ((9, 2), (10, 0)):
        scores = compare_sortings((true[0] + apart, true[1]), true, fs=24_414.0)
        assert scores.true_positives.sum() == hits


def test_nothing_found_is_recall_zero():
    nothing = (np.zeros(0, int), np.zeros(0, int))
    scores = compare_sortings(nothing, (np.array([5, 900]), np.array([3, 3])), fs=FS)
    assert scores.recall.tolist() == scores.accuracy.tolist() == [0.0]
    assert len(scores.false_positive_units) == len(scores.redundant_units) == 0


@pytest.mark.parametrize("seed", range(6))
def test_spikeinterface_gets_the_same_numbers(seed):
    si = pytest.importorskip(
        "spikeinterface", reason="SpikeInterface is not installed (pip install 'emdl[spikeinterface]')"
    )
    from spikeinterface.comparison import compare_sorter_to_ground_truth

    rng = np.random.default_rng(seed)
    found, true = trains(rng)
    # Times and units in a random order must not matter.
    shuffled = [(s[o], u[o]) for s, u in (found, true) for o in [rng.permutation(len(s))]]
    scores = compare_sortings(*shuffled, fs=FS)
    peers = [si.NumpySorting.from_samples_and_labels([s[o]], [u[o]], FS) for s, u in (found, true)
             for o in [np.argsort(s, kind="stable")]]  # fmt: skip
    theirs = compare_sorter_to_ground_truth(peers[1], peers[0], exhaustive_gt=True)
    table = theirs.get_performance().loc[scores.true_units]
    for name in ("accuracy", "recall", "precision"):
        np.testing.assert_allclose(getattr(scores, name), table[name].to_numpy(float), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(scores.counts, theirs.match_event_count.loc[scores.true_units, scores.found_units])
    assert len(scores.well_detected_units) == len(theirs.get_well_detected_units())
    assert set(scores.false_positive_units) == set(theirs.get_false_positive_units())
    assert set(scores.redundant_units) == set(theirs.get_redundant_units())
    assert set(scores.overmerged_units) == set(theirs.get_overmerged_units())
