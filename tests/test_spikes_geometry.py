"""Files that say where channels are."""

import json

import numpy as np
import pytest

from emdl.errors import EmdlError, FileFormatError, InputError
from emdl.spikes import geometry, recordings

PLACES = np.array([[0.0, 0.0], [0.0, 20.0], [16.0, 10.0]])
PRB = "import os\nchannel_groups = {0: {'channels': [0, 1, 2], 'geometry': {0: (0, 0), 1: (0, 20), 2: [16, 10]}}}\n"
PROBE = {"specification": "probeinterface", "probes": [
    {"contact_positions": PLACES[[2, 0, 1]].tolist(), "device_channel_indices": [2, 0, 1]}]}  # fmt: skip


@pytest.mark.parametrize(("name", "text"), [
    ("a.csv", "x,y\n0,0\n0,20\n16,10\n"), ("a.txt", "0\t0\n0\t20\n16\t10\n"),
    ("a.prb", PRB), ("a.json", json.dumps(PROBE)),
])  # fmt: skip
def test_places_are_read_from_what_labs_have(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert np.array_equal(geometry.read(tmp_path / name, 3), PLACES)


@pytest.mark.parametrize(("name", "text", "error"), [
    ("a.csv", "0,0\n0,20\n", InputError), ("a.csv", "0,0\n0,20\n16,nan\n", InputError),
    ("a.csv", "0,0\n1\n2\n", EmdlError),
    ("a.csv", "x,y\na,b\n", FileFormatError), ("a.json", "{}", FileFormatError), ("a.json", "[", FileFormatError),
    ("a.prb", "channel_groups = open('/etc/passwd')", FileFormatError), ("a.prb", "x = 1", FileFormatError),
    ("a.mat", "", FileFormatError), ("a.csv", "0,0\n0,20\n16,10\n1,1\n", InputError),
])  # fmt: skip
def test_what_holds_no_place_for_each_channel_is_refused(tmp_path, name, text, error):
    (tmp_path / name).write_text(text)
    with pytest.raises(error, match=r"a\."):
        geometry.read(tmp_path / name, 3)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileFormatError, match="nowhere"):
        geometry.read(tmp_path / "nowhere.csv", 3)


def test_a_recording_takes_its_places_from_the_file_and_loses_those_of_channels_left_out(tmp_path, rng):
    np.savez(tmp_path / "x.npz", data=rng.standard_normal((3, 4000)), fs=20000.0)
    (tmp_path / "p.csv").write_text("0,0\n0,20\n16,10\n")
    read = recordings.read(tmp_path / "x.npz", probe=tmp_path / "p.csv", skip_channels=[1])
    assert np.array_equal(read.positions, PLACES[[0, 2]])
