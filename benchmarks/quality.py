"""How well the misses and false alarms that the model expects agree with those that the truth counts.

    python -m benchmarks.quality [--seconds 60] [--seeds 5] [--first 0] [--peak-uv 40 200] [--hybrid FILE.npz]
                                 [--out FILE.json]

Simulated tetrodes (`emdl.simulate.tetrode`, 6 units in 10 uV of noise, cosines up to 0.95), and, if
given, a real background with injected units. A unit counts if it agrees with a true one to at least 0.5.
"""

import argparse
import json

import numpy as np

from emdl import metrics, simulate, spikes
from emdl.spikes import quality


def measured(data, fs, true_samples, true_units, name):
    """Return a row per matched unit: what was expected and what was counted."""
    model = spikes.fit(data, fs, rng=0)
    found = spikes.detect(data, model)
    table = {row["unit"]: row for row in quality.assess(model, data, found)}
    scores = metrics.compare_sortings(found, (true_samples, true_units), fs=fs, delta_ms=0.5)
    rows = []
    for i in np.flatnonzero(scores.matched >= 0):
        row = table[int(scores.found_units[scores.matched[i]])]
        rows.append(
            {
                "recording": name,
                "true_unit": int(scores.true_units[i]),
                "misses": 1 - float(scores.recall[i]),
                "false_alarms": 1 - float(scores.precision[i]),
                **{k: v for k, v in row.items() if k != "unit"},
            }
        )
    return rows


def main():
    """Measure, print the table, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--peak-uv", type=float, nargs=2, default=(40.0, 200.0))
    parser.add_argument("--hybrid")
    parser.add_argument("--out")
    given = parser.parse_args()
    rows = []
    for seed in range(given.first, given.first + given.seeds):
        made = simulate.tetrode(given.seconds, 6, peak_uv=tuple(given.peak_uv), max_correlation=0.95, rng=seed)
        rows += measured(made.data, made.fs, made.spike_samples, made.spike_units, f"simulated {seed}")
    if given.hybrid:
        with np.load(given.hybrid) as held:
            rows += measured(held["data"], float(held["fs"]), held["spike_times"], held["spike_labels"], "hybrid")
    columns = ("snr", "isolation", "expected_misses", "misses", "expected_false_alarms", "false_alarms",
               "amplitude_cutoff", "contamination")  # fmt: skip
    print("recording     unit " + " ".join(f"{c[:12]:>12s}" for c in columns))
    for row in rows:
        print(f"{row['recording']:14s}{row['true_unit']:3d}  " + " ".join(f"{row[c]:12.3f}" for c in columns))
    for real, expected in (("misses", "expected_misses"), ("false_alarms", "expected_false_alarms")):
        a, b = (np.array([row[key] for row in rows]) for key in (real, expected))
        rank = np.corrcoef(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))[0, 1]
        near = np.mean(abs(a - b) < 0.05)
        print(
            f"{real}: {a.mean():.3f} counted, {b.mean():.3f} expected on average; "
            f"median error {np.median(abs(a - b)):.3f}, rank correlation {rank:.2f}, "
            f"within 0.05 for {near:.0%} of {len(rows)} units"
        )
    print("SNR: units; misses counted, expected, within 0.05; false alarms counted, expected, within 0.05")
    snr = np.array([row["snr"] for row in rows])
    for low, high in ((0, 5.5), (5.5, 8), (8, np.inf)):
        chosen = [row for row, at in zip(rows, snr, strict=True) if low <= at < high]
        if chosen:
            text = []
            for real, expected in (("misses", "expected_misses"), ("false_alarms", "expected_false_alarms")):
                a, b = (np.array([row[key] for row in chosen]) for key in (real, expected))
                text.append(f"{a.mean():.3f}, {b.mean():.3f}, {np.mean(abs(a - b) < 0.05):.0%}")
            print(f"{low:g} to {high:g}: {len(chosen)}; {'; '.join(text)}")
    if given.out:
        with open(given.out, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
