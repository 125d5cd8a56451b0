"""A table of spikes that was written is read back."""

from types import SimpleNamespace

import numpy as np
import pytest

from emdl.errors import FileFormatError, InputError
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


def test_a_summary_says_what_the_spikes_and_waveforms_say():
    sample = np.array([0, 24, 100, 1000, 30, 5000])  # 24 samples are 1 ms
    spikes = SimpleNamespace(sample=sample, time_s=sample / FS, unit=np.array([0, 0, 0, 0, 1, 2]))
    waveforms = np.zeros((4, 2, 5))
    waveforms[0, 1, 3], waveforms[0, 0, 2], waveforms[2, 0, 1] = -8.0, 3.0, 5.0
    rows = tables.summarize(spikes, waveforms, noise=np.array([2.0, 4.0]), seconds=2.0)
    assert [row["spikes"] for row in rows] == [4, 1, 1, 0]
    assert (rows[0]["peak"], rows[0]["channel"], rows[0]["snr"], rows[0]["rate_hz"]) == (-8.0, 1, 2.0, 2.0)
    assert (rows[2]["peak"], rows[2]["channel"], rows[2]["snr"]) == (5.0, 0, 2.5)
