"""TIFF: every page with its numbers, and the tags that go along with them."""

import sys
import warnings

import numpy as np

from emdl.errors import FileFormatError, InputError
from emdl.images.picture import MOST_PIXELS, ORIENTATION, Picture, split

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _SEPARATED, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
_COPIED = (270, 271, 272, 285, 305, 306, 315, 33432)  # texts: description, maker, model, page, software, date, ...


def read(path):
    """Yield the pages of a TIFF.

    Parameters
    ----------
    path : Path
        TIFF or BigTIFF.

    Yields
    ------
    Picture

    Raises
    ------
    InputError
        If a page is CMYK, Lab, complex, a volume, or has more than `MOST_PIXELS`.
    FileFormatError
        If the compression needs a package that is not installed.
    """
    import tifffile

    with tifffile.TiffFile(path) as file:
        if file.is_imagej and len(file.pages) == 1 and file.series[0].shape != file.pages[0].shape:
            yield from _imagej_pages(path, file)
            return
        for number, page in enumerate(file.pages):
            yield _picture(path, page.aspage(), _array(path, page.aspage(), number), file.is_bigtiff)


def errors():
    """Return what tifffile calls its own errors, if it is in use: older versions have no ValueError."""
    tifffile = sys.modules.get("tifffile")
    return () if tifffile is None else (tifffile.TiffFileError,)


def count(path):
    """Return the number of pages of a TIFF."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        pages = len(file.pages)
        first = file.pages[0].shape
        return file.series[0].size // int(np.prod(first)) if pages == 1 and file.is_imagej else pages


def _imagej_pages(path, file):
    """Yield the planes that ImageJ writes one after the other behind a single page."""
    page = file.pages[0]
    planes = file.series[0].asarray(out="memmap").reshape(-1, *page.shape)
    for plane in planes:
        yield _picture(path, page, np.array(plane), file.is_bigtiff)


def _array(path, page, number):
    """Return the numbers of a page."""
    if page.imagewidth * page.imagelength > MOST_PIXELS:
        raise InputError(
            f"page {number} of {path} has more than {MOST_PIXELS // 10**6} million pixels; cut it into parts"
        )
    if page.photometric in (_SEPARATED, _LAB):
        kind = "CMYK" if page.photometric == _SEPARATED else "Lab"
        raise InputError(
            f"page {number} of {path} is in {kind}, not in RGB; convert it to RGB with its colour profile first"
        )
    try:
        return page.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        return _array_by_pillow(path, page, number)


def _array_by_pillow(path, page, number):
    """Return the numbers of a page in a compression that tifffile alone does not know, as LZW or JPEG."""
    from PIL import Image

    with Image.open(path) as image:
        image.seek(number)
        if page.photometric == _YCBCR:
            return np.asarray(image.convert("RGB"))
        array = np.asarray(image)
    if array.dtype != page.dtype or array.shape != page.shape:
        raise FileFormatError(
            f"page {number} of {path} is compressed with {page.compression.name}, which needs one more package for "
            f"{page.bitspersample} bits: pip install imagecodecs"
        )
    return array


def _picture(path, page, array, big):
    notes = []
    if array.dtype.kind not in "fiub":
        raise InputError(f"{path} holds numbers of type {array.dtype}, wanted real ones; convert it first")
    if page.photometric == _PALETTE:
        array = _coloured(array, page.colormap)
        notes.append("colours of a palette are written as RGB")
    elif array.ndim == 3 and page.axes in ("SYX", "CYX"):
        array = np.moveaxis(array, 0, -1)
    if array.ndim not in (2, 3) or (array.ndim == 3 and page.axes.startswith("Z")):
        raise InputError(f"{path} holds volumes with axes {page.axes}, wanted pages; save the planes as pages")
    if 0 in array.shape:
        raise InputError(f"{path} has a page without pixels, of shape {array.shape}")
    if array.dtype.kind == "b":
        array = array.astype(np.uint8) * np.uint8(255)
        notes.append("1 bit is written as 8 bits of grey")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    pixels, alpha = split(array, alpha=array.ndim == 3 and any(kind in (1, 2) for kind in page.extrasamples))
    tags = page.tags
    profile = tags[34675].value if 34675 in tags else None
    orientation = tags[ORIENTATION].value if ORIENTATION in tags else 1
    extras = {
        "photometric": page.photometric if page.photometric in (_MINISWHITE, _MINISBLACK) else None,
        "compressed": page.compression != 1,
        "big": big,
        "associated": 1 in page.extrasamples,
        "subfiletype": page.subfiletype,
        "resolution": _resolution(tags),
        "tags": [(code, tags[code].dtype, tags[code].count, tags[code].value) for code in _COPIED if code in tags],
    }
    return Picture(
        pixels, alpha, "TIFF", orientation if orientation in range(1, 9) else 1, profile, extras, tuple(notes)
    )


def _coloured(array, colormap):
    """Return the colours that indices stand for, in 8 bits if that is all that the palette uses."""
    deep = colormap.T[array]
    return deep if (colormap % 257).any() and (colormap & 0xFF).any() else (deep >> 8).astype(np.uint8)


def _resolution(tags):
    """Return (x, y, unit), or None."""
    if not {282, 283} <= {tag.code for tag in tags}:
        return None
    x, y = (tags[code].value for code in (282, 283))
    return (x, y, tags[296].value if 296 in tags else 2) if x[1] and y[1] else None


def write(path, pictures):
    """Write pictures as the pages of a TIFF.

    Parameters
    ----------
    path : Path
        File to write.
    pictures : iterable of Picture
        Written as they come.
    """
    import tifffile

    writer = None
    try:
        for picture in pictures:
            if writer is None:
                writer = tifffile.TiffWriter(path, bigtiff=picture.extras.get("big", False))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about old tags that say the same as new ones
                writer.write(picture.samples(), **_options(picture))
    finally:
        if writer is not None:
            writer.close()


def _options(picture):
    C, extras = picture.pixels.shape[2], picture.extras
    photometric = "rgb" if C == 3 else {_MINISWHITE: "miniswhite"}.get(extras.get("photometric"), "minisblack")
    tags = [(code, kind, number, value, True) for code, kind, number, value in extras.get("tags", ())]
    if picture.orientation != 1:
        tags.append((ORIENTATION, 3, 1, picture.orientation, True))
    options = {
        "photometric": photometric,
        "metadata": None,
        "software": False,
        "contiguous": False,
        "compression": "zlib" if extras.get("compressed", True) else None,
        "iccprofile": picture.profile,
        "subfiletype": extras.get("subfiletype", 0),
        "extratags": tags,
    }
    if C > 1:
        options["planarconfig"] = "contig"
    n_extra = (0 if picture.alpha is None else 1) + (0 if C in (1, 3) else C - 1)
    if n_extra:
        alpha = [] if picture.alpha is None else ["assocalpha" if extras.get("associated") else "unassalpha"]
        options["extrasamples"] = ["unspecified"] * (n_extra - len(alpha)) + alpha
    if extras.get("resolution"):
        x, y, unit = extras["resolution"]
        options |= {"resolution": (x, y), "resolutionunit": unit}
    return options
