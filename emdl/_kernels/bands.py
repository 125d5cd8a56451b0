"""How a signal is cut for the layers: bands, tiles, rows of patches; and dictionaries packed to match."""

import math
from dataclasses import dataclass

import numpy as np

from emdl._kernels.vectors import ROW, lanes

_BAND = 20_000_000  # multiplications of one layer on one band: long against the cost of handing it to a thread
_MAX_BANDS = 16
_LEAST = 4_000_000  # multiplications of one layer that are long against the calls of its matrix products


@dataclass(frozen=True)
class Layout:
    """How the signals of one shape are cut into bands, tiles and rows of patches.

    Attributes
    ----------
    n_bands, per : int
        Number of bands; positions in one of them, along the axis that is cut.
    n_tiles, tile : int
        Tiles of a band; positions of a tile.
    size : int
        Numbers in the flat image of a band, with slack for tiles that reach beyond the end.
    image : tuple of int
        (C, rows, width) of the part of it that is used.
    frame : tuple of int
        `layers.FRAME`.
    rows, taps : ndarray of int64
        Where the rows of a patch, and its taps on the polyphase components, lie relative to its corner.
    phases : int
        Numbers in the polyphase components, 0 without stride.
    valid : ndarray (n_bands, n_tiles) of uint64
        Which positions of a tile exist.
    q_shape : tuple of int
        (rows, columns) of positions in a full band.
    """

    n_bands: int
    per: int
    n_tiles: int
    tile: int
    size: int
    image: tuple
    frame: tuple
    rows: np.ndarray
    taps: np.ndarray
    phases: int
    valid: np.ndarray
    q_shape: tuple


def make_layout(S, atoms, stride, dtype, *, bands=None, most=_MAX_BANDS):
    """Return the layout for signals (C, H, W) with H = 1 for one axis.

    Parameters
    ----------
    S : tuple of int
        (H, W).
    atoms : tuple of int
        (K, C, h, w).
    stride : tuple of int
        (sh, sw).
    dtype : dtype
        Of the work.
    bands : int, optional
        Number of bands; by default as many as there is work for.
    most : int
        Largest number of bands.

    Returns
    -------
    Layout
    """
    (H, W), (K, C, h, w), (sh, sw) = S, atoms, stride
    PH, PW = (H - h) // sh + 1, (W - w) // sw + 1
    one_axis = H == 1
    n, atom, step = (PW, w, sw) if one_axis else (PH, h, sh)
    least = -(-atom // step)  # a band overlaps with its neighbours only
    if bands is None:
        bands = min(most, PH * PW * K * C * h * w // _BAND)
    per = max(least, -(-n // max(1, bands)))
    bands = -(-n // per)
    padded = -(-w // ROW) * ROW
    rows_q, columns = (1, per) if one_axis else (per, PW)
    width = ((per - 1) * sw if one_axis else W - w) + padded
    height = 1 if one_axis else (per - 1) * sh + h
    plane = height * width
    shift = per * sw if one_axis else per * sh * width
    pitch = -(-width // sw)
    tile = 4 * lanes(np.dtype(dtype))
    n_tiles = -(-rows_q * pitch // tile) if not one_axis else -(-columns // tile)
    rows = np.add.outer(np.add.outer(np.arange(C) * plane, np.arange(h) * width), np.arange(0, padded, ROW)).ravel()
    component = -(-height // sh) * pitch
    c, a, b = (i.ravel() for i in np.indices((C, h, w)))
    taps = ((c * sh + a % sh) * sw + b % sw) * component + a // sh * pitch + b // sw
    size = max(C * plane, n_tiles * tile + int(taps.max()) + 1)
    strided = sh * sw > 1
    frame = (C, plane, shift, int(math.log2(tile)), rows.size * ROW, K, pitch, sh * width, sh, sw, width)
    q = np.arange(n_tiles * tile)
    valid = np.zeros((bands, n_tiles), np.uint64)
    for band in range(bands):
        count = min(per, n - band * per)
        inside = q < count if one_axis else (q % pitch < PW) & (q // pitch < count)
        bits = inside.reshape(n_tiles, tile).astype(np.uint64) << np.arange(tile, dtype=np.uint64)
        valid[band] = bits.sum(axis=1, dtype=np.uint64)
    return Layout(
        bands,
        per,
        n_tiles,
        tile,
        size,
        (C, height, width),
        frame,
        rows,
        taps,
        max(size, C * sh * sw * component) if strided else 0,
        valid,
        (rows_q, columns),
    )


def pack_rows(D):
    """Return atoms (K, C, h, w) as one flat array, their rows filled up with zeros to a multiple of ROW."""
    K, C, h, w = D.shape
    out = np.zeros((K, C, h, -(-w // ROW) * ROW), D.dtype)
    out[..., :w] = D
    return out.ravel()


def unpack_rows(flat, shape):
    """Return what `pack_rows` made of an array of this shape."""
    K, C, h, w = shape
    return flat.reshape(K, C, h, -1)[..., :w]


def pack_quads(D):
    """Return atoms (K, C, h, w) flat as (K / 4, taps, 4), with zeros for the atoms that are missing."""
    K = len(D)
    out = np.zeros((-(-K // 4) * 4, D[0].size), D.dtype)
    out[:K] = D.reshape(K, -1)
    return np.ascontiguousarray(out.reshape(-1, 4, out.shape[1]).transpose(0, 2, 1)).ravel()


@dataclass(frozen=True)
class Gram:
    """I / step - A^T S for signals with one axis, in rows of patches.

    Attributes
    ----------
    atoms : ndarray, flat
        For each atom what one code adds to u / step, all atoms, all lags.
    rows : ndarray of int64
        Where those rows go.
    reach : int
        Tiles to either side that a code reaches.
    """

    atoms: np.ndarray
    rows: np.ndarray
    reach: int


def make_gram(analysis, synthesis, step, layout):
    """Return the `Gram` of atoms (K, C, 1, w).

    Parameters
    ----------
    analysis, synthesis : ndarray (K, C, 1, w)
        Dictionaries.
    step : float
        Of a layer.
    layout : Layout
        Of the signals.

    Returns
    -------
    Gram
    """
    K, C, _, w = synthesis.shape
    sw, tile = layout.frame[9], layout.tile
    lags = (w - 1) // sw
    length = -(-(2 * lags + 1) // ROW) * ROW
    padded = np.zeros((K, C, w + 2 * lags * sw))
    padded[..., lags * sw : lags * sw + w] = synthesis[:, :, 0]
    out = np.zeros((K, K, length))
    flat = analysis.astype(np.float64).reshape(K, -1)
    for m in range(2 * lags + 1):
        out[:, :, m] = -padded[..., m * sw : m * sw + w].reshape(K, -1) @ flat.T
    out[np.arange(K), np.arange(K), lags] += 1 / step
    reach = -(-(lags + ROW) // tile)
    line = (layout.n_tiles + 2 * reach) * tile
    rows = np.add.outer(np.arange(K) * line, np.arange(0, length, ROW)).ravel() - lags
    return Gram(out.ravel().astype(synthesis.dtype), rows, reach)


@dataclass(frozen=True)
class Network:
    """All that the layers share.

    Attributes
    ----------
    layout : Layout
        Of the signals.
    n_layers : int
        T.
    ahead, back : ndarray (T + 3,)
        1 + beta_t and beta_t, zero beyond T.
    step : float
        Of a layer, as a scalar of the dtype of the work.
    analysis, synthesis : ndarray, flat
        Dictionaries in rows.
    quads : ndarray, flat
        The analysis dictionary for `correlate_tile`.
    low, high : ndarray (K,)
        Range of u / step whose code is zero.
    gram : Gram or None
        If u is computed from D^T y.
    shape : tuple of int
        (K, C, h, w).
    """

    layout: Layout
    n_layers: int
    ahead: np.ndarray
    back: np.ndarray
    step: np.floating
    analysis: np.ndarray
    synthesis: np.ndarray
    quads: np.ndarray
    low: np.ndarray
    high: np.ndarray
    gram: Gram | None
    shape: tuple


def make_network(y, D, analysis, theta, step, beta, positive, stride, gram):
    """Return the network for signals (n, C, H, W) and dictionaries (K, C, h, w).

    Parameters
    ----------
    y : ndarray (n, C, H, W)
        Signals.
    D, analysis : ndarray (K, C, h, w)
        Dictionaries.
    theta : ndarray () or (K,)
        Thresholds.
    step : float
        Of a layer.
    beta : list of float
        Momenta of the layers.
    positive : bool
        One-sided shrinkage.
    stride : tuple of int
        (sh, sw).
    gram : bool
        Compute u from D^T y; signals of one axis only.

    Returns
    -------
    Network
    """
    dtype = y.dtype
    few = max(1, _MAX_BANDS // len(y))
    layout = make_layout(y.shape[2:], D.shape, stride, dtype, bands=1 if gram else None, most=few)
    ahead, back = np.zeros(len(beta) + 3, dtype), np.zeros(len(beta) + 3, dtype)
    ahead[1:-2], back[1:-2] = np.add(beta, 1), beta
    high = np.broadcast_to(theta.astype(np.float64) / step, len(D)).astype(dtype)
    low = np.full(len(D), -np.inf, dtype) if positive else -high
    return Network(
        layout,
        len(beta),
        ahead,
        back,
        dtype.type(step),
        pack_rows(analysis),
        pack_rows(D),
        pack_quads(analysis),
        low,
        high,
        make_gram(analysis, D, step, layout) if gram else None,
        D.shape,
    )


def gram_pays(correlations, shape, high, stride):
    """Return whether computing u from D^T y costs less than from the residual.

    The costs are cycles, fitted to measurements: the first costs an addition of all lags of all atoms for each
    non-zero, the second a dense correlation and a patch for each non-zero. A quarter of the
    share of non-zeros in the first layer stands for all of them.

    Parameters
    ----------
    correlations : ndarray (n, K, P)
        D^T y.
    shape : tuple of int
        (K, C, s).
    high : ndarray () or (K,)
        Threshold of D^T y.
    stride : int
        Of the codes.

    Returns
    -------
    bool
    """
    K, C, s = shape
    share = 0.25 * np.count_nonzero(np.abs(correlations) > high.reshape(-1, 1)) / correlations.size
    lags = 2 * ((s - 1) // stride) + 1
    by_gram = share * (K * lags / 6 + 20)
    by_residual = 4 * math.ceil(K / 4) / K * C * s / 28 + share * (C * s / 6 + 40)
    return by_gram < by_residual and K * K * lags < 2**22


def share_limit(shape, n_codes):
    """Return the share of non-zeros above which a layer, forward and backward, costs less by dense matrix products.

    The costs are nanoseconds for a code on one core, fitted to measurements in float32 with 8 to 64 atoms. The kernels
    work on patches, in rows filled up to `ROW`, for each non-zero. The products work on all codes, and pass over the
    patches of a position once for all atoms.

    Parameters
    ----------
    shape : tuple of int
        (K, C, *s).
    n_codes : int
        Codes of a layer, of all signals.

    Returns
    -------
    float
        1 where the products never pay: for few codes, whose calls cost more than the work.
    """
    if n_codes * math.prod(shape[1:]) < _LEAST:
        return 1.0
    K, C, *s = shape
    taps, padded = C * math.prod(s), C * math.prod(s[:-1]) * -(-s[-1] // ROW) * ROW
    return min(1.0, (0.4 * taps + 4.6 * taps / K + 7) / (padded + 27))


def to_bands(y, layout):
    """Return a signal (C, H, W) as the flat images of its bands, (n_bands, size).

    Parameters
    ----------
    y : ndarray (C, H, W)
        Signal.
    layout : Layout
        Its layout.

    Returns
    -------
    ndarray (n_bands, size)
    """
    C, height, width = layout.image
    out = np.zeros((layout.n_bands, layout.size), y.dtype)
    for band in range(layout.n_bands):
        part = _band_of(y, band, layout)
        out[band, : C * height * width].reshape(C, height, width)[:, : part.shape[1], : part.shape[2]] = part
    return out


def add_from_bands(y, images, layout):
    """Add the flat images of bands to a signal (C, H, W), in place: the adjoint of `to_bands`."""
    C, height, width = layout.image
    for band in range(layout.n_bands):
        part = _band_of(y, band, layout)
        part += images[band, : C * height * width].reshape(C, height, width)[:, : part.shape[1], : part.shape[2]]


def _band_of(y, band, layout):
    """Return the view of the part of a signal that a band sees."""
    _, height, width = layout.image
    sh, sw = layout.frame[8:10]
    if y.shape[1] == 1:
        start = band * layout.per * sw
        return y[:, :, start : start + width]
    start = band * layout.per * sh
    return y[:, start : start + height]
