"""Indices of inputs in stages, gates and exports that cannot lie inside of their axes, now that sizes are known.

Those of `keep`, biases and sinks are looked at in every call, value by value.  Here stand arithmetic and stages, which
read what is nearest where an index is outside: a mistake is told where it is certain, without a look at tensors.
"""

from __future__ import annotations

from collections.abc import Iterator

from spdsl.diagnostics import SpatError, error
from spdsl.semantics.bounds import Facts, interval
from spdsl.semantics.graph import Attention, Merge, Pool, Prefix, Select, Smooth, Softmax, StageGraph, parts
from spdsl.semantics.nodes import Apply, BoundPattern, Const, Expr, Index, Load, Table, TableAxis
from spdsl.semantics.rewrite import children, free_axes
from spdsl.semantics.show import print_expr

_HEADS = ("h", "g")


def refuse_outside(pattern: BoundPattern, facts: Facts) -> None:
    """Refuse an index that is outside for all points, or, where nothing guards it, for some heads.

    Raises:
        SpatError: an index outside of a table (SP320).
    """
    if pattern.graph is None:
        return
    tables = {table.name: table for table in pattern.tables}
    for expr, for_all_heads in _read(pattern.graph):
        for load in _unconditional(expr):
            if load.table in tables:
                _check(tables[load.table], load, for_all_heads, facts)


def _read(graph: StageGraph) -> Iterator[tuple[Expr, bool]]:
    """Expressions of numbers, and whether each head reads them."""
    yield graph.result, True
    for export in graph.exports:
        yield export.value, free_axes(export.only).isdisjoint(_HEADS)
    for stage in graph.stages:
        match stage:
            case Attention() | Merge():
                continue
            case Pool(only=only) | Softmax(only=only) | Prefix(only=only) | Smooth(only=only):
                all_heads = free_axes(only).isdisjoint(_HEADS)
            case Select(only=only, forced=forced):
                all_heads = (free_axes(only) | free_axes(forced)).isdisjoint(_HEADS)
            case _:
                all_heads = False
        first, *rest = parts(stage)
        yield first, all_heads
        for each in rest:
            yield each, False


def _unconditional(expr: Expr) -> Iterator[Load]:
    """What is read whatever the conditions inside of the expression are."""
    if isinstance(expr, Load):
        yield expr
    parts = children(expr)
    if isinstance(expr, Apply) and expr.op in ("where", "and", "or"):
        parts = parts[:1]
    for part in parts:
        yield from _unconditional(part)


def _check(table: Table, load: Load, for_all_heads: bool, facts: Facts) -> None:
    for index, axis in zip(load.indices, table.axes, strict=True):
        if not isinstance(axis.size, Const):
            continue
        low, high = interval(index, facts)
        size = int(axis.size.value)
        for_all = (high is not None and high < 0) or (low is not None and low >= size)
        is_head = for_all_heads and isinstance(index, Index) and index.name in _HEADS
        if for_all or (is_head and high is not None and high >= size):
            raise _outside(table, load, index, axis, size)


def _outside(table: Table, load: Load, index: Expr, axis: TableAxis, size: int) -> SpatError:
    elements = f"{size} element{'s' * (size != 1)}"
    return error(
        "SP320",
        f"`{table.name}` is read at `{print_expr(index)}`, outside of its axis `{axis.label}`, which has {elements}",
        load.span,
        help=f"indices count from 0 to {size - 1}",
    )
