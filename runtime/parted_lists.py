"""Lists of entries that heads have chosen together, as one list for each head.

From: numbers of entries, counted over all heads, ascending.  To: the entries of each head, ascending, and behind the
last what stands for none.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from spdsl.codegen.binaries import options_of
from spdsl.runtime.plain import start_given

PARTED = 256
"""Entries of a list, at most: a program holds whole lists."""

_HELD = 1024
"""Entries that a program looks at together."""


@triton.jit(do_not_specialize=["rows", "every"])  # type: ignore[untyped-decorator]
def part(  # type: ignore[no-untyped-def]
    together,  # [batch, rows, WIDTH], int32
    lists,  # [batch, HEADS, rows, WIDTH], int32
    rows,
    every,  # batch * rows
    pitch,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Each program owns some rows, and goes through the heads."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    at = tl.arange(0, BLOCK)[None, :]
    inside = (row < every) & (at < WIDTH)
    entry = tl.load(together + row * WIDTH + at, mask=inside, other=2147483647)
    for head in range(HEADS):
        own = inside & (entry >= head * pitch) & (entry < (head + 1) * pitch)
        count = own.to(tl.int32)
        to = lists + ((row // rows * HEADS + head) * rows + row % rows) * WIDTH
        tl.store(to + tl.cumsum(count, 1) - 1, entry - head * pitch, mask=own)
        tl.store(to + at, 2147483647, mask=inside & (at >= tl.sum(count, 1)[:, None]))


def part_lists(together: Tensor, heads: int, pitch: int) -> Tensor:
    """The lists of each of the ``heads``, int32 ``[batch, heads, rows, width]``, of lists ``[batch, rows, width]``.

    Entries of a head are ``pitch`` numbers; there are at most `PARTED` to a list.
    """
    batch, rows, width = together.shape
    lists = torch.empty(batch, heads, rows, width, dtype=torch.int32, device=together.device)
    block = 1 << (width - 1).bit_length()
    constants = {"HEADS": heads, "WIDTH": width, "BLOCK": block, "ROWS": _HELD // block}
    grid = (-(-batch * rows // constants["ROWS"]), 1, 1)
    start_given(
        part, grid, (together, lists, rows, batch * rows, pitch), constants, ("lists",), options_of(4), lists.device
    )
    return lists
