"""Extracellular waveforms: their shape in time, and how it changes from channel to channel.

Time 0 is the trough on the channel nearest to the source; times are in milliseconds, lengths in micrometres.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft

from emdl.backend import as_rng, check_count, check_number
from emdl.errors import InputError

BEFORE, AFTER = 0.8, 1.7  # what a waveform shows around its trough, ms
PITCH = 25.0  # distance of neighbouring channels, um
_SPEED = 500.0  # of a spike along the dendrites, um / ms
_DECAY = 1.5  # amplitude ~ distance^-1.5, between a monopole and a dipole


@dataclass(frozen=True, eq=False)
class Neurons:
    """Sources of spikes, n of them, seen on C channels; each field has one row per source.

    Attributes
    ----------
    position : array (n, 3)
        Place, um.
    gain : array (n, C)
        Amplitude on each channel, 1 on the nearest.
    delay, stretch : array (n, C)
        How much later (ms) and broader (factor) the waveform is on each channel.
    trough, cap, peak : array (n, 2)
        Widths of the sodium trough, the capacitive peak before and the potassium peak after it, on their left and right
        side, ms.
    cap_height, peak_height : array (n, C)
        Heights of the two peaks over the depth of the trough.
    cap_time, peak_time : array (n, 1)
        Distances of the two peaks from the trough, ms.
    centre : array (n, 1)
        Where the sum of the three has its trough on the nearest channel, ms.
    """

    position: np.ndarray
    gain: np.ndarray
    delay: np.ndarray
    stretch: np.ndarray
    trough: np.ndarray
    cap: np.ndarray
    peak: np.ndarray
    cap_height: np.ndarray
    peak_height: np.ndarray
    cap_time: np.ndarray
    peak_time: np.ndarray
    centre: np.ndarray

    def __getitem__(self, index):
        return Neurons(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def channel_positions(n_channels):
    """Return the places of the channels, (C, 3), the corners of a regular polygon in the plane z = 0, `PITCH` apart."""
    if n_channels == 1:
        return np.zeros((1, 3))
    angle = 2 * np.pi * (np.arange(n_channels) + 0.5) / n_channels
    radius = PITCH / (2 * np.sin(np.pi / n_channels))
    return radius * np.stack([np.cos(angle), np.sin(angle), np.zeros(n_channels)], 1)


def draw_neurons(count, channels, near, far, rng):
    """Return neurons at random places, `near` to `far` um from a random channel and at least `near` from all."""
    place = rng.standard_normal((4 * count, 3))
    place *= rng.uniform(near, far, (4 * count, 1)) / np.linalg.norm(place, axis=1, keepdims=True)
    place += channels[rng.integers(len(channels), size=4 * count)]
    distance = np.linalg.norm(place[:, None] - channels, axis=2)
    chosen = np.argsort(distance.min(1) < near, kind="stable")[:count]
    place, distance = place[chosen], np.maximum(distance[chosen], near)
    further = distance - distance.min(1, keepdims=True)
    n, size = count, further.shape
    narrow = rng.random((n, 1)) < 0.3  # interneurons: faster than pyramidal cells
    peak_time = np.where(narrow, rng.uniform(0.25, 0.4, (n, 1)), rng.uniform(0.4, 0.75, (n, 1)))
    neurons = Neurons(
        position=place,
        gain=(distance.min(1, keepdims=True) / distance) ** _DECAY,
        delay=further / _SPEED,
        stretch=1 + np.minimum(0.005 * further, 0.3),
        trough=rng.uniform(0.06, 0.12, (n, 1)) * [1.0, 1.2],
        cap=rng.uniform(0.07, 0.13, (n, 1)) * [1.3, 1.0],
        peak=peak_time * rng.uniform([0.35, 0.45], [0.5, 0.65], (n, 2)),
        cap_height=rng.uniform(0, 0.3, (n, 1)) * rng.uniform(0.3, 1.7, size),
        peak_height=rng.uniform(0.2, 0.6, (n, 1)) * rng.uniform(0.8, 1.2, size),
        cap_time=rng.uniform(0.2, 0.32, (n, 1)),
        peak_time=peak_time,
        centre=np.zeros((n, 1)),
    )
    grid = np.linspace(-0.15, 0.15, 601)
    best = np.take_along_axis(evaluate(neurons, grid), distance.argmin(1)[:, None, None], 1)[:, 0]
    return replace(neurons, centre=grid[best.argmin(1)][:, None])


def evaluate(neurons, times):
    """Return the waveforms at `times` (ms, any shape), (n, C, *times): trough near -1 on the nearest channel."""
    times = np.asarray(times, float)

    def across(x):
        return x.reshape(*x.shape, *(1 for _ in times.shape))

    def bell(x, width):
        left, right = across(width[:, :1]), across(width[:, 1:])
        return np.exp(-0.5 * (x / np.where(x < 0, left, right)) ** 2)

    t = (times + across(neurons.centre) - across(neurons.delay)) / across(neurons.stretch)
    wave = across(neurons.cap_height) * bell(t + across(neurons.cap_time), neurons.cap) - bell(t, neurons.trough)
    wave += across(neurons.peak_height) * bell(t - across(neurons.peak_time), neurons.peak)
    fade = np.clip(np.minimum((times + BEFORE) / 0.3, (AFTER - times) / 0.6), 0, 1)
    return across(neurons.gain) * wave * (0.5 - 0.5 * np.cos(np.pi * fade))


def choose_distinct(shapes, count, max_correlation):
    """Return the indices of the first `count` shapes (n, C, s) whose correlations at all lags stay below a bound."""
    shapes = shapes / np.linalg.norm(shapes, axis=(1, 2), keepdims=True)
    size = next_fast_len(2 * shapes.shape[2] - 1, real=True)
    spectrum = rfft(shapes, size)
    chosen, free = [], np.arange(len(shapes))
    while len(chosen) < count and len(free):
        chosen.append(free[0])
        product = np.einsum("ncf,cf->nf", spectrum[free], np.conj(spectrum[free[0]]))
        free = free[np.abs(irfft(product, size)).max(1) < max_correlation]
    if len(chosen) < count:
        raise InputError(
            f"only {len(chosen)} of {count} waveforms could be kept apart by max_correlation {max_correlation:g}; "
            "raise it, or use more channels or fewer waveforms"
        )
    return np.array(chosen)


def waveforms(n_atoms, n_channels, length, *, max_correlation=0.9, rng=None):
    """Return smooth atoms that look like extracellular spikes, of unit norm and all different.

    Each has a small peak, a sharp trough and a slower peak; sources sit at random places, 10 to 50 um from a channel,
    and amplitudes fall with the distance to the power 1.5, so that an atom is largest on one channel and later, broader
    and smaller on the others. Channels are the corners of a polygon, 25 um apart.

    Parameters
    ----------
    n_atoms : int
        Number of atoms K.
    n_channels : int
        Number of channels C.
    length : int
        Samples s of an atom, at least 8; they span 2.5 ms, the trough at about a third.
    max_correlation : float
        Bound of the inner product of any two atoms at any lag, 0 to 1. Small values make atoms easy to tell apart, but
        few fit: on one channel 2 or 3 at 0.8 and 4 to 7 at 0.9, on four channels 10 and 30.
    rng : Generator or int, optional
        Source of randomness.

    Returns
    -------
    array (K, C, s)
        Atoms, float64.

    Raises
    ------
    InputError
        If a number is out of range, or the atoms do not fit below `max_correlation`.

    References
    ----------
    .. [1] C. Gold, D. A. Henze, C. Koch, G. Buzsaki, "On the origin of the extracellular action potential waveform",
       J. Neurophysiol. 95 (2006) 3113-3128, doi:10.1152/jn.00979.2005.

    Examples
    --------
    >>> D = waveforms(3, 4, 45, rng=0)
    >>> D.shape, (D**2).sum(axis=(1, 2)).round(12)
    ((3, 4, 45), array([1., 1., 1.]))
    """
    n_atoms, n_channels = check_count(n_atoms, "n_atoms"), check_count(n_channels, "n_channels")
    length = check_count(length, "length", 8)
    max_correlation = check_number(max_correlation, "max_correlation", 0, 1, strict=True)
    neurons = draw_neurons(200 + 40 * n_atoms, channel_positions(n_channels), 10, 50, as_rng(rng))
    step = (BEFORE + AFTER) / length
    shapes = evaluate(neurons, (np.arange(length) - round(BEFORE / step)) * step)
    chosen = shapes[choose_distinct(shapes, n_atoms, max_correlation)]
    return chosen / np.linalg.norm(chosen, axis=(1, 2), keepdims=True)
