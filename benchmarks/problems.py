"""Fixed problems of the coding suite, and their judge: objective and dual value in float64, by SciPy alone.

Nothing here uses emdl, so that problems, optima and gaps do not depend on what is measured.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from scipy import fft


@dataclass(frozen=True)
class CodingProblem:
    """Minimise half ||y - D z||^2 + lmbd ||z||_1 over codes that lie wholly inside the signal.

    Attributes
    ----------
    name : str
        What it is, for a table.
    y : ndarray (n, C, *S) of float64
        Signals.
    D : ndarray (K, C, *s) of float64
        Atoms of unit norm.
    lmbd : float
        Penalty, data unit.
    positive : bool
        Codes are non-negative.
    """

    name: str
    y: np.ndarray
    D: np.ndarray
    lmbd: float
    positive: bool

    @property
    def positions(self):
        """Number of code positions along each axis."""
        return tuple(S - s + 1 for S, s in zip(self.y.shape[2:], self.D.shape[2:], strict=True))

    @property
    def fingerprint(self):
        """A short text that differs where data, atoms or penalty do."""
        digest = hashlib.sha256(np.round([self.lmbd, self.positive, *self.y.shape, *self.D.shape], 8).tobytes())
        digest.update(np.round(self.D, 6).tobytes())
        digest.update(np.round(self.y[..., :: max(1, self.y.shape[-1] // 5000)], 6).tobytes())
        return digest.hexdigest()[:16]


def make(name):
    """Return the problem of a name such as w1-0.05, w1-0.05-512, w2-30000, many-100, tetrode, small."""
    kind, _, size = name.partition("-")
    if kind == "w1":
        fraction, _, side = size.partition("-")
        return photograph(float(fraction), int(side or 256))
    if kind == "w2":
        return spikes(int(size))
    if kind == "many":
        return spikes(500, n_signals=int(size), seed=3)
    if kind == "small":
        return texture()
    return tetrode()


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
    """Return W2: events of the spike atoms, one in 300 samples for each, 10 dB; lmbd = fraction * lambda_max.

    Of many signals the first ones are the same for any number of them, and so is lmbd, so that a part stands for all.
    """
    D = spike_atoms()[:, None]
    if n_signals == 1:
        y = _noisy_events(np.random.default_rng(seed), D, (1, 3, n_samples - D.shape[2] + 1), 1 / 300)
        lmbd = fraction * _largest_correlation(y, D, True)
        name = f"{n_samples:,} samples, 3 atoms of 45"
    else:
        rng = np.random.default_rng(seed)
        y = np.concatenate(
            [_noisy_events(rng, D, (100, 3, n_samples - 44), 1 / 300) for _ in range(-(-n_signals // 100))]
        )[:n_signals]
        lmbd = fraction * _largest_correlation(y[:100], D, True)
        name = f"{n_signals:,} signals of {n_samples} samples, 3 atoms of 45"
    return CodingProblem(f"{name}, {fraction:g} lambda_max", y, D, lmbd, True)


def tetrode(n_samples=30_000, *, fraction=0.1, seed=0):
    """Return events of 10 random smooth atoms of 60 samples on 4 channels."""
    rng = np.random.default_rng(seed)
    D = np.cumsum(rng.standard_normal((10, 4, 60)), axis=2) * np.hanning(60)
    D -= D.mean(axis=2, keepdims=True)
    D /= np.linalg.norm(D.reshape(10, -1), axis=1)[:, None, None]
    y = _noisy_events(rng, D, (1, 10, n_samples - 59), 1 / 1000)
    lmbd = fraction * _largest_correlation(y, D, True)
    return CodingProblem(f"4 x {n_samples:,} samples, 10 atoms of 60, {fraction:g} lambda_max", y, D, lmbd, True)


def photograph(fraction=0.05, size=256):
    """Return W1: a high-pass photograph and SPORCO's 64 atoms of 8x8; needs scikit-image and SPORCO."""
    from skimage.data import camera
    from skimage.transform import resize
    from sporco import signal, util

    image = resize(camera().astype(np.float64) / 255, (size, size), anti_aliasing=True)
    y = signal.tikhonov_filter(image, 10, 16)[1][None, None]
    D = np.ascontiguousarray(util.convdicts()["G:8x8x64"].astype(np.float64).transpose(2, 0, 1)[:, None])
    D /= np.linalg.norm(D.reshape(64, -1), axis=1)[:, None, None, None]
    lmbd = fraction * _largest_correlation(y, D, False)
    return CodingProblem(f"photograph {size}x{size}, 64 atoms 8x8, {fraction:g} lambda_max", y, D, lmbd, False)


def texture(size=64, *, fraction=0.1, seed=0):
    """Return a small picture of 8 random atoms of 5x5 and noise; needs no other package."""
    rng = np.random.default_rng(seed)
    D = rng.standard_normal((8, 1, 5, 5))
    D /= np.linalg.norm(D.reshape(8, -1), axis=1)[:, None, None, None]
    y = _noisy_events(rng, D, (1, 8, size - 4, size - 4), 1 / 200)
    lmbd = fraction * _largest_correlation(y, D, False)
    return CodingProblem(f"picture {size}x{size}, 8 atoms 5x5, {fraction:g} lambda_max", y, D, lmbd, False)


def long_recording(n_samples, seed=0):
    """Return float32 samples (1, 1, n_samples), made piece by piece, atoms and penalty as in W2 of 30,000 samples."""
    rng, D, piece = np.random.default_rng(seed), spike_atoms()[:, None], 1_000_000
    y = np.empty((1, 1, n_samples), np.float32)
    for first in range(0, n_samples, piece):
        n = min(piece, n_samples - first)
        y[..., first : first + n] = _noisy_events(rng, D, (1, 3, max(n - 44, 1)), 1 / 300)[..., :n]
    return y, D.astype(np.float32), spikes(30_000).lmbd


def _noisy_events(rng, D, shape, rate):
    z = (rng.random(shape) < rate) * rng.uniform(0.5, 1.5, shape)
    clean = synthesize(z, D)
    return clean + np.sqrt((clean**2).mean() / 10) * rng.standard_normal(clean.shape)


def _transformed(D, shape):
    axes = tuple(range(2, D.ndim))
    return fft.rfftn(D, shape, axes=axes), axes


def synthesize(z, D):
    """Return the signals (n, C, *S) of codes (n, K, *P), by transforms, one atom after the other, in float64."""
    inner = tuple(P + s - 1 for P, s in zip(z.shape[2:], D.shape[2:], strict=True))
    size = tuple(fft.next_fast_len(S, real=True) for S in inner)
    spectrum, axes = _transformed(D.astype(np.float64), size)
    total = 0
    for k in range(len(D)):
        total = total + fft.rfftn(z[:, k, None].astype(np.float64), size, axes=axes) * spectrum[k]
    return fft.irfftn(total, size, axes=axes)[(..., *map(slice, inner))]


def correlate(r, D):
    """Yield the correlation (n, *P) of signals with each atom, in float64."""
    inner = tuple(S - s + 1 for S, s in zip(r.shape[2:], D.shape[2:], strict=True))
    size = tuple(fft.next_fast_len(S, real=True) for S in r.shape[2:])
    spectrum, axes = _transformed(D.astype(np.float64), size)
    transformed = fft.rfftn(r.astype(np.float64), size, axes=axes)
    for k in range(len(D)):
        whole = fft.irfftn((transformed * spectrum[k].conj()).sum(axis=1), size, axes=tuple(a - 1 for a in axes))
        yield whole[(..., *map(slice, inner))]


def _largest_correlation(y, D, positive):
    return max(float(c.max()) if positive else float(np.abs(c).max()) for c in correlate(y, D))


def objective(problem, z):
    """Return half the squared error plus penalty of dense codes (n, K, *P), summed over the signals."""
    if problem.positive and z.min() < 0:
        raise ValueError(f"a code is {z.min():g}, wanted codes >= 0")
    r = problem.y - synthesize(z, problem.D)
    return float((r**2).sum() / 2 + problem.lmbd * np.abs(z).sum(dtype=np.float64))


def lower_bound(problem, z):
    """Return the dual value of the residual of `z`, scaled for each signal to be feasible: no objective is below it."""
    r = problem.y - synthesize(z, problem.D)
    axes = tuple(range(1, r.ndim))
    top = np.zeros(len(r))
    for c in correlate(r, problem.D):
        top = np.maximum(top, (c if problem.positive else np.abs(c)).max(axis=axes[:-1]))
    best = (problem.y * r).sum(axis=axes) / np.maximum((r**2).sum(axis=axes), 1e-300)
    scale = np.minimum(np.maximum(best, 0), problem.lmbd / np.maximum(top, 1e-300))
    away = problem.y - scale.reshape(-1, *(1,) * len(axes)) * r
    return float(((problem.y**2).sum() - (away**2).sum()) / 2)
