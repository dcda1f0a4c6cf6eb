"""What the selection stage_6 of the pattern `infllm_v2` is made of, written by spdsl.

stage_1[h, q, k.win] = score(Q[b, h, q, d], stage_0[g, k.win, d], over = d)
stage_2[h, q, k.win] = softmax(stage_1[h, q, k.win] |> only(k.win * 16 + 31 <= q), over = k.win)
stage_3[g, q, k.win] = sum(stage_2[h, q, k.win] |> only(k.win * 16 + 31 <= q), h, per = g)
stage_4[g, q, k.blk] = max(stage_3[g, q, k.win] |> only(k.win * 16 + 31 <= q), k.win, per = k.blk, windows = touching)
stage_5[q, k.blk] = any(k.win * 16 + 31 <= q, k.win, per = k.blk, windows = touching)
stage_6[g, q, k.blk] = stage_4[g, q, k.blk] |> only(stage_5[q, k.blk]) |> force(k.blk == 0 or 0 <= q.blk - k.blk and q.blk - k.blk < 32) |> top(64, over = k.blk)
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
def fold_max(value, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr, MORE: tl.constexpr):
    """The largest of SIZE neighbours, and of the MORE after them; at the last column of these there is none."""
    parts = tl.reshape(value, [ROWS, COLUMNS, SIZE])
    most = tl.max(parts, 2)
    if MORE > 0:
        place = tl.arange(0, SIZE)[None, None, :]
        first = tl.max(tl.where(place < MORE, parts, 0.0), 2)
        next = tl.minimum(tl.arange(0, COLUMNS) + 1, COLUMNS - 1)[None, :]
        most = tl.maximum(most, tl.gather(first, tl.broadcast_to(next, [ROWS, COLUMNS]), 1))
    return most



@triton.jit
def fold_sum(value, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr):
    """The sum of SIZE neighbours."""
    return tl.sum(tl.reshape(value, [ROWS, COLUMNS, SIZE]), 2)


@triton.jit
def number(x):
    """-inf in place of a NaN; in Triton's interpreter a maximum would leave it."""
    return tl.where(x == x, x, float("-inf"))


@triton.jit
def add_up(logit, largest, total):
    """The largest exponent of each row and the sum of powers of 2 beside it, with those of one tile more.

    Infinite ones count as the largest number there is, so that each adds 1 and all others nothing.
    """
    logit = tl.minimum(logit, 3.4028234663852886e38)
    more = tl.maximum(largest, tl.max(logit, 1))
    beside = tl.where(more == float("-inf"), 0.0, more)
    return more, total * tl.exp2(largest - beside) + tl.sum(tl.exp2(logit - beside[:, None]), 1)


@triton.jit
def add_plain(logit, largest, total):
    """As `add_up`; what is infinite or NaN leaves sums that are NaN."""
    more = tl.maximum(largest, tl.max(logit, 1))
    return more, total * tl.exp2(largest - more) + tl.sum(tl.exp2(logit - more[:, None]), 1)


@triton.jit
def leave(keys, row_end, key, key_row, rows, columns, pitch, row_last, column_last):
    """Store the keys of a tile, and where the rows of tiles end."""
    tl.atomic_max(row_end, column_last + 1)
    tl.store(keys + key_row * pitch + columns, key, mask=(rows <= row_last) & (columns <= column_last))


@triton.jit(do_not_specialize=["n", "nq", "q_start", "column_count", "chunk_rows", "sum_first", "sum_rows", "begin", "count", "parts", "stage_1_q_rows", "stage_1_k_rows"])
def sums_stage_2(
    sums,  # [parts, batch, heads, sum_rows, 2]: log2 of the sum of a row, and log2 of the most that an entry has of it
    sum_first, sum_rows,  # the first row that has a place there, and how many have
    begin, count, parts,  # the first row that has programs, how many have, and how many programs share the columns
    stage_1_q,  # [batch, h, q, d]
    stage_1_q_b, stage_1_q_h, stage_1_q_r, stage_1_q_f, stage_1_q_rows, stage_1_q_size,
    stage_1_k,  # [batch, g, k.win, d], each a sum of 2
    stage_1_k_b, stage_1_k_g, stage_1_k_r, stage_1_k_f, stage_1_k_t, stage_1_k_rows, stage_1_k_size,
    stage_1_scale,
    STAGE_1_Q: tl.constexpr,
    STAGE_1_K: tl.constexpr,
    n, nq, q_start, chunk_rows, column_count, heads,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The sums of the softmax stage_2."""
    row_tiles = tl.cdiv(count, BLOCK_R)
    part = tl.program_id(0) % parts
    owner = tl.program_id(0) // parts // row_tiles
    b = owner // heads
    head = owner % heads
    # Under a causal condition the last rows are the longest.
    row_first = begin + (row_tiles - 1 - tl.program_id(0) // parts % row_tiles) * BLOCK_R
    row_last = tl.minimum(row_first + BLOCK_R, chunk_rows) - 1
    rows = row_first + tl.arange(0, BLOCK_R)[:, None]
    tiles = tl.cdiv(column_count, BLOCK_C)
    # The first and the last tile that the condition touches, and the first run of those that it leaves whole.
    tile_begin, tile_end, full_begin, full_end = tiles, 0, tiles, tiles
    for scan in range(0, tiles, 128):
        run_end = tl.minimum(scan + 128, tiles)
        columns_first = scan * BLOCK_C
        columns_last = tl.minimum(run_end * BLOCK_C, column_count) - 1
        if (columns_first * 16 - row_last - q_start + 31 <= 0) & (columns_first <= columns_last):
            each = scan + tl.arange(0, 128)
            column_first = each * BLOCK_C
            column_last = tl.minimum(column_first + BLOCK_C, column_count) - 1
            touched = (column_first * 16 - row_last - q_start + 31 <= 0) & (each < tiles)
            tile_begin = tl.minimum(tile_begin, tl.min(tl.where(touched, each, tiles), 0))
            tile_end = tl.maximum(tile_end, tl.max(tl.where(touched, each + 1, 0), 0))
            whole = (column_last * 16 - row_first - q_start + 31 <= 0) & (column_first + BLOCK_C <= column_count)
            full_begin = tl.minimum(full_begin, tl.min(tl.where(whole, each, tiles), 0))
            full_end = tl.minimum(full_end, tl.min(tl.where(whole | (each < full_begin), tiles, each), 0))
    full_end = tl.minimum(full_end, tl.maximum(tile_end, full_begin))
    # A part of these tiles is this program's.
    share = tl.cdiv(tl.maximum(tile_end - tile_begin, 0), parts)
    tile_begin = tile_begin + part * share
    tile_end = tl.minimum(tile_begin + share, tile_end)
    full_begin = tl.minimum(tl.maximum(full_begin, tile_begin), tile_end)
    full_end = tl.minimum(tl.maximum(full_end, full_begin), tile_end)
    largest = tl.full([BLOCK_R], float('-inf'), tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    factor = stage_1_scale * 1.4426950408889634
    feature = tl.arange(0, STAGE_1_Q)[None, :]
    start = stage_1_q + tl.cast(b, tl.int64) * stage_1_q_b + tl.cast(head, tl.int64) * stage_1_q_h
    there = (rows >= 0) & (rows < stage_1_q_rows)
    query = tl.load(start + tl.cast(rows, tl.int64) * stage_1_q_r + feature * stage_1_q_f, mask=there & (feature < stage_1_q_size), other=0.0)
    x = head >> 3
    feature_1 = tl.arange(0, STAGE_1_K)[:, None]
    start_1 = stage_1_k + tl.cast(b, tl.int64) * stage_1_k_b + tl.cast(x, tl.int64) * stage_1_k_g + 1 * stage_1_k_t
    start_2 = stage_1_k + tl.cast(b, tl.int64) * stage_1_k_b + tl.cast(x, tl.int64) * stage_1_k_g
    for full in range(full_begin, full_end):
        columns = full * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
        there_1 = (columns >= 0) & (columns < stage_1_k_rows)
        key_1 = tl.load(start_1 + tl.cast(columns, tl.int64) * stage_1_k_r + feature_1 * stage_1_k_f, mask=there_1 & (feature_1 < stage_1_k_size), other=0.0)
        product = tl.dot(query, key_1)
        key_2 = tl.load(start_2 + tl.cast(columns, tl.int64) * stage_1_k_r + feature_1 * stage_1_k_f, mask=there_1 & (feature_1 < stage_1_k_size), other=0.0)
        product_1 = tl.dot(query, key_2, product)
        largest, total = add_plain(tl.broadcast_to(product_1 * factor, BLOCK_R, BLOCK_C), largest, total)
    # A sum that is no number says that one was: then these tiles are gone through like others.
    ordinary = tl.sum((total != total).to(tl.int32), 0) == 0
    largest = tl.where(ordinary, largest, float('-inf'))
    total = tl.where(ordinary, total, 0.0)
    full_end = tl.where(ordinary, full_end, full_begin)
    x_2 = rows + q_start
    for rest in range(tile_begin, tile_end - (full_end - full_begin)):
        tile = tl.where(rest < full_begin, rest, rest + full_end - full_begin)
        columns = tile * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
        there_2 = (columns >= 0) & (columns < stage_1_k_rows)
        key_3 = tl.load(start_1 + tl.cast(columns, tl.int64) * stage_1_k_r + feature_1 * stage_1_k_f, mask=there_2 & (feature_1 < stage_1_k_size), other=0.0)
        product_2 = tl.dot(query, key_3)
        product_3 = tl.where(tl.abs(product_2) < float("inf"), product_2, 0.0)
        key_4 = tl.load(start_2 + tl.cast(columns, tl.int64) * stage_1_k_r + feature_1 * stage_1_k_f, mask=there_2 & (feature_1 < stage_1_k_size), other=0.0)
        product_4 = tl.dot(query, key_4, product_3)
        x_1 = columns * 16 + 31
        only = x_1 <= x_2
        logit_1 = tl.where(only, number(product_4 * factor), float('-inf'))
        logit = tl.where(columns < column_count, logit_1, float('-inf'))
        largest, total = add_up(tl.broadcast_to(logit, BLOCK_R, BLOCK_C), largest, total)
    owners = tl.num_programs(0) // parts // row_tiles
    at = sums + ((part * owners + owner).to(tl.int64) * sum_rows + row_first - sum_first + tl.arange(0, BLOCK_R)) * 2
    in_rows = row_first + tl.arange(0, BLOCK_R) <= row_last
    # Infinite entries share what there is, and all others are nothing beside them.
    finite = (total > 0) & (largest < 3.0e38)
    tl.store(at, tl.where(finite, largest + tl.log2(total), 3.0e38), mask=in_rows)
    tl.store(at + 1, tl.where(finite, float("inf"), -tl.log2(total)), mask=in_rows)


@triton.jit(do_not_specialize=["n", "nq", "q_start", "column_count", "chunk_rows", "stage_1_q_rows", "stage_1_k_rows", "stage_2_sums_b", "stage_2_sums_h", "stage_2_sums_rows", "first_row", "ends_first"])
def keys(
    keys,  # [batch * heads, chunk_rows, pitch], int32: the order in which entries are chosen
    row_ends, ends_first,  # [batch * heads, tiles of rows], int32, zeros before: where the keys of these rows end
    stage_1_q,  # [batch, h, q, d]
    stage_1_q_b, stage_1_q_h, stage_1_q_r, stage_1_q_f, stage_1_q_rows, stage_1_q_size,
    stage_1_k,  # [batch, g, k.win, d], each a sum of 2
    stage_1_k_b, stage_1_k_g, stage_1_k_r, stage_1_k_f, stage_1_k_t, stage_1_k_rows, stage_1_k_size,
    stage_2_sums,  # [batch, heads, rows, 2]: log2 of the sum and of the largest share
    stage_2_sums_b, stage_2_sums_h, stage_2_sums_rows,
    stage_1_scale,
    STAGE_1_Q: tl.constexpr,
    STAGE_1_K: tl.constexpr,
    n, nq, q_start, first_row, chunk_rows, column_count, pitch, heads,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The keys of a tile of q and k.blk."""
    # Tiles of columns follow each other, then tiles of rows, then heads.
    column_tiles = tl.cdiv(column_count, BLOCK_C - 1)
    row_tiles = tl.cdiv(chunk_rows, BLOCK_R)
    column_tile = tl.program_id(0) % column_tiles
    row_tile = tl.program_id(0) // column_tiles % row_tiles
    owner = tl.program_id(0) // column_tiles // row_tiles
    b = owner // heads
    head = owner % heads
    row_first = first_row + row_tile * BLOCK_R
    row_last = tl.minimum(row_first + BLOCK_R, first_row + chunk_rows) - 1
    BLOCK_F: tl.constexpr = BLOCK_C * 4
    # Of the last column some entries are missing: it is the first one of the next tile.
    column_first = column_tile * (BLOCK_C - 1)
    column_last = tl.minimum(column_first + BLOCK_C - 1, column_count) - 1
    rows = row_first + tl.arange(0, BLOCK_R)[:, None]
    columns = column_first + tl.arange(0, BLOCK_C)[None, :]
    key_row = owner.to(tl.int64) * chunk_rows + rows - first_row
    row_end = row_ends + ends_first + owner * row_tiles + row_tile
    # No entry of the tile can be chosen.
    column_end = column_count - 1
    if ~((column_first * 64 - row_last - q_start + 15 <= 0) & (column_first * 4 - ((n + 15) >> 4) <= 0) & (-row_last - q_start + 31 <= 0) & (-((n + 15) >> 4) + 1 <= 0) | ((column_first <= 0) | (-((row_last + q_start) >> 6) + column_first <= 0) & (((row_first + q_start) >> 6) - column_last - 32 < 0))):
        if (column_first * 64 - row_last - q_start + 15 <= 0) & (column_first * 4 - ((n + 15) >> 4) <= 0) & (-row_last - q_start + 31 <= 0) & (-((n + 15) >> 4) + 1 <= 0) | ((column_first <= 0) | (-((row_last + q_start) >> 6) + column_first <= 0) & (((row_first + q_start) >> 6) - column_end - 32 < 0)):
            inside = (rows <= row_last) & (columns <= column_last)
            tl.store(keys + key_row * pitch + columns, -2147483648, mask=inside)
        return
    fine = column_first * 4 + -1 + tl.arange(0, BLOCK_F)[None, :]
    total_1 = tl.full([BLOCK_R, BLOCK_F], 0, tl.float32)
    x = head * 8
    factor = stage_1_scale * 1.4426950408889634
    feature = tl.arange(0, STAGE_1_Q)[None, :]
    there = (rows >= 0) & (rows < stage_1_q_rows)
    feature_1 = tl.arange(0, STAGE_1_K)[:, None]
    start_1 = stage_1_k + tl.cast(b, tl.int64) * stage_1_k_b + tl.cast(head, tl.int64) * stage_1_k_g + 1 * stage_1_k_t
    there_1 = (fine >= 0) & (fine < stage_1_k_rows)
    key_1 = tl.load(start_1 + tl.cast(fine, tl.int64) * stage_1_k_r + feature_1 * stage_1_k_f, mask=there_1 & (feature_1 < stage_1_k_size), other=0.0)
    start_2 = stage_1_k + tl.cast(b, tl.int64) * stage_1_k_b + tl.cast(head, tl.int64) * stage_1_k_g
    key_2 = tl.load(start_2 + tl.cast(fine, tl.int64) * stage_1_k_r + feature_1 * stage_1_k_f, mask=there_1 & (feature_1 < stage_1_k_size), other=0.0)
    for member in range(8):
        entry = x + member
        row_of = tl.cast(b, tl.int64) * stage_2_sums_b + entry * stage_2_sums_h + tl.minimum(tl.maximum(rows, 0), stage_2_sums_rows - 1)
        log_sum = tl.load(stage_2_sums + row_of * 2)
        start = stage_1_q + tl.cast(b, tl.int64) * stage_1_q_b + tl.cast(entry, tl.int64) * stage_1_q_h
        query = tl.load(start + tl.cast(rows, tl.int64) * stage_1_q_r + feature * stage_1_q_f, mask=there & (feature < stage_1_q_size), other=0.0)
        product = tl.dot(query, key_1)
        product_1 = tl.dot(query, key_2, product)
        share_1 = tl.exp2(product_1 * factor - log_sum)
        total_1 += share_1
    # Shares are up to 1, unless scores are NaN or infinite: then they are found with more care.
    x_1 = fine * 16 + 31
    x_2 = rows + q_start
    if tl.sum(((x_1 <= x_2) & (~(total_1 <= 3.0e38))).to(tl.int32)) > 0:
        total_1 = tl.full([BLOCK_R, BLOCK_F], 0, tl.float32)
        for member_1 in range(8):
            entry_1 = x + member_1
            row_of_1 = tl.cast(b, tl.int64) * stage_2_sums_b + entry_1 * stage_2_sums_h + tl.minimum(tl.maximum(rows, 0), stage_2_sums_rows - 1)
            log_sum_1 = tl.load(stage_2_sums + row_of_1 * 2)
            start_3 = stage_1_q + tl.cast(b, tl.int64) * stage_1_q_b + tl.cast(entry_1, tl.int64) * stage_1_q_h
            query_1 = tl.load(start_3 + tl.cast(rows, tl.int64) * stage_1_q_r + feature * stage_1_q_f, mask=there & (feature < stage_1_q_size), other=0.0)
            product_2 = tl.dot(query_1, key_1)
            product_3 = tl.where(tl.abs(product_2) < float("inf"), product_2, 0.0)
            product_4 = tl.dot(query_1, key_2, product_3)
            most_of = tl.load(stage_2_sums + row_of_1 * 2 + 1)
            share_2 = tl.exp2(tl.minimum(number(product_4 * factor - log_sum_1), most_of))
            total_1 += share_2
    total_2 = tl.where(x_1 <= x_2, total_1, 0.0)
    holds = (fine >= 0) & (fine <= ((n + 15) >> 4) - 1)
    folded = fold_max(tl.where((x_1 <= x_2) & holds, total_2, 0.0), BLOCK_R, BLOCK_C, 4, 1)
    x_3 = columns * 64 + 15
    holds_1 = columns * 4 <= ((n + 15) >> 4)
    holds_2 = 31 <= rows + q_start
    present = (x_3 <= x_2) & holds_1 & holds_2 & (1 <= ((n + 15) >> 4))
    holds_3 = columns == 0
    x_4 = (rows + q_start) >> 6
    key = count_key(folded, present, holds_3 | (0 <= x_4 - columns) & (x_4 - columns < 32))
    leave(keys, row_end, key, key_row, rows, columns, pitch, row_last, column_last)
