"""The order in which `em_fit` learns, when it repairs, starts anew and ends, and how exactly it solves on the way."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
from laws import smooth_atoms

import emdl
from emdl import em, em_fit, rates
from emdl.course import State
from emdl.errors import InputError
from emdl.optim import normalize_atoms
from emdl.simulate import convolutional

SHAPE = (9,)


@pytest.fixture(scope="module")
def simulated():
    rng = np.random.default_rng(3)
    return convolutional(3, 203, smooth_atoms(2, 2, *SHAPE, rng), density=0.02, snr_db=12, positive=True, rng=rng)


@pytest.fixture(scope="module")
def near(simulated):
    D0 = simulated.D + 0.1 * np.random.default_rng(4).standard_normal(simulated.D.shape)
    return {"D0": normalize_atoms(D0), "sigma": simulated.sigma, "positive": True, "rng": 0}


def followed(y, **options):
    """Return the result of a fit and what its callback saw."""
    seen = []
    return em_fit(y, 2, SHAPE, callback=seen.append, **options), seen


@pytest.mark.parametrize(("max_iter", "first"), [(8, 6), (7, 6), (5, 4), (1, 1)])
def test_rates_that_reconstruct_wait_for_three_quarters_of_the_iterations(max_iter, first, simulated, near):
    """Unless atoms stand still before; then they are held, and the rates are learned."""
    result, seen = followed(simulated.y, max_iter=max_iter, tol=0.0, lmbd_rule="gcv", **near)
    lmbd = np.stack([p.lmbd for p in seen])
    n_positions = simulated.z[:, 0].size
    np.testing.assert_allclose(lmbd[:first], rates.start_lmbd(2, n_positions, simulated.sigma), rtol=1e-12)
    np.testing.assert_array_equal(moving(near["D0"], seen), np.arange(max_iter) < first)
    assert (lmbd[first:] != lmbd[0]).all()
    assert f"max_iter = {max_iter}" in result.message


def test_atoms_that_stand_still_let_the_rates_begin_at_once(simulated, near):
    result, seen = followed(simulated.y, max_iter=60, tol=0.02, lmbd_rule="gcv", **near)
    begun = int(moving(near["D0"], seen).sum())
    assert result.history["change"][begun - 1] < 0.02
    assert (result.history["change"][: begun - 1] >= 0.02).all()
    assert begun < 30
    assert (seen[begun].lmbd != seen[begun - 1].lmbd).all()
    assert result.converged


def test_the_rules_of_the_paper_learn_both_from_the_first_iteration(simulated, near):
    result, seen = followed(simulated.y, max_iter=2, lmbd_rule="paper", **near)
    assert (result.history["change"] > 0).all()
    start = rates.start_lmbd(2, simulated.z[:, 0].size, simulated.sigma)
    assert all((p.lmbd != start).any() for p in seen)


def test_rates_alone_are_learned_with_the_dictionary_given(simulated, near):
    result, seen = followed(simulated.y, max_iter=3, learn_dictionary=False, **near)
    assert not moving(result.model.D, seen).any()
    assert (seen[0].lmbd != rates.start_lmbd(2, simulated.z[:, 0].size, simulated.sigma)).all()
    np.testing.assert_allclose(result.model.D, near["D0"], rtol=1e-12)


def test_a_fit_that_converges_in_its_last_iteration_says_so(simulated, near):
    options = {"learn_lmbd": False, "tol": 0.01, **near}
    free = em_fit(simulated.y, 2, SHAPE, max_iter=50, **options)
    assert free.converged
    assert 2 <= free.n_iter < 50
    last = em_fit(simulated.y, 2, SHAPE, max_iter=free.n_iter, **options)
    assert last.converged
    assert f"converged after {free.n_iter} iterations" in last.message
    short = em_fit(simulated.y, 2, SHAPE, max_iter=free.n_iter - 1, **options)
    assert not short.converged
    assert f"stopped after max_iter = {free.n_iter - 1} iterations" in short.message


def test_rates_that_move_keep_a_fit_going(simulated, near):
    """With the atoms given they alone decide, by their share."""
    result, seen = followed(simulated.y, max_iter=60, learn_dictionary=False, tol=0.01, **near)
    assert result.converged
    lmbd = np.stack([p.lmbd for p in seen])
    moved = abs(np.log(lmbd[1:] / lmbd[:-1])).max(axis=1)
    assert moved[-1] < 0.01
    assert (moved[:-1] >= 0.01).all()


def moving(D0, seen):
    """Return whether each iteration changed the dictionary, (n_iter,) of bool."""
    before = [D0, *(p.D for p in seen)]
    return np.array([not np.array_equal(D, after) for D, after in itertools.pairwise(before)])


# What is reported


def test_the_change_is_the_sine_of_the_largest_angle_that_an_atom_turned(simulated, near):
    result, seen = followed(simulated.y, max_iter=4, learn_lmbd=False, tol=1e-9, **near)
    before = [near["D0"], *(p.D for p in seen)]
    for D, after, change in zip(before, before[1:], result.history["change"], strict=False):
        inner = (D * after).sum(axis=(1, 2))
        assert change == pytest.approx(np.sqrt(1 - inner**2).max(), rel=1e-6)


def test_the_objective_is_that_of_the_codes_of_the_iteration(simulated, near):
    lmbd0 = np.array([20.0, 35.0])
    result, seen = followed(3 * simulated.y, max_iter=2, tol_codes=1e-7, lmbd0=lmbd0, learn_lmbd=False, **near)
    z = emdl.encode(3 * simulated.y, near["D0"], lmbd0, simulated.sigma, tol=0.03, positive=True)
    first = emdl.objective(3 * simulated.y, z, near["D0"], lmbd0, simulated.sigma)
    assert seen[0].objective == result.history["objective"][0] == pytest.approx(first, rel=0.03)
    z = emdl.encode(3 * simulated.y, seen[0].D, lmbd0, simulated.sigma, tol=1e-7, positive=True)
    exact = emdl.objective(3 * simulated.y, z, seen[0].D, lmbd0, simulated.sigma)
    assert seen[1].objective == pytest.approx(exact, rel=0.03 * seen[0].change)
    assert seen[1].n_nonzero == pytest.approx(np.count_nonzero(z), rel=0.05)


def test_seconds_go_on_where_a_checkpoint_was(simulated, near, tmp_path):
    options = {"max_iter": 5, "tol": 1e-9, "checkpoint": tmp_path / "c.h5", **near}

    def stop(progress):
        if progress.iteration == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        em_fit(simulated.y, 2, SHAPE, callback=stop, **options)
    seconds = em_fit(simulated.y, 2, SHAPE, resume=True, **options).history["seconds"]
    assert (np.diff(seconds) >= 0).all()
    assert 0 < seconds[0] < 60


# How exactly codes are solved


def test_codes_are_solved_to_a_thirtieth_of_the_last_change_and_never_beyond_what_was_asked(
    simulated, near, monkeypatch
):
    asked, e_step = [], rates.e_step

    def asks(*args, **options):
        asked.append((options["tol"], options["rule"], options["learn_sigma"]))
        return e_step(*args, **options)

    monkeypatch.setattr(rates, "e_step", asks)
    options = {"max_iter": 8, "tol": 1e-12, "tol_codes": 2e-3, "learn_sigma": True, "lmbd_rule": "gcv", **near}
    change = em_fit(simulated.y, 2, SHAPE, **options).history["change"]
    tol, rule, learn_sigma = zip(*asked, strict=True)
    np.testing.assert_allclose(tol, np.maximum(2e-3, 0.03 * np.concatenate([[1], change[:-1]])))
    assert min(tol) == 2e-3 < sorted(tol)[-2] < 0.03 == max(tol)
    assert rule == ("fixed",) * 6 + ("gcv",) * 2
    assert learn_sigma == (False,) * 6 + (True,) * 2
    asked.clear()
    em_fit(simulated.y, 2, SHAPE, max_iter=1, learn_dictionary=False, **near)
    assert asked[0][0] == 1e-3  # nothing will move


# Repairs


def repairs(monkeypatch, y, **options):
    """Return the iterations in which a fit repaired atoms."""
    calls, seen = [], []

    def repair(plan, state, rng):
        calls.append(len(seen) + 1)
        return state

    monkeypatch.setattr(em, "_repair", repair)
    em_fit(y, 2, SHAPE, callback=lambda p: seen.append(p), **options)
    return calls


def test_atoms_are_repaired_in_the_first_two_thirds_at_growing_distances(simulated, monkeypatch):
    options = {"positive": True, "rng": 0, "tol": 0.0, "learn_lmbd": False, "tol_codes": 1e-2}
    assert repairs(monkeypatch, simulated.y, max_iter=22, **options) == [2, 5, 9, 14]
    assert repairs(monkeypatch, simulated.y, max_iter=21, **options) == [2, 5, 9, 14]
    assert repairs(monkeypatch, simulated.y, max_iter=13, **options) == [2, 5]


def test_atoms_that_stand_still_are_repaired_and_given_ones_only_if_asked(simulated, near, monkeypatch):
    options = {"max_iter": 3, "tol": 0.9, "learn_lmbd": False}
    assert repairs(monkeypatch, simulated.y, positive=True, rng=0, **options) == [1]
    assert repairs(monkeypatch, simulated.y, **options, **near) == []
    assert repairs(monkeypatch, simulated.y, repair=True, **options, **near) == [1]
    assert repairs(monkeypatch, simulated.y, positive=True, rng=0, repair=False, **options) == []
    assert repairs(monkeypatch, simulated.y, repair=True, learn_dictionary=False, **options, **near) == []


# Starting anew at another noise level


def state_at(sigma, held=1.0, round=1):
    return State(np.ones((2, 1, 3)), np.array([3.0, 4.0]), sigma, held, round=round, search="old", codes="kept")


@pytest.mark.parametrize(
    ("learn_sigma", "sigma", "round", "wrong"),
    [
        (True, 1.11, 1, True),
        (True, 1.10, 1, False),
        (True, 0.90, 1, True),
        (True, 0.91, 1, False),
        (True, 2.00, 2, True),
        (True, 2.00, 3, False),
        (False, 2.00, 1, False),
    ],
)
def test_a_tenth_of_the_noise_level_is_reason_to_learn_anew_twice(learn_sigma, sigma, round, wrong):
    assert em._noise_was_wrong(SimpleNamespace(learn_sigma=learn_sigma), state_at(sigma, round=round)) is wrong


def test_a_new_start_is_at_the_universal_threshold_of_the_learned_noise():
    plan = SimpleNamespace(data=SimpleNamespace(xp=np), D_shape=(2, 1, 3), n_positions=500)
    state = em._restart(plan, state_at(2.0))
    np.testing.assert_allclose(state.lmbd, np.sqrt(2 * np.log(2 * 500)) / 2.0)
    assert (state.held_sigma, state.sigma, state.round, state.search, state.codes) == (2.0, 2.0, 2, None, "kept")


def test_a_noise_level_given_wrong_is_learned_and_the_dictionary_with_it(simulated, near):
    """Given twice the noise, the fit holds the dictionary, learns a lower level, and begins again."""
    options = {**near, "sigma": 2 * simulated.sigma, "learn_sigma": True, "max_iter": 60, "tol": 0.02}
    result, seen = followed(simulated.y, **options)
    spells = [key for key, _ in itertools.groupby(moving(near["D0"], seen))]
    assert spells[:4] == [True, False, True, False], "the dictionary was not learned again"
    assert result.model.sigma == pytest.approx(simulated.sigma, rel=0.2)
    _, seen = followed(simulated.y, lmbd0=30.0, **options)
    spells = [key for key, _ in itertools.groupby(moving(near["D0"], seen))]
    assert spells == [True, False], "rates that were given are no reason to begin again"


# What the message says


@pytest.mark.parametrize(("last", "said"), [(2.22, True), (2.20, False), (0.5, False)])
def test_a_rise_of_more_than_a_tenth_is_told_with_its_cure(last, said):
    run = SimpleNamespace(history={"objective": [5.0, last]}, lowest=2.0)
    for m_step, cure in (("analytic", "n_atoms or repair"), ("decoder", "lower the learning rate")):
        notes = em._rise(SimpleNamespace(m_step=m_step), run)
        assert len(notes) == said
        assert all(cure in note and "from 2 to 2.22" in note for note in notes)


def test_objectives_at_other_rates_or_noise_levels_are_not_compared():
    state = state_at(1.0)
    assert em._same_rates(state, state_at(1.0))
    assert not em._same_rates(state, state_at(1.1))
    assert not em._same_rates(state, State(state.D, np.array([3.0, 4.1]), 1.0, 1.0))


def test_rates_move_by_the_largest_logarithm():
    assert em._moved(np.array([1.0, 2.0]), np.array([1.1, 1.0])) == pytest.approx(math.log(2))


# Where it starts


def test_the_start_is_what_was_given_or_what_the_signals_suggest(simulated, near):
    _, (first,) = followed(simulated.y, max_iter=1, learn_lmbd=False, D0=7 * near["D0"], sigma=0.3, rng=0)
    np.testing.assert_allclose(first.lmbd, np.sqrt(2 * np.log(simulated.z[:, :2].size)) / 0.3)
    assert first.sigma == pytest.approx(0.3, rel=1e-12)
    _, (first,) = followed(simulated.y, max_iter=1, learn_lmbd=False, D0=near["D0"], lmbd0=[8.0, 9.0], rng=0)
    np.testing.assert_allclose(first.lmbd, [8.0, 9.0], rtol=1e-12)
    assert first.sigma == pytest.approx(rates.estimate_sigma(simulated.y), rel=1e-9)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lmbd0": [1.0, 0.0]}, "wanted rates > 0"),
        ({"lmbd0": -1.0}, "lmbd0 is -1.0"),
        ({"sigma": 1e-320}, "sigma / max |y| is 0.0"),
        ({"D0": np.ones((2, 1, 9))}, "D0 has shape (2, 1, 9), wanted (2, 2, 9)"),
        ({"max_iter": 2.0}, "max_iter is 2.0"),
        ({"tol": -1.0}, "tol is -1.0"),
        ({"learn_lmbd": "no"}, "learn_lmbd is 'no'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_start_that_makes_no_sense_is_refused(given, words, simulated):
    with pytest.raises(InputError) as caught:
        em_fit(1e10 * simulated.y, 2, SHAPE, **given)
    assert words in str(caught.value)


# In the unit of the data


def test_the_model_is_in_the_unit_of_the_data_as_the_callback_sees_it(simulated, near):
    result, seen = followed(2000 * simulated.y, max_iter=3, learn_sigma=True, **near | {"sigma": 2000 * near["sigma"]})
    np.testing.assert_array_equal(result.model.lmbd, seen[-1].lmbd)
    assert result.model.sigma == seen[-1].sigma == pytest.approx(2000 * simulated.sigma, rel=0.3)
    assert 1e-4 < result.model.lmbd.max() * result.model.sigma / 1000 < 0.01


def test_weak_atoms_are_judged_at_the_penalty_of_their_codes(simulated, near, monkeypatch):
    given = {}

    def weak(D, codes, penalty, layout, data):
        given.update(penalty=penalty, unit=abs(data.y).max())
        return [1]

    monkeypatch.setattr(em, "weak_atoms", weak)
    result = em_fit(simulated.y, 2, SHAPE, max_iter=2, lmbd0=[20.0, 30.0], learn_lmbd=False, **near)
    assert "explains little that others do not: atom 1;" in result.message
    unit = given["unit"] / abs(simulated.y).max()
    np.testing.assert_allclose(given["penalty"], np.array([20.0, 30.0]) * simulated.sigma**2 * unit)


def test_atoms_that_only_rounding_makes_longer_than_one_have_a_change_of_none():
    D = np.full((1, 1, 4), 0.5)
    for sign in (1, -1):
        assert em._change(D * (1 + 1e-9), sign * D) == 0


def test_a_gpu_without_arrays_on_it_is_refused_where_it_was_asked_for(simulated, near, monkeypatch):
    """Where there is a GPU, here said to be: what was asked for is not silently done elsewhere; auto may be."""
    asked = []

    def choose(device):
        asked.append(device)
        return (np if device == "cpu" else itertools), "said to be there"

    monkeypatch.setattr(em, "choose", choose)
    options = {"max_iter": 1, **near}
    with pytest.raises(InputError, match="y lies on the CPU and there is no client"):
        em_fit(simulated.y, 2, SHAPE, device="cuda", **options)
    for device in ("auto", "cpu"):
        assert em_fit(simulated.y, 2, SHAPE, device=device, **options).n_iter == 1
    assert asked == ["cuda", "auto", "cpu"]
