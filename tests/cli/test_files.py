"""check, fmt, new, list: what they do to files, and what they say of bad ones."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import GOOD, Answer

Spdsl = Callable[..., Answer]
COMMANDS = (("check",), ("fmt",), ("fmt", "--check"), ("show",), ("run",), ("view",), ("compile", "-o", "out"))


def test_check_of_a_good_file(spdsl: Spdsl, good: Path) -> None:
    answer = spdsl("check", "local.spat")
    assert (answer.status, answer.err) == (0, "")
    assert answer.out == "local.spat: local is fine\n"


def test_check_of_a_bad_file_shows_every_mistake(spdsl: Spdsl, tmp_path: Path) -> None:
    (tmp_path / "bad.spat").write_text("pattern bad(window: int) {\n  keep causl and window\n  bias slop\n}\n")
    answer = spdsl("check", "bad.spat")
    assert answer.status == 1
    assert answer.out == ""
    assert "--> bad.spat:2:8" in answer.err
    assert "`causl`" in answer.err
    assert "`causal`" in answer.err
    assert "`slop`" in answer.err


def test_check_as_json(spdsl: Spdsl, good: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.spat").write_text("pattern bad() {\n  keep causl\n}\n")
    answer = spdsl("check", "--json", "local.spat", "bad.spat")
    assert answer.status == 1
    first, second = answer.json["files"]
    assert first == {"file": "local.spat", "ok": True, "patterns": ["local"], "diagnostics": []}
    assert not second["ok"]
    (remark,) = second["diagnostics"]
    assert remark["severity"] == "error"
    assert remark["place"] == {"file": "bad.spat", "line": 2, "column": 8, "end_line": 2, "end_column": 13}


def test_syntax_mistakes_as_json(spdsl: Spdsl, tmp_path: Path) -> None:
    (tmp_path / "bad.spat").write_text("pattern bad( {\n")
    answer = spdsl("check", "bad.spat", "--json")
    assert answer.status == 1
    assert answer.json["files"][0]["diagnostics"][0]["code"].startswith("SP1")


def test_check_of_the_library(spdsl: Spdsl) -> None:
    answer = spdsl("check", "streaming", "documents")
    assert answer.status == 0
    assert answer.out == "streaming: streaming is fine\ndocuments: documents is fine\n"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_bad_files_get_a_message(spdsl: Spdsl, tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "folder.spat").mkdir()
    (tmp_path / "latin.spat").write_bytes("# Fenster für Wörter\n".encode("latin-1") + GOOD.encode())
    (tmp_path / "huge.spat").write_bytes(b"# filler\n" * 200_000)
    (tmp_path / "zero.spat").write_bytes(b"\0\0\0")
    (tmp_path / "empty.spat").write_bytes(b"")
    expected = {
        "missing.spat": "SP601",
        "folder.spat": "SP603",
        "latin.spat": "SP108",
        "huge.spat": "SP107",
        "zero.spat": "SP1",
        "x\0y.spat": "SP604",
        "no_such_pattern": "SP601",
    }
    for name, code in expected.items():
        answer = spdsl(*command, name)
        assert answer.status == 1, (name, answer)
        assert f"error[{code}" in answer.err, (name, answer)
        assert "= help: " in answer.err, (name, answer)


def test_an_empty_file_is_no_pattern(spdsl: Spdsl, tmp_path: Path) -> None:
    (tmp_path / "empty.spat").write_bytes(b"")
    answer = spdsl("run", "empty.spat")
    assert answer.status == 1
    assert "error[" in answer.err


def test_a_file_that_may_not_be_read(spdsl: Spdsl, good: Path) -> None:
    good.chmod(0)
    if os.access(good, os.R_OK):
        pytest.skip("the superuser may read everything")
    answer = spdsl("check", good)
    assert answer.status == 1
    assert "error[SP604]" in answer.err


def test_a_close_name_is_suggested(spdsl: Spdsl, good: Path) -> None:
    assert "Did you mean `streaming`?" in spdsl("check", "streming").err
    assert "Did you mean `local.spat`?" in spdsl("check", "locl.spat").err


def test_a_pattern_is_picked_by_name(spdsl: Spdsl, tmp_path: Path) -> None:
    (tmp_path / "two.spat").write_text("pattern one() { keep causal }\npattern two() { keep all }\n")
    assert "pattern one" in spdsl("show", "two.spat:one").out
    assert "pattern two" in spdsl("show", "two.spat").out
    answer = spdsl("show", "two.spat:three")
    assert answer.status == 1
    assert "`three`" in answer.err


def test_fmt_writes_in_place_and_is_idempotent(spdsl: Spdsl, good: Path) -> None:
    good.write_text("# kept\npattern local( window:int=8 ){keep causal and q-k<window}")
    good.chmod(0o640)
    assert spdsl("fmt", "--check", good).status == 1
    assert good.read_text().endswith("window}")
    assert spdsl("fmt", good).status == 0
    laid_out = good.read_text()
    assert laid_out.startswith("# kept\npattern local(window: int = 8) {\n")
    assert stat.S_IMODE(good.stat().st_mode) == 0o640
    assert spdsl("fmt", "--check", good).status == 0
    assert spdsl("fmt", good).status == 0
    assert good.read_text() == laid_out
    assert [each.name for each in good.parent.iterdir()] == ["local.spat"]


def test_fmt_says_what_it_did(spdsl: Spdsl, good: Path) -> None:
    other = good.with_name("other.spat")
    other.write_text("pattern other(){keep causal}")
    assert spdsl("fmt", "--check", good, other).err == f"would change {other}\n1 file to format, 1 file in order\n"
    answer = spdsl("fmt", good, other)
    assert (answer.out, answer.err) == ("", f"formatted {other}\n1 file formatted, 1 file left as it was\n")
    assert spdsl("fmt", good, other).err == "2 files left as they were\n"
    assert spdsl("fmt", "--check", good).err == "1 file in order\n"
    assert spdsl("fmt", "--json", good).err == ""


def test_fmt_keeps_symbolic_links(spdsl: Spdsl, good: Path, tmp_path: Path) -> None:
    good.write_text("pattern local(){keep causal}")
    link = tmp_path / "link.spat"
    link.symlink_to(good)
    assert spdsl("fmt", link).status == 0
    assert link.is_symlink()
    assert good.read_text() == "pattern local() {\n  keep causal\n}\n"


def test_fmt_diff_writes_nothing(spdsl: Spdsl, good: Path) -> None:
    good.write_text("pattern local(){keep causal}\n")
    answer = spdsl("fmt", "--diff", good)
    assert answer.status == 0
    assert "-pattern local(){keep causal}" in answer.out
    assert "+  keep causal" in answer.out
    assert good.read_text() == "pattern local(){keep causal}\n"


def test_fmt_leaves_a_bad_file_alone(spdsl: Spdsl, good: Path) -> None:
    good.write_text("pattern local( {\n")
    assert spdsl("fmt", good).status == 1
    assert good.read_text() == "pattern local( {\n"


def test_fmt_does_not_touch_the_library(spdsl: Spdsl) -> None:
    answer = spdsl("fmt", "streaming")
    assert answer.status == 1
    assert "error[SP606]" in answer.err


def test_fmt_as_json(spdsl: Spdsl, good: Path) -> None:
    assert spdsl("fmt", "--check", "--json", "local.spat").json == {
        "ok": True,
        "files": [{"file": "local.spat", "changed": False}],
    }


@pytest.mark.parametrize("like", [(), ("--like", "documents"), ("--like", "neighborhood_2d")], ids=" ".join)
def test_new_then_check(spdsl: Spdsl, tmp_path: Path, like: tuple[str, ...]) -> None:
    answer = spdsl("new", "deep/mine", *like)
    assert answer.status == 0
    assert "deep/mine.spat" in answer.out
    checked = spdsl("check", "deep/mine.spat")
    assert (checked.status, checked.out) == (0, "deep/mine.spat: mine is fine\n")
    assert spdsl("fmt", "--check", "deep/mine.spat").status == 0


def test_new_does_not_replace(spdsl: Spdsl, good: Path) -> None:
    answer = spdsl("new", "local")
    assert answer.status == 1
    assert "error[SP607]" in answer.err
    assert good.read_text() == GOOD
    assert spdsl("new", "local", "--force").status == 0
    assert good.read_text() != GOOD


@pytest.mark.parametrize("name", ["2d", "a-b", "x y", ""])
def test_new_refuses_names_that_are_none(spdsl: Spdsl, tmp_path: Path, name: str) -> None:
    assert spdsl("new", name).status == 2
    assert not list(tmp_path.iterdir())


def test_new_refuses_words_of_the_language(spdsl: Spdsl, tmp_path: Path) -> None:
    assert spdsl("new", "attend").status == 1
    assert not list(tmp_path.iterdir())


def test_list(spdsl: Spdsl) -> None:
    assert "streaming" in spdsl("list").out
    patterns = spdsl("list", "--json").json["patterns"]
    assert {"name", "declaration", "summary"} == set(patterns[0])
    assert all(each["summary"] for each in patterns)
