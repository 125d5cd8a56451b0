"""``emdl doctor``: what works on this machine, what is missing, and what to do about it."""

import importlib.metadata
import os
import platform
import sys
import time

import typer

import emdl

from . import screen

OK, MISSING, FAILED = "works", "missing", "fails"


def examine(*, as_json):
    """Print what works on this machine.

    Parameters
    ----------
    as_json : bool
        Print one JSON object instead of text.

    Raises
    ------
    typer.Exit
        With code 2 if something that is installed does not work.
    """
    checks = [*_about_cpu(), *_about_gpu()]
    if as_json:
        screen.put_json({"checks": [dict(zip(("what", "state", "detail"), check, strict=True)) for check in checks]})
    else:
        screen.put_renderables(_table(checks))
    if any(state == FAILED for _, state, _ in checks):
        raise typer.Exit(2)


def _about_cpu():
    from emdl.backend import n_threads

    python = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield f"emdl {emdl.__version__}", OK, f"Python {python}"
    wanted = ("numpy", "scipy", "numba", "h5py", "matplotlib")
    yield "libraries", OK, ", ".join(f"{name} {importlib.metadata.version(name)}" for name in wanted)
    yield "processors", OK, f"{n_threads()} threads of {os.cpu_count()} processors; OMP_NUM_THREADS sets fewer"
    yield _check("kernels on the CPU", _try_kernels)


def _about_gpu():
    from emdl import device

    try:
        cupy = device.find_cupy()
    except device.DeviceError as error:
        yield "GPU", MISSING, f"{error}. Everything runs on the CPU without it."
        return
    runtime = cupy.cuda.runtime
    yield "CuPy", OK, f"{cupy.__version__}, CUDA {runtime.runtimeGetVersion()}, driver {runtime.driverGetVersion()}"
    for number in range(runtime.getDeviceCount()):
        facts, of = runtime.getDeviceProperties(number), cupy.cuda.Device(number)
        free, total = of.mem_info
        detail = f"compute capability {of.compute_capability}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        yield f"device {number}: {facts['name'].decode()}", OK, detail
    for name, direct in (("CUDA kernels (NVRTC)", True), ("transforms (cuFFT)", False)):
        yield _check(name, lambda direct=direct: _try_operators(cupy, direct))
    yield _check("eigenvalues (cuSOLVER)", lambda: _try_lipschitz(cupy))
    yield _check("EM on the GPU", lambda: _try_fit(cupy))


def _check(what, function):
    """Run a check: whatever goes wrong in a foreign library is what it is there to report."""
    began = time.perf_counter()
    try:
        detail = function()
    except Exception as error:  # noqa: BLE001, reported, not swallowed
        return what, FAILED, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return what, OK, f"{detail}; {time.perf_counter() - began:.1f} s"


def _problem():
    """Return a small problem with two channels: signals, dictionary, codes."""
    import numpy as np

    rng = np.random.default_rng(0)
    D = rng.standard_normal((3, 2, 9))
    D /= np.sqrt((D**2).sum(axis=(1, 2), keepdims=True))
    z = rng.standard_normal((2, 3, 400)) * (rng.random((2, 3, 400)) < 0.02)
    return emdl.synthesize(z, D) + 0.05 * rng.standard_normal((2, 2, 408)), D, z


def _try_kernels():
    from emdl import ops

    y, D, z = _problem()
    error = abs(ops.analyze_full(y, D, (1,)) - ops.analyze_by_taps(y, D, (1,))).max()
    return _within(max(error, abs(emdl.synthesize(z, D) - ops.synthesize_by_taps(z, D, (1,))).max()), 1e-10)


def _try_operators(cupy, direct):
    from emdl import ops
    from emdl._cuda import fourier, planes

    way, worst = planes if direct else fourier, 0.0
    for dtype in ("float32", "float64"):
        y, D, z = (x.astype(dtype) for x in _problem())
        unit = 1.0 if dtype == "float64" else 1e-8
        made = way.synthesize(cupy.asarray(z), cupy.asarray(D), (1,)).get()
        seen = way.analyze(cupy.asarray(y), cupy.asarray(D), (1,)).get()
        worst = max(
            worst,
            unit * abs(made - ops.synthesize_by_taps(z, D, (1,))).max(),
            unit * abs(seen - ops.analyze_by_taps(y, D, (1,))).max(),
        )
    return _within(worst, 1e-12)


def _try_lipschitz(cupy):
    _, D, _ = _problem()
    want = emdl.lipschitz(D)
    return _within(abs(emdl.lipschitz(cupy.asarray(D)) / want - 1), 1e-9)


def _try_fit(cupy):
    y, D, _ = _problem()
    options = {"m_step": "unrolled", "n_layers": 5, "max_iter": 2, "sigma": 0.05, "learn_lmbd": False, "rng": 0}
    want = emdl.em_fit(y, 3, 9, D0=D, **options).model.D
    got = emdl.em_fit(cupy.asarray(y), 3, 9, D0=cupy.asarray(D), **options).model.D.get()
    return _within(abs(got - want).max(), 1e-6)


def _within(error, most):
    """Return a sentence about an error against NumPy, or raise it."""
    if not error <= most:
        raise ArithmeticError(f"results differ from those of NumPy by {error:.1e}, more than {most:.0e}")
    return f"equal to NumPy within {error:.1e}"


def _table(checks):
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_header=False, title=f"emdl on {screen.escape(sys.platform)}")
    table.add_column(style="bold")
    table.add_column()
    table.add_column()
    color = {OK: "green", MISSING: "yellow", FAILED: "red"}
    for what, state, detail in checks:
        table.add_row(screen.escape(what), f"[{color[state]}]{state}[/]", screen.escape(detail))
    return table
