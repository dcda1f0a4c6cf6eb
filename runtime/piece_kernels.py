"""Lists of the pieces of uneven runs, one tile of queries after the other, by one kernel: as `spdsl.runtime.runs` makes
them by operations of torch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from spdsl.codegen.binaries import options_of
from spdsl.runtime.plain import start_given
from spdsl.runtime.runs import Pieces

_AT_ONCE = 1024
"""Entries of a list that a program looks at together."""


@triton.jit(do_not_specialize=["runs", "count", "queries", "tiles", "blocks"])  # type: ignore[untyped-decorator]
def join_pieces(  # type: ignore[no-untyped-def]
    lists,  # [owners, runs, most]
    first,  # [count]: of each piece the first query, the one after its last, and its run
    last,
    run,
    begin,  # [owners, tiles]
    end,
    found,  # [owners, count, most]
    bits,
    runs,
    count,
    queries,
    tiles,
    most,
    blocks,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each program copies the list of a piece; the first and the last one of a tile say where its lists are."""
    piece, owner = tl.program_id(0) % count, (tl.program_id(0) // count).to(tl.int64)
    query = tl.load(first + piece).to(tl.int32)
    if query < queries:
        after = tl.load(last + piece).to(tl.int32)
        own = tl.load(run + piece)
        bit = ((tl.full([], 1, tl.int64) << (after - query)) - 1) << (query % SIZE)
        to = (owner * count + piece) * most
        start = lists + (owner * runs + tl.minimum(tl.maximum(own, 0), runs - 1)) * most
        picked = tl.zeros([BLOCK], tl.int32)
        for step in range(0, most, BLOCK):
            at = step + tl.arange(0, BLOCK)
            block = tl.load(start + at, mask=(at < most) & (own >= 0), other=blocks)
            there = block < blocks
            tl.store(found + to + at, tl.where(there, block, blocks), mask=at < most)
            tl.store(bits + to + at, tl.where(there, bit, 0).to(tl.int32), mask=at < most)
            picked += there.to(tl.int32)
        tile = query // SIZE
        before = tl.load(first + piece - 1, mask=piece > 0, other=-1).to(tl.int32)
        follows = tl.load(first + piece + 1, mask=piece + 1 < count, other=queries).to(tl.int32)
        if (before < 0) | (before // SIZE != tile):
            tl.store(begin + owner * tiles + tile, to.to(tl.int32))
        if (follows >= queries) | (follows // SIZE != tile):
            tl.store(end + owner * tiles + tile, (to + tl.sum(picked, 0)).to(tl.int32))


def joined_lists(pieces: Pieces, table: Tensor, size: int, queries: int, blocks: int) -> tuple[Tensor, ...]:
    """As that of `spdsl.runtime.runs`, but for the bits of what is nothing."""
    table = table.contiguous()
    batch, heads, runs, most = table.shape
    count, tiles = len(pieces.run), -(-queries // size)
    begin, end = (torch.empty(batch, heads, tiles, dtype=torch.int32, device=table.device) for _ in range(2))
    found, bits = (torch.empty(batch * heads * count * most, dtype=torch.int32, device=table.device) for _ in range(2))
    given = (table, pieces.first, pieces.last, pieces.run, begin, end, found, bits)
    lengths = (runs, count, queries, tiles, most, blocks)
    constants = {"SIZE": size, "BLOCK": min(_AT_ONCE, triton.next_power_of_2(most))}
    grid, writes = (batch * heads * count, 1, 1), ("begin", "end", "found", "bits")
    start_given(join_pieces, grid, (*given, *lengths), constants, writes, options_of(4), table.device)
    return begin, end, found, bits
