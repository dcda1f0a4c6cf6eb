"""What the selection stage_9 of the pattern `llsa` is made of, written by spdsl.

stage_0[h, q.fine, d] = mean(Q[b, h, q, d], q, per = q.fine)
stage_8[h, q.fine, k.fine] = score(stage_0[h, q.fine, d], stage_2[g, k.fine, d], over = d)
stage_9[h, q.fine, k.fine] = stage_8[h, q.fine, k.fine] |> top(8, over = k.fine)
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


@triton.jit(do_not_specialize=["n", "nq", "q_start", "column_count", "chunk_rows", "stage_8_q_rows", "stage_8_k_rows", "first_row", "total", "list_b", "list_h", "list_r", "list_count"])
def keys(
    keys,  # [batch * heads, chunk_rows, pitch], int32: the order in which candidates are chosen
    lists, list_b, list_h, list_r, list_count,  # [batch, heads, rows, width]: of what there are members
    stage_8_q,  # [batch, h, q.fine, d]
    stage_8_q_b, stage_8_q_h, stage_8_q_r, stage_8_q_f, stage_8_q_rows, stage_8_q_size,
    stage_8_k,  # [batch, g, k.fine, d], each a sum of 2
    stage_8_k_b, stage_8_k_g, stage_8_k_r, stage_8_k_f, stage_8_k_t, stage_8_k_rows, stage_8_k_size,
    stage_8_scale,
    STAGE_8_Q: tl.constexpr,
    STAGE_8_K: tl.constexpr,
    n, nq, q_start, first_row, chunk_rows, column_count, pitch, heads, total,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The keys of a tile of q.fine and of candidates among k.fine."""
    column_tiles = tl.cdiv(total, BLOCK_C)
    TILES: tl.constexpr = (16 + BLOCK_R - 1) // BLOCK_R
    row_tiles = tl.cdiv(chunk_rows, 16) * TILES
    owner = tl.program_id(0) // column_tiles // row_tiles
    row_tile = tl.program_id(0) // column_tiles % row_tiles
    column_tile = tl.program_id(0) % column_tiles
    b = owner // heads
    head = owner % heads
    upper = first_row // 16 + row_tile // TILES  # a run of rows with the same candidates
    row_first = upper * 16 + row_tile % TILES * BLOCK_R
    row_last = tl.minimum(tl.minimum(row_first + BLOCK_R, (upper + 1) * 16), first_row + chunk_rows) - 1
    rows = row_first + tl.arange(0, BLOCK_R)[:, None]
    key_row = owner.to(tl.int64) * chunk_rows + rows - first_row
    candidate_first = column_tile * BLOCK_C
    candidates = candidate_first + tl.arange(0, BLOCK_C)[None, :]
    list_at = b.to(tl.int64) * list_b + head * list_h + upper * list_r
    outer = tl.load(lists + list_at + candidates // 16, mask=candidates < total, other=list_count)
    columns = outer * 16 + candidates % 16
    there = (outer < list_count) & (columns < column_count)
    columns = tl.where(there, columns, 0)
    feature = tl.arange(0, STAGE_8_Q)[None, :]
    start = stage_8_q + tl.cast(b, tl.int64) * stage_8_q_b + tl.cast(head, tl.int64) * stage_8_q_h
    there_1 = (rows >= 0) & (rows < stage_8_q_rows)
    query = tl.load(start + tl.cast(rows, tl.int64) * stage_8_q_r + feature * stage_8_q_f, mask=there_1 & (feature < stage_8_q_size), other=0.0)
    x = head >> 3
    feature_1 = tl.arange(0, STAGE_8_K)[:, None]
    start_1 = stage_8_k + tl.cast(b, tl.int64) * stage_8_k_b + tl.cast(x, tl.int64) * stage_8_k_g + 1 * stage_8_k_t
    there_2 = (columns >= 0) & (columns < stage_8_k_rows)
    key_1 = tl.load(start_1 + tl.cast(columns, tl.int64) * stage_8_k_r + feature_1 * stage_8_k_f, mask=there_2 & (feature_1 < stage_8_k_size), other=0.0)
    product = tl.dot(query, key_1)
    product_1 = tl.where(tl.abs(product) < float("inf"), product, 0.0)
    start_2 = stage_8_k + tl.cast(b, tl.int64) * stage_8_k_b + tl.cast(x, tl.int64) * stage_8_k_g
    key_2 = tl.load(start_2 + tl.cast(columns, tl.int64) * stage_8_k_r + feature_1 * stage_8_k_f, mask=there_2 & (feature_1 < stage_8_k_size), other=0.0)
    product_2 = tl.dot(query, key_2, product_1)
    score = product_2 * stage_8_scale
    key = count_key(score, True, False)
    key = tl.where(there, key, -2147483648)
    tl.store(keys + key_row * pitch + candidates, key, mask=(rows <= row_last) & (candidates < total))
