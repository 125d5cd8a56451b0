"""Many channels: neighbourhoods, and units that are learned in them and put together."""

import numpy as np
import pytest

from emdl import spikes
from emdl.errors import InputError
from emdl.metrics import score_spikes
from emdl.simulate import tetrode
from emdl.spikes import decision, probes, scales, whitening
from emdl.spikes.decision import Units


@pytest.fixture(scope="module")
def recording():
    return tetrode(
        6.0, 4, n_channels=12, rng=1, fs=20000.0, peak_uv=(150.0, 250.0), rate_hz=(15.0, 20.0), drift=0.0, burst=0.0
    )


@pytest.mark.parametrize("places", [True, False])
def test_units_of_a_probe_are_found_and_lie_on_the_channels_near_them(recording, places):
    model = spikes.fit(recording.data, recording.fs, positions=recording.channel_positions if places else None)
    found = spikes.detect(recording.data, model)
    scores = score_spikes(
        found.sample, found.unit, recording.spike_samples, recording.spike_units, tolerance=0.4e-3 * recording.fs
    )
    assert scores.accuracy.min() > 0.9, scores.accuracy
    assert model.n_units <= 6  # a far neuron of the background may stand out too
    assert (model.units.D != 0).any(axis=2).sum(axis=1).mean() < 11  # of 12
    assert model.history["n_units"][-1] == len(model.rate)


def test_every_channel_is_in_the_core_of_one_neighbourhood(rng):
    place = np.column_stack([np.zeros(21), 20.0 * rng.permutation(21)])
    near = probes.neighbourhoods(probes.distances(np.zeros((21, 0)), place))
    assert sorted(c for channels, n in near for c in channels[:n]) == list(range(21))
    for channels, n in near:
        assert len(set(channels)) == len(channels) <= probes.MOST
        assert np.ptp(place[channels[:n], 1]) <= 20 * 6


def test_work_grows_with_the_neighbours_of_a_unit_not_with_the_channels(rng):
    """The tables of a unit hold its own channels and the units that share one of them."""
    D = np.zeros((20, 60, 30), np.float32)
    for k in range(20):
        D[k, 3 * k : 3 * k + 4] = rng.standard_normal((min(4, 60 - 3 * k), 30))
    D /= np.linalg.norm(D, axis=(1, 2), keepdims=True)
    ready = decision.prepare(Units(D, np.full(20, 10.0), np.full(20, 1.0), np.full(20, 1e-3)))
    assert ready.templates.shape == (20, decision.N_SHIFTS, 4, 30)
    assert ready.gram.shape == (20, decision.N_SHIFTS, 3, 59)
    x = rng.standard_normal((60, 200)).astype(np.float32)
    wanted = [sum(np.correlate(x[c], D[k, c]) for c in range(60)) for k in range(20)]
    np.testing.assert_allclose(decision.products(x, ready), wanted, atol=1e-4)


def test_duplicates_are_left_out(rng):
    """Two templates of one unit share its spikes; the smaller of them goes."""
    scale = scales.choose(20000.0)
    bump = np.exp(-0.5 * np.minimum(((np.arange(scale.length) - scale.before) / 3) ** 2, 80))
    D = np.zeros((3, 10, scale.length), np.float32)
    D[0, :4], D[1, :4], D[2, 6:] = bump, bump * (1 + 0.1 * np.arange(4)[:, None]), bump
    D /= np.linalg.norm(D, axis=(1, 2), keepdims=True)
    x = rng.standard_normal((10, 100_000)).astype(np.float32)
    for t in range(300, 99_000, 300):
        k = (t // 300) % 2
        x[:, t : t + scale.length] += 20 * (D[2] if k else (D[0] + D[1]) / np.linalg.norm(D[0] + D[1]))
    units = Units(D, np.full(3, 20.0), np.full(3, 2.0), np.full(3, 1e-3))
    around = np.tile(np.arange(10), (10, 1))
    made, events, _ = probes.step(x, units, around, scale, 1.0, rng)
    assert len(events) == 329
    assert sorted(np.square(made.D).sum(axis=2)[:, 6:].sum(axis=1).round(2)) == [0, 1]


def test_a_unit_of_two_neurons_is_split(rng):
    scale = scales.choose(20000.0)
    bump = np.exp(-0.5 * np.minimum(((np.arange(scale.length) - scale.before) / 3) ** 2, 80))
    neurons = np.zeros((2, 4, scale.length), np.float32)
    neurons[0], neurons[1] = bump * np.array([[4], [3], [2], [1]]), bump * np.array([[3], [4], [1], [2]])
    neurons *= 20 / np.linalg.norm(neurons, axis=(1, 2), keepdims=True)
    x = rng.standard_normal((4, 60_000)).astype(np.float32)
    for i, t in enumerate(rng.integers(300, 59_000, 200)):
        x[:, t : t + scale.length] += neurons[i % 2]
    D = neurons.sum(axis=0, keepdims=True) / np.linalg.norm(neurons.sum(axis=0))
    units = Units(D, np.array([19.5]), np.array([2.0]), np.array([1e-3]))
    made, _, _ = probes.step(x, units, np.tile(np.arange(4), (4, 1)), scale, 1.0, rng)
    inner = np.tensordot(made.D, neurons / 20, ((1, 2), (1, 2)))
    assert inner.shape == (2, 2)
    assert np.sort(inner.max(axis=1))[0] > 0.99


def test_a_fit_over_neighbourhoods_that_was_interrupted_ends_with_the_same_bits(recording, tmp_path):
    given = {"positions": recording.channel_positions, "checkpoint_every": 0.0}
    seen = []

    def stop(row):
        seen.append(row.iteration)
        if row.iteration > row.max_iter // 2:  # in a neighbourhood after the first
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spikes.fit(recording.data, recording.fs, callback=stop, checkpoint=tmp_path / "half.h5", **given)
    later = []
    given |= {"checkpoint": tmp_path / "half.h5", "resume": True}
    resumed = spikes.fit(recording.data, recording.fs, callback=lambda row: later.append(row), **given)
    whole = spikes.fit(recording.data, recording.fs, positions=recording.channel_positions)
    assert later[0].iteration > seen[0], "the first neighbourhood was not learned again"
    assert np.array_equal(resumed.model.D, whole.model.D)
    assert np.array_equal(resumed.rate, whole.rate)


@pytest.mark.parametrize("wrong", [np.zeros((3, 2)), np.zeros(4), np.full((4, 2), np.nan)])
def test_places_that_do_not_fit_are_refused(rng, wrong):
    with pytest.raises(InputError, match="positions"):
        spikes.fit(rng.standard_normal((4, 20000)), 20000.0, positions=wrong)


def test_the_whitening_of_some_channels_is_that_part_of_the_whole(rng):
    white = whitening.learn(rng.standard_normal((4, 40000)), scales.choose(20000.0))
    part = white.of_channels(np.array([2, 0]))
    np.testing.assert_array_equal(part.taps, white.taps[[2, 0]])
    np.testing.assert_array_equal(part.mixing, white.mixing[[2, 0]][:, [2, 0]])
