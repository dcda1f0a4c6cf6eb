"""Printing and parsing are inverse; the formatter keeps the tree, the comments, and its own output."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spdsl.diagnostics import SpatError
from spdsl.grammar.engine import tokens
from spdsl.grammar.format import format_text
from spdsl.grammar.nodes import Expr, Pattern, Program
from spdsl.grammar.parse import parse
from spdsl.grammar.print import expression, to_spat
from spdsl.grammar.show import dump
from tests.grammar.strategies import EXPRESSIONS, PROGRAMS

SKETCHES = sorted((Path(__file__).parent / "sketches").glob("*.spat"))


def value_of(text: str) -> Expr:
    """The expression behind ``keep``."""
    (pattern,) = parse(f"pattern p() {{ let x = {text} }}").items
    assert isinstance(pattern, Pattern)
    return pattern.statements[0].value  # type: ignore[union-attr]


@given(EXPRESSIONS)
@settings(max_examples=300, deadline=None)
def test_expressions_come_back(expr: Expr) -> None:
    again = value_of(expression(expr))
    assert again == expr
    assert dump(again) == dump(expr)  # `1 == 1.0` in Python, not here


@given(PROGRAMS)
@settings(max_examples=150, deadline=None)
def test_programs_come_back(program: Program) -> None:
    text = to_spat(program)
    assert dump(parse(text)) == dump(program)
    assert format_text(text) == text


@given(PROGRAMS, st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_format_keeps_comments_anywhere(program: Program, random: object) -> None:
    text = sprinkle(to_spat(program), random)
    once = format_text(text)
    assert dump(parse(once)) == dump(program)
    assert sorted(comments(once)) == sorted(comments(text))
    assert format_text(once) == once


def sprinkle(text: str, random: object) -> str:
    """The same tokens with comments, blank lines and line breaks at random between them."""
    gaps = [" ", " ", " ", "\n", "\n\n", "\n\n\n", " # {}\n", "\n# {}\n", "\n\n  #{}\n\n"]
    pieces = [random.choice(gaps).format(0)]  # type: ignore[attr-defined]
    for number, token in enumerate(tokens(text), 1):
        pieces += [token.text, random.choice(gaps).format(number)]  # type: ignore[attr-defined]
    return "".join(pieces)


def comments(text: str) -> list[str]:
    return [token.text for token in tokens(text) if token.kind == "COMMENT"]


@pytest.mark.parametrize("path", SKETCHES, ids=lambda path: path.stem)
def test_sketches(path: Path) -> None:
    text = path.read_text()
    program = parse(text, path.name)
    assert parse(to_spat(program)) == program
    once = format_text(text)
    assert parse(once) == program
    assert sorted(comments(once)) == sorted(comments(text))
    assert format_text(once) == once
    assert [line for line in once.splitlines() if len(line.split("  #")[0]) > 100 and "#" not in line] == []


@pytest.mark.parametrize(
    ("text", "minimal"),
    [
        ("((a or (b and c)))", "a or b and c"),
        ("(a or b) and c", "(a or b) and c"),
        ("a and (b and c)", "a and (b and c)"),
        ("not (not a)", "not not a"),
        ("not (a and b)", "not (a and b)"),
        ("not (a in b)", "not a in b"),
        ("(q - k) % 2 == (0)", "(q - k) % 2 == 0"),
        ("q - (k - 1)", "q - (k - 1)"),
        ("(a < b) == c", "(a < b) == c"),
        ("-(2 ** 2)", "-2 ** 2"),
        ("(-2) ** 2", "(-2) ** 2"),
        ("2 ** (-1)", "2 ** -1"),
        ("(2 ** 3) ** 2", "(2 ** 3) ** 2"),
        ("2 ** (3 ** 2)", "2 ** 3 ** 2"),
        ("(s |> top(3)) or a", "(s |> top(3)) or a"),
        ("(if a then b else c) |> top", "(if a then b else c) |> top"),
        ("if (if a then b else c) then d else (s |> f())", "if if a then b else c then d else s |> f"),
        ("(1).x", "1.x"),
        ("(attend { keep a  bias b })(q)", "attend { keep a  bias b }(q)"),
    ],
)
def test_parentheses_are_minimal(text: str, minimal: str) -> None:
    assert expression(value_of(text)) == minimal
    assert value_of(minimal) == value_of(text)


def test_names_may_be_words_of_the_language() -> None:
    expr = value_of("keep and (by or then)")
    assert expression(expr) == "keep and (by or then)"
    with pytest.raises(SpatError):
        value_of("if and a")
