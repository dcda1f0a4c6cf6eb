"""The words of a text that may be broken, and what could stand at a place in it.

Words are read in context as far as the text is in the language, and without context from there on: only then may a name
that is also a clause (``bias``) pass for one.
"""

from __future__ import annotations

from dataclasses import dataclass

from spdsl.grammar import engine
from spdsl.grammar.engine import Token

_MOST = 100_000
_STOP = "\0"  # not part of the language, so that the parser stands still there and tells where it is
OPENING = {"(": ")", "[": "]", "{": "}"}
TOP = frozenset(("_USE", "_DEF", "_PATTERN"))
STATEMENTS = frozenset(("_INPUT", "_GRID", "_AXIS", "_LET", "_EXPORT", "_RETURN", "_KEEP", "SETTING"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """Where the parser stands: the words before, and the terminals that may follow; ``whole`` if it came to the end."""

    words: tuple[Token, ...]
    allowed: frozenset[str]
    whole: bool


def stand(text: str) -> Stand:
    """How far the parser comes in ``text``."""
    try:
        engine.run(text + _STOP, _build_nothing, _MOST)
    except engine.MisfitError as misfit:
        whole = misfit.token.start >= len(text)
        return Stand(words=misfit.previous, allowed=engine.acceptable(misfit.states), whole=whole)
    except engine.TooDeepError:
        pass
    return Stand(words=(), allowed=frozenset(), whole=False)


def words(text: str) -> tuple[Token, ...]:
    """All words of a text, comments left out."""
    read = stand(text).words
    end = read[-1].end if read else 0
    rest = (token for token in engine.tokens(text[end:]) if token.kind not in ("COMMENT", engine.ILLEGAL))
    return (*read, *(token._replace(start=token.start + end, end=token.end + end) for token in rest))


def in_comment(text: str, offset: int) -> bool:
    """Whether a place is inside a comment."""
    line = text.rfind("\n", 0, offset) + 1
    return any(token.kind == "COMMENT" for token in engine.tokens(text[line:offset]))


def allowed_at(text: str, offset: int) -> frozenset[str]:
    """The terminals that may stand at ``offset``.

    Where something before is broken, the parser takes up again at the last statement, in a pattern of nothing else, or
    at the last item of the file.
    """
    before = text[:offset]
    found = stand(before)
    if found.whole:
        return found.allowed
    tokens = [token for token in engine.tokens(before) if token.kind != "COMMENT"]
    top = next((token.start for token in reversed(tokens) if token.kind in TOP), None)
    if top is not None and (again := stand(before[top:])).whole:
        return again.allowed
    statement = next((token.start for token in reversed(tokens) if token.kind in STATEMENTS), None)
    if statement is not None and (top is None or statement > top):
        again = stand("pattern p() {" + before[statement:])
        if again.whole:
            return again.allowed
    return frozenset()


def _build_nothing(*_: object) -> None:
    """Nothing is built: only the way through the text counts."""
