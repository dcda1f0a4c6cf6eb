"""From an expression of a bound pattern to its value at points: the meaning, written down as plainly as torch allows.

Expressions are evaluated as they are bound: nothing is expanded, staged or simplified before.  Shared nodes are
evaluated once, without recursion except into reductions and selections, whose inside has points of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import assert_never

from spdsl.reference.coordinates import coordinate
from spdsl.reference.faults import Fault, Faults, either, only_where
from spdsl.reference.operations import DTYPES, operate
from spdsl.reference.points import DIMENSION, Points
from spdsl.reference.selections import chosen, lifted, segments
from spdsl.semantics.nodes import (
    Apply,
    Const,
    Coord,
    Expr,
    Extent,
    FreeParam,
    Index,
    Load,
    Noise,
    Param,
    Reduce,
    Side,
    Top,
)
from spdsl.semantics.philox import WORD, first_word
from spdsl.semantics.rewrite import children, walk


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A tensor that broadcasts to the points, and the marks of what spoils it (None: nothing does)."""

    tensor: Tensor
    marks: Tensor | None = None


def evaluate(expr: Expr, points: Points, where: Tensor | None = None) -> Tensor:
    """The value of ``expr``, broadcasting to ``[batch, heads, queries, keys]``.

    Only the points of ``where`` (bool, broadcasting; by default those that exist) matter: others may hold anything.

    Raises:
        SpatError: a point that matters reads outside a table (SP320) or divides by zero (SP321).
    """
    faults = Faults()
    value = _evaluate(expr, points, faults)
    faults.raise_at(value.marks, points.exist if where is None else where)
    return value.tensor


def _evaluate(expr: Expr, points: Points, faults: Faults) -> Value:
    done: dict[int, Value] = {}
    for node in walk(expr, into_stages=False):
        parts = [] if isinstance(node, (Reduce, Top)) else [done[id(part)] for part in children(node)]
        done[id(node)] = _value(node, parts, points, faults)
    return done[id(expr)]


def _value(node: Expr, parts: list[Value], points: Points, faults: Faults) -> Value:
    match node:
        case Const(value=value):
            device = points.indices["q"].device
            return Value(tensor=torch.full((1, 1, 1, 1), value, dtype=DTYPES[node.dtype], device=device))
        case Index(name=name):
            return Value(tensor=points.indices[name])
        case Extent(name=name):
            return Value(tensor=points.extents[name])
        case Load():
            return _load(node, parts, points, faults)
        case Apply():
            return _apply(node, parts, faults)
        case Coord(side=side, axis=axis):
            return _coordinate(side, axis, points, faults)
        case Noise(seed=seed):
            number = seed.value if isinstance(seed, Const) else parts[0].tensor.flatten()[0]
            words = first_word(int(number), [part.tensor for part in parts[1:]])
            return Value(tensor=words.double() / WORD, marks=either(*(part.marks for part in parts)))
        case Reduce():
            return _reduce(node, points, faults)
        case Top():
            return _top(node, points, faults)
        case Param(name=name) | FreeParam(name=name):
            raise TypeError(f"`{name}` is a parameter without a value: the pattern is not bound")
        case _:
            assert_never(node)


def _apply(node: Apply, parts: list[Value], faults: Faults) -> Value:
    tensors, marks = [part.tensor for part in parts], [part.marks for part in parts]
    result = operate(node.op, tensors, node.dtype)
    match node.op:
        case "and":
            spoilt = either(marks[0], only_where(tensors[0], marks[1]))
        case "or":
            spoilt = either(marks[0], only_where(~tensors[0], marks[1]))
        case "where":
            condition = tensors[0]
            spoilt = either(marks[0], only_where(condition, marks[1]), only_where(~condition, marks[2]))
        case "floordiv" | "mod":
            fault = Fault(
                bad=tensors[1] == 0,
                value=tensors[1],
                code="SP321",
                message="division by zero",
                help="put a guard before it, for example `x != 0 and y % x == 0`",
                expr=node,
            )
            spoilt = either(*marks, faults.mark(fault))
        case _:
            spoilt = either(*marks)
    return Value(tensor=result, marks=spoilt)


def _load(node: Load, parts: list[Value], points: Points, faults: Faults) -> Value:
    """Read a table; an axis ``q`` has a row for each query, so that position ``q_start`` is its first."""
    table = points.tables[node.table]
    indices, spoilt = [part.tensor for part in parts], either(*(part.marks for part in parts))
    if table.dim() == len(indices) + 1:
        # The extra leading axis of a batch, of size 1 or batch.
        batched = points.indices["b"] if table.shape[0] > 1 else torch.zeros_like(points.indices["b"])
        rows, lead = [batched], 1
    else:
        rows, lead = [], 0
    for place, index in enumerate(indices):
        first = points.extents["q_start"] if place in points.query_axes.get(node.table, ()) else 0
        row, size = index - first, table.shape[lead + place]
        fault = Fault(
            bad=(row < 0) | (row >= size),
            value=index,
            code="SP320",
            message=f"`{node.table}` is read at {{value}} on axis {place}, which has {size} elements",
            help="give a larger table, or put a guard before the read: `i < size and table[i]`",
            expr=node,
        )
        spoilt = either(spoilt, faults.mark(fault))
        rows.append(row.clamp(0, max(size - 1, 0)))
    if table.numel() == 0:
        value = torch.zeros(1, 1, 1, 1, dtype=DTYPES[node.dtype], device=table.device)
    else:
        value = table[tuple(rows)] if rows else table.reshape(1, 1, 1, 1)
    return Value(tensor=value.to(DTYPES[node.dtype]), marks=spoilt)


def _coordinate(side: Side, axis: str, points: Points, faults: Faults) -> Value:
    return _evaluate(coordinate(points.pattern, side, axis), points, faults)


# ---------------------------------------------------------------- reductions and selections


@dataclass(frozen=True, slots=True, kw_only=True)
class _Members:
    """The positions of a side that exist, which member of an axis each belongs to, and each point's member.

    ``ids`` and ``targets`` number the members from 0 in the order of their coordinates.
    """

    points: Points
    exist: Tensor
    ids: Tensor
    targets: Tensor
    count: int
    marks: Tensor | None


def _members(side: Side, axis: str | None, points: Points, faults: Faults) -> _Members:
    inner = points.along(side)
    line = inner.indices[side]
    exist = line < inner.extents["n"]
    if axis is None:
        zero = torch.zeros_like(line)
        return _Members(
            points=inner, exist=exist, ids=zero, targets=torch.zeros_like(points.indices[side]), count=1, marks=None
        )
    of_line, of_points = _coordinate(side, axis, inner, faults), _coordinate(side, axis, points, faults)
    ids, targets, count = lifted(of_line.tensor, of_points.tensor)
    faults.raise_at(of_line.marks, exist)
    return _Members(points=inner, exist=exist, ids=ids, targets=targets, count=count, marks=of_points.marks)


def _reduce(node: Reduce, points: Points, faults: Faults) -> Value:
    """Reduce over the positions that exist; over none, all is true and everything else false or 0."""
    members = _members(node.side, node.axis, points, faults)
    body = _evaluate(node.body, members.points, faults)
    dimension = DIMENSION[node.side]
    result = segments(node.kind, body.tensor, members.exist, members.ids, members.targets, members.count, dimension)
    marks = members.marks
    if body.marks is not None:
        inside = torch.where(members.exist, body.marks, 0)
        spoilt = segments("max", inside, members.exist, members.ids, members.targets, members.count, dimension)
        marks = either(marks, spoilt)
    return Value(tensor=result.to(DTYPES[node.dtype]), marks=marks)


def _top(node: Top, points: Points, faults: Faults) -> Value:
    """Choose among the members of an axis (or among positions) by the value that their first position has."""
    members = _members(node.side, node.axis, points, faults)
    if node.axis is None:
        line = members.points.indices[node.side]
        ids, targets, count = lifted(line, points.indices[node.side])
    else:
        ids, targets, count = members.ids, members.targets, members.count
    value, only = (_evaluate(part, members.points, faults) for part in (node.value, node.only))
    wanted = _evaluate(node.count, points, faults)
    faults.raise_at(either(only.marks, only_where(only.tensor, value.marks)), members.exist)
    result = chosen(
        value.tensor,
        only.tensor & members.exist,
        wanted.tensor,
        exist=members.exist,
        ids=ids,
        targets=targets,
        count=count,
        dimension=DIMENSION[node.side],
    )
    return Value(tensor=result, marks=either(members.marks, wanted.marks))
