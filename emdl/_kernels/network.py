"""The unrolled encoder, forward and backward, on one signal: workspaces, memory for the codes, threads."""

import functools
from dataclasses import dataclass

import numpy as np

from emdl._kernels import layers
from emdl._kernels.vectors import ROW
from emdl.backend import parallel_map

# samples in the patches of the last codes, per sample of the signal, below which patches are mixed alone
_LEAN = 0.3
_GUESS = 0.05  # share of non-zeros, in a few layers more than there are, for which there is room at first


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
        guess = int(_GUESS * (end - first + 8) * layout.n_tiles * room) + index.size + 2 * room
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
            t, stop, first, net.ahead, net.back, net.step, band, y, images, r[band], phases[band], layout.taps,
            net.quads, net.synthesis, layout.rows, net.low, net.high, layout.valid[band], buffer[band],
            layout.frame, *stores[band],
        )  # fmt: skip

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
            t, stop, first, net.ahead, net.back, net.step, b.ravel(), gram.atoms, gram.rows, gram.reach, net.low,
            net.high, layout.valid[0], quiet, total, w, buffer, layout.frame, *stores[band],
        )  # fmt: skip

    return run


def empty_start(net, dtype):
    """Return the segment of the layers -1 and 0, which have no codes."""
    offs = np.zeros((2, net.layout.n_tiles + 1), np.int64)
    nothing = (offs, np.zeros(0, np.uint16), np.zeros(0, dtype))
    return Segment(-1, (nothing,) * net.layout.n_bands)


def start_at(net, first, codes):
    """Return the segment of two layers whose codes are dense, for `run_forward` to go on from.

    Parameters
    ----------
    net : Network
        The network.
    first : int
        Number of the first of the two layers.
    codes : list of ndarray (K, rows, columns)
        Codes of one signal.

    Returns
    -------
    Segment
    """
    layout, packed = net.layout, []
    for band in range(layout.n_bands):
        inside = np.s_[band * layout.per : (band + 1) * layout.per]
        parts = [np.ascontiguousarray(z[:, :, inside] if z.shape[1] == 1 else z[:, inside]) for z in codes]
        size = sum(np.count_nonzero(part) for part in parts)
        offs, index = np.zeros((len(codes), layout.n_tiles + 1), np.int64), np.empty(size, np.uint16)
        value, count = np.empty(size, codes[0].dtype), 0
        for row, part in zip(offs, parts, strict=True):
            count = layers.pack_codes(part, layout.frame, row, index, value, count)
        packed.append((offs, index, value))
    return Segment(first, tuple(packed))


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
                t, end, stop, net.n_layers, first, net.ahead, net.back, net.step, band, self.y, self.images, self.q,
                self.r[band], self.g[band], self.nothing, self.lean, self.in_order, self.dense[band], net.analysis,
                net.synthesis, layout.rows, layout.frame, *segment.bands[band], self.slopes[band], self.flat[band,
                0], self.flat[band, 1], self.g_analysis[band], self.g_synthesis[band], self.g_theta[band],
                self.g_y[band], self.g_step,
            )  # fmt: skip

        self.segment = segment
        while t >= end:
            last = end if layout.n_bands == 1 else t
            parallel_map(functools.partial(one, t, last), range(layout.n_bands))
            t = last - 1

    def slopes_of(self, layer, width):
        """Return the gradient of u of one of the two layers gone through before the constants, as `decode` does."""
        net, parts = self.net, []
        for band, (offs, _, _) in enumerate(self.segment.bands):
            index, order = places(net, self.segment, layer, band, width)
            parts.append((index, self.slopes[band][layer % 3][order - offs[layer - self.segment.first, 0]]))
        return tuple(np.concatenate(x) for x in zip(*parts, strict=True))


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
