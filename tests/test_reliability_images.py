"""Nothing silently wrong with images: every function of an image, given every kind of odd or bad one."""

import numpy as np
import pytest
from oddities import BAD, ODD, assert_refused

from emdl import images
from emdl.errors import EmdlError, InputError, InputTypeError
from emdl.images import gabor, learn, network, restore, shifts, training

RNG = np.random.default_rng(0)
# quarters, so that float16 and the integers after a multiplication hold them exactly
GREY = np.round(20 + 4 * RNG.standard_normal((40, 48))) / 4
COLOUR = np.round(20 + 4 * RNG.standard_normal((3, 40, 48))) / 4
PLANES = GREY[None, None]
PHOTOS = np.round(40 * np.abs(RNG.standard_normal((1, 1, 40, 40))))
FIT = {"n_atoms": 8, "atom_shape": (4, 4), "max_iter": 1, "rng": 0}
TRAIN = {"n_atoms": 32, "n_layers": 1, "steps": 1, "batch": 1, "crop": 30}
NET = training.start_network(32, 1, rng=0)
PATCHES = learn.fit(PLANES, 0.5, **FIT)
SHIFTED = shifts.ShiftedEncoder(RNG.standard_normal((4, 1, 4, 4)), 1.0, 2, 2)

# function of one array, a good array, and what the parameter is called
ARRAYS = {
    "denoise image": (lambda x: images.denoise(x, NET, 0.5), GREY, "image"),
    "denoise colour": (lambda x: images.denoise(x, NET, 0.5, channel_axis=0), COLOUR, "image"),
    "denoise, estimated": (lambda x: images.denoise(x, NET), GREY, "image"),
    "estimate_sigma image": (images.estimate_sigma, GREY, "image"),
    "fit planes": (lambda x: images.fit(x, 0.5, **FIT).D, GREY[None], "planes"),
    "Network.denoise": (lambda x: NET.denoise(x, 0.5), PLANES, "planes"),
    "PatchModel.denoise": (lambda x: PATCHES.denoise(x, 0.5), PLANES, "planes"),
    "ShiftedEncoder.denoise": (lambda x: SHIFTED.denoise(x, 0.5), PLANES, "planes"),
    "train photographs": (lambda x: training.train(x, **TRAIN).tau, PHOTOS, "photographs"),
    "train validation": (lambda x: training.train(PHOTOS, **TRAIN, validation=x).tau, PHOTOS, "validation"),
    "fit_gabors D": (lambda x: [gabor.fit_gabors(x, n_starts=1)[0].share], PHOTOS[..., :5, :5], "D"),
}
VALUES = {("train validation", "None"), ("train validation", "no signals")}  # these mean: no validation
IN_UNITS_OF_THE_LARGEST = {"denoise image", "denoise colour", "denoise, estimated", "estimate_sigma image"}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("call", ARRAYS)
def test_a_bad_image_is_refused_by_name(call, kind):
    function, good, name = ARRAYS[call]
    if (call, kind) in VALUES:
        pytest.skip("this is a value")
    make, error = BAD[kind]
    with pytest.raises(EmdlError if kind == "0-d" else error) as caught:
        function(make(good))
    said = str(caught.value)
    assert len(said) > 20, "an error without a sentence"
    if not (call == "train photographs" and kind in ("empty", "no signals", "five axes")):
        assert said.startswith(name), said
    if kind in ("NaN", "Inf", "-Inf"):
        assert f"{good.shape[-2] - 1}, {good.shape[-1] - 1})" in said or "row 39, column 47" in said, said


@pytest.mark.filterwarnings("ignore:.* of the image is clipped")
@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("call", ARRAYS)
def test_an_odd_image_gives_what_the_plain_one_gives_and_is_not_written(call, kind):
    function, good, _ = ARRAYS[call]
    make, dtype = ODD[kind]
    if call in IN_UNITS_OF_THE_LARGEST and kind in ("int16", "uint8"):
        pytest.skip("integers are taken in units of the largest, see below")
    odd = make(good)
    plain = np.ascontiguousarray(np.asarray(odd), dtype)
    before = plain.copy()
    found, wanted = np.asarray(function(odd)), np.asarray(function(plain))
    np.testing.assert_array_equal(found, wanted)
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(np.asarray(odd, dtype), before)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.uint32, np.int64])
def test_integers_are_taken_in_units_of_the_largest(dtype):
    top = np.iinfo(dtype).max
    image = np.round(top * (0.5 + 0.1 * np.random.default_rng(1).standard_normal((60, 60)))).astype(dtype)
    assert images.estimate_sigma(image) == pytest.approx(0.1, rel=0.1)
    np.testing.assert_allclose(images.denoise(image, NET), images.denoise(image / top, NET), atol=1e-6)


# Scale and level


@pytest.fixture(scope="module")
def stripes():
    y, x = np.mgrid[:60, :64] / 12
    clean = 100 + 40 * np.sign(np.sin(x) * np.cos(y))
    return clean + 10 * np.random.default_rng(2).standard_normal(clean.shape)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_an_image_of_any_scale_is_denoised_as_any_other(scale, dtype, stripes):
    wanted, noise = images.denoise(stripes, NET), images.estimate_sigma(stripes)
    image = (scale * stripes).astype(dtype)
    assert images.estimate_sigma(image) / scale == pytest.approx(noise, rel=1e-5)
    found = images.denoise(image, NET)
    assert found.dtype == dtype
    np.testing.assert_allclose(found.astype(float) / scale, wanted, rtol=1e-5)
    model = images.fit(image[None], **FIT)
    np.testing.assert_allclose(model.D, images.fit(stripes[None], **FIT).D, atol=1e-3)


@pytest.mark.parametrize("scale", [5e-324, 1e-310, 1e-200, 1e200])
def test_values_at_the_ends_of_the_range_are_refused(scale):
    image = scale * np.round(9 * np.abs(RNG.standard_normal((30, 30))))
    for function in (images.denoise, images.estimate_sigma, lambda x: images.fit(x[None], 1.0, **FIT)):
        with pytest.raises(InputError, match=r"(image|planes\[0\]) (holds|spans) .* give it in another unit"):
            function(image)


@pytest.mark.parametrize("level", [-1e9, 1e6, 1e9])
def test_a_level_far_from_zero_is_taken_out_first(level, stripes):
    found = images.denoise(stripes + level, NET) - level
    np.testing.assert_allclose(found, images.denoise(stripes, NET), atol=1e-3)
    assert images.estimate_sigma(stripes + level) == pytest.approx(images.estimate_sigma(stripes), rel=1e-3)


def test_a_level_that_drowned_the_image_in_rounding_is_refused(stripes):
    for function in (images.denoise, images.estimate_sigma, lambda x: images.fit(x[None], 10.0, **FIT)):
        with pytest.raises(InputError, match=r"float32 holds numbers 64 apart; subtract the mean"):
            function((stripes + 1e9).astype(np.float32))


# What stands at an edge


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_a_constant_image_comes_back_and_teaches_nothing(value):
    image = np.full((40, 44), value)
    assert images.estimate_sigma(image) == 0
    np.testing.assert_array_equal(images.denoise(image, NET), image)
    with pytest.raises(InputError, match="planes shows no noise; give sigma"):
        images.fit(image[None], **FIT)
    assert np.isfinite(images.fit(image[None], 1.0, **FIT).D).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (3, 2)])
def test_an_image_smaller_than_an_atom_works(shape):
    image = np.random.default_rng(3).random(shape)
    assert images.denoise(image, NET, 0.1).shape == shape
    assert images.fit(image[None], 0.1, **FIT).denoise(image[None, None], 0.1).shape == (1, 1, *shape)
    with pytest.raises(InputError, match="no photograph has 30 by 30"):
        training.train([image[None]], **TRAIN)


def test_the_smallest_int16_is_no_trap(stripes):
    image = np.where(stripes > 150, -32768, stripes).astype(np.int16)
    np.testing.assert_allclose(
        images.denoise(image, NET, 0.01), images.denoise(image / np.float64(32767), NET, 0.01), atol=1e-6
    )


def test_a_saturated_image_is_told(stripes):
    with pytest.warns(UserWarning, match="of the image is clipped"):
        images.denoise(np.clip(stripes, 60, 140), NET)


def test_more_atoms_than_patches_are_refused():
    with pytest.raises(InputError, match="n_atoms is 5000, more than the 81 patches"):
        images.fit(GREY[None, :6, :6], 1.0, n_atoms=5000, atom_shape=(4, 4), rng=0)


def test_what_is_not_one_image_but_several_is_not_taken_for_channels():
    with pytest.raises(InputError, match=r"planes\[0\] has shape \(2, 3, 20, 20\)"):
        images.fit(RNG.random((1, 2, 3, 20, 20)), 1.0, **FIT)


# Parameters that are no plain numbers; test_parameters.py has those

PARAMETERS = {
    "a model of no kind": (lambda: images.denoise(GREY, 3), "model is a int"),
    "a folder for a model": (lambda: images.denoise(GREY, "/"), "/ is a folder"),
    "a model of other channels": (lambda: images.denoise(GREY, network.bundled(3)), "3 channels"),
    "an axis beyond": (lambda: images.denoise(COLOUR, NET, channel_axis=3), "channel_axis is 3"),
    "an axis by name": (lambda: images.estimate_sigma(COLOUR, channel_axis="last"), "channel_axis is 'last'"),
    "a colour image taken for grey": (lambda: images.denoise(COLOUR, NET), "channel_axis=-1"),
    "patches of one axis": (lambda: images.fit(GREY[None], 1.0, atom_shape=(4,)), "atom_shape is (4,)"),
    "a patch of no shape": (lambda: images.fit(GREY[None], 1.0, atom_shape="44"), "atom_shape is '44'"),
    "a callback that is none": (lambda: images.fit(GREY[None], 1.0, callback=3), "callback is 3"),
    "a training of no length": (lambda: training.train(PHOTOS), "seconds or steps"),
    "a training backwards": (lambda: training.train(PHOTOS, seconds=-1), "seconds is -1"),
    "a training of NaN": (lambda: training.train(PHOTOS, seconds=np.nan), "seconds is nan"),
    "no steps": (lambda: training.train(PHOTOS, steps=0), "steps is 0"),
    "a crop of half a pixel": (lambda: training.train(PHOTOS, steps=1, crop=30.5), "crop is 30.5"),
    "a crop that does not fit": (lambda: training.train(PHOTOS, steps=1, crop=31), "a crop of 31 does not fit"),
    "a crop beyond all": (lambda: training.train(PHOTOS, steps=1), "no photograph has 78 by 78 pixels"),
    "a stride of 0": (lambda: training.train(PHOTOS, steps=1, stride=0), "stride is 0"),
    "a rate of NaN": (lambda: training.train(PHOTOS, **TRAIN, rate=np.nan), "rate is nan"),
    "a negative rate": (lambda: training.train(PHOTOS, **TRAIN, rate=-1), "rate is -1"),
    "three noise levels": (lambda: training.train(PHOTOS, **TRAIN, sigma=(1, 2, 3)), "sigma is (1, 2, 3)"),
    "levels the wrong way": (lambda: training.train(PHOTOS, **TRAIN, sigma=(9, 5)), "sigma is 5"),
    "a tie of no kind": (lambda: training.train(PHOTOS, **TRAIN, tied=True), "tied is True"),
    "a network of no kind": (lambda: training.train(PHOTOS, **TRAIN, network=GREY), "network is a ndarray"),
    "a pause that is none": (lambda: training.train(PHOTOS, **TRAIN, pause=1), "pause is 1"),
    "photographs of two kinds": (
        lambda: training.train([PHOTOS[0], np.repeat(PHOTOS[0], 3, axis=0)], **TRAIN), "[1, 3] channels",
    ),
    "33 atoms": (lambda: training.train(PHOTOS, **TRAIN | {"n_atoms": 33}), "multiple of 32"),
}  # fmt: skip


@pytest.mark.parametrize("case", PARAMETERS)
def test_a_parameter_that_makes_no_sense_is_refused_with_its_value(case):
    assert_refused(*PARAMETERS[case])


def test_a_patch_model_stays_on_the_host(stand_in):
    image = stand_in.asarray(GREY)
    with pytest.raises(InputError, match="runs on the CPU only"):
        images.denoise(image, PATCHES, 0.5)
    with pytest.raises(InputTypeError, match="model is a int"):
        restore.as_model(3, xp=stand_in)
