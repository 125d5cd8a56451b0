"""Nothing silently wrong: every public function, given every kind of odd or bad input (see docs/reliability.md)."""

import dataclasses

import numpy as np
import pytest
from laws import smooth_atoms
from oddities import BAD, ODD, assert_refused

import emdl
from emdl import em_fit, metrics, simulate, spikes
from emdl.codes import SparseCodes
from emdl.errors import ConvergenceWarning, FileFormatError, InputError
from emdl.optim import Optimizer
from emdl.rates import Prior

RNG = np.random.default_rng(0)
# quarters, so that float16 and the integers after a multiplication hold them exactly
D = np.round(4 * RNG.standard_normal((3, 2, 5))) / 4
Y = np.round(4 * RNG.standard_normal((2, 2, 21))) / 4
Z = np.round(4 * RNG.standard_normal((2, 3, 17))) / 4
LOOSE = {"tol": 1e-3}
FIT = {"max_iter": 2, "rng": 0, "learn_lmbd": False, "n_layers": 2}
TRACE = emdl.unroll(Y, D, 0.2, 0.02, 3)
MODEL = emdl.Model(D, 0.5, 1.0)

# function of one array, a good array, and what the parameter is called
ARRAYS = {
    "synthesize z": (lambda x: emdl.synthesize(x, D), Z, "z"),
    "synthesize D": (lambda x: emdl.synthesize(Z, x), D, "D"),
    "analyze r": (lambda x: emdl.analyze(x, D), Y, "r"),
    "analyze D": (lambda x: emdl.analyze(Y, x), D, "D"),
    "lipschitz D": (emdl.lipschitz, D, "D"),
    "objective y": (lambda x: emdl.objective(x, Z, D, 0.5), Y, "y"),
    "objective z": (lambda x: emdl.objective(Y, x, D, 0.5), Z, "z"),
    "encode y": (lambda x: emdl.encode(x, D, 0.5, **LOOSE), Y, "y"),
    "encode D": (lambda x: emdl.encode(Y, x, 0.5, **LOOSE), D, "D"),
    "encode z0": (lambda x: emdl.encode(Y, D, 0.5, z0=x, **LOOSE), Z, "z"),
    "encode lmbd": (lambda x: emdl.encode(Y, D, x, **LOOSE), np.abs(Z) + 0.5, "lmbd"),
    "lambda_max y": (lambda x: emdl.lambda_max(x, D), Y, "y"),
    "encode_path y": (lambda x: emdl.encode_path(x, D, n_lmbds=2, **LOOSE)[1][1].dense(), Y, "y"),
    "unroll y": (lambda x: emdl.unroll(x, D, 0.2, 0.02, 3).z, Y, "y"),
    "unroll D": (lambda x: emdl.unroll(Y, x, 0.2, 0.02, 3).z, D, "D"),
    "unroll analysis": (lambda x: emdl.unroll(Y, D, 0.2, 0.02, 3, analysis=x).z, D, "D"),
    "backward g_z": (lambda x: emdl.backward(TRACE, x).D, Z, "z"),
    "em_fit y": (lambda x: em_fit(x, 3, 5, D0=D, sigma=1.0, **FIT).model.D, Y, "y"),
    "em_fit target": (lambda x: em_fit(Y, 3, 5, D0=D, sigma=1.0, target=x, **FIT).model.D, Y, "target"),
    "em_fit D0": (lambda x: em_fit(Y, 3, 5, D0=x, sigma=1.0, **FIT).model.D, D, "D"),
    "em_fit validation": (
        lambda x: em_fit(Y, 3, 5, D0=D, sigma=1.0, validation=x, **FIT).history["validation"], Y, "validation",
    ),
    "Model D": (lambda x: emdl.Model(x, 0.5, 1.0).D, D, "D"),
    "Model.encode": (lambda x: MODEL.encode(x, **LOOSE), Y, "y"),
    "Model.reconstruct": (lambda x: MODEL.reconstruct(x, **LOOSE), Y, "y"),
    "psnr x": (lambda x: metrics.psnr(x, np.zeros_like(Y), peak=1.0), Y, "x"),
    "snr_db clean": (lambda x: metrics.snr_db(Y + 1, x), Y, "clean"),
    "atom_error D": (lambda x: metrics.atom_error(x, D + 0.25).errors, D, "D"),
}  # fmt: skip


OPTIONAL = {"encode z0", "unroll analysis", "em_fit target", "em_fit D0", "em_fit validation"}  # None is a value
SHAPELESS = {"psnr x", "snr_db clean"}  # shapes are compared, and 0-d is one


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("call", ARRAYS)
def test_a_bad_array_is_refused_by_name(call, kind):
    function, good, name = ARRAYS[call]
    make, error = BAD[kind]
    if (kind == "None" and call in OPTIONAL) or (kind == "0-d" and call == "encode lmbd"):
        pytest.skip("this is a value")
    with pytest.raises(error) as caught:
        function(make(good))
    said = str(caught.value)
    assert len(said) > 20, "an error without a sentence"
    if kind in ("NaN", "Inf", "-Inf"):
        assert said.startswith(f"{name} "), said
        last = str(tuple(s - 1 for s in good.shape))
        assert last in said or call == "encode lmbd", "the first index is not named"
    if call not in SHAPELESS and kind in ("empty", "five axes", "complex", "objects", "text", "masked"):
        assert name in said.split(), said


def values_of(result):
    return np.asarray(result)


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("call", ARRAYS)
def test_an_odd_array_gives_what_the_plain_one_gives_and_is_not_written(call, kind):
    function, good, _ = ARRAYS[call]
    make, dtype = ODD[kind]
    if call == "encode lmbd" and kind == "bool":
        pytest.skip("a rate of False is zero")
    odd = make(good)
    plain = np.ascontiguousarray(np.asarray(odd), dtype)
    before = plain.copy()
    found, wanted = values_of(function(odd)), values_of(function(plain))
    np.testing.assert_array_equal(found, wanted)
    assert found.dtype == wanted.dtype
    assert type(found) is np.ndarray
    np.testing.assert_array_equal(np.asarray(odd, dtype), before)


PARAMETERS = {
    "a stride of 0": (lambda: emdl.analyze(Y, D, stride=0), "stride is 0"),
    "half a stride": (lambda: emdl.analyze(Y, D, stride=1.5), "stride is 1.5"),
    "two strides": (lambda: emdl.synthesize(Z, D, stride=(1, 2)), "stride is (1, 2)"),
    "a stride that leaves samples": (lambda: emdl.encode(Y, D, 1.0, stride=3), "crop the signal to 20"),
    "no stride": (lambda: emdl.lipschitz(D, stride=None), "stride is None"),
    "a word for a stride": (lambda: emdl.lipschitz(D, stride="2"), "stride is '2'"),
    "a stride of True": (lambda: emdl.lipschitz(D, stride=True), "stride is True"),
    "atoms of other channels": (lambda: emdl.encode(Y, D[:, :1], 1.0), "D has 1 channels but y has 2"),
    "a short signal": (lambda: emdl.encode(Y[..., :4], D, 1.0), "4 samples long, shorter than an atom of 5"),
    "a rate of 0": (lambda: emdl.encode(Y, D, 0.0), "lmbd goes down to 0"),
    "a negative rate": (lambda: emdl.encode(Y, D, -1.0), "lmbd is -1.0"),
    "a rate of NaN": (lambda: emdl.encode(Y, D, np.nan), "lmbd is nan"),
    "too many rates": (lambda: emdl.encode(Y, D, [1.0, 2.0]), "lmbd has shape (2,)"),
    "a word for a rate": (lambda: emdl.encode(Y, D, "big"), "lmbd is 'big'"),
    "no rate": (lambda: emdl.encode(Y, D, None), "lmbd is None"),
    "a complex rate": (lambda: emdl.encode(Y, D, 1j), "lmbd is 1j"),
    "sigma of 0": (lambda: emdl.encode(Y, D, 1.0, 0.0), "sigma is 0.0"),
    "sigma of Inf": (lambda: emdl.objective(Y, Z, D, 1.0, np.inf), "sigma is inf"),
    "several sigmas": (lambda: emdl.lambda_max(Y, D, [1.0, 2.0]), "sigma is [1.0, 2.0]"),
    "a penalty out of range": (lambda: emdl.encode(Y, D, 1e-200, 1e-100), "lmbd sigma^2"),
    "a penalty beyond range": (lambda: emdl.encode(Y, D, 1e200, 1e100), "lmbd sigma^2"),
    "tol of 0": (lambda: emdl.encode(Y, D, 1.0, tol=0.0), "tol is 0.0"),
    "tol above 1": (lambda: emdl.encode(Y, D, 1.0, tol=2.0), "tol is 2.0"),
    "no sweeps": (lambda: emdl.encode(Y, D, 1.0, max_iter=0), "max_iter is 0"),
    "half a sweep": (lambda: emdl.encode(Y, D, 1.0, max_iter=2.5), "max_iter is 2.5"),
    "True sweeps": (lambda: emdl.encode(Y, D, 1.0, max_iter=True), "max_iter is True"),
    "codes of another shape": (lambda: emdl.objective(Y, Z[..., 1:], D, 1.0), "z makes signals of shape"),
    "codes of other atoms": (lambda: emdl.synthesize(Z[:, :2], D), "wanted (n, 3, *P)"),
    "a start of another shape": (lambda: emdl.encode(Y, D, 1.0, z0=Z[..., 1:]), "z0 has shape"),
    "a mask of another shape": (lambda: emdl.encode(Y, D, 1.0, mask=Y[..., 1:] > 0), "mask has shape"),
    "a mask of numbers": (lambda: emdl.encode(Y, D, 1.0, mask=Y), "entries 0 or 1"),
    "a negative step": (lambda: emdl.unroll(Y, D, 0.2, -0.1, 3), "step is -0.1"),
    "no layers": (lambda: emdl.unroll(Y, D, 0.2, 0.1, 0), "n_iter is 0"),
    "a negative threshold": (lambda: emdl.unroll(Y, D, -0.2, 0.1, 3), "is -0.2"),
    "layers beyond the trace": (lambda: emdl.backward(TRACE, Z, n_layers=4), "1 ... 3"),
    "no trace": (lambda: emdl.backward(None, Z), "trace is"),
    "an empty path": (lambda: emdl.encode_path(Y, D, lmbds=[]), "lmbds"),
    "a path down to 0": (lambda: emdl.encode_path(Y, D, smallest=0.0), "smallest is 0.0"),
    "atoms of no number": (lambda: em_fit(Y, "two", 5), "n_atoms is 'two'"),
    "half an atom": (lambda: em_fit(Y, 1.5, 5), "n_atoms is 1.5"),
    "negative atoms": (lambda: em_fit(Y, -1, 5), "n_atoms is -1"),
    "an atom of no length": (lambda: em_fit(Y, 2, 0), "atom_shape is 0"),
    "an atom of half a length": (lambda: em_fit(Y, 2, 5.5), "atom_shape is 5.5"),
    "an atom of no shape": (lambda: em_fit(Y, 2, None), "atom_shape is None"),
    "an atom longer than the signal": (lambda: em_fit(Y, 2, 22), "shorter than an atom of 22"),
    "no iterations": (lambda: em_fit(Y, 2, 5, max_iter=0), "max_iter is 0"),
    "a negative tolerance": (lambda: em_fit(Y, 2, 5, tol=-1.0), "tol is -1.0"),
    "a seed of no kind": (lambda: em_fit(Y, 2, 5, rng="seed"), "rng is 'seed'"),
    "a negative seed": (lambda: em_fit(Y, 2, 5, rng=-1), "rng is -1"),
    "a rule of no name": (lambda: em_fit(Y, 2, 5, lmbd_rule="aic"), "lmbd_rule is 'aic'"),
    "a prior of no kind": (lambda: em_fit(Y, 2, 5, prior=(1, 2)), "prior is (1, 2)"),
    "an optimizer of no kind": (lambda: em_fit(Y, 2, 5, m_step="decoder", optimizer="adam"), "optimizer is 'adam'"),
    "a callback that cannot be called": (lambda: em_fit(Y, 2, 5, callback=3), "callback is 3"),
    "a negative checkpoint interval": (lambda: em_fit(Y, 2, 5, checkpoint_every=-1), "checkpoint_every is -1"),
    "a prior of negative shape": (lambda: Prior(-1.0), "r is -1.0"),
    "an optimizer of rate NaN": (lambda: Optimizer(rate=np.nan), "rate"),
    "an optimizer without numbers": (lambda: Optimizer(rate="fast"), "rate"),
    "a model without noise": (lambda: emdl.Model(D, 1.0, 0.0), "sigma is 0.0"),
    "a model of NaN": (lambda: emdl.Model(D, np.nan, 1.0), "lmbd is nan"),
    "a peak of 0": (lambda: metrics.psnr(Y, Y, peak=0), "peak is 0"),
    "metrics of two shapes": (lambda: metrics.snr_db(Y, Y[1:]), "shape"),
    "dictionaries of two shapes": (lambda: metrics.atom_error(D, D[:, :1]), "channels"),
    "a density above 1": (lambda: simulate.convolutional(1, 50, D, density=2.0), "density"),
    "a recording of no length": (lambda: simulate.tetrode(-1.0, 2), "is -1.0"),
    "a rate of sampling of 0": (lambda: spikes.fit(np.arange(5000.0), 0.0), "fs is 0.0"),
    "negative units": (lambda: spikes.fit(Y[0], 20e3, n_units=-1), "n_units is -1"),
}


@pytest.mark.parametrize("case", PARAMETERS)
def test_a_parameter_that_makes_no_sense_is_refused_with_its_value(case):
    assert_refused(*PARAMETERS[case])


def test_numpy_scalars_are_numbers():
    one = emdl.encode(
        Y, D, np.float32(0.5), np.int64(1), tol=np.float64(1e-3), max_iter=np.int32(500), stride=np.int8(1)
    )
    np.testing.assert_array_equal(one, emdl.encode(Y, D, 0.5, 1, tol=1e-3, max_iter=500))


# What stands at an edge and works


@pytest.mark.parametrize("m_step", ["analytic", "unrolled", "implicit"])
def test_a_signal_exactly_one_atom_long_works(m_step):
    y = np.array([0.5, 2.0, -1.0, 0.25])
    assert emdl.encode(y, y[None, None] / np.linalg.norm(y), 0.1).shape == (1, 1, 1)
    result = em_fit(y, 1, 4, sigma=0.1, rng=0, max_iter=3, m_step=m_step, n_layers=3)
    if m_step == "analytic":
        np.testing.assert_allclose(abs(result.model.D.ravel() @ y), np.linalg.norm(y), rtol=1e-6)
    assert np.isfinite(result.model.D).all()
    assert emdl.unroll(y, y[None, None], 0.1, 0.1, 2).z.shape == (1, 1, 1)


def test_an_atom_of_one_sample_works():
    y = np.array([0.0, 3.0, 0.0, -2.0, 0.1])
    np.testing.assert_allclose(emdl.encode(y, np.ones((1, 1, 1)), 1.0)[0, 0], [0, 2, 0, -1, 0], atol=1e-3)
    assert abs(float(em_fit(y, 1, 1, sigma=0.1, rng=0, max_iter=2).model.D[0, 0, 0])) == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_signals_of_zeros_have_codes_of_zeros(dtype):
    y = np.zeros((2, 2, 21), dtype)
    with pytest.warns(UserWarning, match="y is zero everywhere, and so are its codes"):
        assert not emdl.encode(y, D, 0.5).any()
    assert not emdl.encode(np.full_like(y, 1e-9), D, 0.5).any()  # no warning
    assert not emdl.unroll(y, D, 0.2, 0.1, 3).z.any()
    assert emdl.lambda_max(y, D) == 0
    with pytest.raises(InputError, match="constant"):
        em_fit(y, 2, 5)
    with pytest.raises(InputError, match="lambda_max is 0"):
        emdl.encode_path(y, D)


def test_atoms_of_zeros_have_no_codes():
    dead = D.copy()
    dead[1] = 0
    z = emdl.encode(Y, dead, 0.5)
    assert not z[:, 1].any()
    assert z[:, 0].any()
    assert np.isfinite(emdl.unroll(Y, dead, 0.2, 0.02, 3).z).all()
    assert emdl.lipschitz(np.zeros((2, 1, 5))) == 0
    result = em_fit(Y, 3, 5, D0=dead, sigma=0.5, rng=0, max_iter=3)
    assert np.isfinite(result.model.D).all()
    assert "explains little" in result.message


@pytest.mark.parametrize("scale", [5e-324, 1e-310, 1e-300, 1e300])
def test_values_at_the_ends_of_the_range_are_refused(scale):
    y = scale * np.sign(Y)
    with pytest.raises(InputError, match="leaves the range of the numbers"):
        em_fit(y, 2, 5)
    with pytest.raises(InputError, match=r"lmbd sigma\^2 leaves the range"):
        emdl.encode(y, D, 0.5 / scale if scale > 1e-300 else 1e300, scale)


@pytest.mark.parametrize("scale", [1e-140, 1e-30, 1e30, 1e140])
def test_values_far_from_one_are_coded_as_any_other(scale):
    wanted = emdl.encode(Y, D, 0.5)
    np.testing.assert_allclose(
        emdl.encode(scale * Y, D, 0.5 / scale, scale), scale * wanted, rtol=1e-3, atol=1e-3 * scale
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_offset_that_drowns_the_signal_is_refused_and_a_small_one_is_not(dtype):
    rng = np.random.default_rng(1)
    y = rng.standard_normal((1, 2, 300))
    for offset in (1e6, 1e9, -1e6):
        with pytest.raises(InputError, match=r"channel 1 of y has mean .* subtract the mean"):
            em_fit((y + np.array([0, offset])[:, None]).astype(dtype), 1, 9, rng=0)
    assert np.isfinite(em_fit((y + 5).astype(dtype), 1, 9, rng=0, max_iter=2).model.D).all()


def test_the_smallest_int16_is_no_trap():
    y = np.array([[-32768, 0, 32767, 5, -32768, 100]], np.int16)
    wanted = emdl.analyze(y.astype(float), D[:, :1])
    np.testing.assert_array_equal(emdl.analyze(y, D[:, :1]), wanted)
    assert wanted.min() < -32768


def test_a_dead_channel_is_named():
    y = Y.copy()
    y[:, 1] = 7.0
    with pytest.raises(InputError, match="channel 1"):
        em_fit(y, 2, 5)


def test_more_atoms_than_samples_are_refused_and_more_than_events_are_reported():
    with pytest.raises(InputError, match="at least n_atoms = 40"):
        em_fit(np.arange(30.0) % 7, 40, 5)
    rng = np.random.default_rng(2)
    made = simulate.convolutional(2, 300, smooth_atoms(1, 1, 9, rng), density=0.01, snr_db=20, rng=rng)
    assert "n_atoms may be too large" in em_fit(made.y, 4, 9, rng=0, max_iter=10).message


# Numerics: what goes wrong is seen and said


@pytest.fixture(scope="module")
def simulated():
    rng = np.random.default_rng(3)
    return simulate.convolutional(4, 300, smooth_atoms(2, 2, 9, rng), density=0.02, snr_db=12, positive=True, rng=rng)


def test_a_step_that_is_too_long_is_refused_before_it_gives_numbers_that_are_none(simulated):
    for dtype in (np.float32, np.float64):
        with pytest.raises(InputError, match="layers diverged with step 1000"):
            emdl.unroll(simulated.y.astype(dtype), simulated.D, 0.1, 1e3, 400)


@pytest.mark.parametrize("m_step", ["decoder", "unrolled"])
def test_an_optimizer_that_jumps_over_the_minimum_is_reported_and_leaves_atoms(m_step, simulated):
    options = {"sigma": simulated.sigma, "learn_lmbd": False, "max_iter": 8, "n_layers": 5, "repair": False}
    result = em_fit(
        simulated.y, 2, 9, D0=simulated.D, m_step=m_step, optimizer=Optimizer("sgd", rate=1e6, momentum=0.0), **options
    )
    assert np.isfinite(result.model.D).all()
    np.testing.assert_allclose((result.model.D**2).sum(axis=(1, 2)), 1, rtol=1e-9)
    assert "objective rose" in result.message


def test_a_fit_that_goes_well_says_nothing_of_the_kind(simulated):
    assert "objective rose" not in em_fit(simulated.y, 2, 9, positive=True, rng=0).message


def test_a_collapse_of_the_rates_is_reported(simulated):
    result = em_fit(simulated.y, 2, 9, rng=0, lmbd_rule="paper", prior=Prior(1.0, 0.0), max_iter=30, lmbd0=500.0)
    assert "collapsed" in result.message
    assert np.isfinite(result.model.D).all()
    assert np.isfinite(result.model.lmbd).all()


def test_a_certificate_that_is_not_reached_warns():
    with pytest.warns(ConvergenceWarning, match="relative gap"):
        emdl.encode(Y, D, 0.01, tol=1e-10, max_iter=1)


def test_sparse_codes_that_are_none_are_refused():
    """Kernels take indices without looking."""
    good = emdl.encode(Y, D, 0.5, sparse=True)
    for change in (
        {"index": good.index + 10**6},
        {"index": -good.index - 1},
        {"start": good.start + 1},
        {"start": np.array([0, 2**40, good.n_nonzero])},
        {"value": good.value[:-1]},
    ):
        bad = dataclasses.replace(good, **change)
        with pytest.raises(InputError, match="z0"):
            emdl.encode(Y, D, 0.5, z0=bad)
    assert isinstance(good, SparseCodes)


def test_a_file_that_is_missing_a_folder_or_empty_is_said_to_be_one(tmp_path):
    (tmp_path / "empty.h5").touch()
    for name in ("none.h5", "", "empty.h5"):
        for load in (emdl.load, spikes.load):
            with pytest.raises(FileFormatError):
                load(tmp_path / name)
