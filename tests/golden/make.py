"""Keep what the jobs of `jobs.py` give, after a change that was meant to change results.

    python tests/golden/make.py          results anew; the bits of other machines are forgotten, since they are old
    python tests/golden/make.py --add    only the bits of this machine, after holding its results to the kept ones
    python tests/golden/make.py --show   how far the results are from the kept ones, 1 at the bound

Results are compared bit for bit where `machine` says the same as where they were made: the processor that kernels are
compiled for and the versions of everything that adds numbers up. Elsewhere they are held to bounds.
"""

import argparse
import hashlib
import json
import pathlib
import platform
import sys
import tempfile

import llvmlite.binding
import numba
import numpy as np
import scipy.linalg  # which loads a BLAS of its own
import threadpoolctl

FOLDER = pathlib.Path(__file__).resolve().parent
BITS = FOLDER / "bits.json"


def machine():
    """Return what the bits of a result may depend on, by name."""
    blas = [
        f"{library['internal_api']} {library.get('version')} {library.get('architecture', '')}".strip()
        for library in threadpoolctl.threadpool_info()
        if library["user_api"] == "blas" and {"numpy.libs", "scipy.libs"} & set(pathlib.Path(library["filepath"]).parts)
    ]
    features = numba.config.CPU_FEATURES or llvmlite.binding.get_host_cpu_features().flatten()
    return {
        "system": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}".strip(),
        "processor": numba.config.CPU_NAME or llvmlite.binding.get_host_cpu_name(),
        "features": hashlib.sha256(features.encode()).hexdigest()[:16],
        "BLAS": sorted(set(blas)),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "numba": numba.__version__,
        "llvmlite": llvmlite.__version__,
    }


def run(job, folder=None):
    """Return the results of a job, made in a folder that is new unless it is given."""
    with tempfile.TemporaryDirectory(prefix="emdl-golden-") as new:
        return jobs.JOBS[job][0](pathlib.Path(folder or new))


def digest(array):
    """Return a short name of the bits of an array, its dtype and its shape."""
    array = np.asarray(array)
    head = f"{array.dtype.str} {array.shape} "
    return hashlib.sha256(head.encode() + np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def digests(results):
    """Return `digest` of each result of a job."""
    return {name: digest(array) for name, array in results.items()}


def kept(job):
    """Return the results of a job that are kept."""
    with np.load(FOLDER / f"{job}.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def kept_bits():
    """Return digests by job and result where they were made on a machine like this one, else None."""
    here = machine()
    for record in json.loads(BITS.read_text()):
        if record["machine"] == here:
            return record["bits"]
    return None


def distances(job, results, kept):
    """Return how far each result of a job is from the one that is kept, 1 at the bound."""
    _, measures = jobs.JOBS[job]
    if set(results) != set(measures):
        raise KeyError(f"{job} gives {sorted(results)}, but there are bounds for {sorted(measures)}")
    return {
        name: measure.far(measure.keep(results[name]), kept[name])
        for name, measure in measures.items()
        if not isinstance(measure, jobs.Bits)
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--add", action="store_true", help="add the bits of this machine")
    parser.add_argument("--show", action="store_true", help="show how far the results are, and write nothing")
    given = parser.parse_args()
    records, bits = json.loads(BITS.read_text()) if BITS.exists() else [], {}
    for job, (_, measures) in jobs.JOBS.items():
        results = run(job)
        bits[job] = digests(results)
        if given.add or given.show:
            far = distances(job, results, kept(job))
            print(f"{job:15s}", ", ".join(f"{name} {value:.2g}" for name, value in far.items()))
            if given.add and not max(far.values()) <= 1:
                sys.exit(f"the results of {job} are not those that are kept")
            continue
        arrays = {name: measure.keep(results[name]) for name, measure in measures.items()}
        np.savez_compressed(FOLDER / f"{job}.npz", **{name: x for name, x in arrays.items() if x is not None})
    if given.show:
        before = kept_bits()
        print("bits:", "of no machine like this one" if before is None else "the same" if before == bits else "others")
        return
    here = machine()
    others = [record for record in records if given.add and record["machine"] != here]
    BITS.write_text(json.dumps([*others, {"machine": here, "bits": bits}], indent=1) + "\n")


sys.path.insert(0, str(FOLDER.parent))
from golden import jobs  # noqa: E402

if __name__ == "__main__":
    main()
