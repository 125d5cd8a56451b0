"""The paper's claim on images: what learning lambda by EM is worth against learning a bias, or a fixed lambda.

python benchmarks/denoise_paper.py                    the cells of the plan that are not stored yet, then the report
python benchmarks/denoise_paper.py --quick            fewer steps, one seed, one noise level: five minutes
python benchmarks/denoise_paper.py --steps 10000 --layers 30 --crop 128 --shifts 25 --out results/paper_full
                                                      the size of the authors' training, about two days
python benchmarks/denoise_paper.py --report           the report alone
python benchmarks/denoise_paper.py --gabor            Gabor functions fitted to atoms learned from a start of noise

One cell is one training: a way to get lambda, a noise level, a seed, tied or untied. All ways start from the same
dictionary and see the same crops with the same noise in the same order; each cell is stored when it is done.

| way | lambda |
|---|---|
| em | the paper's: gradient on the Bayesian loss (4) through the encoder, Gamma prior of the authors' weight |
| bias | the threshold of each atom learned by backpropagation of the reconstruction error, as the dictionary |
| fixed | as it starts |
| gcv | fixed ratio of the atoms, scaled as generalised cross-validation asks for (emdl's default rule) |
| em-free, bias-free | as em and bias, the atoms not brought back to unit norm |
"""

import argparse
import json
import math
import pathlib
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.pictures import DATA, cosines, noisy, photographs, psnr
from emdl.codes import SparseCodes
from emdl.gradients import backward_full
from emdl.images.shifts import ShiftedEncoder, all_shifts
from emdl.optim import normalize_atoms
from emdl.rates import Prior, lmbd_gradient, log_step, measure, step_lmbd

WAYS = ("em", "bias", "fixed", "gcv", "em-free", "bias-free")
ATOMS, SIZE, STRIDE = 64, 7, (5, 5)
START = 1.57  # lmbd sigma: rate 20 at sigma = 20 / 255, from the authors' configuration
WEIGHT = 3.0  # of the prior against the data: r / N = delta lmbd / N = 100 * 20 / 676 there
DEPTHS = (0.5, 2, 4)  # layers at test time over layers in training
SHORT = ("01", "02")  # images on which depth is tested
HELD = 20  # training photographs kept for validation
RATE = {"D": 0.06, "scale": 0.02}


@dataclass(frozen=True)
class Budget:
    """What every training of a plan gets.

    Crops of `crop` pixels square, `batch` of them in a step, `shifts` of the grid averaged in the training loss. Of
    test images larger than `largest` the central square is taken; None (0 on the command line) takes all of them.
    """

    steps: int = 200
    layers: int = 15
    crop: int = 72
    batch: int = 2
    shifts: int = 8
    largest: int | None = 256


def plan(quick=False):
    """Return the cells (way, sigma, seed, tied), the most telling first."""
    if quick:
        return [(way, 20, 0, True) for way in ("em", "bias", "fixed")]
    first, more, others = (0, 1, 2), (3, 4), (50, 15, 25)
    cells = _triples([20], first, tied=True) + _triples([20], first, tied=False)
    cells += _triples(others, first, tied=True) + _triples(others, first, tied=False)
    for sigma in (20, 25, 50, 15):
        cells += _triples([sigma], more, tied=False) + _triples([sigma], more, tied=True)
        if sigma == 20:
            cells += [(way, 20, seed, True) for seed in first for way in ("gcv", "em-free", "bias-free")]
    return cells


def _triples(sigmas, seeds, *, tied):
    """Return the cells of the three ways that are compared seed by seed."""
    return [(way, sigma, seed, tied) for seed in seeds for sigma in sigmas for way in ("em", "bias", "fixed")]


def start(photos, seed, layers, tied):
    """Return the encoder that every way starts from: cosines, and patches of photographs."""
    rng = np.random.default_rng([7, seed])
    atoms = [cosines(SIZE)]
    for _ in range(ATOMS - SIZE**2):
        image = photos[rng.integers(len(photos))]
        i, j = (rng.integers(n - SIZE) for n in image.shape)
        patch = image[i : i + SIZE, j : j + SIZE]
        atoms.append((patch - patch.mean() + 1e-3 * rng.standard_normal(patch.shape))[None, None])
    D = normalize_atoms(np.concatenate(atoms)).astype(np.float32)
    others = {} if tied else {"analysis": D.copy(), "decoder": D.copy()}
    return ShiftedEncoder(D, START, STRIDE, layers, centred=False, **others)


def train(photos, way, sigma, seed, tied, budget, begin=None):
    """Return the trained encoder and what happened on the way; it begins as `start` says, unless it is given."""
    rng = np.random.default_rng([11, seed, sigma])
    one, s = begin or start(photos, seed, budget.layers, tied), sigma / 255
    adam = {name: _Adam() for name in ("scale", "D", *(() if tied else ("analysis", "decoder")))}
    losses, began = [], time.process_time()
    for number in range(budget.steps):
        fall = min(1.0, 2 * (1 - number / budget.steps))
        clean = np.stack([_crop(photos, budget.crop, rng) for _ in range(budget.batch)])[:, None]
        y = clean + (s * rng.standard_normal(clean.shape)).astype(np.float32)
        shifts = rng.permutation(all_shifts(STRIDE))[: budget.shifts]
        step = one.step
        loss, gradients, trace = one.loss(y, clean, s, shifts=shifts, step=step)
        changed = {"scale": _new_scale(way, one, y, s, shifts, step, trace, gradients, adam["scale"], fall, number)}
        for name in set(adam) - {"scale"}:
            atoms = getattr(one, name)
            atoms = atoms - RATE["D"] * fall / SIZE * adam[name].direction(gradients[name]).astype(atoms.dtype)
            changed[name] = atoms if way.endswith("free") else normalize_atoms(atoms)
        one = replace(one, **changed)
        losses.append(loss / clean.size)
    return one, {"seconds": time.process_time() - began, "loss": losses}


def _new_scale(way, one, y, s, shifts, step, trace, gradients, adam, fall, number):
    """Return lmbd sigma after one step, by one of the ways."""
    if way.startswith("bias"):
        return np.maximum(one.scale - RATE["scale"] * fall * adam.direction(gradients["scale"]), 0)
    if way.startswith("em") and number % 2:  # its second way back doubles the cost of a step: every other step
        return _bayes(one.scale / s, trace, s, step, rate=0.2 * fall) * s
    if way == "gcv" and number % 10 == 9:
        return one.scale * math.exp(fall * _gcv_step(one, y, s, shifts, step))
    return one.scale


def _bayes(lmbd, trace, s, step, rate):
    """Return the rates after one gradient step on (4) through the encoder."""
    z = trace.codes[-1]
    N = z.shape[0] * math.prod(z.shape[2:])
    prior = Prior.around(START / s, N, WEIGHT)
    weights = (lmbd[z.index % len(lmbd)] * np.sign(z.value)).astype(z.value.dtype)
    slopes = backward_full(trace, SparseCodes(z.shape, z.start, z.index, weights)).theta.astype(np.float64)
    gradient = lmbd_gradient(lmbd, z.l1(), N, prior, through=slopes * s**2 * step)
    return step_lmbd(lmbd, gradient, N, prior, rate=rate)


def _gcv_step(one, y, s, shifts, step):
    """Return the step of log lambda that generalised cross-validation asks for, codes of each shift by themselves."""
    sums = []
    for ratio in (1 / 1.4, 1, 1.4):
        trace = replace(one, scale=one.scale * ratio).encode(y, s, shifts, step)
        sums.append(measure(trace.y, one.D, trace.codes[-1], STRIDE))
    return log_step(*sums)


class _Adam:
    """Directions of Adam, of entries near 1."""

    def __init__(self):
        self.m, self.v, self.t = 0, 0, 0

    def direction(self, g):
        self.t += 1
        self.m, self.v = 0.9 * self.m + 0.1 * g, 0.999 * self.v + 0.001 * g * g
        return self.m / (1 - 0.9**self.t) / (np.sqrt(self.v / (1 - 0.999**self.t)) + 1e-12)


def _crop(photos, size, rng):
    image = photos[rng.integers(len(photos))]
    i, j = (rng.integers(n - size + 1) for n in image.shape)
    crop = image[i : i + size, j : j + size]
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def score(one, photos, sigma, largest=None):
    """Return the mean PSNR over photographs, each no larger than its central square of `largest` pixels."""
    found = []
    for name, image in photos.items():
        top, left = ((max(0, n - (largest or n))) // 2 for n in image.shape)
        image = image[top : top + (largest or image.shape[0]), left : left + (largest or image.shape[1])]
        y = noisy(image, sigma, name)[None, None] / 255
        found.append(psnr(255 * one.denoise(y, sigma / 255)[0, 0], image))
    return statistics.mean(found)


def density(one, photos, sigma):
    """Return the share of codes that are not zero, on the first photograph."""
    name, image = next(iter(photos.items()))
    centred, _ = one.centre((noisy(image, sigma, name)[None, None] / 255).astype(np.float32))
    z = one.encode(centred, sigma / 255, np.array([[0, 0]]), one.step).codes[-1]
    return z.n_nonzero / math.prod(z.shape)


def run(cells, budget, data, folder, seconds=math.inf):
    """Train and score the cells that are not stored, until so much processor time is spent."""
    train400, set12 = photographs(data / "train400"), photographs(data / "set12")
    photos = [(image / 255).astype(np.float32) for image in list(train400.values())[:-HELD]]
    held = dict(list(train400.items())[-HELD:][:6])
    for way, sigma, seed, tied in cells:
        name = f"{way}_{sigma}_{'tied' if tied else 'untied'}_{seed}"
        path = folder / f"{name}.json"
        if path.is_file():
            continue
        if time.process_time() > seconds:
            print("the processor time given is spent; the same command goes on from here")
            return
        began = time.process_time()
        one, told = train(photos, way, sigma, seed, tied, budget)
        one.save(folder / f"{name}.h5")
        small = {n: set12[n] for n in SHORT}
        depth = {"1": score(one, small, sigma, budget.largest)}
        for ratio in DEPTHS:
            other = replace(one, n_layers=max(1, round(ratio * budget.layers)))
            depth[f"{ratio:g}"] = score(other, small, sigma, budget.largest)
        result = {
            "way": way, "sigma": sigma, "seed": seed, "tied": tied, "budget": asdict(budget),
            "held-out": score(one, held, sigma), "Set12": score(one, set12, sigma, budget.largest),
            "depth": depth, "non-zero": density(one, small, sigma), "scale": one.scale.tolist(), **told,
            "processor": time.process_time() - began,
        }  # fmt: skip
        path.write_text(json.dumps(result, indent=1), encoding="utf-8")
        print(
            f"{name}: Set12 {result['Set12']:.2f} dB, held out {result['held-out']:.2f}, {told['seconds']:.0f} s",
            flush=True,
        )
    print("all cells are stored")


def authors(path, photos, sigma=20):
    """Return the PSNR of the dictionaries that the authors stored, by this encoder with their step of 1 / 10."""
    stored = np.load(path)
    s = sigma / 255
    rates = {
        "em": ("em_H", stored["em_lam"].ravel() * s**2),
        "bias": ("lam015_learned_bias_H", stored["lam015_learned_bias_b"].ravel().clip(0) * 10),
        "fixed": ("lam015_fixed_H", np.full(ATOMS, 0.15)),
    }
    found = {}
    for way, (name, penalty) in rates.items():
        atoms = stored[name].astype(np.float32)
        one = _Theirs(atoms, penalty / s, STRIDE, 30, centred=False)
        norms = np.linalg.norm(atoms.reshape(ATOMS, -1), axis=1)
        found[way] = {"Set12": score(one, photos, sigma), "norms": [float(norms.min()), float(norms.max())]}
    return found


class _Theirs(ShiftedEncoder):
    step = property(lambda self: 0.1)


def table(folder):
    """Return the stored cells as Markdown."""
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*_[0-9].json"))]
    groups = {}
    for cell in cells:
        groups.setdefault((cell["sigma"], not cell["tied"], WAYS.index(cell["way"])), []).append(cell)
    lines = [
        "| sigma | atoms | lambda | seeds | Set12 (dB) | held out (dB) | non-zero | T/2 | 2 T | 4 T |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (sigma, untied, way), members in sorted(groups.items()):
        change = [
            f"{statistics.mean(c['depth'][r] - c['depth']['1'] for c in members):+.2f}" for r in ("0.5", "2", "4")
        ]
        lines.append(
            f"| {sigma} | {'untied' if untied else 'tied'} | {WAYS[way]} | {len(members)} | "
            f"{_spread([c['Set12'] for c in members])} | {_spread([c['held-out'] for c in members])} | "
            f"{100 * statistics.mean(c['non-zero'] for c in members):.0f} % | {' | '.join(change)} |"
        )
    return "\n".join([*lines, "", *_differences(cells)])


def _spread(values):
    error = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.2f} ± {error:.2f}"


def _differences(cells):
    """Return the lines on what each way gains over the bias, seed by seed."""
    lines = ["| sigma | atoms | way | over bias, Set12 (dB), mean ± standard error |", "|---|---|---|---|"]
    at = {(c["sigma"], c["tied"], c["way"], c["seed"]): c["Set12"] for c in cells}
    for sigma, tied, way in sorted({k[:3] for k in at if k[2] != "bias"}):
        gain = [
            v - at[sigma, tied, "bias", k[3]]
            for k, v in at.items()
            if k[:3] == (sigma, tied, way) and (sigma, tied, "bias", k[3]) in at
        ]
        if gain:
            error = statistics.stdev(gain) / math.sqrt(len(gain)) if len(gain) > 1 else math.nan
            lines.append(
                f"| {sigma} | {'tied' if tied else 'untied'} | {way} | {statistics.mean(gain):+.3f} ± {error:.3f} |"
            )
    return lines


def gabor(data, folder, budget, seed=0):
    """Print which share of atoms Gabor functions explain: noise, what EM learns from it at sigma 20, cosines."""
    from emdl.images.gabor import draw_atoms, fit_gabors

    photos = [(image / 255).astype(np.float32) for image in list(photographs(data / "train400").values())[:-HELD]]
    noise = np.random.default_rng([13, seed]).standard_normal((ATOMS, 1, SIZE, SIZE))
    begin = ShiftedEncoder(normalize_atoms(noise).astype(np.float32), START, STRIDE, budget.layers, centred=False)
    path = folder / f"gabor_{seed}.h5"
    if not path.is_file():
        train(photos, "em", 20, seed, True, budget, begin)[0].save(path)
    one = ShiftedEncoder.load(path)
    found = {}
    for name, D in {"noise": begin.D, "learned from noise": one.D, "cosines": cosines(SIZE)}.items():
        fits = fit_gabors(D, n_starts=2)
        shares = [fit.share for fit in fits]
        found[name] = {"mean": statistics.mean(shares), "above 0.8": float(np.mean(np.array(shares) > 0.8))}
        if name == "learned from noise":
            draw_atoms(D, fits, folder / "gabor.png")
    held = dict(list(photographs(data / "train400").items())[-HELD:][:6])
    found["held-out (dB)"] = score(one, held, 20)
    (folder / f"gabor_{seed}_shares.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(json.dumps(found, indent=1))


COLOURS = {
    "em": "#0072B2",
    "bias": "#D55E00",
    "fixed": "#999999",
    "gcv": "#009E73",
    "em-free": "#56B4E9",
    "bias-free": "#E69F00",
}
MARKS = {"em": "o", "bias": "s", "fixed": "^", "gcv": "D", "em-free": "o", "bias-free": "s"}


def plot(folder):
    """Draw PSNR by way and noise level, and against the number of layers at test time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*_[0-9].json"))]
    plt.rcParams.update({"font.size": 12, "svg.fonttype": "none"})
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    sigmas = sorted({c["sigma"] for c in cells if c["tied"]})
    ways = [w for w in ("em", "bias", "fixed") if any(c["way"] == w for c in cells)]
    for number, way in enumerate(ways):
        gains = {}
        for cell in cells:
            if cell["way"] == way and cell["tied"]:
                gains.setdefault(cell["sigma"], []).append(cell["Set12"] - _mean_of(cells, cell["sigma"]))
        x = [sigmas.index(s) + 0.18 * (number - 1) for s in sorted(gains)]
        mean = [statistics.mean(gains[s]) for s in sorted(gains)]
        error = [statistics.stdev(gains[s]) if len(gains[s]) > 1 else 0 for s in sorted(gains)]
        left.errorbar(x, mean, error, fmt=MARKS[way], color=COLOURS[way], capsize=4, markersize=8, label=way)
    left.axhline(0, color="0.7", lw=1)
    left.set(
        xlabel="noise level (8-bit units)",
        ylabel="tied: PSNR minus mean of the three (dB)",
        xticks=range(len(sigmas)),
        xticklabels=sigmas,
    )
    left.legend(frameon=False)
    for way in ways:
        rows = [c["depth"] for c in cells if c["way"] == way and c["tied"] and c["sigma"] == 20]
        x = sorted(rows[0], key=float)
        values = np.array([[row[r] for r in x] for row in rows])
        error = values.std(axis=0, ddof=1) if len(rows) > 1 else None
        right.errorbar(
            [float(r) for r in x],
            values.mean(axis=0),
            error,
            fmt=MARKS[way] + "-",
            color=COLOURS[way],
            capsize=4,
            markersize=8,
            label=way,
        )
    right.set(
        xscale="log", xlabel="layers at test time / layers trained", ylabel="tied: PSNR at level 20, two images (dB)"
    )
    right.set_xticks([0.5, 1, 2, 4], ["1/2", "1", "2", "4"])
    right.minorticks_off()
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    for kind in ("svg", "png"):
        figure.savefig(folder / f"denoise_paper.{kind}", dpi=120)
    plt.close(figure)


def _mean_of(cells, sigma):
    return statistics.mean(
        c["Set12"] for c in cells if c["sigma"] == sigma and c["tied"] and c["way"] in ("em", "bias", "fixed")
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, default=DATA, help="folder that holds train400 and set12")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "results" / "denoise_paper")
    parser.add_argument("--quick", action="store_true", help="three short cells")
    parser.add_argument("--report", action="store_true", help="the report alone")
    parser.add_argument("--gabor", action="store_true", help="one training from noise, and Gabor functions")
    parser.add_argument("--authors", type=pathlib.Path, help="crsae_authors.npz: score the authors' dictionaries too")
    parser.add_argument("--minutes", type=float, default=math.inf, help="processor time after which no cell begins")
    for name, value in asdict(Budget()).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    budget = Budget(**{name: getattr(given, name) or None for name in asdict(Budget())})
    if given.quick:
        budget, given.out = replace(budget, steps=60), given.out / "quick"
    given.out.mkdir(parents=True, exist_ok=True)
    if given.gabor:
        gabor(given.data, given.out, budget)
        return
    if not given.report:
        run(plan(given.quick), budget, given.data, given.out, 60 * given.minutes)
    if given.authors:
        found = authors(given.authors, photographs(given.data / "set12"))
        (given.out / "authors.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
        print(json.dumps(found, indent=1))
    print(table(given.out))
    plot(given.out)


if __name__ == "__main__":
    main()
