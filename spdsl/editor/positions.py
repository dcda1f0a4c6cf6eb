r"""Places in a text as the compiler, the lexer and an editor count them.

The compiler has lines and columns of characters, lines ending as `str.splitlines` has it; the lexer has offsets; an
editor has lines that end with ``\n``, ``\r\n`` or ``\r`` and columns in units of UTF-16, both from 0.  All of them
are turned into each other through offsets.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from spdsl.diagnostics import Span


class Point(NamedTuple):
    """A place as an editor counts it."""

    line: int
    character: int


class Places:
    """The places of one text."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def _starts(self) -> list[int]:
        """Where the editor's lines begin."""
        return [0, *(found.end() for found in re.finditer(r"\r\n|\r|\n", self.text))]

    @cached_property
    def _own_starts(self) -> list[int]:
        """Where the compiler's lines begin."""
        lengths = [len(line) for line in self.text.splitlines(keepends=True)]
        return list(accumulate(lengths, initial=0))

    def point(self, offset: int) -> Point:
        """An offset as an editor counts it."""
        line = bisect_right(self._starts, offset) - 1
        before = self.text[self._starts[line] : offset]
        return Point(line, len(before.encode("utf-16-le", "surrogatepass")) // 2)

    def offset(self, line: int, character: int) -> int:
        """A place of an editor as an offset; past the end of a line or of the text, that end."""
        if line >= len(self._starts):
            return len(self.text)
        start = self._starts[line]
        end = self._starts[line + 1] if line + 1 < len(self._starts) else len(self.text)
        content = self.text[start:end].rstrip("\r\n")
        units = content.encode("utf-16-le", "surrogatepass")[: 2 * character]
        # Half a character counts as none of it.
        return start + len(units.decode("utf-16-le", "ignore"))

    def span(self, span: Span) -> tuple[int, int]:
        """A place of the compiler as offsets; where it is empty, the character behind or before it."""
        start, end = self._own(span.line, span.column), self._own(span.end_line, span.end_column)
        if start >= end:
            end = min(start + 1, len(self.text))
            start = min(start, max(end - 1, 0))
        return start, end

    def _own(self, line: int, column: int) -> int:
        starts = self._own_starts
        return min(starts[min(line, len(starts)) - 1] + column - 1, len(self.text))
