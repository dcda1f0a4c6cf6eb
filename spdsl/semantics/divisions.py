"""``grid`` and ``axis``: how positions are laid out and divided."""

from __future__ import annotations

from spdsl.diagnostics import Span
from spdsl.grammar import nodes as syntax
from spdsl.semantics import build, clauses
from spdsl.semantics import nodes as ir
from spdsl.semantics.expressions import Arg, Evaluator
from spdsl.semantics.names import declare
from spdsl.semantics.nodes import Const, Coord, Expr, Index
from spdsl.semantics.values import POISON, AxisRef, GridRef, Items, Poison, Scalar, TableRef, Value, describe
from spdsl.semantics.wording import excerpt


def _size(ev: Evaluator, node: syntax.Expr, context: str) -> Expr | None:
    """An int that is fixed for a call."""
    value = ev.scalar(node, "int", context)
    return None if value is None else _fixed(ev, value, node, context)


def _fixed(ev: Evaluator, value: Scalar, node: syntax.Expr, context: str) -> Expr | None:
    if value.axes or clauses.has_loads(value.expr):
        ev.error(
            "SP203",
            f"{context} must be fixed, but {excerpt(node)} varies",
            node.span,
            help="use parameters, numbers and `n`" if "grid" in context else "use parameters and numbers",
        )
        return None
    if isinstance(value.expr, Const) and value.expr.value < 1:
        ev.error(
            "SP203", f"{context} must be at least 1, not {value.expr.value}", node.span, help="give a larger number"
        )
        return None
    return value.expr


def grid(ev: Evaluator, node: syntax.Grid) -> None:
    """Declare a grid and its coordinates."""
    unit = ev.unit
    of: Expr | None = Index(name="k")
    if node.start is not None:
        start = ev.evaluate(node.start)
        match start:
            case AxisRef(name=name) if name != "token":
                of = Coord(side="k", axis=name)
            case Poison():
                of = None
            case _:
                begin = ev.scalar(node.start, "int", "the start of a grid")
                if begin is not None and begin.axes:
                    ev.error(
                        "SP203", "the start of a grid must be fixed", node.start.span, help="use parameters and `n`"
                    )
                    begin = None
                of = None if begin is None else build.sub(Index(name="k"), begin.expr)
    coordinates: list[tuple[str, Expr]] = []
    names: list[tuple[str, str, Span | None]] = []
    for coordinate in node.coordinates:
        extent = _size(ev, coordinate.value, "the extent of a grid")
        name = unit.fresh(coordinate.name)
        names.append((coordinate.name, name, coordinate.span))
        coordinates.append((name, build.lift(1) if extent is None else extent))
    if node.name is None and node.start is not None and not isinstance(of, Coord | None):
        ev.error(
            "SP203",
            "a grid that begins at a position needs a name",
            node.span,
            note="tokens before and after it are outside",
            help="write for example `grid video (…) from …`; `q in video` says whether a query is inside",
        )
    grid_name = None if node.name is None else unit.fresh(node.name)
    unit.add_grid(ir.Grid(name=grid_name, of=of or Index(name="k"), coordinates=tuple(coordinates), span=node.span))
    if node.name is not None:
        assert grid_name is not None
        declare(ev, node.name, GridRef(name=grid_name), node.span, "grid")
    for written, name, span in names:
        if declare(ev, written, AxisRef(name=name), span, "grid coordinate"):
            ev.scope.coordinates[written] = name


def axis(ev: Evaluator, node: syntax.AxisBy | syntax.AxisInto) -> None:
    """Declare an axis."""
    found = _divided(ev, node)
    if found is not None:
        ev.unit.add_axis(found)
    value: Value = POISON if found is None else AxisRef(name=found.name)
    if declare(ev, node.name, value, node.span, "axis") and found is not None:
        ev.scope.coordinates[node.name] = found.name


def _divided(ev: Evaluator, node: syntax.AxisBy | syntax.AxisInto) -> ir.Axis | None:
    values = ev.evaluate(node.of)
    parts = values.items if isinstance(values, Items) else (values,)
    nodes = node.of.items if isinstance(node.of, syntax.Tuple) else (node.of,)
    of: list[Expr] = []
    extents: list[Expr] = []
    for part, written in zip(parts, nodes, strict=False):
        match part:
            case AxisRef(name="token"):
                of.append(Index(name="k"))
            case AxisRef(name=name):
                of.append(Coord(side="k", axis=name))
            case Poison():
                return None
            case _:
                ev.error(
                    "SP203",
                    f"{excerpt(written)} is {describe(part)}, but an axis divides `token`, an axis or a "
                    "coordinate of a grid",
                    written.span,
                    help="for example `axis blk = token by 64`",
                )
                return None
        extents.append(ev.unit.extent(part.name))
    name = ev.unit.fresh(node.name)
    if isinstance(node, syntax.AxisInto):
        number = _size(ev, node.into, "the number of parts")
        if number is None:
            return None
        if len(of) != 1:
            ev.unsupported("`into` of several coordinates", node.span)
            return None
        return ir.Axis(
            name=name,
            of=tuple(of),
            size=None,
            step=None,
            table=None,
            into=number,
            extents=tuple(extents),
            span=node.span,
        )
    by = ev.evaluate(node.by)
    if isinstance(by, TableRef):
        return _by_table(ev, node, by.table, name, of, extents)
    step = _size(ev, node.step, "the step of an axis") if node.step is not None else None
    if isinstance(by, Poison) or (node.step is not None and step is None):
        return None
    sizes = by.items if isinstance(by, Items) else (by,)
    if len(sizes) != len(of):
        ev.error(
            "SP203",
            f"{len(of)} coordinates are divided by {len(sizes)} sizes",
            node.by.span,
            help="give one size for each coordinate",
        )
        return None
    found: list[Expr] = []
    for size in sizes:
        value = ev.expect(Arg(value=size, node=node.by), "int", "the size of an axis")
        fixed = None if value is None else _fixed(ev, value, node.by, "the size of an axis")
        if fixed is None:
            return None
        found.append(fixed)
    if step is not None and len(of) != 1:
        ev.unsupported("`step` of several coordinates", node.span)
        return None
    return ir.Axis(
        name=name,
        of=tuple(of),
        size=tuple(found),
        step=step,
        table=None,
        into=None,
        extents=tuple(extents),
        span=node.span,
    )


def _by_table(
    ev: Evaluator, node: syntax.AxisBy, table: ir.Table, name: str, of: list[Expr], extents: list[Expr]
) -> ir.Axis | None:
    if table.dtype != "int" or len(table.axes) != 1 or table.axes[0].kind != "token":
        ev.error(
            "SP203",
            f"an axis by a table needs an int[token], but `{table.name}` is {describe(TableRef(table=table))}",
            node.by.span,
            help="declare it as `int[token] sorted`",
        )
        return None
    if not table.sorted:
        ev.error(
            "SP203",
            f"an axis by a table needs a sorted one, but `{table.name}` is not declared `sorted`",
            node.by.span,
            help=f"write `input {table.name}: int[token] sorted`",
        )
        return None
    if len(of) != 1 or not isinstance(of[0], Index):
        ev.error(
            "SP203", "a table divides `token`", node.of.span, help=f"write `axis {node.name} = token by {table.name}`"
        )
        return None
    if node.step is not None:
        ev.error("SP203", "an axis by a table has no step", node.step.span, help="leave the step out")
        return None
    return ir.Axis(
        name=name,
        of=tuple(of),
        size=None,
        step=None,
        table=table.name,
        into=None,
        extents=tuple(extents),
        span=node.span,
    )
