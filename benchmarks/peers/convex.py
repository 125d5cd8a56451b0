"""Convex solvers through CVXPY, on the sparse matrix of the problem."""

import time

import numpy as np
import scipy.sparse as sp

SOLVERS = {
    "CLARABEL": {},
    "ECOS": {},
    "OSQP": {"eps_abs": 1e-7, "eps_rel": 1e-7, "max_iter": 200_000, "time_limit": 120},
    "SCS": {"eps_abs": 1e-7, "eps_rel": 1e-7, "max_iters": 200_000, "time_limit_secs": 120},
}


def methods():
    import cvxpy

    return {f"cvxpy {name}": _solver(cvxpy, name) for name in SOLVERS if name in cvxpy.installed_solvers()}


def _solver(cvxpy, name):
    def trace(problem, stop):
        if problem.D.ndim != 3 or not problem.positive or problem.D.shape[1] > 1:
            return []
        y, D = problem.y[0, 0], problem.D[:, 0]
        N, (K, s) = y.size, D.shape
        P = N - s + 1
        A = sp.hstack([sp.diags([np.full(P, v) for v in d], [-i for i in range(s)], shape=(N, P)) for d in D]).tocsc()
        z, r = cvxpy.Variable(K * P, nonneg=True), cvxpy.Variable(N)
        cost = cvxpy.Minimize(0.5 * cvxpy.sum_squares(r) + problem.lmbd * cvxpy.sum(z))
        start = time.perf_counter()
        cvxpy.Problem(cost, [A @ z + r == y]).solve(solver=name, **SOLVERS[name])
        seconds = time.perf_counter() - start
        found = np.maximum(z.value, 0)
        return [(seconds, ((y - A @ found) ** 2).sum() / 2 + problem.lmbd * found.sum())]

    return trace
