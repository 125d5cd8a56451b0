"""alphacsc's greedy coordinate descent and FISTA, and dicodile's, with their own clocks."""

import numpy as np


def methods():
    from alphacsc.update_z_multi import _update_z_multi_idx

    def run(solver, options):
        def trace(problem, stop):
            if problem.D.ndim != 3 or not problem.positive:
                return []
            start = np.zeros((len(problem.D), problem.y.shape[2] - problem.D.shape[2] + 1))
            *_, objective, seconds = _update_z_multi_idx(
                problem.y[0], problem.D, problem.lmbd, start, False, solver=solver, solver_kwargs=options, timing=True,
                random_state=0,
            )  # fmt: skip
            return list(zip(np.cumsum(seconds), objective, strict=True))

        return trace

    return {
        "alphacsc LGCD": run("lgcd", {"tol": 1e-5}),
        "alphacsc FISTA": run("fista", {"max_iter": 1000, "tol": 1e-6}),
    }


def methods_of_dicodile():
    from dicodile.update_z.coordinate_descent import coordinate_descent

    def trace(problem, stop):
        if problem.D.ndim != 3 or not problem.positive:
            return []
        costs = coordinate_descent(
            problem.y[0], problem.D, problem.lmbd, tol=1e-5, max_iter=10**8, z_positive=True, timing=True, timeout=60
        )[3]
        seconds = [costs[0][1]] + [costs[0][1] + cost[1] for cost in costs[1:]]
        return [(t, cost[-1]) for t, cost in zip(seconds, costs, strict=True)]

    return {"dicodile LGCD": trace}
