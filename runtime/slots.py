"""The tiles of a walk in closed form, as the kernels walk them.

From: a `SlotWalk` and lengths.  To: `Truth` for blocks of tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spdsl.analysis.tiles import Interval, Slot, SlotWalk
from spdsl.runtime.evaluate import Tables, evaluate
from spdsl.runtime.pairs import Pairs
from spdsl.runtime.ranges import Truth
from spdsl.runtime.tile_grid import TileGrid


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotTiles:
    """The tiles of a walk.  Full intervals are clamped to touched ones, as in a kernel."""

    walk: SlotWalk
    grid: TileGrid
    pairs: Pairs
    tables: Tables

    @property
    def rows(self) -> int:
        """Tiles of queries."""
        return self.grid.query_tiles(self.pairs.queries)

    @property
    def columns(self) -> int:
        """Tiles of keys."""
        return self.grid.key_tiles(self.pairs.keys)

    def of(self, rows: slice, columns: slice) -> Truth:
        """Which tiles are touched and full, broadcastable over ``[batch, heads, rows, columns]``."""
        device = self.pairs.device
        i = torch.arange(rows.start, rows.stop, device=device).view(-1, 1)
        j = torch.arange(columns.start, columns.stop, device=device).view(1, -1)
        tiles = self.grid.within(i, j, self.pairs.q_start)
        env = self.pairs.extents() | self.pairs.outer(2) | tiles
        tile = tiles["j" if self.grid.by == "query" else "i"]
        nothing = torch.zeros(1, 1, dtype=torch.bool, device=device)
        may = must = nothing
        for slot in self.walk.slots:
            touched = self._slot(slot, tile, env)
            may = may | touched
            if slot.full is not None:
                must = must | touched & self._inside(slot.full, tile, env)
        return Truth(may=may, must=must)

    def _slot(self, slot: Slot, tile: Tensor, env: dict[str, Tensor | int]) -> Tensor:
        touched = self._inside(slot.touched, tile, env)
        if slot.step > 1:
            phase = evaluate(slot.phase, env, self.tables) if slot.phase is not None else 0
            touched = touched & (torch.remainder(tile - phase, slot.step) < slot.run)
        if slot.filter is not None:
            touched = touched & evaluate(slot.filter, env, self.tables)
        return touched

    def _inside(self, interval: Interval, tile: Tensor, env: dict[str, Tensor | int]) -> Tensor:
        lo, hi = evaluate(interval.lo, env, self.tables), evaluate(interval.hi, env, self.tables)
        return (lo <= tile) & (tile < hi)
