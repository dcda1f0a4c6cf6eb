"""The tiles that a kernel visits as a table, for pictures: which are full, which are masked, which rows they hold.

From a kernel and a call.  To ``[tiles of the kernel's own side, tiles that it walks]`` for one head and sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import assert_never

from spdsl.analysis.box_tiles import Boxes
from spdsl.analysis.plans import KernelPlan
from spdsl.analysis.tiles import BoxWalk, DistanceWalk, ListWalk, PickWalk, SlotWalk
from spdsl.runtime.box_visits import box_states
from spdsl.runtime.calls import Call, TileList
from spdsl.runtime.lists import listed
from spdsl.runtime.marks import marked_tiles
from spdsl.runtime.spans import spanned_keys, spanned_tiles
from spdsl.runtime.tile_grid import TileGrid
from spdsl.semantics.nodes import Side

EMPTY, PARTIAL, FULL = 0, 1, 2


def tile_states(call: Call, kernel: KernelPlan, *, head: int, batch: int = 0) -> Tensor:
    """`EMPTY`, `PARTIAL` or `FULL` for every tile, int8.

    Under residues the tiles of class 0 and of the class that it meets; on a grid boxes, counted row by row, and after
    them the tiles of rows after the grid.  Of gathered rows those of the first sequence.
    """
    if kernel.marked is not None and kernel.marked.alike:
        return _spanned(call, kernel, head, batch)
    if kernel.marked is not None:
        return torch.full(marked_tiles(call, kernel), PARTIAL, dtype=torch.int8)
    match kernel.walk:
        case BoxWalk() as walk:
            touched, full = box_states(call, walk, kernel, head=head, batch=batch)
            return touched.to(torch.int8) + full.to(torch.int8)
        case SlotWalk() | DistanceWalk() | ListWalk() | PickWalk():
            return _listed(call, kernel, listed(call, kernel), head, batch)
        case _:
            assert_never(kernel.walk)


def _listed(call: Call, kernel: KernelPlan, lists: TileList, head: int, batch: int) -> Tensor:
    grid = TileGrid.of(kernel)
    walked = grid.key_tiles(call.keys) if grid.by == "query" else grid.query_tiles(call.q.shape[2])
    begin, middle, end = (
        each[min(batch, each.shape[0] - 1), min(head, each.shape[1] - 1), :: grid.modulus].tolist()
        for each in (lists.begin, lists.middle, lists.end)
    )
    states = torch.full((len(begin), walked), EMPTY, dtype=torch.int8)
    for row, (first, edge, last) in enumerate(zip(begin, middle, end, strict=True)):
        states[row, lists.tiles[first:edge].long()] = FULL
        states[row, lists.tiles[edge:last].long()] = PARTIAL
    return states


def _spanned(call: Call, kernel: KernelPlan, head: int, batch: int) -> Tensor:
    found = spanned_tiles(call, kernel)
    own = head * found.shape[1] // call.q.shape[1]
    first, whole, edge, last = (each[:, None] for each in found[min(batch, found.shape[0] - 1), own].unbind(-1))
    tile = torch.arange(-(-call.q.shape[2] // kernel.block_q), device=found.device)
    full = (whole <= tile) & (tile < edge)
    return torch.where(full, FULL, torch.where((first <= tile) & (tile < last), PARTIAL, EMPTY)).to(torch.int8)


def tile_rows(call: Call, kernel: KernelPlan, side: Side) -> Tensor:
    """The rows that the tiles of a side hold, ``[tiles, rows of one]`` in the order of `tile_states`; -1 for none."""
    length = call.q.shape[2] if side == "q" else call.keys
    block = kernel.block_q if side == "q" else kernel.block_k
    if kernel.gathers(side) and (kernel.marked is not None and kernel.marked.alike):
        rows = spanned_keys(call, kernel).rows[0, 0].long().view(-1, block)
    elif call.marks is not None and kernel.gathers(side):
        marks = call.marks.rows[0].long()
        rows = torch.nn.functional.pad(marks, (0, -len(marks) % block), value=length).view(-1, block)
    elif kernel.boxes is not None:
        rows = _box_rows(kernel.boxes, side, block, length)
    else:
        grid = TileGrid.of(kernel)
        zero = torch.zeros((), dtype=torch.int64)
        first = int(grid.within(zero, zero, call.q_start)[f"{side}_class"])
        number = torch.arange(-(-length // (block * grid.modulus)) * block)
        rows = (number * grid.modulus + first).view(-1, block)
    return torch.where(rows < length, rows, -1)


def _box_rows(boxes: Boxes, side: Side, block: int, length: int) -> Tensor:
    """The rows of boxes, and of the tiles after the grid."""
    rows, exist = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool)
    for axis, stride in zip(boxes.axes, boxes.strides, strict=True):
        turn, place = torch.arange(axis.count(side))[:, None], torch.arange(axis.box(side))
        at = (turn // axis.step * axis.box(side) + place) * axis.step + turn % axis.step
        rows = (rows[:, None, :, None] + (at * stride)[None, :, None, :]).flatten(2).flatten(0, 1)
        exist = (exist[:, None, :, None] & (at < axis.extent)[None, :, None, :]).flatten(2).flatten(0, 1)
    rows = torch.where(exist, rows, length)
    after = torch.arange(boxes.places, boxes.places + -(-max(0, length - boxes.places) // block) * block)
    return torch.cat([rows, after.view(-1, block)])
