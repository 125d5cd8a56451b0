r"""From raw samples to signals whose noise is white, of known level, and the same on every channel.

Spikes are found in the data after one linear map per model, a short zero-phase filter per channel and a mixing of the
channels. In frequency f, with the pass band H(f) (a Butterworth filter, there and back) and the power spectrum
P_c(f) of the noise of channel c behind it,

    g_c(f) = H(f)^2 / sqrt(P_c(f) + 0.1 median_f P_c)       w = M (g * (x - median))

and M = Sigma^{-1/2}, the inverse root of the covariance of the filtered noise over channels. The noise of w then has
unit spectral density in the pass band, so the correlation of w with a unit-norm template is the template's amplitude
plus noise of variance 1: the scale on which amplitudes, thresholds and rates are stated.
"""

from dataclasses import dataclass, replace

import numpy as np
import scipy.fft
import scipy.ndimage
import scipy.signal

from emdl.backend import parallel_map
from emdl.errors import InputError
from emdl.spikes.blocks import convolve

_ORDER = 3  # of the Butterworth filter, whose gain is squared
_RIDGE = 0.1  # of the median of the noise spectrum; bounds the gain where there is no noise
_QUIET = 4.0  # noise standard deviations beyond which a sample is taken for an event
_PIECES, _PIECE_UNITS = 12, 2000  # of the recording, in duration units, from which the noise is learned
_SPAN = 1 << 16  # samples that one thread filters


@dataclass(frozen=True)
class Whitening:
    """The map from data to whitened signals.

    Attributes
    ----------
    offset : ndarray (C,)
        Median of each channel, data unit.
    taps : ndarray (C, 2 m + 1)
        Filter of each channel.
    mixing : ndarray (C, C)
        Mixing of the filtered channels.
    band_taps : ndarray (2 m + 1,)
        The pass band alone, of gain 1: what waveforms in data units are seen through.
    noise : ndarray (C,)
        Standard deviation of the noise in the pass band, data unit.
    density : float
        Variance of a sample of whitened noise; the share of the pass band of all frequencies.
    """

    offset: np.ndarray
    taps: np.ndarray
    mixing: np.ndarray
    band_taps: np.ndarray
    noise: np.ndarray
    density: float

    @property
    def margin(self):
        """Samples m on either side that a filtered sample depends on."""
        return len(self.band_taps) // 2

    def of_channels(self, channels):
        """Return what is known of some channels, whose mixing with the others is done."""
        mixing = self.mixing[np.ix_(channels, channels)]
        return replace(
            self, offset=self.offset[channels], taps=self.taps[channels], mixing=mixing, noise=self.noise[channels]
        )

    def scaled(self, factor):
        """Return the map with its output multiplied by `factor`."""
        return replace(self, mixing=self.mixing * factor)


def whiten(data, whitening, start=0, stop=None):
    """Return whitened samples [start, stop) of a recording; they do not depend on the rest of it.

    Parameters
    ----------
    data : array (C, N)
        Recording.
    whitening : Whitening
        The map.
    start, stop : int
        Range, samples; by default all.

    Returns
    -------
    ndarray (C, stop - start) of float32
    """
    mixing = whitening.mixing.astype(np.float32)
    return _filtered(_take(data, whitening.offset, start, stop, whitening.margin), whitening.taps, mixing)


def band_pass(data, whitening, start=0, stop=None):
    """Return samples [start, stop) of a recording through the pass band alone, data unit.

    Parameters
    ----------
    data : array (C, N)
        Recording.
    whitening : Whitening
        Knows the pass band.
    start, stop : int
        Range, samples; by default all.

    Returns
    -------
    ndarray (C, stop - start) of float32
    """
    return _filtered(_take(data, whitening.offset, start, stop, whitening.margin), whitening.band_taps[None])


def _filtered(x, taps, mixing=None):
    """Return a signal filtered, and its channels mixed, span by span."""
    out = np.empty((len(x), x.shape[1] - taps.shape[1] + 1), np.float32)

    def fill(a):
        b = min(a + _SPAN, out.shape[1])
        made = convolve(x[:, a : b + taps.shape[1] - 1], taps)
        out[:, a:b] = made if mixing is None else mixing @ made

    parallel_map(fill, range(0, out.shape[1], _SPAN))
    return out


def learn(data, scale):
    """Return the whitening of a recording, from stretches of it that hold no events.

    Parameters
    ----------
    data : array (C, N)
        Recording.
    scale : Scale
        Pass band and durations.

    Returns
    -------
    Whitening

    Raises
    ------
    InputError
        If the recording is shorter than the filter and two windows, or a channel holds nothing in the pass band.
    """
    N = data.shape[1]
    m = round(1.5 * scale.fs / scale.band[0])
    if 2 * m + 2 * scale.length > N:
        raise InputError(
            f"the recording (data) is {N} samples long, wanted at least {2 * m + 2 * scale.length}: "
            f"the filter spans {2 * m + 1} and a window {scale.length}"
        )
    bins = scipy.fft.next_fast_len(8 * m, real=True)
    gain = _band_gain(np.fft.rfftfreq(bins, 1 / scale.fs), scale)
    band_taps = _taps(gain, m)
    pieces = _pieces(N, _PIECES, _PIECE_UNITS * scale.unit)
    offset = np.median(np.concatenate([data[:, a:b] for a, b in pieces], axis=1), axis=1).astype(np.float64)
    passed = [convolve(_take(data, offset, a, b, m), band_taps[None]) for a, b in pieces]
    noise = np.median(np.abs(np.concatenate(passed, axis=1)), axis=1) / 0.6745
    if not (noise > 0).all():
        dead = int(np.flatnonzero(~(noise > 0))[0])
        raise InputError(
            f"channel {dead} holds nothing between {scale.band[0]:g} and {scale.band[1]:g} Hz; "
            "leave it out or pass another band"
        )
    quiet = [_quiet(x, noise, scale.unit) for x in passed]
    power = _spectrum(passed, quiet, 3 * scale.unit // 2, bins)
    middle = np.median(power[:, gain > 0.5], axis=1, keepdims=True)
    taps = np.array([_taps(g, m) for g in gain / np.sqrt(np.maximum(power, 0) + _RIDGE * middle) * gain])
    density = float((gain**2).mean())
    covariance = _covariance([convolve(_take(data, offset, a, b, m), taps) for a, b in pieces], quiet) / density
    values, vectors = np.linalg.eigh(covariance)
    mixing = (vectors / np.sqrt(values + 0.01 * values.mean())) @ vectors.T
    return Whitening(offset, taps, mixing, band_taps, noise, density)


def _band_gain(f, scale):
    sos = scipy.signal.butter(_ORDER, scale.band, "bandpass", fs=scale.fs, output="sos")
    return np.abs(scipy.signal.sosfreqz(sos, f, fs=scale.fs)[1]) ** 2


def _taps(gain, m):
    """Return the filter of 2 m + 1 taps with a real gain (frequencies,); a constant passes as zero."""
    taps = np.roll(np.fft.irfft(gain), m)[: 2 * m + 1]
    taper = np.sqrt(np.hanning(2 * m + 3)[1:-1])
    taps *= taper
    return taps - taper * taps.sum() / taper.sum()


def _take(data, offset, start, stop, m):
    """Return samples [start - m, stop + m) as float32 about zero, mirrored with change of sign at the ends."""
    N = data.shape[1]
    stop = N if stop is None else stop
    a, b = max(0, start - m), min(N, stop + m)
    x = (data[:, a:b] - offset[:, None]).astype(np.float32)
    missing = (a - (start - m), stop + m - b)
    return np.pad(x, ((0, 0), missing), mode="reflect", reflect_type="odd") if any(missing) else x


def _pieces(N, count, length):
    """Return the borders of at most `count` evenly spaced pieces of a recording, of at most `length` samples."""
    if count * length >= N:
        return [(0, N)]
    return [(a, a + length) for a in np.linspace(0, N - length, count).astype(int).tolist()]


def _quiet(x, noise, unit):
    """Return where no event is within a duration unit, (n,) of bool; the quieter half, if there is no such place."""
    height = (np.abs(x) / noise[:, None]).max(axis=0)
    height = scipy.ndimage.maximum_filter1d(height, 2 * unit + 1)
    return height < max(_QUIET, np.quantile(height, 0.3))


def _spectrum(passed, quiet, lags, bins):
    """Return the power spectrum of the noise of each channel, (C, bins // 2 + 1), from the samples that are quiet."""
    covariance, count = 0.0, 0.0
    for x, q in zip(passed, quiet, strict=True):
        size = scipy.fft.next_fast_len(len(q) + lags, real=True)
        count = count + np.fft.irfft(np.abs(np.fft.rfft(q.astype(float), size)) ** 2, size)[: lags + 1]
        spectrum = np.abs(scipy.fft.rfft(np.where(q, x, 0), size, axis=1)) ** 2
        covariance = covariance + scipy.fft.irfft(spectrum.astype(float), size, axis=1)[:, : lags + 1]
    taper = 0.5 * (1 + np.cos(np.pi * np.arange(lags + 1) / (lags + 1)))
    covariance = covariance / np.maximum(count, 1) * taper
    around = np.zeros((len(covariance), bins))
    around[:, : lags + 1] = covariance
    around[:, -lags:] = covariance[:, :0:-1]
    return np.fft.rfft(around, axis=1).real


def _covariance(filtered, quiet):
    total = sum(x[:, q].astype(np.float64) @ x[:, q].T.astype(np.float64) for x, q in zip(filtered, quiet, strict=True))
    return total / sum(int(q.sum()) for q in quiet)
