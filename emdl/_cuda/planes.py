"""The model and its adjoints on CuPy arrays.

Two ways, chosen by `direct_is_cheaper`: sums over the taps out of shared memory, whose cost grows with the number of
taps, and transforms, whose cost does not.
"""

import math

import numpy as np

from emdl._cuda import fourier
from emdl._cuda.compiler import launch
from emdl.backend import array_module, code_positions

THREADS, PER = 128, 4  # as in planes.cu
SHARED_BYTES = 48 * 1024  # what every device since 2010 gives a block without asking
_BLOCKS = 4096  # of a correlation, about: enough for the largest device; fixed, so that bits do not depend on it
_TRANSFORM_COST = 8.0  # of an operation of a transform, which memory limits, in operations of a direct sum; an estimate


def direct_is_cheaper(n_channels, n_atoms, atom_shape, signal_shape, stride):
    """Return whether sums over the taps are expected to be faster than transforms.

    Per signal a direct sum takes 2 K C prod(P) prod(s) operations, a transform 2.5 F log2 F for each channel and atom
    and 8 F / 2 for each product of the two, with F samples; an operation of the latter counts eightfold, as it waits
    for memory. Atoms that leave no room for a tile in shared memory are always transformed.

    Parameters
    ----------
    n_channels, n_atoms : int
        C and K.
    atom_shape, signal_shape, stride : tuple of int
        Along each axis.

    Returns
    -------
    bool
    """
    if 8 * math.prod(atom_shape) * 8 > SHARED_BYTES // 2:  # 8 atoms of float64
        return False
    C, K, P = n_channels, n_atoms, code_positions(signal_shape, atom_shape, stride)
    F = math.prod(fourier.fast_length(S) for S in signal_shape)
    transforms = (K + C) * 2.5 * F * math.log2(max(F, 2)) + K * C * 4 * F
    return 2 * K * C * math.prod(P) * math.prod(atom_shape) <= _TRANSFORM_COST * transforms


def analyze(r, D, stride):
    """Return D^T r.

    Parameters
    ----------
    r : cupy.ndarray (n, C, *S)
        Signals.
    D : cupy.ndarray (K, C, *s)
        Dictionary of the same dtype.
    stride : tuple of int
        Along each axis.

    Returns
    -------
    cupy.ndarray (n, K, *P)
    """
    cupy, (K, C, *s), S = array_module(r, D), D.shape, r.shape[2:]
    if not direct_is_cheaper(C, K, tuple(s), S, stride):
        return fourier.analyze(r, D, stride)
    P = code_positions(S, s, stride)
    out = cupy.empty((len(r), K, *P), D.dtype)
    (h, w), (H, W), (PH, PW), (sh, sw) = _two(s), _two(S), _two(P), _two(stride)
    bank, item = 4 if K <= 4 else 8, D.dtype.itemsize

    def bytes_of(rows, columns):
        return item * (bank * h * w + ((rows - 1) * sh + h) * ((columns - 1) * sw + w))

    rows, columns = _tile(PH, PW, THREADS * PER, bytes_of)
    _launch(
        cupy, f"analyze_{bank}", D.dtype, (_tiles(len(r), PH, PW, rows, columns), -(-K // bank), 1),
        (_plain(r), _plain(D), out), (C, H, W, K, h, w, PH, PW, sh, sw, rows, columns), bytes_of(rows, columns),
    )  # fmt: skip
    return out


def synthesize(z, D, stride, base=None, sign=1):
    """Return base + sign * D z.

    Parameters
    ----------
    z : cupy.ndarray (n, K, *P)
        Codes.
    D : cupy.ndarray (K, C, *s)
        Dictionary of the same dtype.
    stride : tuple of int
        Along each axis.
    base : cupy.ndarray (n, C, *S), optional
        Signals to add to.
    sign : int
        1 or -1.

    Returns
    -------
    cupy.ndarray (n, C, *S)
    """
    cupy, (K, C, *s), P = array_module(z, D, base), D.shape, z.shape[2:]
    S = tuple((p - 1) * t + a for p, t, a in zip(P, stride, s, strict=True))
    if not direct_is_cheaper(C, K, tuple(s), S, stride):
        made = fourier.synthesize(z, D, stride)
        return sign * made if base is None else base + sign * made
    out = cupy.empty((len(z), C, *S), D.dtype)
    (h, w), (H, W), (PH, PW), (sh, sw) = _two(s), _two(S), _two(P), _two(stride)
    channels, item = 1 if C == 1 else 4, D.dtype.itemsize

    def bytes_of(rows, columns):
        patch = ((rows - 1) // sh + 1 - -h // sh) * ((columns - 1) // sw + 1 - -w // sw)
        return item * (channels * h * w + patch)

    rows, columns = _tile(H, W, THREADS * PER, bytes_of)
    name = f"synthesize_{channels}" if sh == sw == 1 else f"synthesize_strided_{channels}"
    _launch(
        cupy, name, D.dtype, (_tiles(len(z), H, W, rows, columns), -(-C // channels), 1),
        (_plain(z), _plain(D), out if base is None else _plain(base), out, D.dtype.type(sign)),
        (base is not None, C, H, W, K, h, w, PH, PW, sh, sw, rows, columns), bytes_of(rows, columns),
    )  # fmt: skip
    return out


def correlate(z, r, lags, origin, stride):
    r"""Return the correlations of codes with signals, summed over the signals.

    .. math:: x_{kc}[a] = \sum_p z_k[p]\, r_c[p\,\mathrm{stride} + a - \mathrm{origin}]

    Parameters
    ----------
    z : cupy.ndarray (n, K, *P)
        Codes.
    r : cupy.ndarray (n, C, *S)
        Signals of the same dtype, zero outside.
    lags : tuple of int
        Number of lags along each axis.
    origin : tuple of int
        Index of lag zero.
    stride : tuple of int
        Along each axis.

    Returns
    -------
    cupy.ndarray (K, C, *lags) of float64
    """
    cupy, (n, K, *P), (_, C, *S) = array_module(z, r), z.shape, r.shape
    (h, w), (H, W), (PH, PW), (sh, sw) = _two(lags), _two(S), _two(P), _two(stride)
    (oh, ow), item = (0, *origin)[-2:], z.dtype.itemsize

    def bytes_of(rows, columns, channels=1):
        return item * (rows * columns + channels * ((rows - 1) * sh + h) * ((columns - 1) * sw + w))

    if bytes_of(1, 32) > SHARED_BYTES:
        return fourier.correlate(z, r, lags, origin, stride)
    rows, columns = _tile(PH, PW, 2 * THREADS, bytes_of)
    fits = (SHARED_BYTES - item * rows * columns) // (bytes_of(rows, columns) - item * rows * columns)
    channels = max(1, min(C, THREADS * PER // (h * w), fits))
    groups = -(-C // channels) * -(-channels * h * w // (THREADS * PER))
    tiles = _tiles(n, PH, PW, rows, columns)
    per_chunk = max(1, tiles * K * groups // _BLOCKS)
    partial = cupy.empty((-(-tiles // per_chunk), K, C, *lags), np.float64)
    _launch(
        cupy, "correlate", z.dtype, (len(partial), K, groups), (_plain(z), _plain(r), partial),
        (n, K, PH, PW, C, H, W, h, w, oh, ow, sh, sw, rows, columns, channels, per_chunk),
        bytes_of(rows, columns, channels),
    )  # fmt: skip
    return partial.sum(axis=0)


def _launch(cupy, kernel, dtype, grid, arguments, numbers, shared):
    launch(cupy, "planes", dtype, kernel, grid, THREADS, (*arguments, *map(np.int32, numbers)), shared)


def _plain(x):
    return array_module(x).ascontiguousarray(x)


def _two(shape):
    return (1, *shape)[-2:]


def _tiles(n, height, width, rows, columns):
    return n * -(-height // rows) * -(-width // columns)


def _tile(height, width, size, bytes_of):
    """Return rows and columns of a tile of at most `size` values that suits the plane and fits into shared memory."""
    rows = 1 if height == 1 else min(16, 1 << (height - 1).bit_length())
    columns = max(1, min(size // rows, -(-width // 32) * 32))
    while bytes_of(rows, columns) > SHARED_BYTES and rows * columns > 1:
        rows, columns = (rows // 2, columns) if rows > columns // 32 and rows > 1 else (rows, columns // 2)
    return rows, columns
