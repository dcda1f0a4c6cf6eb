"""What can be written at a place: words that the parser would take there, and names that the checker would know."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from spdsl.editor.notes import comment_above, headline
from spdsl.editor.outline import COORDINATES, Declaration, outline
from spdsl.editor.project import File, Project
from spdsl.editor.words import OPENING, allowed_at, in_comment
from spdsl.grammar.engine import Token, load_tables
from spdsl.library import names as library_names
from spdsl.semantics import meanings
from spdsl.semantics.meanings import Meaning


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Something to write: ``kind`` is a kind of declaration, or ``word``, ``function``, ``name``, ``type``, ``member``,
    ``file`` or ``argument``; ``text`` is what is written where it differs from the label."""

    label: str
    kind: str
    detail: str = ""
    about: str = ""
    text: str = ""


def complete(project: Project, path: Path, offset: int) -> tuple[Offer, ...]:
    """What can be written at a place, the likeliest first."""
    file = project.file(path)
    text = file.text
    if in_comment(text, offset):
        return ()
    line = text[text.rfind("\n", 0, offset) + 1 : offset]
    if re.search(r'\buse\s+"[^"]*$', line):
        return tuple(_files(project, path))
    start = offset - len(re.search(r"\w*$", line).group())  # type: ignore[union-attr]  # it matches nothing at least
    before = [token for token in outline(text[:start]).words if token.end <= start]
    if before and before[-1].text == ".":
        return tuple(_members(file, before[:-1], offset))
    allowed = allowed_at(text, start)
    found = [*_names(project, path, before, start, allowed), *_words(allowed)]
    return tuple({(each.label, each.text): each for each in reversed(found)}.values())[::-1]


def _files(project: Project, path: Path) -> Iterator[Offer]:
    for each in sorted({*path.parent.glob("*.spat"), *(o for o in project.opened if o.parent == path.parent)} - {path}):
        yield Offer(label=each.name, kind="file", detail="beside this file")
    for name in library_names():
        yield Offer(label=f"{name}.spat", kind="file", detail="of the library")


def _members(file: File, before: list[Token], offset: int) -> Iterator[Offer]:
    """What may follow a dot: coordinates behind ``q`` and ``k``, then their ends; ``count`` behind an axis."""
    last = before[-1].text if before else ""
    names = file.outline
    item = names.item_at(offset)
    own = [each for each in names.members(item.name if item else None) if each.kind in COORDINATES]
    if item is not None and item.kind == "def":
        own = [each for each in names.declarations if each.kind in COORDINATES]
    is_member = len(before) > 1 and before[-2].text == "."
    if last in ("q", "k") and not is_member:
        for each in own:
            yield Offer(label=each.name, kind=each.kind, detail=headline(file, each))
        return
    wanted = ("first", "last", "size") if is_member else ("count",)
    if any(each.name == last for each in own):
        for name in wanted:
            yield _meant(name, "member", meanings.MEMBERS[name])


def _meant(name: str, kind: str, meaning: Meaning) -> Offer:
    return Offer(label=name, kind=kind, detail=meaning.form, about=meaning.text)


def _names(project: Project, path: Path, before: list[Token], offset: int, allowed: frozenset[str]) -> Iterator[Offer]:
    if "NAME" not in allowed:
        return
    last = before[-1].text if before else ""
    if last == "|>":
        yield from (_meant(name, "function", meaning) for name, meaning in meanings.FUNCTIONS.items())
        yield from (each for each in _items(project, path, offset) if each.kind == "def")
        return
    if "NUMBER" not in allowed:  # no expression: the name of something new, or a type
        if last == ":":
            yield from (_meant(name, "type", meaning) for name, meaning in meanings.TYPES.items())
        return
    file = project.file(path)
    item = file.outline.item_at(offset)
    yield from _arguments(project, path, before)
    for each in file.outline.members(item.name if item else None):
        if each.whole[1] <= offset and each.kind not in ("export", "free axis"):
            yield Offer(label=each.name, kind=each.kind, detail=headline(file, each), about=comment_above(file, each))
    yield from (_meant(name, "name", meaning) for name, meaning in meanings.NAMES.items())
    yield from _items(project, path, offset)
    yield from (_meant(name, "function", meaning) for name, meaning in meanings.FUNCTIONS.items())


def _items(project: Project, path: Path, offset: int) -> Iterator[Offer]:
    """The patterns and defs in sight, but not the one that is being written."""
    for where, each in project.visible(path):
        if where == path and each.whole[0] <= offset <= each.whole[1]:
            continue
        file = project.file(where)
        yield Offer(label=each.name, kind=each.kind, detail=headline(file, each), about=comment_above(file, each))


def _arguments(project: Project, path: Path, before: list[Token]) -> Iterator[Offer]:
    """Parameters of the pattern or def that is being called, at the beginning of an argument."""
    if not before or before[-1].text not in ("(", ","):
        return
    callee = _callee(before)
    for where, each in project.visible(path):
        if each.name == callee:
            file = project.file(where)
            for parameter in _parameters(file, each):
                name = parameter.name
                yield Offer(label=f"{name} =", kind="argument", detail=headline(file, parameter), text=f"{name} = ")
            return


def _parameters(file: File, item: Declaration) -> Iterator[Declaration]:
    return (each for each in file.outline.members(item.name) if each.kind in ("parameter", "argument"))


def _callee(before: list[Token]) -> str:
    """The name before the innermost open bracket."""
    depth = 0
    for at in range(len(before) - 1, 0, -1):
        depth += (before[at].text in OPENING.values()) - (before[at].text in OPENING)
        if depth < 0:
            return before[at - 1].text if before[at].text == "(" and before[at - 1].kind == "NAME" else ""
    return ""


def _words(allowed: frozenset[str]) -> Iterator[Offer]:
    """The words of the language that the parser would take."""
    for kind, regexp in load_tables().terminals.items():
        if kind in allowed and regexp.endswith("\\b"):
            for word in regexp.removesuffix("\\b").strip("()").split("|"):
                meaning = meanings.WORDS[word]
                if meaning.text != meanings.REFUSED:
                    yield _meant(word, "word", meaning)
