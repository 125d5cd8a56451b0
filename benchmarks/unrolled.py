"""The unrolled encoder: seconds and memory of the forward and backward pass, and what each gradient is good for.

python benchmarks/run.py --suite unrolled                     all tables and the plot
python benchmarks/run.py --suite unrolled --part cases        one of: cases, memory, scaling, recovery
"""

import argparse
import functools
import json
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

import numpy as np

from emdl import backward, lipschitz, metrics, simulate, unroll
from emdl.backend import n_threads
from emdl.gradients import backward_full, implicit, reconstruction_loss
from emdl.optim import normalize_atoms
from emdl.unrolled import momenta, unroll_full

# targets in seconds: forward, forward and backward
TARGETS = {
    "1 x 30,000, 3 atoms of 45, T = 100": (0.012, 0.020),
    "10 x 3,000, 3 atoms of 45, T = 100": (0.008, 0.014),
    "1 x 60,000, 2 atoms of 35, T = 600": (0.10, 0.16),
    "256 x 256, 64 atoms of 7 x 7, T = 30": (0.27, 0.47),
    "the same, stride 5, all 25 shifts": (0.35, 0.50),
}


def spikes(n, N, K, s, n_iter, seed=0, dtype=np.float32):
    """Return the arguments of `unroll` for signals of one axis: one event in 300 positions, 10 dB, codes >= 0."""
    if K > 4:  # more spikes than that look alike on one channel
        D = normalize_atoms(np.hanning(s) * np.random.default_rng(seed).standard_normal((K, 1, s)))
    else:
        D = simulate.waveforms(K, 1, s, rng=seed)
    D = D.astype(dtype)
    y = simulate.convolutional(n, N, D, density=1 / 300, snr_db=10, positive=True, rng=seed).y
    step = 1 / lipschitz(D)
    z = unroll(y, D, 0.0, step, 1, positive=True).z
    theta = 0.1 * float(z.max())  # lmbd = 0.1 lambda_max
    return {"y": y, "D": D, "theta": theta, "step": step, "n_iter": n_iter, "positive": True, "stride": 1}


def picture(size=256, s=7, K=64, stride=1, share=0.05, n_iter=30, seed=0):
    """Return the arguments of `unroll` for a photograph, so that a given share of the codes is not zero.

    The atoms are cosines and patches of the photograph.
    """
    from scipy.ndimage import gaussian_filter
    from skimage.data import camera
    from skimage.transform import resize

    image = resize(camera() / 255.0, (size, size), anti_aliasing=True)
    rng = np.random.default_rng(seed)
    y = image - gaussian_filter(image, 5) + 20 / 255 * rng.standard_normal(image.shape)
    y = y.astype(np.float32)
    t = np.cos(np.pi * np.outer(np.arange(s), np.arange(s) + 0.5) / s)
    cosines = np.einsum("ai,bj->abij", t, t).reshape(-1, 1, s, s)[1:K]
    corners = rng.integers(0, size - s, (K, 2))
    patches = np.stack([y[None, a : a + s, b : b + s] for a, b in corners[: max(0, K - len(cosines))]] or [cosines[0]])
    D = normalize_atoms(np.concatenate([cosines, patches - patches.mean(axis=(1, 2, 3), keepdims=True)])[:K])
    D = D.astype(np.float32)
    span = (size - (stride - 1) - s) // stride * stride + s
    y = np.stack([y[None, a : a + span, b : b + span] for a in range(stride) for b in range(stride)])
    step = 1 / lipschitz(D, stride=stride)
    arguments = {"y": y, "D": D, "theta": 0.0, "step": step, "n_iter": n_iter, "positive": False, "stride": stride}
    return arguments | {"theta": threshold_for(arguments, share)}


def threshold_for(arguments, share):
    """Return the threshold at which the codes of all layers together have a share of non-zeros, by bisection."""
    low, high = 0.0, float(np.abs(unroll(**arguments | {"n_iter": 1}).z).max())
    for _ in range(9):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if mean_share(unroll(**arguments | {"theta": middle})) > share else (low, middle)
    return 0.5 * (low + high)


def mean_share(trace):
    """Return the share of non-zeros in the codes of all layers."""
    return sum(z.n_nonzero for z in trace.codes) / len(trace.codes) / np.prod(trace.codes.shape)


def seconds(function, repeats):
    """Return the least and the median seconds of a call, and the least processor seconds of all threads."""
    function()
    times, work = [], []
    for _ in range(repeats):
        start = time.perf_counter(), time.process_time()
        function()
        times.append(time.perf_counter() - start[0])
        work.append(time.process_time() - start[1])
    return min(times), statistics.median(times), min(work)


def measure(arguments, repeats=15):
    """Return seconds of the forward pass and of both, and the share of non-zeros, of one case."""
    trace = unroll(**arguments)
    g_z = np.random.default_rng(1).standard_normal(trace.z.shape).astype(arguments["y"].dtype)
    forward = seconds(lambda: unroll(**arguments), repeats)
    both = seconds(lambda: backward(unroll(**arguments), g_z), repeats)
    return {"forward": forward, "both": both, "share": mean_share(trace)}


def case(name):
    """Return the arguments of `unroll` for one of `TARGETS`."""
    number = list(TARGETS).index(name)
    if number < 3:
        n, N, K, s, n_iter = ((1, 30_000, 3, 45, 100), (10, 3_000, 3, 45, 100), (1, 60_000, 2, 35, 600))[number]
        return spikes(n, N, K, s, n_iter)
    return picture(stride=1 if number == 3 else 5)


def cases(repeats=15):
    """Return the measurements of all `TARGETS`."""
    return {name: measure(case(name), repeats) for name in TARGETS}


def memory(path, way):
    """Return how many MiB this process grows over forward and backward, one way or another."""
    with np.load(path) as file:
        arguments = {key: file[key][()] for key in file.files}
    for key in ("n_iter", "stride"):
        arguments[key] = int(arguments[key])
    trace = unroll(**arguments | {"n_iter": 1, "theta": 1e9})  # compiled code is not counted
    g_z = np.ones(trace.codes.shape, np.float32)
    backward(trace, g_z)
    del trace
    before = peak_memory()
    if way == "arrays":
        by_arrays(arguments)
    else:
        backward(unroll(**arguments, checkpoint=6 if way == "checkpoints" else None), g_z)
    return {"grown": peak_memory() - before, "dense": arguments["n_iter"] * g_z.nbytes / 2**20}


def peak_memory():
    """Return the largest resident size of this process so far, MiB (Linux; getrusage counts the parent's too)."""
    status = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def memory_apart(name):
    """Return `memory` of all ways, each in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "case.npz"
        np.savez(path, **case(name))
        command = [sys.executable, __file__, "--memory-of", str(path)]
        return {
            way: json.loads(subprocess.run([*command, way], capture_output=True, text=True, check=True).stdout)
            for way in ("kernels", "checkpoints", "arrays")
        }


def scaling(repeats=3):
    """Return how the seconds grow with N, K, T and the share of non-zeros."""
    found = {
        "samples": [(N, measure(spikes(1, N, 3, 45, 100), repeats)) for N in (3_000, 10_000, 30_000, 100_000, 300_000)],
        "atoms": [(K, measure(spikes(1, 30_000, K, 45, 100), repeats)) for K in (1, 2, 4, 8, 16, 32)],
        "layers": [(T, measure(spikes(1, 30_000, 3, 45, T), repeats)) for T in (10, 30, 100, 300, 1000)],
        "atoms, picture": [(K, measure(picture(128, K=K), repeats)) for K in (8, 16, 32, 64, 128)],
    }
    found["share"] = []
    for share in (0.005, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.9):
        arguments = picture(128, share=share, n_iter=10)
        g_z = np.ones(unroll(**arguments).codes.shape, np.float32)
        dense = seconds(functools.partial(by_products, arguments, g_z), repeats)
        found["share"].append((share, measure(arguments, repeats) | {"products": dense}))
    return found


def by_products(arguments, g_z):
    """Return the codes and the gradient of D of a dense network, by matrix products, for one picture."""
    y, step = arguments["y"][0, 0], np.float32(arguments["step"])
    K, s = len(arguments["D"]), arguments["D"].shape[-1]
    D, beta = arguments["D"].reshape(K, -1), momenta(arguments["n_iter"])
    zero = np.zeros_like(g_z).reshape(K, -1)
    codes = [zero, zero]
    for b in beta:
        w = codes[-1] + np.float32(b) * (codes[-1] - codes[-2])
        u = w + step * (D @ patches_of(y - add_patches(D.T @ w, y.shape, s), s))
        codes.append(np.sign(u) * np.maximum(np.abs(u) - np.float32(arguments["theta"]), 0))
    g, g_before, g_D = g_z.reshape(K, -1), zero, 0
    for t in reversed(range(len(beta))):
        b = np.float32(beta[t])
        w = codes[t + 1] + b * (codes[t + 1] - codes[t])
        g_u = g * (codes[t + 2] != 0)
        q = patches_of(add_patches(D.T @ g_u, y.shape, s), s)
        g_D = g_D + step * (g_u @ patches_of(y - add_patches(D.T @ w, y.shape, s), s).T - w @ q.T)
        g_w = g_u - step * (D @ q)
        g, g_before = g_before + (1 + b) * g_w, -b * g_w
    return codes[-1], g_D


def patches_of(x, s):
    """Return all s x s patches of a picture as the columns of a matrix."""
    windows = np.lib.stride_tricks.sliding_window_view(x, (s, s))
    return np.ascontiguousarray(windows.transpose(2, 3, 0, 1)).reshape(s * s, -1)


def add_patches(columns, shape, s):
    """Return the picture that overlapping patches add up to, the adjoint of `patches_of`."""
    rows, width = shape[0] - s + 1, shape[1] - s + 1
    out = np.zeros(shape, columns.dtype)
    for i, column in enumerate(columns):
        out[i // s : i // s + rows, i % s : i % s + width] += column.reshape(rows, width)
    return out


def by_arrays(arguments):
    """Go forward and backward once by the array version."""
    full = dict(arguments)
    stride = (full.pop("stride"),) * (full["y"].ndim - 2)
    positive = full.pop("positive")
    theta = np.float32(full.pop("theta"))
    trace = unroll_full(full["y"], full["D"], theta, full["step"], full["n_iter"], positive, stride, dense=True)
    backward_full(trace, np.ones(trace.codes.shape, np.float32))


ESTIMATORS = ("decoder", "last quarter", "unrolled", "implicit")


def learn(estimator, n_iter, seed, lmbd, n_steps=120, rate=0.02):
    """Return the largest atom error after Adam steps from a start at error 0.5, with one estimator of the gradient."""
    rng = np.random.default_rng(seed)
    true = normalize_atoms(rng.standard_normal((4, 1, 20)))
    y = simulate.convolutional(20, 600, true, density=0.004, snr_db=20, rng=seed).y
    noise = rng.standard_normal(true.shape)
    noise = normalize_atoms(noise - (noise * true).sum(axis=2, keepdims=True) * true)
    D = 0.75**0.5 * true + 0.5 * noise
    m, v = np.zeros_like(D), np.zeros_like(D)
    for i in range(n_steps):
        step = 1 / lipschitz(D)
        trace = unroll(y, D, lmbd * step, step, n_iter)
        _, g_z, g = reconstruction_loss(trace, y)
        if estimator == "implicit":
            with warnings.catch_warnings():  # a rough solution is enough for a step
                warnings.simplefilter("ignore")
                g = g + implicit(trace, g_z.dense(), tol=1e-3, max_iter=30).D
        elif estimator != "decoder":
            last = max(1, n_iter // 4) if estimator == "last quarter" else None
            g = g + backward_full(trace, g_z, n_layers=last).D
        g = g - (g * D).sum(axis=2, keepdims=True) * D
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        change = m / (1 - 0.9 ** (i + 1)) / (np.sqrt(v / (1 - 0.999 ** (i + 1))) + 1e-12)
        D = normalize_atoms(D - rate * min(1, 2 * (1 - i / n_steps)) * change)
    return float(metrics.atom_error(D, true).errors.max())


def recovery(seeds=(0, 1, 2)):
    """Return the median atom error for each estimator, number of layers and lambda."""
    return {
        f"{lmbd} {n_iter}": {e: statistics.median(learn(e, n_iter, s, lmbd) for s in seeds) for e in ESTIMATORS}
        for lmbd in (0.3, 0.6)
        for n_iter in (5, 15, 50)
    }


def table(results):
    """Return the results as Markdown."""
    lines = []
    if "cases" in results:
        lines += [
            "| case | non-zeros | forward: best, median, processor, target (s) | both |",
            "|---|---|---|---|",
        ]
        for name, found in results["cases"].items():
            cells = [
                f"{found[key][0]:.4f}, {found[key][1]:.4f}, {found[key][2]:.4f}, {target}"
                for key, target in zip(("forward", "both"), TARGETS[name], strict=True)
            ]
            lines.append(f"| {name} | {100 * found['share']:.1f} % | {cells[0]} | {cells[1]} |")
    if "memory" in results:
        lines += [
            "",
            "| MiB | kernels | with checkpoint=6 | array version | z_1 ... z_T alone, dense |",
            "|---|---|---|---|---|",
        ]
        for name, found in results["memory"].items():
            cells = [f"{found[way]['grown']:.0f}" for way in ("kernels", "checkpoints", "arrays")]
            lines.append(f"| {name} | {' | '.join(cells)} | {found['kernels']['dense']:.0f} |")
    if "scaling" in results:
        lines += ["", "| grows | value: forward, both (ms) |", "|---|---|"]
        for name, rows in results["scaling"].items():
            cells = [
                f"{x:g}: {1e3 * m['forward'][0]:.1f}, {1e3 * m['both'][0]:.1f}"
                + (
                    f" (processor {1e3 * m['both'][2]:.1f}, dense {1e3 * m['products'][2]:.1f})"
                    if "products" in m
                    else ""
                )
                for x, m in rows
            ]
            lines.append(f"| {name} | {'; '.join(cells)} |")
    if "recovery" in results:
        lines += ["", f"| lambda, T | {' | '.join(ESTIMATORS)} |", "|---|" + "---|" * len(ESTIMATORS)]
        lines += [
            f"| {name.replace(' ', ', ')} | {' | '.join(f'{found[e]:.4f}' for e in ESTIMATORS)} |"
            for name, found in results["recovery"].items()
        ]
    return "\n".join(lines)


def plot(results, path):
    """Draw how the seconds grow."""
    import matplotlib.pyplot as plt

    names = list(results["scaling"])
    figure, axes = plt.subplots(1, len(names), figsize=(3.2 * len(names), 3), layout="constrained", sharey=True)
    for ax, name in zip(axes, names, strict=True):
        rows, which = results["scaling"][name], 2 if name == "share" else 0  # one thread against two: processor seconds
        x = [row[0] for row in rows]
        for key, label in (("forward", "forward"), ("both", "forward and backward")):
            ax.loglog(x, [row[1][key][which] for row in rows], "o-", label=label)
        if name == "share":
            ax.loglog(x, [row[1]["products"][which] for row in rows], "k--", label="both, dense products")
        ax.set(xlabel="share of non-zeros (processor s)" if name == "share" else name)
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("seconds")
    axes[-1].legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


PARTS = {
    "cases": cases,
    "memory": lambda: {name: memory_apart(name) for name in list(TARGETS)[2:]},
    "scaling": scaling,
    "recovery": recovery,
}


def main(arguments=None, folder=pathlib.Path()):
    """Run the parts asked for, print their tables, leave unrolled.json and unrolled.png in the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, help="one part alone")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.memory_of:
        print(json.dumps(memory(*given.memory_of)))
        return
    print(f"{platform.processor() or platform.machine()}, {n_threads()} threads, numpy {np.__version__}")
    results = {}
    for name in [given.part] if given.part else PARTS:
        results[name] = PARTS[name]()
        print(table({name: results[name]}), flush=True)
    (folder / "unrolled.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    if "scaling" in results:
        plot(results, folder / "unrolled.png")


if __name__ == "__main__":
    main()
