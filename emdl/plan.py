"""What a fit is asked to do, checked, and the signals that it works on."""

import hashlib
import math
from dataclasses import dataclass, fields, replace

import numpy as np

from emdl import cluster, parts, rates
from emdl.backend import (
    array_module,
    as_signals,
    as_stride,
    check_callable,
    check_count,
    check_number,
    code_positions,
    power_of_two,
)
from emdl.device import choose, to_host
from emdl.errors import InputError, InputTypeError
from emdl.mstep import M_STEPS
from emdl.optim import Optimizer

_DECADES = 140  # to either side of 1 that signals may reach: squares of noise levels must not leave float64
_OFFSET = 1e3  # times its standard deviation, beyond which the mean of a channel drowns what is in it


@dataclass(frozen=True)
class Plan:
    """What stays the same over all iterations.

    Signals are divided by `unit`, a power of two that brings them near 1: squares of float32 would otherwise leave the
    range of the numbers where the data do not. What comes out is in the unit of the data again.
    """

    unit: float
    data: object
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

    @property
    def wants_statistics(self):
        """Whether the M-step needs sums over all signals at the codes of the E-step."""
        return self.m_step == "analytic" and self.batches == 1


def check_kinds(prior, optimizer, callback):
    """Raise if an argument is of no kind that can be used."""
    if prior is not None and not isinstance(prior, rates.Prior):
        raise InputTypeError(f"prior is {prior!r}, wanted an emdl.rates.Prior")
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise InputTypeError(f"optimizer is {optimizer!r}, wanted an emdl.optim.Optimizer")
    check_callable(callback, "callback")


def make(
    y, n_atoms, atom_shape, target, *, stride, positive, m_step, n_layers, n_backward, batch_size, rule, tol_codes,
    validation, prior, client=None, device="cpu", **kept,
):  # fmt: skip
    """Check what `em_fit` was given, all but the start."""
    shape = tuple(check_count(s, "atom_shape") for s in np.atleast_1d(atom_shape).tolist())
    if len(shape) not in (1, 2):
        raise InputError(f"atom_shape is {atom_shape!r}, wanted one or two lengths")
    if m_step not in M_STEPS:
        raise InputError(f"m_step is {m_step!r}, wanted one of {', '.join(M_STEPS)}")
    if rule not in rates.RULES:
        raise InputError(f"lmbd_rule is {rule!r}, wanted one of {', '.join(rates.RULES)}")
    stride = as_stride(stride, len(shape))
    n_layers, n_atoms = check_count(n_layers, "n_layers"), check_count(n_atoms, "n_atoms")
    tol_codes = check_number(tol_codes, "tol_codes", 0, 1, strict=True)
    n_backward = _count_backward(n_backward, n_layers, m_step)
    data, unit = _open(y, target, shape, stride, bool(positive), client, device)
    return Plan(
        unit=unit,
        data=data,
        D_shape=(n_atoms, data.shape[1], *shape),
        n_positions=data.shape[0] * math.prod(code_positions(data.shape[2:], shape, stride)),
        stride=stride,
        positive=positive,
        m_step=m_step,
        n_layers=n_layers,
        n_backward=n_backward,
        batches=_count_batches(data.n_units, batch_size, m_step),
        rule=rule,
        tol_codes=tol_codes,
        validation=None if validation is None else _validation_pair(validation, data, shape, stride, unit),
        prior=None if prior is None else replace(prior, delta=prior.delta / unit),
        **kept,
    )


def _open(y, target, atom_shape, stride, positive, client, device):
    """Return the signals, whole or in parts, and their unit."""
    n_axes, far = len(atom_shape), client is not None
    if far:
        y = y if hasattr(y, "shape") and hasattr(y, "dtype") else np.asarray(y)
        far = len(parts.cut(_full_shape(y, n_axes), atom_shape, stride)) > 1
    if not far:
        y = as_signals(_in_memory(y, device if client is not None else "cpu"), n_axes)
        code_positions(y.shape[2:], atom_shape, stride)
        target = None if target is None else _target_of(y, _in_memory(target), "y")
        cuts = parts.cut(y.shape, atom_shape, stride) if array_module(y) is np else []
        if len(cuts) < 2:
            unit = _check_range(y)
            scaled = _divided(y, unit)
            return parts.Whole(scaled, scaled if target is None else _divided(target, unit), stride, positive), unit
    shape, dtype = _full_shape(y, n_axes), _work_dtype(y)
    code_positions(shape[2:], atom_shape, stride)
    if target is not None and tuple(target.shape) != tuple(y.shape):
        raise InputError(f"target has shape {target.shape}, wanted that of y, {y.shape}")
    cuts = parts.cut(shape, atom_shape, stride)
    job = parts.Job(y, target, cuts, atom_shape, stride, positive, dtype, device if far else "cpu")
    data = parts.Parts(shape, job, cluster.Fleet(client, job) if far else parts.Threads(job))
    try:
        return data, _survey(data)
    except BaseException:
        data.close()
        raise


def _in_memory(y, device="cpu"):
    """Return signals that are one part as an array on a device."""
    if hasattr(y, "__dask_graph__"):
        y = y.compute()
    return y if device == "cpu" else choose(device)[0].asarray(np.asarray(y))


def _full_shape(y, n_axes):
    shape = tuple(np.shape(y))
    if not n_axes <= len(shape) <= n_axes + 2 or 0 in shape:
        return as_signals(np.empty(shape), n_axes).shape  # which says what is wrong
    return (*(1,) * (n_axes + 2 - len(shape)), *shape) if len(shape) != n_axes + 1 else (shape[0], 1, *shape[1:])


def _work_dtype(y):
    kind = np.dtype(y.dtype)
    if kind.kind not in "fiub":
        raise InputTypeError(f"y has dtype {kind}, wanted real numbers; convert it first")
    return np.dtype(np.float32 if kind.kind == "f" and kind.itemsize <= 4 else np.float64)


@dataclass(frozen=True)
class Survey:
    """What is known of signals before the fit, channel by channel; adds up.

    Attributes
    ----------
    low, high : ndarray (C,)
        Smallest and largest value.
    sum, square : ndarray (C,)
        Of the values, and of their squares.
    strange : int
        Values that are not finite.
    """

    low: np.ndarray
    high: np.ndarray
    sum: np.ndarray
    square: np.ndarray
    strange: int

    def __add__(self, other):
        with np.errstate(all="ignore"):  # infinities of both signs, which are counted and refused later
            return Survey(
                np.minimum(self.low, other.low),
                np.maximum(self.high, other.high),
                self.sum + other.sum,
                self.square + other.square,
                self.strange + other.strange,
            )


def _look(part):
    """Return the surveys of the signals of a part, and of what their codes are to make if that is something else."""
    signals = (part.y,) if part.wanted is part.y else (part.y, part.wanted)
    return tuple(_look_at(to_host(part.own_samples(x))) for x in signals)


def _look_at(x):
    axes = (0, *range(2, x.ndim))
    with np.errstate(all="ignore"):
        return Survey(
            x.min(axis=axes).astype(np.float64),
            x.max(axis=axes).astype(np.float64),
            x.sum(axis=axes, dtype=np.float64),
            np.square(x, dtype=np.float64).sum(axis=axes),
            x.size - int(np.isfinite(x).sum()),
        )


def _survey(data):
    """Return the unit of signals in parts, after making sure that they hold something to learn."""
    found = data.sum(_look, None)
    for name, seen in zip(("y", "target"), found, strict=False):
        if seen.strange:
            raise InputError(f"{name} has {seen.strange:,} values that are not finite; remove or interpolate them")
    seen = found[0]
    if float(seen.low.min()) == float(seen.high.max()):
        raise InputError(f"y is constant ({float(seen.low[0]):g} everywhere), which holds nothing to learn")
    unit = _check_unit(power_of_two(np.concatenate([seen.low, seen.high])))
    count = math.prod(data.shape) // data.shape[1]
    for channel, (total, square) in enumerate(zip(seen.sum / unit, seen.square / unit / unit, strict=True)):
        mean = float(total) / count
        _check_offset(channel, mean, math.sqrt(max(float(square) / count - mean * mean, 0.0)), unit)
    data.unit = unit
    data.root_mean_square = math.sqrt(float(seen.square.sum()) / unit / unit / math.prod(data.shape))
    numbers = b"".join(np.asarray(getattr(s, f.name), np.float64).tobytes() for s in found for f in fields(Survey))
    data.fingerprint = f"{data.dtype.str} {data.shape} {hashlib.blake2b(numbers, digest_size=16).hexdigest()}"
    return unit


def _check_range(y):
    """Return the unit of signals, after making sure that they hold something to learn."""
    if bool((y == y[(0,) * y.ndim]).all()):
        raise InputError(f"y is constant ({float(y[(0,) * y.ndim]):g} everywhere), which holds nothing to learn")
    unit = _check_unit(power_of_two(y))
    for channel in range(y.shape[1]):
        own = _divided(y[:, channel], unit).astype(np.float64)
        _check_offset(channel, float(own.mean()), float(own.std()), unit)
    return unit


def _check_unit(unit):
    if abs(math.log10(unit)) > _DECADES:
        raise InputError(
            f"the largest value of y is about {unit:.0e}, whose square leaves the range of the numbers; "
            f"wanted 1e-{_DECADES} to 1e{_DECADES}, change the unit"
        )
    return unit


def _check_offset(channel, mean, spread, unit):
    if abs(mean) > _OFFSET * spread:
        raise InputError(
            f"channel {channel} of y has mean {unit * mean:.6g} and standard deviation {unit * spread:.3g}: "
            "the model has no offset, and its codes would make one; subtract the mean first"
        )


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


def _validation_pair(validation, data, atom_shape, stride, unit):
    """Return signals to validate with, and what their codes are to make."""
    signals, target = validation if isinstance(validation, tuple) else (validation, None)
    array_module(data.like, signals)
    signals = as_signals(signals, len(atom_shape), "validation").astype(data.dtype, copy=False)
    if signals.shape[1] != data.shape[1]:
        raise InputError(f"validation has {signals.shape[1]} channels, wanted those of y, {data.shape[1]}")
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
