"""The command line, through its real entry point: what it writes, what it says, and how it refuses."""

import contextlib
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

import numpy as np
import pytest
from emdl.cli import files, main

import emdl
from emdl import simulate
from emdl.spikes import tables

SCRIPT = pathlib.Path(sys.executable).with_name("emdl")
ESCAPE = "\x1b["
FS = 20_000.0


def run(*args, cwd, env=None, stdin=subprocess.DEVNULL):
    """Run ``emdl`` in `cwd` and return the finished process, with text output."""
    command = [sys.executable, "-m", "emdl.cli", *map(str, args)]
    environment = {**os.environ, **(env or {})}
    return subprocess.run(command, cwd=cwd, env=environment, stdin=stdin, capture_output=True, text=True, timeout=300)


@dataclass
class Done:
    """What a command said."""

    returncode: int
    stdout: str
    stderr: str


def run_here(*args, cwd):
    """Run the command line in this process, which costs no new interpreter, and return what it said."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(map(str, args)))
    return Done(code, out.getvalue(), err.getvalue())


def assert_refused(done, *words):
    """Hold that a command ended as bad input does: code 2, one line on standard error, nothing on standard output."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("emdl: error: ")]
    assert len(errors) == 1, done.stderr
    assert done.stderr.splitlines()[-1] == errors[0]
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in errors[0]


@pytest.fixture(scope="session")
def recorded():
    """Six seconds of three neurons on two channels, int16 in units of 0.1 uV as an amplifier stores them."""
    made = simulate.tetrode(6.0, 3, n_channels=2, fs=FS, rate_hz=(15.0, 25.0), peak_uv=(150.0, 300.0), rng=3)
    return np.round(10 * made.data).astype(np.int16)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, recorded):
    """A folder with a recording and what ``emdl train`` made of it."""
    folder = tmp_path_factory.mktemp("trained")
    np.savez(folder / "rec.npz", data=recorded, fs=FS)
    done = run("train", "--task", "spikes", "rec.npz", "-o", "model.h5", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    (folder / "stderr.txt").write_text(done.stderr)
    return folder


@pytest.fixture
def folder(tmp_path, recorded):
    """A folder with a good recording, rec.npz, of two seconds."""
    np.savez(tmp_path / "rec.npz", data=recorded[:, : int(2 * FS)], fs=FS)
    return tmp_path


# What it writes and says


def test_training_writes_model_spikes_and_pictures(trained):
    assert {p.name for p in trained.iterdir()} >= {"model.h5", "model.csv", "model.png", "model.svg"}
    assert not [p.name for p in trained.iterdir() if p.name.startswith(".")]
    assert (trained / "model.png").read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(trained / "model.svg").getroot().tag.endswith("svg")
    table = tables.read(trained / "model.csv")
    assert len(table["sample"]) > 100  # 3 neurons, 6 s, 15 to 25 Hz
    np.testing.assert_allclose(table["time_s"], table["sample"] / FS, atol=1e-6)  # CSV keeps microseconds


def test_the_report_says_what_was_learned_how_sure_where_and_what_next(trained):
    report, notes = (trained / "stdout.txt").read_text(), (trained / "stderr.txt").read_text()
    assert re.search(r"\d units?, [\d,]+ spikes in 6.0 s of rec.npz", report)
    for heading in ("SNR", "rate, Hz", "How sure", "Written", "Next"):
        assert heading in report
    for name in ("model.h5", "model.csv", "model.png", "model.svg"):
        assert name in report
    assert "taken as 2 channels x 120000 samples" in notes
    assert "iteration 1 of at most" in notes
    assert ESCAPE not in report + notes


def test_the_command_that_the_report_proposes_runs(trained, tmp_path):
    proposed = re.search(r"emdl detect (.*)-o spikes.csv", (trained / "stdout.txt").read_text()).group(1).split()
    done = run("detect", *proposed, "-o", tmp_path / "spikes.csv", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "spikes.csv").read_text() == (trained / "model.csv").read_text()


def test_detection_writes_the_same_to_standard_output_csv_and_npz(trained, tmp_path):
    shown = run("detect", "rec.npz", "--model", "model.h5", cwd=trained)
    assert shown.returncode == 0, shown.stderr
    done = run("detect", "rec.npz", "-m", "model.h5", "-o", tmp_path / "spikes.npz", "--json", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert shown.stdout == (trained / "model.csv").read_text()
    with np.load(tmp_path / "spikes.npz") as archive:
        assert shown.stdout.splitlines()[0] == "sample,time_s,unit,amplitude"
        np.testing.assert_array_equal(archive["sample"], tables.read(trained / "model.csv")["sample"])
        assert archive["fs"] == FS
    assert json.loads(done.stdout)["n_spikes"] == len(shown.stdout.splitlines()) - 1


def test_raw_binary_takes_channels_and_rate_from_the_model(trained, tmp_path, recorded):
    recorded.T.tofile(tmp_path / "rec.dat")
    done = run("detect", tmp_path / "rec.dat", "--dtype", "int16", "-m", "model.h5", cwd=trained)
    assert done.stdout == (trained / "model.csv").read_text()
    assert "does not say its sampling rate" in done.stderr


def test_codes_are_written_with_their_places(trained, tmp_path, recorded):
    done = run("encode", "rec.npz", "-m", "model.h5", "-o", tmp_path / "codes.npz", cwd=trained)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "codes.npz") as codes:
        n_units, n_positions = codes["shape"]
        assert len(codes["unit"]) == len(codes["sample"]) == len(codes["value"]) > 100
        assert 0 < recorded.shape[1] - n_positions < 200  # an atom less one sample
        assert codes["unit"].max() < n_units
        assert codes["sample"].max() < n_positions
        assert (codes["value"] > 0).all()


def test_info_tells_people_and_machines_the_same(trained):
    shown, parsed = run("info", "model.h5", cwd=trained), run("info", "model.h5", "--json", cwd=trained)
    assert shown.returncode == parsed.returncode == 0, shown.stderr + parsed.stderr
    facts = json.loads(parsed.stdout)
    assert facts["fs"] == FS
    assert facts["n_channels"] == 2
    for word in ("units", "20000 Hz", "lambda", "sigma", "objective", f"{facts['n_units']}"):
        assert word in shown.stdout


def test_json_is_one_object_and_the_seed_decides_the_model(folder):
    done = [
        run(
            "train",
            "rec.npz",
            "-o",
            f"{name}.h5",
            "--seed",
            "7",
            "--json",
            "--no-plot",
            "--units",
            "2",
            "--max-iter",
            "6",
            cwd=folder,
        )
        for name in ("a", "b")
    ]
    facts = [json.loads(one.stdout) for one in done]
    assert facts[0]["units"] == facts[1]["units"]
    assert sum(unit["spikes"] for unit in facts[0]["units"]) == facts[0]["n_spikes"]
    assert facts[0]["outputs"] == {"model": "a.h5", "spikes": "a.csv"}
    assert facts[0]["history"]["objective"] == facts[1]["history"]["objective"]
    assert (folder / "a.csv").read_bytes() == (folder / "b.csv").read_bytes()
    assert facts[0]["seed"] == 7
    assert not list(folder.glob("*.png"))


def test_quiet_says_nothing(folder):
    done = run("train", "rec.npz", "-q", "--no-plot", "--units", "1", "--max-iter", "2", cwd=folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (folder / "emdl-spikes.h5").exists()


def test_a_config_file_sets_options_and_flags_go_on_top(folder):
    (folder / "emdl.toml").write_text(
        "seed = 5\nplot = false\n[train]\nmax-iter = 1\nband = [400, 5000]\n[detect]\nfs = 1\n"
    )
    done = run("train", "rec.npz", "--config", "emdl.toml", "--seed", "6", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["seed"] == 6
    assert len(facts["history"]["objective"]) == 1
    assert set(facts["outputs"]) == {"model", "spikes"}
    assert "400 to 5000 Hz" in facts["message"]


@pytest.mark.slow
def test_training_needs_no_recording(tmp_path):
    done = run("train", "--task", "spikes", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {f"emdl-spikes.{end}" for end in ("h5", "csv", "png", "svg")}
    assert "simulated tetrode" in done.stderr
    assert "simulated tetrode" in done.stdout


@pytest.mark.slow
def test_the_first_run_says_once_that_it_compiles(trained, tmp_path):
    env = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    first, second = (run("detect", "rec.npz", "-m", "model.h5", cwd=trained, env=env) for _ in range(2))
    assert first.stderr.count("compiling kernels, which happens once") == 1
    assert "compiling" not in second.stderr


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
def test_a_terminal_gets_a_live_bar(folder):
    ours, theirs = os.openpty()
    args = ["train", "rec.npz", "--no-plot", "--units", "1", "--max-iter", "3"]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen(
        [sys.executable, "-m", "emdl.cli", *args], cwd=folder, env=env, stderr=theirs, stdout=subprocess.PIPE
    ) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # how Linux reports that the other end was closed
                break
            if not piece:
                break
            seen += piece
        process.communicate()
    os.close(ours)
    assert process.returncode == 0
    assert ESCAPE.encode() in seen
    assert b"non-zeros, lambda" in seen
    assert re.search(rb"[123]/3", seen)


# How it behaves as a program


@pytest.mark.parametrize("args", [["--help"], ["train", "--help"]])
def test_help_costs_less_than_half_a_second_of_processor(tmp_path, args):
    """Processor time, as others may use the machine; it bounds the wall time on an idle one from below."""

    def seconds():
        before = os.times()
        subprocess.run([SCRIPT, *args], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds() for _ in range(3)) < 0.5


def test_every_help_has_an_example_and_the_exit_codes(tmp_path):
    for command in ((), ("train",), ("detect",), ("encode",), ("info",)):
        done = run(*command, "--help", cwd=tmp_path, env={"COLUMNS": "100"})
        assert done.returncode == 0
        assert f"emdl {' '.join(command)}" in done.stdout.split("Usage", 1)[1].split("\n", 1)[1]
        assert "Exit codes: 0 done, 2 bad input" in done.stdout


def test_without_a_command_it_shows_the_help(tmp_path):
    assert "Usage: emdl" in run(cwd=tmp_path).stdout


def test_the_script_tells_its_version():
    done = subprocess.run([SCRIPT, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"emdl {emdl.__version__}\n"


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize("command", ["--help", "train --help", "detect rec.npz --model model.h5"])
def test_a_closed_pipe_ends_quietly(trained, command):
    line = f'"{sys.executable}" -m emdl.cli {command} | head -c 1'
    done = subprocess.run(line, shell=True, cwd=trained, capture_output=True, text=True, timeout=100)
    assert "Error" not in done.stderr
    assert "Traceback" not in done.stderr


# What it refuses


def save(folder, array, **more):
    np.savez(folder / "bad.npz", data=array, fs=FS, **more)
    return "bad.npz"


def with_values(recorded, channel, sample, value):
    data = recorded.astype(np.float32)
    data[channel, sample:] = value
    return data


BAD_DATA = {
    "NaN": (lambda x: with_values(x, 1, 777, np.nan), [], ["nan at channel 1, sample 777"]),
    "Inf": (lambda x: with_values(x, 0, 5, np.inf), [], ["inf at channel 0, sample 5"]),
    "a dead channel": (lambda x: with_values(x, 1, 0, 3), [], ["channel 1 is constant", "--skip-channel 1"]),
    "silence": (lambda x: 0 * x, [], ["every channel is constant"]),
    "complex": (lambda x: x * 1j, [], ["complex128", "real numbers"]),
    "text": (lambda x: x[:, :99].astype(str), [], ["str"]),
    "objects": (lambda x: x[:, :99].astype(object), [], ["Python objects"]),
    "three axes": (lambda x: x[None], [], ["(1, 2, 120000)"]),
    "ambiguous axes": (lambda x: x[:, :4000].reshape(80, 100), [], ["--layout"]),
    "a recording shorter than an atom": (lambda x: x[:1, :25], ["--layout", "channels-first"], ["25 samples"]),
    "more atoms than the data can hold": (lambda x: x[:, :2000], ["--units", 5000], ["5000"]),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_are_refused(folder, recorded, case):
    make, args, words = BAD_DATA[case]
    assert_refused(run_here("train", save(folder, make(recorded)), *args, cwd=folder), *words)
    assert {p.name for p in folder.iterdir()} == {"rec.npz", "bad.npz"}


BAD_USE = {
    "a missing file": (["none.npy"], ["none.npy does not exist"]),
    "a folder": (["."], ["is a folder"]),
    "an unknown ending": (["notes.txt"], ["notes.txt", ".npy"]),
    "zero bytes": (["empty.npy", "--fs", 1], ["empty.npy is empty (0 bytes)"]),
    "a wrong key": (["rec.npz", "--key", "trace"], ["'trace'", "data, fs", "--key data"]),
    "no sampling rate": (["bare.npy"], ["--fs 30000"]),
    "raw binary that says nothing": (["rec.dat"], ["--dtype int16", "--channels 4", "--fs 30000"]),
    "raw binary with a remainder": (
        ["rec.dat", "--dtype", "int16", "--channels", 3, "--fs", 1],
        ["1001 bytes", "5 bytes remain"],
    ),
    "raw binary of no known type": (["rec.dat", "--dtype", "int17", "--channels", 1, "--fs", 1], ["int17"]),
    "no HDF5 model": (["rec.npz", "-o", "model.npz"], [".h5"]),
    "a missing output folder": (["rec.npz", "-o", "nowhere/model.h5"], ["nowhere", "does not exist"]),
    "an output that is read": (["rec.npz", "-o", "rec.h5", "--force"], ["both read and written"]),
    "an unknown option": (["--unit"], ["--unit"]),
    "an unknown task": (["--task", "faces"], ["faces"]),
    "half a band": (["--band", 300], ["--band"]),
    "a band upside down": (["rec.npz", "--band", 5000, 300], ["300"]),
    "a band beyond Nyquist": (["rec.npz", "--band", 300, 90000], ["90000"]),
    "no units": (["rec.npz", "--units", 0], ["--units"]),
    "no window": (["rec.npz", "--window-ms", -1], ["-1"]),
    "a negative seed": (["rec.npz", "--seed", -1], ["--seed"]),
    "a missing config": (["--config", "none.toml"], ["none.toml"]),
    "a config that is no TOML": (["--config", "notes.txt"], ["notes.txt is no TOML"]),
    "an unknown key": (["--config", "typo.toml"], ["'unit'", "units"]),
    "an unknown section": (["--config", "section.toml"], ["[learn]"]),
}


@pytest.mark.parametrize("case", BAD_USE)
def test_bad_use_is_refused(folder, recorded, case):
    args, words = BAD_USE[case]
    (folder / "notes.txt").write_text("no TOML, no recording")
    (folder / "empty.npy").touch()
    (folder / "rec.dat").write_bytes(b"\1\2" * 500 + b"\3")
    np.save(folder / "bare.npy", recorded)
    (folder / "typo.toml").write_text("unit = 3\n")
    (folder / "section.toml").write_text("[learn]\nunits = 3\n")
    if case == "an output that is read":
        (folder / "rec.npz").rename(folder / "rec.csv")
        (folder / "rec.npz").symlink_to("rec.csv")
    assert_refused(run_here("train", *args, cwd=folder), *words)
    assert not list(folder.glob("*.h5"))


def test_an_output_that_exists_is_kept_unless_forced(folder):
    kept = folder / "model.svg"
    kept.write_text("precious")
    refused = run_here("train", "rec.npz", "-o", "model.h5", cwd=folder)
    assert_refused(refused, "model.svg exists", "--force")
    assert "taken as" not in refused.stderr  # it was seen before the recording was read
    assert kept.read_text() == "precious"
    forced = run_here("train", "rec.npz", "-o", "model.h5", "--force", "--units", "1", "--max-iter", "1", cwd=folder)
    assert forced.returncode == 0, forced.stderr
    assert "precious" not in kept.read_text()


@pytest.mark.skipif(not pathlib.Path("/proc/self").exists(), reason="needs a folder that not even root can write to")
def test_a_folder_that_cannot_be_written_is_refused(folder):
    assert_refused(run_here("train", "rec.npz", "-o", "/proc/model.h5", cwd=folder), "cannot write to /proc")


def test_a_model_and_a_recording_that_do_not_fit_are_refused(trained, tmp_path, recorded):
    def detect(recording, model="model.h5", output="out.npz", more=()):
        return run_here("detect", recording, "-m", model, "-o", tmp_path / output, *more, cwd=trained)

    np.savez(tmp_path / "fast.npz", data=recorded, fs=2 * FS)
    np.savez(tmp_path / "one.npz", data=recorded[0], fs=FS)
    np.savez(tmp_path / "short.npz", data=recorded[:, :20], fs=FS)
    assert_refused(detect(tmp_path / "fast.npz"), "40000 Hz", "20000 Hz")
    assert_refused(detect(tmp_path / "one.npz"), "1 channels", "2")
    assert_refused(detect(tmp_path / "short.npz", more=["--channels", 2]), "20 samples")
    assert_refused(detect("rec.npz", model="none.h5"), "none.h5")
    assert_refused(detect("rec.npz", model="rec.npz"), "rec.npz")
    assert_refused(detect("model.h5"), "model.h5 has no array 'data'")
    assert_refused(detect("rec.npz", output="out.txt"), "out.txt", ".npz")
    assert_refused(run_here("detect", "rec.npz", cwd=trained), "--model")


def test_encode_refuses_what_detect_refuses(trained, tmp_path, recorded):
    np.savez(tmp_path / "fast.npz", data=recorded, fs=2 * FS)
    fast = run_here("encode", tmp_path / "fast.npz", "-m", "model.h5", "-o", tmp_path / "out.npz", cwd=trained)
    assert_refused(fast, "40000 Hz", "20000 Hz")
    assert_refused(run_here("encode", "rec.npz", "-m", "model.h5", "-o", "codes.csv", cwd=trained), "codes.csv", ".npz")
    assert_refused(run_here("encode", "rec.npz", "-m", "model.h5", cwd=trained), "--output")


def test_detection_refuses_to_mix_table_and_json(trained):
    assert_refused(run_here("detect", "rec.npz", "-m", "model.h5", "--json", cwd=trained), "-o")


@pytest.mark.parametrize("name", ["none.h5", "rec.npz", "stdout.txt", "."])
def test_info_refuses_what_is_no_model(trained, name):
    assert_refused(run_here("info", name, cwd=trained), name)


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "kept.csv"
    path.write_text("old")

    def write_half():
        with files.replacing(path) as part:
            part.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk"):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
