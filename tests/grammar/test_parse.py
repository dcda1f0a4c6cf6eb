"""What `parse` returns, where it says things stand, and what it refuses to read."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from spdsl.diagnostics import SpatError
from spdsl.grammar import build_tables
from spdsl.grammar.errors import _hint, situation_of
from spdsl.grammar.format import format_text
from spdsl.grammar.hints import CHARACTERS, HINTS, Hint
from spdsl.grammar.nodes import Binary, Call, Keep, Name, Node, Param, Pattern, Range
from spdsl.grammar.parse import MAX_BYTES, MAX_DEPTH, decode, parse, parse_file
from spdsl.grammar.print import to_spat
from spdsl.grammar.show import dump

SKETCHES = Path(__file__).parent / "sketches"


def walk(node: Node) -> Iterator[Node]:
    yield node
    for field in fields(node):
        value = getattr(node, field.name)
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, Node):
                yield from walk(one)


def first(text: str) -> Pattern:
    pattern = parse(text).items[-1]
    assert isinstance(pattern, Pattern)
    return pattern


@pytest.mark.parametrize("name", ["streaming", "llsa", "gna_3d", "sta", "hybrid"])
def test_tree(name: str, golden: Callable[..., None]) -> None:
    golden(dump(parse_file(SKETCHES / f"{name}.spat")))


@pytest.mark.parametrize("name", ["ada_snapkv", "gna", "gna_3d", "llsa", "longnet", "rectified", "sta", "vsa"])
def test_layout(name: str, golden: Callable[..., None]) -> None:
    golden(format_text((SKETCHES / f"{name}.spat").read_text()), ending="spat")


def test_comments_stay_beside_what_they_stood_beside(golden: Callable[..., None]) -> None:
    golden(format_text((Path(__file__).parent / "comments.spat").read_text()), ending="spat")


@pytest.mark.parametrize("path", sorted(SKETCHES.glob("*.spat")), ids=lambda path: path.stem)
def test_every_node_knows_its_text(path: Path) -> None:
    program = parse_file(path)
    lines = path.read_text().splitlines()
    for node in walk(program):
        span = node.span
        assert span is not None
        assert span.source is program.source
        assert (span.line, span.column) <= (span.end_line, span.end_column)
        if isinstance(node, Name):
            assert lines[span.line - 1][span.column - 1 : span.end_column - 1] == node.id
        if isinstance(node, Keep):
            assert lines[span.line - 1][span.column - 1 :].startswith("keep")


def test_saved_tables_are_those_of_the_grammar() -> None:
    pytest.importorskip("interegular")
    assert build_tables.TABLES.read_text() == build_tables.build()


def test_parsing_needs_no_heavy_module() -> None:
    text = "import sys, spdsl.grammar.parse as p; p.parse('pattern a() { keep causal }'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout.split()
    assert not {"lark", "torch", "sympy", "networkx", "triton"} & set(loaded)


def test_line_ends_and_byte_order_marks() -> None:
    text = "pattern p() {\r\n\tkeep causal\r\n}\r\n"
    assert parse(decode(b"\xef\xbb\xbf" + text.encode())) == parse("pattern p() { keep causal }")
    assert parse(text).items[0].span.end_line == 3  # type: ignore[union-attr]
    assert parse("") == parse("# nothing\n")


def test_a_bracket_on_the_next_line_is_a_call() -> None:
    """The checker answers `causal` is not a function; the parser takes it as written."""
    (keep,) = first("pattern p() { keep causal\n  (q - k < 3) }").statements
    assert isinstance(keep, Keep)
    assert isinstance(keep.set, Call)
    assert keep.set.span is not None
    assert keep.set.span.end_line == 2


def test_ranges() -> None:
    texts = {"1..8": (1, 8), "1..": (1, None), "..-2": (None, -2), "-1.5..2.5": (-1.5, 2.5), "0..1e3": (0, 1000.0)}
    for text, (low, high) in texts.items():
        (param,) = first(f"pattern p(w: int in {text}) {{}}").parameters
        assert isinstance(param, Param)
        assert param.range == Range(low=low, high=high)


def test_largest_literals() -> None:
    for text in (str(2**63 - 1), "0" * 50 + "7", "1.7e308", "1e-400"):
        parse(f"pattern p() {{ softcap {text} }}")
    for text in (str(2**63), "9" * 30_000, "1e309"):
        with pytest.raises(SpatError) as bad:
            parse(f"pattern p() {{ softcap {text} }}")
        assert bad.value.code == "SP106"


DEEP = {
    "brackets": "(" * 50_000 + "q",
    "closed brackets": "(" * 5_000 + "q" + ")" * 5_000,
    "indices": "a[" * 500 + "q" + "]" * 500,
    "calls": "f(" * 500 + "q" + ")" * 500,
    "minus": "-" * 50_000 + "q",
    "not": "not " * 50_000 + "q",
    "if": "if a then b else " * 20_000 + "q",
    "if in a condition": "if " * 50_000 + "q",
    "sums": "q + " * 50_000 + "q",
    "ands": "q and " * 50_000 + "q",
    "powers": "2 ** " * 50_000 + "q",
    "pipes": "q" + " |> softmax" * 20_000,
    "attributes": "q" + ".blk" * 50_000,
    "called again": "q" + "()" * 50_000,
    "branches": "attend { keep " * 500 + "q" + "}" * 500,
}


@pytest.mark.parametrize("kind", DEEP)
def test_depth_is_bounded(kind: str) -> None:
    with pytest.raises(SpatError) as bad:
        parse(f"pattern p() {{ let x = {DEEP[kind]} }}")
    assert bad.value.code == "SP105"
    assert bad.value.place
    assert bad.value.help


def test_what_is_just_shallow_enough_can_be_walked() -> None:
    for text in (" and ".join(["q"] * (MAX_DEPTH - 3)), "(" * 100 + "q" + ")" * 100, "f(" * 60 + "q" + ")" * 60):
        program = parse(f"pattern p() {{ let x = {text} }}")
        assert parse(to_spat(program)) == program
        assert format_text(to_spat(program)) == to_spat(program)
        assert dump(program)


def test_long_flat_texts_take_linear_time() -> None:
    text = "pattern p() {\n" + "keep causal\n" * 20_000 + "}"
    start = time.perf_counter()
    assert len(first(text).statements) == 20_000
    assert time.perf_counter() - start < 20


def test_size_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "large.spat"
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    for read in (lambda: parse_file(path), lambda: parse("#" * (MAX_BYTES + 1)), lambda: decode(b"\xff" * 2_000_000)):
        with pytest.raises(SpatError) as bad:
            read()
        assert bad.value.code == "SP107"


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "bad.spat"
    path.write_bytes(b"pattern p() {\n  keep \xff\n}\n")
    with pytest.raises(SpatError) as bad:
        parse_file(path)
    assert bad.value.code == "SP108"
    assert bad.value.place.endswith("bad.spat:2:8")


@pytest.mark.parametrize("hint", HINTS, ids=lambda hint: hint.example)
def test_an_example_finds_its_own_hint(hint: Hint) -> None:
    assert _hint(situation_of(hint.example)) is hint


@pytest.mark.parametrize("mark", CHARACTERS)
def test_marks_of_other_languages(mark: str) -> None:
    with pytest.raises(SpatError) as bad:
        parse(f"pattern p() {{ keep a {mark} b }}")
    assert bad.value.code == "SP102"
    assert bad.value.help == CHARACTERS[mark]


@pytest.mark.parametrize("path", sorted(SKETCHES.glob("*.spat"))[::6], ids=lambda path: path.stem)
def test_a_text_cut_anywhere_is_a_diagnosis(path: Path) -> None:
    """Every prefix parses, or says SP1xx at a place inside the text, with help."""
    text = path.read_text()
    for end in range(0, len(text), 3):
        bad = failure(text[:end])
        if bad is not None:
            assert bad.code.startswith("SP1")
            assert bad.help
            assert bad.span is not None
            assert bad.span.line <= text[:end].count("\n") + 1


def failure(text: str) -> SpatError | None:
    try:
        parse(text)
    except SpatError as bad:
        return bad
    return None


def test_equality_ignores_places() -> None:
    assert parse("pattern p() { keep a  and b }") == parse("# x\npattern p(\n) {\n\nkeep (a and b)\n}")
    both = {"left": Name(id="a"), "right": Name(id="b")}
    assert Binary(op="and", **both) != Binary(op="or", **both)
