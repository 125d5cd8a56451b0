"""Recordings that are read slice by slice: the same numbers as the whole, gaps bridged, foreign formats."""

import json
import logging

import h5py
import numpy as np
import pytest

from emdl.errors import EmdlError, InputError
from emdl.spikes import lazy, recordings

C, N, FS = 3, 2011, 12_500.0


@pytest.fixture
def data(rng):
    return rng.integers(-2000, 2000, (C, N)).astype(np.int16)


KEYS = [
    np.s_[:], np.s_[1], np.s_[:, 5:9], np.s_[:, -7:], np.s_[:, 3], np.s_[:, -1], np.s_[1, 4:8], np.s_[:, ::7],
    np.s_[[2, 0], 3:5], np.s_[:, [9, 2, 2]], np.s_[:, 7:3], np.s_[:, 100:99999], np.s_[2, 10],
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_a_slice_is_that_of_the_array(data, key):
    made = lazy.Lazy(lambda a, b: data[:, a:b], data.shape, data.dtype)
    np.testing.assert_array_equal(made[key], data[key])


def test_only_what_is_asked_for_is_read(data):
    asked = []
    made = lazy.Lazy(lambda a, b: asked.append((a, b)) or data[:, a:b], data.shape, data.dtype)
    made[:, 10:20], made[1, 30], made[:, 5:5]
    assert asked == [(10, 20), (30, 31)]


def test_stretches_and_segments_follow_each_other(data):
    pieces = np.array([[5, 40], [40, 41], [900, 1500]])
    whole = np.concatenate([data[:, a:b] for a, b in pieces], axis=1)
    made = lazy.joined(data, pieces)
    segments = lazy.chained([data[:, a:b] for a, b in pieces])
    for a, b in [(0, 636), (0, 35), (34, 37), (35, 36), (36, 636), (10, 10)]:
        np.testing.assert_array_equal(made[:, a:b], whole[:, a:b])
        np.testing.assert_array_equal(segments[:, a:b], whole[:, a:b])


@pytest.mark.parametrize("layout", ["channels-first", "samples-first"])
def test_hdf5_is_read_when_it_is_sliced(tmp_path, data, layout):
    with h5py.File(tmp_path / "rec.h5", "w") as file:
        file.create_dataset("data", data=data if layout == "channels-first" else data.T).attrs["fs"] = FS
    got = recordings.read(tmp_path / "rec.h5", layout=layout).data
    assert isinstance(got, lazy.Lazy)
    np.testing.assert_array_equal(got[:, 100:200], data[:, 100:200])


def test_skipping_a_channel_of_a_mapped_file_loads_nothing(tmp_path, data):
    data.T.tofile(tmp_path / "rec.dat")
    got = recordings.read(tmp_path / "rec.dat", fs=FS, dtype="int16", n_channels=C, skip_channels=[1]).data
    assert isinstance(got, lazy.Lazy)
    np.testing.assert_array_equal(got, data[[0, 2]])


# Gaps


@pytest.mark.parametrize("block", [1 << 20, 97 * C])
def test_gaps_are_found_told_and_bridged(data, caplog, monkeypatch, block):
    monkeypatch.setattr(recordings, "_BLOCK", block)
    holed = data.astype(np.float32)
    holed[:, 300:420] = np.nan
    holed[:, 700:1000] = 0
    holed[:, 1990:] = np.nan
    holed[0, 1500:1800] = 5  # one channel alone makes no gap
    with caplog.at_level(logging.WARNING):
        got = recordings.from_array(holed, FS)
    np.testing.assert_array_equal(got.gaps, [[300, 420], [700, 1000], [1990, N]])
    assert "3 gaps, 0.04 s in all" in caplog.text
    assert "0.024 to 0.034 s" in caplog.text
    expected = np.linspace(holed[:, 299], holed[:, 420], 122, axis=1)
    np.testing.assert_allclose(got.data[:, 299:421], expected, rtol=1e-5)
    np.testing.assert_array_equal(got.data[:, 1990:], np.repeat(holed[:, 1989:1990], 21, axis=1))
    np.testing.assert_array_equal(got.data[:, 420:700], holed[:, 420:700])
    assert got.without_gaps().shape == (C, 300 + 280 + 990)
    assert got.covered_s == pytest.approx(1570 / FS)
    near = np.array([280, 300, 419, 440, 699, 1020, 1989])
    np.testing.assert_array_equal(got.outside_gaps(near), [True, False, False, True, False, True, False])


def test_a_recording_that_is_mostly_gap_is_refused(data):
    holed = data.astype(np.float32)
    holed[:, 800:] = np.nan
    with pytest.raises(InputError, match=r"no signal for 0\.1 of its 0\.2 s"):
        recordings.from_array(holed, FS)


def test_a_transposed_array_is_refused(data):
    with pytest.raises(InputError, match=r"\(2011, 3\).*transpose"):
        recordings.from_array(data.T, FS)


# A file that grows


def test_a_file_that_grows_is_read_up_to_the_last_whole_sample(tmp_path, data, monkeypatch):
    path = tmp_path / "rec.dat"
    path.write_bytes(data.T.tobytes() + b"\1")

    def writer(_):
        with path.open("ab") as file:
            file.write(b"\2\3\4")

    monkeypatch.setattr(recordings.formats.time, "sleep", writer)
    got = recordings.read(path, fs=FS, dtype="int16", n_channels=C)
    np.testing.assert_array_equal(got.data, data)
    assert got.growth() == 3


# NWB, written by hand as the format lays it down


def save_nwb(path, data, *, names=("ElectricalSeries",), stamps=False, places=True):
    with h5py.File(path, "w") as file:
        table = file.create_group("general/extracellular_ephys/electrodes")
        if places:
            table["rel_x"], table["rel_y"] = np.arange(5) * 10.0, np.arange(5) * 20.0
        for name in names:
            series = file.create_group(f"acquisition/{name}")
            series.attrs["neurodata_type"] = "ElectricalSeries"
            series.create_dataset("data", data=data.T).attrs.update(conversion=2e-7, unit="volts")
            series["electrodes"] = np.array([1, 2, 4])
            if stamps:
                series["timestamps"] = 7.5 + np.arange(data.shape[1]) / FS
            else:
                series["starting_time"] = 7.5
                series["starting_time"].attrs["rate"] = FS


@pytest.mark.parametrize("stamps", [False, True])
def test_nwb_is_read_in_microvolt_with_rate_start_and_places(tmp_path, data, stamps):
    save_nwb(tmp_path / "rec.nwb", data, stamps=stamps)
    got = recordings.read(tmp_path / "rec.nwb", skip_channels=[1])
    np.testing.assert_allclose(got.data, 0.2 * data[[0, 2]], rtol=1e-6)
    assert (got.fs, got.start_s, got.unit) == (FS, 7.5, "uV")
    np.testing.assert_array_equal(got.positions, [[10, 20], [40, 80]])


def test_several_series_are_listed_and_one_is_chosen(tmp_path, data):
    save_nwb(tmp_path / "rec.nwb", data, names=("Left", "Right"), places=False)
    with pytest.raises(InputError, match=r"2 recordings: acquisition/Left, acquisition/Right.*--series Left"):
        recordings.read(tmp_path / "rec.nwb")
    with pytest.raises(InputError, match=r"no series named 'Top'"):
        recordings.read(tmp_path / "rec.nwb", series="Top")
    got = recordings.read(tmp_path / "rec.nwb", series="Right")
    assert (got.n_channels, got.positions) == (C, None)


def test_a_series_of_a_format_that_has_none_is_refused(tmp_path, data):
    np.save(tmp_path / "rec.npy", data)
    with pytest.raises(InputError, match="--series"):
        recordings.read(tmp_path / "rec.npy", fs=FS, series="a")


# What Neo and SpikeInterface read


def save_open_ephys(folder, data, fs):
    """Write a recording in the binary format of Open Ephys, as its documentation lays it down."""
    place = folder / "Record Node 101" / "experiment1" / "recording1"
    stream = place / "continuous" / "Rhythm_FPGA-100.0"
    stream.mkdir(parents=True)
    data.T.tofile(stream / "continuous.dat")
    np.save(stream / "sample_numbers.npy", np.arange(data.shape[1]))
    np.save(stream / "timestamps.npy", np.arange(data.shape[1]) / fs)
    channels = [{"channel_name": f"CH{c + 1}", "bit_volts": 0.195, "units": "uV"} for c in range(len(data))]
    facts = {
        "folder_name": "Rhythm_FPGA-100.0/", "sample_rate": fs, "source_processor_name": "Rhythm FPGA",
        "stream_name": "Rhythm_FPGA-100.0", "num_channels": len(data), "channels": channels,
    }  # fmt: skip
    (place / "structure.oebin").write_text(
        json.dumps({"GUI version": "0.6.0", "continuous": [facts], "events": [], "spikes": []})
    )


def test_a_folder_of_open_ephys_is_read_through_neo(tmp_path, data):
    pytest.importorskip("neo", reason="Neo is not installed (pip install 'emdl[neo]')")
    save_open_ephys(tmp_path / "session", data, FS)
    got = recordings.read(tmp_path / "session")
    np.testing.assert_allclose(got.data, np.float32(0.195) * data, rtol=1e-6)
    np.testing.assert_allclose(got.data[:, 100:110], np.float32(0.195) * data[:, 100:110], rtol=1e-6)
    assert (got.fs, got.unit) == (FS, "uV")


def test_what_nobody_knows_is_refused_with_what_would_be_known(tmp_path):
    (tmp_path / "rec.wav").write_bytes(b"RIFF")
    with pytest.raises(EmdlError, match=r"rec\.wav is not one of \.npy.*Neo"):
        recordings.read(tmp_path / "rec.wav")


@pytest.mark.filterwarnings("ignore::UserWarning:spikeinterface", "ignore::ResourceWarning")
def test_a_folder_of_spikeinterface_is_read_with_its_segments_and_places(tmp_path, data, caplog):
    si = pytest.importorskip("spikeinterface", reason="SpikeInterface is not installed")
    probeinterface = pytest.importorskip("probeinterface")
    made = si.NumpyRecording([data.T[:1200], data.T[1200:]], FS)
    probe = probeinterface.generate_linear_probe(C, ypitch=25)
    probe.set_device_channel_indices(np.arange(C))
    made.set_probe(probe)
    made.set_channel_gains(0.5)
    made.set_channel_offsets(3.0)
    made.save(folder=tmp_path / "saved", verbose=False)
    with caplog.at_level(logging.WARNING):
        got = recordings.read(tmp_path / "saved")
    np.testing.assert_allclose(got.data, 0.5 * data + 3.0, rtol=1e-6)
    np.testing.assert_array_equal(got.positions[:, 1], [0, 25, 50])
    assert "2 segments" in caplog.text
    np.testing.assert_array_equal(got.outside_gaps(np.array([1100, 1195, 1205, 1300])), [True, False, False, True])
