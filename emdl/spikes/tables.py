"""Tables of spikes: one row per spike, as CSV for people and spreadsheets or NPZ for programs."""

import io
import pathlib

import numpy as np

from emdl.errors import FileFormatError, InputError

COLUMNS = ("sample", "time_s", "unit", "amplitude")
SUFFIXES = (".csv", ".npz")
REFRACTORY_S = 2e-3  # no neuron fires twice within it, so shorter intervals tell of mixed units or false alarms


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
    try:
        if path.suffix.lower() == ".csv":
            columns = _columns_of_csv(path)
        else:
            with np.load(path, allow_pickle=False) as archive:
                columns = {name: archive[name] for name in COLUMNS}
        kinds = {"sample": np.int64, "time_s": np.float64, "unit": np.int64, "amplitude": np.float64}
        return {name: columns[name].astype(kind) for name, kind in kinds.items()}
    except (KeyError, ValueError) as error:
        raise FileFormatError(f"{path.name} is no table of spikes ({','.join(COLUMNS)}): {error}") from error


def _columns_of_csv(path):
    header, _, body = path.read_text(encoding="utf-8").partition("\n")
    names = [name.strip() for name in header.split(",")]
    rows = np.loadtxt(io.StringIO(body), delimiter=",", ndmin=2) if body.strip() else np.zeros((0, len(names)))
    return dict(zip(names, rows.T, strict=True))


def summarize(spikes, waveforms, noise, seconds):
    """Return what is known of every unit: how often it fires, how it stands out, how pure it is.

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
        with its sign, data unit; ``channel``, where it is; ``snr``, its size over the noise of that channel;
        ``short_intervals``, the share of intervals shorter than 2 ms (NaN for fewer than two spikes).
    """
    rows = []
    for unit, waveform in enumerate(waveforms):
        channel, at = np.unravel_index(np.argmax(np.abs(waveform)), waveform.shape)
        intervals = np.diff(np.sort(spikes.time_s[spikes.unit == unit]))
        count = int(np.count_nonzero(spikes.unit == unit))
        rows.append(
            {
                "unit": unit,
                "spikes": count,
                "rate_hz": count / seconds,
                "peak": float(waveform[channel, at]),
                "channel": int(channel),
                "snr": float(abs(waveform[channel, at]) / noise[channel]),
                "short_intervals": float(np.mean(intervals < REFRACTORY_S)) if len(intervals) else float("nan"),
            }
        )
    return rows


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
