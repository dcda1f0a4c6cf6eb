"""The comments of a text, and which of them the formatter has yet to write.

The tree holds no comments.  They are found again in the source and taken, place by place, by the node they belong to.
"""

from __future__ import annotations

from dataclasses import dataclass

from spdsl.diagnostics import Source
from spdsl.grammar.engine import tokens
from spdsl.grammar.nodes import Node

Place = tuple[int, int]
START: Place = (0, 0)
END: Place = (2**62, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comment:
    """One comment: where it begins, where the token before it ended, and whether it has its line to itself."""

    text: str
    at: Place
    after: Place
    alone: bool


class Comments:
    """Comments in the order of the text; whoever writes one takes it, so that none is written twice or lost."""

    def __init__(self, source: Source | None = None) -> None:
        self.lines = source.text.splitlines() if source else []
        self.waiting = list(_find(source)) if source else []

    def between(self, start: Place, end: Place) -> list[Comment]:
        """Those in this part of the text that nobody has taken."""
        return [comment for comment in self.waiting if start <= comment.at < end]

    def take(self, start: Place, end: Place) -> list[Comment]:
        """The same, taken."""
        found = self.between(start, end)
        if found:
            self.waiting = [comment for comment in self.waiting if comment not in found]
        return found

    def take_beside(self, start: Place, end: Place) -> str:
        """The first in this part of the text if it stands behind something on its line; empty if there is none."""
        found = self.between(start, end)
        if not found or found[0].alone:
            return ""
        self.waiting.remove(found[0])
        return f"  {found[0].text}"

    def take_trailing(self, end: Place) -> str:
        """The comment on the line on which a node ends, as it stands after that line; empty if there is none."""
        for comment in self.waiting:
            if comment.after == end and not comment.alone:
                self.waiting.remove(comment)
                return f"  {comment.text}"
        return ""

    def blank_above(self, at: Place) -> bool:
        """Whether what stands here begins its line, and the line above it is empty."""
        line, column = at
        if line < 2 or line > len(self.lines):
            return False
        return not self.lines[line - 2].strip() and not self.lines[line - 1][: column - 1].strip()


def start_of(node: Node) -> Place:
    """Where a node begins; the start of the text for a node that was not parsed."""
    return (node.span.line, node.span.column) if node.span else START


def end_of(node: Node) -> Place:
    """Where a node ends; the start of the text for a node that was not parsed."""
    return (node.span.end_line, node.span.end_column) if node.span else START


def _find(source: Source) -> list[Comment]:
    found: list[Comment] = []
    starts = [0]
    for line in source.text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    number, after = 1, START
    for token in tokens(source.text):
        while number < len(starts) - 1 and starts[number] <= token.start:
            number += 1
        at = (number, token.start - starts[number - 1] + 1)
        if token.kind == "COMMENT":
            found.append(Comment(text=token.text.rstrip(), at=at, after=after, alone=after[0] != at[0]))
        else:
            after = (number, at[1] + len(token.text))
    return found
