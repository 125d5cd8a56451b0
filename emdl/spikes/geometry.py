"""Files that say where the channels of a recording are."""

import ast
import csv
import json

import numpy as np

from emdl.errors import FileFormatError, InputError

_LARGEST = 1 << 24  # bytes of a file that is no list of places


def read(path, n_channels):
    """Return the places of channels read from a file.

    Parameters
    ----------
    path : Path
        ``.json`` of probeinterface, ``.prb`` (``channel_groups`` with ``geometry``), or a table ``.csv`` or ``.txt``
        with the place of one channel in a line, two or three numbers, in the order of the channels.
    n_channels : int
        Of the recording.

    Returns
    -------
    ndarray (C, 2 or 3)
        In the unit of the file, mostly um.

    Raises
    ------
    FileFormatError
        If the file is missing or none of these.
    InputError
        If it does not hold a finite place for each channel.
    """
    readers = {".json": _probeinterface, ".prb": _prb, ".csv": _table, ".txt": _table}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise FileFormatError(f"{path.name} is no file of channel places; wanted one of {', '.join(readers)}")
    try:
        if path.stat().st_size > _LARGEST:
            raise FileFormatError(f"{path.name} is too large for a file of channel places")
        places = reader(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, SyntaxError, AttributeError, RecursionError, MemoryError) as error:
        raise FileFormatError(f"{path.name} is no file of channel places as its ending says: {error}") from error
    missing = [c for c in range(n_channels) if c not in places]
    if missing or len(places) > n_channels:
        what = f"none for channel {missing[0]}" if missing else "more than channels"
        raise InputError(f"{path.name} holds {len(places)} places, {what}; the recording has {n_channels} channels")
    axes = {len(place) for place in places.values()}
    if axes not in ({2}, {3}) or not np.isfinite([v for place in places.values() for v in place]).all():
        raise InputError(f"{path.name}: the place of each channel is two, or three, finite numbers")
    return np.array([places[c] for c in range(n_channels)])


def _probeinterface(text):
    """Return {channel: place} of the probes in a JSON file; contacts without a channel are left out."""
    places = {}
    for probe in json.loads(text)["probes"]:
        positions = probe["contact_positions"]
        channels = probe.get("device_channel_indices")
        channels = range(len(places), len(places) + len(positions)) if channels is None else channels
        for channel, place in zip(channels, positions, strict=True):
            if channel >= 0:
                places[int(channel)] = [float(v) for v in place]
    return places


def _prb(text):
    """Return {channel: place} of a .prb file, which is read as a literal: nothing in it is run."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "channel_groups":
            groups = ast.literal_eval(node.value)
            return {int(c): list(map(float, p)) for g in groups.values() for c, p in g["geometry"].items()}
    raise ValueError("it sets no channel_groups")


def _table(text):
    """Return {line: place} of a table of numbers; a first line of words is a heading."""
    rows = [row for row in csv.reader(text.replace(";", ",").replace("\t", ",").splitlines()) if row]
    if rows and not _is_number(rows[0][0]):
        rows = rows[1:]
    return {channel: [float(v) for v in row] for channel, row in enumerate(rows)}


def _is_number(word):
    try:
        float(word)
    except ValueError:
        return False
    return True
