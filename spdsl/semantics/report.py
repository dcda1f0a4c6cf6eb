"""Collecting diagnostics while checking: nothing stops at the first mistake, and no mistake is told twice."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from spdsl.diagnostics import Diagnostic, Severity, Span

STATIC = "docs/language.md lists what a pattern can be made of so far"


class Report:
    """The diagnostics of one check, in the order of the text."""

    def __init__(self) -> None:
        self._found: dict[tuple[object, ...], Diagnostic] = {}

    def error(self, code: str, message: str, span: Span | None, *, note: str = "", help: str = "") -> None:
        """Record a mistake; the same remark at the same place is recorded once."""
        self._add("error", code, message, span, note, help)

    def warning(self, code: str, message: str, span: Span | None, *, note: str = "", help: str = "") -> None:
        """Record a remark that does not keep the pattern from being used."""
        self._add("warning", code, message, span, note, help)

    def unsupported(self, construct: str, span: Span | None, *, help: str = "") -> None:
        """Refuse a construct by name, once for each pattern file."""
        message = f"{construct} is not supported yet"
        if not any(d.code == "SP290" and d.message == message for d in self._found.values()):
            self.error("SP290", message, span, help=help or STATIC)

    def merge(self, other: Report) -> None:
        """Take over what another report found."""
        for found in other.diagnostics:
            if found.code == "SP290":
                self.unsupported(found.message.removesuffix(" is not supported yet"), found.span, help=found.help)
            else:
                self._add(found.severity, found.code, found.message, found.span, found.note, found.help)

    def _add(self, severity: Severity, code: str, message: str, span: Span | None, note: str, help: str) -> None:
        where = (span.source.name, span.line, span.column, span.end_line, span.end_column) if span else None
        key = (code, message, where)
        if key not in self._found:
            self._found[key] = Diagnostic(
                code=code, message=message, span=span, note=note, help=help, severity=severity
            )

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """Everything recorded, by file and place."""
        order: dict[str, int] = {}
        for diagnostic in self._found.values():
            if diagnostic.span is not None:
                order.setdefault(diagnostic.span.source.name, len(order))

        def place(diagnostic: Diagnostic) -> tuple[int, int, int]:
            span = diagnostic.span
            return (-1, 0, 0) if span is None else (order[span.source.name], span.line, span.column)

        return tuple(sorted(self._found.values(), key=place))

    @property
    def failed(self) -> bool:
        """Whether any mistake was recorded."""
        return any(d.severity == "error" for d in self._found.values())


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that suggests the closest known name, or nothing."""
    close = difflib.get_close_matches(name, sorted(set(known)), n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else ""


def a(noun: str) -> str:
    """The noun with its article: ``an int``, ``a bool``."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def listing(names: Iterable[str]) -> str:
    """```a`, `b` and `c```."""
    quoted = [f"`{name}`" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}" if quoted else "nothing"
