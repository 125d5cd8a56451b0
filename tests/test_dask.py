"""Workers of Dask, as processes: the bits of one process, whatever happens to the workers, and errors in words."""

import itertools
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import h5py
import numpy as np
import pytest
from emdl.cli.app import run
from laws import smooth_atoms
from numpy.testing import assert_array_equal
from PIL import Image
from test_checkpoint import assert_same

from emdl import cluster, em_fit, parts, simulate, sources, spikes
from emdl.errors import FileFormatError, InputError, InputTypeError
from emdl.images.photographs import read_photographs
from emdl.images.training import train

distributed = pytest.importorskip("distributed", reason="needs Dask: pip install 'emdl[dask]'")
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # sockets of Dask that outlive a killed worker

HERE = pathlib.Path(__file__).parent
SHAPE = (13,)
LONG = {"positive": True, "rng": 0, "max_iter": 5, "learn_sigma": True, "tol": 1e-9}


@pytest.fixture(scope="module")
def local():
    """A cluster of worker processes of one thread."""
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as made:
        yield made


@pytest.fixture(scope="module")
def client(local):
    with distributed.Client(local) as made:
        yield made


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Parts of ten thousand values; the cut is made here, so that workers need not know."""
    monkeypatch.setattr(parts, "WHOLE", 20_000)
    monkeypatch.setattr(parts, "_PART", 10_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("signals")


@pytest.fixture(scope="module")
def long_signal(folder):
    """A memory map of one signal, which becomes seven parts, and the file."""
    rng = np.random.default_rng(3)
    made = simulate.convolutional(
        1, 30_003, smooth_atoms(2, 2, *SHAPE, rng), density=0.004, snr_db=12, positive=True, rng=rng
    )
    np.save(folder / "long.npy", made.y)
    return np.load(folder / "long.npy", mmap_mode="r")


def fitted(y, **options):
    return em_fit(y, 2, SHAPE, **LONG | options)


@pytest.fixture(scope="module")
def alone(long_signal):
    """The fit of this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "WHOLE", 20_000)
        patch.setattr(parts, "_PART", 10_000)
        return fitted(np.asarray(long_signal))


def with_workers(local, client, count):
    """Let the cluster have so many workers."""
    local.scale(count)
    for _ in range(2):  # a worker that was killed may come back once more
        until(lambda: len(client.nthreads()) == count, client.nthreads)
        time.sleep(1)


def until(true, what):
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, f"waited in vain: {what()}"
        time.sleep(0.05)


def end_one(client):
    """Kill a worker process as the kernel does for want of memory; return its address."""
    address, pid = min(client.run(os.getpid).items())
    os.kill(pid, signal.SIGKILL)
    return address


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_workers_gives_the_bits_of_none(count, local, client, long_signal, alone):
    with_workers(local, client, count)
    assert_same(fitted(long_signal, client=client), alone)


@pytest.mark.parametrize(
    "options", [{"m_step": "unrolled", "n_layers": 3}, {"batch_size": 3}, {"lmbd_rule": "paper-gradient"}], ids=str
)
def test_every_m_step_and_rule_gives_the_bits_of_none(options, local, client, long_signal):
    options = {"max_iter": 3, **options}
    assert_same(fitted(long_signal, client=client, **options), fitted(np.asarray(long_signal), **options))


def test_a_worker_killed_between_two_iterations_changes_no_bit(local, client, long_signal, alone, caplog):
    with_workers(local, client, 3)
    killed = []

    def kill(progress):
        if progress.iteration == 3:
            killed.append(end_one(client))
            until(lambda: killed[0] not in client.nthreads(), client.nthreads)

    assert_same(fitted(long_signal, client=client, callback=kill), alone)
    assert "are lost with a worker; they are made again" in caplog.text


def test_a_worker_killed_in_the_midst_of_its_work_changes_no_bit(local, client, long_signal, alone, monkeypatch):
    with_workers(local, client, 3)
    monkeypatch.setattr(cluster.Fleet, "_wait", waiting_while_one_dies(client, cluster.Fleet._wait))
    assert_same(fitted(long_signal, client=client), alone)


def waiting_while_one_dies(client, wait):
    calls = itertools.count()

    def replaced(self, futures):
        if next(calls) == 4:
            end_one(client)
        return wait(self, futures)

    return replaced


def test_a_worker_that_joins_late_takes_its_share_with_the_codes(local, client, long_signal, alone, monkeypatch):
    with_workers(local, client, 2)
    owners = []

    def join(progress):
        if progress.iteration == 3:
            with_workers(local, client, 3)

    real = cluster.Fleet.run

    def noted(self, order):
        done = real(self, order)
        owners.append([len(mine) for mine in self.owner.values()])
        return done

    monkeypatch.setattr(cluster.Fleet, "run", noted)
    assert_same(fitted(long_signal, client=client, callback=join), alone)
    assert sorted(owners[1]) in ([3, 4], [2, 2, 3])  # a nanny may bring back a worker that an earlier test killed
    assert sorted(owners[-1]) == [2, 2, 3]


def test_parts_are_shared_in_proportion_to_the_threads_and_move_as_little_as_can_be():
    first = cluster.assigned(12, {}, {"a": 1, "b": 2, "c": 1})
    assert {a: n.tolist() for a, n in first.items()} == {"a": [0, 1, 2], "b": [3, 4, 5, 6, 7, 8], "c": [9, 10, 11]}
    after = cluster.assigned(12, first, {"a": 1, "c": 1})
    assert {a: n.tolist() for a, n in after.items()} == {"a": [0, 1, 2, 3, 4, 5], "c": [6, 7, 8, 9, 10, 11]}
    joined = cluster.assigned(12, after, {"a": 1, "c": 1, "d": 2})
    assert {a: n.tolist() for a, n in joined.items()} == {"a": [0, 1, 2], "c": [6, 7, 8], "d": [3, 4, 5, 9, 10, 11]}


@pytest.mark.parametrize("count", [700, 7_001, 700_001])
def test_many_parts_take_few_words_and_few_sums(count):
    shares = cluster.assigned(count, {}, dict.fromkeys("abcde", 1))
    np.testing.assert_array_equal(np.concatenate(list(shares.values())), np.arange(count))
    assert max(map(len, shares.values())) < 1.04 * count / 5
    for mine in shares.values():
        assert len(cluster._runs(mine)) == 1
        if count < 10_000:
            assert len(parts.joined(parts.leaf(int(i), count, 1.0) for i in mine)) <= 10


def test_a_worker_works_on_as_many_parts_at_once_as_its_memory_holds(local, client, long_signal, monkeypatch):
    with_workers(local, client, 1)
    (address,) = client.nthreads()
    limit = client.scheduler_info(n_workers=-1)["workers"][address]["memory_limit"]
    part = max(hi - lo for c in parts.cut(long_signal.shape, SHAPE, (1,)) for lo, hi in [c.read]) * 2 * 8
    for room in (3, 0.9):
        monkeypatch.setattr(cluster, "_SHARE", room * part * cluster._ARRAYS / limit)
        if room < 1:
            with pytest.raises(
                cluster.ClusterError, match=f"worker {address} may use .* MiB and a part of the signals"
            ):
                fitted(long_signal, client=client)
        else:
            job = parts.Job(long_signal, None, parts.cut(long_signal.shape, SHAPE, (1,)), SHAPE, (1,), True,
                            np.dtype(float))  # fmt: skip
            assert cluster.Fleet(client, job)._room(address) == 3


@pytest.mark.parametrize("kind", ["HDF5", "raw int16", "Dask array", "Zarr", "small and in memory"])
def test_workers_open_what_holds_the_signals(kind, local, client, long_signal, folder, alone):
    y = np.asarray(long_signal)
    want = alone
    if kind == "HDF5":
        with h5py.File(folder / "y.h5", "w") as file:
            file["y"] = y
        with h5py.File(folder / "y.h5", "r") as file:
            assert_same(fitted(file["y"], client=client), want)
        return
    if kind == "raw int16":
        np.round(2000 * y[0]).astype(np.int16).T.tofile(folder / "y.dat")
        source = np.memmap(folder / "y.dat", np.int16, "r").reshape(-1, 2).T[None]
        want = fitted(np.asarray(source, float))
    elif kind == "Dask array":
        source = pytest.importorskip("dask.array").from_array(long_signal, chunks=(1, 2, 7000))
    elif kind == "Zarr":
        zarr = pytest.importorskip("zarr", reason="needs zarr")
        source = zarr.create_array(str(folder / "y.zarr"), data=y, chunks=(1, 1, 9000))
    else:
        source = y
    assert_same(fitted(source, client=client), want)


def test_a_file_that_the_workers_cannot_see_is_named(client, long_signal, folder):
    """``/proc/self/fd`` leads this process to the file, and no other."""
    with open(folder / "long.npy", "rb") as file:
        path = f"/proc/self/fd/{file.fileno()}"
        if not os.path.exists(path):
            pytest.skip("needs /proc")
        hidden = np.memmap(path, long_signal.dtype, "r", long_signal.offset, long_signal.shape)
        with pytest.raises(FileFormatError, match=rf"(cannot read {path} |{path} has \d+ bytes on )"):
            fitted(hidden, client=client)


def test_data_of_this_process_do_not_travel(client, long_signal, monkeypatch):
    monkeypatch.setattr(sources, "LARGEST", 1000)
    with pytest.raises(InputError, match=r"in the memory of this process.* mmap_mode='r'"):
        fitted(np.asarray(long_signal), client=client)


def test_workers_of_this_machine_do_not_hear_an_interrupt():
    before = signal.getsignal(signal.SIGINT)
    with cluster.connect("local:1") as client:
        assert list(client.run(signal.getsignal, signal.SIGINT).values()) == [signal.SIG_IGN]
        assert "1 worker with 1 thread at tcp://127.0.0.1:" in cluster.describe(client)
    assert signal.getsignal(signal.SIGINT) == before


def test_a_persisted_dask_array_is_refused(client, long_signal):
    array = pytest.importorskip("dask.array").from_array(long_signal, chunks=(1, 2, 9000)).persist()
    with pytest.raises(InputError, match="persisted"):
        fitted(array, client=client)


def test_a_denoiser_learned_by_workers_has_the_bits_of_none(local, client, tmp_path, rng, capsys):
    for name in "ab":
        Image.fromarray(rng.integers(0, 256, (80, 90), np.uint8)).save(tmp_path / f"{name}.png")
    photographs = read_photographs(tmp_path)
    options = {"n_atoms": 32, "n_layers": 2, "steps": 3, "crop": 54, "batch": 10}
    want = train(photographs, **options)
    with_workers(local, client, 2)
    got = train(photographs, client=client, **options)
    for part in ("analysis", "synthesis", "tau"):
        assert_array_equal(getattr(got, part), getattr(want, part))
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    with pytest.raises(FileFormatError, match=r"the worker on .* cannot read .*b\.png"):
        train(photographs, client=client, **options)
    command = ["train", "--task", "denoise", str(tmp_path), "-o", str(tmp_path / "net.h5"), "--no-plot"]
    command += ["--atoms", "32", "--layers", "1", "--minutes", "0.001"]
    assert run([*command, "--dask", client.scheduler.address]) == 0
    assert f"2 workers with 2 threads at {client.scheduler.address}" in capsys.readouterr().err
    assert (tmp_path / "net.h5").exists()


def test_a_worker_that_leaves_before_it_says_its_version_is_not_asked_again(local, client, monkeypatch):
    with_workers(local, client, 1)
    here = next(iter(client.nthreads()))
    asked = []

    def run(function, workers, on_error):
        asked.append(sorted(workers))
        return {w: function() if w == here else OSError("timed out") for w in workers}

    monkeypatch.setattr(client, "run", run)
    monkeypatch.setattr(cluster, "_POLL", 0.01)
    gone = "tcp://127.0.0.1:9"
    cluster._check_versions(client, [here, gone])
    assert asked == [sorted([here, gone])]
    monkeypatch.setattr(client, "nthreads", lambda: {here: 1, gone: 1})
    with pytest.raises(cluster.ClusterError, match=rf"worker {gone} does not answer \(timed out\); look at its log"):
        cluster._check_versions(client, [here, gone])
    assert asked[1:] == [sorted([here, gone])] + [[gone]] * (cluster._TRIES - 1)


def test_another_version_on_a_worker_is_reported(client, long_signal, caplog):
    try:
        client.run(_say_versions, {"numpy": "1.0"})
        fitted(long_signal, client=client, max_iter=1)
        assert "has numpy 1.0 (here " in caplog.text
        client.run(_say_versions, {"emdl": "9.9"})
        with pytest.raises(cluster.ClusterError, match=r"has emdl 9\.9, here it is .*; install the same version there"):
            fitted(long_signal, client=client)
    finally:
        client.run(_say_versions, {})


def _say_versions(others):
    """Let the worker that runs this say that it has other versions."""
    import emdl.cluster

    real = getattr(emdl.cluster, "_real_versions", emdl.cluster._versions)
    emdl.cluster._real_versions = real
    emdl.cluster._versions = lambda: real() | others


def test_what_is_no_client_and_what_is_no_cluster_is_refused(long_signal, monkeypatch):
    with pytest.raises(InputTypeError, match=r"client is a str, wanted a distributed\.Client"):
        fitted(long_signal, client="tcp://localhost:1")
    for where in ("local:0", "local:x", "somewhere"):
        with pytest.raises(InputError, match=f"--dask is {where}"), cluster.connect(where):
            pass
    monkeypatch.setattr(cluster, "_CONNECT", 0.5)
    with (
        pytest.raises(cluster.ClusterError, match="no scheduler answers at tcp://127"),
        cluster.connect("tcp://127.0.0.1:9"),
    ):
        pass
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(cluster.ClusterError, match=r"Dask is missing .*; pip install 'emdl\[dask\]'"):
        fitted(long_signal, client=object())


SCHEDULER = """
import sys
from distributed import LocalCluster
if __name__ == "__main__":
    made = LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0", silence_logs=50)
    print(made.scheduler_address, flush=True)
    sys.stdin.read()
"""


def test_a_lost_scheduler_is_an_error_and_the_fit_goes_on_from_its_checkpoint(long_signal, alone, tmp_path):
    (tmp_path / "cluster.py").write_text(SCHEDULER)
    process = subprocess.Popen(
        [sys.executable, "cluster.py"], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    path = tmp_path / "fit.h5"

    def kill(progress):
        if progress.iteration == 3:
            os.killpg(process.pid, signal.SIGKILL)

    try:
        with (
            distributed.Client(process.stdout.readline().strip(), timeout=30) as client,
            pytest.raises(cluster.ClusterError, match="does not answer any more"),
        ):
            fitted(long_signal, client=client, checkpoint=path, callback=kill)
    finally:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threading, "excepthook", lambda *_: None)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert_same(fitted(np.asarray(long_signal), checkpoint=path, resume=True), alone)


def test_nothing_imports_dask_without_being_asked(tmp_path):
    script = (
        "import sys, numpy as np, emdl\nfrom emdl import parts, spikes, simulate\nfrom emdl.cli.app import run\n"
        "parts.WHOLE = parts._PART = 2000\n"
        "emdl.em_fit(np.random.default_rng(0).standard_normal((9, 1, 400)), 1, 5, max_iter=2, rng=0)\n"
        "made = simulate.tetrode(2.0, 1, rng=0)\n"
        "spikes.detect(made.data, spikes.fit(made.data, made.fs, max_iter=1))\nrun(['--version'])\n"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & {'dask', 'distributed', 'cloudpickle', 'tornado'}))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


# GPUs, by the stand-in for CuPy

STAND_IN = f"""
import functools, sys
sys.path[:0] = [{str(HERE)!r}, {str(HERE / "cuda")!r}]
import harness, standin
standin.context = standin.installed(functools.cache(harness.Library))  # kept for as long as the process lives
standin.context.__enter__()
standin.settings.devices = 2
"""


def _run_here(script):
    exec(script, {"__name__": "stand_in"})


def test_a_process_for_each_gpu_gives_the_bits_of_one(long_signal, alone, cuda_kernels, monkeypatch):
    monkeypatch.setattr(parts, "WHOLE", 3000)
    monkeypatch.setattr(parts, "_PART", 3000)
    y = long_signal[:, :, :6003]
    assert len(parts.cut(y.shape, SHAPE, (1,))) == 4
    options = {
        "max_iter": 2,
        "D0": alone.model.D,
        "device": "cuda",
        "learn_lmbd": False,
        "learn_sigma": False,
        "sigma": alone.model.sigma,
    }
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as made,
        distributed.Client(made) as client,
    ):
        client.run(_run_here, STAND_IN)
        found = [fitted(y, client=client, **options)]
        devices = [client.submit(_device_of_a_task, workers=[a], pure=False) for a in client.nthreads()]
        assert sorted(client.gather(devices)) == [0, 1]
        made.scale(1)
        until(lambda: len(client.nthreads()) == 1, client.nthreads)
        found.append(fitted(y, client=client, **options))
    assert_same(*found)
    want = fitted(np.asarray(y), **options | {"device": "cpu"}).model
    np.testing.assert_allclose(found[0].model.D, want.D, atol=5e-3)
    assert found[0].model.D.dtype == want.D.dtype


def _device_of_a_task():
    from emdl.cluster import _here

    return _here("cuda").id


# Spikes and pictures


@pytest.fixture(scope="module")
def recording(folder):
    made = simulate.tetrode(6.0, 3, rng=0, peak_uv=(80.0, 250.0), rate_hz=(20.0, 40.0))
    np.round(made.data * 8).astype(np.int16).T.tofile(folder / "rec.dat")
    model = spikes.fit(np.round(made.data[:, :120_000] * 8).astype(np.int16), made.fs)
    model.save(folder / "model.h5")
    return folder / "rec.dat", made.fs


def test_workers_find_the_spikes_of_one_process(recording, local, client, folder, monkeypatch):
    with_workers(local, client, 2)
    path, fs = recording
    model = spikes.load(folder / "model.h5")
    data = spikes.recordings.read(path, fs=fs, dtype="int16", n_channels=4, skip_channels=[]).data
    want, seen = spikes.detect(data, model), []
    found = spikes.detect(data, model, client=client, progress=lambda s: seen.append(s) and None)
    for name in ("sample", "unit", "amplitude"):
        np.testing.assert_array_equal(getattr(found, name), getattr(want, name))
    assert len(seen) > 1
    assert seen[0].left > 0
    killed = []
    again = spikes.detect(data, model, client=client, progress=lambda _: killed.append(killed or end_one(client)))
    np.testing.assert_array_equal(again.sample, want.sample)


def test_the_commands_compute_on_workers(recording, local, client, folder, capsys):
    with_workers(local, client, 2)
    path, fs = recording
    about = ["--dtype", "int16", "--channels", "4", "--fs", f"{fs:g}"]
    where = ["--dask", client.scheduler.address]
    assert run(["detect", str(path), *about, "-m", str(folder / "model.h5"), "-o", str(folder / "a.csv"), *where]) == 0
    said = capsys.readouterr().err
    assert f"2 workers with 2 threads at {client.scheduler.address}; " in said
    assert run(["detect", str(path), *about, "-m", str(folder / "model.h5"), "-o", str(folder / "b.csv")]) == 0
    assert (folder / "a.csv").read_bytes() == (folder / "b.csv").read_bytes()
    for job, out in (("sort", "c.csv"), ("train", "d.h5")):
        assert run([job, str(path), *about, "-o", str(folder / out), "--max-iter", "1", *where]) == 0
        assert "2 workers with 2 threads" in capsys.readouterr().err


@pytest.mark.parametrize(("job", "out"), [("sort", "none.csv"), ("train", "none.h5")])
def test_a_scheduler_that_does_not_answer_is_told_before_the_learning(job, out, recording, folder, monkeypatch, capsys):
    path, fs = recording
    monkeypatch.setattr(cluster, "_CONNECT", 0.5)
    monkeypatch.setattr(spikes, "fit", lambda *_, **__: pytest.fail("it has begun to learn"))
    about = ["--dtype", "int16", "--channels", "4", "--fs", f"{fs:g}"]
    assert run([job, str(path), *about, "-o", str(folder / out), "--dask", "tcp://127.0.0.1:9"]) == 2
    assert "no scheduler answers at tcp://127.0.0.1:9" in capsys.readouterr().err


def test_workers_denoise_the_pictures_of_a_folder(local, client, folder, rng, capsys):
    from PIL import Image

    with_workers(local, client, 2)
    (folder / "in").mkdir()
    for name in "ab":
        noisy = 128 + 40 * np.sign(np.sin(np.arange(40) / 6)) + 10 * rng.standard_normal((40, 40))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / "in" / f"{name}.png")
    (folder / "in" / "c.png").write_bytes(b"none")
    for out, where in (("near", []), ("far", ["--dask", client.scheduler.address])):
        (folder / out).mkdir()
        assert run(["denoise", str(folder / "in"), "-o", str(folder / out), *where]) == 2
        assert "c.png" in capsys.readouterr().err
    for name in "ab":
        assert (folder / "near" / f"{name}.png").read_bytes() == (folder / "far" / f"{name}.png").read_bytes()
    assert not (folder / "far" / "c.png").exists()
