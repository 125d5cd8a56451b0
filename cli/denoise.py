"""``emdl denoise``: take the noise out of pictures."""

import contextlib
import functools
import socket
import sys
import time
import warnings
from dataclasses import dataclass, replace

import numpy as np

from emdl.device import choose
from emdl.errors import EmdlError, FileFormatError, InputError
from emdl.images import files as pictures
from emdl.images import restore
from emdl.text import printable

from . import files, screen, workers

SUFFIX = "_denoised"
REPORT_SUFFIX = "_report.png"
AUTO = "auto"
BUNDLED = "the network that comes with emdl"
_UNITS = {"uint8": 1.0, "uint16": 257.0}  # what one step of the 8-bit scale is in a file
MANY_CLIPPED = 0.01


@dataclass(frozen=True)
class Job:
    """One file to read and what to write."""

    source: object
    output: object
    report: object


@dataclass(frozen=True)
class Task:
    """What is done to every file: noise level, and the model, or where it comes from."""

    level: object
    learn: bool
    given: object
    path: object
    device: str

    @property
    def model_of(self):
        """Function of the channels and the noise level of an image that returns a model and its facts."""
        return _learned if self.learn else functools.partial(_network, self.given, self.path, choose(self.device)[0])


def denoise_pictures(paths, output, *, sigma, model, learn, report, device, force, quiet, as_json, dask=None):
    """Denoise pictures and say what was done.

    Parameters
    ----------
    paths : list of Path
        Pictures and folders of pictures.
    output : Path or None
        A file for one picture, a folder that exists for several; None writes beside each picture.
    sigma : str
        ``auto`` or the noise level: on the 8-bit scale for pictures of 8 and 16 bits, else in the unit of the file.
    model : Path or None
        A network; None for the one that comes with emdl.
    learn : bool
        Learn a dictionary on each page instead.
    report : Path or None
        A picture of what was done; a folder that exists if there are several pictures.
    device : str
        ``cpu``, ``cuda`` or ``auto``: where the layers of a network run.
    force, quiet, as_json : bool
        Replace what exists; say nothing but errors; print one JSON object.
    dask : str, optional
        Whose workers read, denoise and write the pictures, see `workers.of`.

    Raises
    ------
    EmdlError
        If an input is bad or an output cannot be written. One bad picture among several does not keep the others from
        being written; the error comes at the end.
    """
    level = _level(sigma)
    if learn and model is not None:
        raise InputError("--learn makes a model of its own; leave out --model, or --learn")
    if learn and device == "cuda":
        raise InputError("--learn runs on the CPU, got --device cuda; leave out one of them")
    jobs = _jobs(_expand(paths), output, report)
    outputs = [path for job in jobs for path in (job.output, job.report) if path is not None]
    _check_distinct(outputs)
    read = [job.source for job in jobs] + ([] if model is None else [model])
    files.check_outputs(outputs, force=force, inputs=read)
    given = None if model is None else restore.as_model(model)
    if not learn:
        screen.name_device(device, quiet=quiet)
    started = time.monotonic()
    task = Task(level, learn, given, model, device)
    facts, failed = _all(jobs, task, quiet, dask)
    if failed and len(jobs) == 1:
        raise failed[0]
    if as_json:
        screen.put_json({"images": facts, "seconds": time.monotonic() - started})
    elif not quiet and facts:
        _show(facts, time.monotonic() - started)
    if failed:
        for error in failed[:-1]:
            screen.say(f"error: {error}")
        raise type(failed[-1])(
            f"{failed[-1]} ({len(failed)} of {len(jobs)} pictures could not be denoised; the others are written)"
        )


def _level(sigma):
    """Return the noise level that was given, None for auto."""
    if sigma == AUTO:
        return None
    try:
        level = float(sigma)
    except ValueError:
        level = np.nan
    if not np.isfinite(level) or level < 0:
        raise InputError(f"--sigma is {sigma}, wanted auto or a finite number >= 0 (on the scale from 0 to 255)")
    return level


def _expand(given):
    """Return the pictures, those of a folder in the order of their names."""
    found = []
    for path in given:
        if not path.exists():
            raise FileFormatError(f"{path} does not exist")
        if not path.is_dir():
            found.append(path)
            continue
        inside = [
            p
            for p in sorted(path.iterdir())
            if p.suffix.lower() in pictures.FORMATS and not p.stem.endswith(SUFFIX) and not p.name.startswith(".")
        ]
        if not inside:
            raise InputError(f"there is no picture in {path}; wanted {', '.join(pictures.FORMATS)}")
        found += inside
    return list(dict.fromkeys(found))


def _jobs(sources, output, report):
    """Return which file is written for which picture."""
    several = len(sources) > 1
    for folder, flag in ((output, "-o"), (report, "--report")):
        if several and folder is not None and not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise InputError(f"{flag} {folder} {what}, wanted a folder for {len(sources)} pictures; make it first")
    return [Job(source, _output(source, output), _report(source, report)) for source in sources]


def _output(source, output):
    if output is None:
        output = source.with_name(f"{source.stem}{SUFFIX}{source.suffix}")
    elif output.is_dir():
        output = output / source.name
    pictures.format_of(output)
    return output


def _report(source, report):
    if report is None:
        return None
    path = report / f"{source.stem}{REPORT_SUFFIX}" if report.is_dir() else report
    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise InputError(f"--report {path} should end in .png, .pdf or .svg")
    return path


def _check_distinct(outputs):
    seen = set()
    for path in outputs:
        if path in seen:
            raise InputError(f"two outputs would be {path}; denoise these pictures one folder at a time")
        seen.add(path)


def _all(jobs, task, quiet, dask):
    """Return the facts of every picture that could be denoised, and the errors of the others."""
    facts, failed = [], []
    with (
        workers.of(dask, quiet=quiet) as client,
        screen.notes(quiet=quiet),
        screen.compile_notice(quiet=quiet),
        _progress(len(jobs), quiet) as show,
    ):
        for found in _here(jobs, task, show) if client is None else _there(jobs, task, show, client):
            (failed if isinstance(found, EmdlError) else facts).append(found)
            if not quiet and not isinstance(found, EmdlError):
                _say_doubts(found)
    return facts, failed


def _here(jobs, task, show):
    """Give the facts or the error of each picture, denoised by this process."""
    model_of = task.model_of
    for number, job in enumerate(jobs):
        show(number, job.source.name)
        try:
            yield _one(job, task.level, model_of, functools.partial(show, number, job.source.name))
        except EmdlError as error:
            yield error


def _there(jobs, task, show, client):
    """Give the facts or the error of each picture, denoised by a worker."""
    from emdl import cluster

    far = [Job(*(None if p is None else p.absolute() for p in (j.source, j.output, j.report))) for j in jobs]
    found = cluster.spread(client, _far, task, far, name="the model")
    for number, job in enumerate(jobs):
        show(number, job.source.name)
        fact = next(found)
        names = {"input": str(job.source), "output": str(job.output), "report": job.report and str(job.report)}
        yield fact if isinstance(fact, EmdlError) else fact | names


def _far(task, job):
    """Return the facts or the error of a picture."""
    if not job.source.exists():
        return FileFormatError(f"{job.source} is not there on {socket.gethostname()}; put it where all workers see it")
    try:
        return _one(job, task.level, task.model_of, None)
    except EmdlError as error:
        return error


def _one(job, level, model_of, show):
    """Denoise one file and return its facts."""
    started, done, notes = time.monotonic(), [], []
    n_pages = pictures.count(job.source)

    def pages():
        for number, page in enumerate(pictures.read(job.source)):
            if number == 0:
                pictures.check_fits(page, job.output, n_pages=n_pages)
            progress = None if show is None else lambda share, number=number: show((number + share) / n_pages)
            clean, fact = _page(page, f"{job.source}", level, model_of, progress, job.report if number == 0 else None)
            done.append(fact)
            notes.extend(note for note in page.notes if note not in notes)
            yield clean

    with files.replacing(job.output) as part:
        pictures.write(part, pages())
    levels = [fact["sigma"] for fact in done]
    return {
        "input": str(job.source),
        "output": str(job.output),
        "report": None if job.report is None else str(job.report),
        "picture": done[0]["picture"],
        "pages": len(done),
        "sigma": float(np.sqrt(np.mean(np.square(levels)))),
        "sigma_of_pages": levels,
        "unit": done[0]["unit"],
        "estimated": level is None,
        "clipped": max(fact["clipped"] for fact in done),
        **done[0]["with"],
        "notes": notes,
        "seconds": round(time.monotonic() - started, 3),
    }


def _page(page, name, level, model_of, progress, report):
    """Return a page without noise, and its facts."""
    channels = np.moveaxis(page.pixels, -1, 0)
    restore.check_finite(channels, name)
    unit = _UNITS.get(channels.dtype.name, 1.0)
    channels, mean, power = restore.near_one(channels, name) if channels.dtype.kind == "f" else (channels, None, 1.0)
    given = None if level is None else level * unit / power
    try:
        model, told = model_of(channels, given)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    plan = restore.plan(channels, model, given)
    pixels = np.empty_like(page.pixels)
    out = np.moveaxis(pixels, -1, 0)
    restore.carry_out(plan, channels, model, out, scale=power, progress=progress)
    if mean is not None and mean.any():
        out += mean
    clean = replace(page, pixels=pixels)
    if report is not None:
        _write_report(report, page, clean, replace(plan, sigma=plan.sigma * power), model, name)
    fact = {
        "picture": page.description,
        "sigma": plan.level * power / unit,
        "unit": "of 255" if channels.dtype.name in _UNITS else "in the unit of the file",
        "clipped": plan.clipped,
        "with": told,
    }
    return clean, fact


def _network(given, path, xp, channels, sigma):
    """Return the network for an image, and its facts: the one that was given, else the bundled one that fits."""
    network = restore.as_model(given, len(channels), xp)
    size = {key: getattr(network, key) for key in ("n_layers", "n_atoms", "n_channels") if hasattr(network, key)}
    return network, {"model": BUNDLED if path is None else str(path), **size}


def _learned(channels, sigma):
    """Return a dictionary learned on the plane of the image with the most contrast, and its facts."""
    from emdl.images import learn

    plan = restore.plan(channels, None, sigma, turn=True)
    if plan.sigma[0] == 0:
        return None, {"model": "nothing, as there is no noise"}
    model = learn.fit(restore.mix(channels, plan.basis[0])[None, None], float(plan.sigma[0]), rng=0)
    return model, {"model": "a dictionary learned on the picture itself"}


def _write_report(path, page, clean, plan, model, name):
    from emdl.images import report

    picture = report.figure(page, clean, plan, model, name=name)
    with files.replacing(path) as part, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a letter of the name that the font lacks is drawn as a box
        picture.savefig(part, dpi=150)


def _say_doubts(fact):
    if fact["estimated"] and fact["clipped"] > MANY_CLIPPED:
        screen.say(f"warning: {fact['input']}: {restore.clipping_sentence(fact['clipped'])} (--sigma)")
    for note in fact["notes"]:
        screen.say(f"{fact['input']}: {note}")


def _noise(fact):
    if fact["sigma"] == 0:
        return "no noise"
    how = "estimated" if fact["estimated"] else "given"
    return f"noise {fact['sigma']:.3g} {fact['unit']} ({how})"


def _show(facts, seconds):
    if len(facts) == 1:
        screen.put_renderables(*_story(facts[0]), _with(facts), *_written(facts))
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    table.add_column("picture")
    table.add_column("")
    table.add_column("noise", justify="right")
    table.add_column("s", justify="right")
    for fact in facts:
        pages = f", {fact['pages']} pages" if fact["pages"] > 1 else ""
        table.add_row(
            screen.escape(fact["input"]), fact["picture"] + pages, f"{fact['sigma']:.3g}", f"{fact['seconds']:.1f}"
        )
    head = f"[b]{len(facts)} pictures[/b] in {seconds:.1f} s, noise {facts[0]['unit']}"
    screen.put_renderables(head, table, _with(facts), *_written(facts))


def _story(fact):
    pages = f", {fact['pages']} pages" if fact["pages"] > 1 else ""
    what = f"{screen.escape(fact['input'])} ({fact['picture']}{pages})"
    if fact["sigma"] == 0:
        return [f"[b]no noise[/b] in {what}: it is written as it is"]
    return [f"[b]{_noise(fact)}[/b] taken out of {what} in {fact['seconds']:.1f} s"]


def _with(facts):
    names = dict.fromkeys(
        f"{f['model']}: {f['n_layers']} layers of {f['n_atoms']} atoms"
        if "n_layers" in f
        else f"{f['model']}: {f['n_atoms']} atoms"
        if "n_atoms" in f
        else f["model"]
        for f in facts
    )
    return "[b]With[/b]      " + screen.escape("; ".join(names))


def _written(facts):
    paths = [path for fact in facts for path in (fact["output"], fact["report"]) if path]
    return ["[b]Written[/b]   " + screen.escape(", ".join(paths))]


@contextlib.contextmanager
def _progress(total, quiet):
    """Give a function that shows how far the work is: (pictures done, name, share of this one)."""
    if quiet or not (sys.stderr.isatty() or total > 1):
        yield lambda *_: None
    elif not sys.stderr.isatty():
        yield lambda number, name, share=None: None if share else screen.say(f"{number + 1} of {total}: {name}")
    else:
        with _bar(total) as show:
            yield show


@contextlib.contextmanager
def _bar(total):
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen.console(sys.stderr), transient=True) as bar:
        task = bar.add_task("reading", total=total)

        def show(number, name, share=0.0):
            bar.update(task, description=f"{printable(name)} ({number + 1} of {total})", completed=number + share)

        yield show
