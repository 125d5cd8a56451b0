"""How `encode` cuts its work into tiles, what it takes and refuses, and what its solution says."""

import inspect
import warnings

import numpy as np
import pytest
from laws import smooth_atoms

import emdl
from emdl import encoder
from emdl.backend import parallel_map
from emdl.codes import SparseCodes
from emdl.encoder import _Descent, solve
from emdl.errors import ConvergenceWarning, InputError


def descent(n, C, S, K, s, stride, *, dtype=np.float32, penalty=None, z0=None, mask=None, positive=False):
    rng = np.random.default_rng(0)
    y = rng.standard_normal((n, C, *S)).astype(dtype)
    D = rng.standard_normal((K, C, *s)).astype(dtype)
    return _Descent(y, D, np.ones(K) if penalty is None else penalty, stride, positive, z0, mask)


# Tiles

LONG = (1, 1, (30000,), 3, (45,), (1,))
MANY = (10, 1, (3000,), 3, (45,), (1,))
STRIDED = (2, 2, (4998,), 8, (30,), (3,))
ATOMS = (1, 1, (700,), 300, (5,), (1,))
SHORT = (1, 1, (60,), 2, (9,), (1,))
PHOTOGRAPH = (1, 1, (256, 256), 64, (8, 8), (1, 1))
PAIR = (2, 1, (97, 201), 9, (5, 6), (1, 1))
COLOUR = (1, 3, (64, 61), 5, (4, 7), (2, 3))
WIDE = (1, 1, (40, 400), 200, (3, 3), (1, 1))
TALL = (1, 1, (301, 20), 4, (40, 3), (1, 1))
PROBLEMS = {
    "long": LONG, "many": MANY, "strided": STRIDED, "atoms": ATOMS, "short": SHORT, "photograph": PHOTOGRAPH,
    "pair": PAIR, "colour": COLOUR, "wide": WIDE, "tall": TALL,
}  # fmt: skip


@pytest.mark.parametrize("name", PROBLEMS)
def test_tiles_cover_every_position_once_in_whole_cells_no_shorter_than_an_atom(name):
    made, (*_, s, stride) = descent(*PROBLEMS[name]), PROBLEMS[name]
    s, stride = ((1, *s), (1, *stride)) if len(s) == 1 else (s, stride)
    for cell, length, t in zip(made.size, s, stride, strict=True):
        assert cell * t >= length
    for borders, cell, end in ((made.rows, made.size[0], made.PH), (made.columns, made.size[1], made.PW)):
        assert borders[0] == 0
        assert borders[-1] == end
        assert (np.diff(borders) > 0).all()
        assert (borders[1:-1] % cell == 0).all()
    n, down, across = made.grid
    assert (down, across) == (len(made.rows) - 1, len(made.columns) - 1)
    np.testing.assert_array_equal(made.signal, np.repeat(np.arange(n), down * across))
    assert len(made.count) == n * down * across == len(made.begin) - 1


@pytest.mark.parametrize("name", PROBLEMS)
def test_tiles_fit_a_cache_and_are_no_smaller_than_they_have_to_be(name):
    """About a thousand positions on one axis and 32 rows of pictures; fewer where many atoms fill the cache."""
    made, (*_, K, _, _) = descent(*PROBLEMS[name]), PROBLEMS[name]
    most = max(256, min(4096 if made.PH > 1 else 1024, 131072 // K))
    high, wide = np.diff(made.rows).max(), np.diff(made.columns).max()
    assert high <= max(63, 2 * made.size[0])
    assert high * wide <= 2 * most
    if made.grid[1] > 1:
        assert high >= 24
    if made.grid[2] > 1:
        assert 2 * high * wide >= most
        assert wide >= (4 if made.PH == 1 else 1) * made.size[1]
    blocks = -(-high // made.bh) * -(-wide // made.bw)
    assert made.room == blocks
    assert 1 <= made.bh <= max(1, made.size[0] // 2)
    assert 1 <= made.bw <= max(1, made.size[1] // 2)


def test_inner_products_of_atoms_are_kept_for_few_short_atoms_on_one_axis_alone():
    assert descent(*LONG).gram.shape == (3, 3, 45)
    assert descent(1, 1, (900,), 64, (16,), (1,)).gram.shape == (64, 64, 16)
    assert descent(1, 1, (900,), 64, (17,), (1,)).gram.size == 0
    assert descent(*LONG, mask=np.ones((1, 1, 30000), bool)).gram.size == 0


@pytest.mark.parametrize("count", [1, 3])
def test_small_problems_take_one_thread_and_large_ones_all(count, rng, monkeypatch):
    tasks = []

    def counted(function, given):
        tasks.append(len(given))
        return parallel_map(function, given)

    monkeypatch.setattr(encoder, "n_threads", lambda: count)
    monkeypatch.setattr(encoder, "parallel_map", counted)
    D = smooth_atoms(2, 1, 10, rng)  # padded to 16 taps
    y = rng.standard_normal((1, 1, 400))
    for small, wanted in ((400 * 32 + 10_000, 1), (400 * 10, count)):
        monkeypatch.setattr(encoder, "_SMALL", small)
        tasks.clear()
        emdl.encode(y, D, 2.0)
        assert set(tasks) == {wanted}


@pytest.mark.parametrize("shape", [((1, 1, 900), (4, 1, 12), (1,)), ((1, 1, 60, 50), (4, 1, 5, 6), (1, 1))])
def test_slots_move_with_their_codes_when_a_tile_is_full(shape, rng):
    (n, C, *S), (K, _, *s), stride = shape
    D = rng.standard_normal((K, C, *s))
    y = rng.standard_normal((n, C, *S))
    z0 = SparseCodes.from_dense(emdl.encode(y, D, 0.4 * emdl.lambda_max(y, D)))
    made = _Descent(y, D, np.ones(K), stride, False, z0, None)

    def assert_roomy():
        spare, least = np.diff(made.begin) - made.count, made.count if len(s) == 1 else made.room
        assert (spare >= least).all(), "tiles fill up at once"
        assert (spare <= 16 * made.room + 4 * made.count + 64).all(), "memory for nothing"

    assert_roomy()
    assert made.count.sum() == z0.n_nonzero

    def held():
        at = np.concatenate([np.arange(b, b + c) for b, c in zip(made.begin, made.count, strict=False)])
        return made.key[at].copy(), made.slot[:, at].copy()

    before, begin = held(), made.begin
    made._make_room()
    assert made.begin is begin, "there was room"
    made.begin = np.concatenate([[0], np.cumsum(made.count)])  # no tile has any left
    at = np.concatenate([np.arange(b, b + c) for b, c in zip(begin, made.count, strict=False)])
    made.key, made.slot, made.spot = made.key[at], made.slot[:, at].copy(), made.spot[:, at].copy()
    made._make_room()
    assert_roomy()
    for found, kept in zip(held(), before, strict=True):
        np.testing.assert_array_equal(found, kept)


def test_a_start_fills_its_slots_in_the_unit_of_the_signals(rng):
    D = smooth_atoms(2, 1, 9, rng)
    y = np.zeros((2, 1, 60))
    y[0, 0, 3] = 2.0**20
    z0 = np.zeros((2, 2, 52))
    z0[0, 0, 10], z0[0, 1, 40], z0[1, 1, 20] = 2.0**20, -(2.0**21), 2.0**22
    for positive in (False, True):
        made = _Descent(y, D, np.ones(2), (1,), positive, SparseCodes.from_dense(z0), None)
        assert made.unit == 2.0**20
        values = [made.slot[0, b : b + c].tolist() for b, c in zip(made.begin, made.count, strict=False)]
        assert sorted(values[0]) == ([1.0] if positive else [-2.0, 1.0]) or sorted(values[0]) == [0.0, 1.0]
        assert values[1] == [4.0]
    np.testing.assert_array_equal(made.weights, np.full((1, 2), 2.0**-20))


# What is taken and refused


@pytest.fixture
def problem(rng):
    D = smooth_atoms(3, 2, 9, rng)
    z = rng.standard_normal((2, 3, 92)) * (rng.random((2, 3, 92)) < 0.05)
    return emdl.synthesize(z, D) + 0.05 * rng.standard_normal((2, 2, 100)), D


def test_rates_of_atoms_and_codes_agree_in_every_form(problem):
    y, D = problem
    rates = np.array([0.2, 0.3, 0.4])
    wanted = emdl.encode(y, D, rates, tol=1e-9)
    forms = [rates.tolist(), tuple(rates), rates.astype(np.float32).astype(float)]
    forms += [np.broadcast_to(rates[:, None], (3, 92)), np.broadcast_to(rates[:, None], (2, 3, 92))]
    for form in forms:
        np.testing.assert_allclose(emdl.encode(y, D, form, tol=1e-9), wanted, atol=1e-4)
    other = np.broadcast_to(rates[:, None], (2, 3, 92)) * np.array([1, 2])[:, None, None]
    found = emdl.encode(y, D, other, tol=1e-9)
    np.testing.assert_allclose(found[0], wanted[0], atol=1e-4)
    np.testing.assert_allclose(found[1], emdl.encode(y[1:], D, 2 * rates, tol=1e-9)[0], atol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lmbd": np.ones((2, 3, 91))}, "lmbd has shape (2, 3, 91), wanted one rate, 3 for the atoms, or codes"),
        ({"lmbd": np.ones((3, 91))}, "lmbd has shape (3, 91)"),
        ({"lmbd": 0.0}, "lmbd goes down to 0, wanted rates > 0"),
        ({"lmbd": [1.0, 1.0, 0.0]}, "lmbd goes down to 0, wanted rates > 0"),
        ({"lmbd": 1e300, "sigma": 1e10}, "lmbd sigma^2 leaves the range of the numbers, with lmbd 1e+300"),
        ({"lmbd": 1e-300, "sigma": 1e-13}, "lmbd sigma^2 leaves the range of the numbers, with lmbd 1e-300"),
        ({"sigma": 0.0}, "sigma is 0.0"),
        ({"tol": 0.0}, "tol is 0.0"),
        ({"tol": 1.5}, "tol is 1.5"),
        ({"max_iter": 0}, "max_iter is 0"),
        ({"z0": np.zeros((2, 3, 91))}, "z0 has shape (2, 3, 91), wanted (2, 3, 92)"),
        ({"z0": SparseCodes.from_dense(np.zeros((2, 3, 91)))}, "z0 has shape (2, 3, 91), wanted (2, 3, 92)"),
        ({"mask": np.ones((2, 2, 99))}, "mask has shape (2, 2, 99), wanted (2, 2, 100)"),
        ({"mask": np.full((2, 2, 100), 0.5)}, "with entries 0 or 1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_coded_is_refused_in_words(options, words, problem):
    y, D = problem
    with pytest.raises(InputError) as caught:
        emdl.encode(y, D, **{"lmbd": 1.0} | options)
    assert words in str(caught.value)


def test_the_ends_of_the_ranges_are_taken(problem):
    y, D = problem
    assert emdl.encode(y, D, 1.0, tol=1.0).shape == (2, 3, 92)
    assert not emdl.encode(y, D, 1e290, sigma=1.0).any()


def test_what_lies_under_a_mask_changes_no_bit(problem, rng):
    y, D = problem
    mask = rng.random(y.shape) < 0.7
    wanted = emdl.encode(np.where(mask, y, 0), D, 0.2, mask=mask)
    np.testing.assert_array_equal(emdl.encode(np.where(mask, y, 1e6), D, 0.2, mask=mask), wanted)
    np.testing.assert_array_equal(emdl.encode(np.where(mask, y, -7), D, 0.2, mask=mask.tolist()), wanted)
    np.testing.assert_array_equal(emdl.encode(np.where(mask, y, -7), D, 0.2, mask=mask.astype(int)), wanted)
    assert abs(wanted - emdl.encode(y, D, 0.2)).max() > 0.01


def test_sparse_codes_are_those_of_the_array_in_order(problem):
    y, D = problem
    dense, sparse = (emdl.encode(y.astype(np.float32), D, 0.2, sparse=flag) for flag in (False, True))
    assert isinstance(sparse, SparseCodes)
    np.testing.assert_array_equal(sparse.dense(), dense)
    assert sparse.value.dtype == dense.dtype == np.float32
    assert (sparse.value != 0).all()
    assert sparse.n_nonzero == np.count_nonzero(dense)
    for i in range(2):
        assert (np.diff(sparse.signal(i)[0]) > 0).all()


def test_a_start_may_be_dense_sparse_or_of_zeros(problem):
    y, D = problem
    cold = solve(y, D, np.full(3, 0.2), (1,), tol=1e-9)
    for start in (cold.codes, cold.codes.dense(), np.zeros((2, 3, 92)), SparseCodes.from_dense(np.zeros((2, 3, 92)))):
        found = emdl.encode(y, D, 0.2, tol=1e-8, z0=start)
        np.testing.assert_allclose(found, cold.codes.dense(), atol=1e-3)


# What the solution says


@pytest.fixture
def pictures(rng):
    """Two pictures that no tile solves at once, and atoms that resemble each other."""
    D = smooth_atoms(3, 1, 5, rng)[..., None] * np.hanning(7)[1:-1]
    D /= np.linalg.norm(D.reshape(3, -1), axis=1)[:, None, None, None]
    return rng.standard_normal((2, 1, 40, 41)), D


@pytest.mark.parametrize("unit", [1.0, 1000.0])
@pytest.mark.parametrize("positive", [False, True])
def test_the_certificate_is_in_the_unit_of_the_data_for_each_signal(unit, positive, pictures):
    y, D = pictures
    y = unit * np.concatenate([y, np.zeros((1, 1, 40, 41))])
    penalty = unit * np.array([0.2, 0.3, 0.25])
    found, best = (solve(y, D, penalty, (1, 1), tol=tol, positive=positive) for tol in (1e-2, 1e-11))
    z = found.codes.dense()
    primal = (0.5 * (y - emdl.synthesize(z, D)) ** 2).sum(axis=(1, 2, 3))
    primal += (penalty[:, None, None] * abs(z)).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(found.primal, primal, rtol=1e-9)
    assert (found.primal - best.primal <= found.gap * (1 + 1e-9)).all()
    assert (best.gap <= 1e-11 * best.primal).all()
    assert found.relative_gap == (found.gap[:2] / found.primal[:2]).max() <= 1e-2
    assert found.relative_gap > 1e-9
    assert (found.primal[2], found.gap[2]) == (0, 0)
    assert 1 <= found.n_iter < best.n_iter
    assert not positive or z.min() >= 0


def test_no_more_sweeps_are_made_than_allowed_and_the_warning_is_the_callers(pictures):
    y, D = pictures
    lmbd = 0.02 * emdl.lambda_max(y, D)
    for most in (1, 2):
        found = solve(y, D, np.full(3, lmbd), (1, 1), tol=1e-13, max_iter=most)
        assert found.n_iter == most
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            line = inspect.currentframe().f_lineno + 1
            emdl.encode(y, D, lmbd, tol=1e-13, max_iter=most)
        (warning,) = caught
        assert (warning.category, warning.filename, warning.lineno) == (ConvergenceWarning, __file__, line)
        assert f"after {most} sweeps at a relative gap of {found.relative_gap:.1e}, wanted 1.0e-13" in str(
            warning.message
        )


@pytest.mark.parametrize(("largest", "unit"), [(0.0, 1.0), (2.0**-30, 2.0**-30), (0.7, 0.5), (1.0, 1.0), (-3.0, 4.0)])
def test_signals_are_worked_on_near_one(largest, unit):
    y = np.zeros((1, 1, 50))
    y[0, 0, 20] = largest
    made = _Descent(y, np.ones((1, 1, 5)), np.ones(1), (1,), False, None, None)
    assert made.unit == unit
    np.testing.assert_array_equal(made.weights, [[1 / unit]])
    np.testing.assert_array_equal(made.norms, [5.0])
