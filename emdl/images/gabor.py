"""How much a learned atom looks like a Gabor function, the shape of receptive fields of simple cells in visual cortex.

g(r, c) = a exp(-u^2 / (2 p^2) - v^2 / (2 q^2)) cos(2 pi f u + phi),
u = (c - c0) cos(angle) + (r - r0) sin(angle),   v = (r - r0) cos(angle) - (c - c0) sin(angle)

With the six parameters (r0, c0, angle, p, q, f) given, amplitude and phase follow from linear least squares, for each
channel its own (variable projection [1]_). The six are found by nonlinear least squares from several starts: gratings
at the largest values of the atom's spectrum, wide and narrow, and a blob without a grating.

.. [1] G. Golub, V. Pereyra, Separable nonlinear least squares: the variable projection method and its applications,
   Inverse Problems 19 (2003), doi:10.1088/0266-5611/19/2/201.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from emdl.backend import as_dictionary, check_count, parallel_map
from emdl.errors import InputError

_NARROWEST = 0.5  # pixels of standard deviation; a narrower envelope is a single pixel, which explains any one pixel
_GRID = 32  # frequencies of the spectrum along an axis


@dataclass(frozen=True)
class Gabor:
    """A Gabor function, pixels and radians.

    Attributes
    ----------
    row, column : float
        Centre, from the first pixel.
    angle : float
        Direction in which the grating varies, 0 <= angle < pi; 0 along a row.
    along, across : float
        Standard deviation of the envelope in that direction and across it.
    frequency : float
        Of the grating, cycles per pixel; 0 for a blob.
    amplitude, phase : ndarray (C,)
        Of each channel; the phase at the centre.
    share : float
        Of the atom's energy that the function explains, 1 - ||d - g||^2 / ||d||^2.
    """

    row: float
    column: float
    angle: float
    along: float
    across: float
    frequency: float
    amplitude: np.ndarray
    phase: np.ndarray
    share: float

    def image(self, shape):
        """Return the function on a grid of pixels.

        Parameters
        ----------
        shape : tuple of int
            Rows and columns.

        Returns
        -------
        ndarray (C, rows, columns)
        """
        parameters = (self.row, self.column, self.angle, self.along, self.across, self.frequency)
        basis = _basis(np.array(parameters), shape)
        parts = np.stack([self.amplitude * np.cos(self.phase), -self.amplitude * np.sin(self.phase)])
        return (basis @ parts).T.reshape(-1, *shape)


def fit_gabors(D, *, n_starts=4):
    """Return the Gabor function that explains most of each atom.

    Parameters
    ----------
    D : array (K, C, rows, columns)
        Atoms, at least 3 x 3 pixels.
    n_starts : int
        Gratings to start from, each with a narrow and a wide envelope. More find better fits of atoms that hold several
        gratings, and take longer.

    Returns
    -------
    list of Gabor

    Raises
    ------
    InputError
        If the atoms are no images, too small, or zero.
    """
    D = as_dictionary(D, np.float64)
    if D.ndim != 4 or min(D.shape[2:]) < 3:
        raise InputError(f"D has shape {D.shape}, wanted (n_atoms, n_channels, rows, columns), at least 3 x 3 pixels")
    if not bool(D.reshape(len(D), -1).any(axis=1).all()):
        raise InputError("an atom is zero everywhere, which no Gabor function explains; leave it out")
    n_starts = check_count(n_starts, "n_starts")
    return parallel_map(lambda atom: _fit(atom, n_starts), list(D))


def _fit(atom, n_starts):
    shape, target = atom.shape[1:], atom.reshape(len(atom), -1).T
    size = max(shape)
    low = np.array([-0.5, -0.5, -2 * math.pi, _NARROWEST, _NARROWEST, 0.0])
    high = np.array([shape[0] - 0.5, shape[1] - 0.5, 2 * math.pi, 2.0 * size, 2.0 * size, 0.71])
    best, least = np.zeros(6), math.inf
    for first in _starts(atom, n_starts):
        found = least_squares(
            lambda x: _residual(x, target, shape), np.clip(first, low + 1e-6, high - 1e-6), bounds=(low, high),
            x_scale=(1, 1, 0.5, 1, 1, 0.1), max_nfev=60,
        )  # fmt: skip
        if found.cost < least:
            best, least = found.x, found.cost
    basis = _basis(best, shape)
    cosine, sine = np.linalg.lstsq(basis, target, rcond=None)[0]
    row, column, angle, along, across, frequency = map(float, best)
    turned = angle % (2 * math.pi) >= math.pi  # the grating runs the other way there
    phase = np.arctan2(-sine, cosine) * (-1 if turned else 1)
    return Gabor(
        row, column, angle % math.pi, along, across, frequency, np.hypot(cosine, sine), phase,
        1 - 2 * least / float((atom**2).sum()),
    )  # fmt: skip


def _starts(atom, n_starts):
    """Return parameters to start from."""
    energy = (atom**2).sum(axis=0)
    rows, columns = (np.arange(n) for n in energy.shape)
    centre = [float((energy.sum(axis=1 - axis) * at).sum() / energy.sum()) for axis, at in ((0, rows), (1, columns))]
    size = max(energy.shape)
    spectrum = (abs(np.fft.rfft2(atom, (_GRID, _GRID))) ** 2).sum(axis=0)
    peaks = np.argwhere(spectrum >= _largest_neighbour(spectrum))
    order = np.argsort(-spectrum[tuple(peaks.T)], kind="stable")
    found = [[*centre, 0.0, size / 4, size / 4, 0.0]]
    for down, right in peaks[order[:n_starts]]:
        f = ((down + _GRID // 2) % _GRID - _GRID // 2) / _GRID, right / _GRID
        for width in (size / 5, size / 2):
            found.append([*centre, math.atan2(*f), width, width, math.hypot(*f)])
    return np.array(found)


def _largest_neighbour(spectrum):
    """Return the largest of the eight values around each, the rows being periodic."""
    wide = np.pad(np.pad(spectrum, ((1, 1), (0, 0)), mode="wrap"), ((0, 0), (1, 1)))
    H, W = spectrum.shape
    around = [wide[i : i + H, j : j + W] for i in range(3) for j in range(3) if (i, j) != (1, 1)]
    return np.max(around, axis=0)


def _basis(x, shape):
    """Return the envelope times cosine and sine of the grating, (pixels, 2)."""
    row, column, angle, along, across, frequency = x
    down, right = np.mgrid[: shape[0], : shape[1]]
    u = (right - column) * math.cos(angle) + (down - row) * math.sin(angle)
    v = (down - row) * math.cos(angle) - (right - column) * math.sin(angle)
    envelope = np.exp(-(u**2) / (2 * along**2) - v**2 / (2 * across**2))
    turn = 2 * math.pi * frequency * u
    return np.stack([envelope * np.cos(turn), envelope * np.sin(turn)], axis=-1).reshape(-1, 2)


def _residual(x, target, shape):
    """Return what the best amplitudes leave of the atom."""
    basis = _basis(x, shape)
    gram = basis.T @ basis + 1e-12 * np.eye(2)  # at frequency 0 the sine vanishes
    return (target - basis @ np.linalg.solve(gram, basis.T @ target)).ravel()


def draw_atoms(D, gabors, path):
    """Draw the atoms in the order of the share that their Gabor functions explain, best first, with that share.

    Parameters
    ----------
    D : array (K, C, rows, columns)
        Atoms; of several channels the first is drawn.
    gabors : list of Gabor
        Of `fit_gabors`.
    path : path
        Picture to write, the format is that of its name.
    """
    from matplotlib.figure import Figure

    order = sorted(range(len(D)), key=lambda k: -gabors[k].share)
    columns = math.ceil(math.sqrt(len(D) * 1.6))
    rows = math.ceil(len(D) / columns)
    figure = Figure(figsize=(0.62 * columns, 0.78 * rows + 0.3), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, k in zip(axes, order, strict=False):
        peak = float(abs(D[k, 0]).max()) or 1.0
        axis.imshow(D[k, 0], cmap="gray", vmin=-peak, vmax=peak)
        axis.set_title(f"{100 * gabors[k].share:.0f}", fontsize=8, pad=2)
    figure.suptitle("atoms, and how much of each a Gabor function explains (%)", fontsize=10)
    figure.savefig(path, dpi=150)
