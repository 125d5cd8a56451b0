"""Where learning starts: events that stand out, aligned, and what groups they form."""

import numpy as np
import scipy.ndimage
import scipy.signal
import scipy.stats

from emdl.backend import parallel_map
from emdl.spikes import drift, groups, snippets
from emdl.spikes.blocks import convolve_each
from emdl.spikes.mixture import cluster, components, project

_WIDTHS = (0.07, 0.14, 0.28)  # of the Gaussian bumps that events are compared with, duration units
_FALSE = 1e-6  # probability that a sample of pure noise stands out
_APART = 1.2  # duration units between events
_DIMS, _MOST_GROUPS, _MOST_EVENTS = 10, 24, 3000  # of a tetrode
_WIDER, _MORE = 6, 6  # dimensions besides the channels, and groups a channel, of more channels: they see more neurons
_PIECE, _LEVEL = 1 << 16, 150_000  # samples filtered by one thread; samples that the level of the noise is taken from
_PARTS = 16  # of a sample, to which events are aligned
_FEW = 10  # events below which a group is not believed
_LOOSE = 0.2  # variance of a group beyond the noise, relative to the energy of its mean, from which on it is a mixture


def prominence(x, whitening, unit):
    """Return how far a whitened signal stands out of the noise at each sample.

    The signal is compared with bumps of several widths as they look after whitening; channels add up. In pure noise the
    result has the distribution of chi^2 with C degrees of freedom, or the largest of some.

    Parameters
    ----------
    x : array (C, N)
        Whitened signal.
    whitening : Whitening
        Knows what whitening does to a bump.
    unit : int
        Duration unit, samples.

    Returns
    -------
    ndarray (N,)
    """
    N, time = x.shape[1], np.arange(-3 * unit, 3 * unit + 1)
    shapes = []
    for width in _WIDTHS:
        bump = np.exp(-np.minimum(0.5 * (time / (width * unit)) ** 2, 80))
        shape = scipy.signal.oaconvolve(np.broadcast_to(bump, (len(x), len(time))), whitening.taps, mode="same", axes=1)
        middle = shape.shape[1] // 2
        shape = shape[:, middle - 3 * unit // 2 : middle + 3 * unit // 2 + 1]
        shapes.append(shape[:, ::-1] / np.linalg.norm(shape, axis=1, keepdims=True))
    level = _levels(x, shapes)
    scaled = [shape / scale for shape, scale in zip(shapes, level, strict=True)]

    def filled(start):
        end = min(start + _PIECE, N)
        for match in _matched(x, scaled, start, end):
            np.maximum(out[start:end], np.einsum("cn,cn->n", match, match), out=out[start:end])

    out = np.zeros(N, np.float32)
    parallel_map(filled, range(0, N, _PIECE))
    return out


def _matched(x, shapes, start, end):
    """Return samples [start, end) of a signal filtered with each of some shapes, a list of (C, end - start)."""
    m = shapes[0].shape[1] // 2
    a, b = start - m, end + m
    return convolve_each(np.pad(x[:, max(a, 0) : b], ((0, 0), (max(-a, 0), max(b - x.shape[1], 0)))), shapes)


def _levels(x, shapes):
    """Return the standard deviation of the noise after each filter, (filters, C, 1), from a part of the signal."""
    N, piece = x.shape[1], _PIECE // 4
    starts = range(0, N, max(piece, N * piece // _LEVEL))
    parts = parallel_map(lambda a: _matched(x, shapes, a, min(a + piece, N)), starts)
    matches = [np.concatenate(of_shape, axis=1) for of_shape in zip(*parts, strict=True)]
    return [np.median(np.abs(match), axis=1, keepdims=True) / 0.6745 for match in matches]


def events(height, n_channels, unit):
    """Return the peaks of `prominence` that no noise reaches, with parts of a sample.

    Parameters
    ----------
    height : array (N,)
        From `prominence`.
    n_channels : int
        Number of channels C.
    unit : int
        Duration unit, samples.

    Returns
    -------
    at : ndarray (n,) of int
        Nearest sample.
    rest : ndarray (n,)
        What to add to it, -0.5 to 0.5.
    """
    threshold = scipy.stats.chi2.isf(_FALSE, n_channels)
    at, _ = scipy.signal.find_peaks(height, height=threshold, distance=max(1, round(_APART * unit)))
    at = at[(at > 0) & (at < len(height) - 1)]
    left, middle, right = (np.sqrt(height[at + i]) for i in (-1, 0, 1))
    bend = left - 2 * middle + right
    rest = np.where(bend < 0, 0.5 * (left - right) / np.where(bend < 0, bend, 1), 0)
    return at, np.clip(rest, -0.5, 0.5)


def waveforms(x, whitening, scale, rng, *, covered=None):
    """Return the mean waveforms of the groups of events in a whitened signal.

    Parameters
    ----------
    x : array (C, N)
        Whitened signal.
    whitening : Whitening
        How it was made.
    scale : Scale
        Durations.
    rng : Generator
        Source of the random choices.
    covered : array (N,) of bool, optional
        Samples where no event is to be looked for.

    Returns
    -------
    waveforms : ndarray (K, C, s) of float32
        Maybe none.
    n_events : int
        How many events stand out.
    """
    C, N = x.shape
    height = prominence(x, whitening, scale.unit)
    if covered is not None:
        height[covered] = 0
    at, rest = events(height, C, scale.unit)
    spare = max(4, scale.before // 2)
    inside = (at > scale.before + spare) & (at < N - scale.length - spare)
    at, rest = at[inside], rest[inside]
    n_events = len(at)
    if n_events < _FEW:
        return np.zeros((0, C, scale.length), np.float32), n_events
    most = _MOST_EVENTS * max(C, 4) // 4
    if len(at) > most:
        chosen = np.sort(rng.choice(len(at), most, replace=False))
        at, rest = at[chosen], rest[chosen]
    pieces = snippets.cut(x, at - scale.before - spare, scale.length + 2 * spare)
    pieces = snippets.advance(pieces, np.round(_PARTS * rest) / _PARTS)[:, :, spare:-spare]
    found = _tight_groups(pieces, at, N, rng)
    weight = np.ones(len(pieces))
    found = groups.merge(pieces, weight, found, scale.unit // 3, at, N)
    mean = [np.median(pieces[g.clean], axis=0) for g in found]
    return np.array(mean, np.float32).reshape(-1, C, scale.length), n_events


def _tight_groups(pieces, time, n_samples, rng):
    """Return the groups of events whose members look alike but for the noise."""
    flat, C = pieces.reshape(len(pieces), -1), pieces.shape[1]
    mean, axes = components(flat, min(max(_DIMS, C + _WIDER), len(flat) - 1))
    points = project(flat, mean, axes)
    label = cluster(points, min(max(_MOST_GROUPS, _MORE * C), max(1, len(points) // 15)), rng)
    found = []
    for k in range(label.max() + 1):
        members = np.flatnonzero(label == k)
        if len(members) < _FEW:
            continue
        energy = float((np.median(pieces[members], axis=0) ** 2).sum())
        still = drift.without_trend(points[members], time[members], n_samples)
        excess = float(still.var(axis=0).sum()) - points.shape[1]
        if excess < _LOOSE * energy and energy > 9:
            found.append(groups.Group(members, members))
    return found
