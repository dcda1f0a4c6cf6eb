"""What the command says about patterns that select by scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from spdsl.api import Attention
from tests.cli.conftest import Answer

Spdsl = Callable[..., Answer]

SMALL = ("--heads", "4", "--groups", "2", "--head-dim", "16")


def test_explain_tells_stages_and_softmaxes(spdsl: Spdsl) -> None:
    answer = spdsl("explain", "nsa", "-n", "256", *SMALL, "-p", "picks=2", "--target", "cpu")
    assert answer.status == 0, answer
    assert "stage_2[h, q, k.win] = score(Q[b, h, q, d], CK[g, k.win, d]" in answer.out
    assert [line for line in answer.out.splitlines() if line.startswith("softmax ")] == [
        "softmax coarse",
        "softmax fine",
        "softmax local",
    ]
    # 4 heads, 256 queries, 16 windows, 16 products each.
    assert "16,384 numbers, 262,144 multiply-adds" in answer.out


@pytest.mark.parametrize("name", ["dsa", "seer_attention", "llsa", "sparsed_build", "dma", "dhsa"])
def test_explain_makes_inputs_that_fit(spdsl: Spdsl, name: str) -> None:
    answer = spdsl("explain", name, "-n", "200", "--nq", "150", *SMALL, "--target", "cpu")
    assert answer.status == 0, answer


def test_explain_tells_of_searches_as_they_are_written(spdsl: Spdsl) -> None:
    answer = spdsl("explain", "hip", "-n", "256", *SMALL, "-p", "budget=(128, 64, 16)", "--target", "cpu")
    assert answer.status == 0, answer
    (line,) = (line for line in answer.out.splitlines() if line.startswith("  second["))
    assert "= stage_5[h, q.row, k.mid] |> top(2, over = k.mid)" in line


def test_explain_tells_of_keys_that_live_for_a_while_on_a_gpu(spdsl: Spdsl) -> None:
    answer = spdsl("explain", "dma", "-n", "200", *SMALL, "-p", "width=50")
    assert answer.status == 0, answer
    assert "keys are kept from their own query on" in answer.out


def test_explain_tells_the_share_of_selections(spdsl: Spdsl) -> None:
    words = ("explain", "moba", "-n", "2048", "--heads", "4", "--gpu", "NVIDIA H200")
    answer = spdsl(*words)
    assert answer.status == 0, answer
    (line,) = (line for line in answer.out.splitlines() if line.startswith("selecting, "))
    assert line.startswith("selecting, predicted for NVIDIA H200: ")
    found = json.loads(spdsl(*words, "--json").out)["selection"]
    assert 0 < found["share"] < 1
    assert found["forward"] == pytest.approx(found["seconds"] + found["attention"])
    assert {"keys", "choose"} <= {each["name"] for each in found["stages"]}
    assert json.loads(spdsl(*words, "--json", "--target", "cpu").out)["selection"] is None


def test_explain_says_where_it_cannot_tell_what_selecting_takes(spdsl: Spdsl) -> None:
    answer = spdsl("explain", "rectified", "-n", "256", *SMALL)
    assert answer.status == 0, answer
    assert "not what it takes to select" in answer.out
    assert "selecting, " not in answer.out


def test_explain_of_long_calls_computes_no_scores(spdsl: Spdsl) -> None:
    answer = spdsl("explain", "moba", "-n", "65536", *SMALL, "-p", "block=64")
    assert answer.status == 0, answer
    (line,) = (line for line in answer.out.splitlines() if line.startswith("estimated: "))
    assert "softmax attend, as `chosen` would be of independent scores" in line
    assert "chosen[h, q, k.blk] and k.blk != q.blk" in answer.out
    assert "stage_2" not in answer.out  # which is `chosen`
    assert "4 heads, 65,536 queries, 65,536 keys" in answer.out


def test_explain_takes_the_first_of_an_input_for_shorter_calls(
    spdsl: Spdsl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(torch.randn(4, 1024, 16), "gate.pt")
    words = ("explain", "seer_attention", "-n", "65536", *SMALL, "--input", "GQ=gate.pt", "--target", "cpu")
    answer = spdsl(*words)
    assert answer.status == 0, answer
    assert "the input `GK` is made up" in answer.err
    assert "GQ" not in answer.err


def test_explain_counts_candidates_alone(spdsl: Spdsl) -> None:
    answer = spdsl("explain", "llsa", "-n", "1024", *SMALL, "-p", "block=4", "-p", "picks=3,2", "--target", "cpu")
    assert answer.status == 0, answer
    # 256 blocks of queries, each with the four children of two blocks of blocks, 16 features, four heads.
    assert f"{4 * 256 * 8:,} numbers, {4 * 256 * 8 * 16:,} multiply-adds" in answer.out


def test_explain_counts_the_rows_of_a_probe_alone(spdsl: Spdsl) -> None:
    words = ("-n", "256", *SMALL, "-p", "cap=16", "-p", "probe=8", "--target", "cpu", "--json")
    report = json.loads(spdsl("explain", "snapkv", *words).out)
    # Four heads, 8 queries, 256 keys, 16 features.
    assert [stage["numbers"] for stage in report["stages"][:2]] == [4 * 8 * 256] * 2
    assert report["products"] == 4 * 8 * 256 * 16
    assert report["generated_inputs"] == ["q", "k"]


def test_explain_tells_the_size_of_exports(spdsl: Spdsl) -> None:
    answer = spdsl(
        "explain", "delta", "-n", "128", *SMALL, "-p", "page=8", "-p", "picks=3", "--layer", "14", "--target", "cpu"
    )
    assert answer.status == 0, answer
    assert "export chosen[q, k.pg]: 2,048 bytes as bools, 1,536 as lists" in answer.out


def test_explain_counts_what_is_chosen(spdsl: Spdsl) -> None:
    answer = spdsl(
        "explain", "moba", "-n", "256", *SMALL, "-p", "block=64", "-p", "picks=1", "--target", "cpu", "--json"
    )
    (report,) = json.loads(answer.out)["softmaxes"].values()
    # The own block alone: 64 · 65 / 2 pairs in each of four blocks and four heads.
    assert report["pairs"] == 4 * 4 * 64 * 65 // 2


def test_run(spdsl: Spdsl) -> None:
    answer = spdsl("run", "moba", "-n", "130", *SMALL, "-p", "block=64", "-p", "picks=1", "--backward", "--json")
    assert answer.status == 0, answer
    assert answer.json["kept_pairs"] == (2 * 64 * 65 / 2 + 3) / 130**2  # the own block alone
    assert set(answer.json["errors"]) == {"out", "dq", "dk", "dv"}
    assert answer.json["near_ties"] == {"rows": 0, "of": 4 * 130}


def test_run_tells_what_each_softmax_keeps(spdsl: Spdsl) -> None:
    answer = spdsl("run", "nsa", "-n", "100", *SMALL, "-p", "window=10")
    assert answer.status == 0, answer
    assert [line.split()[2] for line in answer.out.splitlines() if "kept by" in line] == ["coarse", "fine", "local"]
    assert f"{(10 * 11 / 2 + 90 * 10) / 100**2:9.2%}" in answer.out  # the window


@pytest.mark.parametrize("margin", [1e-9, 1e-4])
def test_only_rows_of_near_ties_are_left_out(spdsl: Spdsl, margin: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second key is the better by a billionth, which fp32 does not see; or by more, and the call is wrong."""
    Path("best.spat").write_text("pattern best() { let c = score(Q, K) |> only(k < 2) |> top(1) keep c }")
    q, k = torch.tensor([1.0, 0.0]).repeat(1, 1, 20, 1), torch.tensor([1.0, 0.0]).repeat(1, 1, 20, 1)
    q[..., -3:, 1], k[..., 1, 1] = 1.0, margin
    torch.save({"q": q, "k": k, "v": torch.randn(k.shape)}, "tied.pt")
    if margin > 1e-5:
        call = Attention.__call__
        first = torch.tensor([1.0, 0.0]).expand_as(k)
        monkeypatch.setattr(Attention, "__call__", lambda self, q, k, v: call(self, q, first, v))
    answer = spdsl("run", "best.spat", "--data", "tied.pt", "--json")
    assert answer.json["near_ties"] == {"rows": 3 if margin < 1e-5 else 0, "of": 20}
    assert answer.status == (margin > 1e-5)
    (error,) = answer.json["errors"].values()
    assert (error["error"] <= error["limit"]) is (margin < 1e-5)


@pytest.mark.parametrize("stage", ["checked", "bound", "plan", "block", "triton"])
def test_show(spdsl: Spdsl, stage: str) -> None:
    answer = spdsl("show", "infllm_v2", "--emit", stage, *SMALL)
    assert answer.status == 0, answer
    wanted = {"checked": "|> top(picks, over = k.blk)", "bound": "|> top(64, over = k.blk)"}
    wanted |= {"block": "PickedTile(", "triton": "list_bits"}
    assert wanted.get(stage, "stage_6") in answer.out


@pytest.mark.parametrize(
    "command",
    [
        ("prove", "nsa"),
        ("prove", "moba", "--count"),
    ],
)
def test_refusals_name_the_pattern(spdsl: Spdsl, command: tuple[str, ...]) -> None:
    answer = spdsl(*command)
    assert answer.status != 0
    assert command[1] in answer.err
    assert "SP414" in answer.err or "SP290" in answer.err


@pytest.mark.parametrize(
    ("name", "target", "words"),
    [
        ("infllm_v2", "sm_90", "chosen is made by kernels: sums_stage_2, keys, choose"),
        ("infllm_v2", "cpu", "chosen is made by torch, some rows at a time"),
        ("vertical_slash", "sm_90", "diagonal is made by kernels: keys, choose"),
        ("flexprefill", "sm_90", "attend_sets_1 is made by kernels: note_entries, choose"),
        ("superlinear", "sm_90", "anchor is made by a kernel: best_at"),
        ("ada_snapkv", "sm_90", "by torch, some rows at a time, because of selections over several axes"),
        ("superlinear", "sm_90", "spans is made by a kernel for all members: attend"),
    ],
)
def test_explain_tells_how_sets_are_made(spdsl: Spdsl, name: str, target: str, words: str) -> None:
    answer = spdsl("explain", name, "-n", "256", *SMALL, "--target", target)
    assert answer.status == 0, answer
    assert words in answer.out


INNER = """pattern inner() {
  axis blk = token by 8
  let many = score(Q, sum(K, per = k.blk)) |> only(k.blk.last <= q) |> top(4)
  let few = score(Q, max(K, per = k.blk)) |> only(many) |> top(2)
  let strong = (score(Q, K) |> only(causal)) > 0.3
  keep few or strong
}
"""


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("moba", "--causal", "--nonempty"), 0),
        (("dsa", "--causal"), 0),
        (("moba", "--within", "causal"), 0),
        (("dsa", "--nonempty"), 4),  # nothing may be chosen, as far as the rest tells
        (("minference_blocks", "--disjoint", "causal"), 4),
        (("./inner.spat", "--causal"), 0),  # by what its sets are chosen among alone
    ],
)
def test_proofs_hold_whatever_is_chosen(spdsl: Spdsl, words: tuple[str, ...], status: int) -> None:
    Path("inner.spat").write_text(INNER)
    answer = spdsl("prove", *words)
    assert answer.status == status, answer
    assert "refuted" not in answer.out


def test_the_report_of_a_selection(spdsl: Spdsl) -> None:
    answer = spdsl("prove", "moba")
    assert answer.status == 0, answer
    assert "whatever is chosen" in answer.out
    assert answer.out.count("proven") == 2


@pytest.mark.slow
def test_a_table_over_sizes_tells_the_share_of_selections(spdsl: Spdsl) -> None:
    words = ("explain", "moba", *SMALL, "-p", "block=64", "--over", "n=1024,4096")
    rows = json.loads(spdsl(*words, "--json").out)["rows"]
    assert [row["n"] for row in rows] == [1024, 4096]
    for row in rows:
        assert row["forward"] == pytest.approx(row["selecting"] + row["attention"])
        assert row["share"] == pytest.approx(row["selecting"] / row["forward"])
    assert rows[1]["attention"] > rows[0]["attention"]
    for refused in (("--plot", "times.png"), ("--target", "cpu"), ("--candidates",)):
        answer = spdsl(*words, *refused)
        assert answer.status == 2, answer


def test_tiles_of_each_softmax_are_drawn(spdsl: Spdsl) -> None:
    words = ("show", "nsa", "--emit", "tiles", "-n", "512", *SMALL, "-p", "picks=3", "--target", "cpu")
    answer = spdsl(*words)
    assert answer.status == 0, answer
    titles = ["coarse", "fine", "local"]
    assert [line for line in answer.out.splitlines() if line.startswith("softmax ")] == [f"softmax {x}" for x in titles]
    assert "`q` is random" in answer.err
    found = json.loads(spdsl(*words, "--json").out)["result"]
    assert list(found) == titles
    assert (found["coarse"]["n"], found["fine"]["n"]) == (512 // 16, 512)
    # The own block and the one before are always chosen.
    (forward,) = (each for each in found["fine"]["kernels"] if "forward" in each["kinds"])
    for tile, row in enumerate(forward["rows"]):
        walked = set(row["full"]) | set(row["partial"])
        assert tile * forward["block_q"] // forward["block_k"] in walked
    long = spdsl("show", "nsa", "--emit", "tiles", "-n", "8192")
    assert long.status != 0
    assert "SP622" in long.err


def test_inputs_that_are_lists(spdsl: Spdsl) -> None:
    """What another call has chosen counts the same as lists and as bools."""
    Path("reads.spat").write_text("pattern reads() { axis pg = token by 8 input chosen: bool[g, q, k.pg] keep chosen }")
    chosen = torch.rand(2, 64, 8, generator=torch.Generator().manual_seed(0)) < 0.3
    lists = torch.where(chosen, torch.arange(8), 2**31 - 1).sort(-1).values.int()
    kept = []
    for name, tensor in (("bools", chosen), ("lists", lists)):
        torch.save({"chosen": tensor}, f"{name}.pt")
        answer = spdsl("explain", "reads.spat", "-n", "64", *SMALL, "--input", f"chosen={name}.pt", "--json")
        assert answer.status == 0, answer
        kept.append(answer.json["pairs"])
    assert kept == [2 * 8 * int(chosen.sum())] * 2
