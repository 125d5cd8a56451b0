"""Array modules, shapes and dtypes at the public edge, and threads.

Public functions take signals as ``S`` (one signal, one channel), ``(n, *S)`` or ``(n, C, *S)``; this module turns them
into the full form, the only one that the rest of the package knows.
"""

import contextlib
import functools
import math
import numbers
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import threadpoolctl

from emdl.errors import InputError, InputTypeError

_POOL = {}
_INSIDE = threading.local()
_ALLOWED = [sys.maxsize]  # threads, by threadpoolctl


class _Threads(threadpoolctl.LibController):
    """What makes ``threadpoolctl.threadpool_limits(2)`` hold for the threads of emdl, too.

    threadpoolctl knows thread pools by the libraries they live in. Those of emdl live in none, so NumPy's, which is
    always there, stands for it.
    """

    user_api = internal_api = "emdl"
    filename_prefixes = ("_multiarray_umath",)

    def get_num_threads(self):
        return n_threads()

    def set_num_threads(self, num_threads):
        _ALLOWED[0] = sys.maxsize  # also where limits of other libraries end, which puts back all that was seen before
        if num_threads < n_threads():
            _ALLOWED[0] = num_threads

    def get_version(self):
        return None

    def set_additional_attributes(self):
        pass


threadpoolctl.register(_Threads)


def array_module(*arrays):
    """Return the module that owns all `arrays`, ``numpy`` or ``cupy``; None is ignored.

    Parameters
    ----------
    *arrays : array or None
        Arrays of one library; anything that is not a CuPy array counts as NumPy.

    Returns
    -------
    module
        ``numpy`` or ``cupy``.

    Raises
    ------
    InputTypeError
        If NumPy and CuPy arrays are mixed.
    """
    cupy = sys.modules.get("cupy")  # a CuPy array can exist only once cupy is imported
    given = [a for a in arrays if a is not None and not isinstance(a, numbers.Number)]
    on_gpu = [cupy is not None and isinstance(a, cupy.ndarray) for a in given]
    if not any(on_gpu):
        return np
    if all(on_gpu):
        return cupy
    kinds = ", ".join(type(a).__module__.partition(".")[0] for a in given)
    raise InputTypeError(f"got arrays of different libraries ({kinds}); use cupy.asarray or cupy.asnumpy")


def as_real(x, name):
    """Return `x` as an array of float32 or float64 with finite entries; it is copied only where it must be.

    Parameters
    ----------
    x : array_like
        Real numbers. float32 and float64 are kept, float16 becomes float32, everything else real becomes float64.
    name : str
        What the caller calls it, for the messages.

    Returns
    -------
    array
        Same shape, native byte order.

    Raises
    ------
    InputTypeError
        If `x` is complex, masked, or holds no numbers.
    InputError
        If an entry is NaN or infinite; the first such index is named.
    """
    xp = array_module(x if hasattr(x, "dtype") else None)
    if isinstance(x, np.ma.MaskedArray):
        raise InputTypeError(f"{name} is a masked array, which would be read as if nothing were masked; fill it first")
    try:
        x = xp.asarray(x)
    except (TypeError, ValueError) as error:
        raise InputTypeError(f"{name} is no array of numbers ({error})") from error
    if x.dtype.kind not in "fiub":
        raise InputTypeError(f"{name} has dtype {x.dtype}, wanted real numbers; convert it first")
    dtype = np.float32 if x.dtype.kind == "f" and x.dtype.itemsize <= 4 else np.float64
    x = x.astype(dtype, copy=False)
    good = xp.isfinite(x)
    if not bool(good.all()):
        first = tuple(int(i[0]) for i in xp.nonzero(xp.atleast_1d(~good)))[: x.ndim]
        raise InputError(f"{name} has a value that is not finite, the first at index {first}; remove or interpolate it")
    return x


def power_of_two(x):
    """Return the power of two next to the largest absolute value of an array: to divide by it changes no mantissa.

    Parameters
    ----------
    x : array
        Finite numbers.

    Returns
    -------
    float
        1 if all are zero.
    """
    largest = max(float(x.max()), -float(x.min()))
    return 2.0 ** round(math.log2(largest)) if largest > 0 else 1.0


def as_dictionary(D, dtype=None):
    """Return the dictionary as a contiguous array (K, C, *s) of `dtype`.

    Parameters
    ----------
    D : array (K, C, *s)
        Atoms with one or two axes of support.
    dtype : dtype, optional
        Dtype of the work; by default that of `D`.

    Returns
    -------
    array (K, C, *s)
        A view of `D` where possible.

    Raises
    ------
    InputError
        If `D` does not have rank 3 or 4, or has an axis of length zero.
    """
    D = as_real(D, "D")
    if D.ndim not in (3, 4) or 0 in D.shape:
        raise InputError(
            f"D has shape {D.shape}, wanted (n_atoms, n_channels, *atom_shape) with one or two axes of support; "
            "for one channel write D[:, None]"
        )
    return array_module(D).ascontiguousarray(D, dtype=dtype)


def as_signals(y, n_axes, name="y"):
    """Return signals in the full form (n, C, *S), contiguous.

    Parameters
    ----------
    y : array S, (n, *S) or (n, C, *S)
        Signals.
    n_axes : int
        Number of axes of one channel of a signal, 1 or 2.
    name : str
        What the caller calls it, for the messages.

    Returns
    -------
    array (n, C, *S)
        A view of `y` where possible.

    Raises
    ------
    InputError
        If the rank does not fit, or an axis has length zero.
    """
    y = as_real(y, name)
    if not n_axes <= y.ndim <= n_axes + 2 or 0 in y.shape:
        axes = "(time,)" if n_axes == 1 else "(rows, columns)"
        raise InputError(
            f"{name} has shape {y.shape}, wanted S, (n, *S) or (n, C, *S) with S = {axes}, no axis empty; "
            "the rank of the atoms decides how many axes S has"
        )
    if y.ndim == n_axes:
        y = y[None, None]
    elif y.ndim == n_axes + 1:
        y = y[:, None]
    return array_module(y).ascontiguousarray(y)


def as_stride(stride, n_axes):
    """Return the stride as a tuple of `n_axes` positive ints.

    Parameters
    ----------
    stride : int or tuple of int
        Distance of neighbouring code positions, samples.
    n_axes : int
        Number of axes.

    Returns
    -------
    tuple of int

    Raises
    ------
    InputError
        If a stride is not a whole number of at least 1, or their number is wrong.
    """
    given = (stride,) * n_axes if isinstance(stride, numbers.Integral) else tuple(np.atleast_1d(stride).tolist())
    whole = all(isinstance(t, numbers.Integral) and not isinstance(t, bool) and int(t) >= 1 for t in given)
    if len(given) != n_axes or not whole:
        raise InputError(f"stride is {stride!r}, wanted a whole number >= 1 or {n_axes} of them")
    return tuple(int(t) for t in given)


def code_positions(signal_shape, atom_shape, stride):
    """Return P = (S - s) / stride + 1 along each axis, the number of places where an atom lies inside the signal.

    Parameters
    ----------
    signal_shape, atom_shape, stride : tuple of int
        Samples along each axis.

    Returns
    -------
    tuple of int

    Raises
    ------
    InputError
        If the signal is shorter than an atom, or the stride leaves samples over that no atom covers.
    """
    for S, s, t in zip(signal_shape, atom_shape, stride, strict=True):
        if s > S:
            raise InputError(
                f"the signal is {S} samples long, shorter than an atom of {s}; use a longer one or shorter atoms"
            )
        if (S - s) % t:
            fit = S - (S - s) % t
            raise InputError(
                f"signal length {S}, atom length {s} and stride {t} leave {S - fit} samples that no atom covers; "
                f"crop the signal to {fit} or pad it to {fit + t}"
            )
    return tuple((S - s) // t + 1 for S, s, t in zip(signal_shape, atom_shape, stride, strict=True))


def check_number(value, name, low, high=np.inf, *, strict=False):
    """Return `value` as a float, after making sure that it lies in a range.

    Parameters
    ----------
    value : float
        What was given.
    name : str
        Its name, for the message.
    low, high : float
        The range, ends included.
    strict : bool
        Leave `low` out of the range.

    Returns
    -------
    float

    Raises
    ------
    InputError
        If `value` is not one finite number of the range.
    """
    try:
        number = np.nan if isinstance(value, str | bytes | bool) or np.ndim(value) else float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not np.isfinite(number) or number < low or number > high or (strict and number == low):
        wanted = f"{'>' if strict else '>='} {low:g}" + ("" if high == np.inf else f" and <= {high:g}")
        raise InputError(f"{name} is {value!r}, wanted one finite number {wanted}")
    return number


def check_count(value, name, low=1):
    """Return `value` as an int, after making sure that it is a whole number of at least `low`.

    Parameters
    ----------
    value : int
        What was given.
    name : str
        Its name, for the message.
    low : int
        Smallest allowed value.

    Returns
    -------
    int

    Raises
    ------
    InputError
        If `value` is no whole number, or less than `low`.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < low:
        raise InputError(f"{name} is {value!r}, wanted a whole number >= {low}")
    return int(value)


def check_flag(value, name):
    """Return `value` as a bool, after making sure that it is one: "no" and [False] count as true in Python.

    Parameters
    ----------
    value : bool
        What was given; NumPy's bool counts.
    name : str
        Its name, for the message.

    Returns
    -------
    bool

    Raises
    ------
    InputError
        If `value` is no bool.
    """
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} is {value!r}, wanted True or False")
    return bool(value)


def check_callable(value, name):
    """Return `value`, after making sure that it is None or can be called.

    Parameters
    ----------
    value : callable or None
        What was given.
    name : str
        Its name, for the message.

    Returns
    -------
    callable or None

    Raises
    ------
    InputTypeError
        If it cannot be called.
    """
    if value is not None and not callable(value):
        raise InputTypeError(f"{name} is {value!r}, wanted a function or None")
    return value


def as_rng(rng):
    """Return a generator of random numbers.

    Parameters
    ----------
    rng : Generator, int or None
        A generator is used as it is, and goes on; the same int gives the same numbers; None gives others every time.

    Returns
    -------
    Generator

    Raises
    ------
    InputError
        If it is none of these.
    """
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise InputError(f"rng is {rng!r}, wanted a Generator, a whole number >= 0, or None") from error


def n_threads():
    """Return how many threads the package uses.

    The smallest of the processors that this process may use, of NUMBA_NUM_THREADS and OMP_NUM_THREADS, where set, and
    of what ``threadpoolctl.threadpool_limits`` allows. Results do not depend on it.

    Returns
    -------
    int
    """
    affinity = getattr(os, "sched_getaffinity", None)
    limits = [len(affinity(0)) if affinity else os.cpu_count() or 1, _ALLOWED[0]]
    for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        with contextlib.suppress(ValueError):
            limits.append(int(os.environ.get(name, "")))
    return max(1, min(limits))


def parallel_map(function, tasks):
    """Return ``[function(task) for task in tasks]``, computed by threads; the order is kept.

    The functions must release the interpreter lock (numba kernels do) to gain anything. Called from within one of its
    own threads it runs in place, so that nested calls neither deadlock nor take more threads.

    Parameters
    ----------
    function : callable
        Called with one task.
    tasks : iterable
        Pieces of work that do not depend on each other.

    Returns
    -------
    list
    """
    tasks = list(tasks)
    count = n_threads()
    if len(tasks) < 2 or count < 2 or getattr(_INSIDE, "pool", False):
        return [function(task) for task in tasks]
    pool = _POOL.get(count)
    if pool is None:
        pool = _POOL.setdefault(count, ThreadPoolExecutor(count, "emdl", initializer=_mark_thread))
    return list(pool.map(function, tasks))


@contextlib.contextmanager
def one_thread():
    """Let `parallel_map` run in place in this thread while the context lasts: others do other work meanwhile."""
    before, _INSIDE.pool = getattr(_INSIDE, "pool", False), True
    try:
        yield
    finally:
        _INSIDE.pool = before


def with_one_blas_thread(function):
    """Return `function`, during which the linear algebra library of NumPy and SciPy uses one thread.

    Its threads wait for more work in a busy loop for some ten milliseconds, on the processors that `parallel_map` has
    its own threads on: an EM iteration was seen to take five times as long. The limit holds for the whole process while
    the function runs, in however many threads it does, and what held before comes back after the last.

    Parameters
    ----------
    function : callable
        What to call with one thread.

    Returns
    -------
    callable
    """

    @functools.wraps(function)
    def limited(*args, **kwargs):
        with _ONE_BLAS_THREAD:
            return function(*args, **kwargs)

    return limited


class _OneBlasThread:
    """A context with one thread of linear algebra, which threads may enter and leave in any order."""

    def __init__(self):
        self.start_anew()

    def start_anew(self):
        """Nobody is inside: so it is at first, and in a forked child."""
        self.lock, self.inside = threading.Lock(), 0
        self.limits: Any = None

    def __enter__(self):
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                self.limits = threadpoolctl.threadpool_limits(1, user_api="blas")

    def __exit__(self, *_):
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                self._let_any_thread_set_it()
                self.limits.restore_original_limits()
                self._let_any_thread_set_it()

    @staticmethod
    def _let_any_thread_set_it():
        """Newer versions of threadpoolctl do nothing, silently, in all threads but the one that set a limit first."""
        library: Any = getattr(threadpoolctl, "OpenBLASController", None)
        if hasattr(library, "clear_controlling_thread"):
            library.clear_controlling_thread(force=True)


_ONE_BLAS_THREAD = _OneBlasThread()


def _mark_thread():
    _INSIDE.pool = True


if hasattr(os, "register_at_fork"):  # the threads of a pool do not live on in a forked child
    os.register_at_fork(after_in_child=_POOL.clear)
    os.register_at_fork(after_in_child=_ONE_BLAS_THREAD.start_anew)
