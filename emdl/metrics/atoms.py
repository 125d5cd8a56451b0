"""Learned atoms against true ones, up to order, shift and sign."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from emdl.backend import array_module, as_dictionary
from emdl.errors import InputError


@dataclass(frozen=True, eq=False)
class AtomMatch:
    """How learned atoms pair with true ones; all arrays are NumPy's, whatever held the atoms.

    Attributes
    ----------
    errors : array (K_true,)
        Sine of the angle between a true atom and its partner, 0 (equal) to 1 (orthogonal, or no partner).
    permutation : array of int (K_true,)
        Learned atom that is the partner of each true atom; -1 where there is none.
    shifts : array of int (K_true, n_axes)
        How many samples to move the partner towards larger indices to lie on the true atom.
    signs : array of int (K_true,)
        1 or -1, to multiply the partner with; 0 where there is none.
    """

    errors: np.ndarray
    permutation: np.ndarray
    shifts: np.ndarray
    signs: np.ndarray


def atom_error(D, D_true):
    r"""Return how far the atoms `D` are from the true ones, up to order, shift and sign.

    For a true atom :math:`h` and a learned one :math:`\hat h`, both brought to unit norm,

    .. math:: \mathrm{err} = \sqrt{1 - \max_\tau \langle h, \hat h(\cdot - \tau)\rangle^2},

    the sine of the angle between them. The inner product runs over channels and support, :math:`\tau` over all lags at
    which they overlap, with zeros outside. Atoms are paired one to one so that the sum of the errors is least.

    Parameters
    ----------
    D : array (K, C, *s)
        Learned atoms; their norm does not matter, an atom of zeros is orthogonal to everything.
    D_true : array (K_true, C, *s_true)
        True atoms. Number and length may differ from those of `D`.

    Returns
    -------
    AtomMatch
        Errors, partners, shifts and signs of the true atoms.

    Raises
    ------
    InputError
        If the number of channels or axes differs, or a true atom is zero.

    References
    ----------
    .. [1] A. Agarwal, A. Anandkumar, P. Jain, P. Netrapalli, "Learning sparsely used overcomplete dictionaries via
       alternating minimization", SIAM J. Optim. 26 (2016) 2775-2799, doi:10.1137/140979861 (the distance).
    .. [2] B. Tolooshams, S. Dey, D. Ba, "Deep residual autoencoders for expectation maximization-inspired dictionary
       learning", IEEE Trans. Neural Netw. Learn. Syst. 32 (2021) 2415-2429, doi:10.1109/TNNLS.2020.3005348.

    Examples
    --------
    >>> import numpy as np
    >>> from emdl.metrics import atom_error
    >>> D_true = np.array([[[1.0, 2.0, 0.0]], [[2.0, 1.0, -3.0]]])
    >>> D = np.array([[[-2.0, -1.0, 3.0]], [[0.0, 1.0, 2.0]]])
    >>> match = atom_error(D, D_true)
    >>> match.errors.round(12), match.permutation, match.shifts[:, 0], match.signs
    (array([0., 0.]), array([1, 0]), array([-1,  0]), array([ 1, -1]))
    """
    D, D_true = _unit_atoms(D, D_true)
    score, lags = _best_lags(D, D_true)
    rows, columns = linear_sum_assignment(np.sqrt(np.maximum(1 - score**2, 0)))
    columns, rows = columns[score[rows, columns] != 0], rows[score[rows, columns] != 0]
    count, n_axes = len(D_true), D.ndim - 2
    errors, permutation = np.ones(count), np.full(count, -1)
    shifts, signs = np.zeros((count, n_axes), int), np.zeros(count, int)
    permutation[rows], shifts[rows], signs[rows] = columns, lags[rows, columns], np.sign(score[rows, columns])
    room = [(0, 0)] + [(s - 1, s - 1) for s in D.shape[2:]]  # the partner lies wholly inside, so nothing is cut off
    for k, j in zip(rows, columns, strict=True):
        h = np.pad(D_true[k], room)
        partner = _moved(D[j], lags[k, j] + np.array(D.shape[2:]) - 1, h.shape[1:])
        errors[k] = min(1.0, np.linalg.norm(h - score[k, j] * partner))  # 1 - score^2 would lose half of the digits
    return AtomMatch(errors, permutation, shifts, signs)


def align_atoms(D, D_true):
    """Return the partners of the true atoms in `D`, in their order, at their place, with their sign.

    What to plot over the true atoms, see `atom_error`.

    Parameters
    ----------
    D : array (K, C, *s)
        Learned atoms; their norm is kept.
    D_true : array (K_true, C, *s_true)
        True atoms.

    Returns
    -------
    array (K_true, C, *s_true)
        What leaves the support of the true atom is cut off; zeros where there is no partner.

    Raises
    ------
    InputError
        As `atom_error`.

    Examples
    --------
    >>> import numpy as np
    >>> from emdl.metrics import align_atoms
    >>> align_atoms(np.array([[[0.0, -1.0, -2.0]]]), np.array([[[1.0, 2.0]]]))
    array([[[1., 2.]]])
    """
    match = atom_error(D, D_true)
    D, D_true = as_dictionary(D), as_dictionary(D_true)
    aligned = array_module(D).zeros(D_true.shape, D.dtype)
    for k, j in enumerate(match.permutation):
        if j >= 0:
            aligned[k] = int(match.signs[k]) * _moved(D[j], match.shifts[k], D_true.shape[2:])
    return aligned


def _unit_atoms(*dictionaries):
    """Return the dictionaries on the host, in double precision, with atoms of unit norm (or zero)."""
    xp = array_module(*dictionaries)
    D, D_true = (as_dictionary(d, np.float64) for d in dictionaries)
    if D.ndim != D_true.ndim or D.shape[1] != D_true.shape[1]:
        raise InputError(
            f"D has shape {D.shape} and D_true {D_true.shape}, wanted (n_atoms, n_channels, *atom_shape) with the same "
            "number of channels and axes"
        )
    units = []
    for d in (D, D_true):
        d = d if xp is np else xp.asnumpy(d)
        axes = tuple(range(1, d.ndim))
        d = d / np.maximum(np.abs(d).max(axes, keepdims=True), np.finfo(float).tiny)
        units.append(d / np.maximum(np.linalg.norm(d.reshape(len(d), -1), axis=1).reshape(-1, *(1 for _ in axes)), 0.5))
    zero = np.flatnonzero(~units[1].any(tuple(range(1, D.ndim))))
    if len(zero):
        raise InputError(f"true atom {zero[0]} is zero, so nothing can be compared with it; leave it out of D_true")
    return units


def _best_lags(D, D_true):
    """Return the correlation of largest magnitude over lags, (K_true, K), and its lag, (K_true, K, n_axes)."""
    axes = tuple(range(2, D.ndim))
    size = [a + b - 1 for a, b in zip(D.shape[2:], D_true.shape[2:], strict=True)]
    spectrum = np.conj(np.fft.rfftn(D, size, axes))
    score, lags = np.zeros((len(D_true), len(D))), np.zeros((len(D_true), len(D), len(axes)), int)
    for k, h in enumerate(D_true):  # one at a time: all pairs and lags at once would not fit for large dictionaries
        product = (np.fft.rfftn(h[None], size, axes) * spectrum).sum(1)
        corr = np.fft.irfftn(product, size, tuple(a - 1 for a in axes)).reshape(len(D), -1)
        best = np.abs(corr).argmax(1)
        score[k] = corr[np.arange(len(D)), best]
        lags[k] = np.stack(np.unravel_index(best, size), 1)
    length = np.array(D_true.shape[2:])
    return np.clip(score, -1, 1), np.where(lags < length, lags, lags - np.array(size))


def _moved(atom, shift, shape):
    """Return an atom (C, *s) moved by `shift` on a canvas (C, *shape) of zeros; what leaves the canvas is cut off."""
    canvas = array_module(atom).zeros((len(atom), *shape), atom.dtype)
    source, target = [slice(None)], [slice(None)]
    for s, S, t in zip(atom.shape[1:], shape, shift, strict=True):
        first, last = max(0, int(t)), min(S, int(t) + s)
        source.append(slice(first - int(t), max(first, last) - int(t)))
        target.append(slice(first, max(first, last)))
    canvas[tuple(target)] = atom[tuple(source)]
    return canvas
