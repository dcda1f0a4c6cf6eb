"""What the documentation says, tried out: its patterns check or are refused as told, its tables are complete."""

from __future__ import annotations

import ast
import re
import runpy
from functools import cache
from pathlib import Path

import pytest

from spdsl.diagnostics import SpatError
from spdsl.grammar.format import format_text
from spdsl.library import resolver
from spdsl.pipeline import read
from spdsl.semantics.clauses import SETTINGS
from spdsl.semantics.functions import FUNCTIONS
from spdsl.semantics.ops import OPS
from spdsl.semantics.scope import BUILTINS, TYPES
from spdsl.semantics.unsupported import UNSUPPORTED, UNSUPPORTED_SETTINGS

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
LANGUAGE = (ROOT / "docs" / "language.md").read_text(encoding="utf-8")
PATTERN = re.compile(r"^```spat *(?:error (SP\d+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"SP[1-6]\d\d")


def patterns() -> list[tuple[str, str | None]]:
    found = [each for page in PAGES for each in PATTERN.findall(page.read_text(encoding="utf-8"))]
    return [(text, code or None) for code, text in found]


def name_of(case: object) -> str:
    found = re.findall(r"^pattern (\w+)", case if isinstance(case, str) else "", re.MULTILINE)
    return found[-1] if found else str(case)


@pytest.mark.parametrize(("text", "code"), patterns(), ids=name_of)
def test_patterns_check_or_fail_as_told(text: str, code: str | None) -> None:
    if code is None:
        assert read(text, resolve=resolver(None)).text
    else:
        with pytest.raises(SpatError) as caught:
            read(text, resolve=resolver(None))
        assert {each.code for each in caught.value.diagnostics} == {code}
        assert caught.value.help


@pytest.mark.parametrize(("text", "code"), patterns(), ids=name_of)
def test_patterns_are_laid_out_the_same_twice(text: str, code: str | None) -> None:
    del code
    once = format_text(text, "example.spat")
    assert format_text(once, "example.spat") == once


def test_there_are_examples() -> None:
    assert len(patterns()) >= 20


# ---------------------------------------------------------------- tables of the reference


def test_tables_are_those_of_the_compiler() -> None:
    tables = runpy.run_path(str(ROOT / "docs" / "site" / "tables.py"))
    assert tables["page"](LANGUAGE) == LANGUAGE, "run `python docs/site/tables.py`"
    assert set(re.findall("<!-- generated: (.*?) -->", LANGUAGE)) == set(tables["PARTS"])
    for part in ("pattern", "softcap", "|>", "is_pow2", "?product: signed"):
        assert part in "\n".join(line for make in tables["PARTS"].values() for line in make())


@cache
def codes_of_the_source() -> set[str]:
    """The codes that stand as string literals in the source."""
    found: set[str] = set()
    for folder in ("spdsl", "grammar", "codegen", "runtime"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.fullmatch(node.value):
                    found.add(node.value)
    return found


def test_error_codes_are_those_of_the_source() -> None:
    listed = re.findall(r"^\| (SP\d+) \| \S", LANGUAGE, re.MULTILINE)
    assert listed == sorted(set(listed)), "each once, in order"
    assert set(listed) == codes_of_the_source()


def test_codes_in_the_text_exist() -> None:
    for page in PAGES:
        assert set(CODE.findall(page.read_text(encoding="utf-8"))) <= codes_of_the_source(), page.name


def quoted() -> str:
    """All that stands in backticks outside of blocks, separated by spaces."""
    prose = re.sub(r"^```.*?^```$", "", LANGUAGE, flags=re.MULTILINE | re.DOTALL)
    return " ".join(re.findall(r"`([^`]+)`", prose))


@pytest.mark.parametrize(
    "name", sorted({*FUNCTIONS, *BUILTINS, *TYPES, *SETTINGS, *UNSUPPORTED, *UNSUPPORTED_SETTINGS})
)
def test_names_are_mentioned(name: str) -> None:
    assert re.search(rf"\b{name}\b", quoted())


@pytest.mark.parametrize("symbol", sorted({op.symbol for op in OPS.values()} - {""}))
def test_operators_are_mentioned(symbol: str) -> None:
    assert symbol in quoted().split()


def test_links_lead_somewhere() -> None:
    titles = re.findall(r"^#+ (.*)$", LANGUAGE, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([^)]+)\)", LANGUAGE)) <= anchors
