"""The coding suite: seconds to a relative gap of 1e-3 and 1e-5, emdl against its peers, in turns within one run."""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import time

import numpy as np

import emdl
from benchmarks import problems
from benchmarks.peers import alphacsc_coder, convex, sporco_coder

TARGETS = (1e-3, 1e-5)
PEERS = {"sporco": sporco_coder.methods, "alphacsc": alphacsc_coder.methods}
PEERS |= {"dicodile": alphacsc_coder.methods_of_dicodile, "cvxpy": convex.methods}

# name -> (problem, which peers)
CASES = {
    "w2": (lambda: problems.spikes(30_000), "SPORCO ADMM float32|alphacsc|dicodile"),
    "w2-3k": (lambda: problems.spikes(3_000), "alphacsc LGCD|cvxpy"),
    "w2-10k": (lambda: problems.spikes(10_000), "alphacsc LGCD|cvxpy"),
    "w2-30k": (lambda: problems.spikes(30_000), "cvxpy"),
    "w2-300k": (lambda: problems.spikes(300_000), "alphacsc LGCD"),
    "w2-1m": (lambda: problems.spikes(1_000_000), "alphacsc LGCD"),
    "tetrode": (problems.tetrode, "alphacsc LGCD|dicodile"),
    "w1-0.2": (lambda: problems.photograph(0.2), "SPORCO ADMM|SPORCO FISTA"),
    "w1-0.05": (lambda: problems.photograph(0.05), "SPORCO ADMM|SPORCO FISTA"),
    "w1-0.01": (lambda: problems.photograph(0.01), "SPORCO ADMM float32"),
    "w1-0.005": (lambda: problems.photograph(0.005), "SPORCO ADMM float32"),
    "w1-512": (lambda: problems.photograph(0.05, 512), "SPORCO ADMM float32"),
}


def versions():
    """Return the versions of emdl and of the peers that are installed."""
    found = {}
    for name in ("emdl", "numpy", "numba", *PEERS, "clarabel", "ecos", "osqp", "scs"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def load_peers(say):
    """Return {method: trace} of all peers that import; say which do not."""
    methods = {}
    for name, make in PEERS.items():
        try:
            methods |= make()
        except Exception as error:  # noqa: BLE001 - a peer may fail to import in any way, and the report says so
            say(f"peer {name} is left out: {type(error).__name__}: {error}")
    return methods


def run(*, cases=None, repeats=3, limit=60.0, say=print):
    """Run the cases and return their records, one for each case and method."""
    peers, records = load_peers(say), []
    for name in cases or CASES:
        make, wanted = CASES[name]
        try:
            problem = make()
        except ImportError as error:
            say(f"{name} is left out: {error}")
            continue
        chosen = {m: t for m, t in peers.items() if any(m.startswith(w) for w in wanted.split("|"))}
        records += _run_case(name, problem, chosen, repeats, limit, say)
    return records


def _run_case(name, problem, peers, repeats, limit, say):
    best = problems.primal_and_dual(
        problem, emdl.encode(problem.y, problem.D, problem.lmbd, tol=1e-7, positive=problem.positive)
    )
    reference = best[1]
    say(f"{name}: {problem.name}; minimum {reference:.8g}, known to {best[0] / best[1] - 1:.0e}")
    seconds = {}
    for dtype in (np.float32, np.float64):
        emdl.encode(problem.y.astype(dtype), problem.D, problem.lmbd, tol=0.5, positive=problem.positive)  # compiles
    for repeat in range(repeats):
        for dtype in (np.float32, np.float64):
            method = f"emdl {np.dtype(dtype)}"
            for target in TARGETS:
                seconds.setdefault((method, target), []).append(_time_emdl(problem, dtype, target, reference))
        for method, trace in peers.items():
            if repeat and min(seconds[method, TARGETS[0]]) > 5:
                continue  # one run of a slow one is enough
            reached = _reached(problem, trace, reference, limit)
            for target in TARGETS:
                seconds.setdefault((method, target), []).append(reached[target])
    records = []
    for method in dict.fromkeys(m for m, _ in seconds):
        medians = [statistics.median(seconds[method, target]) for target in TARGETS]
        records.append(
            {
                "case": name,
                "problem": problem.name,
                "method": method,
                "seconds": dict(zip(map(str, TARGETS), medians, strict=True)),
            }
        )
        own = [statistics.median(seconds["emdl float32", target]) for target in TARGETS]
        ratios = "  ".join(
            f"{t:.0e}: {s:9.4f} s ({s / o:7.1f} x)" for t, s, o in zip(TARGETS, medians, own, strict=True)
        )
        say(f"  {method:24s} {ratios}")
    return records


def _time_emdl(problem, dtype, target, reference):
    """Return the seconds until `encode` returns with its certificate; its codes are judged like everyone's."""
    y, D = problem.y.astype(dtype), problem.D.astype(dtype)
    start = time.perf_counter()
    z = emdl.encode(y, D, problem.lmbd, tol=target, positive=problem.positive, sparse=True)
    seconds = time.perf_counter() - start
    primal = problems.primal_and_dual(problem, z.dense())[0]
    if primal > reference * (1 + target) * (1 + 1e-7):
        raise AssertionError(f"emdl returned an objective of {primal:.8g}, minimum {reference:.8g}, wanted {target:g}")
    return seconds


def _reached(problem, trace, reference, limit):
    """Return {target: seconds} of a peer, infinite where it did not get there."""
    goal = reference * (1 + TARGETS[-1])
    points = trace(problem, lambda seconds, objective: objective <= goal or seconds > limit)
    return {
        target: min((t for t, objective in points if objective <= reference * (1 + target)), default=float("inf"))
        for target in TARGETS
    }


def scaling(*, sizes=(10_000, 100_000, 1_000_000, 10_000_000), say=print):
    """Return seconds of emdl against the number of samples, W2 at 1e-3, float32."""
    points = []
    for size in sizes:
        problem = problems.spikes(size)
        y, D = problem.y.astype(np.float32), problem.D.astype(np.float32)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            emdl.encode(y, D, problem.lmbd, tol=1e-3, positive=True, sparse=True)
            times.append(time.perf_counter() - start)
        points.append({"samples": size, "seconds": statistics.median(times)})
        taken = points[-1]["seconds"]
        say(f"  {size:12,d} samples {taken:9.4f} s, {1e9 * taken / size:6.1f} ns a sample")
    return points


def main(arguments, folder):
    """Run the suite from the command line; leave coding.json and coding.png in `folder`."""
    parser = argparse.ArgumentParser(prog="run.py --suite coding")
    parser.add_argument("--cases", nargs="*", choices=list(CASES), help="all by default")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds that a peer may take")
    parser.add_argument("--no-scaling", action="store_true")
    given = parser.parse_args(arguments)
    print(platform.processor() or platform.machine(), f"{os.cpu_count()} cores", versions())
    result = {"versions": versions(), "cores": os.cpu_count()}
    result["records"] = run(cases=given.cases, repeats=given.repeats, limit=given.limit)
    result["scaling"] = [] if given.no_scaling else scaling()
    (folder / "coding.json").write_text(json.dumps(result, indent=1))
    _plot(result, folder / "coding.png")


def _plot(result, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cases = list(dict.fromkeys(r["case"] for r in result["records"]))
    fig, axes = plt.subplots(1, len(cases) + 1, figsize=(3.2 * (len(cases) + 1), 3), constrained_layout=True)
    for axis, case in zip(axes, cases, strict=False):
        for record in result["records"]:
            if record["case"] == case:
                points = [(s, float(g)) for g, s in record["seconds"].items() if np.isfinite(s)]
                axis.loglog(*zip(*points, strict=True), "o-", label=record["method"]) if points else None
        axis.set(title=case, xlabel="seconds", ylabel="relative gap")
        axis.legend(fontsize=6)
    if result["scaling"]:
        axes[-1].loglog(*zip(*((p["samples"], p["seconds"]) for p in result["scaling"]), strict=True), "o-")
    axes[-1].set(title="emdl, spikes to 1e-3", xlabel="samples", ylabel="seconds")
    fig.savefig(path, dpi=110)
