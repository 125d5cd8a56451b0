"""The state of a fit on disk, so that a fit that was interrupted ends with the same bits as one that was not.

A checkpoint holds everything that decides the future of a fit: its arrays, its counters, its optimiser, its random
numbers, and what it was asked to do. It is data only: arrays, and one text of JSON.
"""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import time

import numpy as np

from emdl.backend import array_module, check_flag, check_number
from emdl.codes import SparseCodes
from emdl.device import to_host
from emdl.errors import EmdlError, FileFormatError, InputError, InputTypeError
from emdl.storage import lock, new_file, old_file, read_array, remove_parts

FORMAT = 1  # of the file; rises when a reader of the old one would misread the new one
EVERY = 60.0  # seconds between two writes
_WHOLE, _BLOCKS = 2**28, 256  # bytes up to which all of an array is looked at, and pieces of a larger one
_LOG = logging.getLogger(__name__)


class Checkpoint:
    """The checkpoint of one fit, as a context in which the fit runs.

    While the context lasts no other process can have a checkpoint of that name. When it is left by an exception, also
    by an interrupt, the last state that was offered is written.

    Parameters
    ----------
    path : path or None
        The file; None keeps nothing.
    arguments : dict
        What the fit was asked to do, name to number, text, array, tuple of these, or data class with a ``repr``. A
        checkpoint made with others is refused.
    kind : str
        Which fit it is.
    every : float
        Seconds between two writes; 0 writes after every iteration.
    resume : bool
        Go on from the file, if there is one. Without it a file that exists is an error, since it would be overwritten.

    Attributes
    ----------
    found : dict or None
        The state in the file, once the context is entered.
    """

    def __init__(self, path, arguments, *, kind, every=EVERY, resume=False):
        if not isinstance(path, str | os.PathLike | None):
            raise InputTypeError(f"checkpoint is {path!r}, wanted the path of a file or None")
        self.path = None if path is None else pathlib.Path(path)
        self.job = {} if path is None else {name: _described(value) for name, value in arguments.items()}
        self.kind, self.resume = kind, check_flag(resume, "resume")
        self.every = check_number(every, "checkpoint_every", 0)
        self.found, self._offered = None, None
        self._context = contextlib.ExitStack()
        self._written = time.monotonic()
        if path is None and self.resume:
            raise InputError("resume is True without a checkpoint; name its file by checkpoint=")

    def __enter__(self):
        """Take the lock, and read the file if the fit is to go on from it."""
        if self.path is not None:
            with contextlib.ExitStack() as stack:
                stack.enter_context(lock(self.path))
                remove_parts(self.path)
                self._look(self.path)
                self._context = stack.pop_all()
        return self

    def _look(self, path):
        exists = path.exists()
        if exists and not self.resume:
            raise InputError(f"{path} exists, the checkpoint of another fit; go on from it with resume, or remove it")
        if exists:
            self.found = read(path, self.kind, self.job)
        elif self.resume:
            _LOG.warning("there is no checkpoint %s yet; the fit starts from the beginning", path)

    def __exit__(self, kind, error, trace):
        """Write what has not been written if the fit was interrupted, and let the lock go."""
        try:
            if kind is not None:
                self.write()
        finally:
            self._context.close()

    def offer(self, state, *, now=False):
        """Hand over the state after an iteration; it is written if the last write is long enough ago.

        Parameters
        ----------
        state : dict
            Name to array, None, or what JSON can hold. What it holds must not change afterwards.
        now : bool
            Write at once.
        """
        if self.path is not None:
            self._offered = state
            if now or time.monotonic() - self._written >= self.every:
                self.write()

    def write(self):
        """Write the last state that was offered, if it is not on the disk yet.

        A failure, as of a full disk, does not end the fit: it is logged, the file before stays, and the next write
        tries again.
        """
        if self._offered is None:
            return
        state, self._offered = self._offered, None
        try:
            write(self.path, self.kind, self.job, state)
        except EmdlError as error:
            _LOG.warning("the checkpoint was not written, the fit goes on without: %s", error)
        self._written = time.monotonic()


def write(path, kind, job, state):
    """Write a state to a file, whole or not at all.

    Parameters
    ----------
    path : path
        HDF5 file; one that exists is replaced once the new one is on the disk.
    kind : str
        Which fit it is.
    job : dict
        What it was asked to do.
    state : dict
        Name to array, None, or what JSON can hold.

    Raises
    ------
    FileFormatError
        If the folder cannot be written, or the disk is full.
    """
    arrays = {name: to_host(value) for name, value in state.items() if hasattr(value, "dtype")}
    values = {name: value for name, value in state.items() if name not in arrays}
    with new_file(path) as file:
        file.attrs["emdl_checkpoint"], file.attrs["kind"] = FORMAT, kind
        for name, value in (("job", job), ("values", values)):
            file.create_dataset(name, data=np.frombuffer(json.dumps(value).encode(), np.uint8))
        held = file.create_group("arrays")
        for name, value in arrays.items():
            held.create_dataset(name, data=value)


def read(path, kind, job=None):
    """Return the state in a file.

    Parameters
    ----------
    path : path
        Written by `write`.
    kind : str
        Which fit it must be of.
    job : dict, optional
        What the fit must have been asked to do.

    Returns
    -------
    dict

    Raises
    ------
    FileFormatError
        If the file is missing, damaged, no checkpoint of this kind, or of a newer format.
    InputError
        If it belongs to another job; what differs is named.
    """
    with old_file(path, "checkpoint") as file:
        version, of = file.attrs.get("emdl_checkpoint"), file.attrs.get("kind")
        if version is None or of != kind:
            raise FileFormatError(f"this HDF5 file holds no checkpoint of {kind}" + (f", but of {of}" if of else ""))
        if int(version) > FORMAT:
            raise FileFormatError(f"the checkpoint has format {int(version)}, this emdl reads up to {FORMAT}")
        asked, values = (json.loads(read_array(file, name).astype(np.uint8).tobytes()) for name in ("job", "values"))
        if not isinstance(asked, dict) or not isinstance(values, dict):
            raise FileFormatError("the checkpoint is damaged: its text is no table")
        arrays = {name: read_array(file, f"arrays/{name}") for name in file["arrays"]}
    if job is not None:
        _compare(path, asked, json.loads(json.dumps(job)))
    return values | arrays


def _compare(path, asked, job):
    for name in sorted({*asked, *job}):
        if asked.get(name) != job.get(name):
            raise InputError(
                f"{path} belongs to another fit: {name} was {str(asked.get(name))[:80]}, now it is "
                f"{str(job.get(name))[:80]}; "
                "call with the same data and arguments, or remove it"
            )


def _described(value):
    """Return an argument as something that JSON can hold and that differs where it does."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.random.Generator | np.random.BitGenerator | np.random.RandomState | np.random.SeedSequence):
        return "a generator"  # its state goes into the file
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "dtype"):
        return fingerprint(value)
    if isinstance(value, list | tuple):
        return [_described(item) for item in value]
    return repr(value)


def fingerprint(x):
    """Return dtype, shape and a hash of an array; of one above 256 MB, of pieces from all over it.

    Parameters
    ----------
    x : array
        Of numbers.

    Returns
    -------
    str
    """
    hashed, size = hashlib.blake2b(digest_size=16), x.size * x.dtype.itemsize
    if size <= _WHOLE:
        hashed.update(np.ascontiguousarray(to_host(x)).tobytes())
    else:
        length = x.shape[-1]
        step, wide = -(-length // _BLOCKS), max(1, length * (_WHOLE // _BLOCKS) // size)
        for first in range(0, length, step):
            hashed.update(np.ascontiguousarray(to_host(x[..., first : first + wide])).tobytes())
    return f"{x.dtype.str} {x.shape} {hashed.hexdigest()}"


def of_rng(rng):
    """Return the state of a generator of random numbers as something that JSON can hold.

    Parameters
    ----------
    rng : Generator
        Of any kind that NumPy has.

    Returns
    -------
    dict
    """

    def plain(value):
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        return value.tolist() if isinstance(value, np.ndarray | np.generic) else value

    return plain(rng.bit_generator.state)


def set_rng(rng, state):
    """Put a generator of random numbers into a state.

    Parameters
    ----------
    rng : Generator
        Changed.
    state : dict
        From `of_rng`.

    Raises
    ------
    FileFormatError
        If the state is none, or of another kind of generator.
    """

    def arrays(value):
        if isinstance(value, dict):
            return {name: arrays(item) for name, item in value.items()}
        return np.array(value, np.uint64) if isinstance(value, list) else value

    try:
        rng.bit_generator.state = arrays(state)
    except (TypeError, ValueError, KeyError, OverflowError, IndexError) as error:
        raise FileFormatError(
            f"the checkpoint holds no state of {type(rng.bit_generator).__name__}: {error}"
        ) from error


def of_codes(codes, name):
    """Return codes as entries of a state.

    Parameters
    ----------
    codes : SparseCodes, array (n, K, *P) or None
        What to keep.
    name : str
        What the entries begin with.

    Returns
    -------
    dict
    """
    if isinstance(codes, SparseCodes):
        return {f"{name}_{part}": getattr(codes, part) for part in ("start", "index", "value")}
    return {} if codes is None else {f"{name}_dense": codes}


def codes_of(state, name, shape, like):
    """Return the codes in a state, after making sure that they are codes of this shape.

    Kernels take their indices without looking, so a damaged file must not come that far.

    Parameters
    ----------
    state : dict
        Of `read`.
    name : str
        What the entries begin with.
    shape : tuple of int
        (n, K, *P).
    like : array
        Gives the dtype, and the device of dense codes.

    Returns
    -------
    SparseCodes, array (n, K, *P) or None

    Raises
    ------
    FileFormatError
        If they are none.
    """
    if f"{name}_dense" in state:
        return array_module(like).asarray(array_of(state, f"{name}_dense", shape, like.dtype))
    if f"{name}_start" not in state:
        return None
    count = np.size(state.get(f"{name}_value"))
    start = array_of(state, f"{name}_start", (shape[0] + 1,), np.int64)
    index = array_of(state, f"{name}_index", (count,), np.int64)
    value = array_of(state, f"{name}_value", (count,), like.dtype)
    codes = SparseCodes(tuple(shape), start, index, value)
    try:
        codes.check(name)
    except InputError as error:
        raise FileFormatError(f"the checkpoint is damaged: {error}") from error
    return codes


def array_of(state, name, shape, dtype, *, finite=True):
    """Return an array of a state, after making sure that it has this shape and dtype and finite entries.

    Parameters
    ----------
    state : dict
        Of `read`.
    name : str
        Of the entry.
    shape : tuple of int
        Wanted; None where any length will do.
    dtype : dtype
        Wanted; None for any floating point.
    finite : bool
        Refuse NaN and Inf.

    Returns
    -------
    ndarray

    Raises
    ------
    FileFormatError
        If it is missing or another.
    """
    found = state.get(name)
    fits = isinstance(found, np.ndarray) and found.ndim == len(shape)
    fits = fits and (found.dtype.kind == "f" if dtype is None else found.dtype == dtype)
    fits = fits and all(want in (None, got) for want, got in zip(shape, found.shape, strict=True))
    if not fits or (finite and not bool(np.isfinite(found).all())):
        got = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
        raise FileFormatError(
            f"the checkpoint is damaged: {name} is {got}, wanted finite {np.dtype(dtype or float)} {tuple(shape)}"
        )
    return found


def value_of(state, name, kind):
    """Return a value of a state, after making sure that it is of this type.

    Parameters
    ----------
    state : dict
        Of `read`.
    name : str
        Of the entry.
    kind : type or tuple of types
        Wanted.

    Returns
    -------
    object

    Raises
    ------
    FileFormatError
        If it is missing or of another type.
    """
    if name not in state or not isinstance(state[name], kind):
        raise FileFormatError(f"the checkpoint is damaged: {name} is {state.get(name)!r}")
    return state[name]
