"""SPORCO's ADMM and FISTA. Its signals wrap around: codes that would wrap are priced out of the solution."""

import time

import numpy as np


def methods():
    from sporco.admm import cbpdn as admm
    from sporco.pgm import cbpdn as pgm
    from sporco.pgm.backtrack import BacktrackStandard

    return {
        "SPORCO ADMM float32": lambda problem, stop: _run(
            admm.ConvBPDN, {"FastSolve": True}, np.float32, problem, stop
        ),
        "SPORCO ADMM float64": lambda problem, stop: _run(
            admm.ConvBPDN, {"FastSolve": True}, np.float64, problem, stop
        ),
        "SPORCO FISTA float32": lambda problem, stop: _run(
            pgm.ConvBPDN, {"L": 1.0, "Backtrack": BacktrackStandard(maxiter=15)}, np.float32, problem, stop
        ),
    }


def _run(solver, options, dtype, problem, stop):
    y, D = problem.y[0, 0].astype(dtype), np.moveaxis(problem.D[:, 0], 0, -1).astype(dtype)
    axes = tuple(range(y.ndim))
    inside = tuple(slice(0, S - s + 1) for S, s in zip(y.shape, D.shape, strict=False))
    weight = np.full((*y.shape, 1, 1, D.shape[-1]), 1e3, dtype)
    weight[inside] = 1
    Df = np.fft.rfftn(problem.D[:, 0], y.shape, axes=[a + 1 for a in axes])
    trace, clock = [], {}

    def objective(codes):
        z = np.zeros((problem.D.shape[0], *y.shape))
        z[(slice(None), *inside)] = np.moveaxis(np.asarray(codes, np.float64).squeeze(), -1, 0)[(slice(None), *inside)]
        made = np.fft.irfftn((Df * np.fft.rfftn(z, axes=[a + 1 for a in axes])).sum(0), y.shape, axes=axes)
        return ((problem.y[0, 0] - made) ** 2).sum() / 2 + problem.lmbd * np.abs(z).sum()

    def callback(state):
        clock["spent"] += time.perf_counter() - clock["start"]
        clock["n"] += 1
        end = False
        if clock["n"] <= 10 or clock["n"] % 5 == 0:
            trace.append((clock["spent"], objective(state.Y if hasattr(state, "rho") else state.X)))
            end = stop(*trace[-1])
        clock["start"] = time.perf_counter()
        return end

    common = {"MaxMainIter": 100_000, "RelStopTol": 0.0, "Callback": callback, "Verbose": False, "L1Weight": weight}
    common |= {"NonNegCoef": problem.positive, "DataType": dtype}
    clock |= {"spent": 0.0, "n": 0, "start": time.perf_counter()}
    solver(D, y, problem.lmbd, solver.Options({**common, **options}), dimK=0, dimN=y.ndim).solve()
    return trace
