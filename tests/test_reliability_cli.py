"""What the command line promises when things go wrong: interrupts, kills, two runs at once, odd paths, closed pipes."""

import contextlib
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest
from emdl.cli import signals
from PIL import Image
from test_cli import FS, assert_refused, run

from emdl import device, simulate, spikes

POSIX = pytest.mark.skipif(os.name == "nt", reason="needs the signals of POSIX")
TRAIN = ["train", "rec.npz", "-o", "model.h5", "--no-plot", "--checkpoint-every", "0", "--max-iter", "6"]


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A folder with a recording and the model of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    made = simulate.tetrode(6.0, 3, n_channels=2, fs=FS, rate_hz=(15.0, 25.0), peak_uv=(150.0, 300.0), rng=3)
    np.savez(folder / "rec.npz", data=made.data, fs=FS)
    done = run(*TRAIN, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in folder.iterdir()} == {"rec.npz", "model.h5", "model.csv"}
    return folder


@pytest.fixture
def folder(tmp_path, whole):
    os.link(whole / "rec.npz", tmp_path / "rec.npz")
    return tmp_path


def assert_same_model(found, wanted):
    one, other = spikes.load(found), spikes.load(wanted)
    np.testing.assert_array_equal(one.waveforms, other.waveforms)
    np.testing.assert_array_equal(one.model.D, other.model.D)
    np.testing.assert_array_equal(one.history["objective"], other.history["objective"])
    assert one.message == other.message


@contextlib.contextmanager
def started(*args, cwd):
    # a shell that runs tests in the background has them, and so their children, ignore SIGINT
    listening = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from emdl.cli import main"
    )
    command = [sys.executable, "-c", f"{listening}; sys.exit(main())", *map(str, args)]
    with subprocess.Popen(command, cwd=cwd, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process


def wait_for(process, text):
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"ended before it said {text!r}")


@POSIX
@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_a_signal_ends_after_the_iteration_and_what_it_says_goes_on(number, word, folder, whole):
    with started(*TRAIN, cwd=folder) as process:
        wait_for(process, "iteration 1 ")
        process.send_signal(number)
        out, said = process.communicate(timeout=100)
    assert process.returncode == 128 + number, said
    assert out == ""
    assert "Traceback" not in said
    lines = said.splitlines()
    assert lines[-1] == f"emdl: {word}; nothing more was written"
    assert "finishing this iteration, then saving" in lines[-3]
    assert {p.name for p in folder.iterdir()} == {"rec.npz", "model.checkpoint.h5"}
    advice = re.search(r"saved in model.checkpoint.h5; go on with: emdl (.*)", lines[-2]).group(1)
    assert_refused(run(*TRAIN, cwd=folder), "model.checkpoint.h5", "--resume", "--force")
    done = run(*shlex.split(advice), cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "iteration 1 " not in done.stderr
    assert_same_model(folder / "model.h5", whole / "model.h5")
    assert (folder / "model.csv").read_bytes() == (whole / "model.csv").read_bytes()
    assert {p.name for p in folder.iterdir()} == {"rec.npz", "model.h5", "model.csv"}


@POSIX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_training_of_a_denoiser_after_its_step_and_what_it_says_goes_on(number, tmp_path, rng):
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 256, (90, 100), np.uint8)).save(tmp_path / name)
    train = ["train", "--task", "denoise", ".", "-o", "net.h5", "--no-plot", "--checkpoint-every", "1"]
    train += ["--atoms", "32", "--layers", "1", "--minutes"]
    with started(*train, "60", cwd=tmp_path) as process:
        wait_for(process, ", step ")
        process.send_signal(number)
        out, said = process.communicate(timeout=100)
    assert process.returncode == 128 + number, said
    assert (out, "Traceback" in said) == ("", False)
    assert {p.name for p in tmp_path.iterdir()} == {"a.png", "b.png", "net.checkpoint.h5"}
    assert re.search(r"saved in net.checkpoint.h5; go on with: emdl (.*--resume)", said)
    done = run(*train, "0.001", "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"a.png", "b.png", "net.h5"}


@POSIX
def test_a_signal_before_the_first_iteration_stops_at_once_and_leaves_nothing(folder):
    with started(*TRAIN, cwd=folder) as process:
        wait_for(process, "taken as 2 channels")
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=100)[1]
    assert process.returncode == 143
    assert said.splitlines()[-1] == "emdl: terminated; nothing more was written"
    assert [p.name for p in folder.iterdir() if "checkpoint" not in p.name] == ["rec.npz"]


@POSIX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_in_a_destructor_is_not_forgotten(number, monkeypatch):
    lost = []
    monkeypatch.setattr(sys, "unraisablehook", lost.append)

    class Grave:
        def __del__(self):
            signal.raise_signal(number)
            "the handler runs here, and what it raises is lost".upper()

    def go(*, iterations):
        reached = []
        with signals.raising():
            Grave()
            reached.append("work")
            with signals.after_the_iteration(None) as callback:
                for _ in range(iterations):
                    callback(None)
                    reached.append("iteration")
        return reached

    before = signal.signal(number, signal.SIG_DFL)  # a shell that runs tests in the background has SIGINT ignored
    try:
        for iterations in (0, 3):
            with pytest.raises(signals.Stopped) as stopped:
                go(iterations=iterations)
            assert stopped.value.exit_code == 128 + number
        assert len(lost) == 2
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


@POSIX
def test_a_killed_run_goes_on_from_its_checkpoint(folder, whole):
    for iteration in (1, 3):
        with started(*TRAIN, "--resume", cwd=folder) as process:
            wait_for(process, f"iteration {iteration} ") if iteration == 1 else wait_for(process, "channels")
            if iteration == 3:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.7)
            process.kill()
    done = run(*TRAIN, "--resume", "--force", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert_same_model(folder / "model.h5", whole / "model.h5")
    assert {p.name for p in folder.iterdir()} == {"rec.npz", "model.h5", "model.csv"}


def test_resuming_what_was_not_begun_starts_at_the_beginning_and_says_so(folder):
    done = run(*TRAIN[:-1], 1, "--resume", cwd=folder)
    assert done.returncode == 0
    assert "there is no checkpoint model.checkpoint.h5 yet" in done.stderr


@POSIX
def test_a_second_run_on_the_same_output_says_so_and_stops(folder):
    with started(*TRAIN[:-1], "500", cwd=folder) as process:
        wait_for(process, "taken as")
        second = run(*TRAIN, "--force", cwd=folder)
        process.kill()
    assert_refused(second, f"another run (process {process.pid}) is writing model.h5")


@POSIX
def test_a_run_that_was_stopped_resumes_only_the_job_that_it_was(folder):
    with started(*TRAIN, cwd=folder) as process:
        wait_for(process, "iteration 1 ")
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert_refused(run(*TRAIN, "--resume", "--units", 2, cwd=folder), "n_units was None, now it is 2")
    (folder / "model.checkpoint.h5").write_bytes(b"not a checkpoint")
    assert_refused(run(*TRAIN, "--resume", cwd=folder), "model.checkpoint.h5: it does not begin as an HDF5 file does")


def test_odd_paths_work_and_write_no_markup_into_a_picture(tmp_path, whole):
    odd = tmp_path / "Ørsted's  ß 信号 [x] $(y)"
    name = "a <script> & b.npz"
    odd.mkdir()
    os.link(whole / "rec.npz", odd / name)
    done = run("train", name, "-o", "ü [b] ß.h5", "--max-iter", 1, cwd=odd)
    assert done.returncode == 0, done.stderr
    assert "ü [b] ß.h5" in done.stdout
    assert {p.name for p in odd.iterdir()} == {name, *(f"ü [b] ß.{end}" for end in ("h5", "csv", "png", "svg"))}
    assert "<script>" not in (odd / "ü [b] ß.svg").read_text()
    proposed = re.search(r"emdl (detect .*) -o spikes.csv", done.stdout).group(1)
    shown = run(*shlex.split(proposed), cwd=odd)
    assert shown.returncode == 0, shown.stderr
    assert run("info", odd / "ü [b] ß.h5", cwd=tmp_path).returncode == 0


def test_standard_output_carries_the_data_and_standard_error_the_rest(whole):
    done = run("detect", "rec.npz", "-m", "model.h5", cwd=whole)
    assert done.stdout == (whole / "model.csv").read_text()
    assert all(line.startswith("emdl: ") for line in done.stderr.splitlines())
    facts = json.loads(run("info", "model.h5", "--json", cwd=whole).stdout)
    assert facts["kind"] == "spikes"


@pytest.mark.skipif(not pathlib.Path("/proc/self").exists(), reason="needs a folder that not even root can write to")
@pytest.mark.slow
def test_it_runs_where_the_cache_of_kernels_cannot_be_written(whole):
    env = {"NUMBA_CACHE_DIR": "/proc/no"}
    done = run("detect", "rec.npz", "-m", "model.h5", cwd=whole, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (whole / "model.csv").read_text()


@pytest.mark.parametrize("command", ["train", "detect", "encode"])
def test_cuda_without_a_gpu_is_refused_with_the_reason(command, whole, tmp_path):
    with contextlib.suppress(device.DeviceError):
        device.find_cupy()
        pytest.skip("there is a GPU")
    args = {"train": [], "detect": ["-m", "model.h5"], "encode": ["-m", "model.h5"]}[command]
    done = run(command, "rec.npz", *args, "-o", tmp_path / ("m.h5" if command == "train" else "m.npz"),
               "--device", "cuda", cwd=whole)  # fmt: skip
    assert_refused(done)
    assert not list(tmp_path.iterdir())
