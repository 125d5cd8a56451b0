"""Reading and writing of pictures: PNG, JPEG, WebP, BMP, and TIFF with all its pages.

A picture goes out as it came in: bit depth, transparency, colour profile, EXIF data with the orientation, resolution
and texts. What cannot be kept is an error, or stands in `Picture.notes`.
"""

import contextlib
import struct
import warnings
import zlib

import numpy as np

from emdl.errors import EmdlError, FileFormatError, InputError
from emdl.images import png, tiff
from emdl.images.picture import MOST_PIXELS, ORIENTATION, Picture, split, upright

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
    ".bmp": "BMP",
}
_READ = ("PNG", "JPEG", "WEBP", "BMP")
_HOLDS = {  # the dtypes of samples and whether transparency fits
    "PNG": (("uint8", "uint16"), True),
    "JPEG": (("uint8",), False),
    "WEBP": (("uint8",), True),
    "BMP": (("uint8",), False),
}
_EXIF = b"Exif\0\0"  # what EXIF data begin with in a JPEG
_QUALITY = 95  # of JPEG and WebP, which lose little there
_DAMAGED = (
    OSError,
    MemoryError,
    RuntimeError,
    ArithmeticError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    struct.error,
    zlib.error,
)


def read(path):
    """Yield the pages of a picture file, one unless it is a TIFF of several.

    Parameters
    ----------
    path : Path
        What the file holds decides its format, not its name.

    Yields
    ------
    Picture
        A page at a time, so that a long stack needs no more memory than its largest page.

    Raises
    ------
    FileFormatError
        If the file is missing, damaged or no picture.
    InputError
        If it is a picture that is not denoised here: CMYK, an animation, more than `MOST_PIXELS`.
    """
    pages = _pages(path)
    while True:
        with _explained(path):
            picture = next(pages, None)
        if picture is None:
            return
        yield picture


def count(path):
    """Return the number of pages of a picture file; 1 for what is no TIFF, whether it can be read or not.

    Raises
    ------
    FileFormatError
        If the file is missing or a damaged TIFF.
    """
    with _explained(path):
        with open(path, "rb") as file:
            magic = file.read(4)
        return tiff.count(path) if magic in tiff.MAGIC else 1


def _pages(path):
    with open(path, "rb") as file:
        magic = file.read(4)
    if not magic:
        raise FileFormatError(f"{path} is empty")
    if magic in tiff.MAGIC:
        yield from tiff.read(path)
    else:
        yield _read_by_pillow(path)


@contextlib.contextmanager
def _explained(path):
    """Turn what the readers raise about a file into one sentence."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata, and sizes that are checked here
            yield
    except EmdlError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{path} has more than {MOST_PIXELS // 10**6} million pixels, a decompression bomb or a picture to be cut "
            "into parts"
        ) from error
    except UnidentifiedImageError as error:
        raise FileFormatError(f"{path} is no picture that can be read; wanted PNG, JPEG, TIFF, WebP or BMP") from error
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise FileFormatError(f"cannot read {path}: {error.strerror}") from error
    except (*_DAMAGED, *tiff.errors()) as error:
        raise FileFormatError(f"cannot read {path}, it is damaged or cut short: {error}") from error


def _read_by_pillow(path):
    from PIL import Image

    with Image.open(path, formats=_READ) as image:
        n_frames = getattr(image, "n_frames", 1)
        if n_frames > 1 and image.format != "MPO":  # a JPEG with a preview, or a second view, behind the picture
            raise InputError(f"{path} is an animation of {n_frames} pictures; save them as pages of a TIFF")
        if image.mode in ("CMYK", "LAB", "HSV"):
            raise InputError(f"{path} is in {image.mode}, not in RGB; convert it to RGB with its colour profile first")
        pixels, alpha, notes = _pixels(path, image)
        orientation = image.getexif().get(ORIENTATION, 1)
        extras = {key: image.info[key] for key in ("exif", "dpi", "comment", "xmp") if image.info.get(key)}
        if "exif" in extras:
            extras["exif"] = _EXIF + extras["exif"].removeprefix(_EXIF)
        if image.format == "PNG":
            extras["chunks"] = png.chunks(path)
        elif image.format == "WEBP":
            extras["lossless"] = _is_lossless_webp(path)
        profile, kind = image.info.get("icc_profile"), "JPEG" if image.format == "MPO" else str(image.format)
    return Picture(pixels, alpha, kind, orientation if orientation in range(1, 9) else 1, profile, extras, notes)


def _pixels(path, image):
    """Return pixels, transparency and notes of an open Pillow image."""
    notes, key = (), image.info.get("transparency")
    if png.is_deep(image):
        layout = image.tile[0][3]
        pixels, alpha = split(png.read_deep(path), alpha="A" in layout)
    else:
        if image.mode == "P":
            notes = ("colours of a palette are written as RGB",)
            image, key = image.convert("RGB" if key is None else "RGBA"), None
        elif image.mode == "1":
            notes = ("1 bit is written as 8 bits of grey",)
            image, key = image.convert("L"), None
        elif image.mode not in ("L", "LA", "RGB", "RGBA", "I;16", "I;16B"):
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        array = np.asarray(image)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        pixels, alpha = split(array, alpha=image.mode.endswith("A"))
    if key is not None and alpha is None:  # one colour means: transparent
        opaque = np.iinfo(pixels.dtype).max
        alpha = np.where((pixels == np.asarray(key)).all(axis=2), 0, opaque).astype(pixels.dtype)
    return pixels, alpha, notes


def _is_lossless_webp(path):
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    return b"VP8L" in head


def format_of(path):
    """Return the format that a file of this name is to have.

    Raises
    ------
    InputError
        If its ending is none of `FORMATS`.
    """
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise InputError(f"cannot tell the format of {path}; end it in {', '.join(FORMATS)}")
    return kind


def check_fits(picture, path, *, n_pages=1):
    """Raise unless a picture can be written to a file of this name.

    Parameters
    ----------
    picture : Picture
        What is to be written.
    path : Path
        Its ending decides the format.
    n_pages : int
        How many pages there are.

    Raises
    ------
    InputError
        If the format is not known, or does not hold what the picture has.
    """
    kind = format_of(path)
    if kind == "TIFF":
        return
    dtypes, transparency = _HOLDS[kind]
    missing = []
    if n_pages > 1:
        missing.append(f"{n_pages} pages")
    if picture.pixels.dtype.name not in dtypes:
        missing.append(f"numbers of type {picture.pixels.dtype}")
    if picture.alpha is not None and not transparency:
        missing.append("transparency")
    if picture.pixels.shape[2] not in (1, 3):
        missing.append(f"{picture.pixels.shape[2]} channels")
    if missing:
        raise InputError(f"{path}: {kind} does not hold {', '.join(missing)}; write {path.with_suffix('.tif').name}")


def write(path, pictures):
    """Write pictures to a file; several become the pages of a TIFF.

    Parameters
    ----------
    path : Path
        File to write.
    pictures : iterable of Picture
        Written as they come, so that a stack need not be held in memory. In another format than their own they are
        turned upright, as not every viewer heeds the orientation there.

    Raises
    ------
    InputError
        If the format does not hold them, see `check_fits`.
    """
    kind = format_of(path)
    ready = (_checked(p if p.format == kind else upright(p), path) for p in pictures)
    if kind == "TIFF":
        tiff.write(path, ready)
        return
    (picture,) = ready
    if kind == "PNG":
        with open(path, "wb") as file:
            png.write(file, picture.samples(), _png_chunks(picture))
    else:
        _write_by_pillow(path, picture, kind)


def _checked(picture, path):
    check_fits(picture, path)
    return picture


def _png_chunks(picture):
    if "chunks" in picture.extras:
        return picture.extras["chunks"]
    kept = [] if picture.profile is None else [png.profile_chunk(picture.profile)]
    exif = picture.extras.get("exif")
    return kept + ([(b"eXIf", exif.removeprefix(_EXIF))] if exif else [])


def _write_by_pillow(path, picture, kind):
    from PIL import Image

    options = {"icc_profile": picture.profile} if picture.profile else {}
    options |= {key: picture.extras[key] for key in ("exif", "dpi", "comment", "xmp") if key in picture.extras}
    if kind == "JPEG":
        options |= {"quality": _QUALITY, "subsampling": 0}
    elif kind == "WEBP":
        options |= {
            "quality": _QUALITY,
            "lossless": picture.extras.get("lossless", picture.format != "JPEG"),
            "exact": True,
        }
    if kind == "BMP":
        options = {key: value for key, value in options.items() if key == "dpi"}
    Image.fromarray(np.ascontiguousarray(picture.samples())).save(path, kind, **options)
