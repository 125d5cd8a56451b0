"""FISTA and L-BFGS in NumPy and SciPy: what a user would write, and a baseline without any peer installed."""

import numpy as np
from scipy import fft, optimize


def solve(problem, watch, options):
    """Run ``method`` FISTA, with its restart, or L-BFGS, in ``dtype``."""
    method, dtype = options["method"], options.get("dtype", np.float64)
    value_and_slope, project, bound = _operators(problem, dtype)
    shape = (len(problem.y), len(problem.D), *problem.positions)
    start = np.zeros(shape, dtype)
    value_and_slope(start)  # plans transforms
    watch.start()
    if method == "FISTA":
        _fista(start, value_and_slope, project, bound, watch)
    else:
        _lbfgs(start, value_and_slope, problem, watch)


def _operators(problem, dtype):
    S, P = problem.y.shape[2:], problem.positions
    axes = tuple(range(2, 2 + len(S)))
    size = tuple(fft.next_fast_len(n, real=True) for n in S)
    spectrum = fft.rfftn(problem.D.astype(dtype), size, axes=axes)
    y, inside = problem.y.astype(dtype), (..., *map(slice, P))
    lmbd = dtype(problem.lmbd)

    def value_and_slope(z):
        made = np.einsum("nk...,kc...->nc...", fft.rfftn(z, size, axes=axes), spectrum)
        r = fft.irfftn(made, size, axes=axes)[(..., *map(slice, S))] - y
        back = np.einsum("nc...,kc...->nk...", fft.rfftn(r, size, axes=axes), spectrum.conj())
        return (r**2).sum() / 2, fft.irfftn(back, size, axes=axes)[inside]

    def project(u, step):
        if problem.positive:
            return np.maximum(u - step * lmbd, 0)
        return np.sign(u) * np.maximum(np.abs(u) - step * lmbd, 0)

    flat = np.moveaxis(spectrum.reshape(*spectrum.shape[:2], -1), 2, 0)
    gram = flat.conj().transpose(0, 2, 1) @ flat  # (frequencies, C, C): small
    return value_and_slope, project, float(np.linalg.norm(gram, 2, axis=(1, 2)).max())


def _fista(z, value_and_slope, project, bound, watch):
    w, momentum, step = z, 1.0, z.dtype.type(1 / bound)
    for _ in range(100_000):
        new = project(w - step * value_and_slope(w)[1], step)
        if watch.lap(lambda: new):  # noqa: B023 - called at once
            return
        if ((w - new) * (new - z)).sum() > 0:  # goes uphill: begin anew (O'Donoghue and Candes, 2015)
            momentum = 1.0
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        w = new + z.dtype.type((momentum - 1) / following) * (new - z)
        z, momentum = new, following


def _lbfgs(z, value_and_slope, problem, watch):
    if not problem.positive:
        raise ValueError("L-BFGS-B is for codes >= 0")
    latest = {}

    def function(flat):
        value, slope = value_and_slope(flat.reshape(z.shape).astype(z.dtype))
        return float(value + problem.lmbd * flat.sum()), (slope + problem.lmbd).ravel().astype(np.float64)

    def note(intermediate_result):
        latest["x"] = intermediate_result.x
        if watch.lap(lambda: np.maximum(latest["x"], 0).reshape(z.shape)):
            raise StopIteration

    bounds, limits = [(0, None)] * z.size, {"maxiter": 10**5, "maxfun": 10**6, "ftol": 0.0, "gtol": 0.0}
    optimize.minimize(
        function,
        z.ravel().astype(np.float64),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        callback=note,
        options=limits,
    )
