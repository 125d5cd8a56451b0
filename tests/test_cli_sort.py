"""``emdl sort``, ``detect`` and ``compare``: what they write and say, and what they say of odd recordings."""

import json
import os
import re
import subprocess
import sys
import threading

import h5py
import numpy as np
import pytest
from test_cli import FS, assert_refused
from test_cli import run as run_apart
from test_cli import run_here as run

from emdl import simulate
from emdl.spikes import tables

SORT = ("sort", "rec.npz", "--no-report", "--max-iter", "3")


@pytest.fixture(scope="session")
def simulated():
    """Six seconds of three neurons on two channels."""
    return simulate.tetrode(6.0, 3, n_channels=2, fs=FS, rate_hz=(15.0, 25.0), peak_uv=(150.0, 300.0), rng=3)


@pytest.fixture(scope="session")
def sorted_folder(tmp_path_factory, simulated):
    """A folder with a recording, its truth, and what ``emdl sort`` made of it."""
    folder = tmp_path_factory.mktemp("sorted")
    np.savez(folder / "rec.npz", data=np.round(10 * simulated.data).astype(np.int16), fs=FS)
    np.savez(folder / "truth.npz", spike_samples=simulated.spike_samples, spike_units=simulated.spike_units, fs=FS)
    done = run_apart("sort", "rec.npz", "-o", "out.csv", "-o", "out.npz", "-o", "phy", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


def recorded(folder, data, fs=FS, name="bad.npz"):
    np.savez(folder / name, data=data, fs=fs)
    return name


# What it writes and says


def test_one_line_gives_spikes_model_units_and_a_page(sorted_folder):
    names = {p.name for p in sorted_folder.iterdir() if not p.name.startswith(".")}
    assert names == {
        "rec.npz", "truth.npz", "stdout.txt", "out.csv", "out.npz", "phy", "out.h5", "out-units.csv", "out.html"
    }  # fmt: skip
    text = (sorted_folder / "stdout.txt").read_text()
    for word in ("3 units", "sorted in", "SNR", "missed", "How sure", "out.html", "params.py", "emdl detect"):
        assert word in text
    rows = (sorted_folder / "out-units.csv").read_text().splitlines()
    assert rows[0].startswith("unit,spikes,rate_hz")
    assert len(rows) == 4
    np.testing.assert_array_equal(
        tables.read(sorted_folder / "out.csv")["sample"], tables.read(sorted_folder / "out.npz")["sample"]
    )


def test_the_page_needs_nothing_from_outside_and_shows_every_unit(sorted_folder):
    page = (sorted_folder / "out.html").read_text()
    assert page.count("data:image/png;base64,") == 3 + 5  # a picture of each unit, and the others
    assert not re.search(r"(src|href)=.(?!data:|#)", page)
    assert "<script" not in page
    for word in ("unit 2", "expected misses", "emdl 0", "Settings", "converged"):
        assert word in page


def test_the_truth_is_found_and_compared(sorted_folder):
    done = run("compare", "out.csv", "truth.npz", "--json", cwd=sorted_folder)
    facts = json.loads(done.stdout)
    assert facts["mean"]["accuracy"] > 0.9
    assert facts["fs"] == FS
    assert facts["well_detected_units"] == [0, 1, 2]
    shown = run("compare", "out.csv", "truth.npz", cwd=sorted_folder).stdout
    assert f"mean accuracy {facts['mean']['accuracy']:.3f}" in shown
    itself = json.loads(run("compare", "phy", "out.npz", "--json", cwd=sorted_folder).stdout)
    assert itself["mean"] == {"accuracy": 1, "recall": 1, "precision": 1}


def test_detection_with_the_model_finds_the_same(sorted_folder, tmp_path):
    done = run("detect", "rec.npz", "-m", "out.h5", "-o", tmp_path / "again.csv", cwd=sorted_folder)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again.csv").read_text() == (sorted_folder / "out.csv").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["again.csv"]


def test_a_name_that_would_run_in_the_page_is_text(sorted_folder, tmp_path):
    name = "<script>alert(1)<script>&'.npz"
    os.link(sorted_folder / "rec.npz", tmp_path / name)
    done = run("sort", name, "-m", sorted_folder / "out.h5", "--report", "page.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_a_report_can_be_a_picture(sorted_folder, tmp_path):
    done = run(
        "sort", sorted_folder / "rec.npz", "-m", sorted_folder / "out.h5", "--report", "p.png", "-q", cwd=tmp_path
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for a single process")
def test_an_interrupted_search_leaves_what_it_found_and_goes_on(sorted_folder, tmp_path, simulated):
    long = np.tile(np.round(10 * simulated.data).astype(np.int16), (1, 30))  # three minutes
    np.save(tmp_path / "long.npy", long)
    command = ["detect", "long.npy", "--fs", FS, "-m", str(sorted_folder / "out.h5"), "-o", "found.csv"]
    whole = run(*command[:-1], "whole.csv", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    script = (
        "import os, signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from emdl.cli import screen, main\nbefore = screen._SearchLines.__call__\n"
        "def call(self, state):\n    os.kill(os.getpid(), signal.SIGINT)\n    before(self, state)\n"
        f"screen._SearchLines.__call__ = call\nsys.argv = ['emdl', *{list(map(str, command))!r}]\nsys.exit(main())"
    )
    stopped = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert stopped.returncode == 130, stopped.stderr
    assert re.search(r"[\d,]+ spikes of the first \d+\.\d s of 180\.0 s are in found\.csv", stopped.stderr)
    assert "--resume" in stopped.stderr
    part, full = (tables.read(tmp_path / name) for name in ("found.csv", "whole.csv"))
    assert 0 < len(part["sample"]) < len(full["sample"])
    np.testing.assert_array_equal(part["sample"], full["sample"][: len(part["sample"])])
    resumed = run(*command, "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert (tmp_path / "found.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not list(tmp_path.glob("*.search.h5"))


# What it refuses


def test_what_cannot_be_written_or_read_is_refused_at_once(sorted_folder, tmp_path):
    rec, model = sorted_folder / "rec.npz", sorted_folder / "out.h5"
    refuse = lambda *args: run(*args, cwd=tmp_path)  # noqa: E731
    assert_refused(refuse("sort", rec, "-o", "a.xlsx"), ".csv, .npz, .nwb", "phy")
    assert_refused(refuse("sort", rec, "--report", "a.pdf"), ".html or .png")
    assert_refused(refuse("sort", rec, "--report", "a.html", "--no-report"), "--no-report")
    assert_refused(refuse("sort", rec, "-m", model, "--units", 2), "--model")
    assert_refused(refuse("sort", rec, "-o", "a.csv", "-o", "a.csv"), "twice")
    assert_refused(refuse("sort", "none.npz"), "does not exist")
    assert_refused(refuse("compare", "none.csv", model), "none.csv")
    assert_refused(refuse("compare", sorted_folder / "out.npz", rec), "rec.npz holds no spikes")
    assert not list(tmp_path.iterdir())


def test_a_model_of_other_channels_is_refused_with_both_numbers(sorted_folder, tmp_path, simulated):
    name = recorded(tmp_path, np.vstack([simulated.data, simulated.data[:1]]))
    assert_refused(run("sort", name, "-m", sorted_folder / "out.h5", cwd=tmp_path), "3 channels", "learned on 2")


def test_sorting_goes_not_over_what_exists(sorted_folder):
    assert_refused(run("sort", "rec.npz", "-o", "out.csv", cwd=sorted_folder), "out.csv", "--force")


def test_tables_of_different_recordings_are_refused(sorted_folder, tmp_path):
    np.savez(tmp_path / "other.npz", sample=[100, 900], unit=[0, 0], fs=30_000.0)
    done = run("compare", sorted_folder / "out.npz", "other.npz", cwd=tmp_path)
    assert_refused(done, "20000 Hz", "30000 Hz", "--fs")


# Recordings that are not right


def warning(done, *words):
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("emdl: ") and words[0] in line]
    assert lines, done.stderr
    for word in words:
        assert word in lines[0]


def test_a_recording_of_noise_has_no_units_and_that_is_said_plainly(tmp_path, rng):
    name = recorded(tmp_path, rng.standard_normal((2, 60_000)))
    done = run("sort", name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("No units: nothing stands out of the noise")
    assert len((tmp_path / "emdl-sorted.csv").read_text().splitlines()) == 1
    assert "No units." in (tmp_path / "emdl-sorted.html").read_text()


def test_a_wrong_sampling_rate_shows_in_the_width_of_the_spikes(tmp_path, simulated):
    name = recorded(tmp_path, simulated.data, fs=10 * FS)
    warning(run("sort", name, "--no-report", cwd=tmp_path), "shorter than spikes are", "200000 Hz", "--fs")


@pytest.mark.parametrize("fs", [0, -20_000, float("nan")])
def test_a_sampling_rate_that_is_none_is_refused(sorted_folder, tmp_path, fs):
    assert_refused(run("sort", sorted_folder / "rec.npz", f"--fs={fs}", cwd=tmp_path), "sampling rate must be positive")


def test_saturation_is_told(tmp_path, simulated):
    clipped = np.clip(simulated.data, -70, 1000)
    warning(run("sort", recorded(tmp_path, clipped), *SORT[2:], cwd=tmp_path), "saturated", "-70", "channels 0, 1")


def test_a_channel_that_carries_hardly_anything_is_told(tmp_path, simulated, rng):
    three = np.vstack([simulated.data, simulated.data[:1] + rng.standard_normal(simulated.data.shape[1])])
    three[1] = 0.01 * rng.standard_normal(three.shape[1])
    done = run("sort", recorded(tmp_path, three), *SORT[2:], cwd=tmp_path)
    warning(done, "hardly anything", "channel 1", "--skip-channel 1")


@pytest.mark.parametrize("command", ["detect", "sort"])
def test_a_recording_in_another_unit_than_the_model_is_told(sorted_folder, tmp_path, simulated, command):
    model = ["-m", sorted_folder / "out.h5", "-o", "out.npz"] + ["--no-report"] * (command == "sort")
    in_volts = run(command, recorded(tmp_path, 1e-6 * simulated.data), *model, cwd=tmp_path)
    warning(in_volts, "in another unit", "bad.npz", "times that of the recording")
    done = run(command, sorted_folder / "rec.npz", *model, "-f", cwd=tmp_path)
    assert "another unit" not in done.stderr


@pytest.mark.parametrize(("hz", "harmonics", "fate"), [(50, 1, "takes it out"), (60, 40, "stay in the pass band")])
def test_hum_is_told_and_does_not_become_a_unit(tmp_path, simulated, hz, harmonics, fate):
    t = np.arange(simulated.data.shape[1]) / FS
    hum = sum(300 / k * np.sin(2 * np.pi * k * hz * t) for k in range(1, harmonics + 1))
    done = run("sort", recorded(tmp_path, simulated.data + hum), "--no-report", cwd=tmp_path)
    warning(done, f"{hz} Hz hum", fate)
    if harmonics == 1:
        assert done.stdout.startswith("3 units")


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_gaps_are_told_and_hold_no_spikes(tmp_path, simulated, value):
    holed = simulated.data.copy()
    holed[:, 50_000:60_000] = value
    done = run("sort", recorded(tmp_path, holed), "--no-report", cwd=tmp_path)
    warning(done, "a gap", "0.50 s", "2.500 to 3.000 s")
    samples = tables.read(tmp_path / "emdl-sorted.csv")["sample"]
    assert not ((samples >= 50_000) & (samples < 60_000)).any()
    assert done.stdout.startswith("3 units")


def test_a_transposed_recording_is_read_and_told(tmp_path, simulated):
    np.save(tmp_path / "rec.npy", simulated.data.T)
    done = run("sort", "rec.npy", "--fs", FS, *SORT[2:], cwd=tmp_path)
    warning(done, "taken as 2 channels x 120000 samples", "samples-first")


def test_a_file_that_grows_is_read_as_it_was_and_that_is_told(tmp_path, simulated):
    path = tmp_path / "rec.dat"
    data = np.round(10 * simulated.data).astype(np.int16).T
    data.tofile(path)
    stop = threading.Event()

    def write():
        with path.open("ab") as file:
            while not stop.wait(0.02):
                file.write(data[:100].tobytes())
                file.flush()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        done = run(
            "sort",
            "rec.dat",
            "--dtype",
            "int16",
            "--channels",
            2,
            "--fs",
            FS,
            "--no-report",
            "--max-iter",
            2,
            cwd=tmp_path,
        )
    finally:
        stop.set()
        writer.join()
    warning(done, "has grown by", "was not looked at")
    assert tables.read(tmp_path / "emdl-sorted.csv")["sample"].max() < path.stat().st_size / 4


def test_nwb_is_sorted_by_the_name_of_its_series(tmp_path, simulated):
    with h5py.File(tmp_path / "rec.nwb", "w") as file:
        for name in ("Left", "Right"):
            series = file.create_group(f"acquisition/{name}")
            series.attrs["neurodata_type"] = "ElectricalSeries"
            series.create_dataset("data", data=simulated.data.T).attrs.update(conversion=1e-6, unit="volts")
            series["starting_time"] = 0.0
            series["starting_time"].attrs["rate"] = FS
    assert_refused(run("sort", "rec.nwb", cwd=tmp_path), "acquisition/Left", "--series Left")
    done = run("sort", "rec.nwb", "--series", "Right", *SORT[2:], "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["unit"] == "uV"
    proposed = run("sort", "rec.nwb", "--series", "Right", *SORT[2:], "-f", cwd=tmp_path).stdout
    assert "emdl-sorted.h5" in proposed
