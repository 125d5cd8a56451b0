"""Blind starts: what `em_fit` finds when it knows nothing but the number and the length of the atoms.

python benchmarks/starts.py                       all tables, a few minutes on two cores
python benchmarks/starts.py --seeds 3             fewer seeds
python benchmarks/starts.py --only W3             only cases whose name contains the text

The error of an atom is the sine of its angle to the true one after the best permutation, shift and sign; an atom is
found if that is less than 0.1. The floor is the error of the exact dictionary step from the true codes: what the noise
allows to anyone. Problem W3 is 20 windows of 3,000 samples, 3 atoms of 45, non-negative codes, 10 dB.
"""

import argparse
import platform
import statistics
import time

import numpy as np

from emdl import em_fit, ops
from emdl.codes import SparseCodes
from emdl.metrics import atom_error
from emdl.optim import exact_dictionary
from emdl.simulate import Simulated, convolutional, waveforms

# name: true atoms, channels, length, stride, density, one-sided, dB, atoms asked for
CASES = {
    "5 atoms, 4 channels": (5, 4, 45, 1, 1 / 500, True, 10, 5),
    "5 atoms, 4 channels, two-sided": (5, 4, 45, 1, 1 / 500, False, 10, 5),
    "3 atoms, two-sided": (3, 1, 45, 1, 1 / 300, False, 10, 3),
    "10 atoms, 4 channels": (10, 4, 45, 1, 1 / 1000, True, 10, 10),
    "5 atoms, 4 channels, 0 dB": (5, 4, 45, 1, 1 / 500, True, 0, 5),
    "3 atoms, 1 % dense": (3, 1, 45, 1, 1 / 100, True, 10, 3),
    "4 atoms, 2 channels, stride 3": (4, 2, 30, 3, 1 / 100, False, 10, 4),
    "3 atoms, 5 asked for": (3, 1, 45, 1, 1 / 300, True, 10, 5),
    "5 atoms, 4 channels, 3 asked for": (5, 4, 45, 1, 1 / 500, True, 10, 3),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="runs of each case")
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    options = parser.parse_args()
    em_fit(w3().y[:2], 2, 45, positive=True, rng=0)  # compile
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}\n")
    print("| problem | all found | error of the worst atom: median | largest | floor | seconds, median |")
    print("|---|---|---|---|---|---|")
    for name, runs in blind_cases(options.seeds).items():
        if options.only in name:
            report(name, runs())
    if options.only in "W3, common start":
        common_start(min(10, options.seeds))


def w3():
    """Return W3: the same numbers as the problem of that name in the project's other comparisons."""
    rng, t = np.random.default_rng(1), np.arange(45)

    def bump(centre, width):
        return np.exp(-0.5 * ((t - centre) / width) ** 2)

    D = np.stack([
        -bump(15, 2.5) + 0.55 * bump(24, 5),
        0.6 * bump(12, 3) - bump(20, 3.5) + 0.35 * bump(31, 5),
        -0.45 * bump(14, 4.5) + bump(22, 2) - 0.55 * bump(29, 4),
    ])  # fmt: skip
    D *= np.hanning(47)[1:-1] ** 0.25
    D = (D / np.linalg.norm(D, axis=1, keepdims=True))[:, None]
    size = (20, 3, 3000 - 44)
    z = (rng.random(size) < 1 / 300) * rng.uniform(0.5, 1.5, size)
    clean = sum(np.apply_along_axis(np.convolve, 1, z[:, k], D[k, 0]) for k in range(3))[:, None]
    sigma = float(np.sqrt((clean**2).mean() / 10))
    return Simulated(clean + sigma * rng.standard_normal(clean.shape), clean, z, D, sigma)


def near_start(D, seed):
    """Return the common start of W3: the truth and as much noise that the error is 0.6."""
    noise = np.random.default_rng(100 + seed).standard_normal(D[:, 0].shape)
    noise -= (noise * D[:, 0]).sum(axis=1, keepdims=True) * D[:, 0]
    return 0.8 * D + 0.6 * (noise / np.linalg.norm(noise, axis=1, keepdims=True))[:, None]


def simulate(K, C, length, stride, density, positive, snr_db, seed):
    """Return a problem of `CASES`: extracellular waveforms, or windowed noise where the stride is not 1."""
    D = waveforms(K, C, length, rng=seed)
    if stride > 1:
        D = np.random.default_rng(seed).standard_normal((K, C, length)) * np.hanning(length + 2)[1:-1]
        D /= np.sqrt((D**2).sum(axis=(1, 2), keepdims=True))
    return convolutional(20, 3000, D, density=density, snr_db=snr_db, positive=positive, stride=stride, rng=seed)


def floor(simulated, stride):
    """Return the error of the worst atom that is learned from the true codes."""
    shape, codes = simulated.D.shape[2:], SparseCodes.from_dense(simulated.z)
    phi = ops.correlate_codes(codes, shape, (stride,))
    D = exact_dictionary(simulated.D, phi, ops.correlate_signals(codes, simulated.y, shape, (stride,)), n_passes=10)
    return atom_error(D, simulated.D).errors.max()


def blind_cases(seeds):
    """Return {name: function that returns (errors, floor, seconds, message) of each run}."""
    problem = w3()

    def fit(simulated, K, seed, **options):
        began = time.perf_counter()
        result = em_fit(simulated.y, K, simulated.D.shape[2:], rng=seed, **options)
        seconds = time.perf_counter() - began
        errors = np.sort(atom_error(result.model.D, simulated.D).errors)[:K]
        return errors, floor(simulated, options.get("stride", 1)), seconds, result.message

    def chunks(seed):
        rng = np.random.default_rng(seed)
        corner = rng.integers(20, size=3), rng.integers(3000 - 44, size=3)
        return np.stack([problem.y[i, :, j : j + 45] for i, j in zip(*corner, strict=True)])

    cases = {
        "W3": lambda: [fit(problem, 3, s, positive=True) for s in range(seeds)],
        "W3, random windows, no repairs (what peers do)": lambda: [
            fit(problem, 3, s, positive=True, D0=chunks(s), repair=False) for s in range(seeds)
        ],
    }
    for name, (K, C, length, stride, density, positive, snr_db, asked) in CASES.items():
        cases[name] = lambda case=(K, C, length, stride, density, positive, snr_db), asked=asked: [
            fit(simulate(*case, seed), asked, seed, positive=case[5], stride=case[3]) for seed in range(seeds)
        ]
    return cases


def report(name, runs):
    worst, lowest = [errors.max() for errors, *_ in runs], statistics.median(run[1] for run in runs)
    found = sum(error < 0.1 for error in worst)
    seconds = statistics.median(run[2] for run in runs)
    reported = sum("explains little" in message for *_, message in runs)
    note = f" (superfluous atoms named in {reported} of {len(runs)})" if "asked for" in name else ""
    row = f"{found} of {len(runs)} | {statistics.median(worst):.3f} | {max(worst):.3f} | {lowest:.3f} | {seconds:.2f}"
    print(f"| {name}{note} | {row} |", flush=True)


def common_start(seeds):
    """Print seconds from the start that all learners share to an error of 0.1, as wall and as processor time."""
    problem = w3()
    largest = max(np.correlate(y[0], d[0], "valid").max() for y in problem.y for d in problem.D)
    options = {"learn_lmbd": False, "lmbd0": 0.1 * largest, "sigma": 1.0, "positive": True, "rng": 0}
    rows = []
    for seed in range(seeds):
        best = (np.inf, np.inf)
        for _ in range(5):
            seen, spent = [], np.zeros(2)
            began = np.array([time.perf_counter(), time.process_time()])

            def callback(progress, began=began, spent=spent, seen=seen):
                now = np.array([time.perf_counter(), time.process_time()])
                seen.append((*(now - began - spent), atom_error(progress.D, problem.D).errors.max()))
                spent += np.array([time.perf_counter(), time.process_time()]) - now

            em_fit(problem.y, 3, 45, D0=near_start(problem.D, seed), callback=callback, **options)
            hit = next(((wall, processor) for wall, processor, error in seen if error < 0.1), (np.inf, np.inf))
            best = min(best, hit)
        rows.append((*best, seen[-1][2]))
    wall, processor, final = np.array(rows).T
    print("\n| W3, common start | wall, median | wall, slowest seed | processor, median | final error, worst |")
    print("|---|---|---|---|---|")
    print(
        f"| error < 0.1 in {np.isfinite(wall).sum()} of {seeds} (best of 5 runs) | {np.median(wall):.3f} s "
        f"| {wall.max():.3f} s | {np.median(processor):.3f} s | {final.max():.3f} |"
    )


if __name__ == "__main__":
    main()
