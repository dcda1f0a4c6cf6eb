"""The commands of the page on proofs print what the page shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from spdsl.cli.main import run

PAGE = (Path(__file__).parents[2] / "docs" / "proofs.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^```console\n\$ spdsl (.*?)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("words", "shown"), COMMANDS, ids=[words for words, _ in COMMANDS])
def test_commands_print_what_is_shown(words: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shlex.split(words)) in (0, 1, 4)
    assert capsys.readouterr().out == shown


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 5
