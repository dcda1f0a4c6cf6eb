"""Places in source text, and what the compiler has to say about them.

A diagnostic is a value.  Passes collect diagnostics and go on; whoever called the pass decides whether to raise.
Rendering happens here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A text and the name under which a user knows it (a path, or ``<string>``)."""

    name: str
    text: str = field(repr=False)

    def line(self, number: int) -> str:
        """Line ``number`` (from 1) without its newline; empty past the end."""
        lines = self.text.splitlines()
        return lines[number - 1] if 0 < number <= len(lines) else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Where a construct stands: lines and columns count from 1, ``end_column`` is exclusive."""

    source: Source = field(compare=False, repr=False)
    line: int
    column: int
    end_line: int
    end_column: int

    def __str__(self) -> str:
        return f"{self.source.name}:{self.line}:{self.column}"

    def to(self, last: Span | None) -> Span:
        """From here to the end of a place further on in the same text; this one where there is none."""
        if last is None or last.source is not self.source:
            return self
        if (last.end_line, last.end_column) <= (self.end_line, self.end_column):
            return self
        return replace(self, end_line=last.end_line, end_column=last.end_column)


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostic:
    """One remark: a stable code, what is wrong, where, and how to mend it.

    ``note`` stands beside the carets and says what the marked text is; ``help`` is a full sentence that tells how to
    mend it.
    """

    code: str
    message: str
    span: Span | None = None
    note: str = ""
    help: str = ""
    severity: Severity = "error"

    def render(self) -> str:
        """The remark as the user reads it, with the source line and carets under the place."""
        lines = [f"{self.severity}[{self.code}]: {self.message}"]
        if self.span is not None:
            lines += _excerpt(self.span, self.note)
        elif self.note:
            lines.append(f"   = note: {self.note}")
        if self.help:
            lines.append(f"   = help: {self.help}")
        return "\n".join(lines)


def _excerpt(span: Span, note: str) -> list[str]:
    text = span.source.line(span.line).rstrip()
    number = str(span.line)
    gutter = " " * len(number)
    shown, column, width = _clip(text, span)
    marks = " " * (column - 1) + "^" * width
    return [
        f"{gutter} --> {span}",
        f"{gutter}  |",
        f"{number}  | {shown}".rstrip(),
        f"{gutter}  | {marks} {note}".rstrip(),
    ]


def _clip(text: str, span: Span, room: int = 110) -> tuple[str, int, int]:
    """The part of a long line that holds the span: (text, column in it, carets)."""
    text = "".join(mark if mark.isprintable() else " " for mark in text)
    end = span.end_column if span.end_line == span.line else len(text) + 1
    start = max(0, min(span.column - 1 - room // 3, len(text) - room)) if len(text) > room else 0
    shown = text[start : start + room]
    column = span.column - start
    width = max(1, min(end - start, len(shown) + 1) - column)
    return ("…" + shown[1:] if start else shown), column, width


class SpatError(Exception):
    """Every mistake of a user: one or more diagnostics, at least one of them an error.

    ``code``, ``message``, ``span`` and ``help`` are those of the first error.
    """

    def __init__(self, *diagnostics: Diagnostic) -> None:
        if not diagnostics:
            raise ValueError("a SpatError needs a diagnostic")
        self.diagnostics = diagnostics
        first = next((d for d in diagnostics if d.severity == "error"), diagnostics[0])
        self.code, self.message, self.span, self.help = first.code, first.message, first.span, first.help
        super().__init__("\n\n".join(d.render() for d in diagnostics))

    @property
    def place(self) -> str:
        """``file:line:column`` of the first error, or an empty string."""
        return str(self.span) if self.span else ""


def error(code: str, message: str, span: Span | None = None, *, note: str = "", help: str = "") -> SpatError:
    """A `SpatError` of one diagnostic, ready to be raised."""
    return SpatError(Diagnostic(code=code, message=message, span=span, note=note, help=help))


@contextmanager
def placed(code: str, span: Span | None) -> Iterator[None]:
    """Mistakes of this code without a place that are raised meanwhile are raised with this one."""
    try:
        yield
    except SpatError as found:
        if span is None or found.code != code or any(each.span is not None for each in found.diagnostics):
            raise
        raise SpatError(*(replace(each, span=span) for each in found.diagnostics)) from found.__cause__


def raise_errors(diagnostics: Iterable[Diagnostic]) -> None:
    """Raise one `SpatError` with all diagnostics if any of them is an error."""
    found = tuple(diagnostics)
    if any(d.severity == "error" for d in found):
        raise SpatError(*found)


class SpatWarning(UserWarning):
    """Python warnings that carry a rendered `Diagnostic` of severity ``warning``."""
