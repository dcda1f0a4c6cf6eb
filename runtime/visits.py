"""How many tiles a walk visits, counted row by row without listing them.

From: a walk and the lengths of a call.  To: `Visits`, as generated kernels walk: tiles over the edge of the tensors
are masked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from spdsl.analysis.tiles import Interval, Slot, SlotWalk
from spdsl.runtime.calls import Call, TileList
from spdsl.runtime.cuts import intervals, with_intervals
from spdsl.runtime.evaluate import Tables, evaluate, tables_for
from spdsl.runtime.pairs import Pairs, pairs_by_batch
from spdsl.runtime.tile_grid import TileGrid
from spdsl.semantics.rewrite import free_indices

_CHUNK = 1 << 20
"""Rows, or tiles where these are tested one by one, that are looked at together."""

_OF_ROWS = {"query": {"i", "q_class", "k_class"}, "key": {"j", "q_class", "k_class"}}

_Env: TypeAlias = dict[str, Tensor | int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Visits:
    """Tiles over batch and heads; ``metadata`` is the size in bytes of the tensors that are made to find them.

    ``longest`` is the largest number of tiles that one row touches, 0 where rows are much alike.
    """

    touched: int
    full: int
    metadata: int = 0
    longest: int = 0


def list_visits(lists: TileList, batch: int, heads: int) -> Visits:
    """What a kernel visits whose tiles are listed."""
    weight = (batch // lists.begin.shape[0]) * (heads // lists.begin.shape[1])
    return Visits(
        touched=int((lists.end - lists.begin).sum()) * weight,
        full=int((lists.middle - lists.begin).sum()) * weight,
        metadata=lists.nbytes,
        longest=int((lists.end - lists.begin).max()) if lists.begin.numel() else 0,
    )


def slot_visits(call: Call, walk: SlotWalk, grid: TileGrid) -> Visits:
    """What a kernel visits that walks slots."""
    tables = tables_for(call.plan.tables, call.tables)
    touched = full = metadata = longest = 0
    for pairs in pairs_by_batch(call):
        if walk.cuts is not None:
            found = intervals(walk.cuts, pairs, tables, grid)
            metadata += 4 * found.numel()
            tables = with_intervals(tables, walk.cuts, found)
        rows = _Rows(grid=grid, pairs=pairs, tables=tables)
        # A row may be long in several slots; their longest together are close enough to the longest of all.
        of_slots = [rows.visits(slot) for slot in walk.slots]
        touched += sum(each.touched for each in of_slots)
        full += sum(each.full for each in of_slots)
        longest = max(longest, sum(each.longest for each in of_slots))
    return Visits(touched=touched, full=full, metadata=metadata, longest=longest)


def is_tested_by_row(walk: SlotWalk, grid: TileGrid) -> bool:
    """Whether tiles of some slot are tested one by one, differently for each row: counting then looks at all tiles."""
    return any(_is_tested_by_row(slot, grid) for slot in walk.slots)


def _is_tested_by_row(slot: Slot, grid: TileGrid) -> bool:
    if slot.filter is None:
        return False
    tests = (slot.filter,) if slot.phase is None else (slot.filter, slot.phase)
    return any(free_indices(test) & _OF_ROWS[grid.by] for test in tests)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """The rows of tiles that programs own, for the pairs of some batches; counts are ``[batch?, heads?, rows]``."""

    grid: TileGrid
    pairs: Pairs
    tables: Tables

    @property
    def by_query(self) -> bool:
        return self.grid.by == "query"

    @property
    def rows(self) -> int:
        return self.grid.query_tiles(self.pairs.queries) if self.by_query else self.grid.key_tiles(self.pairs.keys)

    @property
    def walked(self) -> int:
        """How many tiles a row may walk."""
        return self.grid.key_tiles(self.pairs.keys) if self.by_query else self.grid.query_tiles(self.pairs.queries)

    def visits(self, slot: Slot) -> Visits:
        """Tiles of a slot, over all rows, heads and batches."""
        outer = self.pairs.heads * len(self.pairs.batches)
        many = self.walked if _is_tested_by_row(slot, self.grid) else 1
        step = max(1, _CHUNK // max(1, outer * many))
        touched = full = longest = 0
        for start in range(0, self.rows, step):
            row = torch.arange(start, min(start + step, self.rows), device=self.pairs.device)
            env = self._env(row)
            lo, hi = (end + row * 0 for end in self._touched(slot.touched, env))
            counts = self._between(slot, env, lo, hi)
            touched += self._total(counts, outer * len(row))
            longest = max(longest, int(counts.max()))
            if slot.full is not None:
                full_lo, full_hi = self._full(slot.full, env)
                full_lo = torch.minimum(torch.maximum(full_lo, lo), hi)
                full_hi = torch.maximum(torch.minimum(full_hi, hi), full_lo)
                full += self._total(self._between(slot, env, full_lo, full_hi), outer * len(row))
        return Visits(touched=touched, full=full, longest=longest)

    @staticmethod
    def _total(counts: Tensor, rows: int) -> int:
        """The sum over so many rows; those of heads and batches that do not differ are counted once."""
        return int(counts.sum()) * (rows // counts.numel())

    def _env(self, row: Tensor) -> _Env:
        other = torch.zeros_like(row)
        tiles = self.grid.within(*((row, other) if self.by_query else (other, row)), self.pairs.q_start)
        return self.pairs.extents() | self.pairs.outer(1) | tiles

    def _touched(self, interval: Interval, env: _Env) -> tuple[Tensor, Tensor]:
        lo, hi = (evaluate(end, env, self.tables) for end in (interval.lo, interval.hi))
        lo = lo.clamp(0, self.walked)
        return lo, torch.maximum(lo, hi.clamp(max=self.walked))

    def _full(self, interval: Interval, env: _Env) -> tuple[Tensor, Tensor]:
        """The interval without tiles over the edge: keys or queries past the end, queries at negative positions."""
        lo, hi = (evaluate(end, env, self.tables) for end in (interval.lo, interval.hi))
        span_q, span_k = self.grid.spans
        if self.by_query:
            first = self.pairs.q_start + torch.as_tensor(env["i"]) * span_q
            return lo, torch.where(first >= 0, hi.clamp(max=self.pairs.keys // span_k), 0)
        return lo.clamp(min=-(min(self.pairs.q_start, 0) // span_q)), hi.clamp(max=self.pairs.queries // span_q)

    def _between(self, slot: Slot, env: _Env, lo: Tensor, hi: Tensor) -> Tensor:
        """How many tiles from lo to hi the slot walks."""
        if slot.filter is None:
            return hi - lo if slot.step == 1 else self._before(slot, env, hi) - self._before(slot, env, lo)
        tile = torch.arange(self.walked, device=self.pairs.device)
        if _is_tested_by_row(slot, self.grid):
            walks = self._walks(slot, {name: _spread(value) for name, value in env.items()}, tile)
            return (walks & (lo[..., None] <= tile) & (tile < hi[..., None])).sum(-1)
        walks = self._walks(slot, env, tile)
        before = torch.nn.functional.pad(walks.cumsum(-1), (1, 0))
        # Bounds that are the same for all rows have no axis of rows.
        lo, hi = torch.broadcast_tensors(torch.atleast_1d(lo), torch.atleast_1d(hi))
        shape = torch.broadcast_shapes(before.shape[:-1], lo.shape[:-1])
        lo, hi, before = (x.expand(*shape, -1) for x in (lo, hi, before))
        return before.gather(-1, hi) - before.gather(-1, lo)

    def _before(self, slot: Slot, env: _Env, end: Tensor) -> Tensor:
        """How many tiles of the lattice lie from its phase to an end; negative where the end comes first."""
        past = end if slot.phase is None else end - evaluate(slot.phase, env, self.tables)
        turns = torch.div(past, slot.step, rounding_mode="floor")
        return turns * slot.run + (past - turns * slot.step).clamp(max=slot.run)

    def _walks(self, slot: Slot, env: _Env, tile: Tensor) -> Tensor:
        """Which tiles pass the filter and lie on the lattice."""
        assert slot.filter is not None
        passes = evaluate(slot.filter, env | {"j" if self.by_query else "i": tile}, self.tables)
        if slot.step > 1:
            phase = 0 if slot.phase is None else evaluate(slot.phase, env, self.tables)
            passes = passes & (torch.remainder(tile - phase, slot.step) < slot.run)
        return passes & torch.ones_like(tile, dtype=torch.bool)


def _spread(value: Tensor | int) -> Tensor | int:
    """A value of a row, before all tiles of the row."""
    return value[..., None] if isinstance(value, Tensor) else value
