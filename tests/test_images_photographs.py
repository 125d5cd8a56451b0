"""Photographs to learn from: what is read of a folder, what is held out, and noisy ones in units of their noise."""

import pickle

import numpy as np
import pytest
import tifffile
from PIL import Image

from emdl.errors import InputError
from emdl.images.photographs import read_apart, read_noisy, read_photographs


def test_16_bits_and_pages_are_read_as_8_bits_say(tmp_path, rng):
    """Pillow alone would cut 16 bits off at 255 and read the first page only."""
    small = rng.integers(0, 256, (30, 40), np.uint8)
    Image.fromarray(small.astype(np.uint16) * 257).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "b.tif", np.stack([small, small[::-1]]), photometric="minisblack")
    tifffile.imwrite(tmp_path / "c.tif", small.astype(np.uint16)[..., None].repeat(3, 2) * 257, photometric="rgb")
    one, two, three, four = read_photographs(tmp_path)
    for found, want in ((one, small), (two, small), (three, small[::-1]), (four, small)):
        np.testing.assert_array_equal(found[0], want)


def test_what_cannot_be_learned_from_is_left_out_and_named(tmp_path, rng, caplog):
    tifffile.imwrite(tmp_path / "float.tif", rng.random((30, 40)))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"no photograph in .* can be learned from"):
        read_photographs(tmp_path)
    Image.fromarray(rng.integers(0, 256, (30, 40), np.uint8)).save(tmp_path / "good.png")
    caplog.clear()
    assert len(read_photographs(tmp_path)) == 1
    assert "float.tif is left out: it is 40 x 30, grey, 64 bit float; wanted grey or RGB" in caplog.text
    assert "broken.png is left out" in caplog.text


def test_a_photograph_is_held_out_at_all_of_its_sizes(tmp_path, rng):
    for i in range(4):
        Image.fromarray(np.full((60, 90 - i), 50 * i, np.uint8)).save(tmp_path / f"{i}.png")
    learned_from, held_out = read_apart(tmp_path, sizes=(80, 60))
    assert len(held_out) == 1
    assert max(held_out[0].shape) == 60
    assert [max(image.shape) for image in learned_from] == [80, 60] * 3
    grey = [float(image.mean()) for image in (*learned_from[::2], *held_out)]
    assert sorted(grey) == [0, 50, 100, 150]
    learned_from, held_out = read_apart(tmp_path, sizes=(500, 100))
    assert [image.shape[1:] for image in (*learned_from, *held_out)].count((60, 90)) == 1


def test_another_process_reads_the_same_photographs_from_their_files(tmp_path, rng):
    pages = rng.integers(0, 256, (3, 100, 120), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="minisblack")
    album = read_photographs(tmp_path, sizes=(60,))
    packed = pickle.dumps(album)
    assert len(packed) < album[0].nbytes / 4
    for found, want in zip(pickle.loads(packed), album, strict=True):
        np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_noisy_photographs_come_in_units_of_their_noise(tmp_path, rng, dtype):
    unit = {"uint8": 1, "uint16": 257, "float32": 0.01}[dtype]
    ramp = np.linspace(60, 190, 300)[None] + np.zeros((200, 1))
    clean = np.where(np.add.outer(np.arange(200), np.arange(300)) % 150 < 75, ramp, 250 - ramp)
    want = {}
    for name, sigma in (("b", 20), ("a", 8)):
        page = unit * (clean + sigma * rng.standard_normal(clean.shape))
        page = page if dtype == "float32" else np.rint(page).clip(0, 255 * unit)
        tifffile.imwrite(tmp_path / f"{name}.tif", page.astype(dtype))
        want[name] = 255 * unit * sigma / (np.ptp(page) if dtype == "float32" else 255 * unit)
    learned_from, held_out, levels = read_noisy(tmp_path)
    assert levels == pytest.approx(list(want.values()), rel=0.12)
    assert (len(learned_from), len(held_out)) == (1, 1)
    for planes, sigma in ((learned_from[0], 20), (held_out[0], 8)):
        assert planes.dtype == np.float32
        assert np.std(planes[0] - clean / sigma) == pytest.approx(1, rel=0.12)


def test_colours_and_brightness_of_noisy_photographs(tmp_path, rng):
    """Brightness is the direction of colour with the most contrast, which has the noise of the channels."""
    waves = np.sin(np.arange(500) / 15)[:, None] * np.array([30, 20, 10])
    pixels = np.rint(128 + waves + 20 * rng.standard_normal((90, 500, 3))).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "b.png")
    (colour,), judges, (level,) = read_noisy(tmp_path, grey=False)
    assert judges == []
    np.testing.assert_allclose(colour, np.moveaxis(pixels, -1, 0) / level, rtol=1e-5)
    assert level == pytest.approx(20, rel=0.05)
    _, (bright,), levels = read_noisy(tmp_path)
    assert levels == pytest.approx([20, 20], rel=0.05)
    want = pixels[:, 58:442] @ np.array([3, 2, 1]) / np.sqrt(14) / levels[1]
    assert np.std(bright[0] - want) < 0.1
