"""Positions whose runs a sorted table tells: runs of uneven length, and pieces of them, cut where tiles of queries are.

From the run of each position.  To: where runs begin; and pieces of neighbours that belong to one run, at most as many
as there are tiles and runs, so that the host need not know how many they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spdsl.runtime.ranking import FAR


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """All positions as runs: ``table``, ``[positions]``, tells the run of each, and ``begins``, int64 ``[runs + 1]``,
    the first position of each run, and in the end the number of positions."""

    table: Tensor
    begins: Tensor

    @staticmethod
    def of(table: Tensor, count: int) -> Runs:
        """The ``count`` runs of a table, ``[n]`` or ``[1, n]``."""
        table = table.reshape(-1).contiguous()
        # Where a run begins is how many positions belong to earlier ones.
        sizes = torch.zeros(count + 1, dtype=torch.int64, device=table.device)
        sizes = sizes.index_add(0, (table.long() + 1).clamp(0, count), torch.ones_like(table, dtype=torch.int64))
        return Runs(table=table, begins=sizes.cumsum(0))

    @property
    def sizes(self) -> Tensor:
        """How many positions each run has."""
        return self.begins[1:] - self.begins[:-1]

    @property
    def firsts(self) -> Tensor:
        """The first position of each run; 0 of one that has none."""
        return torch.where(self.sizes > 0, self.begins[:-1], 0)

    @property
    def lasts(self) -> Tensor:
        """The last position of each run; 0 of one that has none."""
        return torch.where(self.sizes > 0, self.begins[1:] - 1, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """The ``first`` query of each piece, the one after its ``last``, and its ``run``, int64 ``[pieces]``; pieces that
    do not exist begin and end after all queries, and their run is -1."""

    first: Tensor
    last: Tensor
    run: Tensor

    def lists(self, table: Tensor) -> Tensor:
        """The list of each piece, from those of runs ``[…, runs, most]``: nothing for pieces that do not exist."""
        rows = max(table.shape[-2] - 1, 0)
        found = table.index_select(-2, self.run.clamp(0, rows)) if table.shape[-2] else table.new_full((), FAR)
        return torch.where((self.run < 0)[:, None], FAR, found)


def runs_of(table: Tensor, queries: int, q_start: int) -> Tensor:
    """The run of each query, int64 ``[queries]``; -1 at negative positions.  ``table`` is ``[n]`` or ``[1, n]``."""
    at = torch.arange(queries, device=table.device) + q_start
    return torch.where(at < 0, -1, table.reshape(-1)[at.clamp(min=0)].long())


def pieces_of(run: Tensor, runs: int, size: int, *, aligned: bool) -> Pieces:
    """Pieces of at most ``size`` queries of one of ``runs`` runs: with ``aligned`` none lies in two tiles of so many
    queries, else they are counted from where each run begins."""
    queries = run.shape[0]
    at = torch.arange(queries, device=run.device)
    # Nothing is changed in place, so that who repeats a call may keep what is made of its table alone.
    begins = run != torch.nn.functional.pad(run, (1, 0), value=-2)[:-1]
    start = torch.zeros_like(at) if aligned else torch.where(begins, at, 0).cummax(0).values
    begins = begins | ((at - start) % size == 0)
    # Queries at negative positions may be one run more.
    most = min(queries, -(-queries // size) + runs + 1)
    # Queries that begin nothing count in the last place, which is that of all that does not exist.
    place = torch.where(begins, begins.cumsum(0) - 1, most).clamp(max=most)
    first = torch.full((most + 1,), queries, dtype=torch.int64, device=run.device)
    first = first.scatter(0, place, torch.where(place < most, at, queries))
    first, last = first[:-1], first[1:]
    exist = first < queries
    of_first = run[first.clamp(max=max(queries - 1, 0))] if queries else first
    return Pieces(first=first, last=last, run=torch.where(exist, of_first, -1))


def joined_lists(pieces: Pieces, table: Tensor, size: int, queries: int, blocks: int) -> tuple[Tensor, ...]:
    """For each tile of ``size`` queries the lists of its pieces, one after the other, with bits of the queries of each.

    ``begin`` and ``end``, int32 ``[…, tiles]``, index the others, int32 and flat: blocks, or ``blocks`` for none, and
    bits.  ``table`` is ``[batch, heads, runs, most]``; pieces are aligned.
    """
    lists = pieces.lists(table)
    batch, heads, count, most = lists.shape
    picked = lists < blocks
    one = torch.ones((), dtype=torch.int64, device=lists.device)
    bits = (one << (pieces.last - pieces.first)) - 1 << pieces.first % size
    bits = torch.where(pieces.run < 0, 0, bits)
    bits = torch.where(bits >= 1 << 31, bits - (1 << 32), bits).int()
    tile = torch.where(pieces.first < queries, pieces.first // size, FAR)
    tiles = -(-queries // size)
    every = torch.arange(tiles, device=lists.device)
    first, last = torch.searchsorted(tile, every), torch.searchsorted(tile, every, right=True) - 1
    owner = (torch.arange(batch * heads, device=lists.device) * count).view(batch, heads, 1)
    begin = (owner + first) * most
    end = (owner + last) * most + picked.sum(-1).index_select(-1, last.clamp(min=0))
    found = torch.where(picked, lists, blocks)
    every_bit = bits[:, None].expand(batch, heads, -1, most).flatten().contiguous()
    return begin.int(), end.int(), found.flatten().int(), every_bit
