"""Selections by generated kernels in Triton's interpreter: the sets of the reference, ties and corners included.

Run with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import spdsl
from spdsl import reference
from spdsl.codegen.chains.parts import Terms
from spdsl.runtime import graphs, inputs, operands
from spdsl.runtime.choosing import Keys, Room
from spdsl.runtime.ranking import FAR, best, heaviest
from spdsl.semantics.graph import Select
from tests.runtime.test_stage_programs import BY_INPUT, Program, programs, tensors

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")

EXAMPLES = int(os.environ.get("SPDSL_EXAMPLES", "3"))
CORNERS = (0.0, -0.0, 1.0, 1.0, 2.0, -1.0, 1e-30, float("inf"), float("-inf"), float("nan"))


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Memory that nobody has written holds the key of forced entries, and NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def dense(lists: Tensor, columns: int) -> Tensor:
    """The sets that lists name; asserts that they ascend and are filled up."""
    longer = lists[..., 1:] > lists[..., :-1]
    assert bool((longer | (lists[..., 1:] == FAR)).all())
    room = torch.zeros(*lists.shape[:-1], columns + 1, dtype=torch.bool)
    return room.scatter_(-1, lists.long().clamp(max=columns), True)[..., :columns]


def keys_of(value: Tensor, only: Tensor, forced: Tensor, by: str) -> Tensor:
    """The keys that a kernel of scores would leave, by numpy's rules for bits, in rows of a poisoned buffer."""
    there = only & ~value.isnan()
    if by == "count":
        bits = (value + 0.0).view(torch.int32)
        keys = torch.where(there, bits ^ ((bits >> 31) & 0x7FFFFFFF), -(2**31))
        keys = torch.where(forced, 2**31 - 1, keys)
    else:
        bits = (torch.where(there, value, 0.0).clamp(min=0) + 0.0).view(torch.int32)
        keys = torch.where(forced, ~bits, bits)
    room = torch.full((len(value), -(-value.shape[1] // 16) * 16), 2**31 - 1, dtype=torch.int32)
    room[:, : value.shape[1]] = keys
    return room


def rows_of(keys: Tensor, columns: int) -> Keys:
    """Keys of one chunk and one tile."""
    rows, pitch = keys.shape
    ends = torch.tensor([[columns]], dtype=torch.int32)
    return Keys(keys=keys, chunks=1, rows=rows, pitch=pitch, columns=columns, ends=ends, block=rows)


@pytest.mark.parametrize("by", ["count", "mass"])
@pytest.mark.parametrize("columns", [1, 40, 150])
def test_choosing(by: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from spdsl.runtime import choosing

    generator = torch.Generator().manual_seed(columns)
    kinds = torch.tensor(CORNERS if by == "count" else [0.0, 1.0, 1.0, 2.0, 4.0, -3.0, float("nan")])
    value = kinds[torch.randint(0, len(kinds), (9, columns), generator=generator)]
    only = torch.rand(9, columns, generator=generator) < 0.7
    forced = torch.rand(9, columns, generator=generator) < 0.1
    only[3], forced[3] = False, False
    only[4] = False
    keys = keys_of(value, only, forced, by)
    # Keys in one step, and in several.
    for widest in (choosing.WIDEST, 64):
        monkeypatch.setattr(choosing, "WIDEST", widest)
        for amount in (0, 3, 20, 10_000) if by == "count" else (0.0, 0.5, 1.0):
            wanted = best(value, only, forced, int(amount)) if by == "count" else heaviest(value, only, forced, amount)
            dtype = torch.int32 if by == "count" else torch.float64
            width = min(int(amount), columns) if by == "count" else None
            room = None if width is None else Room(lists=torch.empty(1, 9, max(1, width), dtype=torch.int32))
            (found,) = choosing.choose(rows_of(keys, columns), by, torch.tensor([amount], dtype=dtype), room)
            assert torch.equal(dense(found, columns), wanted), amount


@pytest.mark.parametrize("by", ["count", "mass"])
def test_rows_of_half_the_width(by: str) -> None:
    """Rows that end before half of the longest ones have a way of their own."""
    from spdsl.runtime import choosing

    value = torch.randint(0, 5, (4, 1100), generator=torch.Generator().manual_seed(1)).float()
    ends = torch.tensor([[1100, 512, 513, 0]], dtype=torch.int32)
    only = torch.arange(1100) < ends[0, :, None]
    keys = keys_of(value, torch.ones_like(only), torch.zeros_like(only), by)
    given = Keys(keys=keys, chunks=1, rows=4, pitch=keys.shape[1], columns=1100, ends=ends, block=1)
    amount = torch.tensor([300], dtype=torch.int32) if by == "count" else torch.tensor([0.4], dtype=torch.float64)
    (found,) = choosing.choose(given, by, amount, None)
    wanted = best(value, only, None, 300) if by == "count" else heaviest(value, only, None, 0.4)
    assert torch.equal(dense(found, 1100), wanted)


def test_counts_that_vary() -> None:
    from spdsl.runtime import choosing

    value, amounts = torch.randint(0, 4, (19, 40)).float(), torch.arange(19, dtype=torch.int32)
    only = torch.ones(19, 40, dtype=torch.bool)
    (found,) = choosing.choose(rows_of(keys_of(value, only, ~only, "count"), 40), "count", amounts, None)
    assert torch.equal(dense(found, 40), best(value, only, ~only, amounts[:, None]))


@pytest.mark.parametrize("picks", [0, 3, 100])
def test_corners_of_the_order(picks: int) -> None:
    inf, nan = float("inf"), float("nan")
    worth = torch.tensor([[1.0, nan, inf, -inf, inf, 1.0, 0.0, nan, -0.0, 2.0], [0.0] * 10])
    q, k, v = torch.randn(3, 1, 2, 10, 16)
    pattern = spdsl.compile(spdsl.loads(BY_INPUT), picks=picks).bind(2, 2, 16)
    call = graphs.Inputs(q=q, k=k, v=v, tables={"worth": worth}, q_start=0, kernels=True)
    (found,) = graphs.selections(pattern, call).values()
    chosen = dense(found, 10)[0]
    for t in range(10):
        expected = [j for j in [2, 4, 9, 0, 5, 6, 8, 3] if j <= t][:picks]
        assert chosen[0, t].nonzero().flatten().tolist() == sorted(expected)
        assert chosen[1, t].nonzero().flatten().tolist() == list(range(min(picks, t + 1)))


@settings(max_examples=EXAMPLES, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs(exact=True), st.integers(0, 99))
def test_exact_programs(program: Program, seed: int) -> None:
    from spdsl.runtime import chain_kernels

    q, k, v = (x.detach() for x in tensors(program, seed))
    pattern = spdsl.compile(spdsl.loads(program.text)).bind(program.heads, program.groups, 8)
    call = graphs.Inputs(q=q, k=k, v=v, tables={}, q_start=program.n - program.nq, kernels=True)
    arrays = inputs.arrays_of(pattern, call, grad=False)
    assert pattern.graph is not None
    (chosen,) = (stage.name for stage in pattern.graph.stages if isinstance(stage, Select))
    covered = not isinstance(chain_kernels.lowered(arrays, chosen), str)
    assert covered or "wide" in program.text or "into" in program.text
    assume(covered)
    found = graphs.lists(arrays, chosen)
    wanted = reference.exports(pattern, q, k, v, tables={}, q_start=call.q_start)["chosen"]
    assert torch.equal(dense(found, wanted.shape[-1]).expand(wanted.shape), wanted)


BOUNDED = """pattern bounded() {
  input worth: float[token]
  let chosen = min(relu(worth[k]), 3.0) - relu(worth[q]) |> only(causal) |> top(3)
  keep causal and chosen
}
"""


def test_bounds_leave_a_nan() -> None:
    worth = torch.tensor([float("nan"), -1.0, 2.0, float("nan"), 9.0, 3.0, 0.5, float("inf")])
    q, k, v = torch.randn(3, 1, 1, 8, 16)
    pattern = spdsl.compile(spdsl.loads(BOUNDED)).bind(1, 1, 16)
    calls = [graphs.Inputs(q=q, k=k, v=v, tables={"worth": worth}, q_start=0, kernels=way) for way in (True, False)]
    found, plain = (next(iter(graphs.selections(pattern, call).values())) for call in calls)
    assert torch.equal(dense(found, 8), dense(plain, 8))


MEANS = """pattern means() {
  axis blk = token by 8
  let scores = score(mean(Q, per = q.blk), mean(K, per = k.blk)) |> only(k.blk <= q.blk)
  let chosen = scores%s |> top(3)
  keep causal and chosen
}
"""


@pytest.mark.parametrize("shares", ["", " |> softmax |> sum(per = g)"])
def test_products_of_numbers_of_32_bits(shares: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Means of queries and keys, each a sum of three numbers of 16 bits, infinite ones and NaN among them."""
    from spdsl.runtime import chain_runs

    for module in (operands, chain_runs):  # fp16, as the interpreter does not multiply bf16
        monkeypatch.setattr(module, "TERMS", torch.float16)
    q, k = torch.randn(2, 1, 2, 120, 16, generator=torch.Generator().manual_seed(1)).bfloat16()
    k[0, 0, 20, 3], k[0, 0, 40, 5], q[0, 1, 80, 2] = float("inf"), float("nan"), float("-inf")
    pattern = spdsl.compile(spdsl.loads(MEANS % shares)).bind(2, 2, 16)
    calls = [inputs.Inputs(q=q, k=k, v=k, tables={}, q_start=0, kernels=way) for way in (True, False)]
    found, plain = (next(iter(graphs.selections(pattern, call).values())) for call in calls)
    assert torch.equal(dense(found, 15), dense(plain, 15))
    (made,) = graphs.makers(pattern, calls[0]).values()
    assert made.startswith("by kernels")


DIAGONALS = """pattern diagonals() {
  axis cell = token by 4
  axis blk = token by 8
  let share = score(Q, K) |> only(%s) |> sum(per = (q.cell, k.cell)) |> only(k.cell <= q.cell) |> softmax
              |> sum(per = (q.blk, k.blk))
  let chosen = share |> top_p(0.6)
  keep causal and chosen
}
"""


@pytest.mark.parametrize("which", ["(q + k) % 4 == 3", pytest.param("(q - k) % 4 == 1", marks=pytest.mark.slow)])
@pytest.mark.parametrize("beside", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("start", [0, 31])
def test_products_along_the_diagonals_of_cells(which: str, beside: bool, start: int) -> None:
    """Cells that the first query or the end cuts off have fewer pairs, also beside what is infinite."""
    q, k = torch.randn(2, 1, 1, 38, 16, generator=torch.Generator().manual_seed(2)).half()
    if beside:
        q[0, 0, 37, 3], k[0, 0, 36, 5] = float("inf"), float("-inf")
    q = q[:, :, start:]
    pattern = spdsl.compile(spdsl.loads(DIAGONALS % which)).bind(1, 1, 16)
    calls = [inputs.Inputs(q=q, k=k, v=k, tables={}, q_start=start, kernels=way) for way in (True, False)]
    found, plain = (next(iter(graphs.selections(pattern, call).values())) for call in calls)
    assert torch.equal(dense(found, 5), dense(plain, 5))
    (made,) = graphs.makers(pattern, calls[0]).values()
    assert made.startswith("by kernels")


INFINITE_QUERIES = """pattern pooled() {
  axis blk = token by 8
  let chosen = score(Q, mean(K, per = k.blk)) |> only(k.blk <= q.blk)%s |> top(2)
  keep causal and chosen
}
"""


@pytest.mark.parametrize("reduced", ["", " |> max(per = g)", " |> softmax |> sum(per = g)"])
def test_infinite_queries_and_keys_that_are_sums_of_terms(reduced: str) -> None:
    """Smaller terms of another sign, or of nothing, leave a score as infinite as the largest says."""
    pattern = spdsl.compile(spdsl.loads(INFINITE_QUERIES % reduced)).bind(2, 1, 16)
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, heads, 44, 16, generator=generator).half() for heads in (2, 1))
    for row in range(17, 44):
        q[0, row % 2, row, row % 16] = float("inf") if row % 3 else float("-inf")
    k[0, 0, 8:16] = 0.5  # a mean that is one term
    sets = []
    for kernels in (True, False):
        call = graphs.Inputs(q=q, k=k, v=k, tables={}, q_start=0, kernels=kernels)
        assert not kernels or all(word.startswith("by kernels") for word in graphs.makers(pattern, call).values())
        (found,) = graphs.selections(pattern, call).values()
        sets.append(dense(found, 6))
    assert torch.equal(*sets)


@pytest.mark.parametrize("counts", [(1, 1), (1, 3), (3, 3)])
def test_terms_are_as_exact_as_what_they_add_up_to(counts: tuple[int, int]) -> None:
    terms = Terms(queries=counts[0], keys=counts[1])
    x, y = torch.randn(2, 5000, generator=torch.Generator().manual_seed(2))
    x, y = (each.bfloat16().float() if count == 1 else each for each, count in zip((x, y), counts, strict=True))
    parts = [operands._terms(each, torch.bfloat16, count).double() for each, count in zip((x, y), counts, strict=True)]
    product = sum(parts[0][left] * parts[1][right] for left, right in terms.pairs)
    exact = x.double() * y.double()
    assert float(((product - exact) / exact).abs().max()) < 2**-22


INFINITE = """pattern infinite() {
  input worth: float[token]
  input there: bool[token]
  let share = worth[k] |> only(there[k] and k <= q) |> softmax
  let chosen = share |> top(2)
  keep chosen
}
"""


def test_softmax_of_infinite_scores_and_of_nothing() -> None:
    inf, nan = float("inf"), float("nan")
    tables = {
        "worth": torch.tensor([nan, 0.0, -inf, inf, 0.0, inf, 5.0]),
        "there": torch.tensor([1, 0, 1, 1, 1, 1, 1]).bool(),
    }
    q, k, v = torch.randn(3, 1, 1, 7, 16)
    pattern = spdsl.compile(spdsl.loads(INFINITE)).bind(1, 1, 16)
    call = graphs.Inputs(q=q, k=k, v=v, tables=tables, q_start=0, kernels=True)
    (found,) = graphs.selections(pattern, call).values()
    (plain,) = graphs.selections(pattern, graphs.Inputs(q=q, k=k, v=v, tables=tables, q_start=0)).values()
    assert torch.equal(dense(found, 7), dense(plain, 7))


@pytest.mark.parametrize("reduced", ["mean(over = h)", "softmax |> sum(over = h)", "max(per = g)"])
def test_reductions_over_heads_of_several_groups(reduced: str) -> None:
    """Each head meets the keys of its own group, also where a reduction goes over the heads of all."""
    text = (
        f"pattern some() {{\n  let s = score(Q, K) |> only(k <= q) |> {reduced}\n  keep s |> only(k <= q) |> top(3)\n}}"
    )
    pattern = spdsl.compile(spdsl.loads(text)).bind(6, 2, 16)
    generator = torch.Generator().manual_seed(3)
    q = torch.randint(-2, 3, (1, 6, 37, 16), generator=generator).half()
    k = torch.randint(-2, 3, (1, 2, 37, 16), generator=generator).half()
    sets = []
    for kernels in (True, False):
        call = graphs.Inputs(q=q, k=k, v=k, tables={}, q_start=0, kernels=kernels)
        assert not kernels or all(word.startswith("by kernels") for word in graphs.makers(pattern, call).values())
        (found,) = graphs.selections(pattern, call).values()
        sets.append(dense(found, 37))
    assert torch.equal(*sets)


def test_vectors_of_unequal_length_are_refused() -> None:
    pattern = spdsl.compile(spdsl.loads("pattern some() {\n  keep score(Q, V) |> only(k <= q) |> top(3)\n}"))
    q, k, v = torch.zeros(1, 2, 9, 16), torch.zeros(1, 2, 9, 16), torch.zeros(1, 2, 9, 32)
    call = graphs.Inputs(q=q, k=k, v=v, tables={}, q_start=0, kernels=True)
    with pytest.raises(spdsl.SpatError, match="vectors of 16 and of 32 numbers"):
        graphs.selections(pattern.bind(2, 2, 16), call)


@pytest.mark.parametrize(("heads", "groups", "picks"), [(16, 1, 3), (3, 3, 0), (6, 2, 100)])
@pytest.mark.parametrize("name", ["infllm_v2", "quest"])
def test_members_of_heads_that_are_no_numbers(name: str, heads: int, groups: int, picks: int) -> None:
    """Groups of every size, a ragged end, no picks and more than there are, without and with NaN and infinities."""
    chosen = {"quest": {"page": 8, "budget": 8 * picks}}.get(
        name, {"compress": 8, "stride": 4, "block": 16, "picks": picks, "window": 16, "dense": 0}
    )
    pattern = spdsl.compile(name, **chosen).bind(heads, groups, 16)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(heads)
    q = torch.randint(-2, 3, (1, heads, 75, 16), generator=generator).half()
    k = torch.randint(-2, 3, (1, groups, 75, 16), generator=generator).half()
    for spoiled in (False, True):
        if spoiled:
            k[0, 0, 20, 3], k[0, 0, 41, 1], k[0, -1, 50, 2] = float("inf"), float("nan"), float("-inf")
            q[0, -1, 60, 4], q[0, 0, 70, 5] = float("inf"), float("nan")
        sets = []
        for kernels in (True, False):
            call = graphs.Inputs(q=q, k=k, v=k, tables={}, q_start=0, kernels=kernels)
            assert not kernels or all(word.startswith("by kernels") for word in graphs.makers(pattern, call).values())
            (found,) = graphs.selections(pattern, call).values()
            sets.append(dense(found, 10))
        assert torch.equal(*sets)
