"""Sets of pairs as lists of keys: by kernels, among candidates, or by torch, some rows at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from torch import Tensor

from spdsl.runtime.arrays import Arrays
from spdsl.runtime.memo import Memo
from spdsl.runtime.narrowed import chosen_among
from spdsl.runtime.ranking import as_lists, joined
from spdsl.runtime.repeated import repeated
from spdsl.semantics.graph import Select, on_side
from spdsl.semantics.nodes import Expr, Load, Table
from spdsl.semantics.rewrite import free_axes, walk


def lists(arrays: Arrays, name: str) -> Tensor:
    """The pairs of a set as lists of keys, int32 ``[batch or 1, …, rows, most]``: see `Table.listed`."""
    if name not in arrays.listed:
        make = partial(_lists, arrays, name)
        arrays.listed[name] = repeated(arrays, name, lambda: (make(),))[0] if arrays.kernels else make()
    return arrays.listed[name]


def sets_of(arrays: Arrays, name: str, wanted: Sequence[Table]) -> dict[str, Tensor]:
    """The tables of stages that the softmax ``name`` reads, by their names: sets of pairs as lists, others whole."""

    def make() -> tuple[Tensor, ...]:
        return tuple(_set(arrays, each) for each in wanted)

    # Lists alone are known one by one, to others, too.
    alone = not arrays.kernels or all(each.listed for each in wanted)
    found = make() if alone else repeated(arrays, name, make)
    arrays.listed.update({each.name: table for each, table in zip(wanted, found, strict=True) if each.listed})
    return {each.name: table for each, table in zip(wanted, found, strict=True)}


def _set(arrays: Arrays, table: Table) -> Tensor:
    if table.listed:
        return lists(arrays, table.name)
    found = arrays.whole(table.name)
    return found if table.dtype == "bool" else found.int()


def _lists(arrays: Arrays, name: str) -> Tensor:
    found, width = None, _width(arrays, name)
    if arrays.kernels:
        from spdsl.runtime.chains import chosen_lists
        from spdsl.runtime.diagonal_lists import lists_of_diagonals
        from spdsl.runtime.union_lists import lists_of_union

        found = lists_of_diagonals(arrays, name, width)
        found = lists_of_union(arrays, name, width, partial(lists, arrays)) if found is None else found
        found = chosen_lists(arrays, name, width, partial(lists, arrays)) if found is None else found
    found = chosen_among(arrays, name, lists) if found is None else found
    if found is not None:
        return found
    stage = arrays.stages[name]
    parts = []
    for rows in arrays.chunks(name):
        part = arrays.array(name, rows, Memo())
        most = width if width is not None else int(part.sum(-1).max()) if part.numel() else 0
        parts.append(as_lists(part, max(1, most)))
    axis = on_side(stage.axes, "q")
    assert axis is not None
    return joined(parts, 1 + stage.axes.index(axis))


_SMALL = 1 << 23
"""Entries of all pairs of a set up to which its lists have room for every key, so that the host need not wait for the
longest; or so many that they take no more memory than queries of 16 bits."""


def _width(arrays: Arrays, name: str) -> int | None:
    """The most elements of a row, where they are known without a look at the set, or room for all is little."""
    stage, lines = arrays.stages[name], arrays.lines
    keys = on_side(stage.axes, "k")
    if keys is None:
        return None
    size, count = lines.size(keys), None
    # Where queries are chosen for each key, a query may have any number of keys.
    if isinstance(stage, Select) and stage.by == "count" and stage.over == keys:
        count = _number(arrays, stage.amount)
        if count is not None and not stage.also:
            return max(0, min(count, size))
    most = size if count is None else max(0, min(count, size))
    rows = lines.batch * math.prod(lines.size(axis) for axis in stage.axes if axis != keys)
    room = max(_SMALL, lines.batch * lines.heads * lines.nq * lines.pattern.head_dim // 2)
    return most if arrays.kernels and rows * most <= room else None


def _number(arrays: Arrays, expr: Expr) -> int | None:
    """The value of an expression, where it is that of every row and depends on lengths alone."""
    if free_axes(expr) or any(isinstance(node, Load) for node in walk(expr)):
        return None
    value = arrays.evaluate(expr, (), None, Memo())
    return None if isinstance(value, Tensor) else int(value)
