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

VERSION = 1
PARTIAL = True  # tables and figure take the cells that are there, and say how many seeds they are
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
    gabor = float(np.mean([one.share for one in fit_gabors(atoms)])) if seed == 0 else None
    return {**{name: stored[name] for name in kept}, "gabor": gabor, "processor": stored.get("processor")}


def tables(rows):
    lines = []
    found = _by_seed(rows)
    for (sigma, tied, way), results in sorted(found.items(), key=lambda item: (not item[0][1], item[0][0])):
        psnr = [r["Set12"] for r in results.values()]
        gain = _gains(results, found.get((sigma, tied, "bias"), {}))
        said = _said(gain, "+") if gain and way != "bias" else "-"
        depth = [np.mean([r["depth"][d] - r["depth"]["1"] for r in results.values()]) for d in DEPTHS if d != "1"]
        gabor = [r["gabor"] for r in results.values() if r["gabor"] is not None]
        lines.append([
            sigma, "tied" if tied else "untied", NAMES[way], len(results), _said(psnr),
            said, f"{100 * np.mean([r['non-zero'] for r in results.values()]):.0f} %", *(f"{d:+.2f}" for d in depth),
            f"{np.mean(gabor):.2f}" if gabor else "-",
        ])  # fmt: skip
    head = ["sigma", "atoms", "lambda", "seeds", "Set12 (dB)", "over the bias (dB)", "non-zero",
            "T/2", "2 T", "4 T", "Gabor share"]  # fmt: skip
    return {"images": drawing.table(head, lines)}


def _said(values, sign=""):
    """Return the mean and its standard error, in words."""
    return f"{np.mean(values):{sign}.2f}" + (f" ± {_error(values):.2f}" if len(values) > 1 else "")


def _by_seed(rows):
    """Return {(sigma, tied, way): {seed: result}}."""
    found = {}
    for cell, result in rows:
        found.setdefault((cell["sigma"], cell["tied"], cell["way"]), {})[cell["seed"]] = result
    return found


def _gains(results, others):
    """Return what results are better by than others, seed by seed, dB."""
    return [r["Set12"] - others[seed]["Set12"] for seed, r in results.items() if seed in others]


def _error(values):
    """Return the standard error of the mean."""
    return np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan


def draw(rows, folder):
    found = _by_seed(rows)
    figure, axes = drawing.panels(3, width=7.2)
    sigmas = sorted({sigma for sigma, *_ in found})
    for number, way in enumerate(("em", "fixed")):
        for axis, tied in zip(axes, (True, False), strict=False):
            gains = {s: _gains(found.get((s, tied, way), {}), found.get((s, tied, "bias"), {})) for s in sigmas}
            gains = {s: gain for s, gain in gains.items() if gain}
            x = [sigmas.index(s) + 0.15 * (number - 0.5) for s in gains]
            axis.errorbar(x, [np.mean(g) for g in gains.values()], [_error(g) for g in gains.values()], capsize=2,
                          fmt=drawing.MARKS[number], color=drawing.COLOURS[number], label=NAMES[way])  # fmt: skip
    for axis, title in zip(axes, ("tied", "untied"), strict=False):
        axis.axhline(0, color="0.7", linewidth=0.8, zorder=0)
        axis.set_xticks(range(len(sigmas)), sigmas)
        axis.set(xlabel="noise level sigma (8-bit units)", title=title)
    axes[0].set_ylabel("Set12, dB over the bias\nby backprop")
    axes[0].legend()
    for number, way in enumerate(("em", "fixed", "bias")):
        curves = [[r["depth"][d] for d in DEPTHS] for r in found.get((20, True, way), {}).values()]
        if curves:
            drawing.band(axes[2], [float(d) for d in DEPTHS], curves, number, NAMES[way])
    axes[2].set(xscale="log", xlabel="layers when tested / trained", ylabel="PSNR (dB)", title="tied, sigma 20")
    axes[2].set_xticks([float(d) for d in DEPTHS], ["1/2", "1", "2", "4"])
    axes[2].minorticks_off()
    axes[2].legend()
    drawing.save(figure, folder, "images")
