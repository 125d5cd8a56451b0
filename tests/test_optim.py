"""The exact dictionary step and the gradient steps."""

import numpy as np
import pytest
from laws import CASES, case_name, make_problem

from emdl import ops, optim
from emdl.errors import InputError


def squared_error(y, z, D, stride):
    return ((y - ops.synthesize(z, D, stride=stride)) ** 2).sum()


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_exact_dictionary_is_a_minimum_on_the_spheres(case, rng):
    """No move of one atom along its sphere lowers the squared error, and the start was worse."""
    y, D, z = make_problem(case, rng)
    D = optim.normalize_atoms(D)
    s, stride = case["s"], case["stride"]
    phi, psi = ops.correlate_codes(z, s, stride), ops.correlate_signals(z, y, s, stride)
    best = optim.exact_dictionary(D, phi, psi, n_passes=300)
    low = squared_error(y, z, best, stride)
    assert low < squared_error(y, z, D, stride)
    np.testing.assert_allclose((best.reshape(len(D), -1) ** 2).sum(axis=1), 1, rtol=1e-12)
    for size in (1e-3, 1e-1, 1.0, 10.0):
        for k in range(len(D)):
            moved = best.copy()
            moved[k] += size * rng.standard_normal(D.shape[1:])
            error = squared_error(y, z, optim.normalize_atoms(moved), stride)
            assert error >= low * (1 - 1e-6)  # block coordinate descent stops short by its last step


def test_exact_step_of_one_atom_is_the_global_minimum_even_with_shrunken_codes(rng):
    """Shrunken codes ask for an atom longer than one: mu < 0, where a projected gradient would stop early."""
    A = np.diag([1.0, 2.0, 5.0])
    b = np.array([[3.0, 0.4, 1.0]])
    values, vectors = np.linalg.eigh(A)
    d = optim._on_sphere(values, vectors, b)[0]
    others = rng.standard_normal((20000, 3))
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    value = lambda x: 0.5 * np.einsum("...i,ij,...j->...", x, A, x) - x @ b[0]  # noqa: E731
    assert value(d) <= value(others).min() + 1e-12
    np.testing.assert_allclose(np.linalg.norm(d), 1, rtol=1e-12)


def test_atom_without_codes_stays(rng):
    y, D, z = make_problem(CASES[0], rng)
    D = optim.normalize_atoms(D)
    z[:, 1] = 0
    phi, psi = ops.correlate_codes(z, (5,), (1,)), ops.correlate_signals(z, y, (5,), (1,))
    np.testing.assert_array_equal(optim.exact_dictionary(D, phi, psi)[1], D[1])


def test_exact_dictionary_leaves_its_input_alone(rng):
    """Also when fed what it returned: one channel and float64 once let it work in the array it was given."""
    D = optim.normalize_atoms(rng.standard_normal((3, 1, 5)))
    z, y = rng.standard_normal((2, 3, 16)), rng.standard_normal((2, 1, 20))
    phi, psi = ops.correlate_codes(z, (5,), (1,)), ops.correlate_signals(z, y, (5,), (1,))
    first = optim.exact_dictionary(D, phi, psi)
    kept = first.copy()
    second = optim.exact_dictionary(first, phi, psi)
    np.testing.assert_array_equal(first, kept)
    assert abs(second - first).max() > 0
    assert first.flags.c_contiguous


@pytest.mark.parametrize("riemannian", [False, True])
@pytest.mark.parametrize("method", ["adam", "sgd"])
def test_optimizer_goes_downhill_on_the_spheres(method, riemannian, rng):
    _, truth, z = make_problem(CASES[1], rng)
    stride = CASES[1]["stride"]
    truth = optim.normalize_atoms(truth)
    y = ops.synthesize(z, truth, stride=stride)  # the minimum is zero
    D = optim.normalize_atoms(truth + 0.2 * rng.standard_normal(truth.shape))
    optimizer = optim.Optimizer(method, rate=0.02, decay=0.01, clip=1.0, riemannian=riemannian)
    first = squared_error(y, z, D, stride)
    for _ in range(400):
        gradient = ops.correlate_signals(z, ops.synthesize(z, D, stride=stride) - y, (6,), stride)
        D = optimizer.step(D, gradient)
    np.testing.assert_allclose((D.reshape(len(D), -1) ** 2).sum(axis=1), 1, rtol=1e-12)
    assert squared_error(y, z, D, stride) < 0.01 * first


@pytest.mark.parametrize("wrong", [{"method": "lbfgs"}, {"rate": 0}, {"momentum": 1.0}, {"decay": -1}, {"clip": 0}])
def test_optimizer_names_what_it_cannot_use(wrong):
    with pytest.raises(InputError, match="optimizer"):
        optim.Optimizer(**wrong)


def test_lag_index_points_at_the_difference_of_taps():
    lag = optim.lag_index((2, 3))
    for i, a in enumerate(np.ndindex(2, 3)):
        for j, b in enumerate(np.ndindex(2, 3)):
            want = (1 + a[0] - b[0]) * 5 + 2 + a[1] - b[1]
            assert lag[i, j] == want
