"""Tables and pictures of the coding suite, drawn from its stored cells alone."""

import re

from benchmarks.peers import TARGETS, seconds_to

OWN = "emdl float32"
SAMPLE_OF = {"many-10000": {"many-100": 100, "many-1000": 10}}  # a peer measured on a part, and how much larger all is

# what must be reached: (text, case, peers by regular expression, factor, gaps)
GOALS = [
    ("photograph 256x256, 0.2 lambda_max", "w1-0.2", "SPORCO", None, TARGETS),
    ("photograph 256x256, 0.05 lambda_max", "w1-0.05", "SPORCO", 50, TARGETS),
    ("photograph 256x256, 0.01 lambda_max", "w1-0.01", "SPORCO", 20, TARGETS),
    ("photograph 256x256, 0.005 lambda_max", "w1-0.005", "SPORCO", 10, TARGETS),
    ("photograph 512x512, 0.05 lambda_max", "w1-0.05-512", "SPORCO", None, TARGETS),
    ("30,000 samples, 3 atoms of 45", "w2-30000", "alphacsc|SPORCO|dicodile", 40, TARGETS),
    ("4 x 30,000 samples, 10 atoms of 60", "tetrode", "alphacsc|SPORCO|dicodile", 40, TARGETS),
    ("1,000,000 samples, 3 atoms of 45", "w2-1000000", "alphacsc|SPORCO|dicodile", 40, TARGETS),
    ("10,000 signals of 500 samples", "many-10000", "alphacsc|SPORCO", 50, TARGETS),
    *(
        (f"{n:,} samples: {label}", f"w2-{n}", peers, factor if n >= 10_000 else None, TARGETS[1:])
        for n in (3_000, 10_000, 30_000, 300_000)
        for label, peers, factor in (("ECOS", "CVXPY ECOS", 900), ("fastest convex solver", "CVXPY", 600))
    ),
]


def cells_of(data, case, threads):
    """Return (solver, cell, scale) of all that was measured on a problem, or on a part of it."""
    parts = {case: 1, **SAMPLE_OF.get(case, {})}
    chosen = [c for c in data["cells"].values() if c["case"] in parts and c["threads"] == threads]
    return [(c["solver"], c, parts[c["case"]]) for c in chosen]


def seconds(cell, target, scale=1, clock="cpu"):
    """Return the seconds of a cell to a gap (None: not reached); emdl's are those to its certificate."""
    found = seconds_to(cell["points"], target, clock, certified=cell["solver"].startswith("emdl"))
    return None if found is None else found * scale


def fastest(data, case, pattern, target, threads):
    """Return (seconds, solver) of the fastest of the solvers that `pattern` matches.

    Where none got there: (what the slowest to give up had used, None), a lower bound for all of them.
    """
    matching = [(s, c, k) for s, c, k in cells_of(data, case, threads) if re.match(pattern, s)]
    times = [(seconds(c, target, k), s) for s, c, k in matching]
    reached = [t for t in times if t[0] is not None]
    if reached:
        return min(reached)
    used = [max([p["cpu"] for p in c["points"]], default=0) * k for _, c, k in matching]
    used += [c["limit"] * k for _, c, k in matching if "signal" in c.get("error", "")]
    return (max(used), None) if used and max(used) else None


def goals(data, threads=1):
    """Yield (text, target, factor wanted, factor reached or None, whether that is a lower bound, fastest peer)."""
    for text, case, pattern, factor, targets in GOALS:
        own = {s: (c, k) for s, c, k in cells_of(data, case, threads)}.get(OWN)
        for target in targets:
            peer = fastest(data, case, pattern, target, threads)
            mine = seconds(own[0], target) if own else None
            if mine and peer:
                yield text, target, factor, peer[0] / mine, peer[1] is None, peer[1] or "none got there"
            else:
                yield text, target, factor, None, False, "not measured"


BEGIN, END = "<!-- coding: begin -->", "<!-- coding: end -->"


def publish(page, path):
    """Put `page` between the marks of the Markdown file at `path`."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    if END not in rest:
        raise ValueError(f"{path} has no lines {BEGIN} and {END}")
    path.write_text(f"{before}{BEGIN}\n\n{page}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def tables(data, suite):
    """Return all tables as Markdown; cells that are not in `suite` (pairs of problem and solver) stand apart."""
    pages = [_goal_table(data, n) for n in sorted({c["threads"] for c in data["cells"].values()})]
    cases = list(dict.fromkeys(case for _, case, *_ in GOALS))
    cases += [c["case"] for c in data["cells"].values() if c["case"] in data["references"]]
    hidden = {part for parts in SAMPLE_OF.values() for part in parts}
    cases = [case for case in dict.fromkeys(cases) if case not in hidden]
    pages += [_case_table(data, case, suite) for case in cases]
    pages += [_tried_table(data, suite), _scaling_table(data), _machine_table(data)]
    return "\n\n".join(page for page in pages if page) + "\n"


def _goal_table(data, threads):
    found = [g for g in goals(data, threads) if g[3] is not None]
    if not found:
        return ""
    rows = [
        f"| problem ({threads} thread{'s' * (threads > 1)}) | gap | wanted | reached | fastest peer |",
        "|---|---|---|---|---|",
    ]
    for text, target, factor, ratio, bound, peer in found:
        wanted = f"{factor}" if factor else "-"
        met = "" if not factor or ratio >= factor else " (not met)"
        rows.append(f"| {text} | {target:.0e} | {wanted} | {'> ' * bound}{short(ratio)}{met} | {peer} |")
    return "\n".join(rows)


def _case_table(data, case, suite):
    rows = []
    for threads in (1, 2):
        measured = [m for m in cells_of(data, case, threads) if (m[1]["case"], m[0]) in suite]
        own = next((c for s, c, _ in measured if s == OWN), None)
        for solver, cell, scale in sorted(measured, key=lambda m: (not m[0].startswith("emdl"), m[0])):
            row = [solver + (f", {threads} threads" if threads > 1 else "")]
            for target in TARGETS:
                cpu, wall = (seconds(cell, target, scale, clock) for clock in ("cpu", "wall"))
                mine = seconds(own, target) if own else None
                row.append("-" if cpu is None else f"{short(cpu)} ({short(wall)})")
                row.append(f"{short(cpu / mine)}" if cpu and mine and cell is not own else "")
            row.append(_note(cell, scale))
            rows.append("| " + " | ".join(row) + " |")
    if not rows:
        return ""
    known = data["references"].get(case) or {}
    title = f"{known.get('name', case)}; minimum {known.get('primal', 0):.9g}, certified to " + (
        f"{1 - known['dual'] / known['primal']:.0e}" if known else "nothing"
    )
    head = "| solver | to 1e-3, s (wall) | times emdl | to 1e-5, s (wall) | times emdl | remarks |"
    return "\n".join([f"**{title}**", "", head, "|---|---|---|---|---|---|", *rows])


def _tried_table(data, suite):
    rows = []
    for cell in data["cells"].values():
        if (cell["case"], cell["solver"]) not in suite and cell["points"] and "certified" not in cell["points"][-1]:
            times = [seconds(cell, target) for target in TARGETS]
            least, most = min(p["gap"] for p in cell["points"]), max(p["cpu"] for p in cell["points"])
            rest = "" if times[1] else f"ends at {least:.1e} after {short(most)} s"
            shown = " | ".join("-" if t is None else short(t) for t in times)
            rows.append(f"| {cell['case']} | {cell['solver']} | {shown} | {rest} |")
    head = [
        "**Settings tried besides**",
        "",
        "| problem | solver | to 1e-3, s | to 1e-5, s | |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*head, *rows]) if rows else ""


def _note(cell, scale):
    notes = []
    if scale > 1:
        notes.append(f"from {10_000 // scale:,} of the signals")
    if cell["points"] and cell["points"][-1].get("solver") is not None:
        best = [p for p in cell["points"] if p["gap"] <= TARGETS[-1]]
        if best:
            notes.append(f"the solver itself {short(min(p['solver'] for p in best))} s")
    gaps = [p["gap"] for p in cell["points"]]
    if gaps and min(gaps) > TARGETS[-1]:
        notes.append(f"ends at {min(gaps):.1e} after {short(max(p['cpu'] for p in cell['points']) * scale)} s")
    if cell["solver"].startswith("emdl") and gaps:
        last = min((p for p in cell["points"] if p["tol"] >= TARGETS[-1]), key=lambda p: p["tol"])
        notes.append(f"certified {last['certified']:.0e}, in truth {max(last['gap'], 1e-16):.0e}")
    if "error" in cell:
        notes.append(cell["error"])
    return "; ".join(notes)


def _scaling_table(data):
    found = sorted(
        (c["points"][-1] for c in data["cells"].values() if c["case"].startswith("scaling") and c["points"]),
        key=lambda p: p["samples"],
    )
    if not found:
        return ""
    rows = [
        "| samples | processor s | ns a sample | memory beyond signal and result, MiB | times the signal |",
        "|---|---|---|---|---|",
    ]
    for p in found:
        extra = f"{p['extra'] / 2**20:.1f} | {p['extra_per_signal']:.1f}" if "extra" in p else "- | -"
        rows.append(f"| {p['samples']:,} | {short(p['cpu'])} | {p['nanoseconds_per_sample']:.0f} | {extra} |")
    return "\n".join(rows)


def _machine_table(data):
    cell = next((c for c in data["cells"].values() if c["case"] == "machine" and c["points"]), None)
    if cell is None:
        return ""
    rates = cell["points"][-1]
    rows = [
        f"G operations (multiply and add) a second on one core of {cell['processor']}, load {cell['load'][1]:.0f}; "
        f"memory {rates['triad GB/s']:.0f} GB/s:",
        "",
        "| | multiply-adds in registers | GEMM of 1536 | emdl's sweep | GEMM of that size | sweep / that GEMM |",
        "|---|---|---|---|---|---|",
    ]
    for name, sweep in rates.items():
        if name.startswith("sweep"):
            dtype, label = name.removeprefix("sweep ").split(": ")
            same = rates[f"gemm {dtype}: {label}"]
            peak = [rates[f"fma {dtype}"], rates[f"gemm {dtype}"], sweep, same]
            shown = " | ".join(f"{rate:.0f}" for rate in peak)
            rows.append(f"| {label}, {dtype} | {shown} | {sweep / same:.0%} |")
    return "\n".join(rows)


def short(x):
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"
