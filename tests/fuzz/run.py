"""Fuzzing of all readers: damaged and hostile files must give an error of emdl with a sentence, or be read.

    python tests/fuzz/run.py --seconds 60
    python tests/fuzz/run.py --inputs 100000 --keep failures

Takes the files of the corpus, flips bits, cuts, copies and removes pieces, writes extreme numbers, and reads them in a
process of its own with bounded memory and time. Counts as failure: an exception that is no `EmdlError`, one without a
sentence, a crash, more than `SECONDS` of processor time. Memory above `MEMORY` is not there to be had. Half of the
files of emdl's own formats say their right length after the change, so that what lies behind that check is reached;
none has a seal. HDF5 of others is looked through by `emdl.probe` as always, in a forked process instead of a new one.
"""

import argparse
import collections
import os
import pathlib
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings

from readers import CORPUS, OURS, READERS

SECONDS = 5
MEMORY = 2 * 2**30
BATCH = 200  # inputs in one process
_NUMBERS = [
    0,
    1,
    -1,
    2,
    127,
    128,
    255,
    256,
    2**15,
    2**16 - 1,
    2**31 - 1,
    -(2**31),
    2**32 - 1,
    2**40,
    2**63 - 1,
    -(2**63),
]


def mutated(data, rng):
    """Return the bytes with one to eight things changed."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        if not data:
            return bytes(rng.randbytes(rng.randrange(64)))
        at = rng.randrange(len(data))
        kind = rng.randrange(10)
        if kind < 3:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 3:
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 4:
            del data[at:]
        elif kind == 5:
            del data[at : at + rng.choice((1, 2, 4, 8, 64, 512))]
        elif kind == 6:
            data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 8, 64, 512)))
        elif kind == 7:
            length, to = rng.choice((4, 8, 64, 512)), rng.randrange(len(data))
            data[to : to + length] = data[at : at + length]
        elif kind == 8:
            size, order = rng.choice("BHIQ"), rng.choice("<>")
            number = rng.choice(_NUMBERS) % 2 ** (8 * struct.calcsize(size))
            data[at : at + struct.calcsize(size)] = struct.pack(order + size, number)
        else:
            digits = [i for i in range(max(0, at - 64), min(len(data), at + 64)) if chr(data[i]).isdigit()]
            if digits:
                data[rng.choice(digits)] = ord(rng.choice("0123456789-e.,"))
    return bytes(data)


def mended(name, data, rng):
    """Return the bytes with the length of a file of emdl in the place where it stands, half of the time."""
    if name in OURS and len(data) > 48 and rng.random() < 0.5:
        return data[:40] + struct.pack("<Q", len(data)) + data[48:]
    return data


def forked_probe(path):
    """Stand in for `emdl.storage._probe`, at a fraction of its time."""
    from emdl import probe

    child = os.fork()
    if child == 0:
        try:
            signal.setitimer(signal.ITIMER_PROF, 0)
            probe.limit()
            probe.look(path)
        finally:
            os._exit(0)
    return waited(child, 20 * SECONDS)


def waited(child, longest):
    """Return the exit status of a process, which is killed after so many seconds by the clock."""
    began, pause = time.monotonic(), 0.0005
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() - began > longest:
            os.kill(child, signal.SIGKILL)
        time.sleep(pause)
        pause = min(2 * pause, 0.02)


def judge(name, path):
    """Read a file; return None, or what is wrong with the answer."""
    from emdl.errors import EmdlError

    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        READERS[name](path)
    except EmdlError as error:
        return None if len(str(error)) > 20 else f"an error without a sentence: {error!r}"
    except TimeoutError:
        return f"more than {SECONDS} s\n{traceback.format_exc(limit=-6)}"
    except Exception:  # noqa: BLE001 - this is what is looked for
        return traceback.format_exc(limit=-6)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return None


def batch(names, seed, count, folder):
    """Read `count` mutants in this process; what is wrong goes to a file beside the input."""
    from emdl import storage

    def too_long(*_):
        raise TimeoutError

    signal.signal(signal.SIGPROF, too_long)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    storage._probe = forked_probe
    rng = random.Random(seed)
    for number in range(count):
        name = rng.choice(names)
        path = folder / f"input{pathlib.Path(name).suffix}"
        path.write_bytes(mended(name, mutated((CORPUS / name).read_bytes(), rng), rng))
        (folder / "now").write_text(f"{name} {number}")
        wrong = judge(name, path)
        if wrong:
            place = folder / f"wrong-{seed}-{number}"
            place.mkdir()
            shutil.copy(path, place / name)
            (place / "why").write_text(wrong)


def run_batch(names, seed, count, folder):
    """Run a batch in a forked process; return whether it came to its end."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 2)
            batch(names, seed, count, folder)
            code = 0
        finally:
            os._exit(code)
    return waited(child, 60 * SECONDS)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1e9, help="by the clock")
    parser.add_argument("--inputs", type=int, default=10**9)
    parser.add_argument("--seed", type=int, default=None, help="default: the clock")
    parser.add_argument("--only", nargs="*", default=[], help="names of the corpus")
    parser.add_argument("--keep", type=pathlib.Path, help="folder for inputs that were answered wrongly")
    given = parser.parse_args()
    names = [name for name in given.only or READERS if (CORPUS / name).exists()]
    for name in names:  # also loads what the readers need, before the forks
        READERS[name](CORPUS / name)
    began, first = time.monotonic(), int(time.time()) if given.seed is None else given.seed
    tried, wrong, seed = 0, collections.Counter(), first
    with tempfile.TemporaryDirectory(prefix="emdl-fuzz-") as place:
        folder = pathlib.Path(place)
        while tried < given.inputs and time.monotonic() - began < given.seconds:
            code = run_batch(names, seed, BATCH, folder)
            now = (folder / "now").read_text().split()
            tried += BATCH if code == 0 else int(now[1]) + 1
            if code:
                spot = folder / f"wrong-{seed}-{now[1]}"
                spot.mkdir(exist_ok=True)
                shutil.copy(folder / f"input{pathlib.Path(now[0]).suffix}", spot / now[0])
                (spot / "why").write_text(f"the process ended with {code}")
            seed += 1
        for found in sorted(folder.glob("wrong-*")):
            why = (found / "why").read_text().strip()
            lines = why.splitlines()
            wrong[
                lines[-1][:160] + " @ " + "".join(line.strip() for line in lines if line.startswith("  File"))[-110:]
            ] += 1
            if given.keep:
                shutil.copytree(found, given.keep / found.name, dirs_exist_ok=True)
    for why, count in wrong.most_common():
        print(f"{count:6d}  {why}")
    print(
        f"{tried} inputs from {len(names)} files, seed {first}, {time.monotonic() - began:.0f} s: "
        f"{sum(wrong.values())} wrong"
    )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
