"""What EM cannot mend by small steps: atoms that are cut off by their window, superfluous atoms, and missing ones."""

import numpy as np

from emdl.backend import array_module
from emdl.codes import SparseCodes
from emdl.device import to_host
from emdl.events import padded, peaks, strongest_part, windows
from emdl.ops import correlate_signals, synthesize_full
from emdl.optim import normalize_atoms
from emdl.parts import Parts, Whole
from emdl.shapes import cluster, first_shapes, half_square, substitutes

_WINDOWS = 1000  # of the residual, in which a missing atom is looked for
_CANDIDATES = 4
_MARGIN = 2.0  # a new atom must promise this many times what the old one does
_SLACK = 1e-4  # share of its energy that an atom may lose at a border: an error of 0.01
_SHARE = 0.1  # of the noise in an atom that two neighbouring windows do not have in common
_LEAST = 0.02  # and at least this share of the mean contribution of an atom
_WEAK = 0.25  # share of the mean contribution below which an atom is reported
_NOTHING = 0.01  # likewise, of what the codes of an atom explain on average, whoever else could


def repair_atoms(D, codes, y, penalty, layout, sigma, rng):
    """Return the dictionary with cut-off atoms moved and a superfluous one replaced, and what was done.

    Parameters
    ----------
    D : array (K, C, *s)
        Dictionary of unit-norm atoms.
    codes : SparseCodes or array (n, K, *P)
        Codes of the signals.
    y : array (n, C, *S), emdl.parts.Whole or Parts
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
    data, xp = y if isinstance(y, Whole | Parts) else Whole(y, y, layout.stride, layout.positive), array_module(D)
    given, D, penalty = D, to_host(D), to_host(penalty)
    energy, beyond, loss, counts = data.sum(_needs, codes, given, penalty, layout, sigma)
    mended, moved = _recentred(D, energy, beyond, layout, sigma)
    done = [f"moved atom {_listed(moved)} to where its energy lies"] if len(moved) else []
    weakest = int(loss.argmin())
    chosen = _some_windows(counts, rng)
    seen = data.sum(_windows, codes, given, layout, sigma, chosen) if chosen else []
    atom, gain = _most_wanted(seen, sum(n for _, n in counts), float(penalty[weakest]), layout, rng)
    if gain > _MARGIN * loss[weakest] + _LEAST * loss.mean():
        mended[weakest] = atom
        done.append(f"replaced atom {weakest}, for which others could stand in, by one that was missing")
    return xp.asarray(mended), " and ".join(done)


def _needs(part, D, penalty, layout, sigma):
    """Return the sums that decide which atoms are moved and which is weakest, and how many windows a part has."""
    D, codes, residual = _residual(part, D)
    own = part.own_codes(codes)
    n_windows = int(part.own_places(peaks(residual, layout, sigma)).sum())
    loss = contributions(D, own, to_host(penalty), layout)
    return *_around(len(D), own, residual, layout), loss, [(part.number, n_windows)]


def _residual(part, D):
    """Return dictionary, codes and y - D z of a part on the host."""
    D, codes = to_host(D), _sparse(part.codes)
    return D, codes, to_host(part.y) - synthesize_full(codes, D, part.stride)


def _some_windows(counts, rng):
    """Return which windows of each part to look at, at most 1000 of all: number of the part to indices."""
    ends = np.cumsum([n for _, n in counts])
    count = int(ends[-1])
    chosen = np.arange(count) if count <= _WINDOWS else np.sort(rng.choice(count, _WINDOWS, replace=False))
    owner, found = np.searchsorted(ends, chosen, "right"), {}
    for i in np.unique(owner).tolist():
        number, n = counts[i]
        found[number] = chosen[owner == i] - (int(ends[i]) - n)
    return found


def _windows(part, D, layout, sigma, chosen):
    """Return the chosen windows of the residual of a part, as a list of one array."""
    if part.number not in chosen:
        return None
    residual = _residual(part, D)[2]
    place = peaks(residual, layout, sigma)
    return [windows(residual, place[part.own_places(place)][chosen[part.number]], layout)]


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
    energy, beyond = _around(len(D), codes, residual, layout)
    return _recentred(D, energy, beyond, layout, sigma)


def _around(K, codes, residual, layout):
    """Return the energy of the codes of each atom, and corr(z, residual) on the atom and its margins."""
    energy = np.bincount(codes.index % K, codes.value.astype(np.float64) ** 2, minlength=K)
    return energy, correlate_signals(codes, padded(residual, layout.margin), layout.long_shape, layout.stride)


def _recentred(D, energy, beyond, layout, sigma):
    margin, n_axes = layout.margin, D.ndim - 2
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


def weak_atoms(D, codes, penalty, layout, data=None):
    """Return the atoms that explain little which the others could not: unused, duplicates, or compounds of others.

    Parameters
    ----------
    D, codes, penalty, layout
        As in `repair_atoms`.
    data : emdl.parts.Parts, optional
        Signals, if `codes` is a chain.

    Returns
    -------
    ndarray of int
        Those whose `contributions` are less than a quarter of the mean, or next to nothing of what atoms explain: where
        all atoms are duplicates of each other, the solver may share the codes among them evenly.
    """
    if isinstance(data, Parts):
        loss, energy = data.sum(_losses, codes, D, penalty, layout)
    else:
        loss, energy = _loss_and_energy(to_host(D), _sparse(codes), to_host(penalty), layout)
    return np.flatnonzero(loss <= max(_WEAK * loss.mean(), _NOTHING * energy.mean()))


def _loss_and_energy(D, codes, penalty, layout):
    """Return the contributions of the atoms, and by how much their codes lower the objective, others or no others."""
    energy = np.bincount(codes.index % len(D), codes.value.astype(np.float64) ** 2 / 2, minlength=len(D))
    return contributions(D, codes, penalty, layout), energy


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
    chosen = _some_windows([(0, len(place))], rng)
    seen = [windows(residual, place[chosen[0]], layout)] if chosen else []
    return _most_wanted(seen, len(place), penalty, layout, rng)


def _most_wanted(seen, count, penalty, layout, rng):
    """Return the shape that `missing_atom` looks for and its gain, from windows seen of `count` that there are."""
    if not seen:
        return None, 0.0
    seen = np.concatenate(seen)
    shapes, gain = cluster(seen, first_shapes(seen, _CANDIDATES, layout, rng), layout, penalty)
    best = int(gain.argmax())
    return shapes[best], float(gain[best]) * count / len(seen)


def _losses(part, D, penalty, layout):
    return _loss_and_energy(to_host(D), part.own_codes(_sparse(part.codes)), to_host(penalty), layout)


def _sparse(codes):
    return codes if isinstance(codes, SparseCodes) else SparseCodes.from_dense(codes)


def _listed(atoms):
    return ", ".join(map(str, atoms))
