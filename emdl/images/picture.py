"""A picture as it stands in a file: pixels, and all that has to go back into the file with them."""

from dataclasses import dataclass, field, replace

import numpy as np

ORIENTATION = 274  # tag of EXIF and TIFF
MOST_PIXELS = 178_956_970  # of a page: where Pillow suspects a decompression bomb


@dataclass(frozen=True)
class Picture:
    """A picture, or a page of a stack.

    Attributes
    ----------
    pixels : ndarray (H, W, C)
        Colours, C = 1 for grey and 3 for RGB; a TIFF may have any number. The dtype is that of the file.
    alpha : ndarray (H, W) or None
        Opacity.
    format : str
        Of the file it came from: PNG, JPEG, WEBP, BMP or TIFF.
    orientation : int
        How a viewer turns the pixels, 1 to 8 as in EXIF; 1 leaves them.
    profile : bytes or None
        ICC profile of the colours.
    extras : dict
        What else the writer of the same format keeps.
    notes : tuple of str
        What is not as it was in the file.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    format: str = "PNG"
    orientation: int = 1
    profile: bytes | None = None
    extras: dict = field(default_factory=dict)
    notes: tuple = ()

    @property
    def description(self):
        """Size, colours and depth, in words."""
        H, W, C = self.pixels.shape
        bits = 8 * self.pixels.dtype.itemsize
        colours = {1: "grey", 3: "RGB"}.get(C, f"{C} channels") + ("" if self.alpha is None else " with transparency")
        depth = {"f": f"{bits} bit float", "i": f"{bits} bit signed"}.get(self.pixels.dtype.kind, f"{bits} bit")
        return f"{W} x {H}, {colours}, {depth}"

    def samples(self):
        """Return pixels and transparency in one array, (H, W) if there is a single one, else (H, W, n)."""
        parts = [self.pixels] if self.alpha is None else [self.pixels, self.alpha[..., None]]
        array = np.concatenate(parts, axis=2) if len(parts) > 1 else self.pixels
        return array[..., 0] if array.shape[2] == 1 else array


def split(array, *, alpha):
    """Return pixels (H, W, C) and transparency (H, W) or None of an array (H, W) or (H, W, n) as it is in a file."""
    array = array[..., None] if array.ndim == 2 else array
    return (array[..., :-1], array[..., -1]) if alpha else (array, None)


def upright(picture):
    """Return the picture with its pixels turned as a viewer turns them, so that it needs no orientation.

    Parameters
    ----------
    picture : Picture
        Of any orientation.

    Returns
    -------
    Picture
        Its orientation is 1, also in its EXIF data.
    """
    if picture.orientation == 1:
        return picture
    extras = dict(picture.extras)
    if extras.get("exif"):
        extras["exif"] = _without_orientation(extras["exif"])
    alpha = None if picture.alpha is None else _turned(picture.alpha, picture.orientation)
    return replace(
        picture, pixels=_turned(picture.pixels, picture.orientation), alpha=alpha, orientation=1, extras=extras
    )


def _turned(array, orientation):
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array


def _without_orientation(exif):
    from PIL import Image

    tags = Image.Exif()
    tags.load(exif)
    tags[ORIENTATION] = 1
    return tags.tobytes()
