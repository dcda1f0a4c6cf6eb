"""The command as a user meets it: its words, exit status, and what it prints."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from spdsl.cli.main import run

GOOD = "pattern local(window: int in 1.. = 8) {\n  keep causal and q - k < window\n}\n"


@dataclass(frozen=True)
class Answer:
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def spdsl(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Answer]:
    """Run a command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("SPDSL_CACHE_DIR", str(tmp_path / "cache"))

    def call(*words: object) -> Answer:
        status = run([str(word) for word in words])
        told = capsys.readouterr()
        answer = Answer(status=status, out=told.out, err=told.err)
        assert "Traceback" not in answer.out + answer.err
        return answer

    return call


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A pattern without fault, in the folder where commands run."""
    path = tmp_path / "local.spat"
    path.write_text(GOOD)
    return path
