"""Expectation maximisation: encode, update the dictionary, update the rates, repeat."""

import logging
import math
import time
from dataclasses import dataclass, replace

import numpy as np

from emdl import checkpoint as kept
from emdl import mstep, plan, rates, starts
from emdl.backend import (
    array_module,
    as_dictionary,
    as_rng,
    check_count,
    check_flag,
    check_number,
    with_one_blas_thread,
)
from emdl.course import HISTORY, Run, State, kept_of, restored
from emdl.device import choose, to_host
from emdl.errors import InputError
from emdl.events import Layout
from emdl.model import Model
from emdl.ops import as_rates
from emdl.optim import Optimizer, normalize_atoms
from emdl.parts import Parts
from emdl.repair import repair_atoms, weak_atoms

_LOG = logging.getLogger(__name__)
_BY_PREDICTION = ("gcv", "sure")  # rules that look for the best reconstruction
_HASTE = 0.03  # gap of the codes over the last change of the dictionary, which the next change will resemble
_RATE, _DECAY = 0.1, 0.003  # half as many iterations to an atom error of 0.1 as at rate 0.03, and as small an end
_SHARE = 0.75  # of the iterations that the dictionary may take before such a rule begins
_REPAIRS = (2, 5, 9, 14, 20, 30, 45)  # iterations after which atoms are repaired, besides when they stand still
_RISE = 1.1  # times its lowest value, above which an objective is said to have risen: minibatches let it sway
_CODES = ".codes"  # added to the name of the checkpoint: the folder of the codes of signals in parts
_NOT_ASKED = ("callback", "checkpoint", "checkpoint_every", "resume", "client", "device")  # what changes no result
_OF_PLAN = (
    "y", "n_atoms", "atom_shape", "target", "stride", "positive", "m_step", "n_layers", "n_backward", "batch_size",
    "tol_codes", "validation", "prior", "learn_sigma", "learn_dictionary", "max_iter", "tol",
)  # fmt: skip
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
    client=None,
    device="cpu",
):
    """Learn a dictionary, Laplace rates and the noise level from signals.

    The rules ``gcv`` and ``sure`` look for the rates that reconstruct best, which are too small to learn atoms with:
    there the dictionary is learned first, at `lmbd0`, then the rates. The rules of the paper learn both in turn.

    Signals of more than 4 million values are worked on in parts (`emdl.parts`), with the same result for any number of
    threads or workers; noise level and start then come from a sample of them.

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
        Signals in one update of the dictionary; by default all (analytic) or a tenth of them (any other m_step). A
        signal that is cut into parts counts by these.
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
    client : distributed.Client, optional
        Cluster of Dask whose workers read the signals and work on them (``pip install "emdl[dask]"``, docs/scale.md);
        the result has the bits that it has without. `y` and `target` are then what workers can open themselves: a
        memory map (``numpy.load(path, mmap_mode="r")``), a data set of HDF5, a Zarr array, a Dask array. Signals of
        less than 4 million values are one part and stay here.
    device : {"cpu", "cuda", "auto"}
        Where the workers compute, a GPU for each. Without `client` the arrays say where, and ``cuda`` wants those of
        CuPy.

    Returns
    -------
    EMResult

    Raises
    ------
    InputError
        If shapes do not fit each other, a value is not finite, the signals are constant, or a parameter lies outside
        its range; if the checkpoint exists without `resume`, is in use, or belongs to another fit.
    FileFormatError
        If the checkpoint is damaged, or cannot be written at the beginning; or if a worker cannot read the signals.
    ClusterError
        If the cluster cannot be used, or is lost; the checkpoint then is as after the last iteration.
    DeviceError
        If ``cuda`` was asked for and is not there.

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
    asked = {name: value for name, value in locals().items() if name not in _NOT_ASKED}
    rng = as_rng(rng)
    made = _planned(asked, callback, client, device)
    optimizer = replace(optimizer) if optimizer is not None else Optimizer(rate=_RATE, decay=_DECAY)
    try:
        asked |= made.data.described() if isinstance(made.data, Parts) else {}
        with kept.Checkpoint(checkpoint, asked, kind="em_fit", every=checkpoint_every, resume=resume) as keeper:
            run = _run(made, keeper, callback, optimizer, rng, (D0, lmbd0, sigma))
        return _result(made, run)
    finally:
        made.data.close()


def _planned(asked, callback, client, device):
    """Return the `Plan` of a fit, given the arguments of `em_fit`."""
    given = {name: asked[name] for name in _OF_PLAN}
    check_count(given["max_iter"], "max_iter")
    given["tol"] = check_number(given["tol"], "tol", 0)
    for name in ("positive", "learn_lmbd", "learn_sigma", "learn_dictionary"):
        check_flag(asked[name], name)
    plan.check_kinds(given["prior"], asked["optimizer"], callback)
    if client is None and choose(device)[0] is not np and device == "cuda" and array_module(asked["y"]) is np:
        raise InputError("device is 'cuda', but y lies on the CPU and there is no client; use cupy.asarray(y)")
    blind, rule = asked["D0"] is None, asked["lmbd_rule"] or rates.DEFAULT_RULE
    return plan.make(
        **given, client=client, device=device, rule=rule if asked["learn_lmbd"] else "fixed",
        may_repair=blind if asked["repair"] is None else check_flag(asked["repair"], "repair"),
        may_restart=given["learn_dictionary"] and asked["lmbd0"] is None,
    )  # fmt: skip


def _run(plan, keeper, callback, optimizer, rng, start):
    """Run a fit to its end, from a start or from a checkpoint."""
    began = saved = time.perf_counter()
    in_parts = isinstance(plan.data, Parts) and keeper.path is not None
    if in_parts:
        plan.data.folder = keeper.path.with_name(keeper.path.name + _CODES).resolve()
        plan.data.folder.mkdir(exist_ok=True)
    if keeper.found is None:
        run = Run(_first_state(plan, start, rng), _first_stage(plan), float(plan.learn_dictionary))
        run.best = run.state
    else:
        run = restored(keeper.found, plan, optimizer, rng)
        began -= max(run.history["seconds"], default=0.0)
    while not run.ended:
        progress = _iterate(plan, run, optimizer, rng, began)
        if in_parts and (run.ended or time.perf_counter() - saved >= keeper.every):
            plan.data.keep(run.state.codes)
            saved = time.perf_counter()
        keeper.offer(kept_of(run, optimizer, rng), now=bool(run.ended))
        if callback is not None and callback(progress):
            run.converged, run.ended = False, f"stopped by the callback after {run.iteration} iterations"
    return run


def _iterate(plan, run, optimizer, rng, began):
    """Run one iteration of EM, decide what comes after it, and return what the callback gets to know."""
    before, run.iteration = run.state, run.iteration + 1
    state, sums = _expect(plan, before, run.stage, tol=max(plan.tol_codes, _HASTE * run.change))
    if run.stage != "rates":
        state = _maximize(plan, state, sums, optimizer, rng)
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
    for name in HISTORY:
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


def _first_state(plan, start, rng):
    """Return the dictionary, rates and noise level that EM starts from; `start` says which of them were given."""
    D0, lmbd0, sigma = start
    xp, K, data = array_module(plan.data.like, D0), plan.D_shape[0], plan.data
    if sigma is None:
        sigma = data.sample(rates.estimate_sigma)
    else:
        sigma = check_number(
            check_number(sigma, "sigma", 0, strict=True) / plan.unit, "sigma / max |y|", 0, strict=True
        )
    if D0 is None:
        D, state = data.sample(_blind, K, plan.D_shape[2:], plan.positive, plan.stride, sigma, rng)
        rng.bit_generator.state = state  # it may have been used in another process
    else:
        D = normalize_atoms(as_dictionary(D0, data.dtype))
        if D.shape != plan.D_shape:
            raise InputError(f"D0 has shape {D.shape}, wanted {plan.D_shape}: (n_atoms, channels of y, *atom_shape)")
    if lmbd0 is None:
        return State(D, xp.full(K, rates.start_lmbd(K, plan.n_positions, sigma)), sigma, sigma)
    lmbd = as_rates(lmbd0, D, "lmbd0") * plan.unit
    if not bool((lmbd > 0).all()):
        raise InputError(f"lmbd0 is {lmbd0!r}, wanted rates > 0")
    return State(D, lmbd, sigma, sigma)


def _blind(y, n_atoms, atom_shape, positive, stride, sigma, rng):
    """Return a dictionary to start from, and the state of the random numbers after it."""
    D = starts.blind(y, n_atoms, atom_shape, positive=positive, stride=stride, sigma=sigma, rng=rng)
    return D, rng.bit_generator.state


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
    lmbd = plan.data.xp.full_like(state.lmbd, rates.start_lmbd(plan.D_shape[0], plan.n_positions, state.sigma))
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


def _expect(plan, state, stage, tol):
    """E-step: codes, unless they are held rates and noise level that the codes suggest, and sums for the M-step."""
    hold = stage == "dictionary"
    step = rates.e_step(
        plan.data, state.D, plan.stride, plan.positive, state.lmbd, state.sigma, rule="fixed" if hold else plan.rule,
        learn_sigma=plan.learn_sigma and not hold, prior=plan.prior, tol=tol, codes=state.codes, search=state.search,
        also=mstep.statistics if plan.wants_statistics and stage != "rates" else None,
    )  # fmt: skip
    objective = step.energy / (2 * state.sigma**2) + float((state.lmbd * step.l1).sum())
    notes = (*state.notes, step.message) if step.message else state.notes
    return replace(
        state, lmbd=step.lmbd, sigma=step.sigma, codes=step.codes, search=step.search, objective=objective,
        n_nonzero=step.n_nonzero, notes=notes,
    ), step.also  # fmt: skip


def _maximize(plan, state, sums, optimizer, rng):
    """M-step: the dictionary."""
    if sums is not None:
        D = mstep.from_sums(state.D, sums)
    elif plan.m_step == "analytic":
        penalty = state.lmbd * state.sigma**2
        D = mstep.by_batches(
            state.D, plan.data, state.codes, penalty, batches=plan.batches, tol=plan.tol_codes, rng=rng
        )
    else:
        D = mstep.by_gradient(
            state.D, plan.data, state.lmbd, state.sigma, optimizer=optimizer, batches=plan.batches,
            m_step=plan.m_step, n_layers=plan.n_layers, n_backward=plan.n_backward, rng=rng,
        )  # fmt: skip
    return replace(state, D=D)


def _repair(plan, state, rng):
    """Move cut-off atoms and replace a superfluous one; the codes of a changed dictionary start anew."""
    layout = Layout(plan.D_shape[2:], plan.stride, plan.positive)
    D, note = repair_atoms(state.D, state.codes, plan.data, state.lmbd * state.sigma**2, layout, state.sigma, rng)
    return state if not note else replace(state, D=D, codes=None, notes=(*state.notes, note))


def _weakness(plan, state):
    """Return a note on the atoms that explain little by themselves, if there are any and their codes are known."""
    if state.codes is None:
        return []
    layout = Layout(plan.D_shape[2:], plan.stride, plan.positive)
    found = weak_atoms(state.D, state.codes, state.lmbd * state.sigma**2, layout, plan.data)
    weak = ", ".join(map(str, found))
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
