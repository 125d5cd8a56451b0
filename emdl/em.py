"""Expectation maximisation: encode, update the dictionary, update the rates, repeat."""

import logging
import math
import time
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from emdl import checkpoint as kept
from emdl import mstep, rates, starts
from emdl.backend import (
    array_module,
    as_dictionary,
    as_rng,
    as_signals,
    as_stride,
    check_count,
    check_number,
    code_positions,
    power_of_two,
    with_one_blas_thread,
)
from emdl.device import to_host
from emdl.errors import FileFormatError, InputError, InputTypeError
from emdl.events import Layout
from emdl.model import Model
from emdl.mstep import M_STEPS
from emdl.ops import as_rates
from emdl.optim import Optimizer, normalize_atoms
from emdl.repair import repair_atoms, weak_atoms

_LOG = logging.getLogger(__name__)
_BY_PREDICTION = ("gcv", "sure")  # rules that look for the best reconstruction
_HASTE = 0.03  # gap of the codes over the last change of the dictionary, which the next change will resemble
_RATE, _DECAY = 0.1, 0.003  # half as many iterations to an atom error of 0.1 as at rate 0.03, and as small an end
_SHARE = 0.75  # of the iterations that the dictionary may take before such a rule begins
_REPAIRS = (2, 5, 9, 14, 20, 30, 45)  # iterations after which atoms are repaired, besides when they stand still
_HISTORY = ("objective", "n_nonzero", "lmbd", "sigma", "change", "seconds", "validation")
_COUNTERS = {
    "stage": str, "change": float, "iteration": int, "least": float, "best_iteration": int, "ended": str,
    "converged": bool, "lowest": float,
}  # fmt: skip
_STATE = {
    "sigma": float, "held_sigma": float, "round": int, "objective": float, "n_nonzero": int, "notes": list | tuple,
}  # fmt: skip
_STEPS = ("n_steps", "direction", "square")
_DECADES = 140  # to either side of 1 that signals may reach: squares of noise levels must not leave float64
_OFFSET = 1e3  # times its standard deviation, beyond which the mean of a channel drowns what is in it
_RISE = 1.1  # times its lowest value, above which an objective is said to have risen: minibatches let it sway
_ROUNDS = 3  # most times that the dictionary is learned anew because the noise level turned out to be another


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
    validation : float
        Mean squared error on the validation signals, data unit squared; NaN without any.
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
    validation: float = math.nan


@dataclass(frozen=True)
class EMResult:
    """What `em_fit` returns.

    Attributes
    ----------
    model : Model
        Dictionary, rates, noise level.
    history : dict of ndarray (n_iter,)
        objective, n_nonzero, lmbd (geometric mean over the atoms), sigma, change, seconds of each iteration; and
        validation, if there are signals to validate with.
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
    """What stays the same over all iterations.

    Signals are divided by `unit`, a power of two that brings them near 1: squares of float32 would otherwise leave the
    range of the numbers where the data do not. What comes out is in the unit of the data again.
    """

    unit: float
    y: np.ndarray
    wanted: np.ndarray
    D_shape: tuple
    n_positions: int
    stride: tuple
    positive: bool
    m_step: str
    n_layers: int
    n_backward: int
    batches: int
    rule: str
    learn_sigma: bool
    learn_dictionary: bool
    may_repair: bool
    may_restart: bool
    prior: object
    max_iter: int
    tol: float
    tol_codes: float
    validation: tuple[np.ndarray, np.ndarray] | None


@dataclass(frozen=True)
class _State:
    """What an iteration changes."""

    D: np.ndarray
    lmbd: np.ndarray
    sigma: float
    held_sigma: float  # the noise level that set the threshold at which the dictionary is learned
    round: int = 1
    codes: object = None
    search: object = None
    objective: float = np.nan
    n_nonzero: int = 0
    notes: tuple = ()


@dataclass
class _Run:
    """How far a fit has come: with the optimiser and the random numbers all that decides what it does next."""

    state: _State
    stage: str
    change: float
    iteration: int = 0
    history: dict = field(default_factory=lambda: {name: [] for name in _HISTORY})
    least: float = math.inf
    best: _State | None = None
    best_iteration: int = 0
    ended: str = ""
    converged: bool = False
    lowest: float = math.inf  # objective since the rates last moved


@with_one_blas_thread
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
    n_backward=None,
    m_step="analytic",
    learn_lmbd=True,
    learn_sigma=False,
    learn_dictionary=True,
    target=None,
    validation=None,
    rng=None,
    callback=None,
    lmbd_rule=None,
    prior=None,
    batch_size=None,
    optimizer=None,
    repair=None,
    tol=1e-3,
    tol_codes=1e-3,
    checkpoint=None,
    checkpoint_every=kept.EVERY,
    resume=False,
):
    """Learn a dictionary, Laplace rates and the noise level from signals.

    The rules ``gcv`` and ``sure`` look for the rates that reconstruct best, which are too small to learn atoms with:
    there the dictionary is learned first, at `lmbd0`, then the rates. The rules of the paper learn both in turn.

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
        Layers T of the unrolled encoder (any `m_step` but analytic). More layers come nearer to the minimiser of (1).
    n_backward : int, optional
        Last layers that the `m_step` truncated goes back through; by default a quarter of them. A small value costs
        less and gives a biased gradient.
    m_step : {"analytic", "unrolled", "truncated", "implicit", "decoder"}
        How the dictionary is learned: exactly from sufficient statistics of certified codes; by the gradient of the
        reconstruction error through decoder and all layers (the paper); through the decoder and the last layers; by
        that of the minimiser of (1); or through the decoder alone. `emdl.mstep` says when to prefer which.
    learn_lmbd : bool
        Learn the rates by `lmbd_rule`, or keep them.
    learn_sigma : bool
        Learn the noise level from the residual.
    learn_dictionary : bool
        Learn the dictionary, or keep `D0`.
    target : array of the shape of `y`, optional
        Clean signals to reconstruct (supervised); by default `y` itself.
    validation : array, or (array, array), optional
        Other signals, of any length, alone or with their clean targets. The mean squared error of what their codes
        make is taken after each iteration, and the model of the iteration at which it was least is returned. Without
        clean targets smaller rates always lower it, so that it serves to compare dictionaries where the rates are kept.
    rng : Generator, int or None
        Source of the random choices; the same seed gives the same bits.
    callback : callable, optional
        Called with a `Progress` after each iteration; a true return value ends the fit.
    lmbd_rule : str, optional
        One of `emdl.rates.RULES`; see there.
    prior : emdl.rates.Prior, optional
        Gamma prior of the rates, for the rules that use one.
    batch_size : int, optional
        Signals in one update of the dictionary; by default all (analytic) or a tenth of them (any other m_step).
    optimizer : Optimizer, optional
        Gradient steps of any m_step but analytic; by default Adam at a rate that falls from 0.1 (see `Optimizer`). From
        a start that is already good, a smaller rate does not first lead away from it.
    repair : bool, optional
        Re-centre atoms, merge duplicates and re-seed dead atoms on the way; by default only without `D0`.
    tol : float
        Converged when no atom moves by more than this (sqrt(1 - <d, d_before>^2)) and no rate by more than this share.
    tol_codes : float
        Relative duality gap of the codes; as long as the dictionary moves, 3 % of its change is enough.
    checkpoint : path, optional
        File that keeps the state of the fit: written every `checkpoint_every` seconds, at the end, and when an
        exception or an interrupt ends the fit. The old state stays until the new one is whole and on the disk.
    checkpoint_every : float
        Seconds between two writes; 0 writes after every iteration.
    resume : bool
        Go on from the checkpoint, if it exists. Called with the same data and arguments the result has the bits that
        it would have had without the interruption.

    Returns
    -------
    EMResult

    Raises
    ------
    InputError
        If shapes do not fit each other, a value is not finite, the signals are constant, or a parameter lies outside
        its range; if the checkpoint exists without `resume`, is in use, or belongs to another fit.
    FileFormatError
        If the checkpoint is damaged, or cannot be written at the beginning.

    References
    ----------
    .. [1] B. Tolooshams, S. Dey, D. Ba, Deep residual autoencoders for expectation maximization-inspired dictionary
       learning, IEEE TNNLS 2021, doi:10.1109/TNNLS.2020.3005348, arXiv:1904.08827.

    Examples
    --------
    >>> import numpy as np
    >>> from emdl import synthesize
    >>> rng = np.random.default_rng(0)
    >>> z = (rng.random((1, 1, 2000)) < 0.01) * rng.uniform(0.5, 1.5, (1, 1, 2000))
    >>> D = np.hanning(11)[None, None, 1:-1]
    >>> y = synthesize(z, D) + 0.05 * rng.standard_normal((1, 1, 2008))
    >>> em_fit(y, 1, 9, positive=True, rng=0).model.D.shape
    (1, 1, 9)
    """
    check_count(max_iter, "max_iter")
    tol = check_number(tol, "tol", 0)
    asked = {
        "y": y, "n_atoms": n_atoms, "atom_shape": atom_shape, "D0": D0, "lmbd0": lmbd0, "sigma": sigma,
        "positive": positive, "stride": stride, "max_iter": max_iter, "n_layers": n_layers, "n_backward": n_backward,
        "m_step": m_step, "learn_lmbd": learn_lmbd, "learn_sigma": learn_sigma, "learn_dictionary": learn_dictionary,
        "target": target, "validation": validation, "rng": rng, "lmbd_rule": lmbd_rule, "prior": prior,
        "batch_size": batch_size, "optimizer": optimizer, "repair": repair, "tol": tol, "tol_codes": tol_codes,
    }  # fmt: skip
    rng = as_rng(rng)
    _check_kinds(prior, optimizer, callback)
    plan = _make_plan(
        y, n_atoms, atom_shape, target,
        stride=stride, positive=positive, m_step=m_step, n_layers=n_layers, n_backward=n_backward,
        batch_size=batch_size, rule="fixed" if not learn_lmbd else lmbd_rule or rates.DEFAULT_RULE,
        learn_sigma=learn_sigma, prior=prior, tol_codes=tol_codes, validation=validation,
        may_repair=D0 is None if repair is None else repair, may_restart=learn_dictionary and lmbd0 is None,
        learn_dictionary=learn_dictionary, max_iter=max_iter, tol=tol,
    )  # fmt: skip
    optimizer = replace(optimizer) if optimizer is not None else Optimizer(rate=_RATE, decay=_DECAY)
    began = time.perf_counter()
    with kept.Checkpoint(checkpoint, asked, kind="em_fit", every=checkpoint_every, resume=resume) as keeper:
        if keeper.found is None:
            run = _Run(_first_state(plan, D0, lmbd0, sigma, rng), _first_stage(plan), float(learn_dictionary))
            run.best = run.state
        else:
            run = _restored(keeper.found, plan, optimizer, rng)
            began -= max(run.history["seconds"], default=0.0)
        while not run.ended:
            progress = _iterate(plan, run, optimizer, rng, began)
            keeper.offer(_kept(run, optimizer, rng), now=bool(run.ended))
            if callback is not None and callback(progress):
                run.converged, run.ended = False, f"stopped by the callback after {run.iteration} iterations"
    return _result(plan, run)


def _iterate(plan, run, optimizer, rng, began):
    """Run one iteration of EM, decide what comes after it, and return what the callback gets to know."""
    before, run.iteration = run.state, run.iteration + 1
    state = _expect(plan, before, hold=run.stage == "dictionary", tol=max(plan.tol_codes, _HASTE * run.change))
    if run.stage != "rates":
        state = _maximize(plan, state, optimizer, rng)
        if not bool(array_module(state.D).isfinite(state.D).all()):
            state = replace(state, D=before.D)
            run.ended = f"stopped in iteration {run.iteration}: a step left the range of the numbers and was not taken"
    due = run.iteration in _REPAIRS or _change(before.D, state.D) < plan.tol
    if plan.may_repair and due and run.stage != "rates" and run.iteration <= plan.max_iter * 2 // 3:
        state = _repair(plan, state, rng)
    loss = _validate(plan, state)
    if loss < run.least:
        run.least, run.best, run.best_iteration = loss, state, run.iteration
    progress = _report(plan, before, state, run.iteration, time.perf_counter() - began, loss)
    run.state, run.change = state, progress.change
    run.lowest = min(run.lowest, state.objective) if _same_rates(before, state) else math.inf
    for name in _HISTORY:
        run.history[name].append(_mean_rate(progress.lmbd) if name == "lmbd" else getattr(progress, name))
    _LOG.info("iteration %d: objective %.6g, change %.2g", run.iteration, state.objective, progress.change)
    _go_on(plan, run, progress.change < plan.tol and _moved(before.lmbd, state.lmbd) < plan.tol)
    return progress


def _go_on(plan, run, still):
    """Choose the stage of the next iteration, or end the fit."""
    if run.ended:
        return
    if run.stage == "dictionary" and (still or run.iteration >= _SHARE * plan.max_iter):
        run.stage = "rates"
    elif still and run.stage == "rates" and plan.may_restart and _noise_was_wrong(plan, run.state):
        run.stage, run.state = "dictionary", _restart(plan, run.state)
    elif still:
        run.converged, run.ended = True, f"converged after {run.iteration} iterations"
    if not run.ended and run.iteration >= plan.max_iter:
        run.ended = f"stopped after max_iter = {plan.max_iter} iterations"


def _result(plan, run):
    """Return what a fit that has ended leaves behind."""
    state, ended = run.state, run.ended
    history = {name: np.array(values) for name, values in run.history.items()}
    if plan.validation is None:
        del history["validation"]
    else:
        state = run.best
        least = run.least * plan.unit**2
        ended += f"; kept the model of iteration {run.best_iteration}, whose validation error is {least:.4g}"
    model = Model(state.D, state.lmbd / plan.unit, state.sigma * plan.unit, plan.positive, plan.stride)
    notes = [*dict.fromkeys(state.notes), *_rise(plan, run), *_weakness(plan, state)]
    return EMResult(model, history, run.iteration, run.converged, "; ".join([ended, *notes]))


def _same_rates(before, after):
    """Say whether two objectives can be compared."""
    return before.sigma == after.sigma and bool((before.lmbd == after.lmbd).all())


def _rise(plan, run):
    """Return a note if the objective ends well above where it was before, at the same rates."""
    last = run.history["objective"][-1]
    if not last > _RISE * run.lowest:
        return []
    cure = "n_atoms or repair may be the reason" if plan.m_step == "analytic" else "lower the learning rate"
    return [f"the objective rose from {run.lowest:.4g} to {last:.4g} while the rates were kept; {cure}"]


def _kept(run, optimizer, rng):
    """Return all that decides the future of a fit, as the state that a checkpoint keeps."""
    held = {name: getattr(run, name) for name in _COUNTERS} | {"rng": kept.of_rng(rng)}
    held |= {f"optimizer_{name}": getattr(optimizer, name) for name in _STEPS}
    held |= {f"history_{name}": np.array(values, np.float64) for name, values in run.history.items()}
    held |= _kept_state(run.state, "state")
    return held | (_kept_state(run.best, "best") if run.best_iteration else {})


def _kept_state(state, name):
    plain = {f"{name}_{part}": getattr(state, part) for part in ("D", "lmbd", *_STATE)}
    search = None if state.search is None else asdict(state.search)
    return plain | {f"{name}_search": search} | kept.of_codes(state.codes, f"{name}_codes")


def _restored(held, plan, optimizer, rng):
    """Return the run in a checkpoint; optimiser and random numbers are put into their states."""
    counters = {name: kept.value_of(held, name, kind) for name, kind in _COUNTERS.items()}
    n = counters["iteration"]
    history = {name: kept.array_of(held, f"history_{name}", (n,), None, finite=False).tolist() for name in _HISTORY}
    history["n_nonzero"] = [int(count) for count in history["n_nonzero"]]
    optimizer.n_steps = kept.value_of(held, "optimizer_n_steps", int)
    if held.get("optimizer_direction") is not None:
        xp = array_module(plan.y)
        for name in ("direction", "square"):
            setattr(optimizer, name, xp.asarray(kept.array_of(held, f"optimizer_{name}", plan.D_shape, np.float64)))
    kept.set_rng(rng, kept.value_of(held, "rng", dict))
    state = _restored_state(held, plan, "state")
    best = _restored_state(held, plan, "best") if counters["best_iteration"] else state
    if counters["stage"] not in ("dictionary", "rates", "both"):
        raise FileFormatError(f"the checkpoint is damaged: its stage is {counters['stage']!r}")
    return _Run(state=state, best=best, history=history, **counters)


def _restored_state(held, plan, name):
    xp, K = array_module(plan.y), plan.D_shape[0]
    D = kept.array_of(held, f"{name}_D", plan.D_shape, plan.y.dtype)
    lmbd = kept.array_of(held, f"{name}_lmbd", (K,), np.float64)
    shape = (len(plan.y), K, *code_positions(plan.y.shape[2:], plan.D_shape[2:], plan.stride))
    codes = kept.codes_of(held, f"{name}_codes", shape, plan.y)
    plain = {part: kept.value_of(held, f"{name}_{part}", kind) for part, kind in _STATE.items()}
    plain["notes"] = tuple(map(str, plain["notes"]))
    search = held.get(f"{name}_search")
    if not (lmbd > 0).all() or not plain["sigma"] > 0 or not plain["held_sigma"] > 0:
        raise FileFormatError("the checkpoint is damaged: rates and noise levels must be positive")
    if search is not None:
        search = rates.Search(**{part: kept.value_of(search, part, int | float) for part in rates.Search().__dict__})
    return _State(xp.asarray(D), xp.asarray(lmbd), codes=codes, search=search, **plain)


def _check_kinds(prior, optimizer, callback):
    """Raise if an argument is of no kind that can be used."""
    if prior is not None and not isinstance(prior, rates.Prior):
        raise InputTypeError(f"prior is {prior!r}, wanted an emdl.rates.Prior")
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise InputTypeError(f"optimizer is {optimizer!r}, wanted an emdl.optim.Optimizer")
    if callback is not None and not callable(callback):
        raise InputTypeError(f"callback is {callback!r}, wanted a function of one argument")


def _make_plan(
    y, n_atoms, atom_shape, target, *, stride, m_step, n_layers, n_backward, batch_size, rule, tol_codes, validation,
    prior, **kept,
):  # fmt: skip
    """Check what `em_fit` was given, all but the start."""
    shape = tuple(check_count(s, "atom_shape") for s in np.atleast_1d(atom_shape).tolist())
    if len(shape) not in (1, 2):
        raise InputError(f"atom_shape is {atom_shape!r}, wanted one or two lengths")
    if m_step not in M_STEPS:
        raise InputError(f"m_step is {m_step!r}, wanted one of {', '.join(M_STEPS)}")
    if rule not in rates.RULES:
        raise InputError(f"lmbd_rule is {rule!r}, wanted one of {', '.join(rates.RULES)}")
    y = as_signals(y, len(shape))
    unit = _check_range(y)
    stride = as_stride(stride, len(shape))
    n_layers = check_count(n_layers, "n_layers")
    scaled = _divided(y, unit)
    return _Plan(
        unit=unit,
        y=scaled,
        wanted=scaled if target is None else _divided(_target_of(y, target, "y"), unit),
        D_shape=(check_count(n_atoms, "n_atoms"), y.shape[1], *shape),
        n_positions=len(y) * math.prod(code_positions(y.shape[2:], shape, stride)),
        stride=stride,
        m_step=m_step,
        n_layers=n_layers,
        n_backward=_count_backward(n_backward, n_layers, m_step),
        batches=_count_batches(len(y), batch_size, m_step),
        rule=rule,
        tol_codes=check_number(tol_codes, "tol_codes", 0, 1, strict=True),
        validation=None if validation is None else _validation_pair(validation, y, shape, stride, unit),
        prior=None if prior is None else replace(prior, delta=prior.delta / unit),
        **kept,
    )


def _check_range(y):
    """Return the unit of signals, after making sure that they hold something to learn."""
    if bool((y == y[(0,) * y.ndim]).all()):
        raise InputError(f"y is constant ({float(y[(0,) * y.ndim]):g} everywhere), which holds nothing to learn")
    unit = power_of_two(y)
    if abs(math.log10(unit)) > _DECADES:
        raise InputError(
            f"the largest value of y is about {unit:.0e}, whose square leaves the range of the numbers; "
            f"wanted 1e-{_DECADES} to 1e{_DECADES}, change the unit"
        )
    for channel in range(y.shape[1]):
        own = _divided(y[:, channel], unit).astype(np.float64)
        mean, spread = float(own.mean()), float(own.std())
        if abs(mean) > _OFFSET * spread:
            raise InputError(
                f"channel {channel} of y has mean {unit * mean:.6g} and standard deviation {unit * spread:.3g}: "
                "the model has no offset, and its codes would make one; subtract the mean first"
            )
    return unit


def _divided(x, unit):
    return x if unit == 1 else x / x.dtype.type(unit)


def _target_of(y, target, name):
    """Return what the codes of the signals called `name` are to make."""
    if target is None:
        return y
    array_module(y, target)
    target = as_signals(target, y.ndim - 2, "target").astype(y.dtype, copy=False)
    if target.shape != y.shape:
        raise InputError(f"target has shape {target.shape}, wanted that of {name}, {y.shape}")
    return target


def _validation_pair(validation, y, atom_shape, stride, unit):
    """Return signals to validate with, and what their codes are to make."""
    signals, target = validation if isinstance(validation, tuple) else (validation, None)
    array_module(y, signals)
    signals = as_signals(signals, y.ndim - 2, "validation").astype(y.dtype, copy=False)
    if signals.shape[1] != y.shape[1]:
        raise InputError(f"validation has {signals.shape[1]} channels, wanted those of y, {y.shape[1]}")
    code_positions(signals.shape[2:], atom_shape, stride)
    return _divided(signals, unit), _divided(_target_of(signals, target, "validation"), unit)


def _count_backward(n_backward, n_layers, m_step):
    """Return how many layers a truncated gradient goes back through."""
    if n_backward is None:
        return max(1, n_layers // 4)
    if m_step != "truncated":
        raise InputError(f"n_backward is {n_backward!r} with m_step {m_step!r}; only 'truncated' goes back in part")
    if check_count(n_backward, "n_backward") > n_layers:
        raise InputError(f"n_backward is {n_backward}, wanted 1 ... {n_layers}, the number of layers")
    return n_backward


def _count_batches(n, batch_size, m_step):
    """Return in how many pieces the signals are taken in one iteration."""
    if batch_size is None:
        return 1 if m_step == "analytic" else min(n, 10)
    return -(-n // check_count(batch_size, "batch_size"))


def _first_state(plan, D0, lmbd0, sigma, rng):
    """Return the dictionary, rates and noise level that EM starts from."""
    xp, K = array_module(plan.y, D0), plan.D_shape[0]
    if sigma is None:
        sigma = rates.estimate_sigma(plan.y)
    else:
        sigma = check_number(
            check_number(sigma, "sigma", 0, strict=True) / plan.unit, "sigma / max |y|", 0, strict=True
        )
    if D0 is None:
        D = starts.blind(plan.y, K, plan.D_shape[2:], positive=plan.positive, stride=plan.stride, sigma=sigma, rng=rng)
    else:
        D = normalize_atoms(as_dictionary(D0, plan.y.dtype))
        if D.shape != plan.D_shape:
            raise InputError(f"D0 has shape {D.shape}, wanted {plan.D_shape}: (n_atoms, channels of y, *atom_shape)")
    if lmbd0 is None:
        return _State(D, xp.full(K, rates.start_lmbd(K, plan.n_positions, sigma)), sigma, sigma)
    lmbd = as_rates(lmbd0, D) * plan.unit
    if not bool((lmbd > 0).all()):
        raise InputError(f"lmbd0 is {lmbd0!r}, wanted rates > 0")
    return _State(D, lmbd, sigma, sigma)


def _first_stage(plan):
    """Return what is learned first: rules that look for the best reconstruction wait for the dictionary.

    The penalty that reconstructs best is small: with it, noise gets codes, which blurs atoms that are being learned. So
    the dictionary is learned at the universal threshold, then lambda with the dictionary held.
    """
    if not plan.learn_dictionary:
        return "rates"
    return "dictionary" if plan.rule in _BY_PREDICTION else "both"


def _noise_was_wrong(plan, state):
    """Say whether the dictionary was learned at a threshold that the learned noise level puts elsewhere."""
    return plan.learn_sigma and state.round < _ROUNDS and abs(math.log(state.sigma / state.held_sigma)) > 0.1


def _restart(plan, state):
    """Return the state from which the dictionary is learned anew, at the universal threshold of the learned noise."""
    lmbd = array_module(plan.y).full_like(state.lmbd, rates.start_lmbd(plan.D_shape[0], plan.n_positions, state.sigma))
    return replace(state, lmbd=lmbd, held_sigma=state.sigma, round=state.round + 1, search=None)


def _report(plan, before, state, iteration, seconds, validation):
    """Return what the callback and the history get to know, in the unit of the data."""
    change = _change(before.D, state.D)
    return Progress(
        iteration, plan.max_iter, state.objective, state.n_nonzero, state.lmbd / plan.unit,
        state.sigma * plan.unit, change, seconds, state.D, validation * plan.unit**2,
    )  # fmt: skip


def _validate(plan, state):
    """Return the mean squared error on the validation signals, NaN if there are none."""
    if plan.validation is None:
        return math.nan
    y, wanted = plan.validation
    return mstep.mean_error(
        state.D, y, wanted, state.lmbd, state.sigma, m_step=plan.m_step, n_layers=plan.n_layers,
        tol=plan.tol_codes, positive=plan.positive, stride=plan.stride,
    )  # fmt: skip


def _expect(plan, state, hold, tol):
    """E-step: codes, and unless they are held the rates and the noise level that the codes suggest."""
    step = rates.e_step(
        plan.y, state.D, plan.stride, plan.positive, state.lmbd, state.sigma, rule="fixed" if hold else plan.rule,
        learn_sigma=plan.learn_sigma and not hold, prior=plan.prior, tol=tol, codes=state.codes,
        search=state.search,
    )  # fmt: skip
    objective = step.energy / (2 * state.sigma**2) + float((state.lmbd * step.l1).sum())
    notes = (*state.notes, step.message) if step.message else state.notes
    return replace(
        state, lmbd=step.lmbd, sigma=step.sigma, codes=step.codes, search=step.search, objective=objective,
        n_nonzero=step.n_nonzero, notes=notes,
    )  # fmt: skip


def _maximize(plan, state, optimizer, rng):
    """M-step: the dictionary."""
    if plan.m_step == "analytic" and plan.batches == 1:
        return replace(state, D=mstep.from_statistics(state.D, state.codes, plan.wanted, plan.stride))
    if plan.m_step == "analytic":
        D = mstep.by_batches(
            state.D, plan.y, plan.wanted, state.codes, state.lmbd * state.sigma**2, batches=plan.batches,
            tol=plan.tol_codes, positive=plan.positive, stride=plan.stride, rng=rng,
        )  # fmt: skip
        return replace(state, D=D)
    D = mstep.by_gradient(
        state.D, plan.y, plan.wanted, state.lmbd, state.sigma, optimizer=optimizer, batches=plan.batches,
        m_step=plan.m_step, n_layers=plan.n_layers, n_backward=plan.n_backward, positive=plan.positive,
        stride=plan.stride, rng=rng,
    )  # fmt: skip
    return replace(state, D=D)


def _repair(plan, state, rng):
    """Move cut-off atoms and replace a superfluous one; the codes of a changed dictionary start anew."""
    layout = Layout(plan.D_shape[2:], plan.stride, plan.positive)
    D, note = repair_atoms(state.D, state.codes, plan.y, state.lmbd * state.sigma**2, layout, state.sigma, rng)
    return state if not note else replace(state, D=D, codes=None, notes=(*state.notes, note))


def _weakness(plan, state):
    """Return a note on the atoms that explain little by themselves, if there are any and their codes are known."""
    if state.codes is None:
        return []
    layout = Layout(plan.D_shape[2:], plan.stride, plan.positive)
    weak = ", ".join(map(str, weak_atoms(state.D, state.codes, state.lmbd * state.sigma**2, layout)))
    return [f"explains little that others do not: atom {weak}; n_atoms may be too large"] if weak else []


def _mean_rate(lmbd):
    """Return the geometric mean of the rates."""
    return float(np.exp(np.log(to_host(lmbd)).mean()))


def _moved(before, after):
    """Return the largest change of a logarithm."""
    xp = array_module(before, after)
    return float(abs(xp.log(after / before)).max())


def _change(before, after):
    """Return the largest sqrt(1 - <d, d_before>^2) of any atom."""
    inner = (before.astype(np.float64) * after).sum(axis=tuple(range(1, after.ndim)))
    return float(array_module(after).sqrt(1 - inner.clip(-1, 1) ** 2).max())
