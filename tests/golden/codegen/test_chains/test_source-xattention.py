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
def deep_parts(value, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr):
    """SIZE neighbouring rows for each of ROWS."""
    return tl.reshape(tl.broadcast_to(value, ROWS * SIZE, COLUMNS), [ROWS, SIZE, COLUMNS])



@triton.jit
def deep_sum(value, only, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr):
    """The sum of SIZE rows, of those that are there."""
    value = tl.broadcast_to(tl.where(only, value, 0.0), ROWS * SIZE, COLUMNS)
    if ROWS == 1:
        total = tl.sum(value, 0)[None, :]
    else:
        total = tl.sum(tl.reshape(value, [ROWS, SIZE, COLUMNS]), 1)
    return total



@triton.jit
def deep_mean(value, only, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr):
    """The mean of SIZE rows, of those that are there; of none, 0."""
    count = tl.sum(deep_parts(only.to(tl.int32), ROWS, COLUMNS, SIZE), 1)
    return deep_sum(value, only, ROWS, COLUMNS, SIZE) / tl.maximum(count, 1)



@triton.jit
def deep_max(value, only, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr):
    """The largest of SIZE rows, of those that are there and no NaN; of none, 0."""
    there = only & (value == value)
    most = tl.max(deep_parts(tl.where(there, value, float("-inf")), ROWS, COLUMNS, SIZE), 1)
    some = tl.max(deep_parts(there.to(tl.int32), ROWS, COLUMNS, SIZE), 1)
    return tl.where(some > 0, most, 0.0)



@triton.jit
def deep_min(value, only, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr):
    """The smallest of SIZE rows, of those that are there and no NaN; of none, 0."""
    return -deep_max(-value, only, ROWS, COLUMNS, SIZE)



@triton.jit
def deep_any(value, only, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr):
    """Whether one of SIZE rows holds, of those that are there."""
    return tl.max(deep_parts((value & only).to(tl.int32), ROWS, COLUMNS, SIZE), 1) > 0



@triton.jit
def deep_all(value, only, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr):
    """Whether all of SIZE rows hold, of those that are there."""
    return tl.min(deep_parts((value | ~only).to(tl.int32), ROWS, COLUMNS, SIZE), 1) > 0


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
    stage_0_k,  # [batch, g, k, d]
    stage_0_k_b, stage_0_k_g, stage_0_k_r, stage_0_k_f, stage_0_k_rows, stage_0_k_size,
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
    holds = tl.maximum(q_start, 0) - row_last * 4 - 3 <= 0
    holds_1 = row_first * 4 - q_start - nq + 1 <= 0
    x = row_first * 4
    holds_2 = tl.maximum(q_start, 0) - row_first * 4 - 3 <= 0
    holds_3 = row_last * 4 - q_start - nq + 1 <= 0
    x_1 = row_last * 4
    for scan in range(0, tl.where((tl.maximum(q_start, 0) - row_last * 4 - 3 <= 0) & (row_first * 4 - q_start - nq + 1 <= 0) & (tl.maximum(q_start, 0) - q_start - nq + 1 <= 0), tiles, 0), 128):
        run_end = tl.minimum(scan + 128, tiles)
        columns_first = scan * BLOCK_C
        columns_last = tl.minimum(run_end * BLOCK_C, column_count) - 1
        if (holds & (columns_first * 4 - n + 1 <= 0) & holds_1 & (tl.maximum(q_start, 0) - q_start - nq + 1 <= 0) & (columns_first * 4 + x - n - q_start - nq + 5 <= 0) & (columns_first - row_last <= 0)) & (columns_first <= columns_last):
            each = scan + tl.arange(0, 128)
            column_first = each * BLOCK_C
            column_last = tl.minimum(column_first + BLOCK_C, column_count) - 1
            touched = (holds & (column_first * 4 - n + 1 <= 0) & holds_1 & (tl.maximum(q_start, 0) - q_start - nq + 1 <= 0) & (column_first * 4 + x - n - q_start - nq + 5 <= 0) & (column_first - row_last <= 0)) & (each < tiles)
            tile_begin = tl.minimum(tile_begin, tl.min(tl.where(touched, each, tiles), 0))
            tile_end = tl.maximum(tile_end, tl.max(tl.where(touched, each + 1, 0), 0))
            whole = (holds_2 & (column_last * 4 - n + 1 <= 0) & holds_3 & (tl.maximum(q_start, 0) - q_start - nq + 1 <= 0) & (column_last * 4 + x_1 - n - q_start - nq + 5 <= 0) & (column_last - row_first <= 0)) & (column_first + BLOCK_C <= column_count)
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
    feature = tl.arange(0, STAGE_0_Q)[None, :]
    start = stage_0_q + tl.cast(b, tl.int64) * stage_0_q_b + tl.cast(head, tl.int64) * stage_0_q_h
    along = tl.arange(0, BLOCK_R)[:, None] * 4
    offset = along * stage_0_q_r + feature * stage_0_q_f
    x_2 = head >> 3
    feature_1 = tl.arange(0, STAGE_0_K)[:, None]
    start_1 = stage_0_k + tl.cast(b, tl.int64) * stage_0_k_b + tl.cast(x_2, tl.int64) * stage_0_k_g
    along_1 = tl.arange(0, BLOCK_C)[None, :] * 4
    offset_1 = along_1 * stage_0_k_r + feature_1 * stage_0_k_f
    x_5 = rows * 4
    for full in range(full_begin, full_end):
        columns = full * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
        total_1 = tl.full([BLOCK_R, BLOCK_C], 0, tl.float32)
        x_3 = full * BLOCK_C * 4
        for pair in range(4):
            first = -pair - q_start + x + 3
            begins = start + tl.cast(first, tl.int64) * stage_0_q_r
            there = (along >= -first) & (along < stage_0_q_rows - first)
            query = tl.load(begins + offset, mask=there & (feature < stage_0_q_size), other=0.0)
            first_1 = pair + x_3
            begins_1 = start_1 + tl.cast(first_1, tl.int64) * stage_0_k_r
            there_1 = (along_1 >= -first_1) & (along_1 < stage_0_k_rows - first_1)
            key_1 = tl.load(begins_1 + offset_1, mask=there_1 & (feature_1 < stage_0_k_size), other=0.0)
            product = tl.dot(query, key_1, total_1)
            total_1 = product
        # Beside what is infinite, a pair that does not exist is no zero.
        x_4 = columns * 4
        if tl.sum((total_1 != total_1).to(tl.int32)) > 0:
            total_1 = tl.full([BLOCK_R, BLOCK_C], 0, tl.float32)
            for pair_1 in range(4):
                first_2 = -pair_1 - q_start + x + 3
                begins_2 = start + tl.cast(first_2, tl.int64) * stage_0_q_r
                there_2 = (along >= -first_2) & (along < stage_0_q_rows - first_2)
                query_1 = tl.load(begins_2 + offset, mask=there_2 & (feature < stage_0_q_size), other=0.0)
                first_3 = pair_1 + x_3
                begins_3 = start_1 + tl.cast(first_3, tl.int64) * stage_0_k_r
                there_3 = (along_1 >= -first_3) & (along_1 < stage_0_k_rows - first_3)
                key_2 = tl.load(begins_3 + offset_1, mask=there_3 & (feature_1 < stage_0_k_size), other=0.0)
                product_1 = tl.dot(query_1, key_2)
                holds_4 = x_4 + pair_1 <= n - 1
                holds_5 = (x_5 - pair_1 + 3 >= tl.maximum(q_start, 0)) & (x_5 - pair_1 + 3 <= q_start + nq - 1)
                total_1 += tl.where(holds_4 & holds_5, product_1, 0.0)
        score = total_1 * stage_0_scale
        largest, total = add_plain(tl.broadcast_to(score * 1.4426950408889634, BLOCK_R, BLOCK_C), largest, total)
    # A sum that is no number says that one was: then these tiles are gone through like others.
    ordinary = tl.sum((total != total).to(tl.int32), 0) == 0
    largest = tl.where(ordinary, largest, float('-inf'))
    total = tl.where(ordinary, total, 0.0)
    full_end = tl.where(ordinary, full_end, full_begin)
    holds_8 = tl.maximum(q_start, 0) <= rows * 4 + 3
    holds_10 = rows * 4 + 1 <= q_start + nq
    for rest in range(tile_begin, tile_end - (full_end - full_begin)):
        tile = tl.where(rest < full_begin, rest, rest + full_end - full_begin)
        columns = tile * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
        total_2 = tl.full([BLOCK_R, BLOCK_C], 0, tl.float32)
        x_6 = tile * BLOCK_C * 4
        for pair_2 in range(4):
            first_4 = -pair_2 - q_start + x + 3
            begins_4 = start + tl.cast(first_4, tl.int64) * stage_0_q_r
            there_4 = (along >= -first_4) & (along < stage_0_q_rows - first_4)
            query_2 = tl.load(begins_4 + offset, mask=there_4 & (feature < stage_0_q_size), other=0.0)
            first_5 = pair_2 + x_6
            begins_5 = start_1 + tl.cast(first_5, tl.int64) * stage_0_k_r
            there_5 = (along_1 >= -first_5) & (along_1 < stage_0_k_rows - first_5)
            key_3 = tl.load(begins_5 + offset_1, mask=there_5 & (feature_1 < stage_0_k_size), other=0.0)
            product_2 = tl.dot(query_2, key_3, total_2)
            total_2 = product_2
        # Beside what is infinite, a pair that does not exist is no zero.
        x_7 = columns * 4
        if tl.sum((total_2 != total_2).to(tl.int32)) > 0:
            total_2 = tl.full([BLOCK_R, BLOCK_C], 0, tl.float32)
            for pair_3 in range(4):
                first_6 = -pair_3 - q_start + x + 3
                begins_6 = start + tl.cast(first_6, tl.int64) * stage_0_q_r
                there_6 = (along >= -first_6) & (along < stage_0_q_rows - first_6)
                query_3 = tl.load(begins_6 + offset, mask=there_6 & (feature < stage_0_q_size), other=0.0)
                first_7 = pair_3 + x_6
                begins_7 = start_1 + tl.cast(first_7, tl.int64) * stage_0_k_r
                there_7 = (along_1 >= -first_7) & (along_1 < stage_0_k_rows - first_7)
                key_4 = tl.load(begins_7 + offset_1, mask=there_7 & (feature_1 < stage_0_k_size), other=0.0)
                product_3 = tl.dot(query_3, key_4)
                holds_6 = x_7 + pair_3 <= n - 1
                holds_7 = (x_5 - pair_3 + 3 >= tl.maximum(q_start, 0)) & (x_5 - pair_3 + 3 <= q_start + nq - 1)
                total_2 += tl.where(holds_6 & holds_7, product_3, 0.0)
        score_1 = total_2 * stage_0_scale
        holds_9 = columns * 4 + 1 <= n
        present = holds_8 & holds_9 & holds_10 & (tl.maximum(q_start, 0) + 1 <= q_start + nq) & (x_7 + x_5 + 5 <= n + q_start + nq)
        only = present & (columns <= rows)
        logit_1 = tl.where(only, number(score_1 * 1.4426950408889634), float('-inf'))
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
    stage_0_k,  # [batch, g, k, d]
    stage_0_k_b, stage_0_k_g, stage_0_k_r, stage_0_k_f, stage_0_k_rows, stage_0_k_size,
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
    BLOCK_F: tl.constexpr = BLOCK_C * 32
    BLOCK_Q: tl.constexpr = BLOCK_R * 32
    column_first = column_tile * BLOCK_C
    column_last = tl.minimum(column_first + BLOCK_C, column_count) - 1
    rows = row_first + tl.arange(0, BLOCK_R)[:, None]
    columns = column_first + tl.arange(0, BLOCK_C)[None, :]
    key_row = owner.to(tl.int64) * chunk_rows + rows - first_row
    row_end = row_ends + ends_first + owner * row_tiles + row_tile
    # No entry of the tile can be chosen.
    column_end = column_count - 1
    if ~((tl.maximum(q_start, 0) - q_start - nq + 1 <= 0) & (row_first * 128 - q_start - nq + 1 <= 0) & (tl.maximum(q_start, 0) - row_last * 128 - 127 <= 0) & (row_first * 32 - count_cell + 1 <= 0) & (-count_cell - ((-tl.maximum(q_start, 0) + 3) >> 2) + 1 <= 0) & (-(((-tl.maximum(q_start, 0) + 3) >> 2) * 4) - row_last * 128 - 127 <= 0) & (-q_start - nq - ((-tl.maximum(q_start, 0) + 3) >> 2) * 4 + 1 <= 0) & (column_first * 128 - n + 1 <= 0) & (-n + 1 <= 0) & (column_first * 128 + row_first * 128 - n - q_start - nq + 5 <= 0) & (column_first * 32 - row_last * 32 - 31 <= 0) & (column_first * 256 - n - q_start - nq + 5 <= 0) & (column_first * 32 - count_cell + 1 <= 0) & (column_first * 128 - row_last * 128 - 127 <= 0) & (column_first * 128 - q_start - nq + 1 <= 0) & (column_first * 128 - n - q_start - nq - ((-tl.maximum(q_start, 0) + 3) >> 2) * 4 + 5 <= 0) & (column_first * 32 - ((n + 3) >> 2) + 1 <= 0) | ((column_first <= 0) | (column_first - row_last <= 0) & (column_last - row_first >= 0))):
        if (tl.maximum(q_start, 0) - q_start - nq + 1 <= 0) & (row_first * 128 - q_start - nq + 1 <= 0) & (tl.maximum(q_start, 0) - row_last * 128 - 127 <= 0) & (row_first * 32 - count_cell + 1 <= 0) & (-count_cell - ((-tl.maximum(q_start, 0) + 3) >> 2) + 1 <= 0) & (-(((-tl.maximum(q_start, 0) + 3) >> 2) * 4) - row_last * 128 - 127 <= 0) & (-q_start - nq - ((-tl.maximum(q_start, 0) + 3) >> 2) * 4 + 1 <= 0) & (column_first * 128 - n + 1 <= 0) & (-n + 1 <= 0) & (column_first * 128 + row_first * 128 - n - q_start - nq + 5 <= 0) & (column_first * 32 - row_last * 32 - 31 <= 0) & (column_first * 256 - n - q_start - nq + 5 <= 0) & (column_first * 32 - count_cell + 1 <= 0) & (column_first * 128 - row_last * 128 - 127 <= 0) & (column_first * 128 - q_start - nq + 1 <= 0) & (column_first * 128 - n - q_start - nq - ((-tl.maximum(q_start, 0) + 3) >> 2) * 4 + 5 <= 0) & (column_first * 32 - ((n + 3) >> 2) + 1 <= 0) | ((column_first <= 0) | (column_first - row_last <= 0) & (column_end - row_first >= 0)):
            inside = (rows <= row_last) & (columns <= column_last)
            tl.store(keys + key_row * pitch + columns, 0, mask=inside)
        return
    fine = column_first * 32 + tl.arange(0, BLOCK_F)[None, :]
    deep = row_first * 32 + tl.arange(0, BLOCK_Q)[:, None]
    row_of = tl.cast(b, tl.int64) * stage_5_sums_b + head * stage_5_sums_h + tl.minimum(tl.maximum(deep, 0), stage_5_sums_rows - 1)
    log_sum = tl.load(stage_5_sums + row_of * 2)
    total_1 = tl.full([BLOCK_Q, BLOCK_F], 0, tl.float32)
    feature = tl.arange(0, STAGE_0_Q)[None, :]
    start = stage_0_q + tl.cast(b, tl.int64) * stage_0_q_b + tl.cast(head, tl.int64) * stage_0_q_h
    x = row_first * 128
    along = tl.arange(0, BLOCK_Q)[:, None] * 4
    offset = along * stage_0_q_r + feature * stage_0_q_f
    x_1 = head >> 3
    feature_1 = tl.arange(0, STAGE_0_K)[:, None]
    start_1 = stage_0_k + tl.cast(b, tl.int64) * stage_0_k_b + tl.cast(x_1, tl.int64) * stage_0_k_g
    x_2 = column_first * 128
    along_1 = tl.arange(0, BLOCK_F)[None, :] * 4
    offset_1 = along_1 * stage_0_k_r + feature_1 * stage_0_k_f
    for pair in range(4):
        first = -pair - q_start + x + 3
        begins = start + tl.cast(first, tl.int64) * stage_0_q_r
        there = (along >= -first) & (along < stage_0_q_rows - first)
        query = tl.load(begins + offset, mask=there & (feature < stage_0_q_size), other=0.0)
        first_1 = pair + x_2
        begins_1 = start_1 + tl.cast(first_1, tl.int64) * stage_0_k_r
        there_1 = (along_1 >= -first_1) & (along_1 < stage_0_k_rows - first_1)
        key_1 = tl.load(begins_1 + offset_1, mask=there_1 & (feature_1 < stage_0_k_size), other=0.0)
        product = tl.dot(query, key_1, total_1)
        total_1 = product
    # Beside what is infinite, a pair that does not exist is no zero.
    x_3 = fine * 4
    x_4 = deep * 4
    if tl.sum((total_1 != total_1).to(tl.int32)) > 0:
        total_1 = tl.full([BLOCK_Q, BLOCK_F], 0, tl.float32)
        for pair_1 in range(4):
            first_2 = -pair_1 - q_start + x + 3
            begins_2 = start + tl.cast(first_2, tl.int64) * stage_0_q_r
            there_2 = (along >= -first_2) & (along < stage_0_q_rows - first_2)
            query_1 = tl.load(begins_2 + offset, mask=there_2 & (feature < stage_0_q_size), other=0.0)
            first_3 = pair_1 + x_2
            begins_3 = start_1 + tl.cast(first_3, tl.int64) * stage_0_k_r
            there_3 = (along_1 >= -first_3) & (along_1 < stage_0_k_rows - first_3)
            key_2 = tl.load(begins_3 + offset_1, mask=there_3 & (feature_1 < stage_0_k_size), other=0.0)
            product_1 = tl.dot(query_1, key_2)
            holds = x_3 + pair_1 <= n - 1
            holds_1 = (x_4 - pair_1 + 3 >= tl.maximum(q_start, 0)) & (x_4 - pair_1 + 3 <= q_start + nq - 1)
            total_1 += tl.where(holds & holds_1, product_1, 0.0)
    score = total_1 * stage_0_scale
    most_of = tl.load(stage_5_sums + row_of * 2 + 1)
    holds_2 = tl.maximum(q_start, 0) <= deep * 4 + 3
    holds_3 = fine * 4 + 1 <= n
    holds_4 = deep * 4 + 1 <= q_start + nq
    present = holds_2 & holds_3 & holds_4 & (tl.maximum(q_start, 0) + 1 <= q_start + nq) & (x_3 + x_4 + 5 <= n + q_start + nq)
    only = present & (fine <= deep)
    share_1 = tl.where(only, tl.exp2(tl.minimum(number(score * 1.4426950408889634 - log_sum), most_of)), 0.0)
    x_5 = count_cell - 1
    holds_5 = (deep <= x_5) & ((deep * 4 <= q_start + nq - 1) & (tl.maximum(q_start, 0) <= deep * 4 + 3) & (tl.maximum(q_start, 0) <= q_start + nq - 1))
    only_1 = present & (fine <= deep) & holds_5
    x_6 = tl.cast(tl.maximum(tl.minimum(deep * 4 + 3, q_start + nq - 1) - tl.maximum(deep * 4, tl.maximum(q_start, 0)) + 1, 0), tl.float32)
    x_7 = share_1 * x_6
    folded = deep_sum(x_7, only_1, BLOCK_R, BLOCK_F, 32)
    holds_6 = (fine * 4 + 1 <= n) & (tl.maximum(q_start, 0) + 1 <= q_start + nq)
    holds_7 = rows * 128 + 1 <= q_start + nq
    holds_8 = tl.maximum(q_start, 0) <= rows * 128 + 127
    x_8 = rows * 128
    holds_9 = rows * 32 + 1 <= count_cell
    x_9 = rows * 32 + 31
    holds_10 = fine * 8 + 5 <= n + q_start + nq
    holds_11 = fine + 1 <= count_cell
    x_10 = rows * 128 + 127
    holds_12 = fine * 4 + 1 <= q_start + nq
    holds_13 = fine * 4 + 5 <= n + q_start + nq + ((-tl.maximum(q_start, 0) + 3) >> 2) * 4
    holds_14 = 1 <= count_cell + ((-tl.maximum(q_start, 0) + 3) >> 2)
    holds_15 = 0 <= ((-tl.maximum(q_start, 0) + 3) >> 2) * 4 + rows * 128 + 127
    present_1 = holds_6 & holds_7 & holds_8 & (x_3 + x_8 + 5 <= n + q_start + nq) & holds_9 & (fine <= x_9) & holds_10 & holds_11 & (x_3 <= x_10) & holds_12 & holds_13 & holds_14 & holds_15 & (1 <= q_start + nq + ((-tl.maximum(q_start, 0) + 3) >> 2) * 4)
    x_11 = tl.cast(tl.maximum(tl.minimum(fine * 4 + 3, n - 1) - tl.maximum(fine * 4, 0) + 1, 0), tl.float32)
    value = folded * x_11
    holds_16 = (fine <= ((n + 3) >> 2) - 1) & ((fine * 4 <= n - 1) & (0 <= n - 1))
    folded_1 = fold_sum(tl.where(present_1 & holds_16, value, 0.0), BLOCK_R, BLOCK_C, 32)
    holds_17 = (tl.maximum(q_start, 0) + 1 <= q_start + nq) & (rows * 128 + 1 <= q_start + nq) & (tl.maximum(q_start, 0) <= rows * 128 + 127) & (rows * 32 + 1 <= count_cell) & holds_14 & (0 <= ((-tl.maximum(q_start, 0) + 3) >> 2) * 4 + rows * 128 + 127) & (1 <= q_start + nq + ((-tl.maximum(q_start, 0) + 3) >> 2) * 4)
    holds_18 = columns * 128 + 1 <= n
    x_12 = columns * 128
    x_13 = columns * 32
    holds_19 = columns * 256 + 5 <= n + q_start + nq
    holds_20 = columns * 32 + 1 <= count_cell
    holds_21 = columns * 128 + 1 <= q_start + nq
    holds_22 = columns * 128 + 5 <= n + q_start + nq + ((-tl.maximum(q_start, 0) + 3) >> 2) * 4
    holds_23 = columns * 32 + 1 <= ((n + 3) >> 2)
    present_2 = holds_17 & holds_18 & (1 <= n) & (x_12 + x_8 + 5 <= n + q_start + nq) & (x_13 <= x_9) & holds_19 & holds_20 & (x_12 <= x_10) & holds_21 & holds_22 & holds_23
    holds_24 = columns == 0
    key = mass_key(folded_1, present_2, holds_24 | (columns == rows))
    leave(keys, row_end, key, key_row, rows, columns, pitch, row_last, column_last)
