"""What queries have picked, run by run, as lists of tiles by key: for each head the runs that have picked a block.

From the lists of a selection, as in `spdsl.runtime.picks`, whose transpose they are.  The host waits for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spdsl.analysis.plans import KernelPlan
from spdsl.analysis.tiles import Turned
from spdsl.runtime.calls import Call, TileList
from spdsl.runtime.checks import refuse_many
from spdsl.runtime.noted_runs import by_block
from spdsl.runtime.picks import carried, coarser, passing, transposed, turned, with_heads
from spdsl.runtime.split import order_of
from spdsl.runtime.visits import Visits, list_visits

SPARSEST = 4
"""Of how many blocks a list has room for one, up to which what has been picked is noted for all of them; of shorter
lists it is sorted."""


def turned_lists(call: Call, kernel: KernelPlan) -> TileList:
    """The lists of a kernel whose walk is `Turned`: tiles of keys for rows, and runs of queries for tiles.

    The recorder notes how they are made, so that a tape makes them of other picks.
    """
    walk = kernel.turned
    assert walk is not None
    given = call.tables[walk.table]
    (declared,) = (each for each in call.plan.tables if each.name == walk.table)
    request = _Request(
        walk=walk,
        axes=tuple(axis.kind for axis in declared.axes),
        shape=(call.q.shape[0], call.q.shape[1], call.k.shape[1]),
        n=call.keys,
        parts=walk.rows // kernel.block_q,
        block=kernel.block_k,
        splits=kernel.splits,
    )
    lists = request.lists(given)
    call.recorder.made(lists.tensors, request.tensors, given)
    return lists


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What decides how lists are made of picks: ``shape`` are sequences, query heads and key heads, ``axes`` those of
    the table, ``parts`` the tiles of queries of a run, and ``block`` the keys of a tile."""

    walk: Turned
    axes: tuple[str, ...]
    shape: tuple[int, int, int]
    n: int
    parts: int
    block: int
    splits: bool

    def tensors(self, given: Tensor) -> tuple[Tensor, ...]:
        """The tensors of the lists, in the order of their fields."""
        return self.lists(given).tensors

    def lists(self, given: Tensor) -> TileList:
        """The lists."""
        walk, (batch, heads, _) = self.walk, self.shape
        table, blocks = with_heads(given, self.axes), -(-self.n // walk.block)
        owners = heads // walk.heads
        # Kernels count tiles of queries, of which a run may hold several.
        tiles = batch * owners * given.shape[-2] * given.shape[-1] * self.parts
        refuse_many(tiles, "tiles of all heads' picks")
        table = table.expand(batch, owners, -1, -1)
        if walk.held > 1:
            key = (*self._key, walk.held)
            return self._ordered(passing(given, key, lambda: by_tiles(table, blocks, walk.held)), given)
        first, last, runs = self._by_block(given, table, blocks)
        begin, end = (self._tiles(each, owners, blocks) for each in (first, last))
        return self._ordered(TileList(begin=begin, middle=begin, end=end, tiles=runs), given)

    @property
    def _key(self) -> tuple[object, ...]:
        """What decides how picks are turned."""
        return self.walk.rows, self.walk.block, self.walk.heads, self.shape, self.n, "by head"

    def _by_block(self, given: Tensor, table: Tensor, blocks: int) -> tuple[Tensor, Tensor, Tensor]:
        """Where the runs that have picked each block begin and end, and the runs: long lists need not be sorted."""
        long = blocks <= SPARSEST * table.shape[-1] and table.shape[:-1].numel() * blocks < 1 << 31
        if table.device.type == "cuda" and long:
            return by_block(table, blocks)
        found = turned(given, self._key, lambda: transposed(table, blocks))
        return found.starts[:-1], found.starts[1:], found.runs

    def _ordered(self, lists: TileList, given: Tensor) -> TileList:
        """The lists, with an order of rows where long ones are cut."""
        if not self.splits:
            return lists
        batch, heads, groups = self.shape
        return replace(lists, order=order_of(lists, batch, groups, given.shape[-2] * (heads // groups)))

    def _tiles(self, starts: Tensor, owners: int, blocks: int) -> Tensor:
        """Numbers of blocks, one after the other, for every query head and every tile of keys."""
        found = starts.view(self.shape[0], owners, blocks)
        found = found if self.walk.heads == 1 else found.repeat_interleave(self.walk.heads, 1)
        parts = self.walk.block // self.block
        found = found if parts == 1 else found.repeat_interleave(parts, 2)[..., : -(-self.n // self.block)]
        return found.to(torch.int32).contiguous()


def by_tiles(lists: Tensor, blocks: int, held: int) -> TileList:
    """The runs that have picked any of the ``held`` blocks of each tile of keys, with a bit for each of these."""
    batch, heads, _, most = lists.shape
    tiles = -(-blocks // held)
    noted = tiles * lists.shape[:-1].numel()
    if lists.device.type == "cuda" and blocks <= SPARSEST * most and noted < 1 << 31:
        from spdsl.runtime.turned_kernels import bits_by_tile

        begin, end, runs_of, bits = bits_by_tile(lists, blocks, held)
        return TileList(begin=begin, middle=begin, end=end, tiles=runs_of, bits=bits)
    coarse, bits_of = coarser(lists, 1, held, blocks)
    found = transposed(coarse, tiles)
    begin, end = (each.view(batch, heads, tiles).int() for each in (found.starts[:-1], found.starts[1:]))
    bits = carried(bits_of, found).int()
    return TileList(begin=begin.contiguous(), middle=begin, end=end.contiguous(), tiles=found.runs, bits=bits)


def turned_visits(call: Call, kernel: KernelPlan) -> Visits:
    """How many tiles such a kernel visits in a call; which of them are masked is not counted."""
    walk = kernel.turned
    assert walk is not None
    found = list_visits(turned_lists(call, kernel), call.q.shape[0], call.q.shape[1])
    parts = walk.rows // kernel.block_q
    return replace(found, touched=found.touched * parts, longest=found.longest * parts)
