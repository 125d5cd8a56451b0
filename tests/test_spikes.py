"""Units and spikes: claims on recordings with known truth, laws of whitening and decision, refusals."""

import numpy as np
import pytest
from scipy import stats

import emdl
from emdl import spikes
from emdl.errors import EmdlError, FileFormatError, InputError, InputTypeError
from emdl.metrics import score_spikes
from emdl.simulate import tetrode
from emdl.spikes import decision, groups, kernels, scales, snippets, trains, update, valleys, whitening


@pytest.fixture(scope="module")
def recording():
    return tetrode(10.0, 3, rng=0, peak_uv=(120.0, 250.0), rate_hz=(8.0, 15.0))


@pytest.fixture(scope="module")
def model(recording):
    return spikes.fit(recording.data, recording.fs)


@pytest.fixture(scope="module")
def found(recording, model):
    return spikes.detect(recording.data, model)


def units_at(scale, C, means, rng):
    """Units with smooth random templates, far from one another."""
    bump = np.exp(-0.5 * ((np.arange(scale.length) - scale.before) / (0.15 * scale.unit)) ** 2)
    D = rng.standard_normal((len(means), C, 1)) * bump
    D += 0.3 * rng.standard_normal((len(means), C, 1)) * np.gradient(bump) * scale.unit
    D /= np.sqrt((D**2).sum(axis=(1, 2), keepdims=True))
    mean = np.array(means, float)
    return decision.Units(D.astype(np.float32), mean, 0.1 * mean, np.full(len(mean), 3e-4))


# ---- claims on real recordings, all with default settings ----------------------------------------------------------


def load(folder, name):
    path = folder / name
    if not path.is_file():
        pytest.skip(f"{path} is absent (it may not be redistributed)")
    with np.load(path) as archive:
        return {key: archive[key] for key in archive.files}


def score(data, fs, truth, labels, *, tolerance_s, ignore=None, pooled=False):
    model = spikes.fit(data, fs)
    found = spikes.detect(data, model)
    unit, labels = (np.zeros(len(found), int), np.zeros(len(truth), int)) if pooled else (found.unit, labels)
    return model, score_spikes(found.sample, unit, truth, labels, tolerance=tolerance_s * fs, ignore=ignore)


def test_the_three_units_of_the_quiroga_excerpt_are_found(shared_data):
    d = load(shared_data, "spikes/quiroga_C_Easy1_noise015_2s.npz")
    model, scores = score(d["data"], float(d["fs"]), d["spike_times"], d["spike_labels"], tolerance_s=1e-3)
    assert model.n_units == 3
    assert scores.f1.min() >= 0.95, scores.f1


@pytest.mark.parametrize(("key", "least"), [("noisy_snr6", 0.97), ("noisy_snr3", 0.75)])
def test_purkinje_spikes_are_found_in_noise(shared_data, key, least):
    d = load(shared_data, "spikes/purkinje_noisy_dev.npz")
    model, scores = score(
        d[key], float(d["fs"]), d["spike_times"], d["spike_labels"], tolerance_s=1e-3, ignore=d["ignore"]
    )
    assert model.n_units == 1
    assert scores.f1[0] >= least, scores.f1


def test_injected_units_are_found_in_a_real_background(shared_data):
    """Resident neurons are not labelled, so only the injected units count; a matched filter reaches .76, .46, .25."""
    d = load(shared_data, "spikes/hybrid_locust_dev.npz")
    _, scores = score(d["data"], float(d["fs"]), d["spike_times"], d["spike_labels"], tolerance_s=1e-3)
    assert (scores.recall >= [0.90, 0.80, 0.60]).all(), scores.recall
    assert (scores.f1 >= [0.95, 0.95, 0.85]).all(), scores.f1


def test_heartbeats_are_found(shared_data):
    d = load(shared_data, "signals/mitdb100_10min.npz")
    model, scores = score(d["data"], float(d["fs"]), d["event_times"], d["event_labels"], tolerance_s=0.1, pooled=True)
    assert scores.f1[0] >= 0.99, scores.f1
    assert model.band == (5.0, 40.0)
    assert "slow events" in model.message


# ---- claims on simulated recordings --------------------------------------------------------------------------------


def test_units_of_a_simulated_tetrode_are_found(recording, model, found):
    scores = score_spikes(
        found.sample, found.unit, recording.spike_samples, recording.spike_units, tolerance=0.4e-3 * recording.fs
    )
    assert model.n_units == 3
    assert model.converged
    assert scores.accuracy.min() >= 0.95, scores.accuracy


def test_learned_waveforms_are_the_true_ones(recording, model, found):
    """In the pass band and up to the mean amplitude, so shapes are compared by their cosine."""
    scores = score_spikes(
        found.sample, found.unit, recording.spike_samples, recording.spike_units, tolerance=0.4e-3 * recording.fs
    )
    for true, unit in zip(recording.waveforms, scores.found_units[scores.matched], strict=True):
        padded = np.pad(true, ((0, 0), (600, 600))).astype(np.float32)
        seen = whitening.band_pass(padded, model.whitening, 0, None) + model.whitening.offset[:, None] * 0
        _, product = snippets.best_lag(seen, model.waveforms[unit].astype(np.float32), seen.shape[1] // 2)
        cosine = product / np.linalg.norm(seen) / np.linalg.norm(model.waveforms[unit])
        assert cosine > 0.97, cosine


def test_amplitudes_are_in_the_unit_of_the_data(model, found):
    height = np.abs(model.waveforms).max(axis=(1, 2))
    for unit in range(model.n_units):
        np.testing.assert_allclose(np.median(found.amplitude[found.unit == unit]), height[unit], rtol=0.1)


def test_spikes_do_not_depend_on_the_blocks(recording, model, found):
    again = spikes.detect(recording.data, model, block_s=0.7)
    np.testing.assert_array_equal(again.sample, found.sample)
    np.testing.assert_array_equal(again.unit, found.unit)
    np.testing.assert_allclose(again.amplitude, found.amplitude, rtol=1e-3)  # float32 filters of other lengths


def test_the_same_seed_gives_the_same_model(recording, model):
    again = spikes.fit(recording.data, recording.fs)
    np.testing.assert_array_equal(again.model.D, model.model.D)
    np.testing.assert_array_equal(again.waveforms, model.waveforms)


@pytest.mark.parametrize("n_units", [1, 2, 4])
def test_a_number_of_units_that_is_asked_for_is_kept(recording, n_units):
    model = spikes.fit(recording.data[:, :150000], recording.fs, n_units=n_units)
    assert model.n_units == n_units
    assert np.abs(model.waveforms).max(axis=(1, 2)).min() > 0


def test_noise_holds_no_units(rng, tmp_path):
    data = rng.standard_normal((2, 60000))
    model = spikes.fit(data, 15000.0)
    assert model.n_units == 0
    assert "no units" in model.message
    assert len(spikes.detect(data, model)) == 0
    assert spikes.encode(data, model).n_nonzero == 0
    model.save(tmp_path / "none.h5")
    assert spikes.load(tmp_path / "none.h5").n_units == 0


def test_a_model_survives_its_file(recording, model, found, tmp_path):
    model.save(tmp_path / "m.h5")
    again = spikes.load(tmp_path / "m.h5")
    for name in ("waveforms", "spread", "peak", "amplitude", "amplitude_spread", "rate", "noise"):
        np.testing.assert_array_equal(getattr(again, name), getattr(model, name))
    assert (again.fs, again.band, again.message, again.converged) == (
        model.fs,
        model.band,
        model.message,
        model.converged,
    )
    assert set(again.history) == set(model.history)
    there = spikes.detect(recording.data[:, :60000], again)
    here = spikes.detect(recording.data[:, :60000], model)
    np.testing.assert_array_equal(there.sample, here.sample)
    np.testing.assert_array_equal(emdl.load(tmp_path / "m.h5").D, model.model.D)


def test_a_callback_sees_every_iteration_and_can_end_the_fit(recording):
    seen = []
    model = spikes.fit(recording.data[:, :90000], recording.fs, callback=lambda state: seen.append(state) or True)
    assert [state.iteration for state in seen] == [1]
    assert not model.converged
    assert "callback" in model.message
    state = seen[0]
    assert state.n_nonzero > 0
    assert 0.8 < state.sigma < 1.3
    assert state.lmbd.shape == (len(state.D),)
    assert state.max_iter >= 1
    assert state.seconds > 0


def test_a_recording_is_only_read(recording, model, tmp_path):
    np.save(tmp_path / "r.npy", np.round(recording.data[:, :60000] * 10).astype(np.int16))
    data = np.load(tmp_path / "r.npy", mmap_mode="r")  # writing to it would raise
    assert spikes.fit(data, recording.fs).n_units >= 1


def test_codes_are_certified_minima_of_the_whitened_signal(recording, model):
    data = recording.data[:, :20000]
    codes = spikes.encode(data, model)
    x = whitening.whiten(data, model.whitening)[None]
    whole = emdl.encode(x, model.model.D, model.model.lmbd, 1.0, positive=True, tol=1e-5)
    E = [emdl.objective(x, z, model.model.D, model.model.lmbd) for z in (codes.dense(), whole)]
    assert E[0] <= E[1] * (1 + 2e-4)  # the tolerance of both


# ---- laws ----------------------------------------------------------------------------------------------------------


def coloured(rng, C, N):
    mix = np.eye(C) + 0.4 * rng.standard_normal((C, C))
    x = rng.standard_normal((C, N + 2))
    return (mix @ (x[:, 2:] + 1.2 * x[:, 1:-1] + 0.5 * x[:, :-2])).astype(np.float32)


def test_whitened_noise_has_unit_density_in_every_direction(rng):
    """A matched filter of any unit-norm template in the pass band then has standard deviation 1."""
    data, scale = coloured(rng, 3, 200000), scales.choose(15000.0)
    white = whitening.learn(data, scale)
    x = whitening.whiten(data, white)
    for _ in range(5):
        template = rng.standard_normal((3, 200))
        f = np.fft.rfftfreq(200, 1 / scale.fs)
        spectrum = np.fft.rfft(template) * ((f > 600) & (f < 5000))
        template = np.fft.irfft(spectrum, 200)
        template /= np.linalg.norm(template)
        out = sum(np.convolve(x[c], template[c, ::-1], "valid") for c in range(3))
        assert 0.9 < out.std() < 1.1, out.std()  # the ridge of the whitening leaves some per cent


def test_a_whitened_stretch_does_not_depend_on_the_rest(rng):
    data, scale = coloured(rng, 2, 20000), scales.choose(15000.0)
    white = whitening.learn(data, scale)
    whole = whitening.whiten(data, white)
    np.testing.assert_allclose(whitening.whiten(data, white, 5000, 9000), whole[:, 5000:9000], atol=1e-5)  # float32 FFT
    np.testing.assert_allclose(whitening.whiten(data, white, 0, 3000), whole[:, :3000], atol=1e-5)


def test_an_offset_of_the_data_does_not_matter(rng):
    data, scale = coloured(rng, 2, 30000), scales.choose(15000.0)
    plain, moved = (whitening.whiten(d, whitening.learn(d, scale)) for d in (data, data + np.float32(2048)))
    np.testing.assert_allclose(moved, plain, atol=0.02)  # float32 holds 2048.001 to 1e-4 only


def test_the_odds_are_those_of_equation_S1(rng):
    for u, mean, spread, rate in rng.uniform((3, 5, 0.5, 1e-5), (30, 30, 5, 1e-2), (20, 4)):
        odds, amplitude = kernels.judge(u, mean, spread**2, np.log(rate / (1 - rate)))
        if amplitude < kernels.LEAST * mean:
            assert odds < -1e29
            continue
        wanted = stats.norm.logpdf(u, mean, np.sqrt(1 + spread**2)) - stats.norm.logpdf(u) + np.log(rate / (1 - rate))
        np.testing.assert_allclose(odds, wanted, rtol=1e-9, atol=1e-9)


def test_the_threshold_is_where_the_odds_turn(rng):
    mean, spread, rate = rng.uniform((5, 0.5, 1e-5), (40, 5, 1e-2), (30, 3)).T
    units = decision.Units(np.ones((30, 1, 4), np.float32) / 2, mean, spread, rate)
    for k in range(30):
        below, above = (
            kernels.judge(units.threshold[k] * f, mean[k], spread[k] ** 2, units.logit[k])[0] for f in (0.999, 1.001)
        )
        assert below < 0 < above


def test_overlapping_spikes_between_samples_are_told_apart(rng):
    """Two units 0.2 to 0.8 ms apart, at parts of a sample, in white noise of density 1."""
    scale = scales.choose(20000.0)
    units = units_at(scale, 3, [20.0, 15.0], rng)
    bank, start = decision.bank(units.D), np.arange(200, 39000, 400)
    x = rng.standard_normal((3, 40000)).astype(np.float32)
    second, shift = start + rng.integers(4, 16, len(start)), rng.integers(decision.N_SHIFTS, size=(2, len(start)))
    for i, (a, b) in enumerate(zip(start, second, strict=True)):
        x[:, a : a + scale.length] += 20 * bank[0, shift[0, i]]
        x[:, b : b + scale.length] += 15 * bank[1, shift[1, i]]
    events, residual = decision.decide(x, units, scale.unit)
    for k, truth in enumerate((start, second)):
        times = events.time[events.unit == k]
        assert len(times) == len(truth)
        assert np.abs(times - truth).max() <= 1
    assert 0.95 < residual.std() < 1.05


def test_a_unit_rests_after_a_spike(rng):
    scale = scales.choose(20000.0)
    units = units_at(scale, 2, [20.0], rng)
    x = rng.standard_normal((2, 4000)).astype(np.float32)
    for a in (1000, 1000 + scale.unit, 2000, 2000 + 3 * scale.unit):
        x[:, a : a + scale.length] += 20 * units.D[0]
    assert len(decision.decide(x, units, scale.unit, rest=False)[0]) == 4
    assert len(decision.decide(x, units, scale.unit)[0]) == 3


def test_a_gap_tells_two_groups_from_one(rng):
    one = valleys.gap(rng.standard_normal(400))
    two = valleys.gap(np.concatenate([rng.standard_normal(300), 5 + rng.standard_normal(100)]))
    assert one[0] > 0.6 or one[1] < 0
    assert two[0] < 0.3  # the smoothing fills some of it
    assert two[1] > 50
    assert 90 < two[2].sum() < 110


@pytest.mark.parametrize("n", [12, 20, 60])
def test_few_spikes_of_one_unit_are_not_taken_for_two(rng, n):
    """In as many dimensions as samples a line separates any few points; the test must not fall for it."""
    mistakes = 0
    for _ in range(20):
        x = 10 * np.ones((2 * n, 2, 40)) / np.sqrt(80) + rng.standard_normal((2 * n, 2, 40))
        time = rng.permutation(2 * n)
        mistakes += groups.separate(x[:n], x[n:], 0, (time[:n], time[n:]), 2 * n)
    assert mistakes <= 1


def test_groups_are_merged_and_split_by_their_gaps(rng):
    mean = 12 * np.linalg.qr(rng.standard_normal((80, 2)))[0].T.reshape(2, 2, 40)
    x = (np.repeat(mean, 60, axis=0) + rng.standard_normal((120, 2, 40))).astype(np.float32)
    every, weight, time = np.arange(120), np.full(120, 12.0), rng.permutation(120)
    halves = groups.split(x, [groups.Group(every, every)], time, 120)
    assert sorted(len(g.clean) for g in halves) == [60, 60]
    thirds = [groups.Group(i, i) for i in (every[:30], every[30:60], every[60:])]
    merged = groups.merge(x, weight, thirds, 3, time, 120)
    assert sorted(len(g.clean) for g in merged) == [60, 60]


def test_short_intervals_are_counted_against_chance(rng):
    poisson = np.sort(rng.integers(0, 1_000_000, 2000))
    assert 0.7 < trains.short_intervals(poisson, 1_000_000, 30) < 1.3
    assert trains.short_intervals(np.arange(0, 1_000_000, 500), 1_000_000, 30) == 0
    assert trains.short_intervals(poisson[:5], 1_000_000, 30) == 0  # too few to say


def test_a_burst_is_recognised_by_what_it_follows():
    large = np.arange(1000, 100000, 5000)
    assert trains.follows(large + 150, large, 30)
    assert not trains.follows(large + 2500, large, 30)


def test_two_halves_of_one_neuron_are_told_from_two_neurons(rng):
    """Poisson trains of 20 Hz; the spikes of the one neuron are 5 ms apart at least."""
    N, unit = 1_800_000, 30
    train = np.cumsum(150 + rng.exponential(1350, 1200)).astype(int)
    small = rng.random(len(train)) < 0.4
    assert trains.one_neuron(train[small], train[~small], N, unit)
    assert not trains.one_neuron(np.sort(rng.integers(0, N, 480)), train[~small], N, unit)
    early = train < N / 2
    assert not trains.one_neuron(train[early], train[~early], N, unit), "never active together: nothing is told"
    assert not trains.one_neuron(train[small][:3], train[~small][:3], N, unit)  # too few to say


def test_a_part_of_a_waveform_is_no_unit(rng):
    scale = scales.choose(20000.0)
    units = units_at(scale, 2, [20.0, 12.0, 11.0], rng)
    whole = np.arange(500, 100000, 700)
    other = np.sort(rng.integers(0, 100000, 100))
    time = np.concatenate([whole, whole + 15 + rng.integers(0, 3, len(whole)), other])
    unit = np.repeat([0, 1, 2], [len(whole), len(whole), len(other)])
    order = np.argsort(time)
    none = np.zeros(len(time), np.int64)
    events = decision.Events(time[order], unit[order], none, none + np.float32(10), none + np.float32(10))
    assert trains.parts(events, units, scale).tolist() == [False, True, False]


def test_a_window_moves_to_where_the_waveform_is(rng):
    scale = scales.choose(20000.0)
    s, before = scale.length, scale.before
    time, N = np.arange(500, 40000, 400), 41000
    events = decision.Events(time, time * 0, time * 0, time * 0 + 1.0, time * 0 + 1.0)
    everything = [groups.Group(np.arange(len(time)), np.arange(len(time)))]
    narrow = -np.exp(-0.5 * ((np.arange(-60, 60) - 9) / 2.0) ** 2)  # its trough comes 9 samples late
    wide = narrow + 0.9 * np.exp(-0.5 * ((np.arange(-60, 60) + 25) / 6.0) ** 2)  # and a hump before the window
    for shape, least, most in ((narrow, 9, 9), (wide, -30, 0)):
        passed = np.zeros((1, N))
        for t in time:
            passed[0, t + before - 60 : t + before + 60] += shape
        lag = update.recentre(passed, events, everything, before, s, 2)[0]
        assert least <= lag <= most, lag


def test_pieces_are_shifted_by_parts_of_a_sample():
    t = np.arange(60.0)
    x = np.exp(-0.5 * ((t - 30) / 4) ** 2)[None, None]
    later = np.exp(-0.5 * ((t - 29.7) / 4) ** 2)
    np.testing.assert_allclose(snippets.advance(x, np.array([0.3]))[0, 0], later, atol=1e-6)


@pytest.mark.parametrize(
    ("fs", "band", "length"),
    [(30000.0, (300.0, 6000.0), 90), (12000.0, (300.0, 5400.0), 36), (360.0, (5.0, 40.0), 108)],
)
def test_band_and_window_follow_the_sampling_rate(fs, band, length):
    scale = scales.choose(fs)
    np.testing.assert_allclose(scale.band, band)
    assert scale.length == length


# ---- refusals ------------------------------------------------------------------------------------------------------


def with_value(value, channel=1, sample=7):
    data = np.random.default_rng(0).standard_normal((2, 5000))
    data[channel, sample:] = value if value == 0 else data[channel, sample:]
    data[channel, sample] = value
    if value == 0:
        data[channel] = 0
    return data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (with_value(np.nan), ["nan", "channel 1", "sample 7"]),
        (with_value(np.inf), ["inf", "channel 1", "sample 7"]),
        (with_value(0.0), ["channel 1", "constant"]),
        (np.random.default_rng(0).standard_normal((2, 150)), ["150", "at least"]),
        (np.zeros((2, 0)), ["(2, 0)"]),
        (np.random.default_rng(0).standard_normal((2000, 4)), ["(2000, 4)", "transpose"]),
        (np.zeros((2, 3, 4)), ["(2, 3, 4)"]),
    ],
)
def test_what_cannot_be_learned_from_is_refused(data, words):
    with pytest.raises(InputError) as error:
        spikes.fit(data, 15000.0)
    for word in words:
        assert word in str(error.value)


def test_complex_data_are_refused():
    with pytest.raises(InputTypeError, match="complex128"):
        spikes.fit(np.zeros((2, 5000), complex), 15000.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"fs": 0.0},
        {"fs": 10.0},
        {"band": (500.0, 100.0)},
        {"band": (300.0, 9000.0)},
        {"window_ms": 0.1},
        {"n_units": 0},
        {"n_units": 10_000},
        {"max_iter": 0},
    ],
)
def test_parameters_that_make_no_sense_are_refused(wrong, rng):
    with pytest.raises(InputError):
        spikes.fit(**{"data": rng.standard_normal((2, 5000)), "fs": 15000.0} | wrong)


def test_a_recording_that_does_not_fit_the_model_is_refused(recording, model):
    with pytest.raises(InputError, match="2 channels, but the model was learned on 4"):
        spikes.detect(recording.data[:2], model)
    with pytest.raises(InputError, match="50 samples"):
        spikes.detect(recording.data[:, :50], model)


def test_a_file_that_is_no_model_of_spikes_is_refused(model, tmp_path):
    import h5py

    emdl.Model(np.ones((1, 1, 4)) / 2, 1.0, 1.0).save(tmp_path / "plain.h5")
    with pytest.raises(FileFormatError, match="no model of spikes"):
        spikes.load(tmp_path / "plain.h5")
    with pytest.raises(EmdlError):
        spikes.load(tmp_path / "absent.h5")
    model.save(tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        del file["attributes/waveforms"]
    with pytest.raises(FileFormatError, match="damaged"):
        spikes.load(tmp_path / "m.h5")
