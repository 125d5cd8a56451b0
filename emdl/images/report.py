"""A page about a denoised picture: before, after, what was taken out, and the atoms it is made of now."""

import math
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from emdl.images.picture import upright
from emdl.text import printable

_WIDE = 12.0  # inches
_MOST_SHOWN = 900  # pixels of a picture along its longer side
_CROP = 96  # pixels along each axis of the detail
_MOST_ATOMS = 256
_GREY = "0.35"


def figure(noisy, clean, plan, model, *, name):
    """Return a page about a picture that was denoised.

    Parameters
    ----------
    noisy, clean : Picture
        Before and after.
    plan : Plan
        From `emdl.images.restore.plan`.
    model : object
        What the noise was taken out with; its atoms are shown if it tells them.
    name : str
        Of the picture.

    Returns
    -------
    matplotlib.figure.Figure
        On top the pictures before and after and their difference; below a detail of each, pixel by pixel; at the bottom
        the values of the difference beside those of white noise, its spectrum, and the atoms. If noise alone was taken
        out, the difference shows nothing of the picture, follows the curve, and its spectrum is flat.
    """
    noisy, clean = upright(noisy), upright(clean)
    before, after = (p.pixels.astype(np.float32) for p in (noisy, clean))
    removed = before - after
    low, high = _range(noisy.pixels)
    spread = 3 * (plan.level or float(removed.std()) or 1.0)
    H, W = before.shape[:2]
    tall = _WIDE / 3 * H / W
    tall = min(max(tall, 1.2), 2 * _WIDE / 3)
    page = Figure(figsize=(_WIDE, tall + 4 + 4.2), layout="constrained")
    page.suptitle(_title(name, noisy, plan, removed), ha="left", x=0.01, size=11, parse_math=False)
    axes = page.subplots(3, 3, height_ratios=[tall, 3.8, 3.6])
    views = (
        ("before", before, low, high),
        ("after", after, low, high),
        ("taken out, grey is nothing, white and black are 3 sigma", removed, -spread, spread),
    )
    rows, columns = _detail(after)
    step = -(-max(H, W) // _MOST_SHOWN)
    for column, (title, image, bottom, top) in enumerate(views):
        whole, part = _visible(image, bottom, top), _visible(image[rows, columns], bottom, top)
        axes[0, column].imshow(whole[::step, ::step] if step > 1 else whole, extent=(0, W, H, 0), **_SHOW)
        axes[0, column].set_title(title, size=9)
        axes[0, column].add_patch(_frame(rows, columns))
        axes[1, column].imshow(part, interpolation="nearest", **_SHOW)
        axes[1, column].set_title(f"{part.shape[1]} x {part.shape[0]} pixels of it", size=9)
    for ax in axes[:2].ravel():
        ax.set_axis_off()
    _draw_histogram(axes[2, 0], removed, plan.level or 1.0, whole=noisy.pixels.dtype.kind != "f")
    _draw_spectrum(axes[2, 1], removed, plan.level or 1.0)
    _draw_atoms(axes[2, 2], model)
    return page


@dataclass(frozen=True)
class Reached:
    """What a training has come to.

    Attributes
    ----------
    step : int
        Steps, or iterations, taken.
    seconds : float
        Time of the training so far.
    measures : dict
        Name, one of `MEASURES`, to number.
    psnr : dict
        {noise level: PSNR} of photographs that are not learned from.
    """

    step: int
    seconds: float
    measures: dict
    psnr: dict


MEASURES = {"loss": "loss", "share": "share of the codes not zero", "codes_per_patch": "codes for a patch"}


def training_figure(model, reached, *, unit="step"):
    """Return a picture of a model in training: its atoms, and what it has come to.

    Parameters
    ----------
    model : object
        As it stands; `atoms_of` finds its atoms.
    reached : sequence of Reached
        At each report so far.
    unit : str
        What a step is called.

    Returns
    -------
    matplotlib.figure.Figure
    """
    page = Figure(figsize=(_WIDE, 6), layout="constrained")
    axes = page.subplot_mosaic([["atoms", "above"], ["atoms", "below"]], width_ratios=(1.3, 1))
    _draw_atoms(axes["atoms"], model)
    above, below = axes["above"], axes["below"]
    steps, last = [one.step for one in reached], reached[-1]
    for level in last.psnr:
        above.plot(steps, [one.psnr[level] for one in reached], "o-", ms=3, lw=1.2, label=f"sigma {level:g}")
    if last.psnr:
        above.legend(frameon=False, fontsize=8)
    above.set(ylabel="dB", title="PSNR of photographs it does not learn from")
    styles = (("o-", "#0072B2", "blue"), ("s--", "#D55E00", "orange"))
    for number, (name, (line, colour, said)) in enumerate(zip(last.measures, styles, strict=False)):
        ax = below.twinx() if number else below
        ax.plot(steps, [one.measures[name] for one in reached], line, ms=3, lw=1.2, color=colour)
        ax.set_ylabel(f"{MEASURES[name]} ({said})", size=8)
        ax.tick_params(labelsize=8, colors=_GREY)
    below.set(xlabel=unit, title="How it went")
    for ax in (above, below):
        ax.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
    _dress(above), _dress(below)
    return page


_SHOW = {"cmap": "gray", "vmin": 0, "vmax": 1, "aspect": "equal"}


def _title(name, noisy, plan, removed):
    name = printable(name)
    how = "estimated" if plan.estimated else "given"
    if plan.level == 0:
        return f"{name} ({noisy.description}): no noise found, nothing taken out"
    integers = noisy.pixels.dtype.kind in "u"
    unit = np.iinfo(noisy.pixels.dtype).max / 255 if integers else 1
    scale = " of 255" if integers else ""
    return (
        f"{name} ({noisy.description})\nnoise level {plan.level / unit:.3g}{scale} ({how}), "
        f"taken out {removed.std() / unit:.3g}{scale} (standard deviation)"
    )


def _range(pixels):
    """Return the values that are drawn black and white."""
    if pixels.dtype.kind == "u":
        top = np.iinfo(pixels.dtype).max
        high = float(pixels.max())
        return 0.0, float(top) if high > top / 8 else high or 1.0  # cameras of 12 bits write files of 16
    low, high = (float(v) for v in np.percentile(pixels, (0.1, 99.9)))
    return low, high if high > low else low + 1


def _visible(image, low, high):
    """Return an image in grey or RGB with values from 0 to 1."""
    image = image if image.shape[2] in (1, 3) else image[..., :1]
    scaled = np.clip((image - low) / (high - low), 0, 1)
    return scaled[..., 0] if scaled.shape[2] == 1 else scaled


def _detail(image):
    """Return rows and columns of the part with the most median contrast: structure, not a single edge."""
    H, W = image.shape[:2]
    side = min(_CROP, H, W)
    grey = image.mean(axis=2)
    best, most = (0, 0), -1.0
    for row in np.unique(np.linspace(0, H - side, 8).astype(int)):
        for column in np.unique(np.linspace(0, W - side, 8).astype(int)):
            part = grey[row : row + side, column : column + side]
            contrast = float(np.median(np.abs(np.diff(part, axis=1)))) if side > 1 else 0.0
            if contrast > most:
                best, most = (row, column), contrast
    return slice(best[0], best[0] + side), slice(best[1], best[1] + side)


def _frame(rows, columns):
    from matplotlib.patches import Rectangle

    corner = (columns.start, rows.start)
    return Rectangle(corner, columns.stop - columns.start, rows.stop - rows.start, fill=False, ec="#D55E00", lw=1.2)


def _draw_histogram(ax, removed, level, *, whole):
    """Draw how often each value was taken out, in units of the noise level, and how often noise has it."""
    step = 0.1 * level
    if whole:  # as many whole numbers in each bar, none on its edge
        step = max(1, round(step))
    n = math.ceil(4 * level / step)
    first = step // 2 + 0.5 if whole else 0.5 * step
    edges = (np.arange(-n, n + 2) * step - first) / level
    values = removed.ravel()
    values = values[:: -(-values.size // 2_000_000)] / level
    ax.hist(values, edges, density=True, color="#0072B2", alpha=0.6, label="taken out")
    ax.plot(edges, np.exp(-(edges**2) / 2) / math.sqrt(2 * math.pi), color="0.1", lw=1.2, label="white noise")
    ax.set(xlabel="value / noise level", yticks=[], title="Is it noise? Its values")
    _dress(ax)
    ax.legend(frameon=False, fontsize=8)


def _draw_spectrum(ax, removed, level):
    """Draw the power of what was taken out against the length of its waves; that of white noise is flat, 1."""
    side = min(removed.shape[:2])
    if side < 16:
        ax.set_axis_off()
        return
    square = removed[:side, :side].mean(axis=2) * math.sqrt(removed.shape[2])
    taper = np.hanning(side)[:, None] * np.hanning(side)
    power = np.abs(np.fft.rfft2(square * taper)) ** 2 / (taper**2).sum() / level**2
    f = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    bins = np.linspace(0, 0.5, 26)
    which = np.digitize(f.ravel(), bins)
    count = np.bincount(which, minlength=len(bins) + 1)[1 : len(bins)]
    mean = np.bincount(which, power.ravel(), minlength=len(bins) + 1)[1 : len(bins)] / np.maximum(count, 1)
    ax.axhline(1, color="0.1", lw=1.2, label="white noise")
    ax.plot((bins[:-1] + bins[1:]) / 2, mean, "o-", ms=3, lw=1.2, color="#0072B2", label="taken out")
    ax.set(
        xlabel="cycles / pixel", ylabel="power / noise", title="and its spectrum", ylim=(0, max(1.5, 1.1 * mean.max()))
    )
    _dress(ax)
    ax.legend(frameon=False, fontsize=8, loc="lower right")


def _draw_atoms(ax, model):
    ax.set_axis_off()
    atoms = atoms_of(model)
    if atoms is None:
        return
    ax.imshow(mosaic(atoms), interpolation="nearest", **_SHOW)
    shown = f", {_MOST_ATOMS} of {len(atoms)} shown" if len(atoms) > _MOST_ATOMS else ""
    ax.set_title(f"The {len(atoms)} atoms it is made of{shown}", size=9)


def atoms_figure(model):
    """Return a page with the atoms of a model.

    Parameters
    ----------
    model : object
        Whose atoms `atoms_of` finds.

    Returns
    -------
    matplotlib.figure.Figure
    """
    page = Figure(figsize=(6, 6.3), layout="constrained")
    _draw_atoms(page.subplots(), model)
    return page


def atoms_of(model):
    """Return the atoms (K, C, *s) that a model puts images together from, or None."""
    if hasattr(model, "synthesis"):
        return model.synthesis[-1]
    return getattr(model, "D", getattr(getattr(model, "model", None), "D", None))


def mosaic(atoms):
    """Return atoms side by side, each with its own contrast, those with the largest norm first.

    Parameters
    ----------
    atoms : array (K, C, h, w)
        Only the first `_MOST_ATOMS` are shown.

    Returns
    -------
    ndarray, (rows, columns) or (rows, columns, 3)
        Values from 0 to 1; zero of an atom is 0.5, between atoms is 1.
    """
    order = np.argsort(-np.linalg.norm(atoms.reshape(len(atoms), -1), axis=1), kind="stable")[:_MOST_ATOMS]
    atoms = np.moveaxis(atoms[order], 1, -1)
    K, h, w, C = atoms.shape
    atoms = atoms if C in (1, 3) else atoms[..., :1]
    columns = math.ceil(math.sqrt(K))
    rows = math.ceil(K / columns)
    page = np.ones((rows * (h + 1) + 1, columns * (w + 1) + 1, atoms.shape[-1]))
    for k, atom in enumerate(atoms):
        row, column = 1 + k // columns * (h + 1), 1 + k % columns * (w + 1)
        page[row : row + h, column : column + w] = 0.5 + 0.5 * atom / (np.abs(atom).max() or 1)
    return page[..., 0] if page.shape[2] == 1 else page


def _dress(ax):
    ax.title.set_size(9)
    ax.xaxis.label.set_size(8)
    ax.yaxis.label.set_size(8)
    ax.tick_params(labelsize=8, colors=_GREY)
    ax.spines[["top", "right"]].set_visible(False)
