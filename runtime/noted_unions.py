"""Unions of lists too long to be sorted together: who has picked a block is noted as a bit, and blocks with bits are
listed.

Memory is that of the results, and of a number for each block and as many tiles of queries as fit into a constant
amount.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from spdsl.codegen.binaries import options_of
from spdsl.runtime.plain import start_given

HELD = 1 << 25
"""Blocks of tiles that are held at once, of four bytes each."""

STEP = 1024
"""Picks, and blocks, that a program looks at together."""


@triton.jit(do_not_specialize=["first", "count", "queries", "most", "blocks", "pitch"])  # type: ignore[untyped-decorator]
def note_bits(  # type: ignore[no-untyped-def]
    lists,  # [heads of all sequences, queries, most]
    noted,  # [some tiles, pitch], int32, zeros
    first,  # of these tiles, counted over the heads of all sequences
    count,  # tiles of a head
    queries,
    most,
    blocks,
    pitch,
    POSITIONS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The bits of the queries of a tile at each block that they have picked: each program owns a tile."""
    tile = first + tl.program_id(0)
    position = tl.arange(0, POSITIONS)[:, None]
    query = tile % count * POSITIONS + position
    start = lists + ((tile // count).to(tl.int64) * queries + query) * most
    to = noted + tl.program_id(0).to(tl.int64) * pitch
    for base in range(0, most, WIDTH):
        place = base + tl.arange(0, WIDTH)[None, :]
        block = tl.load(start + place, mask=(query < queries) & (place < most), other=2147483647)
        bit = tl.full([POSITIONS, WIDTH], 1, tl.int32) << position
        tl.atomic_or(to + block, bit, mask=block < blocks, sem="relaxed")


@triton.jit(do_not_specialize=["first", "blocks", "pitch", "width"])  # type: ignore[untyped-decorator]
def list_noted(  # type: ignore[no-untyped-def]
    noted,  # [some tiles, pitch]: zeros again afterwards
    tiles,  # [tiles of all heads, width]
    bits,
    begin,  # [tiles of all heads]
    end,
    first,
    blocks,
    pitch,
    width,
    WIDTH: tl.constexpr,
):
    """The blocks that have bits, ascending, and these: each program owns a tile."""
    row = tl.program_id(0).to(tl.int64) * pitch
    tile = (first + tl.program_id(0)).to(tl.int64)
    start = tile * width
    done = 0
    for base in range(0, blocks, WIDTH):
        block = base + tl.arange(0, WIDTH)
        found = tl.load(noted + row + block, mask=block < blocks, other=0)
        exist = found != 0
        tl.store(noted + row + block, 0, mask=exist)
        to = start + done + tl.cumsum(exist.to(tl.int32), 0) - 1
        tl.store(tiles + to, block, mask=exist)
        tl.store(bits + to, found, mask=exist)
        done += tl.sum(exist.to(tl.int32), 0)
    tl.store(begin + tile, start.to(tl.int32))
    tl.store(end + tile, start.to(tl.int32) + done)


def united(lists: Tensor, positions: int, blocks: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``begin`` and ``end`` of every tile of queries, and what they index: blocks, and their bits.

    ``lists`` are those of all heads, int32 ``[batch, heads, queries, most]``; a tile has ``positions`` queries, at most
    32.
    """
    batch, heads, queries, most = lists.shape
    lists, device = lists.contiguous(), lists.device
    tiles, width = -(-queries // positions), max(1, min(positions * most, blocks))
    every, pitch = batch * heads * tiles, max(1, -(-blocks // 16) * 16)
    begin, end = torch.empty(2, batch, heads, tiles, dtype=torch.int32, device=device)
    found, bits = torch.empty(2, every * width, dtype=torch.int32, device=device)
    step = max(1, min(every, HELD // pitch))
    noted = torch.zeros(step, pitch, dtype=torch.int32, device=device)
    taken = max(1, STEP // positions)
    for first in range(0, every, step):
        grid = (min(step, every - first), 1, 1)
        given = (lists, noted, first, tiles, queries, most, blocks, pitch)
        constants = {"POSITIONS": positions, "WIDTH": taken}
        start_given(note_bits, grid, given, constants, ("noted",), options_of(4), device)
        lined = (noted, found, bits, begin, end, first, blocks, pitch, width)
        writes = ("noted", "tiles", "bits", "begin", "end")
        start_given(list_noted, grid, lined, {"WIDTH": STEP}, writes, options_of(4), device)
    return begin, end, found, bits
