"""Run a suite of benchmarks: ``python benchmarks/run.py --suite coding``.

A suite is a module beside this file with a function ``main(arguments, folder)``; it prints progress and a table and
leaves a JSON file and a plot in the folder. Peers are used where they are installed; those that are not are named.
"""

import argparse
import importlib
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent


def main(arguments=None):
    sys.path.insert(0, str(HERE.parent))
    parser = argparse.ArgumentParser(description="Run a suite of benchmarks.")
    parser.add_argument("--suite", default="coding")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results")
    known, rest = parser.parse_known_args(arguments)
    known.out.mkdir(parents=True, exist_ok=True)
    importlib.import_module(f"benchmarks.{known.suite}").main(rest, known.out)


if __name__ == "__main__":
    main()
