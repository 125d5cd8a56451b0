"""Pictures go out as they came in: numbers, transparency, colour profile, orientation, pages, texts."""

import functools
import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from emdl.errors import EmdlError, FileFormatError, InputError
from emdl.images import files, picture, png

H, W = 21, 34


def samples(rng, n, dtype):
    """Return smooth random samples, so that every filter of PNG is used and JPEG loses little."""
    base = np.cumsum(np.cumsum(rng.standard_normal((H, W, n)), axis=0), axis=1)
    base = (base - base.min()) / np.ptp(base)
    dtype = np.dtype(dtype)
    return (base * (np.iinfo(dtype).max if dtype.kind in "iu" else 3)).astype(dtype).reshape((H, W) + (n,) * (n > 1))


def only(path):
    (page,) = files.read(path)
    return page


def copied(path, suffix=None):
    """Write what `path` holds into another file, and return its name."""
    other = path.with_name("copy" + (suffix or path.suffix))
    files.write(other, files.read(path))
    return other


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_png_keeps_every_bit(rng, tmp_path, n, dtype):
    """The writer is held against another reader, the reader of 16 bit colours against bytes put together by hand."""
    array, path = samples(rng, n, dtype), tmp_path / "a.png"
    header = struct.pack(">IIBBBBB", W, H, 8 * array.itemsize, {1: 0, 2: 4, 3: 2, 4: 6}[n], 0, 0, 0)
    rows = array.astype(array.dtype.newbyteorder(">")).reshape(H, -1).view(np.uint8)
    body = zlib.compress(np.concatenate([np.zeros((H, 1), np.uint8), rows], axis=1).tobytes())
    with open(path, "wb") as file:
        file.write(png.MAGIC)
        for name, content in ((b"IHDR", header), (b"IDAT", body), (b"IEND", b"")):
            png._write_chunk(file, name, content)
    page = only(path)
    assert (page.alpha is not None) == (n in (2, 4))
    np.testing.assert_array_equal(page.samples(), array)
    again = copied(path)
    np.testing.assert_array_equal(only(again).samples(), array)
    with Image.open(again) as image:
        image.load()  # the filters are those of the standard
        if dtype == "uint8":
            np.testing.assert_array_equal(np.asarray(image), array)
    assert again.stat().st_size < 1.05 * path.stat().st_size


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("n", [1, 3, 4, 5])
def test_tiff_keeps_every_bit(rng, tmp_path, n, dtype):
    array, path = samples(rng, n, dtype), tmp_path / "a.tif"
    options = {"photometric": "rgb", "extrasamples": ["unassalpha"] * (n == 4)} if n in (3, 4) else {}
    if n == 5:
        options = {"photometric": "minisblack", "planarconfig": "contig"}
    tifffile.imwrite(path, array, **options)
    page = only(path)
    assert page.pixels.shape == (H, W, {4: 3}.get(n, n))
    again = tifffile.imread(copied(path))
    assert again.dtype == array.dtype
    np.testing.assert_array_equal(again, array)


def test_all_pages_of_a_stack_are_kept_and_read_one_at_a_time(rng, tmp_path):
    stack = np.stack([samples(rng, 1, "uint16") for _ in range(5)])
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    assert len(list(files.read(tmp_path / "a.tif"))) == 5
    np.testing.assert_array_equal(tifffile.imread(copied(tmp_path / "a.tif")), stack)


def test_a_stack_of_imagej_stays_one(rng, tmp_path):
    """ImageJ takes axes and unit from a text, and may write one page with all planes behind it."""
    stack = np.stack([samples(rng, 1, "uint16") for _ in range(6)]).reshape(3, 2, H, W)
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=True, metadata={"axes": "TCYX", "unit": "um"}, resolution=(4, 4))
    with tifffile.TiffFile(copied(tmp_path / "a.tif")) as file:
        assert file.series[0].axes == "TCYX"
        assert file.imagej_metadata["unit"] == "um"
        assert file.pages[0].tags["XResolution"].value == (4, 1)
        np.testing.assert_array_equal(file.series[0].asarray(), stack)


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "jpeg", "tiff_adobe_deflate"])
def test_compressed_tiff_is_read(rng, tmp_path, compression):
    array = samples(rng, 3, "uint8")
    Image.fromarray(array).save(tmp_path / "a.tif", compression=compression)
    with Image.open(tmp_path / "a.tif") as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(only(tmp_path / "a.tif").samples(), expected)
    np.testing.assert_array_equal(tifffile.imread(copied(tmp_path / "a.tif")), expected)


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".bmp"])
@pytest.mark.parametrize("n", [1, 3])
def test_other_formats_keep_what_one_sees(rng, tmp_path, suffix, n):
    array = samples(rng, n, "uint8")
    Image.fromarray(array).save(tmp_path / f"a{suffix}", quality=100, subsampling=0)
    before, after = only(tmp_path / f"a{suffix}"), only(copied(tmp_path / f"a{suffix}"))
    assert after.pixels.shape == before.pixels.shape
    error = np.abs(after.pixels.astype(int) - before.pixels)
    assert error.mean() < {".bmp": 0.001}.get(suffix, 3)


def test_a_lossless_webp_stays_lossless_with_its_transparency(rng, tmp_path):
    array = samples(rng, 4, "uint8")
    array[:5, :5, 3] = 0  # colours below full transparency count too
    Image.fromarray(array).save(tmp_path / "a.webp", lossless=True, exact=True)
    np.testing.assert_array_equal(only(copied(tmp_path / "a.webp")).samples(), array)


@pytest.mark.parametrize("mode", ["P", "1", "PA", "L;transparent", "RGB;transparent"])
def test_rare_pixels_look_the_same(rng, tmp_path, mode):
    base = Image.fromarray(samples(rng, 3, "uint8"))
    image = base.convert(mode.partition(";")[0]) if mode != "PA" else base.convert("P")
    options = {}
    if mode == "PA" or mode.endswith("transparent"):
        options["transparency"] = image.getpixel((3, 3))
    image.save(tmp_path / "a.png", **options)
    with Image.open(tmp_path / "a.png") as opened:
        expected = np.asarray(opened.convert("RGBA"))
    with Image.open(copied(tmp_path / "a.png")) as opened:
        np.testing.assert_array_equal(np.asarray(opened.convert("RGBA")), expected)
    assert bool(only(tmp_path / "a.png").notes) == (mode in ("P", "1", "PA"))


def test_a_palette_in_a_tiff_becomes_rgb(rng, tmp_path):
    image = Image.fromarray(samples(rng, 3, "uint8")).convert("P")
    image.save(tmp_path / "a.tif")
    np.testing.assert_array_equal(only(tmp_path / "a.tif").samples(), np.asarray(image.convert("RGB")))


@functools.cache  # it holds the time at which it is made
def profile():
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def turned_file(rng, path, orientation):
    exif = Image.Exif()
    exif[274], exif[271] = orientation, "a camera"
    options = {"tiffinfo": {274: orientation}} if path.suffix == ".tif" else {"exif": exif}
    Image.fromarray(samples(rng, 3, "uint8")).save(path, icc_profile=profile(), quality=100, **options)


def as_seen(path):
    """Return the pixels as a viewer shows them that heeds the orientation."""
    from PIL import ImageOps

    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image))


@pytest.mark.parametrize("before", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("after", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_orientation_and_profile_survive(rng, tmp_path, before, after, orientation):
    path = tmp_path / f"a{before}"
    turned_file(rng, path, orientation)
    again = copied(path, after)
    want, got = as_seen(path), as_seen(again)
    assert want.shape == got.shape
    assert np.abs(want.astype(int) - got).mean() < 10  # twice lossy; another orientation is off by 40
    with Image.open(again) as image:
        assert image.info["icc_profile"] == profile()
        kept = image.getexif()
        assert kept.get(274, 1) == (orientation if before == after else 1)
        if before != ".tif" and after != ".tif":
            assert kept[271] == "a camera"


def test_a_jpeg_with_a_second_picture_behind_it_is_read_as_the_first(rng, tmp_path):
    """Telephones write these."""
    first, second = (Image.fromarray(samples(rng, 3, "uint8")) for _ in range(2))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second], quality=100)
    page = only(tmp_path / "a.jpg")
    assert page.format == "JPEG"
    assert np.abs(page.pixels.astype(int) - np.asarray(first)).mean() < 4


def test_texts_and_gamma_of_a_png_are_kept(rng, tmp_path):
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    texts.add_text("Author", "somebody")
    texts.add(b"gAMA", struct.pack(">I", 45455))
    Image.fromarray(samples(rng, 1, "uint8")).save(tmp_path / "a.png", pnginfo=texts, dpi=(300, 300))
    with Image.open(copied(tmp_path / "a.png")) as image:
        assert image.info["Author"] == "somebody"
        assert image.info["gamma"] == pytest.approx(0.45455)
        assert image.info["dpi"] == pytest.approx((300, 300), rel=1e-3)


# What is refused


def damaged(kind):
    good = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(good, kind)
    return good.getvalue()[: len(good.getvalue()) // 2]


def bomb():
    """A PNG of a few bytes that says it is 60,000 x 60,000."""
    file = io.BytesIO(png.MAGIC)
    file.seek(0, 2)
    png._write_chunk(file, b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0))
    png._write_chunk(file, b"IDAT", zlib.compress(bytes(1000)))
    png._write_chunk(file, b"IEND", b"")
    return file.getvalue()


def saved(save):
    file = io.BytesIO()
    save(file)
    return file.getvalue()


BAD = {
    "text.png": (b"no picture at all", "is no picture"),
    "empty.png": (b"", "is empty"),
    "half.png": (damaged("PNG"), "damaged or cut short"),
    "half.jpg": (damaged("JPEG"), "damaged or cut short"),
    "half.webp": (damaged("WEBP"), "cannot read|is no picture"),
    "half.tif": (damaged("TIFF"), "damaged or cut short"),
    "bomb.png": (bomb(), "bomb"),
    "cmyk.jpg": (saved(lambda f: Image.new("CMYK", (9, 9)).save(f, "JPEG")), "CMYK.*convert it to RGB"),
    "cmyk.tif": (saved(lambda f: Image.new("CMYK", (9, 9)).save(f, "TIFF")), "CMYK.*convert it to RGB"),
    "complex.tif": (saved(lambda f: tifffile.imwrite(f, np.ones((9, 9), complex))), "complex"),
    "moving.webp": (
        saved(
            lambda f: Image.new("L", (9, 9)).save(f, "WEBP", save_all=True, append_images=[Image.new("L", (9, 9), 9)])
        ),
        "animation of 2",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_refused_in_one_sentence(tmp_path, name):
    content, words = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EmdlError, match=words) as refused:
        list(files.read(tmp_path / name))
    assert name in str(refused.value)


def test_every_cut_of_a_file_is_refused_or_read_whole(tmp_path, rng):
    """No length of a damaged file may end in an error of another kind."""
    for kind in ("PNG", "TIFF", "JPEG", "WEBP"):
        good = io.BytesIO()
        Image.fromarray(samples(rng, 3, "uint8")).save(good, kind)
        path = tmp_path / f"a.{kind.lower()}"
        for length in range(1, len(good.getvalue()) - 1, 37):
            path.write_bytes(good.getvalue()[:length])
            with pytest.raises(EmdlError):
                list(files.read(path))


def test_missing_files_and_folders_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.png"):
        with pytest.raises(FileFormatError, match="cannot read"):
            list(files.read(path))


@pytest.mark.parametrize(
    ("n", "dtype", "name", "words"),
    [
        (3, "uint16", "a.jpg", "uint16"),
        (1, "float32", "a.png", "float32"),
        (4, "uint8", "a.jpg", "transparency"),
        (1, "uint8", "a.gif", "cannot tell the format"),
        (1, "uint8", "a", "cannot tell the format"),
    ],
)
def test_a_format_that_would_lose_something_is_refused(rng, tmp_path, n, dtype, name, words):
    pixels, alpha = picture.split(samples(rng, n, dtype), alpha=n == 4)
    with pytest.raises(InputError, match=words):
        files.check_fits(picture.Picture(pixels, alpha), tmp_path / name)
    with pytest.raises(InputError, match="2 pages"):
        files.check_fits(picture.Picture(pixels[..., :1]), tmp_path / "a.png", n_pages=2)
