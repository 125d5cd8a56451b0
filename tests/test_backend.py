"""Threads and the checks at the public edge."""

import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import threadpoolctl

from emdl import backend, backward, em_fit, encode, unroll
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


def blas_threads():
    return [library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]


def test_linear_algebra_has_one_thread_within_and_its_own_number_after():
    before = blas_threads()
    assert set(backend.with_one_blas_thread(blas_threads)()) == {1}
    assert blas_threads() == before


def test_linear_algebra_has_its_threads_back_after_functions_that_overlapped():
    """Each would put back what the other had set, were they not counted."""
    before = blas_threads()
    steps = [threading.Event() for _ in range(3)]

    @backend.with_one_blas_thread
    def first():
        steps[0].set()
        steps[1].wait(20)

    @backend.with_one_blas_thread
    def second():
        steps[1].set()
        steps[2].wait(20)
        return blas_threads()

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(first)
        steps[0].wait(20)
        other = pool.submit(second)
        one.result(20)
        steps[2].set()
        assert set(other.result(20)) == {1}
    assert blas_threads() == before


def test_threadpoolctl_limits_the_threads(monkeypatch):
    monkeypatch.setattr(backend.os, "sched_getaffinity", lambda _: range(8), raising=False)
    for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert backend.n_threads() == 8
    for options in ({"limits": 3}, {"limits": {"emdl": 3}}):
        with threadpoolctl.threadpool_limits(**options):
            assert backend.n_threads() == 3
        assert backend.n_threads() == 8
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        assert backend.n_threads() == 8


def test_calls_from_several_threads_share_one_pool_and_do_not_oversubscribe(monkeypatch):
    monkeypatch.setattr(backend, "n_threads", lambda: 2)
    lock, running, most = threading.Lock(), [0], [0]

    def task(_):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.002)
        with lock:
            running[0] -= 1

    def nested(_):
        backend.parallel_map(lambda _: backend.parallel_map(task, range(3)), range(4))

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(nested, range(5)))
    assert most[0] == 2


PROBLEM = np.random.default_rng(0)
Y = PROBLEM.standard_normal((4, 1, 400))
D = PROBLEM.standard_normal((3, 1, 9))


def fitted(_=None):
    found = em_fit(Y, 3, 9, D0=D, sigma=1.0, max_iter=2, rng=0).model
    return found.D, found.lmbd, encode(Y, D, 2.0), backward(unroll(Y, D, 0.3, 0.02, 5), np.ones((4, 3, 392))).D


def assert_same_bits(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def test_fits_and_encoders_in_several_threads_at_once_give_the_bits_of_one(monkeypatch):
    wanted = fitted()
    for count in (1, 2, 3):
        monkeypatch.setattr(backend, "n_threads", lambda count=count: count)
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(fitted, range(6)):
                assert_same_bits(found, wanted)


def _fit_in_child(queue):
    queue.put(fitted())


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_a_child_process_gives_the_bits_of_its_parent(way):
    wanted = fitted()  # with threads, which a forked child does not inherit
    context = multiprocessing.get_context(way)
    queue = context.Queue()
    child = context.Process(target=_fit_in_child, args=(queue,))
    child.start()
    assert_same_bits(queue.get(timeout=100), wanted)
    child.join(30)


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
