"""Which entries of rows of keys are chosen, and their numbers as lists, written by spdsl."""

import triton
import triton.language as tl


@triton.jit
def key_tile(keys, row, first, ends, pitch, nothing, WIDTH: tl.constexpr):
    """The keys of some rows and columns; beyond the end of a row there is nothing."""
    at = first + tl.arange(0, WIDTH)[None, :]
    return tl.load(keys + row.to(tl.int64)[:, None] * pitch + at, mask=at < ends[:, None], other=nothing)


@triton.jit
def count_cut(keys, row, ends, pitch, wanted, ROWS: tl.constexpr, WIDTH: tl.constexpr, ONE: tl.constexpr):
    """The key of the entry that is the last to be chosen, how many entries have it that are, and how many there are.

    The largest key of which at least `wanted` entries are not smaller is found two bits at a time, from the highest.
    """
    cut = tl.full([ROWS], -2147483648, tl.int32)
    held = key_tile(keys, row, 0, ends, pitch, -2147483648, WIDTH)
    have = tl.full([ROWS], 2147483647, tl.int32)
    shift = 30
    open = 1
    while (shift >= 0) & (open > 0):
        low = cut ^ (1 << shift)
        middle = cut ^ (2 << shift)
        high = cut ^ (3 << shift)
        of_low = tl.zeros([ROWS], tl.int32)
        of_middle = tl.zeros([ROWS], tl.int32)
        of_high = tl.zeros([ROWS], tl.int32)
        if ONE:
            of_low += tl.sum((held >= low[:, None]).to(tl.int32), 1)
            of_middle += tl.sum((held >= middle[:, None]).to(tl.int32), 1)
            of_high += tl.sum((held >= high[:, None]).to(tl.int32), 1)
        else:
            for first in range(0, tl.max(ends, 0), WIDTH):
                key = key_tile(keys, row, first, ends, pitch, -2147483648, WIDTH)
                of_low += tl.sum((key >= low[:, None]).to(tl.int32), 1)
                of_middle += tl.sum((key >= middle[:, None]).to(tl.int32), 1)
                of_high += tl.sum((key >= high[:, None]).to(tl.int32), 1)
        have = tl.where(of_low >= wanted, of_low, have)
        cut = tl.where(of_low >= wanted, low, cut)
        have = tl.where(of_middle >= wanted, of_middle, have)
        cut = tl.where(of_middle >= wanted, middle, cut)
        have = tl.where(of_high >= wanted, of_high, have)
        cut = tl.where(of_high >= wanted, high, cut)
        # A row is done when exactly so many entries are left.
        open = tl.sum((have != wanted).to(tl.int32), 0)
        shift -= 2
    above = tl.zeros([ROWS], tl.int32)
    equal = tl.zeros([ROWS], tl.int32)
    for first in range(0, tl.max(ends, 0), WIDTH):
        key = held
        if not ONE:
            key = key_tile(keys, row, first, ends, pitch, -2147483648, WIDTH)
        above += tl.sum((key > cut[:, None]).to(tl.int32), 1)
        equal += tl.sum(((key == cut[:, None]) & (key != -2147483648)).to(tl.int32), 1)
    ties = tl.maximum(tl.minimum(wanted - above, equal), 0)
    return cut, ties, above + ties


@triton.jit
def weight_of(key):
    """The weight of which a key is the bits; those of forced entries are inverted."""
    return tl.where(key < 0, ~key, key).to(tl.float32, bitcast=True).to(tl.float64)


@triton.jit
def weights(keys, row, ends, pitch, cut, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """The weight of forced entries and of those beyond a cut, for each row."""
    found = tl.zeros([ROWS], tl.float64)
    for first in range(0, tl.max(ends, 0), WIDTH):
        key = key_tile(keys, row, first, ends, pitch, 0, WIDTH)
        found += tl.sum(tl.where((key < 0) | (key > cut[:, None]), weight_of(key), 0.0), 1)
    return found


@triton.jit
def mass_cut(keys, row, ends, pitch, share, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """As `count_cut`: entries are chosen as long as those before them, forced ones first, weigh less than `share`.

    The largest key beyond which the rest weighs enough is found bit by bit; the next one is the cut.
    """
    all = weights(keys, row, ends, pitch, tl.zeros([ROWS], tl.int32), ROWS, WIDTH)
    wanted = tl.where(share >= 1.0, float("inf"), share) * all
    cut = tl.zeros([ROWS], tl.int32)
    for bit in range(31):
        next = cut | (1 << (30 - bit))
        cut = tl.where(weights(keys, row, ends, pitch, next, ROWS, WIDTH) >= wanted, next, cut)
    # Where forced entries weigh enough, nothing lies beyond the cut.
    cut = tl.where(all >= wanted, tl.minimum(cut, 2147483646) + 1, 0)
    before = weights(keys, row, ends, pitch, cut, ROWS, WIDTH)
    above = tl.zeros([ROWS], tl.int32)
    equal = tl.zeros([ROWS], tl.int32)
    for first in range(0, tl.max(ends, 0), WIDTH):
        key = key_tile(keys, row, first, ends, pitch, 0, WIDTH)
        above += tl.sum(((key < 0) | (key > cut[:, None])).to(tl.int32), 1)
        equal += tl.sum(((key == cut[:, None]) & (key > 0)).to(tl.int32), 1)
    each = tl.where(cut > 0, weight_of(cut), 1.0)
    ties = tl.minimum(tl.ceil((wanted - before) / each), 1073741824.0).to(tl.int32)
    ties = tl.where(cut > 0, tl.maximum(tl.minimum(ties, equal), 0), 0)
    return cut, ties, above + ties


@triton.jit(do_not_specialize=["rows", "width", "chunk_rows"])
def choose(
    keys,  # [rows, pitch], int32
    amounts, amount_stride,  # [rows] or one number: how many entries to choose, or the share of the sum
    cuts,  # [rows, 3], int32: the last key that is chosen, how many entries with it, how many in all
    lists,  # [rows, width], int32: the numbers of the chosen entries, ascending
    row_ends,  # [chunks, tiles], int32: how many keys there are in the rows of each tile of BLOCK_R
    rows, pitch, width, chunk_rows,
    BY: tl.constexpr,
    FIND: tl.constexpr,
    WRITE: tl.constexpr,
    ONE: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Find the cuts of rows of keys, or read them, and write the lists."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    tile = row // chunk_rows * tl.cdiv(chunk_rows, BLOCK_R) + row % chunk_rows // BLOCK_R
    ends = tl.load(row_ends + tile, mask=inside, other=0)
    if FIND:
        if BY == "count":
            wanted = tl.load(amounts + row * amount_stride, mask=inside, other=0)
            cut, ties, count = count_cut(keys, row, ends, pitch, wanted, ROWS, WIDTH, ONE)
        elif BY == "mass":
            share = tl.load(amounts + row * amount_stride, mask=inside, other=0.0)
            cut, ties, count = mass_cut(keys, row, ends, pitch, share, ROWS, WIDTH)
        else:
            cut = tl.full([ROWS], -2147483648, tl.int32)
            ties = tl.zeros([ROWS], tl.int32)
            count = tl.zeros([ROWS], tl.int32)
            for first in range(0, tl.max(ends, 0), WIDTH):
                key = key_tile(keys, row, first, ends, pitch, -2147483648, WIDTH)
                count += tl.sum((key != -2147483648).to(tl.int32), 1)
        tl.store(cuts + row * 3, cut, mask=inside)
        tl.store(cuts + row * 3 + 1, ties, mask=inside)
        tl.store(cuts + row * 3 + 2, count, mask=inside)
    else:
        cut = tl.load(cuts + row * 3, mask=inside, other=2147483647)
        ties = tl.load(cuts + row * 3 + 1, mask=inside, other=0)
        count = tl.load(cuts + row * 3 + 2, mask=inside, other=0)
    if WRITE:
        done = tl.zeros([ROWS], tl.int32)
        tied = tl.zeros([ROWS], tl.int32)
        for first in range(0, tl.max(ends, 0), WIDTH):
            at = first + tl.arange(0, WIDTH)[None, :]
            key = key_tile(keys, row, first, ends, pitch, -2147483648, WIDTH)
            equal = key == cut[:, None]
            chosen = key > cut[:, None]
            if BY == "mass":
                equal = equal & (key > 0)
                chosen = (chosen | (key < 0)) & (at < ends[:, None])
            turn = tl.cumsum(equal.to(tl.int32), 1) + tied[:, None]
            chosen = chosen | (equal & (turn <= ties[:, None]))
            place = tl.cumsum(chosen.to(tl.int32), 1) + done[:, None] - 1
            to = lists + row.to(tl.int64)[:, None] * width + place
            tl.store(to, at + tl.zeros_like(place), mask=chosen & inside[:, None] & (place < width))
            done += tl.sum(chosen.to(tl.int32), 1)
            tied += tl.sum(equal.to(tl.int32), 1)
        # What is left of a list stands behind every entry.
        for first in range(0, width, WIDTH):
            at = first + tl.arange(0, WIDTH)[None, :]
            to = lists + row.to(tl.int64)[:, None] * width + at
            tl.store(to, at * 0 + 2147483647, mask=(at >= done[:, None]) & (at < width) & inside[:, None])
