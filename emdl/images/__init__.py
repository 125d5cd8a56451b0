"""Denoising of images with dictionaries learned from photographs, or from the image itself.

Names load on first use, so that asking for help loads no kernel.
"""

import importlib

_HOME = {
    "denoise": "restore",
    "estimate_sigma": "restore",
    "fit": "learn",
}
_MODULES = ("files",)

__all__ = [*_HOME, *_MODULES]


def __getattr__(name):
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
