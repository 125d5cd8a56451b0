"""Shrinkage and the steps around it, against their definitions."""

import numpy as np
import pytest

from emdl import prox
from emdl.errors import InputTypeError


def minimised(u, theta, positive):
    """Return the minimiser of (z - u)^2 / 2 + theta |z| on a fine grid."""
    grid = np.linspace(0 if positive else -3, 3, 600_001)
    return grid[((grid - u) ** 2 / 2 + theta * abs(grid)).argmin()]


@pytest.mark.parametrize("positive", [False, True])
def test_shrinkage_minimises_its_objective(positive):
    for u in (-2.0, -0.7, -0.2, 0.0, 0.3, 0.5, 1.9):
        for theta in (0.0, 0.3, 0.5):
            got = float(prox.shrink(np.array(u), theta, positive=positive))
            assert got == pytest.approx(minimised(u, theta, positive), abs=1e-5)


def test_shrinkage_stops_the_gradient_where_it_gives_zero(rng):
    u, theta, g = rng.standard_normal((2, 3, 7)), 0.4, rng.standard_normal((2, 3, 7))
    for positive in (False, True):
        z, h = prox.shrink(u, theta, positive=positive), 1e-6
        g_u, g_theta = prox.shrink_backward(g, z)
        slope = [prox.shrink(u + s * h, theta, positive=positive) for s in (1, -1)]
        np.testing.assert_allclose(g_u, g * (slope[0] - slope[1]) / (2 * h), atol=1e-8)
        slope = [prox.shrink(u, theta + s * h, positive=positive) for s in (1, -1)]
        np.testing.assert_allclose(g_theta, g * (slope[0] - slope[1]) / (2 * h), atol=1e-8)
    total = prox.shrink_backward_sum(g, z)
    np.testing.assert_allclose(total[1], g_theta.sum(axis=(0, 2)), rtol=1e-12)
    np.testing.assert_array_equal(total[0], g_u)


@pytest.mark.parametrize("positive", [False, True])
def test_a_layer_is_shrinkage_and_momentum(positive, rng):
    w, c, before = rng.standard_normal((3, 2, 3, 7))
    theta = np.array([0.1, 0.4, 0.8])
    z, ahead = prox.shrink_momentum(w, c, before, theta, 0.3, 0.6, positive)
    wanted = np.stack([prox.shrink(w[:, k] + 0.3 * c[:, k], theta[k], positive=positive) for k in range(3)], axis=1)
    np.testing.assert_allclose(z, wanted, rtol=1e-14)
    np.testing.assert_allclose(ahead, z + 0.6 * (z - before), rtol=1e-14)
    single = prox.shrink_momentum(*(x.astype(np.float32) for x in (w, c, before, theta)), 0.3, 0.6, positive)
    assert single[0].dtype == single[1].dtype == np.float32


@pytest.mark.parametrize("positive", [False, True])
def test_a_trial_knows_whether_the_momentum_points_uphill_and_how_far_it_went(positive, rng):
    w, c, z = rng.standard_normal((3, 2, 3, 7))
    penalty, step = np.array([0.5, 0.2, 0.9]), np.array([0.3, 0.7])
    x, uphill, distance = prox.shrink_trial(w, c, z, penalty, step, positive)
    for i in range(2):
        for k in range(3):
            wanted = prox.shrink(w[i, k] + step[i] * c[i, k], step[i] * penalty[k], positive=positive)
            np.testing.assert_allclose(x[i, k], wanted, rtol=1e-14)
        assert uphill[i] == pytest.approx(((w[i] - x[i]) * (x[i] - z[i])).sum(), rel=1e-12)
        assert distance[i] == pytest.approx(((w[i] - x[i]) ** 2).sum(), rel=1e-12)


def test_each_signal_advances_only_where_its_trial_is_taken(rng):
    w, x, z = rng.standard_normal((3, 2, 3, 7))
    beta = np.array([0.4, 0.8])
    codes, point = prox.advance(w, x, z, beta, np.array([True, False]))
    np.testing.assert_array_equal(codes[0], x[0])
    np.testing.assert_array_equal(codes[1], z[1])
    np.testing.assert_allclose(point[0], x[0] + 0.4 * (x[0] - z[0]), rtol=1e-14)
    np.testing.assert_array_equal(point[1], w[1])
    np.testing.assert_allclose(prox.extrapolate(x, z, beta)[1], x[1] + 0.8 * (x[1] - z[1]), rtol=1e-14)


def test_momentum_sends_the_gradient_to_both_layers_before(rng):
    g_u, c, g_before = rng.standard_normal((3, 2, 3, 7))
    g_z, g_next = prox.momentum_backward(g_u, c, g_before, 0.3, 0.6)
    np.testing.assert_allclose(g_z, g_before + 1.6 * (g_u - 0.3 * c), rtol=1e-12)
    np.testing.assert_allclose(g_next, -0.6 * (g_u - 0.3 * c), rtol=1e-12)


def test_arrays_of_two_libraries_are_refused(stand_in):
    on_gpu, here = stand_in.asarray(np.ones((1, 1, 3))), np.ones((1, 1, 3))
    for call in (
        lambda: prox.shrink_momentum(on_gpu, here, here, np.ones(1), 0.1, 0.1, False),
        lambda: prox.shrink_trial(here, on_gpu, here, np.ones(1), np.ones(1), False),
        lambda: prox.advance(here, here, on_gpu, np.ones(1), np.ones(1, bool)),
        lambda: prox.extrapolate(here, on_gpu, np.ones(1)),
        lambda: prox.shrink_backward_sum(here, on_gpu),
        lambda: prox.momentum_backward(here, here, on_gpu, 0.1, 0.1),
    ):
        with pytest.raises(InputTypeError, match="different libraries"):
            call()


def test_shrinkage_is_two_sided_unless_asked_otherwise():
    u = np.array([-2.0, -0.1, 0.3, 1.0])
    np.testing.assert_array_equal(prox.shrink(u, 0.5), [-1.5, 0, 0, 0.5])
    np.testing.assert_array_equal(prox.shrink(u, 0.5, positive=True), [0, 0, 0, 0.5])
