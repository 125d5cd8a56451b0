"""``emdl detect``: find every spike of a recording with a model."""

from emdl.errors import InputError

from . import files, report, screen, search, source, workers


def detect_spikes(what, model_path, output, *, device, checkpoint_every, resume, force, quiet, as_json, dask=None):
    """Find the spikes of a recording and write them to a table or to standard output.

    Parameters
    ----------
    what : Source
        The recording.
    model_path : Path
        The model.
    output : Path or None
        ``.csv``, ``.npz``, ``.nwb``, or without an ending a folder for phy; None or ``-`` means CSV on standard output.
    device : str
        ``cpu``, ``cuda`` or ``auto``.
    checkpoint_every : float
        Seconds between two writes of the checkpoint, which is removed once the output is written.
    resume : bool
        Go on from the checkpoint of a run that was interrupted.
    force, quiet, as_json : bool
        Replace what exists; say nothing but errors; print one JSON object.
    dask : str, optional
        Whose workers search, see `workers.of`.

    Raises
    ------
    EmdlError
        If the input is bad or the output cannot be written.
    """
    if output is None or str(output) == "-":
        if as_json:
            raise InputError("--json and the table would both go to standard output; name the table with -o")
        if resume:
            raise InputError("--resume goes on writing a table; name it with -o")
        _to_stdout(what, model_path, device, quiet, dask)
        return
    from emdl import storage
    from emdl.spikes import sorting

    sorting.check_suffix(output)
    checkpoint = output.with_name(output.with_suffix("").name + ".search.h5")

    def check():
        files.check_outputs([output], force=force or (resume and checkpoint.exists()), inputs=_inputs(what, model_path))
        files.check_checkpoint(checkpoint, resume=resume, force=force)

    check()
    screen.name_device(device, quiet=quiet)
    with storage.lock(output), screen.notes(quiet=quiet):
        check()
        recording, model = _open(what, model_path, quiet)
        with workers.of(dask, quiet=quiet) as client, screen.compile_notice(quiet=quiet):
            spikes = search.find(
                recording, model, checkpoint, device=device, checkpoint_every=checkpoint_every, resume=resume,
                quiet=quiet, partial=output, client=client,
            )  # fmt: skip
            rows = sorting.assess(recording, model, spikes)
        files.save_sorting(output, sorting.Sorting(recording, model, spikes, rows))
        checkpoint.unlink(missing_ok=True)
        source.warn_of_growth(recording)
    if as_json:
        described = report.describe(recording)
        screen.put_json({"recording": described, "n_spikes": len(spikes.sample), "units": rows, "output": str(output)})
    elif not quiet:
        head = f"[b]{len(spikes.sample):,} spikes[/b] in {recording.seconds:.1f} s of {screen.escape(recording.name)}"
        screen.put_renderables(head, report.unit_table(rows), f"[b]Written[/b]   {screen.escape(str(output))}")


def _inputs(what, model_path):
    return [*source.inputs(what), model_path]


def _open(what, model_path, quiet):
    from emdl import spikes

    model = spikes.load(model_path)
    return source.read(what, model, quiet=quiet), model


def _to_stdout(what, model_path, device, quiet, dask):
    from emdl.spikes import tables

    screen.name_device(device, quiet=quiet)
    with screen.notes(quiet=quiet):
        recording, model = _open(what, model_path, quiet)
        with workers.of(dask, quiet=quiet) as client, screen.compile_notice(quiet=quiet):
            found = search.find(
                recording, model, None, device=device, checkpoint_every=0, resume=False, quiet=quiet, client=client
            )
        source.warn_of_growth(recording)
    screen.put(tables.to_csv(found).rstrip("\n"))
