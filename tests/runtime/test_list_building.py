"""How lists are built: once for each content, both ways from one decision, in chunks of bounded size."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import spdsl
from spdsl.runtime import lists as module
from spdsl.runtime.calls import Call, TileList
from spdsl.runtime.cells import Cells, transposed
from spdsl.runtime.lists import lists_for, tile_lists
from spdsl.runtime.looks import Looked
from spdsl.runtime.recent import ByContent
from spdsl.semantics.nodes import Index
from tests.runtime.build import CAUSAL, H, K, Q, every, load, op, plan, table

DOCUMENTS = every(CAUSAL, op("eq", load("doc", Q), load("doc", K)))
DECLARED = (table("doc", "int", "token"), table("lean", "float", "token"))


def call_of(doc: torch.Tensor, *, heads: int = 2, batch: int = 1, lean: torch.Tensor | None = None) -> Call:
    n = doc.shape[-1]
    q, k = torch.zeros(batch, heads, n, 8), torch.zeros(batch, heads, n, 8)
    chosen = PLANS[heads]
    return Call(plan=chosen, q=q, k=k, v=k, tables={"doc": doc, "lean": torch.zeros(1, n) if lean is None else lean})


PLANS = {
    heads: plan(
        DOCUMENTS, tables=DECLARED, heads=heads, groups=heads, blocks=(16, 16), bias=load("lean", K, dtype="float")
    )
    for heads in (1, 2)
}


def documents(n: int = 200, seed: int = 0) -> torch.Tensor:
    cuts = torch.rand(1, n, generator=torch.Generator().manual_seed(seed)) < 0.03
    return cuts.cumsum(1).int()


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the blocks of tiles that are decided from now on."""
    monkeypatch.setattr(module, "_recent", ByContent(size=64))
    found: list[tuple[int, ...]] = []
    of = Looked.of

    def recorded(self: Looked, rows: slice, columns: slice) -> Any:
        truth = of(self, rows, columns)
        found.append(tuple(torch.broadcast_shapes(truth.may.shape, truth.must.shape)))
        return truth

    monkeypatch.setattr(Looked, "of", recorded)
    return found


def test_both_directions_come_from_one_decision(decided: list[tuple[int, ...]]) -> None:
    call = lists_for(call_of(documents()), ("forward", "dq"))
    before = len(decided)
    lists_for(call, ("dkdv",))
    assert before
    assert len(decided) == before


def test_tables_of_equal_content_share_their_lists(decided: list[tuple[int, ...]]) -> None:
    doc = documents()
    first = lists_for(call_of(doc), ("forward",)).lists["forward"]
    assert lists_for(call_of(doc.clone()), ("forward",)).lists["forward"] is first
    assert lists_for(call_of(documents(seed=1)), ("forward",)).lists["forward"] is not first
    before = len(decided)
    lists_for(call_of(documents(), lean=torch.ones(1, 200)), ("forward", "dkdv"))  # not a table of the set
    assert len(decided) == before


def test_a_table_that_changed_is_not_taken_for_what_it_was(decided: list[tuple[int, ...]]) -> None:
    doc, same = documents(), documents()
    first = lists_for(call_of(doc), ("forward",)).lists["forward"]
    doc.zero_()
    other = lists_for(call_of(doc), ("forward",)).lists["forward"]
    assert len(other.tiles) > len(first.tiles)
    again = lists_for(call_of(same), ("forward",)).lists["forward"]
    assert torch.equal(again.tiles, first.tiles)


def test_inference_tensors_share_lists_as_long_as_they_hold_the_same(decided: list[tuple[int, ...]]) -> None:
    with torch.inference_mode():
        doc = documents()
        first = lists_for(call_of(doc), ("forward",)).lists["forward"]
        assert lists_for(call_of(doc), ("forward",)).lists["forward"] is first
        doc.zero_()  # which no counter of versions tells
        assert lists_for(call_of(doc), ("forward",)).lists["forward"] is not first
        assert lists_for(call_of(documents()), ("forward",)).lists["forward"] is first


@pytest.mark.parametrize("heads", [1, 2])
def test_chunks_are_bounded(decided: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, heads: int) -> None:
    monkeypatch.setattr(module, "_CHUNK", 400)
    keep = op("lt", op("add", op("mul", load("doc", Q), load("doc", K)), op("mul", H, 3)), 9)
    chosen = plan(keep, tables=DECLARED, heads=heads, groups=heads, blocks=(16, 16))
    doc = torch.cat([documents(seed=seed) for seed in range(3)])
    call = replace(call_of(doc, heads=heads, batch=3), plan=chosen)
    found = lists_for(call, ("forward", "dkdv")).lists
    assert found["forward"].begin.shape == (3, heads, 13)
    assert found["dkdv"].begin.shape == (3, heads, 13)
    for shape in decided:
        assert shape[0] * shape[1] * shape[2] * shape[3] <= 400
        assert len(shape) == 4


def test_what_heads_and_batches_share_is_decided_in_larger_chunks(
    decided: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK", 13 * 13)
    tile_lists(call_of(documents(), batch=5), by="query", block_q=16, block_k=16)
    assert [shape[-2:] for shape in decided] == [(1, 1), (13, 13)]


def test_transpose_and_back() -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, 7)
    touched = torch.rand(*shape, 11, generator=generator) < 0.4
    masked = torch.rand(*shape, 11, generator=generator) < 0.5
    where = touched.nonzero()
    row = (where[:, 0] * 3 + where[:, 1]) * 7 + where[:, 2]
    order = torch.randperm(len(row), generator=generator)
    lists = Cells(shape=shape, row=row[order], tile=where[order, 3], masked=masked[touched][order]).lists()
    back = transposed(transposed(lists, 11), 7)
    for name in ("begin", "middle", "end", "tiles"):
        assert torch.equal(getattr(lists, name), getattr(back, name))
    turned = transposed(lists, 11)
    assert turned.begin.shape == (2, 3, 11)
    for b in range(2):
        for h in range(3):
            for j in range(11):
                full = turned.tiles[turned.begin[b, h, j] : turned.middle[b, h, j]].tolist()
                rest = turned.tiles[turned.middle[b, h, j] : turned.end[b, h, j]].tolist()
                assert full == (touched & ~masked)[b, h, :, j].nonzero().flatten().tolist()
                assert rest == (touched & masked)[b, h, :, j].nonzero().flatten().tolist()


def test_nothing_to_transpose() -> None:
    nothing = torch.zeros(1, 1, 0, dtype=torch.int32)
    empty = TileList(begin=nothing, middle=nothing, end=nothing, tiles=torch.zeros(0, dtype=torch.int32))
    assert transposed(empty, 3).end.tolist() == [[[0, 0, 0]]]


@pytest.mark.parametrize("declared", ["input t: int[token]", "input t: int[token] sorted"])
def test_tables_that_others_change_in_place(declared: str) -> None:
    """Torch counts no changes of memory that numpy writes to, nor those through `.data`."""
    text = "axis blk = token by 8  keep causal and (t[q] == t[k] and max(t[k], per = k.blk) > 1)"
    attn = spdsl.compile(spdsl.loads(f"pattern changed() {{ {declared}  {text} }}"), backend="cpu")
    numbers = np.zeros(70, dtype=np.int64)
    table = torch.from_numpy(numbers)
    q, k, v = (torch.randn(1, 1, 70, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    for width in (40, 7, 1):
        numbers[:] = np.arange(70) // width
        for given in (table, torch.from_numpy(numbers)):
            assert torch.allclose(attn(q, k, v, t=given), attn.reference(q, k, v, t=given).float(), atol=1e-5)
    table.data.copy_(torch.arange(70) // 30)
    assert torch.allclose(attn(q, k, v, t=table), attn.reference(q, k, v, t=table).float(), atol=1e-5)


def test_threads_share_what_is_remembered() -> None:
    """More tables than are remembered, compared and made at the same time."""
    memory: ByContent[int] = ByContent(size=4)
    wrong: list[int] = []

    def ask(seed: int) -> None:
        for turn in range(200):
            number = (seed + turn) % 9
            found = memory.get("key", (torch.full((1000,), number),), None, lambda number=number: number)  # type: ignore[misc]
            wrong.extend([number] if found != number else [])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ask, range(6)))
    assert not wrong
    assert len(memory.entries) <= 4


def test_heads_of_a_group_share_their_tiles() -> None:
    """A set by group makes each tile once, and the lists of all heads say what those of a set by head say."""
    q, k = torch.randn(1, 6, 300, 16), torch.randn(1, 2, 300, 16)
    worth = torch.randn(2, 300)
    found = []
    for axis, values in (("g", worth), ("h", worth.repeat_interleave(3, 0))):
        keep = every(CAUSAL, op("gt", load("worth", Index(name=axis), K, dtype="float"), 1.5))
        made = plan(keep, tables=(table("worth", "float", axis, "token"),), heads=6, groups=2)
        call = Call(plan=made, q=q, k=k, v=k, tables={"worth": values[None]})
        found += [
            tile_lists(call, by="query", block_q=32, block_k=32),
            tile_lists(call, by="key", block_q=32, block_k=32),
        ]
    for shared, apart in zip(found[:2], found[2:], strict=True):
        assert shared.begin.shape == apart.begin.shape
        assert 3 * len(shared.tiles) == len(apart.tiles)
        for head in range(6):
            for row in range(10):
                ours, theirs = (x.tiles[x.begin[0, head, row] : x.end[0, head, row]] for x in (shared, apart))
                assert torch.equal(ours, theirs)
                assert (shared.middle - shared.begin)[0, head, row] == (apart.middle - apart.begin)[0, head, row]


@pytest.mark.parametrize("chunk", [1 << 20, 40])
@pytest.mark.parametrize("axis", ["h", "g"])
@pytest.mark.parametrize("batch", [1, 2])
def test_what_bounds_cannot_tell_apart_is_looked_at_for_each_head_and_sequence(
    monkeypatch: pytest.MonkeyPatch, axis: str, batch: int, chunk: int
) -> None:
    """A table of pairs has the same bounds everywhere; the first head of the first sequence keeps nearly nothing."""
    monkeypatch.setattr(module, "_CHUNK", chunk)
    monkeypatch.setattr(module, "_recent", ByContent(size=64))
    n, block, heads, groups = 150, 16, 6, 3
    generator = torch.Generator().manual_seed(batch)
    pairs = torch.rand(batch, heads if axis == "h" else groups, n, n, generator=generator) < 0.01
    pairs[0, 0] = False
    pairs[0, 0, 100, 3] = True
    keep = every(CAUSAL, load("pairs", Index(name=axis), Q, K, dtype="bool"))
    made = plan(keep, tables=(table("pairs", "bool", axis, "q", "token"),), heads=heads, groups=groups)
    q, k = torch.zeros(batch, heads, n, 8), torch.zeros(batch, groups, n, 8)
    call = Call(plan=made, q=q, k=k, v=k, tables={"pairs": pairs})
    kept = (pairs.repeat_interleave(heads // pairs.shape[1], 1) & torch.ones(n, n, dtype=torch.bool).tril()).float()
    tiles = -(-n // block)
    room = torch.zeros(batch, heads, tiles * block, tiles * block)
    room[..., :n, :n] = kept
    touched = room.unflatten(-1, (tiles, block)).unflatten(-3, (tiles, block)).amax((-1, -3)) > 0
    for by, wanted in (("query", touched), ("key", touched.mT)):
        lists = tile_lists(call, by=by, block_q=block, block_k=block, exact=True)  # type: ignore[arg-type]
        for place in np.ndindex(batch, heads, tiles):
            b, h, row = place
            at = (min(b, len(lists.begin) - 1), h, row)
            found = lists.tiles[lists.begin[at] : lists.end[at]].sort().values
            assert torch.equal(found.long(), wanted[b, h, row].nonzero().flatten()), place


@pytest.mark.parametrize("apart", [False, True], ids=["one for all", "one a sequence"])
@pytest.mark.parametrize("axes", ["g, q, token", "h, q, token", "q, token"])
@pytest.mark.parametrize("n", [65, 130, 300])
def test_tables_of_pairs(axes: str, n: int, apart: bool) -> None:
    """Chosen keys of other layers: rows and tiles that only some heads or sequences keep."""
    text = f"pattern given() {{ input chosen: bool[{axes}]  keep causal and chosen[{axes.replace('token', 'k')}] }}"
    attn = spdsl.compile(spdsl.loads(text), backend="cpu")
    generator = torch.Generator().manual_seed(n)
    q = torch.randn(2, 4, n, 8, generator=generator)
    k, v = torch.randn(2, 2, 2, n, 8, generator=generator)
    sizes = {"h": 4, "g": 2, "q": n, "token": n}
    shape = [sizes[axis] for axis in axes.split(", ")]
    chosen = torch.rand([2, *shape] if apart else shape, generator=generator) < 0.01
    out, wanted = attn(q, k, v, chosen=chosen), attn.reference(q, k, v, chosen=chosen)
    torch.testing.assert_close(out, wanted.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("share", [0.3, 0.9, 1.0])
def test_tiles_of_rows_that_are_told_once(share: float) -> None:
    """What lists of neighbours say that read one list is what one of them says."""
    from spdsl.runtime.listed import tiles_of_lists

    generator = torch.Generator().manual_seed(3)
    run = (torch.rand(70, generator=generator) < 0.2).cumsum(0) * 2 + 1
    runs = int(run[-1]) + 1
    chosen = torch.rand(2, 3, runs, runs, generator=generator) < share
    lists = torch.where(chosen, torch.arange(runs), 2**31 - 1).sort(-1).values.int()
    queries = torch.arange(80).clamp(max=69).view(-1, 16)
    points = run[torch.arange(72).clamp(max=69).view(-1, 8)]
    each = tiles_of_lists(lists[:, :, run[queries.flatten()]].unflatten(2, queries.shape), points)
    changes = torch.ones_like(queries, dtype=torch.bool)
    changes[:, 1:] = run[queries][:, 1:] != run[queries][:, :-1]
    once = tiles_of_lists(lists[:, :, run[queries[changes]]], points, changes.nonzero()[:, 0], len(queries))
    assert torch.equal(each.may, once.may)
    assert torch.equal(each.must, once.must)
