"""Gabor functions fitted to atoms."""

import math

import numpy as np
import pytest

from emdl.errors import InputError
from emdl.images.gabor import Gabor, draw_atoms, fit_gabors
from emdl.optim import normalize_atoms


@pytest.mark.parametrize(
    "truth",
    [
        Gabor(3.1, 4.4, 0.6, 1.4, 2.2, 0.21, np.array([1.0]), np.array([0.7]), 1.0),
        Gabor(5.0, 3.0, 2.4, 2.5, 1.2, 0.12, np.array([0.5, -1.0]), np.array([0.2, 1.9]), 1.0),
        Gabor(4.0, 4.5, 1.2, 1.0, 3.0, 0.35, np.array([2.0]), np.array([-1.0]), 1.0),
    ],
)
def test_a_gabor_function_is_found_again(truth):
    shape = (9, 10)
    found = fit_gabors(truth.image(shape)[None])[0]
    assert found.share > 1 - 1e-8
    np.testing.assert_allclose(found.image(shape), truth.image(shape), atol=1e-4)
    got = (found.row, found.column, found.angle, found.along, found.across, found.frequency)
    want = (truth.row, truth.column, truth.angle, truth.along, truth.across, truth.frequency)
    np.testing.assert_allclose(got, want, rtol=1e-3)


def test_the_share_is_what_the_function_explains_of_the_energy(rng):
    D = rng.standard_normal((2, 2, 6, 6))
    for atom, found in zip(D, fit_gabors(D, n_starts=2), strict=True):
        left = ((atom - found.image((6, 6))) ** 2).sum() / (atom**2).sum()
        np.testing.assert_allclose(found.share, 1 - left, rtol=1e-6)
        assert 0 < found.share < 0.9


def test_noise_on_a_gabor_function_lowers_the_share_by_its_energy(rng):
    shape = (11, 11)
    clean = Gabor(5.0, 5.0, 0.9, 2.0, 2.5, 0.2, np.array([1.0]), np.array([0.3]), 1.0).image(shape)
    noise = rng.standard_normal(clean.shape)
    noise *= 0.5 * np.linalg.norm(clean) / np.linalg.norm(noise)
    share = fit_gabors((clean + noise)[None])[0].share
    assert 0.8 < share < 0.9  # 1 / 1.25 and the noise that eight parameters of 121 pixels explain


def test_a_grating_and_a_blob_are_gabor_functions_and_a_product_of_gratings_is_not():
    k = np.arange(8)
    along = np.cos(np.pi * (k + 0.5) * 3 / 8)
    blob = np.exp(-((k - 3.5) ** 2) / 8)
    D = normalize_atoms(np.stack([np.outer(np.ones(8), along), np.outer(blob, blob), np.outer(along, along)])[:, None])
    shares = [found.share for found in fit_gabors(D)]
    assert shares[0] > 0.99
    assert shares[1] > 0.999
    assert shares[2] < 0.8


def test_atoms_are_drawn(rng, tmp_path):
    D = rng.standard_normal((3, 1, 5, 5))
    draw_atoms(D, fit_gabors(D, n_starts=1), tmp_path / "atoms.png")
    assert (tmp_path / "atoms.png").read_bytes().startswith(b"\x89PNG")


def test_what_holds_no_image_is_refused(rng):
    with pytest.raises(InputError, match="at least 3 x 3"):
        fit_gabors(rng.standard_normal((3, 1, 9)))
    with pytest.raises(InputError, match="zero everywhere"):
        fit_gabors(np.zeros((1, 1, 5, 5)))
    assert math.isfinite(fit_gabors(np.ones((1, 1, 5, 5)))[0].share)
