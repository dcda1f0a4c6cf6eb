"""The kernel beside a sweep: larger blocks from smaller ones.

From: what searches meet in all blocks of some rows (`spdsl.codegen.chains.sweeps`).  To: the same of blocks several
times as large.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spdsl.codegen.chains.parts import ABSENT

_ABSENT = tl.constexpr(ABSENT)


@triton.jit(do_not_specialize=["count", "columns"])  # type: ignore[untyped-decorator]
def raise_blocks(  # type: ignore[no-untyped-def]
    best,  # [rows, pitch], int32: of each block the best key that a search meets inside
    first,  # its first key
    middle,  # and its middle one, which is the first of its second half
    best_of,  # [rows, pitch_of], the same of blocks of RATIO of these
    first_of,
    middle_of,
    count,
    columns,
    pitch,
    pitch_of,
    RATIO: tl.constexpr,
    LEVELS: tl.constexpr,  # RATIO is 2 to this power
    SIZE: tl.constexpr,
):
    """Blocks of RATIO blocks, two at a time: a search meets the middles of both halves and enters the larger's."""
    tiles = tl.cdiv(columns, SIZE)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    block = tl.program_id(0) % tiles * SIZE + tl.arange(0, SIZE)
    part = block[:, None] * RATIO + tl.arange(0, RATIO)[None, :]
    at, exist = row * pitch + part, part < count
    inside = tl.load(best + at, mask=exist, other=_ABSENT)
    front = tl.load(first + at, mask=exist, other=_ABSENT)
    half = tl.load(middle + at, mask=exist, other=_ABSENT)
    for level in tl.static_range(LEVELS):
        inside_0, inside_1 = tl.split(tl.reshape(inside, [SIZE, RATIO >> (level + 1), 2]))
        front_0, front_1 = tl.split(tl.reshape(front, [SIZE, RATIO >> (level + 1), 2]))
        half_0, half_1 = tl.split(tl.reshape(half, [SIZE, RATIO >> (level + 1), 2]))
        entered = tl.where(half_1 > half_0, inside_1, inside_0)
        inside = tl.maximum(tl.maximum(half_0, half_1), entered)
        front = front_0
        half = front_1
    to, there = row * pitch_of + block, block < columns
    tl.store(best_of + to, tl.reshape(inside, [SIZE]), mask=there)
    tl.store(first_of + to, tl.reshape(front, [SIZE]), mask=there)
    tl.store(middle_of + to, tl.reshape(half, [SIZE]), mask=there)
