"""What queries have picked, as kernels walk it: blocks by tiles of queries, and queries by blocks of keys.

From the lists of a selection, int32 ``[batch or 1, heads or 1, runs of queries, most]``, ascending, with numbers too
large to be a block after the last.  Everything is made on the device of the lists, and the host waits for nothing:
sizes are bounded by those of the lists, and memory is a few numbers for each pick.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spdsl.analysis.plans import KernelPlan
from spdsl.analysis.tiles import Picks
from spdsl.runtime.calls import Call, PickedItems, TileList
from spdsl.runtime.recent import ByContent

_passing: ByContent[TileList] = ByContent(size=6)
"""Lists by query, kept from the forward to the backward."""

PROGRAMS = 512
"""Parts into which what has been picked is cut by key, beyond one for each block: about four for each multiprocessor of
a large GPU.  It does not depend on the machine, so that sums repeat bitwise on all of them."""

LEAST = 256
"""The least number of picks that is worth a part of its own."""

FAR = 2**31 - 1
"""No number of a block."""


def picked_lists(call: Call, kernel: KernelPlan) -> TileList | PickedItems:
    """The lists of a kernel that walks what queries have picked."""
    picks = kernel.picks
    assert picks is not None
    table = _with_heads(call, picks)
    if kernel.by == "key":
        return by_key(_each_run(call, table), _blocks(call, picks))
    sizes = (picks.positions, picks.rows, picks.block, picks.many, call.q.shape, call.k.shape[2], call.q_start)
    return _passing.get(sizes, (call.tables[picks.table],), None, lambda: _by_query(call, picks, table), compare=False)


def _with_heads(call: Call, picks: Picks) -> Tensor:
    table = call.tables[picks.table]
    (declared,) = (each for each in call.plan.tables if each.name == picks.table)
    return table if declared.axes[0].kind in ("g", "h") else table.unsqueeze(1)


def _each_run(call: Call, table: Tensor) -> Tensor:
    """The lists of every sequence and of all heads that share them."""
    picks = call.plan.dkdv.picks
    assert picks is not None
    return table.expand(call.q.shape[0], call.q.shape[1] // picks.heads, -1, -1)


def _blocks(call: Call, picks: Picks) -> int:
    return -(-call.k.shape[2] // picks.block)


def _by_query(call: Call, picks: Picks, table: Tensor) -> TileList:
    blocks = _blocks(call, picks)
    if not picks.many:
        return as_they_are(table, blocks)
    if picks.rows > 1:
        at = torch.arange(call.q.shape[2], device=table.device) + call.q_start
        run = at.div(picks.rows, rounding_mode="floor")
        table = table.index_select(2, run.clamp(min=0)).masked_fill((at < 0)[:, None], FAR)
    return unions(table, picks.positions, blocks)


def as_they_are(table: Tensor, blocks: int) -> TileList:
    """The lists themselves, one for each run of queries."""
    most = table.shape[-1]
    count = (table < blocks).sum(-1, dtype=torch.int32)
    begin = (torch.arange(count.numel(), dtype=torch.int32, device=table.device) * most).view(count.shape)
    end = begin + count
    return TileList(begin=begin, middle=begin, end=end, tiles=table.reshape(-1))


def unions(table: Tensor, positions: int, blocks: int) -> TileList:
    """The blocks that any of ``positions`` neighbouring queries has picked, ascending, with a bit for each of these."""
    batch, heads, queries, most = table.shape
    table = torch.nn.functional.pad(table, (0, 0, 0, -queries % positions), value=FAR)
    tiles = table.shape[2] // positions
    place = torch.arange(positions, dtype=torch.int32, device=table.device)[:, None]
    # Blocks by their number, then by who has picked them.
    keys = torch.where(table.view(batch, heads, tiles, positions, most) < blocks, 0, FAR)
    keys = torch.where(keys == 0, table.view(keys.shape) * positions + place, FAR).flatten(-2).sort(dim=-1).values
    exist = keys != FAR
    block = keys.div(positions, rounding_mode="floor")
    new = exist.clone()
    new[..., 1:] &= block[..., 1:] != block[..., :-1]
    rank = new.cumsum(-1, dtype=torch.int32)
    width = min(positions * most, max(blocks, 1))
    at = torch.where(exist, rank - 1, width).long()
    bit = (torch.ones((), dtype=torch.int64, device=table.device) << (keys % positions)).int()
    shape = (batch, heads, tiles, width + 1)
    chosen = torch.zeros(shape, dtype=torch.int32, device=table.device).scatter_(-1, at, block)
    bits = torch.zeros(shape, dtype=torch.int32, device=table.device).scatter_add_(-1, at, bit)
    count = new.sum(-1, dtype=torch.int32)
    begin = torch.arange(count.numel(), dtype=torch.int32, device=table.device) * (width + 1)
    begin = begin.view(count.shape)
    return TileList(begin=begin, middle=begin, end=begin + count, tiles=chosen.flatten(), bits=bits.flatten())


def by_key(table: Tensor, blocks: int) -> PickedItems:
    """The runs of queries that have picked each block, ascending, in parts: the transpose of the lists."""
    batch, heads, runs, most = table.shape
    rows = batch * heads * blocks
    owner = torch.arange(batch * heads, dtype=torch.int32, device=table.device).view(batch, heads, 1, 1)
    keys = torch.where(table < blocks, owner * blocks + table, rows).flatten()
    keys, order = keys.sort(stable=True)
    runs_of = order.div(most, rounding_mode="floor").remainder(max(runs, 1)).int()
    number = torch.arange(rows + 1, dtype=torch.int32, device=table.device)
    starts = torch.searchsorted(keys, number)
    begin, end = starts[:-1], starts[1:]
    count = end - begin
    size = part_size(keys.numel())
    parts = ((count + size - 1) // size).clamp(min=1)
    cut = torch.where(parts > 1, parts, 0)
    ends, slots = parts.cumsum(0), cut.cumsum(0) - cut
    item = torch.arange(rows + keys.numel() // size, device=table.device)
    row = torch.searchsorted(ends, item, right=True)
    exist = row < rows
    row = row.clamp(max=max(rows - 1, 0))
    part = item - (ends - parts)[row]
    first = begin[row] + part * size
    last = torch.minimum(first + size, end[row])
    slot = torch.where(exist, torch.where(parts[row] > 1, slots[row] + part, -1), -2)
    return PickedItems(
        rows=torch.where(exist, row, -1).int(),
        first=torch.where(exist, first, 0).int(),
        last=torch.where(exist, last, 0).int(),
        slots=slot.int(),
        row_slots=slots.int(),
        row_parts=parts.int(),
        queries=runs_of,
        blocks=blocks,
        kept=max(1, 2 * keys.numel() // size),
    )


def part_size(picks: int) -> int:
    """How many picks a part holds."""
    return max(LEAST, 1 << (max(1, picks // PROGRAMS) - 1).bit_length())


@dataclass(frozen=True, slots=True, kw_only=True)
class PickedVisits:
    """Tiles that a kernel by query walks over heads and sequences, the most of one program, and bytes of its lists."""

    touched: int
    longest: int
    metadata: int


def picked_visits(call: Call, kernel: KernelPlan) -> PickedVisits:
    """What a kernel by query walks in a call."""
    picks, lists = kernel.picks, picked_lists(call, kernel)
    assert picks is not None
    assert isinstance(lists, TileList)
    count = (lists.end - lists.begin).long()
    if not picks.many:
        tiles = -(-call.q.shape[2] // picks.positions)
        run = torch.arange(tiles, device=count.device) // (picks.rows // picks.positions)
        count = count[..., run]
    owners = call.q.shape[1] // picks.heads
    times = (call.q.shape[0] // count.shape[0]) * (owners // count.shape[1]) * (picks.block // kernel.block_k)
    return PickedVisits(
        touched=int(count.sum()) * times,
        longest=int(count.max()) * (picks.block // kernel.block_k) if count.numel() else 0,
        metadata=lists.nbytes,
    )
