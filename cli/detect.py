"""``emdl detect``: find every spike of a recording with a model."""

from emdl.errors import InputError
from emdl.spikes import tables

from . import files, report, screen, source


def detect_spikes(what, model_path, output, *, device, force, quiet, as_json):
    """Find the spikes of a recording and write them to a table or to standard output.

    Parameters
    ----------
    what : Source
        The recording.
    model_path : Path
        The model.
    output : Path or None
        ``.csv`` or ``.npz``; None or ``-`` means CSV on standard output.
    device : str
        ``cpu``, ``cuda`` or ``auto``.
    force, quiet, as_json : bool
        Replace what exists; say nothing but errors; print one JSON object.

    Raises
    ------
    EmdlError
        If the input is bad or the output cannot be written.
    """
    to_stdout = output is None or str(output) == "-"
    if to_stdout and as_json:
        raise InputError("--json and the table would both go to standard output; name the table with -o")
    if not to_stdout:
        tables.check_suffix(output)
        files.check_outputs([output], force=force, inputs=[*source.inputs(what), model_path])
    screen.name_device(device, quiet=quiet)
    recording, model, spikes = _detect(what, model_path, device, quiet)
    if to_stdout:
        screen.put(tables.to_csv(spikes).rstrip("\n"))
        return
    with files.replacing(output) as part:
        tables.write(part, spikes)
    units = tables.summarize(spikes, model.waveforms, model.noise, recording.seconds)
    if as_json:
        described = report.describe(recording)
        screen.put_json({"recording": described, "n_spikes": len(spikes.sample), "units": units, "output": str(output)})
    elif not quiet:
        from rich.markup import escape

        head = f"[b]{len(spikes.sample):,} spikes[/b] in {recording.seconds:.1f} s of {escape(recording.name)}"
        screen.put_renderables(head, report.unit_table(units), f"[b]Written[/b]   {escape(str(output))}")


def _detect(what, model_path, device, quiet):
    from emdl import spikes

    with screen.notes(quiet=quiet):
        model = spikes.load(model_path)
        recording = source.read(what, model)
        with screen.compile_notice(quiet=quiet):
            return recording, model, spikes.detect(recording.data, model, device=device)
