"""Claim 1: alternating between codes, dictionary and rates is an approximate EM that lowers the negative log posterior.

-log p(z, D, lmbd | y) = ||y - D z||^2 / (2 sigma^2)
                         + sum_k [lmbd_k ||z_k||_1 - (N + r - 1) log lmbd_k + delta lmbd_k],

up to constants, sigma known. The E-step of EM proper would average over the codes; here, as in the paper, it takes the
mode. Then every step that is a minimisation lowers this number. Which steps are not?
"""

import numpy as np

from emdl import em_fit, ops, rates, unroll
from emdl.codes import SparseCodes
from emdl.mstep import from_statistics

from . import data, drawing
from .store import groups

VERSION = 2
SNR_DB, N_ITER = 12, 40
WAYS = {
    "analytic, rates held": {"m_step": "analytic", "learn_lmbd": False},
    "analytic, rates by (5)": {"m_step": "analytic", "lmbd_rule": "paper"},
    "unrolled, rates by (5)": {"m_step": "unrolled", "lmbd_rule": "paper"},
    "decoder, rates by (5)": {"m_step": "decoder", "lmbd_rule": "paper"},
    "analytic, rates by gcv": {"m_step": "analytic", "lmbd_rule": "gcv"},
}
DEPTHS = (10, 30, 100)  # layers of the E-step, in an alternation whose codes are those of the unrolled encoder


def cells(quick):
    seeds = list(data.SEEDS)[: 2 if quick else None]
    named = [{"way": way, "seed": seed} for way in WAYS for seed in seeds]
    return named + [{"way": f"analytic, {T} layers", "seed": seed} for T in DEPTHS for seed in seeds]


def run(way, seed):
    sim = data.problem(seed, SNR_DB, dtype=np.float64)
    n_positions = sim.z.shape[0] * sim.z.shape[2]
    prior = rates.Prior.around(rates.start_lmbd(data.ATOMS, n_positions, sim.sigma), n_positions)
    start = data.perturbed(sim.D, seed)
    if way not in WAYS:
        values = _by_layers(sim, start, prior, n_positions, int(way.split()[1]))
        return {"values": values}
    lmbd = np.full(data.ATOMS, prior.r / prior.delta)
    values = []

    def note(progress):
        nonlocal lmbd
        values.append(progress.objective + _of_rates(lmbd, n_positions, prior))
        lmbd = np.array(progress.lmbd)

    em_fit(sim.y, data.ATOMS, data.LENGTH, D0=start, sigma=sim.sigma, lmbd0=lmbd, positive=True, prior=prior,
           max_iter=N_ITER, tol=1e-12, tol_codes=1e-8, repair=False, callback=note, rng=seed, **WAYS[way])  # fmt: skip
    return {"values": values}


def _of_rates(lmbd, n_positions, prior):
    return float((prior.delta * lmbd - (n_positions + prior.r - 1) * np.log(lmbd)).sum())


def _by_layers(sim, D, prior, n_positions, T):
    """Alternate, the codes being those of T layers from zero: no minimiser of anything, so nothing is promised."""
    lmbd, values = np.full(len(D), prior.r / prior.delta), []
    for _ in range(N_ITER):
        step = 1 / ops.lipschitz(D)
        z = unroll(sim.y, D, lmbd * sim.sigma**2 * step, step, T, positive=True).z
        values.append(ops.objective(sim.y, z, D, lmbd, sim.sigma) + _of_rates(lmbd, n_positions, prior))
        lmbd = rates.update_lmbd(lmbd, z.sum(axis=(0, 2)), n_positions, prior)
        D = from_statistics(D, SparseCodes.from_dense(z), sim.y, (1,))
    return values


def _rises(values):
    """Return in how many steps the posterior got worse by more than the codes' tolerance, and by how much at most."""
    change = np.diff(values) / abs(np.array(values[:-1]))
    return int((change > 1e-7).sum()), float(max(change.max(), 0))


def tables(rows):
    lowest = {}
    for cell, result in rows:
        lowest[cell["seed"]] = min(lowest.get(cell["seed"], np.inf), min(result["values"]))
    lines = []
    for (way,), results in groups(rows, "way").items():
        rises = [_rises(r["values"]) for r in results]
        last = [r["values"][-1] - low for r, low in zip(results, lowest.values(), strict=True)]
        steps = sum(len(r["values"]) - 1 for r in results)
        worst = max(r[1] for r in rises)
        lines.append([way, f"{sum(r[0] for r in rises)} of {steps}", f"{worst:.1e}", drawing.spread(last, 1)])
    head = [
        "M-step",
        "steps that raise it",
        "largest rise, relative",
        "end above the lowest seen, median (range over seeds)",
    ]
    return {"posterior": drawing.table(head, lines)}


def draw(rows, folder):
    per_seed = {}
    for cell, result in rows:
        per_seed[cell["seed"]] = min(per_seed.get(cell["seed"], np.inf), min(result["values"]))
    figure, axes = drawing.panels(2, sharey=True, height=2.7)
    found = groups(rows, "way")
    seeds = list(per_seed.values())
    for axis, names, title in (
        (axes[0], list(WAYS), "codes: certified minimiser"),
        (axes[1], ["analytic, rates by (5)", *(f"analytic, {T} layers" for T in DEPTHS)], "codes: T layers of FISTA"),
    ):
        for number, name in enumerate(names):
            if (name,) not in found:
                continue
            values = [
                np.array(drawing.padded(r["values"], N_ITER)) - low + 1
                for r, low in zip(found[(name,)], seeds, strict=True)
            ]
            drawing.band(axis, np.arange(1, len(values[0]) + 1), values, number, name, mark=False)
        axis.set(yscale="log", xlabel="iteration", title=title)
        drawing.legend_below(axis)
    axes[0].set_ylabel("negative log posterior\nabove the lowest + 1")
    drawing.save(figure, folder, "posterior")
