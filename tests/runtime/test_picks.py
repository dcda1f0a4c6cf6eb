"""Lists of what queries have picked: against loops over rows."""

from __future__ import annotations

import random
from typing import Literal

import pytest
import torch
from torch import Tensor

from spdsl.analysis.tiles import PickOrder, Picks
from spdsl.diagnostics import SpatError
from spdsl.runtime import picks
from spdsl.runtime.owners import for_owners
from spdsl.runtime.picks import as_they_are, by_key, gathered, part_size, transposed, unions
from spdsl.runtime.ranking import FAR
from spdsl.runtime.shared_keys import listed_keys
from spdsl.semantics.build import TRUE


def lists(shape: tuple[int, int, int, int], blocks: int, seed: int) -> Tensor:
    """Rows of different blocks, ascending; some of them short, and some with none."""
    chance = random.Random(seed)
    table = torch.full(shape, FAR, dtype=torch.int32)
    for row in table.view(-1, shape[-1]):
        count = chance.randint(0, min(shape[-1], blocks))
        row[:count] = torch.tensor(sorted(chance.sample(range(blocks), count)), dtype=torch.int32)
    return table


def rows_of(table: Tensor) -> list[list[int]]:
    return [[block for block in row if block != FAR] for row in table.flatten(0, -2).tolist()]


@pytest.mark.parametrize(("positions", "queries", "most", "blocks"), [(4, 10, 3, 7), (32, 40, 5, 3), (1, 5, 2, 9)])
def test_unions(positions: int, queries: int, most: int, blocks: int) -> None:
    table = lists((2, 3, queries, most), blocks, positions)
    found = unions(table, positions, blocks)
    assert found.bits is not None
    per_head = torch.tensor(range(6 * queries)).view(6, queries)
    every = rows_of(table)
    for place, (begin, end) in enumerate(
        zip(found.begin.flatten().tolist(), found.end.flatten().tolist(), strict=True)
    ):
        head, tile = divmod(place, found.begin.shape[-1])
        mine = per_head[head, tile * positions : (tile + 1) * positions].tolist()
        wanted: dict[int, int] = {}
        for query, row in enumerate(mine):
            for block in every[row]:
                wanted[block] = wanted.get(block, 0) | 1 << query
        bits = [bit % (1 << 32) for bit in found.bits[begin:end].tolist()]
        assert list(zip(found.tiles[begin:end].tolist(), bits, strict=True)) == sorted(wanted.items())


def test_lists_as_they_are() -> None:
    table = lists((1, 2, 6, 4), 5, 0)
    found = as_they_are(table, 5)
    each = zip(found.begin.flatten().tolist(), found.end.flatten().tolist(), strict=True)
    assert [found.tiles[begin:end].tolist() for begin, end in each] == rows_of(table)


@pytest.mark.parametrize("runs", [0, 1, 23])
def test_by_key(runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that many have picked are cut; every query comes once, in order, and sums have places of their own."""
    monkeypatch.setattr(picks, "LEAST", 4)
    monkeypatch.setattr(picks, "PROGRAMS", 100)
    blocks = 5
    table = lists((2, 2, runs, 3), blocks, runs)
    found = by_key(transposed(table, blocks))
    wanted: dict[int, list[int]] = {row: [] for row in range(4 * blocks)}
    for place, row in enumerate(rows_of(table)):
        for block in row:
            wanted[place // max(runs, 1) * blocks + block].append(place % max(runs, 1))
    met: dict[int, list[int]] = {row: [] for row in range(4 * blocks)}
    slots: dict[int, list[int]] = {row: [] for row in range(4 * blocks)}
    size = part_size(table.numel())
    columns = (found.rows, found.first, found.last, found.slots)
    for row, first, last, slot in zip(*(each.tolist() for each in columns), strict=True):
        if slot == -2:
            assert (row, first, last) == (0, 0, 0)
            continue
        assert last - first <= size
        met[row] += found.queries[first:last].tolist()
        slots[row].append(slot)
    assert met == wanted
    kept = [slot for row in slots.values() for slot in row if slot >= 0]
    assert sorted(kept) == list(range(len(kept)))
    assert len(kept) <= found.kept
    for row, places in slots.items():
        assert int(found.row_parts[row]) == len(places) >= 1
        first = int(found.row_slots[row])
        assert places == ([-1] if len(places) == 1 else list(range(first, first + len(places))))
    if runs > 1:
        assert kept


@pytest.mark.parametrize("size", [1, 4, 64])
def test_gathered(size: int) -> None:
    """Every pick is in one tile, with others of its block alone, and can be found again."""
    blocks = 6
    table = lists((2, 2, 17, 3), blocks, size)
    found = gathered(transposed(table, blocks), size)
    rows = {}
    for row, first, last in zip(found.rows.tolist(), found.first.tolist(), found.last.tolist(), strict=True):
        assert last - first <= size
        rows |= dict.fromkeys(range(first, last), row)
    for place, (row, entries) in enumerate(zip(rows_of(table), found.entries.view(-1, 3).tolist(), strict=True)):
        assert entries[len(row) :] == [-1] * (3 - len(row))
        for block, entry in zip(row, entries, strict=False):
            assert rows[entry] == place // 17 * blocks + block
            assert int(found.queries[entry]) == place % 17


@pytest.mark.parametrize(("block", "keys", "n"), [(1, 64, 300), (4, 32, 130), (8, 16, 70)])
def test_bits_of_keys(block: int, keys: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tile of keys that holds a block of a list is listed, with a bit for each of its keys."""
    monkeypatch.setattr(picks, "_AT_ONCE", 60)
    blocks, tiles = -(-n // block), -(-n // keys)
    table = lists((1, 2, 9, 6), blocks, n)
    found, bits = picks.coarser(table, block, keys, n)
    for row, mine, marks in zip(
        rows_of(table), found.flatten(0, -2).tolist(), bits.flatten(0, -2).tolist(), strict=True
    ):
        wanted: dict[int, int] = {}
        for key in (each * block + i for each in row for i in range(block)):
            wanted[key // keys] = wanted.get(key // keys, 0) | 1 << key % keys
        have = {tile: mark % (1 << 64) for tile, mark in zip(mine, marks, strict=True) if tile != FAR}
        assert have == wanted
    given = transposed(found, tiles)
    moved = picks.carried(bits, given).tolist()
    for entry, mark in zip(given.entries.flatten().tolist(), bits.flatten().tolist(), strict=True):
        assert entry < 0 or moved[entry] == mark


@pytest.mark.parametrize("blocks", [4, 1])
@pytest.mark.parametrize("given", [(1, 1), (1, 3), (2, 1), (2, 3)])
def test_lists_that_sequences_and_heads_share(given: tuple[int, int], blocks: int) -> None:
    """Each has the queries of its own list, and sums of its own."""
    own = (2, 3)
    table = lists((*given, 700, 3), blocks, 7)
    found = for_owners(by_key(transposed(table, blocks)), own, given)
    assert all(each.is_contiguous() for each in found.tensors)
    wanted = by_key(transposed(table.expand(*own, -1, -1).contiguous(), blocks))
    kept: list[set[int]] = [set() for _ in range(6 * blocks)]
    queries: list[dict[int, list[int]]] = [{} for _ in range(2)]
    for which, items in enumerate((found, wanted)):
        columns = (items.rows, items.first, items.last, items.slots)
        for row, first, last, slot in zip(*(each.tolist() for each in columns), strict=True):
            if slot == -2:
                continue
            queries[which].setdefault(row, []).extend(items.queries[first:last].tolist())
            if which == 0 and slot >= 0:
                kept[row].add(slot)
    assert {row: sorted(each) for row, each in queries[0].items()} == queries[1]
    for row, slots in enumerate(kept):
        parts, first = int(found.row_parts[row]), int(found.row_slots[row])
        assert slots == (set(range(first, first + parts)) if parts > 1 else set())
    every = [slot for slots in kept for slot in slots]
    assert len(set(every)) == len(every)
    assert max(every, default=-1) < found.kept


def test_lists_that_32_bits_do_not_number() -> None:
    """Nothing of that size is made: what is given has no memory of its own."""
    with pytest.raises(SpatError, match="2,147,483,648 keys of all heads") as refused:
        listed_keys(torch.zeros(1, 1, 1, dtype=torch.bool).expand(2, 1 << 10, 1 << 20))
    assert refused.value.code == "SP510"


@pytest.mark.parametrize("by", ["query", "key"])
def test_pieces_of_runs_that_32_bits_do_not_number(by: Literal["query", "key"]) -> None:
    """Runs are few, and their pieces are many: on the meta device nobody holds them."""
    n = 1 << 20
    order: PickOrder = "union" if by == "query" else "gathered"
    chosen = Picks(table="c", rows=1, block=1, heads=4, positions=16, order=order, keep=TRUE, runs="cut")
    request = picks._Request(picks=chosen, keys=64, by=by, axes=("g", "q", "k"), shape=(1, 32, n), n=n, q_start=0)
    table = torch.empty(8, 2000, 4096, dtype=torch.int32, device="meta")
    with pytest.raises(SpatError, match="SP510"):
        request.lists(table, torch.empty(1, n, dtype=torch.int32, device="meta"))


def test_unions_that_32_bits_do_not_number() -> None:
    with pytest.raises(SpatError, match="SP510"):
        unions(torch.empty(2, 32, 1 << 17, 1024, dtype=torch.int32, device="meta"), 16, 1 << 13)
