"""Claim 3: the regularisation is learned.

The atoms are known (their start perturbed to an error of 0.1), noise level known; what differs is how lambda is found.
Judged on what the codes recover: the clean signal (dB) and the events (F1 within 3 samples).
"""

import math

import numpy as np

from emdl import backward, encode, ops, rates, simulate, unroll
from emdl.metrics import score_spikes, snr_db

from . import data, drawing
from .store import groups

VERSION = 1
DENSITIES, SNRS, LAYERS = (0.001, 0.01, 0.05), (7, 12, 16), 30
WEIGHTS = (0.001, 0.01, 0.1, 1, 10, 100)  # of the Gamma prior, in units of the data
RULES = (
    "gcv",
    "sure",
    "paper 0.01",
    "paper 1",
    "paper 10",
    "universal",
    "best fixed",
    "bias, clean target",
    "bias, noisy target",
)


def cells(quick):
    seeds = list(data.SEEDS)[: 1 if quick else None]
    grid = [(0.01, 12)] if quick else [(density, snr) for density in DENSITIES for snr in SNRS]
    rows = [
        {"part": "rules", "density": density, "snr": snr, "rule": rule, "seed": seed}
        for density, snr in grid for rule in RULES for seed in seeds
    ]  # fmt: skip
    densities = (0.01,) if quick else DENSITIES
    return rows + [
        {"part": "prior", "density": density, "snr": 12, "rule": f"paper {weight:g}", "seed": seed}
        for density in densities for weight in WEIGHTS for seed in seeds
    ]  # fmt: skip


def run(part, density, snr, rule, seed):
    sim = data.problem(seed, snr, density=density, signals=8)
    D = data.perturbed(sim.D, seed, error=0.1)
    universal = rates.start_lmbd(len(D), sim.z.shape[0] * sim.z.shape[2], sim.sigma)
    if rule == "universal":
        return _judge(sim, D, universal)
    if rule == "best fixed":
        grid = universal * np.geomspace(0.05, 2, 24)
        return max((_judge(sim, D, lmbd) for lmbd in grid), key=lambda r: r["snr"])
    if rule.startswith("bias"):
        return _by_backprop(sim, D, universal, clean="clean" in rule, seed=seed)
    lmbd, message = np.full(len(D), universal), ""
    prior = (
        rates.Prior.around(universal, sim.z.shape[0] * sim.z.shape[2], float(rule.split()[1]))
        if "paper" in rule
        else None
    )
    codes = search = None
    for _ in range(40):
        step = rates.e_step(
            sim.y,
            D,
            (1,),
            True,
            lmbd,
            sim.sigma,
            rule=rule.split()[0],
            prior=prior,
            tol=1e-4,
            codes=codes,
            search=search,
        )
        lmbd, codes, search, message = step.lmbd, step.codes, step.search, step.message
    return {**_judge(sim, D, lmbd), "collapsed": bool(message)}


def _judge(sim, D, lmbd):
    codes = encode(sim.y, D, lmbd, sim.sigma, tol=1e-5, positive=True, sparse=True)
    z = codes.dense()
    found, true = _events(z, 0.0), _events(sim.z, 0.0)
    score = score_spikes(found[0], found[1], true[0], true[1], tolerance=3)
    hits = float(score.true_positives.sum())
    f1 = 2 * hits / max(len(found[0]) + len(true[0]), 1)
    return {
        "snr": snr_db(ops.synthesize(z, D), sim.clean), "f1": f1, "level": float(np.mean(lmbd) * sim.sigma),
        "nonzero": codes.n_nonzero / z.size, "collapsed": False,
    }  # fmt: skip


def _events(z, least):
    """Return times and atoms of local maxima of the codes, all signals in a row."""
    gap = 10 * z.shape[2]
    inner = np.pad(z, [(0, 0), (0, 0), (2, 2)])
    top = np.max([inner[:, :, i : i + z.shape[2]] for i in range(5)], axis=0)
    signal, atom, time = np.nonzero((z > least) & (z == top))
    return signal * gap + time, atom


def _by_backprop(sim, D, universal, *, clean, seed):
    """Learn one bias for each atom by Adam on the reconstruction error through T layers, dictionary held.

    The clean target is that of another draw of the same atoms, so nobody sees the truth that judges.
    """
    seen = simulate.convolutional(
        8, data.SAMPLES, sim.D, density=float((sim.z != 0).mean()), sigma=sim.sigma, positive=True,
        rng=np.random.default_rng([seed, 3]),
    )  # fmt: skip
    target = seen.clean if clean else seen.y
    step = 1 / ops.lipschitz(D)
    log_theta = np.log(np.full(len(D), universal * sim.sigma**2 * step))
    first = second = np.zeros(len(D))
    for t in range(1, 151):
        theta = np.exp(log_theta)
        trace = unroll(seen.y, D, theta, step, LAYERS, positive=True)
        error = ops.synthesize(trace.z, D) - target
        slope = backward(trace, ops.analyze(error, D)).theta.astype(float) * theta
        first, second = 0.9 * first + 0.1 * slope, 0.99 * second + 0.01 * slope**2
        log_theta -= 0.05 * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.99**t)) + 1e-12)
        log_theta = np.maximum(log_theta, math.log(universal * sim.sigma**2 * step * 1e-3))
    return _judge(sim, D, np.exp(log_theta) / (step * sim.sigma**2))


def _cell(results):
    collapsed = sum(r["collapsed"] for r in results)
    text = f"{np.median([r['snr'] for r in results]):.2f} / {np.median([r['f1'] for r in results]):.2f}"
    return text + (f" ({collapsed} of {len(results)} collapsed)" if collapsed else "")


def tables(rows):
    rules = [row for row in rows if row[0]["part"] == "rules"]
    found = groups(rules, "density", "snr", "rule")
    problems = list(dict.fromkeys((d, s) for d, s, _ in found))
    lines = [
        [f"{100 * d:g} %, {s} dB", *(_cell(found[d, s, rule]) if (d, s, rule) in found else "-" for rule in RULES)]
        for d, s in problems
    ]
    made = {"regularisation": drawing.table(["problem", *RULES], lines)}
    prior = groups([row for row in rows if row[0]["part"] == "prior"], "density", "rule")
    if prior:
        lines = [
            [f"{100 * d:g} %", rule.split()[1], f"{np.median([r['level'] for r in rs]):.2f}", _cell(rs)]
            for (d, rule), rs in prior.items()
        ]
        made["prior"] = drawing.table(["density", "weight of the prior", "lambda sigma", "dB / F1"], lines)
    return made


def draw(rows, folder):
    figure, axes = drawing.panels(3, width=7.2, height=3.0)
    rules = groups([row for row in rows if row[0]["part"] == "rules"], "density", "snr", "rule")
    problems = list(dict.fromkeys((d, s) for d, s, _ in rules))
    shown = [r for r in RULES if r != "best fixed"]
    colours = dict(zip(shown, [*drawing.COLOURS, "#999999"], strict=False))
    for axis, what, label in (
        (axes[0], "snr", "recovered signal against\nthe best fixed lambda (dB)"),
        (axes[1], "f1", "F1 of the events"),
    ):
        for number, rule in enumerate(shown):
            values = []
            for d, s in problems:
                best = np.median([r["snr"] for r in rules[d, s, "best fixed"]]) if what == "snr" else 0.0
                values.append(np.median([r[what] for r in rules[d, s, rule]]) - best)
            axis.plot(
                range(len(problems)), values, drawing.MARKS[number % 7], color=colours[rule], label=rule, alpha=0.85
            )
        middle = {
            d: sorted(s for e, s in problems if e == d)[len(SNRS) // 2 if len(problems) > 1 else 0] for d, _ in problems
        }
        names = [f"{s}\n{100 * d:g} %" if middle[d] == s else f"{s}" for d, s in problems]
        axis.set_xticks(range(len(problems)), names)
        axis.set(xlabel="SNR (dB) and density", ylabel=label)
    axes[0].set_ylim(bottom=max(axes[0].get_ylim()[0], -12))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=4)
    prior = groups([row for row in rows if row[0]["part"] == "prior"], "density", "rule")
    for number, d in enumerate(dict.fromkeys(d for d, _ in prior)):
        weights = [w for w in WEIGHTS if (d, f"paper {w:g}") in prior]
        levels = np.transpose([[r["level"] for r in prior[d, f"paper {w:g}"]] for w in weights])
        drawing.band(axes[2], weights, levels, number, f"{100 * d:g} %")
    axes[2].set(
        xscale="log", yscale="log", xlabel="weight of the prior, r / N", ylabel=r"$\lambda\,\sigma$ where (5) rests"
    )
    axes[2].legend(title="density")
    drawing.save(figure, folder, "regularisation")
