"""Which entries of rows of keys are chosen, and their numbers as lists, written by spdsl."""

import triton
import triton.language as tl


@triton.jit
def key_tile(keys, outer, list_row, outer_width, block_count, row, first, ends, pitch, nothing, WIDTH: tl.constexpr):
    """The keys of some rows and columns; beyond the end of a row there is nothing."""
    at = first + tl.arange(0, WIDTH)[None, :]
    # A list that is not full ends in numbers beyond all blocks.
    owner = tl.load(outer + list_row.to(tl.int64)[:, None] * outer_width + at // 8, mask=at < ends[:, None], other=block_count)
    at = tl.minimum(owner, block_count) * 8 + at % 8
    return tl.load(keys + row.to(tl.int64)[:, None] * pitch + at, mask=at < block_count, other=nothing)


@triton.jit
def at_least(held, keys, outer, list_row, outer_width, block_count, row, ends, pitch, least, ROWS: tl.constexpr, WIDTH: tl.constexpr, ONE: tl.constexpr):
    """How many keys of each row are not smaller than `least`."""
    if ONE:
        return tl.sum((held >= least[:, None]).to(tl.int32), 1)
    found = tl.zeros([ROWS], tl.int32)
    for first in range(0, tl.max(ends, 0), WIDTH):
        key = key_tile(keys, outer, list_row, outer_width, block_count, row, first, ends, pitch, -2147483648, WIDTH)
        found += tl.sum((key >= least[:, None]).to(tl.int32), 1)
    return found


@triton.jit
def neighbour(held, keys, outer, list_row, outer_width, block_count, row, ends, pitch, low, high, ROWS: tl.constexpr, WIDTH: tl.constexpr, ONE: tl.constexpr):
    """The smallest key of each row that is not below `low`, and the largest that is below `high`."""
    least = tl.full([ROWS], 2147483647, tl.int32)
    most = tl.full([ROWS], -2147483648, tl.int32)
    for first in range(0, WIDTH if ONE else tl.max(ends, 0), WIDTH):
        key = held
        if not ONE:
            key = key_tile(keys, outer, list_row, outer_width, block_count, row, first, ends, pitch, -2147483648, WIDTH)
        least = tl.minimum(least, tl.min(tl.where(key < low[:, None], 2147483647, key), 1))
        most = tl.maximum(most, tl.max(tl.where(key < high[:, None], key, -2147483648), 1))
    return least, most


@triton.jit
def number_of(key):
    """The float of which a key is the order."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def between(low, high, of_low, of_high, wanted, turn, WIDTH: tl.constexpr):
    """A key between two, so many turns after the first: the middle of them, or of the numbers that they stand for.

    Where rows are long, there is a guess beside: as if the logarithm of how many keys there are fell evenly.
    """
    at = (low & high) + ((low ^ high) >> 1)
    # Every lane of a row's warps computes this: what is not asked for is left out.
    if turn % 2 == 0:
        half = 0.5 * number_of(low) + 0.5 * number_of(high)
        bits = half.to(tl.int32, bitcast=True)
        at = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    if WIDTH >= 1024:
        if turn % 3 == 0:
            above = tl.log2(of_low.to(tl.float32) + 0.5)
            part = (above - tl.log2(wanted.to(tl.float32) + 0.5)) / (above - tl.log2(of_high.to(tl.float32) + 0.5))
            step = part * (high.to(tl.float32) - low.to(tl.float32))
            at = (low.to(tl.int64) + step.to(tl.int64)).to(tl.int32)
    return tl.minimum(tl.maximum(at, low + 1), high - 1)


@triton.jit
def from_both_ends(
    held, keys, outer, list_row, outer_width, block_count, row, ends, pitch, present, forced, wanted, ROWS: tl.constexpr, WIDTH: tl.constexpr, ONE: tl.constexpr
):
    """The last key that is chosen, how many reach it, and how many reach the one above.

    It lies between `low`, which at least `wanted` keys reach, and `high`, which fewer do.  Where few keys are between it
    and one of the two, that one goes from key to key.
    """
    low = tl.full([ROWS], -2147483647, tl.int32)
    high = tl.full([ROWS], 2147483647, tl.int32)
    low, high = neighbour(held, keys, outer, list_row, outer_width, block_count, row, ends, pitch, low, high, ROWS, WIDTH, ONE)
    high += 1
    of_low = present
    of_high = forced
    # With as many as are wanted or fewer all are chosen; forced ones alone may be enough.
    done = (present <= wanted) | (forced >= wanted)
    turn = 0
    while tl.sum((~done).to(tl.int32), 0) > 0:
        look = between(low, high, of_low, of_high, wanted, turn, WIDTH)
        from_high = wanted - of_high <= 3
        from_low = ~from_high & (of_low - wanted <= 3)
        if tl.sum((~done & (from_high | from_low)).to(tl.int32), 0) > 0:
            least, most = neighbour(held, keys, outer, list_row, outer_width, block_count, row, ends, pitch, low, high, ROWS, WIDTH, ONE)
            low = tl.where(from_low, least, low)
            look = tl.where(from_high, most, tl.where(from_low, least + 1, look))
        found = at_least(held, keys, outer, list_row, outer_width, block_count, row, ends, pitch, look, ROWS, WIDTH, ONE)
        enough = found >= wanted
        of_low = tl.where(~done & enough, found, of_low)
        low = tl.where(~done & enough, look, low)
        of_high = tl.where(~done & ~enough, found, of_high)
        high = tl.where(~done & ~enough, look, high)
        # Between the largest key below `high` and `high` there is none.
        done = done | (of_low == wanted) | (enough & from_high) | (low + 1 >= high)
        turn += 1
    return low, of_low, of_high


@triton.jit
def from_the_top(held, present, forced, wanted, ROWS: tl.constexpr):
    """As `from_both_ends`, from the largest key to the next one."""
    low = tl.full([ROWS], 2147483647, tl.int32)
    of_low = forced
    of_high = forced
    done = (present <= wanted) | (forced >= wanted)
    while tl.sum((~done).to(tl.int32), 0) > 0:
        below = tl.max(tl.where(held < low[:, None], held, -2147483648), 1)
        low = tl.where(done, low, below)
        of_high = tl.where(done, of_high, of_low)
        of_low += tl.where(done, 0, tl.sum((held == low[:, None]).to(tl.int32), 1))
        done = done | (of_low >= wanted)
    return low, of_low, of_high


@triton.jit
def count_cut(keys, outer, list_row, outer_width, block_count, row, ends, pitch, wanted, ROWS: tl.constexpr, WIDTH: tl.constexpr, ONE: tl.constexpr):
    """The key of the entry that is the last to be chosen, how many entries have it that are, and how many there are."""
    held = key_tile(keys, outer, list_row, outer_width, block_count, row, 0, ends, pitch, -2147483648, WIDTH)
    present = tl.zeros([ROWS], tl.int32)
    forced = tl.zeros([ROWS], tl.int32)
    for first in range(0, WIDTH if ONE else tl.max(ends, 0), WIDTH):
        key = held
        if not ONE:
            key = key_tile(keys, outer, list_row, outer_width, block_count, row, first, ends, pitch, -2147483648, WIDTH)
        present += tl.sum((key != -2147483648).to(tl.int32), 1)
        forced += tl.sum((key == 2147483647).to(tl.int32), 1)
    SHORT: tl.constexpr = ONE and WIDTH <= 256
    if SHORT and tl.max(wanted - forced, 0) <= 6:
        low, of_low, of_high = from_the_top(held, present, forced, wanted, ROWS)
    else:
        low, of_low, of_high = from_both_ends(
            held, keys, outer, list_row, outer_width, block_count, row, ends, pitch, present, forced, wanted, ROWS, WIDTH, ONE
        )
    # All keys of `low` are chosen where just as many are wanted as reach it, else those that are left.
    ties = tl.where(of_low == wanted, 2147483647, wanted - of_high)
    all = present <= wanted
    enough_forced = ~all & (forced >= wanted)
    cut = tl.where(all, -2147483648, tl.where(enough_forced, 2147483647, low))
    ties = tl.where(all, 0, tl.where(enough_forced, tl.maximum(wanted, 0), ties))
    return cut, ties, tl.minimum(present, tl.maximum(wanted, 0))


@triton.jit
def weight_of(key):
    """The weight of which a key is the bits; those of forced entries are inverted."""
    return tl.where(key < 0, ~key, key).to(tl.float32, bitcast=True).to(tl.float64)


@triton.jit
def weights(keys, outer, list_row, outer_width, block_count, row, ends, pitch, cut, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """The weight of forced entries and of those beyond a cut, for each row."""
    found = tl.zeros([ROWS], tl.float64)
    for first in range(0, tl.max(ends, 0), WIDTH):
        key = key_tile(keys, outer, list_row, outer_width, block_count, row, first, ends, pitch, 0, WIDTH)
        found += tl.sum(tl.where((key < 0) | (key > cut[:, None]), weight_of(key), 0.0), 1)
    return found


@triton.jit
def mass_cut(keys, outer, list_row, outer_width, block_count, row, ends, pitch, share, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """As `count_cut`: entries are chosen as long as those before them, forced ones first, weigh less than `share`.

    The largest key beyond which the rest weighs enough is found bit by bit; the next one is the cut.
    """
    all = weights(keys, outer, list_row, outer_width, block_count, row, ends, pitch, tl.zeros([ROWS], tl.int32), ROWS, WIDTH)
    wanted = tl.where(share >= 1.0, float("inf"), share) * all
    cut = tl.zeros([ROWS], tl.int32)
    for bit in range(31):
        next = cut | (1 << (30 - bit))
        cut = tl.where(weights(keys, outer, list_row, outer_width, block_count, row, ends, pitch, next, ROWS, WIDTH) >= wanted, next, cut)
    # Where forced entries weigh enough, nothing lies beyond the cut.
    cut = tl.where(all >= wanted, tl.minimum(cut, 2147483646) + 1, 0)
    before = weights(keys, outer, list_row, outer_width, block_count, row, ends, pitch, cut, ROWS, WIDTH)
    above = tl.zeros([ROWS], tl.int32)
    equal = tl.zeros([ROWS], tl.int32)
    for first in range(0, tl.max(ends, 0), WIDTH):
        key = key_tile(keys, outer, list_row, outer_width, block_count, row, first, ends, pitch, 0, WIDTH)
        above += tl.sum(((key < 0) | (key > cut[:, None])).to(tl.int32), 1)
        equal += tl.sum(((key == cut[:, None]) & (key > 0)).to(tl.int32), 1)
    each = tl.where(cut > 0, weight_of(cut), 1.0)
    ties = tl.minimum(tl.ceil((wanted - before) / each), 1073741824.0).to(tl.int32)
    ties = tl.where(cut > 0, tl.maximum(tl.minimum(ties, equal), 0), 0)
    return cut, ties, above + ties


@triton.jit
def choose_rows(
    keys, outer, outer_width, block_count, amounts, amount_stride, cuts, lists, row, ends,
    rows, pitch, width, chunk_rows, list_rows, list_first,
    BY: tl.constexpr,
    FIND: tl.constexpr,
    WRITE: tl.constexpr,
    ONE: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """What `choose` does for some rows, with so many keys at once; ONE: no row has more."""
    inside = row < rows
    list_row = row // chunk_rows * list_rows + list_first + row % chunk_rows
    if FIND:
        if BY == "count":
            wanted = tl.load(amounts + row * amount_stride, mask=inside, other=0)
            cut, ties, count = count_cut(keys, outer, list_row, outer_width, block_count, row, ends, pitch, wanted, ROWS, WIDTH, ONE)
        elif BY == "mass":
            share = tl.load(amounts + row * amount_stride, mask=inside, other=0.0)
            cut, ties, count = mass_cut(keys, outer, list_row, outer_width, block_count, row, ends, pitch, share, ROWS, WIDTH)
        else:
            cut = tl.full([ROWS], -2147483648, tl.int32)
            ties = tl.zeros([ROWS], tl.int32)
            count = tl.zeros([ROWS], tl.int32)
            for first in range(0, tl.max(ends, 0), WIDTH):
                key = key_tile(keys, outer, list_row, outer_width, block_count, row, first, ends, pitch, -2147483648, WIDTH)
                count += tl.sum((key != -2147483648).to(tl.int32), 1)
        if not WRITE:
            tl.store(cuts + row * 3, cut, mask=inside)
            tl.store(cuts + row * 3 + 1, ties, mask=inside)
            tl.store(cuts + row * 3 + 2, count, mask=inside)
    else:
        cut = tl.load(cuts + row * 3, mask=inside, other=2147483647)
        ties = tl.load(cuts + row * 3 + 1, mask=inside, other=0)
        count = tl.load(cuts + row * 3 + 2, mask=inside, other=0)
    if WRITE:
        list_start = lists + list_row.to(tl.int64)[:, None] * width
        # Of equal keys the first ones are chosen, unless all are, or none.
        some_tied = tl.sum(((ties > 0) & (ties < 2147483647)).to(tl.int32), 0) > 0
        done = tl.zeros([ROWS], tl.int32)
        tied = tl.zeros([ROWS], tl.int32)
        for first in range(0, tl.max(ends, 0), WIDTH):
            at = first + tl.arange(0, WIDTH)[None, :]
            key = key_tile(keys, outer, list_row, outer_width, block_count, row, first, ends, pitch, -2147483648, WIDTH)
            equal = key == cut[:, None]
            chosen = key > cut[:, None]
            if BY == "mass":
                equal = equal & (key > 0)
                chosen = (chosen | (key < 0)) & (at < ends[:, None])
            if some_tied:
                turn = tl.cumsum(equal.to(tl.int32), 1) + tied[:, None]
                chosen = chosen | (equal & (turn <= ties[:, None]))
            else:
                chosen = chosen | (equal & (ties > 0)[:, None])
            place = tl.cumsum(chosen.to(tl.int32), 1) + done[:, None] - 1
            written = chosen & inside[:, None] & (place < width)
            owner = tl.load(outer + list_row.to(tl.int64)[:, None] * outer_width + at // 8, mask=written, other=0)
            tl.store(list_start + place, owner * 8 + at % 8, mask=written)
            done += tl.sum(chosen.to(tl.int32), 1)
            tied += tl.sum(equal.to(tl.int32), 1)
        # What is left of a list stands behind every entry.
        for first in range(0, width, WIDTH):
            at = first + tl.arange(0, WIDTH)[None, :]
            tl.store(list_start + at, at * 0 + 2147483647, mask=(at >= done[:, None]) & (at < width) & inside[:, None])


@triton.jit(do_not_specialize=["rows", "width", "chunk_rows", "ends_first", "list_rows", "list_first", "block_count"])
def choose(
    keys,  # [rows, pitch], int32
    outer, outer_width, block_count,  # [chunks, list_rows, outer_width], int32: the blocks that have entries as members
    amounts, amount_stride,  # [rows] or one number: how many entries to choose, or the share of the sum
    cuts,  # [rows, 3], int32: the last key that is chosen, how many entries with it, how many in all
    lists,  # [chunks, list_rows, width], int32: the numbers of the chosen entries, ascending, from row list_first on
    row_ends, ends_first,  # [chunks, tiles], int32: how many keys there are in the rows of each tile of BLOCK_R
    rows, pitch, width, chunk_rows, list_rows, list_first,
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
    tile = row // chunk_rows * tl.cdiv(chunk_rows, BLOCK_R) + row % chunk_rows // BLOCK_R
    ends = tl.load(row_ends + ends_first + tile, mask=row < rows, other=0)
    SHORTER: tl.constexpr = ONE and WIDTH >= 1024
    if SHORTER and tl.max(ends, 0) <= WIDTH // 2:
        # Under a causal condition that is every second row.
        choose_rows(
            keys, outer, outer_width, block_count, amounts, amount_stride, cuts, lists, row, ends,
            rows, pitch, width, chunk_rows, list_rows, list_first,
            BY, FIND, WRITE, ONE, ROWS, WIDTH // 2,
        )
    else:
        choose_rows(
            keys, outer, outer_width, block_count, amounts, amount_stride, cuts, lists, row, ends,
            rows, pitch, width, chunk_rows, list_rows, list_first,
            BY, FIND, WRITE, ONE, ROWS, WIDTH,
        )
