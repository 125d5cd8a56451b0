"""What `em_fit` promises: its M-steps, targets, minibatches, validation, history, determinism, dtypes and errors."""

import numpy as np
import pytest
from laws import smooth_atoms

from emdl import em_fit, encode, lipschitz, synthesize, unroll
from emdl.errors import InputError
from emdl.metrics import atom_error
from emdl.optim import Optimizer, normalize_atoms
from emdl.simulate import convolutional

SHAPE = (13,)


@pytest.fixture(scope="module")
def simulated():
    rng = np.random.default_rng(3)
    return convolutional(5, 411, smooth_atoms(2, 3, *SHAPE, rng), density=0.012, snr_db=12, positive=True, rng=rng)


@pytest.fixture(scope="module")
def near(simulated):
    """A start at an error of 0.5 from the truth, with rates and noise level that fit."""
    noise = np.random.default_rng(4).standard_normal(simulated.D.shape)
    noise -= (noise * simulated.D).sum(axis=(1, 2), keepdims=True) * simulated.D
    D0 = np.sqrt(0.75) * simulated.D + 0.5 * normalize_atoms(noise)
    return {"D0": D0, "lmbd0": 2.5 / simulated.sigma, "sigma": simulated.sigma, "positive": True, "rng": 0}


@pytest.mark.parametrize(
    "options",
    [
        {"m_step": "analytic", "max_iter": 20},
        {"m_step": "decoder", "max_iter": 60},
        {"m_step": "unrolled", "max_iter": 60, "n_layers": 30},
        {"m_step": "truncated", "max_iter": 60, "n_layers": 15},
        {"m_step": "implicit", "max_iter": 60, "n_layers": 30},
    ],
    ids=lambda options: options["m_step"],
)
def test_each_m_step_finds_the_atoms_from_a_near_start(options, simulated, near):
    assert atom_error(near["D0"], simulated.D).errors.min() > 0.45
    result = em_fit(simulated.y, 2, SHAPE, learn_lmbd=False, **options, **near)
    assert atom_error(result.model.D, simulated.D).errors.max() < 0.1
    np.testing.assert_allclose((result.model.D**2).sum(axis=(1, 2)), 1, rtol=1e-12)


def test_objective_never_rises_while_the_rates_are_kept(simulated, near):
    result = em_fit(simulated.y, 2, SHAPE, learn_lmbd=False, repair=False, tol=1e-6, max_iter=30, **near)
    slack = 1e-3 * result.history["objective"][0]  # the codes are certified to 1e-3
    assert (np.diff(result.history["objective"]) < slack).all()
    assert result.history["objective"][-1] < 0.95 * result.history["objective"][0]


@pytest.mark.parametrize(("m_step", "max_iter"), [("decoder", 6), ("analytic", 3)])
def test_minibatches_come_further_in_as_many_passes(m_step, max_iter, simulated, near):
    errors = []
    for batch_size in (1, len(simulated.y)):
        result = em_fit(
            simulated.y, 2, SHAPE, m_step=m_step, learn_lmbd=False, max_iter=max_iter, batch_size=batch_size, **near
        )
        errors.append(atom_error(result.model.D, simulated.D).errors.max())
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize("m_step", ["analytic", "unrolled"])
def test_a_clean_target_teaches_more_than_the_noisy_signals(m_step, simulated, near):
    """Noise twice as strong as the signal: what the atoms make of new noise comes nearer to the clean signals."""
    rng = np.random.default_rng(5)
    sigma = 1.4 * float(np.sqrt((simulated.clean**2).mean()))
    noisy, new = (simulated.clean + sigma * rng.standard_normal(simulated.clean.shape) for _ in range(2))
    start = {**near, "sigma": sigma, "lmbd0": 2.0 / sigma}
    errors = {}
    for name, target in (("supervised", simulated.clean), ("unsupervised", None)):
        model = em_fit(noisy, 2, SHAPE, m_step=m_step, target=target, learn_lmbd=False, max_iter=40, **start).model
        errors[name] = ((model.reconstruct(new) - simulated.clean) ** 2).sum()
    assert errors["supervised"] < 0.97 * errors["unsupervised"]


@pytest.mark.parametrize("m_step", ["analytic", "unrolled"])
def test_training_lowers_the_loss_on_other_signals_and_keeps_the_best_model(m_step, simulated, near):
    """Steps so large that the last model is not the best one."""
    part, clean = slice(0, 4), simulated.clean[4:]
    models, optimizer = [], Optimizer(rate=0.6 if m_step == "unrolled" else 0.03)
    options = {"m_step": m_step, "learn_lmbd": False, "max_iter": 12, "n_layers": 15, "tol": 1e-9, "tol_codes": 1e-6}
    result = em_fit(
        simulated.y[part], 2, SHAPE, callback=models.append, validation=(simulated.y[4:], clean), optimizer=optimizer,
        **options, **near,
    )  # fmt: skip
    losses = result.history["validation"]
    np.testing.assert_array_equal(losses, [p.validation for p in models])
    best = int(losses.argmin())
    assert losses[best] < 0.8 * mean_error_of(near["D0"], m_step, simulated.y[4:], clean, near)
    np.testing.assert_allclose(
        losses[best], mean_error_of(result.model.D, m_step, simulated.y[4:], clean, near), rtol=1e-4
    )
    np.testing.assert_array_equal(result.model.D, models[best].D)
    assert f"kept the model of iteration {best + 1}," in result.message
    if m_step == "unrolled":
        assert best < len(losses) - 1, "nothing was kept that the last iteration would not have given"


def mean_error_of(D, m_step, y, clean, near):
    """Return the mean squared error of the codes of `D`, by the public functions."""
    if m_step == "analytic":
        z = encode(y, D, near["lmbd0"], near["sigma"], tol=1e-6, positive=True)
    else:
        step = 1 / lipschitz(D)
        z = unroll(y, D, near["lmbd0"] * near["sigma"] ** 2 * step, step, 15, positive=True).z
    return ((synthesize(z, D) - clean) ** 2).mean()


def test_validation_without_a_target_is_against_the_signals_themselves(simulated, near):
    options = {"learn_lmbd": False, "max_iter": 2, **near}
    alone = em_fit(simulated.y, 2, SHAPE, validation=simulated.y[:2, :, :300], **options)
    pair = em_fit(simulated.y, 2, SHAPE, validation=(simulated.y[:2, :, :300], simulated.y[:2, :, :300]), **options)
    np.testing.assert_array_equal(alone.history["validation"], pair.history["validation"])


def test_all_layers_back_is_the_unrolled_gradient_and_fewer_is_another(simulated, near):
    options = {"learn_lmbd": False, "max_iter": 2, "n_layers": 8, **near}
    whole = em_fit(simulated.y, 2, SHAPE, m_step="unrolled", **options).model.D
    last = [em_fit(simulated.y, 2, SHAPE, m_step="truncated", n_backward=t, **options).model.D for t in (8, 2, None)]
    np.testing.assert_array_equal(last[0], whole)
    np.testing.assert_array_equal(last[1], last[2])  # by default a quarter
    assert abs(last[1] - whole).max() > 1e-4


def test_callback_sees_every_iteration_and_its_true_value_ends_the_fit(simulated, near):
    seen = []

    def callback(progress):
        seen.append(progress)
        return progress.iteration == 3

    result = em_fit(simulated.y, 2, SHAPE, callback=callback, tol=1e-9, max_iter=8, **near)
    assert [p.iteration for p in seen] == [1, 2, 3]
    assert all(p.max_iter == 8 and p.D.shape == near["D0"].shape and p.lmbd.shape == (2,) for p in seen)
    assert (result.n_iter, result.converged) == (3, False)
    assert "callback" in result.message
    np.testing.assert_array_equal(seen[-1].D, result.model.D)


def test_history_has_one_entry_per_iteration_and_agrees_with_the_callback(simulated, near):
    seen = []
    result = em_fit(simulated.y, 2, SHAPE, callback=seen.append, max_iter=5, **near)
    assert set(result.history) == {"objective", "n_nonzero", "lmbd", "sigma", "change", "seconds"}
    for name, values in result.history.items():
        assert values.shape == (result.n_iter,) == (len(seen),), name
        assert np.isfinite(values).all(), name
    np.testing.assert_array_equal(result.history["objective"], [p.objective for p in seen])
    np.testing.assert_allclose(result.history["lmbd"], [np.exp(np.log(p.lmbd).mean()) for p in seen], rtol=1e-12)
    assert (np.diff(result.history["seconds"]) >= 0).all()


def test_a_fit_that_stands_still_says_that_it_converged(simulated, near):
    result = em_fit(simulated.y, 2, SHAPE, learn_lmbd=False, max_iter=60, **near)
    assert result.converged
    assert result.n_iter < 60
    assert "converged" in result.message
    assert result.history["change"][-1] < 1e-3
    short = em_fit(simulated.y, 2, SHAPE, learn_lmbd=False, max_iter=1, **near)
    assert not short.converged
    assert "max_iter" in short.message


@pytest.mark.parametrize("m_step", ["analytic", "unrolled"])
def test_the_same_seed_gives_the_same_bits_whatever_the_threads(m_step, simulated, monkeypatch):
    models = []
    for threads in ("1", "2", "2"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        options = {"m_step": m_step, "batch_size": 2, "positive": True, "max_iter": 6}
        models.append(em_fit(simulated.y, 2, SHAPE, rng=7, **options).model)
    for model in models[1:]:
        assert np.array_equal(model.D, models[0].D)
        assert np.array_equal(model.lmbd, models[0].lmbd)
        assert model.sigma == models[0].sigma


def test_float32_stays_float32_and_finds_the_same_atoms(simulated):
    single = em_fit(simulated.y.astype(np.float32), 2, SHAPE, positive=True, rng=0).model
    double = em_fit(simulated.y, 2, SHAPE, positive=True, rng=0).model
    assert single.D.dtype == np.float32
    assert double.D.dtype == np.float64
    assert atom_error(single.D, double.D).errors.max() < 0.02  # single codes end within 1e-3 of the minimum


def test_what_is_given_and_not_to_be_learned_is_kept(simulated):
    lmbd0 = np.array([30.0, 50.0])
    D0 = simulated.D.copy()
    result = em_fit(
        simulated.y, 2, SHAPE, D0=2 * D0, lmbd0=lmbd0, sigma=0.2, learn_lmbd=False, learn_dictionary=False, max_iter=3
    )
    np.testing.assert_array_equal(result.model.lmbd, lmbd0)
    assert result.model.sigma == 0.2
    np.testing.assert_allclose(result.model.D, D0, rtol=1e-12)  # given atoms are brought to unit norm


def test_the_input_is_not_written(simulated, near):
    y, D0, lmbd0 = simulated.y.copy(), near["D0"].copy(), np.full(2, 20.0)
    optimizer = Optimizer()
    for m_step in ("analytic", "decoder"):
        options = {"D0": D0, "lmbd0": lmbd0, "target": y, "m_step": m_step, "optimizer": optimizer}
        em_fit(y, 2, SHAPE, max_iter=3, repair=True, **options)
    np.testing.assert_array_equal(y, simulated.y)
    np.testing.assert_array_equal(D0, near["D0"])
    np.testing.assert_array_equal(lmbd0, np.full(2, 20.0))
    assert optimizer.n_steps == 0


def test_superfluous_atoms_are_named_in_the_message(simulated):
    result = em_fit(simulated.y, 4, SHAPE, positive=True, rng=0, learn_lmbd=False, sigma=simulated.sigma)
    match = atom_error(result.model.D, simulated.D)
    assert match.errors.max() < 0.1
    extra = sorted(set(range(4)) - set(match.permutation.tolist()))
    assert f"atom {', '.join(map(str, extra))};" in result.message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"m_step": "exact"}, "m_step is 'exact'"),
        ({"lmbd_rule": "none"}, "lmbd_rule is 'none'"),
        ({"n_atoms": 0}, "n_atoms is 0"),
        ({"atom_shape": (5, 5, 5)}, "atom_shape is"),
        ({"atom_shape": 412}, "shorter than an atom"),
        ({"max_iter": 0}, "max_iter is 0"),
        ({"n_layers": 0}, "n_layers is 0"),
        ({"m_step": "truncated", "n_backward": 31}, "n_backward is 31, wanted 1 ... 30"),
        ({"m_step": "truncated", "n_backward": 0}, "n_backward is 0"),
        ({"m_step": "unrolled", "n_backward": 3}, "only 'truncated' goes back in part"),
        ({"validation": np.ones((2, 1, 50))}, "validation has 1 channels, wanted those of y, 3"),
        ({"validation": (np.ones((2, 3, 50)), np.ones((2, 3, 49)))}, "wanted that of validation, (2, 3, 50)"),
        ({"validation": np.ones((2, 3, 9))}, "shorter than an atom"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"sigma": 0.0}, "sigma is 0.0"),
        ({"tol_codes": 0.0}, "tol_codes is 0.0"),
        ({"lmbd0": [1.0, 0.0]}, "lmbd0 is"),
        ({"lmbd0": [1.0, 2.0, 3.0]}, "lmbd0 has shape"),
        ({"D0": np.ones((2, 3, 9))}, "D0 has shape (2, 3, 9), wanted (2, 3, 13)"),
        ({"target": np.ones((5, 3, 9))}, "target has shape"),
        ({"stride": 3}, "stride 3 leave"),
        ({"y": np.full((2, 3, 50), 7.0)}, "y is constant (7 everywhere)"),
        ({"y": np.full((2, 3, 50), np.nan)}, "not finite"),
        ({"y": np.arange(15.0), "n_atoms": 9}, "at least n_atoms = 9"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_fitted_is_refused_in_words(change, words, simulated):
    arguments = {"y": simulated.y, "n_atoms": 2, "atom_shape": SHAPE, "rng": 0, **change}
    with pytest.raises(InputError) as caught:
        em_fit(**arguments)
    assert words in str(caught.value)
