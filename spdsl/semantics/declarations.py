"""Statements of a pattern: parameters, inputs, grids, axes and lets, each added to the unit and the scope."""

from __future__ import annotations

from typing import cast

from spdsl.diagnostics import Span, SpatError
from spdsl.grammar import nodes as syntax
from spdsl.semantics import build, clauses
from spdsl.semantics import nodes as ir
from spdsl.semantics.expressions import Evaluator, a_kind, excerpt
from spdsl.semantics.fold import fold_constants
from spdsl.semantics.inputs import input_table
from spdsl.semantics.nodes import Bounds, Const, Coord, Dtype, Expr, Index
from spdsl.semantics.report import did_you_mean
from spdsl.semantics.scope import ARGUMENTS, BUILTINS, TYPES, WORDS
from spdsl.semantics.values import POISON, AxisRef, Entry, GridRef, Items, Poison, Scalar, TableRef, Value, describe


def declare(ev: Evaluator, name: str, value: Value, span: Span | None, kind: str) -> bool:
    """Add a name to the scope unless it is taken or reserved."""
    from spdsl.semantics.functions import FUNCTIONS

    if name in BUILTINS or name in WORDS or name in FUNCTIONS or name in TYPES:
        ev.error(
            "SP202", f"`{name}` already means something in the language", span, help=f"give the {kind} another name"
        )
        if name not in BUILTINS:
            ev.scope.declare(name, POISON, span, kind)
        return False
    if kind in ("parameter", "input") and name in ARGUMENTS:
        ev.error(
            "SP202",
            f"no {kind} may be called `{name}`",
            span,
            help="calls from Python have an argument of that name; choose another",
        )
        if name not in BUILTINS:
            ev.scope.declare(name, POISON, span, kind)
        return False
    earlier = ev.scope.entries.get(name)
    if earlier is not None:
        line = f"{a_kind(earlier.kind)} since line {earlier.span.line}" if earlier.span else ""
        ev.error("SP202", f"`{name}` is declared twice", span, note=line, help="give one of them another name")
        return False
    if name in ev.unit.library.defs or name in ev.unit.library.patterns:
        what = "def" if name in ev.unit.library.defs else "pattern"
        ev.error("SP202", f"`{name}` is the name of a {what}", span, help=f"give the {kind} another name")
        return False
    ev.scope.declare(name, value, span, kind)
    return True


# ---------------------------------------------------------------- parameters


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
        named = next((extent for extent in node.type.extents if extent.name is not None), None)
        if named is not None:
            ev.unsupported(f"the free axis `{named.name}`", named.span)
            assert named.name is not None
            ev.scope.entries.setdefault(named.name, Entry(value=POISON, span=named.span, kind="free axis", used=True))
            return None
        if len(node.type.extents) > 1:
            ev.error("SP203", "a parameter is a number or a tuple", node.type.span, help="larger tables are inputs")
            return None
        match ev.evaluate(node.type.extents[0].value):
            case Scalar(expr=Const(value=int() as size)) if not isinstance(size, bool) and 1 <= size <= 64:
                length = size
            case Poison():
                return None
            case _:
                ev.error("SP203", "the length of a tuple is a number from 1 to 64", node.type.extents[0].span)
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
                )
                return None
    return ir.Parameter(name=node.name, dtype=dtype, length=length, bounds=bounds, default=default, span=node.span)


def check_range(ev: Evaluator, node: syntax.Range | None, dtype: Dtype, name: str) -> Bounds | None:
    """A range fit for the type."""
    if node is None:
        return None
    if dtype == "bool":
        ev.error("SP211", f"`{name}` is a bool and has no range", node.span)
        return None
    if dtype == "int" and any(isinstance(end, float) for end in (node.low, node.high)):
        ev.error("SP211", f"`{name}` is an int, but its range has a float", node.span)
        return None
    if node.low is not None and node.high is not None and node.low > node.high:
        ev.error("SP211", f"the range {node.low}..{node.high} of `{name}` is empty", node.span)
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
            "SP211", f"the default of `{node.name}` is {describe(value)}, but its type is {wanted}", node.default.span
        )
        return None
    found: list[bool | int | float] = []
    for item in items:
        if not isinstance(item, Scalar):
            ev.error("SP211", f"the default of `{node.name}` is {describe(item)}", node.default.span)
            return None
        try:
            expr = fold_constants(item.expr, code="SP215")
        except SpatError as failure:
            ev.error(failure.code, failure.diagnostics[0].message, node.default.span)
            return None
        if not isinstance(expr, Const):
            ev.error("SP211", f"the default of `{node.name}` is not a constant", node.default.span)
            return None
        if expr.dtype != dtype and not (dtype == "float" and expr.dtype == "int"):
            ev.error(
                "SP211",
                f"the default {shown(expr.value)} of `{node.name}` is {describe(item)}, but its type is {dtype}",
                node.default.span,
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


# ---------------------------------------------------------------- statements


def statements(ev: Evaluator, pattern: syntax.Pattern) -> Value:
    """Check the statements of a pattern in order; the value is its softmax."""
    later = ev.unit.later
    ev.unit.later = {s.name: s.span for s in pattern.statements if isinstance(s, (syntax.Input, syntax.AxisBy,
                     syntax.AxisInto, syntax.Let))}  # fmt: skip
    found = clauses.Clauses()
    returned: Value | None = None
    style = clauses.only_keeps(pattern.statements)
    try:
        for statement in pattern.statements:
            match statement:
                case syntax.Keep() | syntax.Setting():
                    if style == "return":
                        ev.error(
                            "SP214",
                            "a pattern with `return` has no clauses of its own",
                            statement.span,
                            help="put the clause into the `attend { … }` that is returned",
                        )
                    clauses.clause(ev, found, statement)
                case syntax.Return():
                    if style == "clauses" or returned is not None:
                        ev.error(
                            "SP214",
                            "a pattern has either clauses or one `return`",
                            statement.span,
                            help="put the clauses into `attend { … }`" if style == "clauses" else "",
                        )
                    value = clauses.result(ev, statement)
                    returned = value if returned is None else returned
                case _:
                    _declaration(ev, statement)
    finally:
        ev.unit.later = later
    if returned is not None:
        return returned
    return clauses.finish(ev, found, pattern.span and _headline(pattern.span), f"pattern `{pattern.name}`")


def _headline(span: Span) -> Span:
    """The first line of a construct, for messages about all of it."""
    if span.line == span.end_line:
        return span
    end = len(span.source.line(span.line).rstrip()) + 1
    return Span(source=span.source, line=span.line, column=span.column, end_line=span.line, end_column=end)


def _declaration(ev: Evaluator, node: syntax.Statement) -> None:
    match node:
        case syntax.Input():
            table = input_table(ev, node)
            declare(ev, node.name, POISON if table is None else TableRef(table=table), node.span, "input")
        case syntax.Grid():
            _grid(ev, node)
        case syntax.AxisBy() | syntax.AxisInto():
            _axis(ev, node)
        case syntax.Let():
            value = ev.evaluate(node.value)
            declare(ev, node.name, value, node.span, "let")
        case syntax.Export():
            ev.mark_used(node.value)
            ev.unsupported("`export`", node.span)
        case _:
            raise AssertionError(node)


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
            help="use parameters, numbers and `n`",
        )
        return None
    if isinstance(value.expr, Const) and value.expr.value < 1:
        ev.error("SP203", f"{context} must be at least 1, not {value.expr.value}", node.span)
        return None
    return value.expr


def _grid(ev: Evaluator, node: syntax.Grid) -> None:
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
    grid_name = None if node.name is None else unit.fresh(node.name)
    unit.add_grid(ir.Grid(name=grid_name, of=of or Index(name="k"), coordinates=tuple(coordinates), span=node.span))
    if node.name is not None:
        assert grid_name is not None
        declare(ev, node.name, GridRef(name=grid_name), node.span, "grid")
    for written, name, span in names:
        if declare(ev, written, AxisRef(name=name), span, "grid coordinate"):
            ev.scope.coordinates[written] = name


def _axis(ev: Evaluator, node: syntax.AxisBy | syntax.AxisInto) -> None:
    axis = _divided(ev, node)
    if axis is not None:
        ev.unit.add_axis(axis)
    value: Value = POISON if axis is None else AxisRef(name=axis.name)
    if declare(ev, node.name, value, node.span, "axis") and axis is not None:
        ev.scope.coordinates[node.name] = axis.name


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
        from spdsl.semantics.expressions import Arg

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
        ev.error("SP203", "a table divides `token`", node.of.span)
        return None
    if node.step is not None:
        ev.error("SP203", "an axis by a table has no step", node.step.span)
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
