"""The language as a scalar interpreter of the syntax tree: one pair at a time, with Python numbers.

It knows nothing of the checked pattern: names are looked up as they are met, values are computed when they are asked
for, and a reduction tries every position.  Slow, short, and an oracle for `check`, `bind`, `expand` and the reference.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from spdsl.grammar import nodes as syntax
from tests.library.masks import philox_uniform
from tests.semantics.point import Later, OutsideError, Point
from tests.semantics.varying import axes_of

Number = Any


FUNCTIONS: dict[str, Callable[..., Number]] = {
    "abs": abs,
    "min": min,
    "max": max,
    "clamp": lambda x, low, high: min(max(x, low), high),
    "isqrt": lambda x: math.isqrt(max(x, 0)),
    "is_pow2": lambda x: x in {1 << e for e in range(63)},
    "bitlen": lambda x: len(bin(abs(x))) - 2 if x else 0,
    "floor": math.floor,
    "ceil": math.ceil,
    "sqrt": math.sqrt,
    "exp": math.exp,
    "log": math.log,
    "float": float,
}
BINARY: dict[str, Callable[[Number, Number], Number]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
}
RELATIONS: dict[str, Callable[[Number, Number], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
REDUCTIONS: dict[str, Callable[[list[Number]], Number]] = {
    "any": any,
    "all": all,
    "sum": sum,
    "mean": lambda values: sum(values) / len(values) if values else 0,
    "min": lambda values: min(values, default=0),
    "max": lambda values: max(values, default=0),
}


def kept(
    program: syntax.Program,
    *,
    q: int,
    k: int,
    n: int,
    h: int = 0,
    b: int = 0,
    nq: int | None = None,
    heads: int = 1,
    groups: int = 1,
    layer: int = 0,
    parameters: Mapping[str, Any] | None = None,
    tables: Mapping[str, Any] | None = None,
) -> bool:
    """Whether the last pattern of ``program`` keeps a pair; ``parameters`` holds at least those without a default."""
    defs = {item.name: item for item in program.items if not isinstance(item, syntax.Use)}
    pattern = next(item for item in reversed(program.items) if isinstance(item, syntax.Pattern))
    sizes = {"n": n, "nq": n if nq is None else nq, "heads": heads, "groups": groups, "layer": layer, "d": 64}
    given = parameters or {}
    point = Point(q=q, k=k, h=h, b=b, sizes=sizes, tables=tables or {}, pattern=pattern)
    names: dict[str, Any] = dict(defs)
    for parameter in pattern.parameters:
        names[parameter.name] = given[parameter.name] if parameter.name in given else _late(parameter.default, names)
    return _run(pattern, replace(point, names=names))


def _late(expr: Any, names: Mapping[str, Any]) -> Later:
    return Later(expr=expr, names=dict(names))


def _run(pattern: syntax.Pattern, point: Point) -> bool:
    """The statements of a pattern, then the set that it keeps."""
    sets: list[syntax.Expr] = []
    returned: syntax.Expr | None = None
    names = dict(point.names)
    axes, grids = dict(point.axes), list(point.grids)
    for statement in pattern.statements:
        match statement:
            case syntax.Let(name=name, value=value):
                names[name] = _late(value, names)
            case syntax.AxisBy(name=name) | syntax.AxisInto(name=name):
                axes[name] = statement
            case syntax.Grid():
                grids.append(statement)
            case syntax.Keep(set=kept_set):
                sets.append(kept_set)
            case syntax.Return(value=value):
                returned = value
            case _:
                pass
    inner = replace(point, names=names, axes=axes, grids=tuple(grids))
    if returned is not None:
        return bool(value_of(returned, inner))
    return any(bool(value_of(each, inner)) for each in sets)


def value_of(expr: syntax.Expr, at: Point) -> Any:
    """The value of an expression at one pair: a number, a bool, or a tuple."""
    match expr:
        case syntax.Number(value=value):
            return value
        case syntax.Name(id=name):
            return _named(name, at)
        case syntax.Tuple(items=items):
            return tuple(value_of(item, at) for item in items)
        case syntax.Unary(op=op, operand=operand):
            value = value_of(operand, at)
            return not value if op == "not" else -value
        case syntax.Binary(op="and", left=left, right=right):
            return bool(value_of(left, at)) and bool(value_of(right, at))
        case syntax.Binary(op="or", left=left, right=right):
            return bool(value_of(left, at)) or bool(value_of(right, at))
        case syntax.Binary(op=op, left=left, right=right):
            return BINARY[op](value_of(left, at), value_of(right, at))
        case syntax.Compare(ops=ops, operands=operands):
            return _compared(ops, operands, at)
        case syntax.Choose(condition=condition, yes=yes, no=no):
            return value_of(yes if value_of(condition, at) else no, at)
        case syntax.Attribute():
            return _attribute(expr, at)
        case syntax.Subscript(value=table, indices=indices):
            return _element(table, tuple(value_of(index, at) for index in indices), at)
        case syntax.Call(function=syntax.Name(id=name), arguments=arguments):
            return _called(name, arguments, at)
        case syntax.Pipe():
            return _piped(expr, at)
        case syntax.Body(clauses=clauses):
            return any(value_of(clause.set, at) for clause in clauses if isinstance(clause, syntax.Keep))
        case _:
            raise TypeError(f"{type(expr).__name__} is not part of the static language")


def _named(name: str, at: Point) -> Any:
    group = at.h // (at.sizes["heads"] // at.sizes["groups"])
    fixed = {"q": at.q, "k": at.k, "h": at.h, "b": at.b, "g": group, "causal": at.k <= at.q, "all": True}
    fixed |= {**at.sizes, "true": True, "false": False}
    if name in fixed:
        return fixed[name]
    if name in at.names:
        found = at.names[name]
        return value_of(found.expr, replace(at, names=found.names)) if isinstance(found, Later) else found
    if name in at.tables:
        return _element(syntax.Name(id=name), (), at)
    raise KeyError(name)


def _element(table: syntax.Expr, indices: tuple[int, ...], at: Point) -> Any:
    if isinstance(table, syntax.Name) and table.id in at.tables:
        value = at.tables[table.id]
        for index in (*indices, *_implied(table.id, len(indices), at)):
            if not 0 <= index < len(value):
                raise IndexError(f"{table.id}[{index}]")
            value = value[index]
        return value.item() if hasattr(value, "item") else value
    (place,) = indices
    value = value_of(table, at)
    # The default of a tuple of one item is written without parentheses.
    return value[place] if isinstance(value, tuple) else value


def _implied(table: str, given: int, at: Point) -> list[int]:
    """Indices for the trailing axes of an input that are left out because they bear the names of indices."""
    declared = [each for each in at.pattern.statements if isinstance(each, syntax.Input) and each.name == table]
    axes = declared[0].type.extents[given:] if declared else ()
    return [_named(axis.value.id, at) for axis in axes if isinstance(axis.value, syntax.Name)]


def _compared(ops: tuple[str, ...], operands: tuple[syntax.Expr, ...], at: Point) -> bool:
    try:
        for op, left, right in zip(ops, operands, operands[1:], strict=False):
            held = _is_in(left, right, at) if op == "in" else RELATIONS[op](value_of(left, at), value_of(right, at))
            if not held:
                return False
    except OutsideError:
        return False
    return True


def _is_in(left: syntax.Expr, right: syntax.Expr, at: Point) -> bool:
    if isinstance(right, syntax.Name) and right.id in {grid.name for grid in at.grids}:
        grid = next(grid for grid in at.grids if grid.name == right.id)
        return _in_grid(grid, value_of(left, at), at)
    return value_of(left, at) in value_of(right, at)


# ---------------------------------------------------------------- axes and grids


def _attribute(expr: syntax.Attribute, at: Point) -> Any:
    match expr:
        case syntax.Attribute(value=syntax.Name(id=("q" | "k") as side), name=name):
            return _coordinate(name, getattr(at, side), at)
        case syntax.Attribute(value=syntax.Name(id=axis), name="count"):
            return _extent(axis, at)
        case syntax.Attribute(value=syntax.Attribute(value=syntax.Name(id=side), name=axis), name=what):
            return _edge(axis, _coordinate(axis, getattr(at, side), at), what, at)
        case _:
            raise TypeError("not part of the static language")


def _edge(axis: str, member: int, what: str, at: Point) -> int:
    """First, last (both nominal) and size of a member of an axis of tokens in blocks."""
    width = value_of(at.axes[axis].by, at)
    first = member * width
    if what == "size":
        return min(first + width, at.sizes["n"]) - first
    return first if what == "first" else first + width - 1


def _coordinate(name: str, position: int, at: Point) -> int:
    if name in at.axes:
        axis = at.axes[name]
        if isinstance(axis, syntax.AxisInto):
            return position * value_of(axis.into, at) // at.sizes["n"]
        if isinstance(axis.by, syntax.Name) and axis.by.id in at.tables:
            return int(_element(axis.by, (position,), at))
        return _of_axis(axis, position, at)
    for grid in at.grids:
        for place, coordinate in enumerate(grid.coordinates):
            if coordinate.name == name:
                return _of_grid(grid, place, position, at)
    raise KeyError(name)


def _of_axis(axis: syntax.AxisBy, position: int, at: Point) -> int:
    parts = axis.of.items if isinstance(axis.of, syntax.Tuple) else (axis.of,)
    widths = value_of(axis.by, at)
    widths = widths if isinstance(widths, tuple) else (widths,)
    whole = 0
    for part, width in zip(parts, widths, strict=True):
        assert isinstance(part, syntax.Name)
        if part.id == "token":
            place, extent = position, at.sizes["n"]
        else:
            place, extent = _coordinate(part.id, position, at), _extent(part.id, at)
        whole = whole * -(-extent // width) + place // width
    return whole


def _extent(name: str, at: Point) -> int:
    if name in at.axes:
        axis = at.axes[name]
        parts = value_of(axis.into, at) if isinstance(axis, syntax.AxisInto) else None
        return parts or max(_coordinate(name, position, at) for position in range(at.sizes["n"])) + 1
    return next(value_of(c.value, at) for grid in at.grids for c in grid.coordinates if c.name == name)


def _in_grid(grid: syntax.Grid, position: int, at: Point) -> bool:
    start = value_of(grid.start, at) if grid.start is not None else 0
    cells = math.prod(value_of(coordinate.value, at) for coordinate in grid.coordinates)
    return bool(0 <= position - start < cells)


def _of_grid(grid: syntax.Grid, place: int, position: int, at: Point) -> int:
    if grid.name is not None and not _in_grid(grid, position, at):
        raise OutsideError
    extents = [value_of(coordinate.value, at) for coordinate in grid.coordinates]
    position -= value_of(grid.start, at) if grid.start is not None else 0
    rest = position // math.prod(extents[place + 1 :])
    return rest if place == 0 else rest % extents[place]


# ---------------------------------------------------------------- functions, reductions, selections


def _called(name: str, arguments: tuple[syntax.Argument, ...], at: Point) -> Any:
    named = {argument.name: argument.value for argument in arguments if argument.name is not None}
    given = [argument.value for argument in arguments if argument.name is None]
    if name == "noise":
        per = named["per"].items if isinstance(named["per"], syntax.Tuple) else (named["per"],)
        return philox_uniform(value_of(given[0], at), [value_of(index, at) for index in per])
    if name in REDUCTIONS and len(given) == 1:
        return _reduced(name, given[0], named, at)
    if name in FUNCTIONS:
        return FUNCTIONS[name](*(value_of(each, at) for each in given))
    target = at.names[name]
    if isinstance(target, syntax.Def):
        values = {
            parameter: Later(expr=value, names=at.names)
            for parameter, value in zip(target.parameters, given, strict=True)
        }
        functions = {key: each for key, each in at.names.items() if isinstance(each, (syntax.Def, syntax.Pattern))}
        return value_of(target.value, replace(at, names={**functions, **values}))
    return _pattern_called(target, given, named, at)


def _pattern_called(
    pattern: syntax.Pattern, given: list[syntax.Expr], named: Mapping[str, syntax.Expr], at: Point
) -> bool:
    names = {key: each for key, each in at.names.items() if isinstance(each, (syntax.Def, syntax.Pattern))}
    for place, parameter in enumerate(pattern.parameters):
        expr = given[place] if place < len(given) else named.get(parameter.name)
        outer = at.names if expr is not None else dict(names)
        names[parameter.name] = Later(expr=expr or parameter.default, names=outer)
    return _run(pattern, replace(at, names=names, axes={}, grids=()))


def _moved(at: Point, side: str, position: int) -> Point:
    return replace(at, q=position) if side == "q" else replace(at, k=position)


def _reduced(name: str, body: syntax.Expr, named: Mapping[str, syntax.Expr], at: Point) -> Any:
    positions = range(at.sizes["n"])
    match named.get("per"), named.get("over"):
        case syntax.Attribute(value=syntax.Name(id=side), name=axis), None:
            own = {each for each in axes_of(body, at) if each.startswith(side)}
            if own <= {f"{side}.{axis}"} and name != "sum":
                # The array has no finer axis that could be reduced.  A sum counts positions all the same.
                return value_of(body, at)
            here = _coordinate(axis, getattr(at, side), at)
            members = [p for p in positions if _coordinate_or_none(axis, p, at) == here]
        case None, syntax.Name(id=side):
            members = list(positions)
        case _:
            raise TypeError("not part of the static language")
    return REDUCTIONS[name]([value_of(body, _moved(at, side, position)) for position in members])


def _coordinate_or_none(axis: str, position: int, at: Point) -> int | None:
    try:
        return _coordinate(axis, position, at)
    except OutsideError:
        return None


def _piped(expr: syntax.Pipe, at: Point) -> Any:
    """``value |> only(set) |> top(count)``; other pipes are calls with the value as first argument."""
    if expr.stage.id != "top":
        return _called(expr.stage.id, (syntax.Argument(name=None, value=expr.value), *expr.arguments), at)
    only: list[syntax.Expr] = []
    value = expr.value
    while isinstance(value, syntax.Pipe) and value.stage.id == "only":
        only.append(value.arguments[0].value)
        value = value.value
    over = next((argument.value for argument in expr.arguments if argument.name == "over"), None)
    axis = over.name if isinstance(over, syntax.Attribute) else _axis_of(value, "k")
    count = value_of(expr.arguments[0].value, at)
    members: dict[int, int] = {}
    for position in range(at.sizes["n"]):
        members.setdefault(position if axis is None else _coordinate(axis, position, at), position)
    ranked = []
    for member, position in members.items():
        there = _moved(at, "k", position)
        if all(value_of(each, there) for each in only):
            ranked.append((-value_of(value, there), member))
    best = {member for _, member in sorted(ranked)[: max(count, 0)]}
    return (at.k if axis is None else _coordinate(axis, at.k, at)) in best


def _axis_of(value: syntax.Expr, side: str) -> str | None:
    """The axis of ``side`` along which ``noise(…, per = (…, k.blk))`` varies; None for positions."""
    assert isinstance(value, syntax.Call)
    per = next(argument.value for argument in value.arguments if argument.name == "per")
    for index in per.items if isinstance(per, syntax.Tuple) else (per,):
        if isinstance(index, syntax.Attribute) and isinstance(index.value, syntax.Name) and index.value.id == side:
            return index.name
    return None
