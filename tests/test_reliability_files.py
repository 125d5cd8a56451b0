"""Files are data: old formats stay readable, hostile ones lead nowhere, damaged ones give one kind of error."""

import pathlib
import subprocess
import sys

import h5py
import numpy as np
import pytest

import emdl
from emdl import checkpoint, spikes, storage
from emdl.errors import FileFormatError, InputTypeError
from emdl.spikes import recordings

FUZZ = pathlib.Path(__file__).with_name("fuzz")
CORPUS = FUZZ / "corpus"


def test_files_of_format_version_1_are_read():
    model = emdl.load(CORPUS / "model-1.h5")
    assert (model.D.shape, model.sigma, model.positive, model.stride) == ((2, 2, 5), 0.5, True, (2,))
    assert model.attributes["name"] == "café"
    assert spikes.load(CORPUS / "spikes-1.h5").fs == 10_000.0
    assert checkpoint.read(CORPUS / "checkpoint-1.h5", "em_fit")["iteration"] == 2


def test_what_a_later_minor_version_adds_is_no_trouble(tmp_path):
    """The number of the format rises when old readers would go wrong; what they need not know does not raise it."""
    for name, load in (("model-1.h5", emdl.load), ("spikes-1.h5", spikes.load)):
        path = tmp_path / name
        path.write_bytes((CORPUS / name).read_bytes())
        wanted = load(path)
        with h5py.File(path, "r+") as file:
            file["added later"] = np.arange(3.0)
            file.attrs["added later"] = "text"
        found = load(path)
        for one, other in ((found, wanted),) if name == "model-1.h5" else ((found.model, wanted.model),):
            np.testing.assert_array_equal(one.D, other.D)


@pytest.mark.parametrize("kind", ["external link", "soft link", "external storage", "virtual", "80 TB"])
def test_a_recording_that_leads_out_of_its_file_is_refused(kind, tmp_path):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["data"] = np.arange(2000.0).reshape(2, 1000)
    path = tmp_path / "rec.h5"
    with h5py.File(path, "w") as file:
        file.attrs["fs"] = 20_000.0
        if kind == "external link":
            file["data"] = h5py.ExternalLink("secret.h5", "/data")
        elif kind == "soft link":
            file["data"] = h5py.SoftLink("/elsewhere")
        elif kind == "external storage":
            file.create_dataset("data", (2, 1000), "f8", external=[(str(secret), 0, 16_000)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((2, 1000), "f8")
            layout[:] = h5py.VirtualSource(str(secret), "data", (2, 1000))
            file.create_virtual_dataset("data", layout)
        else:
            file.create_dataset("data", (2, 5 * 10**12), "f8", chunks=(2, 1000))
    with pytest.raises(FileFormatError, match=r"data|no arrays"):
        recordings.read(path, fs=20_000.0)


def test_a_recording_that_is_being_written_is_said_to_be(tmp_path, monkeypatch):
    monkeypatch.delenv("HDF5_USE_FILE_LOCKING", raising=False)
    path = tmp_path / "rec.h5"
    with h5py.File(path, "w", locking=True) as file:
        file["data"] = np.arange(2000.0).reshape(2, 1000)
        file.flush()
        read = f"from emdl.spikes import recordings; recordings.read({str(path)!r}, fs=1000.0)"
        done = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, timeout=100)
    assert "FileFormatError: rec.h5 is open in a program that writes to it; close it there" in done.stderr
    assert recordings.read(path, fs=1000.0).n_samples == 1000


def test_an_npz_that_declares_more_than_it_holds_is_refused(tmp_path):
    np.savez(tmp_path / "rec.npz", data=np.zeros((2, 1000)), fs=1.0)
    raw = (tmp_path / "rec.npz").read_bytes()
    assert raw.count(b"(2, 1000)") == 1
    (tmp_path / "bad.npz").write_bytes(raw.replace(b"(2, 1000)", b"(2, 9000)"))
    with pytest.raises(FileFormatError):
        storage.read_npz(tmp_path / "bad.npz")
    np.savez(tmp_path / "objects.npz", data=np.array([{}], object))
    with pytest.raises(InputTypeError, match="Python objects"):
        storage.read_npz(tmp_path / "objects.npz")


@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="needs fork and /proc")
def test_damaged_files_give_errors_of_emdl():
    """A few hundred of the inputs of fuzz/run.py, the same every time."""
    only = [name.name for name in CORPUS.iterdir() if name.suffix in (".npz", ".npy", ".dat", ".csv", ".toml")]
    command = [sys.executable, str(FUZZ / "run.py"), "--inputs", "400", "--seed", "7", "--only", *sorted(only)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    assert "400 inputs" in done.stdout
