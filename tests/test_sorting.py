"""A recording becomes units, spikes and what they are worth; other programs read what is written."""

import json

import numpy as np
import pytest

import emdl
from emdl import metrics, simulate
from emdl.errors import EmdlError, InputError
from emdl.spikes import quality, recordings, sorting, tables

FS = 20_000.0


@pytest.fixture(scope="module")
def made():
    """Six seconds of three neurons on three channels."""
    return simulate.tetrode(6.0, 3, n_channels=3, fs=FS, rate_hz=(15.0, 25.0), peak_uv=(150.0, 300.0), rng=3)


@pytest.fixture(scope="module")
def result(made):
    return emdl.sort(made.data, made.fs, name="made")


def test_units_spikes_and_quality_come_in_one_call(made, result):
    scores = metrics.compare_sortings(result.spikes, (made.spike_samples, made.spike_units), fs=FS)
    assert scores.accuracy.min() > 0.9
    assert [row["unit"] for row in result.quality] == list(range(result.model.n_units))
    for row in result.quality:
        assert set(quality.COLUMNS) <= set(row)
        assert row["isolation"] > 4
        assert row["expected_misses"] < 0.1
        assert row["expected_false_alarms"] < 0.1
        assert row["presence"] == 1.0


def test_a_model_learned_before_is_used(made, result):
    again = emdl.sort(made.data, made.fs, model=result.model)
    np.testing.assert_array_equal(again.spikes.sample, result.spikes.sample)
    with pytest.raises(InputError, match="n_units"):
        emdl.sort(made.data, made.fs, model=result.model, n_units=2)


def test_what_is_missing_is_named(made):
    with pytest.raises(InputError, match="fs"):
        emdl.sort(made.data)
    with pytest.raises(InputError, match="transpose"):
        emdl.sort(made.data.T, made.fs)


def test_no_spike_is_said_to_lie_in_a_gap(made, result):
    holed = made.data.copy()
    holed[:, 40_000:42_000] = np.nan
    holed[:, 80_000:81_000] = 0
    found = emdl.sort(holed, made.fs, model=result.model).spikes
    inside = [(found.sample > a - 20) & (found.sample < b + 20) for a, b in ((40_000, 42_000), (80_000, 81_000))]
    assert not np.any(inside)
    outside = (result.spikes.sample < 39_800) | (result.spikes.sample > 81_200)
    np.testing.assert_array_equal(
        found.sample[(found.sample < 39_800) | (found.sample > 81_200)], result.spikes.sample[outside]
    )


def test_noise_has_no_units_and_that_is_a_result(rng, tmp_path):
    result = emdl.sort(rng.standard_normal((2, 40_000)), FS)
    assert result.quality == []
    assert "no units" in result.model.message
    result.save(tmp_path / "folder")
    result.save(tmp_path / "spikes.csv")
    assert len(tables.read(tmp_path / "spikes.csv")["sample"]) == 0


# Quality


def test_contamination_solves_its_equation(rng):
    """(S2), evaluated the other way round: a share C of foreign Poisson spikes gives N^2 w C (2 - C) / T violations."""
    n, seconds, window, share = 4000, 200.0, 1.5e-3, 0.2
    violations = n**2 * window * share * (2 - share) / seconds
    assert quality.contamination(violations, n, seconds, window) == pytest.approx(share)
    assert quality.contamination(0, n, seconds, window) == 0
    assert quality.contamination(10**6, n, seconds, window) == 1


def test_the_cutoff_of_a_histogram_is_the_share_that_it_lacks(rng):
    x = rng.normal(0, 1, 20_000)
    for least, lacking in ((-4, 0.0), (-1, 0.159), (-0.5, 0.309)):
        assert quality.amplitude_cutoff(x[x > least]) == pytest.approx(lacking, abs=0.06)


def test_the_cutoff_of_a_normal_distribution_is_undone(rng):
    x = rng.normal(10, 2, 50_000)
    mean, spread = quality._truncated_normal(x[x > 9], 9.0)
    assert (mean, spread) == (pytest.approx(10, abs=0.3), pytest.approx(2, abs=0.2))


def test_presence_counts_the_parts_of_the_recording_that_hold_spikes():
    assert quality.presence(np.linspace(0, 50, 1000), 100.0) == pytest.approx(0.5, abs=0.051)
    assert quality.presence(np.zeros(0), 100.0) == 0


def test_two_neurons_taken_for_one_show_in_the_refractory_period(made, result):
    """The rest of a unit hides its violations; they are counted without it."""
    model = result.model
    assert all(row["refractory_violations"] < 0.01 for row in result.quality)
    shifted = np.roll(made.data, 987, axis=1) + made.data - made.noise  # a second neuron of the same shape for each
    mixed = emdl.sort(shifted, made.fs, model=model)
    assert max(row["contamination"] for row in mixed.quality) > 0.05


def test_drowned_spikes_are_expected_to_be_missed():
    made = simulate.tetrode(20.0, 2, peak_uv=(48.0, 50.0), background=0.0, max_correlation=0.5, rng=1)
    result = emdl.sort(made.data, made.fs)
    scores = metrics.compare_sortings(result.spikes, (made.spike_samples, made.spike_units), fs=made.fs)
    expected = {row["unit"]: row["expected_misses"] for row in result.quality}
    for i in np.flatnonzero(scores.matched >= 0):
        assert expected[scores.found_units[scores.matched[i]]] == pytest.approx(1 - scores.recall[i], abs=0.1)


# What other programs read


def test_the_folder_for_phy_holds_what_phy_asks_for(tmp_path, made, result):
    result.save(tmp_path / "phy")
    held = {p.stem: np.load(p) for p in (tmp_path / "phy").glob("*.npy")}
    K, n = result.model.n_units, len(result.spikes)
    assert len(held["spike_times"]) == len(held["spike_clusters"]) == len(held["amplitudes"]) == n
    assert held["templates"].shape[::2] == (K, 3)
    middle = held["templates"].shape[1] // 2
    for k, waveform in enumerate(result.model.waveforms):
        np.testing.assert_allclose(held["templates"][k, middle], waveform[:, result.model.peak[k]], rtol=1e-5)
    np.testing.assert_allclose(np.diagonal(held["similar_templates"]), 1)
    assert held["channel_positions"].shape == (3, 2)
    settings = {}
    exec((tmp_path / "phy" / "params.py").read_text(), settings)  # as phy does
    stored = np.fromfile(tmp_path / "phy" / settings["dat_path"], settings["dtype"]).reshape(-1, 3)
    np.testing.assert_array_equal(stored.T, made.data)
    with pytest.raises(InputError, match="not empty"):
        result.save(tmp_path / "phy")


def test_the_folder_for_phy_names_a_raw_recording_and_not_what_its_name_would_run(tmp_path, made):
    raw = tmp_path / "a'\"; x = 1 #.dat"
    made.data.T.tofile(raw)
    recording = recordings.read(raw, fs=FS, dtype="float32", n_channels=3)
    emdl.sort(recording, n_units=1, max_iter=1).save(tmp_path / "phy")
    settings = {}
    exec((tmp_path / "phy" / "params.py").read_text(), settings)
    assert settings["dat_path"] == str(raw.resolve())
    assert "x" not in settings


@pytest.mark.filterwarnings("ignore")
def test_phylib_opens_the_folder(tmp_path, result):
    phylib = pytest.importorskip("phylib.io.model", reason="phylib is not installed")
    result.save(tmp_path / "phy")
    model = phylib.load_model(tmp_path / "phy" / "params.py")
    np.testing.assert_array_equal(model.spike_samples, result.spikes.sample)
    assert model.n_templates == result.model.n_units
    np.testing.assert_allclose(model.metadata["snr"][0], result.quality[0]["snr"], rtol=1e-3)
    model.close()


@pytest.mark.filterwarnings("ignore")
def test_nwb_is_written_as_pynwb_reads_it(tmp_path, result):
    pynwb = pytest.importorskip("pynwb", reason="pynwb is not installed (pip install 'emdl[nwb]')")
    result.save(tmp_path / "sorted.nwb")
    assert not pynwb.validate(path=str(tmp_path / "sorted.nwb"))
    with pynwb.NWBHDF5IO(tmp_path / "sorted.nwb", "r") as io:
        units = io.read().units
        for k, row in enumerate(result.quality):
            np.testing.assert_array_equal(units["spike_times"][k], result.spikes.time_s[result.spikes.unit == k])
            assert units["isolation"][k] == row["isolation"]
            np.testing.assert_array_equal(units["waveform_mean"][k].T, result.model.waveforms[k])


def test_an_ending_that_nobody_knows_is_refused(tmp_path, result):
    with pytest.raises(InputError, match=r"\.nwb.*phy"):
        result.save(tmp_path / "sorted.xlsx")


# SpikeInterface


@pytest.fixture
def si():
    return pytest.importorskip(
        "spikeinterface", reason="SpikeInterface is not installed (pip install 'emdl[spikeinterface]')"
    )


def test_a_recording_of_spikeinterface_gives_a_sorting_with_quality(si, made, result):
    given = si.NumpyRecording([made.data.T], FS)
    found = emdl.sort(given)
    assert isinstance(found, si.NumpySorting)
    for unit in found.unit_ids:
        np.testing.assert_array_equal(
            found.get_unit_spike_train(unit), result.spikes.sample[result.spikes.unit == unit]
        )
    np.testing.assert_allclose(found.get_property("snr"), [row["snr"] for row in result.quality], rtol=1e-6)


def test_segments_stay_segments(si, made, result):
    given = si.NumpyRecording([made.data.T[:50_000], made.data.T[50_000:]], FS)
    found = emdl.sort(given, model=result.model)
    assert found.get_num_segments() == 2
    trains = [found.get_unit_spike_train(0, segment_index=i) for i in (0, 1)]
    joint = np.concatenate([trains[0], trains[1] + 50_000])
    whole = result.spikes.sample[result.spikes.unit == 0]
    assert set(whole[np.abs(whole - 50_000) > 500]) <= set(joint)


@pytest.mark.filterwarnings("ignore")
def test_run_sorter_knows_emdl_once_it_is_registered(si, tmp_path, made, result):
    from spikeinterface.sorters import available_sorters, get_default_sorter_params, installed_sorters, run_sorter

    emdl.spikeinterface.register()
    emdl.spikeinterface.register()
    assert available_sorters().count("emdl") == installed_sorters().count("emdl") == 1
    assert get_default_sorter_params("emdl")["seed"] == 0
    given = si.NumpyRecording([made.data.T], FS).save(folder=tmp_path / "recording", verbose=False)
    found = run_sorter("emdl", given, folder=tmp_path / "sorted", n_units=3)
    assert list(found.unit_ids) == [0, 1, 2]
    assert found.count_total_num_spikes() == pytest.approx(len(result.spikes), rel=0.02)
    assert (tmp_path / "sorted" / "sorter_output" / "model.h5").is_file()
    assert json.loads((tmp_path / "sorted" / "spikeinterface_log.json").read_text())["sorter_version"]
    with pytest.raises(ValueError, match="units"):
        run_sorter("emdl", given, folder=tmp_path / "typo", units=3)


@pytest.mark.filterwarnings("ignore")
def test_spikeinterface_reads_the_folder_for_phy(si, tmp_path, result):
    extractors = pytest.importorskip("spikeinterface.extractors")
    result.save(tmp_path / "phy")
    found = extractors.read_phy(tmp_path / "phy")
    assert found.count_total_num_spikes() == len(result.spikes)


def test_without_a_package_the_message_says_what_to_install(monkeypatch, tmp_path, result):
    import sys

    for name in ("spikeinterface", "spikeinterface.core", "pynwb"):
        monkeypatch.setitem(sys.modules, name, None)
    emdl.spikeinterface.sorter_class.cache_clear()
    for call, package in (
        (result.to_spikeinterface, "spikeinterface"),
        (emdl.spikeinterface.register, "spikeinterface"),
        (lambda: result.save(tmp_path / "a.nwb"), "nwb"),
    ):
        with pytest.raises(EmdlError, match=rf"pip install .*emdl\[{package}\]"):
            call()


def test_a_name_without_ending_is_a_folder():
    sorting.check_suffix(recordings.pathlib.Path("sorted"))
    with pytest.raises(InputError):
        sorting.check_suffix(recordings.pathlib.Path("sorted.txt"))
