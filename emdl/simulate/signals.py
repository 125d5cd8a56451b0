"""Signals drawn from the model: sparse codes, given atoms, white noise."""

from dataclasses import dataclass

import numpy as np

from emdl.backend import (
    as_dictionary,
    as_real,
    as_rng,
    as_stride,
    check_count,
    check_flag,
    check_number,
    code_positions,
)
from emdl.errors import InputError
from emdl.ops import synthesize


@dataclass(frozen=True, eq=False)
class Simulated:
    """Signals and what made them.

    Attributes
    ----------
    y : array (n, C, *S)
        Signals, clean + noise.
    clean : array (n, C, *S)
        Synthesis of `z` with `D`.
    z : array (n, K, *P)
        Codes.
    D : array (K, C, *s)
        Atoms.
    sigma : float
        Standard deviation of the noise.
    """

    y: np.ndarray
    clean: np.ndarray
    z: np.ndarray
    D: np.ndarray
    sigma: float


def convolutional(
    n_signals,
    n_samples,
    D,
    *,
    density,
    snr_db=None,
    sigma=None,
    positive=False,
    amplitude=(0.5, 1.5),
    stride=1,
    rng=None,
):
    r"""Return signals of the model :math:`y = \sum_k d_k * z_k + v`, with :math:`v \sim N(0, \sigma^2)`.

    Every code position holds an event with probability `density`, independent of all others, so that events overlap by
    chance.

    Parameters
    ----------
    n_signals : int
        Number of signals n.
    n_samples : int or (int, int)
        Samples of a signal along each axis, S.
    D : array (K, C, *s)
        Atoms, with one or two axes of support. Their dtype is that of the signals.
    density : float or array (K,)
        Events per code position, 0 to 1; an array gives each atom its own.
    snr_db : float, optional
        Signal-to-noise ratio, 10 log10(mean(clean^2) / sigma^2), over all signals, in dB.
    sigma : float, optional
        Standard deviation of the noise, instead of `snr_db`. Without both there is no noise.
    positive : bool
        Whether all events are positive; otherwise signs are random.
    amplitude : (float, float) or float
        Range (low, high) of magnitudes that are uniform, or mean b of magnitudes that are exponential, which makes the
        events Laplace of rate 1 / b.
    stride : int or tuple of int
        Distance of neighbouring code positions, samples.
    rng : Generator or int, optional
        Source of randomness; the same seed gives the same bits.

    Returns
    -------
    Simulated
        Signals, clean signals, codes, atoms, sigma.

    Raises
    ------
    InputError
        If a signal is shorter than an atom, a number is out of range, both `snr_db` and `sigma` are given, or `snr_db`
        is asked of signals without any event.

    Examples
    --------
    >>> from emdl.metrics import snr_db
    >>> from emdl.simulate import waveforms
    >>> sim = convolutional(5, 2000, waveforms(2, 3, 40, rng=0), density=0.01, snr_db=10, rng=0)
    >>> sim.y.shape, sim.z.shape, round(snr_db(sim.y, sim.clean))
    ((5, 3, 2000), (5, 2, 1961), 10)
    """
    D = as_dictionary(D)
    rng = as_rng(rng)
    shape, n_axes = np.atleast_1d(n_samples).tolist(), D.ndim - 2
    if len(shape) != n_axes:
        raise InputError(f"n_samples is {n_samples!r}, wanted one number for each of the {n_axes} axes of the atoms")
    shape = [check_count(S, "n_samples") for S in shape]
    places = code_positions(shape, D.shape[2:], as_stride(stride, n_axes))
    size = (check_count(n_signals, "n_signals"), len(D), *places)
    positive = check_flag(positive, "positive")
    z = _draw_codes(size, _densities(density, len(D)), amplitude, positive, rng).astype(D.dtype)
    clean = synthesize(z, D, stride=stride)
    sigma = _noise_level(clean, snr_db, sigma)
    y = clean + (sigma * rng.standard_normal(clean.shape)).astype(D.dtype)
    return Simulated(y, clean, z, D, sigma)


def _densities(density, n_atoms):
    density = as_real(density, "density")
    if density.shape not in ((), (n_atoms,)) or (density < 0).any() or (density > 1).any():
        raise InputError(
            f"density is {density.tolist()}, wanted one number from 0 to 1, or one for each of {n_atoms} atoms"
        )
    return np.broadcast_to(density, n_atoms)


def _draw_codes(size, density, amplitude, positive, rng):
    z = np.zeros(size)
    events = np.nonzero(rng.random(size) < density.reshape(1, -1, *(1 for _ in size[2:])))
    count = len(events[0])
    if np.ndim(amplitude) == 0:
        magnitude = rng.exponential(check_number(amplitude, "amplitude", 0, strict=True), count)
    else:
        low, high = as_range(amplitude, "amplitude")
        magnitude = rng.uniform(low, high, count)
    z[events] = magnitude if positive else magnitude * rng.choice([-1.0, 1.0], count)
    return z


def as_range(pair, name, *, positive=False):
    """Return ``(low, high)`` as two floats, after making sure that 0 <= low <= high, or 0 < low if `positive`."""
    pair = as_real(pair, name)
    if pair.shape != (2,) or not 0 <= pair[0] <= pair[1] or (positive and pair[0] == 0):
        raise InputError(
            f"{name} is {pair.tolist()}, wanted (low, high) with 0 {'<' if positive else '<='} low <= high"
        )
    return pair.tolist()


def _noise_level(clean, snr_db, sigma):
    if snr_db is None:
        return 0.0 if sigma is None else check_number(sigma, "sigma", 0)
    if sigma is not None:
        raise InputError(f"got both snr_db {snr_db!r} and sigma {sigma!r}, wanted one of them")
    power = float(np.mean(np.square(clean, dtype=np.float64)))
    if power == 0:
        raise InputError(
            "no event was drawn, so no noise has the asked snr_db; raise density or n_samples, or give sigma"
        )
    return float(np.sqrt(power / 10 ** (check_number(snr_db, "snr_db", -300, 300) / 10)))
