"""The pictures of a report: each unit, the trace with what is left of it, likeness of units, noise."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from emdl.spikes import quality, trains
from emdl.spikes.decision import Units
from emdl.spikes.plot import COLOURS, draw_learning, marker, reconstruction, stretch
from emdl.spikes.whitening import band_pass, whiten

_DARK, _GREY, _LIGHT = "0.15", "0.6", "0.88"
_WIDE = 11.0  # inches of every picture
_MOST_CHANNELS = 8  # drawn of a unit and of the trace
_MOST_DOTS = 4000  # spikes drawn over time
_RASTER_S = 60.0
_ACG_MS, _CCG_MS = 50.0, 25.0
_ALIKE, _MOST_PAIRS = 0.6, 9  # cosine from which on a cross-correlogram is drawn, and of how many pairs
_HEIGHT_OF_A_UNIT = 1.65
_MATRIX_NUMBERS = 12  # units up to which the matrix has its numbers written in


def colour(unit):
    """Return the colour of a unit."""
    return COLOURS[unit % len(COLOURS)]


def unit(result, k, fitted):
    """Return a figure of one unit: waveform, autocorrelogram, amplitude over time and its distribution.

    Parameters
    ----------
    result : Sorting
        From `emdl.sort`.
    k : int
        Which unit.
    fitted : ndarray (K + J, 2)
        From `quality.amplitudes`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    model, spikes = result.model, result.spikes
    picture = Figure(figsize=(_WIDE, _HEIGHT_OF_A_UNIT), layout="constrained")
    waveform, acg, time, spread = picture.subplots(1, 4, width_ratios=(4.2, 2.2, 3.4, 1.2))
    own = spikes.unit == k
    _waveform(waveform, model, k, result.recording.unit)
    times = spikes.time_s[own]
    _correlogram(acg, times, times, _ACG_MS, colour(k), rest_ms=2.0)
    acg.set_title("autocorrelogram", loc="left", size=8)
    _amplitudes(time, spread, result, k, fitted)
    for ax in (waveform, acg, time, spread):
        _plain(ax)
    return picture


def _plain(ax):
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=7)
    for label in (ax.xaxis.label, ax.yaxis.label):
        label.set_fontsize(8)


def strongest(model, k=None):
    """Return the channels to draw: those on which the unit, or any of them, is largest over the noise."""
    size = np.abs(model.waveforms).max(axis=2) / model.noise
    size = size.max(axis=0, initial=0) if k is None else size[k]
    return np.sort(np.argsort(-size, kind="stable")[:_MOST_CHANNELS])


def _waveform(ax, model, k, unit_name):
    channels, s, step = strongest(model, k), model.waveforms.shape[2], 1000 / model.fs
    wide = s * step * 1.12
    for place, c in enumerate(channels):
        at, mean, sd = np.arange(s) * step + place * wide, model.waveforms[k, c], model.spread[k, c]
        ax.fill_between(at, -model.noise[c], model.noise[c], color=_LIGHT, lw=0)
        ax.fill_between(at, mean - sd, mean + sd, color=colour(k), alpha=0.3, lw=0)
        ax.plot(at, mean, color=colour(k), lw=1.3)
    ax.set_xticks(np.arange(len(channels)) * wide + s * step / 2, [f"ch {c}" for c in channels])
    ax.tick_params(axis="x", length=0)
    title = f"unit {k}: mean ± SD, {unit_name}; {s * step:.3g} ms per channel; grey: noise"
    ax.set_title(title, loc="left", size=8, parse_math=False)


def _correlogram(ax, first, second, reach_ms, tint, *, rest_ms=None):
    bins = 100 if reach_ms == _ACG_MS else 51
    count, edges = trains.correlogram(first, second, reach_ms / 1000, bins)
    if rest_ms:
        ax.axvspan(-rest_ms, rest_ms, color=_LIGHT, lw=0)
    ax.stairs(count, 1000 * edges, fill=True, color=tint)
    ax.set_xlim(-reach_ms, reach_ms)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("lag, ms")


def _amplitudes(ax, beside, result, k, fitted):
    model, spikes, fs = result.model, result.spikes, result.spikes.fs
    own = spikes.unit == k
    time, size = spikes.time_s[own], spikes.amplitude[own]
    every = max(1, len(time) // _MOST_DOTS)
    ax.plot(time[::every], size[::every], ".", color=colour(k), ms=2.2, alpha=0.6, mew=0, rasterized=True)
    ax.set_xlim(0, result.recording.n_samples / fs)
    ax.set_xlabel("time, s")
    ax.set_title(f"amplitude, {result.recording.unit}", loc="left", size=8, parse_math=False)
    units = Units(*(getattr(model.units, name)[k : k + 1] for name in ("D", "mean", "spread", "rate")))
    height, v = np.abs(model.waveforms[k]).max() / units.mean[0], units.spread[0] ** 2
    least = height * (units.threshold[0] * v + units.mean[0]) / (1 + v)
    top = max(size.max(initial=0), 1.05 * least)
    bins = np.linspace(0, 1.02 * top, 52)
    count = np.histogram(size, bins)[0]
    beside.stairs(count, bins, orientation="horizontal", fill=True, color=colour(k), alpha=0.7)
    mean, sd = fitted[k]
    seen = height * sd**2 / np.sqrt(1 + sd**2)  # what is found is drawn towards the mean
    curve = np.linspace(0, bins[-1], 200)
    part = np.exp(-0.5 * ((curve - height * mean) / max(seen, 1e-12)) ** 2)
    inside = part[curve > least].sum()
    if len(size) >= 10 and inside > 0:
        beside.plot(part * count.sum() / inside * 200 / 51, curve, color=_DARK, lw=1)
    for axis in (ax, beside):
        axis.axhline(least, color=_DARK, lw=0.8, ls=":")
        axis.set_ylim(0, bins[-1])
    beside.set_yticklabels([])
    beside.set_xlabel("spikes")


def raster(result):
    """Return a figure of when each unit fires: every spike of a stretch, and the rate over the whole recording."""
    model, spikes, seconds = result.model, result.spikes, result.recording.seconds
    K, long = model.n_units, min(seconds, _RASTER_S)
    begin = _busiest(spikes.time_s, seconds, long)
    picture = Figure(figsize=(_WIDE, 1.3 + 0.15 * K), layout="constrained")
    left, right = picture.subplots(1, 2, width_ratios=(3, 1), sharey=True)
    for k in range(K):
        at = spikes.time_s[(spikes.unit == k) & (spikes.time_s >= begin) & (spikes.time_s <= begin + long)]
        left.vlines(at, k - 0.38, k + 0.38, color=colour(k), lw=0.6, rasterized=True)
    left.set_xlim(begin, begin + long)
    left.set_yticks(range(K))
    left.set_ylim(K - 0.4, -0.6)
    left.set_ylabel("unit")
    left.set_xlabel("time, s")
    left.set_title("every spike" + ("" if long == seconds else f" of {long:.0f} s"), loc="left", size=8)
    bins = max(10, min(100, round(seconds / 5)))
    rate = np.array([np.histogram(spikes.time_s[spikes.unit == k], bins, (0, seconds))[0] for k in range(K)])
    rate = rate / np.maximum(rate.max(axis=1, keepdims=True), 1)
    right.imshow(rate, aspect="auto", cmap="Greys", extent=(0, seconds, K - 0.5, -0.5), vmin=0, vmax=1)
    right.set_xlabel("time, s")
    right.set_title("rate, of its largest", loc="left", size=8)
    for ax in (left, right):
        _plain(ax)
    return picture


def _busiest(times, seconds, long):
    if long >= seconds:
        return 0.0
    begin = np.linspace(0, seconds - long, 50)
    return float(begin[np.argmax(np.searchsorted(times, begin + long) - np.searchsorted(times, begin))])


def trace(result):
    """Return a figure of a stretch of the recording, what the model makes of it, and what is left."""
    model, recording, spikes = result.model, result.recording, result.spikes
    first, last = stretch(model, spikes, recording.n_samples)
    channels = strongest(model)
    passed = band_pass(recording.data, model.whitening, first, last)[channels]
    made = np.nan_to_num(reconstruction(model, spikes, first, last)[channels])
    apart = 1.1 * max(np.ptp(passed, axis=1).max(), 1e-12)
    base = -apart * np.arange(len(channels))[:, None]
    time = np.arange(first, last) / model.fs
    picture = Figure(figsize=(_WIDE, 1.2 + 0.95 * len(channels)), layout="constrained")
    above, below = picture.subplots(2, 1, sharex=True, height_ratios=(1.25, 1))
    above.plot(time, (passed + base).T, color=_GREY, lw=0.8)
    above.plot(time, np.where(made == 0, np.nan, made + base).T, color=_DARK, lw=0.9)
    below.plot(time, (passed - made + base).T, color=_GREY, lw=0.8)
    inside = (spikes.sample >= first) & (spikes.sample < last)
    top = base[0] + passed[0].max() + 0.15 * apart
    for k in np.unique(spikes.unit[inside]):
        at = spikes.time_s[inside & (spikes.unit == k)]
        above.plot(at, np.full(len(at), top), marker(k), color=colour(k), ms=5, label=f"unit {k}")
    above.set_title(
        f"the trace, {model.band[0]:g} to {model.band[1]:g} Hz (grey), and what the units make of it (black)",
        loc="left",
        size=8,
    )
    below.set_title("what is left, on the same scale", loc="left", size=8)
    if inside.any():
        above.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=7)
    for ax in (above, below):
        ax.set_yticks(base[:, 0], [f"ch {c}" for c in channels])
        _plain(ax)
    below.set_xlabel("time, s")
    below.set_xlim(first / model.fs, last / model.fs)
    size = float(f"{apart / 2:.0e}")
    place = below.get_yaxis_transform()
    below.plot([0.003] * 2, [base[-1, 0] - size / 2, base[-1, 0] + size / 2], color=_DARK, lw=2, transform=place)
    scale = f"{size:g} {recording.unit}"
    below.text(0.007, base[-1, 0] - size / 2, scale, size=7, va="bottom", transform=place, parse_math=False)
    return picture


def likeness(result):
    """Return a figure of how alike the waveforms are, and the cross-correlograms of the most similar units."""
    model, spikes = result.model, result.spikes
    K = model.n_units
    cosine = quality.cosines(model.units.D[:K], model.waveforms.shape[2] // 3)
    pairs = [(cosine[j, k], j, k) for j in range(K) for k in range(j + 1, K)]
    pairs = [p for p in sorted(pairs, reverse=True) if p[0] >= _ALIKE or p in sorted(pairs)[-3:]][:_MOST_PAIRS]
    rows = max(1, -(-len(pairs) // 3))
    picture = Figure(figsize=(_WIDE, max(3.2, 1.35 * rows)), layout="constrained")
    left, right = picture.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.9))[0]
    _matrix(left.subplots(), cosine)
    axes = right.subplots(rows, 3, squeeze=False).ravel()
    for ax, (value, j, k) in zip(axes, pairs, strict=False):
        times = [spikes.time_s[spikes.unit == u] for u in (j, k)]
        _correlogram(ax, times[0], times[1], _CCG_MS, "0.4")
        ax.set_title(f"{j} and {k}, cosine {value:.2f}", loc="left", size=8)
        _plain(ax)
    for ax in axes[len(pairs) :]:
        ax.set_visible(False)
    for ax in axes[: max(0, len(pairs) - 3)]:
        ax.set_xlabel("")
    return picture


def _matrix(ax, cosine):
    K = len(cosine)
    ax.imshow(cosine, cmap="viridis", vmin=0, vmax=1)
    ax.set_title("cosine of the templates", loc="left", size=8)
    ax.set_xticks(range(K))
    ax.set_yticks(range(K))
    _plain(ax)
    ax.tick_params(labelsize=max(4, 8 - K // 8))
    if K <= _MATRIX_NUMBERS:
        for j in range(K):
            for k in range(K):
                tint = "black" if cosine[j, k] > 0.6 else "white"
                ax.text(k, j, f"{cosine[j, k]:.2f}"[1 if cosine[j, k] < 0.995 else 0 :], ha="center", va="center",
                        size=6.5, color=tint)  # fmt: skip


def noise(result):
    """Return a figure of the noise: its level on each channel, its distribution, its spectrum before whitening."""
    model, recording = result.model, result.recording
    picture = Figure(figsize=(_WIDE, 2.1), layout="constrained")
    level, shape, spectrum = picture.subplots(1, 3)
    level.bar(np.arange(len(model.noise)), model.noise, color=_GREY, width=0.8)
    level.set_title(f"SD of each channel in the pass band, {recording.unit}", loc="left", size=8, parse_math=False)
    level.set_xlabel("channel")
    level.xaxis.set_major_locator(MaxNLocator(integer=True))
    _residual(shape, result)
    _spectrum(spectrum, model)
    for ax in (level, shape, spectrum):
        _plain(ax)
    return picture


def _spectrum(ax, model):
    """Draw what the filters undo: the power of the noise is that of the pass band over that of the filter."""
    size = 4 * model.whitening.taps.shape[1]
    f = np.fft.rfftfreq(size, 1 / model.fs)
    inside = (f >= model.band[0]) & (f <= model.band[1])
    passed = np.abs(np.fft.rfft(model.whitening.band_taps, size))[inside]
    gain = np.abs(np.fft.rfft(model.whitening.taps, size, axis=1))[:, inside]
    power = 20 * np.log10(np.maximum(passed / np.maximum(gain, 1e-12), 1e-12))
    ax.plot(f[inside], (power - power.max()).T, lw=0.8, color=_GREY)
    ax.set_title("its spectrum, dB, a line per channel", loc="left", size=8)
    ax.set_xlabel("Hz")


def _residual(ax, result):
    model, N = result.model, result.recording.n_samples
    first = max(0, N // 2 - round(2.5 * model.fs))
    last = min(N, first + round(5 * model.fs))
    x = whiten(result.recording.data, model.whitening, first, last)
    if model.n_units:
        from emdl.spikes.decision import decide

        lasts = model.drifted_for(result.recording.data)
        x = decide(x, model.units, model.duration_unit, span=(first / lasts, last / lasts))[1]
    x = x.ravel() / np.sqrt(model.whitening.density)
    bins = np.linspace(-8, 8, 129)
    ax.stairs(np.histogram(x, bins)[0] / x.size / np.diff(bins), bins, fill=True, color=_GREY)
    middle = np.linspace(-8, 8, 200)
    ax.plot(middle, np.exp(-0.5 * middle**2) / np.sqrt(2 * np.pi), color=_DARK, lw=1)
    ax.set_yscale("log")
    ax.set_ylim(1e-6, 1)
    ax.set_title("what is left, whitened; line: white noise", loc="left", size=8)
    ax.set_xlabel("standard deviations")


def learning(result):
    """Return a figure of objective, spikes, units, lambda and sigma against the iteration."""
    picture = Figure(figsize=(_WIDE, 1.9), layout="constrained")
    draw_learning(picture, result.model)
    picture.suptitle("")
    return picture
