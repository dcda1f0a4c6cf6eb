"""The kernels beside a sweep: larger blocks from smaller ones, and the keys of candidates out of those of all blocks.

From: what searches meet in all blocks of some rows (`spdsl.codegen.chains.sweeps`).  To: the same of blocks several
times as large, and rows of keys as `spdsl.runtime.choosing` takes them.
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


@triton.jit(do_not_specialize=["chunk_rows", "first_row", "list_rows", "total", "count"])  # type: ignore[untyped-decorator]
def keys_of_candidates(  # type: ignore[no-untyped-def]
    keys,  # [batch * heads, chunk_rows, pitch], int32: in the order in which candidates are chosen
    best,  # [batch * heads, chunk_rows, pitch_of], int32: the keys of all blocks
    lists,  # [batch * heads, list_rows, width], int32: the blocks that have the candidates as members
    chunk_rows,
    first_row,
    list_rows,
    total,
    count,
    pitch,
    pitch_of,
    width,
    EACH: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Candidate c of a row is member c % EACH of the entry c // EACH of its list."""
    tiles = tl.cdiv(total, SIZE)
    row = tl.program_id(0) // tiles
    candidate = tl.program_id(0) % tiles * SIZE + tl.arange(0, SIZE)
    listed = (row // chunk_rows * list_rows + first_row + row % chunk_rows).to(tl.int64) * width
    outer = tl.load(lists + listed + candidate // EACH, mask=candidate < total, other=count)
    block = tl.minimum(outer, count) * EACH + candidate % EACH
    there = (candidate < total) & (block < count)
    found = tl.load(best + row.to(tl.int64) * pitch_of + block, mask=there, other=_ABSENT)
    tl.store(keys + row.to(tl.int64) * pitch + candidate, found, mask=candidate < total)


@triton.jit(do_not_specialize=["entries", "chunk_rows", "first_row", "list_rows", "total"])  # type: ignore[untyped-decorator]
def name_entries(  # type: ignore[no-untyped-def]
    lists,  # [batch * heads, list_rows, width], int32: numbers of candidates, which become those of blocks
    outer,  # [batch * heads, list_rows, width_of], int32: the blocks that have the candidates as members
    entries,
    chunk_rows,
    first_row,
    list_rows,
    total,
    width,
    width_of,
    EACH: tl.constexpr,
    SIZE: tl.constexpr,
):
    """What candidates are called, in the rows from ``first_row`` on."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    row = at // width
    row = row // chunk_rows * list_rows + first_row + row % chunk_rows
    to = lists + row * width + at % width
    candidate = tl.load(to, mask=at < entries, other=total)
    chosen = (at < entries) & (candidate < total)
    block = tl.load(outer + row * width_of + candidate // EACH, mask=chosen, other=0)
    tl.store(to, block * EACH + candidate % EACH, mask=chosen)
