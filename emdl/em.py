"""Expectation maximisation: encode, update the dictionary, update the rates, repeat."""

import logging
import time
from dataclasses import dataclass, replace

import numpy as np

from emdl import rates, starts
from emdl.backend import array_module, as_dictionary, as_signals, as_stride, check_count, check_number, code_positions
from emdl.codes import SparseCodes
from emdl.errors import InputError
from emdl.gradients import backward
from emdl.model import Model
from emdl.ops import (
    analyze_full,
    as_rates,
    correlate_codes,
    correlate_signals,
    lipschitz,
    synthesize_full,
)
from emdl.optim import Optimizer, exact_dictionary, normalize_atoms
from emdl.unrolled import unroll_full

_LOG = logging.getLogger(__name__)
M_STEPS = ("analytic", "unrolled", "decoder")


@dataclass(frozen=True)
class Progress:
    """One EM iteration, as the callback sees it.

    Attributes
    ----------
    iteration, max_iter : int
        Number of this iteration, from 1, and the largest allowed.
    objective : float
        E(z) of (1), summed over the signals, at the codes of this iteration.
    n_nonzero : int
        Non-zero codes.
    lmbd : array (K,)
        Rates, 1 / data unit.
    sigma : float
        Noise standard deviation, data unit.
    change : float
        Largest sqrt(1 - <d, d_before>^2) of any atom.
    seconds : float
        Since the start.
    D : array (K, C, *s)
        Dictionary.
    """

    iteration: int
    max_iter: int
    objective: float
    n_nonzero: int
    lmbd: np.ndarray
    sigma: float
    change: float
    seconds: float
    D: np.ndarray


@dataclass(frozen=True)
class EMResult:
    """What `em_fit` returns.

    Attributes
    ----------
    model : Model
        Dictionary, rates, noise level.
    history : dict of ndarray (n_iter,)
        objective, n_nonzero, lmbd (geometric mean over the atoms), sigma, change, seconds of each iteration.
    n_iter : int
        Iterations made.
    converged : bool
        Whether dictionary and rates stood still within `tol`.
    message : str
        How it ended, and anything that had to be repaired on the way.
    """

    model: Model
    history: dict
    n_iter: int
    converged: bool
    message: str


@dataclass(frozen=True)
class _Plan:
    """What stays the same over all iterations."""

    y: np.ndarray
    target: np.ndarray | None
    stride: tuple
    positive: bool
    m_step: str
    n_layers: int
    batches: int
    rule: str
    learn_sigma: bool
    prior: object
    tol_codes: float


@dataclass(frozen=True)
class _State:
    """What an iteration changes."""

    D: np.ndarray
    lmbd: np.ndarray
    sigma: float
    codes: object = None
    objective: float = np.nan
    n_nonzero: int = 0
    notes: tuple = ()


def em_fit(
    y,
    n_atoms,
    atom_shape,
    *,
    D0=None,
    lmbd0=None,
    sigma=None,
    positive=False,
    stride=1,
    max_iter=100,
    n_layers=30,
    m_step="analytic",
    learn_lmbd=True,
    learn_sigma=False,
    target=None,
    rng=None,
    callback=None,
    lmbd_rule=None,
    prior=None,
    batch_size=None,
    optimizer=None,
    repair=None,
    tol=1e-3,
    tol_codes=1e-3,
):
    """Learn a dictionary, Laplace rates and the noise level from signals.

    Parameters
    ----------
    y : array S, (n, *S) or (n, C, *S)
        Signals; `atom_shape` says whether S has one axis or two.
    n_atoms : int
        Number of atoms K.
    atom_shape : int or tuple of int
        Samples of an atom along each axis.
    D0 : array (K, C, *s), optional
        Dictionary to start from; by default one is made from the signals alone.
    lmbd0 : float or array (K,), optional
        Rates to start from, 1 / data unit; by default sqrt(2 log(K N)) / sigma with N code positions, the universal
        threshold.
    sigma : float, optional
        Noise standard deviation, data unit; by default estimated from the median absolute deviation.
    positive : bool
        Keep the codes non-negative.
    stride : int or tuple of int
        Distance of neighbouring code positions, samples.
    max_iter : int
        Most EM iterations; one is a pass over all signals.
    n_layers : int
        Layers T of the unrolled encoder (`m_step` unrolled and decoder). More layers come nearer to the minimiser of
        (1).
    m_step : {"analytic", "unrolled", "decoder"}
        How the dictionary is learned: exactly from sufficient statistics of certified codes; by the gradient of the
        reconstruction error through decoder and all layers (the paper); or through the decoder alone.
    learn_lmbd : bool
        Learn the rates by `lmbd_rule`, or keep them.
    learn_sigma : bool
        Learn the noise level from the residual.
    target : array of the shape of `y`, optional
        Clean signals to reconstruct (supervised); by default `y` itself.
    rng : Generator, int or None
        Source of the random choices; the same seed gives the same bits.
    callback : callable, optional
        Called with a `Progress` after each iteration; a true return value ends the fit.
    lmbd_rule : str, optional
        One of `emdl.rates.RULES`; see there.
    prior : emdl.rates.Prior, optional
        Gamma prior of the rates, for the rules that use one.
    batch_size : int, optional
        Signals in one update of the dictionary; by default all.
    optimizer : Optimizer, optional
        Gradient steps of the m_steps unrolled and decoder; by default Adam at rate 0.03.
    repair : bool, optional
        Re-centre atoms, merge duplicates and re-seed dead atoms on the way; by default only without `D0`.
    tol : float
        Converged when no atom moves by more than this (sqrt(1 - <d, d_before>^2)) and no rate by more than this share.
    tol_codes : float
        Relative duality gap of the codes.

    Returns
    -------
    EMResult

    Raises
    ------
    InputError
        If shapes do not fit each other, a value is not finite, the signals are constant, or a parameter lies outside
        its range.

    References
    ----------
    .. [1] B. Tolooshams, S. Dey, D. Ba, Deep residual autoencoders for expectation maximization-inspired dictionary
       learning, IEEE TNNLS 2021, doi:10.1109/TNNLS.2020.3005348, arXiv:1904.08827.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> z = (rng.random((1, 1, 2000)) < 0.01) * rng.uniform(0.5, 1.5, (1, 1, 2000))
    >>> D = np.hanning(11)[None, None, 1:-1]
    >>> y = synthesize(z, D) + 0.05 * rng.standard_normal((1, 1, 2008))
    >>> em_fit(y, 1, 9, positive=True, rng=0).model.D.shape
    (1, 1, 9)
    """
    plan, state = _prepare(
        y, n_atoms, atom_shape, D0, lmbd0, sigma, positive, stride, m_step, n_layers, learn_lmbd, learn_sigma, target,
        lmbd_rule, prior, batch_size, check_number(tol_codes, "tol_codes", 0, 1, strict=True), rng :=
        np.random.default_rng(rng),
    )  # fmt: skip
    check_count(max_iter, "max_iter")
    optimizer = replace(optimizer) if optimizer is not None else Optimizer()
    repair = D0 is None if repair is None else repair
    rows, converged, ended, began = [], False, f"stopped after max_iter = {max_iter} iterations", time.perf_counter()
    for iteration in range(1, max_iter + 1):
        before = state
        state = _expect(plan, state)
        state = _maximize(plan, state, optimizer, rng)
        if repair and iteration <= max_iter * 2 // 3:
            state = _repair(plan, state, rng)
        change = _change(before.D, state.D)
        moved = float(abs(np.log(state.lmbd / before.lmbd)).max())
        progress = Progress(
            iteration, max_iter, state.objective, state.n_nonzero, state.lmbd, state.sigma, change,
            time.perf_counter() - began, state.D,
        )  # fmt: skip
        rows.append(progress)
        _LOG.info(
            "iteration %d: objective %.6g, %d non-zeros, change %.2g",
            iteration,
            state.objective,
            state.n_nonzero,
            change,
        )
        if callback is not None and callback(progress):
            ended = f"stopped by the callback after {iteration} iterations"
            break
        if change < tol and moved < tol:
            converged, ended = True, f"converged after {iteration} iterations"
            break
    names = ("objective", "n_nonzero", "sigma", "change", "seconds")
    history = {name: np.array([getattr(row, name) for row in rows]) for name in names}
    history["lmbd"] = np.array([float(np.exp(np.log(row.lmbd).mean())) for row in rows])
    model = Model(state.D, state.lmbd, state.sigma, plan.positive, plan.stride)
    return EMResult(model, history, len(rows), converged, "; ".join([ended, *dict.fromkeys(state.notes)]))


def _prepare(
    y, n_atoms, atom_shape, D0, lmbd0, sigma, positive, stride, m_step, n_layers, learn_lmbd, learn_sigma, target,
    lmbd_rule, prior, batch_size, tol_codes, rng,
):  # fmt: skip
    """Check what `em_fit` was given, and make the plan and the first state."""
    atom_shape = tuple(check_count(s, "atom_shape") for s in np.atleast_1d(atom_shape).tolist())
    if len(atom_shape) not in (1, 2):
        raise InputError(f"atom_shape is {atom_shape}, wanted one or two lengths")
    if m_step not in M_STEPS:
        raise InputError(f"m_step is {m_step!r}, wanted one of {', '.join(M_STEPS)}")
    rule = "fixed" if not learn_lmbd else lmbd_rule or rates.DEFAULT_RULE
    if rule not in rates.RULES:
        raise InputError(f"lmbd_rule is {rule!r}, wanted one of {', '.join(rates.RULES)}")
    n_atoms = check_count(n_atoms, "n_atoms")
    y = as_signals(y, len(atom_shape))
    if target is not None:
        target = as_signals(target, len(atom_shape), "target").astype(y.dtype, copy=False)
        if target.shape != y.shape:
            raise InputError(f"target has shape {target.shape}, wanted that of y, {y.shape}")
    stride = as_stride(stride, len(atom_shape))
    n_positions = len(y) * int(np.prod(code_positions(y.shape[2:], atom_shape, stride)))
    xp = array_module(y)
    if bool((y == y[(0,) * y.ndim]).all()):
        raise InputError(f"y is constant ({float(y[(0,) * y.ndim]):g} everywhere), which holds nothing to learn")
    sigma = rates.estimate_sigma(y) if sigma is None else check_number(sigma, "sigma", 0, strict=True)
    if D0 is None:
        D = starts.blind(y, n_atoms, atom_shape, positive=positive, stride=stride, sigma=sigma, rng=rng)
    else:
        D = normalize_atoms(as_dictionary(D0, y.dtype))
        wanted = (n_atoms, y.shape[1], *atom_shape)
        if D.shape != wanted:
            raise InputError(f"D0 has shape {D.shape}, wanted {wanted}: (n_atoms, channels of y, *atom_shape)")
    lmbd = xp.full(n_atoms, rates.start_lmbd(n_atoms, n_positions, sigma)) if lmbd0 is None else as_rates(lmbd0, D)
    if not bool((lmbd > 0).all()):
        raise InputError(f"lmbd0 is {lmbd0!r}, wanted rates > 0")
    batches = 1 if batch_size is None else -(-len(y) // check_count(batch_size, "batch_size"))
    prior = rates.Prior.weak(lmbd, n_positions) if prior is None else prior
    n_layers = check_count(n_layers, "n_layers")
    plan = _Plan(
        y, target, stride, bool(positive), m_step, n_layers, batches, rule, bool(learn_sigma), prior, tol_codes
    )
    return plan, _State(D, lmbd, sigma)


def _expect(plan, state):
    """E-step: codes, and the rates and the noise level that they suggest."""
    step = rates.e_step(
        plan.y, state.D, plan.stride, plan.positive, state.lmbd, state.sigma, rule=plan.rule,
        learn_sigma=plan.learn_sigma, prior=plan.prior, tol=plan.tol_codes, codes=state.codes,
    )  # fmt: skip
    objective = step.energy / (2 * step.sigma**2) + float((step.lmbd * step.l1).sum())
    notes = (*state.notes, step.message) if step.message else state.notes
    return _State(state.D, step.lmbd, step.sigma, step.codes, objective, step.n_nonzero, notes)


def _maximize(plan, state, optimizer, rng):
    """M-step: the dictionary."""
    if plan.m_step == "analytic":
        shape, wanted = state.D.shape[2:], plan.y if plan.target is None else plan.target
        phi = correlate_codes(state.codes, shape, plan.stride)
        psi = correlate_signals(state.codes, wanted, shape, plan.stride)
        return replace(state, D=exact_dictionary(state.D, phi, psi))
    D = state.D
    for batch in np.array_split(rng.permutation(len(plan.y)), plan.batches):
        y = plan.y[batch]
        wanted = y if plan.target is None else plan.target[batch]
        D = optimizer.step(D, dictionary_gradient(plan, state, D, y, wanted))
    return replace(state, D=D)


def dictionary_gradient(plan, state, D, y, wanted):
    """Return the gradient of half the squared reconstruction error, divided by the energy of the codes of an atom."""
    xp = array_module(y)
    step = 1 / lipschitz(D, stride=plan.stride)
    theta = (state.lmbd * state.sigma**2 * step).astype(y.dtype)
    trace = unroll_full(y, D, theta, step, plan.n_layers, plan.positive, plan.stride)
    z = trace.codes[-1]
    error = synthesize_full(z, D, plan.stride) - wanted
    gradient = correlate_signals(z, error, D.shape[2:], plan.stride)
    if plan.m_step == "unrolled":
        gradient = gradient + backward(trace, analyze_full(error, D, plan.stride)).D
    value = z.value if isinstance(z, SparseCodes) else z
    energy = float((value.astype(np.float64) ** 2).sum()) / len(D)
    return gradient / energy if energy > 0 else xp.zeros_like(D)


def _repair(plan, state, rng):
    """Re-centre, merge and re-seed atoms where needed; the codes of a changed dictionary start anew."""
    D, note = starts.repair(state.D, state.codes, plan.y, stride=plan.stride, positive=plan.positive, rng=rng)
    return state if not note else replace(state, D=D, codes=None, notes=(*state.notes, note))


def _change(before, after):
    """Return the largest sqrt(1 - <d, d_before>^2) of any atom."""
    inner = (before.astype(np.float64) * after).sum(axis=tuple(range(1, after.ndim)))
    return float(array_module(after).sqrt(1 - inner.clip(-1, 1) ** 2).max())
