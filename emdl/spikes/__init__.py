"""Spikes: learn the units of a recording, find every spike, draw what was found.

Names load on first use, so that reading a recording loads no kernel.
"""

import importlib

_HOME = {
    "fit": "learning",
    "Progress": "learning",
    "detect": "detection",
    "partial": "detection",
    "encode": "detection",
    "Spikes": "detection",
    "SpikeModel": "model",
    "load": "model",
    "sort": "sorting",
    "Sorting": "sorting",
}
_MODULES = ("checks", "plot", "quality", "recordings", "report", "tables")

__all__ = [*_HOME, *_MODULES]


def __getattr__(name):
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
