"""Remarks that say which word was meant, as changes of the text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from spdsl.diagnostics import Diagnostic
from spdsl.editor.project import Place, Project

_MEANT = re.compile(r"did you mean `(\w+)`\?")
_WRONG = re.compile(r"`(\w+)`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mend:
    """A remark, and the word to write at a place."""

    of: Diagnostic
    place: Place
    word: str


def mends(project: Project, path: Path) -> Iterator[Mend]:
    """All changes that the checker suggests for a file."""
    words = project.file(path).outline.words
    for each in project.verdict(path).diagnostics:
        meant = _MEANT.search(each.help)
        found = None if each.span is None else project.located(path, each.span)
        if meant is None or found is None or found[0] != path:
            continue
        start, end = found[1]
        wrong = set(_WRONG.findall(each.message))
        inside = [word for word in words if start <= word.start and word.end <= end and word.text in wrong]
        if inside:
            yield Mend(of=each, place=(inside[-1].start, inside[-1].end), word=meant[1])
