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
