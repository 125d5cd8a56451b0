"""How far a fit has come: what is kept of it comes back as it was, and what makes no sense is refused."""

import numpy as np
import pytest

from emdl import checkpoint as kept
from emdl import em_fit, parts, synthesize
from emdl.course import restored
from emdl.errors import FileFormatError
from emdl.optim import Optimizer

RNG = np.random.default_rng(0)
Y = RNG.standard_normal((4, 2, 60))


def held_after(stop, folder, **options):
    """Return the state that a fit keeps after some iterations, and a plan and an optimiser to go on with."""
    found = {}
    original = kept.Checkpoint.offer

    def offer(self, state, *, now=False):
        found["state"] = dict(state)
        original(self, state, now=now)

    def asked(plan, *rest):
        found["plan"] = plan
        return run(plan, *rest)

    from emdl import em

    run = em._run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept.Checkpoint, "offer", offer)
        patch.setattr(em, "_run", asked)
        em_fit(
            Y, 3, 7, rng=0, checkpoint=folder / "c.h5", tol=1e-9, max_iter=9,
            callback=lambda progress: progress.iteration == stop, **options,
        )  # fmt: skip
    return found["state"], found["plan"]


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    return held_after(3, tmp_path_factory.mktemp("whole"), m_step="decoder", n_layers=4, validation=Y[:2])


def test_what_is_kept_comes_back(held):
    state, plan = held
    optimizer, rng = Optimizer(), np.random.default_rng(9)
    run = restored(state, plan, optimizer, rng)
    assert (run.iteration, run.stage, run.converged) == (3, state["stage"], False)
    assert len(run.history["objective"]) == len(run.history["seconds"]) == 3
    assert all(isinstance(count, int) for count in run.history["n_nonzero"])
    assert run.history["validation"] == state["history_validation"].tolist()
    assert (run.least, run.best_iteration) == (state["least"], state["best_iteration"])
    np.testing.assert_array_equal(run.state.D, state["state_D"])
    np.testing.assert_array_equal(run.best.D, state["best_D"])
    assert optimizer.n_steps == state["optimizer_n_steps"] == 12  # four batches of one signal, three times
    np.testing.assert_array_equal(optimizer.direction, state["optimizer_direction"])
    np.testing.assert_array_equal(optimizer.square, state["optimizer_square"])
    assert rng.bit_generator.state == state["rng"]["state"] or rng.bit_generator.state == state["rng"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stage": "sleep"}, "its stage is 'sleep'"),
        ({"state_sigma": 0.0}, "rates and noise levels must be positive"),
        ({"state_held_sigma": 0.0}, "rates and noise levels must be positive"),
        ({"state_lmbd": np.array([1.0, 0.0, 1.0])}, "rates and noise levels must be positive"),
        ({"best_lmbd": np.array([1.0, -1.0, 1.0])}, "rates and noise levels must be positive"),
        ({"state_lmbd": np.ones(2)}, "state_lmbd"),
        ({"state_D": np.ones((3, 2, 6))}, "state_D"),
        ({"history_sigma": np.ones(2)}, "history_sigma"),
        ({"optimizer_direction": np.ones((3, 2, 6))}, "optimizer_direction"),
        ({"iteration": "three"}, "iteration"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_state_that_makes_no_sense_is_refused_by_name(change, words, held):
    state, plan = held
    with pytest.raises(FileFormatError) as caught:
        restored(state | change, plan, Optimizer(), np.random.default_rng(0))
    assert words in str(caught.value)


def test_without_a_best_iteration_the_state_itself_is_the_best(tmp_path):
    state, plan = held_after(2, tmp_path)
    assert not any(name.startswith("best_") for name in state if name != "best_iteration")
    run = restored(state, plan, Optimizer(), np.random.default_rng(0))
    assert run.best is run.state
    assert run.state.codes.shape == (4, 3, 54)


def test_codes_of_parts_come_back_as_the_steps_that_made_them(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "WHOLE", 300)
    monkeypatch.setattr(parts, "_PART", 100)
    state, plan = held_after(3, tmp_path)
    run = restored(state, plan, Optimizer(), np.random.default_rng(0))
    assert run.state.codes.key == state["state_chain"]
    assert run.state.codes.length == len(run.state.codes.steps) == len(state["state_chain_tol"])
    for step, D, penalty in zip(
        run.state.codes.steps, state["state_chain_D"], state["state_chain_penalty"], strict=True
    ):
        np.testing.assert_array_equal(step.D, D)
        np.testing.assert_array_equal(step.penalty, penalty)
    without = {name: value for name, value in state.items() if not name.startswith("state_chain")}
    assert restored(without, plan, Optimizer(), np.random.default_rng(0)).state.codes is None
    steps = len(state["state_chain_tol"])
    for name, wrong in (
        ("state_chain_penalty", np.zeros((steps, 3))),
        ("state_chain_tol", np.zeros(steps)),
        ("state_chain_tol", np.full(steps, 1.5)),
    ):
        with pytest.raises(FileFormatError, match="penalties and tolerances must be positive"):
            restored(state | {name: wrong}, plan, Optimizer(), np.random.default_rng(0))
    assert restored(state | {"state_chain_tol": np.ones(steps)}, plan, Optimizer(), np.random.default_rng(0))


@pytest.mark.parametrize("rule", ["gcv", "sure"])
def test_a_search_for_rates_goes_on_where_it_was(rule, tmp_path):
    """It looks at its neighbours less often the less they move it, and has to know when it last did."""
    z = (RNG.random((3, 2, 150)) < 0.03) * RNG.uniform(1, 2, (3, 2, 150))
    D0 = RNG.standard_normal((2, 1, 7))
    y = synthesize(z, D0) + 0.3 * RNG.standard_normal((3, 1, 156))
    options = {"D0": D0, "learn_dictionary": False, "rng": 0, "tol": 0.0, "max_iter": 16, "lmbd_rule": rule}
    whole = em_fit(y, 2, 7, **options)
    assert (np.diff(whole.history["lmbd"]) == 0).any(), "there was no pause"
    for stop in (1, 6, 9, 12):
        path = tmp_path / f"{stop}.h5"

        def interrupt(progress, stop=stop):
            if progress.iteration == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            em_fit(y, 2, 7, **options, checkpoint=path, callback=interrupt)
        found = em_fit(y, 2, 7, **options, checkpoint=path, resume=True)
        np.testing.assert_array_equal(found.history["lmbd"], whole.history["lmbd"])
        np.testing.assert_array_equal(found.model.lmbd, whole.model.lmbd)
