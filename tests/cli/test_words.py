"""The command line itself: help, versions, wrong words, faults."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from spdsl import __version__
from spdsl.cli import check, options
from spdsl.diagnostics import Diagnostic, Source, Span
from tests.cli.conftest import Answer

Spdsl = Callable[..., Answer]
COMMANDS = (
    "new",
    "list",
    "check",
    "fmt",
    "show",
    "view",
    "explain",
    "prove",
    "run",
    "compile",
    "tune",
    "reuse",
    "doctor",
    "lsp",
)


def test_version(spdsl: Spdsl) -> None:
    assert spdsl("--version").out == f"spdsl {__version__}\n"


def test_no_words_show_the_help(spdsl: Spdsl) -> None:
    answer = spdsl()
    assert all(command in answer.out + answer.err for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(spdsl: Spdsl, command: str) -> None:
    answer = spdsl(command, "--help")
    assert answer.status == 0
    assert f"spdsl {command}" in answer.out.split("Examples:")[1]


@pytest.mark.parametrize(
    "words",
    [
        ("nope",),
        ("check",),
        ("check", "--nope"),
        ("show", "streaming", "--emit", "nope"),
        ("show", "streaming", "--heads", "0"),
        ("show", "streaming", "--heads", "6", "--groups", "4"),
        ("show", "streaming", "--dtype", "fp8"),
        ("show", "streaming", "--shape", "round"),
        ("run", "streaming", "-p", "window"),
        ("run", "streaming", "-p", "=3"),
        ("run", "streaming", "-p", "window=wide"),
        ("run", "streaming", "-p", "window=True"),
        ("run", "streaming", "-p", "window=1,,2"),
        ("run", "streaming", "-p", "window=8", "-p", "window=9"),
        ("run", "streaming", "-n", "0"),
        ("run", "streaming", "-n", "many"),
        ("run", "streaming", "-o", "out.txt"),
        ("view", "streaming", "-o", "mask.jpg"),
        ("view", "streaming", "--heads", "2", "--head", "2"),
        ("explain", "streaming", "--target", "sm_1"),
        ("compile", "streaming"),
        ("compile", "streaming", "-o", "out", "--target", "sm_1"),
        ("compile", "streaming", "-o", "out", "--shape", "round"),
    ],
    ids=" ".join,
)
def test_wrong_words_are_status_2(spdsl: Spdsl, tmp_path: Path, words: tuple[str, ...]) -> None:
    answer = spdsl(*words)
    assert answer.status == 2
    assert answer.out == ""
    assert answer.err
    assert not list(tmp_path.iterdir())


def test_values_of_parameters() -> None:
    words = ["a=1", "b=-2", "c=1.5", "d=1e3", "e=true", "f=false", "g=1,2,3", "h=(1,2)", "i=5,", "j=true,false", "k= 7"]
    assert options.parse_parameters(words) == {
        "a": 1,
        "b": -2,
        "c": 1.5,
        "d": 1000.0,
        "e": True,
        "f": False,
        "g": (1, 2, 3),
        "h": (1, 2),
        "i": (5,),
        "j": (True, False),
        "k": 7,
    }
    values = options.parse_parameters(["a=1", "e=true"])
    assert [type(each) for each in values.values()] == [int, bool]


def test_a_fault_of_spdsl_shows_no_traceback(spdsl: Spdsl, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(word: str) -> None:
        raise ZeroDivisionError("that should not have happened")

    monkeypatch.setattr(check, "_one", fail)
    answer = spdsl("check", "streaming")
    assert answer.status == 3
    assert "internal error: ZeroDivisionError: that should not have happened" in answer.err
    assert "SPDSL_TRACEBACK=1" in answer.err
    answer = spdsl("check", "streaming", "--json")
    assert answer.status == 3
    assert answer.json == {"ok": False, "fault": "ZeroDivisionError: that should not have happened"}


def test_a_traceback_on_request() -> None:
    code = (
        "import os\nos.environ['SPDSL_TRACEBACK'] = '1'\n"
        "from spdsl.cli import check\nfrom spdsl.cli.main import run\n"
        "check._one = lambda word: 1 // 0\nassert run(['check', 'streaming']) == 3"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError" in done.stderr


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    command = f"{sys.executable} -m spdsl.cli list | true"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""


def test_colours_are_for_terminals(spdsl: Spdsl, monkeypatch: pytest.MonkeyPatch) -> None:
    from spdsl.cli.output import paint

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    span = Span(source=Source(name="a.spat", text="keep causl"), line=1, column=6, end_line=1, end_column=11)
    remark = Diagnostic(code="SP201", message="unknown name `causl`", span=span, help="did you mean `causal`?")
    painted = paint(remark)
    assert "\x1b[31m" in painted
    import re

    assert re.sub(r"\x1b\[\d+m", "", painted) == remark.render()
    assert "\x1b" not in spdsl("check", "nope.spat").err
