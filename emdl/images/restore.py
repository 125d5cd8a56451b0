"""Denoise an image of any size, kind of numbers and number of channels."""

import contextlib
import math
import os
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from emdl.backend import array_module, check_number, parallel_map
from emdl.device import to_host
from emdl.errors import InputError, InputTypeError
from emdl.images import alike, colour, noise

_STRIP = 1 << 18  # samples that are converted at a time
_MANY_CLIPPED = 0.01  # share of the samples from which on the person is told
_FAR = 1000  # standard deviations; an image whose level is farther from zero is moved there first
_LIMIT = 1e140  # of values, and the inverse of how they differ: squares stay within the range of numbers
_RANGE = (1e-12, 1e12)  # of standard deviations whose squares are no trouble to single precision
_STEPS = 64  # between the smallest and the largest value that floating point has to tell apart


@dataclass(frozen=True)
class Plan:
    """What is about to be done to an image; see `plan`.

    Attributes
    ----------
    basis : ndarray (C, C)
        Orthonormal; row k makes plane k of the channels. The identity for a network with as many channels.
    sigma : ndarray (n,)
        Noise level of each group of planes that is denoised at once, in the unit of the image.
    clipped : float
        Share of the samples at either end of the range, 0 if no more than noise explains.
    estimated : bool
        Whether `sigma` was estimated.
    """

    basis: np.ndarray
    sigma: np.ndarray
    clipped: float
    estimated: bool

    @property
    def level(self):
        """Noise level of the channels, root mean square."""
        return float(np.sqrt(np.mean(self.sigma**2)))


def denoise(image, model=None, sigma=None, *, channel_axis=None):
    r"""Return an image without its white noise.

    The image is coded sparsely with the learned atoms of a `model` and put together again from the codes. Channels are
    first turned into planes that are not correlated (luminance and two differences of colours, for a photograph), so
    that what they have in common is used.

    Parameters
    ----------
    image : array (H, W), or with one axis more for channels
        Any real dtype and any size, NumPy or CuPy: the layers of a network run on the device of a CuPy array, all that
        is done once for an image runs on the host. It is not written to.
    model : Network, path, or None
        Whatever has a method ``denoise(planes, sigma)`` for planes (n, C, H, W), C = 1 or the number of channels of the
        image; or the path of what ``emdl train --task denoise``, `Network.save` or `PatchModel.save` wrote. By default
        the network that comes with emdl, trained on photographs.
    sigma : float, optional
        Standard deviation of the noise in each channel, on the scale of what is returned: for an image of integers 1 is
        the largest of them. 0 returns the image as it is, too large a value blurs. By default it is estimated, for each
        plane apart, see `estimate_sigma`.
    channel_axis : int, optional
        The axis of channels; None for an image in grey. Transparency is no colour: leave it out.

    Returns
    -------
    ndarray
        Shape of the image. float32 and float64 keep dtype and scale, float16 becomes float32; integers become float64
        from 0 to 1 (signed ones from -1 to 1) as in `skimage.util.img_as_float`, and so do booleans. Values may lie a
        little outside the range of the input: nothing is clipped. The work is done in single precision.

    Raises
    ------
    InputError
        If the shape makes no sense, a value is not finite, or `sigma` is negative or not finite.
    InputTypeError
        If the image is complex, masked, or holds no numbers.
    FileFormatError
        If `model` is a path and the file is no network.

    Warns
    -----
    UserWarning
        If `sigma` is to be estimated and more than 1 % of the samples are clipped: the estimate is too low then.

    Examples
    --------
    >>> import numpy as np
    >>> from emdl import images
    >>> y, x = np.mgrid[-1:1:96j, -1:1:96j]
    >>> clean = 0.5 + 0.4 * np.sign(x * y)
    >>> noisy = clean + 0.1 * np.random.default_rng(0).standard_normal(clean.shape)
    >>> better = images.denoise(noisy)
    >>> bool(np.std(better - clean) < 0.03)
    True
    """
    xp = array_module(image if hasattr(image, "dtype") else None)
    channels, top = _channels(to_host(image) if xp is not np else image, channel_axis)
    model = as_model(model, len(channels), xp)
    channels, level, unit = near_one(channels)
    if sigma is not None:
        sigma = check_number(sigma, "sigma", 0) * top / unit
    made = plan(channels, model, sigma)
    if made.estimated and made.clipped > _MANY_CLIPPED:
        warnings.warn(clipping_sentence(made.clipped), stacklevel=2)
    out = np.empty(np.shape(image), _float_dtype(image))
    view = _view_channels(out, channel_axis)
    carry_out(made, channels, model, view, scale=unit / top)
    if level.any():
        view += level / top
    return out if xp is np else xp.asarray(out)


def estimate_sigma(image, *, channel_axis=None):
    """Return the standard deviation of the white noise in an image.

    Parameters
    ----------
    image : array (H, W), or with one axis more for channels
        As in `denoise`.
    channel_axis : int, optional
        As in `denoise`.

    Returns
    -------
    float or ndarray (C,)
        For each channel, on the scale of `denoise`. It is found where there is least texture: within 3 % (root mean
        square) from 25 grey values of 256 on, 7 % at 10; see `emdl.images.noise`. 0 for a constant image.

    Raises
    ------
    InputError, InputTypeError
        As `denoise`.
    """
    channels, top = _channels(to_host(image) if hasattr(image, "dtype") else image, channel_axis)
    channels, _, unit = near_one(channels)
    found = plan(channels, None, None).sigma * (unit / top)
    return float(found[0]) if channel_axis is None else found


@dataclass(frozen=True)
class OnDevice:
    """A network whose layers run on a GPU, for planes that lie on the host.

    Attributes
    ----------
    network : Network
        What is run.
    xp : module
        CuPy.
    """

    network: Any
    xp: Any

    def __getattr__(self, name):
        return getattr(self.network, name)

    def denoise(self, planes, sigma):
        """Return planes (n, C, H, W) without noise, as `Network.denoise` does."""
        return to_host(self.network.denoise(self.xp.asarray(planes), sigma))


def as_model(model, n_channels=1, xp=np):
    """Return the model that is meant.

    Parameters
    ----------
    model : Network, path, or None
        As in `denoise`.
    n_channels : int
        Of the image: None stands for the bundled network for as many, or else for that for single planes.
    xp : module
        Where the layers of a network are to run, NumPy or CuPy.

    Returns
    -------
    object
        With a method `denoise`.

    Raises
    ------
    InputTypeError
        If `model` has no such method.
    FileFormatError
        If the file is no network.
    """
    if model is not None and not isinstance(model, str | os.PathLike):
        if not hasattr(model, "denoise"):
            raise InputTypeError(f"model is a {type(model).__name__}, wanted a network, the path of one, or None")
        found = model
    else:
        found = _network(model, n_channels)
    if xp is np or isinstance(found, OnDevice):
        return found
    from emdl.images.network import Network

    if not isinstance(found, Network):
        raise InputError(f"a {type(found).__name__} runs on the CPU only, and the image lies on a GPU")
    return OnDevice(found, xp)


def _network(path, n_channels):
    from emdl.images import network

    if path is not None:
        return _load(path)
    with contextlib.suppress(InputError):
        return network.bundled(n_channels)
    return network.bundled()


def _load(path):
    """Return the network or the dictionary of patches in a file."""
    from emdl.images.learn import TASK, PatchModel
    from emdl.images.network import Network
    from emdl.storage import old_file

    with old_file(path) as file:
        held = file["attributes"].attrs.get("task") if "attributes" in file else None
    return PatchModel.load(path) if held == TASK else Network.load(path)


def plan(channels, model, sigma, *, turn=None):
    """Decide along which directions of colour, and with which noise levels, an image is denoised.

    Parameters
    ----------
    channels : array (C, H, W)
        The image, finite.
    model : object
        With `denoise`; None for one that takes every channel alone.
    sigma : float or None
        Noise level of the channels in the unit of the image; None to estimate it.
    turn : bool, optional
        Whether to look for directions of colour; by default if the model takes single planes.

    Returns
    -------
    Plan

    Raises
    ------
    InputError
        If the model is for another number of channels.
    """
    turn = model is not None if turn is None else turn
    C = len(channels)
    together = getattr(model, "n_channels", 1)
    if together not in (1, C):
        raise InputError(
            f"the model is for {together} channels and the image has {C}; give channel_axis, or use another model"
        )
    ends, shares = zip(*(noise.clipping(channel) for channel in channels), strict=True)
    at = noise.unclipped(channels, ends, noise.corners(channels.shape[1:])) if sigma is None else None
    one_by_one = turn and together == 1 and C > 1
    basis = colour.principal(_some_pixels(channels)) if one_by_one else np.eye(C)
    found = np.full(C, float(sigma)) if sigma is not None else np.array([_level(channels, row, at) for row in basis])
    if together > 1:
        found = np.sqrt(np.mean(found**2, keepdims=True))
    return Plan(basis, found, float(np.mean(shares)), sigma is None)


def _some_pixels(channels):
    """Return the colours (C, n) of pixels evenly spread over an image."""
    step = 1 + math.isqrt(channels[0].size // noise.MOST_PATCHES)
    return channels[:, ::step, ::step].reshape(len(channels), -1)


def _level(channels, row, at):
    """Return the noise level of the plane that a row of the basis makes, from its patches."""
    plane = channels[0] if len(channels) == 1 else mix(channels, row)
    return noise.level(plane, at) if len(at) >= noise.FEW_PATCHES else noise.level_of_differences(plane)


def carry_out(plan, channels, model, out, *, scale=1.0, progress=None):
    """Denoise an image as planned.

    Memory beside the image and the result: two planes in single precision for each channel, and what the model needs
    for one plane. Where channels are denoised plane by plane, `emdl.images.alike` corrects the result.

    Parameters
    ----------
    plan : Plan
        From `plan`.
    channels : array (C, H, W)
        The image.
    model : object
        With `denoise`.
    out : array (C, H, W)
        Takes the result; integers are rounded and kept within their range.
    scale : float
        What the result is multiplied by.
    progress : callable, optional
        Called with the share of the work that is done, 0 to 1.
    """
    if not plan.sigma.any():
        _put(channels, np.eye(len(channels)), out, scale)
        return
    if len(plan.sigma) < len(channels):
        clean = model.denoise(channels[None].astype(np.float32), plan.sigma[0])[0]
        _put(clean, plan.basis, out, scale)
        return
    noisy, clean = (np.empty(channels.shape, np.float32) for _ in range(2))
    for k, (row, sigma) in enumerate(zip(plan.basis, plan.sigma, strict=True)):
        noisy[k] = clean[k] = mix(channels, row)
        if sigma > 0:
            clean[k] = model.denoise(noisy[k : k + 1, None], sigma)[0, 0]
        if progress:
            progress((k + 1) / len(channels))
    if len(channels) == 1 or not plan.sigma.all():
        _put(clean, plan.basis.T, out, scale)
        return

    def correct(rows):
        strip = alike.corrected(noisy, clean, plan.sigma, rows)
        _put_rows(strip, plan.basis.T, out[:, rows], scale)

    parallel_map(correct, [slice(r.start, min(r.stop, out.shape[1])) for r in _strips(out.shape[1:])])


def clipping_sentence(share):
    """Return what to tell a person about an image of which this share is clipped."""
    return (
        f"{share:.0%} of the image is clipped (at the darkest or brightest value), which hides noise; its level "
        "is estimated from the rest and may be too low: give sigma if you know it"
    )


def _strips(shape):
    """Return slices of rows with about `_STRIP` samples."""
    rows = max(1, _STRIP // max(1, math.prod(shape[1:])))
    return [slice(i, i + rows) for i in range(0, shape[0], rows)]


def mix(channels, row):
    """Return the plane that a row of the basis makes of an image.

    Parameters
    ----------
    channels : array (C, H, W)
        The image.
    row : array (C,)
        Weights of the channels.

    Returns
    -------
    ndarray (H, W) of float32
    """
    plane = np.empty(channels.shape[1:], np.float32)
    for rows in _strips(plane.shape):
        plane[rows] = np.tensordot(row, channels[:, rows].astype(np.float64, order="C"), 1)
    return plane


def _put(planes, back, out, scale):
    """Write back @ planes into `out`, in its dtype."""
    for rows in _strips(out.shape[1:]):
        _put_rows([p[rows] for p in planes], back, out[:, rows], scale)


def _put_rows(planes, back, out, scale):
    strip = np.tensordot(back, np.stack(planes).astype(np.float64), 1)
    if scale != 1:
        strip *= scale
    if out.dtype.kind in "iu":
        limits = np.iinfo(out.dtype)
        np.clip(np.rint(strip, out=strip), limits.min, limits.max, out=strip)
    out[...] = strip


def near_one(channels, name="image"):
    """Return an image that single precision holds, with what was done to it: level + unit * result = channels.

    Parameters
    ----------
    channels : array (C, H, W)
        The image, finite.
    name : str
        What to call it in messages.

    Returns
    -------
    channels : array (C, H, W)
        The very array unless its values are very large, very small, or far from zero beside how they differ.
    level : ndarray (C, 1, 1)
        Mean of each channel, where it was taken out; else 0.
    unit : float
        A power of two, mostly 1.

    Raises
    ------
    InputError
        If the values lie beyond 1e140, or differ by less than 1e-140, or by little more than the steps in which their
        dtype holds them.
    """
    level, unit = np.zeros((len(channels), 1, 1)), 1.0
    if channels.dtype.kind in "iub" and channels.dtype.itemsize <= 2:
        return channels, level, unit
    low, high = (np.array([float(f(c)) for c in channels]) for f in (np.min, np.max))
    largest = float(np.maximum(np.abs(low), np.abs(high)).max())
    if largest > _LIMIT:
        raise InputError(f"{name} holds {largest:.3g}, wanted at most {_LIMIT:g}; give it in another unit")
    span = float((high - low).max())
    if span == 0:
        return channels, level, unit
    if span < 1 / _LIMIT:
        raise InputError(f"{name} spans {span:.3g}, wanted at least {1 / _LIMIT:g}; give it in another unit")
    step = float(np.spacing(channels.dtype.type(largest))) if channels.dtype.kind == "f" else 0.0
    if span < _STEPS * step:
        raise InputError(
            f"{name} spans {span:.3g} around {largest:.3g}, where {channels.dtype} holds numbers {step:.3g} apart;"
            " subtract the mean before it is rounded like that"
        )
    if largest <= _FAR * span and _RANGE[0] < span < _RANGE[1]:
        return channels, level, unit
    unit = 2.0 ** round(math.log2(span)) if not _RANGE[0] < span < _RANGE[1] else 1.0
    scaled = channels.astype(np.float64) / unit
    centre = scaled.mean(axis=(1, 2), keepdims=True)
    return scaled - centre, centre * unit, unit


def _float_dtype(image):
    dtype = image.dtype if hasattr(image, "dtype") else np.asarray(image).dtype
    return np.float32 if dtype.kind == "f" and dtype.itemsize <= 4 else np.float64


def _view_channels(array, channel_axis):
    """Return a view (C, H, W)."""
    return array[None] if channel_axis is None else np.moveaxis(array, channel_axis, 0)


def _channels(image, channel_axis):
    """Return the image as (C, H, W), a view where possible, and the value that becomes 1."""
    if isinstance(image, np.ma.MaskedArray):
        raise InputTypeError("image is a masked array, which would be read as if nothing were masked; fill it first")
    try:
        image = np.asarray(image)
    except (TypeError, ValueError) as error:
        raise InputTypeError(f"image is no array of numbers ({error})") from error
    if image.dtype.kind not in "fiub":
        raise InputTypeError(f"image has dtype {image.dtype}, wanted real numbers; convert it first")
    wanted = 2 if channel_axis is None else 3
    if image.ndim != wanted or 0 in image.shape:
        hint = "; for colour say which axis holds the channels, channel_axis=-1" if image.ndim == 3 else ""
        raise InputError(f"image has shape {image.shape}, wanted {wanted} axes, none of them empty{hint}")
    if channel_axis is not None and not (isinstance(channel_axis, int | np.integer) and -3 <= channel_axis < 3):
        raise InputError(f"channel_axis is {channel_axis!r}, wanted an axis of an image with 3 of them")
    channels = _view_channels(image, channel_axis)
    check_finite(channels)
    if image.dtype.kind == "b":
        return channels.view(np.uint8), 1
    return channels, np.iinfo(image.dtype).max if image.dtype.kind in "iu" else 1


def check_finite(channels, name="image"):
    """Raise unless every value of an image (C, H, W) is finite.

    Raises
    ------
    InputError
        With the number of values that are not, and the place of the first.
    """
    if channels.dtype.kind != "f":
        return
    bad = sum(int((~np.isfinite(channels[:, rows])).sum()) for rows in _strips(channels.shape[1:]))
    if bad:
        _, row, column = (int(i[0]) for i in np.nonzero(~np.isfinite(channels)))
        raise InputError(
            f"{name} holds {bad:,} value{'s that are' if bad > 1 else ' that is'} not finite, the first in row {row}, "
            f"column {column}; replace them first"
        )
