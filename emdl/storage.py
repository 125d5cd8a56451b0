"""Files: written whole or not at all, by one process at a time, and read without trust in what they hold."""

import contextlib
import errno
import functools
import hashlib
import json
import logging
import math
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import tokenize
import zipfile
import zlib

import numpy as np

from emdl import hdf5, probe
from emdl.errors import EmdlError, FileFormatError, InputError, InputTypeError

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be removed, which serves as well
    fcntl = None  # type: ignore[assignment]

_LARGEST = 4 * 2**30  # bytes of one data set, above which it must not be so much larger than what is stored
_INFLATION = 1000
_GROWTH = 2**20  # bytes by which a file grows that is made in memory
_SEAL = b"emdl-256"  # before the hash of the rest, at the end of a file, where other readers of HDF5 do not look
_DAMAGE = (
    OSError,
    LookupError,
    TypeError,
    ValueError,
    ArithmeticError,
    RuntimeError,
    AttributeError,
    SyntaxError,
    EOFError,
    AssertionError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    tokenize.TokenError,
)
_LOCKLESS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what a network folder that knows no locks answers
_PATIENCE = 120  # seconds by the clock for the process that looks through a file
_LOG = logging.getLogger(__name__)
_LONGEST_NAME = 255


@contextlib.contextmanager
def replacing(path):
    """Give the name of a temporary file beside `path`, which takes its place once it is whole and on the disk.

    Parameters
    ----------
    path : path
        The output. It keeps its old content until the new one is complete, whatever happens in between.

    Yields
    ------
    Path
        Of an empty file in the same folder, with the same ending, as writers choose the format by it.

    Raises
    ------
    FileFormatError
        If the folder is missing, full, or cannot be written. Errors that are no `OSError` pass as they are.
    """
    path = pathlib.Path(path)
    try:
        handle, name = tempfile.mkstemp(prefix=_part_prefix(path), suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise FileFormatError(
            f"cannot write {path}: {error.strerror}; choose a folder that exists and can be written"
        ) from error
    os.close(handle)
    try:
        yield pathlib.Path(name)
        with open(name, "rb+") as written:
            os.fsync(written.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
        _sync_folder(path.parent)
    except EmdlError as error:
        if name not in str(error):
            raise
        raise type(error)(str(error).replace(name, str(path))) from error  # of a writer that replaces this file in turn
    except OSError as error:
        raise FileFormatError(
            f"cannot write {path}: {error.strerror or error}; what stood there is as it was"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)


def _part_prefix(path):
    return f".{path.stem[: _LONGEST_NAME // 2]}.part-"


def _sync_folder(folder):
    """Bring the new name onto the disk; some systems cannot open a folder, and need not."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_parts(path):
    """Remove what writers of `path` left that were killed; to be called while its `lock` is held.

    Parameters
    ----------
    path : path
        The output.
    """
    path = pathlib.Path(path)
    start = _part_prefix(path)
    for part in path.parent.iterdir():
        if part.name.startswith(start) and part.suffix == path.suffix:
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(path):
    """Keep every other process from taking the same lock, until the context ends or this process does, however it ends.

    Parameters
    ----------
    path : path
        The output; the lock is a file ``.NAME.lock`` beside it, which holds the number of the process.

    Raises
    ------
    InputError
        If another process has it; its number is named.
    FileFormatError
        If the folder cannot be written.
    """
    path = pathlib.Path(path)
    name = path.with_name(f".{path.name}.lock")
    try:
        handle = _taken(name)
    except OSError as error:
        raise FileFormatError(f"cannot write {name}: {error.strerror}") from error
    if handle is None:
        owner = name.read_text(errors="replace").strip()[:20] if name.exists() else ""
        raise InputError(
            f"another run{f' (process {owner})' if owner.isdigit() else ''} is writing {path}; "
            "wait until it has ended, or choose another output"
        )
    try:
        os.truncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
        yield
    finally:
        if fcntl is not None:  # removed while it is held, so that no other process removes a lock of a third
            with contextlib.suppress(OSError):
                os.unlink(name)
        os.close(handle)
        if fcntl is None:
            with contextlib.suppress(OSError):
                os.unlink(name)


def _taken(name):
    """Return the handle of the locked file, None if another process holds it."""
    while True:
        if fcntl is None and name.exists():
            try:
                os.unlink(name)
            except PermissionError:
                return None
        handle = os.open(name, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        if fcntl is None:
            return handle
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError as error:
            if error.errno not in _LOCKLESS:
                os.close(handle)
                raise
            _LOG.warning("%s: this folder knows no locks, so a second run would not be noticed", name.parent)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(name)):
                return handle
        os.close(handle)  # it was removed by its last owner between opening and locking


@contextlib.contextmanager
def new_file(path):
    """Give an HDF5 file to write to, which takes the place of `path` once it is complete and on the disk.

    It is made in memory: the HDF5 library does not survive an error of the disk in the middle of its writing (after a
    full disk it was seen to end the process much later, in another file). The last 40 bytes of the file are a hash of
    all the others, which `old_file` looks at.

    Parameters
    ----------
    path : path
        Where the file goes.

    Yields
    ------
    h5py.File

    Raises
    ------
    FileFormatError
        If the folder is missing, full, or cannot be written.
    """
    import h5py

    with replacing(path) as part:
        core = {"driver": "core", "backing_store": False, "block_size": _GROWTH}
        with h5py.File(part.name, "w", libver=("earliest", "v108"), **core) as file:
            yield file
            file.flush()
            image = file.id.get_file_image()
        with open(part, "wb") as written:
            written.write(image)
            written.write(_SEAL + hashlib.sha256(image).digest())


@contextlib.contextmanager
def old_file(path, what="model"):
    """Give an HDF5 file to read from; whatever is wrong with it comes out as one kind of error.

    Parameters
    ----------
    path : path
        HDF5 file.
    what : str
        What it ought to hold, for the messages.

    Yields
    ------
    emdl.hdf5.Group
        Its root; the HDF5 library, which damaged files crash, never sees it.

    Raises
    ------
    FileFormatError
        If the file is missing or damaged.
    """
    if not pathlib.Path(path).is_file():
        folder = pathlib.Path(path).is_dir()
        raise FileFormatError(f"{path} is a folder, wanted a file" if folder else f"there is no file {path}")
    with explained(path, "is no HDF5 file that emdl wrote"):
        try:
            with open(path, "rb") as file:
                length = hdf5.length_of(file.read(hdf5.HEAD))
                _check_seal(file, length)
                yield hdf5.root(hdf5.Reader(file, length))
        except InputError as error:
            raise FileFormatError(f"{path} holds no valid {what}: {error}") from error
        except FileFormatError as error:
            raise FileFormatError(f"{path}: {error}") from error


def _check_seal(file, length):
    """Raise unless a file ends after `length` bytes, as old ones and edited ones do, or after the hash of these."""
    size = os.fstat(file.fileno()).st_size
    if size == length:
        return
    if size != length + len(_SEAL) + hashlib.sha256().digest_size:
        raise FileFormatError(f"the file has {size} bytes, but was written with {length}; take a whole copy of it")
    file.seek(0)
    found = hashlib.sha256()
    for first in range(0, length, _GROWTH):
        found.update(file.read(min(_GROWTH, length - first)))
    if file.read() != _SEAL + found.digest():
        raise FileFormatError("its content is not what was written: some bytes have changed; take another copy of it")


def look_through(path):
    """Raise if the HDF5 library does not survive a file: it is looked through in a process of its own first.

    For files that others wrote and that `emdl.hdf5` cannot read. It costs about 0.2 s, once for each state of a file.
    Memory (4 GiB) and processor time (8 s) are bounded there; of a large data set 64 pieces are read, and after 3 s of
    processor time the rest is taken on trust.

    Parameters
    ----------
    path : path
        HDF5 file.

    Raises
    ------
    FileFormatError
        If the process crashed, or did not come to an end.
    """
    state = os.stat(path)
    said = _looked_through(os.path.abspath(path), (state.st_size, state.st_mtime_ns, state.st_ino))
    if said:
        raise FileFormatError(
            f"{path} is damaged: looking through it, the HDF5 library {said}; take another copy of it"
        )


@functools.lru_cache(maxsize=256)
def _looked_through(path, _state):
    """Return what happened to the process, in words; nothing if it came to its end."""
    try:
        code = _probe(path)
    except subprocess.TimeoutExpired:
        return f"did not come back within {_PATIENCE} s"
    except OSError as error:  # no process can be started here, as inside some applications
        _LOG.debug("%s was not looked through: %s", path, error)
        return ""
    return "" if code in (0, 1, 2) else f"crashed or did not come back (exit status {code})"


def _probe(path):
    """Return the exit status of a process that looks through a file; 1 and 2 are those of a Python that cannot."""
    if not sys.executable:
        return 1
    command = [sys.executable, "-I", probe.__file__, json.dumps(sys.path), path]
    quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, **quiet, timeout=_PATIENCE, env=os.environ | threads, check=False).returncode


@contextlib.contextmanager
def explained(path, otherwise="is not what its name says"):
    """Turn whatever the libraries that read files raise about a damaged one into one kind of error.

    Parameters
    ----------
    path : path
        The file, for the message.
    otherwise : str
        What else may be the matter, for the message.

    Raises
    ------
    FileFormatError
        For anything that is no `EmdlError` already.
    """
    try:
        yield
    except EmdlError:
        raise
    except MemoryError as error:
        raise FileFormatError(f"{path} takes more memory than there is ({error})") from error
    except _DAMAGE as error:
        raise FileFormatError(f"{path} is damaged, or {otherwise} ({error or type(error).__name__})") from error


def read_array(group, name):
    """Return a numeric data set of an HDF5 group, after the checks of `plain_dataset`.

    Parameters
    ----------
    group : emdl.hdf5.Group or h5py.Group
        Where it is.
    name : str
        Its name; a path with slashes leads through groups.

    Returns
    -------
    ndarray

    Raises
    ------
    FileFormatError
        If it is not plain, or holds no real numbers.
    """
    if isinstance(group, hdf5.Group):
        return group.array(name)
    item = plain_dataset(group, name)
    if item.dtype.kind not in "fiub":
        raise FileFormatError(f"{name} is not a plain data set of numbers")
    return np.asarray(item[()])


def plain_dataset(group, name):
    """Return a data set of an HDF5 group, unread, after checks that make a hostile file harmless.

    HDF5 can lead out of the file: by external links, by raw data in other files, by virtual data sets. None is
    followed, nor are links within the file.

    Parameters
    ----------
    group : h5py.Group
        Where it is.
    name : str
        Its name; a path with slashes leads through groups.

    Returns
    -------
    h5py.Dataset

    Raises
    ------
    FileFormatError
        If it is missing or a link, lies outside the file, has no values, or declares more than was stored.
    """
    import h5py

    item = group
    for part in [p for p in name.split("/") if p]:
        if not isinstance(item, h5py.Group) or not isinstance(item.get(part, getlink=True), h5py.HardLink):
            raise FileFormatError(f"{name} is missing, or a link, which is not followed")
        item = item[part]
    if not isinstance(item, h5py.Dataset) or item.external or item.is_virtual or item.shape is None:
        raise FileFormatError(f"{name} is not a plain data set, whose values lie in the file")
    check_size(name, item.nbytes, item.id.get_storage_size())
    return item


def read_npz(path, names=()):
    """Return arrays of an ``.npz`` file, after checks that make a hostile one harmless; nothing is unpickled.

    Parameters
    ----------
    path : path
        The file.
    names : sequence of str
        Arrays to read, those of them that are there; by default all.

    Returns
    -------
    arrays : dict
        Name to ndarray.
    held : list of str
        The names of all that the file holds.

    Raises
    ------
    FileFormatError
        If the file is damaged, or an array declares more than is stored.
    InputTypeError
        If an array holds Python objects.
    """
    with explained(path, "is no .npz file"), open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        held = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        arrays = {}
        for name in [name for name in names or held if name in held]:
            info = held[name]
            check_size(name, info.file_size, info.compress_size)
            with archive.open(info) as member:
                _check_header(path, name, member, info.file_size)
            with archive.open(info) as member:
                arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
    return arrays, list(held)


def _check_header(path, name, member, size):
    """Raise if the head of an .npy file declares more than follows, before anything is allocated."""
    version = np.lib.format.read_magic(member)
    if version not in ((1, 0), (2, 0)):
        raise FileFormatError(f"{path}: {name} has version {version} of .npy, wanted 1 or 2")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(member)
    if dtype.hasobject:
        raise InputTypeError(f"{path}: {name} holds Python objects; save the numbers as one plain array")
    declared = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or declared > size:
        raise FileFormatError(f"{path}: {name} declares {declared} bytes but stores {size}; refused")


def check_size(name, declared, stored):
    """Raise if an array takes more than 4 GiB and also more than 1,000 times what is stored of it.

    Parameters
    ----------
    name : str
        What to call it.
    declared, stored : int
        Bytes in memory, and in the file.

    Raises
    ------
    FileFormatError
        If so.
    """
    if declared > _LARGEST and declared > _INFLATION * stored:
        raise FileFormatError(f"{name} declares {declared} bytes but stores {stored}; refused")
