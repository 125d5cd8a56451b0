"""Simulated signals have the truth, the noise and the statistics that they promise."""

import itertools
import time

import numpy as np
import pytest

from emdl.errors import InputError
from emdl.metrics import atom_error, match_spikes, snr_db
from emdl.simulate import convolutional, tetrode, waveforms
from emdl.simulate.neurons import choose_distinct


def atoms(rng, *shape):
    D = rng.standard_normal(shape)
    return D / np.linalg.norm(D.reshape(len(D), -1), axis=1).reshape(-1, *(1 for _ in shape[1:]))


@pytest.mark.parametrize(("n_atoms", "n_channels", "length"), [(3, 1, 45), (5, 4, 60), (2, 3, 17), (12, 8, 30)])
def test_waveforms_have_unit_norm_and_end_at_zero(n_atoms, n_channels, length):
    D = waveforms(n_atoms, n_channels, length, rng=1)
    assert D.shape == (n_atoms, n_channels, length)
    np.testing.assert_allclose((D**2).sum((1, 2)), 1)
    assert np.abs(D[:, :, [0, -1]]).max() < 0.05  # no step where an atom begins or ends


@pytest.mark.parametrize("bound", [0.75, 0.85, 0.95])
def test_waveforms_differ_at_every_lag_by_as_much_as_asked(bound):
    D = waveforms(4, 3, 40, max_correlation=bound, rng=2)
    for i, j in itertools.combinations(range(4), 2):
        cosine = np.sqrt(1 - atom_error(D[[i]], D[[j]]).errors ** 2)
        assert cosine < bound


def test_waveforms_are_a_sharp_trough_and_a_slower_peak_after_it():
    D = waveforms(12, 4, 75, rng=3)
    for atom in D:
        best = atom[np.abs(atom).max(1).argmax()]
        trough, peak = best.argmin(), best.argmin() + best[best.argmin() :].argmax()
        assert trough == 24  # 0.8 of 2.5 ms
        assert 0.1 < best[peak] / -best[trough] < 0.8
        assert np.sum(best < best[trough] / 2) < np.sum(best > best[peak] / 2)
    assert np.abs(np.diff(D, 2)).max() < 0.3 * np.abs(D).max()  # smooth


def test_waveforms_fall_off_from_the_nearest_channel():
    heights = np.sort(np.abs(waveforms(12, 4, 75, rng=3)).max(2), 1)
    ratio = heights[:, 0] / heights[:, -1]
    assert ratio.min() < 0.3
    assert ratio.max() < 0.95


def test_a_moved_copy_is_not_a_different_waveform(rng):
    wave, other = rng.standard_normal((2, 2, 20))
    shapes = np.stack([np.pad(x, [(0, 0), room]) for x, room in [(wave, (0, 9)), (-wave, (9, 0)), (other, (4, 5))]])
    assert choose_distinct(shapes, 2, 0.9).tolist() == [0, 2]


def test_the_trough_is_at_time_zero_on_the_nearest_channel_and_later_on_the_others():
    r = tetrode(0.01, 6, fs=500_000, rng=0)
    times = (r.waveforms.argmin(2) - r.trough) / 500  # ms
    distance = np.linalg.norm(r.unit_positions[:, None] - r.channel_positions, axis=2)
    nearest = np.arange(6), distance.argmin(1)
    np.testing.assert_array_equal(r.waveforms.min(2).argmin(1), nearest[1])
    np.testing.assert_allclose(times[nearest], 0, atol=0.002)  # a sample
    delay = (distance - distance[nearest][:, None]) / 500  # um at 500 um / ms
    assert (np.abs(times - delay) < 0.02 + 0.5 * delay).all()


def test_waveforms_that_cannot_differ_so_much_are_refused():
    with pytest.raises(InputError, match="raise it, or use more channels or fewer waveforms"):
        waveforms(20, 1, 45, max_correlation=0.5, rng=0)


@pytest.mark.parametrize(
    ("n_samples", "support", "stride"),
    [(90, (7,), 1), ((19, 26), (4, 5), 1), (91, (7,), 3), ((20, 26), (4, 5), (2, 3))],
)
def test_signals_are_the_synthesis_of_their_codes_plus_noise(rng, n_samples, support, stride):
    sim = convolutional(
        2, n_samples, atoms(rng, 3, 2, *support), density=0.05, sigma=0.3, amplitude=2.0, stride=stride, rng=5
    )
    want = np.zeros_like(sim.clean)
    steps = np.broadcast_to(stride, len(support))
    for i, k, *place in zip(*np.nonzero(sim.z), strict=True):
        window = tuple(slice(p * t, p * t + s) for p, t, s in zip(place, steps, support, strict=True))
        want[(i, slice(None), *window)] += sim.z[(i, k, *place)] * sim.D[k]
    np.testing.assert_allclose(sim.clean, want, atol=1e-12)
    noise = sim.y - sim.clean
    assert abs(noise.std() / 0.3 - 1) < 5 / np.sqrt(2 * noise.size)  # five standard errors


@pytest.mark.parametrize("asked", [-5, 0, 10, 20])
def test_the_noise_has_the_signal_to_noise_ratio_asked_for(rng, asked):
    sim = convolutional(4, 5000, atoms(rng, 2, 3, 20), density=0.01, snr_db=asked, rng=asked + 5)
    np.testing.assert_allclose(10 * np.log10((sim.clean**2).mean() / sim.sigma**2), asked, atol=1e-10)
    assert abs(snr_db(sim.y, sim.clean) - asked) < 0.1  # 60,000 samples of noise: one standard error is 0.025 dB


def test_codes_have_the_density_and_amplitudes_asked_for(rng):
    D = atoms(rng, 2, 1, 10)
    sim = convolutional(3, 50_000, D, density=[0.002, 0.02], positive=True, amplitude=(0.5, 1.5), rng=1)
    count = np.count_nonzero(sim.z, axis=(0, 2))
    expected = np.array([0.002, 0.02]) * sim.z[:, 0].size
    assert (np.abs(count - expected) < 5 * np.sqrt(expected)).all()
    events = sim.z[sim.z != 0]
    assert 0.5 <= events.min() < 0.51
    assert 1.49 < events.max() <= 1.5
    signed = convolutional(3, 50_000, D, density=0.02, amplitude=0.7, rng=1).z
    events = signed[signed != 0]
    assert abs(np.mean(events > 0) - 0.5) < 2.5 / np.sqrt(events.size)
    assert abs(np.abs(events).mean() / 0.7 - 1) < 5 / np.sqrt(events.size)  # exponential: mean and deviation are equal


def test_signals_without_asked_noise_are_clean_and_keep_the_dtype_of_the_atoms(rng):
    sim = convolutional(2, 60, atoms(rng, 2, 1, 5).astype(np.float32), density=0.1, rng=1)
    assert sim.sigma == 0
    np.testing.assert_array_equal(sim.y, sim.clean)
    assert {x.dtype for x in (sim.y, sim.clean, sim.z, sim.D)} == {np.dtype(np.float32)}


def fields(sim):
    return {name: value for name, value in vars(sim).items() if isinstance(value, np.ndarray)}


@pytest.mark.parametrize(
    "make",
    [
        lambda rng: convolutional(2, 200, waveforms(2, 2, 20, rng=0), density=0.05, snr_db=3, rng=rng),
        lambda rng: tetrode(0.5, 3, rng=rng),
    ],
)
def test_the_same_seed_gives_the_same_bits_and_another_does_not(make):
    first, again, other = fields(make(7)), fields(make(np.random.default_rng(7))), fields(make(8))
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name])
    assert any(not np.array_equal(value, other[name]) for name, value in first.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_signals": 0}, "n_signals"),
        ({"n_samples": 3}, "shorter than an atom"),
        ({"n_samples": (30, 30)}, "axes of the atoms"),
        ({"density": 1.5}, "density"),
        ({"density": [0.1, 0.1, 0.1]}, "density"),
        ({"snr_db": 3, "sigma": 1}, "one of them"),
        ({"sigma": -1}, "sigma"),
        ({"density": 0, "snr_db": 3}, "no event was drawn"),
        ({"amplitude": (2, 1)}, "amplitude"),
        ({"amplitude": -1}, "amplitude"),
        ({"stride": 0}, "stride"),
    ],
)
def test_signals_that_make_no_sense_are_refused(rng, change, message):
    given = {"n_signals": 2, "n_samples": 40, "D": atoms(rng, 2, 1, 5), "density": 0.1, "rng": 0}
    with pytest.raises(InputError, match=message):
        convolutional(**{**given, **change})


@pytest.fixture(scope="module")
def recording():
    return tetrode(20.0, 5, rng=1)


def test_a_recording_has_the_shapes_it_promises(recording):
    r = recording
    assert (r.data.shape, r.data.dtype, r.waveforms.shape) == ((4, 600_000), np.float32, (5, 4, 75))
    assert len(r.spike_samples) == len(r.spike_units) == len(r.spike_amplitudes)
    assert (np.diff(r.spike_samples) >= 0).all()
    assert set(r.spike_units) == set(range(5))
    np.testing.assert_allclose(r.data, r.clean + r.noise, atol=1e-4)


def test_the_clean_recording_is_the_sum_of_the_spikes():
    """Taken spike by spike, the waveform moved by a fraction of a sample through its spectrum."""
    r = tetrode(1.0, 2, rate_hz=(20, 30), rng=3)
    s = r.waveforms.shape[2]
    frequency = np.fft.rfftfreq(4 * s)
    spectrum = np.fft.rfft(r.waveforms, 4 * s)
    want = np.zeros(r.data.shape)
    for t, k, a in zip(r.spike_samples, r.spike_units, r.spike_amplitudes, strict=True):
        first = int(np.floor(t))
        late = np.fft.irfft(spectrum[k] * np.exp(-2j * np.pi * frequency * (t - first)), 4 * s)[:, :s]
        want[:, first - r.trough : first - r.trough + s] += a * late
    assert np.abs(r.clean - want).max() < 0.02 * np.abs(r.waveforms).max()  # waveforms are not quite band-limited


def test_spike_times_lie_at_the_troughs(recording):
    r = recording
    lonely = np.flatnonzero(
        np.minimum(np.diff(r.spike_samples, prepend=-999), np.diff(r.spike_samples, append=1e9)) > 80
    )
    assert len(lonely) > 300
    for i in lonely:
        t, k = r.spike_samples[i], r.spike_units[i]
        best = r.waveforms[k].min(1).argmin()
        around = int(np.rint(t)) + np.arange(-10, 11)
        assert abs(around[r.clean[best, around].argmin()] - t) <= 1
        depth = -r.clean[best, around].min()
        np.testing.assert_allclose(depth, -r.spike_amplitudes[i] * r.waveforms[k, best].min(), rtol=0.05)


def test_spike_times_lie_between_samples(recording):
    part = recording.spike_samples % 1
    np.testing.assert_allclose(np.sort(np.unique(part)), np.arange(16) / 16)


def test_troughs_are_as_deep_as_asked():
    depth = -tetrode(0.1, 12, peak_uv=(80, 120), rng=0).waveforms.min((1, 2))
    assert ((depth >= 80) & (depth <= 120)).all()
    assert np.ptp(depth) > 15


def band_power(x, fs):
    """Return the variance of each channel between 300 and 6000 Hz."""
    spectrum, frequency = np.fft.rfft(x.astype(float)), np.fft.rfftfreq(x.shape[1], 1 / fs)
    inside = (frequency >= 300) & (frequency <= 6000)
    return 2 * (np.abs(spectrum[:, inside]) ** 2).sum(1) / x.shape[1] ** 2


@pytest.mark.parametrize(("level", "background", "fs"), [(8, 0.0, 30_000), (12, 0.3, 24_000), (10, 1.0, 15_000)])
def test_the_noise_in_the_spike_band_is_as_large_as_asked(level, background, fs):
    r = tetrode(20.0, 1, noise_uv=level, background=background, fs=fs, rng=4)
    assert abs(np.sqrt(band_power(r.noise, fs).mean()) / level - 1) < 0.05


def test_the_noise_is_larger_below_the_spike_band_and_shared_by_channels(recording):
    noise = recording.noise.astype(float)
    spectrum, frequency = np.fft.rfft(noise), np.fft.rfftfreq(noise.shape[1], 1 / recording.fs)
    low, high = (
        (np.abs(spectrum[:, (frequency > a) & (frequency < b)]) ** 2).mean() for a, b in [(10, 100), (1000, 3000)]
    )
    assert low > 30 * high
    spectrum[:, (frequency < 300) | (frequency > 6000)] = 0
    correlation = np.corrcoef(np.fft.irfft(spectrum))[np.triu_indices(4, 1)]
    assert ((correlation > 0.3) & (correlation < 0.9)).all()


def test_a_recording_without_noise_is_clean():
    r = tetrode(0.5, 2, noise_uv=0, rng=0)
    np.testing.assert_array_equal(r.data, r.clean)


@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_no_unit_fires_within_its_refractory_period(overlap):
    r = tetrode(60.0, 4, rate_hz=(20, 40), refractory_ms=3.0, burst=0.3, overlap=overlap, noise_uv=0, rng=2)
    gaps = [np.diff(r.spike_samples[r.spike_units == k]).min() / r.fs * 1000 for k in range(4)]
    assert 3.0 - 0.005 < min(gaps) < 3.3  # times lie on a grid of 1/16 sample


def test_units_fire_at_the_rates_asked_for():
    r = tetrode(120.0, 6, fs=8000, rate_hz=(5, 5), burst=0.2, noise_uv=0, rng=3)
    count = np.bincount(r.spike_units)
    assert (np.abs(count - 600) < 5 * np.sqrt(600) * 1.2).all()  # bursts widen the spread of a Poisson count


def test_spikes_of_a_burst_follow_soon_and_are_smaller():
    r = tetrode(60.0, 1, rate_hz=(10, 10), burst=0.4, drift=0, jitter=0, noise_uv=0, rng=3)
    gap = np.diff(r.spike_samples) / r.fs * 1000
    smaller = r.spike_amplitudes[1:] < 0.99
    assert abs(smaller.mean() - 0.4) < 0.1
    assert gap[smaller].min() >= 3 - 0.005
    assert gap[smaller].max() <= 7 + 0.005


def test_amplitudes_drift_slowly_and_jitter_quickly():
    r = tetrode(200.0, 1, fs=8000, rate_hz=(20, 20), burst=0, drift=0.2, jitter=0.1, noise_uv=0, rng=6)
    slow = np.convolve(r.spike_amplitudes, np.ones(101) / 101, "valid")
    assert 0.1 < np.ptp(slow) <= 0.4 + 0.1
    assert abs((r.spike_amplitudes[50:-50] - slow).std() / 0.1 - 1) < 0.1
    assert np.abs(np.diff(slow)).max() < 0.01


def overlapping(r):
    """Return the part of spikes with one of another unit within 0.5 ms."""
    near = 0
    for k in range(r.spike_units.max() + 1):
        own, others = (r.spike_samples[select] for select in (r.spike_units == k, r.spike_units != k))
        right = np.searchsorted(others, own).clip(1, len(others) - 1)
        near += np.sum(np.minimum(abs(others[right] - own), abs(others[right - 1] - own)) <= 0.0005 * r.fs)
    return near / len(r.spike_samples)


def test_overlaps_come_by_chance_and_as_asked():
    options = {"rate_hz": (10, 10), "burst": 0, "noise_uv": 0, "rng": 1}
    assert abs(overlapping(tetrode(60.0, 5, **options)) - (1 - np.exp(-4 * 10 * 0.001))) < 0.02
    assert 0.3 < overlapping(tetrode(60.0, 5, overlap=0.3, **options)) < 0.6


def test_large_units_are_found_by_a_plain_threshold(recording):
    """A recording that looks right can be read: units of 10 noise levels leave hardly a spike unseen."""
    r = recording
    frequency = np.fft.rfftfreq(r.data.shape[1], 1 / r.fs)
    spectrum = np.fft.rfft(r.data)
    spectrum[:, (frequency < 300) | (frequency > 6000)] = 0
    x = np.fft.irfft(spectrum, r.data.shape[1]).min(0)
    trough = 1 + np.flatnonzero((x[1:-1] < -50) & (x[1:-1] <= x[:-2]) & (x[1:-1] < x[2:]))
    for k in np.flatnonzero(r.waveforms.min((1, 2)) < -150):
        times = r.spike_samples[r.spike_units == k]
        assert len(match_spikes(trough, times, tolerance=9)[0]) > 0.95 * len(times)


@pytest.mark.parametrize("n_channels", [1, 2, 8])
def test_any_number_of_channels_can_be_simulated(n_channels):
    r = tetrode(0.3, 2, n_channels=n_channels, max_correlation=0.97, rng=0)
    assert r.data.shape == (n_channels, 9000)
    assert r.channel_positions.shape == (n_channels, 3)
    assert np.isfinite(r.data).all()


def test_a_minute_of_a_tetrode_takes_seconds():
    """0.7 to 0.9 s alone on one core; the bound is no benchmark, it catches a loop over samples or spikes."""
    start = time.process_time()
    tetrode(60.0, 8, rng=0)
    assert time.process_time() - start < 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"duration_s": 0.001}, "duration_s"),
        ({"n_units": 0}, "n_units"),
        ({"fs": 100}, "fs"),
        ({"rate_hz": (0, 5)}, "rate_hz"),
        ({"rate_hz": (400, 500)}, "refractory period"),
        ({"peak_uv": (200, 100)}, "peak_uv"),
        ({"noise_uv": -1}, "noise_uv"),
        ({"background": 2}, "background"),
        ({"drift": 3}, "drift"),
        ({"jitter": -1}, "jitter"),
        ({"burst": 0.9}, "burst"),
        ({"overlap": 1.1}, "overlap"),
        ({"refractory_ms": -1}, "refractory_ms"),
        ({"max_correlation": 0.2}, "max_correlation"),
    ],
)
def test_recordings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        tetrode(**{"duration_s": 0.1, "n_units": 4, "rng": 0, **change})
