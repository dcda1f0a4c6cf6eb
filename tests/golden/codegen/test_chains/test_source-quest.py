"""What the selection stage_5 of the pattern `quest` is made of, written by spdsl.

stage_1[h, q, k.pg] = score(max(Q[b, h, q, d], 0.0), stage_0[g, k.pg, d], over = d)
stage_3[h, q, k.pg] = score(max(-Q[b, h, q, d], 0.0), stage_2[g, k.pg, d], over = d)
stage_4[g, q, k.pg] = max(stage_1[h, q, k.pg] - stage_3[h, q, k.pg] |> only(k.pg * 16 <= q), h, per = g)
stage_5[g, q, k.pg] = stage_4[g, q, k.pg] |> only(k.pg * 16 <= q) |> force(k.pg == q.pg) |> top(64, over = k.pg)
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
def leave(keys, row_end, key, key_row, rows, columns, pitch, row_last, column_last):
    """Store the keys of a tile, and where the rows of tiles end."""
    tl.atomic_max(row_end, column_last + 1)
    tl.store(keys + key_row * pitch + columns, key, mask=(rows <= row_last) & (columns <= column_last))


@triton.jit(do_not_specialize=["n", "nq", "q_start", "column_count", "chunk_rows", "stage_1_q_rows", "stage_1_k_rows", "stage_3_q_rows", "stage_3_k_rows", "first_row", "ends_first"])
def keys(
    keys,  # [batch * heads, chunk_rows, pitch], int32: the order in which entries are chosen
    row_ends, ends_first,  # [batch * heads, tiles of rows], int32, zeros before: where the keys of these rows end
    stage_1_q,  # [batch, h, q, d]
    stage_1_q_b, stage_1_q_h, stage_1_q_r, stage_1_q_f, stage_1_q_rows, stage_1_q_size,
    stage_1_k,  # [batch, g, k.pg, d], each a sum of 2
    stage_1_k_b, stage_1_k_g, stage_1_k_r, stage_1_k_f, stage_1_k_t, stage_1_k_rows, stage_1_k_size,
    stage_3_q,  # [batch, h, q, d]
    stage_3_q_b, stage_3_q_h, stage_3_q_r, stage_3_q_f, stage_3_q_rows, stage_3_q_size,
    stage_3_k,  # [batch, g, k.pg, d], each a sum of 2
    stage_3_k_b, stage_3_k_g, stage_3_k_r, stage_3_k_f, stage_3_k_t, stage_3_k_rows, stage_3_k_size,
    stage_1_scale,
    stage_3_scale,
    STAGE_1_Q: tl.constexpr,
    STAGE_1_K: tl.constexpr,
    STAGE_3_Q: tl.constexpr,
    STAGE_3_K: tl.constexpr,
    n, nq, q_start, first_row, chunk_rows, column_count, pitch, heads,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The keys of a tile of q and k.pg."""
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
    if ~((column_first * 16 - row_last - q_start <= 0) | (column_first - ((row_last + q_start) >> 4) <= 0) & (column_last - ((row_first + q_start) >> 4) >= 0)):
        if (column_first * 16 - row_last - q_start <= 0) | (column_first - ((row_last + q_start) >> 4) <= 0) & (column_end - ((row_first + q_start) >> 4) >= 0):
            inside = (rows <= row_last) & (columns <= column_last)
            tl.store(keys + key_row * pitch + columns, -2147483648, mask=inside)
        return
    most = tl.full([BLOCK_R, BLOCK_C], float('-inf'), tl.float32)
    x = head * 8
    feature = tl.arange(0, STAGE_1_Q)[None, :]
    there = (rows >= 0) & (rows < stage_1_q_rows)
    feature_1 = tl.arange(0, STAGE_1_K)[:, None]
    start_1 = stage_1_k + tl.cast(b, tl.int64) * stage_1_k_b + tl.cast(head, tl.int64) * stage_1_k_g + 1 * stage_1_k_t
    there_1 = (columns >= 0) & (columns < stage_1_k_rows)
    key_1 = tl.load(start_1 + tl.cast(columns, tl.int64) * stage_1_k_r + feature_1 * stage_1_k_f, mask=there_1 & (feature_1 < stage_1_k_size), other=0.0)
    start_2 = stage_1_k + tl.cast(b, tl.int64) * stage_1_k_b + tl.cast(head, tl.int64) * stage_1_k_g
    key_2 = tl.load(start_2 + tl.cast(columns, tl.int64) * stage_1_k_r + feature_1 * stage_1_k_f, mask=there_1 & (feature_1 < stage_1_k_size), other=0.0)
    feature_2 = tl.arange(0, STAGE_3_K)[:, None]
    start_3 = stage_3_k + tl.cast(b, tl.int64) * stage_3_k_b + tl.cast(head, tl.int64) * stage_3_k_g + 1 * stage_3_k_t
    there_2 = (columns >= 0) & (columns < stage_3_k_rows)
    key_3 = tl.load(start_3 + tl.cast(columns, tl.int64) * stage_3_k_r + feature_2 * stage_3_k_f, mask=there_2 & (feature_2 < stage_3_k_size), other=0.0)
    start_4 = stage_3_k + tl.cast(b, tl.int64) * stage_3_k_b + tl.cast(head, tl.int64) * stage_3_k_g
    key_4 = tl.load(start_4 + tl.cast(columns, tl.int64) * stage_3_k_r + feature_2 * stage_3_k_f, mask=there_2 & (feature_2 < stage_3_k_size), other=0.0)
    for member in range(8):
        x_1 = x + member
        start = stage_1_q + tl.cast(b, tl.int64) * stage_1_q_b + tl.cast(x_1, tl.int64) * stage_1_q_h
        query = tl.load(start + tl.cast(rows, tl.int64) * stage_1_q_r + feature * stage_1_q_f, mask=there & (feature < stage_1_q_size), other=0.0)
        query_1 = (tl.where(query < 0.0, 0.0, query)).to(query.dtype)
        product = tl.dot(query_1, key_1)
        product_1 = tl.dot(query_1, key_2, product)
        score = product_1 * stage_1_scale
        query_2 = (tl.where(-query < 0.0, 0.0, -query)).to(query.dtype)
        product_2 = tl.dot(query_2, key_3)
        product_3 = tl.dot(query_2, key_4, product_2)
        score_1 = product_3 * stage_3_scale
        most = tl.maximum(most, score - score_1, propagate_nan=tl.PropagateNan.ALL)
    # A NaN is absent: where there is one, the others are looked at one by one.
    x_2 = columns * 16
    x_3 = rows + q_start
    if tl.sum(((x_2 <= x_3) & (most != most)).to(tl.int32)) > 0:
        most_1 = tl.full([BLOCK_R, BLOCK_C], float('-inf'), tl.float32)
        some = tl.full([BLOCK_R, BLOCK_C], False, tl.int1)
        for member_1 in range(8):
            x_4 = x + member_1
            start_5 = stage_1_q + tl.cast(b, tl.int64) * stage_1_q_b + tl.cast(x_4, tl.int64) * stage_1_q_h
            query_3 = tl.load(start_5 + tl.cast(rows, tl.int64) * stage_1_q_r + feature * stage_1_q_f, mask=there & (feature < stage_1_q_size), other=0.0)
            query_4 = (tl.where(query_3 < 0.0, 0.0, query_3)).to(query_3.dtype)
            product_4 = tl.dot(query_4, key_1)
            product_5 = tl.where(tl.abs(product_4) < float("inf"), product_4, 0.0)
            product_6 = tl.dot(query_4, key_2, product_5)
            score_2 = product_6 * stage_1_scale
            query_5 = (tl.where(-query_3 < 0.0, 0.0, -query_3)).to(query_3.dtype)
            product_7 = tl.dot(query_5, key_3)
            product_8 = tl.where(tl.abs(product_7) < float("inf"), product_7, 0.0)
            product_9 = tl.dot(query_5, key_4, product_8)
            score_3 = product_9 * stage_3_scale
            value = score_2 - score_3
            counts = value == value
            most_1 = tl.where(counts, tl.maximum(most_1, value), most_1)
            some = some | counts
        most = tl.where(some, most_1, 0)
    total_1 = tl.where(x_2 <= x_3, most, 0.0)
    x_5 = (rows + q_start) >> 4
    key = count_key(total_1, x_2 <= x_3, columns == x_5)
    leave(keys, row_end, key, key_row, rows, columns, pitch, row_last, column_last)
