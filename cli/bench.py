"""``emdl bench``: how fast certified coding is on this machine, beside SciPy on the same problem."""

import statistics
import time

import numpy as np

import emdl
from emdl.backend import n_threads

from . import screen

TARGETS = (1e-3, 1e-5)  # (objective - minimum) / minimum


def measure(*, samples, seed, as_json):
    """Print the seconds that emdl and SciPy's L-BFGS-B take to two relative gaps.

    Parameters
    ----------
    samples : int
        Length of the signal.
    seed : int
        Seed of the signal.
    as_json : bool
        Print one JSON object instead of a table.
    """
    y, D = make_signal(samples, seed)
    lmbd = 0.1 * emdl.lambda_max(y, D, positive=True)
    least = emdl.objective(y, emdl.encode(y, D, lmbd, tol=1e-9, positive=True), D, lmbd)
    times = {
        "emdl.encode, float32": [_time_encode(y, D, lmbd, target, np.float32) for target in TARGETS],
        "emdl.encode, float64": [_time_encode(y, D, lmbd, target, np.float64) for target in TARGETS],
        "SciPy L-BFGS-B": _time_scipy(y[0, 0], D[:, 0], lmbd, least),
    }
    if as_json:
        rows = [{"solver": name, "seconds": dict(zip(map(str, TARGETS), t, strict=True))} for name, t in times.items()]
        screen.put_json({"samples": samples, "threads": n_threads(), "times": rows})
        return
    screen.put_renderables(_table(samples, times))


def make_signal(samples, seed):
    """Return a signal (1, 1, samples) of three atoms (3, 1, 45), one event in 300 samples of each, and the atoms."""
    rng, t = np.random.default_rng(seed), np.arange(45.0)
    shapes = ((15, 6, 4), (20, 8, 3), (26, 7, 6))
    D = np.stack([np.exp(-(((t - m) / w) ** 2)) * np.cos((t - m) / v) for m, w, v in shapes])
    D = D[:, None] / np.linalg.norm(D, axis=1)[:, None, None]
    shape = (1, 3, samples - 44)
    clean = emdl.synthesize((rng.random(shape) < 1 / 300) * rng.uniform(0.5, 1.5, shape), D)
    return clean + 0.05 * rng.standard_normal(clean.shape), D


def _time_encode(y, D, lmbd, target, dtype):
    y, D = y.astype(dtype), D.astype(dtype)
    emdl.encode(y, D, lmbd, tol=0.5, positive=True)  # compiles
    times = []
    for _ in range(5):
        start = time.perf_counter()
        emdl.encode(y, D, lmbd, tol=target, positive=True, sparse=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _time_scipy(y, D, lmbd, least):
    """Return the seconds until the objective comes within each target, NaN where it does not."""
    from scipy.optimize import minimize
    from scipy.signal import fftconvolve

    shape, reached = (len(D), y.size - D.shape[1] + 1), [float("nan")] * len(TARGETS)
    n = shape[0] * shape[1]

    def value_and_slope(z):
        z = z.reshape(shape)
        r = fftconvolve(z, D, axes=1).sum(axis=0) - y
        return r @ r / 2 + lmbd * z.sum(), (fftconvolve(r[None], D[:, ::-1], mode="valid", axes=1) + lmbd).ravel()

    def note(intermediate_result):
        for i, target in enumerate(TARGETS):
            if np.isnan(reached[i]) and intermediate_result.fun <= least * (1 + target):
                reached[i] = time.perf_counter() - start
        if not np.isnan(reached).any():
            raise StopIteration

    start = time.perf_counter()
    limits = {"maxiter": 2000, "maxfun": 4000, "ftol": 0.0, "gtol": 0.0}
    minimize(
        value_and_slope, np.zeros(n), jac=True, method="L-BFGS-B", bounds=[(0, None)] * n, callback=note, options=limits
    )
    return reached


def _table(samples, times):
    from rich.table import Table

    table = Table(title=f"{samples:,} samples, 3 atoms of 45, {n_threads()} threads: seconds to a relative gap of")
    table.add_column("solver")
    for target in TARGETS:
        table.add_column(f"{target:.0e}", justify="right")
        table.add_column("times as long", justify="right")
    own = next(iter(times.values()))
    for name, seconds in times.items():
        cells = []
        for s, o in zip(seconds, own, strict=True):
            cells += ["not reached", ""] if np.isnan(s) else [f"{s:.4f}", f"{s / o:.1f}"]
        table.add_row(name, *cells)
    return table
