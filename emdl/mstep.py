"""The M-step, stage 1: how the dictionary is learned from the codes.

| `m_step` | estimates |
|---|---|
| analytic | the minimiser of ||y - D z||^2 over unit-norm atoms, codes fixed, exact, from sums over the signals |
| decoder | one gradient step on the same error, codes of the unrolled encoder held fixed |
| unrolled | one gradient step on that error as a function of D, through the decoder and all T layers (the paper) |

The first is the fastest and needs no learning rate. The last follows how the codes change with the dictionary, and
takes a clean `target` into account in the encoder too; prefer it for supervised learning and for few layers.
"""

import math

import numpy as np

from emdl.backend import array_module
from emdl.codes import SparseCodes
from emdl.device import in_pieces, to_host
from emdl.encoder import solve
from emdl.gradients import backward
from emdl.ops import analyze_full, correlate_codes, correlate_signals, lipschitz, positions_of, synthesize_full
from emdl.optim import exact_dictionary
from emdl.unrolled import unroll_full

_ARRAYS = 8  # of the size of the codes, at most, that a backward pass holds beside the layers

M_STEPS = ("analytic", "unrolled", "decoder")


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
    for batch in np.array_split(rng.permutation(len(y)), batches):
        at = xp.asarray(batch)
        old = codes.take(batch) if isinstance(codes, SparseCodes) else codes[at]
        new = solve(y[at], D, penalty, stride, tol=tol, positive=positive, z0=old).codes
        for total, before, after in zip(
            (phi, psi),
            _correlations(old, wanted[at], D, stride),
            _correlations(new, wanted[at], D, stride),
            strict=True,
        ):
            total += after - before
        D = _exact(D, phi, psi)
    return D


def _correlations(codes, wanted, D, stride):
    shape = D.shape[2:]
    return correlate_codes(codes, shape, stride), correlate_signals(codes, wanted, shape, stride)


def _exact(D, phi, psi):
    # atom after atom, on sums that are small whatever the number of signals: work for the host
    return array_module(D).asarray(exact_dictionary(*map(to_host, (D, phi, psi))))


def by_gradient(D, y, wanted, lmbd, sigma, *, optimizer, batches, n_layers, positive, stride, through_layers, rng):
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
    optimizer : Optimizer
        Its state is changed.
    batches : int
        Number of steps.
    n_layers : int
        Layers T of the encoder.
    positive : bool
        One-sided shrinkage.
    stride : tuple of int
        Along each axis.
    through_layers : bool
        Take the gradient through the layers too, or through the decoder alone.
    rng : Generator
        Order of the signals.

    Returns
    -------
    array (K, C, *s)
    """
    xp = array_module(y)
    for batch in np.array_split(rng.permutation(len(y)), batches):
        part, target = y[xp.asarray(batch)], wanted[xp.asarray(batch)]
        step = 1 / lipschitz(D, stride=stride)  # follows the dictionary: never too long
        theta = (lmbd * sigma**2 * step).astype(y.dtype)

        def sums(start, stop, D=D, part=part, target=target, step=step, theta=theta):
            trace = unroll_full(part[start:stop], D, theta, step, n_layers, positive, stride)
            return _sums(trace, target[start:stop], through_layers)

        n_codes, n_samples = math.prod(positions_of(part, D, stride)[1:]), math.prod(part.shape[1:])
        bytes_each = part.itemsize * ((n_layers + _ARRAYS) * n_codes + _ARRAYS * n_samples)
        gradient, energy = map(sum, zip(*in_pieces(sums, len(part), bytes_each, part), strict=True))
        D = optimizer.step(D, _without_unit(gradient, energy / len(D)))
    return D


def _sums(trace, target, through_layers):
    """Return the gradient of half the squared error, and the energy of the codes: sums over the signals."""
    D, stride, z = trace.D, trace.stride, trace.codes[-1]
    error = synthesize_full(z, D, stride) - target
    gradient = correlate_signals(z, error, D.shape[2:], stride)
    if through_layers:
        gradient = gradient + backward(trace, analyze_full(error, D, stride)).D
    value = z.value if isinstance(z, SparseCodes) else z
    return gradient, float((value.astype(np.float64) ** 2).sum())


def _without_unit(gradient, energy):
    """Return the gradient over the mean energy of the codes of an atom."""
    return gradient / energy if energy > 0 else array_module(gradient).zeros_like(gradient)
