"""Filters by transforms of short blocks that stay in the cache of a processor (overlap-save)."""

import numpy as np
import scipy.fft

from emdl._kernels.compiler import jit

_LEAST, _TIMES = 1024, 6  # samples of a block at least, also as a multiple of the filter
_AT_ONCE = 16  # blocks transformed at once


def block_length(n_taps):
    """Return the samples of a block for filters of `n_taps` taps."""
    return scipy.fft.next_fast_len(max(_LEAST, _TIMES * n_taps), real=True)


def spectra(taps):
    """Return the transforms of filters (..., l), as `convolve` and `correlate` want them, (..., f) of complex64."""
    return scipy.fft.rfft(np.asarray(taps, np.float32), block_length(taps.shape[-1]), axis=-1)


def convolve(x, taps):
    """Return the part of a convolution in time that lies inside the signal.

    Parameters
    ----------
    x : array (C, n) of float32
        Signal.
    taps : array (C, l) or (1, l)
        Filter of each channel, or of all.

    Returns
    -------
    ndarray (C, n - l + 1) of float32
    """
    return convolve_each(x, [taps])[0]


def convolve_each(x, filters):
    """Return what `convolve` does for each of some filters of one length, a list."""
    length, filters = filters[0].shape[-1], [spectra(taps)[:, None] for taps in filters]
    out = [np.empty((len(x), x.shape[1] - length + 1), np.float32) for _ in filters]
    for at, spectrum in _transformed(x, length):
        for made, transfer in zip(out, filters, strict=True):
            _put(made, at, spectrum * transfer, length)
    return out


def correlate(x, templates, near, length):
    """Return the products of templates with a signal at all places where they lie inside.

    Parameters
    ----------
    x : array (C, n) of float32
        Signal.
    templates : ndarray (K, M, f) of complex64
        From `spectra`, of the templates turned round in time, on the channels near each.
    near : array (K, M) of int
        These channels; -1 beyond the last.
    length : int
        Samples of a template.

    Returns
    -------
    ndarray (K, n - length + 1) of float32
    """
    out = np.empty((len(near), x.shape[1] - length + 1), np.float32)
    for at, spectrum in _transformed(x, length):
        total = np.empty((len(near), *spectrum.shape[1:]), spectrum.dtype)
        _multiply(spectrum, templates, near, total)
        _put(out, at, total, length)
    return out


def _transformed(x, length):
    """Yield the first place of some blocks in the result, and their transforms (C, blocks, f)."""
    size = block_length(length)
    step, n = size - length + 1, x.shape[1]
    whole = max(0, (n - size) // step + 1)
    if whole:
        blocks = np.lib.stride_tricks.sliding_window_view(x, size, axis=1)[:, ::step]
        for first in range(0, whole, _AT_ONCE):
            yield first * step, scipy.fft.rfft(blocks[:, first : min(whole, first + _AT_ONCE)], axis=2)
    if whole * step < n - length + 1:
        yield whole * step, scipy.fft.rfft(x[:, None, whole * step :], size, axis=2)


def _put(out, at, spectrum, length):
    """Write what the blocks from place `at` on make to the result."""
    size = block_length(length)
    made = scipy.fft.irfft(spectrum, size, axis=2)[:, :, length - 1 :]
    if made.shape[1] == 1:
        out[:, at : at + made.shape[2]] = made[:, 0, : out.shape[1] - at]
    else:
        out[:, at : at + made[0].size].reshape(made.shape)[...] = made


@jit
def _multiply(spectrum, templates, near, total):
    """Write the transforms of the products with templates (K, blocks, f), from those of the signal (C, blocks, f)."""
    for k in range(len(near)):
        for block in range(total.shape[1]):
            out = total[k, block]
            out[:] = 0
            for m in range(near.shape[1]):
                if near[k, m] < 0:
                    break
                signal, template = spectrum[near[k, m], block], templates[k, m]
                for i in range(len(out)):
                    out[i] += signal[i] * template[i]
