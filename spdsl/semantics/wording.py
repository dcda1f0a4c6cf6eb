"""How messages speak of what a user wrote."""

from __future__ import annotations

from spdsl.grammar import nodes as syntax


def plain(node: syntax.Expr, room: int = 40) -> str:
    """The text of an expression as the user wrote it, if it is short and stands on one line; else ``…``."""
    if isinstance(node, syntax.Name):
        return node.id
    span = node.span
    if span is None or span.line != span.end_line:
        return "…"
    text = span.source.line(span.line)[span.column - 1 : span.end_column - 1]
    return text if 0 < len(text) <= room else "…"


def excerpt(node: syntax.Expr) -> str:
    """The quoted text of an expression, or ``this``."""
    text = plain(node)
    return "this" if text == "…" else f"`{text}`"


def a_kind(kind: str) -> str:
    """The kind of a declaration with its article."""
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def quoted(text: str) -> str:
    """A piece of the language inside of a sentence."""
    return f"`{text}`"
