"""Every example of the language reference, and the patterns of the README, are what the text around them says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spdsl.diagnostics import SpatError
from spdsl.grammar.format import format_text
from spdsl.library import resolver
from spdsl.pipeline import read

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```spat *(?:error (SP\d+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples() -> list[tuple[str, str | None]]:
    found = FENCE.findall((ROOT / "docs" / "language.md").read_text(encoding="utf-8"))
    assert len(found) >= 12
    return [(text, code or None) for code, text in found]


def names(case: object) -> str:
    found = re.search(r"^pattern (\w+)", case if isinstance(case, str) else "", re.MULTILINE)
    return found.group(1) if found else str(case)


@pytest.mark.parametrize(("text", "code"), examples(), ids=names)
def test_examples_of_the_reference(text: str, code: str | None) -> None:
    if code is None:
        assert read(text, resolve=resolver(None)).text
    else:
        with pytest.raises(SpatError) as caught:
            read(text, resolve=resolver(None))
        assert caught.value.code == code
        assert caught.value.help or code == "SP290"


@pytest.mark.parametrize(("text", "code"), examples(), ids=names)
def test_examples_survive_the_formatter(text: str, code: str | None) -> None:
    del code
    once = format_text(text, "example.spat")
    assert format_text(once, "example.spat") == once


def test_the_pattern_of_the_readme_is_in_the_library() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"^```\n(# .*?^pattern .*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert found
    assert read(found.group(1)) == read((ROOT / "patterns" / "streaming.spat").read_text())
