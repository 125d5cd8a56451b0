"""Memory: nothing is kept from one fit to the next, and what each command takes is what docs/reliability.md says."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from test_reliability_cli import whole  # noqa: F401 - a fixture

LEAKS = """
import gc, resource, sys
import numpy as np
from emdl import em_fit, encode, backward, unroll

y = np.random.default_rng(0).standard_normal((1, 1, 60))
D = np.random.default_rng(1).standard_normal((2, 1, 5))

def used():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

def once(m_step):
    em_fit(y, 2, 5, D0=D, sigma=1.0, max_iter=1, rng=0, m_step=m_step, n_layers=2, learn_lmbd=False)
    backward(unroll(y, D, 0.2, 0.02, 2), np.ones((1, 2, 56)))

seen = []
for number in range(int(sys.argv[1]) + 1):
    once(("analytic", "unrolled")[number % 2])
    if number % 100 == 0:
        seen.append(used())
print(*seen)
"""


@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="needs /proc")
def test_a_thousand_fits_leave_no_memory_behind():
    one = os.environ | {"NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LEAKS, "1000"], capture_output=True, text=True, timeout=300, check=True, env=one
    )
    seen = np.array(done.stdout.split(), float)
    assert len(seen) == 11
    assert seen[-1] - seen[2] < 2**20, f"resident memory after each 100 fits: {seen / 2**20} MiB"


# Peak memory

DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs" / "reliability.md"
COMMANDS = {
    "info": ["info", "model.h5"],
    "detect": ["detect", "rec.npz", "-m", "model.h5"],
    "encode": ["encode", "rec.npz", "-m", "model.h5", "-o", "{out}/codes.npz"],
    "sort": ["sort", "rec.npz", "-o", "{out}/units.npz", "--no-report"],
    "train": ["train", "rec.npz", "-o", "{out}/m.h5", "--no-plot", "--max-iter", "6"],
    "denoise": ["denoise", "{out}/a.png", "-o", "{out}/b.png"],
    "compare": ["compare", "model.csv", "model.csv"],
    "doctor": ["doctor"],
}


def documented():
    """Return {command: MiB} of the table in the docs."""
    rows = re.findall(r"^\| `emdl (\w+)` \| (\d+) \|", DOCS.read_text(), re.MULTILINE)
    return {name: int(value) for name, value in rows}


# What the system tells a parent counts what the child held before it became the command: a copy of the parent.
COMMAND = """
import atexit, os, re, runpy, sys

def say():
    with open("/proc/self/status") as status, open(os.environ["PEAK"], "w") as file:
        file.write(re.search("VmHWM:\\s*(\\d+)", status.read())[1] + " " + str("numba" in sys.modules))

atexit.register(say)
if len(sys.argv) > 1:
    runpy.run_module("emdl.cli", run_name="__main__")
else:
    import numba
"""


def peak(args, folder, out):
    """Return the peak of resident memory of a command, MiB, and whether it loaded numba; no words: of numba alone."""
    command = [sys.executable, "-c", COMMAND, *args]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PEAK": str(out / "peak")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    used, numba = (out / "peak").read_text().split()
    return int(used) / 1024, numba == "True"


@pytest.mark.skipif(sys.platform != "linux", reason="the table is of Linux")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_takes_the_memory_that_is_documented(name, whole, tmp_path):  # noqa: F811
    args = [arg.format(out=tmp_path) for arg in COMMANDS[name]]
    if name == "denoise":
        pixels = np.random.default_rng(0).normal(128, 20, (512, 768)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "a.png")
    used, numba = peak(args, whole, tmp_path)
    if numba:  # which takes 57 MiB more in Python 3.13 than in 3.11
        used -= peak([], whole, tmp_path)[0] - int(re.search(r"`import numba` alone (\d+)", DOCS.read_text())[1])
    assert used == pytest.approx(documented()[name], rel=0.2)
