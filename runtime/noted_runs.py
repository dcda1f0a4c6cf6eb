"""Runs of queries by the block that they have picked, of long lists: noted as a byte for each pair, and listed.

Sorting long lists takes longer.  Memory is that of lists with room for all runs, and a byte for each of their entries.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from spdsl.codegen.binaries import options_of
from spdsl.runtime.plain import start_given

WIDTH = 256
"""Entries of a list that a program looks at together."""

BLOCKS, RUNS = 32, 64
"""Blocks of a program that lists runs, and runs that it looks at together."""


def noted(lists: Tensor, batch: int, heads: int, blocks: int) -> Tensor:
    """Whether each run has picked each block, bytes ``[batch * heads, runs, pitch]`` with a pitch of at least
    ``blocks``, for lists ``[batch or 1, heads or 1, runs, most]``; what is there for later blocks is 0."""
    runs, most = lists.shape[2:]
    pitch, device = -(-blocks // 16) * 16, lists.device
    found = torch.zeros(batch * heads, runs, pitch, dtype=torch.uint8, device=device)
    steps = [lists.stride(axis) if lists.shape[axis] > 1 else 0 for axis in (0, 1)]
    given = (found, lists, *steps, lists.stride(2), heads, runs, blocks, pitch, most)
    start_given(note_blocks, (batch * heads * runs, 1, 1), given, {"WIDTH": WIDTH}, ("noted",), options_of(4), device)
    return found


def by_block(lists: Tensor, blocks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where the runs of each block begin and end, int32 ``[batch * heads * blocks]``, and the runs, ascending for each.

    ``lists`` are those of all heads, int32 ``[batch, heads, runs, most]``.
    """
    batch, heads, runs, _ = lists.shape
    found, rows, device = noted(lists, batch, heads, blocks), batch * heads * blocks, lists.device
    begin, end = torch.empty(2, rows, dtype=torch.int32, device=device)
    listed = torch.empty(rows * runs, dtype=torch.int32, device=device)
    grid = (batch * heads * -(-blocks // BLOCKS), 1, 1)
    given, sizes = (found, begin, end, listed, runs, blocks, found.shape[2]), {"BLOCKS": BLOCKS, "RUNS": RUNS}
    start_given(list_runs, grid, given, sizes, ("begin", "end", "listed"), options_of(4), device)
    return begin, end, listed


@triton.jit(do_not_specialize=["heads", "runs", "blocks", "pitch", "most"])  # type: ignore[untyped-decorator]
def note_blocks(  # type: ignore[no-untyped-def]
    noted,  # [batch * heads, runs, pitch], bytes: zeros
    lists,  # [batch or 1, heads or 1, runs, most], int32
    list_b,
    list_h,
    list_r,
    heads,
    runs,
    blocks,
    pitch,
    most,
    WIDTH: tl.constexpr,
):
    """Note the blocks that a run of queries has picked."""
    row = tl.program_id(0).to(tl.int64)
    owner, run = row // runs, row % runs
    start = lists + owner // heads * list_b + owner % heads * list_h + run * list_r
    for first in range(0, most, WIDTH):
        at = first + tl.arange(0, WIDTH)
        entry = tl.load(start + at, mask=at < most, other=2147483647)
        tl.store(noted + row * pitch + entry, tl.full([WIDTH], 1, tl.uint8), mask=entry < blocks)


@triton.jit(do_not_specialize=["runs", "blocks", "pitch"])  # type: ignore[untyped-decorator]
def list_runs(  # type: ignore[no-untyped-def]
    noted,  # [batch * heads, runs, pitch], bytes
    begin,  # [batch * heads, blocks], int32
    end,
    listed,  # [batch * heads, blocks, runs], int32
    runs,
    blocks,
    pitch,
    BLOCKS: tl.constexpr,
    RUNS: tl.constexpr,
):
    """List the runs that have picked each of some blocks."""
    groups = tl.cdiv(blocks, BLOCKS)
    owner = (tl.program_id(0) // groups).to(tl.int64)
    block = tl.program_id(0) % groups * BLOCKS + tl.arange(0, BLOCKS)
    row = owner * blocks + block
    done = tl.zeros([BLOCKS], tl.int32)
    for first in range(0, runs, RUNS):
        run = first + tl.arange(0, RUNS)
        exists = (run < runs)[:, None] & (block < blocks)[None, :]
        at = noted + (owner * runs + run)[:, None] * pitch + block[None, :]
        is_one = (tl.load(at, mask=exists, other=0) != 0).to(tl.int32)
        place = done[None, :] + tl.cumsum(is_one, 0) - is_one
        tl.store(
            listed + row[None, :] * runs + place, run[:, None] + tl.zeros([RUNS, BLOCKS], tl.int32), mask=is_one != 0
        )
        done += tl.sum(is_one, 0)
    tl.store(begin + row, (row * runs).to(tl.int32), mask=block < blocks)
    tl.store(end + row, (row * runs).to(tl.int32) + done, mask=block < blocks)
