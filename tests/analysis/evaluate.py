"""Expressions and walks on numbers: what a kernel computes, in Python.  `evaluate_rows` does many rows at once.

`tiles_of` walks as kernels do: a slot's full interval is clamped to its touched one, which leaves a masked head, a full
middle and a masked tail, all on the slot's lattice and under its filter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from typing_extensions import assert_never

from spdsl.analysis.tiles import Slot, SlotWalk
from spdsl.semantics.nodes import Apply, Const, Coord, Expr, Extent, FreeParam, Index, Load, Noise, Param, Reduce, Top
from spdsl.semantics.ops import OPS

By: TypeAlias = Literal["query", "key"]
Tables: TypeAlias = Mapping[str, Any]
"""Input tables by name: scalars, nested sequences or arrays, indexed as the pattern writes them."""

ROW_AND_TILE: dict[By, tuple[str, str]] = {"query": ("i", "j"), "key": ("j", "i")}
"""The names of a row's own tile and of the walked one."""


def evaluate(expr: Expr, env: Mapping[str, int], tables: Tables | None = None) -> Any:
    """The value of an expanded expression of `Index`, `Extent`, `Load` and `Apply` nodes.

    ``env`` holds indices and extents by name.  Conditions are evaluated first and the other branch not at all.  Raises
    KeyError for a name that is missing and TypeError for nodes that have no value by themselves.
    """
    match expr:
        case Const(value=value):
            return value
        case Index(name=name) | Extent(name=name):
            return env[name]
        case FreeParam(variable=name):
            return env[name]
        case Load(table=table, indices=indices):
            value = (tables or {})[table]
            for index in indices:
                value = value[evaluate(index, env, tables)]
            return value.item() if hasattr(value, "item") else value
        case Apply(op="where", args=(condition, chosen, other)):
            return evaluate(chosen if evaluate(condition, env, tables) else other, env, tables)
        case Apply(op="and" | "or" as op, args=(left, right)):
            first = evaluate(left, env, tables)
            return first if bool(first) == (op == "or") else evaluate(right, env, tables)
        case Apply(op=op, args=args):
            return OPS[op].fold(*(evaluate(a, env, tables) for a in args))
        case Param() | Coord() | Reduce() | Noise() | Top():
            raise TypeError(f"{type(expr).__name__} has no value by itself; expand the pattern first")
        case _:
            assert_never(expr)


# ---------------------------------------------------------------- one row


def tiles_of(
    walk: SlotWalk, row: int, env: Mapping[str, int], tables: Tables | None = None, *, by: By = "query"
) -> tuple[list[int], list[int]]:
    """(full tiles, masked tiles) that a kernel walks for tile ``row``, in its order."""
    row_name, tile_name = ROW_AND_TILE[by]
    here = {**env, row_name: row}
    full: list[int] = []
    masked: list[int] = []
    for slot in walk.slots:
        lo, full_lo, full_hi, hi = _ends(slot, here, tables)
        phase = evaluate(slot.phase, here, tables) if slot.phase is not None else 0
        for tile in range(lo, hi):
            if (tile - phase) % slot.step >= slot.run:
                continue
            if slot.filter is not None and not evaluate(slot.filter, {**here, tile_name: tile}, tables):
                continue
            (full if full_lo <= tile < full_hi else masked).append(tile)
    return full, masked


def _ends(slot: Slot, env: Mapping[str, int], tables: Tables | None) -> tuple[int, int, int, int]:
    """The four ends in order: first tile, first full tile, end of the full tiles, end."""
    lo = evaluate(slot.touched.lo, env, tables)
    hi = max(lo, evaluate(slot.touched.hi, env, tables))
    if slot.full is None:
        return lo, hi, hi, hi
    full_lo = max(lo, min(evaluate(slot.full.lo, env, tables), hi))
    full_hi = max(full_lo, min(evaluate(slot.full.hi, env, tables), hi))
    return lo, full_lo, full_hi, hi
