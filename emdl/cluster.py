"""Dask's workers, as an engine for the parts of signals (`emdl.parts`) and for work that falls apart by itself.

A fit gives every worker parts of its own, one task for each of its threads in every pass. The worker reads them, keeps
their codes, and answers with sums, which are added along the tree that their numbers fix. An order tells the last
E-step alone; a worker that lacks the codes before it (another was killed, and its parts went there) says so, and is
told all E-steps. A worker that joins gets its share with the codes, straight from those who had it.

Dask is imported where a cluster is asked for, and nowhere else.
"""

import collections
import concurrent.futures
import contextlib
import ctypes
import importlib.metadata
import itertools
import logging
import math
import platform
import signal
import threading
import time
import uuid
from dataclasses import dataclass, replace

import numpy as np

from emdl.backend import one_thread, with_one_blas_thread
from emdl.device import find_cupy
from emdl.errors import EmdlError, InputError, InputTypeError
from emdl.parts import Bench, MissingCodesError, joined, nearest_border
from emdl.sources import pack, unpack

INSTALL = "pip install 'emdl[dask]'"
LOCAL = "local:"
_ARRAYS = 10  # arrays of the size of a part that are alive while it is worked on
_SHARE = 0.6  # of the memory of a worker that parts and codes may take
_SMALL = 1 << 16  # bytes of what goes to every task; more goes to one worker, and from there to the others
_FAN = 8  # results that are added in one task
_FEW = 16  # results up to which this process adds them
_CONNECT = 10.0  # seconds to wait for a scheduler
_PATIENCE = 60.0  # seconds to wait for the first worker
_TRIES = 4  # times that a part may be lost in one pass
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, from malloc.h
_KEPT = 4  # jobs that a worker remembers
_POLL = 1.0  # seconds between two looks at the workers
_LOG = logging.getLogger(__name__)


class ClusterError(EmdlError, RuntimeError):
    """A cluster cannot be used, or was lost."""


def _distributed():
    try:
        return importlib.import_module("distributed")
    except ImportError as error:
        raise ClusterError(f"Dask is missing ({error}); {INSTALL}") from error


@contextlib.contextmanager
def connect(where):
    """Give a client of a cluster for as long as the context lasts.

    Parameters
    ----------
    where : str
        ``tcp://host:port`` of a scheduler; or ``local:N``: N worker processes of one thread on this machine, which end
        with the context.

    Yields
    ------
    distributed.Client

    Raises
    ------
    InputError
        If it is none of these.
    ClusterError
        If Dask is not installed, or no scheduler answers there.
    """
    if where.startswith(LOCAL):
        number = where.removeprefix(LOCAL)
        if not number.isdigit() or int(number) < 1:
            raise InputError(f"--dask is {where}, wanted local:N with N >= 1 workers, or tcp://host:port")
        with _deaf_children():
            cluster = _distributed().LocalCluster(
                n_workers=int(number), threads_per_worker=1, dashboard_address=":0", silence_logs=logging.ERROR
            )
        with cluster, _distributed().Client(cluster) as client:
            yield client
        return
    if "://" not in where:
        raise InputError(f"--dask is {where}, wanted tcp://host:port of a scheduler, or local:N")
    try:
        client = _distributed().Client(where, timeout=_CONNECT)
    except (OSError, ValueError) as error:
        raise ClusterError(f"no scheduler answers at {where} ({error}); start one with `dask scheduler`") from error
    with client:
        yield client


@contextlib.contextmanager
def _deaf_children():
    """Let processes that start in this context not hear Ctrl-C: this one answers, which may need them to the end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def describe(client):
    """Return a sentence on a cluster: its workers, threads, and where to watch it."""
    threads = _ask(client, client.nthreads)
    total = sum(threads.values())
    count = f"{len(threads)} worker{'s' * (len(threads) != 1)} with {total} thread{'s' * (total != 1)}"
    try:
        importlib.import_module("bokeh")
        watch = f"watch at {client.dashboard_link}"
    except ImportError:
        watch = "its dashboard needs bokeh"
    return f"{count} at {client.scheduler.address}; {watch}"


def check(client):
    """Return a client of Dask, after making sure that its workers can do the work.

    Parameters
    ----------
    client : distributed.Client
        Of the cluster.

    Returns
    -------
    distributed.Client

    Raises
    ------
    InputTypeError
        If it is no client.
    ClusterError
        If there are no workers, or they have no emdl or another version of it.
    """
    if not isinstance(client, _distributed().Client):
        raise InputTypeError(f"client is a {type(client).__name__}, wanted a distributed.Client")
    if not _ask(client, client.nthreads):
        _LOG.warning("the cluster has no workers yet; waiting %g s for one", _PATIENCE)
        try:
            client.wait_for_workers(1, timeout=_PATIENCE)
        except TimeoutError as error:
            raise ClusterError(
                f"no worker has come to {client.scheduler.address}; start one with `dask worker`"
            ) from error
    _check_versions(client, list(_ask(client, client.nthreads)))
    return client


def _versions():
    """Return the versions, here, of what decides the bits."""
    import numba

    return {"emdl": importlib.metadata.version("emdl"), "Python": platform.python_version(), "numpy": np.__version__,
            "numba": numba.__version__, "machine": platform.machine()}  # fmt: skip


def _check_versions(client, workers):
    """Make sure that workers can do the work; those that leave before they answer are not asked again."""
    for _ in range(_TRIES):
        found = client.run(_versions, workers=workers, on_error="return")
        silent = {address: answer for address, answer in found.items() if isinstance(answer, OSError)}
        for address in found.keys() - silent.keys():
            _compare(address, found[address])
        if not silent:
            return
        time.sleep(_POLL)
        present = _ask(client, client.nthreads)
        workers = [address for address in silent if address in present]
        if not workers:
            return
    raise ClusterError(f"worker {workers[0]} does not answer ({silent[workers[0]]}); look at its log, or stop it")


def _compare(address, found):
    """Raise if a worker has another emdl, and warn of what else differs there."""
    here = _versions()
    if isinstance(found, Exception):
        raise ClusterError(f"worker {address} cannot work for emdl ({found}); pip install emdl=={here['emdl']} there")
    if found["emdl"] != here["emdl"]:
        raise ClusterError(
            f"worker {address} has emdl {found['emdl']}, here it is {here['emdl']}; install the same version there"
        )
    others = [f"{name} {found[name]} (here {here[name]})" for name in here if found[name] != here[name]]
    if others:
        _LOG.warning("worker %s has %s: its results may differ in the last bits", address, ", ".join(others))


def _ask(client, function, *args, **kwargs):
    """Return what the scheduler answers, or raise that it is lost."""
    try:
        return function(*args, **kwargs)
    except (OSError, RuntimeError, TimeoutError) as error:
        raise _lost(client, error) from error


def _lost(client, error):
    address = client.scheduler.address if client.scheduler is not None else "its address"
    return ClusterError(
        f"the scheduler at {address} does not answer any more ({type(error).__name__}); start a cluster again and go "
        "on from the checkpoint with resume"
    )


def _hold(value):
    return value


def _send(client, value, size):
    """Return a value, or where it lies on the cluster if it is too large to go to every task."""
    if size <= _SMALL:
        return value
    if size <= 1 << 20:
        return client.submit(_hold, value, pure=False)  # can be made again if its worker is lost
    return client.scatter([value], broadcast=True, hash=False)[0]


# In a worker

_OPEN: collections.OrderedDict = collections.OrderedDict()
_LOCK = threading.Lock()


def _opened(key, packed, make=_hold):
    """Return what was packed, opened once in this process."""
    with _LOCK:
        if key not in _OPEN:
            _keep_memory()
            _OPEN[key] = make(unpack(packed))
            while len(_OPEN) > _KEPT:
                _OPEN.popitem(last=False)
        _OPEN.move_to_end(key)
        return _OPEN[key]


def _forget(key):
    with _LOCK:
        _OPEN.pop(key, None)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _keep_memory():
    """Let the allocator keep what an array leaves for the next one.

    Dask has its workers give all of it back to the system at once, so that every array of every part comes page by
    page: of three seconds of processor time one went there. What is kept is given back at the end (`_forget`).
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library than that of GNU
        for option in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            ctypes.CDLL(None).mallopt(option, 1 << 25)


def _here(device):
    """Return a context in which the GPU of this worker is the current one; workers take turns at those they see."""
    if device == "cpu":
        return contextlib.nullcontext()
    try:
        cupy = find_cupy()
    except EmdlError:
        return contextlib.nullcontext()  # `Bench` says what is the matter, or takes the CPU
    name = _distributed().get_worker().name
    return cupy.cuda.Device(int(name) % cupy.cuda.runtime.getDeviceCount() if str(name).isdigit() else 0)


@dataclass(frozen=True)
class _Done:
    """Sums of some parts, and how long each task took: (number of parts, seconds)."""

    nodes: list
    took: list


@with_one_blas_thread
def _work(key, packed, device, order, runs, moved):
    """Return the sums of runs of parts; `moved` are codes that another worker hands over."""
    began = time.perf_counter()
    with _here(device), one_thread():
        bench = _opened(key, packed, Bench)
        for held in moved:
            bench.take_over(held)
        numbers = list(itertools.chain.from_iterable(itertools.starmap(range, runs)))
        nodes = bench.run(order, numbers)
    return _Done(nodes, [(len(numbers), time.perf_counter() - began)])


def _merge(*done):
    return _Done(joined(itertools.chain.from_iterable(d.nodes for d in done)), [t for d in done for t in d.took])


def _give(key, packed, numbers, codes):
    return _opened(key, packed, Bench).hand_over(numbers.tolist(), codes)


@with_one_blas_thread
def _sample(key, packed, device, function, arguments, unit, spans):
    with _here(device):
        return _opened(key, packed, Bench).sample(function, arguments, unit, spans)


def _apply(key, packed, function, task):
    with one_thread():
        return function(_opened(key, packed), task)


# In the process that asks


class Fleet:
    """The workers of a cluster, as the engine of `emdl.parts.Parts`.

    Parameters
    ----------
    client : distributed.Client
        Of the cluster.
    job : emdl.parts.Job
        The parts; signals must be something that workers can open (`emdl.sources.pack`).

    Attributes
    ----------
    took : list of (int, float)
        Parts and seconds of each task of the last pass.
    """

    def __init__(self, client, job):
        self.client, self.job, self.key = check(client), job, uuid.uuid4().hex
        if any(_distributed().client.futures_of(x) for x in (job.y, job.wanted) if hasattr(x, "__dask_graph__")):
            raise InputError(
                "y is a Dask array that was persisted, which tasks cannot slice; hand over the one before that"
            )
        packed = pack(job)
        self.packed = _send(client, packed, len(packed))
        self.owner, self.threads, self.took = {}, {}, []  # worker to parts, to threads

    def run(self, order):
        """Return the sums over all parts, as nodes."""
        moved = self._settle(order)
        lean = order if order.codes is None else replace(order, codes=order.codes.tail(1))
        size = sum(a.nbytes for a in (*order.arguments, *_arrays(lean.codes)) if hasattr(a, "nbytes"))
        sent = _send(self.client, lean, size)
        running = {self._start(a, sent, numbers, moved.get(a, ())): numbers for a, numbers in self._shares()}
        lost = 0
        while True:
            self._wait(running)
            again = [f for f in running if f.status != "finished" and self._may_be_tried_again(f)]
            if not again:
                done = self._gathered(list(running))
                if done is not None:
                    self.took = done.took
                    return done.nodes
                continue
            lost += 1
            if lost > _TRIES:
                raise ClusterError(
                    f"parts of the signals were lost {lost} times in one pass; look at the workers' logs"
                )
            numbers = np.concatenate([running.pop(f) for f in again])
            _LOG.warning("the codes of %d parts are lost with a worker; they are made again", len(numbers))
            self.threads = self._present()
            self.owner = assigned(len(self.job.cuts), self.owner, self.threads)
            running |= {self._start(address, order, part, ()): part for address, part in self._shares(numbers)}

    def sample(self, function, arguments, unit, spans):
        """Return ``function(sample, *arguments)``, computed by a worker, see `emdl.parts.Bench.sample`."""
        return _result(self.client, self.client.submit(
            _sample, self.key, self.packed, self.job.device, function, arguments, unit, spans, pure=False
        ))  # fmt: skip

    def close(self):
        """Let the workers forget the signals and their codes."""
        with contextlib.suppress(OSError, RuntimeError, TimeoutError):
            if self.client.status == "running":
                self.client.run(_forget, self.key, on_error="ignore")

    def _start(self, address, order, numbers, moved):
        return self.client.submit(
            _work, self.key, self.packed, self.job.device, order, _runs(numbers), list(moved),
            workers=[address], allow_other_workers=True, pure=False,
        )  # fmt: skip

    def _wait(self, futures):
        """Wait until all tasks have ended, well or not."""
        while True:
            try:
                return _distributed().wait(list(futures), timeout=_POLL)
            except TimeoutError:
                _ask(self.client, self.client.nthreads)  # raises if the scheduler is lost
            except concurrent.futures.CancelledError as error:
                _check_status(self.client, error)
                return None

    def _may_be_tried_again(self, future):
        """Return whether a task that failed has lost codes; raise whatever else was the matter."""
        if future.status != "error":
            _check_status(self.client, None)
            return True
        error = future.exception()
        if isinstance(error, MissingCodesError):
            return True
        raise _explained(error)

    def _gathered(self, futures):
        """Return the result of all tasks, None if one was lost meanwhile."""
        try:
            while len(futures) > _FEW:
                groups = [futures[i : i + _FAN] for i in range(0, len(futures), _FAN)]
                futures = [self.client.submit(_merge, *group, pure=False) for group in groups]
            return _merge(*self.client.gather(futures))
        except MissingCodesError:
            return None
        except concurrent.futures.CancelledError as error:
            _check_status(self.client, error)
            return None

    def _shares(self, numbers=None):
        """Return (worker, parts) of each task: one for each thread of a worker."""
        for address, mine in self.owner.items():
            chosen = mine if numbers is None else np.intersect1d(mine, numbers)
            if len(chosen):
                yield from ((address, share) for share in self._split(chosen, self.threads[address]))

    def _split(self, numbers, count):
        """Return parts in so many shares, or fewer, that end where large nodes do."""
        depth = _depth(sum(self.threads.values()))
        ends = [numbers[len(numbers) * i // count] for i in range(1, count)]
        borders = [nearest_border(end, len(self.job.cuts), depth) for end in ends]
        return [share for share in np.split(numbers, np.searchsorted(numbers, borders)) if len(share)]

    def _settle(self, order):
        """Give every part a worker that is there; return the codes that change hands, worker to futures."""
        threads = self._present()
        if threads == self.threads and self.owner:
            return {}
        before, self.threads = self.owner, threads
        self.owner = assigned(len(self.job.cuts), before, threads)
        if order.codes is None or order.codes.length < 2:
            return {}
        moved = collections.defaultdict(list)
        for target, source in itertools.permutations(threads, 2):
            numbers = np.intersect1d(self.owner[target], before.get(source, ()))
            if len(numbers):
                moved[target].append(self.client.submit(
                    _give, self.key, self.packed, numbers, order.codes.tail(1), workers=[source],
                    allow_other_workers=True, pure=False,
                ))  # fmt: skip
        return moved

    def _present(self):
        """Return the threads that may work at once on each worker that is there, and check those that are new."""
        threads = _ask(self.client, self.client.nthreads)
        if not threads:
            threads = _ask(self.client, check(self.client).nthreads)
        new = [address for address in threads if address not in self.threads]
        if self.threads and new:
            _check_versions(self.client, new)
            _LOG.info("%d more workers", len(new))
        limits = {a: self._room(a) for a in new} if new else {}
        return {a: self.threads.get(a) or min(n, limits[a]) for a, n in threads.items()}

    def _room(self, address):
        """Return how many parts a worker has memory for at once."""
        info = _ask(self.client, self.client.scheduler_info, n_workers=-1)["workers"].get(address, {})
        limit = info.get("memory_limit") or math.inf
        cuts = self.job.cuts
        need = _ARRAYS * max(self._bytes(cuts[i]) for i in {0, len(cuts) // 2, len(cuts) - 1})
        room = _SHARE * limit / need
        if room < 1:
            raise ClusterError(
                f"worker {address} may use {limit / 2**20:,.0f} MiB and a part of the signals needs about "
                f"{need / _SHARE / 2**20:,.0f} MiB; give it more with --memory-limit, or leave it out"
            )
        return int(min(room, 1 << 20))

    def _bytes(self, where):
        """Return the size of the signals of a part."""
        shape, n_axes = self.job.y.shape, len(self.job.atom_shape)
        first, n = shape[len(shape) - n_axes], self.job.cuts.shape[0]
        read = first if where.read is None else where.read[1] - where.read[0]
        return math.prod(shape) // (n * first) * (where.rows[1] - where.rows[0]) * read * self.job.dtype.itemsize


def _arrays(codes):
    return () if codes is None else [a for step in codes.steps for a in (step.D, step.penalty)]


def assigned(count, before, threads):
    """Return which worker has which parts: as before as far as possible, and in proportion to their threads.

    Parameters
    ----------
    count : int
        Number of parts.
    before : dict
        Worker to its parts, as far as they had one; workers may be gone.
    threads : dict
        Worker to its number of threads.

    Returns
    -------
    dict
        Worker to its parts, increasing.
    """
    room = dict(zip(threads, np.diff(_edges(count, list(threads.values()))), strict=True))
    kept = {address: np.asarray(before.get(address, ()), int)[: room[address]] for address in threads}
    free = np.ones(count, bool)
    for mine in kept.values():
        free[mine] = False
    left, after, taken = np.flatnonzero(free), {}, 0
    for address, mine in kept.items():
        more = room[address] - len(mine)
        after[address] = np.sort(np.concatenate([mine, left[taken : taken + more]]))
        taken += more
    return after


def _edges(count, weights):
    """Return where a row of parts is divided in proportion to weights.

    The borders are those of large nodes of the tree, which moves them by some per cent of a share at most: the sums of
    a share then are few nodes, however many the parts are.
    """
    depth = _depth(len(weights))
    places = np.cumsum([0, *weights]) * count / sum(weights)
    return np.array([0, *(nearest_border(place, count, depth) for place in places[1:-1]), count])


def _depth(shares):
    return max(0, (shares - 1).bit_length()) + 5


def _runs(numbers):
    """Return increasing numbers as a list of (first, one after the last), which says much of them in few words."""
    breaks = np.flatnonzero(np.diff(numbers) > 1) + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in np.split(numbers, breaks)]


def _check_status(client, error):
    """Raise if the scheduler is lost."""
    if client.status != "running":
        raise _lost(client, error or OSError()) from error
    _ask(client, client.nthreads)


def _explained(error):
    """Return the error of a task as one that a person can act on."""
    if isinstance(error, EmdlError):
        return error
    if type(error).__name__ == "KilledWorker":
        return ClusterError(f"a task ended several workers, most likely for want of memory: {error}")
    return error


def _result(client, future):
    """Return the result of a task that any worker may do."""
    while True:
        try:
            _distributed().wait([future], timeout=_POLL)
            break
        except TimeoutError:
            _ask(client, client.nthreads)
        except concurrent.futures.CancelledError as error:
            raise _lost(client, error) from error
    if future.status == "error":
        raise _explained(future.exception())
    try:
        return future.result()
    except concurrent.futures.CancelledError as error:
        raise _lost(client, error) from error


class Pool:
    """Workers that keep what all tasks share, for work that falls apart by itself.

    Parameters
    ----------
    client : distributed.Client
        Of the cluster.
    shared : object
        What every task needs; opened once by every worker (`emdl.sources.pack`).
    name : str
        What to call `shared`, for the messages.
    """

    def __init__(self, client, shared, name):
        self.client, self.key, packed = check(client), uuid.uuid4().hex, pack(shared, name)
        self.held = _send(client, packed, len(packed))

    def send(self, array):
        """Return what stands for an array in tasks: itself, or where it lies on the cluster."""
        return _send(self.client, array, array.nbytes)

    def map(self, function, tasks):
        """Give ``function(shared, task)`` for each task; see `spread`."""
        waiting, left = collections.deque(), iter(tasks)
        ahead = 1 + 2 * sum(_ask(self.client, self.client.nthreads).values())
        try:
            while True:
                for task in itertools.islice(left, ahead - len(waiting)):
                    waiting.append(self.client.submit(_apply, self.key, self.held, function, task, pure=False))
                if not waiting:
                    return
                yield _result(self.client, waiting[0])
                waiting.popleft()
        finally:
            self._while_it_runs(self.client.cancel, list(waiting))

    def close(self):
        """Let the workers forget what they share."""
        self._while_it_runs(self.client.run, _forget, self.key, on_error="ignore")

    def _while_it_runs(self, function, *args, **kwargs):
        with contextlib.suppress(OSError, RuntimeError, TimeoutError):
            if self.client.status == "running":
                function(*args, **kwargs)


def spread(client, function, shared, tasks, *, name):
    """Give ``function(shared, task)`` for each task, in their order, computed by the workers.

    Parameters
    ----------
    client : distributed.Client
        Of the cluster.
    function : callable
        Of a module that the workers have.
    shared : object
        What every task needs; opened once by every worker (`emdl.sources.pack`).
    tasks : sequence
        Small.
    name : str
        What to call `shared`, for the messages.

    Yields
    ------
    object
        The results. A few tasks for each thread are under way; those not done when the generator is closed are
        cancelled.

    Raises
    ------
    ClusterError
        If the cluster is lost.
    """
    with contextlib.closing(Pool(client, shared, name)) as pool:
        yield from pool.map(function, tasks)
