"""Every CUDA source compiles for three generations of devices, and every kernel computes what NumPy does.

Without a device the kernels run on the CPU, compiled from the same text: see cuda/shim.h.
"""

import ctypes
import importlib.util
import pathlib
import shutil
import subprocess

import numpy as np
import pytest
import standin
from laws import CASES, case_name, make_problem

from emdl import ops, prox
from emdl._cuda import layers, planes
from emdl._cuda.compiler import source

SOURCES = ("planes", "layers")
ARCHITECTURES = ("75", "80", "90")
# more than one tile, group of atoms, group of channels, group of taps; a stride longer than the atom
LARGER = [
    {"n": 1, "C": 2, "K": 9, "s": (31,), "P": (700,), "stride": (1,)},
    {"n": 2, "C": 6, "K": 2, "s": (5,), "P": (90,), "stride": (7,)},
    {"n": 1, "C": 1, "K": 2, "s": (23, 24), "P": (5, 35), "stride": (1, 1)},
    {"n": 1, "C": 5, "K": 3, "s": (4, 3), "P": (19, 37), "stride": (3, 2)},
]
every_case = pytest.mark.parametrize("case", [*CASES, *LARGER], ids=case_name)


WAYS = [("memory", np.float64), ("races", np.float32)]
ON_DEVICE = [pytest.param(("device", real), marks=pytest.mark.gpu) for real in (np.float32, np.float64)]


@pytest.fixture(params=[*WAYS, *ON_DEVICE], ids=["memory", "races", "device-float", "device-double"])
def device(request, cuda_kernels):
    """Kernels with real threads, under AddressSanitizer and UBSan or under ThreadSanitizer; or on a device."""
    way, real = request.param
    if way == "device":
        yield request.getfixturevalue("real_cupy"), real
        return
    with standin.installed(cuda_kernels(way)) as cupy:
        yield cupy, real


def assert_equal(got, want, real):
    """Only the order of a few hundred additions may differ."""
    scale = np.abs(want).max()
    np.testing.assert_allclose(got.get(), want, rtol=0, atol=scale * 200 * np.finfo(real).eps)


def nvrtc_library():
    """Return the run-time compiler from PyPI (nvidia-cuda-nvrtc-cu12), or None."""
    found = importlib.util.find_spec("nvidia")
    places = [pathlib.Path(p) for p in found.submodule_search_locations] if found else []
    files = [f for p in places for f in (*p.glob("cu*/lib/libnvrtc.so.*"), *p.glob("cuda_nvrtc/lib/libnvrtc.so.*"))]
    return ctypes.CDLL(str(files[0])) if files else None


def compile_with_nvrtc(nvrtc, text, options):
    """Return (status, log) of a compilation."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"emdl.cu", 0, None, None) == 0
    given = [option.encode() for option in options]
    status = nvrtc.nvrtcCompileProgram(program, len(given), (ctypes.c_char_p * len(given))(*given))
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return status, log.value.decode().strip()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", SOURCES)
def test_a_cuda_source_compiles_without_a_warning(name, architecture, tmp_path):
    nvrtc, nvcc = nvrtc_library(), shutil.which("nvcc")
    if nvrtc is None and nvcc is None:
        pytest.skip("needs NVRTC (pip install 'emdl[cuda-check]') or nvcc")
    for real in ("float", "double"):
        if nvrtc is not None:
            options = (f"--gpu-architecture=sm_{architecture}", "-std=c++17", f"-DREAL={real}")
            assert compile_with_nvrtc(nvrtc, source(name), options) == (0, "")
        else:
            (tmp_path / "unit.cu").write_text(source(name))
            command = [nvcc, f"-arch=sm_{architecture}", "-std=c++17", f"-DREAL={real}", "-Werror", "all-warnings"]
            done = subprocess.run(
                [*command, "-cubin", "-o", "unit.cubin", "unit.cu"],
                cwd=tmp_path, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert not done.stderr


@every_case
def test_analyze_is_the_sum_over_taps(case, device, rng, monkeypatch):
    cupy, real = device
    y, D, _ = make_problem(case, rng)
    y, D = y.astype(real), D.astype(real)
    monkeypatch.setattr(planes, "direct_is_cheaper", lambda *_: True)
    got = planes.analyze(cupy.asarray(y), cupy.asarray(D), case["stride"])
    assert_equal(got, ops.analyze_by_taps(y, D, case["stride"]), real)


@every_case
def test_synthesize_is_the_sum_over_taps(case, device, rng, monkeypatch):
    cupy, real = device
    y, D, z = (x.astype(real) for x in make_problem(case, rng, density=0.02))
    monkeypatch.setattr(planes, "direct_is_cheaper", lambda *_: True)
    made = ops.synthesize_by_taps(z, D, case["stride"])
    z, D, on_device = cupy.asarray(z), cupy.asarray(D), cupy.asarray(y)
    assert_equal(planes.synthesize(z, D, case["stride"]), made, real)
    assert_equal(planes.synthesize(z, D, case["stride"], base=on_device, sign=-1), y - made, real)


@every_case
def test_correlate_is_the_sum_over_positions(case, device, rng, monkeypatch):
    cupy, real = device
    monkeypatch.setattr(planes, "_BLOCKS", 1)  # a block goes through several tiles, as it does with long signals
    y, _, z = (x.astype(real) for x in make_problem(case, rng))
    s, stride = case["s"], case["stride"]
    psi = planes.correlate(cupy.asarray(z), cupy.asarray(y), s, (0,) * len(s), stride)
    assert_equal(psi, ops.correlate_signals(z, y, s, stride), real)


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_correlations_have_lags_of_both_signs(case, device, rng):
    cupy, real = device
    z = make_problem(case, rng)[2].astype(real)
    most = tuple((s - 1) // t for s, t in zip(case["s"], case["stride"], strict=True))
    on_device, ones = cupy.asarray(z), (1,) * len(most)
    phi = planes.correlate(on_device, on_device, tuple(2 * m + 1 for m in most), most, ones)
    want = ops.correlate_codes(z, tuple(m + 1 for m in most), ones)
    assert_equal(phi, want, real)


@pytest.mark.parametrize(("shape", "positive"), [((3, 4, 100), False), ((2, 3, 5, 7), True)])
def test_a_layer_shrinks_and_extrapolates(shape, positive, device, rng):
    cupy, real = device
    w, c, before = rng.standard_normal((3, *shape)).astype(real)
    theta, step, beta = rng.uniform(0.2, 0.9, shape[1]).astype(real), 0.3, rng.uniform(0, 1, shape[0])
    given = [cupy.asarray(x) for x in (w, c, before, theta)]
    column = theta.reshape(-1, *[1] * (len(shape) - 2))
    want = prox.shrink(w + real(step) * c, column, positive=positive)
    z, w_next = layers.shrink_momentum(*given, step, 0.7, positive)
    assert_equal(z, want, real)
    assert_equal(w_next, want + real(0.7) * (want - before), real)
    steps, column = rng.uniform(0.2, 0.9, len(w)), (-1, *[1] * (len(shape) - 1))
    length = steps.astype(real).reshape(column)
    x = prox.shrink(w + length * c, length * theta.reshape(-1, *[1] * (len(shape) - 2)), positive=positive)
    got, uphill, distance = layers.shrink_trial(*given, cupy.asarray(steps), positive)
    assert_equal(got, x, real)
    moved = (w - x).astype(float)
    assert_equal(uphill, (moved * (x - before)).reshape(len(w), -1).sum(axis=1), real)
    assert_equal(distance, (moved**2).reshape(len(w), -1).sum(axis=1), real)
    penalty = rng.uniform(0.2, 0.9, w.shape).astype(real)  # one for each code
    each = layers.shrink_trial(*given[:3], cupy.asarray(penalty), cupy.asarray(steps), positive)[0]
    assert_equal(each, prox.shrink(w + length * c, length * penalty, positive=positive), real)
    accepted = np.arange(len(w)) % 2 == 0
    z, w_next = layers.advance(given[0], got, given[2], cupy.asarray(beta), cupy.asarray(accepted))
    taken, b = accepted.reshape(column), beta.reshape(column)
    assert_equal(z, np.where(taken, x, before), real)
    assert_equal(w_next, np.where(taken, x + b * (x - before), w), real)
    z = given[0]
    ahead = layers.extrapolate(z, given[2], cupy.asarray(beta))
    assert_equal(ahead, w + b * (w - before), real)


@pytest.mark.parametrize("shape", [(3, 4, 100), (2, 3, 5, 7)], ids=str)
def test_the_backward_pass_of_a_layer_is_equation_3(shape, device, rng):
    cupy, real = device
    g_z, c, g_before = rng.standard_normal((3, *shape)).astype(real)
    z = (rng.standard_normal(shape) * (rng.random(shape) < 0.6)).astype(real)
    want, g_theta = prox.shrink_backward(g_z, z)
    g_u, got = layers.gate(cupy.asarray(g_z), cupy.asarray(z))
    assert_equal(g_u, want, real)
    np.testing.assert_allclose(got.get(), g_theta.sum(axis=(0, *range(2, z.ndim)), dtype=float), rtol=1e-6, atol=1e-6)
    g_w = want - real(0.3) * c
    back, older = layers.spread(g_u, cupy.asarray(c), cupy.asarray(g_before), 0.3, 0.7)
    assert_equal(back, g_before + real(1.7) * g_w, real)
    assert_equal(older, real(-0.7) * g_w, real)


@pytest.mark.parametrize(
    ("way", "before", "after", "report"),
    [
        ("races", "        __syncthreads();\n        if (static_cast", "        if (static_cast", "data race"),
        ("memory", "e < per_atom;", "e <= per_atom;", "heap-buffer-overflow"),
    ],
)
def test_a_broken_kernel_is_caught(way, before, after, report, cuda_kernels, rng, monkeypatch):
    """The same tests must fail for a kernel that lacks a barrier, or reads one value too many."""
    broken = source("layers").replace(before, after, 1)
    assert broken != source("layers")
    monkeypatch.setattr("emdl._cuda.compiler.source", lambda name: broken)
    z = rng.standard_normal((1, 1, 300)).astype(np.float32)
    with standin.installed(cuda_kernels(way)) as cupy, pytest.raises(AssertionError, match=report):
        layers.gate(cupy.asarray(z), cupy.asarray(z))


def test_the_launches_know_the_sizes_in_the_sources():
    held = {name: dict(_defines(source(name))) for name in SOURCES}
    assert {name: int(held["planes"][name]) for name in ("THREADS", "PER")} == {
        "THREADS": planes.THREADS, "PER": planes.PER
    }  # fmt: skip
    assert int(held["layers"]["THREADS"]) == layers.THREADS


def _defines(text):
    return (line.split()[1:3] for line in text.splitlines() if line.startswith("#define") and len(line.split()) > 2)
