"""Photographs to learn from: reading them small enough that their own noise is gone, and drawing crops."""

import pathlib

import numpy as np

from emdl.errors import InputError

SIZES = (1500, 900)  # pixels of the longer side; a photograph is used at each size that it has
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")


def read_photographs(folder, *, sizes=SIZES, grey=True):
    """Return the photographs of a folder, reduced, as 8-bit images.

    Reduction averages neighbouring pixels, so that the noise of the camera and the traces of compression, which would
    teach a denoiser to keep them, go. A photograph that is smaller than all `sizes` is taken as it is.

    Parameters
    ----------
    folder : path
        Searched through with all that lies below it.
    sizes : sequence of int
        Longer sides, pixels.
    grey : bool
        Whether to return the luma alone.

    Returns
    -------
    list of ndarray (C, H, W) of uint8
        C is 1 or 3. The order follows the names of the files.

    Raises
    ------
    InputError
        If there is no photograph.
    """
    from PIL import Image

    paths = sorted(p for p in pathlib.Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise InputError(f"there is no photograph in {folder}; files should end in one of {', '.join(SUFFIXES)}")
    out = []
    for path in paths:
        with Image.open(path) as file:
            image = file.convert("L" if grey else "RGB")
        longer = max(image.size)
        for size in [s for s in sizes if s < longer] or [longer]:
            small = tuple(max(1, round(n * size / longer)) for n in image.size)
            reduced = np.asarray(image.resize(small, Image.Resampling.LANCZOS) if size < longer else image)
            out.append(np.ascontiguousarray(np.atleast_3d(reduced).transpose(2, 0, 1)))
    return out


class Crops:
    """Draws square crops of photographs, turned and mirrored at random.

    Parameters
    ----------
    photographs : list of array (C, H, W)
        At least one of them as large as a crop; smaller ones are left out.
    size : int
        Pixels along each axis of a crop.
    tries : int
        Places that are drawn for each crop; the one with the most contrast between neighbouring pixels is taken. With 1
        much of what a network sees is sky.

    Raises
    ------
    InputError
        If there is no photograph of that size, or their numbers of channels differ.
    """

    def __init__(self, photographs, size, *, tries=2):
        self.images = [image for image in photographs if min(image.shape[1:]) >= size]
        if not self.images:
            raise InputError(f"no photograph has {size} by {size} pixels; give larger ones")
        channels = sorted({image.shape[0] for image in self.images})
        if len(channels) > 1:
            raise InputError(f"the photographs have {channels} channels, wanted one number; convert them first")
        self.size, self.tries = size, tries
        weight = np.sqrt([float(image.shape[1] * image.shape[2]) for image in self.images])
        self._edges = np.cumsum(weight / weight.sum())

    def draw(self, rng):
        """Return one crop.

        Parameters
        ----------
        rng : numpy.random.Generator
            Source of the places.

        Returns
        -------
        ndarray (C, size, size) of float32
        """
        best, most = np.empty(0), -1.0
        for _ in range(self.tries):
            image = self.images[min(int(np.searchsorted(self._edges, rng.random())), len(self.images) - 1)]
            row, column = (int(rng.integers(n - self.size + 1)) for n in image.shape[1:])
            crop = image[:, row : row + self.size, column : column + self.size].astype(np.float32)
            contrast = float(np.abs(np.diff(crop, axis=-1)).mean())
            if contrast > most:
                best, most = crop, contrast
        view = int(rng.integers(8))
        best = best[..., ::-1] if view % 2 else best
        return np.ascontiguousarray(np.rot90(best, view // 2, axes=(-2, -1)))
