"""What all figures share: size, colours that colour-blind people tell apart, and error bars."""

import numpy as np

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe and Ito
MARKS = ["o", "s", "^", "D", "v", "P", "X"]
STYLE = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 7, "xtick.labelsize": 7,
    "ytick.labelsize": 7, "lines.linewidth": 1.2, "lines.markersize": 3.5, "axes.spines.top": False,
    "axes.spines.right": False, "legend.frameon": False, "svg.hashsalt": "emdl",
}  # fmt: skip
WIDTH = 3.5  # inches: half the width of a page


def panels(n_columns, n_rows=1, *, width=None, height=2.3, **options):
    """Return a figure and its axes, row by row in one list."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width or WIDTH * n_columns, height * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False, **options)
    return figure, list(axes.ravel())


def band(axis, x, values, number, label, *, mark=True, style="-"):
    """Draw the median of `values` (runs, points) over x, and the span from the lowest to the highest run."""
    values = np.asarray(values, float)
    colour = COLOURS[number % len(COLOURS)]
    marker = MARKS[number % len(MARKS)] if mark else None
    axis.plot(x, np.median(values, axis=0), style, color=colour, marker=marker, label=label)
    axis.fill_between(x, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.18, linewidth=0)


def legend_below(axis, columns=2, **options):
    """Name the lines of an axis below it, where they hide nothing."""
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.24), ncols=columns, columnspacing=1.0, **options)


def plain_log(axis):
    """Label a logarithmic axis 0.01, 0.02, 0.05, 0.1 instead of by powers of ten: for a span of few decades."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())


def padded(values, length):
    """Return a curve of `length` points: a fit that converged stays where it was."""
    return list(values[:length]) + [values[-1]] * max(0, length - len(values))


def save(figure, folder, name):
    """Write PNG and SVG."""
    for kind, options in (("png", {"dpi": 150}), ("svg", {"metadata": {"Date": None}})):
        figure.savefig(folder / f"{name}.{kind}", **options)


def table(head, rows):
    """Return a Markdown table."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def spread(values, digits=3):
    """Return a text: median (lowest to highest)."""
    values = [v for v in values if v is not None]
    if not values:
        return "-"
    return f"{np.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
