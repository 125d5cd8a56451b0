"""``emdl train --task denoise``: learn a denoising network from photographs, and show how it forms."""

import shlex
import sys
import time

import numpy as np

from emdl.backend import check_number
from emdl.errors import InputError

from . import files, screen, search, signals

MODEL_SUFFIXES = (".h5", ".hdf5")
DEFAULT_OUTPUT = "emdl-denoise.h5"
DEFAULT_MINUTES = 60.0
_HELD_OUT = 0.1  # share of the photographs that only judge
_MOST_HELD_OUT = 12
_SIZES = (1500, 900)  # longer sides, pixels, at which a photograph is learned from


def train_denoiser(folder, output, *, minutes, learn, plot, checkpoint_every, resume, force, quiet, as_json):
    """Learn a network from the photographs of a folder and write it, with a picture of its atoms.

    Parameters
    ----------
    folder : Path or None
        Searched with all that lies below it.
    output : Path
        The network; the stem of all outputs.
    minutes : float
        Length of the training.
    learn : dict
        Arguments of `emdl.images.training.train`; those that are None are left to it. ``grey`` says whether colours
        are left out.
    plot : bool
        Draw the picture, anew at each report.
    checkpoint_every : float
        Seconds between two reports, each with a checkpoint, which is removed once the network is written.
    resume, force, quiet, as_json : bool
        Go on from the checkpoint; replace outputs that exist; say nothing but errors; print one JSON object.

    Raises
    ------
    EmdlError
        If the input is bad or the output cannot be written.
    """
    check_folder(folder)
    if output.suffix.lower() not in MODEL_SUFFIXES:
        raise InputError(f"a model is an HDF5 file, got -o {output}; end it in .h5")
    outputs = {"model": output}
    if plot:
        outputs["png"] = output.with_suffix(".png")
    checkpoint = output.with_suffix(".checkpoint.h5")

    def check():
        files.check_checkpoint(checkpoint, resume=resume, force=force)
        files.check_outputs(outputs.values(), force=force or resume)

    check()
    from emdl import storage
    from emdl.images import training

    started = time.monotonic()
    with storage.lock(output), screen.notes(quiet=quiet), screen.compile_notice(quiet=quiet):
        check()  # another run may have written them since
        photographs, held_out = _read(folder, grey=learn["grey"])
        if not quiet:
            screen.say(
                f"{len(photographs)} images to learn from, {len(held_out)} to judge by; "
                f"a report, the atoms and a checkpoint every {checkpoint_every:g} s"
            )
        story = _Story(outputs.get("png"), quiet)
        options = {name: value for name, value in learn.items() if value is not None and name != "grey"}
        try:
            with signals.after_the_iteration(None) as pause:
                network = training.train(
                    photographs,
                    validation=held_out,
                    checkpoint=checkpoint,
                    resume=resume,
                    every=checkpoint_every,
                    callback=story,
                    pause=lambda: pause(None),
                    seconds=60 * check_number(minutes, "--minutes", 0, strict=True),
                    **options,
                )
        except (KeyboardInterrupt, signals.Stopped):
            if checkpoint.exists():
                screen.say(f"saved in {checkpoint}; go on with: {search.again(sys.argv)}")
            raise
        network.save(output)
        checkpoint.unlink(missing_ok=True)
    facts = {
        "photographs": str(folder),
        "outputs": {name: str(path) for name, path in outputs.items()},
        "n_images": len(photographs),
        "n_layers": network.n_layers,
        "n_atoms": network.n_atoms,
        "n_channels": network.n_channels,
        **story.facts(),
        "seconds": round(time.monotonic() - started, 3),
    }
    if as_json:
        screen.put_json(facts)
    elif not quiet:
        _show(facts, output)


def check_folder(folder):
    """Raise an InputError unless a folder was named."""
    if folder is None:
        raise InputError("emdl train --task denoise wants a folder of photographs; name one")
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {what}, wanted a folder of photographs")


def _read(folder, *, grey):
    """Return the photographs to learn from, at two sizes, and those to judge by, at the smaller one.

    A photograph is held out as a whole: at another size it would give the answers away.
    """
    from emdl.images.photographs import read_photographs

    large, small = (read_photographs(folder, sizes=(size,), grey=grey) for size in _SIZES)
    n_held_out = min(int(np.ceil(_HELD_OUT * len(small))), _MOST_HELD_OUT) if len(small) > 1 else 0
    held_out = {int(i) for i in np.linspace(0, len(small) - 1, n_held_out + 2)[1:-1]} if n_held_out else set()
    learned_from = []
    for i, (a, b) in enumerate(zip(large, small, strict=True)):
        if i not in held_out:
            learned_from += [a] if a.shape == b.shape else [a, b]
    return learned_from, [small[i] for i in sorted(held_out)]


class _Story:
    """What a training looks like from outside: a line and a picture at each report."""

    def __init__(self, path, quiet):
        self.path, self.quiet, self.reports = path, quiet, []

    def __call__(self, now):
        self.reports.append((now.step, now.seconds, now.loss, now.share, now.psnr))
        if not self.quiet:
            screen.say(
                f"{now.done:.0%}, step {now.step}, {now.seconds:.0f} s: loss {now.loss:.4g}, "
                f"{now.share:.1%} of the codes not zero{_psnr(now.psnr)}"
            )
        if self.path is not None:
            from emdl.images import report

            picture = report.training_figure(now.network, self.reports)
            with files.replacing(self.path) as part:
                picture.savefig(part, dpi=120)

    def facts(self):
        steps, seconds, loss, share, psnr = ([report[i] for report in self.reports] for i in range(5))
        history = {"step": steps, "seconds": seconds, "loss": loss, "share": share}
        levels = psnr[-1] if psnr else {}
        return {"psnr": levels, "history": history | {f"psnr_{level}": [p[level] for p in psnr] for level in levels}}


def _psnr(levels):
    if not levels:
        return ""
    return "; PSNR " + ", ".join(f"{value:.2f} dB at sigma {level:g}" for level, value in levels.items())


def _show(facts, output):
    from rich.markup import escape

    size = f"{facts['n_layers']} layers of {facts['n_atoms']} atoms"
    head = f"[b]{size}[/b] learned from {escape(facts['photographs'])} in {facts['seconds']:.0f} s"
    judged = _psnr(facts["psnr"]).removeprefix("; ")
    lines = [head]
    if judged:
        lines.append(f"[b]How good[/b]  {judged}, on photographs it did not learn from")
    lines.append("[b]Written[/b]   " + escape(", ".join(facts["outputs"].values())))
    lines.append("[b]Next[/b]      " + escape(shlex.join(["emdl", "denoise", "IMAGE", "--model", str(output)])))
    screen.put_renderables(*lines)
