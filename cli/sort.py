"""``emdl sort``: learn the units of a recording, find all their spikes, and say what each unit is worth."""

import contextlib
import shlex
import sys
import time

from emdl.errors import InputError

from . import files, report, screen, search, signals, source, workers

DEFAULT = "emdl-sorted.csv"


def sort_recording(
    what, outputs, page, learn, *, model_path, checkpoint_every, resume, force, quiet, as_json, dask=None
):
    """Sort a recording and write spikes, model, table of units and report.

    Parameters
    ----------
    what : Source
        The recording.
    outputs : list of Path
        Spikes: ``.csv``, ``.npz``, ``.nwb``, or without an ending a folder for phy. The first gives the others its
        stem: the model, the table of units, and the report.
    page : Path or None
        The report; None writes none.
    learn : dict
        Arguments of `emdl.spikes.fit`; those that are None are left to it.
    model_path : Path or None
        A model to use instead of learning one.
    checkpoint_every : float
        Seconds between two writes of the checkpoints.
    resume : bool
        Go on from the checkpoints of a run that was interrupted.
    force, quiet, as_json : bool
        Replace what exists; say nothing but errors; print one JSON object.
    dask : str, optional
        Whose workers find the spikes, see `workers.of`.

    Raises
    ------
    EmdlError
        If the input is bad or an output cannot be written.
    """
    names = _names(outputs, page, model_path)
    kept = {"learn": _beside(outputs[0], ".checkpoint.h5"), "search": _beside(outputs[0], ".search.h5")}
    resuming = resume and any(path.exists() for path in kept.values())

    def check():
        files.check_outputs(_written(names, model_path), force=force or resuming, inputs=_read(what, model_path))
        for path in kept.values():
            files.check_checkpoint(path, resume=resume, force=force)

    _refuse_suffixes(names)
    check()
    from emdl import storage

    screen.name_device(learn["device"], quiet=quiet)
    started = time.monotonic()
    with storage.lock(names["spikes"]), screen.notes(quiet=quiet):
        check()
        recording = source.read(what, quiet=quiet)
        with workers.of(dask, quiet=quiet) as client, screen.compile_notice(quiet=quiet):
            result = _sort(recording, learn, names, kept, model_path, checkpoint_every, resume, quiet, client)
            _write(names, result, learn, model_path, quiet)
        for path in kept.values():
            path.unlink(missing_ok=True)
        source.warn_of_growth(recording)
    facts = report.of_sorting(result, names, time.monotonic() - started, learn["rng"])
    if as_json:
        screen.put_json(facts)
    elif not quiet:
        detect = f"emdl detect OTHER --model {shlex.quote(str(names['model']))} -o spikes.csv"
        screen.put_renderables(*report.sorting_as_text(facts, _next_steps(names, detect)))


def _next_steps(names, detect):
    steps = [f"open {shlex.quote(str(names['report']))} in a browser"] if "report" in names else []
    folder = [path for name, path in names.items() if name.startswith("spikes") and not path.suffix]
    steps += [f"phy template-gui {shlex.quote(str(path / 'params.py'))}" for path in folder]
    return [*steps, detect]


def _names(outputs, page, model_path):
    """Return what is written, name to path."""
    first = outputs[0]
    names = {"spikes": first} | {f"spikes {i}": path for i, path in enumerate(outputs[1:], 2)}
    names["model"] = model_path or _beside(first, ".h5")
    names["units"] = _beside(first, "-units.csv")
    return names if page is None else names | {"report": page}


def _beside(path, ending):
    return path.with_name(path.with_suffix("").name + ending)


def _written(names, model_path):
    return [path for name, path in names.items() if model_path is None or name != "model"]


def _read(what, model_path):
    return [*source.inputs(what), *([] if model_path is None else [model_path])]


def _refuse_suffixes(names):
    from emdl.spikes import report as pages
    from emdl.spikes import sorting

    for name, path in names.items():
        if name.startswith("spikes"):
            sorting.check_suffix(path)
    if "report" in names:
        pages.check_suffix(names["report"])
    paths = [path.resolve() for path in names.values()]
    if len(set(paths)) < len(paths):
        twice = next(path for path in names.values() if paths.count(path.resolve()) > 1)
        raise InputError(f"{twice} would be written twice; choose different names")


def _sort(recording, learn, names, kept, model_path, checkpoint_every, resume, quiet, client):
    """Return the `Sorting`; what was saved before an interrupt is gone on from."""
    from emdl import spikes
    from emdl.spikes import sorting

    learned = model_path or (names["model"] if resume and kept["search"].exists() else None)
    try:
        if learned is not None:
            model = spikes.load(learned)
            source.check_fit(recording, model)
            source.warn_of_scale(recording, model, quiet=quiet)
        else:
            given = {name: value for name, value in learn.items() if value is not None}
            keep = {"checkpoint": kept["learn"], "checkpoint_every": checkpoint_every, "resume": resume}
            with screen.learning(quiet=quiet) as show, signals.after_the_iteration(show) as callback:
                given["positions"] = recording.positions
                model = spikes.fit(recording.without_gaps(), recording.fs, callback=callback, **keep, **given)
            with files.replacing(names["model"]) as part:
                model.save(part)
            kept["learn"].unlink(missing_ok=True)
    except (KeyboardInterrupt, signals.Stopped):
        _say_how_to_go_on(kept["learn"])
        raise
    found = search.find(
        recording, model, kept["search"], device=learn["device"], checkpoint_every=checkpoint_every, resume=resume,
        quiet=quiet, partial=names["spikes"], client=client,
    )  # fmt: skip
    return sorting.Sorting(recording, model, found, sorting.assess(recording, model, found))


def _say_how_to_go_on(checkpoint):
    if checkpoint.exists():
        screen.say(f"saved in {checkpoint}; go on with: {search.again(sys.argv)}")


def _write(names, result, learn, model_path, quiet):
    """Write all outputs but the model, which stands already, then give them their names."""
    from emdl.spikes import report as pages
    from emdl.spikes import tables

    source.warn_of_units(result.model, quiet=quiet)
    with contextlib.ExitStack() as stack:
        for name, path in names.items():
            if name.startswith("spikes"):
                files.save_sorting(path, result)
        tables.write_rows(stack.enter_context(files.replacing(names["units"])), result.quality)
        if "report" in names:
            settings = {name: value for name, value in learn.items() if value is not None}
            settings = {"model": model_path} if model_path else settings
            pages.write(stack.enter_context(files.replacing(names["report"])), result, settings=settings)
