"""The unrolled encoder on the bands of a signal: what `layers` works on, and the threads."""

import functools
import math
from dataclasses import dataclass

import numpy as np

from emdl._kernels import layers
from emdl._kernels.vectors import ROW, lanes
from emdl.backend import parallel_map

_BAND = 20_000_000  # multiplications of one layer on one band: long against the cost of handing it to a thread
_MAX_BANDS = 16
_LEAN = 0.3  # samples in the patches of the last codes, per sample of the signal, below which patches are mixed alone
_GUESS = 0.25  # share of non-zeros for which there is room at first; memory that is not written costs nothing


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
class Segment:
    """The codes of consecutive layers of one signal.

    Attributes
    ----------
    first : int
        Number of the first layer; layers 0 and -1 have no codes.
    bands : tuple of (ndarray, ndarray, ndarray)
        `offs` (layers, n_tiles + 1), `index`, `value` of each band.
    """

    first: int
    bands: tuple

    @property
    def end(self):
        """Number of the layer after the last one."""
        return self.first + len(self.bands[0][0])

    def cut(self, first, end):
        """Return the layers first ... end - 1 alone, copied."""
        bands = []
        for offs, index, value in self.bands:
            part = offs[first - self.first : end - self.first]
            a, b = part[0, 0], part[-1, -1]
            bands.append((part - a, index[a:b].copy(), value[a:b].copy()))
        return Segment(first, tuple(bands))


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


def decode(net, segment, layer, width):
    """Return the codes of one layer of one signal as `SparseCodes` numbers them, ``position * K + atom``.

    Parameters
    ----------
    net : Network
        The network.
    segment : Segment
        That holds the layer.
    layer : int
        Its number.
    width : int
        Positions along the last axis.

    Returns
    -------
    index : ndarray of int64, increasing
    value : ndarray
    """
    parts = [places(net, segment, layer, band, width) for band in range(net.layout.n_bands)]
    values = [value[order] for (_, order), (_, _, value) in zip(parts, segment.bands, strict=True)]
    return np.concatenate([index for index, _ in parts]), np.concatenate(values)


def places(net, segment, layer, band, width):
    """Return the codes of one layer in one band as ``position * K + atom``, increasing, and the entries they stand in.

    Parameters
    ----------
    net : Network
        The network.
    segment : Segment
        That holds the layer.
    layer, band : int
        Which.
    width : int
        Positions along the last axis.

    Returns
    -------
    index, order : ndarray of int64
    """
    layout = net.layout
    offs, index, _ = segment.bands[band]
    row = offs[layer - segment.first]
    number, order = np.empty(row[-1] - row[0], np.int64), np.empty(row[-1] - row[0], np.int64)
    start = band * layout.per * (1 if layout.q_shape[0] == 1 else width)
    layers.sort_codes(row, index, start, width, layout.frame, number, order)
    return number, order


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


def run_forward(net, y, correlations, start, end):
    """Return the codes of the layers after `start` up to `end` of one signal.

    Parameters
    ----------
    net : Network
        The network.
    y : ndarray (n_bands, size)
        Signal, in bands.
    correlations : ndarray (K, PW) or None
        D^T y, for a network with `gram`.
    start : Segment
        The codes of two layers; the layer after them is the first to be computed.
    end : int
        The last layer to be computed.

    Returns
    -------
    Segment
        The layers of `start` and the new ones.
    """
    layout, first = net.layout, start.first
    n = layout.n_bands
    room = layout.tile * net.shape[0]
    stores = []
    for offs, index, value in start.bands:
        all_offs = np.zeros((end - first + 1, layout.n_tiles + 1), np.int64)
        all_offs[:2] = offs
        guess = int(_GUESS * (end - first) * layout.n_tiles * room) + index.size + 2 * room
        stores.append([all_offs, _grown(index, guess), _grown(value, guess)])
    if net.gram is not None:
        run = _gram_runner(net, correlations, first, stores)
    else:
        run = _residual_runner(net, y, first, stores)
    t = first + 2
    while t <= end:
        stop = end + 1 if n == 1 else t + 1
        parallel_map(functools.partial(_run_band, run, stores, t, stop), range(n))
        t = stop
    return Segment(first, tuple((offs, index[: offs[-1, -1]], value[: offs[-1, -1]]) for offs, index, value in stores))


def _run_band(run, stores, t, stop, band):
    """Run layers of a band, giving it more room where it needs it."""
    store = stores[band]
    while t < stop:
        t = run(band, t, stop)
        if t < stop:
            store[1:] = [_grown(x, 2 * x.size) for x in store[1:]]


def _grown(x, size):
    out = np.empty(size, np.uint16 if x.dtype.kind == "u" else x.dtype)
    out[: x.size] = x
    return out


def _residual_runner(net, y, first, stores):
    layout, dtype = net.layout, y.dtype
    n = layout.n_bands
    images = np.zeros((3, n, layout.size), dtype)
    for band, (offs, index, value) in enumerate(stores):
        for t in (first, first + 1):
            layers.draw(first, t, offs, index, value, net.synthesis, layout.rows, layout.frame, images[t % 3, band])
    r, phases, buffer = (
        np.zeros((n, layout.size), dtype),
        np.zeros((n, layout.phases), dtype),
        np.zeros((n, 4 * layout.tile), dtype),
    )

    def run(band, t, stop):
        return layers.forward(
            t,
            stop,
            first,
            net.ahead,
            net.back,
            net.step,
            band,
            y,
            images,
            r[band],
            phases[band],
            layout.taps,
            net.quads,
            net.synthesis,
            layout.rows,
            net.low,
            net.high,
            layout.valid[band],
            buffer[band],
            layout.frame,
            *stores[band],
        )

    return run


def _gram_runner(net, correlations, first, stores):
    layout, gram, dtype = net.layout, net.gram, correlations.dtype
    K, P = correlations.shape
    line = layout.n_tiles * layout.tile
    b = np.zeros((K, line), dtype)
    b[:, :P] = correlations
    loud = (b > net.high[:, None]) | (b < net.low[:, None])
    quiet = ~loud.reshape(K, layout.n_tiles, layout.tile).any(axis=(0, 2))
    total = np.zeros(K * (line + 2 * gram.reach * layout.tile), dtype)
    w, buffer = np.zeros(K * layout.tile, dtype), np.zeros(layout.tile, dtype)

    def run(band, t, stop):
        return layers.gram_forward(
            t,
            stop,
            first,
            net.ahead,
            net.back,
            net.step,
            b.ravel(),
            gram.atoms,
            gram.rows,
            gram.reach,
            net.low,
            net.high,
            layout.valid[0],
            quiet,
            total,
            w,
            buffer,
            layout.frame,
            *stores[band],
        )

    return run


def empty_start(net, dtype):
    """Return the segment of the layers -1 and 0, which have no codes."""
    offs = np.zeros((2, net.layout.n_tiles + 1), np.int64)
    nothing = (offs, np.zeros(0, np.uint16), np.zeros(0, dtype))
    return Segment(-1, (nothing,) * net.layout.n_bands)


class Return:
    """The way back through the layers of one signal: workspaces and sums.

    Attributes
    ----------
    g_analysis, g_synthesis : ndarray (n_bands, K * atom) of float64
        Gradients of the dictionaries, in rows.
    g_theta : ndarray (n_bands, K) of float64
        Gradient of the thresholds.
    g_y : ndarray (n_bands, size)
        Gradient of the signal.
    g_step : ndarray (n_bands,) of float64
        Gradient of the step.
    """

    def __init__(self, net, y, slopes):
        """Begin at the last layer, where the gradient of each non-zero code is given: a list, band by band."""
        layout, dtype = net.layout, y.dtype
        n, T = layout.n_bands, net.n_layers
        self.net, self.y = net, y
        self.q, self.images = np.zeros((3, n, layout.size), dtype), np.zeros((3, n, layout.size), dtype)
        self.r, self.g = np.zeros((n, layout.size), dtype), np.zeros((n, layout.size), dtype)
        self.slopes = [np.zeros((3, len(s)), dtype) for s in slopes]
        for mine, given in zip(self.slopes, slopes, strict=True):
            mine[T % 3] = given
        # images are mixed as a whole only where their samples are fewer than those of the patches
        self.lean = n == 1 and len(slopes[0]) * net.layout.rows.size * ROW < _LEAN * layout.size
        self.in_order = ROW * np.arange(layout.rows.size)
        self.nothing = np.zeros((n, layout.size), dtype)
        self.dense = np.zeros((n, net.shape[0] * layout.tile), dtype)
        self.flat = np.zeros((n, 2, net.synthesis.size), dtype)
        self.g_analysis, self.g_synthesis = np.zeros((n, net.synthesis.size)), np.zeros((n, net.synthesis.size))
        self.g_theta, self.g_step = np.zeros((n, net.shape[0])), np.zeros(n)
        self.g_y = np.zeros((n, layout.size), dtype)

    def run(self, segment, t, end, stop):
        """Go back through the layers t ... end, which `segment` holds, with the two before and after each."""
        net, first = self.net, segment.first
        layout = net.layout
        for band, (offs, index, value) in enumerate(segment.bands):
            for s in (t - 1, t - 2):
                layers.draw(
                    first, s, offs, index, value, net.synthesis, layout.rows, layout.frame, self.images[s % 3, band]
                )
            most = int((offs[:, -1] - offs[:, 0]).max())
            if most > self.slopes[band].shape[1]:
                wide = np.zeros((3, most), self.y.dtype)
                wide[:, : self.slopes[band].shape[1]] = self.slopes[band]
                self.slopes[band] = wide

        def one(t, end, band):
            layers.backward(
                t,
                end,
                stop,
                net.n_layers,
                first,
                net.ahead,
                net.back,
                net.step,
                band,
                self.y,
                self.images,
                self.q,
                self.r[band],
                self.g[band],
                self.nothing,
                self.lean,
                self.in_order,
                self.dense[band],
                net.analysis,
                net.synthesis,
                layout.rows,
                layout.frame,
                *segment.bands[band],
                self.slopes[band],
                self.flat[band, 0],
                self.flat[band, 1],
                self.g_analysis[band],
                self.g_synthesis[band],
                self.g_theta[band],
                self.g_y[band],
                self.g_step,
            )

        while t >= end:
            last = end if layout.n_bands == 1 else t
            parallel_map(functools.partial(one, t, last), range(layout.n_bands))
            t = last - 1


def go_back(net, y, correlations, segments, every, g_z, width, stop):
    """Return the finished `Return` through the layers T ... stop of one signal.

    Parameters
    ----------
    net : Network
        The network.
    y : ndarray (n_bands, size)
        Signal, in bands.
    correlations : ndarray (K, PW) or None
        D^T y, for a network with `gram` and checkpoints.
    segments : list of Segment
        What the forward pass kept.
    every : int
        Distance of the checkpoints.
    g_z : ndarray (K, P), or (n_nonzero,) as `decode` orders them
        Gradient of the last codes.
    width : int
        Positions along the last axis.
    stop : int
        The earliest layer.

    Returns
    -------
    Return
    """
    T, last, K = net.n_layers, segments[-1], net.shape[0]
    slopes, done = [], 0
    for band in range(net.layout.n_bands):
        index, order = places(net, last, T, band, width)
        own = np.empty(len(index), y.dtype)
        origin = last.bands[band][0][T - last.first, 0]
        own[order - origin] = g_z[done : done + len(index)] if g_z.ndim == 1 else g_z[index % K, index // K]
        slopes.append(own)
        done += len(index)
    way = Return(net, y, slopes)
    for number in reversed(range(-(-T // every))):
        first, end = number * every + 1, min(T, (number + 1) * every)
        if end < stop:
            break
        # two layers more than those of the segment: (3) at layer t needs the codes of t + 1 and t + 2
        segment = segments[0] if every == T else run_forward(net, y, correlations, segments[number], min(T, end + 2))
        way.run(segment, end, max(1, stop - 2) if first <= stop else first, stop)
    return way
