"""`spdsl cache` from the outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spdsl.cache.entries import digest, folder_of
from spdsl.cache.store import store
from spdsl.cli.main import run

pytestmark = pytest.mark.usefixtures("cache")


def out(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    assert run(["cache", *words]) == status
    return capsys.readouterr().out


def test_the_life_of_an_entry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert out(capsys, "path").strip() == str(store().root)
    assert "0 entries" in out(capsys, "ls")
    key = digest("one")
    store().put(key, kind="kernel", name="forward", files={"forward.cubin": b"\x7fELF"}, about={"target": "cuda:90"})
    store().results.put("tuning", "k", {"ms": 1.0})
    listed = out(capsys, "ls")
    assert key in listed
    assert "cuda:90" in listed
    assert "1 entries, 4 bytes of 2.0 GB; results: 1 tuning" in listed
    record = json.loads(out(capsys, "ls", "--json"))
    assert [each["key"] for each in record["entries"]] == [key]
    assert record["results"] == [{"kind": "tuning", "key": "k", "value": {"ms": 1.0}}]
    assert out(capsys, "verify") == "everything is as it was written\n"
    archive = tmp_path / "kernels.tar.gz"
    assert "1 entries, 1 results" in out(capsys, "export", str(archive))
    assert "dropped 1 entries" in out(capsys, "prune", "--to", "0")
    assert "1 entries, 0 results" in out(capsys, "import", str(archive))
    (folder_of(store().root, key) / "forward.cubin").write_bytes(b"\x7fELG")
    assert f"damaged, and dropped: entry {key}" in out(capsys, "verify", status=1)
    assert "0 entries" in out(capsys, "ls")


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_text("no archive")
    assert run(["cache", "import", str(tmp_path / "text")]) == 1
    assert run(["cache", "import", str(tmp_path)]) == 1
    assert run(["cache", "export", str(tmp_path / "no" / "folder")]) == 1
    assert run(["cache", "prune", "--to", "much"]) == 1
    found = capsys.readouterr().err
    assert [code in found for code in ("SP617", "SP605", "SP509")] == [True] * 3
