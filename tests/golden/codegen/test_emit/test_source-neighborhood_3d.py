"""Attention kernels of the pattern `neighborhood_3d`, written by spdsl.

bf16, 4 query heads on 2 key heads, shape square.
forward: tiles of 128 queries and 128 keys, boxes of 2 × 16 × 4 queries and 2 × 16 × 4 keys of the grid.
dq: tiles of 64 queries and 64 keys, boxes of 2 × 8 × 4 queries and 4 × 4 × 4 keys of the grid.
dkdv: tiles of 64 queries and 128 keys, boxes of 2 × 8 × 4 queries and 4 × 4 × 8 keys of the grid.
fused: tiles of 128 queries and 128 keys, boxes of 2 × 16 × 4 queries and 2 × 16 × 4 keys of the grid.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["dlse_rows", "sums_rows", "nq", "n"])
def delta(
    O,  # [batch, heads, nq, 64]
    o_stride_b, o_stride_h, o_stride_n,
    dO,  # [batch, heads, nq, 64]
    do_stride_b, do_stride_h, do_stride_n,
    LSE,  # [batch, heads, nq], natural logarithm
    dLSE,  # [batch, heads, nq]
    dlse_rows,  # nq, or 0: LSE has no gradient
    LSE2,  # [batch, heads, nq], in powers of two, +inf for rows that keep nothing
    Delta,  # [batch, heads, nq]
    Sums,  # [batch, heads, sums_rows, width], of the fused kernel
    sums_rows,  # nq at least, or 0: another computes dQ
    nq,  # query rows
    n,  # keys
):
    """Delta: the row sums of dO * O minus dLSE.  And zeros to which the fused kernel adds dQ."""
    BLOCK_Q: tl.constexpr = 64
    BLOCK_K: tl.constexpr = 64
    HEAD_DIM: tl.constexpr = 64
    VALUE_DIM: tl.constexpr = 64
    HEADS: tl.constexpr = 4
    i = tl.program_id(0)  # tile of queries
    h = tl.program_id(1)  # query head
    g = h // 2  # key head
    b = tl.program_id(2)  # sequence
    q_rows = i * BLOCK_Q + tl.arange(0, BLOCK_Q)
    q = q_rows[:, None]  # positions, [BLOCK_Q, 1]
    o_base = O + b.to(tl.int64) * o_stride_b + h.to(tl.int64) * o_stride_h
    o_offsets = tl.arange(0, BLOCK_Q)[:, None] * o_stride_n + tl.arange(0, VALUE_DIM)[None, :]
    o_step = tl.full([], BLOCK_Q, tl.int64) * o_stride_n  # from tile to tile
    o_tile = tl.load(o_base + i * o_step + o_offsets, mask=(q_rows < nq)[:, None], other=0.0)  # [BLOCK_Q, VALUE_DIM]
    do_base = dO + b.to(tl.int64) * do_stride_b + h.to(tl.int64) * do_stride_h
    do_offsets = tl.arange(0, BLOCK_Q)[:, None] * do_stride_n + tl.arange(0, VALUE_DIM)[None, :]
    do_step = tl.full([], BLOCK_Q, tl.int64) * do_stride_n  # from tile to tile
    do_tile = tl.load(do_base + i * do_step + do_offsets, mask=(q_rows < nq)[:, None], other=0.0)  # [BLOCK_Q, VALUE_DIM]
    row_base = (b * HEADS + h).to(tl.int64) * nq
    d_lse = tl.load(dLSE + row_base + q_rows, mask=q_rows < dlse_rows, other=0.0)
    lse = tl.load(LSE + row_base + q_rows, mask=q_rows < nq, other=float("-inf"))
    lse2 = tl.where(lse == float("-inf"), float("inf"), lse * 1.4426950408889634)  # exponents of rows that keep nothing: -inf
    delta = tl.sum(o_tile.to(tl.float32) * do_tile.to(tl.float32), 1) - d_lse
    delta = tl.where(lse == float("-inf"), 0.0, delta)
    tl.store(LSE2 + row_base + q_rows, lse2, mask=q_rows < nq)
    tl.store(Delta + row_base + q_rows, delta, mask=q_rows < nq)
    sums_at = ((b * HEADS + h).to(tl.int64) * sums_rows + q_rows)[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    sums_mask = (q_rows < sums_rows)[:, None]
    tl.store(Sums + sums_at, tl.zeros([BLOCK_Q, HEAD_DIM], tl.float32), mask=sums_mask)


@triton.jit(do_not_specialize=["nq", "n"])
def dq(
    Q,  # [batch, heads, nq, 64]
    K,  # [batch, groups, n, 64]
    V,  # [batch, groups, n, 64]
    dO,  # [batch, heads, nq, 64]
    LSE2,  # [batch, heads, nq], in powers of two, +inf for rows that keep nothing
    Delta,  # [batch, heads, nq]
    dQ,  # [batch, heads, nq, 64]
    dq_stride_b, dq_stride_h, dq_stride_n,
    nq,  # query rows
    n,  # keys
):
    """dQ: each program owns a tile of queries."""
    BLOCK_Q: tl.constexpr = 64
    BLOCK_K: tl.constexpr = 64
    HEAD_DIM: tl.constexpr = 64
    VALUE_DIM: tl.constexpr = 64
    HEADS: tl.constexpr = 4
    i = tl.num_programs(0) - 1 - tl.program_id(0)  # tile of queries, the last first: their rows are the longest
    h = tl.program_id(1)  # query head
    g = h // 2  # key head
    b = tl.program_id(2)  # sequence
    i0 = i // 120  # box of 2 × 8 × 4 of the grid 30 × 48 × 79
    i1 = i // 20 % 6
    i2 = i % 20
    q_first = i0 * 7584 + i1 * 632 + i2 * 4  # its first row
    q_lane0 = tl.arange(0, BLOCK_Q) // 32  # place in a box of 2 × 8 × 4
    q_lane1 = tl.arange(0, BLOCK_Q) // 4 % 8
    q_lane2 = tl.arange(0, BLOCK_Q) % 4
    q_within = q_lane0 * 3792 + q_lane1 * 79 + q_lane2  # rows after the first
    k_lane0 = tl.arange(0, BLOCK_K) // 16  # place in a box of 4 × 4 × 4
    k_lane1 = tl.arange(0, BLOCK_K) // 4 % 4
    k_lane2 = tl.arange(0, BLOCK_K) % 4
    k_within = k_lane0 * 3792 + k_lane1 * 79 + k_lane2  # rows after the first
    q_rows = tl.where((i2 * 4 + q_lane2 < 79), q_first + q_within, nq)  # outside the grid: past the end
    q = q_rows[:, None]  # positions, [BLOCK_Q, 1]
    q0 = (i0 * 2 + q_lane0)[:, None]  # coordinate on axis 0
    q1 = (i1 * 8 + q_lane1)[:, None]  # coordinate on axis 1
    q2 = (i2 * 4 + q_lane2)[:, None]  # coordinate on axis 2
    q0_part = tl.minimum(q0, 29) - 18
    q1_part = tl.maximum(tl.minimum(q1, 47), 12)
    q1_part_2 = tl.minimum(q1_part, 35)
    q1_part_3 = q1_part_2 - 12
    q1_part_4 = q1_part_2 + 13
    q2_part = tl.maximum(tl.minimum(q2, 78), 12)
    q2_part_2 = tl.minimum(q2_part, 66)
    q2_part_3 = q2_part_2 - 12
    q2_part_4 = q2_part_2 + 13
    q_tile = Q.load([b * 4 + h, i0 * 2, i1 * 8, i2 * 4, 0]).reshape([BLOCK_Q, HEAD_DIM])
    do_tile = dO.load([b * 4 + h, i0 * 2, i1 * 8, i2 * 4, 0]).reshape([BLOCK_Q, VALUE_DIM])
    row_base = (b * HEADS + h).to(tl.int64) * nq
    lse = tl.load(LSE2 + row_base + q_rows, mask=q_rows < nq, other=float("inf"))[:, None]
    delta = tl.load(Delta + row_base + q_rows, mask=q_rows < nq, other=0.0)[:, None]
    dq = tl.zeros([BLOCK_Q, HEAD_DIM], tl.float32)
    lo0 = tl.minimum(tl.maximum(0, (i0 - 9) >> 1), 2)  # touched boxes along axis 0
    hi0 = (i0 + 2) >> 1
    boxes0 = tl.maximum(hi0 - lo0, 0)
    lo1 = tl.minimum(tl.maximum(0, 2 * i1 - 3), 5)  # touched boxes along axis 1
    hi1 = tl.minimum(tl.maximum(tl.minimum(12, 2 * i1 + 5), 7), 12)
    boxes1 = tl.maximum(hi1 - lo1, 0)
    lo2 = tl.minimum(tl.where(i2 <= 2, 0, i2 - 3), 13)  # touched boxes along axis 2
    hi2 = tl.maximum(tl.maximum(7, tl.where(i2 <= 16, i2 + 4, -268435456)), tl.where(i2 >= 16, 20, -268435456))
    boxes2 = tl.maximum(hi2 - lo2, 0)
    full_lo0 = tl.minimum((i0 - 7) >> 1, 3)  # full boxes along axis 0
    full_hi0 = tl.minimum(i0 >> 1, 7)
    full_lo1 = tl.minimum(2 * i1 - 1, 6)  # full boxes along axis 1
    full_hi1 = tl.maximum(2 * i1 + 3, 6)
    full_lo2 = tl.minimum(i2 - 2, 14)  # full boxes along axis 2
    full_hi2 = tl.minimum(tl.maximum(tl.maximum(6, tl.where(i2 <= 16, i2 + 3, -268435456)), tl.where(i2 >= 16, 19, -268435456)), 19)
    # boxes that are touched, row by row, masked where one is not full
    for t in tl.range(0, boxes0 * boxes1 * boxes2):
        j0 = lo0 + t // (boxes1 * boxes2)
        j1 = lo1 + t // boxes2 % boxes1
        j2 = lo2 + t % boxes2
        k_first = j0 * 15168 + j1 * 316 + j2 * 4  # its first row
        masked = (j0 < full_lo0) | (j0 >= full_hi0) | ((j1 < full_lo1) | (j1 >= full_hi1)) | ((j2 < full_lo2) | (j2 >= full_hi2))
        k_rows = tl.where((j0 * 4 + k_lane0 < 30) & (j2 * 4 + k_lane2 < 79), k_first + k_within, n)  # outside the grid: past the end
        k = k_rows[None, :]  # positions, [1, BLOCK_K]
        k0 = (j0 * 4 + k_lane0)[None, :]  # coordinate on axis 0
        k1 = (j1 * 4 + k_lane1)[None, :]  # coordinate on axis 1
        k2 = (j2 * 4 + k_lane2)[None, :]  # coordinate on axis 2
        k_tile = K.load([b * 2 + g, j0 * 4, j1 * 4, j2 * 4, 0]).reshape([BLOCK_K, HEAD_DIM])
        v_tile = V.load([b * 2 + g, j0 * 4, j1 * 4, j2 * 4, 0]).reshape([BLOCK_K, VALUE_DIM])
        scores = tl.dot(q_tile, tl.trans(k_tile))  # [BLOCK_Q, BLOCK_K]
        dp = tl.dot(do_tile, tl.trans(v_tile))  # [BLOCK_Q, BLOCK_K]
        p = tl.exp2(scores * 0.18033688011112042 - lse)
        if masked:
            p = tl.where((k0 >= q0_part) & (k0 < q0 + 1) & (k1 >= q1_part_3) & (k1 < q1_part_4) & (k2 >= q2_part_3) & (k2 < q2_part_4) & (k < n), p, 0.0)  # neighborhood_3d.spat:8
        ds = p * (dp - delta)  # gradient of the logits
        dq = tl.dot(ds.to(tl.bfloat16), k_tile, dq)  # [BLOCK_Q, HEAD_DIM]
    dq_base = dQ + b.to(tl.int64) * dq_stride_b + h.to(tl.int64) * dq_stride_h
    dq_offsets = q_within.to(tl.int64)[:, None] * dq_stride_n + tl.arange(0, HEAD_DIM)[None, :]
    dq_step = tl.full([], 1, tl.int64) * dq_stride_n  # from row to row
    dq = dq * 0.125
    tl.store(dq_base + q_first * dq_step + dq_offsets, dq.to(tl.bfloat16), mask=(q_rows < nq)[:, None])


@triton.jit(do_not_specialize=["nq", "n"])
def dkdv(
    Q,  # [batch, heads, nq, 64]
    K,  # [batch, groups, n, 64]
    V,  # [batch, groups, n, 64]
    dO,  # [batch, heads, nq, 64]
    LSE2,  # [batch, heads, nq], in powers of two, +inf for rows that keep nothing
    Delta,  # [batch, heads, nq]
    dK,  # [batch, groups, n, 64]
    dk_stride_b, dk_stride_h, dk_stride_n,
    dV,  # [batch, groups, n, 64]
    dv_stride_b, dv_stride_h, dv_stride_n,
    nq,  # query rows
    n,  # keys
):
    """dK and dV: each program owns a tile of keys and walks the tiles of queries, for every query head of its group."""
    BLOCK_Q: tl.constexpr = 64
    BLOCK_K: tl.constexpr = 128
    HEAD_DIM: tl.constexpr = 64
    VALUE_DIM: tl.constexpr = 64
    HEADS: tl.constexpr = 4
    j = tl.program_id(0)  # tile of keys
    g = tl.program_id(1)  # key head
    b = tl.program_id(2)  # sequence
    j0 = j // 120  # box of 4 × 4 × 8 of the grid 30 × 48 × 79
    j1 = j // 10 % 12
    j2 = j % 10
    k_first = j0 * 15168 + j1 * 316 + j2 * 8  # its first row
    k_lane0 = tl.arange(0, BLOCK_K) // 32  # place in a box of 4 × 4 × 8
    k_lane1 = tl.arange(0, BLOCK_K) // 8 % 4
    k_lane2 = tl.arange(0, BLOCK_K) % 8
    k_within = k_lane0 * 3792 + k_lane1 * 79 + k_lane2  # rows after the first
    q_lane0 = tl.arange(0, BLOCK_Q) // 32  # place in a box of 2 × 8 × 4
    q_lane1 = tl.arange(0, BLOCK_Q) // 4 % 8
    q_lane2 = tl.arange(0, BLOCK_Q) % 4
    q_within = q_lane0 * 3792 + q_lane1 * 79 + q_lane2  # rows after the first
    k_rows = tl.where((j0 * 4 + k_lane0 < 30) & (j2 * 8 + k_lane2 < 79), k_first + k_within, n)  # outside the grid: past the end
    k = k_rows[:, None]  # positions, [BLOCK_K, 1]
    k0 = (j0 * 4 + k_lane0)[:, None]  # coordinate on axis 0
    k1 = (j1 * 4 + k_lane1)[:, None]  # coordinate on axis 1
    k2 = (j2 * 8 + k_lane2)[:, None]  # coordinate on axis 2
    k_tile = K.load([b * 2 + g, j0 * 4, j1 * 4, j2 * 8, 0]).reshape([BLOCK_K, HEAD_DIM])
    v_tile = V.load([b * 2 + g, j0 * 4, j1 * 4, j2 * 8, 0]).reshape([BLOCK_K, VALUE_DIM])
    dk = tl.zeros([BLOCK_K, HEAD_DIM], tl.float32)
    dv = tl.zeros([BLOCK_K, VALUE_DIM], tl.float32)
    lo0 = 2 * j0  # touched boxes along axis 0
    hi0 = tl.minimum(tl.maximum(tl.minimum(15, 2 * j0 + 11), tl.where(j0 >= 2, 16, -268435456)), 15)
    boxes0 = tl.maximum(hi0 - lo0, 0)
    lo1 = tl.minimum(tl.maximum(1, (j1 - 3) >> 1), tl.where(j1 <= 6, 0, 268435456))  # touched boxes along axis 1
    hi1 = tl.maximum(tl.minimum(5, (j1 + 5) >> 1), tl.where(j1 >= 5, 6, -268435456))
    boxes1 = tl.maximum(hi1 - lo1, 0)
    lo2 = tl.minimum(tl.maximum(3, 2 * j2 - 3), tl.where(j2 <= 3, 0, 268435456))  # touched boxes along axis 2
    hi2 = tl.minimum(tl.maximum(tl.minimum(17, 2 * j2 + 5), tl.where(j2 >= 6, 20, -268435456)), 20)
    boxes2 = tl.maximum(hi2 - lo2, 0)
    full_lo0 = 2 * j0 + 2  # full boxes along axis 0
    full_hi0 = tl.maximum(2 * j0 + 9, tl.where(j0 >= 3, 16, -268435456))
    full_lo1 = tl.minimum((j1 - 1) >> 1, tl.where(j1 <= 5, 0, 268435456))  # full boxes along axis 1
    full_hi1 = tl.maximum((j1 + 3) >> 1, tl.where(j1 >= 6, 6, -268435456))
    full_lo2 = tl.minimum(2 * j2 - 1, tl.where(j2 <= 2, 0, 268435456))  # full boxes along axis 2
    full_hi2 = tl.minimum(tl.maximum(tl.minimum(17, 2 * j2 + 3), tl.where((j2 >= 7) & (j2 <= 8), 20, -268435456)), 19)
    # heads of the group
    for r in tl.range(0, 2):
        h = g * 2 + r  # query head
        row_base = (b * HEADS + h).to(tl.int64) * nq
        # boxes that are touched, row by row, masked where one is not full
        for t in tl.range(0, boxes0 * boxes1 * boxes2):
            i0 = lo0 + t // (boxes1 * boxes2)
            i1 = lo1 + t // boxes2 % boxes1
            i2 = lo2 + t % boxes2
            q_first = i0 * 7584 + i1 * 632 + i2 * 4  # its first row
            masked = (i0 < full_lo0) | (i0 >= full_hi0) | ((i1 < full_lo1) | (i1 >= full_hi1)) | ((i2 < full_lo2) | (i2 >= full_hi2))
            q_rows = tl.where((i2 * 4 + q_lane2 < 79), q_first + q_within, nq)  # outside the grid: past the end
            q = q_rows[None, :]  # positions, [1, BLOCK_Q]
            q0 = (i0 * 2 + q_lane0)[None, :]  # coordinate on axis 0
            q1 = (i1 * 8 + q_lane1)[None, :]  # coordinate on axis 1
            q2 = (i2 * 4 + q_lane2)[None, :]  # coordinate on axis 2
            q_tile = Q.load([b * 4 + h, i0 * 2, i1 * 8, i2 * 4, 0]).reshape([BLOCK_Q, HEAD_DIM])
            do_tile = dO.load([b * 4 + h, i0 * 2, i1 * 8, i2 * 4, 0]).reshape([BLOCK_Q, VALUE_DIM])
            lse = tl.load(LSE2 + row_base + q_rows, mask=q_rows < nq, other=float("inf"))[None, :]
            delta = tl.load(Delta + row_base + q_rows, mask=q_rows < nq, other=0.0)[None, :]
            scores = tl.dot(k_tile, tl.trans(q_tile))  # [BLOCK_K, BLOCK_Q]
            p = tl.exp2(scores * 0.18033688011112042 - lse)
            if masked:
                q1_part = tl.maximum(tl.minimum(q1, 47), 12)
                q1_part_2 = tl.minimum(q1_part, 35)
                q2_part = tl.maximum(tl.minimum(q2, 78), 12)
                q2_part_2 = tl.minimum(q2_part, 66)
                p = tl.where((q0 >= k0) & (tl.minimum(q0, 29) < k0 + 19) & (q1_part_2 >= k1 - 12) & (q1_part_2 < k1 + 13) & (q2_part_2 >= k2 - 12) & (q2_part_2 < k2 + 13), p, 0.0)  # neighborhood_3d.spat:8
            dp = tl.dot(v_tile, tl.trans(do_tile))  # [BLOCK_K, BLOCK_Q]
            dv = tl.dot(p.to(tl.bfloat16), do_tile, dv)  # [BLOCK_K, VALUE_DIM]
            ds = p * (dp - delta)  # gradient of the logits
            dk = tl.dot(ds.to(tl.bfloat16), q_tile, dk)  # [BLOCK_K, HEAD_DIM]
    dk_base = dK + b.to(tl.int64) * dk_stride_b + g.to(tl.int64) * dk_stride_h
    dk_offsets = k_within.to(tl.int64)[:, None] * dk_stride_n + tl.arange(0, HEAD_DIM)[None, :]
    dk_step = tl.full([], 1, tl.int64) * dk_stride_n  # from row to row
    dk = dk * 0.125
    tl.store(dk_base + k_first * dk_step + dk_offsets, dk.to(tl.bfloat16), mask=(k_rows < n)[:, None])
    dv_base = dV + b.to(tl.int64) * dv_stride_b + g.to(tl.int64) * dv_stride_h
    dv_offsets = k_within.to(tl.int64)[:, None] * dv_stride_n + tl.arange(0, VALUE_DIM)[None, :]
    dv_step = tl.full([], 1, tl.int64) * dv_stride_n  # from row to row
    tl.store(dv_base + k_first * dv_step + dv_offsets, dv.to(tl.bfloat16), mask=(k_rows < n)[:, None])


@triton.jit(do_not_specialize=["q_tiles", "words", "nq", "n"])
def touched(
    Turns,  # [batch, heads, tiles of queries, 1 + words]: turns, then bits of rows
    q_tiles,  # tiles of queries of a head
    words,  # 32 rows of keys each
    nq,  # query rows
    n,  # keys
):
    """Which rows of keys add to which tiles of dQ."""
    BLOCK_Q: tl.constexpr = 128
    BLOCK_K: tl.constexpr = 128
    HEAD_DIM: tl.constexpr = 64
    VALUE_DIM: tl.constexpr = 64
    HEADS: tl.constexpr = 4
    j = tl.program_id(0)  # tile of keys
    g = tl.program_id(1)  # key head
    b = tl.program_id(2)  # sequence
    j0 = j // 60  # box of 2 × 16 × 4 of the grid 30 × 48 × 79
    j1 = j // 20 % 3
    j2 = j % 20
    k_first = j0 * 7584 + j1 * 1264 + j2 * 4  # its first row
    number = tl.program_id(0)  # in the order of programs
    lo0 = j0  # touched boxes along axis 0
    hi0 = tl.minimum(15, j0 + 10)
    boxes0 = tl.maximum(hi0 - lo0, 0)
    lo1 = tl.maximum(0, j1 - 1)  # touched boxes along axis 1
    hi1 = tl.minimum(3, j1 + 2)
    boxes1 = tl.maximum(hi1 - lo1, 0)
    lo2 = tl.minimum(tl.maximum(3, j2 - 3), tl.where(j2 <= 6, 0, 268435456))  # touched boxes along axis 2
    hi2 = tl.maximum(tl.minimum(17, j2 + 4), tl.where(j2 >= 13, 20, -268435456))
    boxes2 = tl.maximum(hi2 - lo2, 0)
    # heads of the group
    for r in tl.range(0, 2):
        h = g * 2 + r  # query head
        # boxes that are touched, row by row
        for t in tl.range(0, boxes0 * boxes1 * boxes2):
            i0 = lo0 + t // (boxes1 * boxes2)
            i1 = lo1 + t // boxes2 % boxes1
            i2 = lo2 + t % boxes2
            q_first = i0 * 7584 + i1 * 1264 + i2 * 4  # its first row
            i = (i0 * 3 + i1) * 20 + i2
            q_tile = (b * HEADS + h) * q_tiles + i
            touched_at = q_tile.to(tl.int64) * (1 + words) + 1 + number // 32
            tl.atomic_or(Turns + touched_at, (1 << (number % 32)).to(tl.int32), sem="relaxed")


@triton.jit(do_not_specialize=["count", "sums_of_head"])
def scaled(
    Sums,  # [batch, heads, rows, width]
    dQ,  # [batch, heads, nq, width]
    count,  # eights of numbers of dQ of a head
    sums_of_head,  # eights of numbers
):
    """dQ from its sums, which may have more rows."""
    SIZE: tl.constexpr = 4096
    HEADS: tl.constexpr = 4
    head = tl.program_id(2).to(tl.int64) * HEADS + tl.program_id(1)
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    sums = tl.load(Sums + head * (sums_of_head * 8) + at, mask=at < count * 8)
    tl.store(dQ + head * (count * 8) + at, (sums * 0.125).to(tl.bfloat16), mask=at < count * 8)
