"""A tetrode in the brain: near neurons that can be told apart, far ones that cannot, and noise."""

from dataclasses import dataclass

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft, rfftfreq

from emdl.backend import as_rng, check_count, check_number
from emdl.errors import InputError
from emdl.simulate.neurons import AFTER, BEFORE, channel_positions, choose_distinct, draw_neurons, evaluate
from emdl.simulate.signals import as_range

SPIKE_BAND = (300.0, 6000.0)  # Hz
_PHASES = 16  # spikes lie on a grid of 1/16 sample
_HASH_UNITS, _HASH_RATE = 60, 8.0
_SENSOR_SHARE = 0.4  # of the power of the noise in the spike band
_SLOPE, _AMPLIFIER = 1.5, (1.0, 7500.0)  # spectrum of the brain ~ f^-1.5; pass band of the amplifier, Hz
_NOISE_REACH = 100.0  # um over which the noise of the brain falls to 1/e of its correlation
_BURST_INTERVAL, _BURST_FALL, _BURST_FLOOR = (
    (0.003, 0.007),
    0.88,
    0.6,
)  # s; amplitude of each next spike; least amplitude
_OVERLAP = 0.0005  # s, largest distance of spikes that `overlap` puts together


@dataclass(frozen=True, eq=False)
class SimulatedRecording:
    """A recording and what made it: ``clean`` is the sum of all waveforms * amplitudes, ``data`` is clean + noise.

    Attributes
    ----------
    data : array (C, N)
        Recording, uV, float32.
    clean : array (C, N)
        Spikes of the units alone, uV, float32.
    fs : float
        Sampling rate, Hz.
    spike_samples : array (M,)
        Time of each trough, samples, ascending, in steps of 1/16 sample. Waveform sample j of a spike lies at
        ``spike_samples - trough + j``.
    spike_units : array of int (M,)
        Unit of each spike, 0 to K - 1.
    spike_amplitudes : array (M,)
        Factor of the unit's waveform, about 1.
    waveforms : array (K, C, s)
        Waveform of each unit, uV, float64.
    trough : int
        Sample of `waveforms` at which the channel nearest to the unit has its trough.
    unit_positions, channel_positions : array (K, 3), (C, 3)
        Places, um.
    """

    data: np.ndarray
    clean: np.ndarray
    fs: float
    spike_samples: np.ndarray
    spike_units: np.ndarray
    spike_amplitudes: np.ndarray
    waveforms: np.ndarray
    trough: int
    unit_positions: np.ndarray
    channel_positions: np.ndarray

    @property
    def noise(self):
        """Everything that is not a spike of a unit, data - clean, (C, N)."""
        return self.data - self.clean


def tetrode(
    duration_s=20.0, n_units=4, *, n_channels=4, fs=30000.0, rate_hz=(2.0, 20.0), peak_uv=(60.0, 300.0), noise_uv=10.0,
    background=0.3, jitter=0.05, drift=0.1, burst=0.1, overlap=0.0, refractory_ms=2.0, max_correlation=0.9, rng=None,
):  # fmt: skip
    """Return a simulated extracellular recording in microvolt, unfiltered, with every spike known.

    Units sit at random places around the channels (corners of a square, 25 um apart). They fire as Poisson processes
    with a refractory period, at times between samples, with amplitudes that vary from spike to spike, fall within
    bursts and drift slowly. The noise has three parts: far neurons, too many to be told apart; activity of the brain
    with a spectrum of f^-1.5 that neighbouring channels share, most of it below the spike band; and white noise of the
    electronics. An amplifier passes 1 to 7500 Hz of the latter two.

    Parameters
    ----------
    duration_s : float
        Length, s.
    n_units : int
        Number of units K.
    n_channels : int
        Number of channels C.
    fs : float
        Sampling rate, Hz, at least 8000.
    rate_hz : (float, float)
        Range of mean firing rates, drawn uniformly on a logarithmic scale, spikes / s.
    peak_uv : (float, float)
        Range of the depth of the trough on the nearest channel, uV.
    noise_uv : float
        Standard deviation of all noise in the spike band (300 to 6000 Hz), mean over channels, uV; 0 gives none.
    background : float
        Part of the noise power in the spike band that comes from far neurons, 0 to 1. Large values make noise that
        looks like spikes.
    jitter : float
        Relative standard deviation of the amplitude from spike to spike.
    drift : float
        Relative size of the slow change of amplitude over the recording, 0 to 0.5.
    burst : float
        Probability that a spike is followed by another, smaller one within 3 to 7 ms, 0 to 0.5.
    overlap : float
        Part of the spikes that is moved to within 0.5 ms of a spike of another unit, beyond overlaps by chance, 0 to 1.
    refractory_ms : float
        Shortest interval of two spikes of one unit, ms.
    max_correlation : float
        Bound of the normalised correlation of two waveforms at any lag, 0 to 1. Large values allow units that are hard
        to tell apart but by their amplitude.
    rng : Generator or int, optional
        Source of randomness; the same seed gives the same bits.

    Returns
    -------
    SimulatedRecording
        Data and truth.

    Raises
    ------
    InputError
        If a number is out of range, the recording is shorter than a waveform (2.5 ms), units fire too fast for their
        refractory period, or they cannot be kept apart by `max_correlation`.

    References
    ----------
    .. [1] L. A. Camunas-Mesa, R. Quian Quiroga, "A detailed and fast model of extracellular recordings", Neural Comput.
       25 (2013) 1191-1212, doi:10.1162/NECO_a_00433 (near units that are sorted, far ones that make the noise).

    Examples
    --------
    >>> recording = tetrode(2.0, 3, rng=0)
    >>> recording.data.shape, recording.data.dtype, recording.waveforms.shape
    ((4, 60000), dtype('float32'), (3, 4, 75))
    """
    rng = as_rng(rng)
    n_units, n_channels = check_count(n_units, "n_units"), check_count(n_channels, "n_channels")
    fs = check_number(fs, "fs", 8000)
    n_samples = round(check_number(duration_s, "duration_s", (BEFORE + AFTER) / 1000) * fs)
    noise_uv, background = check_number(noise_uv, "noise_uv", 0), check_number(background, "background", 0, 1)
    overlap, refractory_ms = check_number(overlap, "overlap", 0, 1), check_number(refractory_ms, "refractory_ms", 0)
    channels = channel_positions(n_channels)
    positions, tables = _draw_units(n_units, channels, fs, peak_uv, max_correlation, rng)
    trains = _draw_trains(n_units, n_samples / fs, rate_hz, refractory_ms / 1000, burst, rng)
    trains = _move_together(trains, overlap, refractory_ms / 1000, rng)
    times, units, order_in_burst = _merge(trains, fs, n_samples, tables.shape[3])
    amplitudes = _amplitudes(times / n_samples, units, order_in_burst, jitter, drift, rng)
    clean = _place(tables, times, units, amplitudes, n_samples, fs).astype(np.float32)
    noise = _all_noise(n_samples, channels, fs, noise_uv, background, rng)
    return SimulatedRecording(
        data=clean + noise, clean=clean, fs=fs, spike_samples=times, spike_units=units, spike_amplitudes=amplitudes,
        waveforms=tables[:, :, 0].copy(), trough=_trough(fs), unit_positions=positions, channel_positions=channels,
    )  # fmt: skip


def _trough(fs):
    return round(BEFORE * fs / 1000)


def _sampled(neurons, fs, phases=_PHASES):
    """Return the waveforms for spikes that come 0, 1/16, 2/16, ... of a sample late, (n, C, phases, s)."""
    length = round((BEFORE + AFTER) * fs / 1000)
    late = np.arange(phases)[:, None] / _PHASES
    return evaluate(neurons, (np.arange(length) - _trough(fs) - late) * 1000 / fs)


def _place(tables, times, units, amplitudes, n_samples, fs):
    """Return the sum of waveforms at `times` (samples, on the grid of phases), (C, N)."""
    start = np.floor(times).astype(np.int64)
    phase = np.rint((times - start) * _PHASES).astype(np.int64)
    index = (start - _trough(fs))[:, None] + np.arange(tables.shape[3])
    signal = np.empty((tables.shape[1], n_samples))
    for channel, table in enumerate(tables.transpose(1, 0, 2, 3)):
        wave = table[units, phase] * amplitudes[:, None]
        signal[channel] = np.bincount(index.ravel(), wave.ravel(), n_samples)
    return signal


def _draw_units(n_units, channels, fs, peak_uv, max_correlation, rng):
    """Return the places (K, 3) and waveforms (K, C, phases, s), in uV, of units that differ."""
    max_correlation = check_number(max_correlation, "max_correlation", 0, 1, strict=True)
    depth = rng.uniform(*as_range(peak_uv, "peak_uv", positive=True), n_units)
    neurons = draw_neurons(200 + 40 * n_units, channels, 10, 50, rng)
    neurons = neurons[choose_distinct(_sampled(neurons, fs, 1)[:, :, 0], n_units, max_correlation)]
    tables = _sampled(neurons, fs)
    return neurons.position, tables * (depth / -tables[:, :, 0].min((1, 2)))[:, None, None, None]


def _draw_trains(n_units, duration, rate_hz, refractory, burst, rng):
    low, high = as_range(rate_hz, "rate_hz", positive=True)
    burst = check_number(burst, "burst", 0, 0.5)
    rates = np.exp(rng.uniform(np.log(low), np.log(high), n_units))
    return [_spike_train(rate, duration, refractory, burst, rng) for rate in rates]


def _spike_train(rate, duration, refractory, burst, rng):
    """Return the times (s) of one unit and how many spikes of the same burst precede each."""
    low, high = (max(refractory, t) for t in _BURST_INTERVAL)
    pause = (1 / rate - burst * (low + high) / 2) / (1 - burst) - refractory  # so that the mean interval is 1 / rate
    if pause <= 0:
        raise InputError(
            f"a unit of {rate:.3g} spikes/s cannot keep a refractory period of {1000 * refractory:g} ms with bursts of "
            f"probability {burst:g}; lower rate_hz, refractory_ms or burst"
        )
    intervals, follows = np.empty(0), np.empty(0, bool)
    while intervals.sum() < duration:
        count = int(1.2 * rate * duration) + 20
        new = rng.random(count) < burst
        follows = np.append(follows, new)
        intervals = np.append(
            intervals, np.where(new, rng.uniform(low, high, count), refractory + rng.exponential(pause, count))
        )
    times = np.cumsum(intervals)
    index = np.arange(len(times))
    order = index - np.maximum.accumulate(np.where(follows, 0, index))
    inside = times < duration
    return times[inside], order[inside]


def _move_together(trains, overlap, refractory, rng):
    """Move a part of the spikes of each unit to spikes of the units before it; drop what then is refractory."""
    moved = trains[:1]
    for times, order in trains[1:]:
        others = np.concatenate([t for t, _ in moved])
        chosen = np.flatnonzero(rng.random(len(times)) < overlap)
        if len(others) and len(chosen):
            times, order = times.copy(), order.copy()
            times[chosen] = rng.choice(others, len(chosen)) + rng.uniform(-_OVERLAP, _OVERLAP, len(chosen))
            order[chosen] = 0
            first = np.argsort(times, kind="stable")
            times, order = times[first], order[first]
            while (close := np.diff(times) < refractory).any():
                keep = np.append(True, ~close | np.append(False, close[:-1]))  # of three in a row the third may stay
                times, order = times[keep], order[keep]
        moved.append((times, order))
    return moved


def _merge(trains, fs, n_samples, length):
    """Return times (samples, on the grid of phases), units and order in the burst of the spikes wholly inside."""
    times = np.concatenate([t for t, _ in trains])
    order = np.concatenate([o for _, o in trains])
    units = np.repeat(np.arange(len(trains)), [len(t) for t, _ in trains])
    times = np.rint(times * fs * _PHASES) / _PHASES
    first = np.floor(times) - _trough(fs)
    inside = np.flatnonzero((first >= 0) & (first + length <= n_samples))
    inside = inside[np.argsort(times[inside], kind="stable")]
    return times[inside], units[inside], order[inside]


def _amplitudes(part, units, order_in_burst, jitter, drift, rng):
    """Return the factor of each spike, about 1; `part` is its time over the length of the recording."""
    n_units = units.max(initial=0) + 1
    cycles, phase = rng.uniform(0.3, 1.0, n_units), rng.uniform(0, 1, n_units)
    slow = 1 + check_number(drift, "drift", 0, 0.5) * np.sin(2 * np.pi * (cycles[units] * part + phase[units]))
    own = 1 + check_number(jitter, "jitter", 0, 0.5) * rng.standard_normal(len(units))
    return slow * np.maximum(own, 0.2) * np.maximum(_BURST_FALL**order_in_burst, _BURST_FLOOR)


def _in_band(frequency):
    return (frequency >= SPIKE_BAND[0]) & (frequency <= SPIKE_BAND[1])


def _all_noise(n_samples, channels, fs, level, background, rng):
    """Return noise of a standard deviation of `level`, the share `background` of its power being far neurons."""
    noise = _noise(n_samples, channels, fs, level * np.sqrt(1 - background), rng)
    return noise + _far_neurons(n_samples, channels, fs, level * np.sqrt(background), rng).astype(np.float32)


def _far_neurons(n_samples, channels, fs, level, rng):
    """Return spikes of neurons 80 to 200 um away, (C, N), of standard deviation `level` in the spike band."""
    neurons = draw_neurons(_HASH_UNITS, channels, 80, 200, rng)
    tables = _sampled(neurons, fs)
    tables *= (np.linalg.norm(neurons.position, axis=1) ** -1.5)[:, None, None, None]
    rates = _HASH_RATE * rng.uniform(0.3, 1.7, _HASH_UNITS)
    # The power of a Poisson train of waveforms w is rate * ||w||^2 / fs (Campbell).
    spectrum = np.abs(rfft(tables[:, :, 0], 4096)) ** 2
    energy = 2 * spectrum[..., _in_band(rfftfreq(4096, 1 / fs))].sum(-1) / 4096
    tables *= level / np.sqrt((rates @ energy / fs).mean())
    trains = [_spike_train(rate, n_samples / fs, 0.002, 0.0, rng) for rate in rates]
    times, units, _ = _merge(trains, fs, n_samples, tables.shape[3])
    return _place(tables, times, units, np.ones(len(times)), n_samples, fs)


def _noise(n_samples, channels, fs, level, rng):
    """Return noise of brain and electronics, (C, N), of standard deviation `level` in the spike band."""
    size = next_fast_len(n_samples, real=True)
    frequency = rfftfreq(size, 1 / fs)
    band = _in_band(frequency)
    lowest, highest = _AMPLIFIER
    brain = np.maximum(frequency, lowest) ** -_SLOPE
    pass_band = 1 / (1 + (frequency / highest) ** 6) * frequency**2 / (frequency**2 + lowest**2)
    power = [
        share * x * pass_band / (x * pass_band)[band].sum()
        for share, x in ((1 - _SENSOR_SHARE, brain), (_SENSOR_SHARE, np.ones_like(brain)))
    ]
    distance = np.linalg.norm(channels[:, None] - channels, axis=2)
    shared = np.linalg.cholesky(np.exp(-distance / _NOISE_REACH)).astype(np.float32)
    parts = rng.standard_normal((2, len(channels), len(frequency), 2), dtype=np.float32).view(np.complex64)[..., 0]
    weight = [(level * size / 2 * np.sqrt(p)).astype(np.float32) for p in power]
    return irfft((shared @ parts[0]) * weight[0] + parts[1] * weight[1], size)[:, :n_samples]
