"""``emdl train --task spikes``: learn, detect, draw, and say how it went."""

import contextlib
import shlex
import sys
import time

from emdl.errors import InputError

from . import files, report, screen, signals, source, workers

MODEL_SUFFIXES = (".h5", ".hdf5")


def train_spikes(what, output, learn, *, plot, checkpoint_every, resume, force, quiet, as_json, dask=None):
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
    checkpoint_every : float
        Seconds between two writes of the checkpoint, which is removed once the outputs are written.
    resume : bool
        Go on from the checkpoint of a run that was interrupted.
    force : bool
        Replace outputs that exist.
    quiet : bool
        Say nothing but errors.
    as_json : bool
        Print one JSON object instead of the report.
    dask : str, optional
        Whose workers find the spikes, see `workers.of`.

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
    checkpoint = output.with_suffix(".checkpoint.h5")
    kept = {"checkpoint": checkpoint, "checkpoint_every": checkpoint_every, "resume": resume}

    def check():
        files.check_outputs(outputs.values(), force=force, inputs=source.inputs(what))
        files.check_checkpoint(checkpoint, resume=resume, force=force)

    check()
    from emdl import storage

    screen.name_device(learn["device"], quiet=quiet)
    started = time.monotonic()
    with storage.lock(output), screen.notes(quiet=quiet):
        check()  # another run may have written them since
        recording = source.read(what, quiet=quiet)
        with workers.of(dask, quiet=quiet) as client, screen.compile_notice(quiet=quiet):
            model, spikes = _learn(recording, learn | kept, quiet, client)
            _write(outputs, recording, model, spikes)
        checkpoint.unlink(missing_ok=True)
    facts = report.of_training(recording, model, spikes, outputs, time.monotonic() - started, learn["rng"])
    if as_json:
        screen.put_json(facts)
    elif not quiet:
        again = shlex.join(["--model", str(output)])
        detect = f"emdl detect {source.command_line(what)} {again} -o spikes.csv"
        screen.put_renderables(*report.as_text(facts, (detect, shlex.join(["emdl", "info", str(output)]))))


def _learn(recording, learn, quiet, client):
    from emdl import spikes
    from emdl.spikes import sorting

    given = {name: value for name, value in learn.items() if value is not None}
    try:
        with screen.learning(quiet=quiet) as show, signals.after_the_iteration(show) as callback:
            model = spikes.fit(
                recording.without_gaps(), recording.fs, callback=callback, positions=recording.positions, **given
            )
        source.warn_of_units(model, quiet=quiet)
        return model, sorting.find(recording, model, device=learn["device"], client=client)
    except (KeyboardInterrupt, signals.Stopped):
        _say_how_to_go_on(learn["checkpoint"])
        raise


def _say_how_to_go_on(checkpoint):
    if checkpoint.exists():
        words = [word for word in sys.argv[1:] if word not in ("--resume", "--force", "-f")]
        screen.say(f"saved in {checkpoint}; go on with: {shlex.join(['emdl', *words, '--resume'])}")


def _write(outputs, recording, model, spikes):
    """Write all outputs, then give them their names, the model last: where it stands the others are whole."""
    from emdl.spikes import tables

    with contextlib.ExitStack() as stack:
        parts = {kind: stack.enter_context(files.replacing(path)) for kind, path in outputs.items()}
        model.save(parts["model"])
        tables.write(parts["spikes"], spikes)
        if "png" in outputs:
            from emdl.spikes import plot

            picture = plot.figure(model, recording.data, spikes)
            for kind in ("png", "svg"):
                picture.savefig(parts[kind], dpi=150)
