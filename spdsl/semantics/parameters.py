"""Parameters of a pattern: their types, ranges and defaults."""

from __future__ import annotations

from typing import cast

from spdsl.diagnostics import SpatError
from spdsl.grammar import nodes as syntax
from spdsl.semantics import nodes as ir
from spdsl.semantics.expressions import Evaluator
from spdsl.semantics.fold import fold_constants
from spdsl.semantics.nodes import Bounds, Const, Dtype, Index
from spdsl.semantics.report import did_you_mean
from spdsl.semantics.scope import TYPES
from spdsl.semantics.values import POISON, Entry, Items, Poison, Scalar, Value, describe
from spdsl.semantics.wording import a_kind


def parameter(ev: Evaluator, node: syntax.Param) -> ir.Parameter | None:
    """A declared parameter with its default checked; None after a mistake."""
    if node.type.name not in TYPES:
        ev.error(
            "SP203",
            f"there is no type `{node.type.name}`",
            node.type.span,
            help=did_you_mean(node.type.name, TYPES) or "types are int, float and bool",
        )
        return None
    dtype = cast(Dtype, node.type.name)
    length: int | None = None
    if node.type.extents:
        if len(node.type.extents) > 1:
            ev.error("SP203", "a parameter is a number or a tuple", node.type.span, help="larger tables are inputs")
            return None
        match ev.evaluate(node.type.extents[0].value):
            case Scalar(expr=Const(value=int() as size)) if not isinstance(size, bool) and 1 <= size <= 64:
                length = size
                if not _members(ev, node.type.extents[0], size):
                    return None
            case Poison():
                return None
            case _:
                ev.error(
                    "SP203",
                    "the length of a tuple is a number from 1 to 64",
                    node.type.extents[0].span,
                    help="for example `int[3]`",
                )
                return None
    bounds = check_range(ev, node.range, dtype, node.name)
    default = None
    if node.default is not None:
        found = _default(ev, node, dtype, length)
        if found is None:
            return None
        default = found if length is not None else found[0]
        for value in found:
            if not within(value, bounds):
                ev.error(
                    "SP211",
                    f"the default {shown(value)} of `{node.name}` is outside its range {range_text(bounds)}",
                    node.default.span,
                    help="give a default of the range, or widen the range",
                )
                return None
    return ir.Parameter(name=node.name, dtype=dtype, length=length, bounds=bounds, default=default, span=node.span)


def _members(ev: Evaluator, extent: syntax.Extent, size: int) -> bool:
    """Make the name of a tuple's axis known, if it has one: ``int[i: 5]``; records the mistake."""
    name = extent.name
    if name is None:
        return True
    known = ev.unit.members.get(name)
    if not ev.free_name(name) or (known is not None and known != size):
        what = (
            f"has {known} members elsewhere" if known is not None else "means something else, or is no lower-case name"
        )
        ev.error("SP203", f"the axis `{name}` {what}", extent.span, help="give it another name")
        return False
    ev.unit.members[name] = size
    axis = Scalar(expr=Index(name=name), axes=frozenset((name,)))
    ev.scope.entries.setdefault(name, Entry(value=axis, span=extent.span, kind="free axis", used=True))
    return True


def check_range(ev: Evaluator, node: syntax.Range | None, dtype: Dtype, name: str) -> Bounds | None:
    """A range fit for the type."""
    if node is None:
        return None
    if dtype == "bool":
        ev.error("SP211", f"`{name}` is a bool and has no range", node.span, help="leave the range out")
        return None
    if dtype == "int" and any(isinstance(end, float) for end in (node.low, node.high)):
        ev.error("SP211", f"`{name}` is an int, but its range has a float", node.span, help="give whole numbers")
        return None
    if node.low is not None and node.high is not None and node.low > node.high:
        ev.error(
            "SP211",
            f"the range {node.low}..{node.high} of `{name}` is empty",
            node.span,
            help="give the smaller number first",
        )
        return None
    return Bounds(low=node.low, high=node.high, span=node.span)


def within(value: bool | int | float, bounds: Bounds | None) -> bool:
    """Whether a value lies in a range."""
    if bounds is None:
        return True
    return (bounds.low is None or value >= bounds.low) and (bounds.high is None or value <= bounds.high)


def range_text(bounds: Bounds | None) -> str:
    """``1..`` or ``0..10``."""
    if bounds is None:
        return ".."
    return f"{'' if bounds.low is None else bounds.low}..{'' if bounds.high is None else bounds.high}"


def shown(value: object) -> str:
    """A value as the language writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _default(
    ev: Evaluator, node: syntax.Param, dtype: Dtype, length: int | None
) -> tuple[bool | int | float, ...] | None:
    assert node.default is not None
    value = ev.evaluate(node.default)
    if isinstance(value, Poison):
        return None
    items = value.items if isinstance(value, Items) else (value,)
    if (length or 1) != len(items) or (length is None and isinstance(value, Items)):
        wanted = "a single value" if length is None else f"a tuple of {length}"
        ev.error(
            "SP211",
            f"the default of `{node.name}` is {describe(value)}, but its type is {wanted}",
            node.default.span,
            help=f"write {wanted}",
        )
        return None
    found: list[bool | int | float] = []
    for item in items:
        if not isinstance(item, Scalar):
            ev.error(
                "SP211",
                f"the default of `{node.name}` is {describe(item)}",
                node.default.span,
                help="give a number, or `true` or `false`",
            )
            return None
        try:
            expr = fold_constants(item.expr, code="SP215")
        except SpatError as failure:
            ev.error(
                failure.code,
                failure.diagnostics[0].message,
                node.default.span,
                help=failure.help or "give another number",
            )
            return None
        if not isinstance(expr, Const):
            ev.error(
                "SP211", f"the default of `{node.name}` is not a constant", node.default.span, help="use numbers alone"
            )
            return None
        if expr.dtype != dtype and not (dtype == "float" and expr.dtype == "int"):
            ev.error(
                "SP211",
                f"the default {shown(expr.value)} of `{node.name}` is {describe(item)}, but its type is {dtype}",
                node.default.span,
                help=f"give {a_kind(dtype)}",
            )
            return None
        found.append(float(expr.value) if dtype == "float" else expr.value)
    return tuple(found)


def parameter_value(declared: ir.Parameter) -> Value:
    """What the name of a parameter means in the pattern it belongs to."""
    if declared.length is None:
        return Scalar(expr=ir.Param(name=declared.name, dtype=declared.dtype, span=declared.span))
    return Items(
        items=tuple(
            Scalar(expr=ir.Param(name=declared.name, dtype=declared.dtype, item=item, span=declared.span))
            for item in range(declared.length)
        )
    )


def default_value(declared: ir.Parameter) -> Value:
    """The default of a parameter as a value; wrong if there is none, which has been said."""
    match declared.default:
        case None:
            return POISON
        case tuple() as items:
            return Items(items=tuple(Scalar(expr=Const(value=item)) for item in items))
        case value:
            return Scalar(expr=Const(value=value))
