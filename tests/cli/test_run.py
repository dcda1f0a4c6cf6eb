"""run and view: results, files, and what is said of wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cli.conftest import Answer

Spdsl = Callable[..., Answer]
SMALL = ("-n", "96", "--heads", "2", "--head-dim", "16")


def test_run_prints_time_error_and_share(spdsl: Spdsl, good: Path) -> None:
    answer = spdsl("run", "local.spat", *SMALL)
    assert (answer.status, answer.err) == (0, "")
    assert "forward time" in answer.out
    assert "error of out" in answer.out
    # Rows 0 … 7 keep 1 … 8 pairs, the other 88 keep 8.
    assert f"{(36 + 88 * 8) / 96**2:.2%}" in answer.out


def test_run_as_json(spdsl: Spdsl, good: Path) -> None:
    report = spdsl("run", "local.spat", *SMALL, "--groups", "1", "--nq", "40", "--backward", "--json").json
    assert report["ok"]
    assert report["shape"] == {"q": [1, 2, 40, 16], "k": [1, 1, 96, 16], "v": [1, 1, 96, 16]}
    assert report["kept_pairs"] == 8 / 96
    assert set(report["errors"]) == {"out", "dq", "dk", "dv"}
    assert all(each["error"] < each["limit"] for each in report["errors"].values())
    assert set(report["seconds"]) == {"forward", "backward"}


@pytest.mark.parametrize("ending", ["npz", "pt"])
def test_run_on_files(spdsl: Spdsl, tmp_path: Path, ending: str) -> None:
    tensors = {name: torch.randn(2, 2, 50, 16) for name in "qkv"} | {"doc": torch.arange(50) // 20}
    data = tmp_path / f"data.{ending}"
    if ending == "pt":
        torch.save(tensors, data)
    else:
        np.savez(data, **{name: each.numpy() for name, each in tensors.items()})
    answer = spdsl("run", "documents", "--data", data, "-o", f"out.{ending}", "--json")
    assert answer.json["generated_inputs"] == []
    kept = (tensors["doc"][:, None] == tensors["doc"]) & torch.ones(50, 50, dtype=torch.bool).tril()
    expected = torch.nn.functional.scaled_dot_product_attention(
        tensors["q"], tensors["k"], tensors["v"], attn_mask=kept
    )
    path = tmp_path / f"out.{ending}"
    out = torch.load(path)["out"] if ending == "pt" else torch.from_numpy(np.load(path)["out"])
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_inputs_from_files(spdsl: Spdsl, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(96) // 30)
    answer = spdsl("run", "documents", *SMALL, "--input", "doc=ids.npy", "--json")
    assert answer.json["generated_inputs"] == []
    assert answer.json["kept_pairs"] == (3 * 30 * 31 / 2 + 21) / 96**2


def test_made_up_inputs_are_named(spdsl: Spdsl) -> None:
    answer = spdsl("run", "documents", *SMALL)
    assert answer.status == 0
    assert "note: the input `doc` is made up; give it with `--input doc=FILE`" in answer.err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--data", "nothing.npz"), "SP601"),
        (("--data", "text.npz"), "SP611"),
        (("--data", "text.pt"), "SP611"),
        (("--data", "data.csv"), "SP610"),
        (("--data", "half.npz"), "SP612"),
        (("--data", "flat.npz"), "SP612"),
        (("--data", "pickled.pt"), "SP611"),
        (("--input", "dok=ids.npy"), "SP301"),
        (("--input", "doc=nothing.npy"), "SP601"),
        (("--input", "doc=several.npz"), "SP612"),
        (("--device", "toaster"), "SP613"),
        (("-o", "no/such/folder.npz", *SMALL), "SP605"),
        (("-o", "no/such/folder.pt", *SMALL), "SP605"),
    ],
    ids=lambda each: each[1] if isinstance(each, tuple) else each,
)
def test_bad_files(spdsl: Spdsl, tmp_path: Path, words: tuple[str, ...], code: str) -> None:
    for name in ("text.npz", "text.pt", "data.csv"):
        (tmp_path / name).write_text("q,k,v\n1,2,3\n")
    np.savez(tmp_path / "half.npz", q=np.zeros((1, 1, 4, 8)), k=np.zeros((1, 1, 4, 8)))
    np.savez(tmp_path / "flat.npz", **{name: np.zeros(4) for name in "qkv"})
    np.savez(tmp_path / "several.npz", a=np.zeros(4), b=np.zeros(4))
    np.save(tmp_path / "ids.npy", np.arange(96))
    torch.save({"q": Path}, tmp_path / "pickled.pt")
    answer = spdsl("run", "documents", *words)
    assert answer.status == 1
    assert f"error[{code}]" in answer.err


def test_a_table_of_the_wrong_length(spdsl: Spdsl, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(95))
    answer = spdsl("run", "documents", *SMALL, "--input", "doc=ids.npy")
    assert answer.status == 1
    assert "error[SP3" in answer.err
    assert "`doc`" in answer.err


def test_an_unsorted_table(spdsl: Spdsl, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(96)[::-1].copy())
    answer = spdsl("run", "documents", *SMALL, "--input", "doc=ids.npy")
    assert answer.status == 1
    assert "`doc`" in answer.err


def test_a_mismatch_is_status_1(spdsl: Spdsl, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spdsl.cli import measure

    monkeypatch.setitem(measure.LIMITS, torch.float32, 1e-12)
    answer = spdsl("run", "local.spat", *SMALL)
    assert answer.status == 1
    assert "TOO LARGE" in answer.out
    assert spdsl("run", "local.spat", *SMALL, "--no-check").status == 0


@pytest.mark.parametrize("target", ["cpu", "sm_90"])
def test_explain_counts(spdsl: Spdsl, good: Path, target: str) -> None:
    words = (
        "explain",
        "local.spat",
        "-n",
        "500",
        "--nq",
        "300",
        "-p",
        "window=100",
        "--heads",
        "3",
        "--target",
        target,
    )
    report = spdsl(*words, "--json").json
    q, k = np.arange(200, 500)[:, None], np.arange(500)
    kept = (k <= q) & (q - k < 100)
    assert report["pairs"] == 3 * kept.sum()
    for kernel in report["kernels"]:
        block_q, block_k = kernel["block_q"], kernel["block_k"]
        touched = sum(
            kept[row : row + block_q, column : column + block_k].any()
            for row in range(0, 300, block_q)
            for column in range(0, 500, block_k)
        )
        assert kernel["touched"] == 3 * touched
    assert f"{3 * kept.sum():,}" in spdsl(*words).out


def test_view(spdsl: Spdsl, good: Path, tmp_path: Path) -> None:
    answer = spdsl("view", "local.spat", "-p", "window=32", "-n", "128", "--tile", "32", "-o", "mask.png", "--json")
    assert answer.status == 0
    assert (tmp_path / "mask.png").read_bytes().startswith(b"\x89PNG")
    assert answer.json["kept_pairs"] == (32 * 33 / 2 + 96 * 32) / 128**2
    # Four tiles on the diagonal and three beside it, none of them full.
    assert answer.json["touched_tiles"] == 7 / 16
    assert answer.json["full_tiles"] == 0


def test_view_of_one_head(spdsl: Spdsl) -> None:
    shares = [
        spdsl("view", "s2", "-n", "512", "-p", "block=16", "--heads", "4", "--head", str(head), "--json").json[
            "kept_pairs"
        ]
        for head in (0, 3)
    ]
    assert shares[0] != shares[1]


def test_a_long_comparison_is_announced(spdsl: Spdsl, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spdsl.cli.measure.MANY_PAIRS", 96 * 96)
    assert "`--no-check`" in spdsl("run", "local.spat", *SMALL).err
    assert spdsl("run", "local.spat", *SMALL, "--no-check").err == ""


def test_a_long_sequence_is_counted_without_a_mask(spdsl: Spdsl, good: Path) -> None:
    n = 1 << 17
    answer = spdsl(
        "run", "local.spat", "-n", n, "--nq", "64", "--heads", "1", "--head-dim", "8", "--no-check", "--json"
    )
    assert answer.json["kept_pairs"] == 8 / n


def test_more_queries_than_keys_are_not_explained(spdsl: Spdsl, good: Path) -> None:
    answer = spdsl("explain", "local.spat", "-n", "64", "--nq", "65")
    assert (answer.status, answer.out) == (1, "")
    assert "SP304" in answer.err


def test_a_grid_of_another_size_is_not_explained(spdsl: Spdsl) -> None:
    answer = spdsl("explain", "neighborhood_2d", "-p", "extents=8,8", "-p", "window=3,3", "-n", "65")
    assert answer.status == 1
    assert "SP324" in answer.err


def test_more_memory_than_there_is(spdsl: Spdsl) -> None:
    answer = spdsl("run", "causal", "-n", "60000000", "--heads", "4096")
    assert (answer.status, answer.out) == (1, "")
    assert "error[SP616]: " in answer.err
    assert "bytes at once are more memory than there is" in answer.err


@pytest.mark.parametrize("command", ["run", "explain"])
def test_more_tokens_than_kernels_count(spdsl: Spdsl, command: str) -> None:
    assert spdsl(command, "causal", "-n", "10000000000").status == 2
