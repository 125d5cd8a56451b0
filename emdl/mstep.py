"""The M-step, stage 1: how the dictionary is learned from the codes.

| `m_step` | estimates |
|---|---|
| analytic | the minimiser of ||y - D z||^2 over unit-norm atoms, codes fixed, exact, from sums over the signals |
| decoder | one gradient step on the same error, codes of the unrolled encoder held fixed |
| unrolled | one gradient step on that error as a function of D, through the decoder and all T layers (the paper) |
| truncated | the same through the decoder and the last layers alone: those before count as constants |
| implicit | one gradient step on the error of the minimiser of (1) as a function of D, whatever T |

Prefer

- *analytic* wherever there is no clean target: it is the fastest and needs no learning rate;
- *unrolled* for a network of few layers that is trained to make a clean `target`: it follows how the codes change with
  the dictionary, in every layer;
- *truncated* for many layers: it costs half as much or less, and near convergence the first layers count little;
- *implicit* where the codes have converged (many layers, or few codes): it costs a linear system on the support instead
  of a way back, and is the gradient of something else before;
- *decoder* as the cheapest of the gradients, where the codes hardly depend on the dictionary.
"""

import numpy as np

from emdl.backend import array_module
from emdl.codes import SparseCodes
from emdl.device import in_pieces, to_host
from emdl.encoder import solve
from emdl.gradients import backward_full, gradient_bytes, implicit_full, reconstruction_loss
from emdl.ops import correlate_codes, correlate_signals, lipschitz, synthesize_full
from emdl.optim import exact_dictionary
from emdl.unrolled import unroll_full

_IMPLICIT = {"tol": 1e-3, "max_iter": 30}  # a rough solution is enough for a step

M_STEPS = ("analytic", "unrolled", "truncated", "implicit", "decoder")


def from_statistics(D, codes, wanted, stride):
    """Return the dictionary that minimises the squared error with the codes held fixed.

    Parameters
    ----------
    D : array (K, C, *s)
        Dictionary to start from.
    codes : SparseCodes
        Codes.
    wanted : array (n, C, *S)
        What the codes are to make.
    stride : tuple of int
        Along each axis.

    Returns
    -------
    array (K, C, *s)
    """
    return _exact(D, *_correlations(codes, wanted, D, stride))


def by_batches(D, y, wanted, codes, penalty, *, batches, tol, positive, stride, rng):
    """Return the dictionary after incremental EM [1]_: encode a batch, renew its share of the sums, update, repeat.

    Parameters
    ----------
    D : array (K, C, *s)
        Dictionary to start from.
    y, wanted : array (n, C, *S)
        Signals, and what their codes are to make.
    codes : SparseCodes
        Of all signals, by `D`.
    penalty : array (K,)
        lmbd sigma^2, data unit.
    batches : int
        Updates of the dictionary.
    tol : float
        Relative duality gap of the codes.
    positive : bool
        Keep the codes non-negative.
    stride : tuple of int
        Along each axis.
    rng : Generator
        Order of the signals.

    Returns
    -------
    array (K, C, *s)

    References
    ----------
    .. [1] R. Neal, G. Hinton, A view of the EM algorithm that justifies incremental, sparse, and other variants, 1998,
       doi:10.1007/978-94-011-5014-9_12.
    """
    xp = array_module(y)
    phi, psi = _correlations(codes, wanted, D, stride)
    used = _count(codes)
    for batch in np.array_split(rng.permutation(len(y)), batches):
        at = xp.asarray(batch)
        old = codes.take(batch) if isinstance(codes, SparseCodes) else codes[at]
        new = solve(y[at], D, penalty, stride, tol=tol, positive=positive, z0=old).codes
        used += _count(new) - _count(old)
        for total, before, after in zip(
            (phi, psi),
            _correlations(old, wanted[at], D, stride),
            _correlations(new, wanted[at], D, stride),
            strict=True,
        ):
            total += after - before
            total[used == 0] = 0  # what is left of an atom without codes is rounding
        D = _exact(D, phi, psi)
    return D


def _count(codes):
    """Return the number of non-zeros of each atom."""
    if isinstance(codes, SparseCodes):
        return np.bincount(codes.index % codes.shape[1], minlength=codes.shape[1])
    return (codes != 0).sum(axis=(0, *range(2, codes.ndim)))


def _correlations(codes, wanted, D, stride):
    shape = D.shape[2:]
    return correlate_codes(codes, shape, stride), correlate_signals(codes, wanted, shape, stride)


def _exact(D, phi, psi):
    # atom after atom, on sums that are small whatever the number of signals: work for the host
    return array_module(D).asarray(exact_dictionary(*map(to_host, (D, phi, psi))))


def by_gradient(D, y, wanted, lmbd, sigma, *, m_step, optimizer, batches, n_layers, n_backward, positive, stride, rng):
    """Return the dictionary after one pass of gradient steps over the signals.

    Parameters
    ----------
    D : array (K, C, *s)
        Dictionary.
    y, wanted : array (n, C, *S)
        Signals, and what the decoder is to make of their codes.
    lmbd : array (K,)
        Rates, 1 / data unit.
    sigma : float
        Noise standard deviation, data unit.
    m_step : str
        One of `M_STEPS`, but not analytic.
    optimizer : Optimizer
        Its state is changed.
    batches : int
        Number of steps.
    n_layers, n_backward : int
        Layers T of the encoder, and how many of them truncated goes back through.
    positive : bool
        One-sided shrinkage.
    stride : tuple of int
        Along each axis.
    rng : Generator
        Order of the signals.

    Returns
    -------
    array (K, C, *s)
    """
    xp = array_module(y)
    for batch in np.array_split(rng.permutation(len(y)), batches):
        part, target = y[xp.asarray(batch)], wanted[xp.asarray(batch)]
        step, theta = _step_of(D, lmbd * sigma**2, stride)

        def sums(start, stop, D=D, part=part, target=target, step=step, theta=theta):
            trace = unroll_full(part[start:stop], D, theta, step, n_layers, positive, stride)
            return _sums(trace, target[start:stop], m_step, n_backward)

        pieces = in_pieces(sums, len(part), gradient_bytes(part, D, stride, n_layers), part)
        gradient, energy = map(sum, zip(*pieces, strict=True))
        D = optimizer.step(D, _without_unit(gradient, energy / len(D)))
    return D


def _step_of(D, penalty, stride):
    """Return the step of a layer, which follows the dictionary so that it is never too long, and the threshold."""
    step = 1 / lipschitz(D, stride=stride)
    return step, (penalty * step).astype(D.dtype)


def _sums(trace, target, m_step, n_backward):
    """Return the gradient of half the squared error, and the energy of the codes: sums over the signals."""
    _, g_z, gradient = reconstruction_loss(trace, target)
    if m_step == "implicit":
        gradient = gradient + implicit_full(trace, g_z, **_IMPLICIT)[0].D
    elif m_step != "decoder":
        last = n_backward if m_step == "truncated" else None
        gradient = gradient + backward_full(trace, g_z, n_layers=last).D
    z = trace.codes[-1]
    value = z.value if isinstance(z, SparseCodes) else z
    return gradient, float((value.astype(np.float64) ** 2).sum())


def mean_error(D, y, wanted, lmbd, sigma, *, m_step, n_layers, tol, positive, stride):
    """Return the mean squared error of what the codes of signals make, a loss to validate with.

    Parameters
    ----------
    D : array (K, C, *s)
        Dictionary.
    y, wanted : array (n, C, *S)
        Signals, and what their codes are to make.
    lmbd : array (K,)
        Rates, 1 / data unit.
    sigma : float
        Noise standard deviation, data unit.
    m_step : str
        The codes are those of the encoder that it learns with: certified (analytic), else of `n_layers` layers.
    n_layers : int
        Layers T of that encoder.
    tol : float
        Relative duality gap of certified codes.
    positive : bool
        Keep the codes non-negative.
    stride : tuple of int
        Along each axis.

    Returns
    -------
    float
        Data unit squared.
    """
    penalty = lmbd * sigma**2

    def error(start, stop):
        part = y[start:stop]
        if m_step == "analytic":
            codes = solve(part, D, penalty, stride, tol=tol, positive=positive).codes
        else:
            step, theta = _step_of(D, penalty, stride)
            codes = unroll_full(part, D, theta, step, n_layers, positive, stride).codes[-1]
        left = (synthesize_full(codes, D, stride) - wanted[start:stop]).astype(np.float64)
        return float((left**2).sum())

    return sum(in_pieces(error, len(y), gradient_bytes(y, D, stride, n_layers), y)) / y.size


def _without_unit(gradient, energy):
    """Return the gradient over the mean energy of the codes of an atom."""
    return gradient / energy if energy > 0 else array_module(gradient).zeros_like(gradient)
