"""Recordings are read as they are stored, the choice of axes is told, and what cannot be used is refused by name."""

import logging

import h5py
import numpy as np
import pytest

from emdl.errors import EmdlError, FileFormatError, InputError, InputTypeError
from emdl.spikes import recordings

C, N, FS = 3, 211, 12_500.0


@pytest.fixture
def data(rng):
    return rng.integers(-2000, 2000, (C, N)).astype(np.int16)


def save_hdf5(path, data, **attributes):
    with h5py.File(path, "w") as file:
        stored = file.create_dataset("probe/raw", data=data)
        stored.attrs.update(attributes)


def save_as(kind, folder, data):
    """Write `data` (C, N) in one format and return the path and what `read` must be told about it."""
    path = folder / f"rec.{kind}"
    if kind == "npy":
        np.save(path, data)
        return path, {"fs": FS}
    if kind == "npz":
        np.savez(path, data=data, fs=FS)
        return path, {}
    if kind == "h5":
        save_hdf5(path, data, fs=FS)
        return path, {"key": "/probe/raw"}
    np.ascontiguousarray(data.T).tofile(path)
    return path, {"fs": FS, "dtype": "int16", "n_channels": C}


@pytest.mark.parametrize("kind", ["npy", "npz", "h5", "dat", "bin", "raw"])
def test_every_format_gives_back_what_was_stored(tmp_path, data, kind):
    path, told = save_as(kind, tmp_path, data)
    got = recordings.read(path, **told)
    np.testing.assert_array_equal(got.data, data)
    assert (got.fs, got.name, got.data.dtype) == (FS, path.name, data.dtype)
    assert (got.n_channels, got.n_samples, got.seconds) == (C, N, N / FS)


@pytest.mark.parametrize("kind", ["npy", "dat"])
def test_a_file_that_can_be_mapped_is_not_loaded(tmp_path, data, kind):
    path, told = save_as(kind, tmp_path, data)
    got = recordings.read(path, **told).data
    assert isinstance(got, np.memmap)
    assert not got.flags.writeable


@pytest.mark.parametrize(("transposed", "chosen"), [(False, "channels-first"), (True, "samples-first")])
def test_the_axis_of_channels_is_inferred_and_told(tmp_path, data, caplog, transposed, chosen):
    np.save(tmp_path / "rec.npy", data.T if transposed else data)
    with caplog.at_level(logging.WARNING):
        got = recordings.read(tmp_path / "rec.npy", fs=FS)
    np.testing.assert_array_equal(got.data, data)
    assert f"{C} channels x {N} samples" in caplog.text
    assert chosen in caplog.text


@pytest.mark.parametrize("shape", [(30, 40), (64, 64), (65, 100), (300, 200)])
def test_ambiguous_axes_ask_for_the_layout(tmp_path, rng, shape):
    data = rng.standard_normal(shape)
    np.save(tmp_path / "rec.npy", data)
    with pytest.raises(InputError, match="--layout"):
        recordings.read(tmp_path / "rec.npy", fs=FS)
    got = recordings.read(tmp_path / "rec.npy", fs=FS, layout="samples-first")
    np.testing.assert_array_equal(got.data, data.T)


def test_the_number_of_channels_settles_ambiguous_axes(tmp_path, rng, caplog):
    data = rng.standard_normal((30, 40))
    np.save(tmp_path / "rec.npy", data)
    with caplog.at_level(logging.WARNING):
        got = recordings.read(tmp_path / "rec.npy", fs=FS, n_channels=40)
    np.testing.assert_array_equal(got.data, data.T)
    assert caplog.text == ""


def test_raw_binary_can_be_channels_first(tmp_path, data):
    data.tofile(tmp_path / "rec.dat")
    got = recordings.read(tmp_path / "rec.dat", fs=FS, dtype="int16", n_channels=C, layout="channels-first")
    np.testing.assert_array_equal(got.data, data)


def test_one_axis_is_one_channel(tmp_path, data):
    np.save(tmp_path / "rec.npy", data[0])
    np.testing.assert_array_equal(recordings.read(tmp_path / "rec.npy", fs=FS).data, data[:1])


def test_foreign_byte_order_is_turned(tmp_path, data):
    np.save(tmp_path / "rec.npy", data.astype(">i2"))
    got = recordings.read(tmp_path / "rec.npy", fs=FS).data
    assert got.dtype.isnative
    np.testing.assert_array_equal(got, data)


def test_a_given_sampling_rate_goes_before_the_stored_one_and_is_told(tmp_path, data, caplog):
    np.savez(tmp_path / "rec.npz", data=data, fs=FS)
    with caplog.at_level(logging.WARNING):
        assert recordings.read(tmp_path / "rec.npz", fs=2 * FS).fs == 2 * FS
    assert "12500 Hz" in caplog.text


def test_the_default_sampling_rate_fills_in_only_what_is_missing(tmp_path, data):
    np.savez(tmp_path / "with.npz", data=data, fs=FS)
    np.savez(tmp_path / "without.npz", data=data)
    assert recordings.read(tmp_path / "with.npz", default_fs=1.0).fs == FS
    assert recordings.read(tmp_path / "without.npz", default_fs=1.0).fs == 1.0


def test_a_data_set_beside_the_data_gives_the_sampling_rate(tmp_path, data):
    with h5py.File(tmp_path / "rec.h5", "w") as file:
        file["data"], file["fs"] = data, FS
    assert recordings.read(tmp_path / "rec.h5").fs == FS


def test_skipped_channels_are_left_out(tmp_path, data):
    np.save(tmp_path / "rec.npy", data)
    got = recordings.read(tmp_path / "rec.npy", fs=FS, skip_channels=[1])
    np.testing.assert_array_equal(got.data, data[[0, 2]])


def test_a_dead_channel_is_named_and_can_be_skipped(tmp_path, data):
    data[1] = 7
    np.save(tmp_path / "rec.npy", data)
    with pytest.raises(InputError, match=r"channel 1 is constant.*--skip-channel 1"):
        recordings.read(tmp_path / "rec.npy", fs=FS)
    assert recordings.read(tmp_path / "rec.npy", fs=FS, skip_channels=[1]).n_channels == C - 1


@pytest.mark.parametrize(("value", "word"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_the_first_value_that_is_not_finite_is_named(tmp_path, data, value, word, monkeypatch):
    monkeypatch.setattr(recordings, "_BLOCK", 40 * C)  # so that the scan takes several blocks
    data = data.astype(np.float32)
    data[0, 150], data[2, 97], data[1, 100] = value, value, value
    np.save(tmp_path / "rec.npy", data)
    with pytest.raises(InputError, match=f"{word} at channel 2, sample 97"):
        recordings.read(tmp_path / "rec.npy", fs=FS)


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.ones((2, 100), complex), "complex128"),
        (np.full((2, 100), "a"), "str"),
        (np.zeros((2, 100), bool), "bool"),
        (np.array([[1, None] * 100], object), "Python objects"),
        (np.zeros(100, [("a", "f4")]), "void"),
        (np.array(["2020-01-01"] * 100, "M8[D]"), "datetime64"),
    ],
)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_what_is_no_real_number_is_refused(tmp_path, array, word, suffix):
    path = tmp_path / f"rec.{suffix}"
    if suffix == "npy":
        np.save(path, array, allow_pickle=True)
    else:
        np.savez(path, data=array)
    with pytest.raises(InputTypeError, match=word):
        recordings.read(path, fs=FS)


def test_text_in_hdf5_is_refused(tmp_path):
    save_hdf5(tmp_path / "rec.h5", np.array([b"a", b"b"], object), fs=FS)
    with pytest.raises(InputTypeError, match="text"):
        recordings.read(tmp_path / "rec.h5", key="probe/raw")


@pytest.mark.parametrize("suffix", ["npz", "h5"])
def test_a_missing_key_lists_those_that_exist(tmp_path, data, suffix):
    path = tmp_path / f"rec.{suffix}"
    if suffix == "npz":
        np.savez(path, ecg=data, other=data)
    else:
        save_hdf5(path, data)
    listed = "ecg, other" if suffix == "npz" else "/probe/raw"
    for key in (None, "wrong"):
        with pytest.raises(FileFormatError, match=f"{listed}.*--key"):
            recordings.read(path, fs=FS, key=key)


@pytest.mark.parametrize("suffix", ["npy", "npz", "h5", "dat"])
def test_empty_missing_and_damaged_files_are_told_apart(tmp_path, suffix):
    path = tmp_path / f"rec.{suffix}"
    with pytest.raises(FileFormatError, match="does not exist"):
        recordings.read(path)
    path.touch()
    with pytest.raises(FileFormatError, match="empty"):
        recordings.read(path)
    if suffix != "dat":
        path.write_bytes(b"neither of these formats" * 9)
        with pytest.raises(FileFormatError, match=r"not a \.|no HDF5 file"):
            recordings.read(path)


@pytest.mark.parametrize("suffix", ["npy", "npz", "h5"])
def test_a_truncated_file_is_damaged(tmp_path, data, suffix):
    path, told = save_as(suffix, tmp_path, data)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(FileFormatError, match="damaged"):
        recordings.read(path, **told)


def test_a_folder_and_an_unknown_ending_are_refused(tmp_path):
    with pytest.raises(FileFormatError, match="folder"):
        recordings.read(tmp_path)
    (tmp_path / "rec.wav").write_bytes(b"RIFF")
    with pytest.raises(FileFormatError, match=r"\.npy"):
        recordings.read(tmp_path / "rec.wav")


def test_raw_binary_names_all_that_is_missing(tmp_path, data):
    data.tofile(tmp_path / "rec.dat")
    with pytest.raises(InputError, match=r"--dtype int16.*--channels 4.*--fs 30000"):
        recordings.read(tmp_path / "rec.dat")


def test_raw_binary_names_the_remainder(tmp_path):
    (tmp_path / "rec.dat").write_bytes(b"\0" * 1003)
    with pytest.raises(FileFormatError, match=r"1003 bytes.*3 bytes remain"):
        recordings.read(tmp_path / "rec.dat", fs=FS, dtype="int16", n_channels=4)


@pytest.mark.parametrize(
    ("told", "word"),
    [
        ({"fs": None}, "--fs 30000"),
        ({"fs": 0.0}, "positive"),
        ({"fs": np.nan}, "positive"),
        ({"layout": "rows"}, "channels-first or samples-first"),
        ({"n_channels": 5}, "3 channels"),
        ({"skip_channels": [3]}, "no channel 3"),
        ({"skip_channels": [0, 1, 2]}, "every channel"),
        ({"key": "data"}, "--key"),
        ({"dtype": "int16"}, "--dtype"),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused(tmp_path, data, told, word):
    np.save(tmp_path / "rec.npy", data)
    with pytest.raises(EmdlError, match=word):
        recordings.read(tmp_path / "rec.npy", **{"fs": FS, **told})


def test_shapes_without_samples_or_with_three_axes_are_refused(tmp_path):
    for shape, word in [((2, 0), "no samples"), ((2, 3, 100), "two axes")]:
        np.save(tmp_path / "rec.npy", np.zeros(shape))
        with pytest.raises(InputError, match=word):
            recordings.read(tmp_path / "rec.npy", fs=FS)


def test_real_recordings_are_read_as_they_are(shared_data):
    got = recordings.read(shared_data / "spikes" / "locust_trial_01.npz")
    assert (got.data.shape, got.fs, got.data.dtype) == ((4, 431_548), 15_000.0, np.int16)
    with pytest.raises(FileFormatError, match="it holds ecg"):
        recordings.read(shared_data / "signals" / "scipy_ecg_mitdb208.npz")


def test_the_sample_is_a_tetrode_the_same_every_time_and_says_that_it_is_simulated():
    first, second = recordings.sample(), recordings.sample()
    np.testing.assert_array_equal(first.data, second.data)
    assert (first.n_channels, first.seconds) == (4, 15.0)
    assert "simulated" in first.name
