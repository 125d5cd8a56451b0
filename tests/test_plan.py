"""What a fit is asked to do: counted, brought to one unit, and refused where it cannot be done."""

import math

import numpy as np
import pytest

from emdl import parts, plan
from emdl.errors import InputError, InputTypeError
from emdl.optim import Optimizer
from emdl.rates import Prior

KEPT = {
    "learn_sigma": False, "learn_dictionary": True, "may_repair": True, "may_restart": False, "max_iter": 5,
    "tol": 1e-3,
}  # fmt: skip
ASKED = {
    "n_atoms": 3, "atom_shape": 9, "target": None, "stride": 1, "positive": False, "m_step": "analytic", "n_layers": 30,
    "n_backward": None, "batch_size": None, "rule": "gcv", "tol_codes": 1e-3, "validation": None, "prior": None,
}  # fmt: skip


@pytest.fixture
def y():
    return np.random.default_rng(0).standard_normal((11, 2, 50))


def planned(y, **changes):
    return plan.make(y, **ASKED | KEPT | changes)


def test_sizes_follow_from_signals_and_atoms(y):
    made = planned(y)
    assert made.D_shape == (3, 2, 9)
    assert made.n_positions == 11 * (50 - 9 + 1)
    assert made.stride == (1,)
    picture = planned(y[:4, :, :48].reshape(4, 2, 6, 8), atom_shape=(3, 4), stride=(1, 2))
    assert picture.D_shape == (3, 2, 3, 4)
    assert picture.n_positions == 4 * 4 * 3
    assert picture.stride == (1, 2)


def test_signals_and_targets_are_brought_to_the_unit_that_everything_else_is_divided_by(y):
    target, prior = 3 * y, Prior(2.0, 10.0)
    made = planned(1000 * y, target=target, validation=(y, 5 * y), prior=prior)
    assert made.unit == 2.0 ** round(math.log2(1000 * abs(y).max()))
    np.testing.assert_array_equal(made.data.y, 1000 * y / made.unit)
    np.testing.assert_array_equal(made.data.wanted, target / made.unit)
    for found, given in zip(made.validation, (y, 5 * y), strict=True):
        np.testing.assert_array_equal(found, given / made.unit)
    assert made.prior == Prior(2.0, 10.0 / made.unit)
    assert prior.delta == 10.0


def test_signals_of_unit_one_are_taken_as_they_are(y):
    y /= abs(y).max()
    made = planned(y)
    assert made.unit == 1
    assert np.shares_memory(made.data.y, y)
    assert made.data.wanted is made.data.y
    assert made.validation is None
    assert planned(y, validation=y[:3]).validation[1] is not None


def test_targets_take_the_dtype_of_the_signals(y):
    made = planned(y.astype(np.float32), target=y, validation=y)
    assert made.data.wanted.dtype == made.validation[0].dtype == made.validation[1].dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "batches", "statistics"),
    [
        ({}, 1, True),
        ({"m_step": "decoder"}, 10, False),
        ({"m_step": "decoder", "batch_size": 11}, 1, False),
        ({"batch_size": 11}, 1, True),
        ({"batch_size": 10}, 2, False),
        ({"batch_size": 4}, 3, False),
        ({"batch_size": 1}, 11, False),
    ],
)
def test_batches_are_all_signals_a_tenth_of_them_or_as_asked(changes, batches, statistics, y):
    made = planned(y, **changes)
    assert (made.batches, made.wants_statistics) == (batches, statistics)


def test_few_signals_make_as_many_batches(y):
    assert planned(y[:4], m_step="unrolled").batches == 4


@pytest.mark.parametrize(("n_layers", "n_backward"), [(30, 7), (8, 2), (4, 1), (3, 1), (1, 1)])
def test_a_truncated_gradient_goes_back_through_a_quarter_by_default(n_layers, n_backward, y):
    assert planned(y, m_step="truncated", n_layers=n_layers).n_backward == n_backward
    assert planned(y, m_step="truncated", n_layers=n_layers, n_backward=n_layers).n_backward == n_layers


@pytest.mark.parametrize("name", ["prior", "optimizer", "callback"])
def test_what_is_of_another_kind_is_refused_and_nothing_is_allowed(name):
    good = {"prior": Prior(2.0, 1.0), "optimizer": Optimizer(), "callback": print}
    plan.check_kinds(**good)
    plan.check_kinds(**good | {name: None})
    with pytest.raises(InputTypeError, match=f"{name} is 3, wanted"):
        plan.check_kinds(**good | {name: 3})


@pytest.mark.parametrize("exponent", [-139, 139])
def test_units_up_to_140_decades_from_one_are_taken(exponent, y):
    scaled = y / abs(y).max() * 10.0**exponent
    assert planned(scaled).unit == pytest.approx(10.0**exponent, rel=0.5)
    with pytest.raises(InputError, match="leaves the range of the numbers; wanted 1e-140 to 1e140"):
        planned(scaled * 100.0 ** np.sign(exponent))


def test_a_mean_of_a_thousand_deviations_is_the_bound_for_each_channel(y):
    y[:, 1] = (y[:, 1] - y[:, 1].mean()) / y[:, 1].std()
    y[:, 1] += 999
    assert planned(y).unit == 1024
    y[:, 1] += 2
    with pytest.raises(InputError, match=r"channel 1 of y has mean 1001 and standard deviation 1:"):
        planned(y)
    with pytest.raises(InputError, match="channel 1 of y has mean -1001"):
        planned(-y)


def test_one_sample_that_differs_is_enough_to_learn_from():
    y = np.zeros((1, 1, 30))
    with pytest.raises(InputError, match="y is constant"):
        planned(y)
    y[0, 0, -1] = 1
    assert planned(y).unit == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"atom_shape": (3, 3, 3)}, "wanted one or two lengths"),
        ({"atom_shape": ()}, "wanted one or two lengths"),
        ({"atom_shape": 0}, "atom_shape is 0"),
        ({"tol_codes": 1.5}, "tol_codes is 1.5"),
        ({"n_atoms": 0}, "n_atoms is 0"),
        ({"validation": np.ones((2, 3, 50))}, "validation has 3 channels, wanted those of y, 2"),
        ({"validation": np.ones((2, 2, 8))}, "shorter than an atom"),
        ({"target": np.ones((11, 2, 49))}, "target has shape (11, 2, 49), wanted that of y, (11, 2, 50)"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_words(changes, words, y):
    with pytest.raises(InputError) as caught:
        planned(y, **changes)
    assert words in str(caught.value)


# Signals in parts


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of about three hundred values."""
    monkeypatch.setattr(parts, "WHOLE", 400)
    monkeypatch.setattr(parts, "_PART", 300)


def planned_in_parts(y, **changes):
    made = planned(y, **changes)
    made.data.close()
    assert isinstance(made.data, parts.Parts)
    return made


@pytest.mark.usefixtures("small_parts")
def test_parts_have_the_unit_and_the_positions_of_the_whole(y, monkeypatch):
    split = planned_in_parts(300 * y, target=2 * y)
    monkeypatch.setattr(parts, "WHOLE", 1 << 22)
    whole = planned(300 * y, target=2 * y)
    assert isinstance(whole.data, parts.Whole)
    assert (split.unit, split.n_positions, split.D_shape) == (whole.unit, whole.n_positions, whole.D_shape)
    rms = np.sqrt(np.mean((300 * y / whole.unit) ** 2))
    assert split.data.root_mean_square == pytest.approx(rms, rel=1e-12)
    assert split.data.unit == whole.unit


@pytest.mark.usefixtures("small_parts")
def test_parts_are_known_by_what_is_in_them(y):
    """Their checkpoint tells them by extremes and sums of each channel, of targets too, by shape and by dtype."""
    known = {planned_in_parts(y).data.fingerprint}
    changed = y.copy()
    changed[7, 1, 30] += 1e-9
    others = [(changed, None), (y.astype(np.float32), None), (y[:10], None), (y, 2 * y), (y, 3 * y), (y[:, ::-1], None)]
    for signals, target in others:
        known.add(planned_in_parts(signals, target=target).data.fingerprint)
    assert len(known) == 1 + len(others)
    assert planned_in_parts(y.copy()).data.fingerprint in known


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("name", ["y", "target"])
def test_values_that_are_not_finite_are_counted_over_all_parts(name, y):
    bad = y.copy()
    bad[[0, 5, 10], 0, 3] = np.nan, np.inf, -np.inf
    given = {"y": y, "target": y + 0.5} | {name: bad}  # of signals that only workers read nothing is known before
    cuts = parts.cut(y.shape, (9,), (1,))
    job = parts.Job(given["y"], given["target"], cuts, (9,), (1,), True, y.dtype)
    with pytest.raises(InputError, match=f"{name} has 3 values that are not finite"):
        plan._survey(parts.Parts(y.shape, job, parts.Threads(job)))


@pytest.mark.usefixtures("small_parts")
def test_constant_and_shifted_parts_are_refused_as_whole_signals_are(y):
    with pytest.raises(InputError, match=r"y is constant \(7 everywhere\)"):
        planned(np.full(y.shape, 7.0))
    y = y - y.mean(axis=(0, 2), keepdims=True)
    y /= y.std(axis=(0, 2), keepdims=True)
    y[:, 0] += 999
    planned_in_parts(y)
    y[:, 0] += 2
    with pytest.raises(InputError, match="channel 0 of y has mean 1001 and standard deviation 1"):
        planned(y)
    with pytest.raises(InputError, match="leaves the range of the numbers"):
        planned(1e145 * np.random.default_rng(0).standard_normal(y.shape))


@pytest.mark.usefixtures("small_parts")
def test_a_target_of_another_shape_is_refused_for_parts_too(y):
    with pytest.raises(InputError, match=r"target has shape \(11, 2, 49\), wanted that of y, \(11, 2, 50\)"):
        planned(y, target=np.ones((11, 2, 49)))


def test_surveys_add_up():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 2, 30))
    x[0, 0, 0] = np.inf
    whole, one, other = (plan._look_at(part) for part in (x, x[:2], x[2:]))
    both = one + other
    for name in ("low", "high", "sum", "square"):
        np.testing.assert_allclose(getattr(both, name)[1], getattr(whole, name)[1], rtol=1e-12, err_msg=name)
    np.testing.assert_allclose(whole.square[1], (x[:, 1] ** 2).sum(), rtol=1e-12)
    np.testing.assert_allclose(whole.sum[1], x[:, 1].sum(), rtol=1e-9)
    assert (whole.low[1], whole.high[1]) == (x[:, 1].min(), x[:, 1].max())
    assert both.strange == whole.strange == 1


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    ("shape", "atom_shape", "full"),
    [((11, 50), 9, (11, 1, 50)), ((2000,), 9, (1, 1, 2000)), ((5, 20, 21), (4, 3), (5, 1, 20, 21))],
)
def test_parts_of_signals_in_short_form_have_the_full_form(shape, atom_shape, full):
    y = np.random.default_rng(0).standard_normal(shape)
    stride = 1 if isinstance(atom_shape, int) else (1, 1)
    made = planned_in_parts(y, atom_shape=atom_shape, stride=stride)
    assert made.data.shape == plan._full_shape(y, len(full) - 2) == full
    assert made.D_shape[1] == 1


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    ("given", "work"),
    [("f2", "f4"), ("f4", "f4"), (">f4", "f4"), ("f8", "f8"), ("i2", "f8"), ("u1", "f8"), ("i8", "f8")],
)
def test_parts_are_worked_on_in_the_precision_of_whole_signals(given, work, y, monkeypatch):
    signals = np.abs(50 * y).astype(given)
    found = plan._work_dtype(signals)
    assert found == work
    assert planned_in_parts(signals).data.dtype == work
    monkeypatch.setattr(parts, "WHOLE", 1 << 22)
    assert planned(signals).data.y.dtype == work


@pytest.mark.parametrize("kind", ["c8", "U3", "O", "M8[s]"])
def test_what_is_no_real_number_has_no_precision(kind):
    with pytest.raises(InputTypeError, match="wanted real numbers"):
        plan._work_dtype(np.empty(3, kind))


@pytest.mark.usefixtures("small_parts")
def test_a_dead_channel_beside_a_live_one_is_not_a_constant_signal(y):
    y = -np.abs(y)
    y[:, 1] = 0
    assert planned_in_parts(y).unit == 2.0 ** round(math.log2(abs(y).max()))


@pytest.mark.usefixtures("small_parts")
def test_what_was_opened_is_closed_if_there_is_nothing_to_learn(y, monkeypatch):
    closed = []
    monkeypatch.setattr(parts.Parts, "close", lambda self: closed.append(self))
    with pytest.raises(InputError, match="constant"):
        planned(np.ones(y.shape))
    assert len(closed) == 1
