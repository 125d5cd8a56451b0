"""The model and its adjoints by transforms, for atoms of many taps; CuPy keeps the plans of cuFFT.

Transforms at least as long as the signals: what wraps around falls on no position that is read.
"""

import functools

import numpy as np

from emdl.backend import array_module, code_positions


@functools.cache
def fast_length(size):
    """Return the smallest number >= size whose prime factors are 2, 3, 5 and 7, for which cuFFT is fast.

    Parameters
    ----------
    size : int
        Samples.

    Returns
    -------
    int
    """
    while True:
        rest = size
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 1


def analyze(r, D, stride):
    """Return D^T r; arguments and result as in `emdl._cuda.planes.analyze`."""
    S, lengths, axes = r.shape[2:], [fast_length(S) for S in r.shape[2:]], tuple(range(2, r.ndim))
    xp = array_module(r, D)
    spectrum = _mix("kc...,nc...->nk...", xp.fft.rfftn(D, lengths, axes).conj(), xp.fft.rfftn(r, lengths, axes))
    full = xp.fft.irfftn(spectrum, lengths, axes)
    P = code_positions(S, D.shape[2:], stride)
    at = (..., *(slice(0, (p - 1) * t + 1, t) for p, t in zip(P, stride, strict=True)))
    return xp.ascontiguousarray(full[at]).astype(D.dtype, copy=False)


def synthesize(z, D, stride):
    """Return D z; arguments and result as in `emdl._cuda.planes.synthesize`."""
    S = [(p - 1) * t + s for p, t, s in zip(z.shape[2:], stride, D.shape[2:], strict=True)]
    lengths, axes = [fast_length(size) for size in S], tuple(range(2, z.ndim))
    xp = array_module(z, D)
    codes = xp.fft.rfftn(_spread(z, stride), lengths, axes)
    full = xp.fft.irfftn(_mix("kc...,nk...->nc...", xp.fft.rfftn(D, lengths, axes), codes), lengths, axes)
    return xp.ascontiguousarray(full[(..., *map(slice, S))]).astype(D.dtype, copy=False)


def correlate(z, r, lags, origin, stride):
    """Return the correlations of codes with signals; arguments and result as in `emdl._cuda.planes.correlate`."""
    xp, codes = array_module(z, r), _spread(z, stride)
    sizes = [max(S, P) + lag for S, P, lag in zip(r.shape[2:], codes.shape[2:], lags, strict=True)]
    lengths, axes = [fast_length(size) for size in sizes], tuple(range(2, z.ndim))
    out = xp.zeros((z.shape[1], r.shape[1], *lags), np.float64)
    wrapped = xp.fft.irfftn(
        _mix("nk...,nc...->kc...", xp.fft.rfftn(codes, lengths, axes).conj(), xp.fft.rfftn(r, lengths, axes)),
        lengths, axes,
    )  # fmt: skip
    shifted = xp.roll(wrapped, origin, axis=axes)  # lag zero goes to index `origin`, where negative lags precede it
    out += shifted[(..., *map(slice, lags))]
    return out


def _spread(z, stride):
    """Return the codes with stride - 1 zeros between neighbours."""
    if all(t == 1 for t in stride):
        return z
    xp = array_module(z)
    wide = xp.zeros((*z.shape[:2], *((p - 1) * t + 1 for p, t in zip(z.shape[2:], stride, strict=True))), z.dtype)
    wide[(..., *(slice(None, None, t) for t in stride))] = z
    return wide


def _mix(subscripts, a, b):
    """Sum products of spectra over the letter that the result lacks, frequency by frequency."""
    letters = "f" if a.ndim == 3 else "fg"
    return array_module(a, b).einsum(subscripts.replace("...", letters), a, b)
