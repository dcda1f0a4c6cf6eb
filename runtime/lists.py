"""Lists of the touched tiles of every row, built on the device of the tables.

From: a predicate, tables, lengths and tile sizes.  To: a `TileList`, full tiles first.  The predicate is bounded tile by tile
in chunks of rows, so memory is that of the list and one chunk.  Where few tiles stay in doubt, their pairs are looked at, so
that empty tiles leave the list and full ones need no mask.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from spdsl.runtime.calls import Call, TileList
from spdsl.runtime.evaluate import Tables, evaluate, tables_for
from spdsl.runtime.intervals import TileBounds, tile_bounds
from spdsl.runtime.pairs import Pairs, pairs_by_batch
from spdsl.runtime.ranges import Truth
from spdsl.semantics.nodes import Expr

By: TypeAlias = Literal["query", "key"]

_CHUNK = 1 << 20
"""Tiles (times heads and batches) that are bounded at once."""

_CHUNK_PAIRS = 1 << 21
"""Pairs that are evaluated at once when tiles in doubt are looked at."""

_DOUBT = 4
"""Tiles in doubt are looked at when there are at most this many for each row and column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Touched tiles of a few rows: their numbers row by row, full ones first, and how many there are."""

    full: Tensor
    masked: Tensor
    tiles: Tensor


def tile_lists(call: Call, *, by: By, block_q: int, block_k: int, exact: bool | None = None) -> TileList:
    """The tiles of every query tile (or, ``by="key"``, of every key tile) for the set of a call.

    A tile is full when every existing pair of it is kept, and then never one with keys past the end or queries at negative
    positions; those are masked.  ``exact`` looks at all tiles in doubt (True) or at none (False); by default at few.
    """
    key = _key(call, by, block_q, block_k, exact)
    found = _cache.get(key) if key is not None else None
    if found is None:
        tables = tables_for(call.plan.tables, call.tables)
        rows = -(-call.q.shape[2] // block_q) if by == "query" else -(-call.k.shape[2] // block_k)
        lists = [
            _listed(call.plan.keep, pairs, tables, by, block_q, block_k, rows, exact) for pairs in pairs_by_batch(call)
        ]
        found = _joined(lists)
        if key is not None:
            _cache.put(key, found, (call.plan.keep, call.places, *call.tables.values()))
    return found


def _listed(
    keep: Expr, pairs: Pairs, tables: Tables, by: By, block_q: int, block_k: int, rows: int, exact: bool | None
) -> TileList:
    bounds = tile_bounds(keep, pairs, tables, block_q=block_q, block_k=block_k)
    existing, others = (bounds.rows, bounds.columns) if by == "query" else (bounds.columns, bounds.rows)
    step = max(1, _CHUNK // max(1, others * pairs.heads))
    # Without keys or queries there is nothing to bound.
    starts = range(0, existing, step) if others else range(0)
    parts = [_part(bounds, by, slice(start, min(start + step, existing)), exact) for start in starts]
    full, masked = _padded([p.full for p in parts], rows, pairs), _padded([p.masked for p in parts], rows, pairs)
    tiles = torch.cat([p.tiles for p in parts]) if parts else torch.zeros(0, dtype=torch.int32, device=pairs.device)
    return _ordered(full, masked, tiles, [p.full.shape[-1] for p in parts])


def _part(bounds: TileBounds, by: By, part: slice, exact: bool | None) -> _Part:
    everything = slice(None)
    rows, columns = (part, everything) if by == "query" else (everything, part)
    truth = _decided(bounds, bounds.of(rows, columns), rows, columns, exact)
    lacking = _lacking(bounds, rows, columns)
    shape = _shape(truth, len(range(bounds.rows)[rows]), len(range(bounds.columns)[columns]))
    may, must = truth.may.expand(shape), (truth.must & ~lacking).expand(shape)
    if by == "key":
        may, must = may.transpose(-1, -2), must.transpose(-1, -2)
    full, masked = may & must, may & ~must
    # Full tiles of a row stand before its masked ones when both are laid side by side.
    tiles = torch.cat([full, masked], dim=-1).nonzero()[:, -1] % may.shape[-1]
    return _Part(full=full.sum(-1), masked=masked.sum(-1), tiles=tiles.int())


def _shape(truth: Truth, rows: int, columns: int) -> tuple[int, int, int, int]:
    known = (1,) * (4 - truth.may.dim()) + tuple(truth.may.shape)
    return max(known[0], 1), max(known[1], 1), rows, columns


def _lacking(bounds: TileBounds, rows: slice, columns: slice) -> Tensor:
    """Tiles with pairs that do not exist and that a kernel computes all the same."""
    device = bounds.pairs.device
    first = bounds.pairs.q_start + torch.arange(bounds.rows, device=device) * bounds.block_q
    last = torch.arange(1, bounds.columns + 1, device=device) * bounds.block_k
    return (first < 0)[rows, None] | (last > bounds.pairs.keys)[None, columns]


def _decided(bounds: TileBounds, truth: Truth, rows: slice, columns: slice, exact: bool | None) -> Truth:
    """The bounds after a look at the pairs of tiles in doubt, if there are few of them."""
    shape = _shape(truth, len(range(bounds.rows)[rows]), len(range(bounds.columns)[columns]))
    may, must = truth.may.expand(shape), truth.must.expand(shape)
    first = bounds.pairs.q_start + torch.arange(bounds.rows, device=may.device)[rows] * bounds.block_q
    # Query tiles that are padding throughout keep nothing.
    may = may & (first + bounds.block_q > 0)[:, None]
    if exact is False:
        return Truth(may=may, must=must)
    doubt = (may & ~must).nonzero()
    if not len(doubt) or exact is None and len(doubt) > _DOUBT * (shape[-2] + shape[-1]):
        return Truth(may=may, must=must)
    offset = torch.tensor([0, 0, range(bounds.rows)[rows].start, range(bounds.columns)[columns].start], device=may.device)
    step = max(1, _CHUNK_PAIRS // (bounds.block_q * bounds.block_k))
    looks = [_look(bounds, chunk + offset) for chunk in doubt.split(step)]
    may, must = may.clone(), must.clone()
    may[tuple(doubt.T)] = torch.cat([look.may for look in looks])
    must[tuple(doubt.T)] = torch.cat([look.must for look in looks])
    return Truth(may=may, must=must)


def _look(bounds: TileBounds, tiles: Tensor) -> Truth:
    """Whether the tiles ``[count, 4]`` (batch, head, row, column) are touched, and whether they are full."""
    pairs = bounds.pairs
    batch, head, row, column = (index.view(-1, 1, 1) for index in tiles.T)
    q = bounds.positions("q").view(bounds.rows, bounds.block_q)[row[:, 0, 0]].unsqueeze(-1)
    k = bounds.positions("k").view(bounds.columns, bounds.block_k)[column[:, 0, 0]].unsqueeze(-2)
    outer: dict[str, Tensor | int] = {
        "b": batch + pairs.batches.start,
        "h": head,
        "g": head // (pairs.heads // pairs.groups),
    }
    kept = evaluate(bounds.expr, pairs.extents() | outer | {"q": q, "k": k, "d": q - k}, bounds.tables)
    kept = kept.expand(len(tiles), bounds.block_q, bounds.block_k)
    return Truth(may=kept.any(-1).any(-1), must=kept.all(-1).all(-1))


# ---------------------------------------------------------------- layout


def _padded(counts: Sequence[Tensor], rows: int, pairs: Pairs) -> Tensor:
    """Counts of all rows, ``[batch or 1, heads or 1, rows]``; rows past the existing ones have no tiles."""
    if not counts:
        return torch.zeros(1, 1, rows, dtype=torch.int64, device=pairs.device)
    joined = torch.cat(list(counts), dim=-1)
    return torch.nn.functional.pad(joined, (0, rows - joined.shape[-1]))


def _ordered(full: Tensor, masked: Tensor, tiles: Tensor, sizes: list[int]) -> TileList:
    """Rows index ``tiles`` in the order in which they were made: chunk of rows, batch, head, row."""
    counts = full + masked
    begin = torch.zeros_like(counts)
    start, done = 0, 0
    for size in sizes:
        part = counts[..., start : start + size]
        ends = part.flatten().cumsum(0).view(part.shape)
        begin[..., start : start + size] = ends - part + done
        start, done = start + size, done + int(part.sum())
    return TileList(begin=begin.int(), middle=(begin + full).int(), end=(begin + counts).int(), tiles=tiles)


def _joined(lists: Sequence[TileList]) -> TileList:
    """The lists of single batches as one."""
    if len(lists) == 1:
        return lists[0]
    heads = max(one.begin.shape[1] for one in lists)
    starts = [0]
    for one in lists:
        starts.append(starts[-1] + len(one.tiles))

    def stacked(field: str) -> Tensor:
        rows = [getattr(one, field) + start for one, start in zip(lists, starts, strict=False)]
        return torch.cat([row.expand(1, heads, -1) for row in rows])

    return TileList(
        begin=stacked("begin"),
        middle=stacked("middle"),
        end=stacked("end"),
        tiles=torch.cat([one.tiles for one in lists]),
    )


# ---------------------------------------------------------------- cache


@dataclass(frozen=True, slots=True, kw_only=True)
class ListCache:
    """The lists used last.  Each entry keeps what it was made from, so that no address in a key is used again."""

    size: int
    entries: OrderedDict[Hashable, tuple[TileList, tuple[object, ...]]]

    def get(self, key: Hashable) -> TileList | None:
        """The list under a key, now the one used last."""
        if key not in self.entries:
            return None
        self.entries.move_to_end(key)
        return self.entries[key][0]

    def put(self, key: Hashable, lists: TileList, sources: tuple[object, ...]) -> None:
        """Keep a list; the one not used for longest goes."""
        self.entries[key] = (lists, sources)
        if len(self.entries) > self.size:
            self.entries.popitem(last=False)


_cache = ListCache(size=32, entries=OrderedDict())


def identity(tensor: Tensor | None) -> Hashable:
    """What stays the same as long as a tensor holds the same numbers."""
    if tensor is None:
        return None
    place = (tensor.data_ptr(), tensor._version, tensor.storage_offset(), str(tensor.device))
    return (*place, tensor.dtype, tuple(tensor.shape), tensor.stride())


def _key(call: Call, by: By, block_q: int, block_k: int, exact: bool | None) -> Hashable:
    tensors = (call.places, *call.tables.values())
    if any(tensor is not None and tensor.is_inference() for tensor in tensors):
        # Inference tensors do not count their changes.
        return None
    sizes = (call.q.shape[:3], call.k.shape[1:3], call.q_start, str(call.q.device))
    tables = tuple((name, identity(tensor)) for name, tensor in call.tables.items())
    return (id(call.plan.keep), by, block_q, block_k, exact, sizes, identity(call.places), tables)
