"""The tiles that a kernel visits as a table, for pictures: which are full, which are masked.

From a kernel and a call.  To ``[tiles of the kernel's own side, tiles that it walks]`` for one head and sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import assert_never

from spdsl.analysis.plans import KernelPlan
from spdsl.analysis.tiles import BoxWalk, DistanceWalk, ListWalk, SlotWalk
from spdsl.runtime.box_visits import box_states
from spdsl.runtime.calls import Call, TileList
from spdsl.runtime.lists import listed
from spdsl.runtime.tile_grid import TileGrid

EMPTY, PARTIAL, FULL = 0, 1, 2


def tile_states(call: Call, kernel: KernelPlan, *, head: int, batch: int = 0) -> Tensor:
    """`EMPTY`, `PARTIAL` or `FULL` for every tile, int8.

    Under residues the tiles of class 0 and of the class that it meets; on a grid boxes, counted row by row, and after
    them the tiles of rows after the grid.
    """
    match kernel.walk:
        case BoxWalk() as walk:
            touched, full = box_states(call, walk, kernel, head=head, batch=batch)
            return touched.to(torch.int8) + full.to(torch.int8)
        case SlotWalk() | DistanceWalk() | ListWalk():
            return _listed(call, kernel, listed(call, kernel), head, batch)
        case _:
            assert_never(kernel.walk)


def _listed(call: Call, kernel: KernelPlan, lists: TileList, head: int, batch: int) -> Tensor:
    grid = TileGrid.of(kernel)
    walked = grid.key_tiles(call.k.shape[2]) if grid.by == "query" else grid.query_tiles(call.q.shape[2])
    begin, middle, end = (
        each[min(batch, each.shape[0] - 1), min(head, each.shape[1] - 1), :: grid.modulus].tolist()
        for each in (lists.begin, lists.middle, lists.end)
    )
    states = torch.full((len(begin), walked), EMPTY, dtype=torch.int8)
    for row, (first, edge, last) in enumerate(zip(begin, middle, end, strict=True)):
        states[row, lists.tiles[first:edge].long()] = FULL
        states[row, lists.tiles[edge:last].long()] = PARTIAL
    return states
