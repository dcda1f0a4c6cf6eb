"""Selections by generated kernels on a GPU: the lists that torch makes, and of near ties none but near ties."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

import spdsl
from spdsl.codegen.chains.columns import belongs_to_columns
from spdsl.runtime import choosing, graphs, inputs, repeated
from spdsl.runtime.memo import Memo
from spdsl.runtime.ranking import FAR, as_lists
from spdsl.runtime.recent import Recent
from spdsl.semantics.graph import Select
from spdsl.semantics.nodes import BoundPattern
from tests.library.cases import Case, Sizes
from tests.library.selections import SELECTIONS
from tests.library.test_selections import made

pytestmark = pytest.mark.gpu

SHAPES = (
    Sizes(batch=2, heads=6, groups=2, nq=301, n=301),
    Sizes(batch=1, heads=16, groups=1, nq=5, n=700),
    Sizes(batch=1, heads=3, groups=3, nq=1, n=65),
)


def both(pattern: BoundPattern, q: Tensor, k: Tensor, v: Tensor, tables: dict[str, Tensor]) -> list[tuple[str, Any]]:
    """The lists of each selection, by kernels, of all of which there are, and by torch."""
    start = k.shape[2] - q.shape[2]
    calls = [graphs.Inputs(q=q, k=k, v=v, tables=tables, q_start=start, kernels=way) for way in (True, False)]
    assert all(words.startswith("by kernels") for words in graphs.makers(pattern, calls[0]).values())
    found, wanted = (graphs.selections(pattern, call) for call in calls)
    pairs = []
    for name, lists in found.items():
        other, width = wanted[name], max(lists.shape[-1], wanted[name].shape[-1])
        wide = [pad(each, (0, width - each.shape[-1]), value=FAR) for each in (lists, other)]
        pairs.append((name, torch.broadcast_tensors(*wide)))
    return pairs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.heads}of{s.groups}x{s.nq}x{s.n}")
@pytest.mark.parametrize("case", SELECTIONS, ids=lambda case: case.name)
def test_lists_are_those_of_torch(case: Case, shape: Sizes, dtype: torch.dtype) -> None:
    if case.n is not None:
        shape = Sizes(batch=shape.batch, heads=shape.heads, groups=shape.groups, nq=case.n, n=case.n)
    _, tensors, inputs = made(case, shape)
    q, k, v = (x.to("cuda", dtype) for x in tensors)
    pattern = spdsl.compile(case.name, **case.parameters).bind(shape.heads, shape.groups, 8)  # type: ignore[arg-type]
    for name, (found, wanted) in both(pattern, q, k, v, {each: table.cuda() for each, table in inputs.items()}):
        differ = (found != wanted).any(-1)
        # Sums are rounded in another order, which may turn a near tie, if any; see below.
        assert int(differ.sum()) <= differ.numel() // 500, name


@pytest.mark.parametrize(("nq", "n"), [(700, 5000), (40, 33_000), (3, 70_000)])
def test_rows_of_all_widths(nq: int, n: int) -> None:
    torch.manual_seed(n)
    # Few numbers, so that ties abound.
    delta = torch.randint(0, 9, (2, n), device="cuda").float()
    q, k = torch.randn(1, 2, nq, 16, device="cuda"), torch.randn(1, 2, n, 16, device="cuda")
    pattern = spdsl.compile("dma", width=600).bind(2, 2, 16)
    for _, (found, wanted) in both(pattern, q, k, k, {"delta": delta}):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("moba", {"block": 64, "picks": 9}), ("infllm_v2", {"picks": 9, "window": 128, "dense": 0})],
)
def test_only_near_ties_may_differ(name: str, parameters: dict[str, object]) -> None:
    """Where lists differ, the values of what one has and the other has not are within 1e-5 of each other."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 8, 4096, 128, device="cuda", dtype=torch.bfloat16)
    k, v = k[:, :2], v[:, :2]
    pattern = spdsl.compile(name, **parameters).bind(8, 2, 128)  # type: ignore[arg-type]
    ((chosen, (found, wanted)),) = both(pattern, q, k, v, {})
    rows = (found != wanted).any(-1)
    assert rows.float().mean() < 1e-3
    arrays = inputs.arrays_of(pattern, graphs.Inputs(q=q, k=k, v=v, tables={}, q_start=0), grad=False)
    stage = arrays.stages[chosen]
    assert isinstance(stage, Select)

    def values(b: int, h: int, row: int) -> Tensor:
        return arrays.full(stage.value, stage.axes, torch.tensor([row], device="cuda"), Memo())[b, h, 0]

    for b, h, row in rows.nonzero().tolist():
        assert near(values(b, h, row), *(set(lists[b, h, row].tolist()) for lists in (found, wanted)))
    # There may be none; but what is no near tie would be told: the best pick of a row in exchange for its worst block.
    value, picks = values(0, 0, 4095), set(wanted[0, 0, 4095].tolist())
    order = [each for each in value.argsort().tolist() if value[each].isfinite()]
    worst, best = next(each for each in order if each not in picks), next(each for each in order[::-1] if each in picks)
    assert not near(value, picks, picks - {best} | {worst})


def near(value: Tensor, one: set[int], two: set[int]) -> bool:
    """Whether what only one of two selections has is worth the same, but for roundings."""
    worth = value[torch.tensor(sorted(one ^ two), device=value.device)]
    return float(worth.max() - worth.min()) <= 1e-5 * float(worth.abs().max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("batch", "nq", "n"), [(1, 5000, 5000), (2, 300, 2111), (1, 40, 700)])
def test_values_of_keys_and_of_distances(batch: int, nq: int, n: int, dtype: torch.dtype) -> None:
    torch.manual_seed(n)
    q = torch.randn(batch, 6, nq, 64, device="cuda").to(dtype)
    k = torch.randn(batch, 2, n, 64, device="cuda").to(dtype)
    pattern = spdsl.compile("vertical_slash").bind(6, 2, 64)
    assert pattern.graph is not None
    names = [stage.name for stage in pattern.graph.stages if belongs_to_columns(stage)]
    assert len(names) == 4
    found, wanted = (
        [arrays.whole(name) for name in names]
        for arrays in (
            inputs.arrays_of(pattern, graphs.Inputs(q=q, k=k, v=k, tables={}, q_start=n - nq, kernels=way), grad=False)
            for way in (True, False)
        )
    )
    for mine, theirs in zip(found, wanted, strict=True):
        if mine.dtype == torch.bool:
            assert torch.equal(*torch.broadcast_tensors(mine, theirs))
        else:
            torch.testing.assert_close(mine, theirs, rtol=3e-5, atol=1e-6)
            assert float(theirs.max()) > 0.01


WINDOW = """pattern some() {
  keep score(Q, K) |> only(causal and q - k < 500) |> top(20)
}
"""


def test_keys_that_begin_behind_the_first_tile() -> None:
    """Tiles before the window hold nothing, although nobody computes them."""
    torch.manual_seed(1)
    q, k = torch.randint(-2, 3, (2, 1, 2, 4000, 64), device="cuda").half()
    pattern = spdsl.compile(spdsl.loads(WINDOW)).bind(2, 2, 64)
    torch.full((1 << 26,), 2**31 - 1, dtype=torch.int32, device="cuda")  # what memory holds that is taken next
    ((_, (found, wanted)),) = both(pattern, q, k, k, {})
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("moba", {"block": 8, "picks": 2}),
        ("infllm_v2", {"compress": 8, "stride": 4, "block": 8, "picks": 2, "window": 8, "dense": 0}),
        ("vertical_slash", {"columns": 5, "diagonals": 4, "probe": 8, "block": 8}),
    ],
)
def test_more_heads_than_a_second_dimension_of_programs_has(name: str, parameters: dict[str, object]) -> None:
    """Which is 65,535; sequences and heads together are 80,000."""
    torch.manual_seed(0)
    q = torch.randint(-2, 3, (40_000, 2, 24, 16), device="cuda").half()
    k = torch.randint(-2, 3, (40_000, 1, 24, 16), device="cuda").half()
    pattern = spdsl.compile(name, **parameters).bind(2, 1, 16)  # type: ignore[arg-type]
    for each, (found, wanted) in both(pattern, q, k, k, {}):
        differ = (found != wanted).any(-1)
        assert int(differ.sum()) <= differ.numel() // 500, each
        assert bool((found[-1] < FAR).any())


REPEATED = [case for case in SELECTIONS if case.name in ("moba", "nsa", "infllm_v2", "quest", "dsa", "dma")]
"""Those whose number of picks is known beforehand, so that the host need not wait for it."""


def call_of(case: Case, seed: int) -> tuple[BoundPattern, graphs.Inputs]:
    shape = Sizes(batch=2, heads=6, groups=2, nq=301, n=301)
    _, tensors, inputs = made(case, shape, seed=seed)
    q, k, v = (x.to("cuda", torch.bfloat16) for x in tensors)
    tables = {name: table.cuda() for name, table in inputs.items()}
    pattern = spdsl.compile(case.name, **case.parameters).bind(6, 2, 8)  # type: ignore[arg-type]
    return pattern, graphs.Inputs(q=q, k=k, v=v, tables=tables, q_start=0)


@pytest.mark.parametrize("case", REPEATED, ids=lambda case: case.name)
def test_steps_are_repeated(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern, call = call_of(case, 0)
    monkeypatch.setattr(repeated, "_steps", Recent(size=repeated._KINDS))
    monkeypatch.setattr(repeated, "_sights", Recent(size=repeated._KINDS))
    for _ in range(2):
        (first,) = graphs.selections(pattern, call).values()
    # The first call may compile, the second is watched.
    ((known, _),) = repeated._steps.entries.values()
    assert known.steps.tape.flat is not known.steps.tape.plain
    _, other = call_of(case, 1)
    with torch.cuda.stream(torch.cuda.Stream()):
        (second,) = graphs.selections(pattern, other).values()
    torch.cuda.synchronize()
    monkeypatch.setattr(repeated, "_steps", Recent(size=repeated._KINDS))
    (anew,) = graphs.selections(pattern, other).values()
    assert torch.equal(second, anew)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("case", REPEATED[:2], ids=lambda case: case.name)
def test_steps_in_a_captured_graph(case: Case, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first call there are no steps yet; it has compiled what the capture launches."""
    monkeypatch.setattr(repeated, "_steps", Recent(size=repeated._KINDS))
    monkeypatch.setattr(repeated, "_sights", Recent(size=repeated._KINDS))
    pattern, call = call_of(case, 0)
    for _ in range(calls):
        graphs.selections(pattern, call)
    _, other = call_of(case, 1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        (lists,) = graphs.selections(pattern, call).values()
    for mine, theirs in zip((call.q, call.k, call.v), (other.q, other.k, other.v), strict=True):
        mine.copy_(theirs)
    graph.replay()
    torch.cuda.synchronize()
    (wanted,) = graphs.selections(pattern, replace(other, kernels=False)).values()
    assert torch.equal(lists, wanted)


UNION = """pattern both() {
  axis blk = token by 16
  let one = score(mean(Q, per = q.blk), mean(K, per = k.blk)) |> top(2)
  let other = score(max(Q, per = q.blk), max(K, per = k.blk)) |> top(2)
  keep causal and (one or other)
}
"""


@pytest.mark.parametrize("calls", [1, 2])
def test_a_union_in_a_captured_graph(calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a list counts is known on the host, and is not copied from there."""
    monkeypatch.setattr(repeated, "_steps", Recent(size=repeated._KINDS))
    monkeypatch.setattr(repeated, "_sights", Recent(size=repeated._KINDS))
    pattern = spdsl.compile(spdsl.loads(UNION)).bind(2, 2, 16)
    (q, k), others = (torch.randint(-2, 3, (2, 1, 2, 75, 16), device="cuda").half() for _ in range(2))
    call = graphs.Inputs(q=q, k=k, v=k, tables={}, q_start=0)
    assert all("note_entries" in words for words in graphs.makers(pattern, call).values())
    for _ in range(calls):
        graphs.selections(pattern, call)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        (lists,) = graphs.selections(pattern, call).values()
    for mine, theirs in zip((q, k), others, strict=True):
        mine.copy_(theirs)
    graph.replay()
    torch.cuda.synchronize()
    (wanted,) = graphs.selections(pattern, replace(call, kernels=False)).values()
    width = max(lists.shape[-1], wanted.shape[-1])
    found, wanted = (pad(each, (0, width - each.shape[-1]), value=FAR) for each in (lists, wanted))
    assert torch.equal(found, wanted)


def test_scores_that_are_no_numbers() -> None:
    """NaN is absent, and infinite scores share the mass of their softmax; the host does not look for them."""
    torch.manual_seed(2)
    pattern = spdsl.compile("infllm_v2", picks=9, window=128, dense=0).bind(8, 2, 64)
    q, k, v = torch.randn(3, 1, 8, 2000, 64, device="cuda", dtype=torch.bfloat16)
    k, v = k[:, :2].clone(), v[:, :2]
    k[0, 0, 500, 3], k[0, 0, 900, 2], k[0, 1, 700, 1] = float("nan"), float("inf"), float("-inf")
    q[0, 1, 1500, 7] = float("inf")
    ((_, (found, wanted)),) = both(pattern, q, k, v, {})
    differ = (found != wanted).any(-1)
    assert int(differ.sum()) <= differ.numel() // 500


@pytest.mark.parametrize("picks", [0, 1, 7, 5000])
@pytest.mark.parametrize("columns", [1, 60, 130, 1000, 2049, 40_000])
def test_keys_of_every_kind(columns: int, picks: int) -> None:
    """Few different keys, many, absent and forced ones: the first `picks` of a stable sort."""
    generator = torch.Generator(device="cuda").manual_seed(columns)
    kinds = [
        torch.randint(-2, 3, (8, columns), generator=generator, device="cuda"),
        torch.randint(-(2**31), 2**31, (8, columns), generator=generator, device="cuda"),
        torch.randint(0, 2, (8, columns), generator=generator, device="cuda") * (2**32 - 1) - 2**31,
        torch.full((8, columns), -(2**31), device="cuda"),
    ]
    keys = torch.cat(kinds).int()
    keys[::3, :: max(1, columns // 5)] = 2**31 - 1
    pitch = -(-columns // 16) * 16
    room = torch.full((1, len(keys), pitch), 2**31 - 1, dtype=torch.int32, device="cuda")
    room[0, :, :columns] = keys
    ends = torch.full((1, len(keys)), columns, dtype=torch.int32, device="cuda")
    # Beyond the end of a row there is nothing, whatever stands there.
    ends[0, 1::2] = columns // 3
    keys[1::2, columns // 3 :] = -(2**31)
    width = max(1, min(picks, columns))
    lists = choosing.Room(lists=torch.full((1, len(keys), width), -7, dtype=torch.int32, device="cuda"))
    amounts = torch.tensor([picks], dtype=torch.int32, device="cuda")
    given = choosing.Keys(keys=room, chunks=1, rows=len(keys), pitch=pitch, columns=columns, ends=ends, block=1)
    found = choosing.choose(given, "count", amounts, lists)
    order = keys.long().argsort(dim=1, descending=True, stable=True)[:, :picks]
    chosen = torch.zeros_like(keys, dtype=torch.bool).scatter_(1, order, True) & (keys != -(2**31))
    assert torch.equal(found[0], as_lists(chosen, width))
