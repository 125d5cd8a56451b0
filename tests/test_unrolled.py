"""The unrolled encoder: kernels against dense matrices, against the array version, and against themselves."""

import numpy as np
import pytest
from laws import CASES, case_name, dense_operator, make_problem

from emdl import lipschitz, unroll, unrolled
from emdl._kernels import bands, network
from emdl.codes import SparseCodes
from emdl.errors import InputError
from emdl.unrolled import momenta, unroll_full

cases = pytest.mark.parametrize("case", CASES, ids=case_name)
sides = pytest.mark.parametrize("positive", [False, True], ids=["two-sided", "one-sided"])

# larger than a tile and a band, no size a multiple of another
LARGE = [
    {"n": 2, "C": 2, "K": 3, "s": (13,), "P": (199,), "stride": (1,)},
    {"n": 1, "C": 1, "K": 9, "s": (70,), "P": (1201,), "stride": (2,)},
    {"n": 1, "C": 2, "K": 5, "s": (5, 7), "P": (57, 56), "stride": (1, 1)},
    {"n": 2, "C": 1, "K": 6, "s": (7, 5), "P": (31, 44), "stride": (2, 3)},
    {"n": 3, "C": 1, "K": 5, "s": (3, 2), "P": (17, 19), "stride": (4, 4)},
]
large = pytest.mark.parametrize("case", LARGE, ids=case_name)


def layers_of_matrices(y, M, A, theta, step, n_iter, positive):
    """Return z_T of (2) for signals in rows, from the dense matrices of the dictionaries; complex input is followed."""
    z = before = np.zeros((len(y), M.shape[1]), np.result_type(y, M, A, theta, step))
    s = 1.0
    for _ in range(n_iter):
        s_next = (1 + np.sqrt(1 + 4 * s * s)) / 2
        w = z + (s - 1) / s_next * (z - before)
        u = w + step * (y - w @ M.T) @ A
        before, z, s = z, np.where(u.real > theta.real, u - theta, 0), s_next
        if not positive:
            z = z + np.where(u.real < -theta.real, u + theta, 0)
    return z


def setting(case, rng, *, per_atom=True, untied=False, dtype=np.float64):
    """Return y, D, A, theta, step of a case, with thresholds that leave a part of the codes."""
    y, D, _ = make_problem(case, rng)
    A = D + 0.1 * rng.standard_normal(D.shape) if untied else None
    step = 0.9 / lipschitz(D, stride=case["stride"])
    size = np.linalg.norm(D.reshape(len(D), -1), axis=1).mean()
    theta = step * size * (0.4 + 0.4 * rng.random(len(D)) if per_atom else 0.6)
    y, D, A, theta = (None if x is None else np.asarray(x, dtype) for x in (y, D, A, theta))
    return y, D, A, theta, step


@pytest.fixture
def many_bands(monkeypatch):
    """Cut even small signals into bands."""
    monkeypatch.setattr(bands, "_BAND", 1000)


def choose_form(monkeypatch, gram):
    monkeypatch.setattr(bands, "gram_pays", lambda *_: gram)


@sides
@pytest.mark.parametrize("untied", [False, True], ids=["tied", "untied"])
@cases
def test_layers_are_those_of_the_definition(case, untied, positive, rng):
    y, D, A, theta, step = setting(case, rng, untied=untied)
    M = dense_operator(D, case["P"], case["stride"])
    N = M if A is None else dense_operator(A, case["P"], case["stride"])
    each = np.repeat(theta, np.prod(case["P"]))
    got = unroll(y, D, theta, step, 6, positive=positive, stride=case["stride"], analysis=A)
    want = layers_of_matrices(y.reshape(len(y), -1), M, N, each, step, 6, positive)
    assert 0 < np.count_nonzero(want) < want.size
    # float64 sums of at most a few hundred terms, six layers
    np.testing.assert_allclose(got.z.reshape(len(y), -1), want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("gram", [False, True], ids=["residual", "gram"])
@large
@pytest.mark.usefixtures("many_bands")
def test_kernels_equal_the_array_version_in_every_layer(case, gram, monkeypatch, rng):
    choose_form(monkeypatch, gram)
    y, D, A, theta, step = setting(case, rng, untied=True)
    got = unroll_full(y, D, theta, step, 5, False, case["stride"], analysis=A, dense=False)
    want = unroll_full(y, D, theta, step, 5, False, case["stride"], analysis=A, dense=True)
    for z, z_want in zip(got.codes, want.codes, strict=True):
        assert (np.diff(z.index) > 0).sum() >= len(z.index) - len(y), "not in the order of SparseCodes"
        np.testing.assert_allclose(z.dense(), z_want, rtol=1e-11, atol=1e-12)


def choose_products(monkeypatch, n_dense):
    """Take matrix products in the first `n_dense` layers."""
    choose_form(monkeypatch, gram=False)
    monkeypatch.setattr(bands, "share_limit", lambda *_: -1.0)
    monkeypatch.setattr(unrolled, "_change_pays", lambda t, *_: t == n_dense)


@pytest.mark.parametrize("n_dense", [1, 2, 3, 6])
@sides
@large
@pytest.mark.usefixtures("many_bands")
def test_products_equal_the_kernels_in_every_layer(case, positive, n_dense, monkeypatch, rng):
    choose_form(monkeypatch, gram=False)
    y, D, A, theta, step = setting(case, rng, untied=True)
    options = (y, D, theta, step, 6, positive, case["stride"])
    want = unroll_full(*options, analysis=A, dense=False)
    choose_products(monkeypatch, n_dense)
    got = unroll_full(*options, analysis=A)
    assert len(got.codes.dense) == n_dense
    for z, z_want in zip(got.codes, want.codes, strict=True):
        np.testing.assert_allclose(z.dense(), z_want.dense(), rtol=1e-11, atol=1e-12)


def test_products_are_taken_where_few_codes_are_zero_and_nowhere_else(rng):
    case = {"n": 1, "C": 1, "K": 32, "s": (7, 7), "P": (60, 61), "stride": (1, 1)}
    y, D, _, theta, step = setting(case, rng, dtype=np.float32)
    dense = unroll(y, D, 0.2 * theta, step, 4)
    sparse = unroll(y, D, 3 * theta, step, 4)
    assert len(dense.codes.dense) > 0
    assert isinstance(sparse.codes, unrolled.SparseLayers)
    assert np.count_nonzero(sparse.z) > 0
    assert isinstance(unroll(y[:, :, :20, :20], D, 0.2 * theta, step, 4).codes, unrolled.SparseLayers)  # too small
    assert isinstance(unroll(y, D, 0.2 * theta, step, 4, checkpoint=2).codes, unrolled.SparseLayers)


@large
@pytest.mark.usefixtures("many_bands")
def test_float32_stays_near_float64(case, rng):
    y, D, _, theta, step = setting(case, rng)
    single = [x.astype(np.float32) for x in (y, D, theta)]
    want = unroll_full(y, D, theta, step, 4, True, case["stride"]).z
    got = unroll_full(*single, step, 4, True, case["stride"]).z
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=3e-6 * np.abs(want).max())  # shrinkage keeps rounding as it is


@pytest.mark.parametrize("gram", [False, True], ids=["residual", "gram"])
@large
@pytest.mark.usefixtures("many_bands")
def test_the_bits_do_not_depend_on_the_threads(case, gram, monkeypatch, rng):
    choose_form(monkeypatch, gram)
    y, D, _, theta, step = setting(case, rng, dtype=np.float32)
    found = []
    for threads in "12":
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        found.append(unroll(y, D, theta, step, 6, stride=case["stride"]).codes[-1])
    np.testing.assert_array_equal(found[0].index, found[1].index)
    np.testing.assert_array_equal(found[0].value, found[1].value)


@pytest.mark.parametrize("gram", [False, True], ids=["residual", "gram"])
@large
@pytest.mark.usefixtures("many_bands")
def test_running_out_of_room_changes_nothing(case, gram, monkeypatch, rng):
    choose_form(monkeypatch, gram)
    y, D, _, theta, step = setting(case, rng)
    want = unroll(y, D, theta, step, 7, stride=case["stride"]).codes
    monkeypatch.setattr(network, "_GUESS", 0)
    got = unroll(y, D, theta, step, 7, stride=case["stride"]).codes
    for z, z_want in zip(got, want, strict=True):
        np.testing.assert_array_equal(z.value, z_want.value)


@pytest.mark.parametrize("every", [1, 2, 3, 5, 50])
@pytest.mark.parametrize("dense", [False, True], ids=["kernels", "arrays"])
def test_checkpoints_keep_less_and_change_nothing(dense, every, rng):
    y, D, _, theta, step = setting(LARGE[0], rng)
    whole = unroll_full(y, D, theta, step, 8, False, (1,), dense=dense)
    short = unroll_full(y, D, theta, step, 8, False, (1,), dense=dense, checkpoint=every)
    np.testing.assert_array_equal(short.z, whole.z)
    if every == 5:
        with pytest.raises(InputError, match="layer 1 were not kept"):
            short.codes[1]


@pytest.mark.parametrize("gram", [False, True], ids=["residual", "gram"])
def test_untouched_stretches_keep_what_the_signal_alone_makes(gram, monkeypatch, rng):
    """Far from all events the layers skip their work, which must not lose a code that comes and goes."""
    choose_form(monkeypatch, gram)
    D = rng.standard_normal((2, 1, 9))
    step = 0.9 / lipschitz(D)
    y = np.zeros((1, 1, 3000))
    y[0, 0, 700:709] = 2 * D[0, 0]
    y[0, 0, 2100:2109] = -0.02 * D[1, 0]
    theta = np.full(2, 0.02 * step * (D[1, 0] ** 2).sum() * 0.97)
    got = unroll_full(y, D, theta, step, 9, False, (1,), dense=False).codes
    want = unroll_full(y, D, theta, step, 9, False, (1,), dense=True).codes
    for z, z_want in zip(got, want, strict=True):
        np.testing.assert_allclose(z.dense(), z_want, rtol=1e-10, atol=1e-13)


def test_nothing_survives_a_threshold_above_all_correlations(rng):
    y, D, _, _, step = setting(LARGE[2], rng)
    trace = unroll(y, D, 1e3, step, 3)
    assert trace.codes[-1].n_nonzero == 0
    assert not trace.z.any()


def test_a_zero_threshold_leaves_all_codes(rng):
    y, D, _, _, step = setting(LARGE[0], rng)
    assert np.count_nonzero(unroll(y, D, 0.0, step, 2).z) == 2 * 3 * 199


def test_a_step_that_diverges_shows(rng):
    """Values that are no longer finite must not pass for zeros."""
    y, D, _, _, step = setting(LARGE[2], rng, dtype=np.float32)
    with pytest.raises(InputError, match=r"20 layers diverged with step .*; take at most 1 / lipschitz"):
        unroll(y, D, 0.1, 1e6 * step, 20)


def test_inputs_are_not_written_and_scalar_thresholds_hold_for_all_atoms(rng):
    y, D, A, _, step = setting(LARGE[0], rng, untied=True)
    given = [x.copy() for x in (y, D, A)]
    for x in (y, D, A):
        x.flags.writeable = False
    got = unroll(y, D, 0.3, step, 4, analysis=A).z
    for x, want in zip((y, D, A), given, strict=True):
        np.testing.assert_array_equal(x, want)
    np.testing.assert_array_equal(got, unroll(y, D, [0.3] * 3, step, 4, analysis=A).z)


def test_the_trace_takes_a_tenth_of_the_dense_one(rng):
    """At 5 % non-zeros, float32: 2 bytes of number and 4 of value a code, against 4 for each of all codes."""
    case = {"n": 1, "C": 1, "K": 48, "s": (7, 7), "P": (90, 91), "stride": (1, 1)}
    y, D, _, _, step = setting(case, rng, dtype=np.float32)
    theta = np.float32(1.88 * step * np.sqrt((D**2).sum(axis=(1, 2, 3)).mean()))
    trace = unroll(y, D, theta, step, 6)
    n_codes = 6 * 48 * 90 * 91
    share = sum(z.n_nonzero for z in trace.codes) / n_codes
    held = sum(x.nbytes for signal in trace.codes.segments for part in signal for band in part.bands for x in band)
    assert 0.04 < share < 0.06
    assert held < 0.1 * 4 * n_codes


def test_momenta_follow_the_recursion():
    assert momenta(2)[0] == 0
    np.testing.assert_allclose(momenta(2)[1], ((1 + 5**0.5) / 2 - 1) / ((1 + (1 + (1 + 5**0.5) ** 2) ** 0.5) / 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 0.0}, "step"),
        ({"n_iter": 0}, "n_iter"),
        ({"theta": -1.0}, "rates >= 0"),
        ({"theta": [0.1, 0.2]}, "one for each atom"),
        ({"checkpoint": 0}, "checkpoint"),
        ({"analysis": np.ones((3, 1, 4))}, "analysis has shape"),
        ({"stride": 7}, "no atom covers"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else None,
)
def test_what_makes_no_sense_is_refused(change, message):
    arguments = {"y": np.ones((1, 1, 30)), "D": np.ones((3, 1, 5)), "theta": 0.1, "step": 0.1, "n_iter": 2} | change
    with pytest.raises(InputError, match=message):
        unroll(**arguments)


def test_codes_of_the_trace_are_sparse(rng):
    y, D, _, theta, step = setting(LARGE[0], rng)
    trace = unroll(y, D, theta, step, 3)
    assert isinstance(trace.codes[1], SparseCodes)
    with pytest.raises(IndexError):
        trace.codes[3]
