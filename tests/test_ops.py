"""The operators against the dense matrix that defines them, and against each other."""

import numpy as np
import pytest
from laws import CASES, assert_adjoint, case_name, dense_operator, make_problem

from emdl import analyze, lipschitz, objective, ops, synthesize
from emdl.codes import SparseCodes
from emdl.errors import InputError, InputTypeError

cases = pytest.mark.parametrize("case", CASES, ids=case_name)


@cases
def test_synthesize_is_the_dense_matrix(case, rng):
    _, D, z = make_problem(case, rng)
    want = dense_operator(D, case["P"], case["stride"]) @ z.reshape(len(z), -1).T
    got = synthesize(z, D, stride=case["stride"])
    np.testing.assert_allclose(got.reshape(len(z), -1).T, want, rtol=1e-12, atol=1e-13)


@cases
def test_analyze_is_its_transpose(case, rng):
    y, D, _ = make_problem(case, rng)
    want = dense_operator(D, case["P"], case["stride"]).T @ y.reshape(len(y), -1).T
    got = analyze(y, D, stride=case["stride"])
    np.testing.assert_allclose(got.reshape(len(y), -1).T, want, rtol=1e-12, atol=1e-13)


@cases
def test_synthesize_and_analyze_are_adjoint(case, rng):
    y, D, z = make_problem(case, rng)
    stride = case["stride"]
    assert_adjoint(lambda x: synthesize(x, D, stride=stride), lambda x: analyze(x, D, stride=stride), z, y)


@cases
def test_kernels_equal_the_loop_over_taps(case, rng):
    y, D, z = make_problem(case, rng)
    np.testing.assert_allclose(
        ops.analyze_full(y, D, case["stride"]), ops.analyze_by_taps(y, D, case["stride"]), rtol=1e-12, atol=1e-13
    )
    np.testing.assert_allclose(
        ops.synthesize_full(z, D, case["stride"]), ops.synthesize_by_taps(z, D, case["stride"]), rtol=1e-12, atol=1e-13
    )


@cases
def test_lipschitz_bounds_the_norm_and_is_near_it_on_long_signals(case, rng):
    _, D, _ = make_problem(case, rng)
    long = tuple(40 if len(case["P"]) == 1 else 12 for _ in case["P"])
    norm = np.linalg.norm(dense_operator(D, long, case["stride"]), 2) ** 2
    bound = lipschitz(D, stride=case["stride"])
    assert norm <= bound
    if len(case["P"]) == 1:  # 12 positions an axis are too few to come near the infinite signal in two dimensions
        assert bound <= 1.15 * norm


def test_lipschitz_holds_where_the_peak_lies_between_grid_frequencies():
    t = np.arange(33)
    for f in np.linspace(0.1, 0.11, 7):
        D = np.cos(2 * np.pi * f * t)[None, None]
        fine = np.abs(np.fft.rfft(D[0, 0], 2**18)).max() ** 2
        assert fine <= lipschitz(D) <= 1.03 * fine


@cases
def test_objective_is_equation_1(case, rng):
    y, D, z = make_problem(case, rng)
    lmbd, sigma = rng.uniform(0.5, 2, case["K"]), 0.7
    r = y.reshape(len(y), -1).T - dense_operator(D, case["P"], case["stride"]) @ z.reshape(len(z), -1).T
    want = (r**2).sum() / (2 * sigma**2) + sum(lmbd[k] * abs(z[:, k]).sum() for k in range(case["K"]))
    np.testing.assert_allclose(objective(y, z, D, lmbd, sigma, stride=case["stride"]), want, rtol=1e-12)


@cases
def test_phi_and_psi_give_the_squared_error(case, rng):
    """||y - D z||^2 = ||y||^2 - 2 <psi, D> + sum_kl sum_ab d_k[a] phi_kl[a - b] d_l[b], the docstring's equation."""
    y, D, z = make_problem(case, rng)
    s, stride, K = case["s"], case["stride"], case["K"]
    for codes in (z, SparseCodes.from_dense(z)):
        phi, psi = ops.correlate_codes(codes, s, stride), ops.correlate_signals(codes, y, s, stride)
        quadratic = 0.0
        for a in np.ndindex(*s):
            for b in np.ndindex(*s):
                lag = tuple(m - 1 + i - j for m, i, j in zip(s, a, b, strict=True))
                quadratic += np.einsum("kc,kl,lc->", D[(..., *a)], phi[(..., *lag)], D[(..., *b)])
        want = ((y - synthesize(z, D, stride=stride)) ** 2).sum()
        np.testing.assert_allclose((y**2).sum() - 2 * (psi * D).sum() + quadratic, want, rtol=1e-11)
        assert phi.shape == (K, K, *(2 * m - 1 for m in s))


def test_sparse_codes_survive_the_round_trip(rng):
    z = rng.standard_normal((3, 2, 4, 5)) * (rng.random((3, 2, 4, 5)) < 0.2)
    z[1] = 0
    codes = SparseCodes.from_dense(z)
    np.testing.assert_array_equal(codes.dense(), z)
    np.testing.assert_allclose(codes.l1(), abs(z).sum(axis=(0, 2, 3)), rtol=1e-14)
    again = SparseCodes.stack(z.shape, [codes.signal(i) for i in range(3)], z.dtype)
    np.testing.assert_array_equal(again.dense(), z)
    np.testing.assert_array_equal(codes.take([2, 1]).dense(), z[[2, 1]])
    assert all((np.diff(codes.signal(i)[0]) > 0).all() for i in range(3))


def test_the_three_forms_of_a_signal_are_one(rng):
    D = rng.standard_normal((2, 1, 4))
    y = rng.standard_normal(9)
    for form in (y, y[None], y[None, None], y.astype(">f8"), np.asfortranarray(y[None]), y[::-1][::-1]):
        np.testing.assert_array_equal(analyze(form, D), analyze(y, D))


def test_dtypes_follow_the_data(rng):
    D = rng.standard_normal((2, 1, 4))
    for given, want in [("f4", "f4"), ("f8", "f8"), ("f2", "f4"), ("i2", "f8"), (np.longdouble, "f8")]:
        assert analyze(np.ones(9, given), D).dtype == want
        assert synthesize(np.ones((1, 2, 9), given), D).dtype == want


def test_inputs_are_not_written(rng):
    y, D, z = make_problem(CASES[0], rng)
    for array in (y, D, z):
        array.flags.writeable = False
    synthesize(z, D), analyze(y, D), objective(y, z, D, 1.0)
    assert not y.flags.writeable


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda D, y: analyze(y[:3], D), "3 samples long, shorter than an atom of 4"),
        (lambda D, y: analyze(y, D[:, 0]), "wanted \\(n_atoms, n_channels"),
        (lambda D, y: analyze(np.stack([y, y])[None], D), "D has 1 channels but r has 2"),
        (lambda D, y: analyze(y, D, stride=0), "stride is 0"),
        (lambda D, y: analyze(y, D, stride=2), "crop the signal to 8 or pad it to 10"),
        (lambda D, y: analyze(np.where(np.arange(9) == 5, np.nan, y), D), "first at index \\(5,\\)"),
        (lambda D, y: analyze(np.empty(0), D), "no axis empty"),
        (lambda D, y: synthesize(np.ones((1, 3, 5)), D), "wanted \\(n, 2, \\*P\\)"),
        (lambda D, y: objective(y, np.ones((1, 2, 6)), D, -1.0), "wanted finite rates >= 0"),
        (lambda D, y: objective(y, np.ones((1, 2, 6)), D, [1.0, 2.0, 3.0]), "one for each atom"),
        (lambda D, y: objective(y, np.ones((1, 2, 6)), D, 1.0, 0.0), "sigma is 0.0"),
        (lambda D, y: objective(y, np.ones((1, 2, 7)), D, 1.0), "but y has"),
    ],
)
def test_bad_input_is_named(call, words, rng):
    with pytest.raises(InputError, match=words):
        call(rng.standard_normal((2, 1, 4)), rng.standard_normal(9))


@pytest.mark.parametrize(
    "bad", [np.ones(9) * 1j, np.array(["a"] * 9), np.ma.masked_array(np.ones(9)), np.array([None] * 9)]
)
def test_arrays_that_hold_no_real_numbers_are_refused(bad, rng):
    with pytest.raises(InputTypeError):
        analyze(bad, rng.standard_normal((2, 1, 4)))
