"""Spikes on top of each other."""

import numpy as np
import pytest

from emdl import simulate
from emdl.optim import normalize_atoms
from emdl.spikes import decision, kernels, pairs

_S, _UNIT, _N = 40, 20, 200  # samples of a template, of the duration unit; places with spikes
_SIZE = 25.0


@pytest.fixture(scope="module")
def units():
    """Six units on three channels, of which some look alike."""
    D = normalize_atoms(simulate.waveforms(6, 3, _S, rng=3)).astype(np.float32)
    return decision.Units(D, np.full(6, _SIZE), np.full(6, 0.1 * _SIZE), np.full(6, 5e-4))


def with_spikes(units, rng, lags, shape=0.0):
    """Return white noise with a spike every 300 samples and, where there are lags, another after it; and the truth."""
    bank, x = decision.bank(units.D), rng.standard_normal((3, 300 * (_N + 1))).astype(np.float32)
    starts, truth = 300 * np.arange(1, _N + 1), []
    for i, start in enumerate(starts):
        kinds = rng.choice(len(units), 2 if lags else 1, replace=False)
        truth += list(zip((start, start + lags[i % len(lags)]) if lags else (start,), kinds, strict=True))
    for t, k in truth:
        form = bank[k, rng.integers(decision.N_SHIFTS)]
        form = form + shape * rng.standard_normal(form.shape).astype(np.float32) / np.sqrt(form.size)
        x[:, t : t + _S] += rng.normal(_SIZE, 0.1 * _SIZE) * form
    return x, np.array(truth)


def hits(events, truth):
    """Return which true spikes were found, (n,) of bool."""
    return np.array([np.any((np.abs(events.time - t) <= 3) & (events.unit == k)) for t, k in truth])


def test_spikes_on_top_of_each_other_are_found_together(units, rng):
    """Up to a quarter of a duration unit apart; the most probable first, one after another, finds fewer of them."""
    x, truth = with_spikes(units, rng, lags=(0, 1, 2, 3, 5))
    plain, _ = decision.decide(x, units, _UNIT)
    found, residual = decision.decide(x, units, _UNIT, density=1.0)
    assert hits(found, truth).mean() > 0.97
    assert hits(plain, truth).mean() < hits(found, truth).mean() - 0.05
    assert len(found) < 1.02 * len(truth)
    assert 0.98 < residual.std() < 1.02


def test_one_spike_is_not_taken_for_two(units, rng):
    """Not even where its shape is off by a tenth of its size."""
    x, truth = with_spikes(units, rng, lags=(), shape=0.1)
    found, _ = decision.decide(x, units, _UNIT, density=1.0)
    assert hits(found, truth).all()
    assert len(found) == len(truth)


def test_the_products_stay_those_of_what_is_left(units, rng):
    x, _ = with_spikes(units, rng, lags=(0, 2, 8))
    ready = decision.prepare(units, 1.0)
    P = decision.products(x, ready)
    found = kernels.decide(P, ready.known, ready.gram, ready.friends, ready.strange, _UNIT // 2, 2, 6)
    order = np.argsort(found[0], kind="stable")
    time, unit, shift, amplitude, odds = pairs.resolve(x, P, ready, tuple(v[order] for v in found), _UNIT)
    left = x.copy()
    kernels.subtract(left, ready.templates, ready.near, unit, shift, time, amplitude)
    np.testing.assert_allclose(P, decision.products(left, ready), atol=2e-3)
    assert (odds > 0).all()
    assert (np.diff(time) >= 0).all()


def test_the_odds_of_a_pair_are_those_of_equation_S4(rng):
    for u1, u2, m1, m2, g in rng.uniform((5, 5, 10, 10, -0.9), (30, 30, 30, 30, 0.9), (20, 5)):
        first, second = (np.array([0, m, v, -8.0]) for m, v in ((m1, 9.0), (m2, 4.0)))
        odds, a1, a2 = pairs.joint.py_func(u1, u2, g, first, second)
        G, V, u, m = np.array([[1, g], [g, 1]]), np.diag([9.0, 4.0]), np.array([u1, u2]), np.array([m1, m2])
        a = np.linalg.solve(G + np.linalg.inv(V), u + np.linalg.solve(V, m))
        np.testing.assert_allclose([a1, a2], a, rtol=1e-9)
        if odds > -1e29:
            value = a @ u - a @ G @ a / 2 - (a - m) @ np.linalg.solve(V, a - m) / 2
            value -= np.linalg.slogdet(np.eye(2) + V @ G)[1] / 2
            np.testing.assert_allclose(odds, value - 16, rtol=1e-9)
