"""Every public function, every parameter that is a number or a flag: what makes no sense is refused by name.

The table is made from the signatures: a parameter that is added is in it without further ado.
"""

import inspect
import pathlib
import re

import numpy as np
import pytest

import emdl
from emdl import images, metrics, simulate, spikes
from emdl.errors import EmdlError, InputError
from emdl.images import training
from emdl.optim import Optimizer

RNG = np.random.default_rng(0)
D = RNG.standard_normal((3, 2, 5))
Y = RNG.standard_normal((2, 2, 21))
Z = RNG.standard_normal((2, 3, 17))
TRACE = emdl.unroll(Y, D, 0.2, 0.02, 3)
CORPUS = pathlib.Path(__file__).with_name("fuzz") / "corpus"
SPIKES = spikes.load(CORPUS / "spikes-1.h5")
DATA = RNG.standard_normal((2, 3000))
IMAGE = RNG.random((20, 24))

# what each function is called with; parameters that are not here keep their defaults
CALLS = {
    emdl.synthesize: {"z": Z, "D": D, "stride": 1},
    emdl.analyze: {"r": Y, "D": D, "stride": 1},
    emdl.lipschitz: {"D": D, "stride": 1},
    emdl.objective: {"y": Y, "z": Z, "D": D, "lmbd": 1.0},
    emdl.encode: {"y": Y, "D": D, "lmbd": 1.0},
    emdl.lambda_max: {"y": Y, "D": D},
    emdl.encode_path: {"y": Y, "D": D},
    emdl.unroll: {"y": Y, "D": D, "theta": 0.2, "step": 0.02, "n_iter": 3, "checkpoint": 2},
    emdl.backward: {"trace": TRACE, "g_z": Z, "n_layers": 2},
    emdl.em_fit: {"y": Y, "n_atoms": 3, "atom_shape": 5, "sigma": 1.0, "m_step": "truncated"},
    emdl.Model: {"D": D, "lmbd": 1.0, "sigma": 1.0},
    images.denoise: {"image": IMAGE, "sigma": 0.1},
    images.fit: {"planes": IMAGE[None], "sigma": 0.1},
    spikes.fit: {"data": DATA, "fs": 20e3, "n_units": 2, "window_ms": 1.5},
    spikes.detect: {"data": DATA, "model": SPIKES, "block_s": 0.1},
    spikes.encode: {"data": DATA, "model": SPIKES},
    metrics.psnr: {"x": IMAGE, "clean": IMAGE + 1, "peak": 1.0},
    metrics.compare_sortings: {"found": ([1, 2], [0, 0]), "true": ([1, 2], [0, 0]), "fs": 2e4},
    metrics.match_spikes: {"found_samples": [1, 2], "true_samples": [1, 2], "tolerance": 3},
    metrics.score_spikes: {
        "found_samples": [1], "found_units": [0], "true_samples": [1], "true_units": [0], "tolerance": 3,
    },
    simulate.convolutional: {"n_signals": 2, "n_samples": 50, "D": D, "density": 0.1, "snr_db": 10.0},
    simulate.tetrode: {},
    simulate.waveforms: {"n_atoms": 2, "n_channels": 2, "length": 30},
}  # fmt: skip
# parameters without numbers by default that take one
NUMBERS = {"rng", "sigma", "lmbd0", "n_backward", "batch_size", "n_layers", "checkpoint", "n_units", "window_ms",
           "block_s", "snr_db", "max_iter", "n_atoms"}  # fmt: skip
NONSENSE = {
    "NaN": np.nan,
    "a word": "many",
    "digits": "3",
    "-1": -1,
    "complex": 1 + 1j,
    "a table": [[1.0, 2.0], [3.0, 4.0]],
    "a set": {1},
    "a function": len,
}
MEANT = {
    ("convolutional", "snr_db", "-1"): "noise may be stronger than the signals",
    ("denoise", "rng", "NaN"): "is left out",
}


def table():
    for function, given in CALLS.items():
        for name, parameter in inspect.signature(function).parameters.items():
            value = given.get(name, parameter.default)
            if (isinstance(value, int | float) and not isinstance(value, bool)) or name in NUMBERS:
                for kind in NONSENSE:
                    if (function.__name__, name, kind) not in MEANT and not (name == "checkpoint" and value is None):
                        yield pytest.param(function, given, name, kind, id=f"{function.__name__}-{name}-{kind}")


def test_every_public_function_that_takes_numbers_is_in_the_table():
    for module in (emdl, images, spikes, metrics, simulate):
        for name in module.__all__:
            function = getattr(module, name)
            if inspect.isfunction(function) and function not in CALLS:
                defaults = [p.default for p in inspect.signature(function).parameters.values()]
                assert not any(isinstance(d, int | float) and not isinstance(d, bool) for d in defaults), name


@pytest.mark.parametrize(("function", "given", "name", "kind"), list(table()))
def test_a_number_that_is_none_is_refused_by_its_name(function, given, name, kind):
    with pytest.raises(EmdlError) as caught:
        function(**given | {name: NONSENSE[kind]})
    said = str(caught.value)
    assert len(said) > 20, "an error without a sentence"
    assert name in re.findall(r"\w+", said), said


# functions beside those of CALLS that take flags, with what they are called with
FLAGGED = {Optimizer: {}, training.train: {"photographs": [IMAGE[None]], "steps": 1}}
OPEN = {"em_fit": {"repair"}}  # flags whose default says that the fit decides
NO_FLAGS = {"a word": "no", "one": 1, "zero": 0.0, "nothing": None, "a list": [False], "an array": np.array([True])}


def flags():
    for function, given in {**CALLS, **FLAGGED, emdl.Model.encode: {"self": emdl.Model(D, 1.0, 1.0), "y": Y}}.items():
        for name, parameter in inspect.signature(function).parameters.items():
            chosen = name in OPEN.get(function.__name__, ())
            if isinstance(parameter.default, bool) or chosen:
                for kind in NO_FLAGS:
                    if not (chosen and kind == "nothing"):
                        yield pytest.param(function, given, name, kind, id=f"{function.__name__}-{name}-{kind}")


@pytest.mark.parametrize(("function", "given", "name", "kind"), list(flags()))
def test_a_flag_that_is_neither_true_nor_false_is_refused_by_its_name(function, given, name, kind):
    with pytest.raises(InputError) as caught:
        function(**given | {name: NO_FLAGS[kind]})
    assert f"{name} is {NO_FLAGS[kind]!r}, wanted True or False" in str(caught.value)


def test_flags_of_numpy_count_as_those_of_python():
    for flag in (True, False):
        wanted = emdl.encode(Y, D, 1.0, positive=flag)
        np.testing.assert_array_equal(emdl.encode(Y, D, 1.0, positive=np.bool_(flag)), wanted)


def test_every_public_function_that_takes_a_flag_is_in_the_table():
    for module in (emdl, images, spikes, metrics, simulate):
        for name in module.__all__:
            function = getattr(module, name)
            if inspect.isfunction(function):
                defaults = [p.default for p in inspect.signature(function).parameters.values()]
                assert function in CALLS or not any(isinstance(default, bool) for default in defaults), name
