"""False alarms that the model expects, and units that are none."""

import numpy as np
import pytest

from emdl import simulate, spikes
from emdl.optim import normalize_atoms
from emdl.simulate import tetrode
from emdl.spikes import decision, quality, scales, trains, trust


@pytest.mark.parametrize("rate", [0.25, 0.35, 0.5])
def test_events_that_fall_short_tell_how_many_do_not(rng, rate):
    """Log odds that fall off exponentially, as those of far neurons: what is above 0 is told from below -2."""
    odds = rng.exponential(1 / rate, 20000) - 8
    short = np.histogram(odds, (-8.0, -5.0, -2.0))[0].astype(float)
    np.testing.assert_allclose(quality.beyond(short), np.count_nonzero(odds > 0), rtol=0.15)


def test_where_nothing_falls_short_nothing_is_expected():
    np.testing.assert_array_equal(quality.beyond(np.zeros((3, 2))), 0)


@pytest.mark.parametrize(("far", "low", "high"), [(0.0, 0.0, 0.005), (0.6, 0.05, 0.3)])
def test_far_neurons_are_expected_among_the_spikes(far, low, high):
    """Neurons too small to be units make false alarms: with them 0.14 are counted, without them none."""
    made = tetrode(20.0, 2, rng=5, peak_uv=(70.0, 90.0), rate_hz=(10.0, 10.0), background=far, drift=0.0)
    model = spikes.fit(made.data, made.fs)
    rows = quality.assess(model, made.data, spikes.detect(made.data, model))
    assert len(rows) == 2
    assert low <= max(row["expected_false_alarms"] for row in rows) <= high


@pytest.mark.parametrize("beside", [True, False])
def test_what_one_unit_has_beyond_another_is_no_unit(rng, beside):
    """Unit 2 is unit 0 less unit 1; it is a neuron of its own where its spikes do not come with those of unit 1."""
    scale = scales.choose(20000.0)
    large, small = normalize_atoms(simulate.waveforms(2, 3, scale.length, rng=0))
    waves = np.array([30 * large, 15 * small, 30 * large - 15 * small])
    size = np.linalg.norm(waves, axis=(1, 2))
    D = (waves / size[:, None, None]).astype(np.float32)
    units = decision.Units(D, size, 0.1 * size, np.full(3, 1e-3))
    N = 400_000
    times = [np.sort(rng.choice(N - 100, n, replace=False)) for n in (100, 80, 40)]
    if beside:
        times[2] = times[1][::2]
    unit = np.repeat(np.arange(3), [100, 80, 40])
    every = np.concatenate(times)
    order = np.argsort(every, kind="stable")
    zero = np.zeros(len(every), np.int64)
    events = decision.Events(every[order], unit[order], zero, zero.astype(np.float32), zero.astype(np.float32))
    assert trust.difference(events, units, 2, N, scale) == beside
    assert not trust.difference(events, units, 1, N, scale)


def test_the_nearest_spike_lies_on_either_side():
    np.testing.assert_array_equal(trains.nearest(np.array([10, 20]), np.array([0, 14, 16, 99])), [10, 10, 20, 20])


def test_a_clock_is_no_neuron_and_a_regular_neuron_is_none(rng):
    """Equal to the sample, with some ticks missed; a neuron of one spike a second that varies by a hundredth."""
    ticks = 30000 * np.delete(np.arange(60), [7, 31])
    assert trains.clocked(ticks, 30)
    assert not trains.clocked(np.cumsum(30000 + np.round(300 * rng.standard_normal(60)).astype(int)), 30)
    assert not trains.clocked(ticks[:9], 30)
    assert not trains.clocked(ticks // 100, 30)  # a heart


def test_what_repeats_like_a_clock_is_said_to_be_no_unit(rng):
    made = tetrode(12.0, 2, rng=3, peak_uv=(100.0, 150.0), rate_hz=(8.0, 10.0), background=0.0, drift=0.0)
    data = made.data.copy()
    for at in range(5000, data.shape[1] - 200, 15000):
        data[:, at : at + 3] += 80
    model = spikes.fit(data, made.fs)
    assert model.n_units == 2
    assert "at equal intervals" in model.message
