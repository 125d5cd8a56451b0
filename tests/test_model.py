"""Models in memory and on disk."""

import os

import h5py
import numpy as np
import pytest

import emdl
from emdl.errors import FileFormatError, InputError
from emdl.model import FORMAT, Model


@pytest.fixture
def model(rng):
    D = rng.standard_normal((3, 2, 5)).astype(np.float32)
    return Model(D, [1.0, 2.0, 3.0], 0.5, True, (2,), {"fs": 15000.0, "name": "café", "noise": np.arange(2.0)})


def test_a_model_comes_back_as_it_was(model, tmp_path):
    model.save(tmp_path / "m.h5")
    back = emdl.load(tmp_path / "m.h5")
    np.testing.assert_array_equal(back.D, model.D)
    assert back.D.dtype == np.float32
    np.testing.assert_array_equal(back.lmbd, [1, 2, 3])
    assert (back.sigma, back.positive, back.stride) == (0.5, True, (2,))
    assert back.attributes["fs"] == 15000.0
    assert back.attributes["name"] == "café"
    np.testing.assert_array_equal(back.attributes["noise"], [0, 1])
    assert [p.name for p in tmp_path.iterdir()] == ["m.h5"]  # nothing temporary stays


def test_a_model_encodes_and_reconstructs(model, rng):
    y = rng.standard_normal((2, 2, 21)).astype(np.float32)
    z = model.encode(y)
    assert z.shape == (2, 3, 9)
    assert (z >= 0).all()
    np.testing.assert_allclose(model.reconstruct(y), emdl.synthesize(z, model.D, stride=2), rtol=1e-6)


def test_a_failed_write_leaves_the_old_file(model, tmp_path):
    path = tmp_path / "m.h5"
    model.save(path)
    old = path.read_bytes()
    broken = Model(model.D, model.lmbd, model.sigma, attributes={"bad": object()})
    with pytest.raises(TypeError):
        broken.save(path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["m.h5"]


def test_a_missing_folder_is_named(model, tmp_path):
    with pytest.raises(FileFormatError, match=r"cannot write .*nowhere"):
        model.save(tmp_path / "nowhere" / "m.h5")


def _damage(kind, path):
    if kind == "random bytes":
        path.write_bytes(os.urandom(2000))
        return
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:1500])
        return
    with h5py.File(path, "a") as file:
        if kind == "no model":
            del file.attrs["emdl_format"]
        elif kind == "newer":
            file.attrs["emdl_format"] = FORMAT + 1
        elif kind == "external link":
            del file["D"]
            file["D"] = h5py.ExternalLink("other.h5", "/D")
        elif kind == "soft link":
            del file["D"]
            file["D"] = h5py.SoftLink("/lmbd")
        elif kind == "huge":
            del file["D"]
            file.create_dataset("D", shape=(10**5, 10**4, 10**4), dtype="f8", chunks=(1, 10, 10))
        elif kind == "text":
            del file["D"]
            file["D"] = "text"
        elif kind == "wrong rank":
            del file["D"]
            file["D"] = np.ones(3)
        elif kind == "negative rate":
            file["lmbd"][...] = -1


KINDS = [
    "random bytes",
    "truncated",
    "no model",
    "newer",
    "external link",
    "soft link",
    "huge",
    "text",
    "wrong rank",
    "negative rate",
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_file_gives_one_kind_of_error_that_names_it(kind, model, tmp_path):
    path = tmp_path / "m.h5"
    model.save(path)
    _damage(kind, path)
    with pytest.raises(FileFormatError, match=r"m\.h5"):
        emdl.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileFormatError, match="there is no file"):
        emdl.load(tmp_path / "none.h5")


def test_a_model_checks_what_it_is_given(rng):
    with pytest.raises(InputError, match="one for each atom"):
        Model(rng.standard_normal((3, 1, 5)), [1.0, 2.0], 1.0)
    with pytest.raises(InputError, match="sigma"):
        Model(rng.standard_normal((3, 1, 5)), 1.0, 0.0)
