"""From patterns to one page of HTML that shows their masks and needs no network.

A pattern of positions, tables and parameters is worked out in the page, pair by pair, so that parameters can be moved;
of one that selects or reduces the page holds the mask for the values given.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from spdsl import __version__
from spdsl.diagnostics import error
from spdsl.page.script import NoScriptError, script
from spdsl.semantics.expand import expand
from spdsl.semantics.nodes import CheckedPattern, Noise, Parameter, Reduce, Top
from spdsl.semantics.rewrite import walk

MOST_BITS = 1 << 27
"""Pairs of a mask that a page may hold, all heads counted: 16 MB."""

Value = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """What the compiler says of a kernel for the values given: its tiles, and how many it visits of each kind.

    ``rows`` says which rows its tiles hold where they are not consecutive, as those of a picture are.
    """

    title: str
    rows: str
    by: str
    block_q: int
    block_k: int
    touched: int
    full: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A pattern with its values, for a page; ``mask`` is bool ``[heads, nq, n]``, for those that need it."""

    pattern: CheckedPattern
    values: Mapping[str, Value]
    tables: Mapping[str, npt.NDArray[Any]]
    layer: int | None
    kernels: Sequence[Kernel]
    mask: npt.NDArray[np.bool_] | None = None


def is_worked_out(pattern: CheckedPattern) -> bool:
    """Whether the page can work out the mask of a pattern by itself."""
    if pattern.graph is not None or any(axis.step is not None for axis in pattern.axes):
        return False
    return not any(isinstance(node, Noise | Reduce | Top) for node in walk(expand(pattern, pattern.attend.keep)))


def page(shown: Sequence[Shown], *, n: int, nq: int, heads: int, groups: int, head_dim: int, tile: int) -> str:
    """The page.

    Raises:
        SpatError: a mask is too large for a page (SP609).
    """
    settings = {"n": n, "nq": nq, "heads": heads, "groups": groups, "d": head_dim, "tile": tile, "version": __version__}
    records = [_record(each) for each in shown]
    functions = ",\n".join(_function(each.pattern) for each in shown)
    template = (resources.files("spdsl") / "page" / "page.html").read_text(encoding="utf-8")
    title = " | ".join(each.pattern.name for each in shown)
    return (
        template.replace("__TITLE__", title)
        .replace("__FUNCTIONS__", functions)
        .replace("__SETTINGS__", _json(settings))
        .replace("__PATTERNS__", _json(records))
    )


def _json(value: object) -> str:
    """JSON that may stand in a script of a page: no text in it ends the script."""
    return (
        json.dumps(value, ensure_ascii=False)
        .replace("<", "\\u003c")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )


def _function(pattern: CheckedPattern) -> str:
    if not is_worked_out(pattern):
        return "{ keep: null, length: null }"
    length = "null"
    for grid in pattern.grids:
        if grid.name is None and not any(each.__class__.__name__ == "Coord" for each in walk(grid.of)):
            length = " * ".join(script(expand(pattern, extent)) for _, extent in grid.coordinates)
            length = f"(E, P, T) => {length}"
    try:
        keep = script(expand(pattern, pattern.attend.keep))
    except NoScriptError:  # pragma: no cover — `is_worked_out` has asked
        return "{ keep: null, length: null }"
    return f"{{ keep: (q, k, h, g, E, P, T) => {keep}, length: {length} }}"


def _record(shown: Shown) -> dict[str, Any]:
    pattern = shown.pattern
    text = pattern.text
    record: dict[str, Any] = {
        "name": pattern.name,
        "text": text,
        "layer": shown.layer,
        "parameters": [_parameter(each, shown.values) for each in pattern.parameters],
        "kernels": [
            {
                "title": k.title,
                "rows": k.rows,
                "by": k.by,
                "bq": k.block_q,
                "bk": k.block_k,
                "touched": k.touched,
                "full": k.full,
            }
            for k in shown.kernels
        ],
        "tables": {},
        "mask": None,
        "selects": pattern.graph is not None,
    }
    if is_worked_out(pattern):
        for table in pattern.tables:
            values = shown.tables[table.name]
            axes = [axis.kind for axis in table.axes]
            if values.ndim > len(axes):  # of a batch, the first sequence
                values = values[0]
            if axes[:1] == ["b"]:
                values = values[:1]
            record["tables"][table.name] = {
                "axes": axes,
                "shape": list(values.shape),
                "values": [_plain(each) for each in values.ravel().tolist()],
            }
    elif shown.mask is not None:
        if shown.mask.size > MOST_BITS:
            raise error(
                "SP609",
                f"a mask of {shown.mask.size:,} pairs is too large for a page",
                help="Use fewer tokens (`-n`) or heads.",
            )
        packed = np.packbits(shown.mask.ravel(), bitorder="little")
        record["mask"] = base64.b64encode(packed.tobytes()).decode()
    return record


def _plain(value: Any) -> Any:
    return value if not isinstance(value, float) or np.isfinite(value) else None


def _parameter(parameter: Parameter, values: Mapping[str, Value]) -> dict[str, Any]:
    value = values.get(parameter.name, parameter.default)
    bounds = parameter.bounds
    return {
        "name": parameter.name,
        "type": parameter.dtype,
        "value": list(value) if isinstance(value, tuple) else value,
        "low": None if bounds is None else bounds.low,
        "high": None if bounds is None else bounds.high,
    }
