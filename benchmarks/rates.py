"""Rules for lambda and sigma against the best fixed lambda: recovered clean signal, from known and from unknown noise.

python benchmarks/rates.py                          all cells, a table on stdout
python benchmarks/rates.py --density 0.01 --snr 10  some of them
python benchmarks/rates.py --json rates.json        the numbers too

Signals of one axis, 30,000 samples, three known atoms of 45, events of amplitude 0.5 to 1.5. The codes depend on the
penalty p = lmbd sigma^2 alone, so each problem is coded once along a path of penalties, and the resting point of every
rule is found on it: the least score, or the first penalty, coming from the universal threshold, that the rule maps onto
itself. What the package ships is then run as EM runs it, from 4 times and a quarter of the universal rate.
"""

import argparse
import json
import math
import pathlib
import platform
import time
from dataclasses import dataclass

import numpy as np
from scipy.special import erfcx, log_ndtr

from emdl import rates, simulate
from emdl.encoder import solve
from emdl.metrics import snr_db
from emdl.ops import analyze_full, synthesize_full
from emdl.rates.risk import score

GRID = 0.8
CANDIDATES = {
    "gcv": "generalised cross-validation",
    "sure": "Stein's unbiased risk estimate",
    "posterior": "(5) with E|z| of the conditional posterior",
    "bernoulli": "Bernoulli-Laplace prior, threshold at even odds",
    "discrepancy": "residual = noise",
    "paper 0.01": "(5), prior of weight 0.01",
    "paper 1": "(5), prior of weight 1",
    "paper 10": "(5), prior of weight 10",
}


@dataclass
class Point:
    """What one penalty of the path leads to."""

    u: float  # p / sigma
    snr: float
    sums: rates.Sums
    centers: np.ndarray  # z + D^T r: where each code would lie by the likelihood alone


def atoms(s=45):
    """Return three smooth atoms (3, 1, 45) shaped like spikes."""
    t = np.arange(s)

    def bump(at, width):
        return np.exp(-0.5 * ((t - at) / width) ** 2)

    d = np.stack(
        [
            -bump(15, 2.5) + 0.55 * bump(24, 5.0),
            0.6 * bump(12, 3.0) - bump(20, 3.5) + 0.35 * bump(31, 5.0),
            -0.45 * bump(14, 4.5) + bump(22, 2.0) - 0.55 * bump(29, 4.0),
        ]
    )
    d *= np.hanning(s + 2)[1:-1] ** 0.25
    return (d / np.linalg.norm(d, axis=1, keepdims=True))[:, None].astype(np.float32)


def path(sim, positive, tol):
    """Return the points of the path, from the universal threshold down until the recovery is 0.4 dB past its best."""
    z, points = None, []
    u = rates.start_lmbd(len(sim.D), sim.z.shape[2], sim.sigma) * sim.sigma * 1.5
    while len(points) < 24 and (not points or points[-1].snr > max(p.snr for p in points) - 0.4):
        penalty = np.full(len(sim.D), u * sim.sigma)
        z = solve(sim.y, sim.D, penalty, (1,), tol=tol, positive=positive, z0=z).codes
        made = synthesize_full(z, sim.D, (1,))
        centers = z.dense() + analyze_full(sim.y - made, sim.D, (1,))
        points.append(Point(u, snr_db(made, sim.clean), rates.measure(sim.y, sim.D, z, (1,)), centers))
        u *= GRID
    return points


def mean_size(m, sigma, lmbd, positive):
    """Return the sum of E|z| where z has likelihood N(m, sigma^2) and prior Laplace(lmbd), for all entries of m."""
    sides = [m] if positive else [m, -m]
    # mass of one side: exp(a^2 / 2) Phi(a) with a = m / sigma - lmbd sigma; mean: sigma (a + phi(a) / Phi(a))
    a = [s / sigma - lmbd * sigma for s in sides]
    logs = [x**2 / 2 + log_ndtr(x) for x in a]
    total = np.logaddexp(*logs) if len(logs) == 2 else logs[0]
    means = [sigma * (x + math.sqrt(2 / math.pi) / erfcx(-x / math.sqrt(2))) for x in a]
    return float(sum(np.exp(w - total) * mean for w, mean in zip(logs, means, strict=True)).sum())


def even_odds(m, sigma, positive, start):
    """Return the threshold of a Bernoulli-Laplace prior fitted to the centers m by EM, and the fit (activity, rate)."""
    activity, rate = start
    width = 0.02 * sigma
    low = int(np.floor(m.min() / width))
    counts = np.bincount(np.floor(m.ravel() / width).astype(int) - low)
    at = ((np.arange(len(counts)) + low + 0.5) * width)[counts > 0]
    counts = counts[counts > 0]
    for _ in range(30):
        odds, mean = bayes_factor(at, sigma, rate, positive)
        active = 1 / (1 + np.exp(np.clip(math.log((1 - activity) / activity) - odds, -700, 700)))
        activity = float(np.clip((counts * active).sum() / counts.sum(), 1e-6, 0.999))
        rate = float((counts * active).sum() / max((counts * active * mean).sum(), 1e-12))
    grid = np.linspace(0, 12 * sigma, 2401)
    odds = bayes_factor(grid, sigma, rate, positive)[0] + math.log(activity / (1 - activity))
    above = np.nonzero(odds > 0)[0]
    return float(grid[above[0]]) if len(above) else 12 * sigma, (activity, rate)


def bayes_factor(m, sigma, rate, positive):
    """Return log p(m | active) / p(m | silent), and E|z| given active."""
    sides = [m] if positive else [m, -m]
    a = [s / sigma - rate * sigma for s in sides]
    logs = [x**2 / 2 + log_ndtr(x) for x in a]
    total = np.logaddexp(*logs) if len(logs) == 2 else logs[0]
    means = [sigma * (x + math.sqrt(2 / math.pi) / erfcx(-x / math.sqrt(2))) for x in a]
    mean = sum(np.exp(w - total) * v for w, v in zip(logs, means, strict=True))
    return total + math.log(rate * sigma * math.sqrt(2 * math.pi) / len(sides)), mean


def excess(points, sigma, name, positive, learned):
    """Return log(p_next / p) of a rule at each point; it rests where this crosses zero."""
    out, fit = [], (0.01, 1.0 / sigma)
    start = rates.start_lmbd(len(points[0].sums.l1), points[0].sums.n_positions, sigma)
    for point in points:
        noise = rates.residual_sigma(point.sums) if learned else sigma
        p, sums = point.u * sigma, point.sums
        count = sums.n_positions * len(sums.l1)
        if name == "posterior":
            wanted = count / max(mean_size(point.centers, noise, p / noise**2, positive), 1e-12) * noise**2
        elif name == "bernoulli":
            wanted, fit = even_odds(point.centers.astype(np.float64), noise, positive, fit)
        elif name == "discrepancy":
            wanted = p * noise / math.sqrt(sums.energy / sums.n_samples)
        else:
            prior = rates.Prior.around(start, sums.n_positions, weight=float(name.split()[1]))
            lmbd = rates.update_lmbd(np.full(len(sums.l1), p / noise**2), sums.l1, sums.n_positions, prior)
            wanted = float(np.exp(np.log(lmbd).mean())) * noise**2
        out.append(math.log(max(wanted / p, 1e-3)))
    return out


def rest(points, sigma, name, positive, learned):
    """Return (u, snr, sigma / true sigma) where a rule rests, None if it never does (it collapses, or runs off)."""
    log_u = np.log([p.u for p in points])
    if name in ("gcv", "sure"):
        if name == "sure" and learned:
            return None
        values = [score(p.sums, sigma if name == "sure" else None) for p in points]
        best = int(np.argmin(values))
    else:
        if name == "discrepancy" and learned:
            return None
        values = excess(points, sigma, name, positive, learned)
        start = 2  # about the universal threshold; from there up where the rule wants more, else down
        if values[start] >= 0:
            cross = next((i + 1 for i in reversed(range(start)) if values[i] < 0), None)
        else:
            cross = next((i for i in range(start, len(values)) if values[i] >= 0), None)
        if cross is None:
            return None
        share = values[cross - 1] / (values[cross - 1] - values[cross])
        x = (1 - share) * log_u[cross - 1] + share * log_u[cross]
        at = [np.interp(-x, -log_u, [f(p) for p in points]) for f in (_snr, _noise)]
        return math.exp(x), float(at[0]), float(at[1]) / sigma
    return points[best].u, points[best].snr, _noise(points[best]) / sigma


def _snr(point):
    return point.snr


def _noise(point):
    return rates.residual_sigma(point.sums)


def shipped(sim, positive, factor, n_iter=40):
    """Run the default rule as EM does, sigma unknown, dictionary held, until five calls in a row change nothing."""
    sigma = rates.estimate_sigma(sim.y)
    lmbd = np.full(len(sim.D), factor * rates.start_lmbd(len(sim.D), sim.z.shape[2], sigma))
    codes, search, quiet, calls, began = None, None, 0, 0, time.process_time()
    for _ in range(n_iter):
        calls += 1
        step = rates.e_step(sim.y, sim.D, (1,), positive, lmbd, sigma, learn_sigma=True, codes=codes, search=search)
        lmbd, sigma, codes, search = step.lmbd, step.sigma, step.codes, step.search
        quiet = quiet + 1 if step.settled else 0
        if quiet == 5:
            break
    return {
        "lmbd": float(lmbd[0]),
        "u": float(lmbd[0]) * sigma**2 / sim.sigma,
        "snr": snr_db(synthesize_full(codes, sim.D, (1,)), sim.clean),
        "sigma": sigma / sim.sigma,
        "n_iter": calls,
        "seconds": time.process_time() - began,
    }


def cell(density, snr, positive, n_samples, seed, tol):
    """Return all numbers of one problem."""
    sim = simulate.convolutional(
        1, n_samples, atoms(), density=density, snr_db=snr, positive=positive, rng=np.random.default_rng(seed)
    )
    points = path(sim, positive, tol)
    best = max(points, key=_snr)
    row = {"density": density, "snr_db": snr, "positive": positive, "best": [best.u, best.snr]}
    row["mad"] = rates.estimate_sigma(sim.y) / sim.sigma
    for learned in (False, True):
        row["unknown" if learned else "known"] = {
            name: rest(points, sim.sigma, name, positive, learned) for name in CANDIDATES
        }
    row["shipped"] = [shipped(sim, positive, factor) for factor in (4, 0.25)]
    return row


def line(row, known):
    """Return one line of the table of candidates."""
    cells = [f"{100 * row['density']:g} %, {row['snr_db']:g} dB, {'>= 0' if row['positive'] else 'two-sided'}"]
    cells.append(f"{row['best'][1]:.2f} ({row['best'][0]:.2f})")
    for found in row[known].values():
        if found is None:
            cells.append("-")
        else:
            noise = f", {found[2]:.2f}" if known == "unknown" else ""
            cells.append(f"{found[1] - row['best'][1]:+.2f} ({found[0]:.2f}{noise})")
    return "| " + " | ".join(cells) + " |"


def report(rows, n_samples):
    """Print the tables."""
    print(f"\n{platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}, {n_samples} samples")
    for known in ("known", "unknown"):
        what = "p / sigma, sigma found / true" if known == "unknown" else "p / sigma"
        print(f"\nsigma {known}: dB against the best fixed lambda ({what}); - has no rest, or one beyond the path")
        print("| problem | best fixed | " + " | ".join(CANDIDATES) + " |\n" + "|---" * (2 + len(CANDIDATES)) + "|")
        print("\n".join(line(row, known) for row in rows))
    print("\nthe default rule as shipped, sigma unknown, from 4 times and a quarter of the universal rate")
    print(
        "| problem | best | recovered | lambda ratio | sigma / true | MAD / true | calls | CPU s |\n" + "|---" * 8 + "|"
    )
    for row in rows:
        a, b = row["shipped"]
        print(
            f"{line(row, 'known').split(' | ')[0]} | {row['best'][1]:.2f} | {a['snr']:.2f}, {b['snr']:.2f} | "
            f"{a['lmbd'] / b['lmbd']:.3f} | {a['sigma']:.3f}, {b['sigma']:.3f} | {row['mad']:.2f} | "
            f"{a['n_iter']}, {b['n_iter']} | {a['seconds']:.1f}, {b['seconds']:.1f} |"
        )


def main():
    """Run the cells and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--density", type=float, nargs="+", default=[0.001, 0.01, 0.05])
    parser.add_argument("--snr", type=float, nargs="+", default=[0.0, 10.0, 20.0])
    parser.add_argument("--sided", type=int, nargs="+", default=[1, 2], choices=[1, 2])
    parser.add_argument("--samples", type=int, default=30_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tol", type=float, default=5e-4, help="relative duality gap along the path")
    parser.add_argument("--json", help="file for the numbers")
    given = parser.parse_args()
    rows = []
    for sided in given.sided:
        for density in given.density:
            for snr in given.snr:
                rows.append(cell(density, snr, sided == 1, given.samples, given.seed, given.tol))
                print(line(rows[-1], "known"), flush=True)
                if given.json:
                    pathlib.Path(given.json).write_text(json.dumps(rows, indent=1), encoding="utf-8")
    report(rows, given.samples)


if __name__ == "__main__":
    main()
