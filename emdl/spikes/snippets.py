"""Pieces of a signal around events, cut and shifted by parts of a sample."""

import functools

import numpy as np


def cut(x, start, length):
    """Return the pieces [start_i, start_i + length) of a signal.

    Parameters
    ----------
    x : array (C, N)
        Signal.
    start : array (n,) of int
        First samples; the pieces must lie inside.
    length : int
        Samples.

    Returns
    -------
    ndarray (n, C, length)
    """
    windows = np.lib.stride_tricks.sliding_window_view(x, length, axis=1)
    return np.ascontiguousarray(windows[:, start].transpose(1, 0, 2))


def advance(x, shift):
    """Return pieces shifted to the left by parts of a sample, band-limited; the ends wrap around.

    Parameters
    ----------
    x : array (n, C, s)
        Pieces, with some samples to spare at the ends.
    shift : array (n,)
        Samples, at most about one. A matrix is made for each value, so there should be few.

    Returns
    -------
    ndarray (n, C, s) of float32
    """
    out, shift = np.empty(x.shape, np.float32), np.asarray(shift)
    for value in np.unique(shift):
        chosen = np.flatnonzero(shift == value)
        out[chosen] = x[chosen] @ _mover(x.shape[-1], float(value)) if value else x[chosen]
    return out


@functools.lru_cache(64)
def _mover(length, shift):
    """Return the matrix that a row is multiplied with to be shifted to the left."""
    turned = np.fft.rfft(np.eye(length)) * np.exp(2j * np.pi * np.fft.rfftfreq(length) * shift)
    return np.fft.irfft(turned, length).astype(np.float32)


def delay(x, lag):
    """Return arrays moved to the right by `lag` whole samples along the last axis, zeros moving in.

    Parameters
    ----------
    x : array (..., s)
        What to move.
    lag : int
        Samples; negative moves to the left.

    Returns
    -------
    ndarray (..., s)
    """
    out = np.zeros_like(x)
    s = x.shape[-1]
    if lag >= 0:
        out[..., lag:] = x[..., : s - lag]
    else:
        out[..., :lag] = x[..., -lag:]
    return out


def best_lag(a, b, most):
    """Return the lag at which `b`, delayed by it, looks most like `a`, and their inner product there.

    Parameters
    ----------
    a, b : array (C, s)
        Waveforms.
    most : int
        Largest lag, samples.

    Returns
    -------
    lag : int
    product : float
    """
    padded = np.zeros((len(a), a.shape[1] + 2 * most), a.dtype)
    padded[:, most : most + a.shape[1]] = a
    windows = np.lib.stride_tricks.sliding_window_view(padded, b.shape[1], axis=1)  # (C, 2 most + 1, s)
    product = np.einsum("cls,cs->l", windows, b)
    return int(product.argmax()) - most, float(product.max())
