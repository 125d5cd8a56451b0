"""Claim 5: two-sided and one-sided shrinkage, on signals with positive and with signed codes."""

import time

import numpy as np

from emdl import em_fit
from emdl.metrics import snr_db

from . import data, drawing
from .store import groups

VERSION = 1
SNRS = (7, 12)


def cells(quick):
    seeds = list(data.SEEDS)[: 1 if quick else None]
    return [
        {"codes": codes, "shrink": shrink, "snr": snr, "seed": seed}
        for codes in ("positive", "signed") for shrink in ("one-sided", "two-sided")
        for snr in SNRS[: 1 if quick else None] for seed in seeds
    ]  # fmt: skip


def run(codes, shrink, snr, seed):
    sim = data.problem(seed, snr, positive=codes == "positive")
    began = time.process_time()
    fit = em_fit(
        sim.y, data.ATOMS, data.LENGTH, D0=data.perturbed(sim.D, seed), sigma=sim.sigma, positive=shrink == "one-sided",
        rng=seed,
    )  # fmt: skip
    seconds = time.process_time() - began
    z = fit.model.encode(sim.y)
    return {
        "error": data.worst(fit.model.D, sim.D), "snr": snr_db(fit.model.reconstruct(sim.y), sim.clean),
        "nonzero": float((np.abs(z) > 0).mean() / (sim.z != 0).mean()), "seconds": seconds,
    }  # fmt: skip


def tables(rows):
    lines = []
    for (codes, shrink, snr), results in groups(rows, "codes", "shrink", "snr").items():
        columns = (("error", 3), ("snr", 2), ("nonzero", 1), ("seconds", 2))
        lines.append([codes, shrink, f"{snr} dB", *(drawing.spread([r[n] for r in results], d) for n, d in columns)])
    head = [
        "codes",
        "shrinkage",
        "SNR",
        "error of the worst atom",
        "recovered (dB)",
        "non-zeros over events",
        "processor s",
    ]
    return {"sides": drawing.table(head, lines)}


def draw(rows, folder):
    figure, axes = drawing.panels(2, width=7.2)
    found = groups(rows, "codes", "snr", "shrink")
    problems = list(dict.fromkeys((codes, snr) for codes, snr, _ in found))
    for axis, what, label in ((axes[0], "error", "error of the worst atom"), (axes[1], "snr", "recovered signal (dB)")):
        for number, shrink in enumerate(("one-sided", "two-sided")):
            for at, (codes, snr) in enumerate(problems):
                values = [r[what] for r in found[codes, snr, shrink]]
                x = at + (number - 0.5) * 0.25
                axis.plot([x] * len(values), values, drawing.MARKS[number], color=drawing.COLOURS[number],
                          label=shrink if not at else None, alpha=0.7)  # fmt: skip
        axis.set_xticks(range(len(problems)), [f"{codes}\n{snr} dB" for codes, snr in problems])
        axis.set(xlabel="codes of the data, SNR", ylabel=label)
    axes[0].set_yscale("log")
    drawing.plain_log(axes[0].yaxis)
    axes[0].legend()
    drawing.save(figure, folder, "sides")
