"""Denoising: emdl against BM3D, non-local means, wavelets and total variation, PSNR against level and seconds.

python benchmarks/run.py --suite denoise                              Set12 at 15, 25 and 50, then the curve, 5 to 75
python benchmarks/run.py --suite denoise --folder photographs --methods emdl,learn --levels 25
python benchmarks/run.py --suite denoise --report                     tables and plots of what is stored

Every cell (image, level, method) is stored when it is done, whole or not at all; the same command goes on from there,
level by level, so that what is stored can be compared at any time (--minutes ends it earlier). The noisy image is
neither clipped nor rounded. emdl estimates the noise level; the others are told it. BM3D is a peer that is used where
the package bm3d is installed; scikit-image brings the others. Total variation gets the best of five weights, chosen
with the truth in hand; non-local means the settings of scikit-image's example (the best of six on one image).
"""

import argparse
import functools
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import statistics
import time

import numpy as np

from benchmarks.pictures import DATA, noisy, photographs, psnr

LEVELS = (15, 25, 50)
CURVE = (5, 10, 15, 25, 50, 75)
CROP = ("05", 25, slice(60, 156), slice(100, 196))  # image, level and part of the picture side by side
OFF = ("wavelet", "visushrink")  # too far below BM3D to be drawn beside it
NAMED_AT = {"emdl": (0, 10, "center"), "nlm": (8, -14, "left"), "tv": (-9, -4, "right")}  # points from their marks
WEIGHTS = (0.5, 0.7, 0.8, 0.9, 1.1)


def _emdl(y, sigma, truth):
    from emdl import images

    return images.denoise(y)


def _learn(y, sigma, truth):
    from emdl.images import estimate_sigma
    from emdl.images.learn import fit

    level = estimate_sigma(y)
    return fit(y[None, None], level, rng=0).denoise(y[None, None], level)[0, 0]


def _bm3d(y, sigma, truth):
    import bm3d

    return bm3d.bm3d(y, sigma)


def _nlm(y, sigma, truth):
    from skimage.restoration import denoise_nl_means

    return denoise_nl_means(y, h=0.8 * sigma, sigma=sigma, fast_mode=True, patch_size=5, patch_distance=6)


def _wavelet(y, sigma, truth, method="BayesShrink"):
    from skimage.restoration import denoise_wavelet

    return denoise_wavelet(y, sigma=sigma, mode="soft", method=method, rescale_sigma=False)


def _tv(y, sigma, truth):
    from skimage.restoration import denoise_tv_chambolle

    tried = [denoise_tv_chambolle(y, weight=w * sigma) for w in WEIGHTS]
    return max(tried, key=lambda x: psnr(255 * x, truth))


METHODS = {
    "emdl": _emdl,
    "learn": _learn,
    "bm3d": _bm3d,
    "nlm": _nlm,
    "wavelet": _wavelet,
    "visushrink": functools.partial(_wavelet, method="VisuShrink"),
    "tv": _tv,
}
NAMES = {
    "emdl": "emdl", "learn": "emdl --learn", "bm3d": "BM3D", "nlm": "non-local means", "wavelet": "BayesShrink",
    "visushrink": "VisuShrink", "tv": "total variation",
}  # fmt: skip
STYLE = {
    "emdl": ("#0072B2", "o"), "learn": ("#56B4E9", "D"), "bm3d": ("#D55E00", "s"), "nlm": ("#009E73", "^"),
    "wavelet": ("#CC79A7", "v"), "visushrink": ("#999999", "x"), "tv": ("#E69F00", "P"),
}  # fmt: skip


def cell(method, image, name, level):
    """Return the result of one method, and the denoised image, 0 ... 255."""
    y = noisy(image, level, name) / 255
    wall, work = time.perf_counter(), time.process_time()
    x = METHODS[method](y, level / 255, image)
    wall, work = time.perf_counter() - wall, time.process_time() - work
    if method == "tv":  # one of the weights would do for who knows it
        wall, work = wall / len(WEIGHTS), work / len(WEIGHTS)
    x = 255 * np.asarray(x, np.float64)
    return {
        "method": method, "image": name, "level": level, "shape": image.shape, "psnr": psnr(x, image),
        "seconds": wall, "processor": work,
    }, x  # fmt: skip


def run(photos, levels, methods, folder, seconds=math.inf):
    """Compute the cells that are not stored, level by level, until so many seconds of the processor are spent."""
    able = [method for method in methods if _runs(method)]
    cells = [(method, level, name) for level in levels for method in able for name in photos]
    left = [(folder / f"{method}_{level}_{name}.json", method, level, name) for method, level, name in cells]
    left = [cell for cell in left if not cell[0].is_file()]
    for number, (path, method, level, name) in enumerate(left):
        if time.process_time() > seconds:
            print(f"the processor time given is spent, {len(left) - number} cells are left; the same command goes on")
            return
        result, x = cell(method, photos[name], name, level)
        if (name, level) == CROP[:2]:
            np.save(folder / f"{method}_{level}_{name}.npy", x[CROP[2:]].astype(np.float32))
        part = path.with_suffix(".part")
        part.write_text(json.dumps(result), encoding="utf-8")
        os.replace(part, path)
        print(
            f"{number + 1} of {len(left)}: {NAMES[method]}, {name} at {level}: {result['psnr']:.2f} dB, "
            f"{result['processor']:.2f} s",
            flush=True,
        )


def _runs(method):
    """Return whether a method is installed; say so if it is not."""
    try:
        _warm(method)
    except ImportError as error:
        print(f"{NAMES[method]} is left out: {error}")
        return False
    return True


@functools.cache
def _warm(method):
    """Run a method once on a small image, so that compilation is not counted."""
    image = np.add.outer(np.arange(40.0), np.arange(40.0))
    METHODS[method]((image + 9 * np.random.default_rng(0).standard_normal(image.shape)) / 255, 9 / 255, image)


def stored(folder):
    """Return all stored cells."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*_*_*.json"))]


def table(cells, names):
    """Return mean PSNR (number of images) and processor seconds as Markdown, over these images alone."""
    levels = [s for s in CURVE if any(c["level"] == s for c in cells)]
    lines = [
        f"| method | {' | '.join(map(str, levels))} | s per image: wall | processor |",
        "|---" * (3 + len(levels)) + "|",
    ]
    for method in METHODS:
        mine = [c for c in cells if c["method"] == method and c["image"] in names]
        if not mine:
            continue
        means = []
        for level in levels:
            values = [c["psnr"] for c in mine if c["level"] == level]
            means.append(f"{statistics.mean(values):.2f} ({len(values)})" if values else "-")
        timed = [c for c in mine if c["level"] in LEVELS] or mine
        means += [f"{statistics.mean(c[clock] for c in timed):.3f}" for clock in ("seconds", "processor")]
        lines.append(f"| {NAMES[method]} | {' | '.join(means)} |")
    return "\n".join(lines)


def curves(cells):
    """Return the images that all methods have at some levels, these levels, and {method: mean PSNR at each of them}.

    Of the images whose levels are as many as those of any other.
    """
    methods = [m for m in METHODS if any(c["method"] == m for c in cells)]
    at = {(c["method"], c["level"], c["image"]): c["psnr"] for c in cells}
    images = sorted({c["image"] for c in cells})
    whole = {i: tuple(s for s in CURVE if all((m, s, i) in at for m in methods)) for i in images}
    levels = max(whole.values(), key=len, default=())
    images = [i for i in images if whole[i] == levels]
    return images, levels, {m: [statistics.mean(at[m, s, i] for i in images) for s in levels] for m in methods}


def plot(cells, cells_folder, folder):
    """Draw PSNR against level, the same less that of BM3D, PSNR against seconds, and a crop side by side."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 12, "svg.fonttype": "none"})
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.4), layout="constrained")
    images, levels, means = curves(cells)
    many = f"mean of {len(images)} image{'s' if len(images) != 1 else ''}"
    for method, mean in means.items():
        colour, mark = STYLE[method]
        left.plot(levels, mean, marker=mark, color=colour, label=NAMES[method])
        if "bm3d" in means and method not in OFF:
            middle.plot(levels, np.subtract(mean, means["bm3d"]), marker=mark, color=colour)
    left.set(ylabel=f"PSNR, {many} (dB)")
    middle.set(ylabel=f"over BM3D, {many} (dB)")
    for axis in (left, middle):
        axis.set(xlabel="noise level (8-bit units)")
        axis.set_xticks(levels)
    left.legend(frameon=False, fontsize=10)
    _draw_seconds(right, cells)
    for axis in (left, middle, right):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    _save(figure, folder / "denoise")
    _draw_crops(cells_folder, folder, plt)


def _draw_seconds(axis, cells):
    shared = _in_common(cells, 25)
    for method in METHODS:
        at = [c for c in cells if c["method"] == method and c["level"] == 25 and c["image"] in shared]
        if at:
            size = statistics.mean(c["processor"] / (c["shape"][0] * c["shape"][1]) for c in at) * 256**2
            place, (*move, side) = (
                (size, statistics.mean(c["psnr"] for c in at)),
                NAMED_AT.get(method, (0, -18, "center")),
            )
            colour, mark = STYLE[method]
            axis.plot(*place, mark, color=colour, markersize=9)
            axis.annotate(NAMES[method], place, xytext=move, textcoords="offset points", ha=side)
    what = f"PSNR at level 25, mean of {len(shared)} image{'s' if len(shared) != 1 else ''} (dB)"
    axis.set(xscale="log", xlabel="processor seconds per 256 x 256 pixels", ylabel=what)
    axis.margins(x=0.35, y=0.15)


def _in_common(cells, level):
    """Return the images that every method that was run has at a level."""
    images = {}
    for c in cells:
        images.setdefault(c["method"], set()).update({c["image"]} if c["level"] == level else ())
    return set.intersection(*images.values()) if images else set()


def _draw_crops(cells_folder, folder, plt):
    name, level, rows, columns = CROP
    found = {m: cells_folder / f"{m}_{level}_{name}.npy" for m in METHODS}
    found = {NAMES[m]: np.load(path) for m, path in found.items() if path.is_file()}
    if not found or not (DATA / "set12" / f"{name}.png").is_file():
        return
    image = photographs(DATA / "set12")[name]
    pictures = {"original": image[rows, columns], "noisy": noisy(image, level, name)[rows, columns], **found}
    figure, axes = plt.subplots(2, -(-len(pictures) // 2), figsize=(11, 5), layout="constrained")
    for axis in axes.ravel():
        axis.set_axis_off()
    for axis, (title, x) in zip(axes.ravel(), pictures.items(), strict=False):
        axis.imshow(x, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(title, fontsize=13)
    _save(figure, folder / "denoise_crop")


def _save(figure, path):
    import matplotlib.pyplot as plt

    for kind in ("svg", "png"):
        figure.savefig(path.with_suffix(f".{kind}"), dpi=120)
    plt.close(figure)


def main(arguments=None, folder=pathlib.Path()):
    """Compute what is not stored, print the table, leave denoise.json and the plots in the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, default=DATA / "set12", help="photographs, PNG")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--levels", default=",".join(map(str, LEVELS)))
    parser.add_argument("--images", help="names without ending, by commas; all by default")
    parser.add_argument("--no-curve", action="store_true", help="leave out the curve over levels")
    parser.add_argument("--minutes", type=float, default=math.inf, help="processor time after which no cell begins")
    parser.add_argument("--report", action="store_true", help="compute nothing")
    given = parser.parse_args(arguments)
    cells_folder = folder / "denoise" / given.folder.name
    cells_folder.mkdir(parents=True, exist_ok=True)
    photos = photographs(given.folder)
    if given.images:
        photos = {name: photos[name] for name in given.images.split(",")}
    methods = given.methods.split(",")
    unknown = set(methods) - set(METHODS)
    if unknown:
        raise SystemExit(f"there is no method {', '.join(sorted(unknown))}; there are {', '.join(METHODS)}")
    print(f"{platform.processor() or platform.machine()}, " + ", ".join(_versions()))
    if not given.report:
        levels = [int(s) for s in given.levels.split(",")]
        levels += [] if given.no_curve else [s for s in CURVE if s not in levels]
        run(photos, levels, methods, cells_folder, 60 * given.minutes)
    cells = stored(cells_folder)
    if not cells:
        print(f"there are no cells in {cells_folder} yet")
        return
    print(table(cells, set(photos)))
    (folder / "denoise.json").write_text(json.dumps(cells, indent=1), encoding="utf-8")
    plot(cells, cells_folder, folder)


def _versions():
    for name in ("emdl", "bm3d", "scikit-image", "numpy"):
        try:
            yield f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"{name} is not installed"
