"""Tables of spikes: one row per spike, as CSV for people and spreadsheets or NPZ for programs."""

import io
import pathlib
import re

import numpy as np

from emdl import storage
from emdl.errors import FileFormatError, InputError

COLUMNS = ("sample", "time_s", "unit", "amplitude")
SUFFIXES = (".csv", ".npz")
FEW_SPIKES, WEAK_SNR = 30, 4.0  # of a unit, below which it is doubted
_SOME = 10  # spikes, of which there are not more than samples
_LARGEST = 2.0**53  # beyond which float64 does not hold every whole number
_LARGE_SHARE = 0.1  # of spikes missed, taken wrongly, or of other neurons, above which a unit is doubted
_NEAR = 4.0  # standard deviations between two units, below which they are mixed up


def write(path, spikes):
    """Write spikes to a file, as CSV or NPZ by the ending of its name.

    Parameters
    ----------
    path : str or Path
        ``.csv``: the columns ``sample,time_s,unit,amplitude``. ``.npz``: arrays of these names, and ``fs``.
    spikes : Spikes
        Found by `emdl.spikes.detect`.

    Raises
    ------
    InputError
        If the name ends in neither.
    """
    path = pathlib.Path(path)
    check_suffix(path)
    if path.suffix.lower() == ".csv":
        path.write_text(to_csv(spikes), encoding="ascii")
    else:
        np.savez_compressed(path, fs=spikes.fs, **{name: getattr(spikes, name) for name in COLUMNS})


def to_csv(spikes):
    """Return spikes as the text of a CSV table.

    Parameters
    ----------
    spikes : Spikes
        Found by `emdl.spikes.detect`.

    Returns
    -------
    str
        A header line, then one line per spike: sample (counted from 0), time (s, to the microsecond), unit, amplitude.
    """
    table = np.column_stack([getattr(spikes, name) for name in COLUMNS])
    text = io.StringIO()
    text.write(",".join(COLUMNS) + "\n")
    np.savetxt(text, table, fmt=("%d", "%.6f", "%d", "%.6g"), delimiter=",")
    return text.getvalue()


def read(path):
    """Return the columns of a table of spikes.

    Parameters
    ----------
    path : str or Path
        Written by `write`.

    Returns
    -------
    dict
        ``sample`` and ``unit`` (int64), ``time_s`` and ``amplitude`` (float64), all of shape (n_spikes,).

    Raises
    ------
    FileFormatError
        If the file is missing or lacks a column.
    InputError
        If the name ends neither in ``.csv`` nor in ``.npz``.
    """
    path = pathlib.Path(path)
    check_suffix(path)
    if not path.is_file():
        raise FileFormatError(f"{path} is not a file")
    with storage.explained(path.name, f"is no table of spikes ({','.join(COLUMNS)})"):
        columns = _columns_of_csv(path) if path.suffix.lower() == ".csv" else storage.read_npz(path, COLUMNS)[0]
        whole = {name: _whole(path.name, name, columns[name]) for name in ("sample", "unit")}
        return whole | {name: columns[name].astype(np.float64) for name in ("time_s", "amplitude")}


_SAMPLES, _UNITS = ("sample", "spike_samples", "spike_times", "sample_index"), ("unit", "spike_units", "spike_labels")


def read_any(path):
    """Return times and units of a sorting or of a truth.

    Parameters
    ----------
    path : str or Path
        Written by `write`; an ``.npz`` with times in samples (``sample``, ``spike_samples``, ``spike_times`` or
        ``sample_index``) and units (``unit``, ``spike_units`` or ``spike_labels``), or a folder for phy.

    Returns
    -------
    dict
        ``sample`` (float64: a truth may lie between samples) and ``unit`` (int64), of shape (n,), and ``fs`` in Hz or
        None.

    Raises
    ------
    FileFormatError
        If it is none of these.
    InputError
        If the ending is unknown, or the times are seconds.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        return _read_phy(path)
    if path.suffix.lower() != ".npz":
        columns = read(path)
        fs = _rate_of_times(columns["sample"], columns["time_s"])
        return _checked(path.name, columns["sample"], columns["unit"], fs)
    if not path.is_file():
        raise FileFormatError(f"{path} is not a file")
    held = storage.read_npz(path, (*_SAMPLES, *_UNITS, "fs"))[0]
    sample, unit = (next((held[name] for name in names if name in held), None) for names in (_SAMPLES, _UNITS))
    if sample is None or unit is None:
        raise FileFormatError(
            f"{path.name} holds no spikes; wanted their times in samples ({', '.join(_SAMPLES)}) and their units "
            f"({', '.join(_UNITS)})"
        )
    with storage.explained(path.name, "holds no sampling rate"):
        return _checked(path.name, sample, unit, _rate(held.get("fs")))


def _checked(name, sample, unit, fs):
    """Return what `read_any` does; raise if these are no times in samples, or no units."""
    if sample.ndim != 1 or unit.shape != sample.shape:
        raise FileFormatError(f"{name} holds {sample.shape} times and {unit.shape} units; wanted one unit a spike")
    if sample.dtype.kind not in "iuf" or not np.isfinite(sample).all() or (sample < 0).any():
        raise InputError(f"{name} holds a time that is no number >= 0; wanted times in samples")
    span = float(np.ptp(sample.astype(np.float64))) if len(sample) else 0.0
    if len(sample) > _SOME and span < len(sample):
        raise InputError(
            f"{name} holds {len(sample)} spikes in {span:.3g} samples; wanted times in samples, not seconds"
        )
    if fs is not None and not (np.isfinite(fs) and fs > 0):
        raise InputError(f"{name} says a sampling rate of {fs:g} Hz, wanted one above 0")
    return {"sample": sample.astype(np.float64), "unit": _whole(name, "unit", unit), "fs": fs}


def _whole(name, column, values):
    """Return a column as int64; raise unless it holds whole numbers."""
    if values.dtype.kind not in "iuf" or not (np.abs(values.astype(np.float64)) < _LARGEST).all():
        raise FileFormatError(f"{name} holds no whole numbers below 2^53 as {column}")
    if (values != np.round(values)).any():
        raise FileFormatError(
            f"{name} holds {values[values != np.round(values)][0]:g} as {column}, wanted whole numbers"
        )
    return values.astype(np.int64)


def _rate_of_times(sample, time_s):
    """Return the roundest sampling rate, Hz, by which times that were written to the microsecond are these samples."""
    last = int(time_s.argmax()) if len(time_s) else 0
    if len(time_s) == 0 or time_s[last] <= 0:
        return None
    fs = sample[last] / time_s[last]
    unsure = fs * 1e-6 / time_s[last]
    return next((float(r) for r in (round(fs, d) for d in range(-3, 4)) if abs(r - fs) <= unsure), float(fs))


def _rate(stored):
    return None if stored is None else float(np.asarray(stored).item())


def _read_phy(path):
    for part in ("spike_times.npy", "spike_clusters.npy", "params.py"):
        if not (path / part).is_file():
            raise FileFormatError(f"{path} is no folder of phy: it holds no {part}")
    with storage.explained(path, "is no folder of phy"):
        sample, unit = (np.load(path / f"spike_{what}.npy", allow_pickle=False) for what in ("times", "clusters"))
        found = re.search(r"^sample_rate\s*=\s*([0-9.eE+]+)", (path / "params.py").read_text(encoding="utf-8"), re.M)
        fs = float(found.group(1)) if found else None
        return _checked(path, sample.ravel(), unit.ravel(), fs)


def _columns_of_csv(path):
    header, _, body = path.read_text(encoding="utf-8").partition("\n")
    names = [name.strip() for name in header.split(",")]
    rows = np.loadtxt(io.StringIO(body), delimiter=",", ndmin=2) if body.strip() else np.zeros((0, len(names)))
    return dict(zip(names, rows.T, strict=True))


def summarize(spikes, waveforms, noise, seconds):
    """Return what is known of every unit: how often it fires, how it stands out.

    Parameters
    ----------
    spikes : Spikes
        Found by `emdl.spikes.detect`.
    waveforms : ndarray, shape (K, C, s)
        Mean waveform of every unit, data unit.
    noise : ndarray, shape (C,)
        Standard deviation of the noise of every channel, data unit.
    seconds : float
        Duration of the recording, s.

    Returns
    -------
    list of dict
        One per unit: ``unit``; ``spikes``, their number; ``rate_hz``; ``peak``, the largest deflection of the waveform
        with its sign, data unit; ``channel``, where it is; ``snr``, its size over the noise of that channel.
    """
    rows = []
    for unit, waveform in enumerate(waveforms):
        channel, at = np.unravel_index(np.argmax(np.abs(waveform)), waveform.shape)
        count = int(np.count_nonzero(spikes.unit == unit))
        rows.append(
            {
                "unit": unit,
                "spikes": count,
                "rate_hz": count / seconds,
                "peak": float(waveform[channel, at]),
                "channel": int(channel),
                "snr": float(abs(waveform[channel, at]) / noise[channel]),
            }
        )
    return rows


def doubts(rows):
    """Return a sentence for everything that speaks against a unit.

    Parameters
    ----------
    rows : list of dict
        From `summarize`, or from `emdl.spikes.quality.assess`.

    Returns
    -------
    list of str
    """
    found = []
    for row in rows:
        name = f"unit {row['unit']}"
        if row["spikes"] < FEW_SPIKES:
            found.append(f"{name} rests on {row['spikes']} spikes only")
        if row["snr"] < WEAK_SNR:
            found.append(f"{name} stands {row['snr']:.1f} times above the noise: expect misses and false alarms")
        if row.get("isolation", np.inf) < _NEAR:
            found.append(f"{name} is hard to tell from unit {row['nearest']}: {row['isolation']:.1f} SD apart")
        if row.get("contamination", 0) > _LARGE_SHARE:
            found.append(f"{name} fires in its refractory period: {row['contamination']:.0%} may be of other neurons")
        if row.get("expected_misses", 0) > _LARGE_SHARE:
            found.append(f"{name} is expected to miss {row['expected_misses']:.0%} of its neuron's spikes")
        if row.get("expected_false_alarms", 0) > _LARGE_SHARE:
            found.append(f"{name} is expected to hold {row['expected_false_alarms']:.0%} false alarms")
    return found


def write_rows(path, rows):
    """Write what is known of the units as a CSV table, one row each.

    Parameters
    ----------
    path : str or Path
        The file.
    rows : list of dict
        From `emdl.spikes.quality.assess`; NaN becomes an empty cell.
    """
    names = list(rows[0]) if rows else ["unit"]
    lines = [",".join(names), *(",".join(_cell(row[name]) for name in names) for row in rows)]
    pathlib.Path(path).write_text("\n".join(lines) + "\n", encoding="ascii")


def _cell(value):
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.6g}"
    return str(value)


def check_suffix(path):
    """Raise unless the name of a table ends in one of `SUFFIXES`.

    Parameters
    ----------
    path : Path
        Name of the file.

    Raises
    ------
    InputError
        If it ends otherwise.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"a table of spikes is {' or '.join(SUFFIXES)}, got {path.name!r}; change the ending")
