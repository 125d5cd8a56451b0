"""What a GPU does with emdl: times, and achieved bandwidth and FLOP/s against the two limits of the device.

python benchmarks/run.py --suite gpu              all cases; leaves gpu.json, the one file to send back
python benchmarks/run.py --suite gpu --quick      small sizes
python benchmarks/run.py --suite gpu --tests      run ``pytest -m gpu`` too, and put its result into the file

The limits are measured: bandwidth by copying, FLOP/s by the library's matrix product in the same precision (float32
without TF32). An operation can be no faster than its smallest traffic over the one and its arithmetic over the other;
the last column says how near it comes to the slower of the two. The arithmetic counted is that of a direct sum over all
codes, so operations that skip zeros, or transform, can exceed 100 %.
"""

import argparse
import json
import math
import pathlib
import platform
import statistics
import subprocess
import sys
import time

import numpy as np

import emdl
from emdl import device, ops, simulate
from emdl._cuda.planes import direct_is_cheaper

# name: signals, channels, atoms, atom shape, signal shape, stride, density of the codes
CASES = {
    "tetrode, 64 x 1 s": (64, 4, 30, (45,), (30_000,), (1,), 0.001),
    "one channel, 256 x 1 s": (256, 1, 3, (45,), (30_000,), (1,), 0.003),
    "photographs, 16 x 512^2, 8 x 8": (16, 1, 64, (8, 8), (512, 512), (1, 1), 0.01),
    "photographs, stride 4": (64, 1, 128, (12, 12), (512, 512), (4, 4), 0.03),
    "long atoms, 8 x 300,000": (8, 1, 20, (2000,), (300_000,), (1,), 0.0005),
}
QUICK = {
    "tetrode, 2 x 0.01 s": (2, 4, 3, (15,), (300,), (1,), 0.01),
    "photographs, 1 x 24^2, 3 x 3": (1, 1, 4, (3, 3), (24, 24), (1, 1), 0.02),
    "long atoms, 1 x 3000": (1, 1, 2, (500,), (3000,), (1,), 0.002),
}


def main(arguments=None, folder=pathlib.Path()):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--tests", action="store_true", help="run pytest -m gpu too")
    parser.add_argument("--repeat", type=int, default=7, help="runs of each operation; their median counts")
    options = parser.parse_args(arguments)
    try:
        cupy = device.find_cupy()
    except device.DeviceError as error:
        print(f"no GPU to measure: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    result = measure(cupy, QUICK if options.quick else CASES, options.repeat)
    if options.tests:
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-rs"], capture_output=True, text=True, check=False
        )
        result["tests"] = {"returncode": run.returncode, "output": run.stdout[-20_000:]}
        print(run.stdout.strip().splitlines()[-1])
    (folder / "gpu.json").write_text(json.dumps(result, indent=1))
    print(f"wrote {folder / 'gpu.json'}")


def measure(cupy, cases, repeat):
    """Return the machine, the limits, and a row for each case, precision and operation; print them on the way."""
    runtime = cupy.cuda.runtime
    result = {
        "device": runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode(),
        "cuda": runtime.runtimeGetVersion(),
        "driver": runtime.driverGetVersion(),
        "cupy": cupy.__version__,
        "emdl": emdl.__version__,
        "python": platform.python_version(),
        "limits": {},
        "rows": [],
    }
    small = min(math.prod(case[4]) * case[0] for case in cases.values()) < 10_000
    for dtype in (np.float32, np.float64):
        bandwidth, flops = limits(cupy, dtype, repeat, 2**12 if small else 2**27, 64 if small else 4096)
        result["limits"][np.dtype(dtype).name] = {"bytes_per_s": bandwidth, "flop_per_s": flops}
        print(f"{result['device']}, {np.dtype(dtype).name}: {bandwidth / 1e9:.0f} GB/s, {flops / 1e12:.2f} TFLOP/s")
        print(f"{'case':34}{'operation':18}{'ms':>10}{'GB/s':>9}{'TFLOP/s':>9}{'of limit':>9}")
        for name, case in cases.items():
            for operation, seconds, moved, work in operations(cupy, case, dtype, repeat):
                share = max(moved / bandwidth, work / flops) / seconds
                result["rows"].append(
                    {
                        "case": name, "dtype": np.dtype(dtype).name, "operation": operation, "seconds": seconds,
                        "bytes": moved, "flop": work, "share_of_limit": share,
                    }
                )  # fmt: skip
                rates = f"{moved / seconds / 1e9:9.0f}{work / seconds / 1e12:9.3f}{share:9.0%}"
                print(f"{name:34}{operation:18}{1e3 * seconds:10.3f}{rates}")
    return result


def limits(cupy, dtype, repeat, size, side):
    """Return bytes per second of a copy, and operations per second of a matrix product."""
    x, a = cupy.zeros(size, dtype), cupy.ones((side, side), dtype)
    copied = timed(cupy, x.copy, repeat)
    multiplied = timed(cupy, lambda: a @ a, repeat)
    return 2 * x.nbytes / copied, 2 * side**3 / multiplied


def operations(cupy, case, dtype, repeat):
    """Yield name, seconds, smallest traffic in bytes, and arithmetic of a direct sum, of each operation."""
    n, C, K, s, S, stride, density = case
    D = simulate.waveforms(K, C, s[0], rng=0) if len(s) == 1 else np.random.default_rng(0).standard_normal((K, C, *s))
    D /= np.sqrt((D**2).sum(axis=tuple(range(1, D.ndim)), keepdims=True))
    rng = np.random.default_rng(0)
    S = tuple((a - b) // t * t + b for a, b, t in zip(S, s, stride, strict=True))
    P = tuple((a - b) // t + 1 for a, b, t in zip(S, s, stride, strict=True))
    z = rng.standard_normal((n, K, *P), np.float32) * (rng.random((n, K, *P), np.float32) < density)
    D, z = cupy.asarray(D.astype(dtype)), cupy.asarray(z.astype(dtype))
    y = ops.synthesize_full(z, D, stride)
    work = 2.0 * n * K * C * math.prod(P) * math.prod(s)
    step = 1 / emdl.lipschitz(D, stride=stride)
    way = "sums" if direct_is_cheaper(C, K, s, S, stride) else "transforms"
    run = {
        f"analyze, {way}": (lambda: ops.analyze_full(y, D, stride), y.nbytes + z.nbytes, work),
        f"synthesize, {way}": (lambda: ops.synthesize_full(z, D, stride), y.nbytes + z.nbytes, work),
        "psi": (lambda: ops.correlate_signals(z, y, s, stride), y.nbytes + z.nbytes, work),
    }
    for name, (function, moved, flop) in run.items():
        yield name, timed(cupy, function, repeat), moved, flop
    layers = 10
    unroll = lambda: emdl.unroll(y, D, 0.05, step, layers, stride=stride)  # noqa: E731
    # a layer reads and writes codes five times (synthesis, analysis; w, z before, z, w) and signals three times
    yield "layer", timed(cupy, unroll, repeat) / layers, 7 * z.nbytes + 3 * y.nbytes, 2 * work
    trace = unroll()
    back = lambda: emdl.backward(trace, z)  # noqa: E731
    yield "layer, backward", timed(cupy, back, repeat) / layers, 12 * z.nbytes + 6 * y.nbytes, 5 * work
    lmbd = 0.2 * float(abs(ops.analyze_full(y, D, stride)).max())
    began = time.perf_counter()
    emdl.encode(y, D, lmbd, tol=1e-3, stride=stride)
    yield "encode to 1e-3", time.perf_counter() - began, y.nbytes + z.nbytes, 2 * work


def timed(cupy, function, repeat):
    """Return the median time of a call, s; the first, which compiles, does not count."""
    seconds = []
    for _ in range(repeat + 1):
        cupy.cuda.Device().synchronize()
        began = time.perf_counter()
        function()
        cupy.cuda.Device().synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
