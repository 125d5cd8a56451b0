"""A dictionary learned on the very image that is to be denoised, by EM, without any clean image.

Every patch of an image is a signal of one position: this is the model of the package with the stride as large as an
atom, all shifts averaged. A patch is its mean, an atom that is not thresholded, plus a few of the other atoms, plus
noise. Codes are zero or normal (Bernoulli-Gaussian) instead of Laplace: an l1 penalty shrinks what it keeps, and the
patches of one image are too few to make up for that.

    log p = -||y - D z||^2 / (2 sigma^2) - sum_k price_k [z_k != 0] - sum_k z_k^2 / (2 tau^2 sigma^2)

- E-step: greedy, see `emdl.images.greedy`.
- M-step: the exact dictionary step; tau^2 from the energy of the codes; price_k = -log of the probability pi_k that the
  atom is active, pi_k = (n_k / N + 1 / K) / 2: the share of the patches that used it, under a prior of mean 1 / K that
  counts as much as the data. Without a prior pi_k and the codes it lets in shrink each other away, as lambda does in
  (5); K equal prices log K are the risk inflation criterion.

The overlapping patches are averaged with weights by their posterior variance.

References
----------
.. [1] M. Elad, M. Aharon, Image denoising via sparse and redundant representations over learned dictionaries, IEEE
   Trans. Image Process. 15 (2006), doi:10.1109/TIP.2006.881969.
.. [2] D. Foster, E. George, The risk inflation criterion for multiple regression, Ann. Stat. 22 (1994),
   doi:10.1214/aos/1176325766.
.. [3] T. Pang, H. Zheng, Y. Quan, H. Ji, Recorrupted-to-recorrupted: unsupervised deep learning for image denoising,
   CVPR (2021), doi:10.1109/CVPR46437.2021.00208.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from emdl import checkpoint as kept
from emdl.backend import (
    as_dictionary,
    as_real,
    as_rng,
    as_signals,
    check_callable,
    check_count,
    check_number,
    n_threads,
    parallel_map,
    with_one_blas_thread,
)
from emdl.errors import FileFormatError, InputError, InputTypeError
from emdl.images import greedy
from emdl.model import Model, load
from emdl.optim import exact_dictionary, normalize_atoms

TASK = "denoise, patches"
_MOST = 24  # codes of one patch
_CHUNK = 4096  # patches coded at once, about
_LEARNED_FROM = 12_000  # patches of one iteration
_LEAST_USED = 4  # patches that an atom has to be in to stay
_SHRINK = np.float32(0.975)  # tau^2 / (1 + tau^2) to start from
_MORE = 0.5  # noise that is added to judge by noisy images alone, in units of theirs
JUDGED_AT = math.sqrt(1 + _MORE**2)  # noise at which `taken_out` judges, likewise


@dataclass(frozen=True)
class PatchModel:
    """Atoms of patches with the price of each, for images of any noise level.

    Attributes
    ----------
    D : array (K, C, h, w)
        Atoms of zero mean and unit norm.
    threshold : array (K,)
        sqrt(2 price): the product with a patch, in units of sigma, above which an atom alone is used (nearly). Large
        values smooth.
    shrink : float
        tau^2 / (1 + tau^2), the share of a product that a code keeps.
    """

    D: np.ndarray
    threshold: np.ndarray
    shrink: float = float(_SHRINK)

    def __post_init__(self):
        D = as_dictionary(self.D, np.float32)
        if D.ndim != 4 or np.shape(self.threshold) != (len(D),):
            raise InputError(
                f"D has shape {D.shape} and threshold {np.shape(self.threshold)}, wanted (K, C, rows, columns) and (K,)"
            )
        object.__setattr__(self, "D", D)
        object.__setattr__(self, "shrink", check_number(self.shrink, "shrink", 0, 1, strict=True))

    @property
    def n_atoms(self):
        """Number of atoms K."""
        return len(self.D)

    @property
    def n_channels(self):
        """Number of channels C."""
        return self.D.shape[1]

    def denoise(self, planes, sigma):
        """Return images without their noise.

        Parameters
        ----------
        planes : array (n, C, H, W)
            Noisy images.
        sigma : float
            Noise standard deviation, in their unit. A large value smooths.

        Returns
        -------
        ndarray (n, C, H, W) of float32

        Raises
        ------
        InputError
            If the images do not have the channels of the atoms, or a value is not finite.
        """
        planes = as_signals(planes, 2, "planes").astype(np.float32, copy=False)
        if planes.shape[1] != self.n_channels:
            raise InputError(
                f"the images have {planes.shape[1]} channels, wanted those of the atoms, {self.n_channels}"
            )
        sigma = check_number(sigma, "sigma", 0)
        if sigma == 0:
            return planes.copy()
        return np.stack([self._denoise_one(image, sigma) for image in planes])

    @with_one_blas_thread
    def _denoise_one(self, image, sigma):
        h, w = self.D.shape[2:]
        (C, H, W), unit = image.shape, np.float32(sigma)
        wide = np.pad(image, ((0, 0), (h - 1, h - 1), (w - 1, w - 1)), mode="reflect")
        columns = W + w - 1
        rows = max(1, _CHUNK // columns)
        atoms = self.D.reshape(self.n_atoms, -1)
        gram, price = atoms @ atoms.T, (self.threshold**2 / 2).astype(np.float32)
        total, cover = np.zeros_like(wide), np.zeros(wide.shape[1:], np.float32)

        def band(top):
            count = min(rows, H + h - 1 - top)
            piece = wide[:, top : top + count + h - 1] / unit
            made, weight = np.zeros_like(piece), np.zeros(piece.shape[1:], np.float32)
            patches, mean = _centred(_patches(piece, (h, w)), C)
            codes = _code(patches, atoms, gram, price, self.shrink)
            greedy.add_patches(*codes, self.D, mean, columns, made, weight)
            return top, made, weight

        tops = list(range(0, H + h - 1, rows))
        group = 8 * n_threads()
        for first in range(0, len(tops), group):  # what the bands made is added in their order
            for top, made, weight in parallel_map(band, tops[first : first + group]):
                total[:, top : top + made.shape[1]] += made
                cover[top : top + made.shape[1]] += weight
        inside = slice(h - 1, h - 1 + H), slice(w - 1, w - 1 + W)
        return total[(slice(None), *inside)] / cover[inside] * unit

    def save(self, path):
        """Write the model to an HDF5 file that `emdl.load` reads too.

        Parameters
        ----------
        path : path
            A file of that name is replaced.
        """
        attributes = {"task": TASK, "shrink": self.shrink}
        Model(self.D, self.threshold, 1.0, False, self.D.shape[2:], attributes).save(path)

    @classmethod
    def load(cls, path):
        """Return the model in a file that `save` wrote.

        Parameters
        ----------
        path : path
            HDF5 file.

        Returns
        -------
        PatchModel

        Raises
        ------
        FileFormatError
            If there is no such file, or it holds something else.
        """
        model = load(path)
        if model.attributes.get("task") != TASK:
            raise FileFormatError(f"{path} holds a model for another task; wanted one that PatchModel.save wrote")
        return cls(model.D, model.lmbd, float(model.attributes["shrink"]))


@dataclass(frozen=True)
class Learning:
    """One EM iteration, as the callback sees it.

    Attributes
    ----------
    iteration, max_iter : int
        Number of this iteration, from 1, and of all.
    per_patch : float
        Mean number of codes of a patch.
    model : PatchModel
        As it stands.
    """

    iteration: int
    max_iter: int
    per_patch: float
    model: PatchModel


@with_one_blas_thread
def fit(
    planes,
    sigma=None,
    *,
    n_atoms=255,
    atom_shape=(8, 8),
    max_iter=15,
    rng=None,
    callback=None,
    checkpoint=None,
    checkpoint_every=kept.EVERY,
    resume=False,
):
    """Return a model of the patches of noisy images, learned from them alone.

    Parameters
    ----------
    planes : array (n, C, H, W), or sequence of arrays (C, H, W)
        Noisy images, such as the one that is to be denoised, of any unit but all of the same noise level.
    sigma : float, optional
        Noise standard deviation, by default estimated from the first image. A large value leaves fewer codes.
    n_atoms : int
        Number of atoms K. More follow more detail, and cost time in proportion.
    atom_shape : tuple of int
        Rows and columns of a patch. Larger ones suit more noise. An image that is smaller is mirrored at its edges.
    max_iter : int
        EM iterations; each takes other patches.
    rng : Generator, int or None
        Source of the choice of patches; the same seed gives the same bits.
    callback : callable, optional
        Called with a `Learning` after each iteration; a true return value ends the fit.
    checkpoint : path, optional
        File that keeps the state of the fit, whole or not at all, also when an exception or an interrupt ends it.
    checkpoint_every : float
        Seconds between two writes of it.
    resume : bool
        Go on from the checkpoint, if it exists. With the same images and arguments the result has the bits that it
        would have had without the interruption; only `max_iter` may differ.

    Returns
    -------
    PatchModel

    Raises
    ------
    InputError
        If shapes do not fit, a value is out of range, there are more atoms than patches, or no noise is found; if the
        checkpoint exists without `resume`, is in use, or belongs to another fit.
    InputTypeError
        If `planes` are no arrays of real numbers.
    FileFormatError
        If the checkpoint is damaged.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> stripes = np.tile(np.sin(np.arange(32) / 2.0), (32, 1))
    >>> noisy = (stripes + 0.3 * rng.standard_normal((32, 32)))[None, None]
    >>> clean = fit(noisy, 0.3, n_atoms=20, atom_shape=(6, 6), rng=0).denoise(noisy, 0.3)
    >>> bool(abs(clean - stripes).std() < 0.1)
    True
    """
    images, unit = _images(planes)
    shape, n_atoms = _check_size(images, atom_shape, n_atoms)
    sigma = _noise_of(images[0]) if sigma is None else check_number(sigma, "sigma", 0, strict=True) / unit
    max_iter = check_count(max_iter, "max_iter")
    check_callable(callback, "callback")
    asked = {"planes": images, "sigma": sigma, "n_atoms": n_atoms, "atom_shape": shape, "rng": rng}
    rng = as_rng(rng)
    wide = [np.pad(x / np.float32(sigma), ((0, 0), *((s - 1, s - 1) for s in shape)), mode="reflect") for x in images]
    with kept.Checkpoint(checkpoint, asked, kind="patches", every=checkpoint_every, resume=resume) as keeper:
        first, state = _begin(keeper.found, wide, n_atoms, shape, rng)
        for iteration in range(first + 1, max_iter + 1):
            state, per_patch = _iterate(
                state, _sample(wide, shape, _LEARNED_FROM, rng), repair=iteration < max_iter - 1
            )
            keeper.offer(state._asdict() | {"iteration": iteration, "rng": kept.of_rng(rng)})
            told = Learning(iteration, max_iter, per_patch, state.model(len(images[0]), shape))
            if callback is not None and callback(told):
                break
    return state.model(len(images[0]), shape)


def taken_out(model, planes, sigma, *, rng=0):
    r"""Return how much of their noise a model takes out of noisy images, estimated from them alone.

    From an image y and fresh noise n two are made, :math:`y_1 = y + \sigma n / 2` and :math:`y_2 = y - 2 \sigma n`,
    whose noise is independent; hence [3]_, for a denoiser f of any kind,

    .. math:: E \|f(y_1) - y_2\|^2 = E \|f(y_1) - x\|^2 + 5 N \sigma^2.

    The mean over n and -n is taken, and the energy of n, which is known, takes the place of its expectation: both lower
    the variance.

    Parameters
    ----------
    model : PatchModel
        Or another with `denoise`.
    planes : sequence of array (C, H, W)
        Noisy images, best such that were not learned from.
    sigma : float
        Their noise level. If it is wrong by a share e, the energy that is left comes out wrong by about 2 e times that
        of the noise, alike for all models.
    rng : Generator or int
        Source of n.

    Returns
    -------
    float
        Decibels by which the noise of :math:`y_1`, :math:`\sqrt{1.25} \sigma`, is lowered; NaN if no noise seems left.
    """
    rng, left, count = as_rng(rng), 0.0, 0
    more, sigma = np.float32(_MORE), np.float32(check_number(sigma, "sigma", 0, strict=True))
    for plane in planes:
        y = np.asarray(plane, np.float32) / sigma
        n = rng.standard_normal(y.shape, np.float32)
        for sign in (n, -n):
            found = model.denoise((y + more * sign)[None], JUDGED_AT)[0]
            left += float(np.sum((found - y + sign / more) ** 2, dtype=np.float64)) / 2
        left -= float(np.sum((n / more) ** 2, dtype=np.float64)) + y.size
        count += y.size
    return 10 * math.log10(count * JUDGED_AT**2 / left) if left > 0 else math.nan


def _images(planes):
    """Return noisy images as (C, H, W) of float32, all with as many channels, and the unit that they are in."""
    from emdl.images import restore

    if not hasattr(planes, "__len__") or isinstance(planes, str | bytes) or not getattr(planes, "shape", True):
        raise InputTypeError(f"planes is a {type(planes).__name__}, wanted images (n, C, rows, columns)")
    if not len(planes):
        raise InputError("planes holds no image")
    images = []
    for i, image in enumerate(planes):
        image = as_real(image, f"planes[{i}]")
        image = image[None] if image.ndim == 2 else image
        if image.ndim != 3 or 0 in image.shape:
            raise InputError(f"planes[{i}] has shape {image.shape}, wanted (C, rows, columns), none of them zero")
        images.append(restore.near_one(image, f"planes[{i}]"))
    channels = sorted({len(image) for image, *_ in images})
    if len(channels) != 1:
        raise InputError(f"the images have {channels} channels, wanted the same number")
    unit = next((own for *_, own in images if own != 1), 1.0)
    alike = [image if own == unit else image * (own / unit) for image, _, own in images]
    return [image.astype(np.float32) for image in alike], unit


def _check_size(images, atom_shape, n_atoms):
    """Return the shape of patches and the number of atoms, checked against the images."""
    lengths = tuple(atom_shape) if hasattr(atom_shape, "__len__") and not isinstance(atom_shape, str) else ()
    shape, n_atoms = tuple(check_count(s, "atom_shape", 2) for s in lengths), check_count(n_atoms, "n_atoms")
    if len(shape) != 2:
        raise InputError(f"atom_shape is {atom_shape!r}, wanted rows and columns")
    patches = sum(math.prod(n + s - 1 for n, s in zip(x.shape[1:], shape, strict=True)) for x in images)
    if n_atoms > patches:
        raise InputError(f"n_atoms is {n_atoms}, more than the {patches} patches of the images")
    return shape, n_atoms


def _noise_of(image):
    """Return the noise level of an image; raise if there is none."""
    from emdl.images import restore

    level = restore.plan(image, None, None).level
    if level == 0:
        raise InputError("the first image of planes shows no noise; give sigma if there is some")
    return level


class _State(NamedTuple):
    """What one iteration hands to the next: atoms (K, C * h * w), the price of each, and what codes keep."""

    atoms: np.ndarray
    price: np.ndarray
    shrink: float

    def model(self, C, shape):
        threshold = np.sqrt(2 * np.maximum(self.price, 0))
        return PatchModel(self.atoms.reshape(len(self.atoms), C, *shape), threshold, self.shrink)


def _begin(found, wide, n_atoms, shape, rng):
    """Return the iterations that are done, none or those of a checkpoint, and the state after them."""
    if found is None:
        price = np.full(n_atoms, math.log(max(n_atoms, 2)), np.float32)
        return 0, _State(_start(wide, n_atoms, shape, rng), price, float(_SHRINK))
    done, shrink = kept.value_of(found, "iteration", int), kept.value_of(found, "shrink", float)
    if done < 1 or not 0 < shrink < 1:
        raise FileFormatError(f"the checkpoint is damaged: iteration {done}, shrink {shrink}")
    atoms = kept.array_of(found, "atoms", (n_atoms, len(wide[0]) * math.prod(shape)), np.float32)
    kept.set_rng(rng, kept.value_of(found, "rng", dict))
    return done, _State(atoms, kept.array_of(found, "price", (n_atoms,), np.float32), shrink)


def _iterate(state, patches, *, repair):
    """Return the state after an iteration of EM on patches, and the mean number of codes of a patch."""
    z, count = _dense_codes(patches, *state)
    atoms, K = _update(state.atoms, z, patches), len(state.atoms)
    used, energy = np.count_nonzero(z, axis=0), float((z.astype(np.float64) ** 2).sum())
    price = -np.log((used / len(patches) + 1 / K) / 2).astype(np.float32)
    variance = max(energy / max(used.sum(), 1), 1.0)
    if repair:
        atoms = _replace_unused(atoms, used, patches, z)
    return _State(atoms, price, float(variance / (1 + variance))), float(count.mean())


def _patches(image, shape):
    """Return all patches of an image (C, H, W), row by row, (n, C * h * w)."""
    windows = sliding_window_view(image, shape, axis=(1, 2))
    return np.ascontiguousarray(windows.transpose(1, 2, 0, 3, 4)).reshape(-1, len(image) * math.prod(shape))


def _centred(patches, C):
    """Return patches without the mean of each channel, and the means (n, C)."""
    parts = patches.reshape(len(patches), C, -1)
    mean = parts.mean(axis=2)
    return (parts - mean[:, :, None]).reshape(len(patches), -1), mean


def _sample(wide, shape, count, rng):
    """Return random patches of images, centred; all of them if there are fewer."""
    C, (h, w) = len(wide[0]), shape
    grids = [(x.shape[1] - h + 1, x.shape[2] - w + 1) for x in wide]
    first = np.concatenate([[0], np.cumsum([a * b for a, b in grids])])
    chosen = np.sort(rng.choice(first[-1], min(count, first[-1]), replace=False))
    out = []
    for x, (_, columns), low, high in zip(wide, grids, first[:-1], first[1:], strict=True):
        at = chosen[(chosen >= low) & (chosen < high)] - low
        windows = sliding_window_view(x, shape, axis=(1, 2))
        out.append(windows[:, at // columns, at % columns].transpose(1, 0, 2, 3).reshape(len(at), -1))
    return _centred(np.concatenate(out), C)[0]


def _start(wide, n_atoms, shape, rng):
    """Return atoms to start from: an overcomplete cosine basis, the same for all channels, then patches."""
    C, size = len(wide[0]), math.ceil(math.sqrt(n_atoms + 1))
    along = [np.cos(np.pi * np.outer(np.arange(size), np.arange(s) + 0.5) / size) for s in shape]
    for c in along:
        c[1:] -= c[1:].mean(axis=1, keepdims=True)
    atoms = np.einsum("ai,bj->abij", *along).reshape(-1, *shape)[1 : n_atoms + 1]
    if C > 1:  # half of the atoms are alike in all channels, the others are patches, which hold their differences
        atoms = atoms[: n_atoms // 2]
    atoms = np.repeat(atoms[:, None], C, axis=1).reshape(len(atoms), -1)
    return _with_patches(atoms, n_atoms, _sample(wide, shape, n_atoms, rng), rng)


def _with_patches(atoms, n_atoms, patches, rng):
    missing = n_atoms - len(atoms)
    if missing:
        some = patches[rng.integers(len(patches), size=missing)]
        atoms = np.concatenate([atoms, some + 1e-3 * rng.standard_normal(some.shape)])
    return normalize_atoms(atoms[:, :, None])[:, :, 0].astype(np.float32)


def _code(patches, atoms, gram, price, shrink):
    """Return index, value and count of the codes of centred patches."""
    n = len(patches)
    index, value = np.zeros((n, _MOST), np.int32), np.zeros((n, _MOST), np.float32)
    count = np.zeros(n, np.int32)
    greedy.pursue(patches @ atoms.T, gram, price, np.float32(shrink), index, value, count)
    return index, value, count


def _dense_codes(patches, atoms, price, shrink):
    """Return the codes of patches (n, K), and how many each has."""
    gram = atoms @ atoms.T
    pieces = np.array_split(patches, max(1, len(patches) // _CHUNK * 2))
    found = parallel_map(lambda part: _code(part, atoms, gram, price, shrink), pieces)
    index, value, count = (np.concatenate(parts) for parts in zip(*found, strict=True))
    z = np.zeros((len(patches), len(atoms)), np.float32)
    row, place = np.nonzero(np.arange(_MOST) < count[:, None])
    z[row, index[row, place]] = value[row, place]
    return z, count


def _update(atoms, z, patches):
    """Return the atoms after the exact dictionary step: patches are signals of one sample and many channels."""
    phi, psi = (z.T @ z).astype(np.float64), (z.T @ patches).astype(np.float64)
    if not phi.any():
        return atoms
    return exact_dictionary(atoms[:, :, None], phi[:, :, None], psi[:, :, None], n_passes=1)[:, :, 0]


def _replace_unused(atoms, used, patches, z):
    """Return the atoms with those that hardly any patch uses replaced by what the worst patches lack."""
    unused = np.flatnonzero(used < _LEAST_USED)
    left = patches - z @ atoms
    worst = np.argsort(-(left**2).sum(axis=1), kind="stable")[: len(unused)]
    worst = worst[(left[worst] ** 2).sum(axis=1) > 0]
    atoms = atoms.copy()
    atoms[unused[: len(worst)]] = normalize_atoms(left[worst][:, :, None])[:, :, 0]
    return atoms
