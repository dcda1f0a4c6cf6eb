"""From the words of a text, broken or not, to its declarations and to what each name in it refers to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from spdsl.editor.words import OPENING, STATEMENTS, TOP, words
from spdsl.grammar.engine import Token
from spdsl.semantics.scope import BUILTINS

Kind: TypeAlias = Literal[
    "pattern", "def", "parameter", "argument", "input", "axis", "grid", "coordinate", "let", "export", "free axis"
]
COORDINATES = frozenset(("axis", "coordinate"))
"""What may follow ``q.`` and ``k.``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """A name: where it stands, the construct it heads, and the item (pattern or def) inside of which it is known."""

    name: str
    kind: Kind
    start: int
    end: int
    whole: tuple[int, int]
    item: str | None = None


Role: TypeAlias = Literal["name", "member", "argument"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mention:
    """A name that is not declared here: ``role`` is ``member`` after a dot, ``argument`` before ``=`` in a call of
    ``callee``."""

    name: str
    start: int
    end: int
    item: str | None
    role: Role = "name"
    callee: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """``use "path"``: the path, and where its text stands without the quotes."""

    path: str
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """All names of a text."""

    words: tuple[Token, ...]
    declarations: tuple[Declaration, ...]
    mentions: tuple[Mention, ...]
    uses: tuple[Used, ...]

    def items(self) -> Iterator[Declaration]:
        """The patterns and defs."""
        return (each for each in self.declarations if each.item is None)

    def members(self, item: str | None) -> Iterator[Declaration]:
        """What is declared inside an item."""
        return (each for each in self.declarations if item is not None and each.item == item)

    def item_at(self, offset: int) -> Declaration | None:
        """The pattern or def around a place."""
        return next((each for each in self.items() if each.whole[0] <= offset <= each.whole[1]), None)

    def word_at(self, offset: int) -> Token | None:
        """The word at a place; of two that touch there, a name or a word rather than a sign."""
        around = [token for token in self.words if token.start <= offset <= token.end]
        return max(around, key=lambda token: (token.text[:1].isidentifier(), token.start), default=None)

    def find(self, mention: Mention) -> Declaration | None:
        """The declaration in this text that a name refers to."""
        if mention.role == "argument":
            return _first(self.members(mention.callee), mention.name, ("parameter", "argument"))
        if mention.role == "member":
            own = _first(self.members(mention.item), mention.name, COORDINATES)
            # A def sees the axes of the patterns that call it.
            return own or _first(self.declarations, mention.name, COORDINATES)
        local = (each for each in self.members(mention.item) if each.kind != "export")
        return _first(local, mention.name) or _first(self.items(), mention.name)


def _first(
    declarations: Iterator[Declaration] | Sequence[Declaration],
    name: str,
    kinds: Sequence[str] | frozenset[str] | None = None,
) -> Declaration | None:
    found = (each for each in declarations if each.name == name and (kinds is None or each.kind in kinds))
    return next(found, None)


def outline(text: str) -> Outline:
    """The names of a text."""
    tokens = words(text)
    declarations: list[Declaration] = []
    uses: list[Used] = []
    mentions: list[Mention] = []
    for start, stop in _parts(tokens, TOP):
        part = tokens[start:stop]
        match part:
            case [Token(kind="_USE"), Token(kind="STRING") as path, *_]:
                uses.append(Used(path=path.text[1:-1], start=path.start + 1, end=path.end - 1))
            case [Token(kind="_DEF" | "_PATTERN" as word), Token(kind="NAME") as name, *_]:
                kind: Kind = "def" if word == "_DEF" else "pattern"
                whole = (part[0].start, part[-1].end)
                item = Declaration(name=name.text, kind=kind, start=name.start, end=name.end, whole=whole)
                inside = _inside(part[2:], item)
                declarations += [item, *inside]
                mentions += _mentions(part[2:], item.name, {each.start for each in inside})
            case _:
                mentions += _mentions(part[1:], None, set())
    return Outline(words=tokens, declarations=tuple(declarations), mentions=tuple(mentions), uses=tuple(uses))


def _parts(tokens: Sequence[Token], heads: frozenset[str]) -> Iterator[tuple[int, int]]:
    """Runs of words, each up to the next head."""
    starts = [0, *(at for at, token in enumerate(tokens) if token.kind in heads and at > 0)]
    return zip(starts, [*starts[1:], len(tokens)], strict=True) if tokens else iter(())


def _inside(part: Sequence[Token], item: Declaration) -> list[Declaration]:
    """The names that an item declares: those of its brackets, then those of its statements."""
    stop = _closing(part, 0)
    found = [
        _declared(name, "argument" if item.kind == "def" else "parameter", item, whole)
        for name, whole in _listed(part[:stop], named=item.kind == "pattern")
    ]
    if item.kind == "def":
        return found
    found += _free_axes(part[:stop], item, {each.name for each in found})
    body = part[stop:]
    for start, end in _parts(body, STATEMENTS):
        statement = body[start:end]
        match statement:
            case [Token(kind="_INPUT"), Token(kind="NAME") as name, *_]:
                found.append(_declared(name, "input", item, _whole(statement)))
                found += _free_axes(statement[2:], item, {each.name for each in found})
            case [Token(kind="_AXIS"), Token(kind="NAME") as name, *_]:
                found.append(_declared(name, "axis", item, _whole(statement)))
            case [Token(kind="_LET"), Token(kind="NAME") as name, *_]:
                found.append(_declared(name, "let", item, _whole(statement)))
            case [Token(kind="_EXPORT"), Token(kind="NAME") as name, *_]:
                found.append(_declared(name, "export", item, _whole(statement)))
            case [Token(kind="_GRID"), *rest]:
                if rest and rest[0].kind == "NAME":
                    found.append(_declared(rest[0], "grid", item, _whole(statement)))
                    rest = rest[1:]
                listed = _listed(rest[: _closing(rest, 0)], named=True)
                found += [_declared(name, "coordinate", item, whole) for name, whole in listed]
            case _:
                pass
        found += _ranks(statement, item, {each.name for each in found})
    return found


def _whole(statement: Sequence[Token]) -> tuple[int, int]:
    last = statement[-1]
    if (
        last.text == "}"
        and len(statement) > 1
        and sum(t.text == "{" for t in statement) < sum(t.text == "}" for t in statement)
    ):
        last = statement[-2]  # the bracket that closes the pattern
    return statement[0].start, last.end


def _declared(name: Token, kind: Kind, item: Declaration, whole: tuple[int, int]) -> Declaration:
    return Declaration(name=name.text, kind=kind, start=name.start, end=name.end, whole=whole, item=item.name)


def _closing(tokens: Sequence[Token], at: int) -> int:
    """Behind the bracket that closes the one at ``at``, or the end."""
    depth = 0
    for position in range(at, len(tokens)):
        depth += (tokens[position].text in OPENING) - (tokens[position].text in OPENING.values())
        if depth <= 0:
            return position + 1
    return len(tokens)


def _listed(tokens: Sequence[Token], *, named: bool) -> Iterator[tuple[Token, tuple[int, int]]]:
    """Names of ``(a, b)``, or with ``named`` of ``(a: …, b: …)``, each with the place of its part."""
    depth, head = 0, None
    for position, token in enumerate(tokens):
        opens, closes = token.text in OPENING, token.text in OPENING.values()
        ends = (closes and depth == 1) or (token.text == "," and depth == 1)
        if ends and head is not None:
            yield head, (head.start, tokens[position - 1].end)
            head = None
        depth += opens - closes
        begins = depth == 1 and token.text in ("(", ",")
        following = tokens[position + 1] if position + 1 < len(tokens) else None
        if begins and following is not None and following.kind == "NAME":
            behind = tokens[position + 2].text if position + 2 < len(tokens) else ""
            head = following if not named or behind == ":" else None
    if head is not None:
        yield head, (head.start, tokens[-1].end)


def _free_axes(statement: Sequence[Token], item: Declaration, known: set[str]) -> Iterator[Declaration]:
    """Lower-case names among the axes of an input that nothing declares: their first place is their declaration."""
    for before, token, behind in zip(statement, statement[1:], statement[2:], strict=False):
        alone = before.text in ("[", ",") and behind.text in ("]", ",", ":")
        if token.kind == "NAME" and alone and token.text.islower() and token.text not in (BUILTINS.keys() | known):
            known.add(token.text)
            yield _declared(token, "free axis", item, (token.start, token.end))


def _ranks(statement: Sequence[Token], item: Declaration, known: set[str]) -> Iterator[Declaration]:
    """The free axes that ``rank = …`` names."""
    for word, sign, token in zip(statement, statement[1:], statement[2:], strict=False):
        if (word.text, sign.text) == ("rank", "=") and token.kind == "NAME" and token.text not in known:
            yield _declared(token, "free axis", item, (token.start, token.end))


def _mentions(part: Sequence[Token], item: str | None, declared: set[int]) -> Iterator[Mention]:
    """All names of an item but those that it declares where they stand, and types."""
    callees: list[str] = []
    for position, token in enumerate(part):
        before = part[position - 1] if position else None
        if token.text in OPENING:
            callees.append(before.text if token.text == "(" and before is not None and before.kind == "NAME" else "")
        elif token.text in OPENING.values() and callees:
            callees.pop()
        if token.kind != "NAME" or token.start in declared:
            continue
        mention = Mention(name=token.text, start=token.start, end=token.end, item=item)
        behind = part[position + 1].text if position + 1 < len(part) else ""
        if before is not None and before.text == ".":
            yield replace(mention, role="member")
        elif behind == "=" and callees and callees[-1] and before is not None and before.text in ("(", ","):
            yield replace(mention, role="argument", callee=callees[-1])
        else:
            yield mention
