"""The jobs whose results are kept, what they work on, and how close another machine has to come.

Everything that goes in is drawn from ``numpy.random.RandomState``, whose numbers NumPy promises never to change, and
then rounded, so that it is the same everywhere. Each array that comes out has a measure of how far it is from the one
that is kept, 1 at the bound:

- `Close`: numbers, by their difference as a share of the largest;
- `Atoms`: atoms, up to order, shift and sign, by the sine of the angle between each and its like;
- `Times`: spikes of units, up to the order of the units and a sample to either side, by the share that disagrees;
- `Picture`: some of the pixels, by the root mean square of the difference as a share of the noise that was there;
- `Bits`: nothing is kept but its bits.

A bound is what a change of the last digits can do (see docs/reliability.md for what was tried), which for results with
yes or no in them is more than the last digits: a spike may be found or not, codes are solved to a tolerance. It is far
below what a wrong result brings: other atoms, a picture with its noise, a unit less.
"""

import contextlib
import io
import json
from dataclasses import dataclass

import numpy as np
from emdl.cli import main
from PIL import Image

import emdl
from emdl import images, metrics, spikes
from emdl.images import learn, training
from emdl.spikes import tables

FS = 20_000.0
NOISE = 20.0  # of 255, in the pictures


# How close


@dataclass(frozen=True)
class Close:
    """Numbers, each within a share of the largest there is."""

    share: float

    def keep(self, found):
        return found

    def far(self, found, kept):
        if np.shape(found) != np.shape(kept):
            return np.inf
        return float(np.abs(np.subtract(found, kept, dtype=float)).max() / np.abs(kept).max() / self.share)


@dataclass(frozen=True)
class Atoms:
    """Atoms (K, C, *s) up to order, shift and sign, each within the sine of an angle."""

    error: float

    def keep(self, found):
        return found

    def far(self, found, kept):
        if np.shape(found) != np.shape(kept):
            return np.inf
        return float(metrics.atom_error(found, kept).errors.max() / self.error)


@dataclass(frozen=True)
class Times:
    """Spikes (2, n), samples and units: the share of every unit that may be others."""

    share: float

    def keep(self, found):
        return found

    def far(self, found, kept):
        if len(np.unique(found[1])) != len(np.unique(kept[1])):
            return np.inf
        score = metrics.compare_sortings(tuple(found), tuple(kept), fs=FS, delta_ms=1500 / FS)
        return float((1 - score.accuracy.min()) / self.share)


@dataclass(frozen=True)
class Picture:
    """Pixels (H, W, ...): root mean square of the difference, as a share of the noise."""

    share: float

    def keep(self, found):
        return np.asarray(found[::3, ::3], np.uint8 if found.dtype == np.uint8 else np.float32)

    def far(self, found, kept):
        if np.shape(found) != np.shape(kept):
            return np.inf
        return float(np.sqrt(np.mean(np.subtract(found, kept, dtype=float) ** 2)) / NOISE / self.share)


@dataclass(frozen=True)
class Bits:
    """Anything: its bits alone."""

    def keep(self, found):
        return None

    def far(self, found, kept):
        return 0.0


# What goes in


def recording(seconds, seed, scale=1.0):
    """Return int16 (2, n): three units at 20 kHz in white noise, in units of 0.1 uV."""
    rng = np.random.RandomState(seed)
    n, t = int(seconds * FS), np.arange(40) - 12
    shapes = [np.exp(-((t / a) ** 2)) - 0.4 * np.exp(-(((t - 2.5 * a) / (2 * a)) ** 2)) for a in (3.0, 4.5, 6.0)]
    weights = np.array([[-250.0, -90.0], [-110.0, -230.0], [-160.0, -150.0]])
    data = 20.0 * rng.standard_normal((2, n))
    for shape, weight in zip(shapes, weights, strict=True):
        gaps = rng.exponential(FS / 22.0, int(60 * seconds)) + 0.003 * FS
        times = np.cumsum(gaps).astype(int)
        for at in times[times < n - 60]:
            data[:, at : at + 40] += scale * weight[:, None] * shape
    return np.round(10 * data).astype(np.int16)


def picture(shape, seed, noise=NOISE):
    """Return uint8 (H, W): edges, a ramp and a grating, with white noise."""
    rng = np.random.RandomState(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    clean = 70 + 0.5 * rows + 25 * np.sin(columns / 2.5) * (rows > shape[0] // 2)
    for angle, place in rng.uniform((0, 0), (np.pi, 80), (4, 2)):
        clean += 22 * (np.cos(angle) * rows + np.sin(angle) * columns > place)
    return np.clip(np.round(clean + noise * rng.standard_normal(shape)), 0, 255).astype(np.uint8)


def atoms(n_atoms, n_channels, *shape):
    """Return smooth atoms (K, C, *s) that are far from each other."""
    D = np.empty((n_atoms, n_channels, *shape))
    grid = np.meshgrid(*(np.linspace(-1, 1, s) for s in shape), indexing="ij")
    for k in range(n_atoms):
        for c in range(n_channels):
            wave = sum((k + 1.3) * (1 - 2 * ((c + i * k) % 2)) * x for i, x in enumerate(grid))
            D[k, c] = np.exp(-2 * sum(x**2 for x in grid)) * np.cos(2.2 * wave + 0.7 * c)
    return D / np.sqrt((D**2).sum(axis=tuple(range(1, D.ndim)), keepdims=True))


def signals(D, n, shape, density, noise, seed):
    """Return signals (n, C, *S) of the model in multiples of 1 / 1024."""
    rng = np.random.RandomState(seed)
    places = [S - s + 1 for S, s in zip(shape, D.shape[2:], strict=True)]
    z = rng.uniform(0.6, 1.4, (n, len(D), *places)) * (rng.uniform(size=(n, len(D), *places)) < density)
    clean = emdl.synthesize(z, D)
    return np.round(1024 * (clean + noise * rng.standard_normal(clean.shape))) / 1024


# The jobs


def command(*words, folder):
    """Run a command of emdl in this process, in a folder, and return the JSON that it prints."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), contextlib.chdir(folder):
        code = main([*words, "--json"])
    if code:
        raise RuntimeError(f"emdl {' '.join(words)} ended with {code}: {said.getvalue()}")
    return json.loads(said.getvalue()[said.getvalue().index("{") :])


def prepare(folder):
    """Put two recordings into a folder, and what ``emdl train`` makes of the first, if they are not there yet."""
    if not (folder / "model.h5").exists():
        np.savez(folder / "first.npz", data=recording(4.0, 1), fs=FS)
        np.savez(folder / "second.npz", data=recording(2.0, 2, scale=0.9), fs=FS)
        command("train", "--task", "spikes", "first.npz", "-o", "model.h5", "--no-plot", "--quiet", folder=folder)


def spikes_of(path):
    table = tables.read(path)
    units = [table["amplitude"][table["unit"] == unit] for unit in np.unique(table["unit"])]
    return {
        "spikes": np.stack([table["sample"], table["unit"]]),
        "mean amplitudes": np.sort([np.mean(unit) for unit in units]),
        "file": np.frombuffer(path.read_bytes(), np.uint8),
    }


def train(folder):
    prepare(folder)
    model = spikes.load(folder / "model.h5")
    return {"waveforms": model.waveforms, "noise": np.array(model.noise), **spikes_of(folder / "model.csv")}


def detect(folder):
    prepare(folder)
    command("detect", "second.npz", "--model", "model.h5", "-o", "found.csv", "--force", "--quiet", folder=folder)
    return spikes_of(folder / "found.csv")


def sort(folder):
    prepare(folder)
    facts = command("sort", "first.npz", "-o", "sorted.csv", "--no-report", "--force", "--quiet", folder=folder)
    units = [[unit["snr"], unit["rate_hz"], unit["presence"]] for unit in facts["units"]]
    return {**spikes_of(folder / "sorted.csv"), "units": np.array(sorted(units))}


def encode_spikes(folder):
    prepare(folder)
    command("encode", "second.npz", "--model", "model.h5", "-o", "codes.npz", "--force", "--quiet", folder=folder)
    with np.load(folder / "codes.npz") as codes:
        held = {name: codes[name] for name in codes.files}
    sums = np.zeros((3, 40))  # of the codes of a unit in 50 ms
    np.add.at(sums, (held["unit"], held["sample"] // 1000), held["value"])
    return {"sums": sums[np.argsort(sums.sum(axis=1))], **held}


def denoised(folder, *options):
    Image.fromarray(picture((88, 96), 3)).save(folder / "noisy.png")
    command("denoise", "noisy.png", "-o", "clean.png", "--force", *options, "--quiet", folder=folder)
    with Image.open(folder / "clean.png") as file:
        return np.asarray(file)


def denoise(folder):
    colours = np.stack([picture((50, 61), seed) for seed in (4, 5, 6)], axis=2)
    return {
        "by the command": denoised(folder),
        "sigma": np.array(images.estimate_sigma(picture((88, 96), 3))),
        "in colour": 255 * images.denoise(colours, sigma=NOISE / 255, channel_axis=2),
    }


def denoise_learn(folder):
    return {"by the command": denoised(folder, "--learn", "--sigma", str(NOISE))}


def train_denoise(_):
    """Steps as large as in a real training, so few of them that rounding has not grown yet."""
    photographs = [picture((64, 72), seed, noise=0)[None] for seed in (7, 8)]
    start = training.start_network(32, 2, rng=0)
    network = training.train(photographs, steps=8, n_atoms=32, n_layers=2, batch=2, crop=42, network=start, rng=1)
    patches = learn.fit([picture((72, 80), 9)[None] / np.float32(NOISE)], 1.0, n_atoms=24, max_iter=3, rng=2)
    return {
        "way of the network": np.concatenate(
            [(end - begin).ravel()[::61] for end, begin in zip(weights(network), weights(start), strict=True)]
        ),
        "atoms of patches": patches.D[::6],
        "what they make": NOISE * patches.denoise(picture((40, 48), 10)[None, None] / np.float32(NOISE), 1.0)[0, 0],
    }


def weights(network):
    return network.analysis, network.synthesis, network.tau


def fitted(result):
    objective = result.history["objective"]
    return {
        "D": result.model.D,
        "lmbd": result.model.lmbd,
        "sigma": np.array(result.model.sigma),
        "objective": np.array([objective[0], objective[-1]]),
    }


def em_fit_1d(_):
    """Blind, and by the gradient of the paper from a start nearby."""
    D = atoms(2, 2, 15)
    y = signals(D, 4, (400,), 0.015, 0.06, 11)
    blind = fitted(emdl.em_fit(y, 2, 15, positive=True, rng=3))
    near = D + 0.05 * np.random.RandomState(12).standard_normal(D.shape)
    paper = fitted(
        emdl.em_fit(
            y, 2, 15, D0=near, sigma=0.06, positive=True, m_step="unrolled", lmbd_rule="paper", n_layers=20, max_iter=6,
            rng=4,
        )
    )  # fmt: skip
    return blind | {f"{name}, unrolled": value for name, value in paper.items()}


def em_fit_2d(_):
    D = atoms(3, 1, 6, 7)
    y = signals(D, 2, (48, 52), 0.006, 0.05, 13)
    return fitted(emdl.em_fit(y, 3, (6, 7), rng=5, max_iter=40))


def encode(_):
    """Codes at the minimum itself, where the order of the sums no longer counts."""
    found = {}
    for name, D, shape in (("1-D", atoms(3, 2, 12), (300,)), ("2-D", atoms(3, 1, 5, 6), (30, 34))):
        y = signals(D, 2, shape, 0.01, 0.08, 14)
        z = emdl.encode(y, D, 0.3, tol=1e-11)
        found |= {f"codes, {name}": z, f"objective, {name}": np.array(emdl.objective(y, z, D, 0.3))}
        single = emdl.encode(y.astype(np.float32), D, 0.3, tol=1e-4, positive=True)
        found[f"objective of float32, {name}"] = np.array(emdl.objective(y, single.astype(float), D, 0.3))
    return found


_SPIKES = {"spikes": Times(0.03), "mean amplitudes": Close(0.02), "file": Bits()}
_FITTED = {"D": Atoms(0.02), "lmbd": Close(0.05), "sigma": Close(0.01), "objective": Close(0.02)}
# By name, which is that of the file: the job, a function of a folder to work in, and how far each result may be. The
# jobs on spikes share the model that lies in the folder.
JOBS = {
    "train": (train, _SPIKES | {"waveforms": Atoms(0.03), "noise": Close(0.01)}),
    "detect": (detect, _SPIKES),
    "sort": (sort, _SPIKES | {"units": Close(0.02)}),
    "encode_spikes": (
        encode_spikes,
        {"sums": Close(0.1)} | dict.fromkeys(("unit", "sample", "value", "shape", "peak", "fs"), Bits()),
    ),
    "denoise": (denoise, {"by the command": Picture(0.01), "sigma": Close(1e-3), "in colour": Picture(0.01)}),
    "denoise_learn": (denoise_learn, {"by the command": Picture(0.1)}),
    "train_denoise": (
        train_denoise,
        {"way of the network": Close(0.05), "atoms of patches": Close(0.05), "what they make": Picture(0.1)},
    ),
    "em_fit_1d": (em_fit_1d, _FITTED | {f"{name}, unrolled": how for name, how in _FITTED.items()}),
    "em_fit_2d": (em_fit_2d, _FITTED),
    "encode": (
        encode,
        {
            f"{what}, {axes}": Close(share)
            for axes in ("1-D", "2-D")
            for what, share in (("codes", 1e-4), ("objective", 1e-9), ("objective of float32", 1e-4))
        },
    ),
}
IN_PROCESS = ("train_denoise", "em_fit_1d", "em_fit_2d", "encode")  # those that change nothing a thread shares
