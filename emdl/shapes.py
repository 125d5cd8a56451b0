"""Shapes that occur again and again: k-means of windows, up to shift, scale and (two-sided codes) sign."""

import numpy as np

from emdl.events import box, crop, padded, strongest_part
from emdl.ops import analyze_full
from emdl.optim import normalize_atoms

_TRIALS = 4  # windows tried for each first shape; one that holds two overlapping events explains few others, and loses


def cluster(windows, D, layout, floor, *, n_iter=12):
    r"""Return the shapes that explain most of the windows' energy, each window being one shifted and scaled shape.

    Minimises :math:`\sum_i \min_{k, a, \tau} \|x_i - a\, d_k(\cdot - \tau)\|^2` by turns: the best shape, shift and
    weight of each window; then each shape as the weighted mean of its windows, aligned, and moved to where their energy
    lies.

    Parameters
    ----------
    windows : ndarray (m, C, *(s + 4 margin))
        From `emdl.events.windows`.
    D : ndarray (K, C, *s)
        Shapes of unit norm to start from.
    layout : Layout
        Of the atoms.
    floor : float
        Windows in which no shape is stronger have no say, data unit.
    n_iter : int
        Most turns.

    Returns
    -------
    D : ndarray (K, C, *s)
        A shape without windows comes back as it was.
    gain : ndarray (K,)
        sum max(a - floor, 0)^2 / 2 over the windows of each shape: by how much one code for each lowers the objective
        (in units of half a squared error) at the penalty `floor`.
    """
    K, m, C = len(D), len(windows), windows.shape[1]
    owner = np.full(m, -1)
    for _ in range(n_iter):
        before = owner
        owner, weight, corner = _match(windows, D, layout)
        if (owner == before).all():
            break
        share = np.zeros((K, m), windows.dtype)
        share[owner, np.arange(m)] = np.where(_strength(weight, layout) > floor, weight, 0)
        mean = share @ crop(windows, corner, layout.long_shape).reshape(m, -1)
        moved, _ = strongest_part(mean.reshape(K, C, *layout.long_shape), layout)
        used = (share != 0).any(axis=1)
        D = np.where(used.reshape(-1, *[1] * (D.ndim - 1)), normalize_atoms(moved), D)
    return D, np.bincount(owner, half_square(_strength(weight, layout), floor), minlength=K)


def first_shapes(windows, count, layout, rng):
    """Return windows to start `cluster` from, drawn with chances as the energy that those before leave over [1]_.

    Parameters
    ----------
    windows : ndarray (m, C, *(s + 4 margin))
        From `emdl.events.windows`.
    count : int
        Number of shapes.
    layout : Layout
        Of the atoms.
    rng : Generator
        Source of the random choices.

    Returns
    -------
    ndarray (count, C, *s)
        Unit norm; fewer if fewer windows explain everything.

    References
    ----------
    .. [1] D. Arthur, S. Vassilvitskii, k-means++: the advantages of careful seeding, SODA 2007 (the greedy variant).
    """
    corner = np.tile([2 * a for a in layout.margin], (len(windows), 1))
    middle = crop(windows, corner, layout.atom_shape)
    energy = np.square(middle, dtype=np.float64).reshape(len(middle), -1).sum(axis=1)
    left, shapes = energy, []
    while len(shapes) < count and left.sum() > 0:
        tried = rng.choice(len(left), _TRIALS, p=left / left.sum())
        new = normalize_atoms(middle[tried])
        most = _correlate(windows, new, layout).reshape(len(windows), len(new), -1)
        most = _strength(most, layout).max(axis=2).astype(np.float64)
        after = np.minimum(left[:, None], np.maximum(energy[:, None] - np.maximum(most, 0) ** 2, 0))
        after[tried, np.arange(len(tried))] = 0
        best = after.sum(axis=0).argmin()
        left = after[:, best]
        shapes.append(new[best])
    return np.stack(shapes)


def substitutes(D, layout, *, n_terms=3):
    """Return how the other atoms can stand in for each atom: a matching pursuit of the atom by shifted copies of them.

    A duplicate needs one term of weight 1, a compound of two atoms two terms; an atom of its own keeps a residual.

    Parameters
    ----------
    D : ndarray (K, C, *s)
        Atoms of unit norm.
    layout : Layout
        Of the atoms.
    n_terms : int
        Copies for each atom.

    Returns
    -------
    weight : ndarray (K, n_terms)
        Magnitude of each term.
    other : ndarray (K, n_terms) of int
        Its atom.
    """
    K, stride = len(D), np.array(layout.stride)
    rest = padded(D, [(s - 1) // t * t for s, t in zip(layout.atom_shape, layout.stride, strict=True)])
    weight, other, itself = np.zeros((K, n_terms)), np.zeros((K, n_terms), int), np.arange(K)
    for j in range(n_terms):
        c = analyze_full(rest, D, layout.stride)
        c[itself, itself] = 0
        lags, c = c.shape[2:], c.reshape(K, -1)
        best = _strength(c, layout).argmax(axis=1)
        value = np.maximum(c[itself, best], 0) if layout.positive else c[itself, best]
        other[:, j], lag = np.divmod(best, int(np.prod(lags)))
        weight[:, j] = abs(value)
        at = box(np.stack(np.unravel_index(lag, lags), axis=1) * stride, layout.atom_shape)
        parts = value.reshape(-1, *[1] * (D.ndim - 1)) * D[other[:, j]]
        rest[(at[0], slice(None), *at[1:])] -= np.moveaxis(parts, 1, -1)
    return weight, other


def half_square(x, floor):
    """Return max(x - floor, 0)^2 / 2, by how much a code of correlation x and penalty `floor` lowers the objective.

    Parameters
    ----------
    x, floor : array
        Data unit.

    Returns
    -------
    array of float64
    """
    return np.maximum(np.subtract(x, floor, dtype=np.float64), 0) ** 2 / 2


def _match(windows, D, layout):
    """Return the shape that is strongest in each window, its weight, and where in the window its long form begins."""
    c = _correlate(windows, D, layout)
    lags, c = c.shape[2:], c.reshape(len(windows), -1)
    best = _strength(c, layout).argmax(axis=1)
    owner, lag = np.divmod(best, int(np.prod(lags)))
    return owner, c[np.arange(len(c)), best], np.stack(np.unravel_index(lag, lags), axis=1) * np.array(layout.stride)


def _correlate(windows, D, layout):
    """Return the correlations at lags of up to a margin."""
    inner = windows[(..., *(slice(m, -m) for m in layout.margin))]
    return analyze_full(np.ascontiguousarray(inner), np.ascontiguousarray(D), layout.stride)


def _strength(weight, layout):
    return weight if layout.positive else abs(weight)
