"""``emdl train --task spikes``: learn, detect, draw, and say how it went."""

import shlex
import time

from emdl.errors import InputError

from . import files, report, screen, source

MODEL_SUFFIXES = (".h5", ".hdf5")


def train_spikes(what, output, learn, *, plot, force, quiet, as_json):
    """Learn the units of a recording and write the model, the spikes and the picture.

    Parameters
    ----------
    what : Source
        The recording.
    output : Path
        The model; the stem of all outputs.
    learn : dict
        Arguments of `emdl.spikes.fit`; those that are None are left to it.
    plot : bool
        Draw the picture.
    force : bool
        Replace outputs that exist.
    quiet : bool
        Say nothing but errors.
    as_json : bool
        Print one JSON object instead of the report.

    Raises
    ------
    EmdlError
        If the input is bad or the output cannot be written.
    """
    if output.suffix.lower() not in MODEL_SUFFIXES:
        raise InputError(f"a model is an HDF5 file, got -o {output}; end it in .h5")
    outputs = {"model": output, "spikes": output.with_suffix(".csv")}
    if plot:
        outputs |= {"png": output.with_suffix(".png"), "svg": output.with_suffix(".svg")}
    files.check_outputs(outputs.values(), force=force, inputs=source.inputs(what))
    screen.name_device(learn["device"], quiet=quiet)
    started = time.monotonic()
    with screen.notes(quiet=quiet):
        recording = source.read(what, quiet=quiet)
        with screen.compile_notice(quiet=quiet):
            model, spikes = _learn(recording, learn, quiet)
            _write(outputs, recording, model, spikes)
    facts = report.of_training(recording, model, spikes, outputs, time.monotonic() - started, learn["rng"])
    if as_json:
        screen.put_json(facts)
    elif not quiet:
        again = shlex.join(["--model", str(output)])
        detect = f"emdl detect {source.command_line(what)} {again} -o spikes.csv"
        screen.put_renderables(*report.as_text(facts, (detect, shlex.join(["emdl", "info", str(output)]))))


def _learn(recording, learn, quiet):
    from emdl import spikes

    given = {name: value for name, value in learn.items() if value is not None}
    with screen.learning(quiet=quiet) as callback:
        model = spikes.fit(recording.data, recording.fs, callback=callback, **given)
    return model, spikes.detect(recording.data, model, device=learn["device"])


def _write(outputs, recording, model, spikes):
    from emdl.spikes import tables

    with files.replacing(outputs["model"]) as part:
        model.save(part)
    with files.replacing(outputs["spikes"]) as part:
        tables.write(part, spikes)
    if "png" in outputs:
        from emdl.spikes import plot

        picture = plot.figure(model, recording.data, spikes)
        for kind in ("png", "svg"):
            with files.replacing(outputs[kind]) as part:
                picture.savefig(part, dpi=150)
