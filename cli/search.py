"""The search for spikes with a model, of ``emdl detect`` and ``emdl sort``: progress, interrupts, going on."""

import shlex
import sys

from . import files, screen, signals

_FLAGS = ("--resume", "--force", "-f")


def find(recording, model, checkpoint, *, device, checkpoint_every, resume, quiet, partial=None, client=None):
    """Return the spikes of a recording; when interrupted, write those found so far and say how to go on.

    Parameters
    ----------
    recording : Recording
        What is searched.
    model : SpikeModel
        What for.
    checkpoint : Path or None
        File that keeps what was found; None keeps nothing.
    device : str
        ``cpu``, ``cuda`` or ``auto``.
    checkpoint_every : float
        Seconds between two writes of it.
    resume : bool
        Go on from it.
    quiet : bool
        Show no progress.
    partial : Path, optional
        Where spikes found before an interrupt go.
    client : distributed.Client, optional
        Whose workers search, see `workers.of`.

    Returns
    -------
    Spikes
    """
    from emdl.spikes import sorting

    keep = {} if checkpoint is None else {"checkpoint": checkpoint, "checkpoint_every": checkpoint_every}
    if checkpoint is not None:
        keep["resume"] = resume
    try:
        with screen.searching(quiet=quiet) as show, signals.after_the_iteration(show) as progress:
            return sorting.find(recording, model, device=device, progress=progress, client=client, **keep)
    except (KeyboardInterrupt, signals.Stopped):
        if checkpoint is not None and checkpoint.exists():
            _save_partial(recording, model, checkpoint, partial)
        raise


def _save_partial(recording, model, checkpoint, path):
    """Write the spikes found so far beside the checkpoint, and say how much of the recording they are of."""
    from emdl.spikes import detection, sorting, tables

    found, seconds = detection.partial(checkpoint, model)
    if path is not None:
        table = path if path.suffix.lower() in tables.SUFFIXES else path.with_suffix(".csv")
        with files.replacing(table) as part:
            tables.write(part, sorting.without(found, recording))
        screen.say(f"{len(found):,} spikes of the first {seconds:.1f} s of {recording.seconds:.1f} s are in {table}")
    screen.say(f"go on with: {again(sys.argv)}")


def again(words):
    """Return the command that goes on from where this one was interrupted."""
    return shlex.join(["emdl", *(word for word in words[1:] if word not in _FLAGS), "--resume"])
