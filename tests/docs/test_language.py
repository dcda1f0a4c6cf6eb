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


def test_the_python_of_the_readme_runs() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert found
    names: dict[str, object] = {}
    exec(compile(found.group(1).replace("4096", "512").replace("1000", "100"), "README.md", "exec"), names)  # noqa: S102
    assert getattr(names["out"], "shape", None) == (1, 8, 512, 64)
    assert getattr(names["lse"], "shape", None) == (1, 8, 512)
    assert getattr(names["q"], "grad", None) is not None


def test_the_commands_of_the_readme_exist() -> None:
    from typer.testing import CliRunner

    from spdsl.cli.main import app

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = set(re.findall(r"^spdsl (\w+)", readme, re.MULTILINE))
    assert len(commands) >= 8
    for command in commands:
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0
