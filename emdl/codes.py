"""The non-zeros of codes."""

import math
from dataclasses import dataclass

import numpy as np

from emdl.backend import array_module
from emdl.errors import InputError


@dataclass(frozen=True)
class SparseCodes:
    """Codes of n signals, of which only the non-zeros are stored, signal by signal and position by position.

    Attributes
    ----------
    shape : tuple of int
        (n, K, *P), the shape of the dense codes.
    start : ndarray (n + 1,) of int64
        Signal i has the entries ``start[i]:start[i + 1]``.
    index : ndarray (n_nonzero,) of int64
        ``position * K + atom``, with the position in C order over P; increasing within a signal.
    value : ndarray (n_nonzero,)
        The codes, data unit.
    """

    shape: tuple
    start: np.ndarray
    index: np.ndarray
    value: np.ndarray

    @property
    def n_nonzero(self):
        """Number of stored codes."""
        return int(self.start[-1])

    @classmethod
    def from_dense(cls, z):
        """Return the non-zeros of a dense array; those of an array on a GPU are found there and brought to the host.

        Parameters
        ----------
        z : array (n, K, *P)
            Codes.

        Returns
        -------
        SparseCodes
        """
        n, K = z.shape[:2]
        xp = array_module(z)
        flat = xp.moveaxis(z.reshape(n, K, -1), 1, 2).reshape(n, -1)
        row, index = xp.nonzero(flat)
        value = flat[row, index]
        if xp is not np:
            row, index, value = row.get(), index.get(), value.get()
        start = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=n))]).astype(np.int64)
        return cls(z.shape, start, index.astype(np.int64), np.ascontiguousarray(value))

    @classmethod
    def stack(cls, shape, pieces, dtype):
        """Return the codes of n signals from one (index, value) pair for each.

        Parameters
        ----------
        shape : tuple of int
            (n, K, *P).
        pieces : list of (ndarray, ndarray)
            `index` and `value` of each signal.
        dtype : dtype
            Of the values.

        Returns
        -------
        SparseCodes
        """
        if len(pieces) != shape[0]:
            raise InputError(f"got codes of {len(pieces)} signals, wanted {shape[0]}")
        start = np.zeros(len(pieces) + 1, np.int64)
        start[1:] = np.cumsum([len(index) for index, _ in pieces])
        index = np.concatenate([np.zeros(0, np.int64), *(i for i, _ in pieces)])
        value = np.concatenate([np.zeros(0, dtype), *(v for _, v in pieces)]).astype(dtype, copy=False)
        return cls(tuple(shape), start, index, value)

    def check(self, name):
        """Raise unless these are codes: kernels take the indices without looking.

        Parameters
        ----------
        name : str
            What the caller calls them, for the message.

        Raises
        ------
        InputError
            If starts or indices do not increase, leave the shape, or do not fit the values; or a value is not finite.
        """
        start, index, value = self.start, self.index, self.value
        n, size = self.shape[0], math.prod(self.shape[1:])
        good = start.shape == (n + 1,) and index.shape == value.shape == (len(index),)
        good = good and start.dtype == index.dtype == np.int64 and value.dtype.kind == "f"
        good = good and start[0] == 0 and start[-1] == len(index) and bool((start[1:] >= start[:-1]).all())
        good = good and bool(((index >= 0) & (index < size)).all())
        if good:
            place = np.repeat(np.arange(n), np.diff(start)) * size + index
            good = bool((place[1:] > place[:-1]).all()) and bool(np.isfinite(value).all())
        if not good:
            raise InputError(
                f"{name} holds no codes of shape {tuple(self.shape)}: they must be those of a fit or encode"
            )

    def dense(self):
        """Return the codes as an array (n, K, *P).

        Returns
        -------
        ndarray (n, K, *P)
        """
        n, K = self.shape[:2]
        z = np.zeros((n, K, int(np.prod(self.shape[2:]))), self.value.dtype)
        row = np.repeat(np.arange(n), np.diff(self.start))
        z[row, self.index % K, self.index // K] = self.value
        return z.reshape(self.shape)

    def signal(self, i):
        """Return `index` and `value` of signal `i`.

        Parameters
        ----------
        i : int
            Which signal.

        Returns
        -------
        tuple of ndarray
        """
        entries = slice(self.start[i], self.start[i + 1])
        return self.index[entries], self.value[entries]

    def take(self, rows):
        """Return the codes of some of the signals.

        Parameters
        ----------
        rows : sequence of int
            Which signals, in which order.

        Returns
        -------
        SparseCodes (len(rows), K, *P)
        """
        return SparseCodes.stack((len(rows), *self.shape[1:]), [self.signal(i) for i in rows], self.value.dtype)

    def l1(self):
        """Return ||z_k||_1 for each atom, summed over the signals.

        Returns
        -------
        ndarray (K,) of float64
        """
        K = self.shape[1]
        return np.bincount(self.index % K, np.abs(self.value).astype(np.float64), minlength=K)
