"""Threads and the checks at the public edge."""

import multiprocessing
import threading

import numpy as np
import pytest
import threadpoolctl

from emdl import backend
from emdl.errors import InputError


def test_parallel_map_keeps_the_order_and_uses_other_threads(monkeypatch):
    monkeypatch.setattr(backend, "n_threads", lambda: 2)
    meet = threading.Barrier(2, timeout=20)  # passes only if two tasks run at the same time

    def task(i):
        meet.wait()
        return i

    assert backend.parallel_map(task, range(6)) == list(range(6))


def test_parallel_map_within_parallel_map_does_not_hang(monkeypatch):
    monkeypatch.setattr(backend, "n_threads", lambda: 2)
    inner = lambda i: backend.parallel_map(lambda j: 10 * i + j, range(3))  # noqa: E731
    assert backend.parallel_map(inner, range(4))[3] == [30, 31, 32]


def test_parallel_map_passes_errors_on(monkeypatch):
    monkeypatch.setattr(backend, "n_threads", lambda: 2)
    with pytest.raises(ZeroDivisionError):
        backend.parallel_map(lambda i: 1 // i, [1, 0, 1])


def _in_child(queue):
    queue.put(backend.parallel_map(lambda i: i + 1, range(4)))


def test_threads_work_after_a_fork(monkeypatch):
    monkeypatch.setattr(backend, "n_threads", lambda: 2)
    backend.parallel_map(abs, range(4))  # the parent has threads, which a forked child does not inherit
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue,))
    child.start()
    assert queue.get(timeout=30) == [1, 2, 3, 4]
    child.join(30)


@pytest.mark.parametrize("name", ["NUMBA_NUM_THREADS", "OMP_NUM_THREADS"])
def test_environment_limits_the_threads(name, monkeypatch):
    monkeypatch.setenv(name, "1")
    assert backend.n_threads() == 1


def test_linear_algebra_has_one_thread_within_and_its_own_number_after():
    def threads():
        return [library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]

    before = threads()
    assert set(backend.with_one_blas_thread(threads)()) == {1}
    assert threads() == before


def test_counts_and_numbers_are_checked():
    assert backend.check_count(3, "n") == 3
    assert backend.check_number(np.float32(0.5), "x", 0, 1) == 0.5
    for wrong in (0, 2.0, True, "3"):
        with pytest.raises(InputError, match="n is"):
            backend.check_count(wrong, "n")
    for wrong in (-1, np.nan, np.inf, "a", [1, 2]):
        with pytest.raises(InputError, match="x is"):
            backend.check_number(wrong, "x", 0)


@pytest.mark.parametrize("operation", [lambda x: x / 0, lambda x: x * 1e300 * 1e300, lambda x: x * 1e-300 * 1e-300])
def test_the_tests_let_no_arithmetic_go_wrong_silently(operation):
    with pytest.raises(FloatingPointError):
        operation(np.ones(3))
