"""Lists of what queries have picked, made by kernels of their own: as `spdsl.runtime.picks` makes them by operations of
torch, in a few launches.

Memory is that of the results.  Numbers of picks stay below 2^31.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from spdsl.codegen.binaries import options_of
from spdsl.runtime.plain import start_given

LARGEST = 2048
"""Picks of a tile of queries that one program sorts."""

_MANY = 1024


@triton.jit
def either(block_a, bits_a, block_b, bits_b):  # type: ignore[no-untyped-def]
    """Bits of one block together, those of another as they are."""
    return block_b, tl.where(block_a == block_b, bits_a | bits_b, bits_b)


@triton.jit(do_not_specialize=["queries", "blocks", "width", "count"])  # type: ignore[untyped-decorator]
def unite(  # type: ignore[no-untyped-def]
    lists,  # [heads of all sequences, queries, most]
    tiles,  # [heads of all sequences, tiles, width]
    bits,
    begin,  # [heads of all sequences, tiles]
    end,
    queries,
    most,
    blocks,
    width,
    count,  # of tiles
    POSITIONS: tl.constexpr,
    MOST: tl.constexpr,
):
    """What any of the queries of a tile has picked: each program owns a tile."""
    SIZE: tl.constexpr = POSITIONS * MOST
    FAR: tl.constexpr = 2147483647
    row = tl.program_id(0).to(tl.int64)
    head = row // count
    query = (row % count).to(tl.int32) * POSITIONS + tl.arange(0, POSITIONS)[:, None]
    place = tl.arange(0, MOST)[None, :]
    block = tl.load(lists + (head * queries + query) * most + place, mask=(query < queries) & (place < most), other=FAR)
    key = tl.where(block < blocks, block * POSITIONS + query % POSITIONS, FAR).reshape([SIZE])
    key = tl.sort(key)
    at = tl.arange(0, SIZE)
    exist = key != FAR
    block = key // POSITIONS
    first = exist & ((at == 0) | (tl.gather(block, tl.maximum(at - 1, 0), 0) != block))
    last = exist & ((at == SIZE - 1) | (tl.gather(block, tl.minimum(at + 1, SIZE - 1), 0) != block))
    bit = tl.full([SIZE], 1, tl.int32) << (key % POSITIONS)
    _, together = tl.associative_scan((block, bit), 0, either)
    to = row * width + tl.cumsum(first.to(tl.int32), 0) - 1
    tl.store(tiles + to, block, mask=last)
    tl.store(bits + to, together, mask=last)
    tl.store(begin + row, (row * width).to(tl.int32))
    tl.store(end + row, (row * width).to(tl.int32) + tl.sum(first.to(tl.int32), 0))


@triton.jit(do_not_specialize=["most", "blocks", "width"])  # type: ignore[untyped-decorator]
def coarsen(  # type: ignore[no-untyped-def]
    lists, tiles, bits, most, blocks, width, BLOCK: tl.constexpr, KEYS: tl.constexpr, MOST: tl.constexpr
):
    """The tiles of keys in which the blocks of a list lie, and the keys of each that they hold, as bits."""
    FAR: tl.constexpr = 2147483647
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, MOST)
    block = tl.load(lists + row * most + at, mask=at < most, other=FAR)
    exist = block < blocks
    first = tl.where(exist, block, 0) * BLOCK
    tile = tl.where(exist, first // KEYS, -1)
    new = exist & ((at == 0) | (tl.gather(tile, tl.maximum(at - 1, 0), 0) != tile))
    last = exist & ((at == MOST - 1) | (tl.gather(tile, tl.minimum(at + 1, MOST - 1), 0) != tile))
    bit = tl.full([MOST], (1 << BLOCK) - 1, tl.int64) << (first % KEYS).to(tl.int64)
    _, together = tl.associative_scan((tile, bit), 0, either)
    count = tl.sum(new.to(tl.int32), 0)
    to = row * width + tl.cumsum(new.to(tl.int32), 0) - 1
    tl.store(tiles + to, tile, mask=last)
    tl.store(bits + to, together, mask=last)
    rest = (at >= count) & (at < width)
    tl.store(tiles + row * width + at, FAR, mask=rest)
    tl.store(bits + row * width + at, tl.zeros([MOST], tl.int64), mask=rest)


@triton.jit(do_not_specialize=["rows", "most", "blocks"])  # type: ignore[untyped-decorator]
def bound(lists, begin, end, rows, most, blocks, ROWS: tl.constexpr, MOST: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where each list begins, and where what it has picked ends."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = row.to(tl.int64) * most
    place = tl.arange(0, MOST)[None, :]
    picked = tl.load(lists + first[:, None] + place, mask=(row < rows)[:, None] & (place < most), other=blocks) < blocks
    tl.store(begin + row, first.to(tl.int32), mask=row < rows)
    tl.store(end + row, first.to(tl.int32) + tl.sum(picked.to(tl.int32), 1), mask=row < rows)


@triton.jit(do_not_specialize=["each", "blocks", "nothing"])  # type: ignore[untyped-decorator]
def number(lists, keys, each, blocks, nothing, total, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The number of each pick's block over all heads, which have ``each`` picks; ``nothing`` for no pick."""
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    block = tl.load(lists + at, mask=at < total, other=0)
    tl.store(keys + at, tl.where(block < blocks, at // each * blocks + block, nothing), mask=at < total)


@triton.jit(do_not_specialize=["each", "nothing"])  # type: ignore[untyped-decorator]
def place(keys, order, runs, entries, each, most, nothing, total, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The runs of queries in the order of their blocks, and where each pick has gone, -1 for none."""
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    exist = at < total
    pick = tl.load(order + at, mask=exist, other=0)
    real = tl.load(keys + at, mask=exist, other=0) < nothing
    tl.store(runs + at, (pick % each // most).to(tl.int32), mask=exist)
    tl.store(entries + pick, tl.where(real, at, -1), mask=exist)


@triton.jit(do_not_specialize=["rows", "total", "steps"])  # type: ignore[untyped-decorator]
def seek(keys, starts, rows, total, steps, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where the picks of each block begin among ascending keys, by halving: ``2 ** steps`` exceeds their number."""
    row = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    low = tl.zeros([SIZE], tl.int32)
    high = low + total
    for _ in tl.range(0, steps):
        middle = low + (high - low) // 2
        less = tl.load(keys + middle, mask=low < high, other=2147483647) < row
        high = tl.where(less, high, middle)
        low = tl.where(less, middle + 1, low)
    tl.store(starts + row, low, mask=row <= rows)


@triton.jit(do_not_specialize=["total"])  # type: ignore[untyped-decorator]
def blank(found, total, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """No items: their blocks and ends are 0, and the last of four rows says that there is none."""
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(found + at, tl.where(at < 3 * total, 0, -2), mask=at < 4 * total)


@triton.jit  # type: ignore[untyped-decorator]
def carry(values, entries, found, total, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """What belongs to each pick, where it has gone."""
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    to = tl.load(entries + at, mask=at < total, other=-1)
    tl.store(found + to, tl.load(values + at, mask=at < total, other=0), mask=to >= 0)


@triton.jit(do_not_specialize=["rows", "size"])  # type: ignore[untyped-decorator]
def count(  # type: ignore[no-untyped-def]
    starts, items, slots, parts, rows, size, least, SIZE: tl.constexpr
):
    """Where the items of every block begin, and the sums of those that have several: one program."""
    done = 0
    kept = 0
    for base in tl.range(0, rows, SIZE):
        row = base + tl.arange(0, SIZE)
        exist = row < rows
        picks = tl.load(starts + row + 1, mask=exist, other=0) - tl.load(starts + row, mask=exist, other=0)
        number = tl.where(exist, tl.maximum((picks.to(tl.int32) + size - 1) // size, least), 0)
        several = tl.where(number > 1, number, 0)
        tl.store(items + row, done + tl.cumsum(number, 0) - number, mask=exist)
        tl.store(slots + row, kept + tl.cumsum(several, 0) - several, mask=exist)
        tl.store(parts + row, number, mask=exist)
        done += tl.sum(number, 0)
        kept += tl.sum(several, 0)


@triton.jit(do_not_specialize=["size"])  # type: ignore[untyped-decorator]
def write(  # type: ignore[no-untyped-def]
    starts, items, slots, parts, item_rows, item_first, item_last, item_slots, size, SIZE: tl.constexpr
):
    """The items of a block."""
    row = tl.program_id(0)
    start = tl.load(starts + row).to(tl.int32)
    end = tl.load(starts + row + 1).to(tl.int32)
    number = tl.load(parts + row)
    item = tl.load(items + row)
    slot = tl.load(slots + row)
    for base in tl.range(0, number, SIZE):
        part = base + tl.arange(0, SIZE)
        exist = part < number
        first = start + part * size
        tl.store(item_rows + item + part, row + tl.zeros([SIZE], tl.int32), mask=exist)
        tl.store(item_first + item + part, first, mask=exist)
        tl.store(item_last + item + part, tl.minimum(first + size, end), mask=exist)
        tl.store(item_slots + item + part, tl.where(number > 1, slot + part, -1), mask=exist)


def _run(
    kernel: Any,
    grid: tuple[int, int, int],
    writes: tuple[str, ...],
    tensor: Tensor,
    *arguments: object,
    warps: int = 4,
    **constants: object,
) -> None:
    start_given(kernel, grid, (tensor, *arguments), constants, writes, options_of(warps), tensor.device)


def fits(positions: int, most: int) -> bool:
    """Whether one program sorts what the queries of a tile have picked."""
    return positions * _power(most) <= LARGEST


def _power(number: int) -> int:
    return 1 << (max(number, 1) - 1).bit_length()


def united(lists: Tensor, positions: int, blocks: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``begin`` and ``end`` of every tile of queries, and what they index: blocks, and their bits."""
    batch, heads, queries, most = lists.shape
    tiles, width = -(-queries // positions), max(1, min(positions * most, blocks))
    begin, end = torch.empty(2, batch, heads, tiles, dtype=torch.int32, device=lists.device)
    found, bits = torch.empty(2, batch * heads * tiles * width, dtype=torch.int32, device=lists.device)
    power = _power(most)
    numbers = (found, bits, begin, end, queries, most, blocks, width, tiles)
    warps = max(1, min(8, positions * power // 128))
    _run(
        unite,
        (tiles * batch * heads, 1, 1),  # other dimensions end at 65,535
        ("tiles", "bits", "begin", "end"),
        lists.contiguous(),
        *numbers,
        POSITIONS=positions,
        MOST=power,
        warps=warps,
    )
    return begin, end, found, bits


def coarser(lists: Tensor, block: int, keys: int, n: int) -> tuple[Tensor, Tensor]:
    """Lists of tiles of ``keys`` keys, and the bits of the keys of each, int64, for lists that one program holds."""
    most = lists.shape[-1]
    width = max(1, min(most, -(-n // keys)))
    tiles = torch.empty(*lists.shape[:-1], width, dtype=torch.int32, device=lists.device)
    bits = torch.empty(tiles.shape, dtype=torch.int64, device=lists.device)
    rows, power = lists.shape[:-1].numel(), _power(max(most, width))
    numbers, sizes = (most, -(-n // block), width), {"BLOCK": block, "KEYS": keys, "MOST": power}
    warps = max(1, min(8, power // 128))
    _run(coarsen, (rows, 1, 1), ("tiles", "bits"), lists.contiguous(), tiles, bits, *numbers, warps=warps, **sizes)
    return tiles, bits


def bounds(lists: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    """Where each list begins and ends, int32 of the shape of the lists but their last dimension."""
    begin, end = (torch.empty(lists.shape[:-1], dtype=torch.int32, device=lists.device) for _ in range(2))
    rows, most = begin.numel(), lists.shape[-1]
    size = max(1, LARGEST // _power(most))
    sizes = {"ROWS": size, "MOST": _power(most)}
    _run(bound, (-(-rows // size), 1, 1), ("begin", "end"), lists, begin, end, rows, most, blocks, **sizes)
    return begin, end


def sorted_picks(lists: Tensor, blocks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where the picks of each block begin, the runs of queries in that order, and where each pick has gone."""
    batch, heads, runs, most = lists.shape
    each, total = runs * most, lists.numel()
    keys, order, starts = by_block(lists, blocks)
    runs_of, entries = torch.empty(2, total, dtype=torch.int32, device=lists.device)
    grid = (triton.cdiv(total, _MANY), 1, 1)
    nothing = batch * heads * blocks
    _run(place, grid, ("runs", "entries"), keys, order, runs_of, entries, each, most, nothing, total, SIZE=_MANY)
    return starts, runs_of, entries.view(lists.shape)


def by_block(lists: Tensor, blocks: int) -> tuple[Tensor, Tensor, Tensor]:
    """The picks of lists ``[batch, heads, runs, most]`` by their blocks, those of none last.

    These are the numbers of the blocks, int32, which picks they are, int64, and where those of each block begin, int32
    ``[batch * heads * blocks + 1]``.
    """
    batch, heads, runs, most = lists.shape
    rows, total = batch * heads * blocks, lists.numel()
    keys = torch.empty(total, dtype=torch.int32, device=lists.device)
    grid = (triton.cdiv(total, _MANY), 1, 1)
    _run(number, grid, ("keys",), lists.contiguous(), keys, runs * most, blocks, rows, total, SIZE=_MANY)
    keys, order = keys.sort(stable=True)
    starts = torch.empty(rows + 1, dtype=torch.int32, device=lists.device)
    grid = (triton.cdiv(rows + 1, 256), 1, 1)
    _run(seek, grid, ("starts",), keys, starts, rows, total, total.bit_length(), SIZE=256)
    return keys, order, starts


def carried(values: Tensor, entries: Tensor) -> Tensor:
    """What belongs to the picks of lists, int64, in the order of their transpose; 0 where there is no pick."""
    found = torch.zeros(entries.numel(), dtype=values.dtype, device=values.device)
    grid = (triton.cdiv(entries.numel(), _MANY), 1, 1)
    _run(carry, grid, ("found",), values.contiguous(), entries.contiguous(), found, entries.numel(), SIZE=_MANY)
    return found


def items_of(starts: Tensor, picks: int, size: int, least: int) -> tuple[Tensor, Tensor, Tensor]:
    """Items of at most ``size`` picks, at least ``least`` of each block: their blocks, ends and places of sums, ``[4,
    items]``, and where the sums of each block begin and how many items it has."""
    rows = len(starts) - 1
    items, slots, parts = torch.empty(3, rows, dtype=torch.int32, device=starts.device)
    most = rows + picks // size
    found = torch.empty(4, most, dtype=torch.int32, device=starts.device)
    _run(blank, (triton.cdiv(4 * most, _MANY), 1, 1), ("found",), found, most, SIZE=_MANY)
    _run(count, (1, 1, 1), ("items", "slots", "parts"), starts, items, slots, parts, rows, size, least, SIZE=_MANY)
    _run(
        write,
        (rows, 1, 1),
        ("item_rows", "item_first", "item_last", "item_slots"),
        starts,
        items,
        slots,
        parts,
        *found,
        size,
        SIZE=64,
    )
    return found, slots, parts
