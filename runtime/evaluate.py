"""The value of expanded expressions at many points at once, with torch operations, on any device.

From: an expression without coordinates, parameters and stages.  To: a tensor, broadcast over the index tensors given.
Ints are computed in int64 and floats in ``real``.  It does not report values out of range: indices are clamped into
their table, and divisions by zero give some finite int, because a guard around them may discard the value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor
from typing_extensions import assert_never

from spdsl.runtime.philox import uniform
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
    Table,
    Top,
)
from spdsl.semantics.ops import OPS
from spdsl.semantics.rewrite import walk

Value: TypeAlias = Tensor | int | float | bool
"""A tensor, or a Python number where no tensor takes part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """Tensors by name.

    A tensor has one dimension for each index of its loads, or a leading batch dimension (of size 1 or batch) more.
    ``query_axes`` names the declared axes of kind ``q``: they are read at row ``q - q_start``.  ``listed`` are those of
    which each row is a list of the last indices at which it holds (see `spdsl.semantics.nodes.Table`).
    """

    values: Mapping[str, Tensor] = field(default_factory=dict)
    query_axes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    listed: frozenset[str] = frozenset()


NO_TABLES = Tables()


def with_batch(table: Table, tensor: Tensor) -> Tensor:
    """The input with a leading batch axis, unless it names one or has one already."""
    names_batch = any(axis.kind == "b" for axis in table.axes)
    return tensor if names_batch or tensor.dim() > len(table.axes) else tensor.unsqueeze(0)


def tables_for(declared: Sequence[Table], values: Mapping[str, Tensor]) -> Tables:
    """The tables of a call; ``values`` may hold results of stages, which have no declaration and no axis ``q``."""
    axes = {t.name: tuple(n for n, axis in enumerate(t.axes) if axis.kind == "q") for t in declared}
    return Tables(
        values=values,
        query_axes={name: found for name, found in axes.items() if found},
        listed=frozenset(table.name for table in declared if table.listed),
    )


def evaluate(
    expr: Expr, env: Mapping[str, Tensor | int], tables: Tables = NO_TABLES, real: torch.dtype = torch.float64
) -> Tensor:
    """The value of ``expr`` where ``env`` gives indices and extents by name (``q k h g b n nq q_start`` …).

    ``b`` is needed only for tables with more than one batch; ``q_start`` only for tables with an axis ``q``.
    """
    value = value_of(expr, env, tables, real)
    if isinstance(value, Tensor):
        return value
    device = next((x.device for x in (*env.values(), *tables.values.values()) if isinstance(x, Tensor)), None)
    return torch.full((), value, device=device, dtype=real if isinstance(value, float) else None)


def value_of(
    expr: Expr, env: Mapping[str, Tensor | int], tables: Tables = NO_TABLES, real: torch.dtype = torch.float64
) -> Value:
    """As `evaluate`, but numbers stay numbers."""
    return _value(expr, _Scope(env=env, tables=tables, real=real, memo={}))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scope:
    env: Mapping[str, Tensor | int]
    tables: Tables
    real: torch.dtype
    memo: dict[int, Value]


def _value(expr: Expr, scope: _Scope) -> Value:
    found = scope.memo.get(id(expr))
    if found is None:
        found = scope.memo[id(expr)] = _compute(expr, scope)
    return found


def _compute(expr: Expr, scope: _Scope) -> Value:
    match expr:
        case Const(value=value):
            return value
        case Index(name=name) | Extent(name=name):
            return scope.env[name]
        case FreeParam(variable=name):
            return scope.env[name]
        case Load():
            return _load(expr, scope)
        case Apply(op=op, args=args, dtype=dtype):
            return apply(op, [_value(arg, scope) for arg in args], dtype, scope.real)
        case Noise(seed=seed, per=per):
            indices = [torch.as_tensor(_value(index, scope)) for index in per]
            return uniform(int(_value(seed, scope)), indices).to(scope.real)
        case Param() | Coord() | Reduce() | Top():
            raise TypeError(f"{type(expr).__name__} is no arithmetic: it is bound, expanded or a stage before that")
        case _:
            assert_never(expr)


def apply(op: str, args: Sequence[Value], dtype: str, real: torch.dtype = torch.float64) -> Value:
    """One operation on numbers or broadcastable tensors; ``dtype`` is the type of the result in the language."""
    if not any(isinstance(arg, Tensor) for arg in args):
        return _fold(op, args, dtype)
    if dtype == "float" and OPS[op].signature in ("arith", "divide", "real"):
        args = [_real(arg, real) for arg in args]
    elif OPS[op].signature in ("compare", "equal") and not all(map(_is_int, args)):
        # Left alone, torch would compare a large int with a float in float32.
        args = [_real(arg, torch.float64) for arg in args]
    result: Value = TORCH_OPS[op](*args)
    if isinstance(result, Tensor) and dtype == "float" and result.dtype != real:
        return result.to(real)
    return result


def _fold(op: str, args: Sequence[Value], dtype: str) -> Value:
    try:
        value = OPS[op].fold(*args)
    except (ZeroDivisionError, ValueError, OverflowError):
        return math.nan if dtype == "float" else 0
    return float(value) if dtype == "float" else value


def _load(expr: Load, scope: _Scope) -> Value:
    table = scope.tables.values[expr.table]
    indices = [_value(index, scope) for index in expr.indices]
    if 0 in (table.shape[:-1] if expr.table in scope.tables.listed else table.shape):
        return _nothing(expr, indices, table.device)
    if expr.table in scope.tables.listed:
        *rows, wanted = _rows(expr.table, indices, scope)
        sizes = zip(rows, table.shape[:-1], strict=True)
        return listed(table[tuple(torch.as_tensor(_clamp(row, size)) for row, size in sizes)], wanted)
    inside = _places(expr.table, indices, scope)
    read = table[inside] if inside else table  # type: ignore[index]  # numbers and tensors mixed
    if expr.dtype == "bool":
        return read.bool()
    return read.long() if expr.dtype == "int" else read.to(scope.real)


def _nothing(expr: Load, indices: list[Value], device: torch.device) -> Tensor:
    """What a table has that has no rows, as where no sequence has keys, or no query exists."""
    shape = torch.broadcast_shapes(*(index.shape for index in indices if isinstance(index, Tensor)))
    dtype = {"bool": torch.bool, "int": torch.int64}.get(expr.dtype, torch.float64)
    return torch.zeros(shape, dtype=dtype, device=device)


def _places(name: str, indices: list[Value], scope: _Scope) -> tuple[Value, ...]:
    """Where the element stands in the tensor: relative to the first query, with the batch, inside the table."""
    table = scope.tables.values[name]
    places = _rows(name, indices, scope)
    return tuple(_clamp(index, size) for index, size in zip(places, table.shape, strict=True))


def _rows(name: str, indices: list[Value], scope: _Scope) -> list[Value]:
    table = scope.tables.values[name]
    for axis in scope.tables.query_axes.get(name, ()):
        indices[axis] = indices[axis] - scope.env["q_start"]
    if table.dim() == len(indices) + 1:
        indices.insert(0, scope.env["b"] if table.shape[0] > 1 else 0)
    return indices


def rows_of(expr: Load, env: Mapping[str, Tensor | int], tables: Tables) -> Tensor:
    """The lists of a listed table at the rows that a load reads, ``[…, most]``."""
    scope = _Scope(env=env, tables=tables, real=torch.float64, memo={})
    table = tables.values[expr.table]
    *rows, _ = _rows(expr.table, [*(_value(index, scope) for index in expr.indices[:-1]), 0], scope)
    sizes = zip(rows, table.shape[:-1], strict=True)
    # Numbers stay with the host: torch would ask the device for those of an index without dimensions.
    return table[tuple(_clamp(row, size) for row, size in sizes)]


def listed(lists: Tensor, wanted: Value) -> Tensor:
    """Whether ``wanted`` is in the ascending lists ``[…, most]``; its dimensions broadcast to those before the last."""
    points = torch.as_tensor(wanted, dtype=torch.int32, device=lists.device)
    most = max(points.dim(), lists.dim() - 1)
    points = points.view(*[1] * (most - points.dim()), *points.shape)
    lists = lists.view(*[1] * (most + 1 - lists.dim()), *lists.shape)
    shape = torch.broadcast_shapes(points.shape, lists.shape[:-1])
    # One search for all points that share a list, where these lie along one of the last two dimensions.
    for dim in (-1, -2):
        if most >= -dim and lists.shape[dim - 1] == 1:
            rows, found = lists.squeeze(dim - 1), points.expand(*shape).movedim(dim, -1)
            return _search(rows, found).movedim(-1, dim)
    return _search(lists, points.expand(shape).unsqueeze(-1)).squeeze(-1)


def _search(rows: Tensor, points: Tensor) -> Tensor:
    rows = rows.expand(*points.shape[:-1], rows.shape[-1]).contiguous()
    place = torch.searchsorted(rows, points.contiguous(), out_int32=True).clamp(max=max(rows.shape[-1] - 1, 0))
    return rows.gather(-1, place.long()) == points


def element_numbers(
    name: str, indices: Sequence[Expr], env: Mapping[str, Tensor | int], tables: Tables = NO_TABLES
) -> Tensor:
    """The numbers, in row-major order, of the elements of a table that loads with these indices read."""
    scope = _Scope(env=env, tables=tables, real=torch.float64, memo={})
    found = torch.zeros((), dtype=torch.int64, device=tables.values[name].device)
    places = _places(name, [_value(index, scope) for index in indices], scope)
    for place, size in zip(places, tables.values[name].shape, strict=True):
        found = found * size + place
    return found


def _clamp(index: Value, size: int) -> Tensor | int:
    if isinstance(index, Tensor):
        return index.clamp(0, max(size - 1, 0))
    return min(max(int(index), 0), max(size - 1, 0))


def _real(value: Value, real: torch.dtype) -> Value:
    return value.to(real) if isinstance(value, Tensor) else float(value)


# ---------------------------------------------------------------- operations


def _shift_of(divisor: Value) -> int | None:
    """The exponent of a constant power of two: shifting is floor division, and many times faster."""
    if isinstance(divisor, int) and divisor > 0 and divisor & (divisor - 1) == 0:
        return divisor.bit_length() - 1
    return None


def _nonzero(divisor: Value) -> Value:
    if isinstance(divisor, Tensor):
        return torch.where(divisor == 0, 1, divisor)
    return divisor if divisor != 0 else 1


def _floordiv(x: Value, y: Value) -> Tensor:
    shift = _shift_of(y)
    if shift is not None and isinstance(x, Tensor):
        return x >> shift
    return torch.div(torch.as_tensor(x), _nonzero(y), rounding_mode="floor")


def _mod(x: Value, y: Value) -> Tensor:
    shift = _shift_of(y)
    if shift is not None and isinstance(x, Tensor):
        return x & ((1 << shift) - 1)
    return torch.remainder(torch.as_tensor(x), torch.as_tensor(_nonzero(y)))


def _pow(x: Value, y: Value) -> Tensor:
    if _is_int(x) and _is_int(y):
        # An int result means that the checker has proved the exponent not negative.
        y = y.clamp(min=0) if isinstance(y, Tensor) else max(y, 0)
    return torch.pow(*_pair(x, y))


def _is_int(x: Value) -> bool:
    """Whether a value is an int or a bool."""
    return not x.is_floating_point() if isinstance(x, Tensor) else isinstance(x, int)


def _pair(x: Value, y: Value) -> tuple[Tensor, Tensor]:
    """Both as tensors of one type on one device."""
    device = x.device if isinstance(x, Tensor) else y.device if isinstance(y, Tensor) else None
    a = _on(x, device)
    b = _on(y, device)
    kind = torch.promote_types(a.dtype, b.dtype)
    if kind == torch.float32 and torch.float64 in (a.dtype, b.dtype):
        kind = torch.float64
    return a.to(kind), b.to(kind)


def _min(x: Value, y: Value) -> Tensor:
    return torch.minimum(*_pair(x, y))


def _max(x: Value, y: Value) -> Tensor:
    return torch.maximum(*_pair(x, y))


def _isqrt(x: Tensor) -> Tensor:
    x = x.clamp(min=0)
    root = x.double().sqrt().long()
    # The rounding of large ints to floats may put the root one too high or too low.
    root = torch.where(root * root > x, root - 1, root)
    return torch.where((root + 1) * (root + 1) <= x, root + 1, root)


def _is_pow2(x: Tensor) -> Tensor:
    return (x > 0) & (x & (x - 1) == 0)


def _bitlen(x: Tensor) -> Tensor:
    x = x.abs()
    upper = x >> 32
    high, low = torch.frexp(upper.double())[1], torch.frexp((x & 0xFFFFFFFF).double())[1]
    return torch.where(upper > 0, high + 32, low).long()


def _where(condition: Value, x: Value, y: Value) -> Value:
    if not isinstance(condition, Tensor):
        return x if condition else y
    return torch.where(condition, *_pair_or_numbers(x, y, condition.device))


def _pair_or_numbers(x: Value, y: Value, device: torch.device) -> tuple[Tensor, Tensor]:
    return _pair(_on(x, device).to(device), _on(y, device).to(device))


def _on(value: Value, device: torch.device | None) -> Tensor:
    """A number as a tensor that is made there: one of the host comes from nowhere, for who watches what is asked of
    torch."""
    return value if isinstance(value, Tensor) else torch.full((), value, device=device)


def _round(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: function(x).long() if x.is_floating_point() else x


TORCH_OPS: dict[str, Callable[..., Value]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "floordiv": _floordiv,
    "mod": _mod,
    "pow": _pow,
    "neg": lambda x: -x,
    "abs": lambda x: x.abs(),
    "min": _min,
    "max": _max,
    "isqrt": _isqrt,
    "is_pow2": _is_pow2,
    "bitlen": _bitlen,
    "floor": _round(torch.floor),
    "ceil": _round(torch.ceil),
    "sqrt": torch.sqrt,
    "exp": torch.exp,
    "log": torch.log,
    "float": lambda x: x,
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
    "and": lambda x, y: x & y,
    "or": lambda x, y: x | y,
    "not": lambda x: ~x,
    "where": _where,
}
"""The torch function of each operation; at least one argument is a tensor."""


# ---------------------------------------------------------------- questions


def depends_on(expr: Expr, tables: Tables = NO_TABLES) -> frozenset[str]:
    """The index variables that the value may vary with; ``b`` also where a table has more than one batch."""
    return frozenset[str]().union(*(own_names(node, tables) for node in walk(expr)))


def own_names(node: Expr, tables: Tables) -> frozenset[str]:
    """What a node adds to the variables of its parts."""
    if isinstance(node, Index):
        return frozenset({node.name})
    if isinstance(node, Load):
        table = tables.values.get(node.table)
        if table is not None and table.dim() == len(node.indices) + 1 and table.shape[0] > 1:
            return frozenset({"b"})
    return frozenset()
