"""Keys in such an order that those of a tile keep nearly the same interval of queries, and the intervals of the tiles.

From: the cuts of a kernel by key (`spdsl.analysis.spanning`), lengths and tables.  To: `SpannedKeys`.  An interval is a
point, its start and its end, and a tile walks from the first start to the last end of its keys.  So tiles should be
small rectangles of points: keys by their start are cut into strips, as many as make these as wide as they are high, and
the keys of a strip are sorted by their end, up in one and down in the next.  Everything is made on the device of the
tables, which nobody waits for.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from spdsl.analysis.cuts import tables_of
from spdsl.analysis.plans import KernelPlan
from spdsl.analysis.tiles import FAR_ROW, Cuts
from spdsl.runtime.calls import Call, SpannedKeys
from spdsl.runtime.cuts import intervals
from spdsl.runtime.evaluate import Tables
from spdsl.runtime.of_tables import made_of_tables
from spdsl.runtime.pairs import Pairs
from spdsl.runtime.recent import ByContent
from spdsl.runtime.tile_grid import TileGrid

_passing: ByContent[SpannedKeys] = ByContent(size=4)


def spanned_keys(call: Call, kernel: KernelPlan) -> SpannedKeys:
    """The keys of each tile of a kernel, and which queries it walks; the recorder notes how this is made, so that a
    tape makes it of other tables."""
    cuts = kernel.cuts
    assert cuts is not None
    return made_of_tables(call, tables_of(cuts), cuts, _passing, partial(_keys, cuts))


def _keys(cuts: Cuts, pairs: Pairs, tables: Tables) -> SpannedKeys:
    """The keys and the intervals."""
    single = Cuts(by="key", block=1, names=cuts.names, heads=cuts.heads, cuts=cuts.cuts)
    found = intervals(single, pairs, tables, TileGrid(by="key", block_q=1, block_k=1))
    found = found if cuts.heads else found.unsqueeze(1)
    start, end = found[..., 0], found[..., 3].clamp(max=pairs.queries)
    rows, ends = tiles_of(start, end, cuts.block)
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
