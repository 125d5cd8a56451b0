"""Simulated data of the paper's experiments."""

import numpy as np

from emdl import simulate
from emdl.metrics import atom_error
from emdl.optim import normalize_atoms

ATOMS, LENGTH, FS = 4, 18, 10_000  # section V of arXiv:1904.08827: 4 atoms of 18 samples at 10 kHz
SIGNALS, SAMPLES = 20, 3000  # 6 seconds
RATE = 30.0  # events of an atom per second
SEEDS = range(5)


def problem(seed, snr_db, *, channels=1, density=RATE / FS, positive=True, signals=SIGNALS, dtype=np.float32):
    """Return simulated signals with their clean parts, codes and atoms."""
    D = simulate.waveforms(ATOMS, channels, LENGTH, rng=seed).astype(dtype)
    return simulate.convolutional(
        signals, SAMPLES, D, density=density, snr_db=snr_db, positive=positive, rng=np.random.default_rng([seed, 1])
    )


def perturbed(D, seed, error=0.45):
    """Return the atoms with noise added until each is as far from the truth as asked (the paper: 0.4 to 0.5)."""
    rng, start = np.random.default_rng([seed, 2]), D.copy()
    for k in range(len(D)):
        noise = normalize_atoms(rng.standard_normal(D[k : k + 1].shape).astype(D.dtype))
        low, high = 0.0, 4.0
        for _ in range(30):
            middle = (low + high) / 2
            start[k : k + 1] = normalize_atoms(D[k : k + 1] + middle * noise)
            far = atom_error(start[k : k + 1], D[k : k + 1]).errors[0] > error
            low, high = (low, middle) if far else (middle, high)
    return start


def worst(D, truth):
    """Return the largest error of an atom, sqrt(1 - max over lags of <h, h_hat>^2)."""
    return float(atom_error(D, truth).errors.max())
