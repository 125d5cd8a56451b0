"""The E-step: codes at the current rates, and the rates and noise level that these codes suggest."""

import functools
import math
from dataclasses import dataclass, replace

import numpy as np

from emdl.backend import array_module
from emdl.device import in_pieces
from emdl.errors import InputError
from emdl.gradients import backward, gradient_bytes
from emdl.ops import analyze_full, lipschitz
from emdl.parts import Parts, Whole, add
from emdl.rates.laplace import Prior, lmbd_gradient, start_lmbd, step_lmbd, update_lmbd
from emdl.rates.noise import residual_sigma
from emdl.rates.risk import RATIO, Search, Sums, log_step, measure_part
from emdl.unrolled import unroll

RULES = ("gcv", "sure", "paper", "paper-gradient", "fixed")
DEFAULT_RULE = "gcv"
_SMALLEST = 1e-4  # smallest penalty, as a share of the root mean square of the signals: 80 dB
_NEAR, _EXACTER = (
    0.25,
    0.2,
)  # after a step of log lmbd this small the neighbours get codes of this share of the tolerance
_SETTLED = 0.01  # change of log lmbd and log sigma that counts as none


@dataclass(frozen=True)
class EStep:
    """What the E-step found.

    Attributes
    ----------
    codes : SparseCodes, array (n, K, *P) on a GPU, or emdl.parts.Chain
        The minimiser of (1) at the rates and the noise level that were given; a chain if the signals are in parts.
    lmbd : array (K,)
        The next rates, 1 / data unit.
    sigma : float
        The next noise level, data unit.
    sums : Sums
        Of the codes.
    search : Search
        To be handed to the next call.
    settled : bool
        Whether the next rates and noise level are those given, within 1 %.
    message : str
        What went wrong, or empty.
    also : object
        What was asked for besides, summed over the signals.
    """

    codes: object
    lmbd: np.ndarray
    sigma: float
    sums: Sums
    search: Search
    settled: bool
    message: str = ""
    also: object = None

    @property
    def energy(self):
        """||y - D z||^2, data unit squared."""
        return self.sums.energy

    @property
    def l1(self):
        """||z_k||_1 of each atom, summed over the signals, data unit."""
        return self.sums.l1

    @property
    def n_nonzero(self):
        """Number of non-zero codes."""
        return self.sums.n_nonzero


def e_step(
    y,
    D,
    stride,
    positive,
    lmbd,
    sigma,
    *,
    rule=DEFAULT_RULE,
    learn_sigma=False,
    prior=None,
    tol=1e-3,
    codes=None,
    search=None,
    damping=0.0,
    n_layers=30,
    also=None,
):
    """Return the codes at the given rates and noise level, and the next rates and noise level.

    ==================  ==========================================================================================
    rule                next rates
    ==================  ==========================================================================================
    ``gcv``             a step towards the least generalised cross-validation score; needs no sigma, never collapses
    ``sure``            the same with Stein's unbiased risk estimate, which trusts `sigma`
    ``paper``           the Laplace fit (5); collapses on sparse codes unless the prior holds it
    ``paper-gradient``  a gradient step on (4) through `n_layers` layers of the encoder; collapses likewise
    ``fixed``           those given
    ==================  ==========================================================================================

    The first two move one scale for all atoms and keep the ratios of `lmbd`. They code the signals at three penalties
    while the scale moves, and ever more rarely once it rests.

    Parameters
    ----------
    y : array (n, C, *S), emdl.parts.Whole or Parts
        Signals, in full form.
    D : array (K, C, *s)
        Dictionary of the same dtype.
    stride : tuple of int
        Along each axis.
    positive : bool
        Keep the codes non-negative.
    lmbd : array (K,)
        Rates, 1 / data unit, > 0.
    sigma : float
        Noise standard deviation, data unit.
    rule : str
        One of `RULES`.
    learn_sigma : bool
        Take sigma from the residual (`residual_sigma`), or keep it.
    prior : Prior, optional
        Of the rates, for the rules of the paper; by default around the universal threshold, as heavy as the data.
    tol : float
        Relative duality gap of the codes. The scores are good to about 1e-3.
    codes : SparseCodes, array (n, K, *P) or emdl.parts.Chain, optional
        Codes to start from.
    search : Search, optional
        Of the call before; without it every call looks at the neighbours.
    damping : float
        From 0 to below 1: shortens every step of log lmbd by this share. Minibatches want 0.5 or more.
    n_layers : int
        Layers of the encoder in ``paper-gradient``.
    also : callable, optional
        Called with an `emdl.parts.Part` and `D`; what it returns is added up over the signals in the same pass.

    Returns
    -------
    EStep

    Raises
    ------
    InputError
        If there is no such rule.
    """
    if rule not in RULES:
        raise InputError(f"rule is {rule!r}, wanted one of {', '.join(RULES)}")
    search = search or Search()
    data = y if isinstance(y, Whole | Parts) else Whole(y, y, stride, positive)
    codes = data.encode(codes, D, lmbd * sigma**2, tol)
    sums, extra = data.sum(_sums_and, codes, D, also)
    next_sigma = _noise(data, sums, sigma) if learn_sigma else sigma
    message = ""
    if rule in ("gcv", "sure"):
        known = sigma if rule == "sure" else None
        search, message = _search(data, D, lmbd * sigma**2, sums, codes, tol, search, known)
        next_lmbd = lmbd * (math.exp((1 - damping) * search.step) * (sigma / next_sigma) ** 2)
    elif rule == "fixed":
        next_lmbd = lmbd
    else:
        prior = prior or Prior.around(start_lmbd(len(D), sums.n_positions, sigma), sums.n_positions)
        if rule == "paper":
            next_lmbd = update_lmbd(lmbd, sums.l1, sums.n_positions, prior, damping=damping)
        else:
            next_lmbd = _gradient_step(data, D, lmbd, sigma, prior, n_layers, 1 - damping)
        message = _collapse(sums, prior)
    xp = array_module(lmbd)
    moved = max(float(xp.abs(xp.log(next_lmbd / lmbd)).max()), abs(math.log(next_sigma / sigma)))
    return EStep(codes, next_lmbd, next_sigma, sums, search, moved <= _SETTLED, message, extra)


def _sums_and(part, D, also):
    return measure_part(part, D), None if also is None else also(part, D)


def _noise(data, sums, sigma):
    """Return the noise level of the residual; kept where nothing is left, and above 80 dB below the signals."""
    smallest = _SMALLEST * data.root_mean_square
    return max(residual_sigma(sums), smallest) or sigma


def _search(data, D, penalty, here, codes, tol, search, sigma):
    """Return the search after this call, whose step is the one to make, and a message."""
    if search.pause:
        return search.waited(), ""

    exact = tol if abs(search.step) > _NEAR else _EXACTER * tol

    def sums_at(ratio):
        return data.sum(_sums_nearby, codes, D, penalty * ratio, exact)

    below = sums_at(1 / RATIO)
    if below.n_nonzero == 0:
        return _first_code(data, D, penalty, search)
    step = log_step(below, here, here if here.n_nonzero == 0 else sums_at(RATIO), sigma)
    smallest = _SMALLEST * data.root_mean_square / float(penalty.max())
    step = max(step, min(math.log(max(smallest, 1e-300)), 0.0))
    message = ""
    if here.n_nonzero == 0 and step == 0:
        message = "all codes are zero, and letting codes in predicts no better: the atoms find nothing above the noise"
    return search.looked(step), message


def _sums_nearby(part, D, penalty, tol):
    """Return the sums of codes at another penalty, which start from those of the part."""
    return measure_part(part, D, part.encode(D, penalty, tol, part.codes))


def _first_code(data, D, penalty, search):
    """Return the search after a step to the penalty at which the first code enters, where all neighbours have none."""
    ratio = float((data.sum(_largest, None, D).value / penalty).max())
    if ratio <= 0:
        return search.looked(0.0), "no atom correlates with the signals: all codes are zero at every lmbd"
    return Search(step=math.log(ratio)), ""


@dataclass(frozen=True)
class _Largest:
    """A maximum, which adds up as maxima do."""

    value: np.ndarray

    def __add__(self, other):
        return _Largest(array_module(self.value).maximum(self.value, other.value))


def _largest(part, D):
    """Return the largest correlation of the signals with each atom."""
    c = analyze_full(part.y, D, part.stride)
    return _Largest((c if part.positive else array_module(c).abs(c)).max(axis=(0, *range(2, c.ndim))))


def _gradient_step(data, D, lmbd, sigma, prior, n_layers, rate):
    """Return the rates after a gradient step on (4), codes and gradient those of the unrolled encoder."""
    sums, through = data.sum(_through_encoder, None, D, lmbd, sigma, n_layers)
    gradient = lmbd_gradient(lmbd, sums.l1, sums.n_positions, prior, through=through)
    return step_lmbd(lmbd, gradient, sums.n_positions, prior, rate=0.3 * rate)


def _through_encoder(part, D, lmbd, sigma, n_layers):
    """Return the sums of the codes of the unrolled encoder, and the gradient of (4) that comes through it."""
    y, stride, xp = part.y, part.stride, array_module(part.y)
    step = 1 / lipschitz(D, stride=stride)
    theta, column = lmbd * sigma**2 * step, lmbd.reshape(-1, *[1] * (y.ndim - 2)).astype(y.dtype)

    def piece(start, stop):
        own = replace(part, y=y[start:stop], wanted=y[start:stop])
        trace = unroll(own.y, D, theta, step, n_layers, positive=part.positive, stride=stride)
        through = backward(trace, own.own_codes(xp.sign(trace.z) * column)).theta.astype(np.float64)
        return measure_part(own, D, trace.z), through * sigma**2 * step

    pieces = in_pieces(piece, len(y), gradient_bytes(y, D, stride, n_layers), y)
    return functools.reduce(add, pieces)


def _collapse(sums, prior):
    """Return a message if the rule of the paper has shut atoms, or empty."""
    dead = [k for k, size in enumerate(sums.l1.tolist()) if size == 0]
    if not dead:
        return ""
    which = "all codes are zero" if len(dead) == len(sums.l1) else f"atom(s) {', '.join(map(str, dead))} have no codes"
    cap = "its cap (N + r - 1) / delta" if prior.delta > 0 else "infinity"
    return f"lmbd collapsed: {which} and (5) drives the rate to {cap}; use rule 'gcv', or a prior with a smaller mean"
