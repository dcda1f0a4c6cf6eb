"""What the selection stage_2 of the pattern `moba` is made of, written by spdsl.

stage_1[h, q, k.blk] = score(Q[b, h, q, d], stage_0[g, k.blk, d], over = d)
stage_2[h, q, k.blk] = stage_1[h, q, k.blk] |> only(k.blk < q.blk) |> top(2, over = k.blk)
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


@triton.jit(do_not_specialize=["n", "nq", "q_start", "column_count", "chunk_rows", "stage_1_q_rows", "stage_1_k_rows", "first_row", "ends_first"])
def keys(
    keys,  # [batch * heads, chunk_rows, pitch], int32: the order in which entries are chosen
    row_ends, ends_first,  # [batch * heads, tiles of rows], int32, zeros before: where the keys of these rows end
    stage_1_q,  # [batch, h, q, d]
    stage_1_q_b, stage_1_q_h, stage_1_q_r, stage_1_q_f, stage_1_q_rows, stage_1_q_size,
    stage_1_k,  # [batch, g, k.blk, d], each a sum of 2
    stage_1_k_b, stage_1_k_g, stage_1_k_r, stage_1_k_f, stage_1_k_t, stage_1_k_rows, stage_1_k_size,
    stage_1_scale,
    STAGE_1_Q: tl.constexpr,
    STAGE_1_K: tl.constexpr,
    n, nq, q_start, first_row, chunk_rows, column_count, pitch, heads,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The keys of a tile of q and k.blk."""
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
    if ~(column_first - ((row_last + q_start) >> 9) < 0):
        return
    feature = tl.arange(0, STAGE_1_Q)[None, :]
    start = stage_1_q + tl.cast(b, tl.int64) * stage_1_q_b + tl.cast(head, tl.int64) * stage_1_q_h
    there = (rows >= 0) & (rows < stage_1_q_rows)
    query = tl.load(start + tl.cast(rows, tl.int64) * stage_1_q_r + feature * stage_1_q_f, mask=there & (feature < stage_1_q_size), other=0.0)
    x = head >> 3
    feature_1 = tl.arange(0, STAGE_1_K)[:, None]
    start_1 = stage_1_k + tl.cast(b, tl.int64) * stage_1_k_b + tl.cast(x, tl.int64) * stage_1_k_g + 1 * stage_1_k_t
    there_1 = (columns >= 0) & (columns < stage_1_k_rows)
    key_1 = tl.load(start_1 + tl.cast(columns, tl.int64) * stage_1_k_r + feature_1 * stage_1_k_f, mask=there_1 & (feature_1 < stage_1_k_size), other=0.0)
    product = tl.dot(query, key_1)
    product_1 = tl.where(tl.abs(product) < float("inf"), product, 0.0)
    start_2 = stage_1_k + tl.cast(b, tl.int64) * stage_1_k_b + tl.cast(x, tl.int64) * stage_1_k_g
    key_2 = tl.load(start_2 + tl.cast(columns, tl.int64) * stage_1_k_r + feature_1 * stage_1_k_f, mask=there_1 & (feature_1 < stage_1_k_size), other=0.0)
    product_2 = tl.dot(query, key_2, product_1)
    score = product_2 * stage_1_scale
    x_1 = (rows + q_start) >> 9
    key = count_key(score, columns < x_1, False)
    leave(keys, row_end, key, key_row, rows, columns, pitch, row_last, column_last)
