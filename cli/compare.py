"""``emdl compare``: spikes against the truth, or one sorting against another."""

import numpy as np

from emdl.errors import InputError

from . import screen


def compare_spikes(found_path, true_path, *, delta_ms, fs, as_json):
    """Print how well the found units agree with the true ones.

    Parameters
    ----------
    found_path, true_path : Path
        Tables of spikes, see `emdl.spikes.tables.read_any`.
    delta_ms : float
        Largest distance of two spikes that match, ms.
    fs : float or None
        Sampling rate, Hz; needed if neither table says it.
    as_json : bool
        Print one JSON object instead of a table.

    Raises
    ------
    EmdlError
        If a file is no table of spikes, or the sampling rate is unknown or not the same.
    """
    from emdl import metrics
    from emdl.spikes import tables

    found, true = (tables.read_any(path) for path in (found_path, true_path))
    rate = _sampling_rate(found, true, found_path, true_path, fs)
    pairs = [(table["sample"], table["unit"]) for table in (found, true)]
    scores = metrics.compare_sortings(*pairs, fs=rate, delta_ms=delta_ms)
    facts = _facts(scores, found_path, true_path, rate, delta_ms)
    if as_json:
        screen.put_json(facts)
    else:
        screen.put_renderables(*_as_text(facts))


def _sampling_rate(found, true, found_path, true_path, given):
    stored = {path: table["fs"] for path, table in ((found_path, found), (true_path, true)) if table["fs"]}
    rates = [given] if given else list(stored.values())
    if not rates:
        raise InputError(f"neither {found_path.name} nor {true_path.name} says the sampling rate; give it (--fs 30000)")
    if len(rates) == 2 and abs(rates[0] - rates[1]) > 1e-4 * rates[0]:
        raise InputError(
            f"{found_path.name} is sampled at {rates[0]:g} Hz, but {true_path.name} at {rates[1]:g} Hz; they are not "
            "of one recording (--fs overrules)"
        )
    return rates[0]


def _facts(scores, found_path, true_path, fs, delta_ms):
    partner = [None if m < 0 else scores.found_units[m] for m in scores.matched]
    columns = {
        "unit": scores.true_units,
        "spikes": scores.n_true,
        "partner": partner,
        "partner_spikes": [None if m < 0 else scores.n_found[m] for m in scores.matched],
        "accuracy": scores.accuracy,
        "recall": scores.recall,
        "precision": scores.precision,
    }
    units = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    mean = {name: float(np.mean(getattr(scores, name))) for name in ("accuracy", "recall", "precision")}
    kinds = ("well_detected", "false_positive", "redundant", "overmerged")
    return {
        "found": str(found_path),
        "true": str(true_path),
        "fs": fs,
        "delta_ms": delta_ms,
        "n_true": len(scores.true_units),
        "n_found": len(scores.found_units),
        "mean": mean,
        "units": units,
        **{f"{kind}_units": getattr(scores, f"{kind}_units") for kind in kinds},
    }


def _as_text(facts):
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_footer=True)
    mean = facts["mean"]
    footers = ("mean", "", "", "", *(f"{mean[name]:.3f}" for name in ("accuracy", "recall", "precision")))
    titles = ("true unit", "spikes", "found unit", "spikes", "accuracy", "recall", "precision")
    for title, footer in zip(titles, footers, strict=True):
        table.add_column(title, footer=footer, justify="right")
    for row in facts["units"]:
        lost = row["partner"] is None
        table.add_row(
            str(row["unit"]),
            f"{row['spikes']:,}",
            "none" if lost else str(row["partner"]),
            "" if lost else f"{row['partner_spikes']:,}",
            *(f"{row[name]:.3f}" for name in ("accuracy", "recall", "precision")),
        )
    found, true = screen.escape(facts["found"]), screen.escape(facts["true"])
    head = (
        f"[b]mean accuracy {mean['accuracy']:.3f}[/b]: {facts['n_found']} units of {found} against "
        f"{facts['n_true']} of {true}, within {facts['delta_ms']:g} ms"
    )
    return head, table, *_verdicts(facts)


_MEANING = {
    "well_detected": "well detected (accuracy at least 0.8)",
    "false_positive": "of nothing in the truth (agree with no unit to 0.2)",
    "redundant": "a second time what another has found",
    "overmerged": "of several true units (agree with each to more than 0.2)",
}


def _verdicts(facts):
    for kind, words in _MEANING.items():
        units = [str(unit) for unit in facts[f"{kind}_units"]]
        yield f"[b]{len(units)}[/b] {words}" + (f": unit {', '.join(units)}" if units else "")
