"""Photographs to learn from: reading them so small that their own noise is gone, or for their noise; drawing crops."""

import functools
import logging
import math
import pathlib

import numpy as np

from emdl.backend import as_real
from emdl.errors import EmdlError, InputError, InputTypeError
from emdl.images import files, restore
from emdl.images.album import Album, Photograph

SIZES = (1500, 900)  # pixels of the longer side; a photograph is used at each size that it has
SUFFIXES = tuple(files.FORMATS)
_HELD_OUT = 0.1  # share of the photographs that only judge
_MOST_HELD_OUT = 12
_MOST_NOISY = 200  # noisy photographs, evenly spread over the folder
_MOST_SIDE = 2000  # pixels along each axis of a noisy photograph: of a larger one the middle is learned from
_MOST_SAMPLES = 64_000_000  # of all noisy photographs, 256 MB
_JUDGED_SIDE = 384  # pixels along each axis of a noisy photograph that judges
_LOG = logging.getLogger(__name__)


def find_photographs(folder):
    """Return the paths of the images in a folder, in the order of their names.

    Parameters
    ----------
    folder : path
        Searched through with all that lies below it.

    Returns
    -------
    list of pathlib.Path

    Raises
    ------
    InputError
        If there is none.
    """
    paths = sorted(p for p in pathlib.Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise InputError(f"there is no photograph in {folder}; files should end in one of {', '.join(SUFFIXES)}")
    return paths


def read_photographs(folder, *, sizes=SIZES, grey=True):
    """Return the photographs of a folder, reduced, as 8-bit images.

    Reduction averages neighbouring pixels, so that the noise of the camera and the traces of compression, which would
    teach a denoiser to keep them, go. A photograph that is smaller than all `sizes` is taken as it is. One that cannot
    be read is left out, with a warning in the log.

    Parameters
    ----------
    folder : path
        Searched through with all that lies below it; pages of a TIFF are photographs each.
    sizes : sequence of int
        Longer sides, pixels.
    grey : bool
        Whether to return the luma alone.

    Returns
    -------
    Album
        Arrays (C, H, W) of uint8; C is 1 or 3. The order follows the names of the files.

    Raises
    ------
    InputError
        If there is no photograph, or none can be read.
    """

    def prepare(path, number, page):
        longer = max(page.pixels.shape[:2])
        at = [Photograph(path, s, grey, number) for s in [s for s in sizes if s < longer] or [longer]]
        return [(one, one.of(page)) for one in at]

    return _album(pair for pairs in _read(folder, prepare) for pair in pairs)


def read_apart(folder, *, sizes=SIZES, grey=True):
    """Return photographs to learn from, each at several sizes, and photographs to judge by, at the smallest of them.

    A photograph is held out as a whole: at another size it would give the answers away.

    Parameters
    ----------
    folder, sizes, grey
        As in `read_photographs`; a photograph that is smaller than one of the sizes is taken as it is for that one.

    Returns
    -------
    learned_from, held_out : Album
        Of one photograph alone, none is held out.

    Raises
    ------
    InputError
        As `read_photographs`.
    """

    def prepare(path, number, page):
        at = [Photograph(path, size, grey, number) for size in sorted(sizes, reverse=True)]
        images = {image.shape: (one, image) for one, image in ((one, one.of(page)) for one in at)}
        return list(images.values())

    found = list(_read(folder, prepare))
    held_out = _held_out(len(found))
    learned_from = _album(pair for i, pairs in enumerate(found) if i not in held_out for pair in pairs)
    return learned_from, _album(found[i][-1] for i in sorted(held_out))


def _album(pairs):
    pairs = list(pairs)
    return Album([one for one, _ in pairs], [image for _, image in pairs])


def read_noisy(folder, *, grey=True):
    """Return noisy photographs in units of their noise.

    Of many or large ones the middle is taken, so that all together need no more than 256 MB. One that shows no noise is
    left out, with a warning in the log.

    Parameters
    ----------
    folder : path
        Searched through with all that lies below it; pages of a TIFF are photographs each.
    grey : bool
        Whether to take the one direction of colour with the most contrast, brightness, as `emdl.images.restore.plan`
        does; the luma would be another mixture than the denoiser sees. Otherwise those in grey are left out.

    Returns
    -------
    learned_from, held_out : list of array (C, H, W) of float32
        Those held out are cut to 384 x 384 pixels. Of one photograph alone, none is held out.
    levels : list of float
        Noise levels that were found, on the scale from 0 to 255 (of numbers that are not whole, 255 is their range),
        of `learned_from` and then of `held_out`.

    Raises
    ------
    InputError
        If there is no photograph, or none shows noise.
    """
    n_pages = sum(1 for _ in _places(folder))
    chosen = {int(i) for i in np.linspace(0, n_pages - 1, _MOST_NOISY)}
    side = min(_MOST_SIDE, math.isqrt(_MOST_SAMPLES // ((1 if grey else 3) * len(chosen))))
    found = list(_read(folder, lambda path, number, page: _in_units_of_noise(page, grey, side), chosen))
    held_out = _held_out(len(found))
    learned_from, judges = ([one for i, one in enumerate(found) if (i in held_out) == held] for held in (False, True))
    levels = [level for _, level in learned_from + judges]
    return [planes for planes, _ in learned_from], [_middle(planes, _JUDGED_SIDE) for planes, _ in judges], levels


def _held_out(count):
    """Return which of so many photographs judge, evenly spread."""
    n = min(math.ceil(_HELD_OUT * count), _MOST_HELD_OUT) if count > 1 else 0
    return {int(i) for i in np.linspace(0, count - 1, n + 2)[1:-1]} if n else set()


def _places(folder):
    """Yield (path, number of the page) of all photographs of a folder."""
    for path in find_photographs(folder):
        try:
            pages = files.count(path)
        except EmdlError:
            pages = 1  # reading it says what is wrong
        yield from ((path, number) for number in range(pages))


def _read(folder, prepare, chosen=None):
    """Yield the photographs of a folder, prepared; leave out what cannot be read or prepared, and say so."""
    places, reason, count = {}, None, 0
    for index, (path, number) in enumerate(_places(folder)):
        if chosen is None or index in chosen:
            places.setdefault(path, set()).add(number)
    for path, numbers in places.items():
        pages = enumerate(files.read(path))
        while True:
            try:
                number, page = next(pages)
                made = prepare(str(path.resolve()), number, page) if number in numbers else None
            except StopIteration:
                break
            except EmdlError as error:
                reason = error
                _LOG.warning("%s is left out: %s", path, error)
                continue
            if made is not None:
                yield made
                count += 1
    if not count:
        raise InputError(f"no photograph in {folder} can be learned from; of the last one: {reason}")


def _in_units_of_noise(page, grey, side):
    """Return the middle of a page, over its noise level, and that level on the scale from 0 to 255."""
    pixels = page.pixels
    if pixels.shape[2] not in (1, 3) or (pixels.shape[2] == 1 and not grey):
        raise InputError(f"it is {page.description}; wanted {'grey or ' if grey else ''}RGB")
    planes = _middle(np.moveaxis(pixels, -1, 0), _MOST_SIDE)
    restore.check_finite(planes, "it")
    planes = restore.near_one(planes, "it")[0]
    plan = restore.plan(planes, None, None, turn=grey)
    planes = restore.mix(planes, plan.basis[0])[None] if grey else planes.astype(np.float32)
    level = float(plan.sigma[0]) if grey else plan.level
    if level == 0:
        raise InputError("it shows no noise")
    peak = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "iu" else float(np.ptp(planes))
    return _middle(planes, side) / np.float32(level), 255 * level / peak


def _middle(planes, side):
    """Return the middle of an image (C, H, W), no larger than `side` along each axis."""
    top, left = (max(0, n - side) // 2 for n in planes.shape[1:])
    return planes[:, top : top + side, left : left + side]


def as_photographs(images, name):
    """Return images as arrays (C, H, W) in the dtype that they have, after making sure that they can be learned from.

    Parameters
    ----------
    images : sequence of array (C, H, W)
        What was given.
    name : str
        What the caller calls it, for the messages.

    Returns
    -------
    list of ndarray

    Raises
    ------
    InputTypeError
        If it is no sequence of arrays of real numbers.
    InputError
        If an image has another shape, or a value that is not finite.
    """
    if isinstance(images, Album):
        return images
    whole = isinstance(images, np.ndarray) and images.ndim > 0 and not isinstance(images, np.ma.MaskedArray)
    if not (whole or isinstance(images, list | tuple)):
        raise InputTypeError(f"{name} is a {type(images).__name__}, wanted a list of arrays (channels, rows, columns)")
    found = []
    for i, image in enumerate(images):
        checked, one = as_real(image, f"{name}[{i}]"), f"{name}[{i}]"
        if checked.ndim != 3 or 0 in checked.shape:
            raise InputError(f"{one} has shape {checked.shape}, wanted (channels, rows, columns), none of them zero")
        image = np.asarray(image)
        found.append(image if image.dtype.kind in "iu" else checked)
    return found


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
        self.photographs, self.size, self.tries = photographs, size, tries
        weight = np.sqrt([float(image.shape[1] * image.shape[2]) for image in self.images])
        self._edges = np.cumsum(weight / weight.sum())

    def __reduce__(self):
        return functools.partial(Crops, tries=self.tries), (self.photographs, self.size)

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
