"""A table of spikes that was written is read back."""

from types import SimpleNamespace

import numpy as np
import pytest

from emdl.errors import EmdlError, FileFormatError, InputError
from emdl.spikes import tables

FS = 24_000.0


@pytest.fixture
def spikes(rng):
    sample = np.sort(rng.choice(10**9, 37, replace=False))
    return SimpleNamespace(
        sample=sample,
        time_s=sample / FS,
        unit=rng.integers(0, 3, 37),
        amplitude=rng.lognormal(0, 3, 37),
        fs=FS,
    )


@pytest.mark.parametrize("suffix", [".csv", ".npz"])
def test_spikes_survive_a_file(tmp_path, spikes, suffix):
    tables.write(tmp_path / f"spikes{suffix}", spikes)
    got = tables.read(tmp_path / f"spikes{suffix}")
    np.testing.assert_array_equal(got["sample"], spikes.sample)
    np.testing.assert_array_equal(got["unit"], spikes.unit)
    # CSV keeps microseconds and six digits of the amplitude.
    np.testing.assert_allclose(got["time_s"], spikes.time_s, rtol=0, atol=5.1e-7)
    np.testing.assert_allclose(got["amplitude"], spikes.amplitude, rtol=5e-6)


def test_the_columns_stand_in_the_promised_order(spikes):
    lines = tables.to_csv(spikes).splitlines()
    assert lines[0] == "sample,time_s,unit,amplitude"
    assert lines[1].split(",")[0] == str(spikes.sample[0])
    assert len(lines) == 1 + 37


@pytest.mark.parametrize("suffix", [".csv", ".npz"])
def test_no_spikes_are_a_table_too(tmp_path, suffix):
    none = SimpleNamespace(fs=FS, **{name: np.zeros(0) for name in tables.COLUMNS})
    tables.write(tmp_path / f"spikes{suffix}", none)
    got = tables.read(tmp_path / f"spikes{suffix}")
    assert {len(column) for column in got.values()} == {0}
    assert got["sample"].dtype == np.int64


def test_other_endings_and_other_files_are_refused(tmp_path, spikes):
    with pytest.raises(InputError, match=r"\.csv or \.npz"):
        tables.write(tmp_path / "spikes.txt", spikes)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    np.savez(tmp_path / "other.npz", a=1)
    for name in ("other.csv", "other.npz", "absent.csv"):
        with pytest.raises(FileFormatError):
            tables.read(tmp_path / name)


# what stands in a table of spikes that is none
NO_TIMES = {
    "a negative time": ({"sample": [5, -1], "unit": [0, 0]}, "no number >= 0"),
    "a time of NaN": ({"sample": [5, np.nan], "unit": [0, 0]}, "no number >= 0"),
    "text": ({"sample": ["a"], "unit": [0]}, "no number >= 0"),
    "seconds": ({"sample": np.linspace(0, 4, 99), "unit": np.zeros(99)}, "99 spikes in 4 samples.* not seconds"),
    "a time too many": ({"sample": [5, 6, 7], "unit": [0, 0]}, "one unit a spike"),
    "half a unit": ({"sample": [5, 6], "unit": [0, 0.5]}, "0.5 as unit, wanted whole numbers"),
    "a unit of NaN": ({"sample": [5, 6], "unit": [0, np.nan]}, "no whole numbers below 2\\^53 as unit"),
    "a unit beyond": ({"sample": [5, 6], "unit": [0, 1e19]}, "no whole numbers below 2\\^53 as unit"),
    "no rate": ({"sample": [5, 6], "unit": [0, 1], "fs": "fast"}, "could not convert"),
    "a negative rate": ({"sample": [5, 6], "unit": [0, 1], "fs": -3.0}, "a sampling rate of -3 Hz"),
}


@pytest.mark.parametrize("case", NO_TIMES)
def test_what_is_no_table_of_spikes_is_refused_by_what_is_wrong(case, tmp_path):
    arrays, words = NO_TIMES[case]
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(EmdlError, match=rf"t\.npz .*{words}"):
        tables.read_any(tmp_path / "t.npz")
    if case in ("a negative time", "half a unit", "a unit beyond"):
        rows = "\n".join(f"{s},0.1,{u},1.0" for s, u in zip(arrays["sample"], arrays["unit"], strict=True))
        (tmp_path / "t.csv").write_text(f"sample,time_s,unit,amplitude\n{rows}\n")
        with pytest.raises(EmdlError, match=rf"t\.csv .*{words}"):
            tables.read_any(tmp_path / "t.csv")


@pytest.mark.parametrize("part", ["spike_times.npy", "spike_clusters.npy", "params.py"])
def test_a_folder_that_is_none_of_phy_is_refused_by_what_it_lacks(part, tmp_path):
    np.save(tmp_path / "spike_times.npy", np.array([[5], [900]]))
    np.save(tmp_path / "spike_clusters.npy", np.array([0, 1]))
    (tmp_path / "params.py").write_text("sample_rate = 30000.\nhop = __import__('os').abort()\n")
    read = tables.read_any(tmp_path)
    assert (read["sample"].tolist(), read["unit"].tolist(), read["fs"]) == ([5, 900], [0, 1], 30_000.0)
    (tmp_path / part).write_bytes(b"sample_rate = 1.2.3\n")
    with pytest.raises(FileFormatError, match="is damaged, or is no folder of phy"):
        tables.read_any(tmp_path)
    (tmp_path / part).unlink()
    with pytest.raises(FileFormatError, match=f"no folder of phy: it holds no {part}"):
        tables.read_any(tmp_path)


def test_a_summary_says_what_the_spikes_and_waveforms_say():
    sample = np.array([0, 24, 100, 1000, 30, 5000])  # 24 samples are 1 ms
    spikes = SimpleNamespace(sample=sample, time_s=sample / FS, unit=np.array([0, 0, 0, 0, 1, 2]))
    waveforms = np.zeros((4, 2, 5))
    waveforms[0, 1, 3], waveforms[0, 0, 2], waveforms[2, 0, 1] = -8.0, 3.0, 5.0
    rows = tables.summarize(spikes, waveforms, noise=np.array([2.0, 4.0]), seconds=2.0)
    assert [row["spikes"] for row in rows] == [4, 1, 1, 0]
    assert (rows[0]["peak"], rows[0]["channel"], rows[0]["snr"], rows[0]["rate_hz"]) == (-8.0, 1, 2.0, 2.0)
    assert (rows[2]["peak"], rows[2]["channel"], rows[2]["snr"]) == (5.0, 0, 2.5)
