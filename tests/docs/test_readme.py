"""The pattern, the program and the commands of the README are what the text around them says."""

from __future__ import annotations

import re
from pathlib import Path

from spdsl.pipeline import read

ROOT = Path(__file__).parents[2]


def test_the_pattern_of_the_readme_is_in_the_library() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"^```spat\n(# .*?^pattern .*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert found
    assert read(found.group(1)) == read((ROOT / "patterns" / "streaming.spat").read_text())


def test_the_commands_of_the_readme_exist() -> None:
    from typer.testing import CliRunner

    from spdsl.cli.main import app

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = set(re.findall(r"^spdsl (\w+)", readme, re.MULTILINE))
    assert len(commands) >= 8
    for command in commands:
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0
