"""Calls and pipes: built-in functions by their table, `def` by writing it out, patterns by checking them in place."""

from __future__ import annotations

from dataclasses import replace

from spdsl.diagnostics import Span
from spdsl.grammar import nodes as syntax
from spdsl.semantics import nodes as ir
from spdsl.semantics import parameters
from spdsl.semantics.build import to_float
from spdsl.semantics.expressions import Arg, Evaluator, Invocation, Want
from spdsl.semantics.names import declare
from spdsl.semantics.nodes import Const
from spdsl.semantics.report import did_you_mean
from spdsl.semantics.scope import Scope
from spdsl.semantics.unsupported import UNSUPPORTED
from spdsl.semantics.values import POISON, Items, Poison, Scalar, Value, describe
from spdsl.semantics.wording import excerpt, plain

MAX_CALLS = 32
"""How deep calls of `def`s and patterns may go: they are written out by recursion."""


def invoke(ev: Evaluator, node: syntax.Call | syntax.Pipe) -> Value:
    """The value of ``f(x)`` and of ``x |> f``, which are the same."""
    match node:
        case syntax.Call(function=syntax.Name() as called) | syntax.Pipe(stage=called):
            name = called.id
        case syntax.Call(function=function):
            ev.mark_used(node)
            return _not_a_function(ev, ev.arg(function), node)
    from spdsl.semantics.functions import FUNCTIONS

    entry = ev.scope.entries.get(name)
    if entry is not None and name not in UNSUPPORTED:
        entry.used = True
        return _not_a_function(ev, Arg(value=entry.value, node=called), node)
    if name in UNSUPPORTED and name not in ev.unit.library.defs:
        return _unsupported(ev, name, node)
    if not (name in FUNCTIONS or name in ev.unit.library.defs or name in ev.unit.library.patterns):
        value = ev.evaluate(called)
        if isinstance(value, Poison):
            ev.mark_used(node)
            return POISON
        return _not_a_function(ev, Arg(value=value, node=called), node)
    call = _arguments(ev, name, node)
    if call is None:
        return POISON
    if name in ev.unit.library.defs:
        return _expand(ev, ev.unit.library.defs[name], call)
    if name in ev.unit.library.patterns:
        return _inline(ev, ev.unit.library.patterns[name], call)
    return FUNCTIONS[name](ev, call)


def _arguments(ev: Evaluator, name: str, node: syntax.Call | syntax.Pipe) -> Invocation | None:
    if isinstance(node, syntax.Pipe) and _takes_too_much(ev, node.value):
        return None
    args: list[Arg] = [ev.arg(node.value)] if isinstance(node, syntax.Pipe) else []
    keywords: dict[str, syntax.Argument] = {}
    for argument in node.arguments:
        if argument.name is not None:
            if argument.name in keywords:
                ev.error("SP204", f"`{argument.name}` is given twice", argument.span, help="leave one of them out")
                return None
            keywords[argument.name] = argument
        elif keywords:
            ev.error(
                "SP204",
                "arguments without a name come before those with one",
                argument.span,
                help="move it to the front",
            )
            return None
        else:
            args.append(ev.arg(argument.value))
    return Invocation(name=name, span=node.span, args=tuple(args), keywords=keywords)


def _takes_too_much(ev: Evaluator, piped: syntax.Expr) -> bool:
    """Refuse ``a and score(…) |> …``: scores are no set, and meant is a pipe that begins with them."""
    match piped:
        case syntax.Binary(op="and" | "or" as op, right=syntax.Call(function=syntax.Name(id="score"))):
            ev.mark_used(piped)
            ev.error(
                "SP203",
                f"`|>` binds loosest, so it is given all of {excerpt(piped)}",
                piped.span,
                help=f"put the selection in parentheses, `… {op} (score(…) |> …)`, or give it a name with `let`",
            )
            return True
        case _:
            return False


def _unsupported(ev: Evaluator, name: str, node: syntax.Call | syntax.Pipe) -> Value:
    # What comes before a refused stage may be refused too, and has the better place.
    if isinstance(node, syntax.Pipe) and isinstance(ev.evaluate(node.value), Poison):
        ev.mark_used(node)
        return POISON
    ev.mark_used(node)
    return ev.unsupported(f"`{name}`", node.span)


def _not_a_function(ev: Evaluator, function: Arg, node: syntax.Call | syntax.Pipe) -> Value:
    if isinstance(function.value, Poison):
        return POISON
    help = "only built-in functions, `def`s and patterns are called"
    match function.value:
        case Scalar(dtype="bool") if isinstance(node, syntax.Pipe):
            hint = "is `only` missing?"
            help = f"entries outside of a set are removed by `|> only({plain(function.node)})`"
        case Scalar(dtype="bool"):
            hint = "is an `and` missing?"
        case Scalar():
            hint = "is an operator missing?"
        case _:
            hint = f"it is {describe(function.value)}"
    note = ev.note(function)
    return ev.error(
        "SP205",
        f"{excerpt(function.node)} is not a function: {hint}",
        function.node.span or node.span,
        note=note,
        help=help,
    )


def _named(
    ev: Evaluator, names: tuple[str, ...], required: frozenset[str], call: Invocation, kind: str
) -> dict[str, Arg] | None:
    """Arguments by the name of their parameter; None after a mistake."""
    found: dict[str, Arg] = {}
    if len(call.args) > len(names):
        ev.error(
            "SP204",
            f"`{call.name}` takes {_count(len(names))}, not {len(call.args)}",
            call.span,
            note=f"{kind} {call.name}({', '.join(names)})",
            help="leave the others out",
        )
        return None
    found.update(zip(names, call.args, strict=False))
    for name, argument in call.keywords.items():
        if name not in names:
            ev.error("SP204", f"`{call.name}` has no parameter `{name}`", argument.span, help=did_you_mean(name, names))
            return None
        if name in found:
            ev.error("SP204", f"`{name}` is given twice", argument.span, help="leave one of them out")
            return None
        found[name] = ev.arg(argument.value)
    missing = [name for name in names if name in required and name not in found]
    if missing:
        shown = f"{kind} {call.name}({', '.join(names)})"
        ev.error(
            "SP204",
            f"`{call.name}` needs a value for `{missing[0]}`",
            call.span,
            note=shown,
            help=f"add `{missing[0]} = …`",
        )
        return None
    return found


def _count(number: int) -> str:
    return "no arguments" if number == 0 else "1 argument" if number == 1 else f"{number} arguments"


def _enter(ev: Evaluator, name: str, span: Span | None) -> bool:
    """Whether a definition may be entered: it may not be one that is being written out already."""
    if any(active == name for active, _ in ev.unit.trail) or ev.unit.root == name:
        ev.error(
            "SP209",
            f"`{name}` calls itself",
            span,
            help="definitions and patterns are written out where they are called, so none may call itself",
        )
        return False
    if len(ev.unit.trail) >= MAX_CALLS:
        ev.error("SP216", f"more than {MAX_CALLS} definitions call each other", span, help="write some of them out")
        return False
    ev.unit.trail.append((name, str(span) if span else "?"))
    return True


def _expand(ev: Evaluator, definition: syntax.Def, call: Invocation) -> Value:
    values = _named(ev, definition.parameters, frozenset(definition.parameters), call, "def")
    ev.unit.used.setdefault(definition.name, definition)
    if values is None or definition.name in ev.unit.broken:
        return POISON
    if not _enter(ev, definition.name, call.span):
        return POISON
    scope = Scope(ev.scope.coordinates)
    for name, arg in values.items():
        scope.declare(name, arg.value, definition.span, "argument")
    try:
        return Evaluator(ev.unit, scope).evaluate(definition.value)
    finally:
        ev.unit.trail.pop()
        # Callees first, so that the canonical text reads top-down.
        ev.unit.used[definition.name] = ev.unit.used.pop(definition.name)


def _inline(ev: Evaluator, pattern: syntax.Pattern, call: Invocation) -> Value:
    from spdsl.semantics import declarations

    names = tuple(parameter.name for parameter in pattern.parameters)
    required = frozenset(p.name for p in pattern.parameters if p.default is None)
    values = _named(ev, names, required, call, "pattern")
    if values is None or not _enter(ev, pattern.name, call.span):
        ev.unit.used.setdefault(pattern.name, pattern)
        return POISON
    scope = Scope()
    inner = Evaluator(ev.unit, scope)
    try:
        for parameter in pattern.parameters:
            declared = parameters.parameter(inner, parameter)
            given = values.get(parameter.name)
            value: Value = POISON
            if declared is not None and given is not None:
                value = _argument(ev, declared, given)
            elif declared is not None:
                value = parameters.default_value(declared)
            declare(inner, parameter.name, value, parameter.span, "parameter")
        return declarations.statements(inner, pattern)
    finally:
        ev.unit.trail.pop()
        ev.unit.used.pop(pattern.name, None)
        ev.unit.used[pattern.name] = pattern


def _argument(ev: Evaluator, declared: ir.Parameter, given: Arg) -> Value:
    """A value for a parameter of a called pattern: fixed before the call of the kernel, of the declared type."""
    context = f"the parameter `{declared.name}`"
    if declared.length is not None:
        match given.value:
            case Items(items=items) if len(items) == declared.length:
                one = replace(declared, length=None, default=None)
                return Items(items=tuple(_argument(ev, one, Arg(value=item, node=given.node)) for item in items))
            case Poison():
                return POISON
            case value:
                return ev.error(
                    "SP203",
                    f"{excerpt(given.node)} is {describe(value)}, but {context} needs a tuple of {declared.length}",
                    given.node.span,
                    help=f"write {declared.length} values in brackets",
                )
    wants: dict[str, Want] = {"bool": "bool", "int": "int", "float": "number"}
    one_value = ev.expect(given, wants[declared.dtype], context)
    if one_value is None:
        return POISON
    if one_value.axes:
        return ev.error(
            "SP203",
            f"{excerpt(given.node)} varies along {', '.join(sorted(one_value.axes))}, but {context} is one value",
            given.node.span,
            help="use parameters, numbers and `n`",
        )
    match one_value.expr:
        case Const(value=number) if not parameters.within(number, declared.bounds):
            return ev.error(
                "SP211",
                f"{excerpt(given.node)} is outside the range {parameters.range_text(declared.bounds)} of {context}",
                given.node.span,
                help="give a value in that range",
            )
        case _:
            pass
    return Scalar(expr=to_float(one_value.expr), size=one_value.size) if declared.dtype == "float" else one_value
