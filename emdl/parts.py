"""Signals in parts, and the sums over them that EM needs.

Everything that an iteration of EM needs is a sum over signals, or a sample of them. Many or long signals are cut into
parts; the cut follows from their shape alone. Sums of parts are added in float64 along the tree that halves the row
of parts again and again, which is fixed too. So it does not matter for a single bit who works on which parts: one
thread, several, or the workers of a cluster (`emdl.cluster`).

A part of a long signal reads three atoms more on both sides and counts what is its own alone: code positions, and
samples. Its codes minimise (1) for what it reads; what the margins leave of an error at its borders is below the
tolerance of the codes.

The codes of the parts stay where the parts are worked on. EM knows them as a `Chain`, the E-steps that they came out
of: whoever has lost the codes of a part, or never had them, repeats these E-steps and has the same bits.
"""

import itertools
import math
import os
import pathlib
import threading
import uuid
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np

from emdl.backend import array_module, n_threads, parallel_map
from emdl.codes import SparseCodes
from emdl.device import choose, to_host
from emdl.encoder import solve
from emdl.errors import EmdlError
from emdl.storage import read_npz

WHOLE = 1 << 22  # values up to which signals are one part
_PART = 1 << 20  # values of a part, about
_PIECE, _MARGIN = 100, 3  # atoms: length of a part of a long signal, at least, and by how much it reads beyond
_SAMPLE, _SPANS = 1 << 22, 32  # values of a sample of the signals, and places in a long one that it is taken from
_TASKS = 4  # pieces of work for each thread


@dataclass(frozen=True)
class Cut:
    """Where a part lies.

    Attributes
    ----------
    number : int
        Of the part.
    rows : (int, int)
        First signal and the one after the last.
    own : (int, int) or None
        First code position along the first axis that is counted, and the one after the last, from the start of what is
        read; None counts all.
    samples : (int, int) or None
        Likewise the samples.
    read : (int, int) or None
        Samples along the first axis that are read, of the signal.
    """

    number: int
    rows: tuple
    own: tuple | None = None
    samples: tuple | None = None
    read: tuple | None = None


@dataclass(frozen=True)
class Cuts:
    """The parts of signals, a sequence of `Cut`; a million of them take no more room than one.

    Attributes
    ----------
    shape : tuple of int
        (n, C, *S).
    atom, stride : int
        Along the first axis of S.
    count : int
        Number of parts.
    within : int
        Parts of each signal; 0 if parts are whole signals.
    """

    shape: tuple
    atom: int
    stride: int
    count: int
    within: int = 0

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        if not 0 <= number < self.count:
            raise IndexError(number)
        n = self.shape[0]
        if not self.within:
            return Cut(number, (n * number // self.count, n * (number + 1) // self.count))
        row, j = divmod(number, self.within)
        S, s, t = self.shape[2], self.atom, self.stride
        positions, margin = (S - s) // t + 1, -(-_MARGIN * s // t)
        a, b = positions * j // self.within, positions * (j + 1) // self.within
        low, high = max(0, a - margin), min(positions, b + margin)
        end = S if j == self.within - 1 else b * t
        own, samples = (a - low, b - low), ((a - low) * t, end - low * t)
        return Cut(number, (row, row + 1), own, samples, (low * t, (high - 1) * t + s))


def cut(shape, atom_shape, stride):
    """Return how signals are cut into parts, which depends on nothing but their shape.

    Signals of up to 4 million values together are one part, longer ones parts of about a million values; a part of a
    long signal is at least 100 atoms long.

    Parameters
    ----------
    shape : tuple of int
        (n, C, *S).
    atom_shape, stride : tuple of int
        Along each axis.

    Returns
    -------
    Cuts
    """
    n, row, (s, t) = shape[0], math.prod(shape[1:]), (atom_shape[0], stride[0])
    if n * row <= WHOLE:
        return Cuts(tuple(shape), s, t, 1)
    if row <= WHOLE:
        return Cuts(tuple(shape), s, t, min(n, -(-n * row // _PART)))
    within = max(1, min(-(-row // _PART), ((shape[2] - s) // t + 1) * t // (_PIECE * s)))
    return Cuts(tuple(shape), s, t, n * within, within)


@dataclass(frozen=True)
class Part:
    """Signals in memory with their codes, and what of them is counted.

    Attributes
    ----------
    y, wanted : array (n, C, *S)
        Signals, and what their codes are to make.
    codes : SparseCodes, array (n, K, *P) or None
        Codes.
    stride : tuple of int
        Along each axis.
    positive : bool
        Whether codes are non-negative.
    number : int
        Of the part.
    own, samples : (int, int) or None
        As in `Cut`.
    """

    y: np.ndarray
    wanted: np.ndarray
    codes: Any
    stride: tuple
    positive: bool
    number: int = 0
    own: tuple | None = None
    samples: tuple | None = None

    def take(self, rows):
        """Return some of the signals, by their indices, as a part."""
        at = array_module(self.y).asarray(rows)
        codes = self.codes.take(rows) if isinstance(self.codes, SparseCodes) else self.codes
        codes = codes[at] if codes is not None and not isinstance(codes, SparseCodes) else codes
        wanted = self.wanted[at]
        return replace(self, y=wanted if self.wanted is self.y else self.y[at], wanted=wanted, codes=codes)

    def encode(self, D, penalty, tol, start=None):
        """Return the codes of the signals, see `emdl.encoder.solve`."""
        return solve(self.y, D, penalty, self.stride, tol=tol, positive=self.positive, z0=start).codes

    def own_samples(self, x):
        """Return what is counted of an array (n, C, *S)."""
        return x if self.samples is None else x[:, :, slice(*self.samples)]

    def own_codes(self, codes):
        """Return codes without those that another part counts."""
        if self.own is None:
            return codes
        chosen = np.zeros(codes.shape[2], bool)
        chosen[slice(*self.own)] = True
        return where(codes, chosen)

    def own_places(self, place):
        """Return which places (m, 1 + n_axes), signal and code position, are counted, (m,) of bool."""
        if self.own is None:
            return np.ones(len(place), bool)
        return (place[:, 1] >= self.own[0]) & (place[:, 1] < self.own[1])

    def goal(self, made, start=0, stop=None):
        """Return what the codes of signals start ... stop - 1 are to make; what is not counted is as it was `made`."""
        wanted = self.wanted[start:stop]
        if self.samples is None:
            return wanted
        goal = made.copy()
        goal[:, :, slice(*self.samples)] = wanted[:, :, slice(*self.samples)]
        return goal


def where(codes, chosen):
    """Return codes with zeros at all but the chosen positions along the first axis.

    Parameters
    ----------
    codes : SparseCodes or array (n, K, *P)
        Codes.
    chosen : ndarray (P[0],) of bool
        Which to keep.

    Returns
    -------
    SparseCodes or array
    """
    if not isinstance(codes, SparseCodes):
        mask = array_module(codes).asarray(chosen.reshape(-1, *[1] * (codes.ndim - 3)))
        return codes * mask.astype(codes.dtype)
    kept = chosen[codes.index // (codes.shape[1] * math.prod(codes.shape[3:]))]
    start = np.concatenate([[0], np.cumsum(kept)])[codes.start].astype(np.int64)
    return SparseCodes(codes.shape, start, codes.index[kept], codes.value[kept])


@dataclass(frozen=True)
class Step:
    """An E-step: the dictionary (K, C, *s), the penalties lmbd sigma^2 (K,), and the tolerance of the codes."""

    D: np.ndarray
    penalty: np.ndarray
    tol: float


@dataclass(frozen=True)
class Chain:
    """Codes of all parts, known by the E-steps that made them.

    Attributes
    ----------
    key : str
        Of the fit and of the codes that it began with.
    steps : tuple of Step
        The E-steps, each from the codes of the one before, the first from zero; or the last of them.
    length : int
        Number of E-steps.
    """

    key: str
    steps: tuple
    length: int

    def then(self, step):
        """Return the codes after one more E-step."""
        return Chain(self.key, (*self.steps, step), self.length + 1)

    def tail(self, count):
        """Return the same codes, told by their last E-steps: for those who have the codes before."""
        return replace(self, steps=self.steps[-count:])


def new_chain():
    """Return a chain without steps: all codes are zero."""
    return Chain(uuid.uuid4().hex, (), 0)


@dataclass(frozen=True)
class Job:
    """What must be known to work on parts.

    Attributes
    ----------
    y, wanted : array-like
        Signals as they are stored, S, (n, *S) or (n, C, *S), or what can be sliced like that; `wanted` None is `y`.
    cuts : Cuts
        The parts.
    atom_shape, stride : tuple of int
        Along each axis.
    positive : bool
        Whether codes are non-negative.
    dtype : dtype
        Of the work.
    device : str
        As in `emdl.device.choose`.
    """

    y: Any
    wanted: Any
    cuts: Cuts
    atom_shape: tuple
    stride: tuple
    positive: bool
    dtype: np.dtype
    device: str = "cpu"


@dataclass(frozen=True)
class Order:
    """What is to be done with every part.

    Attributes
    ----------
    function : callable
        Called with a `Part` and the arguments; what it returns can be added (see `add`), None adds nothing.
    arguments : tuple
        Arrays go to the device.
    codes : Chain or None
        The codes that the part needs.
    unit : float
        What the signals are divided by.
    rows : ndarray of int or None
        Which signals, of parts of a long one which parts; None takes all.
    folder : Path or None
        Where to keep the codes, and look for those that were lost.
    keep : bool
        Write the codes there.
    """

    function: Any
    arguments: tuple = ()
    codes: Chain | None = None
    unit: float = 1.0
    rows: np.ndarray | None = None
    folder: Any = None
    keep: bool = False


class MissingCodesError(EmdlError):
    """The codes of a part are not here, and the order does not tell all the E-steps that they came out of."""


@dataclass(frozen=True)
class Node:
    """The sum of some neighbouring parts: those of a node of the tree that halves them again and again.

    Attributes
    ----------
    depth, index : int
        Where in the tree; the root is (0, 0), the children of (d, i) are (d + 1, 2 i) and (d + 1, 2 i + 1).
    first : int
        First part.
    value : object
        The sum.
    """

    depth: int
    index: int
    first: int
    value: Any


def leaf(number, count, value):
    """Return the node of one of `count` parts."""
    depth, index, low, high = 0, 0, 0, count
    while high - low > 1:
        middle = (low + high) // 2
        right = number >= middle
        low, high = (middle, high) if right else (low, middle)
        depth, index = depth + 1, 2 * index + right
    return Node(depth, index, number, value)


def nearest_border(place, count, depth):
    """Return where a node of at most this depth begins or ends, as near as can be to a part.

    Parameters
    ----------
    place : float
        A part, 0 ... count.
    count : int
        Number of parts.
    depth : int
        Borders of large depth are many; those of small depth leave few nodes on both sides.

    Returns
    -------
    int
    """
    low, high = 0, count
    for _ in range(depth):
        middle = (low + high) // 2
        if middle == low:
            break
        low, high = (middle, high) if place >= middle else (low, middle)
    return low if place - low < high - place else high


def add(a, b):
    """Return the sum of two results of parts: of tuples entry by entry, of lists one after the other; None is zero."""
    if a is None or b is None:
        return b if a is None else a
    if isinstance(a, tuple):
        return tuple(map(add, a, b))
    return a + b


def joined(nodes):
    """Return nodes with all pairs added that make a node of the depth above.

    Parameters
    ----------
    nodes : iterable of Node
        Of different parts; their order does not matter.

    Returns
    -------
    list of Node
        By increasing number of their parts. The sums do not depend on which pairs were added before.
    """
    stack = []
    for node in sorted(nodes, key=lambda node: node.first):
        stack.append(node)
        while len(stack) > 1 and _are_pair(*stack[-2:]):
            right, left = stack.pop(), stack.pop()
            stack.append(Node(left.depth - 1, left.index // 2, left.first, add(left.value, right.value)))
    return stack


def _are_pair(left, right):
    return left.depth == right.depth and left.index % 2 == 0 and right.index == left.index + 1


def total(nodes):
    """Return the sum over all parts."""
    (root,) = joined(nodes)
    return root.value


class Bench:
    """Where parts are worked on: reads them, and keeps their codes.

    Parameters
    ----------
    job : Job
        The parts.
    """

    def __init__(self, job):
        self.job, self.xp = job, choose(job.device)[0]
        self._held, self._lock = {}, threading.Lock()

    def run(self, order, numbers):
        """Return the sums over some parts, as nodes.

        Parameters
        ----------
        order : Order
            What to do.
        numbers : iterable of int
            The parts.

        Returns
        -------
        list of Node

        Raises
        ------
        MissingCodesError
            If the codes of a part are not here.
        FileFormatError
            If the signals cannot be read.
        """
        if order.codes is not None:
            self._forget_others(order.codes.key)
        nodes = []
        for number in sorted(numbers):
            nodes = joined([*nodes, leaf(number, len(self.job.cuts), self._one(order, self.job.cuts[number]))])
        return nodes

    def sample(self, function, arguments, unit, spans):
        """Return ``function(sample, *arguments)`` for pieces of the signals, one (row, low, high) for each."""
        pieces = [self._read(self.job.y, (row, row + 1), span, unit) for row, *span in spans]
        return function(np.concatenate(pieces), *arguments)

    def hand_over(self, numbers, codes):
        """Return the codes of some parts that are held here, number to (length of the chain, codes)."""
        with self._lock:
            held = {number: self._held[number] for number in numbers if number in self._held}
        return {number: at for number, at in held.items() if at[0] == codes.key}

    def take_over(self, held):
        """Keep codes that another bench has handed over."""
        with self._lock:
            self._held |= held

    def forget(self):
        """Forget all codes."""
        with self._lock:
            self._held.clear()

    def _forget_others(self, key):
        with self._lock:
            for number in [number for number, (other, *_) in self._held.items() if other != key]:
                del self._held[number]

    def _one(self, order, where):
        rows = None if order.rows is None else _rows_of(where, order.rows)
        if rows is not None and len(rows) == 0:
            return None
        y = self._read(self.job.y, where.rows, where.read, order.unit)
        wanted = y if self.job.wanted is None else self._read(self.job.wanted, where.rows, where.read, order.unit)
        part = Part(y, wanted, None, self.job.stride, self.job.positive, where.number, where.own, where.samples)
        if order.codes is not None:
            part = replace(part, codes=self._codes(order, part))
        if rows is not None and where.own is None:
            part = part.take(rows)
        arguments = (self.xp.asarray(a) if isinstance(a, np.ndarray) else a for a in order.arguments)
        return _on_host(order.function(part, *arguments))

    def _read(self, signals, rows, span, unit):
        """Return signals in full form, of the dtype of the work, on the device."""
        rows, span = slice(*rows), slice(*(span or (None,)))
        extra = len(signals.shape) - len(self.job.atom_shape)
        found = signals[[(span,), (rows, span), (rows, slice(None), span)][extra]]
        if hasattr(found, "__dask_graph__"):
            found = found.compute(scheduler="synchronous")
        found = np.asarray(found)
        found = found[None, None] if extra == 0 else found[:, None] if extra == 1 else found
        found = np.ascontiguousarray(found, self.job.dtype)
        return self.xp.asarray(found if unit == 1 else found / self.job.dtype.type(unit))

    def _codes(self, order, part):
        """Return the codes of a part; what is missing of the chain is done."""
        chain, number = order.codes, part.number
        with self._lock:
            key, length, codes = self._held.get(number, ("", 0, None))
        if key != chain.key or length > chain.length:
            length, codes = _found_in(order.folder, chain, number, part.y.shape)
        if chain.length - length > len(chain.steps):
            raise MissingCodesError(f"part {number} has codes of E-step {length}, wanted {chain.length}")
        codes = codes if codes is None or self.xp is np else self.xp.asarray(codes.dense())
        for step in chain.steps[len(chain.steps) - chain.length + length :]:
            D, penalty = self.xp.asarray(step.D), self.xp.asarray(step.penalty)
            codes = part.encode(D, penalty, step.tol, codes)
        self._hold(order, number, codes)
        return codes

    def _hold(self, order, number, codes):
        chain, sparse = order.codes, codes
        if codes is not None and not isinstance(codes, SparseCodes):
            sparse = SparseCodes.from_dense(codes)
        with self._lock:
            key, length, _ = self._held.get(number, ("", 0, None))
            if key != chain.key or length <= chain.length:
                self._held[number] = (chain.key, chain.length, sparse)
        if order.keep and sparse is not None:
            _write_codes(order.folder, chain, number, sparse)


def _rows_of(where, rows):
    """Return which of the rows lie in a part, counted from its first, in the order given."""
    if where.own is not None:
        return rows[rows == where.number]
    first, stop = where.rows
    return rows[(rows >= first) & (rows < stop)] - first


def _on_host(value):
    if isinstance(value, tuple):
        return tuple(map(_on_host, value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _on_host(getattr(value, f.name)) for f in fields(value)})
    return to_host(value) if hasattr(value, "dtype") else value


def _file_of(folder, number):
    return pathlib.Path(folder) / f"part-{number:06d}.npz"


def _write_codes(folder, chain, number, codes):
    """Write the codes of a part, whole or not at all; where the folder cannot be seen, not at all."""
    path = _file_of(folder, number)
    part = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.npz")
    try:
        np.savez(
            part, key=np.frombuffer(chain.key.encode(), np.uint8), length=chain.length, shape=codes.shape,
            start=codes.start, index=codes.index, value=codes.value,
        )  # fmt: skip
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)


def _found_in(folder, chain, number, shape):
    """Return length and codes of the part of a chain that a file holds; 0 and None if there is no such file."""
    if folder is None:
        return 0, None
    try:
        held, _ = read_npz(_file_of(folder, number))
        key, length = held["key"].tobytes().decode(), int(held["length"])
        codes = SparseCodes(tuple(held["shape"].tolist()), held["start"], held["index"], held["value"])
        if key == chain.key and 0 < length <= chain.length and codes.shape[0] == shape[0]:
            codes.check("the file")
            return length, codes
    except (OSError, ValueError, KeyError, TypeError, EmdlError):  # none, half of one, or of something else
        pass
    return 0, None


class Threads:
    """Works on parts with the threads of this process.

    Parameters
    ----------
    job : Job
        The parts.
    """

    def __init__(self, job):
        self.bench, self.count = Bench(job), len(job.cuts)

    def run(self, order):
        """Return the sums over all parts, as nodes."""
        pieces = np.array_split(np.arange(self.count), min(self.count, _TASKS * n_threads()))
        found = parallel_map(lambda numbers: self.bench.run(order, numbers.tolist()), pieces)
        return list(itertools.chain.from_iterable(found))

    def sample(self, function, arguments, unit, spans):
        """Return ``function(sample, *arguments)``, see `Bench.sample`."""
        return self.bench.sample(function, arguments, unit, spans)

    def close(self):
        """Forget the codes."""
        self.bench.forget()


class Whole:
    """Signals that are one part, in memory: what is asked of them is done at once.

    Parameters
    ----------
    y, wanted : array (n, C, *S)
        Signals in full form, NumPy or CuPy, and what their codes are to make.
    stride : tuple of int
        Along each axis.
    positive : bool
        Whether codes are non-negative.
    """

    def __init__(self, y, wanted, stride, positive):
        self.y, self.wanted, self.stride, self.positive = y, wanted, stride, positive
        self.xp, self.dtype, self.shape, self.n_units, self.like = array_module(y), y.dtype, y.shape, len(y), y

    @property
    def root_mean_square(self):
        """Root mean square of the signals, data unit."""
        return float(self.xp.sqrt((self.y.astype(np.float64) ** 2).mean()))

    def encode(self, codes, D, penalty, tol):
        """Return the codes after an E-step that starts from `codes`."""
        return self._part(None).encode(D, penalty, tol, codes)

    def sum(self, function, codes, *arguments, rows=None):
        """Return ``function(part, *arguments)`` for the signals, or some of them."""
        part = self._part(codes)
        return function(part if rows is None else part.take(rows), *arguments)

    def sample(self, function, *arguments):
        """Return ``function(y, *arguments)``."""
        return function(self.y, *arguments)

    def close(self):
        """Nothing is kept elsewhere."""

    def _part(self, codes):
        return Part(self.y, self.wanted, codes, self.stride, self.positive)


class Parts:
    """Signals in several parts.

    Parameters
    ----------
    shape : tuple of int
        (n, C, *S).
    job : Job
        The parts.
    engine : Threads or emdl.cluster.Fleet
        Works on them.
    """

    xp = np

    def __init__(self, shape, job, engine):
        self.shape, self.job, self.engine, self.dtype = tuple(shape), job, engine, job.dtype
        self.stride, self.positive = job.stride, job.positive
        self.n_units = len(job.cuts) if job.cuts.within else shape[0]
        self.unit, self.root_mean_square, self.fingerprint, self.folder = 1.0, math.nan, "", None
        self.like = np.empty(0, job.dtype)

    def encode(self, codes, D, penalty, tol):
        """Return the codes after an E-step that starts from `codes`; they are made when a sum wants them."""
        return (codes or new_chain()).then(Step(D, np.asarray(penalty), tol))

    def sum(self, function, codes, *arguments, rows=None):
        """Return the sum of ``function(part, *arguments)`` over all parts, or over some of the signals."""
        return total(self.engine.run(Order(function, arguments, codes, self.unit, rows, self.folder)))

    def described(self):
        """Return what tells the signals from others, as a checkpoint keeps it."""
        return {"y": self.fingerprint} | ({} if self.job.wanted is None else {"target": "of the same survey"})

    def keep(self, codes):
        """Write the codes of all parts to the folder, where it can be seen."""
        if self.folder is not None and codes is not None:
            self.engine.run(Order(_nothing, (), codes, self.unit, None, self.folder, keep=True))

    def sample(self, function, *arguments):
        """Return ``function(sample, *arguments)`` for pieces (m, C, *L) from all over the signals, always the same."""
        return self.engine.sample(function, arguments, self.unit, self._spans())

    def _spans(self):
        """Return (row, low, high) of each piece of the sample."""
        (n, *_), row, cuts = self.shape, math.prod(self.shape[1:]), self.job.cuts
        if not cuts.within:
            chosen = np.linspace(0, n - 1, max(1, min(n, _SAMPLE // row))).astype(int)
            return [(i, None, None) for i in np.unique(chosen).tolist()]
        cuts = [cuts[i] for i in np.unique(np.linspace(0, len(cuts) - 1, _SPANS).astype(int))]
        s, t = self.job.atom_shape[0], self.job.stride[0]
        length = max(_PIECE * s // 2, _SAMPLE // len(cuts) * self.shape[2] // row)
        length = min(length, *(b - a for a, b in (c.samples for c in cuts)))
        length -= (length - s) % t
        return [(c.rows[0], c.read[0] + c.samples[0], c.read[0] + c.samples[0] + length) for c in cuts]

    def close(self):
        """Let go of what the workers keep."""
        self.engine.close()


def _nothing(part):
    return None
