"""From text to one nested value: a contextual lexer and an LALR(1) loop over the tables that ``build_tables`` saved.

The caller says how a rule's children become a value.  Nothing here knows the language, and nothing recurses, so depth
is bounded by the caller alone.  A text that does not fit raises `MisfitError` (never seen by users; ``errors``
explains it).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

END = "$END"
ILLEGAL = "$ILLEGAL"
ANYWHERE = -1


class Token(NamedTuple):
    """One word of the text: ``text[start:end]``.  ``kind`` is a terminal of the grammar, `END` or `ILLEGAL`."""

    kind: str
    text: str
    start: int
    end: int


class Rule(NamedTuple):
    """One expansion: ``node`` is built from ``children`` (positions, None for an absent option).

    A ``node`` of None passes its children on.
    """

    origin: str
    node: str | None
    length: int
    children: tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """The saved automaton.  An action is a state to go to, or ``-1 - rule``."""

    start: int
    end: int
    ignored: frozenset[str]
    terminals: dict[str, str]
    rules: tuple[Rule, ...]
    states: tuple[dict[str, int], ...]
    scanners: dict[int, re.Pattern[str]] = field(default_factory=dict, compare=False, repr=False)

    def scanner(self, state: int) -> re.Pattern[str]:
        """What a state can read next; `ANYWHERE` reads every terminal.  Their order decides between equal starts."""
        found = self.scanners.get(state)
        if found is None:
            usable = self.terminals.keys() if state == ANYWHERE else self.ignored | self.states[state].keys()
            parts = [f"(?P<{name}>{regexp})" for name, regexp in self.terminals.items() if name in usable]
            found = self.scanners[state] = re.compile("|".join(parts))
        return found


class MisfitError(Exception):
    """The text leaves the language at ``token``; ``states`` and ``previous`` are where the parser stood then."""

    def __init__(self, token: Token, states: tuple[int, ...], previous: tuple[Token, ...]) -> None:
        super().__init__(token)
        self.token, self.states, self.previous = token, states, previous


class TooDeepError(Exception):
    """The text opens more constructs at ``token`` than the caller allows."""

    def __init__(self, token: Token) -> None:
        super().__init__(token)
        self.token = token


class Built(NamedTuple):
    """What stands on the stack: the children that a rule hands up, the text they cover, how deep they nest."""

    values: list[Any]
    start: int
    end: int
    depth: int


Build = Callable[[str, tuple[Any, ...], int, int, int], Any]


@cache
def load_tables() -> Tables:
    """The tables shipped with the package: plain JSON, a few milliseconds."""
    raw = json.loads((Path(__file__).parent / "tables.json").read_text())
    return Tables(
        start=raw["start"],
        end=raw["end"],
        ignored=frozenset(raw["ignored"]),
        terminals=dict(raw["terminals"]),
        rules=tuple(Rule(origin, node, length, tuple(children)) for origin, node, length, children in raw["rules"]),
        states=tuple(raw["states"]),
    )


def run(text: str, build: Build, most: int) -> Any:
    """Parse ``text``: ``build(node, children, start, end, depth)`` makes a value of every rule.

    ``depth`` counts the values nested in this one, itself included; a tuple does not count.  Raises `MisfitError` at
    the first token that cannot continue the text, and `TooDeepError` where more than ``most`` words and values wait
    for what they belong to.
    """
    tables = load_tables()
    states, stack, previous = [tables.start], [Built([], 0, 0, 0)], [Token(END, "", 0, 0)]
    while True:
        token = _next_token(tables, text, previous[-1].end, states[-1])
        action = tables.states[states[-1]].get(token.kind)
        # An LALR state may reduce on a word that an outer rule then refuses: a misfit tells of the states before that.
        standing = tuple(states)
        while action is not None and action < 0:
            _reduce(tables, tables.rules[-1 - action], states, stack, build)
            if token.kind == END and states[-1] == tables.end:
                return stack[-1].values[0]
            action = tables.states[states[-1]].get(token.kind)
        if action is None:
            raise MisfitError(token, standing, tuple(previous[1:]))
        if len(states) > most:
            raise TooDeepError(token)
        states.append(action)
        stack.append(Built([token], token.start, token.end, 0))
        previous.append(token)


def _reduce(tables: Tables, rule: Rule, states: list[int], stack: list[Built], build: Build) -> None:
    at = len(stack) - rule.length
    parts = stack[at:]
    del stack[at:], states[at:]
    start, end = (parts[0].start, parts[-1].end) if parts else (0, 0)
    depth = max((part.depth for part in parts), default=0)
    values = _children(rule, parts)
    if rule.node is not None:
        values = [build(rule.node, tuple(values), start, end, depth + 1)]
        depth += not isinstance(values[0], tuple)
    states.append(tables.states[states[-1]][rule.origin])
    stack.append(Built(values, start, end, depth))


def _children(rule: Rule, parts: list[Built]) -> list[Any]:
    # A list grows by one item per reduction: extending its first part in place keeps long files from quadratic time.
    keeps_first = rule.node is None and rule.children[:1] == (0,)
    values = parts[0].values if keeps_first else []
    for position in rule.children[keeps_first:]:
        values += [None] if position is None else parts[position].values
    return values


def _next_token(tables: Tables, text: str, at: int, state: int) -> Token:
    """The next token that this state can use, or else one that the language knows, or else an illegal one."""
    scanner = tables.scanner(state)
    while at < len(text):
        match = scanner.match(text, at)
        if match is None:
            return _any_token(tables, text, at)
        kind = match.lastgroup or ""
        if kind not in tables.ignored:
            return Token(kind, match.group(), at, match.end())
        at = match.end()
    return Token(END, "", len(text), len(text))


def _any_token(tables: Tables, text: str, at: int) -> Token:
    match = tables.scanner(ANYWHERE).match(text, at)
    if match is None:
        return Token(ILLEGAL, text[at], at, at + 1)
    return Token(match.lastgroup or "", match.group(), at, match.end())


def tokens(text: str) -> Iterator[Token]:
    """All tokens without context, comments among them and blanks not; what is illegal comes one character at a time."""
    tables, at = load_tables(), 0
    while at < len(text):
        token = _any_token(tables, text, at)
        at = token.end
        if token.kind != "BLANK":
            yield token


def acceptable(states: tuple[int, ...]) -> frozenset[str]:
    """The terminals that can really follow, tried one by one: a state also reduces on what an outer rule refuses."""
    tables = load_tables()
    return frozenset(kind for kind in (*tables.terminals, END) if _accepts(tables, list(states), kind))


def _accepts(tables: Tables, states: list[int], kind: str) -> bool:
    while (action := tables.states[states[-1]].get(kind)) is not None:
        if action >= 0:
            return True
        rule = tables.rules[-1 - action]
        del states[len(states) - rule.length :]
        states.append(tables.states[states[-1]][rule.origin])
        if kind == END and states[-1] == tables.end:
            return True
    return False
