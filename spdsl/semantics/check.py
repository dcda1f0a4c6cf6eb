"""From `Program` to `CheckedPattern`: every name resolved, every expression typed, every mistake of the file reported.

Does not look at values of parameters (`bind`), nor at which tiles a set touches (the analysis).
"""

from __future__ import annotations

from spdsl.diagnostics import Diagnostic, SpatError, SpatWarning, error, raise_errors
from spdsl.grammar import nodes as syntax
from spdsl.grammar.print import to_spat
from spdsl.semantics import declarations, parameters
from spdsl.semantics.branches import stage_of
from spdsl.semantics.expressions import Evaluator
from spdsl.semantics.graph import TENSORS, StageGraph, loads
from spdsl.semantics.names import declare
from spdsl.semantics.nodes import Attend, CheckedPattern, Parameter
from spdsl.semantics.program import Resolve, check_definitions, collect
from spdsl.semantics.regraph import needed
from spdsl.semantics.report import Report, did_you_mean, listing
from spdsl.semantics.scope import Scope
from spdsl.semantics.titles import titles_of
from spdsl.semantics.unit import Library, Unit, Watch
from spdsl.semantics.values import POISON, Branch, Merged, Scalar

__all__ = ["SpatWarning", "check", "check_all"]


def check(program: syntax.Program, name: str | None = None, *, resolve: Resolve | None = None) -> CheckedPattern:
    """The pattern ``name`` of a program, by default its last.

    ``resolve`` gives the text of a file that is named by ``use``.  Warnings are left to `check_all`.

    Raises:
        SpatError: every mistake (SP2xx) of that pattern and of what it uses.
    """
    report = Report()
    library = collect(program, resolve, report)
    broken = check_definitions(library, report)
    own = [item for item in program.items if isinstance(item, syntax.Pattern)]
    latest = own[-1] if own else None
    chosen = latest if name is None else library.patterns.get(name)
    if chosen is None:
        raise_errors(report.diagnostics)
        raise _no_pattern(program, name, library)
    checked = _check(chosen, library, broken, report)
    raise_errors(report.diagnostics)
    assert checked is not None
    return checked


def check_all(
    program: syntax.Program, *, resolve: Resolve | None = None, watch: Watch | None = None
) -> tuple[tuple[CheckedPattern, ...], tuple[Diagnostic, ...]]:
    """The patterns of a program that are right, and all diagnostics, warnings among them; raises nothing.

    ``watch`` is told the value of every expression of these patterns, also of those that are wrong elsewhere.
    """
    whole = Report()
    library = collect(program, resolve, whole)
    broken = check_definitions(library, whole)
    shared_failed = whole.failed
    found: list[CheckedPattern] = []
    for item in program.items:
        if isinstance(item, syntax.Pattern):
            report = Report()
            checked = _check(item, library, broken, report, watch)
            whole.merge(report)
            if checked is not None and not shared_failed:
                found.append(checked)
    return tuple(found), whole.diagnostics


def _no_pattern(program: syntax.Program, name: str | None, library: Library) -> SpatError:
    where = program.source.name if program.source is not None else "the text"
    if name is None:
        return error(
            "SP214",
            f"there is no pattern in {where}",
            program.span,
            help="for example `pattern mine() { keep causal }`",
        )
    help = did_you_mean(name, library.patterns) or f"it has {listing(library.patterns)}"
    return error("SP214", f"there is no pattern `{name}` in {where}", program.span, help=help)


def _check(
    pattern: syntax.Pattern,
    library: Library,
    broken: frozenset[str],
    report: Report,
    watch: Watch | None = None,
) -> CheckedPattern | None:
    unit = Unit(library, report, root=pattern.name, broken=broken, watch=watch)
    scope = Scope()
    ev = Evaluator(unit, scope)
    declared_parameters: list[Parameter] = []
    try:
        for node in pattern.parameters:
            declared = parameters.parameter(ev, node)
            value = POISON if declared is None else parameters.parameter_value(declared)
            if declared is not None:
                declared_parameters.append(declared)
                if declared.bounds is not None:
                    unit.params[declared.name] = (declared.bounds.low, declared.bounds.high)
            declare(ev, node.name, value, node.span, "parameter")
        result = declarations.statements(ev, pattern)
    except SpatError as failure:
        for found in failure.diagnostics:
            report.error(found.code, found.message, found.span, note=found.note, help=found.help)
        return None
    _unused(scope, report)
    if report.failed or not isinstance(result, Branch | Merged | Scalar):
        return None
    used = [each for each in unit.used.values() if isinstance(each, syntax.Pattern)]
    attend, graph = _graph(ev, result, (*used, pattern))
    if attend is None:
        return None
    return CheckedPattern(
        name=pattern.name,
        parameters=tuple(declared_parameters),
        tables=tuple(unit.tables.values()),
        axes=tuple(unit.axes.values()),
        grids=tuple(unit.grids),
        attend=attend,
        graph=graph,
        text=to_spat(syntax.Program(items=(*unit.used.values(), pattern))),
        span=pattern.span,
    )


def _graph(
    ev: Evaluator, result: Branch | Merged | Scalar, written: tuple[syntax.Pattern, ...]
) -> tuple[Attend | None, StageGraph | None]:
    """The first softmax of a pattern, and its stages if it computes with queries, keys or values."""
    unit = ev.unit
    if isinstance(result, Branch) and result.sources is None and not result.streams:
        clauses = (result.attend.keep, result.attend.bias, result.attend.sink_logit)
        read = frozenset[str]().union(*(loads(clause) for clause in clauses if clause is not None))
        if not unit.exports and read.isdisjoint((*unit.stages, *TENSORS)):
            return result.attend, None
    value = result if isinstance(result, Scalar) else None
    if not isinstance(result, Scalar):
        made = stage_of(ev, result)
        value = None if made is None else made.value
    if value is None:
        return None, None
    stages = tuple(unit.stages.values())
    graph = needed(
        StageGraph(
            stages=stages,
            result=value.expr,
            exports=tuple(unit.exports.values()),
            titles=titles_of(stages, written, unit.tables),
        )
    )
    if not graph.attentions:
        ev.unsupported(
            "a result without a softmax", value.expr.span, help="compute with `attend { … }`, or `export` it"
        )
        return None, None
    return graph.attentions[0].attend, graph


def _unused(scope: Scope, report: Report) -> None:
    if report.failed:
        # Names in what was not understood may be used there.
        return
    for name, entry in scope.unused():
        if entry.kind in ("parameter", "input", "let", "axis"):
            report.warning("SP217", f"{entry.kind} `{name}` is never used", entry.span, help="remove it")
