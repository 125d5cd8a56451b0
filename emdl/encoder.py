"""The E-step: `encode`, the certified minimiser of (1)."""

import math
import warnings
from dataclasses import dataclass

import numpy as np

from emdl import proximal
from emdl._kernels import solver as kernels
from emdl._kernels.clusters import gram_table
from emdl._kernels.correlate import pack_atoms
from emdl._kernels.patches import ROW, STRIP, pack_groups, pack_patches
from emdl.backend import (
    array_module,
    as_real,
    as_signals,
    check_count,
    check_flag,
    check_number,
    n_threads,
    parallel_map,
)
from emdl.codes import SparseCodes
from emdl.errors import ConvergenceWarning, InputError
from emdl.ops import (
    as_codes,
    as_problem,
    as_rates,
    plane_stride,
    planes,
    positions_of,
)

_ROUNDS = 20  # over all tiles between two sweeps
_DEPTH = {1: (10, 5), 2: (1, 1)}  # by axes: passes over the cells of a tile in a round, and over the codes of a cell
_SMALL = 10_000_000  # multiplications of one sweep, below which a second thread costs more than it brings
_TABLE = 65536  # inner products of atoms that are kept, at most
_ROWS = 32  # of code positions in a tile of an image
_GRAIN = 4  # neighbouring positions of one axis of which the largest correlation is kept, where atoms are much longer


@dataclass(frozen=True)
class Solution:
    """Codes with their certificate.

    Attributes
    ----------
    codes : SparseCodes, or array (n, K, *P) on a GPU
        The minimiser.
    primal : ndarray (n,)
        Half the squared error plus penalty of each signal, which is sigma^2 E(z).
    gap : ndarray (n,)
        Duality gap in the same unit: primal - minimum <= gap.
    n_iter : int
        Most sweeps that any signal took.
    """

    codes: object
    primal: np.ndarray
    gap: np.ndarray
    n_iter: int

    @property
    def relative_gap(self):
        """The largest gap / primal of all signals."""
        return float(np.max(self.gap / np.where(self.primal > 0, self.primal, 1)))


def encode(
    y, D, lmbd, sigma=1.0, *, tol=1e-4, max_iter=2000, positive=False, stride=1, z0=None, mask=None, sparse=False
):
    r"""Return the codes that minimise E(z), with a certificate.

    .. math:: E(z) = \|y - D z\|^2 / (2 \sigma^2) + \sum_k \lambda_k \|z_k\|_1   (1)

    The duality gap, which bounds E(z) - min E from above, is at most ``tol * E(z)`` for each signal.

    Parameters
    ----------
    y : array S, (n, *S) or (n, C, *S)
        Signals.
    D : array (K, C, *s)
        Dictionary.
    lmbd : float, array (K,) or array (n, K, *P)
        Laplace rates, 1 / data unit, > 0: one for all codes, for each atom, or for each code. A large rate leaves fewer
        codes; above `lambda_max` all are zero.
    sigma : float
        Noise standard deviation, data unit. A large value acts as a large rate.
    tol : float
        Relative duality gap. float32 reaches about 1e-5, float64 1e-8 and less.
    max_iter : int
        Most sweeps over all code positions (a sweep is followed by updates of the non-zeros alone).
    positive : bool
        Keep the codes non-negative.
    stride : int or tuple of int
        Distance of neighbouring code positions, samples.
    z0 : array (n, K, *P) or SparseCodes, optional
        Codes to start from; a good start saves time and changes the result within the tolerance only.
    mask : array like `y`, of bool, optional
        Which samples are there. The others may hold any finite value; (1) leaves them out.
    sparse : bool
        Return `emdl.codes.SparseCodes` instead of an array; those of signals on a GPU come to the host.

    Returns
    -------
    array (n, K, *P)
        Codes, dtype of `y`.

    Raises
    ------
    InputError
        If shapes do not fit each other, a value is not finite, or a parameter lies outside its range.

    Warns
    -----
    ConvergenceWarning
        If the tolerance was not reached; the message gives the gap that was.
    UserWarning
        If `y` is zero everywhere (not for CuPy arrays).

    Examples
    --------
    >>> import numpy as np
    >>> encode(np.array([0.0, 1.8, 2.4, 0.0]), np.array([[[0.6, 0.8]]]), lmbd=0.5).round(2)
    array([[[0. , 2.5, 0. ]]])
    """
    y, D, stride = as_problem(y, D, stride)
    sigma, tol = check_number(sigma, "sigma", 0, strict=True), check_number(tol, "tol", 0, 1, strict=True)
    positive, sparse = check_flag(positive, "positive"), check_flag(sparse, "sparse")
    shape = positions_of(y, D, stride)
    rates = _as_weights(lmbd, D, shape)
    xp = array_module(y, mask if hasattr(mask, "dtype") else None)
    if isinstance(z0, SparseCodes) and xp is not np:
        z0 = xp.asarray(z0.dense())
    elif z0 is not None and not isinstance(z0, SparseCodes):
        z0 = as_codes(z0, D, stride)[0]
    if z0 is not None and tuple(z0.shape) != shape:
        raise InputError(f"z0 has shape {tuple(z0.shape)}, wanted {shape}")
    if mask is not None:
        mask = as_signals(xp.asarray(mask, np.float32), D.ndim - 2, "mask")
        if mask.shape != y.shape or not bool(((mask == 0) | (mask == 1)).all()):
            raise InputError(f"mask has shape {mask.shape}, wanted {y.shape}, the shape of y, with entries 0 or 1")
    if isinstance(z0, SparseCodes):
        z0.check("z0")
    max_iter = check_count(max_iter, "max_iter")
    solution = solve(
        y, D, _as_penalty(rates, sigma), stride, tol=tol, max_iter=max_iter, positive=positive, z0=z0, mask=mask
    )
    if not solution.relative_gap <= tol:  # NaN is no certificate
        warnings.warn(
            f"encode stopped after {solution.n_iter} sweeps at a relative gap of {solution.relative_gap:.1e}, "
            f"wanted {tol:.1e}; raise max_iter, or tol if the data are float32",
            ConvergenceWarning,
            stacklevel=2,
        )
    if xp is np and solution.codes.n_nonzero == 0 and not y.any():
        warnings.warn("y is zero everywhere, and so are its codes; is it what you meant to read?", stacklevel=2)
    if sparse and xp is not np:
        return SparseCodes.from_dense(solution.codes)
    if not sparse and xp is np:
        return solution.codes.dense()
    return solution.codes


def _as_penalty(rates, sigma):
    """Return lmbd sigma^2, after making sure that it does not leave the range of the numbers."""
    with np.errstate(all="ignore"):
        penalty = rates * (sigma * sigma)
    if not bool((array_module(penalty).isfinite(penalty) & (penalty > 0)).all()):
        raise InputError(
            f"lmbd sigma^2 leaves the range of the numbers, with lmbd {float(rates.max()):g} and sigma {sigma:g}; "
            "change the unit of the signals"
        )
    return penalty


def _as_weights(lmbd, D, shape):
    """Return rates as an array (K,) or (n, K, *P) of float64, all positive."""
    if isinstance(lmbd, list | tuple):
        lmbd = as_real(lmbd, "lmbd")
    if np.ndim(lmbd) > 1:
        rates = as_real(lmbd, "lmbd").astype(np.float64)
        if rates.shape not in (shape, shape[1:]):
            raise InputError(f"lmbd has shape {rates.shape}, wanted one rate, {len(D)} for the atoms, or codes {shape}")
        rates = array_module(rates).broadcast_to(rates, shape)
    else:
        rates = as_rates(lmbd, D)
    if not bool((rates > 0).all()):
        raise InputError(
            f"lmbd goes down to {float(rates.min()):g}, wanted rates > 0; without a penalty the minimum is not unique "
            "and has no certificate"
        )
    return rates


def solve(y, D, penalty, stride, *, tol, max_iter=2000, positive=False, z0=None, mask=None):
    """Return the certified minimiser of half the squared error plus penalty, for arguments in full form.

    Parameters
    ----------
    y : array (n, C, *S)
        Signals.
    D : array (K, C, *s)
        Dictionary of the same dtype.
    penalty : array (K,) or (n, K, *P)
        lmbd sigma^2, data unit: one for each atom, or one for each code.
    stride : tuple of int
        Along each axis.
    tol : float
        Relative duality gap.
    max_iter : int
        Most sweeps.
    positive : bool
        Keep the codes non-negative.
    z0 : SparseCodes or array (n, K, *P), optional
        Codes to start from; the cost is that of their non-zeros.
    mask : array (n, C, *S) of bool, optional
        Which samples are there; the others count nothing.

    Returns
    -------
    Solution
    """
    if array_module(y, D) is not np:
        return Solution(
            *proximal.solve(y, D, penalty, stride, tol=tol, max_iter=max_iter, positive=positive, z0=z0, mask=mask)
        )
    if isinstance(z0, np.ndarray):
        z0 = SparseCodes.from_dense(z0)
    if mask is not None:
        y = np.where(mask, y, y.dtype.type(0))
    return _Descent(y, D, penalty, stride, positive, z0, mask).run(tol, max_iter)


def _padded(shape, dtype):
    """Return zeros, with room behind for positions that are read together with the last one."""
    size = math.prod(shape)
    return np.zeros(size + STRIP, dtype)[:size].reshape(shape)


class _Descent:
    """Coordinate descent on the active codes of all tiles of all signals (see `emdl._kernels.solver`)."""

    def __init__(self, y, D, penalty, stride, positive, z0, mask):
        self.shape, self.positive, self.dtype = positions_of(y, D, stride), positive, y.dtype
        if not y.flags.writeable:
            y = y.copy()  # numba would compile everything once more for arrays that cannot be written
        self.y, self.D, (self.sh, self.sw) = planes(y), planes(D).copy(), plane_stride(stride)
        (n, C, H, W), (K, _, h, w) = self.y.shape, self.D.shape
        self.PH, self.PW = (H - h) // self.sh + 1, (W - w) // self.sw + 1
        largest = max(float(y.max()), -float(y.min()))
        self.unit = 2.0 ** round(math.log2(largest)) if largest > 0 else 1.0  # a power of two: exact
        weights = penalty if penalty.ndim == 1 else np.moveaxis(planes(penalty), 1, 3)
        self.weights = np.ascontiguousarray(weights, np.float64).reshape(-1, K) / self.unit
        self.by_position = penalty.ndim > 1
        self.norms = (self.D.reshape(K, -1).astype(np.float64) ** 2).sum(axis=1)
        pad = -w % ROW
        self.r = _padded((n, C, H, W + pad), y.dtype)
        self._pack(W + pad)
        self.atoms, self.patch = pack_patches(self.D, H, W + pad)
        self.gram = None if self.PH > 1 else np.zeros((0, 0, 0))
        if mask is None and self.PH == 1 and K * K * w <= _TABLE:
            self.gram = gram_table(self.D)
        self.mask = np.zeros((0, 0, 0, 0), y.dtype)
        if mask is not None:
            self.mask = np.zeros_like(self.r)
            self.mask[..., :W] = planes(mask)
        self._cut(h, w + pad)
        self._start(z0)

    def _pack(self, width):
        """Lay out the atoms for sweeps: on two axes over their penalties, unless those differ from code to code."""
        K, C, h, w = self.D.shape
        if self.PH == 1:
            self.bank, self.taps, self.reach = pack_atoms(self.D), np.zeros(0, np.int64), 0.0
            return
        scale = np.ones(K) if self.by_position else 1 / self.weights[0]
        self.bank = pack_groups(self.D, scale)
        c, a, b = np.meshgrid(np.arange(C), np.arange(h), np.arange(w), indexing="ij")
        self.taps = ((c * self.r.shape[2] + a) * width + b).ravel() if self.sw == 1 else STRIP * np.arange(C * h * w)
        self.reach = float((np.sqrt(self.norms) * scale).max() / (self.weights.min() if self.by_position else 1))

    def _cut(self, h, w):
        """Choose cells, no shorter than an atom, and tiles of whole cells, small enough for the cache."""
        n, K, PH, PW = len(self.y), len(self.D), self.PH, self.PW
        self.size = np.array([max(4, -(-h // self.sh)), -(-max(8, -(-w // self.sw)) // ROW) * ROW])
        if PH == 1:
            self.size[1] = -(-max(8, -(-w // self.sw)) // _GRAIN) * _GRAIN
        self.grain = _GRAIN if PH == 1 and w >= 6 * _GRAIN * self.sw else 1
        unit = int(self.size[1]) * (2 if PH > 1 and self.size[1] % STRIP else 1)
        down, across = -(-PH // int(self.size[0])), -(-PW // unit)
        most = max(256, min(4096 if PH > 1 else 1024, 131072 // K))
        high = max(1, _ROWS // int(self.size[0])) if PH > 1 else 1
        n_rows = max(1, down // high)
        n_columns = max(1, min(across // (4 if PH == 1 else 1), round(PW * min(PH, high * int(self.size[0])) / most)))
        self.rows = np.minimum(np.arange(n_rows + 1) * down // n_rows * self.size[0], PH)
        self.columns = np.minimum(np.arange(n_columns + 1) * across // n_columns * unit, PW)
        self.grid = (n, n_rows, n_columns)
        cells = n * down * -(-PW // int(self.size[1]))
        self.cell, self.tension = np.zeros((2, cells if PH > 1 else 0), np.int64), np.zeros(cells)
        self.bh, self.bw = max(1, h // (2 * self.sh)), max(1, w // (2 * self.sw))
        wide = int(np.diff(self.columns).max())
        self.room = -(-int(np.diff(self.rows).max()) // self.bh) * -(-wide // self.bw)
        self.signal = np.arange(n * n_rows * n_columns) // (n_rows * n_columns)
        self.most = wide + w + 3 if PH == 1 else self.bh * -(-wide // STRIP) * STRIP

    def _start(self, z0):
        """Give slots to the codes of `z0`."""
        tiles = math.prod(self.grid)
        self.count, self.begin = np.zeros(tiles, np.int64), np.zeros(tiles + 1, np.int64)
        self.key, self.slot, self.spot = np.zeros(0, np.int64), np.zeros((3, 0)), np.zeros((0, 0), np.int32)
        if z0 is not None and z0.n_nonzero:
            self._fill(z0)
        self._make_room()
        if z0 is not None and z0.n_nonzero:
            self.count[:] = 0
            self._fill(z0)

    def _fill(self, z0):
        def one(s):
            index, value = z0.signal(s)
            value = value / self.unit
            if self.positive:
                value = np.maximum(value, 0)
            kernels.fill(
                index, value.astype(np.float64), s, self.D, self.mask, self.weights, self.norms,
                self.by_position, self.sh, self.sw, self.rows, self.columns, self.PH, self.PW,
                self.begin, self.count, self.key, self.slot, self.spot,
            )  # fmt: skip

        parallel_map(one, range(len(self.y)))

    def _make_room(self):
        """Make sure that each tile has room for new codes: on one axis as much again as it holds."""
        room, first = np.diff(self.begin), self.begin[-1] == 0
        short = 2 * self.count > room if self.PH == 1 else self.count + self.room > room
        if not first and not short.any():
            return
        more = 2 * self.count + self.room + 32 if self.PH == 1 else self.count // 2 + 8 * self.room + 32
        begin = np.concatenate([[0], np.cumsum(np.where(short | first, self.count + more, room))])
        key, slot = np.empty(begin[-1], np.int64), np.empty((3, begin[-1]))
        spot = np.empty((3 if self.PH > 1 else 0, begin[-1]), np.int32)
        if self.begin[-1]:
            kernels.move(self.begin, self.count, self.key, self.slot, self.spot, begin, key, slot, spot)
        self.begin, self.key, self.slot, self.spot = begin, key, slot, spot

    def run(self, tol, max_iter):
        """Sweep and descend until every signal has its certificate."""
        n, tiles = len(self.y), math.prod(self.grid)
        sums, enough, result = np.zeros((7, tiles)), np.zeros(n), np.zeros((8, n))
        todo, masks = np.zeros(tiles, np.int64), self.mask.reshape(-1)
        self.peak = np.empty((n, self.PH, -(-self.PW // self.grain)), self.dtype)
        on_plane = self.PH > 1
        self.theta = _padded(self.r.shape, self.dtype) if on_plane else self.r  # on one axis memory counts more
        self.change = np.zeros((n if on_plane else 0, *self.r.shape[2:]), self.dtype)
        groups = n * self.PH * -(-self.PW // STRIP) * -(-len(self.D) // 4)
        self.bound = np.full(groups if on_plane else 0, 255, np.uint8)
        n_iter = 0
        helpers = n_threads() - 1 if self.r.size * self.bank.size // self.sh // self.sw > _SMALL else 0
        while True:
            state = self._run_workers(helpers, todo, masks, sums, enough, tol, max_iter - n_iter, result)
            n_iter += int(state[1])
            if not state[5] or n_iter >= max_iter:
                return self._solution(result[0], result[1], n_iter)
            self._make_room()

    def _run_workers(self, helpers, todo, masks, sums, enough, tol, max_iter, result):
        """Run a leader and its helpers until all signals are done or a tile is full; return the leader's state."""
        control, depth = np.zeros(8, np.int64), _DEPTH[1 if self.PH == 1 else 2]
        return parallel_map(
            lambda leader: kernels.work(
                leader, control, todo, self.y, 1 / self.unit, self.mask, masks, self.D, self.bank, self.taps,
                self.atoms, self.patch, self.gram, self.most, self.weights, self.by_position, self.sh, self.sw,
                self.rows, self.columns, self.PH, self.PW, self.size, self.grain, self.positive, self.bh, self.bw,
                self.norms, self.reach, self.begin, self.count, self.key, self.slot, self.spot, self.cell, self.tension,
                self.r, self.theta, self.peak, self.change, self.bound, self.r.reshape(-1), self.theta.reshape(-1),
                sums, enough, tol, max_iter, _ROUNDS, *depth, result,
            ),
            [True] + [False] * helpers,
        )[0]  # fmt: skip

    def _solution(self, primal, gap, n_iter):
        slots = self.begin, self.count, self.key, self.slot, self.unit
        held = kernels.take(*slots, np.empty(0, np.int64), np.empty(0, self.dtype))
        start = np.concatenate([[0], np.cumsum(held.reshape(len(self.y), -1).sum(axis=1))])
        index, value = np.empty(start[-1], np.int64), np.empty(start[-1], self.dtype)
        kernels.take(*slots, index, value)
        if self.PH > 1:
            order = np.lexsort((index, np.repeat(np.arange(len(self.y)), np.diff(start))))
            index, value = index[order], value[order]
        codes = SparseCodes(self.shape, start, index, value)
        return Solution(codes, primal * self.unit**2, np.maximum(gap, 0) * self.unit**2, n_iter)
