"""Claim 7: spikes are sorted by the codes of a learned dictionary, with fewer errors than by matching or clustering.

10 seconds of one channel at 30 kHz, 3 units of 20 spikes a second each, amplitudes within 20 % of their mean, white
noise. The level is the mean amplitude over sigma of the best possible (matched) filter. A spike counts if its unit is
right and its time within 0.5 ms. Misses and false alarms move with the least amplitude that is accepted.

Convex optimisation is (1) solved to a gap of 1e-5, so the name of the solver does not matter here.
"""

import numpy as np

from emdl import em_fit, encode, ops, simulate
from emdl.metrics import score_spikes
from emdl.rates import start_lmbd

from . import data, drawing
from .store import groups

VERSION = 1
UNITS, LENGTH, FS, SECONDS, RATE, WITHIN = 3, 45, 30_000, 10, 20.0, 15
LEVELS = (15, 10, 7)
METHODS = {
    "EM, blind start": "learned",
    "EM, perturbed start, gradient through 300 layers": "learned",
    "emdl sort, defaults (number of units not given)": "learned",
    "convex optimisation, true templates": "true",
    "convex optimisation, perturbed templates": "perturbed",
    "matched filter, true templates": "true",
    "matching pursuit, true templates": "true",
    "threshold, PCA, k-means": "none, number of units given",
}
POINTS = 24  # thresholds of a curve
NAMES, STYLES = ("misses", "alarms"), ("-", "-", "-", "--", "--", ":", ":", "x")
LEAST = np.geomspace(0.03, 1.2, POINTS)  # accepted amplitudes, mean of the units = 1


def cells(quick):
    seeds = list(data.SEEDS)[: 1 if quick else None]
    levels = LEVELS[1:2] if quick else LEVELS
    return [{"method": m, "level": level, "seed": seed} for m in METHODS for level in levels for seed in seeds]


def recording(seed, level):
    """Return simulated windows of one second, float32."""
    D = simulate.waveforms(UNITS, 1, LENGTH, rng=seed).astype(np.float32)
    return simulate.convolutional(
        SECONDS, FS, D, density=RATE / FS, sigma=1 / level, positive=True, amplitude=(0.8, 1.2),
        rng=np.random.default_rng([seed, 7]),
    )  # fmt: skip


def run(method, level, seed):
    sim = recording(seed, level)
    true = _flat(*np.nonzero(sim.z))
    if method.startswith("threshold"):
        return _curve((_clustered(sim, least * level, seed) for least in LEAST), true)
    if method.startswith("emdl"):
        return _curve(_sorted(sim, seed), true)
    result = {}
    if method.startswith("EM"):
        D = _learned(sim, blind="blind" in method, seed=seed)
        result = {"error": data.worst(D, sim.D), "atoms": D.tolist() if (seed, level) == (0, LEVELS[1]) else None}
    else:
        D = data.perturbed(sim.D, seed) if "perturbed" in method else sim.D
    if method.startswith("matched"):
        places = _peaks(ops.analyze(sim.y, D), apart=WITHIN, across=True)
    elif method.startswith("matching"):
        places = _pursuit(sim.y, D, 2.5 * sim.sigma)
    else:
        codes = encode(sim.y, D, 0.5 * _universal(sim), sim.sigma, tol=1e-5, positive=True)
        places = _peaks(_nearby_sum(codes), apart=5, across=False)
    times, units, sizes = places
    sizes = sizes / np.median(sizes[np.argsort(sizes)[-len(true[0]) :]])  # the shrinkage takes a part of each
    return {**result, **_curve(((times[sizes > least], units[sizes > least]) for least in LEAST), true)}


def _sorted(sim, seed):
    """Return times and units that the spike sorter finds in one recording, at rising least amplitudes."""
    from emdl import spikes

    y = np.pad(sim.y, [(0, 0), (0, 0), (0, 10 * WITHIN)]).reshape(1, -1)
    found = spikes.detect(y, spikes.fit(y, FS, rng=seed))
    sizes = np.abs(found.amplitude)
    typical = {unit: np.median(sizes[found.unit == unit]) for unit in np.unique(found.unit)}
    sizes = sizes / np.array([typical[unit] for unit in found.unit])
    return [(found.sample[sizes > least], found.unit[sizes > least]) for least in LEAST]


def _universal(sim):
    return start_lmbd(UNITS, sim.z.shape[0] * sim.z.shape[2], sim.sigma)


def _learned(sim, *, blind, seed):
    if blind:
        return em_fit(sim.y, UNITS, LENGTH, positive=True, rng=seed).model.D
    return em_fit(
        sim.y, UNITS, LENGTH, D0=data.perturbed(sim.D, seed), sigma=sim.sigma, lmbd0=_universal(sim), positive=True,
        learn_lmbd=False, m_step="unrolled", n_layers=300, max_iter=20, rng=seed,
    ).model.D  # fmt: skip


def _flat(signal, unit, time):
    """Return times with all windows in a row, and units."""
    return signal * (FS + 10 * WITHIN) + time, unit


def _nearby_sum(z):
    """Return at each place what an atom has within two samples: a spike between two samples has a code on both."""
    inner = np.pad(z, [(0, 0), (0, 0), (2, 2)])
    return np.sum([inner[:, :, i : i + z.shape[2]] for i in range(5)], axis=0) + 1e-3 * z  # so that one is the largest


def _peaks(x, *, apart, across):
    """Return times, units and heights of what is largest within `apart` samples, among all units or its own."""
    from scipy.ndimage import maximum_filter1d

    top = maximum_filter1d(x, 2 * apart + 1, axis=2)
    if across:
        top = top.max(axis=1, keepdims=True)
    signal, unit, time = np.nonzero((x >= top) & (x > LEAST[0] / 4))
    return *_flat(signal, unit, time), x[signal, unit, time].astype(float)


def _pursuit(y, D, least):
    """Return times, units and amplitudes of greedy matching: the largest correlation, taken away, and so on."""
    found, residual = [], y.astype(np.float64)
    for _ in range(60):  # in each round, every spike that is the largest around it
        c = ops.analyze(residual, D.astype(np.float64))
        times, units, sizes = _peaks(c, apart=LENGTH, across=True)
        keep = sizes > least
        if not keep.any():
            break
        codes = np.zeros_like(c)
        signal, time = np.divmod(times[keep], FS + 10 * WITHIN)
        codes[signal, units[keep], time] = sizes[keep]
        residual -= ops.synthesize(codes, D.astype(np.float64))
        found.append((times[keep], units[keep], sizes[keep]))
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def _clustered(sim, threshold, seed):
    """Return times and units of threshold, principal components and k-means, the number of units given."""
    from scipy.cluster.vq import kmeans2
    from scipy.ndimage import maximum_filter1d

    y = sim.y[:, 0].astype(float)
    size = np.abs(y)
    top = (size == maximum_filter1d(size, LENGTH, axis=1)) & (size > threshold * sim.sigma * np.abs(sim.D).max())
    top[:, :LENGTH] = top[:, -LENGTH:] = False
    signal, time = np.nonzero(top)
    if len(time) < 10 * UNITS:
        return np.zeros(0, int), np.zeros(0, int)
    pieces = y[signal[:, None], time[:, None] + np.arange(-LENGTH // 2, LENGTH // 2)]
    pieces -= pieces.mean(axis=0)
    scores = pieces @ np.linalg.svd(pieces, full_matrices=False)[2][:5].T
    units = kmeans2(scores, UNITS, minit="++", rng=seed)[1]
    return _flat(signal, units, time)


def _curve(found, true):
    """Return misses and false alarms in per cent, means over the units, at each threshold."""
    misses, alarms = [], []
    for times, units in found:
        order = np.argsort(times, kind="stable")
        if not len(order):
            misses.append(100.0)
            alarms.append(0.0)
            continue
        score = score_spikes(
            _centred(times, units, true)[order], units[order], *true, tolerance=WITHIN, min_agreement=0.01
        )
        misses.append(round(100 * float(1 - np.mean(score.recall)), 3))
        alarms.append(round(100 * float(1 - np.mean(score.precision)), 3))
    return {"misses": misses, "alarms": alarms}


def _centred(times, units, true):
    """Return times moved by one lag for each unit, its commonest: an atom may lie off in its window, and so a peak."""
    moved, order = times.copy(), np.sort(true[0])
    for unit in np.unique(units):
        own = times[units == unit]
        at = np.clip(np.searchsorted(order, own), 1, len(order) - 1)
        lags = np.concatenate([order[at] - own, order[at - 1] - own])
        lags = lags[abs(lags) <= LENGTH]
        if len(lags):
            counts = np.convolve(np.bincount(lags + LENGTH, minlength=2 * LENGTH + 1), np.ones(5), "same")
            moved[units == unit] += int(counts.argmax()) - LENGTH
    return moved


def _best(result):
    """Return the least mean of misses and false alarms on a curve, %."""
    return float(min((m + a) / 2 for m, a in zip(result["misses"], result["alarms"], strict=True)))


def _misses_at(result, alarms):
    """Return the least misses at no more than so many false alarms, %."""
    return min((m for m, a in zip(result["misses"], result["alarms"], strict=True) if a <= alarms), default=100.0)


def _levels(found):
    """Return the levels that were computed, the easiest first."""
    return sorted({level for _, level in found}, reverse=True)


def tables(rows):
    lines, found = [], groups(rows, "method", "level")
    for method, templates in METHODS.items():
        of = [found[method, level] for level in LEVELS if (method, level) in found]
        lines.append(
            [method, templates, *(drawing.spread([_best(r) for r in rs], 1) for rs in of),
             *(drawing.spread([_misses_at(r, 3.1) for r in rs], 1) for rs in of[1:2] or of)]
        )  # fmt: skip
    levels = _levels(found)
    head = ["method", "templates", *(f"errors at level {level}, %" for level in levels),
            f"misses at 3.1 % false alarms, level {levels[min(1, len(levels) - 1)]}"]  # fmt: skip
    return {"spikes": drawing.table(head, lines)}


def draw(rows, folder):
    found = groups(rows, "method", "level")
    levels = _levels(found)
    figure, axes = drawing.panels(len(levels), width=7.2, height=3.4, sharey=True)
    for axis, level in zip(axes, levels, strict=True):
        for number, method in enumerate(METHODS):
            curves = found[method, level]
            misses, alarms = (np.maximum(np.median([r[name] for r in curves], axis=0), 0.3) for name in NAMES)
            axis.plot(alarms, misses, STYLES[number], color=drawing.COLOURS[number % len(drawing.COLOURS)],
                      label=method if axis is axes[0] else None)  # fmt: skip
        axis.set(xscale="log", yscale="log", xlim=(0.3, 100), ylim=(0.3, 100), xlabel="false alarms (%)")
        axis.set_title(f"amplitude / sigma = {level}")
    axes[0].set_ylabel("true misses (%)")
    figure.legend(loc="outside lower center", ncols=2)
    drawing.save(figure, folder, "spikes")
    _draw_templates(rows, folder)


def _draw_templates(rows, folder):
    """Draw each unit's spikes in the noisy recording, where learning began, and what it learned."""
    from emdl.metrics import atom_error

    learned = next(
        (r["atoms"] for c, r in rows if r.get("atoms") and c["method"].startswith("EM, perturbed")), None
    )  # fmt: skip
    if learned is None:
        return
    sim = recording(0, LEVELS[1])
    D, start, ms = np.array(learned), data.perturbed(sim.D, 0), np.arange(LENGTH) / FS * 1000
    match = atom_error(D, sim.D)
    figure, axes = drawing.panels(UNITS, width=7.2, sharey=True)
    for k, axis in enumerate(axes):
        signal, time = np.nonzero(sim.z[:, k])
        for s, t in list(zip(signal, time, strict=True))[:60]:
            axis.plot(ms, sim.y[s, 0, t : t + LENGTH], color="0.8", linewidth=0.4, zorder=0)
        axis.plot(ms, start[k, 0], "--", color=drawing.COLOURS[4], label="start")
        own = int(match.permutation[k])
        axis.plot(ms, D[own, 0], color=drawing.COLOURS[0], label="learned")
        axis.plot(ms, sim.D[k, 0], ":", color="k", label="truth")
        axis.set(xlabel="time (ms)", title=f"unit {k}: error {match.errors[k]:.3f}")
    axes[0].set_ylabel("amplitude (unit norm = 1)")
    axes[0].legend()
    drawing.save(figure, folder, "spikes-templates")
