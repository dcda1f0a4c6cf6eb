"""Parts of a formula that change nothing: known cases, and random formulas against brute force."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spdsl.analysis.doubts import idle_parts
from spdsl.analysis.redundant import Found, redundant
from spdsl.analysis.worker import bounded
from spdsl.library import names, text_of
from spdsl.pipeline import read
from spdsl.semantics.expand import expand
from tests.analysis.brute import environment, mask_of
from tests.docs.test_examples import patterns as examples_of_the_pages
from tests.library.bound import library, program
from tests.library.cases import CASES


def idle(keep: str, before: str = "") -> list[tuple[str, str]]:
    found = redundant(program(f"pattern p() {{ {before} keep {keep} }}", heads=4, groups=4))
    return [(part.text, part.of) for part in found.parts]


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ("causal and q - k < 8", []),
        ("causal and k <= q", [("k <= q", "and")]),
        ("0 <= q - k < 8 and causal", [("causal", "and")]),
        ("causal and (q - k < 8 or q - k < 4)", [("q - k < 4", "or")]),
        ("causal or k < 5 and causal", [("k < 5 and causal", "or")]),
        ("causal and (k < 4 or q - k < 8 or k < n)", [("k < 4 or q - k < 8 or k < n", "and")]),
        ("causal and not (k > q or k < 4)", [("k > q", "or")]),
        ("(if h == 0 then causal and k <= q else causal)", [("k <= q", "and")]),
        ("q - k < 8 and h <= g", [("h <= g", "and")]),
        ("causal and q - k < 2 keep causal and q - k < 100", [("causal and q - k < 2", "or")]),
        (
            "causal and q - k < 2 keep k == q keep causal and q - k < 100",
            [("causal and q - k < 2", "or"), ("k == q", "or")],
        ),
    ],
)
def test_known_formulas(keep: str, expected: list[tuple[str, str]]) -> None:
    assert sorted(idle(keep)) == sorted(expected)


def test_inputs() -> None:
    before = "input doc: int[token] sorted"
    assert idle("causal and doc[q] == doc[k]", before) == []
    assert idle("causal and doc[q] == doc[k] and doc[k] == doc[q] and q >= k", before) == [
        ("doc[k] == doc[q]", "and"),
        ("q >= k", "and"),
    ]
    assert idle("causal and (doc[q] == doc[k] or k == q)", before) == [("k == q", "or")]


def test_a_definition_that_is_used_twice_is_one_part() -> None:
    text = """def near(x, w) = abs(x) < w and x >= 0
    pattern p() { keep near(q - k, 8) or near(q - k, 64) and k < 9 }"""
    assert redundant(program(text)).parts == ()
    text = """def near(x, w) = abs(x) < w and x < w
    pattern p() { keep near(q - k, 8) or near(q - k, 64) and k < 9 }"""
    assert [part.text for part in redundant(program(text)).parts] == ["x < w"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_library_has_no_idle_parts(case: object) -> None:
    found = redundant(library(case.name, heads=8, groups=2, **case.parameters))  # type: ignore[attr-defined]
    assert found.parts == ()


# ---------------------------------------------------------------- random formulas


def clauses() -> st.SearchStrategy[str]:
    return st.sampled_from(
        (
            *("causal", "k <= q", "q - k < 5", "q - k < 9", "k < 4", "k < 2", "q // 4 == k // 4", "h == 0"),
            *("k % 2 == 0", "flag[k]", "k == q", "(q - k) % 4 == 0", "is_pow2(q - k)", "abs(q - k) <= 5"),
        )
    )


def formulas() -> st.SearchStrategy[str]:
    joined = st.recursive(
        clauses(),
        lambda inner: (
            st.builds("({} {} {})".format, inner, st.sampled_from(["and", "or"]), inner)
            | st.builds("(not {})".format, inner)
        ),
        max_leaves=6,
    )
    return joined.filter(lambda text: " and " in text or " or " in text)


def without(found: Found, text: str) -> str:
    """The text with each part replaced by what changes nothing beside its operator."""
    for part in sorted(found.parts, key=lambda part: part.span.column, reverse=True):
        neutral = "(0 == 0)" if part.of == "and" else "(0 == 1)"
        text = text[: part.span.column - 1] + neutral + text[part.span.end_column - 1 :]
    return text


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(formula=formulas(), seed=st.integers(0, 99))
def test_random_formulas(formula: str, seed: int) -> None:
    text = f"pattern p() {{ input flag: bool[token]  keep {formula} or flag[q] }}"
    whole = program(text, heads=2, groups=2)
    found = bounded(redundant, {"pattern": whole}, seconds=5.0)  # a call of isl may hang
    if found is None:
        return
    smaller = program(without(found, text), heads=2, groups=2)
    chance = random.Random(seed)
    for length in (1, 3, 12):
        env = environment("square", length, h=chance.randrange(2))
        tables = {"flag": [chance.random() < 0.4 for _ in range(length)]}
        masks = [mask_of(expand(each, each.attend.keep), env, tables) for each in (whole, smaller)]
        assert (masks[0] == masks[1]).all(), (text, found)


# ---------------------------------------------------------------- warnings


def warned(text: str) -> list[str]:
    return [each.message for each in idle_parts(read(text))]


def test_the_checker_warns_for_all_parameters() -> None:
    idle = "pattern p(w: int in 1.. = 8) { keep causal and q - k < w and k <= q + w }"
    assert warned(idle) == ["`k <= q + w` changes nothing: the same pairs are kept without it"]
    assert warned("pattern p(w: int = 8) { keep causal and k <= q + w }") == []
    assert warned("pattern p(w: int in 0.. = 0) { keep causal and (q - k < 9 or k < w) }") == []
    assert warned("pattern p(both: bool = false) { keep causal and (both or k <= q) }") == [
        "`both or k <= q` changes nothing: the same pairs are kept without it"
    ]


def test_the_checker_leaves_heads_and_layers_alone() -> None:
    assert warned("pattern p() { keep causal and h < 9 }") == []
    assert warned("pattern p() { keep causal and (layer > 0 or k <= q) }") == []


@pytest.mark.parametrize("name", names())
def test_no_warning_about_the_library(name: str) -> None:
    checked = read(text_of(name), name=name, resolve=lambda path: text_of(path.removesuffix(".spat")))
    assert idle_parts(checked) == ()


@pytest.mark.parametrize("text", [text for text, code in examples_of_the_pages() if code is None])
def test_no_warning_about_examples(text: str) -> None:
    if "changes nothing" not in text:
        assert idle_parts(read(text, resolve=lambda path: text_of(path.removesuffix(".spat")))) == ()
