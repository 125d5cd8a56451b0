"""``emdl train --task denoise --noisy``: learn a dictionary from noisy photographs alone, by EM."""

import shlex
import time

import numpy as np

from emdl.errors import InputError

from . import files, screen
from .train_denoise import MODEL_SUFFIXES, check_folder

_MOST_SIDE = 2000  # pixels along each axis: of a larger photograph the middle is learned from
_MOST = 200  # photographs, evenly spread over the folder


def train_patches(folder, output, *, n_atoms, max_iter, rng, plot, force, quiet, as_json):
    """Learn a dictionary from the noisy photographs of a folder and write it, with a picture of its atoms.

    Parameters
    ----------
    folder : Path or None
        Searched with all that lies below it. Photographs may differ in their noise level, which is estimated.
    output : Path
        The model; the stem of all outputs.
    n_atoms, max_iter : int or None
        Arguments of `emdl.images.learn.fit`; None leaves them to it.
    rng : int
        Seed.
    plot : bool
        Draw the picture.
    force, quiet, as_json : bool
        Replace outputs that exist; say nothing but errors; print one JSON object.

    Raises
    ------
    EmdlError
        If the input is bad or the output cannot be written.
    """
    check_folder(folder)
    if output.suffix.lower() not in MODEL_SUFFIXES:
        raise InputError(f"a model is an HDF5 file, got -o {output}; end it in .h5")
    outputs = {"model": output} | ({"png": output.with_suffix(".png")} if plot else {})
    files.check_outputs(outputs.values(), force=force)
    from emdl import storage
    from emdl.images import learn, report

    started = time.monotonic()
    with storage.lock(output), screen.notes(quiet=quiet), screen.compile_notice(quiet=quiet):
        planes, levels = _read(folder)
        if not quiet:
            screen.say(f"{len(planes)} photographs, noise {min(levels):.3g} to {max(levels):.3g} of 255 (estimated)")
        options = {"n_atoms": n_atoms, "max_iter": max_iter}
        history = []

        def tell(now):
            history.append(now.per_patch)
            if not quiet:
                screen.say(f"iteration {now.iteration} of {now.max_iter}: {now.per_patch:.2f} codes for a patch")

        given = {name: value for name, value in options.items() if value is not None}
        model = learn.fit(planes, 1.0, rng=rng, callback=tell, **given)
        model.save(output)
        if plot:
            picture = report.atoms_figure(model)
            with files.replacing(outputs["png"]) as part:
                picture.savefig(part, dpi=120)
    facts = {
        "photographs": str(folder),
        "outputs": {name: str(path) for name, path in outputs.items()},
        "n_images": len(planes),
        "n_atoms": model.n_atoms,
        "sigma": levels,
        "codes_per_patch": history,
        "seconds": round(time.monotonic() - started, 3),
    }
    if as_json:
        screen.put_json(facts)
    elif not quiet:
        _show(facts, output)


def _read(folder):
    """Return the brightness of the photographs in units of their noise, and their noise levels."""
    from PIL import Image

    from emdl.images import noise
    from emdl.images.photographs import SUFFIXES

    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise InputError(f"there is no photograph in {folder}; files should end in one of {', '.join(SUFFIXES)}")
    planes, levels = [], []
    for path in (paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, _MOST).astype(int))):
        with Image.open(path) as file:
            plane = np.asarray(file.convert("L"), np.float32)
        top, left = (max(0, n - _MOST_SIDE) // 2 for n in plane.shape)
        plane = plane[top : top + _MOST_SIDE, left : left + _MOST_SIDE]
        level = noise.level_of_plane(plane)
        if level == 0 or min(plane.shape) < noise.SIDE:
            screen.say(f"{path} is left out: it shows no noise")
            continue
        planes.append(plane[None] / np.float32(level))
        levels.append(level)
    if not planes:
        raise InputError(f"no photograph in {folder} shows noise; leave out --noisy to learn from clean ones")
    return planes, levels


def _show(facts, output):
    from rich.markup import escape

    screen.put_renderables(
        f"[b]{facts['n_atoms']} atoms[/b] learned from {facts['n_images']} noisy photographs in "
        f"{escape(facts['photographs'])} in {facts['seconds']:.0f} s, by EM, without a clean one",
        "[b]Written[/b]   " + escape(", ".join(facts["outputs"].values())),
        "[b]Next[/b]      " + escape(shlex.join(["emdl", "denoise", "IMAGE", "--model", str(output)])),
    )
