"""EM on workers of Dask: speed beside threads, what goes over the network, and a thousand workers by simulation.

    python benchmarks/scale.py speed      two workers beside two threads of one process, at several sizes
    python benchmarks/scale.py traffic    bytes that all processes send, per iteration, at several lengths
    python benchmarks/scale.py tree       iterations of up to 4,000 workers, simulated from measured times
    python benchmarks/scale.py plot       the picture, from what was measured last

Each adds its numbers to results/scale.json beside this file. Signals lie in a temporary folder.
"""

import argparse
import json
import os
import pathlib
import tempfile
import time

import numpy as np

from emdl import cluster, em_fit, mstep, parts
from emdl.backend import one_thread
from emdl.ops import synthesize
from emdl.optim import normalize_atoms
from emdl.simulate import convolutional, waveforms

HERE = pathlib.Path(__file__).resolve().parent
RESULTS = HERE / "results" / "scale.json"
ATOMS, LENGTH, BLOCK = 3, 45, 1 << 20
ITERATIONS, FIRST = 9, 3  # iterations before the third are the cold ones
BANDWIDTH, LATENCY = 1.25e9, 1e-4  # bytes/s and s of a message: 10 Gbit/s Ethernet


def signal(path, megabytes, dictionary):
    """Write a signal of float32 to a file: one block of events again and again, under noise of its own."""
    made = convolutional(1, BLOCK, dictionary, density=0.002, snr_db=10, positive=True, rng=1)
    blocks, rng = max(1, round(megabytes * 1e6 / 4 / BLOCK)), np.random.default_rng(2)
    y = np.lib.format.open_memmap(path, "w+", np.float32, (1, 1, blocks * BLOCK))
    for i in range(blocks):
        noise = made.sigma * rng.standard_normal(BLOCK, dtype=np.float32)
        y[0, 0, i * BLOCK : (i + 1) * BLOCK] = made.clean[0, 0] + noise
    y.flush()
    return made.sigma


def start(dictionary, sigma, iterations=ITERATIONS):
    """Return arguments of a fit whose every iteration is an E-step and the exact dictionary step."""
    noise = np.random.default_rng(0).standard_normal(dictionary.shape)
    D0 = (dictionary + 0.02 * noise).astype(np.float32)
    return {"n_atoms": ATOMS, "atom_shape": LENGTH, "D0": D0, "sigma": sigma, "positive": True, "learn_lmbd": False,
            "max_iter": iterations, "tol": 0.0, "rng": 0}  # fmt: skip


def speed(sizes, repeats):
    """Return seconds of an iteration of two threads, of two workers, and of the signal as one part."""
    from distributed import Client, LocalCluster

    dictionary, rows = waveforms(ATOMS, 1, LENGTH, rng=0), []
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as local,
        Client(local) as client,
    ):
        for megabytes in sizes:
            path = pathlib.Path(folder) / "y.npy"
            arguments = start(dictionary, signal(path, megabytes, dictionary))
            y, found = np.load(path, mmap_mode="r"), {"threads": [], "workers": [], "one part": []}
            for _ in range(repeats):
                one, near = timed(np.asarray(y), arguments)
                far, away = timed(y, arguments, client)
                assert np.array_equal(one.model.D, far.model.D), "workers gave other bits"
                found["threads"] += near
                found["workers"] += away
                found["one part"] += as_one_part(y, arguments)
            rows.append({"megabytes": y.nbytes / 1e6} | {n: np.min(t, axis=0).tolist() for n, t in found.items()})
            rows[-1]["ratio"], rows[-1]["processor ratio"] = ratios = [
                a / b for a, b in zip(rows[-1]["threads"], rows[-1]["workers"], strict=True)
            ]
            print(f"{y.nbytes / 1e6:6.0f} MB: least wall and processor seconds of an iteration: ", end="")
            print(", ".join(f"{n} {rows[-1][n][0]:.3f} {rows[-1][n][1]:.3f}" for n in found), end="")
            print(f"; threads / workers {ratios[0]:.2f} {ratios[1]:.2f}; load {os.getloadavg()[0]:.1f}", flush=True)
    return rows


def timed(y, arguments, client=None):
    """Return a fit, and wall and processor seconds (of all processes) of each iteration from warm codes."""
    seen = []

    def note(_):
        spent = 0.0 if client is None else sum(client.run(time.process_time).values())
        seen.append((time.perf_counter(), time.process_time() + spent))

    result = em_fit(y, client=client, callback=note, **arguments)
    return result, np.diff(seen, axis=0)[FIRST - 1 :].tolist()


def as_one_part(y, arguments):
    """Return the fit of the signal as it would be without parts."""
    whole, parts.WHOLE = parts.WHOLE, 1 << 60
    try:
        return timed(np.asarray(y), arguments)[1]
    finally:
        parts.WHOLE = whole


def count_bytes():
    """Let this process count what it sends by TCP; return what it has sent so far."""
    from distributed.comm.tcp import TCP

    if not hasattr(TCP, "sent"):
        TCP.sent, write = 0, TCP.write

        async def counted(self, *args, **kwargs):
            size = await write(self, *args, **kwargs)
            TCP.sent += size
            return size

        TCP.write = counted
    return TCP.sent


def traffic(sizes):
    """Return the bytes that client, scheduler and workers send together, per iteration."""
    from distributed import Client, LocalCluster

    count_bytes()
    dictionary, rows = waveforms(ATOMS, 1, LENGTH, rng=0), []
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as local,
        Client(local) as client,
    ):
        client.run(count_bytes)
        idle, began = sent(client), time.monotonic()
        time.sleep(5)
        idle = (sent(client) - idle) / (time.monotonic() - began)
        for megabytes in sizes:
            path, seen = pathlib.Path(folder) / "y.npy", []
            arguments = start(dictionary, signal(path, megabytes, dictionary), iterations=5)
            y = np.load(path, mmap_mode="r")

            def note(_, seen=seen):
                seen.append((sent(client), time.monotonic()))

            em_fit(y, client=client, callback=note, **arguments)
            (a, t0), (b, t1) = seen[0], seen[-1]
            n = len(seen) - 1
            rows.append({
                "megabytes": y.nbytes / 1e6, "bytes": (b - a) / n, "idle": idle * (t1 - t0) / n,
                "parts": len(parts.cut(y.shape, (LENGTH,), (1,))),
            })  # fmt: skip
            print(f"{rows[-1]['megabytes']:6.0f} MB in {rows[-1]['parts']:4} parts: {rows[-1]['bytes'] / 1e3:7.1f} kB "
                  f"per iteration, {rows[-1]['idle'] / 1e3:.1f} kB in that time at rest", flush=True)  # fmt: skip
    return rows


def sent(client):
    return count_bytes() + sum(client.run(count_bytes).values())


WORKLOADS = {  # (C, *S) of a part, K, shape of an atom, codes of a sample, number of parts
    "1,000 h of 384 channels": ((384, 6_000), 100, (60,), 1e-5, 18_000_000),
    "a million photographs": ((1, 1024, 1024), 64, (8, 8), 1e-3, 1_000_000),
    "100 GB of one channel": ((1, 1 << 20), 3, (45,), 1e-3, 23_842),
}


def measured_times():
    """Return seconds of a warm pass over a part of each workload, of a task that does nothing, and of adding a byte."""
    from distributed import Client, LocalCluster

    found = {name: warm_passes(*workload[:4]) for name, workload in WORKLOADS.items()}
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as local, Client(local) as client:
        client.gather(client.map(str, range(100), pure=False))
        began = time.process_time()
        client.gather(client.map(str, range(1000), pure=False))
        found["task"] = (time.process_time() - began) / 1000  # scheduler and client are threads of this process
    sums = [np.zeros(1 << 20), np.zeros(1 << 20)]
    began = time.process_time()
    for _ in range(20):
        parts.add(*sums)
    found["add"] = (time.process_time() - began) / 20 / sums[0].nbytes
    return found


def warm_passes(shape, n_atoms, atom, density, n_passes=4):
    """Return processor seconds of E-steps and sums of one part, from the codes of a dictionary that moves a little."""
    rng, stride = np.random.default_rng(0), (1,) * len(atom)
    D = normalize_atoms(rng.standard_normal((n_atoms, shape[0], *atom))).astype(np.float32)
    n_events = round(density * n_atoms * np.prod(shape[1:]))
    z = np.zeros((1, n_atoms, *(S - s + 1 for S, s in zip(shape[1:], atom, strict=True))), np.float32)
    z.reshape(-1)[rng.choice(z.size, n_events, replace=False)] = rng.uniform(10, 20, n_events)
    y = synthesize(z, D) + rng.standard_normal((1, *shape), dtype=np.float32)
    job = parts.Job(y, None, parts.Cuts(y.shape, atom[0], 1, 1), atom, stride, True, y.dtype)
    bench, chain, times = parts.Bench(job), parts.new_chain(), []
    for i in range(n_passes):
        step = parts.Step(D, np.full(n_atoms, 6.0 + 0.01 * i), 1e-3)
        chain = chain.then(step)
        began = time.process_time()
        with one_thread():
            bench.run(parts.Order(mstep.statistics, (D,), chain), [0])
        times.append(time.process_time() - began)
    return times[1:]


def simulate(workers, n_parts, times, sums, dictionary, measured, rng):
    """Return the seconds of one iteration: tasks sent one by one, shares of parts, the tree of sums.

    `times` are seconds of parts, `sums` and `dictionary` bytes. A worker is a thread; machines differ by 5 %.
    """
    overhead, add = measured["task"], sums / BANDWIDTH + sums * measured["add"]
    share = np.diff(np.linspace(0, n_parts, workers + 1).astype(int))
    work = rng.normal(share * np.mean(times), np.sqrt(share) * np.std(times)).clip(0) * rng.lognormal(0, 0.05, workers)
    sent_at = overhead * np.arange(1, workers + 1)
    hops = 1 if 8 * dictionary <= cluster._SMALL else np.ceil(np.log2(workers + 1))  # from worker to worker
    ready = sent_at + hops * (LATENCY + dictionary / BANDWIDTH) + work
    scheduler, nodes = sent_at[-1], ready
    while len(nodes) > cluster._FEW:
        groups = [nodes[i : i + cluster._FAN] for i in range(0, len(nodes), cluster._FAN)]
        done = []
        for last in sorted(max(group) for group in groups):
            scheduler = max(scheduler, last) + overhead * (cluster._FAN + 1)
            done.append(scheduler + LATENCY + (cluster._FAN - 1) * add)
        nodes = done
    return max(nodes) + len(nodes) * (overhead + add)


def tree():
    """Return simulated seconds of an iteration at up to 4,000 workers, for each workload."""
    measured, rng, rows = measured_times(), np.random.default_rng(0), []
    for name, (shape, K, atom, _, n_parts) in WORKLOADS.items():
        taps, lags = int(np.prod(atom)), int(np.prod([2 * s - 1 for s in atom]))
        sums, D = 8 * K * (K * lags + shape[0] * taps + 1), 4 * K * shape[0] * taps
        times = measured[name]
        print(f"{name}: {np.mean(times):.3f} s a part of {4e-6 * np.prod(shape):.1f} MB, sums {sums / 1e6:.2f} MB")
        for workers in (1, 10, 100, 1000, 4000):
            took = simulate(workers, n_parts, times, sums, D, measured, rng)
            rows.append({"workload": name, "workers": workers, "seconds": took})
            rows[-1]["efficiency"] = n_parts * float(np.mean(times)) / workers / took
            print(f"  {workers:5} threads: {took:12,.1f} s an iteration, efficiency {rows[-1]['efficiency']:.3f}")
    return {"measured": measured, "rows": rows}


def plot(found, path):
    """Draw what was measured."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "emdl", "svg.fonttype": "none"})
    fig, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    if "speed" in found:
        size = [r["megabytes"] for r in found["speed"]["rows"]]
        for name, mark in (("threads", "o-"), ("workers", "s-"), ("one part", "^:")):
            label = {"threads": "two threads", "workers": "two workers", "one part": "two threads, one part"}[name]
            axes[0].plot(size, [r[name][0] for r in found["speed"]["rows"]], mark, label=label)
        axes[0].set(xlim=(0, None), ylim=(0, None), xlabel="signal, MB", ylabel="seconds of an iteration, least",
                    title="Two workers beside two threads")  # fmt: skip
        axes[0].legend(frameon=False)
    if "traffic" in found:
        rows = found["traffic"]["rows"]
        axes[1].plot([r["megabytes"] for r in rows], [r["bytes"] / 1e3 for r in rows], "o-", label="sent")
        axes[1].plot(
            [r["megabytes"] for r in rows], [r["idle"] / 1e3 for r in rows], "o:", label="in as much time at rest"
        )
        axes[1].plot([r["megabytes"] for r in rows], [r["megabytes"] * 1e3 for r in rows], "k--", label="the signal")
        axes[1].set(xscale="log", yscale="log", xlabel="signal, MB", ylabel="kB per iteration", title="Network traffic")
        axes[1].set_xticks([r["megabytes"] for r in rows], [f"{r['megabytes']:.0f}" for r in rows], minor=False)
        axes[1].xaxis.set_minor_formatter(lambda *_: "")
        axes[1].legend(frameon=False)
    if "tree" in found:
        for name in WORKLOADS:
            rows = [r for r in found["tree"]["rows"] if r["workload"] == name]
            axes[2].plot([r["workers"] for r in rows], [r["efficiency"] for r in rows], "o-", label=name)
        axes[2].set(xscale="log", ylim=(0, 1.05), xlabel="workers", ylabel="efficiency", title="Simulated")
        axes[2].legend(frameon=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=150)
    fig.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("speed", "traffic", "tree", "plot"))
    parser.add_argument("--mb", type=float, nargs="+", help="sizes of the signal")
    parser.add_argument("--part", type=int, default=parts._PART, help="values of a part, to have many with little data")
    parser.add_argument("--repeats", type=int, default=2)
    given = parser.parse_args()
    parts._PART = given.part
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if given.what == "speed":
        found["speed"] = {"rows": speed(given.mb or [20, 50, 100, 200, 400], given.repeats)}
    elif given.what == "traffic":
        found["traffic"] = {"rows": traffic(given.mb or [20, 80, 320, 1280])}
    elif given.what == "tree":
        found["tree"] = tree()
    if given.what != "plot":
        found[given.what]["load"] = os.getloadavg()[0]
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    plot(found, HERE / "scale.png")


if __name__ == "__main__":
    main()
