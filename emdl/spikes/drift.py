"""Slow drift: waveforms that change in the course of a recording, and groups of spikes that differ by that alone.

The waveform of a unit at a time u, from 0 at the start of the recording to 1 at its end, is its mean waveform plus

    W_0 + sum_p W_p cos(pi p u),  p = 1 to 5,                                                                   (S3)

fitted to its spikes by least squares, where that explains more than noise would. A neuron that drifts looks like
several when its spikes are thrown together; at any one time it looks like one. So groups are compared after the trend
of their spikes is taken out, and two groups that follow each other in time are one if they meet.
"""

import numpy as np

TERMS = 6  # of the series, the constant included
_PRIOR = 4.0  # spikes that the prior of a term, zero, counts for, times p^2
_CERTAIN = 30.0  # chi^2 with 5 degrees of freedom, beyond which amplitudes drift
_MUCH, _ABOVE = 0.05, 1.5  # drift, of the size of a waveform, worth following; its energy over that of noise
_RANK, _ENOUGH = 2, 40  # ways in which a waveform changes; spikes without which nothing is followed
_WINDOWS, _IN_WINDOW, _LINE = 10, 25, 8  # parts of a signal at most, spikes in one, and for a line through them
_CHANCE = 5.0  # standard deviations of chi^2, beyond which a trend is no chance
_NEAR = 20  # spikes of two running means that are compared
_JUMP = 0.6  # of the distance of two groups, that is passed at once


def terms(u):
    """Return the functions of (S3) at times u (...,), the constant first, (..., TERMS)."""
    return np.cos(np.pi * np.arange(TERMS) * np.clip(u, 0, 1)[..., None])


def series(x, u, density):
    """Return how the waveform of a unit drifts.

    Parameters
    ----------
    x : array (n, C, s)
        Its spikes.
    u : array (n,)
        Their times, parts of the recording.
    density : float
        Variance of a sample of noise.

    Returns
    -------
    ndarray (TERMS, C, s) of float32 or None
        W of (S3), which adds nothing on average over the spikes; None if it does not drift.
    """
    n = len(x)
    if n < _ENOUGH:
        return None
    flat = x.reshape(n, -1).astype(np.float64)
    mean = flat.mean(axis=0)
    size = np.linalg.norm(mean)
    phi = terms(u)[:, 1:]
    middle = phi.mean(axis=0)
    phi = phi - middle
    gram = phi.T @ phi + _PRIOR * np.diag(np.arange(1, TERMS) ** 2)
    W = np.linalg.solve(gram, phi.T @ (flat - mean))
    along = W @ mean / size
    grown = phi @ along
    rest = (flat - mean) @ (mean / size) - grown
    grows = (grown**2).sum() > _CERTAIN * rest.var() and grown.std() > _MUCH * size
    shape = _certain_shape(W - np.outer(along, mean / size), gram, density, n, size)
    if not grows and shape is None:
        return None
    W = (np.outer(along, mean / size) if grows else 0) + (shape if shape is not None else 0)
    return np.vstack([-middle @ W, W]).reshape(TERMS, *x.shape[1:]).astype(np.float32)


def _certain_shape(W, gram, density, n, size):
    """Return the part of a series (p, d) that is no noise, or None."""
    root = np.linalg.cholesky(gram).T
    left, values, right = np.linalg.svd(root @ W, full_matrices=False)
    noise = density * W.shape[1]
    kept = np.flatnonzero(values[:_RANK] ** 2 > _ABOVE * noise)
    if len(kept) == 0 or ((values[kept] ** 2 - noise).sum() / n) < (_MUCH * size) ** 2:
        return None
    return np.linalg.solve(root, (left[:, kept] * values[kept]) @ right[kept])


def stacked(waves, D):
    """Return the series of units with templates D (K, C, s), (K, TERMS, C, s), from those of each; None where none."""
    if all(w is None for w in waves):
        return None
    return np.array(
        [np.zeros((TERMS, *d.shape), np.float32) if w is None else w for w, d in zip(waves, D, strict=True)]
    )


def windows(time, n_samples, count=None):
    """Return in which part of a signal each spike lies, (n,) of int; there are as many as trends need by default."""
    count = int(np.clip(len(time) // _IN_WINDOW, 1, _WINDOWS)) if count is None else count
    return np.minimum(np.asarray(time) * count // n_samples, count - 1).astype(int)


def without_trend(points, time, n_samples):
    """Return points less the straight lines that fit them in each of up to ten parts of the signal, if these tell more.

    Along each axis the lines are taken out where they explain more than those of spikes in any order would. Else they
    follow which of two neurons happens to be active, and would fill the gap between them.

    Parameters
    ----------
    points : array (n, d)
        Of spikes.
    time : array (n,)
        Of the same spikes, samples.
    n_samples : int
        Of the signal.

    Returns
    -------
    ndarray (n, d)
    """
    x, window = np.asarray(points), windows(time, n_samples)
    trend, count = np.tile(x.mean(axis=0), (len(x), 1)), -1
    for w in np.unique(window):
        own = np.flatnonzero(window == w)
        t = np.asarray(time, float)[own]
        t -= t.mean()
        trend[own], count = x[own].mean(axis=0), count + 1
        if len(own) >= _LINE and t.any():
            trend[own] += np.outer(t, t @ (x[own] - trend[own])) / (t @ t)
            count += 1
    explained = np.square(trend - x.mean(axis=0)).sum(axis=0)
    rest = np.square(x - trend).sum(axis=0) / max(len(x) - count - 1, 1)
    drifts = explained > (count + _CHANCE * np.sqrt(2 * count)) * rest  # chi^2 with `count` degrees of freedom
    return x - np.where(drifts, trend, x.mean(axis=0))


def jumps(values, time, distance):
    """Return whether values (n,) go over most of a distance from one moment to the next, as no slow drift does."""
    v = values[np.argsort(time, kind="stable")]
    half = min(_NEAR // 2, len(v) // 4)
    if half < 3:
        return False
    total = np.append(0, np.cumsum(v, dtype=np.float64))
    i = np.arange(half, len(v) - half + 1)
    step = np.abs(total[i + half] - 2 * total[i] + total[i - half]) / half
    return bool(step.max() > _JUMP * abs(distance) + 3 / np.sqrt(half))
