"""The back ends by name; each is loaded when it is first used."""

from __future__ import annotations

from functools import cache

from spdsl.diagnostics import error
from spdsl.runtime.calls import Engine


@cache
def engine_for(name: str) -> Engine:
    """The engine of a back end.

    Raises:
        SpatError: the back end needs a package that is not installed (SP501).
    """
    if name == "cpu":
        from spdsl.runtime.cpu_engine import CpuEngine

        return CpuEngine()
    try:
        from spdsl.runtime.triton_engine import TritonEngine
    except ModuleNotFoundError as missing:
        raise error(
            "SP501",
            f"the back end `{name}` needs the package `{missing.name}`, which is not installed",
            help='install it, or use `backend="cpu"`',
        ) from missing
    return TritonEngine()
