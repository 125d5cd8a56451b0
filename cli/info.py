"""``emdl info``: what a model holds."""

import numpy as np

import emdl
from emdl.errors import FileFormatError

from . import screen


def show_model(path, *, as_json):
    """Print what a model file holds.

    Parameters
    ----------
    path : Path
        Written by ``emdl train`` or `emdl.Model.save`.
    as_json : bool
        Print one JSON object instead of text.

    Raises
    ------
    EmdlError
        If the file is no model.
    """
    facts = _facts(path)
    if as_json:
        screen.put_json({"file": str(path), **facts})
    else:
        screen.put_renderables(_table(path, facts))


def _facts(path):
    """Return the facts of a model of whatever kind."""
    from emdl import spikes
    from emdl.images.network import Network

    for load, describe in ((spikes.load, _of_spikes), (Network.load, _of_network)):
        try:
            return describe(load(path))
        except FileFormatError:
            continue
    return _of_dictionary(emdl.load(path))  # says what is wrong with a file that is no model at all


def _of_network(network):
    """Return the facts of a denoising network."""
    return {
        "kind": "denoising network",
        "n_layers": network.n_layers,
        "n_atoms": network.n_atoms,
        "n_channels": network.n_channels,
        "atom_shape": network.analysis.shape[3:],
        "tau": [float(np.median(layer)) for layer in network.tau],
        "stride": network.stride,
        "attributes": network.attributes,
    }


def _of_dictionary(model):
    """Return the facts of any model."""
    return {
        "kind": "dictionary",
        "n_atoms": model.D.shape[0],
        "n_channels": model.D.shape[1],
        "atom_shape": model.D.shape[2:],
        "lmbd": model.lmbd,
        "sigma": model.sigma,
        "positive": model.positive,
        "stride": model.stride,
        "dtype": str(model.D.dtype),
    }


def _of_spikes(model):
    """Return the facts of a model of spikes."""
    peak = abs(model.waveforms).max(axis=2)
    return {
        **_of_dictionary(model.model),
        "kind": "spikes",
        "n_units": model.n_units,
        "fs": model.fs,
        "band": model.band,
        "window_ms": 1000 * model.waveforms.shape[2] / model.fs,
        "noise": model.noise,
        "snr": (peak / model.noise).max(axis=1),
        "message": model.message,
        "history": model.history,
    }


def _table(path, facts):
    """Return the facts as a table of two columns."""
    shape = " x ".join(map(str, facts["atom_shape"]))
    if facts["kind"] == "denoising network":
        return _two_columns(f"{path}: a {facts['kind']}", _network_rows(facts, shape))
    unit = "whitened unit" if facts["kind"] == "spikes" else "data unit"
    rows = {
        "atoms": f"{facts['n_atoms']} of {facts['n_channels']} channels x {shape} samples",
        "lambda": f"{_numbers(facts['lmbd'])} per {unit}",
        "sigma": f"{facts['sigma']:.4g} {unit}s",
        "codes": f"{'non-negative' if facts['positive'] else 'of both signs'}, stride {_numbers(facts['stride'])}",
    }
    if facts["kind"] == "spikes":
        rows = _spike_rows(facts) | rows | _history_rows(facts)
    return _two_columns(f"{path}: a model of {facts['kind']}", rows)


def _two_columns(title, rows):
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_header=False, title=screen.escape(title))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in rows.items():
        table.add_row(screen.escape(name), "\n".join(map(screen.escape, value.split("\n"))))
    return table


def _network_rows(facts, shape):
    rows = {
        "layers": str(facts["n_layers"]),
        "atoms": f"{facts['n_atoms']} of {facts['n_channels']} channels x {shape} pixels in each layer",
        "thresholds": f"{_numbers(facts['tau'])} noise levels, the median of each layer",
        "codes": f"stride {facts['stride']}",
    }
    return rows | {name.replace("_", " "): str(value) for name, value in facts["attributes"].items()}


def _spike_rows(facts):
    return {
        "units": str(facts["n_units"]),
        "sampling rate": f"{facts['fs']:.15g} Hz",
        "pass band": "none" if facts["band"] is None else "{:g} to {:g} Hz".format(*facts["band"]),
        "window": f"{facts['window_ms']:.3g} ms",
        "SNR of the units": _numbers(facts["snr"]),
        "noise of the channels": f"{_numbers(facts['noise'])} data units",
    }


def _history_rows(facts):
    objective = facts["history"]["objective"]
    return {
        "learned in": f"{len(objective)} iterations",
        "objective": f"{objective[0]:.6g} at first, {objective[-1]:.6g} at last",
        "ended": facts["message"].replace("; ", "\n"),
    }


def _numbers(values):
    return ", ".join(f"{value:.4g}" for value in values)
