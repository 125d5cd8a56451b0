"""The Laplace fit: rates from the size of the codes, as in the paper."""

import math
from dataclasses import dataclass

from emdl.backend import array_module, check_number

_LARGEST_STEP = 0.5  # of log lmbd in one gradient step


@dataclass(frozen=True)
class Prior:
    """Gamma prior of the rates, lmbd_k ~ Gamma(shape r, rate delta); its mean is r / delta.

    Attributes
    ----------
    r : float
        Shape, >= 0. It counts as r more code positions: a prior with r well below N says nothing.
    delta : float
        Rate, data unit, >= 0. It counts as that much more ||z_k||_1.
    """

    r: float = 1.0
    delta: float = 0.0

    def __post_init__(self):
        check_number(self.r, "r", 0)
        check_number(self.delta, "delta", 0)

    @classmethod
    def around(cls, lmbd, n_positions, weight=1.0):
        """Return the prior with mean `lmbd` that counts as `weight` times the data: r = weight N, delta = r / lmbd.

        Parameters
        ----------
        lmbd : float
            Mean, 1 / data unit; the rate that EM starts from.
        n_positions : int
            Code positions N of one atom in all signals.
        weight : float
            A large value ties the rates to `lmbd`: without any codes they rise to its (1 + weight) / weight fold.

        Returns
        -------
        Prior
        """
        lmbd, weight = check_number(lmbd, "lmbd", 0, strict=True), check_number(weight, "weight", 0)
        return cls(weight * n_positions, weight * n_positions / lmbd)


def start_lmbd(n_atoms, n_positions, sigma):
    """Return the rate whose penalty is the universal threshold, sqrt(2 log(K N)) / sigma.

    Parameters
    ----------
    n_atoms : int
        Number of atoms K.
    n_positions : int
        Code positions N of one atom in all signals.
    sigma : float
        Noise standard deviation, data unit.

    Returns
    -------
    float
        lmbd, 1 / data unit: noise alone then makes hardly any code.
    """
    return math.sqrt(2 * math.log(max(n_atoms * n_positions, 2))) / check_number(sigma, "sigma", 0, strict=True)


def update_lmbd(lmbd, l1, n_positions, prior, *, damping=0.0):
    r"""Return the rates that fit the codes, the minimiser of (4), damped.

    .. math:: \lambda_k \leftarrow \lambda_k^{d} \left( \frac{N + r - 1}{\|z_k\|_1 + \delta} \right)^{1 - d}   (5)

    Parameters
    ----------
    lmbd : array (K,)
        Rates, 1 / data unit, > 0.
    l1 : array (K,)
        ||z_k||_1, summed over the signals, data unit.
    n_positions : int
        Code positions N of one atom in all signals.
    prior : Prior
        Of the rates.
    damping : float
        d, from 0 (jump) to 1 (stay).

    Returns
    -------
    array (K,)
        Where neither codes nor prior set a bound, the rate is doubled: (5) is infinite.
    """
    xp = array_module(lmbd)
    size = xp.asarray(l1) + prior.delta
    bounded = size > 0
    fit = xp.where(bounded, max(n_positions + prior.r - 1, 1e-300) / xp.where(bounded, size, 1), 2 * lmbd)
    return lmbd**damping * fit ** (1 - damping)


def lmbd_gradient(lmbd, l1, n_positions, prior, *, through=0.0):
    r"""Return the gradient of (4) with respect to the rates.

    .. math:: \frac{dL}{d\lambda_k} = \|z_k\|_1 - \frac{N + r - 1}{\lambda_k} + \delta
              + \sum_j \lambda_j \frac{d\|z_j\|_1}{d\lambda_k}

    Parameters
    ----------
    lmbd, l1, n_positions, prior
        As in `update_lmbd`.
    through : float or array (K,)
        The last term, the way through the encoder: ``backward(trace, lmbd * sign(z_T)).theta * sigma**2 * step`` for
        codes z_T of `unroll` with theta = lmbd sigma^2 step. Zero holds the codes fixed.

    Returns
    -------
    array (K,)
        Data unit.
    """
    return l1 - (n_positions + prior.r - 1) / lmbd + prior.delta + through


def step_lmbd(lmbd, gradient, n_positions, prior, *, rate=0.3):
    r"""Return the rates after one gradient step on (4) in log lmbd, in units of the curvature that (4) has there.

    .. math:: \lambda_k \leftarrow \lambda_k \exp\left( -\eta \, \frac{\lambda_k g_k}{N + r - 1} \right)

    Parameters
    ----------
    lmbd, n_positions, prior
        As in `update_lmbd`.
    gradient : array (K,)
        Of `lmbd_gradient`.
    rate : float
        Learning rate eta; 1 is a Newton step where the codes do not move. log lmbd moves by at most 0.5.

    Returns
    -------
    array (K,)
    """
    xp = array_module(lmbd)
    step = -rate * lmbd * gradient / max(n_positions + prior.r - 1, 1)
    return lmbd * xp.exp(xp.clip(step, -_LARGEST_STEP, _LARGEST_STEP))
