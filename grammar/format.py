"""From text to the same text laid out in the one canonical way, comments kept, tree unchanged."""

from __future__ import annotations

from spdsl.grammar.comments import Comments
from spdsl.grammar.layout import lay_out
from spdsl.grammar.parse import parse


def format_text(text: str, name: str = "<string>") -> str:
    """``text`` with two-space indents, one statement a line, lines of at most 100 columns where they can be broken.

    Comments stay beside what they stood beside, or directly above it; blank lines between groups stay, at most one in
    a row.
    ``format_text(format_text(text)) == format_text(text)``.  Raises `SpatError` where the text does not parse.
    """
    program = parse(text, name)
    return lay_out(program, Comments(program.source))
