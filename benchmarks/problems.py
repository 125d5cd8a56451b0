"""Fixed problems, and what judges every solver's codes alike: the objective and a dual value, in float64."""

from dataclasses import dataclass

import numpy as np

import emdl


@dataclass(frozen=True)
class CodingProblem:
    """Minimise half ||y - D z||^2 + lmbd ||z||_1 over codes that lie wholly inside the signal."""

    name: str
    y: np.ndarray
    D: np.ndarray
    lmbd: float
    positive: bool


def spike_atoms(length=45):
    """Return three smooth atoms of unit norm that look like extracellular spikes, (3, length)."""
    t = np.arange(length)

    def bump(middle, width):
        return np.exp(-0.5 * ((t - middle) / width) ** 2)

    h = np.stack(
        [
            -bump(15, 2.5) + 0.55 * bump(24, 5.0),
            0.6 * bump(12, 3.0) - bump(20, 3.5) + 0.35 * bump(31, 5.0),
            -0.45 * bump(14, 4.5) + bump(22, 2.0) - 0.55 * bump(29, 4.0),
        ]
    )
    h *= np.hanning(length + 2)[1:-1] ** 0.25
    return h / np.linalg.norm(h, axis=1, keepdims=True)


def spikes(n_samples=30_000, *, n_signals=1, fraction=0.1, seed=0):
    """Return W2: events of the spike atoms, one in 300 samples for each, 10 dB; lmbd = fraction * lambda_max."""
    rng = np.random.default_rng(seed)
    D = spike_atoms()[:, None]
    shape = (n_signals, 3, n_samples - D.shape[2] + 1)
    z = (rng.random(shape) < 1 / 300) * rng.uniform(0.5, 1.5, shape)
    clean = emdl.synthesize(z, D)
    y = clean + np.sqrt((clean**2).mean() / 10) * rng.standard_normal(clean.shape)
    lmbd = fraction * emdl.lambda_max(y, D, positive=True)
    many = f"{n_signals} x " if n_signals > 1 else ""
    return CodingProblem(f"spikes, {many}{n_samples:,} samples, {fraction:g} lambda_max", y, D, lmbd, True)


def tetrode(n_samples=30_000, *, fraction=0.1, seed=0):
    """Return events of 10 random smooth atoms of 60 samples on 4 channels."""
    rng = np.random.default_rng(seed)
    D = np.cumsum(rng.standard_normal((10, 4, 60)), axis=2) * np.hanning(60)
    D -= D.mean(axis=2, keepdims=True)
    D /= np.linalg.norm(D.reshape(10, -1), axis=1)[:, None, None]
    shape = (1, 10, n_samples - 59)
    z = (rng.random(shape) < 1 / 1000) * rng.uniform(0.5, 1.5, shape)
    clean = emdl.synthesize(z, D)
    y = clean + np.sqrt((clean**2).mean() / 10) * rng.standard_normal(clean.shape)
    lmbd = fraction * emdl.lambda_max(y, D, positive=True)
    return CodingProblem(f"tetrode, 4 x {n_samples:,} samples, {fraction:g} lambda_max", y, D, lmbd, True)


def photograph(fraction=0.05, size=256):
    """Return W1: a high-pass photograph and SPORCO's 64 atoms of 8x8; needs scikit-image and SPORCO."""
    from skimage.data import camera
    from skimage.transform import resize
    from sporco import signal, util

    image = resize(camera().astype(np.float64) / 255, (size, size), anti_aliasing=True)
    y = signal.tikhonov_filter(image, 10, 16)[1][None, None]
    D = np.ascontiguousarray(util.convdicts()["G:8x8x64"].astype(np.float64).transpose(2, 0, 1)[:, None])
    D /= np.linalg.norm(D.reshape(64, -1), axis=1)[:, None, None, None]
    lmbd = fraction * emdl.lambda_max(y, D)
    return CodingProblem(f"photograph, {size}x{size}, {fraction:g} lambda_max", y, D, lmbd, False)


def primal_and_dual(problem, z):
    """Return the objective of dense codes and the dual value of their scaled residual, both in float64."""
    z = z.astype(np.float64)
    r = problem.y - emdl.synthesize(z, problem.D)
    c = emdl.analyze(r, problem.D)
    top = c.max() if problem.positive else np.abs(c).max()
    a = min(max((problem.y * r).sum() / max((r**2).sum(), 1e-300), 0), problem.lmbd / max(top, 1e-300))
    primal = (r**2).sum() / 2 + problem.lmbd * np.abs(z).sum()
    return primal, (problem.y**2).sum() / 2 - ((problem.y - a * r) ** 2).sum() / 2
