"""Rates and noise level: the equations, where the rules come to rest, what they never do."""

import math

import numpy as np
import pytest

from emdl import backward, rates, unroll
from emdl.codes import SparseCodes
from emdl.encoder import solve
from emdl.errors import InputError
from emdl.ops import synthesize_full

ATOMS = np.exp(-0.5 * ((np.arange(21) - 10) / np.array([[2.0], [3.0]])) ** 2) * np.array([[1.0], [-1.0]])
ATOMS[1] *= (np.arange(21) - 10) / 3
ATOMS /= np.linalg.norm(ATOMS, axis=1, keepdims=True)


def problem(rng, n_samples=8000, density=0.01, snr=10.0, positive=True, n=1):
    """Return noisy signals (n, 1, S), the clean ones, the dictionary and the noise level."""
    D = ATOMS[:, None]
    shape = (n, 2, n_samples - 20)
    z = (rng.random(shape) < density) * rng.uniform(0.5, 1.5, shape)
    z *= 1 if positive else rng.choice([-1, 1], shape)
    clean = synthesize_full(z, D, (1,))
    sigma = float(np.sqrt((clean**2).mean() / 10 ** (snr / 10)))
    return clean + sigma * rng.standard_normal(clean.shape), clean, D, sigma


def run(y, D, lmbd, sigma, n_iter=30, stride=(1,), positive=True, **options):
    """Return the last of E-steps with the dictionary held, stopped when five in a row settle nothing anew."""
    codes = search = None
    quiet = 0
    for _ in range(n_iter):
        step = rates.e_step(y, D, stride, positive, lmbd, sigma, codes=codes, search=search, **options)
        lmbd, sigma, codes, search = step.lmbd, step.sigma, step.codes, step.search
        quiet = quiet + 1 if step.settled else 0
        if quiet == 5:
            break
    return step


def decibel(clean, made):
    return 10 * np.log10((clean**2).sum() / ((clean - made) ** 2).sum())


def loss_from_equation_4(lmbd, l1, n_positions, prior):
    return float((lmbd * l1 - (n_positions + prior.r - 1) * np.log(lmbd) + prior.delta * lmbd).sum())


def test_mad_finds_the_noise_of_every_channel_below_sparse_events_and_offsets(rng):
    """The median of 20,000 deviations has a relative error of 0.8 %; events on 1 % of the samples shift it by 1.5 %."""
    y = rng.standard_normal((2, 3, 10_000)) * np.array([1.0, 2.0, 3.0])[:, None]
    y[rng.random(y.shape) < 0.01] += 50
    y += np.array([10.0, -5.0, 0.0])[:, None]
    assert rates.estimate_sigma(y) == pytest.approx(math.sqrt(14 / 3), rel=0.04)
    assert rates.estimate_sigma(8 * y) == pytest.approx(8 * rates.estimate_sigma(y), rel=1e-12)


def test_a_channel_at_rest_is_named(rng):
    y = rng.standard_normal((1, 2, 100))
    y[0, 1, :60] = 7
    with pytest.raises(InputError, match="channel 1"):
        rates.estimate_sigma(y)


def test_start_is_the_universal_threshold():
    assert rates.start_lmbd(3, 1000, 0.5) * 0.5**2 == pytest.approx(0.5 * math.sqrt(2 * math.log(3000)))


def test_closed_form_is_the_minimum_of_the_laplace_loss(rng):
    l1, prior, lmbd = rng.uniform(1, 5, 3), rates.Prior(4.0, 2.5), np.array([1.0, 2.0, 3.0])
    best = rates.update_lmbd(lmbd, l1, 50, prior)
    least = loss_from_equation_4(best, l1, 50, prior)
    for k in range(3):
        for factor in (0.99, 1.01):
            other = best * np.where(np.arange(3) == k, factor, 1)
            assert loss_from_equation_4(other, l1, 50, prior) > least
    np.testing.assert_allclose(rates.update_lmbd(lmbd, l1, 50, prior, damping=0.3), lmbd**0.3 * best**0.7, rtol=1e-12)


def test_closed_form_without_codes_and_prior_grows_by_doubling():
    np.testing.assert_array_equal(rates.update_lmbd(np.array([3.0]), np.zeros(1), 50, rates.Prior()), [6.0])


def test_prior_keeps_its_mean_whatever_its_weight():
    prior = rates.Prior.around(7.0, 1000, weight=0.25)
    assert (prior.r / prior.delta, prior.r) == (pytest.approx(7.0), 250)
    with pytest.raises(InputError, match="delta"):
        rates.Prior(1.0, -1.0)


def test_gradient_of_the_laplace_loss_is_exact_also_through_the_encoder(rng):
    """Central differences are good to 1e-6 here: h = 1e-5, and no code crosses its threshold."""
    y, _, D, sigma = problem(rng, n_samples=120, density=0.03)
    lmbd, step, prior = np.array([3.0, 4.0]) / sigma, 0.05, rates.Prior(5.0, 2.0)

    def codes_at(lmbd):
        trace = unroll(y, D, lmbd * sigma**2 * step, step, 7, positive=True)
        return trace, np.abs(trace.z).sum(axis=(0, 2))

    trace, l1 = codes_at(lmbd)
    through = backward(trace, lmbd[:, None] * np.sign(trace.z)).theta * sigma**2 * step
    assert (l1 > 0).all()
    assert (through < 0).all()
    for k in range(2):
        h = 1e-5 * lmbd[k] * np.eye(2)[k]
        for moves, passed in ((True, through), (False, 0.0)):
            high, low = (
                loss_from_equation_4(m, codes_at(m)[1] if moves else l1, 100, prior) for m in (lmbd + h, lmbd - h)
            )
            got = rates.lmbd_gradient(lmbd, l1, 100, prior, through=passed)[k]
            assert got == pytest.approx((high - low) / (2 * h[k]), rel=1e-5)


def test_gradient_steps_rest_at_the_closed_form():
    l1, prior, lmbd = np.array([1.0, 20.0]), rates.Prior(4.0, 2.5), np.array([100.0, 0.01])
    for _ in range(200):
        lmbd = rates.step_lmbd(lmbd, rates.lmbd_gradient(lmbd, l1, 50, prior), 50, prior)
    np.testing.assert_allclose(lmbd, rates.update_lmbd(lmbd, l1, 50, prior), rtol=1e-6)


def sums(energy, n_nonzero, n_samples=1000):
    return rates.Sums(energy, np.ones(2), n_nonzero, n_samples, n_samples)


def test_scores_are_those_of_the_docstring():
    from emdl.rates.risk import score

    assert score(sums(50.0, 30), 0.2) == pytest.approx(50 / (1000 * 0.2**2) + 2 * 30 / 1000)
    assert math.exp(score(sums(50.0, 30))) == pytest.approx(50 / (1 - 30 / 1000) ** 2)
    assert score(sums(50.0, 501)) == math.inf


def test_cross_validation_is_the_risk_estimate_with_the_noise_of_the_residual():
    """To first order in the change, so up to its square (1e-6)."""
    from emdl.rates.risk import score

    a, b = sums(50.0, 100), sums(50.02, 99)
    sigma = rates.residual_sigma(a)
    risk = (score(b, sigma) - score(a, sigma)) * 1000 * sigma**2 / 50
    assert score(b) - score(a) == pytest.approx(risk, abs=2e-6)
    assert sigma == pytest.approx(math.sqrt(50 / 900))


def test_step_leads_to_the_vertex_of_a_parabola():
    vertex, h = 0.1, math.log(1.4)
    at = [sums(1000 * (1 + (x - vertex) ** 2), 0) for x in (-h, 0, h)]
    there = [sums(s.energy, 1) for s in at]
    assert rates.log_step(*there, sigma=1.0) == pytest.approx(vertex, rel=1e-6)


@pytest.mark.parametrize(
    ("below", "here", "above", "step"),
    [
        (sums(4, 9), sums(5, 9), sums(5.5, 9), -math.log(2)),  # a slope without a valley: at most a factor of two
        (sums(6, 9), sums(5, 9), sums(4, 9), math.log(2)),
        (sums(4, 9), sums(3, 9), sums(4, 9), 0.0),
        (sums(1, 600), sums(2, 501), sums(3, 300), math.log(2)),  # too dense to be trusted
        (sums(1, 501), sums(3, 300), sums(4, 200), 0.0),
        (sums(1, 501), sums(3, 300), sums(2, 200), math.log(1.4)),
        (sums(4, 1), sums(5, 0), sums(5, 0), -math.log(2)),  # no codes: let some in if they predict
        (sums(4.999, 30), sums(5, 0), sums(5, 0), 0.0),
    ],
)
def test_step_is_bounded_and_safe(below, here, above, step):
    assert rates.log_step(below, here, above) == pytest.approx(step)


def test_sums_add_up_over_batches_and_kinds_of_codes(rng):
    y, _, D, sigma = problem(rng, n_samples=500, n=3)
    codes = solve(y, D, np.full(2, 2 * sigma), (1,), tol=1e-3).codes
    whole, z = rates.measure(y, D, codes, (1,)), codes.dense()
    parts = rates.measure(y[:1], D, z[:1], (1,)) + rates.measure(y[1:], D, SparseCodes.from_dense(z[1:]), (1,))
    residual = y - synthesize_full(z, D, (1,))
    assert (whole.n_nonzero, whole.n_samples, whole.n_positions) == (np.count_nonzero(z), 1500, 3 * 480)
    assert (parts.n_nonzero, parts.n_samples, parts.n_positions) == (np.count_nonzero(z), 1500, 3 * 480)
    for got in (whole, parts):
        assert got.energy == pytest.approx((residual**2).sum(), rel=1e-12)
        np.testing.assert_allclose(got.l1, np.abs(z).sum(axis=(0, 2)), rtol=1e-12)


@pytest.mark.parametrize(("density", "snr"), [(0.002, 20.0), (0.01, 0.0), (0.03, 10.0)])
@pytest.mark.parametrize("positive", [True, False])
def test_default_rule_is_near_the_best_rate_from_any_start_and_finds_the_noise(rng, density, snr, positive):
    """The promises of the default: 5 % in lambda, 0.3 dB, 10 % in sigma, with sigma unknown."""
    y, clean, D, sigma = problem(rng, density=density, snr=snr, positive=positive)
    guess = rates.estimate_sigma(y)
    start = np.full(2, rates.start_lmbd(2, 7980, guess))
    high, low = (run(y, D, start * f, guess, learn_sigma=True, positive=positive) for f in (4, 0.25))
    np.testing.assert_allclose(high.lmbd, low.lmbd, rtol=0.05)
    best, codes = -math.inf, None
    for u in 4 * 0.8 ** np.arange(13):
        codes = solve(y, D, np.full(2, u * sigma), (1,), tol=1e-3, positive=positive, z0=codes).codes
        best = max(best, decibel(clean, synthesize_full(codes, D, (1,))))
    for end in (high, low):
        assert end.settled
        assert end.sigma == pytest.approx(sigma, rel=0.1)
        assert decibel(clean, synthesize_full(end.codes, D, (1,))) > best - 0.3


@pytest.mark.parametrize("rule", ["gcv", "sure"])
def test_known_noise_is_kept_and_both_criteria_agree(rng, rule):
    y, clean, D, sigma = problem(rng, density=0.01, snr=10)
    end = run(y, D, np.full(2, 5 / sigma), sigma, rule=rule)
    assert end.sigma == sigma
    assert decibel(clean, synthesize_full(end.codes, D, (1,))) > 15
    assert 0.5 < end.lmbd[0] * sigma < 2.5


@pytest.mark.parametrize("rule", rates.RULES)
def test_scaling_the_signals_scales_rates_and_noise(rng, rule):
    """A power of two changes no mantissa; what is left is round-off of the loss's logarithm and of the penalty."""
    y, _, D, sigma = problem(rng, n_samples=800)
    plain, scaled = (
        run(a * y, D, np.full(2, 4 / sigma / a), sigma * a, n_iter=6, rule=rule, learn_sigma=True) for a in (1, 1024)
    )
    np.testing.assert_allclose(scaled.lmbd * 1024, plain.lmbd, rtol=1e-6)
    assert scaled.sigma / 1024 == pytest.approx(plain.sigma, rel=1e-6)


def test_rates_of_the_atoms_keep_their_ratios_on_several_channels(rng):
    D = rng.standard_normal((3, 2, 7))
    D /= np.linalg.norm(D.reshape(3, -1), axis=1).reshape(3, 1, 1)
    z = (rng.random((2, 3, 300)) < 0.02) * rng.uniform(0.5, 1.5, (2, 3, 300))
    y = synthesize_full(z, D, (1,)) + 0.1 * rng.standard_normal((2, 2, 306))
    end = run(y, D, np.array([10.0, 20.0, 40.0]), 0.3, learn_sigma=True)
    np.testing.assert_allclose(end.lmbd / end.lmbd[0], [1, 2, 4], rtol=1e-12)
    assert end.sigma == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_images_and_strides(rng, dtype):
    D = rng.standard_normal((2, 1, 4, 5))
    D /= np.linalg.norm(D.reshape(2, -1), axis=1).reshape(2, 1, 1, 1)
    z = (rng.random((1, 2, 20, 30)) < 0.02) * rng.uniform(0.5, 1.5, (1, 2, 20, 30))
    y = synthesize_full(z, D, (2, 3)) + 0.1 * rng.standard_normal((1, 1, 42, 92))
    end = run(y.astype(dtype), D.astype(dtype), np.full(2, 200.0), 0.1, stride=(2, 3), positive=False, learn_sigma=True)
    assert end.sigma == pytest.approx(0.1, rel=0.1)
    assert 0.5 < end.lmbd[0] * end.sigma < 5


def test_paper_rule_collapses_on_sparse_codes_and_says_so(rng):
    y, clean, D, sigma = problem(rng, density=0.002, snr=0)
    start = np.full(2, rates.start_lmbd(2, 7980, sigma))
    weak = rates.Prior(1.0, 0.0)
    collapsed = run(y, D, start, sigma, n_iter=20, rule="paper", prior=weak)
    assert collapsed.n_nonzero == 0
    assert "collapsed" in collapsed.message
    held = run(y, D, start, sigma, n_iter=20, rule="paper", prior=rates.Prior.around(start[0], 7980, weight=10))
    assert held.n_nonzero > 0
    assert held.message == ""
    back = run(y, D, collapsed.lmbd, sigma)
    assert decibel(clean, synthesize_full(back.codes, D, (1,))) > 10


def test_paper_gradient_raises_and_lowers_the_rates_towards_the_fit(rng):
    y, _, D, sigma = problem(rng, density=0.03, snr=20)
    prior = rates.Prior.around(2 / sigma, 7980, weight=10)
    ends = [
        run(y, D, np.full(2, u / sigma), sigma, n_iter=25, rule="paper-gradient", prior=prior).lmbd * sigma
        for u in (0.5, 8)
    ]
    np.testing.assert_allclose(ends[0], ends[1], rtol=0.05)


def test_noise_alone_leaves_next_to_no_codes_and_rests(rng):
    y = rng.standard_normal((1, 1, 6000))
    end = run(y, ATOMS[:, None], np.full(2, 1.0), 1.0, n_iter=40)
    assert end.settled
    assert end.n_nonzero < 60
    largest = max(np.correlate(y[0, 0], d, "valid").max() for d in ATOMS)
    assert end.lmbd[0] < 1.5 * largest


def test_empty_signals_are_said_to_be_empty():
    step = rates.e_step(np.zeros((1, 1, 50)), ATOMS[:, None], (1,), True, np.ones(2), 1.0, learn_sigma=True)
    assert "no atom correlates" in step.message
    assert step.sigma == 1.0
    assert step.settled


def test_signals_without_noise_drive_neither_rate_nor_noise_to_nothing(rng):
    _, clean, D, _ = problem(rng, n_samples=600)
    end = run(clean, D, np.full(2, 1.0), 1.0, n_iter=40, learn_sigma=True)
    size = np.sqrt((clean**2).mean())
    assert 0.9e-4 * size <= end.sigma < 0.05 * size
    assert (end.lmbd * end.sigma**2 >= 0.9e-4 * size).all()


def test_search_looks_ever_more_rarely_once_nothing_moves():
    search, looks = rates.Search(), []
    for call in range(32):
        if search.pause:
            search = search.waited()
        else:
            looks.append(call)
            search = search.looked(0.0)
    assert looks == [0, 2, 6, 14, 22, 30]
    assert search.looked(0.5) == rates.Search(0, 1, 0.5, 1.0)


def test_search_does_not_swing_between_two_looks_that_point_at_each_other():
    search, made = rates.Search(), []
    for call in range(12):
        search = search.looked(0.03 * (-1) ** call)
        made.append(search.step)
    np.testing.assert_allclose(made, [0.03, -0.015, *[0] * 10])


def test_inputs_are_not_written(rng):
    y, _, D, sigma = problem(rng, n_samples=300)
    lmbd = np.full(2, 3 / sigma)
    codes = rates.e_step(y, D, (1,), True, lmbd, sigma).codes
    given = (y, D, lmbd, codes.value, codes.index)
    kept = [a.copy() for a in given]
    for a in given:
        a.flags.writeable = False
    for rule in rates.RULES:
        rates.e_step(y, D, (1,), True, lmbd, sigma, rule=rule, codes=codes, learn_sigma=True)
    for a, b in zip(given, kept, strict=True):
        np.testing.assert_array_equal(a, b)


def test_unknown_rule_is_refused(rng):
    y, _, D, sigma = problem(rng, n_samples=300)
    with pytest.raises(InputError, match="rule is 'best', wanted one of gcv"):
        rates.e_step(y, D, (1,), True, np.ones(2), sigma, rule="best")
