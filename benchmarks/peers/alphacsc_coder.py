"""alphacsc's locally greedy coordinate descent, FISTA and L-BFGS, as its own learners call them."""


def solve(problem, watch, options):
    """Run ``method`` LGCD, FISTA or L-BFGS, with options of alphacsc: n_seg, strategy (a number: see `STRATEGIES`)."""
    from alphacsc.update_z_multi import update_z_multi

    method = options.pop("method")
    options.pop("dtype", None)  # float64 alone

    def run(**given):
        return update_z_multi(
            problem.y, problem.D, problem.lmbd, solver=method.lower(), solver_kwargs={**options, **given},
            positive=problem.positive, n_jobs=1, random_state=0,
        )[0]  # fmt: skip

    run(max_iter=1)
    if len(problem.y) > 1:  # a count would have to be one for each signal: what a user sets is the tolerance
        for tol in (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 1e-6, 1e-7):
            if watch.trial(lambda: run(tol=tol), tol=tol) <= 1e-5 or watch.points[-1]["cpu"] > watch.limit / 2:  # noqa: B023
                return
    elif method == "LGCD":  # counts passes over its segments
        first = max(1, int(10 * min(1, 10_000_000 / problem.y.size)))
        watch.search(lambda passes: run(tol=1e-12, max_iter=passes), first)
    else:
        watch.search(lambda iterations: run(tol=1e-12, max_iter=iterations), 10)
