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
from emdl.parts import Whole, where
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
    return from_sums(D, Whole(wanted, wanted, stride, False).sum(statistics, codes, D))


def from_sums(D, sums):
    """Return the dictionary that minimises the squared error whose `statistics` are given.

    Parameters
    ----------
    D : array (K, C, *s)
        Dictionary to start from.
    sums : (array, array)
        phi and psi.

    Returns
    -------
    array (K, C, *s)
    """
    # atom after atom, on sums that are small whatever the number of signals: work for the host
    return array_module(D).asarray(exact_dictionary(*map(to_host, (D, *sums))))


def statistics(part, D, codes=None):
    """Return phi and psi of what is counted of a part, see `emdl.ops.correlate_codes` and `correlate_signals`.

    Of a product of two codes of which another part counts one, half is counted here and half there.

    Parameters
    ----------
    part : emdl.parts.Part
        Signals.
    D : array (K, C, *s)
        Gives the shape of the atoms.
    codes : SparseCodes or array (n, K, *P), optional
        Codes; by default those of the part.

    Returns
    -------
    phi : array (K, K, *(2 s - 1))
    psi : array (K, C, *s)
    """
    codes, shape, stride = part.codes if codes is None else codes, D.shape[2:], part.stride
    own = part.own_codes(codes)
    phi, psi = correlate_codes(own, shape, stride), correlate_signals(own, part.wanted, shape, stride)
    if part.own is not None:
        reach, counted = -(-shape[0] // stride[0]), np.zeros(codes.shape[2], bool)
        counted[slice(*part.own)] = True
        near = np.zeros_like(counted)
        for border in part.own:
            near[max(0, border - reach) : border + reach] = True
        both, here, there = (
            correlate_codes(where(codes, m), shape, stride) for m in (near, near & counted, near & ~counted)
        )
        phi = phi + (both - here - there) / 2
    return phi, psi


def by_batches(D, data, codes, penalty, *, batches, tol, rng):
    """Return the dictionary after incremental EM [1]_: encode a batch, renew its share of the sums, update, repeat.

    Parameters
    ----------
    D : array (K, C, *s)
        Dictionary to start from.
    data : emdl.parts.Whole or Parts
        Signals, and what their codes are to make.
    codes : SparseCodes, array (n, K, *P) or emdl.parts.Chain
        Of all signals, by `D`.
    penalty : array (K,)
        lmbd sigma^2, data unit.
    batches : int
        Updates of the dictionary.
    tol : float
        Relative duality gap of the codes.
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
    (phi, psi), used = data.sum(_counted, codes, D)
    for batch in np.array_split(rng.permutation(data.n_units), batches):
        (olds, before), (news, after) = data.sum(_renewed, codes, D, penalty, tol, rows=batch)
        used += after - before
        for total, old, new in zip((phi, psi), olds, news, strict=True):
            total += new - old
            total[used == 0] = 0  # what is left of an atom without codes is rounding
        D = from_sums(D, (phi, psi))
    return D


def _counted(part, D, codes=None):
    """Return the statistics, and the number of non-zeros of each atom."""
    return statistics(part, D, codes), _count(part.own_codes(part.codes if codes is None else codes))


def _renewed(part, D, penalty, tol):
    """Return the same for the codes of a part, and for those of the present dictionary."""
    return _counted(part, D), _counted(part, D, part.encode(D, penalty, tol, part.codes))


def _count(codes):
    """Return the number of non-zeros of each atom."""
    if isinstance(codes, SparseCodes):
        return np.bincount(codes.index % codes.shape[1], minlength=codes.shape[1])
    return (codes != 0).sum(axis=(0, *range(2, codes.ndim)))


def by_gradient(D, data, lmbd, sigma, *, m_step, optimizer, batches, n_layers, n_backward, rng):
    """Return the dictionary after one pass of gradient steps over the signals.

    Parameters
    ----------
    D : array (K, C, *s)
        Dictionary.
    data : emdl.parts.Whole or Parts
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
    rng : Generator
        Order of the signals.

    Returns
    -------
    array (K, C, *s)
    """
    for batch in np.array_split(rng.permutation(data.n_units), batches):
        step, theta = _step_of(D, lmbd * sigma**2, data.stride)
        gradient, energy = data.sum(_gradient, None, D, theta, step, n_layers, m_step, n_backward, rows=batch)
        D = optimizer.step(D, _without_unit(gradient, energy / len(D)))
    return D


def _gradient(part, D, theta, step, n_layers, m_step, n_backward):
    """Return the sums of a part that a gradient step needs."""

    def sums(start, stop):
        trace = unroll_full(part.y[start:stop], D, theta, step, n_layers, part.positive, part.stride)
        return _sums(trace, part, (start, stop), m_step, n_backward)

    pieces = in_pieces(sums, len(part.y), gradient_bytes(part.y, D, part.stride, n_layers), part.y)
    gradient, energy = map(sum, zip(*pieces, strict=True))
    return gradient, energy


def _step_of(D, penalty, stride):
    """Return the step of a layer, which follows the dictionary so that it is never too long, and the threshold."""
    step = 1 / lipschitz(D, stride=stride)
    return step, (penalty * step).astype(D.dtype)


def _sums(trace, part, rows, m_step, n_backward):
    """Return the gradient of half the squared error, and the energy of the codes: sums over the signals."""
    made = None if part.samples is None else synthesize_full(trace.codes[-1], trace.D, trace.stride)
    target = part.goal(made, *rows)
    _, g_z, gradient = reconstruction_loss(trace, target)
    if m_step == "implicit":
        gradient = gradient + implicit_full(trace, g_z, **_IMPLICIT)[0].D
    elif m_step != "decoder":
        last = n_backward if m_step == "truncated" else None
        gradient = gradient + backward_full(trace, g_z, n_layers=last).D
    z = part.own_codes(trace.codes[-1])
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
