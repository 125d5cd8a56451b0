"""What EM cannot mend by small steps: atoms that are cut off by their window, superfluous atoms, and missing ones."""

import numpy as np

from emdl.backend import array_module
from emdl.codes import SparseCodes
from emdl.device import to_host
from emdl.events import padded, peaks, strongest_part, windows
from emdl.ops import correlate_signals, synthesize_full
from emdl.optim import normalize_atoms
from emdl.shapes import cluster, first_shapes, half_square, substitutes

_WINDOWS = 1000  # of the residual, in which a missing atom is looked for
_CANDIDATES = 4
_MARGIN = 2.0  # a new atom must promise this many times what the old one does
_SLACK = 1e-4  # share of its energy that an atom may lose at a border: an error of 0.01
_SHARE = 0.1  # of the noise in an atom that two neighbouring windows do not have in common
_LEAST = 0.02  # and at least this share of the mean contribution of an atom
_WEAK = 0.25  # share of the mean contribution below which an atom is reported


def repair_atoms(D, codes, y, penalty, layout, sigma, rng):
    """Return the dictionary with cut-off atoms moved and a superfluous one replaced, and what was done.

    Parameters
    ----------
    D : array (K, C, *s)
        Dictionary of unit-norm atoms.
    codes : SparseCodes or array (n, K, *P)
        Codes of the signals.
    y : array (n, C, *S)
        Signals.
    penalty : array (K,)
        lmbd_k sigma^2, data unit.
    layout : Layout
        Of the atoms.
    sigma : float
        Noise standard deviation, data unit.
    rng : Generator
        Source of the random choices.

    Returns
    -------
    D : array (K, C, *s)
    note : str
        Empty if nothing was changed.
    """
    xp = array_module(D, y)
    D, codes, y, penalty = to_host(D), _sparse(codes), to_host(y), to_host(penalty)
    residual = y - synthesize_full(codes, D, layout.stride)
    mended, moved = recentre(D, codes, residual, layout, sigma)
    done = [f"moved atom {_listed(moved)} to where its energy lies"] if len(moved) else []
    loss = contributions(D, codes, penalty, layout)
    weakest = int(loss.argmin())
    atom, gain = missing_atom(residual, float(penalty[weakest]), layout, sigma, rng)
    if gain > _MARGIN * loss[weakest] + _LEAST * loss.mean():
        mended[weakest] = atom
        done.append(f"replaced atom {weakest}, for which others could stand in, by one that was missing")
    return xp.asarray(mended), " and ".join(done)


def recentre(D, codes, residual, layout, sigma):
    """Return the dictionary with each atom moved to the window, up to a margin away, that holds most of its energy.

    What lies beyond the atom is learned by one step of the squared error for atoms with a margin on all sides,
    d + corr(z, y - D z) / ||z||^2.

    Parameters
    ----------
    D : ndarray (K, C, *s)
        Dictionary.
    codes : SparseCodes
        Codes.
    residual : ndarray (n, C, *S)
        y - D z.
    layout : Layout
        Of the atoms.
    sigma : float
        Noise standard deviation, data unit. A large value leaves atoms where they are: what noise alone would gain is
        no reason to move.

    Returns
    -------
    D : ndarray (K, C, *s)
    moved : ndarray of int
        The atoms that were.
    """
    margin, n_axes = layout.margin, D.ndim - 2
    energy = np.bincount(codes.index % len(D), codes.value.astype(np.float64) ** 2, minlength=len(D))
    beyond = correlate_signals(codes, padded(residual, margin), layout.long_shape, layout.stride)
    wide = padded(D, margin) * energy.reshape(-1, *[1] * (n_axes + 1)) + beyond
    slack = _SLACK + _SHARE * sigma**2 * D[0].size / np.where(energy > 0, energy, 1)
    best, _ = strongest_part(wide, layout, slack=slack)
    here = wide[(..., *(slice(m, m + s) for m, s in zip(margin, layout.atom_shape, strict=True)))]
    held, most = (np.square(x).reshape(len(D), -1).sum(axis=1) for x in (here, best))
    far = (energy > 0) & (held < (1 - slack) * most)
    mended = D.copy()
    mended[far] = normalize_atoms(best[far])
    return mended, np.flatnonzero(far)


def contributions(D, codes, penalty, layout):
    """Return by how much the objective would grow without each atom, with the others standing in for it.

    A code z of an atom alone stands for the correlation u = z + penalty, and lowers the objective by z^2 / 2 (in units
    of half a squared error). Without the atom, its substitutes of weight w lower it by max(w u - penalty, 0)^2 / 2
    each.

    Parameters
    ----------
    D : ndarray (K, C, *s)
        Dictionary.
    codes : SparseCodes
        Codes.
    penalty : ndarray (K,)
        lmbd_k sigma^2, data unit.
    layout : Layout
        Of the atoms.

    Returns
    -------
    ndarray (K,)
        Zero for an atom without codes, and for a duplicate.
    """
    weight, other = substitutes(D, layout)
    k, z = codes.index % len(D), abs(codes.value.astype(np.float64))
    without = half_square(weight[k] * (z + penalty[k])[:, None], penalty[other[k]]).sum(axis=1)
    return np.bincount(k, np.maximum(z**2 / 2 - without, 0), minlength=len(D))


def weak_atoms(D, codes, penalty, layout):
    """Return the atoms that explain little which the others could not: unused, duplicates, or compounds of others.

    Parameters
    ----------
    D, codes, penalty, layout
        As in `repair_atoms`.

    Returns
    -------
    ndarray of int
        Those whose `contributions` are less than a quarter of the mean.
    """
    loss = contributions(to_host(D), _sparse(codes), to_host(penalty), layout)
    return np.flatnonzero(loss <= _WEAK * loss.mean())


def missing_atom(residual, penalty, layout, sigma, rng):
    """Return the shape that would explain most of a residual, and by how much it would lower the objective.

    Parameters
    ----------
    residual : ndarray (n, C, *S)
        Signals that are not explained.
    penalty : float
        Of the new atom, data unit.
    layout : Layout
        Of the atoms.
    sigma : float
        Noise standard deviation, data unit.
    rng : Generator
        Source of the random choices.

    Returns
    -------
    atom : ndarray (C, *s) or None
    gain : float
        In units of half a squared error; 0 where there is no atom.
    """
    place = peaks(residual, layout, sigma)
    if not len(place):
        return None, 0.0
    chosen = place if len(place) <= _WINDOWS else place[np.sort(rng.choice(len(place), _WINDOWS, replace=False))]
    seen = windows(residual, chosen, layout)
    shapes, gain = cluster(seen, first_shapes(seen, _CANDIDATES, layout, rng), layout, penalty)
    best = int(gain.argmax())
    return shapes[best], float(gain[best]) * len(place) / len(chosen)


def _sparse(codes):
    return codes if isinstance(codes, SparseCodes) else SparseCodes.from_dense(codes)


def _listed(atoms):
    return ", ".join(map(str, atoms))
