"""Signals in parts: nothing is counted twice or left out, and no bit depends on who works on which part."""

import itertools
import threading

import numpy as np
import pytest
from laws import smooth_atoms
from test_checkpoint import assert_same

from emdl import em_fit, mstep, parts, simulate, sources
from emdl.encoder import solve
from emdl.errors import FileFormatError, InputError
from emdl.metrics import atom_error
from emdl.mstep import M_STEPS
from emdl.ops import correlate_codes, correlate_signals, synthesize_full
from emdl.rates.risk import measure, measure_part

SHAPE = (13,)
LONG = {"positive": True, "rng": 0, "max_iter": 6, "learn_sigma": True, "tol": 1e-9}


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of ten thousand values."""
    monkeypatch.setattr(parts, "WHOLE", 20_000)
    monkeypatch.setattr(parts, "_PART", 10_000)


@pytest.fixture(scope="module")
def long_signal():
    """One signal of two channels, which becomes eight parts."""
    rng = np.random.default_rng(3)
    return simulate.convolutional(
        1, 40_003, smooth_atoms(2, 2, *SHAPE, rng), density=0.004, snr_db=12, positive=True, rng=rng
    )


@pytest.fixture(scope="module")
def many_signals():
    """Signals that become five parts of one to three signals."""
    rng = np.random.default_rng(4)
    return simulate.convolutional(
        11, 2_001, smooth_atoms(2, 2, *SHAPE, rng), density=0.004, snr_db=12, positive=True, rng=rng
    )


def fitted(y, **options):
    return em_fit(y, 2, SHAPE, **LONG | options)


@pytest.mark.parametrize(
    ("shape", "atom_shape", "stride", "count"),
    [
        ((1, 2, 40_003), (13,), (1,), 9),
        ((1, 2, 40_003), (12,), (7,), 9),
        ((3, 1, 25_000), (9,), (2,), 9),
        ((11, 2, 2_001), (13,), (1,), 5),
        ((2, 1, 900, 30), (4, 3), (2, 1), 4),
        ((1, 1, 26_000), (260,), (1,), 1),
        ((1, 1, 19_999), (13,), (1,), 1),
    ],
)
@pytest.mark.usefixtures("small_parts")
def test_every_sample_and_every_code_position_is_counted_once(shape, atom_shape, stride, count):
    cuts = parts.cut(shape, atom_shape, stride)
    assert len(cuts) == count
    assert [c.number for c in cuts] == list(range(count))
    S, s, t = shape[2], atom_shape[0], stride[0]
    samples = np.zeros((shape[0], S), int)
    positions = np.zeros((shape[0], (S - s) // t + 1), int)
    for c in cuts:
        rows = slice(*c.rows)
        if c.own is None:
            samples[rows] += 1
            positions[rows] += 1
            continue
        low, high = c.read
        assert 0 <= low < high <= S
        assert low % t == 0 == (high - low - s) % t
        samples[rows, low + c.samples[0] : low + c.samples[1]] += 1
        positions[rows, low // t + c.own[0] : low // t + c.own[1]] += 1
        assert low // t + c.own[1] - 1 <= (high - s) // t
    assert (samples == 1).all()
    assert (positions == 1).all()


def as_parts(y, shape, stride=(1,), positive=True):
    cuts = parts.cut(y.shape, shape, stride)
    assert len(cuts) > 2
    job = parts.Job(y, None, cuts, shape, stride, positive, y.dtype)
    return parts.Parts(y.shape, job, parts.Threads(job))


@pytest.mark.usefixtures("small_parts")
def test_sums_over_parts_are_those_of_the_whole_signal(long_signal):
    """Codes to 1e-9; what the margins leave at the borders is as small."""
    y, D = long_signal.y, long_signal.D
    penalty = np.full(2, 3.0 * long_signal.sigma)
    codes = solve(y, D, penalty, (1,), tol=1e-9, positive=True).codes
    data = as_parts(y, SHAPE)
    chain = data.encode(None, D, penalty, 1e-9)
    got, want = data.sum(measure_part, chain, D), measure(y, D, codes, (1,))
    assert (got.n_samples, got.n_positions, got.n_nonzero) == (want.n_samples, want.n_positions, want.n_nonzero)
    np.testing.assert_allclose(got.energy, want.energy, rtol=1e-7)
    np.testing.assert_allclose(got.l1, want.l1, rtol=1e-6)
    phi, psi = data.sum(mstep.statistics, chain, D)
    np.testing.assert_allclose(phi, correlate_codes(codes, SHAPE, (1,)), atol=1e-6 * phi.max())
    np.testing.assert_allclose(psi, correlate_signals(codes, y, SHAPE, (1,)), atol=1e-6 * abs(psi).max())
    np.testing.assert_allclose(phi, phi.transpose(1, 0, 2)[..., ::-1], rtol=0, atol=1e-9 * phi.max())


@pytest.mark.parametrize("m_step", [m for m in M_STEPS if m != "analytic"])
def test_one_gradient_step_on_parts_is_that_on_the_whole_signal(m_step, long_signal, small_parts, monkeypatch):
    noise = np.random.default_rng(0).standard_normal(long_signal.D.shape)
    options = {
        "m_step": m_step, "n_layers": 4, "max_iter": 1, "D0": long_signal.D + 0.1 * noise, "learn_lmbd": False,
        "batch_size": 99, "sigma": long_signal.sigma,
    }  # fmt: skip
    got = fitted(long_signal.y, **options).model.D
    monkeypatch.setattr(parts, "WHOLE", 1 << 22)
    want = fitted(long_signal.y, **options).model.D
    tolerance = 1e-3 if m_step == "implicit" else 1e-12  # a linear system, solved to 1e-3
    np.testing.assert_allclose(got, want, atol=tolerance)


@pytest.mark.usefixtures("small_parts")
def test_atoms_are_found_in_parts_as_in_the_whole(long_signal, many_signals):
    for made in (long_signal, many_signals):
        result = fitted(made.y, max_iter=20)
        assert atom_error(result.model.D, made.D).errors.max() < 0.1
        assert result.model.sigma == pytest.approx(made.sigma, rel=0.03)


@pytest.mark.usefixtures("small_parts")
def test_a_picture_is_cut_into_strips(rng):
    made = simulate.convolutional(
        1, (900, 41), rng.standard_normal((2, 1, 4, 3)), density=0.01, snr_db=15, positive=False, rng=rng
    )
    assert len(parts.cut(made.y.shape, (4, 3), (1, 1))) > 1
    found = em_fit(made.y, 2, (4, 3), D0=made.D + 0.1 * rng.standard_normal(made.D.shape), rng=0, max_iter=8)
    assert atom_error(found.model.D, made.D).errors.max() < 0.05


def test_the_order_in_which_parts_come_together_changes_no_bit(rng):
    values = rng.standard_normal((13, 3)) * 10.0 ** rng.integers(-8, 8, (13, 3))
    leaves = [parts.leaf(i, 13, (v, [i])) for i, v in enumerate(values)]
    want = parts.total(leaves)
    assert want[1] == list(range(13))
    assert not np.array_equal(want[0], np.add.reduce(values[::-1])), "any order would give these bits"
    for _ in range(20):
        owner = rng.integers(0, 4, 13)
        nodes = [parts.joined(n for n, o in zip(leaves, owner, strict=True) if o == who) for who in range(4)]
        rng.shuffle(nodes)
        np.testing.assert_array_equal(parts.total(itertools.chain(*nodes))[0], want[0])


@pytest.mark.parametrize("options", [{}, {"m_step": "unrolled", "n_layers": 4}, {"batch_size": 2}], ids=str)
@pytest.mark.parametrize("name", ["long_signal", "many_signals"])
@pytest.mark.usefixtures("small_parts")
def test_bits_do_not_depend_on_the_threads(name, options, request, monkeypatch):
    y, found = request.getfixturevalue(name).y, []
    for threads in "12":
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        found.append(fitted(y, max_iter=3, **options))
    assert_same(*found)


@pytest.mark.usefixtures("small_parts")
def test_float32_stays_float32_and_targets_and_units_are_parts_too(many_signals):
    clean = (many_signals.clean * 2.0**20).astype(np.float32)
    result = fitted((many_signals.y * 2.0**20).astype(np.float32), target=clean, max_iter=3)
    assert result.model.D.dtype == np.float32
    want = fitted(many_signals.y, target=many_signals.clean, max_iter=3)
    assert atom_error(result.model.D, want.model.D).errors.max() < 0.01
    assert result.model.sigma == pytest.approx(2.0**20 * want.model.sigma, rel=0.01)


@pytest.mark.parametrize("folder", ["kept", "lost"])
@pytest.mark.parametrize("options", [{}, {"m_step": "decoder", "n_layers": 4}], ids=str)
@pytest.mark.usefixtures("small_parts")
def test_a_fit_in_parts_that_was_interrupted_ends_with_the_same_bits(folder, options, long_signal, tmp_path):
    path, want = tmp_path / "fit.h5", fitted(long_signal.y, **options)

    def interrupt(progress):
        if progress.iteration == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(long_signal.y, checkpoint=path, checkpoint_every=0, callback=interrupt, **options)
    files = sorted((tmp_path / "fit.h5.codes").iterdir())
    assert len(files) == len(parts.cut(long_signal.y.shape, SHAPE, (1,)))
    for file in files if folder == "lost" else files[:2]:
        file.write_bytes(file.read_bytes()[:100])
    assert_same(fitted(long_signal.y, checkpoint=path, resume=True, **options), want)
    with pytest.raises(InputError, match="y was"):
        fitted(long_signal.y + 1e-9, checkpoint=path, resume=True, **options)


@pytest.mark.usefixtures("small_parts")
def test_lost_codes_are_made_again_to_the_same_bits(long_signal):
    y, D = long_signal.y, long_signal.D
    data, other = as_parts(y, SHAPE), as_parts(y, SHAPE)
    chain, penalty = None, np.full(2, 3.0 * long_signal.sigma)
    for factor in (2.0, 1.4, 1.0):
        chain = data.encode(chain, D, factor * penalty, 1e-2)
        want = data.sum(mstep.statistics, chain, D)
    order = parts.Order(mstep.statistics, (D,), chain.tail(1))
    with pytest.raises(parts.MissingCodesError, match="part 0"):
        other.engine.bench.run(order, [0])
    np.testing.assert_array_equal(other.sum(mstep.statistics, chain, D)[0], want[0])
    at_once = data.sum(mstep.statistics, data.encode(None, D, penalty, 1e-2), D)
    assert not np.array_equal(at_once[0], want[0]), "the way to the codes shows in no bit, so this test shows nothing"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda y: np.where(np.arange(y.shape[-1]) == 31_007, np.nan, y), "not finite"),
        (lambda y: np.full_like(y, 2.0), "constant"),
        (lambda y: y + 1e6, "channel 0 of y has mean"),
        (lambda y: y * 1e200, "leaves the range"),
    ],
    ids=["nan", "constant", "offset", "range"],
)
@pytest.mark.usefixtures("small_parts")
def test_what_cannot_be_fitted_in_parts_is_refused_in_words(change, words, long_signal):
    with pytest.raises(InputError, match=words):
        fitted(change(long_signal.y))


def synthetic(path, rng):
    array = np.lib.format.open_memmap(path, "w+", np.int16, (3, 5000))
    array[:] = rng.integers(-99, 99, array.shape)
    array.flush()
    return np.load(path, mmap_mode="r")


def reopened(value):
    pytest.importorskip("cloudpickle", reason="needs pip install 'emdl[dask]'")
    packed = sources.pack(value)
    assert len(packed) < 4000, "the numbers travelled"
    return sources.unpack(packed)


@pytest.mark.parametrize(
    "view", [lambda a: a, lambda a: a[1:, 7:-3:2], lambda a: a.T, lambda a: np.asarray(a)[::-1]], ids=range(4)
)
def test_a_memory_map_travels_as_a_place_in_a_file(view, tmp_path, rng, monkeypatch):
    monkeypatch.setattr(sources, "_SMALL", 0)
    array = view(synthetic(tmp_path / "a.npy", rng))
    again = reopened({"inside": [lambda: array]})["inside"][0]()
    np.testing.assert_array_equal(again, array)
    assert again.dtype == array.dtype


def test_a_data_set_of_hdf5_travels_as_its_name(tmp_path, rng):
    import h5py

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["probe/raw"] = rng.standard_normal((2, 300))
    with h5py.File(tmp_path / "a.h5", "r") as file:
        again = reopened(file["probe/raw"])
        np.testing.assert_array_equal(again[:], file["probe/raw"][:])
        again.file.close()


def test_a_file_that_cannot_be_seen_or_is_another_is_named(tmp_path, rng):
    pytest.importorskip("cloudpickle", reason="needs pip install 'emdl[dask]'")
    packed = sources.pack(synthetic(tmp_path / "a.npy", rng))
    (tmp_path / "a.npy").write_bytes(b"short")
    with pytest.raises(FileFormatError, match=r"a\.npy has 5 bytes on"):
        sources.unpack(packed)
    (tmp_path / "a.npy").unlink()
    with pytest.raises(FileFormatError, match=r"cannot read .*a\.npy \(No such file or directory\); put the file"):
        sources.unpack(packed)


def test_what_is_in_memory_only_does_not_travel(monkeypatch):
    pytest.importorskip("cloudpickle", reason="needs pip install 'emdl[dask]'")
    monkeypatch.setattr(sources, "LARGEST", 1 << 20)
    with pytest.raises(InputError, match=r"2 MB of y are in the memory .* mmap_mode='r'"):
        sources.pack(np.zeros(1 << 18))
    with pytest.raises(InputError, match="cannot be opened by another process"):
        sources.pack(threading.Lock())


def test_the_margins_are_wide_enough_for_the_residual(long_signal, small_parts):
    """What a part leaves of its own samples is what the whole signal leaves, sample by sample."""
    y, D, penalty = long_signal.y, long_signal.D, np.full(2, 3.0 * long_signal.sigma)
    codes = solve(y, D, penalty, (1,), tol=1e-10, positive=True).codes
    want = y - synthesize_full(codes, D, (1,))
    data = as_parts(y, SHAPE)
    left = data.sum(_residuals, data.encode(None, D, penalty, 1e-10), D)
    np.testing.assert_allclose(np.concatenate(left, axis=2), want, atol=1e-3 * long_signal.sigma)


def _residuals(part, D):
    return [part.own_samples(part.y - synthesize_full(part.codes, D, part.stride))]
