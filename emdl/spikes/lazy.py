"""Recordings that are read when they are sliced, so that their length costs no memory."""

import numpy as np


class Lazy:
    """Samples of a recording, shape (C, N), that look like an array and are read slice by slice.

    Parameters
    ----------
    read : callable
        ``read(a, b)`` returns samples [a, b) of all channels, (C, b - a).
    shape : (int, int)
        Channels and samples.
    dtype : dtype
        Of what comes back, in native byte order.
    """

    ndim = 2

    def __init__(self, read, shape, dtype):
        self._read, self.shape, self.dtype = read, tuple(map(int, shape)), np.dtype(dtype).newbyteorder("=")

    def __len__(self):
        return self.shape[0]

    def __repr__(self):
        return f"Lazy(shape={self.shape}, dtype={self.dtype})"

    @property
    def size(self):
        """Number of values, C N."""
        return self.shape[0] * self.shape[1]

    def __getitem__(self, key):
        """Return rows and columns as NumPy does for ``x[c]``, ``x[:, a:b]``, ``x[rows, n]``."""
        rows, columns = key if isinstance(key, tuple) else (key, slice(None))
        if isinstance(columns, slice):
            a, b, step = columns.indices(self.shape[1])
            if step < 0:
                raise IndexError("a recording is read forwards, got a negative step")
            return self._span(a, max(a, b))[:, ::step][rows]
        at = np.asarray(columns)
        at = np.where(at < 0, at + self.shape[1], at)
        if at.size and not (at.min() >= 0 and at.max() < self.shape[1]):
            raise IndexError(f"sample {at.max()} of a recording of {self.shape[1]}")
        first = int(at.min(initial=self.shape[1]))
        return self._span(first, max(first, int(at.max(initial=-1)) + 1))[:, at - first][rows]

    def _span(self, a, b):
        if a == b:
            return np.empty((self.shape[0], 0), self.dtype)
        return np.asarray(self._read(a, b)).astype(self.dtype, copy=False)

    def __array__(self, dtype=None, copy=None):
        whole = self._span(0, self.shape[1])
        return whole if dtype is None else whole.astype(dtype, copy=False)


class Stored:
    """An HDF5 data set (A, B), or (N,) as one row, before it is known which axis is time; ``.T`` turns it round."""

    def __init__(self, dataset, turned=False):
        self._dataset, self._turned = dataset, turned
        self.shape = tuple(dataset.shape[::-1] if turned else dataset.shape)
        self.ndim, self.dtype, self.size = len(self.shape), dataset.dtype, int(np.prod(self.shape))

    @property
    def T(self):
        """The same with the other axis first."""
        return Stored(self._dataset, not self._turned)

    def lazy(self):
        """Return it as `Lazy` of shape (C, N), the first axis being channels."""
        stored = self._dataset
        if self.ndim == 1:
            return Lazy(lambda a, b: stored[a:b][None], (1, *self.shape), stored.dtype)
        if self._turned:
            return Lazy(lambda a, b: stored[a:b].T, self.shape, stored.dtype)
        return Lazy(lambda a, b: stored[:, a:b], self.shape, stored.dtype)


def take_channels(data, channels):
    """Return some channels of a recording, without reading it.

    Parameters
    ----------
    data : ndarray, memmap or Lazy, shape (C, N)
        Recording.
    channels : array of int
        Which, in which order.

    Returns
    -------
    Lazy
    """
    channels = np.asarray(channels, int)
    return Lazy(lambda a, b: data[:, a:b][channels], (len(channels), data.shape[1]), data.dtype)


def scaled(data, gain, offset=0.0):
    """Return ``gain * data + offset`` as float32, computed slice by slice.

    Parameters
    ----------
    data : ndarray, memmap or Lazy, shape (C, N)
        Recording.
    gain, offset : float or array (C,)
        Of each channel.

    Returns
    -------
    Lazy
    """
    C = data.shape[0]
    gain, offset = (np.broadcast_to(np.asarray(v, np.float32), C)[:, None] for v in (gain, offset))
    return Lazy(lambda a, b: data[:, a:b].astype(np.float32) * gain + offset, data.shape, np.float32)


def bridged(data, gaps):
    """Return the recording with each gap replaced by the straight line between the samples on its two sides.

    Parameters
    ----------
    data : ndarray, memmap or Lazy, shape (C, N)
        Recording.
    gaps : array (m, 2) of int
        First sample of each and the one after its last, increasing, not all of the recording.

    Returns
    -------
    Lazy
        Of the same dtype.
    """
    N = data.shape[1]
    before, after = gaps[:, 0] - 1, np.where(gaps[:, 1] < N, gaps[:, 1], gaps[:, 0] - 1)
    before = np.where(before >= 0, before, after)
    edge = np.array([[data[:, i] for i in pair] for pair in zip(before.tolist(), after.tolist(), strict=True)], float)

    def read(a, b):
        x = np.array(data[:, a:b])
        first, last = np.searchsorted(gaps[:, 1], a, "right"), np.searchsorted(gaps[:, 0], b, "left")
        for i in range(first, last):
            start, stop = max(a, gaps[i, 0]), min(b, gaps[i, 1])
            part = (np.arange(start, stop) - before[i]) / max(after[i] - before[i], 1)
            line = edge[i, 0][:, None] * (1 - part) + edge[i, 1][:, None] * part
            x[:, start - a : stop - a] = np.rint(line) if x.dtype.kind in "iu" else line
        return x

    return Lazy(read, data.shape, data.dtype)


def joined(data, pieces):
    """Return stretches of a recording one after another.

    Parameters
    ----------
    data : ndarray, memmap or Lazy, shape (C, N)
        Recording.
    pieces : array (m, 2) of int
        First sample of each stretch and the one after its last.

    Returns
    -------
    Lazy
        Of shape (C, sum of their lengths).
    """
    end = np.cumsum(pieces[:, 1] - pieces[:, 0])
    begin = end - (pieces[:, 1] - pieces[:, 0])

    def read(a, b):
        chosen = range(int(np.searchsorted(end, a, "right")), int(np.searchsorted(begin, b, "left")))
        spans = [(pieces[i, 0] + max(a, begin[i]) - begin[i], pieces[i, 0] + min(b, end[i]) - begin[i]) for i in chosen]
        return np.concatenate([data[:, int(s) : int(t)] for s, t in spans], axis=1)

    return Lazy(read, (data.shape[0], int(end[-1])), data.dtype)


def chained(parts):
    """Return recordings of the same channels one after another, for instance the segments of one session.

    Parameters
    ----------
    parts : list of array (C, N_i)
        Recordings.

    Returns
    -------
    Lazy
        Of shape (C, sum of N_i).
    """
    end = np.cumsum([part.shape[1] for part in parts])
    begin = end - [part.shape[1] for part in parts]

    def read(a, b):
        chosen = range(int(np.searchsorted(end, a, "right")), int(np.searchsorted(begin, b, "left")))
        return np.concatenate([parts[i][:, max(0, a - begin[i]) : b - begin[i]] for i in chosen], axis=1)

    return Lazy(read, (parts[0].shape[0], int(end[-1])), parts[0].dtype)
