"""``emdl encode``: the sparse codes of a recording."""

import numpy as np

from emdl.errors import InputError

from . import files, report, screen, source


def encode_recording(what, model_path, output, *, device, force, quiet, as_json):
    """Write every code that is not zero.

    Parameters
    ----------
    what : Source
        The recording.
    model_path : Path
        The model.
    output : Path
        ``.npz``.
    device : str
        ``cpu``, ``cuda`` or ``auto``.
    force, quiet, as_json : bool
        Replace what exists; say nothing but errors; print one JSON object.

    Raises
    ------
    EmdlError
        If the input is bad or the output cannot be written.
    """
    if output.suffix.lower() != ".npz":
        raise InputError(f"codes are written as .npz, got -o {output}; change the ending")
    files.check_outputs([output], force=force, inputs=[*source.inputs(what), model_path])
    screen.name_device(device, quiet=quiet)
    from emdl import spikes

    with screen.notes(quiet=quiet):
        model = spikes.load(model_path)
        recording = source.read(what, model)
        with screen.compile_notice(quiet=quiet):
            codes = spikes.encode(recording.data, model, device=device)
    n_units, n_positions = codes.shape[1:]
    with files.replacing(output) as part:
        np.savez_compressed(
            part,
            unit=codes.index % n_units,
            sample=codes.index // n_units,
            value=codes.value,
            shape=np.array([n_units, n_positions]),
            peak=model.peak,
            fs=model.fs,
        )
    share = codes.n_nonzero / (n_units * n_positions)
    if as_json:
        shape = [n_units, n_positions]
        facts = {"recording": report.describe(recording), "n_nonzero": codes.n_nonzero, "share": share, "shape": shape}
        screen.put_json(facts | {"output": str(output)})
    elif not quiet:
        head = f"[b]{codes.n_nonzero:,} codes[/b] of {n_units} x {n_positions:,} are not zero ({100 * share:.3f} %)"
        screen.put_renderables(head, f"[b]Written[/b]   {screen.escape(str(output))}")
