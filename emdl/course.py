"""How far a fit has come, in memory and in its checkpoint."""

import math
from dataclasses import asdict, dataclass, field

import numpy as np

from emdl import checkpoint as kept
from emdl import parts, rates
from emdl.backend import code_positions
from emdl.errors import FileFormatError

HISTORY = ("objective", "n_nonzero", "lmbd", "sigma", "change", "seconds", "validation")
_COUNTERS = {
    "stage": str, "change": float, "iteration": int, "least": float, "best_iteration": int, "ended": str,
    "converged": bool, "lowest": float,
}  # fmt: skip
_STATE = {
    "sigma": float, "held_sigma": float, "round": int, "objective": float, "n_nonzero": int, "notes": list | tuple,
}  # fmt: skip
_STEPS = ("n_steps", "direction", "square")


@dataclass(frozen=True)
class State:
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
class Run:
    """How far a fit has come: with the optimiser and the random numbers all that decides what it does next."""

    state: State
    stage: str
    change: float
    iteration: int = 0
    history: dict = field(default_factory=lambda: {name: [] for name in HISTORY})
    least: float = math.inf
    best: State | None = None
    best_iteration: int = 0
    ended: str = ""
    converged: bool = False
    lowest: float = math.inf  # objective since the rates last moved


def kept_of(run, optimizer, rng):
    """Return all that decides the future of a fit, as the state that a checkpoint keeps."""
    held = {name: getattr(run, name) for name in _COUNTERS} | {"rng": kept.of_rng(rng)}
    held |= {f"optimizer_{name}": getattr(optimizer, name) for name in _STEPS}
    held |= {f"history_{name}": np.array(values, np.float64) for name, values in run.history.items()}
    held |= _kept_state(run.state, "state")
    return held | (_kept_state(run.best, "best") if run.best_iteration else {})


def _kept_state(state, name):
    plain = {f"{name}_{part}": getattr(state, part) for part in ("D", "lmbd", *_STATE)}
    plain[f"{name}_search"] = None if state.search is None else asdict(state.search)
    if not isinstance(state.codes, parts.Chain):
        return plain | kept.of_codes(state.codes, f"{name}_codes")
    chain = {part: np.stack([getattr(step, part) for step in state.codes.steps]) for part in ("D", "penalty", "tol")}
    return plain | {f"{name}_chain": state.codes.key} | {f"{name}_chain_{part}": x for part, x in chain.items()}


def restored(held, plan, optimizer, rng):
    """Return the run in a checkpoint; optimiser and random numbers are put into their states."""
    counters = {name: kept.value_of(held, name, kind) for name, kind in _COUNTERS.items()}
    n = counters["iteration"]
    history = {name: kept.array_of(held, f"history_{name}", (n,), None, finite=False).tolist() for name in HISTORY}
    history["n_nonzero"] = [int(count) for count in history["n_nonzero"]]
    optimizer.n_steps = kept.value_of(held, "optimizer_n_steps", int)
    if held.get("optimizer_direction") is not None:
        xp = plan.data.xp
        for name in ("direction", "square"):
            setattr(optimizer, name, xp.asarray(kept.array_of(held, f"optimizer_{name}", plan.D_shape, np.float64)))
    kept.set_rng(rng, kept.value_of(held, "rng", dict))
    state = _restored_state(held, plan, "state")
    best = _restored_state(held, plan, "best") if counters["best_iteration"] else state
    if counters["stage"] not in ("dictionary", "rates", "both"):
        raise FileFormatError(f"the checkpoint is damaged: its stage is {counters['stage']!r}")
    return Run(state=state, best=best, history=history, **counters)


def _restored_state(held, plan, name):
    xp, K = plan.data.xp, plan.D_shape[0]
    D = kept.array_of(held, f"{name}_D", plan.D_shape, plan.data.dtype)
    lmbd = kept.array_of(held, f"{name}_lmbd", (K,), np.float64)
    codes = (
        _restored_chain(held, plan, name) if isinstance(plan.data, parts.Parts) else _restored_codes(held, plan, name)
    )
    plain = {part: kept.value_of(held, f"{name}_{part}", kind) for part, kind in _STATE.items()}
    plain["notes"] = tuple(map(str, plain["notes"]))
    search = held.get(f"{name}_search")
    if not (lmbd > 0).all() or not plain["sigma"] > 0 or not plain["held_sigma"] > 0:
        raise FileFormatError("the checkpoint is damaged: rates and noise levels must be positive")
    if search is not None:
        search = rates.Search(**{part: kept.value_of(search, part, int | float) for part in rates.Search().__dict__})
    return State(xp.asarray(D), xp.asarray(lmbd), codes=codes, search=search, **plain)


def _restored_codes(held, plan, name):
    (n, _, *S), K = plan.data.shape, plan.D_shape[0]
    shape = (n, K, *code_positions(S, plan.D_shape[2:], plan.stride))
    return kept.codes_of(held, f"{name}_codes", shape, plan.data.like)


def _restored_chain(held, plan, name):
    """Return the codes of signals in parts: their key, and the E-steps that led to them."""
    if f"{name}_chain" not in held:
        return None
    tol = kept.array_of(held, f"{name}_chain_tol", (None,), np.float64)
    D = kept.array_of(held, f"{name}_chain_D", (len(tol), *plan.D_shape), plan.data.dtype)
    penalty = kept.array_of(held, f"{name}_chain_penalty", (len(tol), plan.D_shape[0]), np.float64)
    if not (penalty > 0).all() or not ((tol > 0) & (tol <= 1)).all():
        raise FileFormatError("the checkpoint is damaged: penalties and tolerances must be positive")
    steps = tuple(parts.Step(*step) for step in zip(D, penalty, tol.tolist(), strict=True))
    return parts.Chain(kept.value_of(held, f"{name}_chain", str), steps, len(steps))
