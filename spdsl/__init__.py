"""spdsl: sparsity patterns for attention, compiled to fused kernels.

The names below are loaded when they are first used, so that `import spdsl` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spdsl import flex as flex
    from spdsl import language as language
    from spdsl import models as models
    from spdsl import nn as nn
    from spdsl.api import Attention, Pattern, compile, load, loads, names, raise_pending
    from spdsl.decorator import Input, Within, pattern
    from spdsl.diagnostics import SpatError, SpatWarning

__version__ = "0.1.0"

__all__ = [
    "Attention",
    "Input",
    "Pattern",
    "SpatError",
    "SpatWarning",
    "Within",
    "compile",
    "load",
    "loads",
    "names",
    "pattern",
    "raise_pending",
]

_HOMES = {
    **dict.fromkeys(("Attention", "Pattern", "compile", "load", "loads", "raise_pending"), "spdsl.api"),
    **dict.fromkeys(("Input", "Within", "pattern"), "spdsl.decorator"),
    **dict.fromkeys(("SpatError", "SpatWarning"), "spdsl.diagnostics"),
    "names": "spdsl.library",
}

_MODULES = ("flex", "language", "models", "nn")
"""Modules that need no import of their own: `spdsl.models.use(…)`."""


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return import_module(f"spdsl.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'spdsl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
