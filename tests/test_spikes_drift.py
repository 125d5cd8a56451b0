"""Units that drift: amplitudes and waveforms that change in the course of a recording."""

import numpy as np
import pytest

from emdl import spikes
from emdl.metrics import compare_sortings
from emdl.simulate import tetrode
from emdl.spikes import decision, drift, groups, model


def scored(found, samples, units, fs):
    return compare_sortings(found, (samples, units), fs=fs, delta_ms=0.4)


@pytest.fixture(scope="module")
def fading():
    """Three neurons whose amplitudes change by half, up and down, and fall within bursts; and what was learned."""
    made = tetrode(30.0, 3, rng=3, peak_uv=(100.0, 250.0), rate_hz=(5.0, 15.0), drift=0.5, burst=0.3)
    return made, spikes.fit(made.data, made.fs)


def test_a_neuron_whose_amplitude_drifts_by_half_stays_one_unit(fading):
    made, learned = fading
    assert learned.n_units == 3
    assert "drift followed in units 0, 1, 2" in learned.message
    scores = scored(spikes.detect(made.data, learned), made.spike_samples, made.spike_units, made.fs)
    assert scores.accuracy.min() > 0.98


def test_drift_survives_the_file_and_goes_on_in_another_recording(fading, tmp_path):
    made, learned = fading
    learned.save(tmp_path / "model.h5")
    read = spikes.load(tmp_path / "model.h5")
    assert np.array_equal(read.waves, learned.waves)
    assert read.learned == (made.data.shape[1], model.mark(made.data))
    assert read.drifted_for(made.data) == made.data.shape[1]
    half = spikes.detect(np.ascontiguousarray(made.data[:, : made.data.shape[1] // 2]), read)
    whole = spikes.detect(made.data, read)
    assert np.array_equal(half.sample[:-20], whole.sample[: len(half) - 20]), (
        "the same beginning: the same time of drift"
    )
    assert read.drifted_for(made.data[:, 5000:]) < 1, "another recording: units as they were at the end"


def test_a_waveform_that_turns_into_another_is_followed():
    made = tetrode(30.0, 4, rng=1, peak_uv=(90.0, 220.0), max_correlation=0.9)
    N, s, rng = made.data.shape[1], made.waveforms.shape[2], np.random.default_rng(5)
    x, times = made.noise.copy(), []
    for k in range(2):
        own = np.sort(rng.integers(300, N - 300, 240))
        own = own[np.append(True, np.diff(own) > 90)]
        for t in own:
            m, at = 0.5 * t / N, slice(t - made.trough, t - made.trough + s)
            x[:, at] += ((1 - m) * made.waveforms[k] + m * made.waveforms[k + 2]) * (1 + 0.05 * rng.standard_normal())
        times.append(own)
    learned = spikes.fit(x, made.fs)
    labels = np.repeat([0, 1], [len(t) for t in times])
    scores = scored(spikes.detect(x, learned), np.concatenate(times), labels, made.fs)
    assert learned.n_units == 2
    assert scores.accuracy.min() > 0.98


def test_a_series_follows_the_drift_and_nothing_else(rng):
    shape, other = rng.standard_normal((2, 4, 30))
    shape, other = 20 * shape / np.linalg.norm(shape), other / np.linalg.norm(other)
    u = np.sort(rng.random(300))
    noise = rng.standard_normal((300, 4, 30))
    assert drift.series(shape * (1 + 0.1 * rng.standard_normal(300))[:, None, None] + noise, u, 1.0) is None
    for change in (8 * other, 0.3 * shape):
        waves = drift.series(shape + (u - 0.5)[:, None, None] * change + noise, u, 1.0)
        assert np.abs(np.tensordot(drift.terms(u), waves, 1).mean(axis=0)).max() < 1e-3, "nothing on average"
        ends = np.tensordot(drift.terms(np.array([0.02, 0.98])), waves, 1)
        found = np.tensordot(ends[1] - ends[0], change / np.linalg.norm(change), 2)
        assert found == pytest.approx(0.96 * np.linalg.norm(change), rel=0.2)


@pytest.mark.parametrize(("leap", "apart"), [(False, False), (True, True)])
def test_groups_that_follow_each_other_are_one_if_they_meet(rng, leap, apart):
    d = rng.standard_normal((2, 20))
    d /= np.linalg.norm(d)
    N, time = 300_000, np.sort(rng.integers(0, 300_000, 400))
    size = np.where(time < N / 2, 20.0, 28.0) if leap else 18 + 12 * time / N
    x = size[:, None, None] * d + rng.standard_normal((400, 2, 20))
    early = time < N / 2
    assert groups.separate(x[early], x[~early], 0, (time[early], time[~early]), N) == apart


def test_two_neurons_that_drift_alike_stay_two(rng):
    d = rng.standard_normal((2, 20))
    d /= np.linalg.norm(d)
    N, time = 300_000, np.sort(rng.integers(0, 300_000, 400))
    first = rng.random(400) < 0.5
    size = 16 + 14 * time / N + 7 * first
    x = size[:, None, None] * d + rng.standard_normal((400, 2, 20))
    assert groups.separate(x[first], x[~first], 0, (time[first], time[~first]), N)


def test_units_that_do_not_drift_are_made_ready_once():
    D = np.ones((1, 1, 4), np.float32) / 2
    banks = decision.Banks(decision.Units(D, np.array([9.0]), np.array([1.0]), np.array([1e-3])))
    assert banks.at(0.1) is banks.at(0.9)
    waves = np.zeros((1, drift.TERMS, 1, 4), np.float32)
    waves[0, 1] = 1
    banks = decision.Banks(decision.Units(D, np.array([9.0]), np.array([1.0]), np.array([1e-3]), waves))
    assert banks.at(0.1).known[0, 1] == pytest.approx(9 + 2 * np.cos(0.1 * np.pi), rel=1e-5)


def test_a_trend_is_taken_out_where_it_is_none_of_chance(rng):
    n, n_samples = 500, 1_000_000
    time = np.sort(rng.integers(n_samples, size=n))
    points = rng.standard_normal((n, 2))
    points[:, 0] += np.where(rng.random(n) < 0.5, -3, 3)  # two neurons, now one and now the other
    points[:, 1] += 6 * np.sin(np.pi * time / n_samples)  # drift
    still = drift.without_trend(points, time, n_samples)
    assert np.allclose(still[:, 0], points[:, 0] - points[:, 0].mean())
    assert still[:, 1].std() < 1.1 < points[:, 1].std()
