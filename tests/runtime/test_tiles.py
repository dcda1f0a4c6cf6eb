"""Bounds and lists of tiles against all pairs."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from spdsl.analysis.plans import Plan
from spdsl.analysis.tiles import Interval, ListWalk, Slot, SlotWalk
from spdsl.runtime.calls import Call, TileList
from spdsl.runtime.evaluate import evaluate, tables_for
from spdsl.runtime.intervals import tile_bounds
from spdsl.runtime.lists import lists_for, tile_lists, walk_lists
from spdsl.runtime.pairs import pairs_of
from spdsl.runtime.tile_grid import By, TileGrid
from spdsl.semantics.nodes import Expr, Extent, Index, Table
from tests.runtime.build import CAUSAL, B, H, K, Q, every, load, op, plan, table, window
from tests.runtime.programs import condition

DECLARED: tuple[Table, ...] = (
    table("doc", "int", "token"),
    table("flag", "bool", "token"),
    table("limit", "int", "h"),
    table("pairs", "bool", "9", "9"),
)


def _call(chosen: Plan, nq: int, n: int, q_start: int, batch: int = 1, heads: int = 4, **tables: Tensor) -> Call:
    q, k = torch.zeros(batch, heads, nq, 8), torch.zeros(batch, heads // 2, n, 8)
    return Call(plan=chosen, q=q, k=k, v=k, q_start=q_start, tables=tables)


def _random(seed: int) -> tuple[Call, int, int]:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    n = rng.randrange(20, 200)
    nq = rng.choice((n, rng.randrange(1, n + 1)))
    batch = rng.choice((1, 2))
    doc = torch.randint(0, 5, (batch, n)).int()
    tables = {
        "doc": doc.sort()[0] if rng.random() < 0.7 else doc,
        "flag": torch.rand(1, n) < 0.05,
        "limit": torch.randint(-3, 9, (1, 4)).int(),
        "pairs": torch.rand(1, 9, 9) < 0.4,
    }
    chosen = plan(condition(rng, 4), tables=DECLARED, shape="offset", heads=4, groups=2)
    return _call(chosen, nq, n, n - nq, batch, **tables), rng.choice((16, 32)), rng.choice((16, 24, 48))


def _mask(call: Call) -> Tensor:
    """All pairs, ``[batch, heads, nq, n]``."""
    pairs = pairs_of(call)
    env = pairs.extents() | pairs.outer(2)
    env["q"] = (torch.arange(pairs.queries) + call.q_start).view(-1, 1)
    env["k"] = torch.arange(pairs.keys).view(1, -1)
    kept = evaluate(call.plan.keep, env, tables_for(call.plan.tables, call.tables))
    kept = kept.expand(call.q.shape[0], call.q.shape[1], pairs.queries, pairs.keys)
    return kept & (env["q"] >= 0)


def _by_tile(mask: Tensor, block_q: int, block_k: int) -> tuple[Tensor, Tensor]:
    """Whether any, and whether all existing pairs of each tile are kept."""
    nq, n = mask.shape[-2:]
    short = (0, -n % block_k, 0, -nq % block_q)
    some = torch.nn.functional.pad(mask, short, value=False)
    everything = torch.nn.functional.pad(mask, short, value=True)

    def tiles(x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, block_k)).unflatten(-3, (-1, block_q))

    return tiles(some).any(-1).any(-2), tiles(everything).all(-1).all(-2)


@pytest.mark.parametrize("seed", range(60))
def test_bounds_are_sound(seed: int) -> None:
    call, block_q, block_k = _random(seed)
    touched, full = _by_tile(_mask(call), block_q, block_k)
    tables = tables_for(call.plan.tables, call.tables)
    bounds = tile_bounds(call.plan.keep, pairs_of(call), tables, block_q=block_q, block_k=block_k)
    found = bounds.of(slice(0, bounds.rows), slice(0, bounds.columns))
    assert not (touched & ~found.may).any()
    assert not (found.must & ~full).any()


def _rows(lists: TileList, batch: int, head: int) -> list[tuple[list[int], list[int]]]:
    b, h = min(batch, lists.begin.shape[0] - 1), min(head, lists.begin.shape[1] - 1)
    ends = (lists.begin[b, h].tolist(), lists.middle[b, h].tolist(), lists.end[b, h].tolist())
    return [(lists.tiles[i:j].tolist(), lists.tiles[j:k].tolist()) for i, j, k in zip(*ends, strict=True)]


def _expected(call: Call, block_q: int, block_k: int, by: By) -> tuple[Tensor, Tensor]:
    touched, full = _by_tile(_mask(call), block_q, block_k)
    whole = torch.arange(1, touched.shape[-1] + 1) * block_k <= call.k.shape[2]
    first = call.q_start + torch.arange(touched.shape[-2]) * block_q
    full = full & whole & (first >= 0)[:, None]
    return (touched, full) if by == "query" else (touched.transpose(-1, -2), full.transpose(-1, -2))


@pytest.mark.parametrize("by", ["query", "key"])
@pytest.mark.parametrize("seed", range(30))
def test_lists_hold_all_touched_tiles_once(seed: int, by: By) -> None:
    call, block_q, block_k = _random(seed)
    exact = tile_lists(call, by=by, block_q=block_q, block_k=block_k, exact=True)
    rough = tile_lists(call, by=by, block_q=block_q, block_k=block_k, exact=False)
    touched, full = _expected(call, block_q, block_k, by)
    for batch in range(call.q.shape[0]):
        for head in range(4):
            rows = zip(_rows(exact, batch, head), _rows(rough, batch, head), strict=True)
            for row, ((whole, masked), (rough_whole, rough_masked)) in enumerate(rows):
                assert whole == full[batch, head, row].nonzero().flatten().tolist()
                assert masked == (touched & ~full)[batch, head, row].nonzero().flatten().tolist()
                assert set(rough_whole) <= set(whole)
                assert set(whole + masked) <= set(rough_whole + rough_masked)
                assert rough_whole == sorted(rough_whole)
                assert rough_masked == sorted(rough_masked)
    assert exact.begin.dtype == exact.tiles.dtype == torch.int32


EXACT: dict[str, Expr] = {
    "causal": CAUSAL,
    "window": window(50),
    "dilated": every(window(90), op("eq", op("mod", op("sub", Q, K), 4), 0)),
    "powers": every(CAUSAL, op("is_pow2", op("sub", Q, K))),
    "blocks": op("eq", op("floordiv", Q, 24), op("floordiv", K, 24)),
    "documents": every(CAUSAL, op("eq", load("doc", Q), load("doc", K))),
}


@pytest.mark.parametrize("name", EXACT)
def test_common_patterns_need_no_look(name: str) -> None:
    doc = (torch.arange(192) // 40).int()[None]
    given = {"doc": doc} if name == "documents" else {}
    call = _call(plan(EXACT[name], tables=DECLARED[:1] if given else (), heads=4, groups=2), 192, 192, 0, **given)
    lists = tile_lists(call, by="query", block_q=32, block_k=16, exact=False)
    touched, full = _expected(call, 32, 16, "query")
    assert lists.begin.shape[1] == 1
    found = sum(len(masked) + len(whole) for whole, masked in _rows(lists, 0, 0))
    assert found == int(touched[0, 0].sum())
    assert sum(len(whole) for whole, _ in _rows(lists, 0, 0)) == int(full[0, 0].sum())


def test_lists_are_kept_for_the_same_table() -> None:
    doc = torch.zeros(1, 64, dtype=torch.int32)
    chosen = plan(EXACT["documents"], tables=DECLARED[:1], heads=4, groups=2)
    call = _call(chosen, 64, 64, 0, doc=doc)
    first = tile_lists(call, by="query", block_q=32, block_k=32)
    assert tile_lists(replace(call, tables={"doc": doc}), by="query", block_q=32, block_k=32) is first
    doc[0, 32:] = 1
    second = tile_lists(call, by="query", block_q=32, block_k=32)
    assert second is not first
    assert len(second.tiles) == 2


def test_batches_with_places() -> None:
    call = _call(plan(window(30), shape="batched", heads=4, groups=2), 40, 96, 0, batch=3)
    places = torch.tensor([[56, 0, 96], [-8, 5, 32], [0, 0, 0]], dtype=torch.int32)
    lists = tile_lists(replace(call, places=places), by="query", block_q=16, block_k=32)
    assert lists.begin.shape == (3, 1, 3)
    for batch, (q_start, _, keys) in enumerate(places.tolist()):
        alone = _call(call.plan, 40, max(keys, 1), q_start)
        touched, full = _expected(alone, 16, 32, "query")
        for row, (whole, masked) in enumerate(_rows(lists, batch, 0)):
            expected = touched[0, 0, row] if keys else torch.zeros(1)
            assert sorted(whole + masked) == expected.nonzero().flatten().tolist()
            assert whole == (full[0, 0, row].nonzero().flatten().tolist() if keys else [])


def test_walks_in_closed_form() -> None:
    i = Index(name="i")
    diagonal = op("add", i, 1)
    first = op("max", op("sub", i, 2), 1)
    slots = (
        Slot(touched=Interval(lo=first, hi=diagonal), full=Interval(lo=op("sub", i, 1), hi=i)),
        Slot(
            touched=Interval(lo=op("floordiv", Extent(name="nq"), 1000), hi=op("min", diagonal, 1)),
            filter=op("eq", op("mod", Index(name="j"), 2), 0),
        ),
        Slot(
            touched=Interval(lo=op("add", i, 2), hi=op("floordiv", op("add", Extent(name="n"), 15), 16)),
            step=3,
            run=1,
            phase=H,
        ),
    )
    walk = SlotWalk(slots=slots)
    call = _call(plan(CAUSAL, heads=4, groups=2), 120, 120, 0)
    lists = walk_lists(call, walk, TileGrid(by="query", block_q=16, block_k=16))
    for head in range(4):
        for row, (whole, masked) in enumerate(_rows(lists, 0, head)):
            middle = set(range(max(row - 2, 1), row + 1))
            expected = middle | ({0} if row >= 0 else set()) | {j for j in range(row + 2, 8) if (j - head) % 3 == 0}
            assert set(whole) == middle & {row - 1} - ({7} if row == 8 else set())
            assert set(whole) | set(masked) == expected


def test_lists_for_kernels_that_walk_lists() -> None:
    call = _call(plan(CAUSAL, heads=4, groups=2), 64, 64, 0)
    found = lists_for(call, ("forward", "dkdv"))
    assert found.lists.keys() == {"forward", "dkdv"}
    closed = replace(call.plan, forward=replace(call.plan.forward, walk=SlotWalk(slots=())))
    assert isinstance(call.plan.dq.walk, ListWalk)
    assert not lists_for(replace(call, plan=closed), ("forward",)).lists


def test_tables_for_each_batch() -> None:
    declared = (table("prefix", "int", "b"),)
    call = _call(plan(op("lt", K, load("prefix", B)), tables=declared, heads=4, groups=2), 64, 64, 0, batch=2)
    lists = tile_lists(replace(call, tables={"prefix": torch.tensor([16, 40])}), by="query", block_q=16, block_k=16)
    assert [row for row, _ in zip(_rows(lists, 0, 0), range(1), strict=False)] == [([0], [])]
    assert _rows(lists, 1, 0)[0] == ([0, 1], [2])
