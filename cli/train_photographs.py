"""What both ways to learn from photographs share: files, checkpoint, reports as the model forms, interrupts."""

import shlex
import sys
import time

from emdl.errors import InputError

from . import files, screen, search, signals

MODEL_SUFFIXES = (".h5", ".hdf5")
DEFAULT_OUTPUT = "emdl-denoise.h5"


def train(folder, output, way, *, plot, checkpoint_every, resume, force, quiet, as_json):
    """Learn a model from the photographs of a folder and write it, with a picture of its atoms.

    Parameters
    ----------
    folder : Path or None
        Searched with all that lies below it.
    output : Path
        The model; the stem of all outputs.
    way : Network or Dictionary
        What is learned and how: reads the photographs, learns from them, says what it has learned.
    plot : bool
        Draw the picture, anew at each report.
    checkpoint_every : float
        Seconds between two reports, each with a checkpoint, which is removed once the model is written.
    resume, force, quiet, as_json : bool
        Go on from the checkpoint; replace outputs that exist; say nothing but errors; print one JSON object.

    Raises
    ------
    EmdlError
        If the input is bad or the output cannot be written.
    """
    _check_folder(folder)
    if output.suffix.lower() not in MODEL_SUFFIXES:
        raise InputError(f"a model is an HDF5 file, got -o {output}; end it in .h5")
    outputs = {"model": output} | ({"png": output.with_suffix(".png")} if plot else {})
    checkpoint = output.with_suffix(".checkpoint.h5")

    def check():
        files.check_checkpoint(checkpoint, resume=resume, force=force)
        files.check_outputs(outputs.values(), force=force or resume)

    check()
    from emdl import storage

    started = time.monotonic()
    with storage.lock(output), screen.notes(quiet=quiet), screen.compile_notice(quiet=quiet):
        check()  # another run may have written them since
        learned_from, held_out, said = way.read(folder)
        if not quiet:
            screen.say(
                f"{len(learned_from)} images to learn from, {len(held_out)} to judge by{said}; "
                f"a report, the atoms and a checkpoint every {checkpoint_every:g} s{way.pace}"
            )
        story = Story(outputs.get("png"), way.unit, quiet)
        try:
            with signals.after_the_iteration(None) as pause:
                model = way.learn(
                    learned_from,
                    held_out,
                    story,
                    lambda: pause(None),
                    checkpoint=checkpoint,
                    resume=resume and checkpoint.exists(),
                    every=checkpoint_every,
                )
        except (KeyboardInterrupt, signals.Stopped):
            if checkpoint.exists():
                screen.say(f"saved in {checkpoint}; go on with: {search.again(sys.argv)}")
            raise
        model.save(output)
        checkpoint.unlink(missing_ok=True)
    facts = {
        "photographs": str(folder),
        "outputs": {name: str(path) for name, path in outputs.items()},
        "n_images": len(learned_from),
        **way.facts(model),
        **story.facts(),
        "seconds": round(time.monotonic() - started, 3),
    }
    if as_json:
        screen.put_json(facts)
    elif not quiet:
        _show(facts, way.headline(facts), output)


def _check_folder(folder):
    """Raise an InputError unless a folder was named."""
    if folder is None:
        raise InputError("emdl train --task denoise wants a folder of photographs; name one")
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {what}, wanted a folder of photographs")


class Story:
    """What a training looks like from outside: a line and a picture at each report.

    Parameters
    ----------
    path : Path or None
        The picture; None draws none.
    unit : str
        What a step is called.
    quiet : bool
        Say nothing.
    """

    def __init__(self, path, unit, quiet):
        self.path, self.unit, self.quiet, self.reached = path, unit, quiet, []

    def tell(self, done, reached, words, model):
        """Report.

        Parameters
        ----------
        done : float
            Share of the training.
        reached : emdl.images.report.Reached
            What it has come to.
        words : str
            The measures, in words.
        model : object
            As it stands.
        """
        self.reached.append(reached)
        if not self.quiet:
            screen.say(
                f"{done:.0%}, {self.unit} {reached.step}, {reached.seconds:.0f} s: {words}{_psnr(reached.psnr, '; ')}"
            )
        if self.path is not None:
            from emdl.images import report

            picture = report.training_figure(model, self.reached, unit=self.unit)
            with files.replacing(self.path) as part:
                picture.savefig(part, dpi=120)

    def facts(self):
        """Return the PSNR at the end, and the numbers of all reports by name."""
        history = {self.unit: [one.step for one in self.reached], "seconds": [one.seconds for one in self.reached]}
        last = self.reached[-1] if self.reached else None
        for name in last.measures if last else ():
            history[name] = [one.measures[name] for one in self.reached]
        for level in last.psnr if last else ():
            history[f"psnr_{level:g}"] = [one.psnr[level] for one in self.reached]
        return {"psnr": last.psnr if last else {}, "history": history}


def _psnr(levels, before=""):
    if not levels:
        return ""
    return f"{before}PSNR " + ", ".join(f"{value:.2f} dB at sigma {level:g}" for level, value in levels.items())


def _show(facts, headline, output):
    lines = [headline.format(screen.escape(facts["photographs"]))]
    if facts["psnr"]:
        lines.append(f"[b]How good[/b]  {_psnr(facts['psnr'])}, on photographs it did not learn from")
    lines.append("[b]Written[/b]   " + screen.escape(", ".join(facts["outputs"].values())))
    lines.append("[b]Next[/b]      " + screen.escape(shlex.join(["emdl", "denoise", "IMAGE", "--model", str(output)])))
    screen.put_renderables(*lines)
