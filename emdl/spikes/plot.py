"""A picture of what was learned: waveforms with their spread, the reconstruction over the trace, the learning."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from emdl.backend import check_number
from emdl.spikes.detection import check_recording
from emdl.spikes.whitening import band_pass

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#882255")  # Okabe, Ito and Tol, no yellow
MARKERS = ("v", "o", "s", "D", "^", "P")  # a new one each time that the colours begin again
_GREY, _DARK = "0.65", "0.1"
_COLUMNS, _MOST_UNITS, _MOST_CHANNELS = 4, 12, 8
_STRETCH_UNITS = 80  # duration units of trace shown
_STEPS = 400  # places at most where the stretch may begin


def figure(model, data, spikes, *, seconds=None):
    """Return a figure of the units, of some spikes in the recording, and of how learning went.

    Parameters
    ----------
    model : SpikeModel
        From `emdl.spikes.fit`.
    data : array (C, N)
        Recording; only the stretch that is shown is read.
    spikes : Spikes
        From `emdl.spikes.detect`.
    seconds : (float, float), optional
        Beginning and end of the stretch of trace; by default one that shows as many units as possible.

    Returns
    -------
    matplotlib.figure.Figure
        Waveforms on top: one panel per unit (the 12 largest), channels side by side (the 8 with the largest
        waveforms), mean and standard deviation of the spikes, and of the noise in grey. In the middle the trace in the
        pass band (grey), what the model makes of it (black), and the spikes in the colours of their units. Below,
        objective, number of spikes, number of units, and lambda and sigma against the iteration.

    Raises
    ------
    InputError
        If the recording does not fit the model, or the stretch lies outside it.
    """
    data = check_recording(data, len(model.noise))
    units = min(model.n_units, _MOST_UNITS)
    columns = min(max(units, 1), _COLUMNS)
    rows = -(-max(units, 1) // columns)
    channels = _channels(model)
    height = (1.9 * rows + 0.4, 1.0 + 0.75 * len(channels), 1.9)
    picture = Figure(figsize=(11, sum(height)), layout="constrained")
    top, middle, bottom = picture.subfigures(3, 1, squeeze=False, height_ratios=height)[:, 0]
    _draw_waveforms(top, model, spikes, channels, rows, columns)
    _draw_trace(middle, model, data, spikes, channels, seconds)
    draw_learning(bottom, model)
    return picture


def _colour(unit):
    return COLOURS[unit % len(COLOURS)]


def marker(unit):
    """Return the mark of a spike of a unit: a new one each time that the colours begin again."""
    return MARKERS[unit // len(COLOURS) % len(MARKERS)]


def _channels(model):
    """Return the channels to show, in order: all, or those with the largest waveforms over the noise."""
    C = len(model.noise)
    size = (np.abs(model.waveforms).max(axis=2) / model.noise).max(axis=0, initial=0)
    return np.sort(np.argsort(-size, kind="stable")[: min(C, _MOST_CHANNELS)])


def _draw_waveforms(area, model, spikes, channels, rows, columns):
    shown = min(model.n_units, _MOST_UNITS)
    rest = f" (the {shown} largest of {model.n_units})" if shown < model.n_units else ""
    area.suptitle(f"Mean waveforms and standard deviation of the spikes{rest}; grey: noise", x=0.01, ha="left", size=10)
    axes = area.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for spare in axes[max(shown, 1) :]:
        spare.set_visible(False)
    if shown == 0:
        axes[0].text(0.5, 0.5, "no units found", ha="center", va="center", transform=axes[0].transAxes)
        axes[0].set_axis_off()
        return
    s, step = model.waveforms.shape[2], 1000 / model.fs
    wide = (s + max(2, s // 8)) * step
    count = np.bincount(spikes.unit, minlength=model.n_units)
    for unit, ax in enumerate(axes[:shown]):
        time = (np.arange(s) - model.peak[unit]) * step if len(channels) == 1 else np.arange(s) * step
        for place, c in enumerate(channels):
            at, mean, spread = time + place * wide, model.waveforms[unit, c], model.spread[unit, c]
            ax.fill_between(at, -model.noise[c], model.noise[c], color="0.88", lw=0)
            ax.fill_between(at, mean - spread, mean + spread, color=_colour(unit), alpha=0.3, lw=0)
            ax.plot(at, mean, color=_colour(unit), lw=1.4)
        snr = (np.abs(model.waveforms[unit]).max(axis=1) / model.noise).max()
        ax.set_title(f"unit {unit}: {count[unit]} spikes, SNR {snr:.1f}", size=9, color=_colour(unit))
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
        if unit % columns == 0:
            ax.set_ylabel("data unit", size=8)
    for ax in axes[max(0, shown - columns) : shown]:
        ax.tick_params(labelbottom=True)
        if len(channels) == 1:
            ax.set_xlabel("time from the spike, ms", size=8)
        else:
            ax.set_xticks(np.arange(len(channels)) * wide + s * step / 2, [f"ch {c}" for c in channels])
    if len(channels) > 1:
        _scale_bar(axes[0], s * step)


def _scale_bar(ax, wide):
    """Draw a bar of a round length below the first channel, and its length in ms."""
    length = 10 ** np.floor(np.log10(wide / 2))
    length *= max(m for m in (1, 2, 5) if m * length <= wide / 2)
    low, high = ax.get_ylim()
    ax.set_ylim(low - 0.12 * (high - low), high)
    y = low - 0.03 * (high - low)
    ax.plot([0, length], [y, y], color=_DARK, lw=1.5, solid_capstyle="butt")
    ax.text(length * 1.1, y, f"{length:g} ms", size=7, va="center")


def _draw_trace(area, model, data, spikes, channels, seconds):
    N, fs = data.shape[1], model.fs
    first, last = stretch(model, spikes, N) if seconds is None else _given_stretch(seconds, N, fs)
    trace = band_pass(data, model.whitening, first, last)[channels]
    made = reconstruction(model, spikes, first, last)[channels]
    area.suptitle(
        f"Trace in the pass band, {model.band[0]:g} to {model.band[1]:g} Hz (grey), its reconstruction (black), spikes",
        x=0.01, ha="left", size=10,
    )  # fmt: skip
    ax = area.subplots()
    time = np.arange(first, last) / fs
    apart = 1.15 * max(np.ptp(trace, axis=1).max(), np.ptp(np.nan_to_num(made), axis=1).max())
    base = -apart * np.arange(len(channels))
    for c in range(len(channels)):
        ax.plot(time, trace[c] + base[c], color=_GREY, lw=0.8)
        ax.plot(time, made[c] + base[c], color=_DARK, lw=1.0)
    inside = (spikes.sample >= first) & (spikes.sample < last)
    top = trace[0].max() + 0.12 * apart
    for unit in np.unique(spikes.unit[inside]):
        at = spikes.sample[inside & (spikes.unit == unit)] / fs
        ax.plot(at, np.full(len(at), top), marker(unit), color=_colour(unit), ms=6, label=f"unit {unit}")
        for t in at:
            ax.axvline(t, color=_colour(unit), lw=0.6, alpha=0.5, zorder=0)
    if inside.any():
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    ax.set_yticks(base, [f"ch {c}" for c in channels])
    ax.set_xlim(first / fs, last / fs)
    ax.set_xlabel("time, s", size=8)
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right", "left"]].set_visible(False)
    size, beside = float(f"{apart / 2:.0e}"), ax.get_yaxis_transform()
    ax.plot([0.004] * 2, [base[-1] - size / 2, base[-1] + size / 2], color=_DARK, lw=2, transform=beside)
    ax.text(0.008, base[-1] - size / 2, f"{size:g} (data unit)", size=7, va="bottom", transform=beside)


def _given_stretch(seconds, n_samples, fs):
    end = n_samples / fs
    first = check_number(seconds[0], "seconds[0]", 0, end)
    last = check_number(seconds[1], "seconds[1]", first, end, strict=True)
    return round(first * fs), max(round(first * fs) + 2, round(last * fs))


def stretch(model, spikes, n_samples):
    """Return the stretch that shows the most units, and of these the one with the most spikes.

    Parameters
    ----------
    model : SpikeModel
        Knows the durations.
    spikes : Spikes
        All spikes.
    n_samples : int
        Of the recording.

    Returns
    -------
    first, last : int
        Samples.
    """
    long = min(n_samples, _STRETCH_UNITS * model.duration_unit)
    if len(spikes) == 0:
        return 0, long
    start = np.clip(spikes.sample[:: -(-len(spikes) // _STEPS)] - long // 10, 0, n_samples - long)
    a, b = np.searchsorted(spikes.sample, start), np.searchsorted(spikes.sample, start + long)
    score = [len(np.unique(spikes.unit[i:j])) + (j - i) / (len(spikes) + 1) for i, j in zip(a, b, strict=True)]
    best = int(start[int(np.argmax(score))])
    return best, best + long


def reconstruction(model, spikes, first, last):
    """Return the sum of the waveforms at the spikes, NaN where there are none.

    Parameters
    ----------
    model : SpikeModel
        Knows the waveforms.
    spikes : Spikes
        All spikes.
    first, last : int
        Stretch, samples.

    Returns
    -------
    ndarray (C, last - first)
    """
    C, s = model.waveforms.shape[1:]
    made, covered = np.zeros((C, last - first + 2 * s)), np.zeros(last - first + 2 * s, bool)
    near = (spikes.sample >= first - s) & (spikes.sample < last + s)
    height = np.abs(model.waveforms).max(axis=(1, 2), initial=0)
    for sample, unit, amplitude in zip(spikes.sample[near], spikes.unit[near], spikes.amplitude[near], strict=True):
        at = sample - model.peak[unit] - first + s
        a, b = max(0, at), min(made.shape[1], at + s)
        if a < b:
            made[:, a:b] += amplitude / height[unit] * model.waveforms[unit][:, a - at : b - at]
            covered[a:b] = True
    return np.where(covered, made, np.nan)[:, s:-s]


def draw_learning(area, model):
    """Draw objective, spikes, units, lambda and sigma against the iteration.

    Parameters
    ----------
    area : matplotlib.figure.Figure or SubFigure
        Where.
    model : SpikeModel
        Knows its history.
    """
    history = model.history
    n_iter = len(history["objective"])
    area.suptitle("Learning", x=0.01, ha="left", size=10)
    curves = (
        (("objective", "objective"),),
        (("spikes", "n_nonzero"),),
        (("units and background", "n_units"),),
        (("lambda", "lmbd"), ("sigma", "sigma")),
    )
    for ax, lines in zip(area.subplots(1, len(curves)), curves, strict=True):
        for (name, key), colour, style in zip(lines, COLOURS, ("o-", "s--"), strict=False):
            ax.plot(np.arange(1, n_iter + 1), history[key], style, color=colour, ms=3.5, lw=1.2, label=name)
        ax.set_title(" and ".join(name for name, _ in lines), size=9)
        ax.set_xlabel("iteration", size=8)
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if lines[0][1] in ("n_nonzero", "n_units"):
            ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        if len(lines) > 1 and n_iter:
            ax.legend(frameon=False, fontsize=8)
            ax.set_ylim(bottom=0)
        if not n_iter:
            ax.text(0.5, 0.5, "no iteration", ha="center", va="center", size=8, transform=ax.transAxes)
