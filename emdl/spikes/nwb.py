"""NWB, the format of Neurodata Without Borders: electrical series are read with h5py, units written with pynwb."""

import datetime
import importlib.metadata
import logging
import uuid

import numpy as np

from emdl import storage
from emdl.errors import EmdlError, FileFormatError, InputError
from emdl.spikes import formats, quality
from emdl.spikes.lazy import Stored, scaled
from emdl.text import printable

logger = logging.getLogger(__name__)


_LONGEST_UNIT = 24  # letters
_TIMES = 10_000  # time stamps looked at to find the sampling rate


def load(path, series=None):
    """Return a recording of an NWB file, in uV.

    Parameters
    ----------
    path : Path
        The file.
    series : str, optional
        Name of the electrical series, as ``ElectricalSeries`` or ``acquisition/ElectricalSeries``. Needed if there are
        several.

    Returns
    -------
    Content
        Values are stored times `conversion` (and `channel_conversion`), plus `offset`, in volts by the format; times
        1e6 they are in uV.

    Raises
    ------
    FileFormatError
        If the file is no NWB, or holds no electrical series.
    InputError
        If there are several series and none was chosen, or none of that name.
    """
    file = formats.open_hdf5(path)
    found = _series(file)
    group = found[_choose(path.name, found, series)]
    data = storage.plain_dataset(group, "data")
    fs, start = _sampling(group, path.name)
    stored = Stored(data).T if data.ndim == 2 else Stored(data)
    gain = float(data.attrs.get("conversion", 1.0)) * np.asarray(group.get("channel_conversion", 1.0))
    offset = float(data.attrs.get("offset", 0.0))
    volts = _text(data.attrs.get("unit", "volts")).lower() in ("volts", "volt", "v")
    unit, factor = ("uV", 1e6) if volts else (printable(_text(data.attrs["unit"]))[:_LONGEST_UNIT], 1.0)
    if data.ndim > 2 or data.dtype.kind not in "iuf":
        raise FileFormatError(f"{group.name} in {path.name} has shape {data.shape} of {data.dtype}; wanted two axes")
    values = scaled(stored.lazy(), factor * gain, factor * offset)
    return formats.Content(values, fs, "channels-first", unit, _positions(file, group), start)


def _series(file):
    """Return the groups that hold a recording: electrical series, those of the raw recording first."""
    import h5py

    found = {}

    def look(name, item):
        kind = _text(item.attrs.get("neurodata_type", ""))
        if kind == "ElectricalSeries" and isinstance(item.get("data"), h5py.Dataset):
            found[name] = item

    file.visititems(lambda name, item: look(name, item) if isinstance(item, h5py.Group) else None)
    if not found and "acquisition" in file:  # a file that does not say the types of its groups
        held = file["acquisition"].items()
        found = {f"acquisition/{k}": g for k, g in held if isinstance(g, h5py.Group) and "data" in g}
    raw = {name: group for name, group in found.items() if name.startswith("acquisition/")}
    return raw or found


def _choose(name, found, series):
    if not found:
        raise FileFormatError(f"{name} holds no electrical series; name a data set with --key if it is elsewhere")
    listed = ", ".join(found)
    if series is None:
        if len(found) > 1:
            first = next(iter(found)).rpartition("/")[2]
            raise InputError(f"{name} holds {len(found)} recordings: {listed}; choose one, as --series {first}")
        return next(iter(found))
    matching = [key for key in found if key == series.strip("/") or key.rpartition("/")[2] == series]
    if len(matching) != 1:
        what = "no series" if not matching else f"{len(matching)} series"
        raise InputError(f"{name} holds {what} named {series!r}; it holds {listed}")
    return matching[0]


def _sampling(group, name):
    """Return sampling rate and start of a series, from its rate or its time stamps."""
    if "starting_time" in group:
        start = group["starting_time"]
        return start.attrs.get("rate"), float(start[()])
    times = group.get("timestamps")
    if times is None or len(times) < 2:
        return None, 0.0
    step = float(np.median(np.diff(times[:_TIMES])))
    fs = round(1 / step, 3)
    missing = (times[-1] - times[0]) - (len(times) - 1) / fs
    if abs(missing) > 2 * step and abs(missing) > 1e-4 * (times[-1] - times[0]):
        logger.warning(
            "%s: its time stamps span %.3f s more than its samples at %g Hz: there are pauses; "
            "times of spikes count samples from the start",
            name, missing, fs,
        )  # fmt: skip
    return fs, float(times[0])


def _positions(file, group):
    """Return the places of the channels (C, 2), um, or None where the file does not tell them apart."""
    table = file.get("general/extracellular_ephys/electrodes")
    rows = group.get("electrodes")
    if table is None or rows is None:
        return None
    rows = np.asarray(rows)
    for names in (("rel_x", "rel_y"), ("x", "y")):
        if all(name in table for name in names):
            places = np.stack([np.asarray(table[name], float)[rows] for name in names], axis=1)
            if np.isfinite(places).all() and len(np.unique(places, axis=0)) == len(places):
                return places
    return None


def _text(value):
    return value.decode() if isinstance(value, bytes) else str(value)


def write_units(path, result, *, description="spikes"):
    """Write units and their spikes as the units table of a new NWB file.

    Parameters
    ----------
    path : Path
        The file; one of that name is replaced.
    result : Sorting
        From `emdl.sort`. Quality becomes columns of the table.
    description : str
        What was sorted, for the description of the session.

    Raises
    ------
    EmdlError
        If pynwb is not installed; the message says how to install it.
    """
    pynwb = find_pynwb()
    file = pynwb.NWBFile(
        session_description=f"units of {description}, sorted by emdl {importlib.metadata.version('emdl')}",
        identifier=str(uuid.uuid4()),
        session_start_time=datetime.datetime.now(datetime.UTC),
    )
    rows = result.quality
    numbers = [name for name in (rows[0] if rows else {}) if name not in ("unit", "spikes")]
    for name in numbers:
        file.add_unit_column(name=name, description=quality.COLUMNS.get(name, name))
    times = result.spikes.time_s + result.recording.start_s
    for unit, row in enumerate(rows):
        file.add_unit(
            id=unit,
            spike_times=times[result.spikes.unit == unit],
            waveform_mean=result.model.waveforms[unit].T,
            waveform_sd=result.model.spread[unit].T,
            **{name: np.nan if row[name] is None else row[name] for name in numbers},
        )
    with pynwb.NWBHDF5IO(path, "w") as io:
        io.write(file)


def find_pynwb():
    """Return the module pynwb, which is imported only to write.

    Returns
    -------
    module

    Raises
    ------
    EmdlError
        If it is not installed.
    """
    try:
        import pynwb
    except ImportError as error:
        raise EmdlError('writing NWB needs pynwb: pip install "emdl[nwb]", or write .csv or .npz') from error
    return pynwb
