"""What a training run amounts to, as facts for machines and as text for people."""

import emdl
from emdl.spikes import tables

from . import screen


def of_training(recording, model, spikes, outputs, seconds, seed):
    """Return the facts of a training run.

    Parameters
    ----------
    recording : Recording
        What was learned from.
    model : SpikeModel
        What was learned.
    spikes : Spikes
        What was found with it.
    outputs : dict of str to Path
        What was written.
    seconds : float
        How long it took.
    seed : int
        Seed.

    Returns
    -------
    dict
    """
    return {
        "emdl": emdl.__version__,
        "recording": describe(recording),
        "outputs": {name: str(path) for name, path in outputs.items()},
        "units": tables.summarize(spikes, model.waveforms, model.noise, recording.seconds),
        "n_spikes": len(spikes.sample),
        "converged": bool(model.converged),
        "n_iter": len(model.history["objective"]),
        "message": model.message,
        "lmbd": model.model.lmbd,
        "sigma": model.model.sigma,
        "history": model.history,
        "seed": seed,
        "seconds": round(seconds, 3),
    }


def of_sorting(result, outputs, seconds, seed):
    """Return the facts of a sorting.

    Parameters
    ----------
    result : Sorting
        What was found.
    outputs : dict of str to Path
        What was written.
    seconds : float
        How long it took.
    seed : int
        Seed.

    Returns
    -------
    dict
    """
    return of_training(result.recording, result.model, result.spikes, outputs, seconds, seed) | {
        "units": result.quality,
        "unit": result.recording.unit,
        "gaps": result.recording.gaps,
    }


def describe(recording):
    """Return the facts of a recording."""
    return {
        "name": recording.name,
        "n_channels": recording.n_channels,
        "n_samples": recording.n_samples,
        "fs": recording.fs,
        "seconds": recording.seconds,
    }


def as_text(facts, next_steps, *, done="learned"):
    """Return the report as rich renderables.

    Parameters
    ----------
    facts : dict
        From `of_training`.
    next_steps : sequence of str
        What to type next.
    done : str
        What took the time.

    Returns
    -------
    list
    """
    recording = facts["recording"]
    found = f"{_count(len(facts['units']), 'unit')}, {_count(facts['n_spikes'], 'spike')}"
    where = f"{_count(recording['n_channels'], 'channel')}, {recording['fs']:g} Hz"
    head = (
        f"[b]{found}[/b] in {recording['seconds']:.1f} s of {screen.escape(recording['name'])} ({where}), "
        f"{done} in {facts['seconds']:.1f} s"
    )
    parts = [head, unit_table(facts["units"])]
    said = [*facts["message"].split("; "), *tables.doubts(facts["units"])]
    parts.append("[b]How sure[/b]  " + "\n          ".join(screen.escape(sentence) for sentence in said))
    parts.append("[b]Written[/b]   " + screen.escape(", ".join(facts["outputs"].values())))
    parts.append("[b]Next[/b]      " + "\n          ".join(map(screen.escape, next_steps)))
    return parts


def sorting_as_text(facts, next_steps):
    """Return the report of a sorting as rich renderables.

    Parameters
    ----------
    facts : dict
        From `of_sorting`.
    next_steps : sequence of str
        What to type next.

    Returns
    -------
    list
    """
    parts = as_text(facts, next_steps, done="sorted")
    if not facts["units"]:
        del parts[1]
        parts[0] = "[b]No units[/b]: nothing stands out of the noise again and again.\n" + parts[0]
    return parts


def _count(number, word):
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


_COLUMNS = (
    ("spikes", "spikes", "{:,}"),
    ("rate, Hz", "rate_hz", "{:.2f}"),
    ("peak", "peak", "{:.4g}"),
    ("on\nch", "channel", "{}"),
    ("SNR", "snr", "{:.1f}"),
    ("pres-\nence", "presence", "{:.0%}"),
    ("conta-\nmin.", "contamination", "{:.0%}"),
    ("d\nprime", "isolation", "{:.1f}"),
    ("missed", "expected_misses", "{:.1%}"),
    ("false\nalarms", "expected_false_alarms", "{:.1%}"),
)


def unit_table(units):
    """Return a table with one row per unit.

    Parameters
    ----------
    units : list of dict
        From `emdl.spikes.tables.summarize`, or from `emdl.spikes.quality.assess`, which knows more.

    Returns
    -------
    rich.table.Table
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, collapse_padding=True)
    known = [column for column in _COLUMNS if not units or column[1] in units[0]]
    for title in ("unit", *(title for title, *_ in known)):
        table.add_column(title, justify="right", vertical="bottom")
    for unit in units:
        table.add_row(str(unit["unit"]), *(_cell(unit[key], form) for _, key, form in known))
    return table


def _cell(value, form):
    return "-" if value != value else form.format(value)  # NaN: too few spikes to say
