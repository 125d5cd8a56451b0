"""Where EM starts when nobody knows the atoms."""

import itertools

import numpy as np

from emdl.backend import array_module, as_rng
from emdl.device import to_host
from emdl.encoder import solve
from emdl.errors import InputError
from emdl.events import Layout, peaks, windows
from emdl.ops import correlate_codes, correlate_signals, synthesize_full
from emdl.optim import exact_dictionary, normalize_atoms
from emdl.repair import contributions, recentre
from emdl.shapes import cluster, first_shapes

_BLOCK = 12  # atom lengths; long enough that few events are cut at its ends
_SURPLUS = 2  # shapes for each atom wanted: overlapping events make shapes of their own, which later lose
_WARM = 3  # EM iterations before the first atom is dropped
_TRIES, _FEW = 2, 16  # starts of which the best is kept, if there are few atoms: each then matters, and costs little


def blind(y, n_atoms, atom_shape, *, positive=False, stride=(1,), sigma=1.0, rng=None):
    """Return atoms to start EM from, taken from the signals alone.

    Windows around local maxima of the energy are clustered up to shift, scale and sign, into more shapes than atoms are
    wanted. A few EM iterations on a part of the signals pull overlapping events apart, centre the atoms, and drop those
    for which the others can stand in, until `n_atoms` are left. Of two such starts the one of lower objective is taken.

    Parameters
    ----------
    y : array (n, C, *S)
        Signals in full form.
    n_atoms : int
        Number of atoms K.
    atom_shape : tuple of int
        Samples along each axis.
    positive : bool
        Whether codes will be kept non-negative.
    stride : tuple of int
        Along each axis.
    sigma : float
        Noise standard deviation, data unit. A large value leaves only strong events.
    rng : Generator, int or None
        Source of the random choices.

    Returns
    -------
    array (K, C, *s)
        Unit-norm atoms. Where the signals hold too few events, random windows make up the number.

    Raises
    ------
    InputError
        If the signals hold fewer windows than atoms.
    """
    xp, y = array_module(y), to_host(y)
    layout, rng = Layout(tuple(atom_shape), tuple(stride), bool(positive)), as_rng(rng)
    place = peaks(y, layout, sigma)
    if len(place) < n_atoms:
        return xp.asarray(_chunks(y, n_atoms, layout, rng))
    count = _SURPLUS * n_atoms
    seen = windows(y, _some(place, max(1000, 50 * count), rng), layout)
    size = np.sqrt(np.square(seen, dtype=np.float64).sum() / len(seen))
    floor = max(3 * sigma, 0.1 * size)
    part = _blocks(y, place, layout, min(40 * count, 1500), rng)
    best = np.inf
    for _ in range(_TRIES if n_atoms <= _FEW else 1):
        found, _ = cluster(seen, first_shapes(seen, count, layout, rng), layout, floor)
        found, score = _compete(part, found, n_atoms, layout, floor, sigma)
        if score < best:
            shapes, best = found, score
    if len(shapes) < n_atoms:
        shapes = np.concatenate([shapes, _chunks(y, n_atoms - len(shapes), layout, rng)])
    return xp.asarray(shapes)


def _compete(y, D, n_atoms, layout, floor, sigma):
    """Return at most `n_atoms` atoms after some EM, in which the least needed were dropped, and their objective."""
    codes, done = None, False
    for iteration in itertools.count(1):
        penalty = np.full(len(D), floor)
        solution = solve(y, D, penalty, layout.stride, tol=1e-2, positive=layout.positive, z0=codes)
        if done:
            return D, float(solution.primal.sum())
        codes = solution.codes
        phi = correlate_codes(codes, layout.atom_shape, layout.stride)
        psi = correlate_signals(codes, y, layout.atom_shape, layout.stride)
        D = exact_dictionary(D, phi, psi, n_passes=1)
        surplus = max(0, len(D) - n_atoms)
        done = not surplus and iteration > _WARM
        if iteration >= _WARM:
            D, _ = recentre(D, codes, y - synthesize_full(codes, D, layout.stride), layout, sigma)
            least = np.argsort(contributions(D, codes, penalty, layout), kind="stable")
            D, codes = np.delete(D, least[: -(-surplus // 4)], axis=0), None


def _blocks(y, place, layout, count, rng):
    """Return random blocks of the signals, as signals of their own, that hold about `count` events."""
    shape, stride, S = layout.atom_shape, layout.stride, y.shape[2:]
    size = [s + (min(a, _BLOCK * s) - s) // t * t for s, t, a in zip(shape, stride, S, strict=True)]
    number = [a // b for a, b in zip(S, size, strict=True)]
    middle = place[:, 1:] * np.array(stride) + np.array(shape) // 2
    block = middle // np.array(size)
    inside = (block < np.array(number)).all(axis=1)
    flat = np.ravel_multi_index((place[inside, 0], *block[inside].T), (len(y), *number))
    events = np.bincount(flat, minlength=len(y) * int(np.prod(number)))
    order = rng.permutation(np.flatnonzero(events))
    chosen = order[: 1 + int(np.searchsorted(np.cumsum(events[order]), count))]
    first = np.stack(np.unravel_index(np.sort(chosen), (len(y), *number)), axis=1)
    return np.stack(
        [y[(i, slice(None), *(slice(b * a, (b + 1) * a) for b, a in zip(at, size, strict=True)))] for i, *at in first]
    )


def _some(place, count, rng):
    return place if len(place) <= count else place[np.sort(rng.choice(len(place), count, replace=False))]


def _chunks(y, count, layout, rng):
    """Return random windows of the signals, of unit norm; where the signals are zero, noise."""
    S, shape = y.shape[2:], layout.atom_shape
    number = len(y) * int(np.prod([a - s + 1 for a, s in zip(S, shape, strict=True)]))
    if number < count:
        raise InputError(f"the signals hold {number} windows of {shape}, wanted at least n_atoms = {count}")
    place = np.stack(
        [
            rng.integers(len(y), size=count),
            *(rng.integers(a - s + 1, size=count) for a, s in zip(S, shape, strict=True)),
        ]
    )
    found = [y[(i, slice(None), *(slice(b, b + s) for b, s in zip(at, shape, strict=True)))] for i, *at in place.T]
    return normalize_atoms(np.stack([x if x.any() else rng.standard_normal(x.shape).astype(y.dtype) for x in found]))
