"""dicodile's locally greedy coordinate descent, on one worker; its import needs an MPI library."""


def solve(problem, watch, options):
    """Run ``method`` LGCD with options of dicodile: n_seg, strategy."""
    from dicodile.update_z.coordinate_descent import coordinate_descent

    if len(problem.y) > 1:
        raise ValueError("dicodile's coordinate descent takes one signal")
    del options["method"]
    options.pop("dtype", None)  # float64 alone
    segments = max(1, problem.positions[0] // (2 * problem.D.shape[2] - 1))

    def run(passes):
        return coordinate_descent(
            problem.y[0], problem.D, problem.lmbd, tol=1e-12, max_iter=int(passes * segments),
            z_positive=problem.positive, **options,
        )[0][None]  # fmt: skip

    run(1)
    watch.search(run, 10)
