"""What the selection stage_10 of the pattern `xattention` is made of, written by spdsl.

stage_0[h, q, k] = score(Q[b, h, q, d], K[b, g, k, d], over = d, scale = 0.03125)
stage_1[h, q.cell, k] = sum(stage_0[h, q, k] |> only((q + k) % 4 == 3), q, per = q.cell)
stage_2[q.cell, k] = any((q + k) % 4 == 3, q, per = q.cell)
stage_3[h, q.cell, k.cell] = sum(stage_1[h, q.cell, k] |> only(stage_2[q.cell, k]), k, per = k.cell)
stage_4[q.cell, k.cell] = any(stage_2[q.cell, k], k, per = k.cell)
stage_5[h, q.cell, k.cell] = softmax(stage_3[h, q.cell, k.cell] |> only(stage_4[q.cell, k.cell] and k.cell <= q.cell), over = k.cell)
stage_6[h, q.blk, k.cell] = sum(stage_5[h, q.cell, k.cell] |> only(stage_4[q.cell, k.cell] and k.cell <= q.cell), q.cell, per = q.blk)
stage_7[q.blk, k.cell] = any(stage_4[q.cell, k.cell] and k.cell <= q.cell, q.cell, per = q.blk)
stage_8[h, q.blk, k.blk] = sum(stage_6[h, q.blk, k.cell] |> only(stage_7[q.blk, k.cell]), k.cell, per = k.blk)
stage_9[q.blk, k.blk] = any(stage_7[q.blk, k.cell], k.cell, per = k.blk)
stage_10[h, q.blk, k.blk] = stage_8[h, q.blk, k.blk] |> only(stage_9[q.blk, k.blk]) |> force(k.blk == 0 or k.blk == q.blk) |> top_p(0.9, over = k.blk)
"""

import triton
import triton.language as tl



@triton.jit
def mass_key(value, only, forced):
    """The bits of the weight, which is at least 0; of forced entries, inverted."""
    weight = tl.where(only & (value == value), tl.maximum(value.to(tl.float32), 0.0), 0.0)
    bits = (weight + 0.0).to(tl.int32, bitcast=True)
    return tl.where(forced, ~bits, bits)


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
def sums_stage_5(
    sums,  # [parts, batch, heads, sum_rows, 2]: log2 of the sum of a row, and log2 of the most that an entry has of it
    sum_first, sum_rows,  # the first row that has a place there, and how many have
    begin, count, parts,  # the first row that has programs, how many have, and how many programs share the columns
    stage_0_q,  # [batch, h, q, d]
    stage_0_q_b, stage_0_q_h, stage_0_q_r, stage_0_q_f, stage_0_q_rows, stage_0_q_size,
    stage_0_k,  # [batch, g, k, d], each a sum of 2
    stage_0_k_b, stage_0_k_g, stage_0_k_r, stage_0_k_f, stage_0_k_t, stage_0_k_rows, stage_0_k_size,
    stage_0_scale,
    STAGE_0_Q: tl.constexpr,
    STAGE_0_K: tl.constexpr,
    n, nq, q_start, chunk_rows, column_count, heads,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The sums of the softmax stage_5."""
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
    holds = (row_last * 4 - tl.maximum(q_start, 0) + 3 >= 0) & (row_first * 4 - q_start - nq + 1 <= 0)
    for scan in range(0, tl.where((row_last * 4 - tl.maximum(q_start, 0) + 3 >= 0) & (row_first * 4 - q_start - nq + 1 <= 0), tiles, 0), 128):
        run_end = tl.minimum(scan + 128, tiles)
        columns_first = scan * BLOCK_C
        columns_last = tl.minimum(run_end * BLOCK_C, column_count) - 1
        if (holds & (columns_first * 4 - n + 1 <= 0) & (columns_first - row_last <= 0)) & (columns_first <= columns_last):
            each = scan + tl.arange(0, 128)
            column_first = each * BLOCK_C
            column_last = tl.minimum(column_first + BLOCK_C, column_count) - 1
            touched = (holds & (column_first * 4 - n + 1 <= 0) & (column_first - row_last <= 0)) & (each < tiles)
            tile_begin = tl.minimum(tile_begin, tl.min(tl.where(touched, each, tiles), 0))
            tile_end = tl.maximum(tile_end, tl.max(tl.where(touched, each + 1, 0), 0))
            whole = (False) & (column_first + BLOCK_C <= column_count)
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
    only = (rows * 4 + 3 >= tl.maximum(q_start, 0)) & (rows * 4 + 3 <= q_start + nq - 1)
    entry = rows * 4 - q_start + 3
    feature = tl.arange(0, STAGE_0_Q)[None, :]
    start = stage_0_q + tl.cast(b, tl.int64) * stage_0_q_b + tl.cast(head, tl.int64) * stage_0_q_h
    there = (entry >= 0) & (entry < stage_0_q_rows)
    query = tl.load(start + tl.cast(entry, tl.int64) * stage_0_q_r + feature * stage_0_q_f, mask=there & (feature < stage_0_q_size), other=0.0)
    x = head >> 3
    feature_1 = tl.arange(0, STAGE_0_K)[:, None]
    start_1 = stage_0_k + tl.cast(b, tl.int64) * stage_0_k_b + tl.cast(x, tl.int64) * stage_0_k_g + 1 * stage_0_k_t
    start_2 = stage_0_k + tl.cast(b, tl.int64) * stage_0_k_b + tl.cast(x, tl.int64) * stage_0_k_g
    only_2 = (rows * 4 + 2 >= tl.maximum(q_start, 0)) & (rows * 4 + 2 <= q_start + nq - 1)
    entry_2 = rows * 4 - q_start + 2
    there_2 = (entry_2 >= 0) & (entry_2 < stage_0_q_rows)
    query_1 = tl.load(start + tl.cast(entry_2, tl.int64) * stage_0_q_r + feature * stage_0_q_f, mask=there_2 & (feature < stage_0_q_size), other=0.0)
    only_4 = (rows * 4 + 1 >= tl.maximum(q_start, 0)) & (rows * 4 + 1 <= q_start + nq - 1)
    entry_4 = rows * 4 - q_start + 1
    there_4 = (entry_4 >= 0) & (entry_4 < stage_0_q_rows)
    query_2 = tl.load(start + tl.cast(entry_4, tl.int64) * stage_0_q_r + feature * stage_0_q_f, mask=there_4 & (feature < stage_0_q_size), other=0.0)
    only_6 = (rows * 4 >= tl.maximum(q_start, 0)) & (rows * 4 <= q_start + nq - 1)
    entry_6 = rows * 4 - q_start
    there_6 = (entry_6 >= 0) & (entry_6 < stage_0_q_rows)
    query_3 = tl.load(start + tl.cast(entry_6, tl.int64) * stage_0_q_r + feature * stage_0_q_f, mask=there_6 & (feature < stage_0_q_size), other=0.0)
    for rest in range(tile_begin, tile_end - (full_end - full_begin)):
        tile = tl.where(rest < full_begin, rest, rest + full_end - full_begin)
        columns = tile * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
        total_1 = tl.full([BLOCK_R, BLOCK_C], 0, tl.float32)
        found = tl.full([BLOCK_R, BLOCK_C], False, tl.int1)
        found = found | only
        total_2 = tl.full([BLOCK_R, BLOCK_C], 0, tl.float32)
        entry_1 = columns * 4
        there_1 = (entry_1 >= 0) & (entry_1 < stage_0_k_rows)
        key_1 = tl.load(start_1 + tl.cast(entry_1, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=there_1 & (feature_1 < stage_0_k_size), other=0.0)
        product = tl.dot(query, key_1)
        product_1 = tl.where(tl.abs(product) < float("inf"), product, 0.0)
        key_2 = tl.load(start_2 + tl.cast(entry_1, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=there_1 & (feature_1 < stage_0_k_size), other=0.0)
        product_2 = tl.dot(query, key_2, product_1)
        score = product_2 * stage_0_scale
        total_2 += tl.where(only, score, 0)
        holds_1 = columns * 4 <= n - 1
        only_1 = found & holds_1
        total_1 += tl.where(only_1, total_2, 0)
        found_1 = tl.full([BLOCK_R, BLOCK_C], False, tl.int1)
        found_1 = found_1 | only_2
        total_3 = tl.full([BLOCK_R, BLOCK_C], 0, tl.float32)
        entry_3 = columns * 4 + 1
        there_3 = (entry_3 >= 0) & (entry_3 < stage_0_k_rows)
        key_3 = tl.load(start_1 + tl.cast(entry_3, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=there_3 & (feature_1 < stage_0_k_size), other=0.0)
        product_3 = tl.dot(query_1, key_3)
        product_4 = tl.where(tl.abs(product_3) < float("inf"), product_3, 0.0)
        key_4 = tl.load(start_2 + tl.cast(entry_3, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=there_3 & (feature_1 < stage_0_k_size), other=0.0)
        product_5 = tl.dot(query_1, key_4, product_4)
        score_1 = product_5 * stage_0_scale
        total_3 += tl.where(only_2, score_1, 0)
        holds_2 = columns * 4 + 1 <= n - 1
        only_3 = found_1 & holds_2
        total_1 += tl.where(only_3, total_3, 0)
        found_2 = tl.full([BLOCK_R, BLOCK_C], False, tl.int1)
        found_2 = found_2 | only_4
        total_4 = tl.full([BLOCK_R, BLOCK_C], 0, tl.float32)
        entry_5 = columns * 4 + 2
        there_5 = (entry_5 >= 0) & (entry_5 < stage_0_k_rows)
        key_5 = tl.load(start_1 + tl.cast(entry_5, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=there_5 & (feature_1 < stage_0_k_size), other=0.0)
        product_6 = tl.dot(query_2, key_5)
        product_7 = tl.where(tl.abs(product_6) < float("inf"), product_6, 0.0)
        key_6 = tl.load(start_2 + tl.cast(entry_5, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=there_5 & (feature_1 < stage_0_k_size), other=0.0)
        product_8 = tl.dot(query_2, key_6, product_7)
        score_2 = product_8 * stage_0_scale
        total_4 += tl.where(only_4, score_2, 0)
        holds_3 = columns * 4 + 2 <= n - 1
        only_5 = found_2 & holds_3
        total_1 += tl.where(only_5, total_4, 0)
        found_3 = tl.full([BLOCK_R, BLOCK_C], False, tl.int1)
        found_3 = found_3 | only_6
        total_5 = tl.full([BLOCK_R, BLOCK_C], 0, tl.float32)
        entry_7 = columns * 4 + 3
        there_7 = (entry_7 >= 0) & (entry_7 < stage_0_k_rows)
        key_7 = tl.load(start_1 + tl.cast(entry_7, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=there_7 & (feature_1 < stage_0_k_size), other=0.0)
        product_9 = tl.dot(query_3, key_7)
        product_10 = tl.where(tl.abs(product_9) < float("inf"), product_9, 0.0)
        key_8 = tl.load(start_2 + tl.cast(entry_7, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=there_7 & (feature_1 < stage_0_k_size), other=0.0)
        product_11 = tl.dot(query_3, key_8, product_10)
        score_3 = product_11 * stage_0_scale
        total_5 += tl.where(only_6, score_3, 0)
        holds_4 = columns * 4 + 3 <= n - 1
        only_7 = found_3 & holds_4
        total_1 += tl.where(only_7, total_5, 0)
        found_4 = tl.full([BLOCK_R, BLOCK_C], False, tl.int1)
        found_4 = found_4 | (found & holds_1)
        found_4 = found_4 | (found_1 & holds_2)
        found_4 = found_4 | (found_2 & holds_3)
        found_4 = found_4 | (found_3 & holds_4)
        only_8 = found_4 & (columns <= rows)
        logit_1 = tl.where(only_8, number(total_1 * 1.4426950408889634), float('-inf'))
        logit = tl.where(columns < column_count, logit_1, float('-inf'))
        largest, total = add_up(tl.broadcast_to(logit, BLOCK_R, BLOCK_C), largest, total)
    owners = tl.num_programs(0) // parts // row_tiles
    at = sums + ((part * owners + owner).to(tl.int64) * sum_rows + row_first - sum_first + tl.arange(0, BLOCK_R)) * 2
    in_rows = row_first + tl.arange(0, BLOCK_R) <= row_last
    # Infinite entries share what there is, and all others are nothing beside them.
    finite = (total > 0) & (largest < 3.0e38)
    tl.store(at, tl.where(finite, largest + tl.log2(total), 3.0e38), mask=in_rows)
    tl.store(at + 1, tl.where(finite, float("inf"), -tl.log2(total)), mask=in_rows)


@triton.jit(do_not_specialize=["n", "nq", "q_start", "column_count", "chunk_rows", "stage_0_q_rows", "stage_0_k_rows", "stage_5_sums_b", "stage_5_sums_h", "stage_5_sums_rows", "count_cell", "first_row", "ends_first"])
def keys(
    keys,  # [batch * heads, chunk_rows, pitch], int32: the order in which entries are chosen
    row_ends, ends_first,  # [batch * heads, tiles of rows], int32, zeros before: where the keys of these rows end
    stage_0_q,  # [batch, h, q, d]
    stage_0_q_b, stage_0_q_h, stage_0_q_r, stage_0_q_f, stage_0_q_rows, stage_0_q_size,
    stage_0_k,  # [batch, g, k, d], each a sum of 2
    stage_0_k_b, stage_0_k_g, stage_0_k_r, stage_0_k_f, stage_0_k_t, stage_0_k_rows, stage_0_k_size,
    stage_5_sums,  # [batch, heads, rows, 2]: log2 of the sum and of the largest share
    stage_5_sums_b, stage_5_sums_h, stage_5_sums_rows,
    count_cell,  # entries of q.cell
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
    if ~((row_last * 128 - tl.maximum(q_start, 0) + 127 >= 0) & (row_first * 128 - q_start - nq + 1 <= 0) & (column_first * 128 - n + 1 <= 0) & (column_first * 32 - row_last * 32 - 31 <= 0) & ((row_first * 32 - count_cell < 0) & (tl.maximum(tl.minimum(tl.minimum(row_last * 128 + 127, row_last * 128 + 127), q_start + nq - 1) - tl.maximum(tl.maximum(row_first * 128, row_first * 128), tl.maximum(q_start, 0)) + 1, 0) > 0)) & ((column_first * 32 - ((n + 3) >> 2) < 0) & (tl.maximum(tl.minimum(tl.minimum(column_last * 128 + 127, column_last * 128 + 127), n - 1) - tl.maximum(tl.maximum(column_first * 128, column_first * 128), 0) + 1, 0) > 0)) | ((column_first <= 0) | (column_first - row_last <= 0) & (column_last - row_first >= 0))):
        if (row_last * 128 - tl.maximum(q_start, 0) + 127 >= 0) & (row_first * 128 - q_start - nq + 1 <= 0) & (column_first * 128 - n + 1 <= 0) & (column_first * 32 - row_last * 32 - 31 <= 0) & ((row_first * 32 - count_cell < 0) & (tl.maximum(tl.minimum(tl.minimum(row_last * 128 + 127, row_last * 128 + 127), q_start + nq - 1) - tl.maximum(tl.maximum(row_first * 128, row_first * 128), tl.maximum(q_start, 0)) + 1, 0) > 0)) & ((column_first * 32 - ((n + 3) >> 2) < 0) & (tl.maximum(tl.minimum(tl.minimum(column_end * 128 + 127, column_end * 128 + 127), n - 1) - tl.maximum(tl.maximum(column_first * 128, column_first * 128), 0) + 1, 0) > 0)) | ((column_first <= 0) | (column_first - row_last <= 0) & (column_end - row_first >= 0)):
            inside = (rows <= row_last) & (columns <= column_last)
            tl.store(keys + key_row * pitch + columns, 0, mask=inside)
        return
    total_1 = tl.full([BLOCK_R, BLOCK_C], 0, tl.float32)
    x = rows * 128
    x_2 = columns * 128
    x_4 = rows * 32
    x_5 = rows * 128 + 127
    x_6 = columns * 32
    feature = tl.arange(0, STAGE_0_Q)[None, :]
    start = stage_0_q + tl.cast(b, tl.int64) * stage_0_q_b + tl.cast(head, tl.int64) * stage_0_q_h
    x_11 = head >> 3
    feature_1 = tl.arange(0, STAGE_0_K)[:, None]
    start_1 = stage_0_k + tl.cast(b, tl.int64) * stage_0_k_b + tl.cast(x_11, tl.int64) * stage_0_k_g + 1 * stage_0_k_t
    start_2 = stage_0_k + tl.cast(b, tl.int64) * stage_0_k_b + tl.cast(x_11, tl.int64) * stage_0_k_g
    x_13 = columns * 128 + 127
    for member in range(32):
        found = tl.full([BLOCK_R, BLOCK_C], False, tl.int1)
        x_3 = member * 4
        only_1 = x_2 + x_3 <= n - 1
        only_3 = x_2 + x_3 + 1 <= n - 1
        only_5 = x_2 + x_3 + 2 <= n - 1
        only_7 = x_2 + x_3 + 3 <= n - 1
        x_7 = x_6 + member
        for member_1 in range(32):
            found_1 = tl.full([BLOCK_R, BLOCK_C], False, tl.int1)
            found_2 = tl.full([BLOCK_R, BLOCK_C], False, tl.int1)
            x_1 = member_1 * 4
            only = (x + x_1 + 3 >= tl.maximum(q_start, 0)) & (x + x_1 + 3 <= q_start + nq - 1)
            found_2 = found_2 | only
            found_1 = found_1 | (found_2 & only_1)
            found_3 = tl.full([BLOCK_R, BLOCK_C], False, tl.int1)
            only_2 = (x + x_1 + 2 >= tl.maximum(q_start, 0)) & (x + x_1 + 2 <= q_start + nq - 1)
            found_3 = found_3 | only_2
            found_1 = found_1 | (found_3 & only_3)
            found_4 = tl.full([BLOCK_R, BLOCK_C], False, tl.int1)
            only_4 = (x + x_1 + 1 >= tl.maximum(q_start, 0)) & (x + x_1 + 1 <= q_start + nq - 1)
            found_4 = found_4 | only_4
            found_1 = found_1 | (found_4 & only_5)
            found_5 = tl.full([BLOCK_R, BLOCK_C], False, tl.int1)
            only_6 = (x + x_1 >= tl.maximum(q_start, 0)) & (x + x_1 <= q_start + nq - 1)
            found_5 = found_5 | only_6
            found_1 = found_1 | (found_5 & only_7)
            only_8 = (x_4 + member_1 < count_cell) & (tl.maximum(tl.minimum(tl.minimum(x + x_1 + 3, x_5), q_start + nq - 1) - tl.maximum(tl.maximum(x + x_1, x), tl.maximum(q_start, 0)) + 1, 0) > 0)
            x_8 = x_4 + member_1
            x_9 = found_1 & (x_7 <= x_8)
            found = found | (x_9 & only_8)
        total_2 = tl.full([BLOCK_R, BLOCK_C], 0, tl.float32)
        entry_2 = x_2 + x_3
        there_1 = (entry_2 >= 0) & (entry_2 < stage_0_k_rows)
        key_1 = tl.load(start_1 + tl.cast(entry_2, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=there_1 & (feature_1 < stage_0_k_size), other=0.0)
        key_2 = tl.load(start_2 + tl.cast(entry_2, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=there_1 & (feature_1 < stage_0_k_size), other=0.0)
        entry_4 = x_2 + x_3 + 1
        there_3 = (entry_4 >= 0) & (entry_4 < stage_0_k_rows)
        key_3 = tl.load(start_1 + tl.cast(entry_4, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=there_3 & (feature_1 < stage_0_k_size), other=0.0)
        key_4 = tl.load(start_2 + tl.cast(entry_4, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=there_3 & (feature_1 < stage_0_k_size), other=0.0)
        entry_6 = x_2 + x_3 + 2
        there_5 = (entry_6 >= 0) & (entry_6 < stage_0_k_rows)
        key_5 = tl.load(start_1 + tl.cast(entry_6, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=there_5 & (feature_1 < stage_0_k_size), other=0.0)
        key_6 = tl.load(start_2 + tl.cast(entry_6, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=there_5 & (feature_1 < stage_0_k_size), other=0.0)
        entry_8 = x_2 + x_3 + 3
        there_7 = (entry_8 >= 0) & (entry_8 < stage_0_k_rows)
        key_7 = tl.load(start_1 + tl.cast(entry_8, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=there_7 & (feature_1 < stage_0_k_size), other=0.0)
        key_8 = tl.load(start_2 + tl.cast(entry_8, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=there_7 & (feature_1 < stage_0_k_size), other=0.0)
        for member_2 in range(32):
            found_6 = tl.full([BLOCK_R, BLOCK_C], False, tl.int1)
            found_7 = tl.full([BLOCK_R, BLOCK_C], False, tl.int1)
            x_10 = member_2 * 4
            only_9 = (x + x_10 + 3 >= tl.maximum(q_start, 0)) & (x + x_10 + 3 <= q_start + nq - 1)
            found_7 = found_7 | only_9
            found_6 = found_6 | (found_7 & only_1)
            found_8 = tl.full([BLOCK_R, BLOCK_C], False, tl.int1)
            only_10 = (x + x_10 + 2 >= tl.maximum(q_start, 0)) & (x + x_10 + 2 <= q_start + nq - 1)
            found_8 = found_8 | only_10
            found_6 = found_6 | (found_8 & only_3)
            found_9 = tl.full([BLOCK_R, BLOCK_C], False, tl.int1)
            only_11 = (x + x_10 + 1 >= tl.maximum(q_start, 0)) & (x + x_10 + 1 <= q_start + nq - 1)
            found_9 = found_9 | only_11
            found_6 = found_6 | (found_9 & only_5)
            found_10 = tl.full([BLOCK_R, BLOCK_C], False, tl.int1)
            only_12 = (x + x_10 >= tl.maximum(q_start, 0)) & (x + x_10 <= q_start + nq - 1)
            found_10 = found_10 | only_12
            found_6 = found_6 | (found_10 & only_7)
            entry = x_4 + member_2
            row_of = tl.cast(b, tl.int64) * stage_5_sums_b + head * stage_5_sums_h + tl.minimum(tl.maximum(entry, 0), stage_5_sums_rows - 1)
            log_sum = tl.load(stage_5_sums + row_of * 2)
            total_3 = tl.full([BLOCK_R, BLOCK_C], 0, tl.float32)
            total_4 = tl.full([BLOCK_R, BLOCK_C], 0, tl.float32)
            entry_1 = x + x_10 - q_start + 3
            there = (entry_1 >= 0) & (entry_1 < stage_0_q_rows)
            query = tl.load(start + tl.cast(entry_1, tl.int64) * stage_0_q_r + feature * stage_0_q_f, mask=there & (feature < stage_0_q_size), other=0.0)
            product = tl.dot(query, key_1)
            product_1 = tl.where(tl.abs(product) < float("inf"), product, 0.0)
            product_2 = tl.dot(query, key_2, product_1)
            score = product_2 * stage_0_scale
            total_4 += tl.where(only_9, score, 0)
            only_13 = found_7 & only_1
            total_3 += tl.where(only_13, total_4, 0)
            total_5 = tl.full([BLOCK_R, BLOCK_C], 0, tl.float32)
            entry_3 = x + x_10 - q_start + 2
            there_2 = (entry_3 >= 0) & (entry_3 < stage_0_q_rows)
            query_1 = tl.load(start + tl.cast(entry_3, tl.int64) * stage_0_q_r + feature * stage_0_q_f, mask=there_2 & (feature < stage_0_q_size), other=0.0)
            product_3 = tl.dot(query_1, key_3)
            product_4 = tl.where(tl.abs(product_3) < float("inf"), product_3, 0.0)
            product_5 = tl.dot(query_1, key_4, product_4)
            score_1 = product_5 * stage_0_scale
            total_5 += tl.where(only_10, score_1, 0)
            only_14 = found_8 & only_3
            total_3 += tl.where(only_14, total_5, 0)
            total_6 = tl.full([BLOCK_R, BLOCK_C], 0, tl.float32)
            entry_5 = x + x_10 - q_start + 1
            there_4 = (entry_5 >= 0) & (entry_5 < stage_0_q_rows)
            query_2 = tl.load(start + tl.cast(entry_5, tl.int64) * stage_0_q_r + feature * stage_0_q_f, mask=there_4 & (feature < stage_0_q_size), other=0.0)
            product_6 = tl.dot(query_2, key_5)
            product_7 = tl.where(tl.abs(product_6) < float("inf"), product_6, 0.0)
            product_8 = tl.dot(query_2, key_6, product_7)
            score_2 = product_8 * stage_0_scale
            total_6 += tl.where(only_11, score_2, 0)
            only_15 = found_9 & only_5
            total_3 += tl.where(only_15, total_6, 0)
            total_7 = tl.full([BLOCK_R, BLOCK_C], 0, tl.float32)
            entry_7 = x + x_10 - q_start
            there_6 = (entry_7 >= 0) & (entry_7 < stage_0_q_rows)
            query_3 = tl.load(start + tl.cast(entry_7, tl.int64) * stage_0_q_r + feature * stage_0_q_f, mask=there_6 & (feature < stage_0_q_size), other=0.0)
            product_9 = tl.dot(query_3, key_7)
            product_10 = tl.where(tl.abs(product_9) < float("inf"), product_9, 0.0)
            product_11 = tl.dot(query_3, key_8, product_10)
            score_3 = product_11 * stage_0_scale
            total_7 += tl.where(only_12, score_3, 0)
            only_16 = found_10 & only_7
            total_3 += tl.where(only_16, total_7, 0)
            most_of = tl.load(stage_5_sums + row_of * 2 + 1)
            only_17 = found_6 & (x_7 <= entry)
            share_1 = tl.where(only_17, tl.exp2(tl.minimum(number(total_3 * 1.4426950408889634 - log_sum), most_of)), 0.0)
            holds = (x_4 + member_2 < count_cell) & (tl.maximum(tl.minimum(tl.minimum(x + x_10 + 3, x_5), q_start + nq - 1) - tl.maximum(tl.maximum(x + x_10, x), tl.maximum(q_start, 0)) + 1, 0) > 0)
            only_18 = found_6 & (x_7 <= entry) & holds
            x_12 = tl.cast(tl.maximum(tl.minimum(tl.minimum(x + x_10 + 3, x_5), q_start + nq - 1) - tl.maximum(tl.maximum(x + x_10, x), tl.maximum(q_start, 0)) + 1, 0), tl.float32)
            total_2 += tl.where(only_18, share_1 * x_12, 0)
        holds_1 = (x_6 + member < ((n + 3) >> 2)) & (tl.maximum(tl.minimum(tl.minimum(x_2 + x_3 + 3, x_13), n - 1) - tl.maximum(tl.maximum(x_2 + x_3, x_2), 0) + 1, 0) > 0)
        only_19 = found & holds_1
        x_14 = tl.cast(tl.maximum(tl.minimum(tl.minimum(x_2 + x_3 + 3, x_13), n - 1) - tl.maximum(tl.maximum(x_2 + x_3, x_2), 0) + 1, 0), tl.float32)
        total_1 += tl.where(only_19, total_2 * x_14, 0)
    found_11 = tl.full([BLOCK_R, BLOCK_C], False, tl.int1)
    for member_3 in range(32):
        found_12 = tl.full([BLOCK_R, BLOCK_C], False, tl.int1)
        x_16 = member_3 * 4
        only_21 = x_2 + x_16 <= n - 1
        only_23 = x_2 + x_16 + 1 <= n - 1
        only_25 = x_2 + x_16 + 2 <= n - 1
        only_27 = x_2 + x_16 + 3 <= n - 1
        x_17 = x_6 + member_3
        for member_4 in range(32):
            found_13 = tl.full([BLOCK_R, BLOCK_C], False, tl.int1)
            found_14 = tl.full([BLOCK_R, BLOCK_C], False, tl.int1)
            x_15 = member_4 * 4
            only_20 = (x + x_15 + 3 >= tl.maximum(q_start, 0)) & (x + x_15 + 3 <= q_start + nq - 1)
            found_14 = found_14 | only_20
            found_13 = found_13 | (found_14 & only_21)
            found_15 = tl.full([BLOCK_R, BLOCK_C], False, tl.int1)
            only_22 = (x + x_15 + 2 >= tl.maximum(q_start, 0)) & (x + x_15 + 2 <= q_start + nq - 1)
            found_15 = found_15 | only_22
            found_13 = found_13 | (found_15 & only_23)
            found_16 = tl.full([BLOCK_R, BLOCK_C], False, tl.int1)
            only_24 = (x + x_15 + 1 >= tl.maximum(q_start, 0)) & (x + x_15 + 1 <= q_start + nq - 1)
            found_16 = found_16 | only_24
            found_13 = found_13 | (found_16 & only_25)
            found_17 = tl.full([BLOCK_R, BLOCK_C], False, tl.int1)
            only_26 = (x + x_15 >= tl.maximum(q_start, 0)) & (x + x_15 <= q_start + nq - 1)
            found_17 = found_17 | only_26
            found_13 = found_13 | (found_17 & only_27)
            only_28 = (x_4 + member_4 < count_cell) & (tl.maximum(tl.minimum(tl.minimum(x + x_15 + 3, x_5), q_start + nq - 1) - tl.maximum(tl.maximum(x + x_15, x), tl.maximum(q_start, 0)) + 1, 0) > 0)
            x_18 = x_4 + member_4
            x_19 = found_13 & (x_17 <= x_18)
            found_12 = found_12 | (x_19 & only_28)
        only_29 = (x_6 + member_3 < ((n + 3) >> 2)) & (tl.maximum(tl.minimum(tl.minimum(x_2 + x_16 + 3, x_13), n - 1) - tl.maximum(tl.maximum(x_2 + x_16, x_2), 0) + 1, 0) > 0)
        found_11 = found_11 | (found_12 & only_29)
    holds_2 = columns == 0
    key = mass_key(total_1, found_11, holds_2 | (columns == rows))
    leave(keys, row_end, key, key_row, rows, columns, pitch, row_last, column_last)
