"""A reader of the part of HDF5 that emdl writes, for files of unknown origin.

The HDF5 library is made for files that it wrote itself: damaged ones were seen to crash it, to keep it busy for ever,
and to lead it to other files. A model that somebody sent is therefore not given to it. What emdl writes is little: the
oldest of the layouts [1]_, with groups of hard links, arrays of numbers, whole or in chunks that zlib has compressed,
and attributes that are numbers or text. Each address and length is held against the size of the file before it is
followed, nothing leads out of the file, and whatever else it holds is refused.

References
----------
.. [1] The HDF Group, HDF5 File Format Specification Version 3.0, sections II to IV.
"""

import math
import zlib

import numpy as np

from emdl.errors import FileFormatError

HEAD = 96  # bytes of the beginning, which say where the rest lies
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_NOWHERE = 2**64 - 1
_MOST_AXES = 32
_SHUFFLE, _DEFLATE = 2, 1
_SPACE, _LINK_INFO, _TYPE, _LINK, _EXTERNAL, _LAYOUT, _FILTERS, _ATTRIBUTE, _MORE, _SYMBOLS = (
    1, 2, 3, 6, 7, 8, 11, 12, 16, 17,
)  # fmt: skip


def _damaged(what):
    return FileFormatError(f"{what} is damaged, or of a kind that emdl does not write")


class Reader:
    """The bytes of a file, every piece of which is held against its end.

    Parameters
    ----------
    file : binary file
        Open for reading.
    size : int
        Bytes that belong to HDF5, from the beginning.
    """

    def __init__(self, file, size):
        self._file, self.size, self.left = file, size, max(4 * 2**30, 1000 * size)

    def bytes(self, at, length, what="the file"):
        """Return some bytes.

        Raises
        ------
        FileFormatError
            If they do not lie in the file.
        """
        self._seek(at, length, what)
        found = self._file.read(length)
        if len(found) != length:
            raise _damaged(what)
        return found

    def into(self, at, array, what):
        """Fill an array with the bytes from `at` on."""
        self._seek(at, array.nbytes, what)
        if self._file.readinto(memoryview(array).cast("B")) != array.nbytes:
            raise _damaged(what)

    def _seek(self, at, length, what):
        if not (0 <= at <= self.size and 0 <= length <= self.size - at):
            raise _damaged(what)
        self._file.seek(at)

    def spend(self, length, what):
        """Count the bytes of an array before it is allocated.

        Raises
        ------
        FileFormatError
            If all arrays together take more than 4 GiB and more than 1,000 times the size of the file.
        """
        self.left -= length
        if self.left < 0:
            raise FileFormatError(f"{what} declares {length} bytes in a file of {self.size}; refused")


def length_of(head):
    """Return the number of bytes that belong to HDF5, by the first `HEAD` bytes of the file.

    Raises
    ------
    FileFormatError
        If they are not the beginning of a file as emdl writes it.
    """
    if head[:8] != _SIGNATURE:
        raise FileFormatError("it does not begin as an HDF5 file does")
    if len(head) < HEAD or head[8] or head[13:15] != b"\x08\x08" or _number(head[24:32]):
        raise FileFormatError("it is damaged, or HDF5 of another kind than emdl writes")
    return _number(head[40:48])


def root(reader):
    """Return the root group of a file.

    Parameters
    ----------
    reader : Reader
        Of the whole file.

    Returns
    -------
    Group
    """
    return Group(reader, _number(reader.bytes(64, 8)), "/")


def _number(data):
    return int.from_bytes(data, "little")


class _Fields:
    """Numbers of some bytes, one after another."""

    def __init__(self, data, what):
        self.data, self.at, self.what = data, 0, what

    def take(self, length):
        if length > len(self.data) - self.at:
            raise _damaged(self.what)
        self.at += length
        return self.data[self.at - length : self.at]

    def number(self, length):
        return _number(self.take(length))

    def skip_to(self, multiple):
        self.at += -self.at % multiple


class Group:
    """A group: a mapping of names to groups and arrays, and of names to attributes.

    Attributes
    ----------
    attrs : dict
        Name to str, number or ndarray, in the order of the names.
    """

    def __init__(self, reader, at, name):
        self._reader, self._name = reader, name
        self._messages = _messages(reader, at, name)
        kinds = {kind for kind, _ in self._messages}
        if not kinds & {_SYMBOLS, _LINK_INFO}:
            raise FileFormatError(f"{name} is no group, where one was wanted")
        self._links = _links(reader, self._messages, name)
        self.attrs = _attributes(reader, self._messages, name)

    def __iter__(self):
        return iter(self._links)

    def __contains__(self, name):
        return name in self._links

    def __getitem__(self, name):
        """Return a group of this group."""
        return Group(self._reader, self._address(name), name)

    def _address(self, name):
        at = self._links.get(name)
        if at is None:
            raise FileFormatError(f"{name} is missing, or a link, which is not followed")
        return at

    def array(self, name):
        """Return an array of this group.

        Parameters
        ----------
        name : str
            A path with slashes leads through groups.

        Returns
        -------
        ndarray
            Of numbers.

        Raises
        ------
        FileFormatError
            If it is missing, damaged, no plain array of numbers, or declares more than was stored.
        """
        first, _, rest = name.partition("/")
        if rest:
            return self[first].array(rest)
        return _array(self._reader, _messages(self._reader, self._address(name), name), name)


def _messages(reader, at, name):
    """Return the messages of an object, [(kind, bytes)]."""
    head = reader.bytes(at, 16, name)
    if head[0] != 1:
        raise _damaged(name)
    found, blocks, seen = [], [(at + 16, _number(head[8:12]))], {at + 16}
    for start, length in blocks:
        block = _Fields(reader.bytes(start, length, name), name)
        while length - block.at >= 8:
            kind, size, flags = block.number(2), block.number(2), block.number(1)
            block.take(3)
            data = block.take(size)
            if kind == _MORE:
                more = _Fields(data, name)
                start = more.number(8)
                if start in seen:
                    raise _damaged(name)
                seen.add(start)
                blocks.append((start, more.number(8)))
            elif flags & 2 and kind in (_SPACE, _TYPE, _LAYOUT, _FILTERS, _ATTRIBUTE):
                raise _damaged(name)  # it lies in another object
            else:
                found.append((kind, data))
    return found


def _only(messages, kind, name):
    found = [data for k, data in messages if k == kind]
    if len(found) != 1:
        raise _damaged(name)
    return found[0]


# Groups


def _links(reader, messages, name):
    """Return {name: address}, the address of a link that is not hard being None."""
    found = {}
    for kind, data in messages:
        if kind == _SYMBOLS:
            fields = _Fields(data, name)
            tree, heap = fields.number(8), fields.number(8)
            found |= _symbols(reader, tree, _heap(reader, heap, name), name)
        elif kind == _LINK:
            found |= [_link(_Fields(data, name))]
        elif kind == _LINK_INFO and _number(data[-8:]) != _NOWHERE and _number(data[2 : 2 + 8]) != _NOWHERE:
            raise _damaged(name)
    return dict(sorted(found.items()))


def _link(fields):
    """Return name and address of a link of the newer kind, which the library makes of all where one leads outside."""
    fields.take(1)
    flags = fields.number(1)
    kind = fields.number(1) if flags & 8 else 0
    fields.take(8 if flags & 4 else 0)
    fields.take(1 if flags & 16 else 0)
    name = _text(fields.take(fields.number(2 ** (flags & 3))), fields.what)
    return name, fields.number(8) if kind == 0 else None


def _heap(reader, at, name):
    head = reader.bytes(at, 32, name)
    if head[:4] != b"HEAP":
        raise _damaged(name)
    return reader.bytes(_number(head[24:32]), _number(head[8:16]), name)


def _symbols(reader, tree, heap, name):
    found = {}
    for _, at in _leaves(reader, tree, 0, 8, name):
        head = reader.bytes(at, 8, name)
        if head[:4] != b"SNOD":
            raise _damaged(name)
        table = _Fields(reader.bytes(at + 8, 40 * _number(head[6:8]), name), name)
        for _ in range(_number(head[6:8])):
            start, address, kind = table.number(8), table.number(8), table.number(4)
            table.take(20)
            end = heap.find(b"\0", start)
            if start >= len(heap) or end < 0:
                raise _damaged(name)
            found[_text(heap[start:end], name)] = address if kind in (0, 1) else None
    return found


def _leaves(reader, at, kind, key_size, name):
    """Return (key, address) of all that a tree holds, whose nodes may each be visited once."""
    found, nodes, seen = [], [at], {at}
    for at in nodes:
        head = reader.bytes(at, 24, name)
        if head[:4] != b"TREE" or head[4] != kind:
            raise _damaged(name)
        used = _number(head[6:8])
        fields = _Fields(reader.bytes(at + 24, used * (key_size + 8), name), name)
        for _ in range(used):
            key, child = fields.take(key_size), fields.number(8)
            if child in seen:
                raise _damaged(name)
            seen.add(child)
            if head[5]:
                nodes.append(child)
            else:
                found.append((key, child))
    return found


# Numbers and text


def _text(data, what):
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _damaged(what) from error


def _shape(fields):
    """Return the shape in a data space."""
    version, rank, flags = fields.number(1), fields.number(1), fields.number(1)
    if version == 1:
        fields.take(5)
    elif version != 2 or fields.number(1) > 1:
        raise _damaged(fields.what)
    if rank > _MOST_AXES or flags > 1:
        raise _damaged(fields.what)
    return tuple(fields.number(8) for _ in range(rank))


def _dtype(fields):
    """Return the dtype of numbers; of texts of fixed length; None for texts of any length."""
    head, bits, size = fields.number(1), fields.number(3), fields.number(4)
    kind = head & 15
    if head >> 4 not in (1, 2, 3):
        raise _damaged(fields.what)
    if kind == 0 and size in (1, 2, 4, 8):
        if fields.number(4) != 8 * size << 16:  # bits beside the number
            raise _damaged(fields.what)
        return np.dtype(f"{'>' if bits & 1 else '<'}{'i' if bits & 8 else 'u'}{size}")
    if kind == 1 and fields.take(12).hex() in _FLOATS.get(size, ()):
        return np.dtype(f"{'>' if bits & 1 else '<'}f{size}")
    if kind == 3 and size:
        return np.dtype(f"S{size}")
    if kind == 8 and size == 1 and _dtype(fields) == np.int8:
        return np.dtype(bool)
    if kind == 9 and bits & 15 == 1 and size == 16:
        return None
    raise FileFormatError(f"{fields.what} holds neither numbers nor text")


# Size: where the parts of IEEE numbers lie: first bit, bits, exponent (first, bits), fraction (first, bits), bias.
_FLOATS = {
    2: ("000010000a05000a0f000000",),
    4: ("00002000170800177f000000",),
    8: ("00004000340b0034ff030000",),
}


def _attributes(reader, messages, name):
    found = {}
    for kind, data in messages:
        if kind == _ATTRIBUTE:
            found |= [_attribute(reader, _Fields(data, f"an attribute of {name}"))]
    return dict(sorted(found.items()))


def _attribute(reader, fields):
    version, flags = fields.number(1), fields.number(1)
    if version not in (1, 2, 3) or (version > 1 and flags):
        raise _damaged(fields.what)
    sizes = [fields.number(2) for _ in range(3)]
    fields.take(1 if version == 3 else 0)
    parts = []
    for size in sizes:
        parts.append(_Fields(fields.take(size), fields.what))
        if version == 1:
            fields.take(-size % 8)
    name = _text(parts[0].data.split(b"\0")[0], fields.what)
    dtype, shape = _dtype(parts[1]), _shape(parts[2])
    if dtype is None:
        if shape:
            raise _damaged(fields.what)
        return name, _heap_text(reader, fields)
    count = math.prod(shape)
    value = np.frombuffer(fields.take(count * dtype.itemsize), dtype).reshape(shape)
    value = value.astype(dtype.newbyteorder("="))
    if dtype.kind == "S" and not shape:
        return name, _text(bytes(value[()]), fields.what)
    return name, value if shape else value[()]


def _heap_text(reader, fields):
    """Return a text of any length, which lies in a heap."""
    length, at, index = fields.number(4), fields.number(8), fields.number(4)
    if not length:
        return ""
    head = reader.bytes(at, 16, fields.what)
    if head[:4] != b"GCOL":
        raise _damaged(fields.what)
    heap = _Fields(reader.bytes(at, _number(head[8:16]), fields.what), fields.what)
    heap.take(16)
    while len(heap.data) - heap.at >= 16:
        number = heap.number(2)
        heap.take(6)
        data = heap.take(heap.number(8))
        heap.skip_to(8)
        if number == index and length <= len(data):
            return _text(data[:length].split(b"\0")[0], fields.what)
        if not number:
            break
    raise _damaged(fields.what)


# Arrays


def _array(reader, messages, name):
    if any(kind == _EXTERNAL for kind, _ in messages):
        raise FileFormatError(f"{name} is not a plain data set, whose values lie in the file")
    if not {_SPACE, _TYPE, _LAYOUT} <= {kind for kind, _ in messages}:
        raise FileFormatError(f"{name} is not a plain data set of numbers")
    shape = _shape(_Fields(_only(messages, _SPACE, name), name))
    dtype = _dtype(_Fields(_only(messages, _TYPE, name), name))
    if dtype is None or dtype.kind == "S":
        raise FileFormatError(f"{name} is not a plain data set of numbers")
    layout = _Fields(_only(messages, _LAYOUT, name), name)
    if layout.number(1) != 3:
        raise FileFormatError(f"{name} is not a plain data set, whose values lie in the file")
    kind, size = layout.number(1), math.prod(shape) * dtype.itemsize
    reader.spend(size, name)
    if size == 0:
        return np.empty(shape, dtype.newbyteorder("="))
    if kind == 0:
        data = layout.take(layout.number(2))
        if len(data) < size:
            raise _damaged(name)
        found = np.frombuffer(data[:size], dtype).reshape(shape)
    elif kind == 1:
        at, stored = layout.number(8), layout.number(8)
        if stored != size or not 0 <= at <= reader.size - size:
            raise FileFormatError(f"{name} declares {size} bytes but stores {stored}; refused")
        found = np.empty(shape, dtype)
        reader.into(at, found, name)
    elif kind == 2:
        filters = [data for kind, data in messages if kind == _FILTERS]
        found = _chunks(reader, layout, shape, dtype, _filters(filters, name), name)
    else:
        raise _damaged(name)
    return found.astype(dtype.newbyteorder("="))


def _filters(messages, name):
    """Return the filters of chunks, in the order of writing."""
    if not messages:
        return []
    fields = _Fields(messages[0], name)
    version, count = fields.number(1), fields.number(1)
    if version not in (1, 2):
        raise _damaged(name)
    fields.take(6 if version == 1 else 0)
    found = []
    for _ in range(count):
        found.append(fields.number(2))
        title = fields.number(2) if version == 1 or found[-1] >= 256 else 0
        fields.take(2)
        values = fields.number(2)
        fields.take(title + -title % 8 + 4 * values + (4 * (values % 2) if version == 1 else 0))
    if not set(found) <= {_SHUFFLE, _DEFLATE}:
        raise FileFormatError(f"{name} is compressed by a filter that emdl does not write")
    return found


def _chunks(reader, layout, shape, dtype, filters, name):
    """Return an array that is stored in chunks."""
    rank = len(shape)
    if layout.number(1) != rank + 1:
        raise _damaged(name)
    tree, chunk = layout.number(8), tuple(layout.number(4) for _ in range(rank))
    size = math.prod(chunk) * dtype.itemsize
    if layout.number(4) != dtype.itemsize or not 0 < size < 2**32:
        raise _damaged(name)
    reader.spend(size, name)
    found, places = np.empty(shape, dtype), set()
    for key, at in _leaves(reader, tree, 1, 8 + 8 * (rank + 1), name):
        fields = _Fields(key, name)
        stored, skipped = fields.number(4), fields.number(4)
        first = tuple(fields.number(8) for _ in range(rank))
        if skipped or first in places or any(f % c or f >= n for f, c, n in zip(first, chunk, shape, strict=True)):
            raise _damaged(name)
        places.add(first)
        values = np.frombuffer(_unfiltered(reader.bytes(at, stored, name), filters, dtype, size, name), dtype)
        space = tuple(slice(f, f + c) for f, c in zip(first, chunk, strict=True))
        target = found[space]
        target[...] = values.reshape(chunk)[tuple(slice(0, n) for n in target.shape)]
    if len(places) != math.prod(-(-n // c) for n, c in zip(shape, chunk, strict=True)):
        raise FileFormatError(f"{name} declares more chunks than it stores; refused")
    return found


def _unfiltered(data, filters, dtype, size, name):
    """Return the bytes of a chunk as they were before the filters."""
    for kind in reversed(filters):
        if kind == _DEFLATE:
            inflate = zlib.decompressobj()
            try:
                data = inflate.decompress(data, size)
            except zlib.error as error:
                raise _damaged(name) from error
        elif len(data) == size:
            data = np.frombuffer(data, np.uint8).reshape(dtype.itemsize, -1).T.tobytes()
    if len(data) != size:
        raise _damaged(name)
    return data
