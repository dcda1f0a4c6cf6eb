"""The order in which programs go through listed tiles where sums have an order."""

from __future__ import annotations

import heapq
import random

import pytest
import torch

from spdsl.runtime.calls import TileList
from spdsl.runtime.turns import with_turns

BLOCKS = 256


def lists_of(rows: list[tuple[list[int], list[int]]], heads: int = 1) -> TileList:
    """The same rows for every head, each with its full and its masked tiles; the tiles are there once."""
    begin, middle, end, tiles = [], [], [], list[int]()
    for full, masked in rows:
        begin.append(len(tiles))
        middle.append(len(tiles) + len(full))
        tiles += full + masked
        end.append(len(tiles))
    bounds = (torch.tensor(each, dtype=torch.int32).repeat(1, heads, 1) for each in (begin, middle, end))
    return TileList(**dict(zip(("begin", "middle", "end"), bounds, strict=True)), tiles=torch.tensor(tiles).int())


def near_and_drawn(drawn: int, hub: int) -> list[tuple[list[int], list[int]]]:
    """Tiles next to the diagonal, of which the outer are masked, ``drawn`` others, and the first ``hub`` tiles."""
    chance = random.Random(0)
    rows = []
    for row in range(BLOCKS):
        near = {row + step for step in (-1, 0, 1)} & set(range(BLOCKS))
        others = set(chance.sample(range(BLOCKS), drawn)) - near
        full = sorted({*range(hub), row} | {each for each in others if each % 2})
        rows.append((full, sorted((near | others) - set(full))))
    return rows


def walks(lists: TileList, places: torch.Tensor) -> list[list[int]]:
    """The tiles of every row of the first head, in the order of places."""
    begin, end = lists.begin[0, 0].tolist(), lists.end[0, 0].tolist()
    return [lists.tiles[places[low:high].long()].tolist() for low, high in zip(begin, end, strict=True)]


def time_of(walks: list[list[int]], *, waits: bool, side_by_side: int = 8) -> float:
    """How long programs take that start in order, where each tile takes 1, and as long until the next may add to it."""
    free = [0.0] * side_by_side
    added: dict[int, float] = {}
    for walk in walks:
        now = heapq.heappop(free)
        for tile in walk:
            now += 1
            if waits:
                now = added[tile] = max(now, added.get(tile, 0.0) + 1)
        heapq.heappush(free, now)
    return max(free)


@pytest.mark.parametrize("heads", [1, 3])
def test_every_tile_has_its_turn(heads: int) -> None:
    lists = lists_of(near_and_drawn(5, 2), heads)
    found = with_turns(lists)
    assert found.turns is not None
    for low, high in zip(lists.begin[0, 0].tolist(), lists.end[0, 0].tolist(), strict=True):
        places = found.turns[low:high].tolist()
        assert sorted(places) == list(range(low, high))
        tiles = lists.tiles[places].tolist()
        assert tiles == [tile for tile in tiles if tile < 2] + sorted((t for t in tiles if t >= 2), reverse=True)


def test_nothing_is_listed() -> None:
    lists = lists_of([([], [])])
    assert with_turns(lists).turns is not None


@pytest.mark.parametrize(("drawn", "hub"), [(0, 0), (8, 0), (8, 2), (12, 1)])
def test_programs_hardly_wait(drawn: int, hub: int) -> None:
    """A model of programs that add in the order in which they start: as listed they would wait longer."""
    lists = lists_of(near_and_drawn(drawn, hub))
    found = with_turns(lists)
    assert found.turns is not None
    turned = walks(lists, found.turns)
    listed = walks(lists, torch.arange(len(lists.tiles)))
    alone = time_of(turned, waits=False)
    assert time_of(turned, waits=True) < 1.1 * alone
    assert time_of(listed, waits=True) > 3 * alone
