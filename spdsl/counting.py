"""The pairs that a call keeps, counted exactly.

The number of kept pairs is the number of touched tiles of one query and one key, so a closed form of these is summed
over the queries.  Selections are counted from their lists (`spdsl.pick_counts`).  Without either, full tiles count by
their area, and masked ones are looked at pair by pair; where all rows walk the same distances, one tile is looked at
for all that are alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spdsl.analysis.picks import picked
from spdsl.analysis.plan import grid_length
from spdsl.analysis.tiles import DistanceWalk, SlotWalk
from spdsl.analysis.worker import derive
from spdsl.pick_counts import count_picks
from spdsl.runtime.box_visits import pairs_on_grid
from spdsl.runtime.calls import Call, TileList
from spdsl.runtime.distance_lists import Rows
from spdsl.runtime.evaluate import depends_on, evaluate, tables_for
from spdsl.runtime.lists import listed, tile_lists
from spdsl.runtime.pairs import pairs_of
from spdsl.runtime.tile_grid import TileGrid
from spdsl.runtime.visits import is_tested_by_row, slot_visits

_CHUNK_PAIRS = 1 << 22


def count_pairs(call: Call) -> int:
    """The pairs that a call keeps, over batch and heads."""
    boxes = call.plan.forward.boxes
    on_grid = None if boxes is None else pairs_on_grid(call, boxes)
    if on_grid is not None:
        return on_grid
    problem = call.plan.problem
    selection = picked(call.plan.keep, call.plan.tables)
    if selection is not None and not selection.runs:
        return count_picks(call, selection)
    relation = derive(
        call.plan.keep,
        block_q=1,
        block_k=1,
        shape=problem.shape,
        heads=problem.pattern.heads,
        groups=problem.pattern.groups,
        tables=call.plan.tables,
        length=grid_length(problem.pattern),
    )
    grid = TileGrid(by="query", block_q=1, block_k=1)
    match relation.by_query:
        case SlotWalk() as walk if not is_tested_by_row(walk, grid):
            return slot_visits(call, walk, grid).touched
        case _:
            return count_by_tiles(call)


def count_by_tiles(call: Call) -> int:
    """As `count_pairs`, from the tiles of the forward kernel: for sets that have no closed form."""
    lists = _apart(call, _lists(call))
    batch, heads, _, _ = call.q.shape
    weight = (batch // lists.begin.shape[0]) * (heads // lists.begin.shape[1])
    return weight * (_full(call, lists) + _masked(call, lists))


def _lists(call: Call) -> TileList:
    """The tiles of the forward kernel; where it gathers rows, those of one that does not."""
    kernel = call.plan.forward
    if kernel.marked is None:
        return listed(call, kernel)
    return tile_lists(call, by="query", block_q=kernel.block_q, block_k=kernel.block_k)


def _apart(call: Call, lists: TileList) -> TileList:
    """The lists with rows for every batch and head whose pairs may differ, also where their tiles do not."""
    varies = depends_on(call.plan.keep, tables_for(call.plan.tables, call.tables))
    batch, heads, rows = lists.begin.shape
    batch = call.q.shape[0] if "b" in varies else batch
    heads = call.q.shape[1] if varies & {"h", "g"} else heads
    begin, middle, end = (each.expand(batch, heads, rows) for each in (lists.begin, lists.middle, lists.end))
    return TileList(begin=begin, middle=middle, end=end, tiles=lists.tiles)


def _full(call: Call, lists: TileList) -> int:
    """Pairs of full tiles; their keys all exist, their queries may end before the tile does."""
    grid = TileGrid.of(call.plan.forward)
    row = torch.arange(lists.begin.shape[-1], device=lists.begin.device)
    tiles = grid.within(row, torch.zeros_like(row), call.q_start)
    after = call.q.shape[2] - tiles["q_class"] - tiles["i"] * grid.spans[0]
    rows = torch.div(after + grid.modulus - 1, grid.modulus, rounding_mode="floor").clamp(0, grid.block_q)
    return int(((lists.middle - lists.begin) * rows).sum()) * grid.block_k


def _masked(call: Call, lists: TileList) -> int:
    counts = (lists.end - lists.middle).flatten().long()
    owners = torch.repeat_interleave(counts)
    within = torch.arange(len(owners), device=owners.device) - (counts.cumsum(0) - counts)[owners]
    tiles = lists.tiles[lists.middle.flatten().long()[owners] + within].long()
    at = torch.stack(torch.unravel_index(owners, lists.begin.shape), dim=1)
    grid = TileGrid.of(call.plan.forward)
    times = torch.ones_like(tiles)
    if isinstance(call.plan.forward.walk, DistanceWalk):
        at, tiles, times = _alike(call, at, tiles)
    step = max(1, _CHUNK_PAIRS // (grid.block_q * grid.block_k))
    chunks = zip(at.split(step), tiles.split(step), times.split(step), strict=True)
    return sum(int((_look(call, rows, columns, grid) * weight).sum()) for rows, columns, weight in chunks)


def _alike(call: Call, at: Tensor, tiles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One tile for all of the same head, class of rows and distance, and how many these are.

    Tiles over an edge stand for themselves alone.
    """
    grid = TileGrid.of(call.plan.forward)
    kind, first = Rows.of(call.plan.forward, call.q_start).places(at[:, 2])
    begin = at[:, 2] * grid.block_q
    inside = (begin + call.q_start >= 0) & (begin + grid.block_q <= call.q.shape[2])
    inside &= (tiles >= 0) & ((tiles + 1) * grid.block_k <= call.keys)
    number = torch.arange(len(tiles), device=tiles.device)
    of_its_own = torch.where(inside, -1, number)
    names = torch.stack((at[:, 0], at[:, 1], kind, tiles - first, of_its_own), dim=1)
    _, group, times = names.unique(dim=0, return_inverse=True, return_counts=True)
    one = torch.empty_like(times).scatter_reduce_(0, group, number, "amin", include_self=False)
    return at[one], tiles[one], times


def _look(call: Call, at: Tensor, tiles: Tensor, grid: TileGrid) -> Tensor:
    """The pairs kept in each of the tiles ``tiles [count]`` of the rows ``at [count, 3]`` (batch, head, row)."""
    numbers = grid.within(at[:, 2, None, None], tiles[:, None, None], call.q_start)
    rows = numbers["i"] * grid.block_q + torch.arange(grid.block_q, device=at.device)[None, :, None]
    rows = rows * grid.modulus + numbers["q_class"]
    k = numbers["j"] * grid.block_k + torch.arange(grid.block_k, device=at.device)[None, None, :]
    k = k * grid.modulus + numbers["k_class"]
    q = rows + call.q_start
    pairs = pairs_of(call)
    head = at[:, 1, None, None]
    group = head // (pairs.heads // pairs.groups)
    env = pairs.extents() | {"b": at[:, 0, None, None], "h": head, "g": group, "q": q, "k": k}
    kept = evaluate(call.plan.keep, env, tables_for(call.plan.tables, call.tables))
    return (kept & (rows < pairs.queries) & (k < pairs.keys) & (q >= 0)).sum((-2, -1))
