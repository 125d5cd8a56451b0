"""Let the tests import the installed package, never the checkout by accident of the working directory."""

import pathlib
import sys

_ROOT = str(pathlib.Path(__file__).resolve().parent)
sys.path[:] = [p for p in sys.path if p not in ("", _ROOT)]
