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
def leave(keys, row_end, key, key_row, rows, columns, pitch, row_last, column_last):
    """Store the keys of a tile, and where the rows of tiles end."""
    tl.atomic_max(row_end, column_last + 1)
    tl.store(keys + key_row * pitch + columns, key, mask=(rows <= row_last) & (columns <= column_last))


@triton.jit(do_not_specialize=["n", "nq", "q_start", "column_count", "chunk_rows", "stage_0_q_rows", "stage_0_k_rows", "first_row", "total", "list_b", "list_h", "list_r", "list_count"])
def keys(
    keys,  # [batch * heads, chunk_rows, pitch], int32: the order in which candidates are chosen
    lists, list_b, list_h, list_r, list_count,  # [batch, heads, rows, width]: of what there are members
    stage_0_q,  # [batch, h, q, d]
    stage_0_q_b, stage_0_q_h, stage_0_q_r, stage_0_q_f, stage_0_q_rows, stage_0_q_size,
    stage_0_k,  # [batch, g, k, d], each a sum of 2
    stage_0_k_b, stage_0_k_g, stage_0_k_r, stage_0_k_f, stage_0_k_t, stage_0_k_rows, stage_0_k_size,
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
    start_1 = stage_0_k + tl.cast(b, tl.int64) * stage_0_k_b + tl.cast(x, tl.int64) * stage_0_k_g + 1 * stage_0_k_t
    start_2 = stage_0_k + tl.cast(b, tl.int64) * stage_0_k_b + tl.cast(x, tl.int64) * stage_0_k_g
    if whole:
        half = tl.full([], 4, tl.int32)
        for level in range(2):
            both = paired(first + half // 2, first + half + half // 2, BLOCK_C)
            key_1 = tl.load(start_1 + tl.cast(both, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=feature_1 < stage_0_k_size, other=0.0)
            product = tl.trans(tl.dot(tl.trans(key_1), tl.trans(query)))
            product_1 = tl.where(tl.abs(product) < float("inf"), product, 0.0)
            key_2 = tl.load(start_2 + tl.cast(both, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=feature_1 < stage_0_k_size, other=0.0)
            product_2 = tl.trans(tl.dot(tl.trans(key_2), tl.trans(query), tl.trans(product_1)))
            met = tl.max(product_2, 0)[None, :] * stage_0_scale
            met = sortable(tl.where(met == met, met, 0.0))
            seen_0, seen_1 = parted(met, BLOCK_C)
            best = tl.maximum(best, tl.maximum(seen_0, seen_1))
            first = tl.where(seen_1 > seen_0, first + half, first)
            half = half // 2
        key_3 = tl.load(start_1 + tl.cast(first, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=feature_1 < stage_0_k_size, other=0.0)
        product_3 = tl.trans(tl.dot(tl.trans(key_3), tl.trans(query)))
        product_4 = tl.where(tl.abs(product_3) < float("inf"), product_3, 0.0)
        key_4 = tl.load(start_2 + tl.cast(first, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=feature_1 < stage_0_k_size, other=0.0)
        product_5 = tl.trans(tl.dot(tl.trans(key_4), tl.trans(query), tl.trans(product_4)))
        met = tl.max(product_5, 0)[None, :] * stage_0_scale
        met = sortable(tl.where(met == met, met, 0.0))
        best = tl.maximum(best, met)
    may = may & ~whole
    levels = 3 * may.to(tl.int32)
    holds = (members & 3) == 0
    for level in range(levels):
        half = (size + 1) // 2
        middle_0 = tl.minimum((2 * first + half) // 2, n - 1)
        there_2 = (middle_0 >= 0) & (middle_0 < stage_0_k_rows)
        key_5 = tl.load(start_1 + tl.cast(middle_0, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=there_2 & (feature_1 < stage_0_k_size), other=0.0)
        product_6 = tl.dot(query, key_5)
        product_7 = tl.where(tl.abs(product_6) < float("inf"), product_6, 0.0)
        key_6 = tl.load(start_2 + tl.cast(middle_0, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=there_2 & (feature_1 < stage_0_k_size), other=0.0)
        product_8 = tl.dot(query, key_6, product_7)
        score = product_8 * stage_0_scale
        holds_1 = 256 <= middle_0
        met = tl.where(score == score, sortable(score), -2147483647)
        met = tl.max(tl.where(exist & (holds & holds_1 & (members - middle_0 >= 1024)), met, -2147483648), 0)[None, :]
        met = tl.where(met == -2147483647, 0, met)
        seen_0 = tl.where((half > 0) & there, met, -2147483648)
        middle_1 = tl.minimum((2 * (first + half) + (size - half)) // 2, n - 1)
        there_3 = (middle_1 >= 0) & (middle_1 < stage_0_k_rows)
        key_7 = tl.load(start_1 + tl.cast(middle_1, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=there_3 & (feature_1 < stage_0_k_size), other=0.0)
        product_9 = tl.dot(query, key_7)
        product_10 = tl.where(tl.abs(product_9) < float("inf"), product_9, 0.0)
        key_8 = tl.load(start_2 + tl.cast(middle_1, tl.int64) * stage_0_k_r + feature_1 * stage_0_k_f, mask=there_3 & (feature_1 < stage_0_k_size), other=0.0)
        product_11 = tl.dot(query, key_8, product_10)
        score_1 = product_11 * stage_0_scale
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
