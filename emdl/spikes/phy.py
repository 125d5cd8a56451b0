"""Folders for phy, the program in which people look through the units of a sorting and correct them."""

import logging

import numpy as np

from emdl.spikes import formats, quality

logger = logging.getLogger(__name__)

_LARGEST = 1 << 30  # bytes of samples that are copied for phy where it cannot read the recording itself
_BLOCK = 1 << 18  # samples copied at once
_APART_UM = 20.0  # distance of channels whose places are not known, in one column
_COLUMNS = ("snr", "rate_hz", "presence", "contamination", "isolation", "expected_misses", "expected_false_alarms")


def write(folder, result):
    """Write a sorting as a folder that phy opens: ``phy template-gui params.py``.

    Parameters
    ----------
    folder : Path
        An existing, empty folder.
    result : Sorting
        From `emdl.sort`. Templates are in the unit of the data (`whitening_mat` is the identity); amplitudes are
        factors of the templates.

    Notes
    -----
    phy reads raw binary with interleaved samples. Of other recordings the samples are copied to ``recording.dat``, if
    they take at most 1 GiB.
    """
    model, spikes = result.model, result.spikes
    K, C, _ = model.waveforms.shape
    height = np.abs(model.waveforms).max(axis=(1, 2), initial=0)
    arrays = {
        "spike_times": spikes.sample.astype(np.int64),
        "spike_clusters": spikes.unit.astype(np.int32),
        "spike_templates": spikes.unit.astype(np.int32),
        "amplitudes": spikes.amplitude / height[spikes.unit] if K else np.zeros(0),
        "templates": _centred(model).astype(np.float32),
        "similar_templates": quality.cosines(model.units.D[:K], model.waveforms.shape[2] // 3).astype(np.float32),
        "channel_map": np.arange(C, dtype=np.int32),
        "channel_positions": positions(result.recording),
        "whitening_mat": np.eye(C),
        "whitening_mat_inv": np.eye(C),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    _write_columns(folder, result.quality)
    _write_params(folder, result.recording)


def positions(recording):
    """Return the places of the channels (C, 2), um: those of the recording, or one below the other."""
    if recording.positions is not None:
        return recording.positions
    return np.stack([np.zeros(recording.n_channels), -_APART_UM * np.arange(recording.n_channels)], axis=1)


def _centred(model):
    """Return the waveforms (K, samples, C) with the main deflection in the middle, where phy looks for it."""
    K, C, s = model.waveforms.shape
    half = max(int(model.peak.max(initial=0)), s - int(model.peak.min(initial=s)), 1)
    out = np.zeros((K, 2 * half, C))
    for k, peak in enumerate(model.peak.tolist()):
        out[k, half - peak : half - peak + s] = model.waveforms[k].T
    return out


def _write_columns(folder, rows):
    """Write one table per number, as phy shows them beside the clusters."""
    for name in _COLUMNS if rows else ():
        lines = [f"cluster_id\t{name}", *(f"{row['unit']}\t{row[name]:.4g}" for row in rows)]
        (folder / f"cluster_{name}.tsv").write_text("\n".join(lines) + "\n", encoding="ascii")


def _write_params(folder, recording):
    data, path = recording.data, recording.path
    mapped = isinstance(data, np.memmap) and path is not None and path.suffix.lower() in formats.RAW_SUFFIXES
    dat_path, dtype = "", np.dtype(data.dtype)
    if mapped and data.strides[0] == data.dtype.itemsize:  # interleaved, as phy reads it
        dat_path = str(path.resolve())
    elif data.shape[0] * data.shape[1] * dtype.itemsize <= _LARGEST:
        dat_path = "recording.dat"
        _copy(folder / dat_path, data)
    else:
        logger.warning("phy reads interleaved raw binary, %s is none: the folder holds no traces", recording.name)
    lines = {
        "dat_path": dat_path,
        "n_channels_dat": data.shape[0],
        "dtype": dtype.name,
        "offset": 0,
        "sample_rate": float(recording.fs),
        "hp_filtered": False,
    }
    text = "".join(f"{name} = {value!r}\n" for name, value in lines.items())  # repr: phy runs this file
    (folder / "params.py").write_text(text, encoding="utf-8")


def _copy(path, data):
    with path.open("wb") as file:
        for a in range(0, data.shape[1], _BLOCK):
            np.ascontiguousarray(np.asarray(data[:, a : a + _BLOCK]).T).tofile(file)
