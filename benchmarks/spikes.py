"""Spike sorting: emdl beside the sorters that SpikeInterface runs, on simulated recordings with known spikes.

python benchmarks/run.py --suite spikes                          all tables that are not stored yet, and the figures
python benchmarks/run.py --suite spikes --quick                  seed 0, emdl and the quick peers
python benchmarks/run.py --suite spikes --only tetrode           one of the parts: tetrode, curve, streaming, wide
python benchmarks/run.py --suite spikes --sorters emdl --seeds 3 --again

Every result is one cell of ``spikes.json`` and is not measured again unless ``--again`` says so; so a run that was
ended goes on where it was. Recordings are made once and kept in a cache folder (``--cache``). Needs SpikeInterface;
sorters that are not installed are named and left out.

The tetrode: 60 s, 4 contacts, 8 units of 10 Hz, white noise of 10 uV, peak SNR of the units spread evenly over 8 to 20
(easy), 5 to 12 (medium), 3.5 to 8 (hard). Scores are those of SpikeInterface's comparison with the truth (0.4 ms,
Hungarian), means over the true units.
"""

import argparse
import contextlib
import functools
import io
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

import numpy as np

LEVELS = {"easy": (8.0, 20.0), "medium": (5.0, 12.0), "hard": (3.5, 8.0)}
NOISE = 10.0  # uV
FS, SECONDS, UNITS = 30000.0, 60.0, 8
PARTS = ("tetrode", "curve", "streaming", "wide")
WIDE = (32, 64)  # channels of the recordings of 50 units
PEERS = ("simple", "spykingcircus2", "tridesclous2", "mountainsort5")
SORTERS = ("emdl", "naive", "oracle", *PEERS)
DEFAULT_CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "emdl-benchmarks"


# ---- recordings ------------------------------------------------------------------------------------------------------


def make_tetrode(level, seed):
    """Return a simulated recording (SpikeInterface) with its truth, templates (K, s, C) and peak SNRs (K,)."""
    import probeinterface
    import spikeinterface.full as si

    probe = probeinterface.generate_tetrode()
    probe.set_device_channel_indices(np.arange(4))
    common = {
        "durations": [SECONDS], "sampling_frequency": FS, "num_channels": 4, "probe": probe, "seed": seed,
        "noise_kwargs": {"noise_levels": NOISE, "strategy": "tile_pregenerated"}, "ms_before": 1.0, "ms_after": 3.0,
    }  # fmt: skip
    recording, truth = si.generate_ground_truth_recording(
        **common,
        num_units=UNITS,
        generate_sorting_kwargs={"firing_rates": 10.0, "refractory_period_ms": 3.0},
        generate_unit_locations_kwargs={
            "margin_um": 15.0,
            "minimum_z": 5.0,
            "maximum_z": 40.0,
            "minimum_distance": 8.0,
        },
    )
    templates = np.array(recording.templates, dtype="float32", copy=True)
    snr = np.random.default_rng(seed).permutation(np.linspace(*LEVELS[level], UNITS))
    templates *= (snr * NOISE / np.abs(templates).max(axis=(1, 2)))[:, None, None]
    recording, truth = si.generate_ground_truth_recording(templates=templates, sorting=truth, **common)
    return recording, truth, templates, snr


def stored(cache, level, seed):
    """Return the folder of a recording and its truth; it is made where it is not there yet."""
    folder = cache / f"tetrode_{level}_{seed}"
    if not (folder / "truth.npz").is_file():
        recording, truth, templates, snr = make_tetrode(level, seed)
        with contextlib.redirect_stdout(io.StringIO()):
            recording.save(folder=folder / "raw", overwrite=True, progress_bar=False)
        spikes = truth.to_spike_vector()
        np.savez(
            folder / "truth.npz", sample=spikes["sample_index"], unit=spikes["unit_index"], templates=templates, snr=snr
        )
    return folder


def load(folder):
    """Return the recording, the truth as a sorting, and the arrays of the truth."""
    import spikeinterface.full as si

    with np.load(folder / "truth.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    return si.load(folder / "raw"), as_sorting(arrays["sample"], arrays["unit"]), arrays


def as_sorting(sample, unit, fs=FS):
    """Return spikes as a sorting of SpikeInterface."""
    from spikeinterface.core import NumpySorting

    return NumpySorting.from_samples_and_labels([np.asarray(sample)], [np.asarray(unit)], fs)


# ---- sorters: functions of (recording, arrays) to (sample, unit, details) ------


def samples_of(recording):
    """Return the samples of a stored recording, (C, N), memory-mapped."""
    return recording.get_traces(return_in_uV=False).T


def run_emdl(recording, arrays):
    """Learn and detect with default settings; kernels are compiled before."""
    from emdl import spikes
    from emdl.simulate import tetrode

    warm = tetrode(4.0, 2, rng=0)
    spikes.detect(warm.data, spikes.fit(warm.data, warm.fs))
    begun = time.perf_counter()
    data = np.ascontiguousarray(samples_of(recording))
    model = spikes.fit(data, FS)
    learned = time.perf_counter()
    found = spikes.detect(data, model)
    return found.sample, found.unit, {"fit_s": learned - begun, "detect_s": time.perf_counter() - learned}


def filtered(recording):
    import spikeinterface.full as si

    return si.bandpass_filter(recording, freq_min=300.0, freq_max=6000.0).get_traces().astype(np.float32)


def run_naive(recording, arrays, threshold=5.0):
    """Threshold, principal components, k-means with the number of units given: what a student writes first."""
    from scipy.signal import find_peaks
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    x = filtered(recording)
    noise = np.median(np.abs(x - np.median(x, axis=0)), axis=0) / 0.6745
    at, _ = find_peaks(-(x / noise).min(axis=1), height=threshold, distance=round(0.0005 * FS))
    at = at[(at > 20) & (at < len(x) - 40)]
    pieces = x[at[:, None] + np.arange(-20, 40)].reshape(len(at), -1)
    unit = KMeans(len(arrays["snr"]), n_init=5, random_state=0).fit_predict(
        PCA(12, random_state=0).fit_transform(pieces)
    )
    return at, unit, {}


def run_oracle(recording, arrays, share=0.4):
    """Greedy matching with the true templates, one amplitude for each spike: the ceiling of template matching.

    `share` of 20 times the noise power, the least gain in energy, is the threshold.
    """
    from scipy import signal

    x = filtered(recording).copy()
    sos = signal.butter(5, [300, 6000], "bandpass", fs=FS, output="sos")
    H = signal.sosfiltfilt(sos, np.pad(arrays["templates"], ((0, 0), (60, 60), (0, 0))), axis=1)
    H = H.astype(np.float32)[:, 40:-60]
    length, energy = H.shape[1], (H**2).sum(axis=(1, 2))
    found = []
    for _ in range(12):
        C = np.stack([sum(signal.fftconvolve(x[:, c], h[::-1, c], "valid") for c in range(x.shape[1])) for h in H])
        gain = C**2 / energy[:, None]
        scaled = C / energy[:, None]
        gain[(scaled < 0.5) | (scaled > 1.6)] = 0
        best = gain.max(axis=0)
        at, _ = signal.find_peaks(best, height=20.0 * NOISE**2 * share, distance=length)
        if len(at) == 0:
            break
        unit = gain[:, at].argmax(axis=0)
        for t, k in zip(at, unit, strict=True):
            x[t : t + length] -= C[k, t] / energy[k] * H[k]
        found.append((at + 50, unit))
    sample, unit = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return sample, unit, {}


def run_peer(name, **changed):
    """Return what runs a sorter of SpikeInterface with its default settings, but for those that are changed."""

    def run(recording, arrays):
        import spikeinterface.full as si

        more = changed | ({"whitening_seed": 0} if name == "mountainsort5" else {})
        with tempfile.TemporaryDirectory(prefix="emdl-bench-") as scratch, contextlib.redirect_stdout(io.StringIO()):
            sorting = si.run_sorter(name, recording, folder=f"{scratch}/out", verbose=False, **more)
            spikes = sorting.to_spike_vector()
            return spikes["sample_index"].copy(), spikes["unit_index"].copy(), {}

    return run


USER = {"emdl": run_emdl, "naive": run_naive, "oracle": run_oracle}


# ---- scores ----------------------------------------------------------------------------------------------------------


def scores(truth, sample, unit, arrays):
    """Return SpikeInterface's scores of found spikes, and those of spikes that overlap."""
    import spikeinterface.full as si

    order = np.argsort(sample, kind="stable")
    sample, unit = np.asarray(sample)[order], np.asarray(unit)[order]
    compared = si.compare_sorter_to_ground_truth(truth, as_sorting(sample, unit), exhaustive_gt=True)
    table = compared.get_performance().astype(float)
    mean, rising = table.mean(), np.argsort(arrays["snr"])
    return {
        "accuracy": mean.accuracy, "recall": mean.recall, "precision": mean.precision, "n_found": len(np.unique(unit)),
        "well_detected": int(compared.count_well_detected_units(0.8)),
        "accuracy_by_rising_snr": np.round(table.accuracy.to_numpy()[rising], 3).tolist(),
        "overlaps": overlap_recall(arrays, sample, unit, compared),
    }  # fmt: skip


def overlap_recall(arrays, sample, unit, compared, nearest_ms=0.5, tolerance=12):
    """Return the share of true spikes with another unit's spike within 0.5 ms that their matched unit found."""
    time, label = arrays["sample"].astype(int), arrays["unit"].astype(int)
    order = np.argsort(time, kind="stable")
    time, label = time[order], label[order]
    beside = np.diff(time) <= nearest_ms / 1000 * FS
    overlapped = np.append(beside, False) | np.append(False, beside)
    hits = []
    for k, partner in compared.hungarian_match_12.items():
        own = np.flatnonzero((label == k) & overlapped)
        there = np.sort(sample[unit == partner]) if partner != -1 else np.zeros(0, int)
        if len(there) == 0:
            hits.append(np.zeros(len(own), bool))
            continue
        near = np.clip(np.searchsorted(there, time[own])[:, None] + (-1, 0), 0, len(there) - 1)
        hits.append(np.abs(there[near] - time[own][:, None]).min(axis=1) <= tolerance)
    return float(np.concatenate(hits).mean())


# ---- cells -----------------------------------------------------------------------------------------------------------


class Store:
    """Results by name, kept in a JSON file."""

    def __init__(self, path, again=False):
        self.path, self.again, self.made = path, again, set()
        self.cells = json.loads(path.read_text()) if path.is_file() else {}

    def cell(self, name, make):
        """Return a stored result, or make, store and print it."""
        if name not in self.cells or (self.again and name not in self.made):
            self.made.add(name)
            value = make()
            if value is None:
                return None
            held = json.loads(self.path.read_text()) if self.path.is_file() else {}
            self.cells = held | {name: value}
            part = self.path.with_suffix(".part")
            part.write_text(json.dumps(self.cells, indent=1))
            part.replace(self.path)
            print(name, json.dumps(value), flush=True)
        return self.cells[name]


def sorted_cell(sorter, level, seed, cache):
    """Return scores and seconds of one sorter on one recording; None where it cannot run."""
    recording, truth, arrays = load(stored(cache, level, seed))
    run = USER.get(sorter) or run_peer(sorter)
    wall, used = time.perf_counter(), processor_seconds()
    try:
        sample, unit, more = run(recording, arrays)
    except Exception as error:  # noqa: BLE001  (whatever a peer raises, the others go on)
        print(f"{sorter} {level} {seed}: {type(error).__name__}: {str(error).strip().splitlines()[-1:]}", flush=True)
        return None
    wall, used = time.perf_counter() - wall, processor_seconds() - used
    if sorter == "emdl":
        wall = more["fit_s"] + more["detect_s"]
    row = {"seconds": wall, "processor_s": used, **more, "load": os.getloadavg()[0]}
    return {
        k: round(v, 4) if isinstance(v, float) else v for k, v in (scores(truth, sample, unit, arrays) | row).items()
    }


def processor_seconds():
    """Return processor seconds of this process and its children that have ended."""
    return sum(
        r.ru_utime + r.ru_stime for r in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def tetrode(store, options):
    """Measure all sorters on all recordings."""
    for seed in options.seeds:
        for sorter in options.sorters:
            for level in LEVELS:
                make = functools.partial(sorted_cell, sorter, level, seed, options.cache)
                store.cell(f"tetrode {sorter} {level} {seed}", make)
    for what in ("accuracy", "overlaps", "seconds", "processor_s"):
        print(f"\n{what}: median over the seeds (lowest)\n| sorter | " + " | ".join(LEVELS) + " |\n|---|---|---|---|")
        for sorter in SORTERS:
            rows = {
                level: [
                    c[what] for name, c in store.cells.items() if name.rsplit(" ", 1)[0] == f"tetrode {sorter} {level}"
                ]
                for level in LEVELS
            }
            if any(rows.values()):
                texts = [f"{statistics.median(v):.3f} ({min(v):.3f}), {len(v)}" if v else "" for v in rows.values()]
                print(f"| {sorter} | " + " | ".join(texts) + " |")


# ---- the error curve -------------------------------------------------------------------------------------------------


def curve(store, options):
    """Measure misses against false alarms as the threshold moves, on the first seed, and draw them."""
    seed = options.seeds[0]
    for level in LEVELS:
        store.cell(f"curve emdl {level} {seed}", functools.partial(emdl_curve, level, seed, options.cache))
        store.cell(f"curve naive {level} {seed}", functools.partial(naive_curve, level, seed, options.cache))
        store.cell(f"curve spykingcircus2 {level} {seed}", functools.partial(peer_curve, level, seed, options.cache))
    draw_curves(store, seed)


def errors_of(truth, sample, unit):
    """Return misses over true spikes and false alarms over found ones, in per cent, means over the true units."""
    import spikeinterface.full as si

    order = np.argsort(sample, kind="stable")
    compared = si.compare_sorter_to_ground_truth(
        truth, as_sorting(np.asarray(sample)[order], np.asarray(unit)[order]), exhaustive_gt=True
    )
    mean = compared.get_performance().astype(float).mean()
    return [round(100 * float(1 - mean.recall), 2), round(100 * float(1 - mean.precision), 2)]


def emdl_curve(level, seed, cache):
    """Return (log odds, misses, false alarms): spikes decided with log odds that these are taken from."""
    from dataclasses import replace

    from emdl import spikes
    from emdl.spikes import decision
    from emdl.spikes.whitening import whiten

    recording, truth, _ = load(stored(cache, level, seed))
    data = np.ascontiguousarray(samples_of(recording))
    path = cache / f"model_{level}_{seed}.h5"
    if not path.is_file():
        spikes.fit(data, FS).save(path)
    model = spikes.load(path)
    x, rows = whiten(data, model.whitening), []
    for least in (-11, -7, -3, 0, 3, 7, 15, 30, 60, 100, 150, 200):
        units = replace(model.units, rate=1 / (1 + np.exp(least - model.units.logit)))
        events, _ = decision.decide(x, units, model.duration_unit, density=model.whitening.density)
        events = events.take(events.unit < model.n_units)
        rows.append([float(least), *errors_of(truth, events.time + model.peak[events.unit], events.unit)])
    return rows


def naive_curve(level, seed, cache):
    """Return (threshold, misses, false alarms) of threshold, principal components and k-means."""
    recording, truth, arrays = load(stored(cache, level, seed))
    return [
        [threshold, *errors_of(truth, *run_naive(recording, arrays, threshold)[:2])] for threshold in (3.5, 4, 5, 6, 8)
    ]


def peer_curve(level, seed, cache):
    """Return (threshold, misses, false alarms) of spykingcircus2, the best of the peers; 5 is its default."""
    recording, truth, arrays = load(stored(cache, level, seed))
    detection = {"method": "matched_filtering", "pipeline_kwargs": {}}
    rows = []
    for threshold in (3.5, 5, 7, 10):
        given = detection | {"method_kwargs": {"peak_sign": "neg", "detect_threshold": threshold}}
        rows.append([threshold, *errors_of(truth, *run_peer("spykingcircus2", detection=given)(recording, arrays)[:2])])
    return rows


def draw_curves(store, seed):
    """Draw what is stored: curves of emdl, its best peer and k-means, points of the others at their defaults."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(LEVELS), figsize=(11, 3.8), sharex=True, sharey=True, layout="constrained")
    for axis, (level, snr) in zip(axes, LEVELS.items(), strict=True):
        drawn = {"emdl": ("emdl", "C3"), "naive": ("threshold + PCA + k-means", "0.5")}
        for name, (label, colour) in (drawn | {"spykingcircus2": ("spykingcircus2", "C0")}).items():
            if f"curve {name} {level} {seed}" not in store.cells:
                continue
            _, missed, false = np.array(store.cells[f"curve {name} {level} {seed}"]).T
            axis.plot(np.maximum(false, 0.05), np.maximum(missed, 0.05), ".-", color=colour, label=label)
        colours = {"emdl": "C3", "oracle": "k", "naive": "0.5", "mountainsort5": "C4", "simple": "C2"}
        labels = {"oracle": "true templates, greedy", "naive": "threshold + PCA + k-means"}
        for name, marker in zip(("emdl", "oracle", "naive", *PEERS), ".*xos^v", strict=True):
            cell = store.cells.get(f"tetrode {name} {level} {seed}")
            if cell and f"curve {name} {level} {seed}" not in store.cells:
                x, y = 100 * (1 - cell["precision"]), 100 * (1 - cell["recall"])
                axis.plot(x, y, marker, color=colours.get(name), label=labels.get(name, name))
        axis.set(xscale="log", yscale="log", title=f"{level}: SNR {snr[0]:g} to {snr[1]:g}", xlabel="false alarms, %")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("true misses, %")
    axes[1].legend(fontsize=8)
    figure.savefig(store.path.with_name("spikes_curve.png"), dpi=130)
    print("drawn:", store.path.with_name("spikes_curve.png"))


# ---- long and wide recordings ----------------------------------------------------------------------------------------


def streaming(store, options):
    """Measure time and memory of the search of ten minutes and of an hour of a tetrode, from a memory-mapped file."""
    from emdl import spikes

    recording, _, _ = load(stored(options.cache, "medium", 0))
    path = options.cache / "model_medium_0.h5"
    data = np.ascontiguousarray(samples_of(recording))
    if not path.is_file():
        spikes.fit(data, FS).save(path)
    for minutes in (10, 60):
        store.cell(f"streaming {minutes} min", functools.partial(streamed, data, path, minutes, options.cache))


_STREAM = """
import re, sys, time
import numpy as np
from emdl import spikes
peak = 0
def look(state):
    global peak
    peak = max(peak, int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read()).group(1)))
model = spikes.load(sys.argv[1])
data = np.memmap(sys.argv[2], np.int16, "r").reshape(-1, 4).T
spikes.detect(data[:, :200000], model)
wall, used = time.perf_counter(), time.process_time()
n = len(spikes.detect(data, model, progress=look))
print(n, peak / 1024, time.perf_counter() - wall, time.process_time() - used)
"""


def streamed(data, model, minutes, cache):
    """Return what a fresh process needs for a file that repeats a minute of tetrode."""
    path = cache / f"tetrode_{minutes}min.dat"
    if not path.is_file():
        x = np.round(data.T).astype(np.int16).tobytes()
        with path.open("wb") as file:
            for _ in range(minutes):
                file.write(x)
    code = _STREAM.replace("\\\\", "\\")
    out = subprocess.run([sys.executable, "-c", code, model, path], capture_output=True, text=True, check=True).stdout
    n, mib, wall, used = map(float, out.split())
    path.unlink()
    return {"n_spikes": int(n), "anonymous_mib": mib, "seconds": wall, "processor_s": used, "load": os.getloadavg()[0]}


def wide(store, options):
    """Measure learning and search of ten minutes of 50 units on 32 and 64 channels."""
    for channels in WIDE:
        store.cell(f"wide {channels}", functools.partial(on_many_channels, channels, options.cache))


def make_wide(channels, folder, seconds=600, units=50):
    """Write a simulated recording of many channels as int16, a quarter uV each, with its truth."""
    import spikeinterface.full as si

    recording, truth = si.generate_ground_truth_recording(
        durations=[seconds], sampling_frequency=FS, num_channels=channels, num_units=units, seed=0,
        generate_sorting_kwargs={"firing_rates": (2.0, 15.0), "refractory_period_ms": 3.0}, ms_before=1.0, ms_after=3.0,
        noise_kwargs={"noise_levels": NOISE, "strategy": "tile_pregenerated"},
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    n, step = round(seconds * FS), round(10 * FS)
    file = np.memmap(folder / "x.dat", np.int16, "w+", shape=(n, channels))
    for a in range(0, n, step):
        part = recording.get_traces(start_frame=a, end_frame=min(n, a + step))
        file[a : a + step] = np.clip(np.round(4 * part), -32000, 32000)
    file.flush()
    spikes = truth.to_spike_vector()
    np.savez(
        folder / "truth.npz", sample=spikes["sample_index"], unit=spikes["unit_index"],
        snr=np.abs(recording.templates).max(axis=(1, 2)) / NOISE, positions=recording.get_channel_locations(),
    )  # fmt: skip


_WIDE = """
import json, resource, sys, time
import numpy as np
from emdl import metrics, spikes
folder, channels = sys.argv[1], int(sys.argv[2])
truth = np.load(folder + "/truth.npz")
x = np.memmap(folder + "/x.dat", np.int16, "r").reshape(-1, channels).T
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
clock = lambda: (time.perf_counter(), time.process_time())
begun = clock()
model = spikes.fit(x, 30000.0, positions=truth["positions"])
learned, fit_mib = clock(), peak()
found = spikes.detect(x, model)
done = clock()
scores = metrics.compare_sortings(found, (truth["sample"], truth["unit"]), fs=30000.0, delta_ms=0.4)
snr = truth["snr"][np.array(scores.true_units, int)]
within = [(a, b, (snr >= a) & (snr < b)) for a, b in ((0, 4), (4, 8), (8, 12), (12, 1000))]
print(json.dumps({
    "fit_s": learned[0] - begun[0], "fit_processor_s": learned[1] - begun[1], "fit_mib": fit_mib,
    "detect_s": done[0] - learned[0], "detect_processor_s": done[1] - learned[1], "mib": peak(),
    "n_units": model.n_units, "n_spikes": len(found), "converged": model.converged,
    "good_by_snr": {f"{a} to {b}": [int((scores.accuracy[m] > 0.8).sum()), int(m.sum())] for a, b, m in within},
    "channels_of_a_unit": float((model.units.D != 0).any(axis=2).sum(axis=1).mean()),
}))
"""


def on_many_channels(channels, cache):
    """Return what a fresh process needs to learn and search, and how well it does."""
    folder = cache / f"wide_{channels}"
    if not (folder / "truth.npz").is_file():
        make_wide(channels, folder)
    given = [sys.executable, "-c", _WIDE, str(folder), str(channels)]
    out = subprocess.run(given, capture_output=True, text=True, check=True).stdout
    return json.loads(out.splitlines()[-1]) | {"load": os.getloadavg()[0]}


def main(arguments, folder):
    """Measure what is asked for and not stored, and print the tables."""
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description="Spike sorting beside peers.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--sorters", nargs="+", default=SORTERS)
    parser.add_argument("--seeds", nargs="+", type=int, default=range(5))
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--cache", type=pathlib.Path, default=DEFAULT_CACHE)
    options = parser.parse_args(arguments)
    options.cache.mkdir(parents=True, exist_ok=True)
    if options.quick:
        options.seeds, options.sorters = [0], ["emdl", "naive", "simple", "spykingcircus2"]
    print(platform.platform(), os.cpu_count(), "processors, load", os.getloadavg())
    store = Store(folder / "spikes.json", options.again)
    for part in options.only:
        globals()[part](store, options)
