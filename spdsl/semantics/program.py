"""From a `Program` and the files it uses to a `Library`: every definition by name, cycles and duplicates refused."""

from __future__ import annotations

from collections.abc import Callable

from spdsl.diagnostics import Span, SpatError
from spdsl.grammar import nodes as syntax
from spdsl.semantics.report import Report, did_you_mean
from spdsl.semantics.scope import BUILTINS, TYPES, WORDS
from spdsl.semantics.unit import Library

Resolve = Callable[[str], str]


def collect(program: syntax.Program, resolve: Resolve | None, report: Report) -> Library:
    """All definitions and patterns that the file sees, its own and those of the files it uses."""
    defs: dict[str, syntax.Def] = {}
    patterns: dict[str, syntax.Pattern] = {}
    _collect(program, resolve, report, defs, patterns, active=(), done=set())
    unread = any(d.code.startswith(("SP1", "SP6")) or d.code in ("SP209", "SP210") for d in report.diagnostics)
    return Library(defs=defs, patterns=patterns, incomplete=unread)


def _collect(
    program: syntax.Program,
    resolve: Resolve | None,
    report: Report,
    defs: dict[str, syntax.Def],
    patterns: dict[str, syntax.Pattern],
    *,
    active: tuple[str, ...],
    done: set[str],
) -> None:
    for item in program.items:
        match item:
            case syntax.Use():
                _use(item, resolve, report, defs, patterns, active=active, done=done)
            case syntax.Def() | syntax.Pattern():
                known = defs.get(item.name) or patterns.get(item.name)
                if known is not None and known != item:
                    where = f"also at {known.span}" if known.span else ""
                    report.error(
                        "SP202",
                        f"`{item.name}` is defined twice",
                        _head(item),
                        note=where,
                        help="give one of them another name",
                    )
                elif _is_taken(item.name) and not (isinstance(item, syntax.Pattern) and item.name == "causal"):
                    # The library has a pattern `causal`: with brackets it is that, without it is the set.
                    report.error(
                        "SP202",
                        f"`{item.name}` already means something in the language",
                        _head(item),
                        help="give it another name",
                    )
                elif isinstance(item, syntax.Def):
                    defs[item.name] = item
                    _parameters(item, report)
                else:
                    patterns[item.name] = item


def _is_taken(name: str) -> bool:
    from spdsl.semantics.functions import FUNCTIONS

    return name in BUILTINS or name in WORDS or name in TYPES or name in FUNCTIONS


def _parameters(item: syntax.Def, report: Report) -> None:
    for position, name in enumerate(item.parameters):
        if name in item.parameters[:position]:
            report.error(
                "SP202", f"`{item.name}` has two parameters `{name}`", _head(item), help="give one of them another name"
            )
        elif name in BUILTINS or name in WORDS:
            report.error(
                "SP202",
                f"`{name}` already means something in the language",
                _head(item),
                help=f"give the parameter of `{item.name}` another name",
            )


def _head(item: syntax.Def | syntax.Pattern) -> Span | None:
    span = item.span
    if span is None or span.line == span.end_line:
        return span
    end = len(span.source.line(span.line).rstrip()) + 1
    return Span(source=span.source, line=span.line, column=span.column, end_line=span.line, end_column=end)


def _use(
    item: syntax.Use,
    resolve: Resolve | None,
    report: Report,
    defs: dict[str, syntax.Def],
    patterns: dict[str, syntax.Pattern],
    *,
    active: tuple[str, ...],
    done: set[str],
) -> None:
    if item.path in active:
        chain = " → ".join((*active[active.index(item.path) :], item.path))
        report.error("SP209", f"`{item.path}` uses itself", item.span, note=chain, help="remove one of these lines")
        return
    if item.path in done:
        return
    done.add(item.path)
    if resolve is None:
        report.error(
            "SP210",
            f'`use "{item.path}"` has no folder to look in',
            item.span,
            help="load the pattern from a file, or copy the definitions into the text",
        )
        return
    from spdsl.grammar.parse import parse

    try:
        text = resolve(item.path)
        used = parse(text, item.path)
    except SpatError as failure:
        for found in failure.diagnostics:
            # A file that is not found has no place of its own.
            report.error(found.code, found.message, found.span or item.span, note=found.note, help=found.help)
        return
    except (OSError, KeyError, UnicodeError) as failure:
        report.error(
            "SP210",
            f"cannot read `{item.path}`",
            item.span,
            note=type(failure).__name__,
            help="the path counts from the file that uses it",
        )
        return
    _collect(used, resolve, report, defs, patterns, active=(*active, item.path), done=done)


def check_definitions(library: Library, report: Report) -> frozenset[str]:
    """Unknown names and cycles of definitions, called or not; returns the definitions that must not be written out."""
    from spdsl.semantics.functions import FUNCTIONS
    from spdsl.semantics.unsupported import UNSUPPORTED

    known = {*BUILTINS, *FUNCTIONS, *UNSUPPORTED, *library.defs, *library.patterns}
    broken: set[str] = set()
    calls: dict[str, set[str]] = {}
    for definition in library.defs.values():
        names = _names(definition.value)
        for used in names:
            if not (used.id in known or used.id in definition.parameters or library.incomplete):
                close = did_you_mean(used.id, (*known, *definition.parameters))
                report.error(
                    "SP201",
                    f"unknown name `{used.id}`",
                    used.span,
                    help=close or f"a `def` sees its parameters and the built-in names: add `{used.id}` to them",
                )
                broken.add(definition.name)
        calls[definition.name] = {used.id for used in names if used.id in library.defs} - set(definition.parameters)
    for name in calls:
        if _reaches(name, name, calls):
            report.error(
                "SP209",
                f"`{name}` calls itself",
                _head(library.defs[name]),
                help="definitions are written out where they are called, so none may call itself",
            )
            broken.add(name)
    return frozenset(broken)


def _reaches(start: str, goal: str, calls: dict[str, set[str]]) -> bool:
    seen: set[str] = set()
    stack = [start]
    while stack:
        for name in calls.get(stack.pop(), ()):
            if name == goal:
                return True
            if name not in seen:
                seen.add(name)
                stack.append(name)
    return False


def _names(node: object) -> list[syntax.Name]:
    """The names in an expression; words after ``name =`` of an argument other than values are left to its function."""
    found: list[syntax.Name] = []
    stack: list[object] = [node]
    while stack:
        part = stack.pop()
        match part:
            case syntax.Name():
                found.append(part)
            case syntax.Argument(name="windows" | "overlap" | "grad" | "rank"):
                pass
            case syntax.Argument(value=value) | syntax.Attribute(value=value):
                stack.append(value)
            case syntax.Tuple(items=items):
                stack.extend(items)
            case syntax.Subscript(value=value, indices=indices):
                stack.extend((value, *indices))
            case syntax.Call(function=function, arguments=arguments):
                stack.extend((function, *arguments))
            case syntax.Unary(operand=operand):
                stack.append(operand)
            case syntax.Binary(left=left, right=right):
                stack.extend((left, right))
            case syntax.Compare(operands=operands):
                stack.extend(operands)
            case syntax.Choose(condition=condition, yes=yes, no=no):
                stack.extend((condition, yes, no))
            case syntax.Pipe(value=value, stage=stage, arguments=arguments):
                stack.extend((stage, value, *arguments))
            case syntax.Body(arguments=arguments, clauses=clauses):
                stack.extend((*arguments, *(c.set if isinstance(c, syntax.Keep) else c.value for c in clauses)))
            case _:
                pass
    return found
