"""The reader of HDF5: it gives what the HDF5 library gives, and answers every damage with one kind of error."""

import io
import os
import pathlib
import struct
import tracemalloc
import zlib

import h5py
import numpy as np
import pytest

import emdl
from emdl import hdf5, storage
from emdl.errors import FileFormatError

CORPUS = pathlib.Path(__file__).with_name("fuzz") / "corpus"
BUNDLED = pathlib.Path(emdl.__file__).parent / "images" / "data" / "denoiser.h5"


def assert_same(found, wanted):
    """Hold that a group is what the HDF5 library reads, in names, order, types and values."""
    assert list(found) == list(wanted)
    assert list(found.attrs) == sorted(wanted.attrs)
    for name, value in wanted.attrs.items():
        np.testing.assert_array_equal(found.attrs[name], value)
        assert type(found.attrs[name]) is type(value)
        assert getattr(found.attrs[name], "dtype", None) == getattr(value, "dtype", None)
    for name, item in wanted.items():
        if isinstance(item, h5py.Group):
            assert_same(found[name], item)
        else:
            x = found.array(name)
            np.testing.assert_array_equal(x, item[()])
            assert (x.dtype, x.shape) == (item.dtype, item.shape)
            assert x.flags.writeable
            assert x.flags.aligned


@pytest.mark.parametrize("path", [*sorted(CORPUS.glob("*-*.h5")), BUNDLED], ids=lambda path: path.name)
def test_it_reads_what_emdl_has_written_as_the_library_does(path):
    with storage.old_file(path) as found, h5py.File(path) as wanted:
        assert_same(found, wanted)


def test_it_reads_whatever_emdl_may_write(rng, tmp_path):
    with storage.new_file(tmp_path / "all.h5") as file:
        many = file.create_group("many")
        for i in range(300):
            many.create_dataset(f"name {i}", data=np.arange(i % 40, dtype=np.int32))
            many.create_group(f"group {i % 7}/{i}")
        for i in range(60):
            many.attrs[f"Ünï {i}"] = np.arange(i % 5)
        values = {"text": "ä" * 100_000, "empty": "", "yes": True, "flags": np.array([True, False]), "x": np.float32(3)}
        for name, value in values.items():
            file.attrs[name] = value
        file.attrs["bytes"] = np.bytes_(b"fixed")
        del file.attrs["bytes"]
        for kind in ("f2", "f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "?"):
            data = (100 * rng.standard_normal((3, 2, 5))).astype(kind)
            file.create_dataset(f"plain {kind}", data=data)
            file.create_dataset(f"chunks {kind}", data=data, chunks=(2, 2, 3), compression="gzip", shuffle=True)
        file.create_dataset("no chunks", data=np.zeros((0, 3)), chunks=(1, 3), maxshape=(None, 3))
        file.create_dataset("nothing", data=np.zeros((2, 0)))
        file.create_dataset("scalar", data=2.5)
        file.create_dataset("compact", data=np.arange(4.0))
        file.create_dataset("deep", data=rng.standard_normal((900, 7)), chunks=(3, 2), compression="gzip")
        file.create_dataset("raw chunks", data=rng.standard_normal((9, 7)), chunks=(4, 4))
    with storage.old_file(tmp_path / "all.h5") as found, h5py.File(tmp_path / "all.h5") as wanted:
        assert_same(found, wanted)
        assert found.array("many/name 7").tolist() == list(range(7))


def test_an_array_of_foreign_byte_order_comes_in_that_of_the_machine(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = np.arange(3, dtype=">i4")
    with storage.old_file(tmp_path / "x.h5") as found:
        assert found.array("x").dtype == np.int32
        assert found.array("x").tolist() == [0, 1, 2]


# The seal


@pytest.fixture
def model(rng):
    return emdl.Model(rng.standard_normal((2, 1, 9)), [1.0, 2.0], 0.5, attributes={"name": "a name", "x": 3.0})


def test_no_changed_byte_of_a_model_goes_unnoticed(model, tmp_path):
    path = tmp_path / "m.h5"
    model.save(path)
    whole = path.read_bytes()
    for at in [*range(0, len(whole), 37), *range(len(whole) - 40, len(whole))]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        with pytest.raises(FileFormatError, match=r"m\.h5"):
            emdl.load(path)
    for length in (0, 7, 8, 95, 96, 500, len(whole) - 41, len(whole) - 39, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(FileFormatError, match=r"m\.h5"):
            emdl.load(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(FileFormatError, match=r"has \d+ bytes, but was written with \d+"):
        emdl.load(path)


def test_a_file_that_a_tool_has_edited_is_read_without_its_seal(model, tmp_path):
    path = tmp_path / "m.h5"
    for change in (lambda file: file["sigma"].__setitem__((), 0.25), lambda file: file.attrs.__setitem__("note", "x")):
        model.save(path)
        with h5py.File(path, "r+") as file:
            change(file)
        assert emdl.load(path).sigma in (0.25, 0.5)


def test_the_seal_is_a_hash_of_all_before_it(model, tmp_path):
    import hashlib

    model.save(tmp_path / "m.h5")
    whole = (tmp_path / "m.h5").read_bytes()
    assert whole[-40:] == b"emdl-256" + hashlib.sha256(whole[:-40]).digest()


# Damage that a right seal, or none, does not tell


def unsealed(model, path):
    model.save(path)
    return path.read_bytes()[:-40]


def reading(data):
    found = hdf5.root(hdf5.Reader(io.BytesIO(data), len(data)))
    return {name: found.array(name) for name in ("D", "lmbd", "sigma")}, dict(found["attributes"].attrs)


def test_any_changed_byte_without_a_seal_is_read_or_refused_by_one_kind_of_error(model, tmp_path):
    whole = unsealed(model, tmp_path / "m.h5")
    answers = []
    for at in range(0, len(whole), 5):
        for value in (0, 0xFF, whole[at] ^ 0x11):
            try:
                reading(whole[:at] + bytes([value]) + whole[at + 1 :])
            except FileFormatError as error:
                answers.append(str(error))
    assert len(answers) > 100
    assert min(map(len, answers)) > 20, "an error without a sentence"


def address_of(whole, tag, skip=0):
    at = -1
    for _ in range(skip + 1):
        at = whole.index(tag, at + 1)
    return at


def test_a_tree_that_leads_back_to_itself_is_refused(model, tmp_path):
    whole = bytearray(unsealed(model, tmp_path / "m.h5"))
    at = address_of(whole, b"TREE")
    whole[at + 5] = 1  # a node above others, its child being itself
    whole[at + 32 : at + 40] = struct.pack("<Q", at)
    with pytest.raises(FileFormatError, match="damaged"):
        reading(bytes(whole))


def test_a_group_within_itself_is_no_way_to_go_on_for_ever(model, tmp_path):
    whole = unsealed(model, tmp_path / "m.h5")
    found = hdf5.root(hdf5.Reader(io.BytesIO(whole), len(whole)))
    found._links["attributes"] = struct.unpack("<Q", whole[64:72])[0]
    assert list(found["attributes"]) == list(found)  # each step is asked for by name


def test_one_array_under_many_names_is_not_read_beyond_the_bound(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a0"] = np.zeros(2**20)
        for i in range(1, 700):
            file[f"a{i}"] = file["a0"]
    size = os.path.getsize(tmp_path / "x.h5")
    with open(tmp_path / "x.h5", "rb") as file:
        reader = hdf5.Reader(file, size)
        found = hdf5.root(reader)
        reader.left = 100 * 2**20
        with pytest.raises(FileFormatError, match=r"declares 8388608 bytes in a file of .*; refused"):
            [found.array(name) for name in found]


def test_a_chunk_is_unpacked_no_further_than_it_may_be_long():
    bomb = zlib.compress(bytes(200_000_000), 9)
    tracemalloc.start()
    found = hdf5._unfiltered(bomb, [hdf5._DEFLATE], np.dtype("f8"), 32_000, "x")
    assert len(found) == 32_000
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
    for data in (b"", bomb[:20], b"x" * 100, zlib.compress(bytes(31_999))):
        with pytest.raises(FileFormatError, match="x is damaged"):
            hdf5._unfiltered(data, [hdf5._SHUFFLE, hdf5._DEFLATE], np.dtype("f8"), 32_000, "x")


@pytest.mark.parametrize(
    "make",
    [
        lambda file: file.create_dataset("x", (10, 10), "f8", external=[("other.dat", 0, 800)]),
        lambda file: file.create_dataset("x", (5 * 10**6, 2 * 10**6), "f8", chunks=(1000, 10)),
        lambda file: file.create_dataset("x", (5 * 10**6, 2 * 10**6), "f8"),
        lambda file: file.create_dataset("x", data=["a", "b"]),
        lambda file: file.create_dataset("x", data=np.zeros(3, [("a", "f8")])),
        lambda file: file.create_dataset("x", data=np.zeros(3) * 1j),
        lambda file: file.create_dataset("x", data=np.zeros(30), chunks=(10,), fletcher32=True),
        lambda file: file.create_dataset("x", data=np.zeros(30), chunks=(10,), compression="lzf"),
        lambda file: file.create_dataset("x", dtype=h5py.Empty("f8").dtype, data=h5py.Empty("f8")),
        lambda file: file.__setitem__("x", h5py.SoftLink("/y")),
        lambda file: file.__setitem__("x", h5py.ExternalLink("other.h5", "/y")),
        lambda file: file.create_group("x"),
        lambda file: file.create_dataset("x", data=0.0, dtype=file["type"]),
    ],
    ids=["external", "80 TB", "80 TB whole", "text", "records", "complex", "checksums", "lzf", "null", "soft link",
         "external link", "a group", "a shared type"],
)  # fmt: skip
def test_what_emdl_does_not_write_is_refused(make, tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["type"] = np.dtype("f8")
        make(file)
    with pytest.raises(FileFormatError, match=r"x\.h5.* x "), storage.old_file(tmp_path / "x.h5") as found:
        found.array("x")


@pytest.mark.parametrize("version", ["latest", "v108"])
def test_hdf5_of_another_layout_is_refused_in_words(version, tmp_path):
    with h5py.File(tmp_path / "x.h5", "w", libver=version) as file:
        file["x"] = 1.0
    with pytest.raises(FileFormatError, match="HDF5 of another kind"), storage.old_file(tmp_path / "x.h5"):
        pass


# Files of others


def test_a_file_that_ends_the_hdf5_library_does_not_end_emdl(tmp_path, monkeypatch):
    path = tmp_path / "rec.nwb"
    path.write_bytes((CORPUS / "recording.nwb").read_bytes())
    storage.look_through(path)
    monkeypatch.setattr(storage, "_probe", lambda _: -11)
    path.write_bytes((CORPUS / "recording.nwb").read_bytes() + b"\0")  # another state of the file
    with pytest.raises(FileFormatError, match="crashed or did not come back"):
        emdl.spikes.recordings.read(path)


def test_the_process_that_looks_through_a_file_is_bounded_and_comes_back(tmp_path, monkeypatch):
    assert storage._probe(str(CORPUS / "recording.nwb")) == 0
    assert storage._probe(str(CORPUS / "table.csv")) == 0
    hangs = tmp_path / "hangs.py"
    hangs.write_text((pathlib.Path(storage.probe.__file__)).read_text().replace("LONGEST = 8", "LONGEST = 1").replace(
        "    import h5py\n", "    while True:\n        pass\n", 1))  # fmt: skip
    monkeypatch.setattr(storage.probe, "__file__", str(hangs))
    assert storage._probe(str(CORPUS / "recording.nwb")) < 0
