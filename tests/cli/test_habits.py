"""What every good command does: JSON everywhere, colours that can be switched off, words completed, a doctor."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import io
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer

from spdsl import doctor
from spdsl.cli import output
from spdsl.cli.main import app
from spdsl.cli.progress import progress
from spdsl.diagnostics import Diagnostic, Source, Span
from tests.cli.conftest import Answer

Spdsl = Callable[..., Answer]
ROOT = Path(__file__).parents[2]


def commands(of: typer.Typer, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Callable[..., object]]]:
    for each in of.registered_commands:
        assert each.name is not None
        assert each.callback is not None
        yield (*before, each.name), each.callback
    for group in of.registered_groups:
        assert group.name is not None
        assert group.typer_instance is not None
        yield from commands(group.typer_instance, (*before, group.name))


@pytest.mark.parametrize(
    ("words", "callback"), list(commands(app)), ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_every_command_has_json_and_tells_it_of_wrong_words(
    spdsl: Spdsl, words: tuple[str, ...], callback: Callable[..., object]
) -> None:
    assert "as_json" in inspect.signature(callback).parameters
    answer = spdsl(*words, "--nope", "--json")
    assert answer.status == 2
    assert answer.json["ok"] is False
    assert "--nope" in answer.json["usage"]


def test_the_path_of_the_cache_as_json(spdsl: Spdsl, tmp_path: Path) -> None:
    assert spdsl("cache", "path", "--json").json["folder"].startswith(str(tmp_path))


def test_colours_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(name="x.spat", text="keep q")
    span = Span(source=source, line=1, column=1, end_line=1, end_column=5)
    wrong = Diagnostic(code="SP101", message="no", span=span, note="here", help="Do.")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in output.paint(wrong)
    assert re.sub(r"\x1b\[[0-9;]*m", "", output.paint(wrong)) == wrong.render()
    monkeypatch.setenv("NO_COLOR", "1")
    assert output.paint(wrong) == wrong.render()
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert output.paint(wrong) == wrong.render()


def test_nothing_else_colours() -> None:
    for path in (ROOT / "spdsl" / "cli").glob("*.py"):
        if path.name != "output.py":
            assert "typer.style" not in path.read_text(), path
            assert "secho" not in path.read_text(), path


@pytest.mark.parametrize(
    ("line", "some"),
    [
        ("spdsl do", {"doctor"}),
        ("spdsl run stre", {"streaming"}),
        ("spdsl check patterns/v", {"patterns/vsa.spat", "patterns/vertical_slash.spat"}),
        ("spdsl run streaming -p ", {"window=", "sinks="}),
        ("spdsl view streaming --dtype b", {"bf16"}),
    ],
)
def test_words_are_completed(spdsl: Spdsl, monkeypatch: pytest.MonkeyPatch, line: str, some: set[str]) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("_SPDSL_COMPLETE", "complete_bash")  # as the script that `--show-completion` prints does
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
    assert set(spdsl().out.split()) == some


def test_python_runs_the_package() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "spdsl", "--version"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("spdsl ")


def test_the_language_server_says_what_it_needs(spdsl: Spdsl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    answer = spdsl("lsp")
    assert answer.status == 1
    assert "SP630" in answer.err
    assert 'pip install "spdsl[editor]"' in answer.err
    answer = spdsl("lsp", "--vscode", tmp_path / "extension", "--json")
    assert answer.json["ok"] is True
    assert (tmp_path / "extension" / "package.json").exists()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_for_people_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, quiet, shown in ((Terminal(), False, True), (Terminal(), True, False), (io.StringIO(), False, False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with progress("tilting at mills", quiet=quiet) as watch:
            watch("the second mill", 1, 2)
        assert ("the second mill" in stream.getvalue()) is shown
        assert ("1/2" in stream.getvalue()) is shown


def test_nothing_runs_beside_what_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    before = set(threading.enumerate())
    with progress("measuring", timing=True) as watch:
        watch("the third mill", 2, 3)
        assert "the third mill" in stream.getvalue()
        assert set(threading.enumerate()) <= before
    with progress("looking"):
        assert len(set(threading.enumerate()) - before) == 1


def test_the_first_kernels_are_announced_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from spdsl.cli.measure import note_first_kernels

    monkeypatch.setenv("SPDSL_CACHE_DIR", str(tmp_path / "new"))
    note_first_kernels()
    assert str(tmp_path / "new") in capsys.readouterr().err
    (tmp_path / "new" / "v1").mkdir(parents=True)
    note_first_kernels()
    assert capsys.readouterr().err == ""


def test_help_is_whole(spdsl: Spdsl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.setenv("TERM", "dumb")
    assert 'pip install "spdsl[editor]"' in " ".join(spdsl("lsp", "--help").out.split()), "brackets are no markup"
    prose = spdsl("view", "--help").out.split("A page is")[1].split("Examples")[0]
    lines = [line.strip() for line in prose.strip().split("\n")]
    assert all(len(line) > 45 for line in lines[:-1]), "lines end where the terminal does"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("view", "neighborhood_2d"), "pass `-p extents=…`"),
        (("explain", "delta"), "pass `--layer N`, counted from 0"),
    ],
)
def test_remedies_are_told_in_options(spdsl: Spdsl, words: tuple[str, ...], told: str) -> None:
    answer = spdsl(*words)
    assert answer.status == 1
    assert told in answer.err
    assert told in spdsl(*words, "--json").json["diagnostics"][0]["help"]


def test_a_difference_shows_where_a_file_does_not_end_with_a_line(spdsl: Spdsl, tmp_path: Path) -> None:
    (tmp_path / "a.spat").write_text("pattern a(){keep causal}")
    out = spdsl("fmt", "--diff", tmp_path / "a.spat").out
    assert "-pattern a(){keep causal}\n\\ No newline at end of file\n+pattern a() {\n" in out


def test_rounds_of_a_bench_are_told(spdsl: Spdsl, monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import contextmanager

    from spdsl.cli import bench

    told: list[tuple[str, int, int | None]] = []

    @contextmanager
    def progress(what: str, **settings: bool) -> Iterator[Callable[..., None]]:
        yield lambda *words: told.append(words)

    monkeypatch.setattr(bench, "progress", progress)
    answer = spdsl("bench", "causal", "-n", 64, "--heads", 1, "--head-dim", 16, "--device", "cpu", "--rounds", 2)
    assert answer.status == 0, answer.err
    assert told == [(f"{name}, round {turn}", 2 * turn - 2 + number, 4)
                    for turn in (1, 2) for number, name in enumerate(("spdsl", "sdpa, causal"))]  # fmt: skip


@pytest.mark.parametrize("command", ["view", "run", "explain"])
def test_a_grid_says_how_many_tokens_there_are(spdsl: Spdsl, command: str, tmp_path: Path) -> None:
    out = ("-o", tmp_path / "mask.svg") if command == "view" else ()
    answer = spdsl(command, "neighborhood_2d", "-p", "extents=6,9", "-p", "window=3,3", "--heads", "1", *out, "--json")
    assert answer.status == 0, answer.err
    kept = answer.json["kept"] if command == "explain" else answer.json["kept_pairs"]
    assert kept == pytest.approx(9 / 54, abs=1e-9)


# ---------------------------------------------------------------- the doctor


def test_the_doctor_of_this_machine(spdsl: Spdsl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPDSL_CACHE_DIRR", "x")
    answer = spdsl("doctor", "--json")
    checks = {each["name"]: each for each in answer.json["checks"]}
    assert answer.status == (0 if answer.json["ok"] else 1)
    assert checks["back end cpu"]["status"] == "works"
    assert checks["proofs"]["status"] == "works"
    told = [each for each in answer.json["checks"] if each["name"] == "settings"]
    assert told[0]["found"] == "SPDSL_CACHE_DIRR means nothing to spdsl"
    assert told[0]["help"] == "Did you mean SPDSL_CACHE_DIR?"
    assert str(tmp_path) in checks["cache"]["found"]
    assert all(each["help"] for each in answer.json["checks"] if each["status"] == "fails")


def test_the_doctor_changes_nothing_and_sees_damage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from spdsl.cache.store import store

    monkeypatch.setenv("SPDSL_CACHE_DIR", str(tmp_path / "kept"))
    (found,) = doctor._cache()
    assert "made when it is first needed" in found.found
    assert not (tmp_path / "kept").exists()
    made = store().put("0" * 32, kind="source", name="a", files={"a.py": b"1"}, about={})
    (found,) = doctor._cache()
    assert (found.status, "1 entries" in found.found) == ("works", True)
    made.path("a.py").chmod(0o600)
    made.path("a.py").write_bytes(b"2")
    (found,) = doctor._cache()
    assert (found.status, "1 damaged" in found.found) == ("note", True)
    assert "spdsl cache verify" in found.help
    assert made.path("a.py").exists()
    (tmp_path / "kept" / "v1").chmod(0o777)
    (found,) = doctor._cache()
    assert (found.status, "others can write it" in found.found) == ("fails", True)


def test_the_doctor_knows_what_does_not_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    def have(**versions: str) -> list[doctor.Check]:
        monkeypatch.setattr(doctor, "version_of", versions.get)
        return list(doctor._pairing())

    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["triton==3.7.0; platform_system == 'Linux'"])
    assert [each.status for each in have(triton="3.7.1", numpy="2.4.0", torch="2.12")] == ["works"]
    (pair,) = [each for each in have(triton="3.6.0", numpy="2.3.5", torch="2.12") if each.status != "works"]
    assert pair.help == "`pip install triton==3.7.0`"
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: [])
    (numpy,) = have(triton="3.6.0", numpy="2.4.1")
    assert "fails with numpy 2.4.1" in numpy.found
    assert have() == []


def test_the_doctor_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["torch>=2.9", "lark>=1.2", "pytest; extra == 'test'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted)
    monkeypatch.setattr(doctor, "version_of", {"torch": "2.8.1"}.get)
    (found,) = doctor._packages()
    assert found.status == "fails"
    assert found.found == "torch>=2.9 (is 2.8.1), lark>=1.2 (missing)"
    assert found.help == "`pip install 'torch>=2.9' 'lark>=1.2'`"


def test_a_look_that_breaks_off_does_not_end_the_others() -> None:
    def _broken() -> Iterator[doctor.Check]:
        yield doctor.Check(name="a", status="works", found="")
        raise OSError("the disk is gone")

    (found,) = doctor._looked(_broken)
    assert (found.name, found.status, found.found) == ("broken", "fails", "OSError: the disk is gone")


def test_settings_that_the_doctor_knows_are_those_that_are_read() -> None:
    read: set[str] = set()
    for folder in ("spdsl", "grammar", "codegen", "runtime"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if path.name != "doctor.py" and "os.environ" in text:
                read |= set(re.findall(r'"(SPDSL_[A-Z_]+)"', text))
    assert read == doctor.SETTINGS.keys()


def test_the_doctor_speaks_to_people(spdsl: Spdsl, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [
        doctor.Check(name="one", status="works", found="1.0 " + "long " * 40),
        doctor.Check(name="two", status="fails", found="missing", help="`pip install two`"),
    ]
    monkeypatch.setattr(doctor, "examine", lambda: iter(checks))
    answer = spdsl("doctor")
    assert answer.status == 1
    assert answer.out.startswith("✓ one")
    assert "✗ two               missing\n                    → `pip install two`\n" in answer.out
    assert max(len(line) for line in answer.out.splitlines()) <= 100
    assert json.loads(spdsl("doctor", "--json").out)["ok"] is False
