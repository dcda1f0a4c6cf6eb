"""Which blocks of keys each run of queries has picked, by tiles of several blocks: noted as bits, and then listed.

From lists of blocks, as in `spdsl.runtime.picks`.  To: for each tile of keys the runs that have picked any of its
blocks, ascending, with a bit for each block.  Memory is that of the results, and of a number for each run and as many
tiles as fit into a constant amount.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from spdsl.codegen.binaries import options_of
from spdsl.runtime.noted_unions import HELD, STEP, list_noted
from spdsl.runtime.plain import start_given


@triton.jit(do_not_specialize=["first", "count", "runs", "most", "blocks", "tiles", "pitch"])  # type: ignore[untyped-decorator]
def note_blocks(  # type: ignore[no-untyped-def]
    lists,  # [heads of all sequences, runs, most], ascending
    noted,  # [some tiles, pitch], int32, zeros
    first,  # of these tiles, counted over the heads of all sequences
    count,  # of these tiles
    runs,
    most,
    blocks,
    tiles,  # of a head
    pitch,
    IN_TILE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The bits of the blocks of each tile that a run has picked: each program owns a run."""
    row = tl.program_id(0).to(tl.int64)
    start = lists + row * most
    before = (row // runs * tiles).to(tl.int32) - first
    to = noted + row % runs
    for base in range(0, most, WIDTH):
        place = base + tl.arange(0, WIDTH)
        block = tl.load(start + place, mask=place < most, other=2147483647)
        last = tl.load(start + place - 1, mask=(place > 0) & (place < most), other=-1)
        tile = block // IN_TILE
        bits = tl.full([WIDTH], 1, tl.int32) << (block % IN_TILE)
        # Those of a tile are neighbours: the first of them tells of all.
        for more in tl.static_range(1, IN_TILE):
            other = tl.load(start + place + more, mask=place + more < most, other=2147483647)
            there = (other < blocks) & (other // IN_TILE == tile)
            bits |= tl.where(there, 1 << (other % IN_TILE), 0)
        new = (block < blocks) & ((last < 0) | (last // IN_TILE != tile))
        at = before + tile
        tl.store(to + at.to(tl.int64) * pitch, bits, mask=new & (at >= 0) & (at < count))


def bits_by_tile(lists: Tensor, blocks: int, held: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``begin`` and ``end`` of every tile of ``held`` blocks, and what they index: runs, and their bits.

    ``lists`` are int32 ``[batch, heads, runs, most]``.
    """
    batch, heads, runs, most = lists.shape
    lists, device = lists.contiguous(), lists.device
    tiles = -(-blocks // held)
    every, pitch = batch * heads * tiles, max(1, -(-runs // 16) * 16)
    begin, end = torch.empty(2, batch, heads, tiles, dtype=torch.int32, device=device)
    found, bits = torch.empty(2, every * runs, dtype=torch.int32, device=device)
    step = max(1, min(every, HELD // pitch))
    noted = torch.zeros(step, pitch, dtype=torch.int32, device=device)
    for first in range(0, every, step):
        some = min(step, every - first)
        given = (lists, noted, first, some, runs, most, blocks, tiles, pitch)
        constants = {"IN_TILE": held, "WIDTH": STEP}
        start_given(note_blocks, (batch * heads * runs, 1, 1), given, constants, ("noted",), options_of(4), device)
        lined = (noted, found, bits, begin, end, first, runs, pitch, runs)
        writes = ("noted", "tiles", "bits", "begin", "end")
        start_given(list_noted, (some, 1, 1), lined, {"WIDTH": STEP}, writes, options_of(4), device)
    return begin, end, found, bits
