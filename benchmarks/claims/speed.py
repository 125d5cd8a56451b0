"""Claim 8: identification of spike times against convex solvers; training against other learners. One thread.

The same problem, data and judge for everybody: spike times at gap 1e-5 of (1) on 3,000 to 30,000 samples, 3 atoms of
45, 10 dB; training from a common start at an error of 0.6 on 20 windows of 3,000 samples, seconds to an error of 0.1.
Processor seconds: where others compute on the machine, waiting does not count. The peers are an extra of the
benchmarks (see `benchmarks/coding.py`); without them their cells are left for an environment that has them.
"""

import contextlib
import importlib.util
import time

import numpy as np

from . import data, drawing
from .store import groups

VERSION = 1
SAMPLES, SOLVERS = (3_000, 10_000, 30_000), ("emdl float64", "CVXPY ECOS", "CVXPY CLARABEL")
LEARNERS = {
    "emdl.em_fit": None,
    "alphacsc learn_d_z, L-BFGS": "alphacsc",
    "alphacsc learn_d_z_multi, LGCD": "alphacsc",
    "SPORCO ConvBPDNDictLearn, ADMM and consensus": "sporco",
}
PACKAGES = {"emdl": None, "CVXPY": "cvxpy"}
LIMIT = 20.0  # processor seconds of a learner


def cells(quick):
    solvers, learners = (SOLVERS[:1], list(LEARNERS)[:1]) if quick else (SOLVERS, LEARNERS)
    rows = [{"part": "times", "samples": N, "solver": s} for N in SAMPLES[: 1 if quick else None] for s in solvers]
    seeds = list(data.SEEDS)[: 1 if quick else None]
    return rows + [{"part": "training", "learner": name, "seed": seed} for name in learners for seed in seeds]


def missing(part, **cell):
    """Return what keeps a cell from being computed, or None."""
    package = LEARNERS[cell["learner"]] if part == "training" else PACKAGES[cell["solver"].split()[0]]
    return f"{package} is not installed" if package and not importlib.util.find_spec(package) else None


def run(part, **cell):
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        return _train(**cell) if part == "training" else _identify(**cell)


# ---- spike times ------------------------------------------------------------------------------------------------


def _identify(samples, solver):
    from benchmarks import peers, problems
    from emdl import encode

    problem = problems.spikes(samples)
    best = encode(problem.y, problem.D, problem.lmbd, tol=1e-9, positive=True)
    watch = _keeping(peers.Watch)(problem, problems.objective(problem, best), 600.0, lambda point: None)
    solve, options = peers.solver(solver)
    solve(problem, watch, options)
    reached = [p for p in watch.points if p["gap"] <= 1e-5 and p["cpu"] > 0]  # some clocks tick coarsely
    point = min(reached, key=lambda p: p["cpu"])
    return {"seconds": point["cpu"], "gap": point["gap"], "f1": _agreement(watch.codes, best)}


def _keeping(watch):
    class Keeping(watch):
        """A watch that keeps the codes it judged last."""

        def note(self, wall, cpu, codes, **said):
            self.codes = codes
            return super().note(wall, cpu, codes, **said)

    return Keeping


def _agreement(codes, best):
    """Return the F1 of the spike times against those of the exact minimiser, to the sample."""
    from emdl.metrics import score_spikes

    found, true = (_times(z) for z in (codes, best))
    score = score_spikes(*found, *true, tolerance=0)
    return 2 * float(score.true_positives.sum()) / (len(found[0]) + len(true[0]))


def _times(z, least=0.1):
    _, unit, time_ = np.nonzero(z > least)
    order = np.argsort(time_, kind="stable")
    return time_[order], unit[order]


# ---- training ---------------------------------------------------------------------------------------------------


class _Enough(Exception):
    """The learner has had its time."""


class _Monitor:
    """Seconds and errors of a learner's dictionaries; judging stops the clock."""

    def __init__(self, truth):
        self.truth, self.spent, self.seen = truth, 0.0, []
        self.last = time.process_time()

    def __call__(self, D):
        self.spent += time.process_time() - self.last
        self.seen.append((self.spent, data.worst(np.array(D, float), self.truth)))
        if self.spent > LIMIT:
            raise _Enough
        self.last = time.process_time()


def _train(learner, seed):
    import warnings

    from benchmarks import starts

    problem = starts.w3()
    start = starts.near_start(problem.D, seed)
    largest = max(np.correlate(y[0], d[0], "valid").max() for y in problem.y for d in problem.D)
    teach = {"emdl": _emdl, "alphacsc": _alphacsc, "SPORCO": _sporco}[learner.split()[0].split(".")[0]]
    if seed == 0:  # compile, import, plan
        _monitored(teach, learner, problem, start, 0.1 * largest, limit=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        monitor = _monitored(teach, learner, problem, start, 0.1 * largest)
    hit = next((seconds for seconds, error in monitor.seen if error < 0.1), None)
    return {"seconds": hit, "error": monitor.seen[-1][1], "least": min(error for _, error in monitor.seen),
            "all": monitor.spent}  # fmt: skip


def _monitored(teach, learner, problem, start, lmbd, limit=LIMIT):
    monitor = _Monitor(problem.D)
    monitor.spent = LIMIT - limit
    with contextlib.suppress(_Enough):
        teach(learner, problem, start, lmbd, monitor)
    return monitor


def _emdl(learner, problem, start, lmbd, monitor):
    from emdl import em_fit

    em_fit(problem.y, 3, 45, D0=start, lmbd0=lmbd, sigma=1.0, positive=True, learn_lmbd=False, rng=0,
           callback=lambda progress: monitor(progress.D))  # fmt: skip


def _alphacsc(learner, problem, start, lmbd, monitor):
    if "multi" in learner:
        from alphacsc import learn_d_z_multi

        learn_d_z_multi(
            problem.y, 3, 45, n_iter=60, rank1=False, solver_z="lgcd", solver_d="fista", reg=lmbd / problem.y.std(),
            lmbd_max="fixed", D_init=start, n_jobs=1, verbose=0, random_state=0, eps=1e-10, algorithm="batch",
            callback=lambda coder, *_: monitor(coder.D_hat) if coder.D_hat is not None else None,
            raise_on_increase=False,
        )  # fmt: skip
    else:
        from alphacsc import learn_d_z

        learn_d_z(problem.y[:, 0], 3, 45, reg=lmbd, n_iter=60, solver_z="l-bfgs", solver_z_kwargs={},
                  ds_init=start[:, 0], random_state=0, n_jobs=1, verbose=0,
                  callback=lambda X, d, z, reg: monitor(d[:, None]))  # fmt: skip


def _sporco(learner, problem, start, lmbd, monitor):
    from sporco.dictlrn import cbpdndl

    options = cbpdndl.ConvBPDNDictLearn.Options(
        {"MaxMainIter": 2000, "CBPDN": {"rho": 50 * lmbd + 0.5, "NonNegCoef": True}, "CCMOD": {"rho": 10.0},
         "Callback": lambda one: monitor(one.getdict().squeeze().T[:, None, :45])},
        xmethod="admm", dmethod="cns",
    )  # fmt: skip
    cbpdndl.ConvBPDNDictLearn(
        start[:, 0].T.copy(), problem.y[:, 0].T.copy(), lmbd, options, xmethod="admm", dmethod="cns", dimK=1, dimN=1
    ).solve()


# ---- tables and figure ------------------------------------------------------------------------------------------


def tables(rows):
    found = {(c["samples"], c["solver"]): r for c, r in rows if c["part"] == "times"}
    lines = []
    for (samples, solver), result in found.items():
        ratio = result["seconds"] / found[samples, SOLVERS[0]]["seconds"]
        times = "1" if solver == SOLVERS[0] else f"{ratio:,.0f}"
        seconds = f"{result['seconds']:.4f}" if result["seconds"] < 0.1 else f"{result['seconds']:.2f}"
        lines.append([f"{samples:,}", solver, seconds, f"{result['gap']:.0e}", f"{result['f1']:.4f}", times])
    head = ["samples", "solver", "processor s", "gap reached", "F1 against the minimiser's spike times", "times emdl"]
    made = {"speed": drawing.table(head, lines)}
    training = groups([row for row in rows if row[0]["part"] == "training"], "learner")
    own = np.median([r["seconds"] for r in training[(next(iter(LEARNERS)),)]])
    lines = []
    for (name,), results in training.items():
        hits = [r["seconds"] for r in results if r["seconds"] is not None]
        ratio = f"{np.median(hits) / own:.0f}" if hits else "-"
        errors = drawing.spread([r["error"] for r in results])
        lines.append([name, f"{len(hits)} of {len(results)}", drawing.spread(hits, 3), ratio, errors])
    head = ["learner", "reached 0.1", "processor s to 0.1", "times emdl", "error at the end"]
    return {**made, "training": drawing.table(head, lines)}


def draw(rows, folder):
    figure, axes = drawing.panels(1)
    axis = axes[0]
    for number, solver in enumerate(SOLVERS):
        points = sorted((c["samples"], r["seconds"]) for c, r in rows if c.get("solver") == solver)
        if points:
            axis.plot(*zip(*points, strict=True), marker=drawing.MARKS[number], color=drawing.COLOURS[number],
                      label=solver)  # fmt: skip
    axis.set(xscale="log", yscale="log", xlabel="samples", ylabel="processor seconds\nto a gap of 1e-5")
    axis.legend()
    drawing.save(figure, folder, "speed")
