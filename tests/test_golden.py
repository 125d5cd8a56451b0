"""Each job gives what it gave before: the same bits on a machine that is known, elsewhere within bounds.

Where results were meant to change: ``python tests/golden/make.py``.
"""

import functools
import multiprocessing
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import threadpoolctl
from golden import jobs, make

from emdl import backend

MEANT = "; if that was meant: python tests/golden/make.py"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Return a function that gives the results of a job, made once."""
    folder = tmp_path_factory.mktemp("golden")
    return functools.cache(lambda job: make.run(job, folder))


@pytest.mark.parametrize("job", jobs.JOBS)
def test_results_are_those_that_are_kept(job, results):
    far = {name: value for name, value in make.distances(job, results(job), make.kept(job)).items() if not value <= 1}
    assert not far, f"{job} is beyond its bounds by the factors {far}{MEANT}"


@pytest.mark.parametrize("job", jobs.JOBS)
def test_bits_are_those_of_the_last_time_on_a_machine_like_this_one(job, results):
    wanted = make.kept_bits()
    if wanted is None:
        pytest.skip(f"no bits are kept for {make.machine()}; add them with python tests/golden/make.py --add")
    found = make.digests(results(job))
    assert found == wanted[job], f"{job} has other bits than before{MEANT}"


@pytest.mark.parametrize("job", jobs.JOBS)
def test_bits_do_not_depend_on_the_threads_nor_on_the_run(job, results, monkeypatch):
    """Threads of emdl and of linear algebra: one, instead of one for each processor."""
    wanted = make.digests(results(job))
    monkeypatch.setattr(backend, "n_threads", lambda: 1)
    with threadpoolctl.threadpool_limits(1):
        assert make.digests(make.run(job)) == wanted


def test_bits_are_the_same_in_several_threads_at_once(results):
    """Each of four threads takes up all jobs that work in memory alone, in an order of its own."""
    wanted = {job: make.digests(results(job)) for job in jobs.IN_PROCESS}

    def run(first):
        order = [*jobs.IN_PROCESS[first:], *jobs.IN_PROCESS[:first]]
        return {job: make.digests(make.run(job)) for job in order}

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(run, range(4)):
            assert found == wanted


def _run_in_child(queue):
    queue.put({job: make.digests(make.run(job)) for job in jobs.IN_PROCESS})


def test_bits_are_the_same_after_a_fork(results):
    wanted = {
        job: make.digests(results(job)) for job in jobs.IN_PROCESS
    }  # with threads, which a child does not inherit
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_run_in_child, args=(queue,))
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # Python 3.12 warns of forks of threads, which are meant here
        child.start()
    found = queue.get(timeout=120)
    child.join(30)
    assert found == wanted


# The bounds tell a result from a wrong one


def test_bounds_of_numbers_and_pictures_refuse_what_is_elsewhere():
    kept = np.linspace(-2, 2, 9)
    assert jobs.Close(0.01).far(kept + 0.019, kept) < 1 < jobs.Close(0.01).far(kept + 0.021, kept)
    assert jobs.Close(0.01).far(kept[:-1], kept) == np.inf
    assert not jobs.Close(0.01).far(kept * np.nan, kept) <= 1
    clean, noisy = jobs.picture((90, 90), 0, noise=0), jobs.picture((90, 90), 0)
    measure = jobs.JOBS["denoise_learn"][1]["by the command"]
    assert measure.far(measure.keep(noisy), measure.keep(clean)) > 5
    assert measure.far(measure.keep(clean), measure.keep(clean)) == 0


def test_bounds_of_atoms_allow_order_shift_and_sign_alone():
    D = np.zeros((2, 1, 20))
    D[..., 4:16] = jobs.atoms(2, 1, 12)
    measure = jobs.Atoms(0.02)
    assert measure.far(-np.roll(D[::-1], 2, axis=2), D) < 1e-6
    assert measure.far(D + 0.02 * np.roll(D, 4, axis=2), D) > 0.5
    assert measure.far(D[[0, 0]], D) > 1
    assert measure.far(D[:1], D) == np.inf


def test_bounds_of_spikes_refuse_times_units_and_losses():
    rng = np.random.default_rng(0)
    kept = np.stack([np.arange(300) * 200, rng.integers(0, 3, 300)])
    measure = jobs.Times(0.03)
    renamed = np.stack([kept[0] + rng.integers(-1, 2, 300), 2 - kept[1]])
    assert measure.far(renamed, kept) == 0
    assert measure.far(kept[:, 1:], kept) < 1 < measure.far(kept[:, 12:], kept)
    assert measure.far(np.add(kept, [[9], [0]]), kept) > 1
    assert measure.far(np.stack([kept[0], kept[1] % 2]), kept) == np.inf
    assert measure.far(np.stack([kept[0], np.roll(kept[1], 1)]), kept) > 1
