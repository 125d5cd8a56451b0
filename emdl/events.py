"""Where something happens in signals, and what it looks like there: windows around local maxima of the energy.

All on the host: there are few events, however long the signals are.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Layout:
    """How atoms lie in signals.

    Attributes
    ----------
    atom_shape : tuple of int
        Samples along each axis, s.
    stride : tuple of int
        Distance of neighbouring code positions along each axis.
    positive : bool
        Whether codes are non-negative.
    """

    atom_shape: tuple
    stride: tuple
    positive: bool

    @property
    def margin(self):
        """Half an atom along each axis, rounded up to whole strides: how far an event is moved or looked beyond."""
        return tuple(-(-s // (2 * t)) * t for s, t in zip(self.atom_shape, self.stride, strict=True))

    @property
    def long_shape(self):
        """Samples of an atom with a margin on both sides."""
        return tuple(s + 2 * m for s, m in zip(self.atom_shape, self.margin, strict=True))


def peaks(y, layout, sigma):
    """Return the places where the energy of the signals has a local maximum that white noise does not reach.

    The energy is weighted by a Hann window of the length of an atom, so that it is largest where an event lies in the
    middle.

    Parameters
    ----------
    y : ndarray (n, C, *S)
        Signals.
    layout : Layout
        Of the atoms; places lie on the lattice of the codes.
    sigma : float
        Noise standard deviation, data unit. A large value leaves only strong events.

    Returns
    -------
    ndarray (m, 1 + n_axes) of int
        Signal, and the code position of an atom that lies on the event. No two lie nearer than half an atom.
    """
    from scipy.ndimage import correlate1d, maximum_filter

    shape, stride, n_channels = layout.atom_shape, layout.stride, y.shape[1]
    weights = [np.hanning(s + 2)[1:-1] for s in shape]
    energy = np.square(y, dtype=np.float64).sum(axis=1)
    for axis, weight in enumerate(weights):
        energy = correlate1d(energy, weight, axis=axis + 1, mode="constant")
    inside = (slice(s // 2, s // 2 + S - s + 1, t) for s, S, t in zip(shape, y.shape[2:], stride, strict=True))
    energy = energy[(slice(None), *inside)]
    near = (2 * max(1, s // (2 * t)) - 1 for s, t in zip(shape, stride, strict=True))
    mean = n_channels * np.prod([w.sum() for w in weights]) * sigma**2
    spread = np.sqrt(2 * n_channels * np.prod([(w**2).sum() for w in weights])) * sigma**2
    return np.argwhere((energy == maximum_filter(energy, (1, *near), mode="constant")) & (energy > mean + 4 * spread))


def windows(y, place, layout):
    """Return what lies around the places: windows of an atom and two margins on both sides, zero outside the signals.

    Parameters
    ----------
    y : ndarray (n, C, *S)
        Signals.
    place : ndarray (m, 1 + n_axes) of int
        As from `peaks`.
    layout : Layout
        Of the atoms.

    Returns
    -------
    ndarray (m, C, *(s + 4 margin))
    """
    around = tuple(2 * m for m in layout.margin)
    size = [s + 2 * m for s, m in zip(layout.atom_shape, around, strict=True)]
    return crop(padded(y, around), place[:, 1:] * np.array(layout.stride), size, place[:, 0])


def padded(x, around):
    """Return an array (a, b, *S) with `around` zeros on both sides of each axis of S.

    Parameters
    ----------
    x : ndarray (a, b, *S)
        Signals or atoms.
    around : sequence of int
        Along each axis of S.

    Returns
    -------
    ndarray (a, b, *(S + 2 around))
    """
    return np.pad(x, [(0, 0), (0, 0), *((m, m) for m in around)])


def box(corner, shape, row=None):
    """Return the index of a box in each row of an array (n, *S, b), the channels being its last axis.

    Parameters
    ----------
    corner : ndarray (m, n_axes) of int
        Where each box begins.
    shape : sequence of int
        Its size along each axis.
    row : ndarray (m,) of int, optional
        Row of each box; by default 0, 1, 2, ...

    Returns
    -------
    tuple of ndarray
        Broadcasts to (m, *shape).
    """
    n_axes = len(shape)
    index = [(np.arange(len(corner)) if row is None else row).reshape(-1, *[1] * n_axes)]
    for axis, size in enumerate(shape):
        taps = np.arange(size).reshape(1, *(-1 if a == axis else 1 for a in range(n_axes)))
        index.append(corner[:, axis].reshape(-1, *[1] * n_axes) + taps)
    return tuple(index)


def crop(x, corner, shape, row=None):
    """Return boxes cut from an array (n, C, *S); see `box`.

    Parameters
    ----------
    x : ndarray (n, C, *S)
        Signals or windows.
    corner, shape, row
        As in `box`.

    Returns
    -------
    ndarray (m, C, *shape)
    """
    at = box(corner, shape, row)
    return np.ascontiguousarray(np.moveaxis(x[(at[0], slice(None), *at[1:])], -1, 1))


def strongest_part(long_atoms, layout, *, slack=0.01):
    """Return the part of each long atom that holds most energy.

    Of all parts that hold nearly as much the one nearest to the middle is taken, so that noise does not drive short
    content about.

    Parameters
    ----------
    long_atoms : ndarray (K, C, *L)
        Atoms with a margin on both sides.
    layout : Layout
        Parts begin at multiples of the stride.
    slack : float or array (K,)
        Share of the energy that being in the middle is worth.

    Returns
    -------
    parts : ndarray (K, C, *s)
    corner : ndarray (K, n_axes) of int
        Where they begin.
    """
    shape, n_axes = layout.atom_shape, len(layout.atom_shape)
    energy = np.square(long_atoms, dtype=np.float64).sum(axis=1)
    for axis, s in enumerate(shape, 1):  # running sums of s samples
        total = np.insert(np.cumsum(energy, axis), 0, 0, axis)
        energy = np.moveaxis(np.moveaxis(total, axis, 0)[s:] - np.moveaxis(total, axis, 0)[:-s], 0, axis)
    energy = energy[(slice(None), *(slice(None, None, t) for t in layout.stride))]
    off = [abs(np.arange(size) - (size - 1) // 2) / size for size in energy.shape[1:]]
    off = sum(o.reshape([-1 if a == axis else 1 for a in range(n_axes)]) for axis, o in enumerate(off))
    flat = energy.reshape(len(energy), -1)
    enough = (1 - np.reshape(slack, (-1, 1))) * flat.max(axis=1, keepdims=True)
    best = np.where(flat >= enough, n_axes - off.ravel(), -1).argmax(axis=1)
    corner = np.stack(np.unravel_index(best, energy.shape[1:]), axis=1) * np.array(layout.stride)
    return crop(long_atoms, corner, shape), corner
