"""Dictionaries learned on the very image that is denoised."""

import numpy as np
import pytest

from emdl import load
from emdl.errors import FileFormatError, InputError
from emdl.images import greedy
from emdl.images.learn import JUDGED_AT, PatchModel, fit, taken_out
from emdl.images.shifts import ShiftedEncoder
from emdl.optim import normalize_atoms


def psnr(x, truth):
    return 10 * np.log10(255**2 / ((x - truth) ** 2).mean())


@pytest.fixture(scope="module")
def photograph():
    camera = pytest.importorskip("skimage.data").camera()
    return camera[60:188, 160:288].astype(np.float32)


def test_learning_on_a_noisy_photograph_takes_most_noise_away(photograph):
    """By 7 dB and more, and six iterations by more than one."""
    noisy = photograph + 25 * np.random.default_rng(1).standard_normal(photograph.shape).astype(np.float32)
    told = []
    model = fit(noisy[None, None], 25, max_iter=6, rng=0, callback=told.append)
    reached = psnr(model.denoise(noisy[None, None], 25)[0, 0], photograph)
    assert reached > psnr(noisy, photograph) + 7
    first = fit(noisy[None, None], 25, max_iter=1, rng=0)
    assert reached > psnr(first.denoise(noisy[None, None], 25)[0, 0], photograph)
    assert [t.iteration for t in told] == [1, 2, 3, 4, 5, 6]
    assert 0.1 < told[-1].per_patch < 5


class Rounding:
    """A denoiser that is not even continuous."""

    def denoise(self, planes, sigma):
        return 4 * np.rint(planes / 4)


def test_how_much_noise_is_taken_out_is_known_without_the_clean_image(rng):
    clean, sigma = 4 * rng.integers(-3, 4, (1, 300, 300)).astype(np.float32), 2.5
    noisy = sigma * (clean + rng.standard_normal(clean.shape))
    more = clean + JUDGED_AT * rng.standard_normal(clean.shape)
    left = np.mean((Rounding().denoise(more, None) - clean) ** 2) / JUDGED_AT**2
    assert taken_out(Rounding(), [noisy], sigma) == pytest.approx(-10 * np.log10(left), abs=0.1)
    assert np.isnan(taken_out(Rounding(), [0.01 * noisy], sigma))


def test_greedy_codes_are_the_posterior_mean_on_a_support_that_no_atom_improves(rng):
    D = normalize_atoms(rng.standard_normal((30, 12, 1)))[:, :, 0].astype(np.float32)
    y = (D[[3, 8]] * np.array([[9.0], [-7.0]])).sum(axis=0) + rng.standard_normal(12)
    price, shrink = np.full(30, 4.0, np.float32), np.float32(0.9)
    index, value, count = np.zeros((1, 8), np.int32), np.zeros((1, 8), np.float32), np.zeros(1, np.int32)
    greedy.pursue((D @ y)[None].astype(np.float32), D @ D.T, price, shrink, index, value, count)
    support = index[0, : count[0]]
    assert {3, 8} <= set(support.tolist())
    A = D[support].T.astype(np.float64)
    mean = np.linalg.solve(A.T @ A + (1 / 0.9 - 1) * np.eye(len(support)), A.T @ y)
    np.testing.assert_allclose(value[0, : count[0]], mean, rtol=1e-4)
    left = D @ (y - A @ mean)
    rest = np.setdiff1d(np.arange(30), support)
    assert (0.45 * left[rest] ** 2 < 4.0 + 1e-4).all()


def test_denoising_is_the_weighted_average_of_all_patches(rng):
    D = normalize_atoms(rng.standard_normal((10, 2, 3, 4))).astype(np.float32)
    model, sigma = PatchModel(D, np.full(10, 2.5), 0.95), 0.5
    image = rng.standard_normal((2, 7, 9)).astype(np.float32)
    wide = np.pad(image, ((0, 0), (2, 2), (3, 3)), mode="reflect")
    total, cover = np.zeros_like(wide), np.zeros(wide.shape[1:])
    flat = D.reshape(10, -1)
    for i in range(wide.shape[1] - 2):
        for j in range(wide.shape[2] - 3):
            patch = wide[:, i : i + 3, j : j + 4] / sigma
            mean = patch.mean(axis=(1, 2), keepdims=True)
            index, value, count = np.zeros((1, 24), np.int32), np.zeros((1, 24), np.float32), np.zeros(1, np.int32)
            price = (model.threshold**2 / 2).astype(np.float32)
            products = (flat @ (patch - mean).ravel())[None].astype(np.float32)
            greedy.pursue(products, flat @ flat.T, price, np.float32(0.95), index, value, count)
            made = mean + np.tensordot(value[0, : count[0]], D[index[0, : count[0]]], 1)
            total[:, i : i + 3, j : j + 4] += made / (1 + count[0])
            cover[i : i + 3, j : j + 4] += 1 / (1 + count[0])
    want = (total / cover)[:, 2:-2, 3:-3] * sigma
    np.testing.assert_allclose(model.denoise(image[None], sigma)[0], want, atol=1e-4)


def test_the_same_seed_gives_the_same_bits(rng):
    noisy = rng.standard_normal((1, 3, 20, 24))
    one, two = (fit(noisy, 0.5, n_atoms=20, atom_shape=(5, 4), max_iter=3, rng=4) for _ in range(2))
    assert np.array_equal(one.D, two.D)
    assert np.array_equal(one.denoise(noisy, 0.5), two.denoise(noisy, 0.5))
    np.testing.assert_allclose(one.D.mean(axis=(2, 3)), 0, atol=1e-6)


def test_a_unit_of_its_own_changes_nothing(rng):
    noisy = rng.standard_normal((1, 1, 30, 30)).astype(np.float32)
    one = fit(noisy, 0.5, n_atoms=20, max_iter=2, rng=0).denoise(noisy, 0.5)
    two = fit(64 * noisy, 32, n_atoms=20, max_iter=2, rng=0).denoise(64 * noisy, 32)
    np.testing.assert_allclose(two, 64 * one, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (2, 40), (9, 9)])
def test_small_images_are_denoised_too(rng, shape):
    noisy = 5 + rng.standard_normal((1, 1, *shape))
    made = fit(noisy, 1.0, n_atoms=20, max_iter=2, rng=0).denoise(noisy, 1.0)
    assert made.shape == noisy.shape
    assert np.isfinite(made).all()
    assert made.std() <= noisy.std()


def test_photographs_of_several_sizes_are_learned_from(rng):
    images = [rng.standard_normal((1, 20, 30)), rng.standard_normal((1, 12, 15))]
    assert fit(images, 1.0, n_atoms=10, max_iter=1, rng=0).D.shape == (10, 1, 8, 8)


def test_a_saved_model_comes_back(rng, tmp_path):
    noisy = rng.standard_normal((1, 1, 20, 20))
    model = fit(noisy, 0.5, n_atoms=20, max_iter=2, rng=0)
    model.save(tmp_path / "model.h5")
    back = PatchModel.load(tmp_path / "model.h5")
    np.testing.assert_allclose(back.denoise(noisy, 0.5), model.denoise(noisy, 0.5), atol=1e-6)
    assert load(tmp_path / "model.h5").n_atoms == 20
    with pytest.raises(FileFormatError, match="another task"):
        ShiftedEncoder.load(tmp_path / "model.h5")


def test_what_does_not_fit_is_refused(rng):
    with pytest.raises(InputError, match="sigma"):
        fit(np.zeros((1, 1, 9, 9)), 0.0)
    with pytest.raises(InputError, match="same number"):
        fit([np.zeros((1, 9, 9)), np.zeros((3, 9, 9))], 1.0)
    model = PatchModel(normalize_atoms(rng.standard_normal((4, 1, 3, 3))), np.ones(4))
    with pytest.raises(InputError, match="2 channels"):
        model.denoise(np.zeros((1, 2, 9, 9)), 1.0)
