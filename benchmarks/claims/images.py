"""Claim 6: on images, lambda learned by EM against a bias learned by backpropagation and a fixed lambda.

The trainings are those of `benchmarks/denoise_paper.py`, one cell each; here they are summarised, and Gabor functions
fitted to the atoms. The product's own denoiser, against BM3D and others, is measured by the suite "denoise".
"""

import json
import pathlib
from dataclasses import replace

import numpy as np

from .. import denoise_paper
from ..pictures import DATA
from . import drawing
from .store import groups

VERSION = 1
RESULTS = pathlib.Path(denoise_paper.__file__).parent / "results" / "denoise_paper"
NAMES = {
    "em": "EM", "bias": "bias by backprop", "fixed": "fixed", "gcv": "gcv", "em-free": "EM, norms free",
    "bias-free": "bias, norms free",
}  # fmt: skip
DEPTHS = ("0.5", "1", "2", "4")


def cells(quick):
    more = {"steps": 30} if quick else {}
    return [
        {"way": way, "sigma": sigma, "seed": seed, "tied": tied, **more}
        for way, sigma, seed, tied in denoise_paper.plan(quick)
    ]


def missing(**cell):
    """Return what keeps a cell from being computed, or None."""
    absent = [name for name in ("train400", "set12") if not (DATA / name).is_dir()]
    return f"the photographs {' and '.join(absent)} are not there" if absent else None


def run(way, sigma, seed, tied, steps=None):
    from emdl.images.gabor import fit_gabors
    from emdl.images.shifts import ShiftedEncoder

    budget, folder = denoise_paper.Budget(), RESULTS
    if steps:
        budget, folder = replace(budget, steps=steps), RESULTS / "quick"
    folder.mkdir(parents=True, exist_ok=True)
    denoise_paper.run([(way, sigma, seed, tied)], budget, DATA, folder)
    path = folder / f"{way}_{sigma}_{'tied' if tied else 'untied'}_{seed}.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    atoms = ShiftedEncoder.load(path.with_suffix(".h5")).D
    kept = ("Set12", "held-out", "depth", "non-zero", "budget")
    return {**{name: stored[name] for name in kept}, "gabor": float(np.mean([one.share for one in fit_gabors(atoms)]))}


def tables(rows):
    lines = []
    found = groups(rows, "sigma", "tied", "way")
    for (sigma, tied, way), results in sorted(found.items(), key=lambda item: (not item[0][1], item[0][0])):
        psnr = [r["Set12"] for r in results]
        base = [r["Set12"] for r in found.get((sigma, tied, "bias"), [])]
        gain = np.array(psnr) - np.array(base) if len(base) == len(psnr) and way != "bias" else None
        said = "-" if gain is None else f"{gain.mean():+.2f} ± {_error(gain):.2f}"
        depth = [np.mean([r["depth"][d] - r["depth"]["1"] for r in results]) for d in DEPTHS if d != "1"]
        lines.append([
            sigma, "tied" if tied else "untied", NAMES[way], len(results), f"{np.mean(psnr):.2f} ± {_error(psnr):.2f}",
            said, f"{100 * np.mean([r['non-zero'] for r in results]):.0f} %", *(f"{d:+.2f}" for d in depth),
            f"{np.mean([r['gabor'] for r in results]):.2f}",
        ])  # fmt: skip
    head = ["sigma", "atoms", "lambda", "seeds", "Set12 (dB)", "over the bias (dB)", "non-zero",
            "T/2", "2 T", "4 T", "Gabor share"]  # fmt: skip
    return {"images": drawing.table(head, lines)}


def _error(values):
    """Return the standard error of the mean."""
    return np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan


def draw(rows, folder):
    found = groups([row for row in rows if row[0]["tied"]], "sigma", "way")
    figure, axes = drawing.panels(2, width=7.2)
    sigmas = sorted({sigma for sigma, _ in found})
    for number, way in enumerate(("em", "bias", "fixed")):
        at = [s for s in sigmas if (s, way) in found]
        gains = [[r["Set12"] - o["Set12"] for r, o in zip(found[s, way], found[s, "fixed"], strict=True)] for s in at]
        x = [sigmas.index(s) + 0.15 * (number - 1) for s in at]
        axes[0].errorbar(x, [np.mean(g) for g in gains], [_error(g) for g in gains], fmt=drawing.MARKS[number],
                         color=drawing.COLOURS[number], capsize=2, label=NAMES[way])  # fmt: skip
        values = [[r["depth"][d] for d in DEPTHS] for r in found[min(sigmas, key=lambda s: abs(s - 20)), way]]
        drawing.band(axes[1], [float(d) for d in DEPTHS], values, number, NAMES[way])
    axes[0].set_xticks(range(len(sigmas)), sigmas)
    axes[0].set(xlabel="noise level sigma (8-bit units)", ylabel="Set12, dB over the fixed lambda")
    axes[1].set(xscale="log", xlabel="layers when tested / when trained", ylabel="PSNR, two images (dB)")
    axes[1].set_xticks([float(d) for d in DEPTHS], ["1/2", "1", "2", "4"])
    axes[1].minorticks_off()
    axes[0].legend()
    drawing.save(figure, folder, "images")
