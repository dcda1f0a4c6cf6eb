"""Tuning on a GPU: candidates run, are timed, and the next call takes the fastest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import spdsl
from spdsl import prepare
from spdsl.choices import tiles_for
from spdsl.cli.main import run
from spdsl.tuning import situation_of, tune
from tests.library.compare import relative_error

pytestmark = pytest.mark.gpu


def test_what_is_measured_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPDSL_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("SPDSL_TUNE", raising=False)
    monkeypatch.setattr("spdsl.tuning.MOST", 3)
    prepare._with_tiles.cache_clear()
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 512, 128, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    attention = spdsl.compile("sliding_window", window=100)
    found = tune(attention._key, q, k, v, {}, backward=False)
    assert found.complete
    assert all(each.seconds is not None and 1e-7 < each.seconds < 1e-2 for each in found.measured)
    best = found.best["forward"]
    assert dict(tiles_for(situation_of(attention._key, q, k, v))) == {"forward": best.tiles}
    expected = attention.reference(q, k, v)
    out = attention(q, k, v)
    assert relative_error(out, expected) < 1e-2
    again = tune(attention._key, q, k, v, {}, backward=False)
    assert [each.seconds for each in again.measured] == [each.seconds for each in found.measured]
    prepare._with_tiles.cache_clear()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_times_of_another_gpu_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of the device that is current."""
    monkeypatch.setattr("spdsl.tuning.MOST", 2)
    attention = spdsl.compile("causal")
    times = []
    for device in ("cuda:0", "cuda:1"):
        monkeypatch.setenv("SPDSL_CACHE_DIR", str(tmp_path / device[-1]))
        q = torch.randn(1, 16, 8192, 128, device=device, dtype=torch.bfloat16)
        found = tune(attention._key, q, q, q, {}, backward=False)
        times.append({each.tiles: each.seconds for each in found.measured})
    assert times[0].keys() == times[1].keys()
    assert times[1] == {tiles: pytest.approx(seconds, rel=0.25) for tiles, seconds in times[0].items()}


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_several_gpus_find_what_one_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: list[dict[str, Any]] = []
    for gpus in (2, 1):
        monkeypatch.setenv("SPDSL_CACHE_DIR", str(tmp_path / str(gpus)))
        words = ["tune", "sliding_window", "-p", "window=1024", "-n", "16384", "--heads", "16", "--gpus", str(gpus)]
        assert run([*words, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    times = [{json.dumps(row["tiles"]): row["seconds"] for row in each["candidates"]} for each in found]
    assert times[0].keys() == times[1].keys()
    assert all(each["complete"] for each in found)
    assert times[0] == {tiles: pytest.approx(seconds, rel=0.25) for tiles, seconds in times[1].items()}
    [chosen] = [json.dumps(row["tiles"]) for row in found[0]["candidates"] if row["best"]]
    assert times[1][chosen] <= 1.1 * min(times[1].values())
