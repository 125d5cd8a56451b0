"""`emdl.images.denoise`: what comes back, noise levels, colours, tiles, and scikit-image's tools."""

import functools
import tracemalloc

import numpy as np
import pytest
import skimage.restoration
import skimage.util

from emdl import images
from emdl._kernels import means
from emdl.errors import FileFormatError, InputError, InputTypeError
from emdl.images import alike, colour, network, noise, restore, training


@pytest.fixture(scope="module")
def model():
    """A small network, as training starts from."""
    return training.start_network(64, 2, rng=0)


def scene(shape, rng=None, sigma=0.0):
    """Return blobs with edges between 0.3 and 0.7, with white noise."""
    y, x = np.mgrid[: shape[0], : shape[1]] / 25
    clean = 0.5 + 0.2 * np.sign(np.sin(x + 0.6 * y) * np.cos(y - 0.3 * x))
    if len(shape) == 3:
        clean = clean[..., None] * np.linspace(0.8, 1.1, shape[2])
    return clean if rng is None else clean + sigma * rng.standard_normal(shape)


def rms(a):
    return float(np.sqrt(np.mean(np.square(a))))


# What comes back


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float32", "float32"), ("float64", "float64"), ("float16", "float32"), ("uint8", "float64"),
     ("uint16", "float64"), ("int16", "float64"), ("bool", "float64")],
)  # fmt: skip
def test_numbers_follow_the_rules_of_scikit_image(rng, model, dtype, expected):
    image = scene((40, 50), rng, 0.1)
    image = image > 0.5 if dtype == "bool" else image if "f" in dtype else image * np.iinfo(dtype).max
    image = image.astype(dtype)
    kept = image.copy()
    clean = images.denoise(image, model, 0.1)
    assert clean.dtype == expected
    assert clean.shape == image.shape
    np.testing.assert_array_equal(image, kept)
    same = images.denoise(image, model, 0)
    with np.errstate(under="ignore"):  # rtol times the smallest numbers of float16
        np.testing.assert_allclose(same, skimage.util.img_as_float(image), rtol=1e-6)
    assert rms(clean - same) > 0.02


def test_the_unit_does_not_matter(rng, model):
    image = scene((60, 70), rng, 0.1)
    clean = images.denoise(image, model)
    np.testing.assert_allclose(images.denoise(1000 * image - 7, model), 1000 * clean - 7, atol=0.02)
    deep = np.round(60000 * image.clip(0, 1)).astype(np.uint16)
    np.testing.assert_allclose(images.denoise(deep, model, 0.1), images.denoise(deep / 65535, model, 0.1), atol=1e-5)


def test_channels_may_stand_on_any_axis(rng, model):
    image = scene((40, 50, 3), rng, 0.1)
    clean = images.denoise(image, model, 0.1, channel_axis=-1)
    for axis in (0, 1, -3):
        moved = np.moveaxis(image, -1, axis)
        np.testing.assert_array_equal(
            np.moveaxis(images.denoise(moved, model, 0.1, channel_axis=axis), axis, -1), clean
        )
    one = images.denoise(image[..., :1], model, 0.1, channel_axis=2)
    np.testing.assert_array_equal(one[..., 0], images.denoise(image[..., 0], model, 0.1))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (9, 1), (29, 31)])
def test_any_size_will_do(rng, model, shape):
    assert images.denoise(rng.standard_normal(shape), model).shape == shape
    assert np.isfinite(images.denoise(rng.standard_normal((*shape, 3)), model, channel_axis=-1)).all()


def test_a_constant_image_comes_back_as_it_is(model):
    for image in (np.full((50, 60), 0.3), np.zeros((3, 4)), np.full((70, 70), 200, np.uint8)):
        np.testing.assert_array_equal(images.denoise(image, model), skimage.util.img_as_float(image))
    assert images.estimate_sigma(np.full((80, 90), 7.0)) == 0


def test_the_file_of_a_network_will_do(rng, model, tmp_path):
    model.save(tmp_path / "net.h5")
    image = scene((40, 40), rng, 0.1)
    np.testing.assert_array_equal(images.denoise(image, tmp_path / "net.h5"), images.denoise(image, model))


def test_the_bundled_network_takes_the_noise_out(rng):
    image = scene((96, 96), rng, 0.1)
    assert rms(images.denoise(image) - scene((96, 96))) < 0.3 * 0.1
    image = scene((96, 96, 3), rng, 0.1)
    assert rms(images.denoise(image, channel_axis=-1) - scene((96, 96, 3))) < 0.25 * 0.1


# Colours


def test_colours_are_denoised_together(rng, model):
    """What the channels share is found from all of them: less error than channel by channel."""
    clean = scene((90, 100, 3))
    noisy = clean + 0.1 * rng.standard_normal(clean.shape)
    together = images.denoise(noisy, model, 0.1, channel_axis=-1)
    apart = np.stack([images.denoise(noisy[..., c], model, 0.1) for c in range(3)], axis=-1)
    assert rms(together - clean) < 0.9 * rms(apart - clean)


def test_the_directions_of_colour_are_orthonormal_and_find_what_is_shared(rng):
    shared = rng.standard_normal(5000)
    samples = np.outer([2.0, 1.0, 2.0], shared) + 0.1 * rng.standard_normal((3, 5000))
    basis = colour.principal(samples)
    np.testing.assert_allclose(basis @ basis.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(basis[0], np.array([2, 1, 2]) / 3, atol=0.01)


def test_a_network_for_three_channels_gets_all_of_them(rng):
    model = training.start_network(64, 1, 3, rng=0)
    image = scene((40, 44, 3), rng, 0.1)
    clean = images.denoise(image, model, 0.1, channel_axis=-1)
    direct = model.denoise(np.moveaxis(image, -1, 0)[None].astype(np.float32), 0.1)[0]
    np.testing.assert_allclose(np.moveaxis(clean, -1, 0), direct, atol=1e-6)
    with pytest.raises(InputError, match="3 channels and the image has 1"):
        images.denoise(image[..., 0], model)


# The noise level


@pytest.mark.parametrize("sigma", [2.0, 10.0, 50.0])
@pytest.mark.parametrize("shape", [(40, 40), (120, 90), (700, 500)])
def test_white_noise_is_measured(rng, sigma, shape):
    found = images.estimate_sigma(sigma * rng.standard_normal(shape))
    assert found == pytest.approx(sigma, rel=0.15 if shape == (40, 40) else 0.04)


def test_texture_is_not_taken_for_noise(rng):
    """A third of the image is flat; scikit-image reads the median over all of it."""
    y, x = np.mgrid[:200, :240]
    texture = np.where(x < 80, 0.0, 40 * np.sin(2.1 * x + 0.3 * y) * np.sin(1.9 * y))
    noisy = texture + 10 * rng.standard_normal(texture.shape)
    assert images.estimate_sigma(noisy) == pytest.approx(10, rel=0.08)


@pytest.mark.parametrize("sigma", [5, 15, 25, 50])
def test_the_noise_of_photographs_is_measured(shared_data, rng, sigma):
    from PIL import Image

    ratios = []
    for path in sorted((shared_data / "images" / "train400").glob("*.png"))[::40]:
        with Image.open(path) as file:
            noisy = np.asarray(file) + sigma * rng.standard_normal((180, 180))
        ratios.append(images.estimate_sigma(noisy) / sigma)
    most = {5: 0.25, 15: 0.06, 25: 0.04, 50: 0.03}[sigma]
    assert rms(np.log(ratios)) < most


def test_clipped_parts_do_not_count(rng):
    clean = np.where(np.mgrid[:200, :200][0] < 100, 0.0, 128.0)
    noisy = np.clip(np.rint(clean + 20 * rng.standard_normal(clean.shape)), 0, 255).astype(np.uint8)
    assert 255 * images.estimate_sigma(noisy) == pytest.approx(20, rel=0.03)
    with pytest.warns(UserWarning, match="% of the image is clipped"):
        images.denoise(noisy, training.start_network(32, 1, rng=0))


def test_blank_margins_of_a_drawing_are_not_mistaken_for_a_level(rng):
    page = np.full((150, 150), 255, np.uint8)
    page[70:80, 20:130] = 0
    assert images.estimate_sigma(page) == 0


def test_patches_are_spread_over_the_whole_image_and_never_too_many():
    at = noise.corners((800, 900))
    assert noise.MOST_PATCHES // 5 < len(at) <= noise.MOST_PATCHES
    assert (at.rows[0], at.columns[0]) == (0, 0)
    assert at.rows[-1] + noise.SIDE > 790
    assert at.columns[-1] + noise.SIDE > 890
    assert len(noise.corners((6, 900))) == 0


def test_the_level_is_the_same_as_by_all_patches_side_by_side(rng):
    """Energies by running sums and moments in blocks against the definition, where no patch is skipped."""
    plane = scene((60, 64), rng, 0.1).astype(np.float32)
    at = noise.corners(plane.shape)
    patches = np.lib.stride_tricks.sliding_window_view(plane, (7, 7)).reshape(-1, 7, 7).astype(np.float64)
    slopes = patches[:, :, 2:] - patches[:, :, :-2], patches[:, 2:] - patches[:, :-2]
    energy = sum((s**2).sum(axis=(1, 2)) for s in slopes)
    sums = noise._Sums(plane, at)
    np.testing.assert_allclose(sums.energy, np.sort(energy), rtol=1e-4)
    chosen = np.argsort(energy)[: sums.ends[20]]
    values = np.linalg.eigvalsh(np.cov(patches[chosen].reshape(-1, 49).T, ddof=0))[:24]
    assert sums.sigma(20) * noise._of_unit_noise(sums.ends[20]) == pytest.approx(np.sqrt(values.mean()), rel=1e-3)


# Pixels that look alike


def test_means_are_those_of_the_definition(rng):
    guide, values = (rng.standard_normal((n, 9, 11)).astype(np.float32) for n in (2, 3))
    reach, scale = 2, 0.5
    g, v = (np.pad(x, ((0, 0), (3, 3), (3, 3)), mode="reflect") for x in (guide, values))
    out = np.empty_like(values)
    means.average(g, v, reach, np.float32(scale), 0, 9, out)
    for i, j in ((0, 0), (4, 5), (8, 10)):
        here = g[:, i + 2 : i + 5, j + 2 : j + 5]
        weights, total = 0.0, np.zeros(3)
        for a in range(-reach, reach + 1):
            for b in range(-reach, reach + 1):
                there = g[:, i + 2 + a : i + 5 + a, j + 2 + b : j + 5 + b]
                weight = max(0.0, 1 - scale * float(((here - there) ** 2).sum()) / 9) ** 4
                weights, total = weights + weight, total + weight * v[:, i + 3 + a, j + 3 + b]
        np.testing.assert_allclose(out[:, i, j], total / weights, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (3, 2), (50, 45)])
def test_a_correction_in_strips_is_that_of_the_whole(rng, shape):
    noisy = rng.standard_normal((3, *shape)).astype(np.float32)
    clean = 0.3 * noisy
    whole = alike.corrected(noisy, clean, np.ones(3), slice(0, shape[0]))
    strips = [alike.corrected(noisy, clean, np.ones(3), slice(i, min(i + 8, shape[0]))) for i in range(0, shape[0], 8)]
    np.testing.assert_allclose(np.concatenate(strips, axis=1), whole, rtol=1e-5, atol=1e-6)


def test_a_faint_edge_of_colour_comes_back_where_brightness_has_one(rng):
    """What a network blurred, since the edge of the colour drowns in noise, is learned from brightness."""
    step = np.where(np.arange(64) < 32, -1.0, 1.0) * np.ones((64, 1))
    truth = np.stack([20 * step, 1.5 * step, 0 * step]).astype(np.float32)
    noisy = truth + rng.standard_normal(truth.shape).astype(np.float32)
    blurred = truth.copy()
    blurred[1] = np.clip((np.arange(64) - 31.5) / 8, -1, 1) * 1.5
    found = alike.corrected(noisy, blurred, np.ones(3), slice(0, 64))
    edge = np.s_[1, :, 26:38]
    assert rms(found[edge] - truth[edge]) < 0.7 * rms(blurred[edge] - truth[edge])


# Tiles and memory


def test_there_are_no_seams(rng, model, monkeypatch):
    """Tile by tile gives what the whole image gives."""
    image = scene((300, 340), rng, 0.1).astype(np.float32)
    whole = images.denoise(image, model, 0.1)
    monkeypatch.setattr(network, "_TILE", 64)
    tiled = images.denoise(image, model, 0.1)
    assert np.abs(tiled - whole).max() < 2e-3 * 0.1  # see Network.receptive


def test_memory_grows_by_a_few_planes_only(rng, model):
    """A 24-megapixel photograph is to be denoised within 3 GiB: 128 bytes for each of its pixels."""
    image = rng.integers(0, 256, (1200, 1600, 3), np.uint8)
    out = np.empty_like(image)
    channels, views = np.moveaxis(image, -1, 0), np.moveaxis(out, -1, 0)
    one = type("Model", (), {"n_channels": 1, "denoise": staticmethod(lambda planes, sigma: planes.copy())})()
    plan = restore.plan(channels, one, 25.0)
    tracemalloc.start()
    restore.carry_out(plan, channels, one, views)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 44 * image[..., 0].size
    np.testing.assert_array_equal(out, image)  # there and back again, to rounding


# In scikit-image's tools


def test_it_works_where_scikit_image_wants_a_denoiser(rng, model):
    noisy = scene((64, 72), rng, 0.1)
    best = skimage.restoration.calibrate_denoiser(
        noisy, functools.partial(images.denoise, model=model), {"sigma": [0.02, 0.1, 0.4]}, approximate_loss=True
    )
    clean = best(noisy)
    assert rms(clean - scene((64, 72))) < 0.75 * 0.1
    invariant = skimage.restoration.denoise_invariant(
        noisy, functools.partial(images.denoise, model=model), denoiser_kwargs={"sigma": 0.1}
    )
    assert rms(invariant - scene((64, 72))) < 0.9 * 0.1


# What is refused


@pytest.mark.parametrize(
    ("image", "options", "error", "words"),
    [
        (np.ones((4, 5, 3)), {}, InputError, "channel_axis=-1"),
        (np.ones((4, 5)), {"channel_axis": -1}, InputError, "wanted 3 axes"),
        (np.ones((4, 5, 3)), {"channel_axis": 3}, InputError, "channel_axis is 3"),
        (np.ones((0, 5)), {}, InputError, "none of them empty"),
        (np.ones(5), {}, InputError, "wanted 2 axes"),
        (np.array([[0.0, np.nan], [1.0, 2.0]]), {}, InputError, "row 0, column 1"),
        (np.array([[0.0, 1.0], [np.inf, 2.0]]), {}, InputError, "not finite"),
        (np.ones((4, 5), complex), {}, InputTypeError, "real numbers"),
        (np.ma.masked_array(np.ones((4, 5))), {}, InputTypeError, "masked"),
        (np.array([["a"]]), {}, InputTypeError, "real numbers"),
        (np.ones((4, 5)), {"sigma": -1}, InputError, "sigma"),
        (np.ones((4, 5)), {"sigma": np.nan}, InputError, "sigma"),
        (np.ones((4, 5)), {"sigma": "auto"}, InputError, "sigma"),
        (np.ones((4, 5)), {"model": 3}, InputTypeError, "wanted a network"),
        (np.ones((4, 5)), {"model": "none.h5"}, FileFormatError, "none.h5"),
    ],
)
def test_bad_arguments_are_told_in_a_sentence(image, options, error, words):
    with pytest.raises(error, match=words):
        images.denoise(image, **options)
