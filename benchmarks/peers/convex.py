"""Convex solvers through CVXPY, on the sparse Toeplitz matrix of the problem, at falling tolerances."""

import time

import numpy as np
import scipy.sparse as sp

# a first run that already meets the last target ends it; these begin where the first target is met or nearly
TOLERANCES = {
    "CLARABEL": (1e-3, 1e-5, 1e-7),
    "ECOS": (1e-3, 1e-4, 1e-5, 1e-7),
    "OSQP": (1e-3, 1e-4, 1e-6, 1e-7),
    "SCS": (1e-4, 1e-5, 1e-6, 1e-7),
}
NEVER = 10**7


def _options(method, tol):
    if method == "CLARABEL":
        return {"tol_gap_abs": tol, "tol_gap_rel": tol, "tol_feas": min(tol, 1e-6), "max_iter": 500}
    if method == "ECOS":
        return {"abstol": tol, "reltol": tol, "feastol": min(tol, 1e-6), "max_iters": 500}
    return {"eps_abs": tol, "eps_rel": tol, "max_iter" if method == "OSQP" else "max_iters": NEVER}


def solve(problem, watch, options):
    """Solve by ``method`` CLARABEL, ECOS, OSQP or SCS, as often as there are tolerances, until the last target is met.

    The time is that of CVXPY and the solver; what of it the solver alone took (processor seconds) stands in the points
    as ``solver``.
    """
    import warnings

    import cvxpy

    method = options["method"]
    if problem.D.ndim != 3 or not problem.positive or problem.y.shape[:2] != (1, 1):
        raise ValueError("wanted one signal of one channel and codes >= 0")
    inside = {}

    def run(tol, matrix, right):
        z, r = cvxpy.Variable(matrix.shape[1], nonneg=True), cvxpy.Variable(len(right))
        cost = cvxpy.Minimize(0.5 * cvxpy.sum_squares(r) + problem.lmbd * cvxpy.sum(z))
        stated = cvxpy.Problem(cost, [matrix @ z + r == right])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a solution may be inaccurate: it is judged here
            data, chain, inverse = stated.get_problem_data(method, solver_opts=_options(method, tol))
            before = time.process_time()
            found = chain.solve_via_data(stated, data, solver_opts=_options(method, tol))
            inside["solver"] = time.process_time() - before
            stated.unpack_results(found, chain, inverse)
        inside["iterations"] = stated.solver_stats.num_iters
        return np.maximum(z.value, 0).reshape(1, len(problem.D), -1)

    run(1e-3, toeplitz(problem.D, 500), problem.y[0, 0, :500])  # imports what CVXPY loads late
    A = toeplitz(problem.D, problem.y.shape[2])
    for tol in TOLERANCES[method]:
        gap = watch.trial(lambda: run(tol, A, problem.y[0, 0]), tol=tol, inside=inside)  # noqa: B023 - called at once
        if gap <= 1e-5 or watch.points[-1]["cpu"] > watch.limit / 2:
            return


def toeplitz(D, N):
    """Return the sparse matrix (N, K P) that makes a signal of N samples from the codes of atoms (K, 1, s)."""
    P = N - D.shape[2] + 1
    bands = [sp.diags([np.full(P, v) for v in d[0]], [-i for i in range(len(d[0]))], shape=(N, P)) for d in D]
    return sp.hstack(bands).tocsc()
