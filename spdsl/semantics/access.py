"""Attributes and indices: coordinates of positions, their members, elements of tables, items of tuples."""

from __future__ import annotations

from spdsl.grammar import nodes as syntax
from spdsl.semantics import build, operators
from spdsl.semantics.expressions import Arg, Evaluator
from spdsl.semantics.nodes import Const, Coord, Index, Load, Side, Table
from spdsl.semantics.report import did_you_mean, listing
from spdsl.semantics.values import POISON, AxisRef, Items, Poison, Scalar, TableRef, Value, describe
from spdsl.semantics.wording import a_kind, excerpt, plain


def _quoted(text: str) -> str:
    return f"`{text}`"


def attribute(ev: Evaluator, node: syntax.Attribute) -> Value:
    """``q.blk``, ``k.blk.last`` and ``blk.count``."""
    value = ev.evaluate(node.value)
    match value:
        case Poison():
            return POISON
        case Scalar(expr=Index(name="q" | "k" as side)):
            name = ev.scope.coordinates.get(node.name)
            if name is None:
                entry = ev.scope.entries.get(node.name)
                if entry is not None and isinstance(entry.value, Poison):
                    return POISON
                if entry is None and ev.unit.comes_later(node.name):
                    return ev.unit.refuse_early(ev, node.name, node.span)
                help = did_you_mean(node.name, ev.scope.coordinates)
                if entry is not None:
                    help = f"`{node.name}` is {a_kind(entry.kind)}, not an axis or grid coordinate"
                elif not ev.scope.coordinates:
                    help = f"declare it, for example `axis {node.name} = token by 64`"
                elif not help:
                    help = f"there are {listing(sorted(ev.scope.coordinates))}"
                return ev.error("SP207", f"there is no axis `{node.name}`", node.span, help=help)
            entry = ev.scope.entries.get(node.name)
            if entry is not None:
                entry.used = True
            coordinate = Coord(side=side, axis=name, span=node.span)
            return Scalar(
                expr=coordinate,
                axes=frozenset((f"{side}.{name}",)),
                guards=ev.unit.guards(side, name),
            )
        case Scalar(expr=Coord() as coordinate):
            return ev.unit.member(ev, coordinate, node)
        case AxisRef(name=name) if node.name == "count" and name != "token":
            return Scalar(expr=ev.unit.count(name), size=4)
        case AxisRef(name=name):
            help = "the number of positions is `n`" if name == "token" else f"an axis has `{name}.count`"
            return ev.error("SP207", f"an axis has no `{node.name}`", node.span, help=help)
        case _:
            return ev.error(
                "SP207",
                f"{excerpt(node.value)} is {describe(value)}, which has no `{node.name}`",
                node.span,
                help="coordinates are written `q.name` and `k.name`",
            )


def subscript(ev: Evaluator, node: syntax.Subscript) -> Value:
    """``doc[q]`` and ``size[0]``."""
    value = ev.evaluate(node.value)
    indices = tuple(ev.arg(index) for index in node.indices)
    match value:
        case Poison():
            return POISON
        case TableRef(table=table):
            return load(ev, table, indices, node)
        case Items(items=items):
            return _item(ev, items, indices, node)
        case _:
            return ev.error(
                "SP206",
                f"{excerpt(node.value)} is {describe(value)} and takes no index",
                node.span,
                note=ev.note(Arg(value=value, node=node.value)),
                help="inputs and tuples are indexed; everything else is written at a point already",
            )


def _item(ev: Evaluator, items: tuple[Value, ...], indices: tuple[Arg, ...], node: syntax.Subscript) -> Value:
    if len(indices) != 1:
        return ev.error("SP206", f"a tuple takes one index, not {len(indices)}", node.span, help="a tuple has one axis")
    index = ev.expect(indices[0], "int", "an index")
    if index is None:
        return POISON
    match index.expr:
        case Const(value=int() as number):
            pass
        case Index(name=name) if ev.unit.members.get(name) == len(items):
            return _each(ev, items, index, node)
        case _:
            return ev.error("SP206", "a tuple is indexed by a constant", node.span, help="write the number of the item")
    if not 0 <= number < len(items):
        last = len(items) - 1
        return ev.error(
            "SP206",
            f"{excerpt(node.value)} has no item {number}",
            node.span,
            note=f"a tuple of {len(items)}",
            help=f"its items are 0 to {last}",
        )
    return items[number]


def _each(ev: Evaluator, items: tuple[Value, ...], index: Scalar, node: syntax.Subscript) -> Value:
    """The items of a tuple along an axis of its members."""
    whole = items[-1]
    for number in reversed(range(len(items) - 1)):
        same = Scalar(expr=build.apply("eq", index.expr, number), axes=index.axes, size=3)
        if not isinstance(items[number], Scalar) or not isinstance(whole, Scalar):
            return POISON
        whole = operators.combine(ev, "where", (same, items[number], whole), node.span)  # type: ignore[arg-type]
    if isinstance(whole, Scalar):
        return Scalar(expr=whole.expr, axes=whole.axes | index.axes, size=whole.size)
    return whole


def load(
    ev: Evaluator, table: Table, indices: tuple[Arg, ...], node: syntax.Expr, *, position: Side | None = None
) -> Value:
    """An element of a table; index names among the trailing axes are implied, ``token`` only by ``position``."""
    if len(indices) > len(table.axes):
        return ev.error(
            "SP206",
            f"`{table.name}` has {_count(len(table.axes), 'axis', 'axes')}, "
            f"but here are {_count(len(indices), 'index', 'indices')}",
            node.span,
            note=f"declared as {describe(TableRef(table=table)).partition('table ')[2]}",
            help="leave the others out",
        )
    scalars = [ev.expect(index, "int", "an index") for index in indices]
    if any(scalar is None for scalar in scalars):
        return POISON
    found = [scalar for scalar in scalars if scalar is not None]
    for axis in table.axes[len(indices) :]:
        match axis.kind:
            case "q" | "h" | "g" | "b":
                found.append(Scalar(expr=Index(name=axis.kind), axes=frozenset((axis.kind,))))
            case "axis":
                side, _, name = ev.unit.coordinate_of(axis).partition(".")
                found.append(
                    Scalar(
                        expr=Coord(side="q" if side == "q" else "k", axis=name),
                        axes=frozenset((f"{side}.{name}",)),
                        guards=ev.unit.guards("q" if side == "q" else "k", name),
                    )
                )
            case "free":
                found.append(Scalar(expr=Index(name=axis.label), axes=frozenset((axis.label,))))
            case "token" if position is not None:
                found.append(Scalar(expr=Index(name=position), axes=frozenset((position,))))
            case _:
                example = "q" if axis.kind == "token" else "0"
                written = ", ".join([*(plain(index.node) for index in indices), example])
                return ev.error(
                    "SP206",
                    f"`{table.name}` needs an index for its axis `{axis.label}`",
                    node.span,
                    note=describe(TableRef(table=table)),
                    help=f"write for example {_quoted(f'{table.name}[{written}]')}",
                )
    expr = Load(table=table.name, dtype=table.dtype, indices=tuple(s.expr for s in found), span=node.span)
    return operators.whole(ev, expr, found, node.span)


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
