"""Statements of a pattern, in order: declarations go to the scope, clauses to the softmax."""

from __future__ import annotations

from spdsl.diagnostics import Span
from spdsl.grammar import nodes as syntax
from spdsl.semantics import clauses, divisions, spaces
from spdsl.semantics.expressions import Arg, Evaluator
from spdsl.semantics.graph import Export
from spdsl.semantics.inputs import input_table
from spdsl.semantics.names import declare
from spdsl.semantics.values import POISON, Candidates, TableRef, Value


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
            divisions.grid(ev, node)
        case syntax.AxisBy() | syntax.AxisInto():
            divisions.axis(ev, node)
        case syntax.Let():
            value = ev.evaluate(node.value)
            declare(ev, node.name, value, node.span, "let")
        case syntax.Export():
            _export(ev, node)
        case _:
            raise AssertionError(node)


def _export(ev: Evaluator, node: syntax.Export) -> None:
    """Add a value that is returned beside the output."""
    value, only = ev.evaluate(node.value), spaces.TRUE
    if isinstance(value, Candidates):
        only = value.only
        value = value.value
    found = ev.expect(Arg(value=value, node=node.value), "any", "`export`")
    if found is None:
        return
    if node.name in ev.unit.exports:
        line = ev.unit.exports[node.name].span
        ev.error("SP202", f"`{node.name}` is exported twice", node.span, note=f"also at {line}", help="rename one")
        return
    axes = spaces.space(ev, (found, only), node.span)
    if axes is not None:
        ev.unit.exports[node.name] = Export(name=node.name, axes=axes, value=found.expr, only=only.expr, span=node.span)
