"""Places of editors, of the compiler and of the lexer, and names of broken texts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spdsl.diagnostics import Source, Span
from spdsl.editor.outline import outline
from spdsl.editor.positions import Places
from spdsl.grammar.parse import parse
from spdsl.library import names, text_of

TEXTS = st.text(alphabet=st.sampled_from("ab𝔸é\n\r\u2028\x0b "), max_size=30)


@given(TEXTS)
def test_points_and_offsets_are_inverse(text: str) -> None:
    places = Places(text)
    for offset in range(len(text) + 1):
        point = places.point(offset)
        inside_ending = text[offset - 1 : offset + 1] == "\r\n"
        assert places.offset(*point) == offset - inside_ending
        # Lines of the protocol, found by the text alone.
        before = text[:offset].replace("\r\n", "\n").replace("\r", "\n")
        if not inside_ending:
            assert point.line == before.count("\n")
            assert point.character == len(before.rpartition("\n")[2].encode("utf-16-le")) // 2


def test_places_past_the_end_are_the_end() -> None:
    places = Places("ab\r\n𝔸c")
    assert places.offset(0, 99) == 2
    assert places.offset(9, 0) == 6
    assert places.offset(1, 1) == 4  # half of a character
    assert places.offset(1, 2) == 5


@given(TEXTS, st.data())
def test_places_of_the_compiler(text: str, data: st.DataObject) -> None:
    source = Source(name="x", text=text)
    lines = text.splitlines(keepends=True) or [""]
    number = data.draw(st.integers(1, len(lines)))
    column = data.draw(st.integers(1, len(lines[number - 1]) + 1))
    span = Span(source=source, line=number, column=column, end_line=number, end_column=column)
    start, end = Places(text).span(span)
    assert 0 <= start <= end <= len(text)
    wanted = sum(len(line) for line in lines[: number - 1]) + column - 1
    assert start in (wanted, wanted - 1)


@pytest.mark.parametrize("name", names())
def test_the_outline_of_the_library_is_that_of_the_tree(name: str) -> None:
    """Found from words alone, and the same as in the syntax tree, also where the end of the text is missing."""
    text = text_of(name)
    found = outline(text)
    wanted: set[tuple[str | None, str]] = set()
    program = parse(text)
    for item in program.items:
        match item:
            case _ if type(item).__name__ == "Use":
                continue
        wanted.add((None, item.name))
        if hasattr(item, "statements"):
            wanted |= {
                (item.name, each.name) for each in (*item.parameters, *item.statements) if getattr(each, "name", None)
            }
            wanted |= {(item.name, part.name) for each in item.statements for part in getattr(each, "coordinates", ())}
        else:
            wanted |= {(item.name, each) for each in item.parameters}
    given_names = {(each.item, each.name) for each in found.declarations if each.kind != "free axis"}
    assert given_names == wanted
    for each in found.declarations:
        assert text[each.start : each.end] == each.name
    cut = outline(text[: text.rindex("}")].rstrip()[:-1])
    kept = {(each.item, each.name) for each in cut.declarations if each.kind != "free axis"}
    assert kept <= wanted
    assert len(kept) >= len(wanted) - 1


def test_names_of_the_library_are_found() -> None:
    """Everything that a text of the library mentions is declared in it, or means something in the language."""
    from spdsl.semantics.functions import FUNCTIONS
    from spdsl.semantics.meanings import MEMBERS
    from spdsl.semantics.scope import BUILTINS, TYPES

    words = {"per", "over", "upto", "within", "scale", "windows", "inside", "touching", "overlap", "counted", "grad"}
    words |= {"stop", "least", "rank"}
    for name in names():
        found = outline(text_of(name))
        for each in found.mentions:
            known = each.name in {*BUILTINS, *FUNCTIONS, *TYPES, *MEMBERS, *words}
            assert known or found.find(each) is not None or found.uses, (name, each)


def test_a_file_that_is_only_used(tmp_path: Path) -> None:
    from spdsl.editor.project import Project

    (tmp_path / "a.spat").write_text("def half(x) = x // 2\n")
    (tmp_path / "b.spat").write_text('use "a.spat"\npattern user() { keep half(q) > k }\n')
    project = Project()
    path = tmp_path / "b.spat"
    assert project.verdict(path).diagnostics == ()
    # What the editor has stands before what the disk has.
    project.opened[tmp_path / "a.spat"] = "def other(x) = x\n"
    assert [each.code for each in project.verdict(path).diagnostics] == ["SP201"]
    del project.opened[tmp_path / "a.spat"]
    assert project.verdict(path).diagnostics == ()
    (tmp_path / "a.spat").unlink()
    assert [each.code for each in project.verdict(path).diagnostics] == ["SP602"]
