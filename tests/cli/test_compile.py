"""compile: a folder with everything in it, or none."""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Answer

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted")
Spdsl = Callable[..., Answer]
WORDS = ("compile", "local.spat", "-o", "out", "--head-dim", "16", "--heads", "2", "--dtype", "fp16", "-p", "window=32")


def test_a_bundle(spdsl: Spdsl, good: Path, tmp_path: Path) -> None:
    answer = spdsl(*WORDS, "--target", "sm_80")
    assert (answer.status, answer.err) == (0, "")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["pattern"] == "local"
    assert manifest["parameters"] == {"window": 32}
    assert (manifest["target"], manifest["dtype"], manifest["head_dim"], manifest["heads"]) == ("sm_80", "fp16", 16, 2)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"manifest.json", *manifest["files"]}
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    assert {"forward", "dq", "dkdv"} <= {kernel["name"] for kernel in manifest["kernels"]}
    for kernel in manifest["kernels"]:
        assert (tmp_path / "out" / kernel["binary"]).read_bytes().startswith(b"\x7fELF")
        functions = ast.parse((tmp_path / "out" / kernel["source"]).read_text()).body
        assert kernel["name"] in {each.name for each in functions if isinstance(each, ast.FunctionDef)}
        assert kernel["registers"] > 0
        assert kernel["arguments"]
        assert kernel["binary"] in answer.out
        # The window is an argument of the kernels; what was given is its value unless a launch says otherwise.
        assert kernel["run_time_parameters"] == ({} if kernel["name"] == "delta" else {"p_window": 32})
        assert ("p_window: i32" in kernel["arguments"]) == (kernel["name"] != "delta")
    # A second time replaces the first, and leaves nothing behind.
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert spdsl(*WORDS, "--target", "sm_80").status == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"out", "local.spat", "cache"}


def test_nothing_is_left_of_a_failure(spdsl: Spdsl, good: Path, tmp_path: Path) -> None:
    good.write_text("pattern local(window: int in 1..16) { keep q - k < window }")
    answer = spdsl(*WORDS)
    assert answer.status == 1
    assert "`window`" in answer.err
    assert {path.name for path in tmp_path.iterdir()} == {"local.spat"}


def test_other_folders_are_not_replaced(spdsl: Spdsl, good: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("three years of work")
    answer = spdsl(*WORDS)
    assert answer.status == 1
    assert "error[SP614]" in answer.err
    (tmp_path / "out" / "manifest.json").write_text('{"format": 1, "files": {}}')
    assert spdsl(*WORDS).status == 1
    assert (tmp_path / "out" / "thesis.txt").read_text() == "three years of work"


def test_a_file_in_the_way(spdsl: Spdsl, good: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    assert "error[SP614]" in spdsl(*WORDS).err
    answer = spdsl("compile", "local.spat", "-o", "out/deeper", "--head-dim", "16")
    assert answer.status == 1
    assert "error[SP605]" in answer.err


def test_a_head_dim_that_fits_no_gpu(spdsl: Spdsl, good: Path, tmp_path: Path) -> None:
    answer = spdsl("compile", "local.spat", "-o", "out", "--head-dim", "1000000")
    assert answer.status == 1
    assert "SP504" in answer.err
    assert not (tmp_path / "out").exists()
