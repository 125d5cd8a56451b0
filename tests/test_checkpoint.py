"""Nothing is lost: a fit that was interrupted, however it was, ends with the bits of one that was not."""

import errno
import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
from laws import smooth_atoms

from emdl import checkpoint as kept
from emdl import em_fit, simulate, spikes, storage
from emdl.codes import SparseCodes
from emdl.errors import EmdlError, FileFormatError, InputError
from emdl.mstep import M_STEPS
from emdl.optim import Optimizer
from emdl.rates import RULES, Prior

SHAPE = (9,)


@pytest.fixture(scope="module")
def simulated():
    rng = np.random.default_rng(3)
    return simulate.convolutional(
        4, 203, smooth_atoms(2, 2, *SHAPE, rng), density=0.02, snr_db=12, positive=True, rng=rng
    )


def stop_after(iteration):
    def callback(progress):
        if progress.iteration == iteration:
            raise KeyboardInterrupt

    return callback


def assert_same(result, wanted):
    """Hold that two results have the same bits; only the seconds may differ."""
    for name in ("D", "lmbd", "sigma"):
        np.testing.assert_array_equal(getattr(result.model, name), getattr(wanted.model, name))
    for name, values in wanted.history.items():
        if name != "seconds":
            np.testing.assert_array_equal(result.history[name], values, err_msg=name)
    assert (result.n_iter, result.converged, result.message) == (wanted.n_iter, wanted.converged, wanted.message)


JOBS = {
    **{m_step: {"m_step": m_step, "n_layers": 5} for m_step in M_STEPS},
    **{rule: {"lmbd_rule": rule, "learn_sigma": True} for rule in RULES if rule != "fixed"},
    "fixed": {"learn_lmbd": False},
    "prior": {"lmbd_rule": "paper", "prior": Prior(3.0, 0.1)},
    "minibatches": {"batch_size": 2},
    "sgd": {"m_step": "decoder", "optimizer": Optimizer("sgd", rate=0.02, decay=0.1, clip=1.0), "n_layers": 5},
    "validation": {"m_step": "unrolled", "n_layers": 5, "learn_lmbd": False, "optimizer": Optimizer(rate=0.6)},
    "both signs": {"positive": False, "stride": 2},
    "rates only": {"learn_dictionary": False},
    "float32": {},
}


def arguments_of(job, simulated):
    arguments = {"positive": True, "rng": 5, "max_iter": 7, "tol": 1e-6, **JOBS[job]}
    if job == "validation":
        arguments["validation"] = simulated.y[:2, :, :101]
    if job == "rates only":
        arguments["D0"] = simulated.D
    y = simulated.y.astype(np.float32) if job == "float32" else simulated.y
    return (y, 2, SHAPE), arguments


@pytest.mark.parametrize("job", JOBS)
def test_an_interrupted_fit_ends_with_the_same_bits(job, simulated, tmp_path):
    data, arguments = arguments_of(job, simulated)
    whole = em_fit(*data, **arguments)
    for stop in sorted({1, min(3, whole.n_iter), whole.n_iter}):
        path = tmp_path / f"{stop}.h5"
        with pytest.raises(KeyboardInterrupt):
            em_fit(*data, **arguments, checkpoint=path, callback=stop_after(stop))
        seen = []
        result = em_fit(*data, **arguments, checkpoint=path, resume=True, callback=seen.append)
        assert [progress.iteration for progress in seen] == list(range(stop + 1, whole.n_iter + 1))
        assert_same(result, whole)


@pytest.mark.parametrize("kind", ["PCG64", "MT19937", "Philox", "SFC64"])
def test_every_generator_of_numpy_goes_on_where_it_was(kind, simulated, tmp_path):
    def generator():
        return np.random.Generator(getattr(np.random, kind)(8))

    data, arguments = (simulated.y, 2, SHAPE), {"batch_size": 1, "max_iter": 4, "positive": True}
    rng = generator()
    whole = em_fit(*data, **arguments, rng=rng)
    with pytest.raises(KeyboardInterrupt):
        em_fit(*data, **arguments, rng=generator(), checkpoint=tmp_path / "c.h5", callback=stop_after(2))
    again = generator()
    assert_same(em_fit(*data, **arguments, rng=again, checkpoint=tmp_path / "c.h5", resume=True), whole)
    assert again.random() == rng.random()
    other = np.random.Generator(np.random.PCG64DXSM(8))
    with pytest.raises(FileFormatError, match="holds no state of"):
        em_fit(*data, **arguments, rng=other, checkpoint=tmp_path / "c.h5", resume=True)


def test_a_spike_fit_goes_on_with_the_same_bits(tmp_path):
    made = simulate.tetrode(6.0, 3, n_channels=2, fs=20_000.0, rate_hz=(15, 25), peak_uv=(150, 300), rng=3)
    options = {"max_iter": 6, "rng": 2}
    whole = spikes.fit(made.data, made.fs, **options)
    count = len(whole.history["objective"])
    assert count >= 3
    for stop in range(1, count):
        with pytest.raises(KeyboardInterrupt):
            spikes.fit(
                made.data, made.fs, **options, checkpoint=tmp_path / "c.h5", resume=True, callback=stop_after(stop)
            )
    result = spikes.fit(made.data, made.fs, **options, checkpoint=tmp_path / "c.h5", resume=True)
    for name in ("waveforms", "spread", "amplitude", "rate", "peak"):
        np.testing.assert_array_equal(getattr(result, name), getattr(whole, name))
    np.testing.assert_array_equal(result.model.D, whole.model.D)
    assert result.message == whole.message
    for name in set(whole.history) - {"seconds"}:
        np.testing.assert_array_equal(result.history[name], whole.history[name])


def test_a_fit_that_ended_gives_its_result_again(simulated, tmp_path):
    arguments = {"max_iter": 3, "rng": 0, "checkpoint": tmp_path / "c.h5"}
    whole = em_fit(simulated.y, 2, SHAPE, **arguments)
    assert_same(em_fit(simulated.y, 2, SHAPE, **arguments, resume=True), whole)


def test_nothing_is_written_between_two_writes_and_nothing_but_the_checkpoint_stays(simulated, tmp_path):
    seen = []
    em_fit(
        simulated.y, 2, SHAPE, max_iter=3, rng=0, checkpoint=tmp_path / "c.h5", checkpoint_every=3600,
        callback=lambda _: seen.append((tmp_path / "c.h5").exists()),
    )  # fmt: skip
    assert seen == [False, False, True]
    assert [p.name for p in tmp_path.iterdir()] == ["c.h5"]


def test_a_checkpoint_is_never_overwritten_by_a_fit_that_does_not_go_on_from_it(simulated, tmp_path):
    path = tmp_path / "c.h5"
    path.write_text("precious")
    with pytest.raises(InputError, match="exists, the checkpoint of another fit"):
        em_fit(simulated.y, 2, SHAPE, max_iter=2, checkpoint=path)
    with pytest.raises(FileFormatError, match=r"c\.h5"):
        em_fit(simulated.y, 2, SHAPE, max_iter=2, checkpoint=path, resume=True)
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"y": np.ones(1)}, "y"),
        ({"rng": 6}, "rng"),
        ({"max_iter": 3}, "max_iter"),
        ({"sigma": 0.5}, "sigma"),
        ({"optimizer": Optimizer(rate=0.5)}, "optimizer"),
        ({"lmbd0": np.ones(2)}, "lmbd0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_checkpoint_of_another_job_is_refused_by_what_differs(change, name, simulated, tmp_path):
    arguments = {"y": simulated.y, "rng": 5, "max_iter": 2, "checkpoint": tmp_path / "c.h5"}
    em_fit(arguments.pop("y"), 2, SHAPE, **arguments)
    changed = {"y": simulated.y, **arguments, **change}
    if name == "y":
        changed["y"] = simulated.y + 1e-9
    with pytest.raises(InputError, match=f"belongs to another fit: {name} was"):
        em_fit(changed.pop("y"), 2, SHAPE, **changed, resume=True)


def test_a_checkpoint_of_another_kind_is_refused(simulated, tmp_path):
    em_fit(simulated.y, 2, SHAPE, max_iter=1, checkpoint=tmp_path / "c.h5")
    made = simulate.tetrode(2.0, 1, n_channels=2, fs=20_000.0, rng=0)
    with pytest.raises(FileFormatError, match=r"no checkpoint of spikes\.fit, but of em_fit"):
        spikes.fit(made.data, made.fs, checkpoint=tmp_path / "c.h5", resume=True)
    with pytest.raises(InputError, match="without a checkpoint"):
        em_fit(simulated.y, 2, SHAPE, resume=True)


# Faults while it is written

FAULTS = {
    "fsync": ("emdl.storage.os.fsync", errno.EIO),
    "rename": ("emdl.storage.os.replace", errno.EACCES),
    "temporary": ("emdl.storage.tempfile.mkstemp", errno.ENOSPC),
    "open": ("h5py.File", errno.ENOSPC),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_write_that_fails_keeps_the_old_file_and_the_fit_going(fault, simulated, tmp_path, monkeypatch, caplog):
    data, arguments = (simulated.y, 2, SHAPE), {"rng": 5, "max_iter": 5, "positive": True, "tol": 1e-6}
    whole, path = em_fit(*data, **arguments), tmp_path / "c.h5"
    target, number = FAULTS[fault]

    def fail(*args, **_):
        raise OSError(number, os.strerror(number))

    contents = []

    def callback(progress):
        if progress.iteration == 2:
            contents.append(path.read_bytes())
            monkeypatch.setattr(target, fail)
        if progress.iteration == 4:
            contents.append(path.read_bytes())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), caplog.at_level(logging.WARNING, "emdl"):
        em_fit(*data, **arguments, checkpoint=path, checkpoint_every=0, callback=callback)
    monkeypatch.undo()
    assert "the checkpoint was not written, the fit goes on without" in caplog.text
    assert os.strerror(number) in caplog.text
    assert contents[0] == contents[1] == path.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["c.h5"]
    assert_same(em_fit(*data, **arguments, checkpoint=path, resume=True), whole)


def test_a_disk_that_fills_up_keeps_the_old_file(simulated, tmp_path, monkeypatch):
    """A limit on the size of files stands in for the full disk: HDF5 gets EFBIG in the middle of its writing."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "m.h5"
    model = em_fit(simulated.y, 2, SHAPE, max_iter=1, rng=0).model
    model.save(path)
    old = path.read_bytes()
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for size in (0, 100, 1000, 3000, len(old) - 1):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
            with pytest.raises(FileFormatError, match=r"cannot write .*m\.h5"):
                model.save(path)
            assert path.read_bytes() == old
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [p.name for p in tmp_path.iterdir()] == ["m.h5"]


KILLED = """
import os, signal, sys
import numpy as np
from emdl import em_fit, storage
y = np.load(sys.argv[1])
at, number = sys.argv[3], int(sys.argv[4])
count = 0

def killing(function):
    def wrapped(*args, **kwargs):
        global count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapped

if at == "rename":
    os.replace = killing(os.replace)
elif at == "fsync":
    os.fsync = killing(os.fsync)
elif at == "data set":
    import h5py
    h5py.Group.create_dataset = killing(h5py.Group.create_dataset)
elif at == "unlink":
    os.unlink = killing(os.unlink)
print("ready", flush=True)
result = em_fit(y, 2, (9,), rng=5, max_iter=12, positive=True, tol=1e-9, checkpoint=sys.argv[2], checkpoint_every=0,
                resume=True)
np.savez(sys.argv[5], D=result.model.D, lmbd=result.model.lmbd, objective=result.history["objective"])
"""


def start(folder, at="nowhere", number=0):
    paths = [folder / "y.npy", folder / "c.h5", at, number, folder / "out.npz"]
    command = [sys.executable, "-c", KILLED, *map(str, paths)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_fit_killed_again_and_again_inside_its_writes_ends_with_the_same_bits(simulated, tmp_path):
    np.save(tmp_path / "y.npy", simulated.y)
    whole = em_fit(simulated.y, 2, SHAPE, rng=5, max_iter=12, positive=True, tol=1e-9)
    for at, number in (("data set", 40), ("fsync", 3), ("rename", 2), ("unlink", 2)):
        process = start(tmp_path, at, number)
        _, said = process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL, said
        if (tmp_path / "c.h5").exists():
            assert kept.read(tmp_path / "c.h5", "em_fit")["iteration"] >= 1
    process = start(tmp_path)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    with np.load(tmp_path / "out.npz") as found:
        np.testing.assert_array_equal(found["D"], whole.model.D)
        np.testing.assert_array_equal(found["lmbd"], whole.model.lmbd)
        np.testing.assert_array_equal(found["objective"], whole.history["objective"])
    assert {p.name for p in tmp_path.iterdir()} == {"y.npy", "c.h5", "out.npz"}, "a killed writer left a file for ever"


# Fits in children of one process that has the kernels loaded: each is killed after as many seconds as a line says.
SERVER = """
import os, signal, sys, time
import numpy as np
from emdl import em_fit
y = np.load(sys.argv[1])

def fit(**kept):
    return em_fit(y, 2, (9,), rng=5, max_iter=12, positive=True, tol=1e-9, **kept)

fit()
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        found = fit(checkpoint=sys.argv[2], checkpoint_every=0, resume=True)
        np.savez(sys.argv[3], D=found.model.D)
        os._exit(0)
    time.sleep(float(line))
    os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_a_fit_killed_at_fifty_random_moments_ends_with_the_same_bits(simulated, tmp_path, rng):
    np.save(tmp_path / "y.npy", simulated.y)
    checkpoint, out = tmp_path / "c.h5", tmp_path / "out.npz"
    whole = em_fit(simulated.y, 2, SHAPE, rng=5, max_iter=12, positive=True, tol=1e-9)
    command = [sys.executable, "-c", SERVER, *map(str, (tmp_path / "y.npy", checkpoint, out))]
    kills = ends = gone_on = 0
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout.readline() == "ready\n"
        seconds = 1.0  # until the first fit is whole; then what a fit takes
        while kills < 50 or ends < 3:
            assert kills < 500
            print(rng.uniform(0, seconds), file=server.stdin, flush=True)
            code = int(server.stdout.readline())
            assert code in (0, -signal.SIGKILL)
            kills += code != 0
            if checkpoint.exists():
                state = kept.read(checkpoint, "em_fit")  # whole, whenever it was killed
                gone_on += 0 < state["iteration"] < 12
                if code == 0 or state["ended"]:
                    checkpoint.unlink()
            if out.exists() and code == 0:
                with np.load(out) as found:
                    np.testing.assert_array_equal(found["D"], whole.model.D)
                ends += 1
                seconds = 0.3
            out.unlink(missing_ok=True)
        server.stdin.close()
    assert gone_on > 5, "hardly any was killed in the midst of its iterations"


# Two at once


def test_two_fits_cannot_have_one_checkpoint(simulated, tmp_path):
    def second(_):
        with pytest.raises(InputError, match=rf"another run \(process {os.getpid()}\) is writing"):
            em_fit(simulated.y, 2, SHAPE, max_iter=1, checkpoint=tmp_path / "c.h5", resume=True)
        return True

    em_fit(simulated.y, 2, SHAPE, max_iter=2, checkpoint=tmp_path / "c.h5", callback=second)


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_lock_ends_with_its_process(tmp_path):
    script = (
        "import sys, time\nfrom emdl import storage\n"
        "with storage.lock(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "m.h5")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"process {process.pid}\) is writing"), storage.lock(tmp_path / "m.h5"):
            pass
        process.kill()
        process.wait()
        with storage.lock(tmp_path / "m.h5"):
            pass
    assert not list(tmp_path.iterdir())


def test_a_folder_without_locks_is_said_to_be_one(tmp_path, monkeypatch, caplog):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(storage.fcntl, "flock", unsupported)
    with caplog.at_level(logging.WARNING, "emdl"), storage.lock(tmp_path / "m.h5"):
        pass
    assert "knows no locks" in caplog.text


# Damaged files


def states_of(path):
    with h5py.File(path) as file:
        return sorted(file["arrays"]), json.loads(file["values"][()].tobytes())


@pytest.fixture
def written(simulated, tmp_path):
    arguments = {"rng": 5, "max_iter": 3, "checkpoint": tmp_path / "c.h5", "validation": simulated.y[:1]}
    em_fit(simulated.y, 2, SHAPE, **arguments)
    return lambda: em_fit(simulated.y, 2, SHAPE, **arguments, resume=True)


def test_a_checkpoint_that_lacks_anything_is_refused(written, tmp_path):
    path = tmp_path / "c.h5"
    old = path.read_bytes()
    arrays, values = states_of(path)
    spare = {"optimizer_direction", "optimizer_square", "state_search", "best_search"}  # None in this fit
    needed = [name for name in (*arrays, *values) if name not in spare and not name.endswith("codes_start")]
    assert len(needed) > 30
    for name in needed:
        path.write_bytes(old)
        with h5py.File(path, "a") as file:
            if name in arrays:
                del file[f"arrays/{name}"]
            else:
                text = json.dumps({key: value for key, value in values.items() if key != name})
                del file["values"]
                file["values"] = np.frombuffer(text.encode(), np.uint8)
        with pytest.raises(FileFormatError, match="checkpoint is damaged"):
            written()


def test_codes_that_would_lead_a_kernel_astray_are_refused():
    """Kernels take indices without looking."""
    good = {"z_start": np.array([0, 1, 3]), "z_index": np.array([5, 0, 7]), "z_value": np.array([1.0, 2.0, 3.0])}
    like, shape = np.zeros(1), (2, 2, 4)
    assert isinstance(kept.codes_of(good, "z", shape, like), SparseCodes)
    for bad in (
        {"z_start": np.array([0, 1, 4])},
        {"z_start": np.array([0, 3, 2])},
        {"z_start": np.array([1, 1, 3])},
        {"z_start": np.array([0, 2**62, 3])},
        {"z_start": np.array([0, -5, 3])},
        {"z_index": np.array([5, 0, 8])},
        {"z_index": np.array([5, -1, 7])},
        {"z_index": np.array([5, 7, 0])},
        {"z_value": np.array([1.0, np.nan, 3.0])},
        {"z_value": np.array([1.0, 2.0])},
        {"z_value": np.array([1, 2, 3])},
    ):
        with pytest.raises(FileFormatError, match="damaged"):
            kept.codes_of({**good, **bad}, "z", shape, like)


def test_large_arrays_are_told_apart_by_pieces(monkeypatch):
    monkeypatch.setattr(kept, "_WHOLE", 1000)
    monkeypatch.setattr(kept, "_BLOCKS", 10)
    x = np.arange(6000.0).reshape(2, 3000)
    other = x.copy()
    other[1, 300] = -1
    assert kept.fingerprint(x) == kept.fingerprint(x.copy()) != kept.fingerprint(other)
    assert kept.fingerprint(x) != kept.fingerprint(x.reshape(3, 2000)) != kept.fingerprint(x.astype(np.float32))


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path):
    names = [".c.part-abc.h5", ".c.part-abc.png", ".cc.part-abc.h5", "c.h5", ".c.h5.lock2"]
    for name in names:
        (tmp_path / name).touch()
    storage.remove_parts(tmp_path / "c.h5")
    assert {p.name for p in tmp_path.iterdir()} == {*names[1:]}


def test_errors_of_one_kind_come_out_of_a_folder_that_cannot_be_written():
    if not pathlib.Path("/proc/self").exists():
        pytest.skip("needs a folder that not even root can write to")
    with pytest.raises(EmdlError, match="cannot write"):
        em_fit(np.arange(60.0) % 7, 1, 5, max_iter=1, sigma=1.0, checkpoint="/proc/c.h5")


def test_time_is_counted_from_the_first_start(simulated, tmp_path):
    arguments = {"rng": 5, "max_iter": 4, "checkpoint": tmp_path / "c.h5"}
    with pytest.raises(KeyboardInterrupt):
        em_fit(simulated.y, 2, SHAPE, **arguments, callback=stop_after(2))
    time.sleep(0.05)
    seconds = em_fit(simulated.y, 2, SHAPE, **arguments, resume=True).history["seconds"]
    assert (np.diff(seconds) >= 0).all()
