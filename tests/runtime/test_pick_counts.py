"""Pairs of selections counted from lists, against the sets written out pair by pair."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import spdsl
from spdsl import counting, pick_counts
from spdsl.pipeline import key_of
from spdsl.selecting import explain_stages

TEXT = """
pattern p(rows: int, page: int, picks: int) {{
  input odd: bool[token]
  axis row = token by rows
  axis pg = token by page
  let picked = {score} |> top(picks)
  export chosen = picked
  keep picked and {rest}
}}"""
SCORES = {
    "by head": "score(Q, mean(K, per = k.pg))",
    "by group": "score(Q, mean(K, per = k.pg)) |> max(per = g)",
    "for all": "score(Q, mean(K, per = k.pg)) |> max(over = h)",
    "by run": "score(mean(Q, per = q.row), mean(K, per = k.pg))",
}
RESTS = {
    "causal": lambda h, q, k, odd: k <= q,
    "causal and q.pg != k.pg": lambda h, q, k, odd: (k <= q) & (q // 16 != k // 16),
    "q - k < 40 * (h + 1)": lambda h, q, k, odd: q - k < 40 * (h + 1),
    "not odd[k]": lambda h, q, k, odd: ~odd[k],
    "(q + k) % 3 == 0": lambda h, q, k, odd: (q + k) % 3 == 0,
}


def counted(score: str, rest: str, rows: int, nq: int, n: int) -> tuple[int, Tensor]:
    """What `explain` tells, and the sets of all heads and pairs, ``[batch, heads, nq, n]``, for two sequences."""
    generator = torch.Generator().manual_seed(n)
    q, k, v = (torch.randn(2, heads, length, 16, generator=generator) for heads, length in ((4, nq), (2, n), (2, n)))
    odd = torch.arange(n) % 5 == 1
    pattern = spdsl.loads(TEXT.format(score=SCORES[score], rest=rest))
    values = {"rows": rows, "page": 16, "picks": 3}
    key = key_of(pattern.checked, values, None, None, False)
    report = explain_stages(key, q, k, v, {"odd": odd}, "sm_90")
    chosen = spdsl.compile(pattern, **values).exports(q, k, v, odd=odd)["chosen"]
    chosen = chosen.unsqueeze(1) if score == "for all" else chosen
    chosen = chosen.repeat_interleave(4 // chosen.shape[1], dim=1)
    at = torch.arange(n - nq, n)
    chosen = chosen[:, :, at // rows] if score == "by run" else chosen
    h, q_at, k_at = torch.arange(4)[:, None, None], at[:, None], torch.arange(n)
    kept = chosen[..., k_at // 16] & RESTS[rest](h, q_at, k_at, odd)
    return report.softmaxes[0][1].pairs, kept


@pytest.mark.parametrize("rest", RESTS)
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(("nq", "n"), [(203, 203), (75, 230)])
def test_pairs_written_out(score: str, rest: str, nq: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "count_by_tiles", None)
    found, kept = counted(score, rest, 32, nq, n)
    assert found == int(kept.sum()) > 0


def test_only_edges_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the tokens have four times as many edges, and sixteen times as many pairs."""
    looked = []
    inner = pick_counts._look

    def look(cells: Tensor, *given: object) -> int:
        looked[-1] += len(cells)
        return inner(cells, *given)

    monkeypatch.setattr(pick_counts, "_look", look)
    for n in (256, 1024):
        looked.append(0)
        counted("by group", "causal", 1, n, n)
    assert 0 < looked[1] <= 4 * looked[0]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("quest", {"page": 8, "budget": 64}),  # by key the kernel walks picks, by query lists of tiles
        ("quest", {"page": 16, "budget": 64}),
        ("moba", {"block": 32}),
        ("xattention", {"block": 32}),
    ],
)
def test_kernels_compute_all_that_is_kept(name: str, values: dict[str, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 300, 64, generator=generator) for heads in (4, 2, 2))
    key = key_of(spdsl.load(name).checked, values, None, None, False)
    for _, report in explain_stages(key, q, k, v, {}, "sm_90").softmaxes:
        for kernel in report.kernels:
            assert 0 < kernel.pairs <= kernel.computed, kernel.kind
