"""Parts of a ``keep`` formula that change nothing: operands of ``and`` and ``or`` without which the same pairs stay.

From a bound pattern to `Part`s.  Parts are those that the user wrote: they have a place in the text, and a definition
that is used twice is one part.  All parts that are reported can be left out together.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from spdsl.analysis.claims import decide
from spdsl.analysis.pairs import Subject
from spdsl.analysis.wording import describe
from spdsl.diagnostics import Span
from spdsl.semantics.fold import fold
from spdsl.semantics.nodes import Apply, BoundPattern, Const, Expr

MOST = 40
"""Parts of one formula that are tried."""

SECONDS = 2.0
"""Wall-clock time for one formula."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An operand of ``of`` (``and`` or ``or``) and where it stands."""

    text: str
    of: str
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The parts that change nothing; ``tried`` of them were looked at, and ``undecided`` could not be decided."""

    parts: tuple[Part, ...]
    tried: int
    undecided: int
    reason: str = ""


def redundant(pattern: BoundPattern, *, seconds: float = SECONDS) -> Found:
    """The parts of ``keep`` that change nothing, for every length; heads and parameters are those of the pattern."""
    whole = pattern.attend.keep
    places = list(dict.fromkeys(_places(whole)))[-MOST:]
    kept: list[Part] = []
    undecided, tried, reason = 0, 0, ""
    deadline = time.monotonic() + seconds
    # later parts first: of two that say the same the first one stays
    for part in sorted(places, key=_position, reverse=True):
        smaller = _without(whole, part)
        if smaller is None:
            continue
        if time.monotonic() > deadline:
            reason = "the search took too long"
            break
        tried += 1
        answer = decide("equals", [_subject(pattern, whole), _subject(pattern, smaller)])
        if answer.verdict == "proven":
            whole = smaller
            kept = [each for each in kept if not _inside(each.span, part.span)] + [part]
        elif answer.verdict == "undecided":
            undecided, reason = undecided + 1, answer.reason
    return Found(parts=tuple(reversed(kept)), tried=tried, undecided=undecided, reason=reason)


def _subject(pattern: BoundPattern, keep: Expr) -> Subject:
    return Subject.of(replace(pattern, attend=replace(pattern.attend, keep=keep)))


def _places(expr: Expr) -> Iterator[Part]:
    if not isinstance(expr, Apply) or expr.dtype != "bool" or expr.op not in ("and", "or", "not", "where"):
        return
    for arg in expr.args:
        span = arg.span
        if expr.op in ("and", "or") and span is not None and span != expr.span and not isinstance(arg, Const):
            yield Part(text=_excerpt(span, arg), of=expr.op, span=span)
        yield from _places(arg)


def _excerpt(span: Span, expr: Expr) -> str:
    """The part as it stands in the text."""
    if span.line != span.end_line:
        return describe(expr)
    return span.source.line(span.line)[span.column - 1 : span.end_column - 1]


def _without(expr: Expr, part: Part) -> Expr | None:
    """The formula without a part, everywhere; None if it is not there any more."""
    found = False

    def visit(node: Expr) -> Expr:
        nonlocal found
        if not isinstance(node, Apply) or node.dtype != "bool" or node.op not in ("and", "or", "not", "where"):
            return node
        args: list[Expr] = []
        for arg in node.args:
            if node.op == part.of and arg.span == part.span and node.span != part.span:
                found = True
                args.append(Const(value=node.op == "and"))
            else:
                args.append(visit(arg))
        return replace(node, args=tuple(args))

    smaller = visit(expr)
    return fold(smaller) if found else None


def _position(part: Part) -> tuple[int, int, int, int]:
    """By place; of parts that begin together the longest is last."""
    span = part.span
    return span.line, span.column, span.end_line, span.end_column


def _inside(inner: Span, outer: Span) -> bool:
    begins = (outer.line, outer.column) <= (inner.line, inner.column)
    return begins and (inner.end_line, inner.end_column) <= (outer.end_line, outer.end_column)
