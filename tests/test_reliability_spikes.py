"""Nothing silently wrong with recordings: every function of one, given every kind of odd or bad one."""

import functools
import re

import numpy as np
import pytest
from oddities import BAD, ODD, assert_refused

import emdl
from emdl import simulate, spikes
from emdl.device import DeviceError
from emdl.errors import InputError, InputTypeError

FS = 20e3
MADE = simulate.tetrode(3.0, 2, n_channels=2, fs=FS, rate_hz=(20.0, 30.0), peak_uv=(150.0, 300.0), rng=3)
DATA = np.round(4 * MADE.data.astype(float)) / 4  # quarters: float16, and integers after a multiplication, hold them
FIT = {"max_iter": 2, "rng": 0, "n_units": 2}


@functools.cache
def model():
    return spikes.fit(DATA, FS, **FIT)


def of_spikes(found):
    return np.stack([found.sample, found.unit, found.amplitude])


# function of a recording, and what the parameter is called
CALLS = {
    "fit": (lambda x: spikes.fit(x, FS, **FIT).waveforms, "data"),
    "detect": (lambda x: of_spikes(spikes.detect(x, model())), "data"),
    "encode": (lambda x: spikes.encode(x, model()).value, "data"),
    "sort": (lambda x: of_spikes(emdl.sort(x, FS, **FIT).spikes), "recording"),
    "sort, model": (lambda x: of_spikes(emdl.sort(x, FS, model=model()).spikes), "recording"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("call", CALLS)
def test_a_bad_recording_is_refused_by_name(call, kind):
    function, name = CALLS[call]
    make, error = BAD[kind]
    with pytest.raises(error) as caught:
        function(make(DATA))
    said = str(caught.value)
    assert len(said) > 20, "an error without a sentence"
    assert name in said, said
    if kind in ("NaN", "Inf", "-Inf"):
        assert f"channel 1, sample {DATA.shape[1] - 1}" in said, said


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("call", CALLS)
def test_an_odd_recording_gives_what_the_plain_one_gives_and_is_not_written(call, kind):
    function, name = CALLS[call]
    make, dtype = ODD[kind]
    odd = np.clip(DATA / 4 + 100, 0, 255).astype(np.uint8) if kind == "uint8" else make(DATA)
    if kind == "bool":
        with pytest.raises(InputTypeError, match=f"{name}.*bool"):
            function(odd)
        return
    if kind == "broadcast":
        pytest.skip("two channels with the same bits: nothing to whiten")
    plain = np.ascontiguousarray(np.asarray(odd), dtype)
    before = plain.copy()
    found, wanted = function(odd), function(plain)
    assert found.size > 0 or (kind == "uint8" and call in ("detect", "sort, model"))
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(np.asarray(odd, dtype), before)


# Scale and level


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_a_recording_in_another_unit_has_the_same_spikes(scale, dtype):
    data = (scale * DATA).astype(dtype)
    found = emdl.sort(data, FS, **FIT)
    wanted = emdl.sort(DATA, FS, **FIT)
    np.testing.assert_array_equal(found.spikes.sample, wanted.spikes.sample)
    np.testing.assert_array_equal(found.spikes.unit, wanted.spikes.unit)
    np.testing.assert_allclose(found.spikes.amplitude / scale, wanted.spikes.amplitude, rtol=1e-3)
    np.testing.assert_allclose([row["snr"] for row in found.quality], [row["snr"] for row in wanted.quality], rtol=1e-3)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
def test_a_unit_that_leaves_single_precision_is_refused(scale, call):
    function, name = CALLS[call]
    with pytest.raises(InputError, match=rf"{name}.* spans .* give it in another unit"):
        function(scale * DATA)


@pytest.mark.parametrize("level", [-1e6, 1e6, 1e9])
def test_an_offset_is_taken_out(level):
    learned, wanted = spikes.fit(DATA + level, FS, **FIT), spikes.detect(DATA, model())
    np.testing.assert_allclose(learned.waveforms, model().waveforms, atol=1e-2)
    for found in [
        spikes.detect(DATA + level, learned),
        *([spikes.detect(DATA + level, model())] if level < 1e9 else []),
    ]:
        np.testing.assert_array_equal(found.sample, wanted.sample)
        np.testing.assert_array_equal(found.unit, wanted.unit)


@pytest.mark.parametrize("call", ["detect", "encode", "sort, model"])
def test_an_offset_that_the_model_does_not_know_and_single_precision_does_not_hold_is_refused(call):
    with pytest.raises(InputError, match=r"lies 1e\+09 from the level .* subtract the mean"):
        CALLS[call][0](DATA + 1e9)


@pytest.mark.parametrize("call", CALLS)
def test_an_offset_that_drowned_the_recording_in_rounding_is_refused(call):
    function, name = CALLS[call]
    with pytest.raises(InputError, match=rf"{name}.*float32 lie 64 apart; subtract the mean"):
        function((DATA + 1e9).astype(np.float32))


def test_a_large_recording_is_looked_at_in_places_with_the_same_result(monkeypatch):
    monkeypatch.setattr(spikes.detection.streaming, "_SMALL", 1000)
    for bad, words in ((1e30 * DATA, "spans"), ((DATA + 1e9).astype(np.float32), "apart"), (0 * DATA, "constant")):
        with pytest.raises(InputError, match=words):
            spikes.detect(bad, model())
    late = DATA.copy()
    late[1, 50_000] = np.nan
    with pytest.raises(InputError, match=r"recording \(data\) holds nan at channel 1, sample 50000"):
        spikes.detect(late, model())


# What stands at an edge


@pytest.mark.parametrize("call", CALLS)
def test_silence_a_dead_channel_and_a_wrong_shape_are_refused(call):
    function, name = CALLS[call]
    for bad, words in (
        (0 * DATA, "every channel is constant"),
        (np.full_like(DATA, 7), "every channel is constant"),
        (np.stack([DATA[0], 0 * DATA[0]]), r"channel 1 is constant \(dead\)"),
        (DATA.T, r"more channels than samples; transpose it"),
        (DATA[:, :1], "more channels than samples"),
        (DATA[:, :100], "(is|of) 100 samples (long, shorter than .*160|long, wanted at least 320|can hold)"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            function(bad)
        assert re.search(rf"{name}|\(data\)|n_units", str(caught.value))


def test_the_shortest_recording_works():
    assert spikes.fit(DATA[:, :320], FS).waveforms.shape[1:] == (2, 60)
    with pytest.raises(InputError, match="is 319 samples long, wanted at least 320"):
        spikes.fit(DATA[:, :319], FS)
    assert len(spikes.detect(DATA[:, :160], model())) >= 0
    with pytest.raises(InputError, match="is 159 samples long, shorter than"):
        spikes.detect(DATA[:, :159], model())


def test_one_channel_works_with_and_without_its_axis():
    flat, full = spikes.fit(DATA[0], FS, **FIT), spikes.fit(DATA[:1], FS, **FIT)
    np.testing.assert_array_equal(flat.waveforms, full.waveforms)
    np.testing.assert_array_equal(spikes.detect(DATA[0], full).sample, spikes.detect(DATA[:1], full).sample)


def test_the_smallest_int16_is_no_trap():
    data = np.where(DATA < -200, -32768, DATA).astype(np.int16)
    np.testing.assert_array_equal(
        spikes.detect(data, model()).sample, spikes.detect(data.astype(float), model()).sample
    )


# Parameters that are no plain numbers; test_parameters.py has those

PARAMETERS = {
    "no sampling rate": (lambda: emdl.sort(DATA), "fs, the sampling rate in Hz, is missing"),
    "a sampling rate in words": (lambda: emdl.sort(DATA, "fast"), "sampling rate must be one number, got 'fast'"),
    "a model of no kind": (lambda: spikes.detect(DATA, 3), "model is a int"),
    "no model": (lambda: spikes.encode(DATA, None), "model is a NoneType"),
    "a path for a model": (lambda: emdl.sort(DATA, FS, model="model.h5"), "model is a str"),
    "a model and how to learn": (lambda: emdl.sort(DATA, FS, model=model(), n_units=2), "n_units say how to learn"),
    "a model of other channels": (lambda: spikes.detect(DATA[:1], model()), "1 channels, but the model was learned on"),
    "one frequency": (lambda: spikes.fit(DATA, FS, band=300), "band is 300"),
    "frequencies in words": (lambda: spikes.fit(DATA, FS, band="low"), "band is 'low'"),
    "frequencies beyond Nyquist": (lambda: spikes.fit(DATA, FS, band=(300, 3e4)), "band is (300, 30000.0)"),
    "places in words": (lambda: spikes.fit(DATA, FS, positions="line"), "positions have shape"),
    "places of other channels": (lambda: spikes.fit(DATA, FS, positions=[[0, 0]]), "wanted (2, 2)"),
    "a callback that is none": (lambda: spikes.fit(DATA, FS, callback=3), "callback is 3"),
    "a progress that is none": (lambda: spikes.detect(DATA, model(), progress=3), "progress is 3"),
    "a number for a checkpoint": (lambda: spikes.fit(DATA, FS, checkpoint=3), "checkpoint is 3"),
    "more units than fit in": (lambda: spikes.fit(DATA, FS, n_units=5000), "n_units is 5000"),
}


@pytest.mark.parametrize("case", PARAMETERS)
def test_a_parameter_that_makes_no_sense_is_refused_with_its_value(case):
    assert_refused(*PARAMETERS[case])


# Devices

ON_DEVICE = {
    "em_fit": lambda device: emdl.em_fit(DATA[:1, :600], 1, 20, device=device),
    "fit": lambda device: spikes.fit(DATA, FS, device=device, **FIT),
    "detect": lambda device: spikes.detect(DATA, model(), device=device),
    "encode": lambda device: spikes.encode(DATA, model(), device=device),
    "sort": lambda device: emdl.sort(DATA, FS, device=device, **FIT),
    "sort, model": lambda device: emdl.sort(DATA, FS, model=model(), device=device),
}


@pytest.mark.parametrize("call", ON_DEVICE)
def test_a_device_that_is_not_there_is_refused_and_none_is_taken_for_it(call, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cupy", None)
    with pytest.raises(DeviceError, match=r"CuPy is missing.*pip install"):
        ON_DEVICE[call]("cuda")
    for none in ("gpu", None, 0):
        with pytest.raises(InputError, match=f"device is {none!r}, wanted cpu, cuda or auto"):
            ON_DEVICE[call](none)


def test_signals_on_the_cpu_are_not_fitted_there_where_cuda_was_asked_for(stand_in):
    with pytest.raises(InputError, match=r"device is 'cuda', but y lies on the CPU.* cupy.asarray"):
        ON_DEVICE["em_fit"]("cuda")


@pytest.mark.parametrize("call", CALLS)
def test_a_recording_on_a_gpu_is_refused_by_name(call, stand_in):
    function, name = CALLS[call]
    with pytest.raises(InputTypeError, match=rf"{name}.* lies on a GPU, wanted NumPy's \(cupy.asnumpy\)"):
        function(stand_in.asarray(DATA[:, :1000]))
