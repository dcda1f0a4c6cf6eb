"""What the selection stage_10 of the pattern `flashprefill` is made of, written by spdsl.

stage_1[h, q, k.blk] = score(Q[b, h, q, d], stage_0[g, k.blk, d], over = d)
stage_6[h, q.blk, k.blk] = sum(exp(stage_1[h, q, k.blk] - stage_4[h, q.blk]) |> only(k.blk * 128 + 127 <= q and stage_5[q.blk]), q, per = q.blk)
stage_7[q.blk, k.blk] = any(k.blk * 128 + 127 <= q and stage_5[q.blk], q, per = q.blk)
stage_10[h, q.blk, k.blk] = stage_7[q.blk, k.blk] and stage_9[q.blk] and stage_6[h, q.blk, k.blk] >= 0.12 * stage_8[h, q.blk]
"""

import triton
import triton.language as tl



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
def leave(keys, row_end, key, key_row, rows, columns, pitch, row_last, column_last):
    """Store the keys of a tile, and where the rows of tiles end."""
    tl.atomic_max(row_end, column_last + 1)
    tl.store(keys + key_row * pitch + columns, key, mask=(rows <= row_last) & (columns <= column_last))


@triton.jit(do_not_specialize=["n", "nq", "q_start", "column_count", "chunk_rows", "stage_1_q_rows", "stage_1_k_rows", "stage_4_b", "stage_4_h", "stage_4_rows", "stage_8_b", "stage_8_h", "stage_8_rows", "first_row", "ends_first"])
def keys(
    keys,  # [batch * heads, chunk_rows, pitch], int32: the order in which entries are chosen
    row_ends, ends_first,  # [batch * heads, tiles of rows], int32, zeros before: where the keys of these rows end
    stage_1_q,  # [batch, h, q, d]
    stage_1_q_b, stage_1_q_h, stage_1_q_r, stage_1_q_f, stage_1_q_rows, stage_1_q_size,
    stage_1_k,  # [batch, g, k.blk, d], each a sum of 2
    stage_1_k_b, stage_1_k_g, stage_1_k_r, stage_1_k_f, stage_1_k_t, stage_1_k_rows, stage_1_k_size,
    stage_4,  # [batch, h, q.blk]
    stage_4_b, stage_4_h, stage_4_q, stage_4_rows,
    stage_8,  # [batch, h, q.blk]
    stage_8_b, stage_8_h, stage_8_q, stage_8_rows,
    stage_1_scale,
    STAGE_1_Q: tl.constexpr,
    STAGE_1_K: tl.constexpr,
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
    BLOCK_Q: tl.constexpr = BLOCK_R * 128
    column_first = column_tile * BLOCK_C
    column_last = tl.minimum(column_first + BLOCK_C, column_count) - 1
    rows = row_first + tl.arange(0, BLOCK_R)[:, None]
    columns = column_first + tl.arange(0, BLOCK_C)[None, :]
    key_row = owner.to(tl.int64) * chunk_rows + rows - first_row
    row_end = row_ends + ends_first + owner * row_tiles + row_tile
    # No entry of the tile can be chosen.
    column_end = column_count - 1
    if ~((-((n + 127) >> 7) + 1 <= 0) & (row_first * 128 - q_start - nq + 1 <= 0) & (-q_start - nq + 128 <= 0) & (tl.maximum(q_start, 0) - row_last * 128 - 127 <= 0) & (tl.maximum(q_start, 0) - q_start - nq + 1 <= 0) & (column_first * 128 - row_last * 128 <= 0) & (column_first * 128 - q_start - nq + 128 <= 0) & ((-((n + 127) >> 7) + 1 <= 0) & (row_first * 128 - q_start - nq + 1 <= 0) & (-q_start - nq + 128 <= 0) & (tl.maximum(q_start, 0) - row_last * 128 - 127 <= 0) & (tl.maximum(q_start, 0) - q_start - nq + 1 <= 0))):
        return
    holds = (1 <= ((n + 127) >> 7)) & (rows * 128 + 1 <= q_start + nq) & (128 <= q_start + nq) & (tl.maximum(q_start, 0) <= rows * 128 + 127) & (tl.maximum(q_start, 0) + 1 <= q_start + nq)
    x = columns * 128
    x_1 = rows * 128
    holds_1 = columns * 128 + 128 <= q_start + nq
    present = holds & (x <= x_1) & holds_1
    deep = row_first * 128 + tl.arange(0, BLOCK_Q)[:, None]
    entry = deep - q_start
    feature = tl.arange(0, STAGE_1_Q)[None, :]
    start = stage_1_q + tl.cast(b, tl.int64) * stage_1_q_b + tl.cast(head, tl.int64) * stage_1_q_h
    there = (entry >= 0) & (entry < stage_1_q_rows)
    query = tl.load(start + tl.cast(entry, tl.int64) * stage_1_q_r + feature * stage_1_q_f, mask=there & (feature < stage_1_q_size), other=0.0)
    x_2 = head >> 3
    feature_1 = tl.arange(0, STAGE_1_K)[:, None]
    start_1 = stage_1_k + tl.cast(b, tl.int64) * stage_1_k_b + tl.cast(x_2, tl.int64) * stage_1_k_g + 1 * stage_1_k_t
    there_1 = (columns >= 0) & (columns < stage_1_k_rows)
    key_1 = tl.load(start_1 + tl.cast(columns, tl.int64) * stage_1_k_r + feature_1 * stage_1_k_f, mask=there_1 & (feature_1 < stage_1_k_size), other=0.0)
    product = tl.dot(query, key_1)
    product_1 = tl.where(tl.abs(product) < float("inf"), product, 0.0)
    start_2 = stage_1_k + tl.cast(b, tl.int64) * stage_1_k_b + tl.cast(x_2, tl.int64) * stage_1_k_g
    key_2 = tl.load(start_2 + tl.cast(columns, tl.int64) * stage_1_k_r + feature_1 * stage_1_k_f, mask=there_1 & (feature_1 < stage_1_k_size), other=0.0)
    product_2 = tl.dot(query, key_2, product_1)
    score = product_2 * stage_1_scale
    entry_1 = deep >> 7
    value_of = tl.load(stage_4 + tl.cast(b, tl.int64) * stage_4_b + tl.cast(head, tl.int64) * stage_4_h + tl.cast(tl.minimum(tl.maximum(entry_1, 0), stage_4_rows - 1), tl.int64) * stage_4_q).to(tl.float32)
    present_1 = (1 <= ((n + 127) >> 7)) & ((deep >> 7) * 128 + 1 <= q_start + nq) & (128 <= q_start + nq) & (tl.maximum(q_start, 0) <= (deep >> 7) * 128 + 127) & (tl.maximum(q_start, 0) + 1 <= q_start + nq)
    x_3 = columns * 128 + 127
    holds_2 = (deep >= tl.maximum(q_start, 0)) & (deep <= q_start + nq - 1)
    only = (x_3 <= deep) & present_1 & holds_2
    x_4 = tl.exp(tl.cast(score - value_of, tl.float32))
    folded = deep_sum(x_4, only, BLOCK_R, BLOCK_C, 128)
    value_of_1 = tl.load(stage_8 + tl.cast(b, tl.int64) * stage_8_b + tl.cast(head, tl.int64) * stage_8_h + tl.cast(tl.minimum(tl.maximum(rows, 0), stage_8_rows - 1), tl.int64) * stage_8_q).to(tl.float32)
    x_5 = 0.12 * value_of_1
    key = tl.where(present & holds & (folded >= x_5), 1, -2147483648)
    leave(keys, row_end, key, key_row, rows, columns, pitch, row_last, column_last)
