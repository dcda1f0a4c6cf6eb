"""Another name for something, everywhere it is mentioned; refused where the texts would not be right any more."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from spdsl.diagnostics import Diagnostic, SpatError, error
from spdsl.editor.outline import Declaration
from spdsl.editor.project import Place, Project, library


def rename(project: Project, path: Path, offset: int, name: str) -> dict[Path, list[Place]]:
    """The places, by file, where ``name`` is to stand in place of the name at ``offset``.

    Raises:
        SpatError: there is no name that these files declare, or the new one is none (SP631); or with the new one some
            file would have a mistake that it has not now (its code).
    """
    where, declaration = renameable(project, path, offset)
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise error("SP631", f"`{name}` is not a name", help="Names are letters, digits and `_`, no digit first.")
    places = {each: sorted(there) for each, there in project.places(where, declaration).items()}
    after = Project()
    after.opened = dict(project.opened)
    for each, there in places.items():
        after.opened[each] = replaced(project.file(each).text, there, name)
    for each in {*places, *project.near(where)}:
        wrong = _new_mistake(project.verdict(each).diagnostics, after.verdict(each).diagnostics)
        if wrong is not None:
            raise SpatError(wrong)
    return places


def renameable(project: Project, path: Path, offset: int) -> tuple[Path, Declaration]:
    """The file and declaration of the name at a place.

    Raises:
        SpatError: there is none, or it belongs to the library (SP631).
    """
    found = project.declaration(path, offset)
    if found is None:
        word = project.file(path).outline.word_at(offset)
        what = "there is no name here" if word is None else f"`{word.text}` is not declared and cannot be renamed"
        raise error("SP631", what, help="Choose a name that a file declares.")
    if found[0].parent == library():
        raise error(
            "SP631",
            f"`{found[1].name}` belongs to the library and cannot be renamed",
            help="`spdsl new NAME --like PATTERN` writes a copy of your own.",
        )
    return found


def replaced(text: str, places: list[Place], name: str) -> str:
    """A text with a name at all of these places."""
    for start, end in sorted(places, reverse=True):
        text = text[:start] + name + text[end:]
    return text


def _new_mistake(before: tuple[Diagnostic, ...], after: tuple[Diagnostic, ...]) -> Diagnostic | None:
    """The first mistake of a kind of which there were fewer before."""
    left = Counter(each.code for each in before if each.severity == "error")
    for each in after:
        if each.severity == "error":
            left[each.code] -= 1
            if left[each.code] < 0:
                return each
    return None
