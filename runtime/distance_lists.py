"""The lists of a `DistanceWalk`: at which distances the rows of each class have tiles.

From: a predicate that does not change when query and key move together.  To: a `TileList` of distances, decided exactly
on one row of each class, for all lengths up to a power of two; and, for back ends that take tiles row by row, the lists
of all rows.  Memory is that of the lists and one chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spdsl.analysis.plans import KernelPlan
from spdsl.analysis.tiles import DistanceWalk
from spdsl.runtime.calls import Call, TileList
from spdsl.runtime.cells import Cells, joined
from spdsl.runtime.distance import with_distances
from spdsl.runtime.evaluate import Tables, tables_for
from spdsl.runtime.intervals import bounds_over
from spdsl.runtime.looks import Looked
from spdsl.runtime.pairs import Pairs, pairs_by_batch, pairs_of
from spdsl.runtime.recent import ByContent
from spdsl.runtime.tile_grid import By
from spdsl.semantics.nodes import Expr

_recent: ByContent[TileList] = ByContent(size=64)
_recent_rows: ByContent[TileList] = ByContent(size=32)

_CHUNK = 1 << 20
"""Tiles, and values at positions, that are held at once (times heads and batches)."""

_LEAST = 1024
"""Lengths up to this one share their lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The rows of a kernel that walks by distance: their tile size and that of the tiles they walk.

    Positions count from that of the first walked tile, which is a multiple of the period after ``origin``; row 0
    begins at ``first``.
    """

    walk: DistanceWalk
    by: By
    own: int
    walked: int
    first: int
    origin: int

    @classmethod
    def of(cls, kernel: KernelPlan, q_start: int) -> Rows:
        """The rows of a kernel in a call whose queries begin at ``q_start``."""
        walk, q, k = kernel.walk, kernel.block_q, kernel.block_k
        assert isinstance(walk, DistanceWalk)
        if kernel.by == "key":
            return cls(walk=walk, by="key", own=k, walked=q, first=-q_start, origin=q_start % walk.period)
        return cls(walk=walk, by="query", own=q, walked=k, first=q_start, origin=0)

    def places(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The class of each row, and the tile from which its distances count."""
        at = rows * self.own + self.first
        spans = at.div(self.walk.span, rounding_mode="floor")
        return at.remainder(self.walk.span) // self.walk.grain, spans * (self.walk.span // self.walked)

    def distances(self, longest: int) -> range:
        """All distances, in tiles, between rows and tiles with positions from 0 to ``longest - 1``."""
        return range(-(longest // self.walked) - 2, (longest + self.walk.span + self.own) // self.walked + 2)


def distance_lists(call: Call, kernel: KernelPlan) -> TileList:
    """The distances of each class of rows, ``[batch or 1, heads or 1, classes]``.

    They serve every call whose positions lie below the same power of two.
    """
    rows, keep = Rows.of(kernel, call.q_start), call.plan.keep
    length = max(call.keys, call.q_start + call.q.shape[2], _LEAST)
    longest = 1 << (length - 1).bit_length()
    tensors = tuple(call.tables[name] for name in rows.walk.tables)
    pairs = pairs_of(call)
    known = pairs.extents()
    sizes = (
        longest,
        (rows.walk, rows.by, rows.own, rows.walked, rows.first % rows.walk.grain, rows.origin),
        tuple(known[name] for name in rows.walk.extents),
        (pairs.heads, pairs.groups, str(pairs.device)),
        len(pairs.batches) if rows.walk.by_batch else 1,
    )
    return _recent.get(
        (id(keep), sizes),
        tensors,
        keep,
        lambda: _lists(keep, pairs, tables_for(call.plan.tables, call.tables), rows, longest),
    )


def row_lists(call: Call, kernel: KernelPlan) -> TileList:
    """The tiles of every row, as `spdsl.runtime.lists.tile_lists` gives them."""
    lists = distance_lists(call, kernel)
    sizes = (kernel.kind, call.q.shape[2], call.keys, call.q_start)

    def make() -> TileList:
        found = [_of_rows(_of_batch(lists, pairs.batches), pairs, kernel) for pairs in pairs_by_batch(call)]
        return joined(found)

    return _recent_rows.get((id(lists), sizes), (call.places,), lists, make)


# ---------------------------------------------------------------- one row of each class


def _lists(keep: Expr, pairs: Pairs, tables: Tables, rows: Rows, longest: int) -> TileList:
    """Tiles of one row of each class, far enough from the first position that none lies before it.

    Decided for strips of as many positions as lie between the classes; a row is several neighbouring strips.
    """
    expr = with_distances(keep)
    distances = rows.distances(longest)
    span, grain = rows.walk.span, rows.walk.grain
    away = -(distances.start * rows.walked // span) * span + rows.origin
    strips = (span + rows.own) // grain - 1
    own = rows.first % grain + away + torch.arange(strips * grain, device=pairs.device).view(-1, grain)
    parts: list[Cells] = []
    outer = (pairs.heads if rows.walk.by_head else 1) * (len(pairs.batches) if rows.walk.by_batch else 1)
    step = max(1, _CHUNK // (outer * max(strips, rows.walked)))
    for start in range(distances.start, distances.stop, step):
        stop = min(start + step, distances.stop)
        walked = torch.arange(start * rows.walked, stop * rows.walked, device=pairs.device) + away
        sides = (own, walked.view(-1, rows.walked))
        query, key = sides if rows.by == "query" else (sides[1], sides[0])
        bounds = bounds_over(expr, pairs, tables, query, key)
        truth = Looked(bounds=bounds, exact=True).of(slice(0, bounds.rows), slice(0, bounds.columns))
        may, must = (x if rows.by == "query" else x.transpose(-1, -2) for x in (truth.may, truth.must))
        size = rows.own // grain
        parts.append(_cells_of(_sums(may, size) > 0, _sums(must, size) == size, start))
    row, tile, masked = (torch.cat([getattr(part, name) for part in parts]) for name in ("row", "tile", "masked"))
    lists = Cells(shape=parts[0].shape, row=row, tile=tile, masked=masked).lists()
    return replace(lists, reach=-distances.start)


def _sums(strips: Tensor, size: int) -> Tensor:
    """How many of ``size`` strips from each on are true."""
    counts = torch.nn.functional.pad(strips.int().cumsum(-2, dtype=torch.int32), (0, 0, 1, 0))
    return counts[..., size:, :] - counts[..., :-size, :]


def _cells_of(may: Tensor, must: Tensor, first: int) -> Cells:
    batch, head, row, column = may.nonzero().unbind(1)
    shape = (may.shape[0], may.shape[1], may.shape[2])
    number = (batch * shape[1] + head) * shape[2] + row
    return Cells(shape=shape, row=number, tile=column + first, masked=~must[may])


# ---------------------------------------------------------------- all rows


def _of_batch(lists: TileList, batches: range) -> TileList:
    """The lists of some sequences; all share one where they do not differ."""
    if lists.begin.shape[0] == 1:
        return lists
    begin, middle, end = (each[batches.start : batches.stop] for each in (lists.begin, lists.middle, lists.end))
    return replace(lists, begin=begin, middle=middle, end=end)


def _of_rows(lists: TileList, pairs: Pairs, kernel: KernelPlan) -> TileList:
    rows = Rows.of(kernel, pairs.q_start)
    existing, others = (pairs.queries, pairs.keys) if rows.by == "query" else (pairs.keys, pairs.queries)
    count, tiles = -(-existing // rows.own), -(-others // rows.walked)
    numbers = torch.arange(count, device=pairs.device)
    kind, first = rows.places(numbers)
    begin, middle, end = (each[..., kind] for each in (lists.begin, lists.middle, lists.end))
    cells = Cells.of(TileList(begin=begin, middle=middle, end=end, tiles=lists.tiles))
    outer = torch.arange(cells.shape[0] * cells.shape[1], device=pairs.device)[:, None] * count
    # Tiles further back than the lists reach are walked as if any pair of them might count.
    far = (first - lists.reach).clamp(0, tiles)
    rest = torch.repeat_interleave(numbers, far)
    before = torch.arange(len(rest), device=pairs.device) - (far.cumsum(0) - far)[rest]
    unknown = (outer + rest).flatten()
    number = torch.cat([cells.row, unknown])
    row = number % max(count, 1)
    tile = torch.cat([cells.tile + first[cells.row % max(count, 1)], before.repeat(len(outer))])
    i, j = (row, tile) if rows.by == "query" else (tile, row)
    at, stop = pairs.q_start + i * kernel.block_q, (j + 1) * kernel.block_k
    exists = (tile >= 0) & (tile < tiles) & (at + kernel.block_q > 0)
    masked = torch.cat([cells.masked, torch.ones_like(unknown, dtype=torch.bool)]) | (at < 0) | (stop > pairs.keys)
    return Cells(shape=cells.shape, row=number[exists], tile=tile[exists], masked=masked[exists]).lists()
