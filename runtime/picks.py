"""What queries have picked, as kernels walk it: blocks by tiles of queries, and queries by blocks of keys.

From the lists of a selection, int32 ``[batch or 1, heads or 1, runs of queries, most]``, ascending, with numbers too
large to be a block after the last.  Everything is made on the device of the lists, and the host waits for nothing:
sizes are bounded by those of the lists, and memory is a few numbers for each pick.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor

from spdsl.analysis.plans import KernelPlan
from spdsl.analysis.tiles import Picks
from spdsl.runtime.calls import Call, GatheredItems, PickedItems, TileList
from spdsl.runtime.checks import captured, refuse_many
from spdsl.runtime.owners import for_owners
from spdsl.runtime.ranking import FAR
from spdsl.runtime.recent import ByContent
from spdsl.runtime.runs import Pieces, joined_lists, pieces_of, runs_of
from spdsl.runtime.shared_keys import shared_keys

T = TypeVar("T")

_passing: ByContent[TileList] = ByContent(size=6)
"""Lists by query, kept from the forward to the backward."""

_turned: ByContent[Transposed] = ByContent(size=4)
"""Queries by what they have picked, likewise."""

PROGRAMS = 512
"""Parts into which what has been picked is cut by key, beyond one for each block: about four for each multiprocessor of
a large GPU.  It does not depend on the machine, so that sums repeat bitwise on all of them."""

LEAST = 256
"""The least number of picks that is worth a part of its own."""


def picked_lists(call: Call, kernel: KernelPlan) -> TileList | PickedItems | GatheredItems:
    """The lists of a kernel that walks what queries have picked; the recorder notes how they are made, so that a tape
    makes them of other picks."""
    picks = kernel.picks
    assert picks is not None
    if picks.where is not None:
        return shared_keys(call, picks.where)
    given = call.tables[picks.table]
    (declared,) = (each for each in call.plan.tables if each.name == picks.table)
    request = _Request(
        picks=picks,
        keys=kernel.block_k,
        by=kernel.by,
        axes=tuple(axis.kind for axis in declared.axes),
        shape=tuple(int(size) for size in call.q.shape[:3]),
        n=call.k.shape[2],
        q_start=call.q_start,
    )
    tables = (given, call.tables[picks.runs]) if picks.runs else (given,)
    lists = request.lists(*tables)
    call.recorder.made(lists.tensors, request.tensors, *tables)
    return lists


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What decides how lists are made of picks: the kernel's tiles, and the sizes of a call, ``shape`` being those of
    sequences, query heads and queries; ``axes`` are those of the table."""

    picks: Picks
    keys: int
    by: Literal["query", "key"]
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    n: int
    q_start: int

    @property
    def blocks(self) -> int:
        """How many blocks of keys there are."""
        return -(-self.n // self.picks.block)

    def tensors(self, *given: Tensor) -> tuple[Tensor, ...]:
        """The tensors of the lists, in the order of their fields."""
        return self.lists(*given).tensors

    def lists(self, given: Tensor, runs: Tensor | None = None) -> TileList | PickedItems | GatheredItems:
        """The lists of picks, those of a moment ago where these are the same; ``runs`` is the table of runs."""
        picks = self.picks
        refuse_many(math.prod((*self._owners, *given.shape[-2:])), "picks of all heads")
        sizes = (picks.rows, picks.block, picks.heads, self.shape, self.n, self.q_start)
        if runs is not None and picks.order != "gathered":
            key = (picks.runs, picks.positions, *sizes)
            return _remembered(_passing, key, (given, runs), lambda: self._joined(self._table(given), runs))
        if runs is not None:
            return self._pieces(self._table(given), runs)
        if picks.order != "gathered":
            key = (picks.order, picks.positions, *sizes)
            return _remembered(_passing, key, (given,), lambda: self._by_query(self._table(given)))
        if picks.fine:
            return self._fine_by_key(self._table(given))
        lists = turned(given, sizes, lambda: transposed(self._owned(self._table(given)), self.blocks))
        return by_key(lists) if self.by == "key" else gathered(lists, picks.positions)

    def _table(self, given: Tensor) -> Tensor:
        """The picks with axes of sequences and of heads."""
        return with_heads(given, self.axes)

    def _owned(self, table: Tensor) -> Tensor:
        """A list for every sequence and all heads that share it."""
        return table.expand(*self._owners, -1, -1)

    @property
    def _owners(self) -> tuple[int, int]:
        """How many sequences there are, and how many heads that share a list count as one."""
        return self.shape[0], self.shape[1] // self.picks.heads

    def _by_query(self, table: Tensor) -> TileList:
        picks = self.picks
        if picks.order == "alike":
            return as_they_are(table, self.blocks)
        if picks.rows > 1:
            at = torch.arange(self.shape[2], device=table.device) + self.q_start
            run = at.div(picks.rows, rounding_mode="floor")
            table = table.index_select(2, run.clamp(min=0)).masked_fill((at < 0)[:, None], FAR)
        return unions(table, picks.positions, self.blocks)

    def _joined(self, table: Tensor, runs: Tensor) -> TileList:
        """What the runs of each tile of queries have picked, which a table tells."""
        pieces = self._cut(table, runs, aligned=True)
        join = joined_lists
        if table.device.type == "cuda" and table.numel():
            from spdsl.runtime import piece_kernels

            join = piece_kernels.joined_lists
        begin, end, tiles, bits = join(pieces, table, self.picks.positions, self.shape[2], self.blocks)
        return TileList(begin=begin, middle=begin, end=end, tiles=tiles, bits=bits)

    def _cut(self, table: Tensor, runs: Tensor, *, aligned: bool) -> Pieces:
        """Pieces of the runs, each with a list of its own."""
        own = runs_of(runs, self.shape[2], self.q_start)
        pieces = pieces_of(own, table.shape[-2], self.picks.positions, aligned=aligned)
        refuse_many(table[..., 0, :].numel() * len(pieces.run), "picks of pieces of all heads' runs")
        return pieces

    def _pieces(self, table: Tensor, runs: Tensor) -> PickedItems:
        """The pieces of runs that have picked each block of keys, or any key of each tile."""
        picks, blocks, of_keys = self.picks, self.blocks, None
        pieces = self._cut(table, runs, aligned=False)
        if picks.fine:
            blocks = -(-self.n // self.keys)
            table, of_keys = coarser(table, picks.block, self.keys, self.n)
        # Heads and sequences that share lists have them sorted once.
        given = transposed(pieces.lists(table).contiguous(), blocks)
        items = by_key(given)
        if of_keys is not None:
            of_keys = of_keys.index_select(-2, pieces.run.clamp(0, max(of_keys.shape[-2] - 1, 0)))
            items = replace(items, bits=carried(of_keys.contiguous(), given))
        items = for_owners(items, self._owners, (table.shape[0], table.shape[1]))
        first, end = (each.int()[items.queries.long()] for each in (pieces.first, pieces.last))
        return replace(items, queries=first, ends=end)

    def _fine_by_key(self, table: Tensor) -> PickedItems:
        """The queries that have picked any key of each tile, with bits for its keys."""
        lists, bits = coarser(table, self.picks.block, self.keys, self.n)
        given = transposed(lists, -(-self.n // self.keys))
        items = replace(by_key(given), bits=carried(bits, given))
        return for_owners(items, self._owners, (table.shape[0], table.shape[1]))


def with_heads(given: Tensor, axes: tuple[str, ...]) -> Tensor:
    """Lists with these axes, with one of sequences and one of heads."""
    table = given if given.dim() > len(axes) else given.unsqueeze(0)
    return table if axes[0] in ("g", "h") else table.unsqueeze(1)


def turned(given: Tensor, key: Hashable, make: Callable[[], Transposed]) -> Transposed:
    """The transpose of picks that ``make`` makes, that of a moment ago where these are the same."""
    return _remembered(_turned, key, (given,), make)


def passing(given: Tensor, key: Hashable, make: Callable[[], TileList]) -> TileList:
    """Lists of tiles that ``make`` makes of picks, those of a moment ago where these are the same."""
    return _remembered(_passing, key, (given,), make)


def _remembered(recent: ByContent[T], key: Hashable, given: tuple[Tensor, ...], make: Callable[[], T]) -> T:
    """What was made of these picks, and is kept; not in a CUDA graph, which is replayed with other ones."""
    return make() if captured(given[0]) else recent.get(key, given, None, make, compare=False)


def as_they_are(table: Tensor, blocks: int) -> TileList:
    """The lists themselves, one for each run of queries."""
    if table.device.type == "cuda":
        from spdsl.runtime.pick_kernels import bounds

        table = table.contiguous()
        begin, end = bounds(table, blocks)
        return TileList(begin=begin, middle=begin, end=end, tiles=table.view(-1))
    most = table.shape[-1]
    count = (table < blocks).sum(-1, dtype=torch.int32)
    begin = (torch.arange(count.numel(), dtype=torch.int32, device=table.device) * most).view(count.shape)
    end = begin + count
    return TileList(begin=begin, middle=begin, end=end, tiles=table.reshape(-1))


def unions(table: Tensor, positions: int, blocks: int) -> TileList:
    """The blocks that any of ``positions`` neighbouring queries has picked, ascending, with a bit for each of these."""
    batch, heads, queries, most = table.shape
    refuse_many(batch * heads * -(-queries // positions) * min(positions * most, blocks), "blocks of all tiles' picks")
    if table.device.type == "cuda":
        from spdsl.runtime import noted_unions, pick_kernels

        united = pick_kernels.united if pick_kernels.fits(positions, most) else noted_unions.united
        begin, end, tiles_of, bits = united(table, positions, blocks)
        return TileList(begin=begin, middle=begin, end=end, tiles=tiles_of, bits=bits)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Transposed:
    """Runs of queries by the block that they have picked, ascending for each.

    Those of block ``i``, counted over sequences and heads, stand in ``runs`` from ``starts[i]`` to ``starts[i + 1]``;
    ``entries`` says for each pick of the lists where it stands there, -1 for none.
    """

    blocks: int
    starts: Tensor
    runs: Tensor
    entries: Tensor


def transposed(lists: Tensor, blocks: int) -> Transposed:
    """The transpose of lists ``[batch, heads, runs, most]``, by sorting what has been picked by its block."""
    if lists.device.type == "cuda":
        from spdsl.runtime.pick_kernels import sorted_picks

        starts, runs_of, entries = sorted_picks(lists, blocks)
        return Transposed(blocks=blocks, starts=starts, runs=runs_of, entries=entries)
    batch, heads, runs, most = lists.shape
    rows = batch * heads * blocks
    owner = torch.arange(batch * heads, dtype=torch.int32, device=lists.device).view(batch, heads, 1, 1)
    keys, order = torch.where(lists < blocks, owner * blocks + lists, rows).flatten().sort(stable=True)
    place = torch.arange(len(order), dtype=torch.int32, device=lists.device)
    entries = torch.empty_like(place).scatter_(0, order, place).view(lists.shape)
    return Transposed(
        blocks=blocks,
        starts=torch.searchsorted(keys, torch.arange(rows + 1, dtype=torch.int32, device=lists.device), out_int32=True),
        runs=order.div(most, rounding_mode="floor").remainder(max(runs, 1)).int(),
        entries=torch.where(lists < blocks, entries, -1),
    )


def items_of(given: Transposed, size: int, least: int) -> tuple[Tensor, Tensor, Tensor]:
    """Items of at most ``size`` runs, at least ``least`` of each block.

    Their blocks, where their runs begin and end, and where their sums are kept, ``[4, items]``; and for each block
    where its sums begin, and how many items it has.
    """
    starts = given.starts
    if starts.device.type == "cuda":
        from spdsl.runtime import pick_kernels

        return pick_kernels.items_of(starts, len(given.runs), size, least)
    begin, end = starts[:-1], starts[1:]
    parts = ((end - begin + size - 1) // size).clamp(min=least)
    ends = parts.cumsum(0)
    rows = len(parts)
    item = torch.arange(rows + len(given.runs) // size, device=starts.device)
    row = torch.searchsorted(ends, item, right=True)
    exist = row < rows
    row = row.clamp(max=max(rows - 1, 0))
    part = item - (ends - parts)[row]
    cut = torch.where(parts > 1, parts, 0)
    slots = cut.cumsum(0) - cut
    first = begin[row] + part * size
    slot = torch.where(parts[row] > 1, slots[row] + part, -1)
    columns = (row, first, torch.minimum(first + size, end[row]), slot)
    found = torch.stack([torch.where(exist, column, 0) for column in columns])
    found[3].masked_fill_(~exist, -2)
    return found.int(), slots.int(), parts.int()


def by_key(given: Transposed) -> PickedItems:
    """The runs of queries that have picked each block, in parts; a block that nobody has picked is a part too."""
    size = part_size(len(given.runs))
    found, slots, parts = items_of(given, size, 1)
    rows, first, last, kept = found
    return PickedItems(
        rows=rows,
        first=first,
        last=last,
        slots=kept,
        row_slots=slots,
        row_parts=parts,
        queries=given.runs,
        blocks=given.blocks,
        kept=max(1, 2 * len(given.runs) // size),
    )


def gathered(given: Transposed, size: int) -> GatheredItems:
    """The queries that have picked each block, in tiles of ``size``, and where each pick has gone."""
    rows, first, last, _ = items_of(given, size, 0)[0]
    return GatheredItems(
        rows=rows, first=first, last=last, queries=given.runs, entries=given.entries, blocks=given.blocks
    )


_AT_ONCE = 1 << 24
"""Picks that are looked at at once."""


def coarser(table: Tensor, block: int, keys: int, n: int) -> tuple[Tensor, Tensor]:
    """Lists of the tiles of ``keys`` keys in which the blocks of lists lie, and the bits of the keys of each, int64.

    Both are ``[batch or 1, heads or 1, runs, most]``.
    """
    if table.device.type == "cuda":
        from spdsl.runtime import pick_kernels

        if pick_kernels.fits(1, table.shape[-1]):
            return pick_kernels.coarser(table, block, keys, n)
    width = max(1, min(table.shape[-1], -(-n // keys)))
    step = max(1, _AT_ONCE // max(1, table.shape[0] * table.shape[1] * table.shape[-1]))
    parts = [_coarser(some, block, keys, n, width) for some in table.split(step, dim=2)]
    return torch.cat([tiles for tiles, _ in parts], 2), torch.cat([bits for _, bits in parts], 2)


def _coarser(table: Tensor, block: int, keys: int, n: int, width: int) -> tuple[Tensor, Tensor]:
    exist = table < -(-n // block)
    first = torch.where(exist, table, 0) * block
    tile = torch.where(exist, first // keys, -1)
    new = exist.clone()
    new[..., 1:] &= tile[..., 1:] != tile[..., :-1]
    at = torch.where(exist, new.cumsum(-1) - 1, width)
    bit = torch.full((), (1 << block) - 1, dtype=torch.int64, device=table.device) << (first % keys).long()
    shape = (*table.shape[:-1], width + 1)
    tiles = torch.full(shape, FAR, dtype=torch.int32, device=table.device).scatter_(-1, at, tile.int())
    bits = torch.zeros(shape, dtype=torch.int64, device=table.device).scatter_add_(-1, at, bit)
    return tiles[..., :width].contiguous(), bits[..., :width].contiguous()


def carried(values: Tensor, given: Transposed) -> Tensor:
    """What belongs to the picks of lists, int64, in the order of their transpose; 0 where there is no pick."""
    if values.device.type == "cuda":
        from spdsl.runtime import pick_kernels

        return pick_kernels.carried(values, given.entries)
    places = torch.where(given.entries < 0, given.entries.numel(), given.entries).flatten().long()
    found = torch.zeros(given.entries.numel() + 1, dtype=values.dtype, device=values.device)
    return found.scatter_(0, places, values.flatten())[:-1]


def part_size(picks: int) -> int:
    """How many picks a part holds."""
    return max(LEAST, 1 << (max(1, picks // PROGRAMS) - 1).bit_length())
