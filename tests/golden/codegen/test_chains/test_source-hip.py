"""What the selection stage_8 of the pattern `hip` is made of, written by spdsl.

stage_0[h, q, k] = score(Q[b, h, q, d], K[b, g, k, d], over = d)
stage_1[h, q.row, k] = max(stage_0[h, q, k] |> only(q % 4 == 0 and 256 <= k and q - k >= 1024), q, per = q.row)
stage_2[q.row, k] = any(q % 4 == 0 and 256 <= k and q - k >= 1024, q, per = q.row)
stage_3[h, q.row, k.big] = descend(stage_1[h, q.row, k] |> only(stage_2[q.row, k]), per = k.big)
stage_4[h, q.row, k.big] = stage_3[h, q.row, k.big] |> only(stage_3[h, q.row, k.big] == stage_3[h, q.row, k.big]) |> top(128, over = k.big)
stage_5[h, q.row, k.mid] = descend(stage_1[h, q.row, k] |> only(stage_2[q.row, k] and stage_4[h, q.row, k.big]), per = k.mid)
stage_6[h, q.row, k.mid] = stage_5[h, q.row, k.mid] |> only(stage_5[h, q.row, k.mid] == stage_5[h, q.row, k.mid]) |> top(256, over = k.mid)
stage_7[h, q.row, k.small] = descend(stage_1[h, q.row, k] |> only(stage_2[q.row, k] and stage_6[h, q.row, k.mid]), per = k.small)
stage_8[h, q.row, k.small] = stage_7[h, q.row, k.small] |> only(stage_7[h, q.row, k.small] == stage_7[h, q.row, k.small]) |> top(256, over = k.small)
"""

import triton
import triton.language as tl



@triton.jit
def sortable(value):
    """Numbers as int32 of the same order; 0.0 and -0.0 are one number."""
    if value.dtype.is_int():
        return tl.minimum(tl.maximum(value, -2147483646), 2147483646).to(tl.int32)
    bits = (value.to(tl.float32) + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def count_key(value, only, forced):
    """Forced entries first, then larger values; a NaN is absent."""
    key = tl.where(only & (value == value), sortable(value), -2147483648)
    return tl.where(forced, 2147483647, key)


@triton.jit
def paired(one, two, COUNT: tl.constexpr):
    """Two rows as one, eight of each in turn: so many apart are the rows of a product that one thread holds."""
    both = tl.join(tl.reshape(one, [COUNT // 8, 8]), tl.reshape(two, [COUNT // 8, 8]))
    return tl.reshape(tl.permute(both, [0, 2, 1]), [1, 2 * COUNT])


@triton.jit
def parted(both, COUNT: tl.constexpr):
    """What was paired."""
    one, two = tl.split(tl.permute(tl.reshape(both, [COUNT // 8, 2, 8]), [0, 2, 1]))
    return tl.reshape(one, [1, COUNT]), tl.reshape(two, [1, COUNT])


@triton.jit
def largest_of(product, factor, PARTS: tl.constexpr, PLACES: tl.constexpr):
    """The largest of the queries of each pair of a row and a head, for all keys of a tile that all meet; a NaN is
    absent, the largest of nothing 0.  A thread has all queries of a pair."""
    parts = tl.reshape(product, [PARTS, PLACES // 2, 4, 2, product.shape[1]])
    met = tl.max(tl.max(parts, 3), 1) * factor
    return sortable(tl.where(met == met, met, 0.0))


@triton.jit
def largest_met(product, factor, only, PARTS: tl.constexpr, PLACES: tl.constexpr):
    """The same of those that meet a key."""
    nothing = tl.where(only, 0.0, float("nan"))
    met = largest_of(product + nothing, factor, PARTS, PLACES)
    parts = tl.reshape(nothing, [PARTS, PLACES // 2, 4, 2, product.shape[1]])
    return tl.where(tl.max(tl.max(parts, 3), 1) == 0.0, met, -2147483648)


@triton.jit
def leave_swept(
    swept_best, raised_best, raised_first, raised_middle, places, raised_places, span, column_count, raised_count,
    there_is, best, first, middle,
):
    """Store what is best inside of the blocks of a span, and what is known of the next larger ones."""
    BLOCKS: tl.constexpr = best.shape[2]
    block = span * BLOCKS + tl.arange(0, BLOCKS)[None, None, :]
    tl.store(swept_best + places + block, best, mask=there_is & (block < column_count))
    for _ in tl.static_range(2):
        best_0, best_1 = tl.split(tl.reshape(best, [best.shape[0], 4, best.shape[2] // 2, 2]))
        first_0, first_1 = tl.split(tl.reshape(first, [first.shape[0], 4, first.shape[2] // 2, 2]))
        middle_0, middle_1 = tl.split(tl.reshape(middle, [middle.shape[0], 4, middle.shape[2] // 2, 2]))
        best = tl.maximum(tl.maximum(middle_0, middle_1), tl.where(middle_1 > middle_0, best_1, best_0))
        first = first_0
        middle = first_1
    RAISED: tl.constexpr = BLOCKS // 4
    block = span * RAISED + tl.arange(0, RAISED)[None, None, :]
    there = there_is & (block < raised_count)
    tl.store(raised_best + raised_places + block, best, mask=there)
    tl.store(raised_first + raised_places + block, first, mask=there)
    tl.store(raised_middle + raised_places + block, middle, mask=there)



@triton.jit
def leave(keys, row_end, key, key_row, rows, columns, pitch, row_last, column_last):
    """Store the keys of a tile, and where the rows of tiles end."""
    tl.atomic_max(row_end, column_last + 1)
    tl.store(keys + key_row * pitch + columns, key, mask=(rows <= row_last) & (columns <= column_last))


@triton.jit(do_not_specialize=["n", "nq", "q_start", "column_count", "chunk_rows", "first_row", "parts", "part_spans", "raised_count", "stage_0_q_rows", "stage_0_k_rows"])
def sweep(
    # [batch * heads, chunk_rows, pitch], int32: of each block the best that a search meets.
    swept_best, column_count, pitch,
    # The same of the next larger blocks, and their first and middle keys.
    raised_best, raised_first, raised_middle, raised_count, raised_pitch,
    stage_0_q,  # [batch, h, q, d]
    stage_0_q_b, stage_0_q_h, stage_0_q_r, stage_0_q_f, stage_0_q_rows, stage_0_q_size,
    stage_0_k,  # [batch, g, k, d]
    stage_0_k_b, stage_0_k_g, stage_0_k_r, stage_0_k_f, stage_0_k_rows, stage_0_k_size,
    stage_0_scale,
    STAGE_0_Q: tl.constexpr,
    STAGE_0_K: tl.constexpr,
    n, nq, q_start, first_row, chunk_rows, heads, parts, part_spans,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """What searches meet in all blocks of 8 keys, for some rows of q.row and heads of a group."""
    SIZE: tl.constexpr = 8
    SPAN: tl.constexpr = BLOCK_C * SIZE
    SHARE: tl.constexpr = 8  # heads of a group
    PLACES: tl.constexpr = 16  # of the queries of a row
    PAIRS: tl.constexpr = BLOCK_R // PLACES
    PARTS: tl.constexpr = PAIRS // 4
    tiles = tl.cdiv(chunk_rows * SHARE, PAIRS)
    # Programs at one time meet the same keys.
    tile = tl.program_id(0) % tiles
    part = tl.program_id(0) // tiles % parts
    owner = tl.program_id(0) // tiles // parts
    b = owner // (heads // SHARE)
    group = owner % (heads // SHARE)
    part_begin = part * part_spans
    part_end = tl.minimum(part_begin + part_spans, tl.cdiv(column_count, BLOCK_C))
    # Of eight neighbouring places a thread of the matrix unit holds two: these are queries of one pair.
    at = tl.arange(0, BLOCK_R)[:, None]
    pair = tile * PAIRS + at // (4 * PLACES) * 4 + at // 2 % 4
    query_at = at // 8 % (PLACES // 2) * 2 + at % 2
    row = first_row + tl.minimum(pair // SHARE, chunk_rows - 1)
    head = group * SHARE + pair % SHARE
    row_first = first_row + tile * PAIRS // SHARE
    row_last = first_row + tl.minimum((tile * PAIRS + PAIRS - 1) // SHARE, chunk_rows - 1)
    blocks = tl.arange(0, BLOCK_C)[None, :]
    pairs = tile * PAIRS + tl.arange(0, PARTS)[:, None, None] * 4 + tl.arange(0, 4)[None, :, None]
    there_is = pairs // SHARE < chunk_rows
    owners = b * heads + group * SHARE + pairs % SHARE
    rows = owners.to(tl.int64) * chunk_rows + pairs // SHARE
    places, raised_places = rows * pitch, rows * raised_pitch
    nothing = tl.full([PARTS, 4, BLOCK_C], -2147483648, tl.int32)
    # Past the last query the tile has this one again, which changes no maximum.
    members = row * 64 + tl.minimum(query_at, 15) * 4
    exist = (members >= tl.maximum(q_start, 0)) & (members < q_start + nq)
    all_exist = (row_first * 64 >= tl.maximum(q_start, 0)) & (row_last * 64 + 60 < q_start + nq)
    any_exist = (row_last * 64 + 60 >= q_start) & (row_first * 64 < q_start + nq)
    front = nothing
    even = nothing
    best_1 = nothing
    middle_1 = nothing
    best_2 = nothing
    middle_2 = nothing
    half_3 = nothing
    begin, finish = part_end, part_begin
    full_begin, full_end = part_begin, part_begin
    x = row_last * 64
    x_1 = row_first * 64
    for span in range(part_begin, part_end):
        key_first = span * SPAN
        key_last = tl.minimum(key_first + SPAN, n) - 1
        touched = any_exist & (key_first < n) & ((-key_last + 256 <= 0) & (x - key_first - 964 >= 0))
        begin = tl.where(touched, tl.minimum(begin, span), begin)
        finish = tl.where(touched, span + 1, finish)
        whole = all_exist & (key_first + SPAN <= n) & ((-key_first + 256 <= 0) & (x_1 - key_last - 1024 >= 0))
        starts = whole & (full_end == full_begin)
        full_end = tl.where(starts | (whole & (full_end == span)), span + 1, full_end)
        full_begin = tl.where(starts, span, full_begin)
        if not touched:
            leave_swept(swept_best, raised_best, raised_first, raised_middle, places, raised_places, span, column_count, raised_count, there_is, nothing, nothing, nothing)
    finish = tl.maximum(begin, finish)
    full_begin = tl.where(full_end == full_begin, begin, full_begin)
    full_end = tl.maximum(full_begin, full_end)
    # Spans of which every key is met by all queries, where no condition is looked at.
    entry = members - q_start
    feature = tl.arange(0, STAGE_0_Q)[None, :]
    start = stage_0_q + tl.cast(b, tl.int64) * stage_0_q_b + tl.cast(head, tl.int64) * stage_0_q_h
    there = (entry >= 0) & (entry < stage_0_q_rows)
    query = tl.load(start + tl.cast(entry, tl.int64) * stage_0_q_r + feature * stage_0_q_f, mask=there & (feature < stage_0_q_size), other=0.0)
    feature_1 = tl.arange(0, STAGE_0_K)[:, None]
    start_1 = stage_0_k + tl.cast(b, tl.int64) * stage_0_k_b + tl.cast(group, tl.int64) * stage_0_k_g
    for step in range(full_begin * SIZE, full_end * SIZE):
        turn, span = step % SIZE, step // SIZE
        middle = span * SPAN + blocks * SIZE + turn
        key_1 = tl.load(start_1 + tl.cast(middle, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=feature_1 < stage_0_k_size, other=0.0)
        product = tl.trans(tl.dot(tl.trans(key_1), tl.trans(query)))
        met = largest_of(product, stage_0_scale, PARTS, PLACES)
        best, half = tl.maximum(even, met), met
        inside = tl.where(half > middle_1, best, best_1)
        above = tl.maximum(tl.maximum(middle_1, half), inside)
        best_1 = tl.where(turn % 4 == 1, best, best_1)
        middle_1 = tl.where(turn % 4 == 1, half, middle_1)
        best, half = above, even
        inside = tl.where(half > middle_2, best, best_2)
        above = tl.maximum(tl.maximum(middle_2, half), inside)
        best_2 = tl.where(turn % 8 == 3, best, best_2)
        middle_2 = tl.where(turn % 8 == 3, half, middle_2)
        best, half = above, half_3
        if turn == SIZE - 1:
            leave_swept(swept_best, raised_best, raised_first, raised_middle, places, raised_places, span, column_count, raised_count, there_is, best, front, half)
        front = tl.where(turn == 0, met, front)
        half_3 = tl.where(turn % 8 == 4, met, half_3)
        even = tl.where(turn % 2 == 0, met, even)
    holds = (members & 3) == 0
    for step in tl.range(begin * SIZE, (finish - (full_end - full_begin)) * SIZE, num_stages=1):
        turn, span = step % SIZE, step // SIZE
        span = tl.where(span < full_begin, span, span + full_end - full_begin)
        wanted = span * SPAN + blocks * SIZE + turn
        middle = tl.minimum(wanted, n - 1)
        key_2 = tl.load(start_1 + tl.cast(middle, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=feature_1 < stage_0_k_size, other=0.0)
        product_1 = tl.trans(tl.dot(tl.trans(key_2), tl.trans(query)))
        holds_1 = 256 <= middle
        met = largest_met(product_1, stage_0_scale, exist & (wanted < n) & (holds & holds_1 & (members - middle >= 1024)), PARTS, PLACES)
        best, half = tl.maximum(even, met), met
        inside = tl.where(half > middle_1, best, best_1)
        above = tl.maximum(tl.maximum(middle_1, half), inside)
        best_1 = tl.where(turn % 4 == 1, best, best_1)
        middle_1 = tl.where(turn % 4 == 1, half, middle_1)
        best, half = above, even
        inside = tl.where(half > middle_2, best, best_2)
        above = tl.maximum(tl.maximum(middle_2, half), inside)
        best_2 = tl.where(turn % 8 == 3, best, best_2)
        middle_2 = tl.where(turn % 8 == 3, half, middle_2)
        best, half = above, half_3
        if turn == SIZE - 1:
            leave_swept(swept_best, raised_best, raised_first, raised_middle, places, raised_places, span, column_count, raised_count, there_is, best, front, half)
        front = tl.where(turn == 0, met, front)
        half_3 = tl.where(turn % 8 == 4, met, half_3)
        even = tl.where(turn % 2 == 0, met, even)


@triton.jit(do_not_specialize=["n", "nq", "q_start", "column_count", "chunk_rows", "stage_0_q_rows", "stage_0_k_rows", "first_row", "total", "list_b", "list_h", "list_r", "list_count"])
def keys(
    keys,  # [batch * heads, chunk_rows, pitch], int32: the order in which candidates are chosen
    lists, list_b, list_h, list_r, list_count,  # [batch, heads, rows, width]: of what there are members
    stage_0_q,  # [batch, h, q, d]
    stage_0_q_b, stage_0_q_h, stage_0_q_r, stage_0_q_f, stage_0_q_rows, stage_0_q_size,
    stage_0_k,  # [batch, g, k, d]
    stage_0_k_b, stage_0_k_g, stage_0_k_r, stage_0_k_f, stage_0_k_rows, stage_0_k_size,
    stage_0_scale,
    STAGE_0_Q: tl.constexpr,
    STAGE_0_K: tl.constexpr,
    n, nq, q_start, first_row, chunk_rows, column_count, pitch, heads, total,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The keys of a tile of q.row and of candidates among k.small."""
    column_tiles = tl.cdiv(total, BLOCK_C)
    row_tiles = chunk_rows
    owner = tl.program_id(0) // column_tiles // row_tiles
    # Programs at one time meet neighbouring candidates of many rows, so that keys are found in the cache.
    row_tile = tl.program_id(0) % row_tiles
    column_tile = tl.program_id(0) // row_tiles % column_tiles
    b = owner // heads
    head = owner % heads
    row_first = first_row + row_tile  # the row whose queries are the rows of the tile
    upper = row_first
    key_row = owner.to(tl.int64) * chunk_rows + row_tile
    candidate_first = column_tile * BLOCK_C
    candidates = candidate_first + tl.arange(0, BLOCK_C)[None, :]
    list_at = b.to(tl.int64) * list_b + head * list_h + upper * list_r
    outer = tl.load(lists + list_at + candidates // 4, mask=candidates < total, other=list_count)
    columns = outer * 4 + candidates % 4
    there = (outer < list_count) & (columns < column_count)
    columns = tl.where(there, columns, 0)
    # Candidates ascend, and those that exist come first: the ends of the tile, as scalars.
    candidate_last = tl.minimum(candidate_first + BLOCK_C, total) - 1
    all_there = candidate_first + BLOCK_C <= total
    first_outer = tl.load(lists + list_at + candidate_first // 4)
    last_outer = tl.load(lists + list_at + candidate_last // 4)
    any_there = first_outer < list_count
    column_first = tl.where(any_there, first_outer, 0) * 4 + candidate_first % 4
    all_there = all_there & (last_outer < list_count)
    column_last = tl.where(all_there, last_outer, 0) * 4 + candidate_last % 4
    all_there = all_there & (column_last < column_count)
    members = row_first * 64 + tl.minimum(tl.arange(0, BLOCK_R), 15)[:, None] * 4
    exist = (members >= tl.maximum(q_start, 0)) & (members < q_start + nq)
    first = columns * 8
    key_first = column_first * 8
    key_last = tl.where(all_there, column_last * 8 + 7, n - 1)
    all_there = all_there & (key_last < n)
    # Nothing of the tile can be met.
    may = any_there & ((-key_last + 256 <= 0) & (row_first * 64 - key_first - 964 >= 0))
    there = there & may
    size = tl.where(there, tl.minimum(n - first, 8), 0)
    best = tl.full([1, BLOCK_C], -2147483648, tl.int32)
    # Everything of the tile is met: all blocks are full, and no condition is looked at.
    whole = all_there & (row_first * 64 >= tl.maximum(q_start, 0)) & (row_first * 64 + 60 < q_start + nq) & ((-key_first + 256 <= 0) & (row_first * 64 - key_last - 1024 >= 0))
    entry = members - q_start
    feature = tl.arange(0, STAGE_0_Q)[None, :]
    start = stage_0_q + tl.cast(b, tl.int64) * stage_0_q_b + tl.cast(head, tl.int64) * stage_0_q_h
    there_1 = (entry >= 0) & (entry < stage_0_q_rows)
    query = tl.load(start + tl.cast(entry, tl.int64) * stage_0_q_r + feature * stage_0_q_f, mask=there_1 & (feature < stage_0_q_size), other=0.0)
    x = head >> 3
    feature_1 = tl.arange(0, STAGE_0_K)[:, None]
    start_1 = stage_0_k + tl.cast(b, tl.int64) * stage_0_k_b + tl.cast(x, tl.int64) * stage_0_k_g
    if whole:
        half = tl.full([], 4, tl.int32)
        for level in range(2):
            both = paired(first + half // 2, first + half + half // 2, BLOCK_C)
            key_1 = tl.load(start_1 + tl.cast(both, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=feature_1 < stage_0_k_size, other=0.0)
            product = tl.trans(tl.dot(tl.trans(key_1), tl.trans(query)))
            met = tl.max(product, 0)[None, :] * stage_0_scale
            met = sortable(tl.where(met == met, met, 0.0))
            seen_0, seen_1 = parted(met, BLOCK_C)
            best = tl.maximum(best, tl.maximum(seen_0, seen_1))
            first = tl.where(seen_1 > seen_0, first + half, first)
            half = half // 2
        key_2 = tl.load(start_1 + tl.cast(first, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=feature_1 < stage_0_k_size, other=0.0)
        product_1 = tl.trans(tl.dot(tl.trans(key_2), tl.trans(query)))
        met = tl.max(product_1, 0)[None, :] * stage_0_scale
        met = sortable(tl.where(met == met, met, 0.0))
        best = tl.maximum(best, met)
    may = may & ~whole
    levels = 3 * may.to(tl.int32)
    holds = (members & 3) == 0
    for level in range(levels):
        half = (size + 1) // 2
        middle_0 = tl.minimum((2 * first + half) // 2, n - 1)
        there_2 = (middle_0 >= 0) & (middle_0 < stage_0_k_rows)
        key_3 = tl.load(start_1 + tl.cast(middle_0, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=there_2 & (feature_1 < stage_0_k_size), other=0.0)
        product_2 = tl.dot(query, key_3)
        score = product_2 * stage_0_scale
        holds_1 = 256 <= middle_0
        met = tl.where(score == score, sortable(score), -2147483647)
        met = tl.max(tl.where(exist & (holds & holds_1 & (members - middle_0 >= 1024)), met, -2147483648), 0)[None, :]
        met = tl.where(met == -2147483647, 0, met)
        seen_0 = tl.where((half > 0) & there, met, -2147483648)
        middle_1 = tl.minimum((2 * (first + half) + (size - half)) // 2, n - 1)
        there_3 = (middle_1 >= 0) & (middle_1 < stage_0_k_rows)
        key_4 = tl.load(start_1 + tl.cast(middle_1, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=there_3 & (feature_1 < stage_0_k_size), other=0.0)
        product_3 = tl.dot(query, key_4)
        score_1 = product_3 * stage_0_scale
        holds_2 = 256 <= middle_1
        met = tl.where(score_1 == score_1, sortable(score_1), -2147483647)
        met = tl.max(tl.where(exist & (holds & holds_2 & (members - middle_1 >= 1024)), met, -2147483648), 0)[None, :]
        met = tl.where(met == -2147483647, 0, met)
        seen_1 = tl.where(((size - half) > 0) & there & (size > 1), met, -2147483648)
        best = tl.maximum(best, tl.maximum(seen_0, seen_1))
        better = seen_1 > seen_0
        first = tl.where(better, first + half, first)
        size = tl.where(better, size - half, half)
    key = tl.where(there, best, -2147483648)
    tl.store(keys + key_row * pitch + candidates, key, mask=candidates < total)
