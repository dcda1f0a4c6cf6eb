"""Keys in such an order that those of a tile keep nearly the same interval of queries, and the intervals of the tiles.

From: the cuts of a kernel by key (`spdsl.analysis.spanning`), lengths and tables.  To: `SpannedKeys`.  An interval is a
point, its start and its end, and a tile walks from the first start to the last end of its keys.  So tiles should be
small rectangles of points: keys by their start are cut into strips, as many as make these as wide as they are high, and
the keys of a strip are sorted by their end, up in one and down in the next.  Everything is made on the device of the
tables, which nobody waits for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from spdsl.analysis.cuts import tables_of
from spdsl.analysis.plans import KernelPlan
from spdsl.analysis.tiles import FAR_ROW, Cuts
from spdsl.runtime.calls import Call, SpannedKeys
from spdsl.runtime.checks import captured
from spdsl.runtime.cuts import intervals
from spdsl.runtime.evaluate import tables_for, with_batch
from spdsl.runtime.pairs import Pairs, pairs_of
from spdsl.runtime.recent import ByContent
from spdsl.runtime.tile_grid import TileGrid
from spdsl.semantics.nodes import Table

_passing: ByContent[SpannedKeys] = ByContent(size=4)


def spanned_keys(call: Call, kernel: KernelPlan) -> SpannedKeys:
    """The keys of each tile of a kernel, and which queries it walks; the recorder notes how this is made, so that a
    tape makes it of other tables."""
    cuts = kernel.cuts
    assert cuts is not None
    names = tables_of(cuts)
    declared = tuple(table for table in call.plan.tables if table.name in names)
    request = _Request(cuts=cuts, pairs=pairs_of(call), declared=declared)
    given = tuple(call.tables[table.name] for table in declared)
    make = partial(request.keys, *given)
    key = (id(cuts), call.q.shape[:3], call.keys, call.q_start, *call.parameters.values(), str(call.q.device))
    found = make() if captured(call.q) else _passing.get(key, given, cuts, make, compare=False)
    call.recorder.made(found.tensors, request.tensors, *given)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What decides about the order, beside the tables that the cuts read, in the order of their declarations."""

    cuts: Cuts
    pairs: Pairs
    declared: tuple[Table, ...]

    def tensors(self, *given: Tensor) -> tuple[Tensor, ...]:
        """The tensors, in the order of their fields."""
        return self.keys(*given).tensors

    def keys(self, *given: Tensor) -> SpannedKeys:
        """The keys and the intervals."""
        values = {each.name: with_batch(each, tensor) for each, tensor in zip(self.declared, given, strict=True)}
        tables = tables_for(self.declared, values)
        single = Cuts(by="key", block=1, names=self.cuts.names, heads=self.cuts.heads, cuts=self.cuts.cuts)
        found = intervals(single, self.pairs, tables, TileGrid(by="key", block_q=1, block_k=1))
        found = found if self.cuts.heads else found.unsqueeze(1)
        start, end = found[..., 0], found[..., 3].clamp(max=self.pairs.queries)
        rows, ends = tiles_of(start, end, self.cuts.block)
        return SpannedKeys(rows=rows.int(), intervals=ends.int())


def tiles_of(start: Tensor, end: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """The keys by their intervals ``[…, n]`` tile by tile, ``n`` for what fills up the last, and the ends of tiles.

    Those are where some key of a tile begins to keep queries, where all do, where some no longer does, and where none
    does, ``[…, tiles, 4]``; of a tile with a key that keeps nothing there is no query that all keep.  Tiles that walk
    farthest are first, so that none of them is left when the others are done.
    """
    keeps, n = start < end, start.shape[-1]
    rows, pad = order_of(start, end, block), (0, -n % block)
    first, last = (torch.where(keeps, start, FAR_ROW).gather(-1, rows), torch.where(keeps, end, 0).gather(-1, rows))
    first = torch.nn.functional.pad(first, pad, value=FAR_ROW).unflatten(-1, (-1, block))
    last = torch.nn.functional.pad(last, pad, value=0).unflatten(-1, (-1, block))
    ends = torch.stack((first.amin(-1), first.amax(-1), last.amin(-1), last.amax(-1)), dim=-1)
    tiles = torch.nn.functional.pad(rows, pad, value=n).unflatten(-1, (-1, block))
    farthest = (ends[..., 3] - ends[..., 0]).sort(dim=-1, descending=True, stable=True).indices[..., None]
    return tiles.take_along_dim(farthest, -2).flatten(-2), ends.take_along_dim(farthest, -2)


def order_of(start: Tensor, end: Tensor, block: int) -> Tensor:
    """The keys by their intervals ``[…, n]``, those of each tile of ``block`` alike; the ones that keep nothing are
    last."""
    keeps = start < end
    by_start = torch.where(keeps, start, FAR_ROW).sort(dim=-1, stable=True).indices
    count = keeps.sum(-1, keepdim=True)
    place = torch.arange(start.shape[-1], device=start.device)
    strips = (count / block).sqrt().ceil().long()
    strip = torch.where(place < count, place * strips // count.clamp(min=1), strips)
    end = end.gather(-1, by_start)
    # Queries are counted in 31 bits.
    within = torch.where(strip % 2 == 0, end, FAR_ROW - end)
    order = (strip * (2 * FAR_ROW) + within).sort(dim=-1, stable=True).indices
    return by_start.gather(-1, order)


def spanned_tiles(call: Call, kernel: KernelPlan) -> Tensor:
    """The tiles of queries that each tile of keys walks, int64 ``[batch or 1, groups or 1, tiles of keys, 4]``: the
    first, the first and the end of those that need no mask, and the end."""
    first, whole, edge, last = spanned_keys(call, kernel).intervals.long().unbind(-1)
    size = kernel.block_q
    last = (last + size - 1) // size
    first = torch.minimum(first // size, last)
    whole = torch.minimum((whole + size - 1) // size, last)
    edge = (edge // size).clamp(max=call.q.shape[2] // size)
    return torch.stack((first, whole, torch.maximum(edge, whole), last), dim=-1)
