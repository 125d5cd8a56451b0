"""The penalty that predicts best: SURE or generalised cross-validation along the path of lambda, from sums alone.

The number of non-zeros is an unbiased estimate of the degrees of freedom of the lasso [1]_, so the error of the
reconstruction is known without the truth,

    E ||D z - D z_true||^2 = ||y - D z||^2 - n sigma^2 + 2 sigma^2 df,

and its minimum over the penalty p = lmbd sigma^2 is found by comparing three neighbours p / rho, p, p rho.

.. [1] R. J. Tibshirani, J. Taylor, Degrees of freedom in lasso problems, Ann. Stat. 40 (2012), doi:10.1214/12-AOS1003.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from emdl.backend import array_module
from emdl.codes import SparseCodes
from emdl.ops import synthesize_full

RATIO = 1.4  # rho: wide enough that single non-zeros do not shape the curve, narrow against its valley
_DENSEST = 0.5  # df / n above which neither criterion can be trusted
_LARGEST_STEP = math.log(2.0)
_STILL = 0.01  # steps of log lambda below this are not made
_LONGEST_PAUSE = 8


@dataclass(frozen=True)
class Sums:
    """What the rules need to know of codes; adds up over signals, batches and machines.

    Attributes
    ----------
    energy : float
        ||y - D z||^2, data unit squared.
    l1 : array (K,)
        ||z_k||_1, data unit.
    n_nonzero : int
        Non-zero codes.
    n_samples : int
        Samples of the signals, all channels.
    n_positions : int
        Code positions N of one atom.
    """

    energy: float
    l1: np.ndarray
    n_nonzero: int
    n_samples: int
    n_positions: int

    def __add__(self, other):
        return Sums(
            self.energy + other.energy,
            self.l1 + other.l1,
            self.n_nonzero + other.n_nonzero,
            self.n_samples + other.n_samples,
            self.n_positions + other.n_positions,
        )


@dataclass(frozen=True)
class Search:
    """When the search for lambda looks at the neighbours again, and how far it trusts them.

    Attributes
    ----------
    pause : int
        Calls to let pass before the next look.
    interval : int
        Distance of looks; doubles, up to 8, while a look moves nothing.
    step : float
        Step of log lambda that the last look made; near rest the neighbours are coded more exactly.
    gain : float
        Share of a step that is made; halved when a look points back, so that single codes cannot keep lambda swinging.
    """

    pause: int = 0
    interval: int = 1
    step: float = math.inf
    gain: float = 1.0

    def waited(self):
        """Return the search after a call without a look.

        Returns
        -------
        Search
        """
        return replace(self, pause=self.pause - 1, step=0.0)

    def looked(self, step):
        """Return the search after a look that asked for a step of log lambda; its `step` is the one to make.

        Parameters
        ----------
        step : float
            Asked for. Below 1 % none is made, and the next looks become rarer; above 10 % one follows at once.

        Returns
        -------
        Search
        """
        turns = self.step * step if math.isfinite(self.step) else 0.0
        gain = self.gain / 2 if turns < 0 else min(1.0, 1.5 * self.gain) if turns > 0 else self.gain
        made = gain * step if abs(gain * step) >= _STILL else 0.0
        interval = min(2 * self.interval, _LONGEST_PAUSE) if made == 0 else 1 if abs(made) > 0.1 else self.interval
        return Search(interval - 1, interval, made, gain)


def measure(y, D, codes, stride):
    """Return the sums of codes over their signals.

    Parameters
    ----------
    y : array (n, C, *S)
        Signals.
    D : array (K, C, *s)
        Dictionary.
    codes : SparseCodes or array (n, K, *P)
        Codes.
    stride : tuple of int
        Along each axis.

    Returns
    -------
    Sums
    """
    residual = y - synthesize_full(codes, D, stride)
    return _sums(residual, codes, y.size, len(y) * math.prod(codes.shape[2:]))


def measure_part(part, D, codes=None):
    """Return the sums of codes over what is counted of a part.

    Parameters
    ----------
    part : emdl.parts.Part
        Signals.
    D : array (K, C, *s)
        Dictionary.
    codes : SparseCodes or array (n, K, *P), optional
        Codes; by default those of the part.

    Returns
    -------
    Sums
    """
    codes = part.codes if codes is None else codes
    residual = part.own_samples(part.y - synthesize_full(codes, D, part.stride))
    n_positions = codes.shape[2] if part.own is None else part.own[1] - part.own[0]
    return _sums(residual, part.own_codes(codes), residual.size, len(part.y) * n_positions * math.prod(codes.shape[3:]))


def _sums(residual, codes, n_samples, n_positions):
    xp = array_module(residual)
    if isinstance(codes, SparseCodes):
        l1, n_nonzero = codes.l1(), codes.n_nonzero
    else:
        axes = (0, *range(2, codes.ndim))
        l1, n_nonzero = xp.abs(codes).sum(axis=axes, dtype=np.float64), int(xp.count_nonzero(codes))
    energy = float((residual.astype(np.float64) ** 2).sum())
    return Sums(energy, l1, n_nonzero, n_samples, n_positions)


def score(sums, sigma=None):
    r"""Return the estimated prediction error of codes, up to constants that do not depend on them.

    .. math:: \mathrm{SURE} / (n \sigma^2) = \|r\|^2 / (n \sigma^2) + 2\,\mathrm{df} / n  \qquad\text{or}\qquad
              \log \mathrm{GCV} = \log \|r\|^2 - 2 \log(1 - \mathrm{df} / n)

    Parameters
    ----------
    sums : Sums
        Of the codes; r is the residual, n the number of samples, df the number of non-zeros.
    sigma : float, optional
        Noise standard deviation for SURE. Without it generalised cross-validation, which needs none: its minimum is
        that of SURE with sigma^2 = ||r||^2 / (n - df).

    Returns
    -------
    float
        Infinite where more than half of the samples are used up.

    References
    ----------
    .. [1] G. H. Golub, M. Heath, G. Wahba, Generalized cross-validation as a method for choosing a good ridge
       parameter, Technometrics 21 (1979), doi:10.1080/00401706.1979.10489751.
    """
    used = sums.n_nonzero / sums.n_samples
    if used > _DENSEST:
        return math.inf
    if sigma is not None:
        return sums.energy / (sums.n_samples * sigma**2) + 2 * used
    return math.log(max(sums.energy, 1e-300)) - 2 * math.log1p(-used)


def log_step(below, here, above, sigma=None):
    """Return the step of log lambda towards the smallest `score`, from the sums at three neighbours.

    The step is to the vertex of the parabola through the three scores, no longer than a factor of 2. It vanishes where
    the outer two are equal, whatever lies between, so single codes that enter or leave hardly shift the resting point.

    Parameters
    ----------
    below, here, above : Sums
        At the penalties p / 1.4, p and 1.4 p; each may be a sum over many batches.
    sigma : float, optional
        As in `score`.

    Returns
    -------
    float
    """
    low, middle, high = score(below, sigma), score(here, sigma), score(above, sigma)
    if math.isinf(middle):
        return _LARGEST_STEP
    if math.isinf(low):
        return math.log(RATIO) if high < middle else 0.0
    if here.n_nonzero == 0:
        return -_LARGEST_STEP if low < middle else 0.0
    slope, bend = (high - low) / 2, high - 2 * middle + low
    longest = _LARGEST_STEP / math.log(RATIO)
    units = -slope / bend if bend > abs(slope) / longest else -math.copysign(longest, slope) if slope else 0.0
    return units * math.log(RATIO)
