"""emdl itself: `encode` with its certificate, once for each tolerance."""

import ctypes
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks.peers import TARGETS

BETWEEN = (1e-1, 3e-2, 1e-2, 3e-3, 3e-4, 1e-4, 3e-5)  # for the picture; left out where a run takes a second


def solve(problem, watch, options):
    """Time `encode` to each tolerance, several times over for the targets, in ``dtype``.

    A point holds medians, the least of both clocks, and the gap that the certificate states beside the true one.
    """
    import emdl
    from emdl.encoder import solve as certified

    dtype = options["dtype"]
    y, D = problem.y.astype(dtype), problem.D.astype(dtype)
    axes = problem.D.ndim - 2

    def run(tol):
        return emdl.encode(y, D, problem.lmbd, tol=tol, positive=problem.positive, sparse=True)

    before = time.perf_counter()
    run(0.5)
    first = time.perf_counter() - before  # loads or compiles the kernels
    for tol in (*TARGETS, *BETWEEN):
        took, least = [], 3 if tol in TARGETS else 1
        while len(took) < least or (len(took) < 9 and sum(t[1] for t in took) < 1):
            before = _clocks()
            codes = run(tol)
            took.append(_clocks() - before)
        solution = certified(y, D, np.full(len(D), problem.lmbd), (1,) * axes, tol=tol, positive=problem.positive)
        said = {
            "tol": tol,
            "repeats": len(took),
            "certified": solution.relative_gap,
            "sweeps": solution.n_iter,
            "nonzeros": codes.n_nonzero,
            "least_wall": float(min(t[0] for t in took)),
            "least_cpu": float(min(t[1] for t in took)),
            "first_call": first,
        }
        watch.note(statistics.median(t[0] for t in took), statistics.median(t[1] for t in took), codes.dense(), **said)
        if tol == TARGETS[-1] and took[0][1] > 1:
            return


def _clocks():
    return np.array([time.perf_counter(), time.process_time()])


def scale(n_samples):
    """Return seconds and memory of `encode` on a long recording, to 1e-3, in float32, sparse codes.

    ``extra``: bytes that the process held at most beyond those before the call and those of the result.
    """
    import emdl
    from benchmarks import problems

    y, D, lmbd = problems.long_recording(n_samples)

    def run(signals):
        return emdl.encode(signals, D, lmbd, tol=1e-3, positive=True, sparse=True)

    run(y[..., :5000])
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # or arrays freed before would be used again, unseen
    took, extra = [], None
    while len(took) < 1 or (len(took) < 5 and sum(t[1] for t in took) < 2):
        held = _memory("VmRSS", forget=True)
        before = _clocks()
        codes = run(y)
        took.append(_clocks() - before)
        if extra is None and held is not None:
            extra = _memory("VmHWM") - held - codes.index.nbytes - codes.value.nbytes
    wall, cpu = np.median(took, axis=0)
    found = {"samples": n_samples, "wall": wall, "cpu": cpu, "repeats": len(took), "nonzeros": codes.n_nonzero}
    found |= {"nanoseconds_per_sample": 1e9 * cpu / n_samples, "signal": y.nbytes}
    return found if extra is None else {**found, "extra": extra, "extra_per_signal": extra / y.nbytes}


def _memory(name, forget=False):
    """Return bytes from Linux's account of this process, None elsewhere; `forget` resets the peak."""
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        return None
    if forget:
        pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def compile_seconds():
    """Return processor seconds of the first call of `encode` in a fresh process: kernels compiled, kernels cached."""
    code = (
        "import time, numpy as np, emdl; y = np.sin(np.arange(5000) ** 1.5).astype('float32'); "
        "D = np.hanning(45).astype('float32')[None, None]; D /= np.linalg.norm(D); start = time.process_time(); "
        "emdl.encode(y, D, 1.0); print(time.process_time() - start)"
    )
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        took = [
            float(subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout)
            for _ in range(2)
        ]
    return dict(zip(("compiling", "from the cache"), took, strict=True))
