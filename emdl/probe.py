"""Looks through an HDF5 file, in a process of its own: what crashes or holds up the HDF5 library does so there.

    python probe.py '["folders", "of", "modules"]' FILE

`emdl.storage.look_through` starts it. It ends with 0 when the library came back from everything, also with errors.
"""

import contextlib
import json
import sys
import time

ENOUGH = 3.0  # seconds of processor time after which the rest is taken on trust
LONGEST = 8  # seconds of processor time after which the process is ended
_MEMORY = 4 * 2**30  # bytes of address space
_PIECE = 16 * 2**20  # bytes read at once
_PIECES = 64  # of one data set


def limit():
    """Bound memory and time of this process, where the system can."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (LONGEST, LONGEST + 1))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def look(path):
    """Open a file, and read what it is made of, all attributes, and some of each data set.

    Parameters
    ----------
    path : path
        HDF5 file.
    """
    import h5py

    began = time.process_time()

    def one(_, item):
        for name in item.attrs:
            with contextlib.suppress(Exception):
                item.attrs[name]
        if isinstance(item, h5py.Dataset):
            with contextlib.suppress(Exception):
                _read(item)
        return True if time.process_time() - began > ENOUGH else None

    with contextlib.suppress(Exception), h5py.File(path, "r") as file:
        one("/", file)
        file.visititems(one)


def _read(item):
    if item.external or item.is_virtual or item.shape is None:
        return  # refused later, and not followed here
    if item.shape == ():
        item[()]
    elif item.chunks is None:
        for first in (0, max(0, len(item) - 1)):
            item[first : first + 1]
    elif item.size:
        row = max(1, item.nbytes // len(item))
        rows = max(1, min(_PIECE // row, item.chunks[0]))
        step = max(rows, -(-len(item) // _PIECES))
        for first in range(0, len(item), step):
            item[first : first + rows]
        item[len(item) - 1 :]


if __name__ == "__main__":
    sys.path[:] = json.loads(sys.argv[1])
    limit()
    look(sys.argv[2])
