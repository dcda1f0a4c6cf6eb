"""From the text of a ``.spat`` file to a `Program`: places on every node, nothing checked.

Bounds on what is read are here: size, encoding, depth.  Depth is bounded so that every later pass may walk the tree
by plain recursion.  Comments are not in the tree; the formatter finds them again in ``Program.source``.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any

from spdsl.diagnostics import Source, Span, SpatError, error
from spdsl.grammar import engine
from spdsl.grammar.build import BUILDERS
from spdsl.grammar.nodes import Program

MAX_BYTES = 1_000_000
MAX_DEPTH = 128
# Words and values that wait at once for what they belong to; one level of a tree needs at most eight.
MAX_WAITING = 8 * MAX_DEPTH


def parse(text: str, name: str = "<string>") -> Program:
    """The tree of ``text``; ``name`` is what messages call it.

    Raises `SpatError` (SP1xx) where the text is not in the language, too long, nested too deeply or has a literal too
    large.
    """
    if len(text) > MAX_BYTES:
        raise _too_large(name)
    reader = _Reader(Source(name=name, text=text))
    try:
        program: Program = engine.run(text, reader.build, MAX_WAITING)
    except engine.TooDeepError as deep:
        raise reader.too_deep(deep.token.start) from None
    except engine.MisfitError as misfit:
        # Only a text with a mistake pays for the machinery that explains it.
        from spdsl.grammar.errors import explain

        raise explain(misfit, text, reader.span) from None
    return program


def parse_file(path: str | Path) -> Program:
    """The tree of a file.  Raises `SpatError`, and `OSError` where the file cannot be read."""
    with Path(path).open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    return parse(decode(data, str(path)), str(path))


def decode(data: bytes, name: str = "<string>") -> str:
    """The text of a file's bytes.  Raises `SpatError` for more than a megabyte (SP107) or what is not UTF-8 (SP108)."""
    if len(data) > MAX_BYTES:
        raise _too_large(name)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as bad:
        text = data[: bad.start].decode("utf-8-sig")
        text += data[bad.start :].decode("utf-8", errors="replace")
        reader = _Reader(Source(name=name, text=text))
        at = len(data[: bad.start].decode("utf-8-sig"))
        raise error(
            "SP108",
            f"`{name}` is not UTF-8: byte 0x{data[bad.start]:02x} at offset {bad.start} does not belong there",
            reader.span(at, at + 1),
            help="Save the file as UTF-8.",
        ) from None


def _too_large(name: str) -> SpatError:
    return error(
        "SP107",
        f"`{name}` is larger than a megabyte",
        help="A pattern file holds a description, not data: pass tables at call time with `input`.",
    )


class _Reader:
    """Places in one text, and its limits."""

    def __init__(self, source: Source) -> None:
        self.source = source
        lengths = [len(line) for line in source.text.splitlines(keepends=True)]
        self.starts = list(accumulate(lengths[:-1], initial=0))

    def span(self, start: int, end: int) -> Span:
        """The place of ``text[start:end]``."""
        line, column = self._place(start)
        end_line, end_column = self._place(end)
        return Span(source=self.source, line=line, column=column, end_line=end_line, end_column=end_column)

    def _place(self, at: int) -> tuple[int, int]:
        line = bisect_right(self.starts, at)
        return line, at - self.starts[line - 1] + 1

    def build(self, node: str, children: tuple[Any, ...], start: int, end: int, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise self.too_deep(start)
        return BUILDERS[node](children, self.span(start, end))

    def too_deep(self, at: int) -> SpatError:
        return error(
            "SP105",
            f"this is nested more than {MAX_DEPTH} levels deep; every operator of a chain counts as one",
            self.span(at, at + 1),
            help="Name parts of it with `let`.",
        )
