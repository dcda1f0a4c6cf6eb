"""The files that an editor works on: what it has open stands before what is on the disk.

From a path to a `File`: its text, its names, and what the checker says.  Everything is a function of the texts, and is
kept until one of them changes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path

from spdsl.diagnostics import Diagnostic, Span, SpatError
from spdsl.editor.outline import Declaration, Mention, Outline, outline
from spdsl.editor.positions import Places
from spdsl.grammar import nodes as syntax
from spdsl.grammar.parse import parse
from spdsl.library import read_file, resolver
from spdsl.semantics.bounds import Facts, Range, interval
from spdsl.semantics.check import check_all
from spdsl.semantics.nodes import CheckedPattern
from spdsl.semantics.values import Scalar, Value

Place = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the checker found an expression to mean; ``range`` holds for numbers of which anything is known."""

    value: Value
    range: Range | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the checker says about a text: its patterns that are right, remarks, and the meaning of expressions."""

    program: syntax.Program | None = None
    patterns: tuple[CheckedPattern, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()
    seen: Mapping[Place, Seen] = field(default_factory=dict)


class File:
    """One text: its places and names are found when they are asked for."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text = path, text
        self.places = Places(text)

    @cached_property
    def outline(self) -> Outline:
        """The names in it."""
        return outline(self.text)

    def verdict(self, resolve: Callable[[str], str]) -> Verdict:
        """What the checker says about it; raises nothing."""
        seen: dict[Place, Seen] = {}

        def watch(node: syntax.Expr, value: Value, facts: Facts) -> None:
            span = node.span
            if span is not None and span.source.name == str(self.path):
                seen[self.places.span(span)] = Seen(value=value, range=_range(value, facts))

        try:
            program = parse(self.text, str(self.path))
        except SpatError as mistake:
            return Verdict(diagnostics=mistake.diagnostics)
        patterns, diagnostics = check_all(program, resolve=resolve, watch=watch)
        return Verdict(program=program, patterns=patterns, diagnostics=diagnostics, seen=seen)


def _range(value: Value, facts: Facts) -> Range | None:
    if not isinstance(value, Scalar) or value.dtype == "bool":
        return None
    found = interval(value.expr, facts)
    return None if found == (None, None) else found


class Project:
    """All files in sight.  ``opened`` are the texts of the editor, by path."""

    def __init__(self) -> None:
        self.opened: dict[Path, str] = {}
        self._files: dict[Path, File] = {}
        self._verdicts: dict[Path, tuple[dict[Path, str | None], Verdict]] = {}

    def file(self, path: Path) -> File:
        """A file as the editor has it, or else the disk.

        Raises:
            SpatError: it cannot be read.
        """
        text = self.opened.get(path)
        if text is None:
            text = read_file(path)
        known = self._files.get(path)
        if known is None or known.text != text:
            known = self._files[path] = File(path, text)
        return known

    def verdict(self, path: Path) -> Verdict:
        """What the checker says about a file, with the files that it uses as the editor has them."""
        file = self.file(path)
        known = self._verdicts.get(path)
        if known is not None and all(self._text(each) == text for each, text in known[0].items()):
            return known[1]
        read: dict[Path, str | None] = {path: file.text}

        def resolve(name: str) -> str:
            found = self.used(path, name)
            if found is None:
                read[path.parent / name] = None
                return resolver(path.parent)(name)
            text = read[found] = self.file(found).text
            return text

        verdict = file.verdict(resolve)
        self._verdicts[path] = (read, verdict)
        return verdict

    def _text(self, path: Path) -> str | None:
        try:
            return self.file(path).text
        except SpatError:
            return None

    def used(self, path: Path, name: str) -> Path | None:
        """The file that ``use "name"`` means in a file: one beside it, or one of the library."""
        beside = Path(os.path.normpath(path.parent / name))
        if beside in self.opened or beside.is_file():
            return beside
        inside = library() / f"{name.removesuffix('.spat')}.spat"
        return inside if inside.is_file() else None

    def uses(self, path: Path) -> tuple[Path, ...]:
        """The files that a file uses, and those that these use, as the checker reads them: beside the first."""
        found: list[Path] = []
        waiting = [path]
        while waiting:
            for use in self.file(waiting.pop()).outline.uses:
                used = self.used(path, use.path)
                if used is not None and used != path and used not in found:
                    found.append(used)
                    waiting.append(used)
        return tuple(found)

    def near(self, path: Path) -> tuple[Path, ...]:
        """A file, and all in the editor or its folder that use it."""
        around = {*self.opened, *path.parent.glob("*.spat")} - {path}
        return (path, *sorted(each for each in around if self._uses(each, path)))

    def _uses(self, path: Path, other: Path) -> bool:
        try:
            return other in self.uses(path)
        except SpatError:
            return False

    # ------------------------------------------------------------ names

    def visible(self, path: Path) -> Iterator[tuple[Path, Declaration]]:
        """The patterns and defs that a file sees: its own, then those of the files that it uses."""
        for each in (path, *self.uses(path)):
            for item in self.file(each).outline.items():
                yield each, item

    def declaration(self, path: Path, offset: int) -> tuple[Path, Declaration] | None:
        """What the name at a place is declared as, in this file or in one that it uses."""
        names = self.file(path).outline
        for own in names.declarations:
            if own.start <= offset <= own.end:
                return path, own
        mention = next((each for each in names.mentions if each.start <= offset <= each.end), None)
        return None if mention is None else self.resolved(path, mention)

    def resolved(self, path: Path, mention: Mention) -> tuple[Path, Declaration] | None:
        """The declaration that a name refers to."""
        found = self.file(path).outline.find(mention)
        if found is not None:
            return path, found
        if mention.role == "member":
            return None
        for other in self.uses(path):
            there = self.file(other).outline
            if mention.role == "argument":
                found = there.find(mention)
            else:
                found = next((each for each in there.items() if each.name == mention.name), None)
            if found is not None:
                return other, found
        return None

    def places(self, path: Path, declaration: Declaration) -> dict[Path, list[Place]]:
        """All places of a name: its declaration first, then where it is mentioned, in all files that can see it."""
        found = {path: [(declaration.start, declaration.end)]}
        for each in self.near(path):
            here = [
                (mention.start, mention.end)
                for mention in self.file(each).outline.mentions
                if mention.name == declaration.name and self.resolved(each, mention) == (path, declaration)
            ]
            if here:
                found.setdefault(each, []).extend(here)
        return found

    def located(self, path: Path, span: Span) -> tuple[Path, Place] | None:
        """The file and place of a remark about a file; a file that it uses goes by the name that the text gives it."""
        name = span.source.name
        where = path if name == str(path) else self.used(path, name)
        return None if where is None else (where, self.file(where).places.span(span))


def library() -> Path:
    """The folder of the library."""
    return Path(str(resources.files("spdsl") / "patterns"))
