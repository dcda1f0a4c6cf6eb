"""The tiles of a walk in closed form, as the kernels walk them.

From: a `SlotWalk`, lengths and tables.  To: a `TileList`.  Bounds are evaluated for all rows at once and the tiles
between them enumerated, so that cost and memory are those of the rows and the tiles kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spdsl.analysis.tiles import Slot, SlotWalk
from spdsl.runtime.calls import TileList
from spdsl.runtime.cuts import intervals, with_intervals
from spdsl.runtime.evaluate import Tables, evaluate
from spdsl.runtime.pairs import Pairs
from spdsl.runtime.tile_grid import TileGrid
from spdsl.semantics.nodes import Expr

_CHUNK = 1 << 21
"""Tiles that are enumerated at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tiles:
    """Listed tiles: the numbers of their rows ``(batch * heads + head) * rows + row``, and which of them are full."""

    owner: Tensor
    tile: Tensor
    full: Tensor


def slot_lists(walk: SlotWalk, grid: TileGrid, pairs: Pairs, tables: Tables, rows: int) -> TileList:
    """The tiles of ``rows`` rows, full ones first; full intervals are clamped to touched ones, as in a kernel.

    Rows past the existing ones have no tiles.  Tiles of padding alone are left out, and those with pairs that do not
    exist and that a kernel computes all the same are masked.
    """
    if walk.cuts is not None:
        tables = with_intervals(tables, walk.cuts, intervals(walk.cuts, pairs, tables, grid))
    rowed = _Rows.of(walk, grid, pairs, tables)
    batch, heads, existing = rowed.shape
    found = [part for slot in walk.slots if existing for part in rowed.tiles(slot)]
    owner, tile, full = (
        torch.cat([getattr(part, name) for part in found])
        if found
        else torch.zeros(0, dtype=torch.int64, device=pairs.device)
        for name in ("owner", "tile", "full")
    )
    order = torch.argsort((owner * 2 + ~full.bool()) * (rowed.walked + 1) + tile)
    owner, tile, full = owner[order], tile[order], full[order].long()
    count = batch * heads * existing
    listed = torch.bincount(owner, minlength=count).view(rowed.shape)
    whole = torch.bincount(owner[full > 0], minlength=count).view(rowed.shape)
    end = listed.flatten().cumsum(0).view(rowed.shape)
    begin = end - listed
    short = (0, rows - existing)
    ends = [torch.nn.functional.pad(each, short).int() for each in (begin, begin + whole, end)]
    return TileList(begin=ends[0], middle=ends[1], end=ends[2], tiles=tile.int())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """All rows of a walk: index variables ``[…, rows]`` in ``env``, ``shape`` (batches, heads, rows) that bounds have,
    and how many tiles there are to walk."""

    grid: TileGrid
    pairs: Pairs
    tables: Tables
    env: dict[str, Tensor | int]
    shape: tuple[int, int, int]
    walked: int

    @classmethod
    def of(cls, walk: SlotWalk, grid: TileGrid, pairs: Pairs, tables: Tables) -> _Rows:
        """The rows that exist; batches and heads apart only where the walk tells them apart."""
        by_query = grid.by == "query"
        count = grid.query_tiles(pairs.queries) if by_query else grid.key_tiles(pairs.keys)
        number = torch.arange(count, device=pairs.device)
        env = pairs.extents() | pairs.outer(1) | grid.within(number, number, pairs.q_start)
        walked = grid.key_tiles(pairs.keys) if by_query else grid.query_tiles(pairs.queries)
        shape = torch.Size((1, 1, count))
        for slot in walk.slots:
            parts = [slot.touched.lo, slot.touched.hi, slot.phase, slot.filter]
            parts += [slot.full.lo, slot.full.hi] if slot.full is not None else []
            other = {"j" if by_query else "i": torch.zeros_like(number)}
            for part in parts:
                if part is not None:
                    shape = torch.broadcast_shapes(shape, evaluate(part, env | other, tables).shape)
        batch, heads, _ = shape
        return cls(grid=grid, pairs=pairs, tables=tables, env=env, shape=(batch, heads, count), walked=walked)

    def tiles(self, slot: Slot) -> Iterator[_Tiles]:
        """The tiles of a slot, a chunk of rows at a time."""
        low, high = self.bound(slot.touched.lo).clamp(min=0), self.bound(slot.touched.hi).clamp(max=self.walked)
        phase = self.bound(slot.phase) if slot.phase is not None else torch.zeros_like(low)
        first = torch.div(low - phase, slot.step, rounding_mode="floor")
        periods = torch.div(high - 1 - phase, slot.step, rounding_mode="floor") + 1 - first
        turns = torch.where(high > low, periods * slot.run, 0)
        ends = turns.cumsum(0)
        start = 0
        while start < len(turns):
            done = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(torch.searchsorted(ends, done + _CHUNK, right=True)))
            part = slice(start, stop)
            owner = torch.repeat_interleave(torch.arange(start, stop, device=ends.device), turns[part])
            turn = torch.arange(len(owner), device=ends.device) - (ends - turns)[owner] + done
            tile = phase[owner] + (first[owner] + turn // slot.run) * slot.step + turn % slot.run
            inside = (low[owner] <= tile) & (tile < high[owner])
            yield self._listed(slot, owner[inside], tile[inside])
            start = stop

    def bound(self, expr: Expr) -> Tensor:
        """An int for every row, flat."""
        return evaluate(expr, self.env, self.tables).expand(self.shape).flatten()

    def _listed(self, slot: Slot, owner: Tensor, tile: Tensor) -> _Tiles:
        here: dict[str, Any] = {name: self._spread(value, owner) for name, value in self.env.items()}
        here["j" if self.grid.by == "query" else "i"] = tile
        if slot.filter is not None:
            kept = evaluate(slot.filter, here, self.tables).expand(owner.shape)
            owner, tile = owner[kept], tile[kept]
            here = {name: value[kept] if isinstance(value, Tensor) else value for name, value in here.items()}
        first = self.pairs.q_start + here["i"] * self.grid.spans[0]
        lacking = (first < 0) | ((here["j"] + 1) * self.grid.spans[1] > self.pairs.keys)
        full = torch.zeros_like(lacking)
        if slot.full is not None:
            low, high = self.bound(slot.full.lo)[owner], self.bound(slot.full.hi)[owner]
            full = (low <= tile) & (tile < high) & ~lacking
        exists = first + self.grid.spans[0] > 0
        return _Tiles(owner=owner[exists], tile=tile[exists], full=full[exists])

    def _spread(self, value: Tensor | int, owner: Tensor) -> Tensor | int:
        """The value for each listed tile; batches and heads that the walk does not tell apart have the first's."""
        if not isinstance(value, Tensor) or value.dim() == 0 or value.numel() == 0:
            return value
        parts = torch.unravel_index(owner, self.shape)[3 - value.dim() :]
        return value[tuple(part.clamp(max=size - 1) for part, size in zip(parts, value.shape, strict=True))]
