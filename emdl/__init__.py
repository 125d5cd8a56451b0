"""Convolutional dictionary learning by expectation maximisation.

Public names load on first use, so that ``import emdl`` costs little.
"""

import importlib

__version__ = "0.1.0"

_HOME = {
    "synthesize": "ops",
    "analyze": "ops",
    "lipschitz": "ops",
    "objective": "ops",
    "encode": "encoder",
    "lambda_max": "paths",
    "encode_path": "paths",
    "unroll": "unrolled",
    "Trace": "unrolled",
    "backward": "gradients",
    "Grads": "gradients",
    "em_fit": "em",
    "EMResult": "em",
    "Model": "model",
    "load": "model",
    "sort": "spikes.sorting",
    "EmdlError": "errors",
    "ConvergenceWarning": "errors",
}
_MODULES = ("device", "metrics", "simulate", "spikeinterface", "spikes")

__all__ = [*_HOME, *_MODULES]


def __getattr__(name):
    if name in _HOME:
        return getattr(importlib.import_module(f"emdl.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"emdl.{name}")
    raise AttributeError(f"module 'emdl' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
