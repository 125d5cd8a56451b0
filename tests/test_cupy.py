"""CuPy arrays in, CuPy arrays out, with the numbers of NumPy and no transfer inside a loop.

Runs on a strict stand-in for CuPy (standin.py), and with ``-m gpu`` on a device.
"""

import importlib.util
import json
import pathlib
import subprocess
import sys
import warnings

import numpy as np
import pytest
import scipy.signal
import standin
from emdl.cli import screen
from emdl.cli.app import run
from laws import CASES, case_name, make_problem
from PIL import Image

import emdl
from emdl import device, em, encoder, gradients, images, ops, proximal
from emdl._cuda import fourier, planes
from emdl.errors import ConvergenceWarning, InputError, InputTypeError
from emdl.images import network, training
from emdl.optim import Optimizer, exact_dictionary, normalize_atoms
from emdl.spikes import decision

cases = pytest.mark.parametrize("case", CASES, ids=case_name)
both_reals = pytest.mark.parametrize("real", [np.float32, np.float64], ids=["float", "double"])


def problem(case, rng, real=np.float64):
    y, D, z = make_problem(case, rng)
    return y.astype(real), normalize_atoms(D).astype(real), z.astype(real)


def assert_same(got, want, cupy, real=np.float64, steps=200):
    """The order of additions differs; errors of rounding add up over `steps` of them."""
    assert isinstance(got, cupy.ndarray)
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got.get(), want, rtol=0, atol=steps * np.finfo(real).eps * np.abs(want).max())


# The stand-in


def test_the_stand_in_refuses_what_costs_a_transfer_or_an_error_on_a_device(stand_in):
    x, host = stand_in.asarray(np.arange(3.0)), np.arange(3.0)
    for forbidden in (
        lambda: np.asarray(x), lambda: np.add(host, x), lambda: host + x, lambda: x * host, lambda: np.stack([x]),
        lambda: list(x), lambda: scipy.signal.medfilt(x), lambda: stand_in.maximum(x, host), lambda: x[host > 1],
        lambda: x[[0, 2]], lambda: np.log(x), lambda: memoryview(x),
    ):  # fmt: skip
        with pytest.raises(TypeError):
            forbidden()
    for name in ("__array_interface__", "__array_struct__", "__buffer__", "tofile"):
        assert not hasattr(x, name) or name == "tofile"
    assert not hasattr(stand_in, "vectorize_all")
    assert isinstance(x.sum(), stand_in.ndarray), "a reduction stays on the device"


def test_the_stand_in_counts_transfers(stand_in):
    x = stand_in.asarray(np.arange(3.0))
    with standin.counts.during() as seen:
        float(x[0])
        bool(x.any())
        stand_in.asnumpy(x)
        stand_in.nonzero(x)
        stand_in.asarray([1.0])
    assert seen == {"down": 4, "up": 1}


def test_every_name_of_the_stand_in_is_one_of_cupy():
    """``import cupy`` needs no driver; where it is installed the list is compared with it."""
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("CuPy is not installed; the list was taken from it")
    script = "import cupy, sys; exec('for line in sys.stdin: name = line.strip(); eval(name)')"
    names = "\n".join(sorted(standin.NAMES))
    run = subprocess.run([sys.executable, "-c", script], input=names, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


# The model


@cases
@both_reals
def test_operators_equal_those_of_numpy(case, real, cupy, rng):
    y, D, z = problem(case, rng, real)
    stride, on = case["stride"], cupy.asarray
    assert_same(emdl.synthesize(on(z), on(D), stride=stride), emdl.synthesize(z, D, stride=stride), cupy, real)
    assert_same(emdl.analyze(on(y), on(D), stride=stride), emdl.analyze(y, D, stride=stride), cupy, real)
    assert emdl.lipschitz(on(D), stride=stride) == pytest.approx(emdl.lipschitz(D, stride=stride), rel=1e-6)
    assert emdl.lambda_max(on(y), on(D), stride=stride) == pytest.approx(emdl.lambda_max(y, D, stride=stride), rel=1e-5)
    lmbd = rng.uniform(1, 2, len(D))
    got = emdl.objective(on(y), on(z), on(D), on(lmbd), 0.7, stride=stride)
    assert got == pytest.approx(emdl.objective(y, z, D, lmbd, 0.7, stride=stride), rel=200 * float(np.finfo(real).eps))


@cases
@both_reals
def test_transforms_equal_direct_sums(case, real, cupy, rng):
    """Errors of a transform are relative to the largest value, and grow with the logarithm of its length."""
    y, D, z = problem(case, rng, real)
    s, stride, on = case["s"], case["stride"], cupy.asarray
    origin = tuple(a // 2 for a in s)
    assert_same(fourier.analyze(on(y), on(D), stride), ops.analyze_by_taps(y, D, stride), cupy, real)
    assert_same(fourier.synthesize(on(z), on(D), stride), ops.synthesize_by_taps(z, D, stride), cupy, real)
    moved = planes.correlate(on(z), on(y), s, origin, stride)
    assert_same(fourier.correlate(on(z), on(y), s, origin, stride), moved.get(), cupy, real)


@cases
def test_sums_of_the_m_step_equal_those_of_numpy(case, cupy, rng):
    y, _, z = problem(case, rng)
    s, stride = case["s"], case["stride"]
    assert_same(ops.correlate_codes(cupy.asarray(z), s, stride), ops.correlate_codes(z, s, stride), cupy)
    got = ops.correlate_signals(cupy.asarray(z), cupy.asarray(y), s, stride)
    assert_same(got, ops.correlate_signals(z, y, s, stride), cupy)


def test_small_atoms_are_summed_and_large_ones_transformed():
    assert planes.direct_is_cheaper(4, 30, (45,), (300_000,), (1,))
    assert planes.direct_is_cheaper(1, 64, (8, 8), (512, 512), (1, 1))
    assert not planes.direct_is_cheaper(1, 100, (2000,), (300_000,), (1,))
    assert not planes.direct_is_cheaper(1, 64, (40, 40), (512, 512), (1, 1))


def test_large_atoms_take_the_transforms(cupy, rng):
    y, D = rng.standard_normal((2, 1, 1200)), rng.standard_normal((3, 1, 500))
    z = emdl.analyze(y, D)
    with standin.counts.during() as seen:
        assert_same(emdl.analyze(cupy.asarray(y), cupy.asarray(D)), z, cupy, steps=2000)
        made = emdl.synthesize(cupy.asarray(z), cupy.asarray(D))
    assert seen["kernels"] == 0
    assert_same(made, emdl.synthesize(z, D), cupy, steps=2000)


# Encoders


@cases
@pytest.mark.parametrize("positive", [False, True])
def test_encode_finds_the_minimum_that_numpy_finds(case, positive, cupy, rng):
    y, D, _ = problem(case, rng)
    options = {"tol": 1e-7, "positive": positive, "stride": case["stride"]}
    z = emdl.encode(cupy.asarray(y), cupy.asarray(D), 0.4, 0.9, **options)
    assert isinstance(z, cupy.ndarray)
    want = emdl.objective(y, emdl.encode(y, D, 0.4, 0.9, **options), D, 0.4, 0.9, stride=case["stride"])
    got = emdl.objective(y, z.get(), D, 0.4, 0.9, stride=case["stride"])
    assert got == pytest.approx(want, rel=2e-7)  # the two certificates


@cases
@both_reals
@pytest.mark.parametrize("positive", [False, True])
def test_the_unrolled_encoder_and_its_gradients_equal_those_of_numpy(case, real, positive, cupy, rng):
    y, D, g_z = problem(case, rng, real)
    theta, step = rng.uniform(0.01, 0.1, len(D)), 1 / emdl.lipschitz(D, stride=case["stride"])
    options = {"positive": positive, "stride": case["stride"]}
    want = emdl.unroll(y, D, theta, step, 7, **options)
    got = emdl.unroll(cupy.asarray(y), cupy.asarray(D), cupy.asarray(theta), step, 7, **options)
    assert_same(got.z, want.z, cupy, real, steps=1000)
    want, got = emdl.backward(want, g_z), emdl.backward(got, cupy.asarray(g_z))
    for name in ("D", "theta", "y"):
        assert_same(getattr(got, name), getattr(want, name), cupy, real, steps=2000)


def test_a_scalar_threshold_and_checkpoints_work_on_a_device(cupy, rng):
    y, D, g_z = problem(CASES[0], rng)
    step = 1 / emdl.lipschitz(D)
    want = emdl.backward(emdl.unroll(y, D, 0.1, step, 9), g_z)
    trace = emdl.unroll(cupy.asarray(y), cupy.asarray(D), 0.1, step, 9, checkpoint=4)
    got = emdl.backward(trace, cupy.asarray(g_z))
    assert_same(got.D, want.D, cupy, steps=2000)
    assert_same(got.theta, want.theta, cupy, steps=2000)


def test_the_implicit_gradient_equals_that_of_numpy(cupy, rng):
    """Both solve their linear system to 1e-8."""
    y, D, g_z = problem(CASES[1], rng)
    step, stride = 1 / emdl.lipschitz(D, stride=CASES[1]["stride"]), CASES[1]["stride"]
    want = gradients.implicit(emdl.unroll(y, D, 0.1, step, 200, stride=stride), g_z)
    trace = emdl.unroll(cupy.asarray(y), cupy.asarray(D), 0.1, step, 200, stride=stride)
    got = gradients.implicit(trace, cupy.asarray(g_z))
    assert isinstance(got.D, cupy.ndarray)
    np.testing.assert_allclose(got.D.get(), want.D, atol=1e-6 * np.abs(want.D).max())


def test_the_dense_coder_is_the_same_on_numpy(rng):
    y, D, _ = problem(CASES[1], rng)
    z, primal, gap, _ = proximal.solve(
        y, D, np.full(len(D), 0.3), CASES[1]["stride"], tol=1e-8, max_iter=5000, positive=False
    )
    assert (gap <= 1e-8 * primal).all()
    assert primal.sum() == pytest.approx(emdl.objective(y, z, D, 0.3, stride=CASES[1]["stride"]), rel=1e-12)


def test_line_search_saves_iterations(rng, monkeypatch):
    D = emdl.simulate.waveforms(3, 2, 21, rng=0)
    y = emdl.simulate.convolutional(2, 800, D, density=1 / 150, snr_db=10, rng=0).y
    penalty = np.full(3, 0.1 * abs(emdl.analyze(y, D)).max())
    options = {"tol": 1e-4, "max_iter": 5000, "positive": False}
    _, value, _, searched = proximal.solve(y, D, penalty, (1,), **options)
    monkeypatch.setattr(proximal, "_GROWTH", 1.0)
    _, want, _, fixed = proximal.solve(y, D, penalty, (1,), **options)
    np.testing.assert_allclose(value, want, rtol=2e-4)  # the two certificates
    assert searched <= 0.6 * fixed


# Transfers


def test_layers_make_no_transfer_of_their_own(stand_in, rng):
    y, D, g_z = (stand_in.asarray(x) for x in problem(CASES[1], rng))
    step, stride = 0.1, CASES[1]["stride"]
    seen = []
    for n_iter in (3, 30):
        with standin.counts.during() as forward:
            trace = emdl.unroll(y, D, 0.05, step, n_iter, stride=stride)
        with standin.counts.during() as back:
            emdl.backward(trace, g_z)
        assert forward["kernels"] == 3 * n_iter, "a layer is synthesis, analysis and one step"
        seen.append((forward["down"], forward["up"], back["down"], back["up"]))
    assert seen[0] == seen[1]
    assert max(seen[0]) <= 6, "a few for checking what was given"


def test_encode_looks_at_its_certificate_every_ten_iterations(stand_in, rng):
    y, D, _ = (stand_in.asarray(x) for x in problem(CASES[0], rng))
    seen = {}
    for n_iter in (10, 100):
        with standin.counts.during() as seen[n_iter], warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            emdl.encode(y, D, 0.01, tol=1e-15, max_iter=n_iter)
    assert seen[100]["kernels"] - seen[10]["kernels"] >= 90 * 4
    assert seen[100]["down"] - seen[10]["down"] <= 9
    assert seen[100]["up"] - seen[10]["up"] <= 2 * 9  # where signals leave the batch


def test_an_em_iteration_makes_the_same_few_transfers_for_many_signals(stand_in, rng):
    seen = []
    for n in (2, 8):
        y = rng.standard_normal((n, 1, 40))
        D0 = stand_in.asarray(rng.standard_normal((2, 1, 5)))
        with standin.counts.during() as counts:
            emdl.em_fit(stand_in.asarray(y), 2, 5, D0=D0, sigma=1.0, lmbd0=1.0, learn_lmbd=False, max_iter=2, tol=1e-12,
                        m_step="unrolled", n_layers=12, tol_codes=0.9, batch_size=n)  # fmt: skip
        seen.append(counts["down"] + counts["up"])
    assert seen[0] == seen[1] < 80


# Mixed arguments


@pytest.mark.parametrize("swap", [0, 1])
def test_arrays_of_two_libraries_are_refused_by_name(swap, cupy, rng):
    y, D, z = problem(CASES[0], rng)
    first, second = (cupy.asarray, np.asarray) if swap else (np.asarray, cupy.asarray)
    trace = emdl.unroll(first(y), first(D), 0.1, 0.1, 2)
    for mixed in (
        lambda: emdl.synthesize(first(z), second(D)), lambda: emdl.analyze(first(y), second(D)),
        lambda: emdl.objective(first(y), second(z), second(D), 1.0), lambda: emdl.encode(first(y), second(D), 1.0),
        lambda: emdl.objective(first(y), second(z), first(D), 1.0),
        lambda: emdl.encode(first(y), first(D), 1.0, z0=second(z)),
        lambda: emdl.unroll(first(y), second(D), 0.1, 0.1, 2),
        lambda: emdl.encode(first(y), first(D), second(np.ones(len(D)))),
        lambda: emdl.unroll(first(y), first(D), second(np.full(len(D), 0.1)), 0.1, 2),
        lambda: emdl.backward(trace, second(z)), lambda: emdl.em_fit(first(y), 3, 5, D0=second(D), max_iter=1),
        lambda: emdl.em_fit(first(y), 3, 5, target=second(y), max_iter=1),
        lambda: emdl.Model(first(D), second(np.ones(len(D))), 1.0),
        lambda: emdl.Model(first(D), 1.0, 1.0).encode(second(y)),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=r"\(numpy, .*cupy|\(cupy, .*numpy") as caught:
            mixed()
        assert isinstance(caught.value, InputTypeError)


# EM and models


@pytest.fixture
def events(rng, monkeypatch):
    """Signals of two atoms and two channels, and a start near the truth; codes as exact as `tol_codes` from the start.

    Codes that are looser while the dictionary moves differ from solver to solver.
    """
    monkeypatch.setattr(em, "_HASTE", 0.0)
    D = normalize_atoms(rng.standard_normal((2, 2, 7)))
    z = (rng.random((3, 2, 150)) < 0.03) * rng.uniform(1, 2, (3, 2, 150))
    y = emdl.synthesize(z, D) + 0.05 * rng.standard_normal((3, 2, 156))
    return y, normalize_atoms(D + 0.2 * rng.standard_normal(D.shape))


@pytest.mark.parametrize("m_step", ["analytic", "unrolled", "decoder"])
@pytest.mark.parametrize("lmbd_rule", ["gcv", "sure", "paper", "paper-gradient"])
def test_em_learns_what_it_learns_on_numpy(m_step, lmbd_rule, events, cupy):
    """Codes are certified to 1e-9, so dictionaries agree to about the square root of that.

    paper-gradient shuts an atom here, whose sums, batch by batch, are nothing but rounding: so all signals at once.
    """
    y, D0 = events
    options = {
        "m_step": m_step, "lmbd_rule": lmbd_rule, "max_iter": 3, "n_layers": 5, "tol_codes": 1e-9, "batch_size": 2,
        "learn_sigma": True, "positive": True,
    }  # fmt: skip
    if lmbd_rule == "paper-gradient":
        options["batch_size"] = None
    want = emdl.em_fit(y, 2, 7, D0=D0, rng=1, optimizer=Optimizer(rate=0.01), **options)
    got = emdl.em_fit(cupy.asarray(y), 2, 7, D0=cupy.asarray(D0), rng=1, optimizer=Optimizer(rate=0.01), **options)
    assert isinstance(got.model.D, cupy.ndarray)
    assert isinstance(got.model.lmbd, cupy.ndarray)
    np.testing.assert_allclose(got.model.D.get(), want.model.D, atol=1e-4)
    np.testing.assert_allclose(got.model.lmbd.get(), want.model.lmbd, rtol=1e-3)
    np.testing.assert_allclose(got.history["objective"], want.history["objective"], rtol=1e-3)
    assert got.message == want.message


def test_em_starts_blind_on_a_device_as_on_numpy(events, cupy):
    y, _ = events
    options = {"max_iter": 2, "tol_codes": 1e-9, "rng": 3, "sigma": 0.05, "learn_lmbd": False}
    want, got = emdl.em_fit(y, 2, 7, **options), emdl.em_fit(cupy.asarray(y), 2, 7, **options)
    np.testing.assert_allclose(got.model.D.get(), want.model.D, atol=1e-4)


def test_a_supervised_fit_takes_its_target_on_the_device(events, cupy):
    y, D0 = events
    clean = y - y.mean()
    options = {"max_iter": 2, "m_step": "unrolled", "n_layers": 4, "sigma": 0.05, "tol_codes": 1e-9, "rng": 0}
    want = emdl.em_fit(y, 2, 7, D0=D0, target=clean, **options)
    got = emdl.em_fit(cupy.asarray(y), 2, 7, D0=cupy.asarray(D0), target=cupy.asarray(clean), **options)
    np.testing.assert_allclose(got.model.D.get(), want.model.D, atol=1e-6)


def test_a_model_on_a_device_encodes_reconstructs_and_goes_to_disk(cupy, rng, tmp_path):
    y, D, _ = problem(CASES[0], rng)
    lmbd = rng.uniform(0.3, 0.5, len(D))
    model = emdl.Model(D, lmbd, 0.8)
    on_device = emdl.Model(cupy.asarray(D), cupy.asarray(lmbd), 0.8)
    np.testing.assert_allclose(
        on_device.reconstruct(cupy.asarray(y), tol=1e-10).get(), model.reconstruct(y, tol=1e-10), atol=1e-4
    )
    assert isinstance(on_device.encode(cupy.asarray(y)), cupy.ndarray)
    on_device.save(tmp_path / "model.h5")
    back = emdl.load(tmp_path / "model.h5")
    np.testing.assert_array_equal(back.D, D)
    np.testing.assert_array_equal(back.lmbd, lmbd)


@cases
@pytest.mark.parametrize("given", ["mask", "a rate for each code", "both"])
def test_masks_and_rates_of_each_code_work_on_a_device(given, case, cupy, rng):
    """Signals that have their certificate leave the batch with their own mask and rates."""
    y, D, _ = problem(case, rng)
    y[0] *= 0.3
    lmbd, mask = 0.4, None
    if given != "mask":
        lmbd = rng.uniform(0.2, 0.8, (len(y), len(D), *case["P"]))
    if given != "a rate for each code":
        mask = rng.random(y.shape) < 0.8
    options = {"tol": 1e-7, "stride": case["stride"], "max_iter": 20_000}
    z = emdl.encode(
        cupy.asarray(y), cupy.asarray(D), lmbd if mask is not None and given == "mask" else cupy.asarray(lmbd),
        mask=None if mask is None else cupy.asarray(mask), **options,
    ).get()  # fmt: skip
    there = 1.0 if mask is None else mask

    def objective(z):
        error = (y - emdl.synthesize(z, D, stride=case["stride"])) * there
        return (error**2).sum() / 2 + (lmbd * np.abs(z)).sum()

    assert objective(z) == pytest.approx(objective(emdl.encode(y, D, lmbd, mask=mask, **options)), rel=2e-7)


def test_codes_of_a_device_come_as_non_zeros_where_asked_and_start_from_them(cupy, rng):
    y, D, _ = problem(CASES[0], rng)
    on_device = cupy.asarray(y), cupy.asarray(D)
    dense = emdl.encode(*on_device, 0.4, tol=1e-8)
    sparse = emdl.encode(*on_device, 0.4, tol=1e-8, sparse=True)
    np.testing.assert_array_equal(sparse.dense(), dense.get())
    assert isinstance(sparse.value, np.ndarray)
    with standin.counts.during() as seen:
        emdl.encode(*on_device, 0.4, tol=1e-7, z0=sparse)
    assert seen["kernels"] <= 4, "the first certificate holds"


def test_a_path_of_rates_stays_on_the_device(cupy, rng):
    y, D, _ = problem(CASES[0], rng)
    want_lmbds, want = emdl.encode_path(y, D, n_lmbds=3, tol=1e-9)
    lmbds, codes = emdl.encode_path(cupy.asarray(y), cupy.asarray(D), n_lmbds=3, tol=1e-9)
    np.testing.assert_allclose(lmbds, want_lmbds, rtol=1e-6)
    for got, z in zip(codes, want, strict=True):
        assert isinstance(got, cupy.ndarray)
        np.testing.assert_allclose(got.get(), z.dense(), atol=1e-3)


# Spikes


@pytest.fixture
def spiking(rng):
    """Three units with a few spikes each in white noise of two channels."""
    D = normalize_atoms(emdl.simulate.waveforms(3, 2, 15, rng=0)).astype(np.float32)
    z = np.zeros((1, 3, 1500), np.float32)
    z[0, np.arange(12) % 3, 40 + 120 * np.arange(12)] = 12
    x = emdl.synthesize(z, D)[0] + rng.standard_normal((2, 1514)).astype(np.float32)
    return x, decision.Units(D, np.full(3, 12.0), np.full(3, 1.0), np.full(3, 0.003))


def test_spikes_found_on_a_device_are_those_of_the_cpu(spiking, cupy):
    x, units = spiking
    want, residual = decision.decide(x, units, 15)
    got, left = decision.decide(x, units, 15, xp=cupy)
    assert len(want) == 12
    np.testing.assert_array_equal(got.time, want.time)
    np.testing.assert_array_equal(got.unit, want.unit)
    np.testing.assert_allclose(left, residual, atol=1e-5)


def test_codes_of_a_recording_come_from_a_device_as_non_zeros(spiking, cupy):
    x, units = spiking
    want = decision.encode(x, units.D, units.lmbd, tol=1e-5)
    got = decision.encode(x, units.D, units.lmbd, tol=1e-5, xp=cupy)
    assert isinstance(got.value, np.ndarray)
    np.testing.assert_allclose(got.dense(), want.dense(), atol=0.05)  # of 12: the square root of the gap


def test_a_recording_is_sorted_on_a_device_as_on_the_cpu(stand_in):
    made = emdl.simulate.tetrode(4.0, 2, n_channels=2, rate_hz=(15.0, 25.0), peak_uv=(150.0, 300.0), rng=3)
    want = emdl.sort(made.data, made.fs, max_iter=3)
    with standin.counts.during() as seen:
        got = emdl.sort(made.data, made.fs, max_iter=3, device="cuda")
    assert seen["kernels"] > 0
    assert len(want.spikes.sample) > 50
    np.testing.assert_array_equal(got.spikes.sample, want.spikes.sample)
    np.testing.assert_array_equal(got.spikes.unit, want.spikes.unit)


# Pictures


@pytest.fixture(scope="module")
def noisy():
    y, x = np.mgrid[-1:1:75j, -1:1:90j]
    return (0.5 + 0.4 * np.sign(x * y) + 0.1 * np.random.default_rng(0).standard_normal(x.shape)).astype(np.float32)


def test_layers_of_the_denoising_network_on_a_device_give_the_picture_of_numpy(cupy, noisy):
    net, noisy = network.bundled(), noisy[20:54, 30:71]
    want = net.denoise(noisy[None, None], 0.1)
    got = net.denoise(cupy.asarray(noisy)[None, None], 0.1)
    assert isinstance(got, cupy.ndarray)
    np.testing.assert_allclose(got.get(), want, atol=2e-4)
    assert net.share(cupy.asarray(noisy)[None, None], 0.1) == pytest.approx(net.share(noisy[None, None], 0.1), rel=0.01)
    assert net.denoise(cupy.asarray(noisy)[None, None], 0).get() == pytest.approx(noisy[None, None])


def test_layers_of_the_denoising_network_make_no_transfer_of_their_own(stand_in, noisy):
    net, planes, seen = training.start_network(64, 3, rng=0), stand_in.asarray(noisy)[None, None], []
    net.denoise(planes, 0.1, n_views=1)  # its arrays go to the device
    for n_views in (1, 4):
        with standin.counts.during() as counts:
            net.denoise(planes, 0.1, n_views=n_views)
        seen.append(counts["down"] + counts["up"])
        assert counts["kernels"] == 3 * net.n_layers * n_views
    assert seen[0] == seen[1] <= 6, "a few for checking what was given"


def test_a_picture_on_a_device_comes_back_there(cupy, noisy):
    """With small networks: the bundled one is above, and a stand-in takes its time."""
    colour = np.stack([noisy, noisy[::-1], 1 - noisy], axis=-1)
    for image, axis, C in ((noisy, None, 1), (colour, -1, 3)):
        net = training.start_network(64, 2, C, rng=0)
        got = images.denoise(cupy.asarray(image), net, channel_axis=axis)
        assert isinstance(got, cupy.ndarray)
        np.testing.assert_allclose(got.get(), images.denoise(image, net, channel_axis=axis), atol=1e-3)
        got, want = (images.estimate_sigma(x, channel_axis=axis) for x in (cupy.asarray(image), image))
        np.testing.assert_array_equal(got, want)


def test_pictures_are_denoised_on_a_device_by_the_command_line(stand_in, noisy, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray((255 * noisy.clip(0, 1)).round().astype(np.uint8)).save("noisy.png")
    training.start_network(64, 2, rng=0).save("net.h5")
    assert run(["denoise", "noisy.png", "-o", "host.png", "--model", "net.h5"]) == 0
    with standin.counts.during() as seen:
        assert run(["denoise", "noisy.png", "-o", "device.png", "--model", "net.h5", "--device", "cuda"]) == 0
    assert seen["kernels"] > 0
    assert "a stand-in" in capsys.readouterr().err
    host, on_device = (np.asarray(Image.open(name)).astype(int) for name in ("host.png", "device.png"))
    assert abs(host - on_device).max() <= 1
    assert run(["denoise", "noisy.png", "-o", "learned.png", "--learn", "--device", "cuda"]) == 2


def test_denoise_never_falls_back_by_itself(noisy, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    Image.fromarray((255 * noisy.clip(0, 1)).round().astype(np.uint8)).save(tmp_path / "noisy.png")
    assert run(["denoise", str(tmp_path / "noisy.png"), "--device", "cuda"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "CuPy is missing" in said
    assert [path.name for path in tmp_path.iterdir()] == ["noisy.png"]


@pytest.mark.parametrize("command", ["train", "detect", "encode", "sort"])
def test_the_command_line_never_falls_back_by_itself(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.chdir(tmp_path)
    model = [] if command == "train" else ["--model", "model.h5"]
    assert run([command, "sample", *model, "-o", "out.npz" if model else "out.h5", "--device", "cuda"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "CuPy is missing" in said
    assert "pip install 'emdl[cuda12]'" in said
    assert not list(tmp_path.iterdir())


def test_the_command_line_says_what_it_took(stand_in, capsys):
    screen.name_device("auto", quiet=False)
    assert capsys.readouterr().err == "emdl: computing on a stand-in\n"
    standin.settings.devices = 0
    screen.name_device("auto", quiet=False)
    assert "computing on the CPU: CuPy is installed but there is no CUDA device" in capsys.readouterr().err


# Memory and devices


def test_a_batch_is_as_large_as_the_memory_allows(stand_in):
    done = []
    standin.settings.free_bytes = 1000
    device.in_pieces(lambda a, b: done.append((a, b)), 7, 390, stand_in.zeros(1))
    assert done == [(0, 2), (2, 4), (4, 6), (6, 7)]


def test_out_of_memory_splits_the_batch_and_goes_on(stand_in, rng, monkeypatch):
    y, D, _ = problem({**CASES[0], "n": 5}, rng)
    want = emdl.encode(stand_in.asarray(y), stand_in.asarray(D), 0.5, tol=1e-9).get()
    on_device = stand_in.asarray(y), stand_in.asarray(D)
    sizes = []

    def piece(start, stop):
        sizes.append(stop - start)
        if stop - start > 2:
            raise standin.OutOfMemoryError("out of memory")
        return start

    assert device.in_pieces(piece, 5, 1, on_device[0]) == [0, 2, 4]
    assert sizes == [5, 2, 2, 1]
    whole, batch = planes.analyze, []

    def analyze(r, D, stride):
        batch.append(len(r))
        if len(r) > 3:
            raise standin.OutOfMemoryError("out of memory")
        return whole(r, D, stride)

    monkeypatch.setattr(planes, "analyze", analyze)
    again = emdl.encode(*on_device, 0.5, tol=1e-9).get()
    np.testing.assert_allclose(again, want, atol=1e-4)  # signals wait for others, and are certified to 1e-9
    assert batch[0] == 5
    assert max(batch[1:]) == 2


def test_a_signal_that_does_not_fit_is_an_error_with_advice(stand_in):
    def piece(*_):
        raise standin.OutOfMemoryError("out of memory")

    with pytest.raises(device.DeviceError, match="cut the signals"):
        device.in_pieces(piece, 3, 2**31, stand_in.zeros(1))


def test_gradients_in_pieces_are_those_of_the_whole_batch(events, stand_in):
    y, D0 = events
    options = {"m_step": "unrolled", "max_iter": 2, "n_layers": 4, "sigma": 0.05, "learn_lmbd": False}
    options |= {"rng": 0, "batch_size": 3}
    fit = lambda: emdl.em_fit(stand_in.asarray(y), 2, 7, D0=stand_in.asarray(D0), **options).model.D.get()  # noqa: E731
    want = fit()
    standin.settings.free_bytes = 100_000
    np.testing.assert_allclose(fit(), want, rtol=1e-10)


def test_the_gradient_of_the_rates_in_pieces_is_that_of_the_whole_batch(events, stand_in):
    y, D0 = events
    options = {"lmbd_rule": "paper-gradient", "max_iter": 2, "n_layers": 4, "sigma": 0.05, "learn_dictionary": False}
    fit = lambda: emdl.em_fit(stand_in.asarray(y), 2, 7, D0=stand_in.asarray(D0), **options).model.lmbd.get()  # noqa: E731
    want = fit()
    standin.settings.free_bytes = 100_000
    np.testing.assert_allclose(fit(), want, rtol=1e-10)


def test_several_devices_give_the_sums_of_one(stand_in, rng):
    """phi, psi and the squared error over 5 signals on 3 devices: the M-step needs nothing else."""
    y, D, z = problem({**CASES[1], "n": 5}, rng)
    stride = CASES[1]["stride"]

    def sums(y, z):
        error = y - ops.synthesize_full(z, stand_in.asarray(D), stride)
        phi, psi = ops.correlate_codes(z, D.shape[2:], stride), ops.correlate_signals(z, y, D.shape[2:], stride)
        return phi, psi, (error**2).sum()

    standin.settings.devices = 3
    got = device.sum_over_devices(sums, (y, z))
    for one, want in zip(got, sums(stand_in.asarray(y), stand_in.asarray(z)), strict=True):
        np.testing.assert_allclose(one, want.get(), rtol=1e-12)


PROCESS_OF_A_DEVICE = """
import functools, pathlib, sys
import numpy as np
tests, folder, number, count = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
sys.path[:0] = [tests, tests + "/cuda"]
import harness, standin
from emdl import encoder, ops
with standin.installed(functools.cache(harness.Library)) as cupy, np.load(folder / "all.npz") as held:
    standin.settings.devices = count
    cupy.cuda.Device(number).__enter__()  # for as long as the process lives
    part = np.array_split(np.arange(len(held["y"])), count)[number]
    y, D = cupy.asarray(held["y"][part]), cupy.asarray(held["D"])
    z = encoder.solve(y, D, cupy.full(len(D), 0.3), (1,), tol=1e-9, max_iter=5000).codes
    sums = ops.correlate_codes(z, D.shape[2:], (1,)), ops.correlate_signals(z, y, D.shape[2:], (1,))
    np.savez(folder / f"sums{number}.npz", *(total.get() for total in sums))
"""


def test_a_process_for_each_device_gives_the_dictionary_of_one(cuda_kernels, events, tmp_path):
    """Each encodes its part of the signals and makes the sums of the M-step; added up, they are those of all."""
    y, D = events
    command = [sys.executable, "-c", PROCESS_OF_A_DEVICE, str(pathlib.Path(__file__).parent)]
    for i in range(2):
        (tmp_path / str(i)).mkdir()
        np.savez(tmp_path / str(i) / "all.npz", y=y, D=D)
    running = [subprocess.Popen([*command, str(tmp_path / str(i)), str(i), "2"]) for i in range(2)]
    assert [process.wait(timeout=200) for process in running] == [0, 0]
    parts = [np.load(tmp_path / str(i) / f"sums{i}.npz") for i in range(2)]
    phi, psi = (sum(part[name] for part in parts) for name in ("arr_0", "arr_1"))
    for part in parts:
        part.close()
    z = encoder.solve(y, D, np.full(len(D), 0.3), (1,), tol=1e-9, max_iter=5000).codes
    want = exact_dictionary(D, *(f(z, *x, D.shape[2:], (1,)) for f, x in (
        (ops.correlate_codes, ()), (ops.correlate_signals, (y,)))))  # fmt: skip
    np.testing.assert_allclose(exact_dictionary(D, phi, psi), want, atol=1e-4)


def test_asking_for_a_device_that_is_not_there_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(device.DeviceError, match=r"CuPy is missing.*pip install 'emdl\[cuda12\]'"):
        device.choose("cuda")
    xp, sentence = device.choose("auto")
    assert xp is np
    assert "CPU" in sentence
    assert "CuPy is missing" in sentence
    assert device.choose("cpu") == (np, "computing on the CPU")
    with pytest.raises(InputError, match="cpu, cuda or auto"):
        device.choose("gpu")


def test_auto_takes_a_device_where_there_is_one(stand_in):
    assert device.choose("auto") == (stand_in, "computing on a stand-in")
    standin.settings.devices = 0
    with pytest.raises(device.DeviceError, match="no CUDA device"):
        device.choose("cuda")


# The tools for a machine with a GPU


def test_the_benchmark_runs_every_operation(stand_in, capsys):
    spec = importlib.util.spec_from_file_location("gpu", pathlib.Path(__file__).parents[1] / "benchmarks" / "gpu.py")
    gpu = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gpu)
    result = gpu.measure(stand_in, gpu.QUICK, 1)
    assert result["device"] == "a stand-in"
    assert len(result["rows"]) == 2 * len(gpu.QUICK) * 6
    assert all(row["seconds"] > 0 and row["share_of_limit"] > 0 for row in result["rows"])
    assert any("transforms" in row["operation"] for row in result["rows"])
    assert "of limit" in capsys.readouterr().out


def test_the_doctor_finds_a_device_in_order(stand_in, capsys):
    assert run(["doctor", "--json"]) == 0
    checks = {check["what"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert all(check["state"] == "works" for check in checks.values())
    assert {"CUDA kernels (NVRTC)", "transforms (cuFFT)", "eigenvalues (cuSOLVER)", "EM on the GPU"} <= set(checks)


def test_the_doctor_names_what_fails(stand_in, capsys, monkeypatch):
    monkeypatch.setattr(fourier, "analyze", lambda r, D, stride: 1.1 * planes.analyze(r, D, stride))
    assert run(["doctor"]) == 2
    out = capsys.readouterr().out
    assert "fails" in out
    assert "results differ from those of NumPy" in " ".join(out.split())


def test_the_doctor_of_a_machine_without_a_gpu_is_content(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert run(["doctor"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "missing" in out
    assert "emdl[cuda12]" in out
