"""Solvers of the coding suite: a function ``solve(problem, watch, options)`` for each, and the watch that times them.

A name says package, method, precision and options: ``SPORCO ADMM float32 rho=2``. A solver that hands out its iterates
calls `Watch.lap` with each; one that does not runs afresh with growing counts or falling tolerances (`Watch.trial`).
Judging an iterate stops the clock. Every iterate is judged by `benchmarks.problems.objective`, never by its own solver.
"""

import importlib
import json
import resource
import time

import numpy as np

from benchmarks import problems

MODULES = {
    "emdl": "own",
    "NumPy": "plain",
    "SPORCO": "sporco_coder",
    "alphacsc": "alphacsc_coder",
    "dicodile": "dicodile_coder",
    "CVXPY": "convex",
}
TARGETS = (1e-3, 1e-5)


def solver(name):
    """Return the function and the options that a name like ``SPORCO ADMM float32 rho=2`` stands for."""
    package, *words = name.split()
    module = importlib.import_module(f"benchmarks.peers.{MODULES[package]}")
    options = {}
    for word in words:
        key, _, value = word.partition("=")
        if value:
            options[key] = json.loads(value)
        elif key in ("float32", "float64"):
            options["dtype"] = np.dtype(key).type
        else:
            options["method"] = key
    return module.solve, options


class Watch:
    """Times a solver and judges what it finds.

    Parameters
    ----------
    problem : CodingProblem
        What is solved.
    reference : float
        The least objective known.
    limit : float
        Processor seconds after which to stop.
    say : callable
        Takes each point ``{"wall", "cpu", "gap"}`` as soon as it is measured.
    """

    def __init__(self, problem, reference, limit, say):
        self.problem, self.reference, self.limit, self.say = problem, reference, limit, say
        self.points, self.spent, self.judged, self.near, self.last = [], np.zeros(2), 0.0, False, None

    def start(self):
        """Let the clock run, from zero."""
        self.spent, self.judged = np.zeros(2), 0.0
        self.last = self._now()

    def _now(self):
        return np.array([time.perf_counter(), time.process_time()])

    def lap(self, codes):
        """Stop the clock, judge the codes that `codes` returns, let the clock run again; return whether to end.

        Between two iterates that are judged a tenth of the time so far goes by, near a target two per cent of it.
        """
        self.spent += self._now() - self.last
        cpu, end = self.spent[1], False
        if cpu >= self.judged * (1.02 if self.near else 1.1):
            self.judged = cpu
            gap = self.note(*self.spent, codes())
            self.near = any(gap / 3 <= target < gap for target in TARGETS)
            end = gap <= TARGETS[-1] or cpu > self.limit
        self.last = self._now()
        return end

    def trial(self, run, inside=None, **said):
        """Time one run from start to end; return the gap of the codes it returns.

        The system ends the process where the run alone takes more than the limit; the points before are kept. What the
        run leaves in `inside` is stored with the point.
        """
        used = time.process_time()
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(used + self.limit) + 2, hard))
        before = self._now()
        codes = run()
        wall, cpu = self._now() - before
        resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))
        return self.note(wall, cpu, codes, **{**said, **(inside or {})})

    def note(self, wall, cpu, codes, **said):
        gap = problems.objective(self.problem, codes) / self.reference - 1
        point = {"wall": float(wall), "cpu": float(cpu), "gap": float(gap), **said}
        self.points.append(point)
        self.say(point)
        return gap

    def search(self, run, first, growth=1.3, most=10**9):
        """Run with growing counts until the last target is met, then find the least count for each target.

        Parameters
        ----------
        run : callable
            Takes a count and returns codes; more counts, a smaller gap.
        first : int
            Where to begin.
        growth : float
            From one count to the next.
        most : int
            Where to end.
        """
        gaps, count = {}, first
        while count <= most:
            gaps[count] = self.trial(lambda: run(count), count=count)  # noqa: B023 - called before count moves on
            if gaps[count] <= TARGETS[-1] or sum(p["cpu"] for p in self.points) > self.limit:
                break
            count = max(count + 1, round(count * growth))
        for target in TARGETS:
            met = [c for c, gap in gaps.items() if gap <= target]
            while met:
                high = min(met)
                low = max([c for c in gaps if c < high], default=0)
                if high - low <= max(1, 0.03 * high) or sum(p["cpu"] for p in self.points) > 2 * self.limit:
                    break
                middle = (low + high) // 2
                gaps[middle] = self.trial(lambda: run(middle), count=middle)  # noqa: B023
                if gaps[middle] <= target:
                    met.append(middle)


def seconds_to(points, target, clock="cpu", certified=False):
    """Return the least time of the points whose gap is at most `target`, None where there is none.

    With `certified` a point counts only if its solver had proved the gap by then.
    """
    return min((p[clock] for p in points if p["certified" if certified else "gap"] <= target), default=None)
