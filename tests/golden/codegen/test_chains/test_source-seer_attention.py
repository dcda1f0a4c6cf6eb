"""What the selection stage_8 of the pattern `seer_attention` is made of, written by spdsl.

stage_0[h, q.blk, k.blk] = score(GQ[h, q.blk, e], GK[h, k.blk, e], over = e)
stage_1[h, q.blk, k.blk] = softmax(stage_0[h, q.blk, k.blk] |> only(k.blk <= q.blk), over = k.blk)
stage_8[h, q.blk, k.blk] = k.blk <= q.blk and stage_1[h, q.blk, k.blk] > 0.002
"""

import triton
import triton.language as tl



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


@triton.jit(do_not_specialize=["n", "nq", "q_start", "column_count", "chunk_rows", "sum_first", "sum_rows", "begin", "count", "parts", "stage_0_q_rows", "stage_0_k_rows"])
def sums_stage_1(
    sums,  # [parts, batch, heads, sum_rows, 2]: log2 of the sum of a row, and log2 of the most that an entry has of it
    sum_first, sum_rows,  # the first row that has a place there, and how many have
    begin, count, parts,  # the first row that has programs, how many have, and how many programs share the columns
    stage_0_q,  # [batch, h, q.blk, e]
    stage_0_q_b, stage_0_q_h, stage_0_q_r, stage_0_q_f, stage_0_q_rows, stage_0_q_size,
    stage_0_k,  # [batch, h, k.blk, e], each a sum of 2
    stage_0_k_b, stage_0_k_h, stage_0_k_r, stage_0_k_f, stage_0_k_t, stage_0_k_rows, stage_0_k_size,
    stage_0_scale,
    STAGE_0_Q: tl.constexpr,
    STAGE_0_K: tl.constexpr,
    n, nq, q_start, chunk_rows, column_count, heads,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The sums of the softmax stage_1."""
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
        if (columns_first - row_last <= 0) & (columns_first <= columns_last):
            each = scan + tl.arange(0, 128)
            column_first = each * BLOCK_C
            column_last = tl.minimum(column_first + BLOCK_C, column_count) - 1
            touched = (column_first - row_last <= 0) & (each < tiles)
            tile_begin = tl.minimum(tile_begin, tl.min(tl.where(touched, each, tiles), 0))
            tile_end = tl.maximum(tile_end, tl.max(tl.where(touched, each + 1, 0), 0))
            whole = (column_last - row_first <= 0) & (column_first + BLOCK_C <= column_count)
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
    factor = stage_0_scale * 1.4426950408889634
    feature = tl.arange(0, STAGE_0_Q)[None, :]
    start = stage_0_q + tl.cast(b, tl.int64) * stage_0_q_b + tl.cast(head, tl.int64) * stage_0_q_h
    there = (rows >= 0) & (rows < stage_0_q_rows)
    query = tl.load(start + tl.cast(rows, tl.int64) * stage_0_q_r + feature * stage_0_q_f, mask=there & (feature < stage_0_q_size), other=0.0)
    feature_1 = tl.arange(0, STAGE_0_K)[:, None]
    start_1 = stage_0_k + tl.cast(b, tl.int64) * stage_0_k_b + tl.cast(head, tl.int64) * stage_0_k_h + 1 * stage_0_k_t
    start_2 = stage_0_k + tl.cast(b, tl.int64) * stage_0_k_b + tl.cast(head, tl.int64) * stage_0_k_h
    for full in range(full_begin, full_end):
        columns = full * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
        there_1 = (columns >= 0) & (columns < stage_0_k_rows)
        key_1 = tl.load(start_1 + tl.cast(columns, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=there_1 & (feature_1 < stage_0_k_size), other=0.0)
        product = tl.dot(query, key_1)
        key_2 = tl.load(start_2 + tl.cast(columns, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=there_1 & (feature_1 < stage_0_k_size), other=0.0)
        product_1 = tl.dot(query, key_2, product)
        largest, total = add_plain(tl.broadcast_to(product_1 * factor, BLOCK_R, BLOCK_C), largest, total)
    # A sum that is no number says that one was: then these tiles are gone through like others.
    ordinary = tl.sum((total != total).to(tl.int32), 0) == 0
    largest = tl.where(ordinary, largest, float('-inf'))
    total = tl.where(ordinary, total, 0.0)
    full_end = tl.where(ordinary, full_end, full_begin)
    for rest in range(tile_begin, tile_end - (full_end - full_begin)):
        tile = tl.where(rest < full_begin, rest, rest + full_end - full_begin)
        columns = tile * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
        there_2 = (columns >= 0) & (columns < stage_0_k_rows)
        key_3 = tl.load(start_1 + tl.cast(columns, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=there_2 & (feature_1 < stage_0_k_size), other=0.0)
        product_2 = tl.dot(query, key_3)
        product_3 = tl.where(tl.abs(product_2) < float("inf"), product_2, 0.0)
        key_4 = tl.load(start_2 + tl.cast(columns, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=there_2 & (feature_1 < stage_0_k_size), other=0.0)
        product_4 = tl.dot(query, key_4, product_3)
        only = columns <= rows
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


@triton.jit(do_not_specialize=["n", "nq", "q_start", "column_count", "chunk_rows", "stage_0_q_rows", "stage_0_k_rows", "stage_1_sums_b", "stage_1_sums_h", "stage_1_sums_rows", "first_row", "ends_first"])
def keys(
    keys,  # [batch * heads, chunk_rows, pitch], int32: the order in which entries are chosen
    row_ends, ends_first,  # [batch * heads, tiles of rows], int32, zeros before: where the keys of these rows end
    stage_0_q,  # [batch, h, q.blk, e]
    stage_0_q_b, stage_0_q_h, stage_0_q_r, stage_0_q_f, stage_0_q_rows, stage_0_q_size,
    stage_0_k,  # [batch, h, k.blk, e], each a sum of 2
    stage_0_k_b, stage_0_k_h, stage_0_k_r, stage_0_k_f, stage_0_k_t, stage_0_k_rows, stage_0_k_size,
    stage_1_sums,  # [batch, heads, rows, 2]: log2 of the sum and of the largest share
    stage_1_sums_b, stage_1_sums_h, stage_1_sums_rows,
    stage_0_scale,
    STAGE_0_Q: tl.constexpr,
    STAGE_0_K: tl.constexpr,
    n, nq, q_start, first_row, chunk_rows, column_count, pitch, heads,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The keys of a tile of q.blk and k.blk."""
    # Tiles of columns follow each other, then tiles of rows, then heads.
    column_tiles = tl.cdiv(column_count, BLOCK_C)
    row_tiles = tl.cdiv(chunk_rows, BLOCK_R)
    column_tile = tl.program_id(0) % column_tiles
    row_tile = tl.program_id(0) // column_tiles % row_tiles
    owner = tl.program_id(0) // column_tiles // row_tiles
    b = owner // heads
    head = owner % heads
    row_first = first_row + row_tile * BLOCK_R
    row_last = tl.minimum(row_first + BLOCK_R, first_row + chunk_rows) - 1
    column_first = column_tile * BLOCK_C
    column_last = tl.minimum(column_first + BLOCK_C, column_count) - 1
    rows = row_first + tl.arange(0, BLOCK_R)[:, None]
    columns = column_first + tl.arange(0, BLOCK_C)[None, :]
    key_row = owner.to(tl.int64) * chunk_rows + rows - first_row
    row_end = row_ends + ends_first + owner * row_tiles + row_tile
    # No entry of the tile can be chosen.
    column_end = column_count - 1
    if ~(column_first - row_last <= 0):
        return
    row_of = tl.cast(b, tl.int64) * stage_1_sums_b + head * stage_1_sums_h + tl.minimum(tl.maximum(rows, 0), stage_1_sums_rows - 1)
    log_sum = tl.load(stage_1_sums + row_of * 2)
    factor = stage_0_scale * 1.4426950408889634
    feature = tl.arange(0, STAGE_0_Q)[None, :]
    start = stage_0_q + tl.cast(b, tl.int64) * stage_0_q_b + tl.cast(head, tl.int64) * stage_0_q_h
    there = (rows >= 0) & (rows < stage_0_q_rows)
    query = tl.load(start + tl.cast(rows, tl.int64) * stage_0_q_r + feature * stage_0_q_f, mask=there & (feature < stage_0_q_size), other=0.0)
    feature_1 = tl.arange(0, STAGE_0_K)[:, None]
    start_1 = stage_0_k + tl.cast(b, tl.int64) * stage_0_k_b + tl.cast(head, tl.int64) * stage_0_k_h + 1 * stage_0_k_t
    there_1 = (columns >= 0) & (columns < stage_0_k_rows)
    key_1 = tl.load(start_1 + tl.cast(columns, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=there_1 & (feature_1 < stage_0_k_size), other=0.0)
    product = tl.dot(query, key_1)
    product_1 = tl.where(tl.abs(product) < float("inf"), product, 0.0)
    start_2 = stage_0_k + tl.cast(b, tl.int64) * stage_0_k_b + tl.cast(head, tl.int64) * stage_0_k_h
    key_2 = tl.load(start_2 + tl.cast(columns, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=there_1 & (feature_1 < stage_0_k_size), other=0.0)
    product_2 = tl.dot(query, key_2, product_1)
    most_of = tl.load(stage_1_sums + row_of * 2 + 1)
    only = columns <= rows
    share_1 = tl.where(only, tl.exp2(tl.minimum(number(product_2 * factor - log_sum), most_of)), 0.0)
    key = tl.where((columns <= rows) & (share_1 > 0.002), 1, -2147483648)
    leave(keys, row_end, key, key_row, rows, columns, pitch, row_last, column_last)
