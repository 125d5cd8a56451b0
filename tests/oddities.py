"""Arrays that are bad, and arrays that are odd but must give what plain ones give: made from a good array."""

import pathlib
import tempfile

import numpy as np
import pytest

from emdl.errors import EmdlError, InputError, InputTypeError


def assert_refused(call, words):
    """Check that a call ends in an error of emdl that says these words."""
    with pytest.raises(EmdlError) as caught:
        call()
    assert words in str(caught.value)


def put(x, value):
    x = np.array(x, float)
    x[(-1,) * x.ndim] = value
    return x


BAD = {
    "NaN": (lambda x: put(x, np.nan), InputError),
    "Inf": (lambda x: put(x, np.inf), InputError),
    "-Inf": (lambda x: put(x, -np.inf), InputError),
    "complex": (lambda x: x * 1j, InputTypeError),
    "objects": (lambda x: x.astype(object), InputTypeError),
    "text": (lambda x: x.astype(str), InputTypeError),
    "times": (lambda x: x.astype("datetime64[s]"), InputTypeError),
    "records": (lambda x: np.zeros(x.shape, [("a", float)]), InputTypeError),
    "masked": (lambda x: np.ma.masked_array(x, x > 1), InputTypeError),
    "None": (lambda x: None, EmdlError),
    "a word": (lambda x: "array", EmdlError),
    "ragged": (lambda x: [[1.0, 2.0], [3.0]], EmdlError),
    "0-d": (lambda x: np.float64(1.0), InputError),
    "empty": (lambda x: x[..., :0], InputError),
    "no signals": (lambda x: x[:0], InputError),
    "five axes": (lambda x: x[None, None], InputError),
}


def memory_mapped(x):
    with tempfile.NamedTemporaryFile(suffix=".npy", delete=False) as file:
        np.save(file, x)
    mapped = np.load(file.name, mmap_mode="r")
    pathlib.Path(file.name).unlink()
    return mapped


def negative_strides(x):
    return np.ascontiguousarray(x[(slice(None, None, -1),) * x.ndim])[(slice(None, None, -1),) * x.ndim]


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


class Subclass(np.ndarray):
    """An array with a name of its own."""


def misaligned(x):
    raw = np.zeros(x.nbytes + 1, np.uint8)
    view = raw[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    assert not view.flags.aligned
    return view


# how it is stored, and the dtype whose result it must have
ODD = {
    "big-endian": (lambda x: x.astype(">f8"), np.float64),
    "big-endian float32": (lambda x: x.astype(">f4"), np.float32),
    "Fortran order": (lambda x: np.asfortranarray(x), np.float64),
    "negative strides": (negative_strides, np.float64),
    "broadcast": (lambda x: np.broadcast_to(x[:1], x.shape), np.float64),
    "every other": (lambda x: np.repeat(x, 2, axis=-1)[..., ::2], np.float64),
    "read-only": (read_only, np.float64),
    "memory-mapped": (memory_mapped, np.float64),
    "misaligned": (misaligned, np.float64),
    "subclass": (lambda x: x.view(Subclass), np.float64),
    "lists": (lambda x: x.tolist(), np.float64),
    "float16": (lambda x: x.astype(np.float16), np.float32),
    "longdouble": (lambda x: x.astype(np.longdouble), np.float64),
    "int16": (lambda x: (4 * x).astype(np.int16), np.float64),
    "uint8": (lambda x: np.abs(4 * x).astype(np.uint8), np.float64),
    "bool": (lambda x: x > 0, np.float64),
}
