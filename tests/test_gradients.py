"""The backward pass against the complex step on dense matrices, against the array version, and against itself."""

import numpy as np
import pytest
from laws import CASES, case_name, dense_operator
from test_unrolled import (
    LARGE,
    choose_form,
    choose_products,
    layers_of_matrices,
    many_bands,
    setting,
)

from emdl import ConvergenceWarning, backward, encode, lipschitz, unroll
from emdl._kernels import bands, network
from emdl.codes import SparseCodes
from emdl.errors import InputError
from emdl.gradients import backward_full, implicit, reconstruction_loss
from emdl.ops import analyze_full
from emdl.unrolled import momenta, unroll_full

__all__ = ["many_bands"]  # a fixture, used by its name

cases = pytest.mark.parametrize("case", CASES, ids=case_name)
large = pytest.mark.parametrize("case", LARGE, ids=case_name)
forms = pytest.mark.parametrize("gram", [False, True], ids=["residual", "gram"])
NAMES = ("D", "theta", "y", "step", "analysis")


def naive_loss(g, case, n_iter, positive, y, D, theta, step, analysis):
    """Return <g, z_T>, from dense matrices; any argument may be complex."""
    M = dense_operator(D, case["P"], case["stride"])
    A = M if analysis is None else dense_operator(analysis, case["P"], case["stride"])
    each = np.repeat(theta, np.prod(case["P"]) * (len(D) // np.size(theta)))
    z = layers_of_matrices(y.reshape(len(y), -1), M, A, each, step, n_iter, positive)
    return (g.reshape(len(g), -1) * z).sum()


def complex_step(function, arguments, name, v, h=1e-40):
    """Return the derivative of function(**arguments) along `v` in one argument: exact, for nothing is subtracted."""
    return function(**arguments | {name: arguments[name] + 1j * h * v}).imag / h


@pytest.mark.parametrize("n_iter", [1, 2, 3, 30])
@pytest.mark.parametrize("positive", [False, True], ids=["two-sided", "one-sided"])
@pytest.mark.parametrize("untied", [False, True], ids=["tied", "untied"])
@cases
def test_every_gradient_is_exact(case, untied, positive, n_iter, rng):
    y, D, A, theta, step = setting(case, rng, untied=untied, per_atom=n_iter != 2)
    g_z = rng.standard_normal((case["n"], case["K"], *case["P"]))
    grads = backward(unroll(y, D, theta, step, n_iter, positive=positive, stride=case["stride"], analysis=A), g_z)
    arguments = {"y": y, "D": D, "theta": theta, "step": step, "analysis": A}
    for name in NAMES[: 5 if untied else 4]:
        v = rng.standard_normal(np.shape(arguments[name]))
        want = complex_step(lambda **kw: naive_loss(g_z, case, n_iter, positive, **kw), arguments, name, v)
        got = np.vdot(v, getattr(grads, name))
        scale = np.linalg.norm(v) * np.linalg.norm(getattr(grads, name))
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12 * scale, err_msg=name)
    assert (grads.analysis is not None) == untied
    assert grads.theta.shape == np.shape(theta)


def assert_same_gradients(got, want, rtol):
    for name in NAMES:
        a, b = getattr(got, name), getattr(want, name)
        if b is not None:
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max(), err_msg=name)


@pytest.mark.parametrize("n_layers", [None, 1, 4])
@forms
@large
@pytest.mark.usefixtures("many_bands")
def test_kernels_equal_the_array_version(case, gram, n_layers, monkeypatch, rng):
    choose_form(monkeypatch, gram)
    y, D, A, theta, step = setting(case, rng, untied=True)
    traces = [unroll_full(y, D, theta, step, 6, False, case["stride"], analysis=A, dense=d) for d in (False, True)]
    g_z = rng.standard_normal(traces[0].z.shape)
    got, want = (backward_full(trace, g_z, n_layers=n_layers) for trace in traces)
    assert_same_gradients(got, want, 1e-11)


@pytest.mark.parametrize("n_dense", [1, 2, 4, 6])
@pytest.mark.parametrize("n_layers", [None, 1, 3, 5])
@large
@pytest.mark.usefixtures("many_bands")
def test_products_equal_the_kernels(case, n_layers, n_dense, monkeypatch, rng):
    choose_form(monkeypatch, gram=False)
    y, D, A, theta, step = setting(case, rng, untied=True)
    options = (y, D, theta, step, 6, False, case["stride"])
    sparse = unroll_full(*options, analysis=A, dense=False)
    choose_products(monkeypatch, n_dense)
    mixed = unroll_full(*options, analysis=A)
    assert len(mixed.codes.dense) == n_dense
    g_z = rng.standard_normal(sparse.z.shape)
    got, want = (backward_full(trace, g_z, n_layers=n_layers) for trace in (mixed, sparse))
    assert_same_gradients(got, want, 1e-11)
    z = mixed.codes[-1]
    row = np.repeat(np.arange(len(y)), np.diff(z.start))
    value = g_z.reshape(len(y), len(D), -1)[row, z.index % len(D), z.index // len(D)]
    given = SparseCodes(z.shape, z.start, z.index, value)
    assert_same_gradients(backward_full(mixed, given, n_layers=n_layers), got, 0)


@pytest.mark.parametrize(("every", "untied"), [(1, False), (2, False), (2, True), (3, False), (5, False)])
@pytest.mark.parametrize("n_layers", [None, 2, 4])
@forms
@large
@pytest.mark.usefixtures("many_bands")
def test_checkpoints_change_no_bit(case, gram, n_layers, every, untied, monkeypatch, rng):
    choose_form(monkeypatch, gram)
    y, D, A, theta, step = setting(case, rng, untied=untied)
    traces = [unroll(y, D, theta, step, 7, stride=case["stride"], analysis=A, checkpoint=c) for c in (every, None)]
    g_z = rng.standard_normal(traces[0].z.shape)
    got, want = (backward(trace, g_z, n_layers=n_layers) for trace in traces)
    assert_same_gradients(got, want, 0)


@pytest.mark.parametrize("every", [1, 2, 3, None])
@pytest.mark.parametrize("n_layers", [None, 1, 4])
@large
def test_mixing_patches_equals_mixing_images(case, n_layers, every, monkeypatch, rng):
    y, D, A, theta, step = setting(case, rng, untied=True)
    trace = unroll(y, D, theta, step, 7, stride=case["stride"], analysis=A, checkpoint=every)
    g_z, found = rng.standard_normal(trace.z.shape), []
    for lean in (0, np.inf):
        monkeypatch.setattr(network, "_LEAN", lean)
        found.append(backward(trace, g_z, n_layers=n_layers))
    assert_same_gradients(*found, 1e-11)


@pytest.mark.parametrize("every", [1, 2, 3, 5])
def test_checkpoints_of_the_array_version_change_no_bit(every, rng):
    y, D, _, theta, step = setting(LARGE[2], rng)
    traces = [unroll_full(y, D, theta, step, 7, True, (1, 1), checkpoint=c, dense=True) for c in (every, None)]
    g_z = rng.standard_normal(traces[0].z.shape)
    assert_same_gradients(*(backward_full(trace, g_z) for trace in traces), 0)


@large
@pytest.mark.usefixtures("many_bands")
def test_the_bits_do_not_depend_on_the_threads(case, monkeypatch, rng):
    y, D, _, theta, step = setting(case, rng, dtype=np.float32)
    trace = unroll(y, D, theta, step, 6, stride=case["stride"])
    g_z, found = rng.standard_normal(trace.z.shape), []
    for threads in "12":
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        found.append(backward(trace, g_z))
    assert_same_gradients(*found, 0)


@pytest.mark.parametrize("n_dense", [2, 6])
@large
def test_the_bits_of_products_do_not_depend_on_the_threads(case, n_dense, monkeypatch, rng):
    choose_products(monkeypatch, n_dense)
    y, D, _, theta, step = setting(case, rng, dtype=np.float32)
    g_z, found = rng.standard_normal((case["n"], case["K"], *case["P"])), []
    for threads in "12":
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        found.append(backward(unroll(y, D, theta, step, 6, stride=case["stride"]), g_z))
    assert_same_gradients(*found, 0)


@large
@pytest.mark.usefixtures("many_bands")
def test_float32_stays_near_float64(case, rng):
    y, D, _, theta, step = setting(case, rng)
    traces = [unroll(*[x.astype(t) for x in (y, D, theta)], step, 3, stride=case["stride"]) for t in ("f4", "f8")]
    g_z = rng.standard_normal(traces[0].z.shape) * ((traces[0].z != 0) & (traces[1].z != 0))
    got, want = (backward(trace, g_z) for trace in traces)
    assert got.D.dtype == got.y.dtype == got.theta.dtype == np.float32
    # a code at its threshold may be zero in one and not in the other, which few layers make rare; sums of 1e4 terms
    assert_same_gradients(got, want, 1e-4)


def test_truncation_holds_the_first_layers_fixed(rng):
    """The last two of five layers, as a function of D, with z_3 and z_2 held as they are."""
    case = CASES[0]
    y, D, _, theta, step = setting(case, rng)
    trace = unroll(y, D, theta, step, 5)
    g_z = rng.standard_normal(trace.z.shape)
    older, before = (trace.codes[t].dense().reshape(len(y), -1) for t in (1, 2))
    beta = momenta(5)[3:]
    each = np.repeat(theta, case["P"])

    def last_layers(D):
        M, z, z_before = dense_operator(D, case["P"], case["stride"]), before, older
        for b in beta:
            w = z + b * (z - z_before)
            u = w + step * (y.reshape(len(y), -1) - w @ M.T) @ M
            z_before, z = z, np.where(u.real > each, u - each, 0) + np.where(u.real < -each, u + each, 0)
        return (g_z.reshape(len(y), -1) * z).sum()

    v = rng.standard_normal(D.shape)
    want = complex_step(last_layers, {"D": D}, "D", v)
    np.testing.assert_allclose(np.vdot(v, backward(trace, g_z, n_layers=2).D), want, rtol=1e-11)
    assert_same_gradients(backward(trace, g_z, n_layers=5), backward(trace, g_z), 0)


@pytest.mark.usefixtures("many_bands")
def test_products_in_a_network_of_one_layer_equal_the_kernels(monkeypatch, rng):
    choose_form(monkeypatch, gram=False)
    y, D, A, theta, step = setting(LARGE[0], rng, untied=True)
    sparse = unroll_full(y, D, theta, step, 1, False, (1,), analysis=A, dense=False)
    choose_products(monkeypatch, 1)
    mixed = unroll_full(y, D, theta, step, 1, False, (1,), analysis=A)
    assert len(mixed.codes.dense) == 1
    g_z = rng.standard_normal(sparse.z.shape)
    assert_same_gradients(backward_full(mixed, g_z), backward_full(sparse, g_z), 1e-11)


def test_the_array_version_takes_a_gradient_on_the_support(rng):
    y, D, _, theta, step = setting(LARGE[0], rng)
    trace = unroll_full(y, D, theta, step, 4, False, (1,), dense=True)
    g_z = np.where(trace.z != 0, rng.standard_normal(trace.z.shape), 0)
    given = SparseCodes.from_dense(g_z)
    assert_same_gradients(backward_full(trace, given), backward_full(trace, g_z), 0)


def test_the_implicit_gradient_is_linear_in_what_it_is_given(rng):
    y, D, _, _, step = setting(CASES[0], rng)
    theta = step * np.linalg.norm(D.reshape(len(D), -1), axis=1) * 1.2
    trace = unroll(y, D, theta, step, 300)
    g_z = rng.standard_normal(trace.z.shape)
    whole = implicit(trace, g_z)
    for unit in (2.0**-60, 2.0**60):  # powers of two, so that not a bit may differ
        part = implicit(trace, unit * g_z)
        for name in ("D", "theta", "y", "step"):
            np.testing.assert_array_equal(getattr(part, name), unit * getattr(whole, name))
    nothing = implicit(trace, 0 * g_z)  # and no warning that it was not solved for
    assert not any(np.any(getattr(nothing, name)) for name in NAMES[:4])


@pytest.mark.parametrize("case", [CASES[0], CASES[3]], ids=case_name)
def test_the_implicit_gradient_of_arrays_equals_that_of_sparse_codes(case, rng):
    y, D, _, _, step = setting(case, rng)
    theta = step * np.linalg.norm(D.reshape(len(D), -1), axis=1) * 1.2
    traces = [unroll_full(y, D, theta, step, 300, False, case["stride"], dense=dense) for dense in (True, False)]
    g_z = rng.standard_normal(traces[0].z.shape)
    assert_same_gradients(*(implicit(trace, g_z) for trace in traces), 1e-9)


@forms
def test_a_gradient_given_on_the_support_counts_as_the_dense_one(gram, monkeypatch, rng):
    choose_form(monkeypatch, gram)
    y, D, _, theta, step = setting(LARGE[0], rng)
    trace = unroll(y, D, theta, step, 4)
    g_z, z = rng.standard_normal(trace.z.shape), trace.codes[-1]
    row = np.repeat(np.arange(len(y)), np.diff(z.start))
    value = g_z[row, z.index % 3, z.index // 3]
    given = SparseCodes(z.shape, z.start, z.index, value)
    assert_same_gradients(backward_full(trace, given), backward_full(trace, g_z), 0)


def test_codes_that_are_all_zero_have_no_gradient(rng):
    y, D, _, _, step = setting(LARGE[2], rng)
    trace = unroll(y, D, 1e3, step, 3)
    grads = backward(trace, np.ones(trace.z.shape))
    assert not any(np.any(getattr(grads, name)) for name in NAMES[:4])


@cases
def test_the_loss_of_decoded_codes_and_its_gradients(case, rng):
    y, D, _, theta, step = setting(case, rng)
    B, target = rng.standard_normal(D.shape), rng.standard_normal(y.shape)
    trace = unroll(y, D, theta, step, 3, stride=case["stride"])
    loss, g_z, g_decoder = reconstruction_loss(trace, target, decoder=B)
    rows = trace.z.reshape(len(y), -1)

    def naive(B):
        return 0.5 * ((rows @ dense_operator(B, case["P"], case["stride"]).T - target.reshape(len(y), -1)) ** 2).sum()

    np.testing.assert_allclose(loss, naive(B), rtol=1e-12)
    v = rng.standard_normal(B.shape)
    np.testing.assert_allclose(np.vdot(v, g_decoder), complex_step(naive, {"B": B}, "B", v), rtol=1e-11)
    error = (rows @ dense_operator(B, case["P"], case["stride"]).T).reshape(y.shape) - target
    np.testing.assert_allclose(g_z.dense(), analyze_full(error, B, case["stride"]) * (trace.z != 0), atol=1e-12)


@pytest.mark.parametrize("case", [CASES[0], CASES[3]], ids=case_name)
def test_the_implicit_gradient_is_that_of_infinitely_many_layers(case, rng):
    y, D, _, _, step = setting(case, rng)
    theta = step * np.linalg.norm(D.reshape(len(D), -1), axis=1) * 1.2  # few codes, so that their atoms are independent
    trace = unroll(y, D, theta, step, 6000, stride=case["stride"], checkpoint=100)
    g_z = rng.standard_normal(trace.z.shape)
    # what 6000 layers leave to converge, and tol
    assert_same_gradients(implicit(trace, g_z, tol=1e-12), backward(trace, g_z), 1e-6)


def test_the_implicit_gradient_predicts_the_certified_minimiser(rng):
    """encode shares no code with the layers: move D a little, encode again, compare."""
    y, D, _, _, step = setting(CASES[0], rng)
    lmbd, h = 1.2 * np.linalg.norm(D.reshape(len(D), -1), axis=1), 1e-5
    trace = unroll(y, D, lmbd * step, step, 3000, checkpoint=60)
    g_z, v = rng.standard_normal(trace.z.shape), rng.standard_normal(D.shape)
    moved = [np.vdot(g_z, encode(y, D + m * h * v, lmbd, tol=1e-14, max_iter=100_000)) for m in (-1, 1)]
    want = (moved[1] - moved[0]) / (2 * h)
    np.testing.assert_allclose(np.vdot(v, implicit(trace, g_z).D), want, rtol=1e-4)  # central difference


def test_the_implicit_gradient_of_float32_stays_near_that_of_float64(rng):
    y, D, _, _, step = setting(CASES[0], rng)
    theta = step * np.linalg.norm(D.reshape(len(D), -1), axis=1) * 1.2
    traces = [unroll(*[x.astype(t) for x in (y, D, theta)], step, 2000, checkpoint=50) for t in ("f4", "f8")]
    g_z = rng.standard_normal(traces[0].z.shape)
    got, want = (implicit(trace, g_z) for trace in traces)
    assert got.D.dtype == np.float32
    assert_same_gradients(got, want, 1e-2)  # tol 1e-4 times the condition of the support


def test_an_implicit_gradient_that_is_not_solved_for_warns(rng):
    y, D, _, theta, step = setting(CASES[0], rng)
    trace = unroll(y, D, theta, step, 50)
    with pytest.warns(ConvergenceWarning, match="relative residual"):
        implicit(trace, np.ones(trace.z.shape), max_iter=1)


def test_training_through_the_layers_lowers_the_loss_on_other_signals(rng):
    true = rng.standard_normal((2, 1, 11))
    true /= np.linalg.norm(true, axis=2, keepdims=True)
    codes = rng.uniform(1, 2, (6, 2, 400)) * (rng.random((6, 2, 400)) < 0.01)
    y = np.stack([[sum(np.convolve(z[k], true[k, 0]) for k in range(2))] for z in codes])
    D = true + 0.25 * rng.standard_normal(true.shape)
    losses = []
    for _ in range(30):
        D /= np.linalg.norm(D, axis=2, keepdims=True)
        step = 1 / lipschitz(D)
        traces = [unroll(part, D, 0.1 * step, step, 15, positive=True) for part in (y[:4], y[4:])]
        _, g_z, g_decoder = reconstruction_loss(traces[0], y[:4])
        losses.append(reconstruction_loss(traces[1], y[4:])[0])
        D = D - 0.01 * (backward_full(traces[0], g_z).D + g_decoder)
    assert losses[-1] < 0.5 * losses[0]


def test_no_layer_allocates(monkeypatch, rng):
    """All layers of a band run inside one call; what numba allocates there does not grow with their number."""
    from numba.core.runtime import _nrt_python, rtsys

    monkeypatch.setattr(bands, "_MAX_BANDS", 1)
    monkeypatch.setattr(network, "_GUESS", 1)  # room enough: running out of it calls the kernel again
    y, D, _, theta, step = setting(LARGE[2], rng)
    g_z = rng.standard_normal((1, 5, 57, 56))
    counts = {}
    _nrt_python.memsys_enable_stats()
    try:
        for n_iter in (2, 3, 20):
            before = rtsys.get_allocation_stats().alloc
            backward(unroll(y, D, theta, step, n_iter), g_z)
            counts[n_iter] = rtsys.get_allocation_stats().alloc - before
    finally:
        _nrt_python.memsys_disable_stats()
    assert counts[20] == counts[3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"g_z": np.ones((1, 3, 25))}, "g_z has shape"),
        ({"n_layers": 0}, "n_layers"),
        ({"n_layers": 3}, "n_layers"),
    ],
    ids=["shape", "none", "too-many"],
)
def test_what_makes_no_sense_is_refused(change, message):
    trace = unroll(np.ones((1, 1, 30)), np.ones((3, 1, 5)), 0.1, 0.1, 2)
    with pytest.raises(InputError, match=message):
        backward(trace, **{"g_z": np.ones((1, 3, 26))} | change)


def test_an_untied_network_has_no_implicit_gradient(rng):
    y, D, A, theta, step = setting(CASES[0], rng, untied=True)
    trace = unroll(y, D, theta, step, 2, analysis=A)
    with pytest.raises(InputError, match="use backward"):
        implicit(trace, trace.z)
