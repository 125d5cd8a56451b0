"""The coding suite: processor seconds of emdl and of its peers to a relative gap of 1e-3 and 1e-5.

A cell is one solver on one problem, measured in a process of its own with a stated number of threads. It is stored in
``coding.json`` as soon as it is measured and not measured again, unless asked for (``--again``) or measured on another
processor; so a run that was ended goes on where it was. Tables and pictures are drawn from the file alone.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile
import time

from benchmarks import coding_plots, coding_report
from benchmarks.peers import MODULES, TARGETS, seconds_to

ROOT = pathlib.Path(__file__).resolve().parents[1]
GIB = 2**30
BOTH = ("emdl float32", "emdl float64")
PLAIN = "NumPy FISTA float32"
ALPHACSC = ("alphacsc LGCD", "alphacsc FISTA", "alphacsc L-BFGS")
CONVEX = ("CVXPY CLARABEL", "CVXPY ECOS", "CVXPY OSQP", "CVXPY SCS")
LIMIT, MEMORY = 300, 8 * GIB  # processor seconds of one solver on one problem; address space of a convex solver
QUICK = 5


def _sporco(rho):
    """Return SPORCO's solvers at the best settings found (see `TUNING`), and as it comes."""
    best = f"auto=0 rho={rho} numexpr=0 cache=1"
    admm = f"SPORCO ADMM float32 {best}", f"SPORCO ADMM float64 {best}", "SPORCO ADMM float32"
    return (*admm, "SPORCO FISTA float32 numexpr=0", "SPORCO FISTA float64 numexpr=0")


# problem -> solvers
SUITE = {
    "machine": ("emdl float32",),
    "compile": ("emdl float32",),
    "w2-30000": (*BOTH, *ALPHACSC, "dicodile LGCD", *_sporco(0.5), PLAIN, *CONVEX),
    "w1-0.05": (*BOTH, *_sporco(3), PLAIN),
    "w2-10000": (*BOTH, *CONVEX),
    "w1-0.01": (*BOTH, *_sporco(1)),
    "w1-0.005": (*BOTH, *_sporco(1)),
    "tetrode": (*BOTH, "alphacsc LGCD", "alphacsc FISTA", "dicodile LGCD", *_sporco(3)[:2]),
    "many-10000": BOTH,
    "many-1000": _sporco(0.5)[:2],
    **{f"scaling-{10**n}": ("emdl float32",) for n in range(4, 9)},
    "many-100": ("alphacsc LGCD", "alphacsc LGCD n_seg=1", "alphacsc FISTA"),
    "w2-1000000": (*BOTH, "alphacsc LGCD", "dicodile LGCD", *_sporco(0.5)[:2]),
    "w1-0.2": (*BOTH, *_sporco(10)[:2]),
    "w2-300000": (*BOTH, *CONVEX),
    "w1-0.05-512": (*BOTH, *_sporco(3)[:2]),
    "w2-3000": (*BOTH, *CONVEX),
}
# what decides the targets and takes a few minutes on an idle machine: emdl and what was the fastest of its peers
ESSENTIAL = (
    r"machine|scaling-|(w1-0\.(05|01|005)|w2-(10000|30000|1000000)|tetrode|many-10000) \| emdl float32$"
    r"|.* \| SPORCO ADMM float32 auto=0|w2-30000 \| alphacsc LGCD$|w2-(10000|30000) \| CVXPY (CLARABEL|ECOS)"
)
TUNING = {
    "w2-30000": [
        *(f"SPORCO ADMM float32 auto=0 rho={rho}" for rho in (0.3, 0.5, 1, 2)),
        *(f"SPORCO ADMM float32 auto=0 rho=0.5 {more}" for more in ("relax=1.5", "cache=1", "numexpr=0")),
        "SPORCO ADMM float32 auto=0 rho=0.5 numexpr=0 cache=1 relax=1.9",
        "SPORCO FISTA float32",
        "SPORCO FISTA float32 numexpr=0 L=1 backtrack=1",
    ],
    "w1-0.05-128": [
        "emdl float32",
        "SPORCO ADMM float32",
        *(f"SPORCO ADMM float32 auto=0 rho={rho}" for rho in (1, 2, 3, 6, 12)),
        *(f"SPORCO ADMM float32 auto=0 rho=3 {more}" for more in ("numexpr=0", "numexpr=0 cache=1")),
        "SPORCO FISTA float32",
        "SPORCO FISTA float32 L=1 backtrack=1",
    ],
}
SUITE_QUICK = {
    "small": ("emdl float32", "NumPy FISTA float32", "SPORCO ADMM float32 auto=0 rho=0.3"),
    "w2-3000": ("emdl float32", "NumPy FISTA float32", "alphacsc LGCD", "dicodile LGCD", "CVXPY CLARABEL"),
    "scaling-10000": ("emdl float32",),
}


def cells(suite):
    """Return (case, solver) of all cells of a suite, in the order in which they are measured."""
    return [(case, solver) for case, solvers in suite.items() for solver in solvers]


def processor():
    """Return the name of the processor, and what tells apart those of one name."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if "model name" not in known:
        return platform.machine()
    return f"{known['model name']}, family {known.get('cpu family')}, model {known.get('model')}"


def versions(solver):
    """Return the versions of what takes part in a cell."""
    package = solver.split()[0]
    names = {"CVXPY": ["cvxpy", "clarabel", "ecos", "osqp", "scs"], "SPORCO": ["sporco", "pyfftw", "numexpr"]}
    found = {"python": platform.python_version()}
    for name in ("numpy", "scipy", "numba", *names.get(package, [package.lower()])):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


class Store:
    """The JSON file of a run.

    Parameters
    ----------
    path : pathlib.Path
        The file; need not be there.
    """

    def __init__(self, path):
        self.path = path
        self.data = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self.data.setdefault("cells", {})
        self.data.setdefault("references", {})

    def has(self, key):
        """Return whether the cell was measured on this processor, and not merely for want of a package left out."""
        cell = self.data["cells"].get(key)
        missing = str((cell or {}).get("error", "")).startswith(("ModuleNotFoundError", "ImportError"))
        return cell is not None and cell["processor"] == processor() and not missing

    def put(self, key, cell):
        """Keep a cell, on disk too."""
        self.data["cells"][key] = cell
        parts = ((name, json.dumps(part)) for name, part in self.data["cells"].items())
        lines = ",\n".join(f"  {json.dumps(name)}: {part}" for name, part in parts)  # one line for each cell
        rest = json.dumps({name: part for name, part in self.data.items() if name != "cells"}, indent=1)
        text = f'{{"cells": {{\n{lines}\n}},{rest[1:]}\n'
        spare = self.path.with_suffix(".part")
        spare.write_text(text, encoding="utf-8")
        spare.replace(self.path)


def key_of(case, solver, threads):
    """Return the name under which a cell is stored."""
    return f"{case} | {solver}" + (f" | {threads} threads" if threads > 1 else "")


def measure(case, solver, *, threads, limit, reference=None):
    """Measure one cell in a process of its own and return its record.

    Parameters
    ----------
    case, solver : str
        Names of the problem and of the solver.
    threads : int
        How many threads each library may use.
    limit : float
        Processor seconds that the solver may take.
    reference : dict, optional
        The optimum of the problem, where it was found before.
    """
    given = {"case": case, "solver": solver, "limit": limit, "reference": reference}
    if solver.startswith("CVXPY"):
        given["memory"] = MEMORY
    names = ("OMP", "OPENBLAS", "MKL", "NUMBA", "NUMEXPR", "RAYON")
    environment = {**os.environ, **{f"{name}_NUM_THREADS": str(threads) for name in names}}
    before, start = os.getloadavg()[0], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "lines"
        path.touch()
        ended = subprocess.run(
            [sys.executable, "-m", "benchmarks.cell", json.dumps(given), str(path)],
            cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    cell = {"case": case, "solver": solver, "threads": threads, "limit": limit}
    cell["points"] = [line["point"] for line in lines if "point" in line]
    for line in lines:
        cell |= {name: line[name] for name in ("reference", "error", "where") if name in line}
    if ended.returncode < 0:
        cell["error"] = f"ended by signal {-ended.returncode}; it may use {limit:g} s of processor" + (
            f" and {MEMORY // GIB} GiB" if "memory" in given else ""
        )
    cell |= {"load": [before, os.getloadavg()[0]], "processor": processor(), "cores": os.cpu_count()}
    cell |= {"versions": versions(solver), "wall_seconds": time.perf_counter() - start}
    cell["date"] = datetime.datetime.now().isoformat(timespec="seconds")
    return cell


def run(store, wanted, *, threads=1, limit=LIMIT, again=None, say=print):
    """Measure those of the wanted cells that the store lacks, or whose name `again` (a regular expression) finds."""
    for number, (case, solver) in enumerate(wanted, 1):
        key = key_of(case, solver, threads)
        if store.has(key) and not (again and re.search(again, key)):
            continue
        cell = measure(case, solver, threads=threads, limit=limit, reference=store.data["references"].get(case))
        if "reference" in cell:
            store.data["references"][case] = cell.pop("reference")
        store.put(key, cell)
        say(f"[{number}/{len(wanted)}] {key}: {summary(cell)}")


def summary(cell):
    """Return what a cell found, in a line."""
    if "error" in cell and not cell["points"]:
        return f"FAILED: {cell['error']}"
    if cell["case"].startswith(("machine", "compile", "scaling")):
        return ", ".join(f"{name} {value:.4g}" for name, value in cell["points"][-1].items())
    times = [seconds_to(cell["points"], target, certified=cell["solver"].startswith("emdl")) for target in TARGETS]
    words = ["not reached" if s is None else f"{s:.4g} s" for s in times]
    shown = [f"{target:.0e} {s}" for target, s in zip(TARGETS, words, strict=True)]
    return "  ".join(shown) + f"  (load {cell['load'][1]:.1f})" + (f"; {cell['error']}" if "error" in cell else "")


def main(arguments, folder):
    """Run the suite from the command line; leave coding.json, tables and pictures in `folder`."""
    parser = argparse.ArgumentParser(
        prog="run.py --suite coding",
        epilog="A cell is named 'problem | solver'. Packages: "
        + ", ".join(MODULES)
        + "; those not installed are named.",
    )
    parser.add_argument("--only", metavar="PATTERN", help="cells whose name this regular expression finds")
    parser.add_argument("--again", metavar="PATTERN", help="measure these once more, stored or not")
    parser.add_argument(
        "--essential", action="store_true", help="once more, the cells that decide the targets: minutes"
    )
    parser.add_argument("--tuning", action="store_true", help="instead the settings of SPORCO that were tried")
    parser.add_argument("--quick", action="store_true", help="a minute, for a check of the suite itself")
    parser.add_argument("--threads", type=int, default=1, help="of every solver (default: 1)")
    parser.add_argument("--limit", type=float, default=LIMIT, help="processor seconds of a solver on a problem")
    parser.add_argument("--publish", type=pathlib.Path, metavar="FILE", help="put the tables into this Markdown file")
    parser.add_argument("--list", action="store_true", help="name the cells and end")
    given = parser.parse_args(arguments)
    store = Store(folder / ("coding-quick.json" if given.quick else "coding.json"))
    wanted = cells(SUITE_QUICK if given.quick else TUNING if given.tuning else SUITE)
    if given.essential:
        wanted, given.again = [w for w in wanted if re.match(ESSENTIAL, key_of(*w, 1))], "."
    if given.only:
        wanted = [w for w in wanted if re.search(given.only, key_of(*w, given.threads))]
    if given.list:
        print(*(key_of(*w, given.threads) for w in wanted), sep="\n")
        return
    limit = min(given.limit, QUICK) if given.quick else given.limit
    print(f"{processor()}; {os.cpu_count()} cores; load {os.getloadavg()[0]:.1f}; {len(wanted)} cells")
    run(store, wanted, threads=given.threads, limit=limit, again=given.again)
    page = coding_report.tables(store.data, {*cells(SUITE), *cells(SUITE_QUICK)})
    print(page)
    (folder / "coding.md").write_text(page, encoding="utf-8")
    coding_plots.draw(store.data, folder)
    if given.publish:
        coding_report.publish(page, given.publish)
