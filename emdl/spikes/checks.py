"""What is odd about a recording or about the units found in it: said in sentences, nothing is changed."""

import numpy as np
import scipy.signal

_PIECES, _PIECE_S = 20, 1.0  # of the recording, that are looked at
_CLIPPED, _IN_A_ROW = 1e-4, 3  # share of samples at the end of the range, in runs of at least so many
_SCALE = 4.0  # between the noise of two recordings, beyond which another unit is likelier than another noise
_WEAK, _LOUD = 0.1, 10.0  # noise of a channel, relative to the median of all
_MAINS, _HARMONICS = (50.0, 60.0), 40  # Hz; multiples looked at
_STANDS_OUT = 20.0  # power of a mains line over that beside it
_MUCH_HUM, _MUCH_IN_BAND = 3.0, 0.05  # SD of the hum in those of the noise; share of the power in the pass band
_SPIKES_FS = 5000.0  # Hz, from which on spikes are looked for
_WIDTH_MS = (0.11, 0.8)  # of real spikes at half of their height; the pass band itself makes 0.09


def of_recording(recording, *, low_hz=300.0):
    """Return a sentence for everything that is odd about the samples of a recording.

    Parameters
    ----------
    recording : Recording
        Some seconds of it are looked at, in pieces from all over.
    low_hz : float
        Lower end of the pass band: mains hum below it is filtered out.

    Returns
    -------
    list of str
        On saturation, on channels that carry almost nothing or much more noise than the others, on mains hum.
    """
    pieces = _pieces(recording)
    said = _saturation(pieces, recording.name)
    if recording.fs >= _SPIKES_FS:
        said += _levels(pieces, recording, low_hz) + _hum(pieces, recording, low_hz)
    return said


def of_units(model):
    """Return a sentence if the waveforms last shorter or longer than spikes do: then the sampling rate may be wrong.

    Parameters
    ----------
    model : SpikeModel
        From `emdl.spikes.fit`.

    Returns
    -------
    list of str
    """
    if model.n_units == 0 or model.fs < _SPIKES_FS:
        return []
    width = float(np.median([_width_ms(waveform, model.fs) for waveform in model.waveforms]))
    if _WIDTH_MS[0] <= width <= _WIDTH_MS[1]:
        return []
    than = "shorter" if width < _WIDTH_MS[0] else "longer"
    return [
        f"the waveforms are {width:.2g} ms wide at half of their height, {than} than spikes are "
        f"({_WIDTH_MS[0]:g} to {_WIDTH_MS[1]:g} ms); is {model.fs:g} Hz the right sampling rate (--fs)?"
    ]


def of_fit(recording, model):
    """Return a sentence if the noise of a recording is quite another than that of the one that a model was learned on.

    Parameters
    ----------
    recording : Recording
        Of the channels and the sampling rate of the model.
    model : SpikeModel
        From `emdl.spikes.fit`.

    Returns
    -------
    list of str
    """
    noise = _noise(_pieces(recording), recording.fs, model.band[0])
    ratio = float(np.median(noise / model.noise))
    if 1 / _SCALE <= ratio <= _SCALE:
        return []
    return [
        f"{recording.name}: the noise is {ratio:.3g} times that of the recording that the model was learned on; "
        "if it is in another unit, scale it or learn a new model"
    ]


def _width_ms(waveform, fs):
    """Return how long the main deflection is beyond half of its height, between samples, ms."""
    trace = waveform[np.abs(waveform).max(axis=1).argmax()]
    at = int(np.abs(trace).argmax())
    height = trace / trace[at]
    return 1000 * (_fall(height[at:]) + _fall(height[at::-1])) / fs


def _fall(height):
    """Return after how many samples, in parts, a height that begins at 1 is below a half."""
    below = np.flatnonzero(height < 0.5)
    if len(below) == 0:
        return len(height)
    i = int(below[0])
    return i - 1 + (height[i - 1] - 0.5) / (height[i - 1] - height[i])


def _pieces(recording):
    N, long = recording.n_samples, round(_PIECE_S * recording.fs)
    if _PIECES * long >= N:
        return [np.asarray(recording.data[:, :])]
    return [np.asarray(recording.data[:, a : a + long]) for a in np.linspace(0, N - long, _PIECES).astype(int).tolist()]


def _saturation(pieces, name):
    """Say where several samples in a row stand at the largest or smallest value, again and again."""
    high = np.max([x.max(axis=1) for x in pieces], axis=0)
    low = np.min([x.min(axis=1) for x in pieces], axis=0)
    total, clipped = sum(x.shape[1] for x in pieces), np.zeros(len(high))
    for x in pieces:
        for end in (low, high):
            row = x == end[:, None]
            kept = row.copy()
            for step in range(1, _IN_A_ROW):
                kept[:, :-step] &= row[:, step:]
                kept[:, -step:] = False
            clipped += kept.sum(axis=1)
    found = np.flatnonzero(clipped / total > _CLIPPED)
    if len(found) == 0:
        return []
    share = ", ".join(f"{c} ({(_IN_A_ROW - 1 + clipped[c]) / total:.2%})" for c in found)
    ends = f"{low[found].min():g} and {high[found].max():g}"
    return [
        f"{name}: {_channels(found)} saturated, samples stand at the ends of the range ({ends}): {share}; "
        "spikes are cut off there, and what follows a saturation may look like spikes"
    ]


def _levels(pieces, recording, low_hz):
    noise = _noise(pieces, recording.fs, low_hz)
    if len(noise) < 2:
        return []
    usual, said = float(np.median(noise)), []
    for which, what in ((noise < _WEAK * usual, "hardly anything"), (noise > _LOUD * usual, "far more noise")):
        found = np.flatnonzero(which)
        if len(found):
            levels = ", ".join(f"{noise[c]:.3g}" for c in found)
            flags = " ".join(f"--skip-channel {c}" for c in found)
            carry = "carries" if len(found) == 1 else "carry"
            said.append(
                f"{recording.name}: channel{'s' * (len(found) > 1)} {', '.join(map(str, found))} {carry} {what}: noise "
                f"of {levels} against {usual:.3g} on the others; if broken, leave out ({flags})"
            )
    return said


def _noise(pieces, fs, low_hz):
    sos = scipy.signal.butter(3, low_hz, "highpass", fs=fs, output="sos")
    passed = [scipy.signal.sosfilt(sos, x - np.median(x, axis=1, keepdims=True), axis=1) for x in pieces]
    return np.median(np.abs(np.concatenate(passed, axis=1)), axis=1) / 0.6745


def _hum(pieces, recording, low_hz):
    """Mains lines stand out of the spectrum; what lies in the pass band stays in the recording."""
    fs = recording.fs
    size = min(int(fs), *(x.shape[1] for x in pieces))
    if size < 0.5 * fs:
        return []
    f = np.fft.rfftfreq(size, 1 / fs)
    spectra = [scipy.signal.welch(x.astype(np.float64), fs, nperseg=size, axis=1)[1] for x in pieces]
    power = np.mean(spectra, axis=0)
    noise, said = _noise(pieces, fs, low_hz), []
    for mains in _MAINS:
        base = _line(f, power, mains)
        inside = [_line(f, power, k * mains) for k in range(1, _HARMONICS) if low_hz <= k * mains < min(6000, fs / 2)]
        inside = np.sum(inside, axis=0)
        band = power[:, (f >= low_hz) & (f < min(6000, fs / 2))].sum(axis=1) * (f[1] - f[0])
        strong, stays = np.sqrt(base) > _MUCH_HUM * noise, inside > _MUCH_IN_BAND * band
        found = np.flatnonzero(strong | stays)
        if len(found) == 0:
            continue
        level = float(np.sqrt(base[found].max()))
        if stays.any():
            fate = f"its harmonics above {low_hz:g} Hz stay in the pass band ({(inside / band).max():.0%} of the power)"
        else:
            fate = f"the pass band from {low_hz:g} Hz takes it out"
        said.append(
            f"{recording.name}: {mains:g} Hz hum of {level:.3g} {recording.unit} on {_list(found)} "
            f"(noise {float(np.median(noise)):.3g}); {fate}"
        )
    return said


def _line(f, power, hz):
    """Return the power of a line of the spectrum above what lies beside it, (C,); 0 where it does not stand out."""
    step = f[1] - f[0]
    at = round(hz / step)
    line, beside = slice(at - 1, at + 2), [*range(at - 8, at - 2), *range(at + 3, at + 9)]
    if at - 8 < 0 or at + 9 > len(f):
        return np.zeros(len(power))
    usual = np.median(power[:, beside], axis=1)
    return np.where(power[:, line].max(axis=1) > _STANDS_OUT * usual, power[:, line].sum(axis=1) * step, 0.0)


def _list(found):
    return f"channel{'s' * (len(found) > 1)} {', '.join(map(str, found))}"


def _channels(found):
    return f"{_list(found)} {'is' if len(found) == 1 else 'are'}"
