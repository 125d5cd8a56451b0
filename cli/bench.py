"""``emdl bench``: how fast certified coding is on this machine, beside SciPy on the same problems."""

import os
import statistics
import time

import numpy as np

import emdl
from emdl.backend import n_threads

from . import screen

TARGETS = (1e-3, 1e-5)  # (objective - minimum) / minimum
LIMIT = 4  # processor seconds after which SciPy is stopped


def measure(*, samples, seed, as_json):
    """Print the seconds that emdl and SciPy take to two relative gaps, on a signal and on a picture.

    Parameters
    ----------
    samples : int
        Length of the signal.
    seed : int
        Seed of signal and picture.
    as_json : bool
        Print one JSON object instead of a table.
    """
    problems = {
        f"{samples:,} samples, 3 atoms of 45, codes >= 0": (*make_signal(samples, seed), True),
        "picture 96 x 96, 16 atoms 8 x 8": (*make_picture(seed), False),
    }
    rows, compiling = [], 0.0
    for name, (y, D, positive) in problems.items():
        lmbd = 0.1 * emdl.lambda_max(y, D, positive=positive)
        before = time.perf_counter()
        emdl.encode(y, D, lmbd, tol=0.5, positive=positive)
        emdl.encode(y.astype(np.float32), D, lmbd, tol=0.5, positive=positive)
        compiling += time.perf_counter() - before
        least = emdl.objective(y, emdl.encode(y, D, lmbd, tol=1e-9, positive=positive), D, lmbd)
        times = {
            "emdl, float32": _time_encode(y, D, lmbd, positive, np.float32),
            "emdl, float64": _time_encode(y, D, lmbd, positive, np.float64),
            "SciPy, FISTA": _time_fista(y, D, lmbd, positive, least),
        }
        if positive:
            times["SciPy, L-BFGS-B"] = _time_lbfgs(y, D, lmbd, least)
        rows += [{"problem": name, "solver": solver, "seconds": t} for solver, t in times.items()]
    state = {"threads": n_threads(), "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")}
    if as_json:
        keyed = [{**row, "seconds": dict(zip(map(str, TARGETS), row["seconds"], strict=True))} for row in rows]
        screen.put_json({"samples": samples, "first_calls": compiling, **state, "times": keyed})
        return
    screen.put_renderables(*(_table(name, [row for row in rows if row["problem"] == name]) for name in problems))
    screen.put(
        "Processor seconds, all threads together, until the objective is within the gap of the minimum; emdl's until "
        f"it has proved so.\n{state['threads']} threads, load {state['load']:.1f}; the first calls of emdl, which "
        f"compile or load its kernels, took {compiling:.1f} s more."
    )


def make_signal(samples, seed):
    """Return a signal (1, 1, samples) of three atoms (3, 1, 45), one event in 300 samples of each, and the atoms."""
    rng, t = np.random.default_rng(seed), np.arange(45.0)
    shapes = ((15, 6, 4), (20, 8, 3), (26, 7, 6))
    D = np.stack([np.exp(-(((t - m) / w) ** 2)) * np.cos((t - m) / v) for m, w, v in shapes])
    D = D[:, None] / np.linalg.norm(D, axis=1)[:, None, None]
    return _with_noise(rng, (1, 3, samples - 44), D, 1 / 300), D


def make_picture(seed, side=96):
    """Return a picture (1, 1, side, side) of waves (16, 1, 8, 8), one in 400 positions of each, and the waves."""
    rng, t = np.random.default_rng(seed), np.pi * (np.arange(8) + 0.5) / 8
    waves = np.cos(np.outer(np.arange(1, 5), t))
    D = np.einsum("ai,bj->abij", waves, waves).reshape(16, 1, 8, 8)
    D = D / np.linalg.norm(D, axis=(2, 3), keepdims=True)
    return _with_noise(rng, (1, 16, side - 7, side - 7), D, 1 / 400), D


def _with_noise(rng, shape, D, rate):
    clean = emdl.synthesize((rng.random(shape) < rate) * rng.uniform(0.5, 1.5, shape), D)
    return clean + 0.05 * rng.standard_normal(clean.shape)


def _time_encode(y, D, lmbd, positive, dtype):
    y, D = y.astype(dtype), D.astype(dtype)
    medians = []
    for target in TARGETS:
        times = []
        for _ in range(5):
            start = time.process_time()
            emdl.encode(y, D, lmbd, tol=target, positive=positive, sparse=True)
            times.append(time.process_time() - start)
        medians.append(statistics.median(times))
    return medians


class _Clock:
    """Notes when an objective comes within each gap of the least; judging stops the clock."""

    def __init__(self, least):
        self.least, self.reached, self.spent = least, [float("nan")] * len(TARGETS), 0.0
        self.start = time.process_time()

    def is_over(self, judge):
        self.spent += time.process_time() - self.start
        value = judge()
        for i, target in enumerate(TARGETS):
            if np.isnan(self.reached[i]) and value <= self.least * (1 + target):
                self.reached[i] = self.spent
        self.start = time.process_time()
        return self.spent > LIMIT or not np.isnan(self.reached).any()


def _smooth_part(y, D):
    """Return the function z -> half the squared error and its slope, and a bound of its curvature, by transforms."""
    from scipy import fft

    axes = tuple(range(2, y.ndim))
    size = tuple(fft.next_fast_len(S, real=True) for S in y.shape[2:])
    spectrum = fft.rfftn(D[:, 0], size, axes=tuple(a - 1 for a in axes))
    inside = (..., *(slice(0, S - s + 1) for S, s in zip(y.shape[2:], D.shape[2:], strict=True)))

    def value_and_slope(z):
        made = (fft.rfftn(z, size, axes=axes) * spectrum).sum(axis=1, keepdims=True)
        r = fft.irfftn(made, size, axes=axes)[(..., *map(slice, y.shape[2:]))] - y
        slope = fft.irfftn(fft.rfftn(r, size, axes=axes) * spectrum.conj(), size, axes=axes)[inside]
        return (r**2).sum() / 2, slope

    return value_and_slope, float((np.abs(spectrum) ** 2).sum(axis=0).max())


def _start(y, D):
    return np.zeros((1, len(D), *(S - s + 1 for S, s in zip(y.shape[2:], D.shape[2:], strict=True))))


def _time_fista(y, D, lmbd, positive, least):
    value_and_slope, bound = _smooth_part(y, D)
    w = z = _start(y, D)
    clock, momentum, low = _Clock(least), 1.0, 0.0 if positive else -np.inf
    while True:
        u = w - value_and_slope(w)[1] / bound
        new = np.maximum(u - lmbd / bound, 0) + np.minimum(np.maximum(u, low) + lmbd / bound, 0)
        if clock.is_over(lambda: value_and_slope(new)[0] + lmbd * np.abs(new).sum()):  # noqa: B023 - called at once
            return clock.reached
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        w = new + (momentum - 1) / following * (new - z)
        z, momentum = new, following


def _time_lbfgs(y, D, lmbd, least):
    from scipy.optimize import minimize

    value_and_slope, _ = _smooth_part(y, D)
    z, clock = _start(y, D), _Clock(least)

    def function(flat):
        value, slope = value_and_slope(flat.reshape(z.shape))
        return value + lmbd * flat.sum(), (slope + lmbd).ravel()

    def note(intermediate_result):
        if clock.is_over(lambda: intermediate_result.fun):
            raise StopIteration

    bounds, limits = [(0, None)] * z.size, {"maxiter": 10**4, "maxfun": 10**5, "ftol": 0.0, "gtol": 0.0}
    minimize(function, z.ravel(), jac=True, method="L-BFGS-B", bounds=bounds, callback=note, options=limits)
    return clock.reached


def _table(title, rows):
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("solver")
    for target in TARGETS:
        table.add_column(f"to {target:.0e} (s)", justify="right")
        table.add_column("times emdl", justify="right")
    own = rows[0]["seconds"]
    for row in rows:
        cells = []
        for s, o in zip(row["seconds"], own, strict=True):
            cells += [f"not in {LIMIT}", ""] if np.isnan(s) else [f"{s:.4f}", f"{s / o:.1f}"]
        table.add_row(row["solver"], *cells)
    return table
