"""bench: what is timed and checked, and what is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from spdsl.api import load
from spdsl.cli import measure, race, race_stages
from tests.cli.conftest import Answer

Spdsl = Callable[..., Answer]
SMALL = ("-n", "200", "--heads", "2", "--head-dim", "16", "--rounds", "1")


def test_a_table(spdsl: Spdsl, good: Path) -> None:
    answer = spdsl("bench", "local.spat", *SMALL)
    assert answer.status == 0
    assert "CPU back end" in answer.err
    assert f"pairs kept {(36 + 192 * 8) / 200**2:.2%}" in answer.out
    rows = [line for line in answer.out.splitlines() if "  forward  " in line or "  backward " in line]
    assert [row.split("  ")[0] for row in rows] == ["spdsl", "sdpa, causal"] * 2
    assert "times as fast as dense attention" in answer.out


def test_as_json(spdsl: Spdsl, good: Path) -> None:
    found = spdsl("bench", "local.spat", *SMALL, "--groups", "1", "--value-dim", "24", "--json").json
    assert found["ok"]
    assert found["kept"] == (36 + 192 * 8) / 200**2
    mine, dense = (row for row in found["results"] if row["direction"] == "bwd")
    pairs = 2 * (36 + 192 * 8)
    assert mine["floor_ms"] == pytest.approx(
        pairs * 2 * (3 * 16 + 2 * 24) / found["matrix_rate"] * 1e3, rel=1e-2, abs=1e-4
    )
    assert mine["tflops_useful"] == pytest.approx(pairs * 192 / mine["ms"] * 1e-9, rel=0.1, abs=1e-4)
    assert (mine["impl"], dense["impl"]) == ("spdsl", "sdpa, causal")
    assert mine["shape"] == "batch 1, heads 2:1, n 200, d 16, dv 24"
    assert 0 < mine["error"] < 2e-5
    assert dense["error"] is None
    assert dense["useful_over_computed"] == pytest.approx(found["kept"] / (201 / 400), abs=1e-4)
    assert found["faster_than_dense"]["bwd"] == pytest.approx(dense["ms"] / mine["ms"], rel=1e-2)


def test_what_is_left_out(spdsl: Spdsl, good: Path) -> None:
    found = spdsl("bench", "local.spat", *SMALL, "--nq", "50", "--no-backward", "--no-dense", "--json").json
    assert [(row["impl"], row["direction"]) for row in found["results"]] == [("spdsl", "fwd")]
    assert found["results"][0]["shape"].endswith(", nq 50")
    assert found["faster_than_dense"] == {}


def test_patterns_that_look_ahead_race_with_all_pairs(spdsl: Spdsl, tmp_path: Path) -> None:
    np.save(tmp_path / "marked.npy", np.arange(200) == 3)
    found = spdsl(
        "bench", "longformer", *SMALL, "-p", "window=8", "--input", "is_global=marked.npy", "--no-backward", "--json"
    ).json
    assert [row["impl"] for row in found["results"]] == ["spdsl", "sdpa"]
    assert found["generated_inputs"] == []


def test_a_wrong_result_is_told(spdsl: Spdsl, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(measure.LIMITS, torch.float32, 1e-12)
    answer = spdsl("bench", "local.spat", *SMALL)
    assert answer.status == 1
    assert "an error is above its limit" in answer.out


def test_queries_that_are_looked_at(good: Path, tmp_path: Path) -> None:
    assert race.places(144, load(str(good))) == [(0, 144)]
    assert race.places(1000, load(str(good))) == [(0, 48), (500, 548), (952, 1000)]
    counting = tmp_path / "counting.spat"
    counting.write_text("pattern counting() {\n  keep causal and q < nq\n}\n")
    assert race.places(1000, load(str(counting))) == [(0, 1000)]


CHOOSES = """pattern chooses() {
  axis blk = token by 8
  let best = score(mean(Q, per = q.blk), mean(K, per = k.blk)) |> only(k.blk <= q.blk) |> top(2, over = k.blk)
  keep causal and best
}
"""


def test_a_pattern_that_selects(spdsl: Spdsl, tmp_path: Path) -> None:
    (tmp_path / "chooses.spat").write_text(CHOOSES)
    found = spdsl("bench", "chooses.spat", *SMALL, "--json").json
    assert found["ok"]
    # Of two blocks of eight at most, and of the one that there is in the first eight rows.
    assert 0 < found["kept"] < 16 * 200 / 200**2
    assert found["checked_at"] == 200
    assert found["near_ties"] == {"rows": 0, "of": 2 * 200}
    assert found["selection_ms"] > 0
    mine, dense = (row for row in found["results"] if row["direction"] == "bwd")
    assert dense["impl"] == "sdpa, causal"
    assert 0 < mine["error"] < 2e-5
    assert "the selection alone" in spdsl("bench", "chooses.spat", *SMALL, "--no-backward", "--no-dense").out


def test_a_softmax_over_blocks_alone_is_not_causal(spdsl: Spdsl, tmp_path: Path) -> None:
    (tmp_path / "coarse.spat").write_text(
        "pattern coarse() {\n  axis blk = token by 8\n"
        "  return attend(Q, mean(K, per = k.blk), mean(V, per = k.blk)) { keep k.blk <= q.blk }\n}\n"
    )
    found = spdsl("bench", "coarse.spat", *SMALL, "--no-backward", "--json").json
    assert found["ok"]
    assert [row["impl"] for row in found["results"]] == ["spdsl", "sdpa"]
    assert found["selection_ms"] is None


def test_a_pattern_that_selects_is_checked_with_fewer_keys(
    spdsl: Spdsl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "chooses.spat").write_text(CHOOSES)
    monkeypatch.setattr(race_stages, "PAIRS_CHECKED", 2 * 100**2)
    answer = spdsl("bench", "chooses.spat", *SMALL, "--no-backward", "--no-dense")
    assert "compared with 100 keys" in answer.out
    monkeypatch.setitem(measure.LIMITS, torch.float32, 1e-12)
    assert spdsl("bench", "chooses.spat", *SMALL, "--no-backward", "--no-dense").status == 1


def test_inputs_that_are_given_are_not_cut(spdsl: Spdsl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "some.npz", wt=np.ones((200,), dtype=np.float32))
    (tmp_path / "weighed.spat").write_text(
        CHOOSES.replace("axis", "input wt: float[token]\n  axis").replace("causal", "causal and wt[k] > 0.0")
    )
    monkeypatch.setattr(race_stages, "PAIRS_CHECKED", 2 * 100**2)
    words = ("bench", "weighed.spat", *SMALL, "--no-backward", "--no-dense", "--input", "wt=some.npz")
    answer = spdsl(*words)
    assert answer.status == 0
    assert "not compared with the reference" in answer.out
    assert spdsl(*words, "--json").json["results"][0]["error"] is None


@pytest.mark.parametrize("words", [("-n", "0"), ("--dtype", "int8"), ("--heads", "3", "--groups", "2")])
def test_words_that_do_not_fit(spdsl: Spdsl, good: Path, words: tuple[str, ...]) -> None:
    assert spdsl("bench", "local.spat", *words).status == 2


def test_help_has_examples(spdsl: Spdsl) -> None:
    answer = spdsl("bench", "--help")
    assert "spdsl bench documents --input doc=ids.npz" in answer.out
