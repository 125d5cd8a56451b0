"""Claim 2: EM through the encoder recovers the dictionary.

4 atoms of 18 samples at 10 kHz, one channel, 7 to 16 dB, from a start at an error of 0.45. The rates are held, at the
universal threshold sqrt(2 log(K N)) / sigma or at twice that (where the paper's rule rests when its prior weighs as
much as the data), so that nothing but the way to the dictionary differs.
"""

import numpy as np

from emdl import em_fit, rates

from . import data, drawing
from .store import groups

VERSION = 2
SNRS, DEPTHS, EPOCHS = (7, 9, 12, 16), (10, 30, 100, 300, 600), 40
LEVELS = (2, 1)  # lambda in units of the universal threshold
SHIFT, DRIFT_EPOCHS = 6, 40  # samples that an atom of the start lies off its window


def cells(quick):
    seeds = list(data.SEEDS)[: 1 if quick else None]
    ways = [("analytic", 0)] + [
        (m_step, T) for m_step in ("unrolled", "decoder") for T in DEPTHS[: 2 if quick else None]
    ]
    rows = [
        {"part": "ways", "level": level, "snr": snr, "m_step": m_step, "layers": T, "channels": 1, "seed": seed}
        for level in LEVELS for snr in (SNRS[-1:] if quick else SNRS) for m_step, T in ways for seed in seeds
    ]  # fmt: skip
    rows += [
        {"part": "channels", "level": 2, "snr": 9, "m_step": m_step, "layers": T, "channels": C, "seed": seed}
        for C in (2, 4) for m_step, T in (("analytic", 0), ("unrolled", 300)) for seed in seeds
    ]  # fmt: skip
    rows += [
        {"part": "drift", "level": 2, "snr": 12, "m_step": m_step, "layers": T, "channels": 1, "seed": seed,
         "repair": repair}
        for m_step, T in (("analytic", 0), ("unrolled", 300)) for repair in (False, True) for seed in seeds
    ]  # fmt: skip
    return rows


def run(part, level, snr, m_step, layers, channels, seed, repair=False):
    sim = data.problem(seed, snr, channels=channels)
    lmbd = level * rates.start_lmbd(data.ATOMS, sim.z.shape[0] * sim.z.shape[2], sim.sigma)
    start = data.perturbed(sim.D, seed) if part != "drift" else _shifted(sim.D)
    errors = [data.worst(start, sim.D)]
    inside = [_energy_inside(start, sim.D)]

    def note(progress):
        errors.append(data.worst(progress.D, sim.D))
        inside.append(_energy_inside(progress.D, sim.D))

    em_fit(
        sim.y, data.ATOMS, data.LENGTH, D0=start, sigma=sim.sigma, lmbd0=lmbd, positive=True, m_step=m_step,
        n_layers=layers or 30, learn_lmbd=False, repair=repair, max_iter=EPOCHS if part != "drift" else DRIFT_EPOCHS,
        tol=1e-6, rng=seed, callback=note,
    )  # fmt: skip
    return {"errors": errors, "inside": inside}


def _shifted(D):
    """Return the atoms moved out of their windows, by turns to the left and to the right."""
    moved = np.zeros_like(D)
    for k, d in enumerate(D):
        if k % 2:
            moved[k, :, SHIFT:] = d[:, :-SHIFT]
        else:
            moved[k, :, :-SHIFT] = d[:, SHIFT:]
    return moved / np.linalg.norm(moved.reshape(len(D), -1), axis=1)[:, None, None]


def _energy_inside(D, truth):
    """Return the smallest share of a true atom's energy that the window of its partner holds."""
    from emdl.metrics import atom_error

    match, share = atom_error(D, truth), []
    for k, shift in enumerate(match.shifts[:, 0]):
        energy = np.square(truth[k]).sum(axis=0)
        at = np.arange(len(energy)) - shift
        share.append(float(energy[(at >= 0) & (at < len(energy))].sum() / energy.sum()))
    return min(share)


def _last(result):
    return result["errors"][-1]


def tables(rows):
    parts = groups(rows, "part")
    ways = [row for row in rows if row[0]["part"] == "ways"]
    lines = []
    snrs = sorted({cell["snr"] for cell, _ in ways})
    for level, m_step, T in dict.fromkeys((c["level"], c["m_step"], c["layers"]) for c, _ in ways):
        of = [drawing.spread(_ends(ways, level, m_step, T, snr)) for snr in snrs]
        lines.append([f"{level} x universal", m_step, T or "certified", *of])
    found = {"recovery": drawing.table(["lambda", "M-step", "layers", *(f"{snr} dB" for snr in snrs)], lines)}
    if ("channels",) in parts:
        of = groups([row for row in rows if row[0]["part"] == "channels"], "m_step", "channels")
        lines = [[m, C, drawing.spread([_last(r) for r in rs])] for (m, C), rs in of.items()]
        found["recovery-channels"] = drawing.table(["M-step", "channels", "error, 9 dB"], lines)
    if ("drift",) in parts:
        of = groups([row for row in rows if row[0]["part"] == "drift"], "m_step", "repair")
        lines = [
            [m, "yes" if repair else "no", drawing.spread([_last(r) for r in rs]),
             drawing.spread([r["inside"][0] for r in rs], 2), drawing.spread([r["inside"][-1] for r in rs], 2)]
            for (m, repair), rs in of.items()
        ]  # fmt: skip
        head = ["M-step", "re-centred", "error at the end", "share inside at the start", "at the end"]
        found["recovery-drift"] = drawing.table(head, lines)
    return found


def _curves(results, what, length):
    return [drawing.padded(r[what], length) for r in results]


def _ends(ways, level, m_step, T, snr):
    return [_last(r) for c, r in ways if (c["level"], c["m_step"], c["layers"], c["snr"]) == (level, m_step, T, snr)]


def draw(rows, folder):
    ways = [row for row in rows if row[0]["part"] == "ways"]
    _draw_ways(ways, folder)
    _draw_drift([row for row in rows if row[0]["part"] == "drift"], folder)


def _draw_ways(ways, folder):
    figure, axes = drawing.panels(3, width=7.2, height=3.0)
    snr = 9 if any(cell["snr"] == 9 for cell, _ in ways) else ways[0][0]["snr"]
    depth = max(c["layers"] for c, _ in ways if c["layers"] <= 300)
    for number, (m_step, T) in enumerate((("analytic", 0), ("unrolled", depth), ("decoder", depth))):
        results = [
            r for c, r in ways if (c["level"], c["m_step"], c["layers"], c["snr"]) == (LEVELS[0], m_step, T, snr)
        ]
        label = m_step if not T else f"{m_step}, T = {T}"
        drawing.band(axes[0], np.arange(EPOCHS + 1), _curves(results, "errors", EPOCHS + 1), number, label, mark=False)
        snrs = sorted({c["snr"] for c, _ in ways})
        ends = [_ends(ways, LEVELS[0], m_step, T, s) for s in snrs]
        drawing.band(axes[1], snrs, np.transpose(ends), number, label)
    for number, m_step in enumerate(("unrolled", "decoder"), 1):
        depths = sorted({c["layers"] for c, _ in ways if c["m_step"] == m_step})
        for level, style in zip(LEVELS, ("-", "--"), strict=True):
            ends = [_ends(ways, level, m_step, T, snr) for T in depths]
            label = f"{m_step}, {level} x universal"
            drawing.band(axes[2], depths, np.transpose(ends), number, label, style=style)
    axes[0].set(yscale="log", xlabel="epoch", ylabel="error of the worst atom", title=f"{snr} dB, lambda 2 x universal")
    axes[1].set(yscale="log", xlabel="SNR (dB)", title="after training, lambda 2 x universal")
    axes[2].set(yscale="log", xscale="log", xlabel="layers T", title=f"after training, {snr} dB")
    for axis in axes:
        drawing.plain_log(axis.yaxis)
        drawing.legend_below(axis, 1)
    axes[2].set_xticks(DEPTHS, DEPTHS)
    axes[2].minorticks_off()
    drawing.save(figure, folder, "recovery")


def _draw_drift(rows, folder):
    figure, axes = drawing.panels(2, width=7.2)
    epochs = np.arange(DRIFT_EPOCHS + 1)
    for number, ((m_step, repair), results) in enumerate(groups(rows, "m_step", "repair").items()):
        label = f"{m_step}, {'re-centred' if repair else 'left alone'}"
        drawing.band(axes[0], epochs, _curves(results, "errors", len(epochs)), number, label, mark=False)
        drawing.band(axes[1], epochs, _curves(results, "inside", len(epochs)), number, label, mark=False)
    axes[0].set(yscale="log", xlabel="epoch", ylabel="error of the worst atom")
    axes[1].set(xlabel="epoch", ylabel="share of an atom's energy\ninside its window")
    drawing.plain_log(axes[0].yaxis)
    for axis in axes:
        drawing.legend_below(axis)
    drawing.save(figure, folder, "recovery-drift")
