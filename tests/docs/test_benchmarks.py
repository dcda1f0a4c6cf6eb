"""The suite's own arithmetic and pages: expected results at some positions, tables, charts, names."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import perplexity
from benchmarks.cases import CASES, DOCUMENT_LENGTHS, SUITE, documents
from benchmarks.chart import BEGIN, END, between, chart, table
from benchmarks.coverage import coverage
from benchmarks.measure import expected_at, share

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RESULTS = BENCHMARKS / "results" / "h200-2026-11-28.json"


@pytest.mark.parametrize("ratio", [1, 3])
def test_expected_results_are_those_of_autograd(ratio: int) -> None:
    torch.manual_seed(0)
    n, d = 70, 8
    q, d_out = (torch.randn(ratio, n, d, dtype=torch.float64) for _ in range(2))
    k, v = (torch.randn(n, d, dtype=torch.float64) for _ in range(2))

    def kept(head: int, rows: Tensor, keys: Tensor) -> Tensor:
        distance = rows[:, None] - keys[None, :]
        return (distance >= 0) & (distance < 9 + head) & (rows[:, None] != 5)  # query 5 keeps nothing

    leaves = [each.clone().requires_grad_() for each in (q, k, v)]
    everywhere = torch.arange(n)
    keep = torch.stack([kept(head, everywhere, everywhere) for head in range(ratio)])
    logits = (leaves[0] @ leaves[1].T / d**0.5).masked_fill(~keep, -1e30)
    out = torch.where(keep.any(-1, keepdim=True), torch.softmax(logits, -1) @ leaves[2], 0.0)
    d_q, d_k, d_v = torch.autograd.grad(out, leaves, d_out)
    queries, keys = torch.tensor([0, 5, 30, 69]), torch.tensor([0, 41, 69])
    found = expected_at(queries, keys, q, k, v, d_out, kept)
    for one, other in zip(found, (out[-1, queries], d_q[-1, queries], d_k[keys], d_v[keys]), strict=True):
        torch.testing.assert_close(one, other.detach())


def test_names_and_sizes() -> None:
    assert [case.name for case in CASES] == [
        "causal",
        "swa1024",
        "sink64_window1024",
        "prefix8192",
        "documents10",
        "longformer256_g64",
        "bigbird64",
        "dilated4096x4",
        "s2_strided",
        "power128",
        "na2d_192_k25",
        "na3d_30x48x80_k19x25x25",
    ]
    assert len({case.name for case in SUITE}) == len(SUITE) == 1 + 12 + 3 * 5
    assert sum(DOCUMENT_LENGTHS) == 32768
    assert [int((documents(torch.device("cpu")) == number).sum()) for number in range(10)] == list(DOCUMENT_LENGTHS)
    for case in SUITE:
        if "documents" in case.name:
            assert case.inputs(torch.device("cpu"))["doc"].shape == (case.n,)


def test_shares_of_several_kernels() -> None:
    found = coverage(replace(CASES[1], n=1024))
    assert share(found, "spdsl", "fwd") == round(found.kept / found.computed["forward"], 4)
    assert share(found, "spdsl", "bwd") == round(found.kept / found.computed["fused"], 4)
    assert share(found, "flex-tuned", "bwd") == round(found.kept / found.blocks, 4)
    assert share(found, "cudnn", "fwd") is None
    apart = coverage(replace(CASES[1], n=1024, dim=256))
    assert "fused" not in apart.computed
    both = (apart.computed["dq"] + apart.computed["dkdv"]) / 2
    assert share(apart, "spdsl", "bwd") == round(apart.kept / both, 4)


def test_the_table_of_the_page_is_that_of_the_results() -> None:
    rows = json.loads(RESULTS.read_text())
    page = (BENCHMARKS / "README.md").read_text()
    assert page == between(page, table(rows)), "run `python -m benchmarks chart` with --table"
    assert "| swa1024 | 0.58 (466) | 0.85 (317) | 0.84 (324) | – | 0.39 | 1.67 (405) | 2.31 (292)" in table(rows)
    with pytest.raises(ValueError, match="no place for the table"):
        between("nothing", "text")
    assert between(f"a\n{BEGIN}\nold\n{END}\nb", "new\n") == f"a\n{BEGIN}\n\nnew\n\n{END}\nb"


def test_the_table_of_decoding() -> None:
    from benchmarks import decoding

    page = (BENCHMARKS.parent / "docs" / "decoding.md").read_text(encoding="utf-8")
    rows = json.loads((BENCHMARKS / "results" / "h200-2026-11-28-decoding.json").read_text(encoding="utf-8"))
    assert page == between(page, decoding.table(rows)), "run `python -m benchmarks.decoding` with --table"
    assert {row["case"] for row in rows} <= {case.name for case in decoding.CASES}


def test_the_chart_has_a_bar_for_each_rate() -> None:
    rows = json.loads(RESULTS.read_text())
    above, below = chart(rows).axes
    for axis, direction in ((above, "fwd"), (below, "bwd")):
        heights = sorted(bar.get_height() for bar in axis.patches)
        assert heights == sorted(row["tflops_useful"] for row in rows if row["direction"] == direction)


def test_the_table_of_perplexities(tmp_path: Path) -> None:
    rows = json.loads((BENCHMARKS / "results" / "h200-2026-11-28-perplexity.json").read_text(encoding="utf-8"))
    page = (BENCHMARKS.parent / "docs" / "perplexity.md").read_text(encoding="utf-8")
    assert page == between(page, perplexity.table(rows)), "run `python -m benchmarks.perplexity` with --table"
    perplexity.draw(rows, tmp_path / "losses.png")
    assert (tmp_path / "losses.png").stat().st_size > 10_000
    found = {(row["title"], row["tokens"]): row for row in rows}
    for tokens in (4096, 8192):
        # What the page says: dense attention is the model's own, and chosen keys lose less than as many near ones.
        own, dense = (found[title, tokens]["perplexity"] for title in ("torch", "causal"))
        assert abs(own - dense) < 1e-5 * own
        for size in (256, 512, 1024):
            window = found[f"streaming(window={size - 4})", tokens]
            pages, half = f"quest(page=16, budget={size})", size // 2
            blocks = f"infllm_v2(picks={size // 64}, window={half}, dense=0)"
            both = f"near_and_best(window={half}, page=16, budget={half})"
            titles = (window["title"], pages, blocks, both)
            grown = (f"{found[title, tokens]['perplexity'] - dense:.2f}" for title in titles)
            assert f"| {size:,} | {tokens:,} | {' | '.join(grown)} |" in page
            for title in (both, pages, blocks) if size > 256 else (both,):
                chosen = found[title, tokens]
                assert chosen["kept"] < window["kept"]
                assert chosen["perplexity"] < window["perplexity"]


def test_growth_of_hierarchies_is_drawn(tmp_path: Path) -> None:
    """The page's picture is made of the results beside it.

    A pyramid as high as lengths ask grows as N log N.  So do searches of all rows of hip, and hip as it runs, which
    sweeps those with few keys, is nowhere slower than they are; how it grows from its first point on, the page says.
    """
    from benchmarks import hierarchies

    def read(name: str) -> list[dict[str, Any]]:
        return json.loads((RESULTS.parent / f"h200-2026-11-29-hierarchies-{name}.json").read_text(encoding="utf-8"))

    def timed(rows: list[dict[str, Any]]) -> dict[tuple[str, int], float]:
        return {(row["pattern"], row["n"]): row["graph_ms"] for row in rows}

    rows = read("growth")
    told = {(hierarchies.named(case), case.n) for case in hierarchies.growing()}
    assert {(row["pattern"], row["n"]) for row in rows} == told
    times, searched = timed(rows), timed(read("searched"))
    # Of a causal hierarchy the first 32,768 queries have less to choose from than its budget.
    high, swept = "llsa of three levels", "hip, 512 first chunks"
    for name, found, first, slack in ((high, times, 0, 1.0), (swept, searched, 1, 1.1)):
        one = hierarchies.LENGTHS[first]
        for n in hierarchies.LENGTHS[first:]:
            law = n * math.log(n) / (one * math.log(one))
            assert found[name, n] <= slack * law * found[name, one], (name, n)
    assert searched.keys() == {(name, n) for name in (swept, "hip") for n in hierarchies.LENGTHS}
    assert all(times[key] < searched[key] for key in searched)
    page = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    first, last = hierarchies.LENGTHS[0], hierarchies.LENGTHS[-1]
    grown = {name: times[name, last] / times[name, first] for name in (swept, "llsa", "hip")}
    assert f"grows by {grown[swept]:.0f} times from its first point" in page
    assert f"first round: {grown['llsa']:.0f} and {grown['hip']:.0f} times" in page
    hierarchies.plot(rows, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000


def test_the_table_of_whole_calls() -> None:
    """Every call that is slower than dense attention says why."""
    from benchmarks import whole

    page = (BENCHMARKS.parent / "docs" / "library.md").read_text(encoding="utf-8")
    rows = json.loads((BENCHMARKS / "results" / "h200-2026-11-29-whole.json").read_text(encoding="utf-8"))
    assert page == between(page, whole.table(rows)), "run `python -m benchmarks.whole` with --table"
    assert "`: ." not in whole.table(rows)
    assert {row["pattern"] for row in rows} <= {case.name for case in whole.CASES}


def test_tensors_of_a_file_are_repeated_and_rotated(tmp_path: Path) -> None:
    """Products of rotated rows depend on how far they are apart, also across the seam."""
    from benchmarks import hierarchies

    generator = torch.Generator().manual_seed(0)
    made = {name: torch.randn(1, 32, 64, generator=generator).bfloat16() for name in "qkv"}
    torch.save(made, tmp_path / "real.pt")
    q, k, v = hierarchies.rotated(tmp_path / "real.pt", 80, "cpu")
    assert q.shape == k.shape == v.shape == (1, 1, 80, 64)
    assert torch.equal(v[0, :, 32:64], made["v"])
    near, far = (float(q[0, 0, at + 5].float() @ k[0, 0, at].float()) for at in (7, 39))
    assert abs(near - far) <= 0.05 * float(q[0, 0, 12].float().norm() * k[0, 0, 7].float().norm())
    plain = float(made["q"][0, 7].float() @ made["k"][0, 7].float())
    assert abs(float(q[0, 0, 7].float() @ k[0, 0, 7].float()) - plain) <= 0.5
