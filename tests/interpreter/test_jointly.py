"""Rows that are ranked together, and the cuts of long rows by many programs, in Triton's interpreter.

Run with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import os

import pytest
import torch

import spdsl
from spdsl.runtime import graphs, inputs
from spdsl.runtime.ranking import best, heaviest
from tests.interpreter.test_chains import CORNERS, dense, keys_of

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")

SHARES = (0.0, 1.0, 1.0, 2.0, 4.0, -3.0, 0.25, float("nan"))


@pytest.mark.parametrize(
    ("by", "amount", "forced"),
    [
        ("count", 3, 0.1),
        ("count", 50, 0.0),
        ("mass", 0.4, 0.1),
        *(pytest.param("count", amount, 0.1, marks=pytest.mark.slow) for amount in (0, 50, 10_000)),
        *(pytest.param("mass", amount, 0.0, marks=pytest.mark.slow) for amount in (0.0, 0.7, 1.0)),
    ],
)
def test_cuts_are_those_of_a_sort(by: str, amount: float, forced: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from spdsl.runtime import cut_kernels
    from spdsl.runtime.cut_kernels import cuts_by_row, cuts_of

    monkeypatch.setattr(cut_kernels, "TILE", 16)
    monkeypatch.setattr(cut_kernels, "TILES", 2)
    rows, columns, pitch = 5, 37, 48
    generator = torch.Generator().manual_seed(7)
    kinds = torch.tensor(CORNERS if by == "count" else SHARES)
    value = kinds[torch.randint(0, len(kinds), (3, rows * columns), generator=generator)]
    only = torch.rand(value.shape, generator=generator) < 0.7
    first = torch.rand(value.shape, generator=generator) < forced
    wanted = best(value, only, first, int(amount)) if by == "count" else heaviest(value, only, first, amount)
    flat = (each.view(-1, columns) for each in (value, only, first))
    keys = torch.full((3 * rows, pitch), -(2**31) if by == "count" else 0, dtype=torch.int32)
    keys[:, :columns] = keys_of(*flat, by)[:, :columns]
    amounts = torch.tensor([amount], dtype=torch.int32 if by == "count" else torch.float64)
    cuts = cuts_by_row(keys.view(3, rows, pitch), cuts_of(keys.view(3, -1), by, amounts), by, columns)
    here = keys[:, :columns]
    equal = (here == cuts[:, :1]) & ((here > 0) if by == "mass" else (here != -(2**31)))
    beyond = (here > cuts[:, :1]) | (here < 0 if by == "mass" else False)
    chosen = beyond | equal & (equal.cumsum(1) <= cuts[:, 1:2])
    assert torch.equal(chosen.view(wanted.shape), wanted)
    assert torch.equal(chosen.sum(1).int(), cuts[:, 2])


@pytest.mark.slow
def test_shares_of_signed_keys() -> None:
    """Where keys are those of numbers, what is below 0 has no share."""
    from spdsl.runtime.cut_kernels import cuts_of

    value, there = torch.tensor([[3.0, -5.0, 1.0, 0.0, 2.0, -0.0]]), torch.ones(1, 6, dtype=torch.bool)
    keys = keys_of(value, there, ~there, "count")[:, :6].contiguous()
    ((cut, ties),) = cuts_of(keys, "mass", torch.tensor([0.6], dtype=torch.float64), signed=True).tolist()
    assert (cut, ties) == (keys[0, 4], 1)


TEXT = """pattern joint() {{
  axis blk = token by 8
  let chosen = score(mean(Q, per = q.blk), mean(K, per = k.blk)) |> only(k.blk <= q.blk) |> {how}
  keep causal and chosen
}}
"""


@pytest.mark.parametrize(
    "how",
    [
        pytest.param("top(11, over = (q.blk, k.blk))", marks=pytest.mark.slow),
        "softmax |> force(k.blk == q.blk) |> top_p(0.7, over = (q.blk, k.blk))",
        "top(heads * n // 20, over = (h, k.blk))",
        "top(5, over = (h, k.blk))",
        pytest.param("softmax |> top_p(0.6, over = (q.blk, k.blk))", marks=pytest.mark.slow),
        pytest.param("force(k.blk == q.blk) |> top(13, over = (q.blk, k.blk))", marks=pytest.mark.slow),
        pytest.param("top(1000, over = (q.blk, k.blk))", marks=pytest.mark.slow),
    ],
)
def test_rows_that_are_ranked_together(how: str) -> None:
    pattern, n = spdsl.compile(spdsl.loads(TEXT.format(how=how))).bind(4, 2, 16), 70
    generator = torch.Generator().manual_seed(n)
    q = torch.randint(-2, 3, (2, 4, n, 16), generator=generator).half()
    k = torch.randint(-2, 3, (2, 2, n, 16), generator=generator).half()
    calls = [inputs.Inputs(q=q, k=k, v=k, tables={}, q_start=0, kernels=way) for way in (True, False)]
    assert all(each.startswith("by kernels") for each in graphs.makers(pattern, calls[0]).values())
    (found,), (wanted,) = (graphs.selections(pattern, call).values() for call in calls)
    assert torch.equal(dense(found, 9), dense(wanted, 9))
    assert bool(dense(found, 9).any())


UNION = """pattern union() {
  axis blk = token by 8
  let most = score(Q, K) |> only(causal) |> softmax |> sum(over = q) |> top(5)
  let near = score(mean(Q, per = q.blk), mean(K, per = k.blk)) |> only(k.blk <= q.blk) |> top(2)
  let far = score(mean(K, per = k.blk), mean(Q, per = q.blk), scale = -1.0) |> only(k.blk <= q.blk) |> top(1)
  keep causal and (near or any(most, over = k) and far)
}
"""


def test_a_union_of_sets_is_one_list() -> None:
    pattern, n = spdsl.compile(spdsl.loads(UNION)).bind(2, 1, 16), 37
    generator = torch.Generator().manual_seed(n)
    q = torch.randint(-2, 3, (1, 2, n, 16), generator=generator).half()
    k = torch.randint(-2, 3, (1, 1, n, 16), generator=generator).half()
    q[0, 1] = float("nan")  # a head that finds nothing
    calls = [inputs.Inputs(q=q, k=k, v=k, tables={}, q_start=0, kernels=way) for way in (True, False)]
    (name,) = graphs.selections(pattern, calls[0])
    assert graphs.makers(pattern, calls[0])[name] == "by kernels: note_entries, choose"
    found, wanted = (dense(graphs.selections(pattern, call)[name], 5) for call in calls)
    assert torch.equal(found, wanted.expand_as(found))
    assert bool(found[0, 0].any())
    assert not bool(found[0, 1].any())


BESIDE = """pattern beside() {{
  axis row = token by 8
  axis col = token by 4
  let loose_row = norm(mean(unit(Q), per = q.row)) ** 2 < 0.4
  let loose_col = norm(mean(unit(K), per = k.col)) ** 2 < 0.3
  let chosen = score(mean({q}, per = q.row), mean(K, per = k.col)) |> only(not loose_col) |> top_p(0.4)
  keep {keep}
}}
"""


@pytest.mark.parametrize(
    ("q", "keep", "batch"),
    [
        ("mean(Q, over = h)", "chosen or loose_col", 2),
        pytest.param("Q", "chosen or loose_row or loose_col", 2, marks=pytest.mark.slow),
        pytest.param("Q", "chosen or not loose_row and not loose_col or loose_col", 1, marks=pytest.mark.slow),
    ],
)
def test_sets_of_blocks_of_one_side_are_noted_beside_others(q: str, keep: str, batch: int) -> None:
    pattern, n = spdsl.compile(spdsl.loads(BESIDE.format(q=q, keep=keep))).bind(4, 2, 16), 45
    generator = torch.Generator().manual_seed(n)
    q_rows = torch.randn(batch, 4, 29, 16, generator=generator).half() + 0.8
    k_rows = torch.randn(batch, 2, n, 16, generator=generator).half() + 0.7
    first = n - 29
    calls = [
        inputs.Inputs(q=q_rows, k=k_rows, v=k_rows, tables={}, q_start=first, kernels=way) for way in (True, False)
    ]
    ((name, maker),) = ((each, maker) for each, maker in graphs.makers(pattern, calls[0]).items() if "_sets_" in each)
    assert maker == "by kernels: note_entries, choose"
    found, wanted = (dense(graphs.selections(pattern, call)[name], 12) for call in calls)
    assert torch.equal(found, wanted.expand_as(found))
    assert bool(found.any())
    assert not bool(found.all())


LEAST = """pattern least() {{
  let seen = score(Q, K) |> only(causal and q >= n - 8) |> softmax
  let most = seen |> sum(over = q) |> top_p({mass}, least = {least})
  let far = seen |> sum(per = q - k) |> top_p({mass})
  keep causal and (most or far)
}}
"""


@pytest.mark.parametrize(("mass", "least"), [(0.6, 3), pytest.param(0.1, 90, marks=pytest.mark.slow)])
def test_shares_of_keys_and_distances(mass: float, least: int) -> None:
    from spdsl.runtime import softmax_operands

    pattern, n = spdsl.compile(spdsl.loads(LEAST.format(mass=mass, least=least))).bind(2, 1, 16), 37
    generator = torch.Generator().manual_seed(n)
    q = torch.randn(1, 2, n, 16, generator=generator).half()
    k = torch.randn(1, 1, n, 16, generator=generator).half()
    calls = [inputs.Inputs(q=q, k=k, v=k, tables={}, q_start=0, kernels=way) for way in (True, False)]
    assert all(each.startswith("by kernels") for each in graphs.makers(pattern, calls[0]).values())
    assert pattern.graph is not None
    (stage,) = pattern.graph.attentions
    found, wanted = (softmax_operands.operands(pattern, stage, call) for call in calls)
    for name in found.stages:
        assert torch.equal(found.tables[name], wanted.tables[name]), name
        assert bool(found.tables[name].any())
