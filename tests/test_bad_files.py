"""Every command, given every kind of file that is not what it should be: one line, code 2, nothing written."""

import os
import pathlib
import shutil
import struct
import subprocess
import sys
import zlib

import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image
from test_cli import assert_refused
from test_cli_sort import run

from emdl import simulate, spikes

FS = 20e3
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with a recording, its truth, a model of it and a picture."""
    folder = tmp_path_factory.mktemp("good")
    made = simulate.tetrode(2.0, 2, n_channels=2, fs=FS, rate_hz=(20.0, 30.0), peak_uv=(150.0, 300.0), rng=3)
    data = np.round(10 * made.data).astype(np.int16)
    np.savez(folder / "rec.npz", data=data, fs=FS)
    np.savez(folder / "truth.npz", spike_samples=made.spike_samples, spike_units=made.spike_units, fs=FS)
    spikes.fit(data, FS, max_iter=1, rng=0).save(folder / "model.h5")
    Image.fromarray(np.clip(128 + 20 * RNG.standard_normal((40, 50)), 0, 255).astype(np.uint8)).save(folder / "a.png")
    return folder


def data_of(folder):
    return np.load(folder / "rec.npz")["data"].astype(float)


@pytest.fixture
def folder(tmp_path, good):
    for path in good.iterdir():
        os.link(path, tmp_path / path.name)
    return tmp_path


def holed(data, value):
    data[1, 777] = value
    return data


def npz(**arrays):
    """Return a function that writes arrays, or what functions of the good recording make, to an .npz file."""

    def write(path):
        made = {k: v(data_of(path.parent)) if callable(v) else v for k, v in arrays.items()}
        with open(path, "wb") as file:
            np.savez(file, **{"fs": FS, **made})

    return write


def cut(name, count):
    return lambda path: path.write_bytes((path.parent / name).read_bytes()[:count])


def some_bytes(path):
    path.write_bytes(np.random.default_rng(1).bytes(999))


def hdf5(fill):
    def write(path):
        with h5py.File(path, "w") as file:
            fill(file)

    return write


def two_series(file):
    for name in ("Left", "Right"):
        series = file.create_group(f"acquisition/{name}")
        series.attrs["neurodata_type"] = "ElectricalSeries"
        series.create_dataset("data", data=np.ones((9, 2)))


def odd_attributes(file):
    file["data"] = RNG.standard_normal((2, 9000))
    file["data"].attrs["fs"] = np.array([b"x", b"y"])


def out_of(kind):
    def fill(file):
        file.attrs["fs"] = FS
        if kind == "link":
            file["data"] = h5py.ExternalLink("rec.h5", "/data")
        elif kind == "storage":
            file.create_dataset("data", (2, 100), "f8", external=[("/etc/passwd", 0, 1600)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((2, 100), "f8")
            layout[:] = h5py.VirtualSource("rec.h5", "data", (2, 100))
            file.create_virtual_dataset("data", layout)
        elif kind == "80 TB":
            file.create_dataset("data", (2, 5 * 10**12), "f8", chunks=(2, 1000))
        else:
            file.create_dataset("data", (3,), h5py.string_dtype())

    return hdf5(fill)


RAW = ("--dtype", "int16", "--channels", 2, "--fs", FS)
# file, how it is made, what is said, more arguments
RECORDINGS = {
    "missing": ("x.npz", None, "x.npz does not exist"),
    "a folder": ("x.npz", pathlib.Path.mkdir, "x.npz is a folder"),
    "zero bytes": ("x.npy", pathlib.Path.touch, "x.npy is empty"),
    "zero bytes, HDF5": ("x.h5", pathlib.Path.touch, "x.h5 is empty"),
    "zero bytes, raw": ("x.dat", pathlib.Path.touch, "x.dat is empty", *RAW),
    "random bytes, .npy": ("x.npy", some_bytes, "x.npy is not a .npy file"),
    "random bytes, .npz": ("x.npz", some_bytes, "x.npz is not a .npz file"),
    "random bytes, HDF5": ("x.h5", some_bytes, "x.h5 is damaged or no HDF5 file"),
    "random bytes, NWB": ("x.nwb", some_bytes, "x.nwb is damaged or no HDF5 file"),
    "cut, .npz": ("x.npz", cut("rec.npz", 3000), "x.npz is damaged"),
    "cut, raw": ("x.dat", cut("rec.npz", 1001), "1 bytes remain", *RAW),
    "another format": ("x.csv", pathlib.Path.touch, "x.csv is"),
    "NaN": ("x.npz", npz(data=lambda x: holed(x, np.nan)), "x.npz holds nan at channel 1, sample 777"),
    "Inf": ("x.npz", npz(data=lambda x: holed(x, np.inf)), "x.npz holds inf at channel 1, sample 777"),
    "constant": ("x.npz", npz(data=np.full((2, 9000), 3)), "every channel is constant"),
    "all zero": ("x.npz", npz(data=np.zeros((2, 9000))), "every channel is constant"),
    "a dead channel": ("x.npz", npz(data=lambda x: x * [[1], [0]]), "--skip-channel 1"),
    "no samples": ("x.npz", npz(data=np.zeros((2, 0))), "it holds no samples"),
    "one sample": ("x.npz", npz(data=np.ones((2, 1))), "--layout"),
    "shorter than a filter": ("x.npz", npz(data=lambda x: x[:, :100]), "100 samples long"),
    "bool": ("x.npz", npz(data=lambda x: x > 0), "x.npz holds bool"),
    "objects": ("x.npz", npz(data=np.array([{}], object)), "data holds Python objects"),
    "text": ("x.npz", npz(data=lambda x: x[:, :99].astype(str)), "x.npz holds str"),
    "complex": ("x.npz", npz(data=lambda x: x * 1j), "x.npz holds complex128"),
    "three axes": ("x.npz", npz(data=lambda x: x[None]), "(1, 2, 40000)"),
    "beyond single precision": ("x.npz", npz(data=lambda x: 1e30 * x), "x.npz spans"),
    "drowned in rounding": ("x.npz", npz(data=lambda x: (x + 1e9).astype(np.float32)), "subtract the mean"),
    "a rate in words": ("x.npz", npz(data=lambda x: x, fs="fast"), "sampling rate must be one number"),
    "a rate below zero": ("x.npz", npz(data=lambda x: x, fs=-3.0), "sampling rate must be positive, got -3"),
    "a rate beyond": ("x.npz", npz(data=lambda x: x, fs=1e300), "sampling rate must be at most"),
    "no data set": ("x.h5", hdf5(lambda file: file.create_dataset("other", data=[1.0])), "--key /other"),
    "odd attributes": ("x.h5", hdf5(odd_attributes), "sampling rate must be one number"),
    "text in HDF5": ("x.h5", out_of("text"), "x.h5 holds text"),
    "an external link": ("x.h5", out_of("link"), "x.h5"),
    "external storage": ("x.h5", out_of("storage"), "x.h5"),
    "a virtual data set": ("x.h5", out_of("virtual"), "x.h5"),
    "80 TB": ("x.h5", out_of("80 TB"), "x.h5"),
    "several series": ("x.nwb", hdf5(two_series), "acquisition/Left, acquisition/Right; choose one"),
}
COMMANDS = {
    "train": ["train", "--no-plot", "-o", "m.h5"],
    "sort": ["sort", "--no-report", "-o", "s.csv"],
    "detect": ["detect", "-m", "model.h5"],
    "encode": ["encode", "-m", "model.h5", "-o", "c.npz"],
}


def assert_refused_and_nothing_written(folder, args, words):
    before = {path.name for path in folder.iterdir()}
    assert_refused(run(*args, cwd=folder), words)
    assert {path.name for path in folder.iterdir()} == before


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", RECORDINGS)
def test_a_recording_that_is_none_is_refused(case, command, folder):
    name, make, words, *more = RECORDINGS[case]
    if make is not None:
        make(folder / name)
    assert_refused_and_nothing_written(folder, [*COMMANDS[command], name, *more], words)


def changed(path):
    raw = bytearray((path.parent / "model.h5").read_bytes())
    raw[2500] ^= 1
    path.write_bytes(raw)


MODELS = {
    "missing": (None, "there is no file m.h5"),
    "a folder": (pathlib.Path.mkdir, "m.h5 is a folder"),
    "zero bytes": (pathlib.Path.touch, "m.h5: it does not begin as an HDF5 file does"),
    "random bytes": (some_bytes, "m.h5: it does not begin as an HDF5 file does"),
    "cut": (cut("model.h5", 3000), "m.h5: the file has 3000 bytes, but was written with"),
    "another HDF5": (hdf5(lambda file: file.create_dataset("x", data=[1.0])), "this HDF5 file holds no"),
    "a recording": (lambda path: shutil.copy(path.parent / "rec.npz", path), "m.h5: it does not begin as"),
    "a changed byte": (changed, "some bytes have changed"),
}
USERS = {
    "info": ["info", "m.h5"],
    "detect": ["detect", "rec.npz", "-m", "m.h5"],
    "encode": ["encode", "rec.npz", "-m", "m.h5", "-o", "c.npz"],
    "sort": ["sort", "rec.npz", "-m", "m.h5", "-o", "s.csv", "--no-report"],
    "denoise": ["denoise", "a.png", "--model", "m.h5"],
}


@pytest.mark.parametrize("command", USERS)
@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_is_none_is_refused(case, command, folder):
    make, words = MODELS[case]
    if make is not None:
        make(folder / "m.h5")
    assert_refused_and_nothing_written(folder, USERS[command], words)


def png_bomb(path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def tiff(make):
    return lambda path: tifffile.imwrite(path, make(RNG.random((30, 30))))


def animation(path):
    frames = [Image.new("RGB", (20, 20), (80 * i, 0, 0)) for i in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:], format="WEBP")


PICTURES = {
    "missing": ("x.png", None, "x.png does not exist"),
    "an empty folder": ("x.png", pathlib.Path.mkdir, "there is no picture in x.png"),
    "zero bytes": ("x.png", pathlib.Path.touch, "x.png is empty"),
    "random bytes": ("x.png", some_bytes, "x.png is no picture"),
    "random bytes, TIFF": ("x.tif", lambda path: path.write_bytes(b"II*\0" + RNG.bytes(999)), "x.tif"),
    "cut": ("x.png", cut("a.png", 700), "x.png, it is damaged or cut short"),
    "a bomb": ("x.png", png_bomb, "decompression bomb"),
    "an animation": ("x.webp", animation, "x.webp is an animation of 3"),
    "another format": ("x.npz", npz(data=np.ones((2, 9))), "cannot tell the format"),
    "NaN": ("x.tif", tiff(lambda x: np.where(x < 0.5, np.nan, x)), "values that are not finite"),
    "complex": ("x.tif", tiff(lambda x: x * 1j), "complex128"),
    "beyond the range": ("x.tif", tiff(lambda x: 1e200 * x), "wanted at most 1e+140"),
    "drowned in rounding": ("x.tif", tiff(lambda x: (1e9 + 500 * x).astype(np.float32)), "subtract the mean"),
    "no pages": ("x.tif", lambda path: path.write_bytes(b"II*\0\x08\0\0\0" + bytes(6)), "x.tif"),
}


@pytest.mark.parametrize("learn", [[], ["--learn"]])
@pytest.mark.parametrize("case", PICTURES)
def test_a_picture_that_is_none_is_refused(case, learn, folder):
    name, make, words = PICTURES[case]
    if make is not None:
        make(folder / name)
    assert_refused_and_nothing_written(folder, ["denoise", name, *learn], words)


@pytest.mark.parametrize("noisy", [[], ["--noisy"]])
@pytest.mark.parametrize("case", PICTURES)
def test_photographs_of_which_none_can_be_read_are_refused(case, noisy, folder):
    name, make, _ = PICTURES[case]
    (folder / "photos").mkdir()
    (folder / "photos" / "rec.npz").hardlink_to(folder / "rec.npz")
    (folder / "photos" / "a.png").hardlink_to(folder / "a.png") if case == "cut" else None
    if make is not None:
        make(folder / "photos" / name)
    (folder / "photos" / "a.png").unlink(missing_ok=True)
    assert_refused_and_nothing_written(folder, ["train", "--task", "denoise", "photos", *noisy, "-o", "m.h5"], "photos")


OPTIONS = {
    "--fs nan": "sampling rate must be positive",
    "--fs inf": "sampling rate must be positive",
    "--fs 1e300": "sampling rate must be at most",
    "--fs x": "'--fs'",
    "--band nan nan": "band is (nan, nan)",
    "--band 300 inf": "band is (300.0, inf)",
    "--window-ms nan": "window_ms is nan",
    "--window-ms 1e9": "wanted at least",
    "--units 0": "'--units'",
    "--units 100000": "n_units is 100000",
    "--max-iter 0": "'--max-iter'",
    "--seed x": "'--seed'",
    "--checkpoint-every nan": "'--checkpoint-every'",
    "--checkpoint-every -1": "'--checkpoint-every'",
    "--skip-channel 9": "no channel 9",
    "--skip-channel -1": "no channel -1",
    "--channels 0": "(--channels) is 0",
    "--channels 5": "(--channels) is 5",
    "--layout x": "'--layout'",
    "--dtype int16": "dtype (--dtype) describes raw binary",
    "--key zz": "--key data",
    "--series x": "series (--series)",
    "--probe none.prb": "none.prb cannot be read",
    "--probe a.png": "a.png is no file of channel places",
    "--device gpu": "'--device'",
    "-o d/x.h5": "cannot write to d",
    "--config none.toml": "none.toml",
    "--config a.png": "a.png is no TOML",
}
OTHERS = {
    "sort rec.npz -m model.h5 -o d/x.csv": "cannot write to d",
    "sort rec.npz -m model.h5 -o model.h5 -f": "model.h5",
    "sort rec.npz -m model.h5 -o rec.npz -f": "both read and written",
    "detect rec.npz -m model.h5 -o rec.npz -f": "both read and written",
    "detect rec.npz -m model.h5 --resume": "--resume",
    "encode rec.npz -m model.h5 -o d/c.npz": "cannot write to d",
    "denoise a.png --sigma 1e400": "--sigma is 1e400",
    "denoise a.png -o d/b.png": "cannot write to d",
    "denoise a.png --dask local:x": "--dask is local:x",
    "denoise a.png --dask local:0": "--dask is local:0",
    "compare none.csv truth.npz": "none.csv",
    "compare truth.npz none": "none",
    "compare rec.npz truth.npz": "rec.npz holds no spikes",
    "compare model.h5 truth.npz": "model.h5",
    "compare truth.npz truth.npz --fs nan": "fs is nan",
    "compare truth.npz truth.npz --fs -1": "fs is -1",
    "compare truth.npz truth.npz --delta-ms nan": "'--delta-ms'",
    "compare truth.npz truth.npz --delta-ms inf": "delta_ms is inf",
    "compare truth.npz": "'TRUTH'",
    "bench --samples 5": "'--samples'",
    "bench --samples x": "'--samples'",
    "bench --seed -1": "'--seed'",
    "bench x": "x",
    "doctor x": "x",
    "info": "'file'",
    "detect": "'RECORDING'",
    "denoise": "'IMAGE'",
    "nope": "'nope'",
}
LINES = {f"train rec.npz --no-plot {options}": words for options, words in OPTIONS.items()} | OTHERS


@pytest.mark.parametrize("line", LINES)
def test_an_option_that_makes_no_sense_is_refused_by_name(line, folder):
    assert_refused_and_nothing_written(folder, line.split(), LINES[line])


# A disk that is full, and outputs that exist

WRITERS = {
    "train": ["train", "rec.npz", "-o", "out.h5", "--max-iter", "1"],
    "sort": ["sort", "rec.npz", "-m", "model.h5", "-o", "out.csv"],
    "detect": ["detect", "rec.npz", "-m", "model.h5", "-o", "out.csv"],
    "encode": ["encode", "rec.npz", "-m", "model.h5", "-o", "out.npz"],
    "denoise": ["denoise", "a.png", "-o", "out.png", "--report", "page.svg"],
}


@pytest.mark.parametrize("command", WRITERS)
def test_a_full_disk_and_outputs_that_exist_leave_the_old_files(command, folder):
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    args = WRITERS[command]
    done = run(*args, cwd=folder)
    assert done.returncode == 0, done.stderr
    old = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(old) > 4
    assert_refused(run(*args, cwd=folder), "out.", "--force")
    limits, before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        full = run(*args, "--force", cwd=folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert full.returncode == 2, full.stderr
    last = full.stderr.splitlines()[-1]
    assert last.startswith("emdl: error: cannot write ")
    assert "File too large; what stood there is as it was" in last
    assert "part-" not in last
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == old


def test_standard_output_that_is_full_or_closed_is_no_traceback(folder):
    if not pathlib.Path("/dev/full").exists():
        pytest.skip("there is no device that is always full")
    emdl = f'"{sys.executable}" -m emdl.cli'
    for line, code, said in (
        (f"{emdl} info model.h5 >/dev/full", 2, "emdl: error: No space left on device\n"),
        (f"{emdl} info model.h5 >&-", 0, ""),
        (f"{emdl} info none.h5 >&-", 2, "emdl: error: there is no file none.h5\n"),
    ):
        done = subprocess.run(line, shell=True, cwd=folder, stderr=subprocess.PIPE, text=True)
        assert (done.returncode, done.stderr) == (code, said)
    quiet = subprocess.run(f"{emdl} info none.h5 2>&-", shell=True, cwd=folder, stdout=subprocess.PIPE, text=True)
    assert (quiet.returncode, quiet.stdout) == (2, "")
