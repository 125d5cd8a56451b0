"""Photographs as arrays that another process can read from their files again."""

import itertools
from dataclasses import dataclass

import numpy as np

from emdl import sources
from emdl.errors import FileFormatError, InputError
from emdl.images import files


@dataclass(frozen=True)
class Photograph:
    """Where a photograph lies, and how it is to be read.

    Attributes
    ----------
    path : str
        An image file.
    size : int
        Pixels of the longer side to which it is reduced; a smaller one is taken as it is.
    grey : bool
        Whether the luma is taken alone.
    page : int
        Which page of a TIFF.
    """

    path: str
    size: int
    grey: bool = True
    page: int = 0

    def picture(self):
        """Return the `Picture` in the file."""
        found = next(itertools.islice(files.read(self.path), self.page, None), None)
        if found is None:
            raise FileFormatError(f"{self.path} has no page {self.page}")
        return found

    def of(self, picture):
        """Return the photograph as ndarray (C, H, W) of uint8, given the picture in the file; C is 1 or 3.

        Raises
        ------
        InputError
            If it is not grey or RGB of 8 or 16 bits.
        """
        from PIL import Image

        pixels = picture.pixels
        if pixels.dtype == np.uint16:
            pixels = np.round(pixels / 257).astype(np.uint8)
        if pixels.dtype != np.uint8 or pixels.shape[2] not in (1, 3):
            raise InputError(f"it is {picture.description}; wanted grey or RGB of 8 or 16 bits")
        image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
        image = image.convert("L" if self.grey else "RGB")
        longer = max(image.size)
        if self.size < longer:
            columns, rows = (max(1, round(n * self.size / longer)) for n in image.size)
            image = image.resize((columns, rows), Image.Resampling.LANCZOS)
        return np.ascontiguousarray(np.atleast_3d(np.asarray(image)).transpose(2, 0, 1))


class Album(list):
    """A list of photographs as arrays, which another process reads from their files again.

    Parameters
    ----------
    sources : sequence of Photograph
        Where they lie.
    images : sequence of ndarray, optional
        The photographs, where they have been read already.
    """

    def __init__(self, sources, images=None):
        self.sources = tuple(sources)
        super().__init__(_read(self.sources) if images is None else images)

    def __reduce__(self):
        return _open_again, (self.sources,)


def _read(photographs):
    """Give photographs; neighbours that come from the same page of a file are read once."""
    for _, same in itertools.groupby(photographs, key=lambda one: (one.path, one.page)):
        first, *others = same
        picture = first.picture()
        yield from (one.of(picture) for one in (first, *others))


def _open_again(photographs):
    """Return the photographs in a process that may not see their files."""
    for path in sorted({photograph.path for photograph in photographs}):
        with sources.seen(path), open(path, "rb"):
            pass
    return Album(photographs)
