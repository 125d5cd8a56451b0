"""`encode` beyond its certificate: threads, starts, many signals, sparse results, limits."""

import numpy as np
import pytest
from laws import smooth_atoms

import emdl
from emdl.codes import SparseCodes
from emdl.errors import ConvergenceWarning, InputError


def image(rng, size=(150, 131), channels=2):
    """A smooth image and atoms, long enough for tiles of every colour."""
    y = rng.standard_normal((1, channels, *size))
    y = y + np.roll(y, 1, axis=2) + np.roll(y, 1, axis=3)
    D = rng.standard_normal((9, channels, 5, 6))
    return y, D / np.linalg.norm(D.reshape(9, -1), axis=1)[:, None, None, None]


def recording(rng, n=6000):
    """Events of three smooth atoms in noise: neighbouring shifts of an atom are nearly parallel."""
    t = np.arange(45.0)
    D = np.stack([np.exp(-((t - m) ** 2) / 40) * np.cos((t - m) / w) for m, w in ((15, 5), (20, 8), (25, 3))])[:, None]
    D /= np.linalg.norm(D, axis=2, keepdims=True)
    z = rng.uniform(0.5, 1.5, (1, 3, n - 44)) * (rng.random((1, 3, n - 44)) < 1 / 300)
    return emdl.synthesize(z, D) + 0.1 * rng.standard_normal((1, 1, n)), D


@pytest.mark.parametrize("make", [image, recording])
def test_bits_do_not_depend_on_threads(rng, make, monkeypatch):
    y, D = make(rng)
    y = np.concatenate([y, 2 * y[..., ::-1]]).astype(np.float32)
    lmbd = 0.05 * emdl.lambda_max(y, D)
    monkeypatch.setattr("emdl.encoder._SMALL", 0)
    results = []
    for threads in ("1", "2", "2"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        results.append(emdl.encode(y, D, lmbd, tol=1e-4, sparse=True))
    for other in results[1:]:
        np.testing.assert_array_equal(other.index, results[0].index)
        np.testing.assert_array_equal(other.value, results[0].value)


@pytest.mark.parametrize("make", [image, recording])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_many_tiles_reach_the_minimum_of_fista(rng, make, dtype):
    """A slow reference, the unrolled encoder with many layers, finds nothing lower."""
    y, D = make(rng) if make is recording else make(rng, (60, 75))
    lmbd = 0.1 * emdl.lambda_max(y, D)
    step = 1 / emdl.lipschitz(D)
    z = emdl.encode(y.astype(dtype), D, lmbd, tol=1e-5)
    slow = emdl.unroll(y, D, lmbd * step, step, 1500).z
    reached, best = emdl.objective(y, z.astype(np.float64), D, lmbd), emdl.objective(y, slow, D, lmbd)
    assert best * (1 - 1e-4) <= reached <= best * (1 + 1e-5)


@pytest.mark.filterwarnings("ignore:y is zero everywhere")
def test_signals_together_give_what_they_give_alone(rng):
    y, D = recording(rng, 2000)
    y = np.concatenate([y, 0 * y, 3 * y[..., ::-1], rng.standard_normal(y.shape)])
    together = emdl.encode(y, D, 0.3, tol=1e-9)
    for one, z in zip(y, together, strict=True):
        np.testing.assert_allclose(emdl.encode(one[None], D, 0.3, tol=1e-9)[0], z, atol=1e-5)


def test_inputs_are_not_written(rng):
    y, D = recording(rng, 1500)
    z0 = emdl.encode(y, D, 0.5)
    mask = rng.random(y.shape) < 0.9
    kept = [a.copy() for a in (y, D, z0, mask)]
    for a in (y, D, z0, mask):
        a.setflags(write=False)
    emdl.encode(y, D, 0.3, z0=z0, mask=mask)
    for a, b in zip((y, D, z0, mask), kept, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_warm_start_is_never_worse_than_where_it_starts(rng):
    y, D = recording(rng)
    z0 = emdl.encode(y, D, 0.3, tol=1e-2, positive=True)
    for start in (z0, SparseCodes.from_dense(z0)):
        with pytest.warns(ConvergenceWarning, match="relative gap"):
            stopped = emdl.encode(y, D, 0.25, tol=1e-12, max_iter=1, positive=True, z0=start)
        z = emdl.encode(y, D, 0.25, tol=1e-12, positive=True, z0=start)
        first, middle, last = (emdl.objective(y, codes, D, 0.25) for codes in (z0, stopped, z))
        assert last < first
        assert last <= middle <= first * (1 + 1e-12)


def test_a_start_at_the_solution_takes_one_sweep(rng):
    from emdl.encoder import solve

    y, D = recording(rng)
    first = solve(y, D, np.full(3, 0.3), (1,), tol=1e-6)
    again = solve(y, D, np.full(3, 0.3), (1,), tol=2e-6, z0=first.codes)
    assert again.n_iter == 1
    np.testing.assert_array_equal(again.codes.index, first.codes.index)


def test_codes_are_zero_above_lambda_max_only(rng):
    y, D = recording(rng, 1500)
    for positive in (False, True):
        top = emdl.lambda_max(y, D, sigma=0.7, positive=positive)
        assert emdl.encode(y, D, 1.0001 * top, sigma=0.7, tol=1e-9, positive=positive, sparse=True).n_nonzero == 0
        assert emdl.encode(y, D, 0.999 * top, sigma=0.7, tol=1e-9, positive=positive, sparse=True).n_nonzero > 0


def test_a_path_holds_the_solution_of_each_rate(rng):
    y, D = recording(rng, 1500)
    lmbds, codes = emdl.encode_path(y, D, n_lmbds=5, smallest=0.05, tol=1e-8)
    assert np.all(np.diff(lmbds) < 0)
    assert codes[0].n_nonzero == 0
    for lmbd, z in zip(lmbds, codes, strict=True):
        cold = emdl.encode(y, D, lmbd, tol=1e-8)
        np.testing.assert_allclose(emdl.objective(y, z.dense(), D, lmbd), emdl.objective(y, cold, D, lmbd), rtol=2e-8)


def test_a_tolerance_out_of_reach_warns_with_the_gap_reached(rng):
    y, D = image(rng, (40, 41))
    with pytest.warns(ConvergenceWarning, match=r"relative gap of \d"):
        emdl.encode(y.astype(np.float32), D, 0.01 * emdl.lambda_max(y, D), tol=1e-14)


def test_wrong_weights_and_masks_are_refused(rng):
    y, D = recording(rng, 300)
    with pytest.raises(InputError, match="lmbd has shape"):
        emdl.encode(y, D, np.ones((1, 3, 7)))
    with pytest.raises(InputError, match="wanted rates > 0"):
        emdl.encode(y, D, np.zeros((1, 3, 256)))
    with pytest.raises(InputError, match="mask has shape"):
        emdl.encode(y, D, 1.0, mask=np.ones(299))
    with pytest.raises(InputError, match="z0 has shape"):
        emdl.encode(y, D, 1.0, z0=np.zeros((1, 3, 9)))


@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-8])
def test_few_codes_that_are_solved_exactly_stay_solved(tol, rng):
    """Conjugate gradients that went on after the last digit once divided rounding by rounding: codes of 1e85."""
    for K, C, s, stride, P, density in [(4, 1, 12, 3, 60, 0.01), (5, 2, 10, 5, 40, 0.01), (3, 1, 8, 2, 40, 0.03)]:
        D = smooth_atoms(K, C, s, rng)
        z = rng.standard_normal((40, K, P)) * (rng.random((40, K, P)) < density)
        y = emdl.synthesize(z, D, stride=stride)
        y += 0.02 * rng.standard_normal(y.shape)
        codes = emdl.encode(y, D, 0.15, tol=tol, stride=stride)
        half = 0.5 * (y**2).sum(axis=(1, 2))
        for i in range(len(y)):
            assert emdl.objective(y[i : i + 1], codes[i : i + 1], D, 0.15, stride=stride) <= half[i] * (1 + 1e-12)


@pytest.mark.parametrize(
    ("K", "C", "w", "stride", "P", "fraction"), [(8, 1, 19, 2, 96, 0.002), (8, 3, 15, 1, 112, 0.02)]
)
def test_long_chains_of_overlapping_codes_are_solved(K, C, w, stride, P, fraction, rng):
    """Hundreds of codes, each within an atom of the next, are one cluster that is solved in overlapping parts."""
    from emdl.encoder import solve

    D = np.cumsum(rng.standard_normal((K, C, w)), axis=2)
    D /= np.linalg.norm(D.reshape(K, -1), axis=1)[:, None, None]
    y = rng.standard_normal((2, C, (P - 1) * stride + w))
    lmbd = fraction * emdl.lambda_max(y, D, stride=stride)
    solution = solve(y, D, np.full(K, lmbd), (stride,), tol=1e-8)
    assert solution.relative_gap <= 1e-8
    assert solution.codes.n_nonzero > 2 * P
    assert solution.n_iter <= 20


def test_codes_on_both_sides_of_a_tile_border_are_solved_together(rng):
    """Wide smooth atoms at every position: most clusters lie across the end of a tile, and rounds would not end."""
    from emdl.encoder import solve

    D = np.exp(-0.5 * ((np.arange(45.0) - 22) / 8) ** 2)[None, None]
    D /= np.linalg.norm(D)
    z = np.zeros((1, 1, 8000))
    z[..., ::1024] = z[..., 1023::1024] = z[..., 1020::1024] = 1
    y = emdl.synthesize(z, D) + 0.01 * rng.standard_normal((1, 1, 8044))
    solution = solve(y, D, np.full(1, 0.02), (1,), tol=1e-10)
    assert solution.relative_gap <= 1e-10
    assert solution.n_iter <= 10


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", ["plain", "mask", "weights", "positive"])
def test_certificates_of_images_hold_though_most_correlations_are_left_out(stride, kind, rng):
    """A much finer solution lies no lower than each certificate says; 9 atoms, tiles of odd sizes."""
    from emdl.encoder import solve

    y, D = image(rng, (71, 94))
    options = {"mask": rng.random(y.shape) < 0.9} if kind == "mask" else {"positive": kind == "positive"}
    shape = emdl.analyze(y, D, stride=stride).shape
    penalty = np.full(9, 0.05 * emdl.lambda_max(y, D, stride=stride))
    if kind == "weights":
        penalty = penalty[0] * rng.uniform(0.5, 2, shape)
    steps = [solve(y, D, penalty, (stride, stride), tol=tol, **options) for tol in (0.1, 1e-2, 1e-4, 1e-8)]
    for step in steps:
        assert steps[-1].primal[0] >= step.primal[0] - step.gap[0]
    assert [step.relative_gap <= tol for step, tol in zip(steps, (0.1, 1e-2, 1e-4, 1e-8), strict=True)] == [True] * 4


@pytest.mark.parametrize("make", [image, recording])
def test_a_start_where_nothing_is_seen_is_let_go(make, rng):
    """Below an atom that lies under the mask the objective knows the penalty alone."""
    y, D = make(rng, (40, 41)) if make is image else make(rng, 1500)
    mask = np.ones(y.shape, bool)
    mask[..., 10:30] = False
    z0 = np.zeros_like(emdl.analyze(y, D))
    z0[..., 12] = 3.0
    D, z0 = (D, z0) if make is image else (D[..., 10:25], np.zeros((1, 3, 1486)))
    z0[..., 12] = 3.0
    z = emdl.encode(y, D, 0.3, tol=1e-8, mask=mask, z0=z0)
    assert not z[..., 12].any()


def test_memory_beyond_signal_and_result_is_less_than_three_signals(rng):
    import tracemalloc

    y, D = recording(rng, 1_000_000)
    y, D = y.astype(np.float32), D.astype(np.float32)
    lmbd = 0.1 * emdl.lambda_max(y, D)
    emdl.encode(y, D, lmbd, tol=1e-3, positive=True, sparse=True)  # what is compiled or loaded does not count
    tracemalloc.start()
    codes = emdl.encode(y, D, lmbd, tol=1e-3, positive=True, sparse=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 1000 < codes.n_nonzero < 30_000
    assert peak - codes.index.nbytes - codes.value.nbytes < 3 * y.nbytes
