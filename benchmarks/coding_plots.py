"""Pictures of the coding suite, drawn from its stored cells alone, each as SVG and PNG."""

import numpy as np

from benchmarks import coding_report
from benchmarks.peers import TARGETS

# colours of Okabe and Ito, told apart also by the colour-blind; markers and dashes tell apart without colour
STYLES = {
    "emdl": ("#D55E00", "o", "-"),
    "SPORCO ADMM": ("#0072B2", "s", "--"),
    "SPORCO FISTA": ("#56B4E9", "D", ":"),
    "alphacsc LGCD": ("#009E73", "^", "--"),
    "alphacsc FISTA": ("#E69F00", "v", ":"),
    "dicodile LGCD": ("#CC79A7", "P", "-."),
    "NumPy FISTA": ("#000000", "x", ":"),
    "CVXPY CLARABEL": ("#777777", "*", "-."),
}
FLOOR = 1e-6
PANELS = (("w1-0.05", "Photograph 256 x 256,\n64 atoms 8 x 8"), ("w2-30000", "30,000 samples,\n3 atoms of 45"))


def draw(data, folder, threads=1):
    """Leave the pictures whose cells are there in `folder`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    settings = {"font.size": 12, "svg.hashsalt": "emdl", "svg.fonttype": "none", "axes.spines.top": False}
    with plt.rc_context({**settings, "axes.spines.right": False}):
        for name, make in (("gap", _gaps), ("speedups", _speedups), ("scaling", _scaling)):
            figure = make(data, threads, plt)
            if figure is not None:
                figure.savefig(folder / f"coding-{name}.svg", metadata={"Date": None})
                figure.savefig(folder / f"coding-{name}.png", dpi=150)
                plt.close(figure)


def _best_of(data, case, family, threads):
    """Return the cell of a family of solvers that is first at the last target, or comes nearest to it."""
    cells = [(s, c) for s, c, k in coding_report.cells_of(data, case, threads) if s.startswith(family) and c["points"]]
    if family == "emdl":
        cells = [(s, c) for s, c in cells if s == coding_report.OWN]

    def rank(entry):
        points = entry[1]["points"]
        reached = coding_report.seconds(entry[1], TARGETS[-1])
        return (reached is None, reached or min(p["gap"] for p in points))

    return min(cells, key=rank)[1] if cells else None


def _gaps(data, threads, plt):
    panels = [p for p in PANELS if any(c["case"] == p[0] and c["points"] for c in data["cells"].values())]
    if not panels:
        return None
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 5), sharey=True, squeeze=False)
    lines = {}
    for axis, (case, title) in zip(axes[0], panels, strict=True):
        for family, (colour, marker, dash) in STYLES.items():
            cell = _best_of(data, case, family, threads)
            if cell is None:
                continue
            x, gap = _curve(cell, "certified" if family == "emdl" else "gap")
            every = max(1, len(x) // 8)
            style = {"color": colour, "marker": marker, "markevery": every, "ms": 6, "lw": 2, "clip_on": False}
            (lines[family],) = axis.loglog(x, gap, dash, **style)
            if family == "emdl":
                truth = {"color": colour, "lw": 1.2, "alpha": 0.7, "clip_on": False}
                (lines["emdl, in truth"],) = axis.loglog(*_curve(cell, "gap"), ":", **truth)
        for target in TARGETS:
            axis.axhline(target, color="#bbbbbb", lw=1, zorder=0)
        axis.set(title=title, xlabel="processor time (s), one thread", ylim=(FLOOR, 5))
    axes[0, 0].set_ylabel("relative gap to the minimum\n(smaller ones at the lower edge)")
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=3, frameon=False)
    figure.set_layout_engine("constrained")
    return figure


def _curve(cell, what):
    """Return processor seconds, and the least gap so far."""
    points = sorted((p["cpu"], p[what]) for p in cell["points"])
    x, gap = np.array(points).T
    return x, np.clip(np.minimum.accumulate(gap), FLOOR, 5)


def _speedups(data, threads, plt):
    found = [g for g in coding_report.goals(data, threads) if g[3] is not None]
    if not found:
        return None
    labels = list(dict.fromkeys(g[0] for g in found))
    figure, axis = plt.subplots(figsize=(8, 0.62 * len(labels) + 1.9))
    for target, colour, shift in zip(TARGETS, ("#56B4E9", "#0072B2"), (-0.2, 0.2), strict=True):
        for text, gap, _, ratio, bound, _ in found:
            if gap == target:
                place = labels.index(text) + shift
                axis.barh(place, ratio, 0.38, color=colour, label=f"to a gap of {target:.0e}")
                box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
                shown = f"{'> ' * bound}{coding_report.short(ratio)}"
                axis.text(ratio * 1.08, place, shown, va="center", fontsize=10, bbox=box, zorder=5)
    wanted = {g[0]: g[2] for g in found if g[2]}
    for text, factor in wanted.items():
        place = labels.index(text)
        axis.plot([factor, factor], [place - 0.42, place + 0.42], color="#D55E00", lw=2.5, label="wanted, at least")
    unique = dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    axis.set(xscale="log", xlabel="processor time, fastest peer / emdl", yticks=range(len(labels)))
    axis.set_yticklabels(labels)
    axis.invert_yaxis()
    axis.margins(x=0.15)
    figure.legend(unique.values(), unique, loc="outside upper center", ncols=3, frameon=False, fontsize=11)
    figure.set_layout_engine("constrained")
    return figure


def _scaling(data, threads, plt):
    cells = [c for c in data["cells"].values() if c["case"].startswith("scaling") and c["threads"] == threads]
    points = sorted((c["points"][-1] for c in cells if c["points"]), key=lambda p: p["samples"])
    if len(points) < 2:
        return None
    n = np.array([p["samples"] for p in points])
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2))
    cpu = np.array([p["cpu"] for p in points])
    left.loglog(n, cpu, "o-", color="#D55E00", lw=2, label="emdl, certified to 1e-3")
    left.loglog(n, cpu[-1] * n / n[-1], "--", color="#777777", label="in proportion")
    left.set(xlabel="samples", ylabel="processor time (s)")
    left.legend(frameon=False)
    measured = [p for p in points if p.get("extra", 0) > 0]
    if measured:
        m = np.array([p["samples"] for p in measured])
        right.loglog(
            m, [p["extra"] / 2**20 for p in measured], "o-", color="#0072B2", lw=2, label="beyond signal, result"
        )
        signal = np.array([p["signal"] / 2**20 for p in points])
        right.loglog(n, 3 * signal, "-.", color="#D55E00", label="wanted: below 3 x the signal")
        right.loglog(n, signal, "s--", color="#777777", label="the signal itself")
        right.legend(frameon=False)
    right.set(xlabel="samples", ylabel="memory (MiB)")
    figure.set_layout_engine("constrained")
    return figure
