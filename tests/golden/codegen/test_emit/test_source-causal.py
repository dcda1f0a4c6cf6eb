"""Attention kernels of the pattern `causal`, written by spdsl.

bf16, 4 query heads on 2 key heads, shape square.
forward: tiles of 128 queries and 128 keys, tiles in closed form, 1 run.
dq: tiles of 128 queries and 64 keys, tiles in closed form, 1 run.
dkdv: tiles of 64 queries and 128 keys, tiles in closed form, 1 run.
fused: tiles of 128 queries and 128 keys, tiles in closed form, 1 run.
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
    BLOCK_Q: tl.constexpr = 128
    BLOCK_K: tl.constexpr = 64
    HEAD_DIM: tl.constexpr = 64
    VALUE_DIM: tl.constexpr = 64
    HEADS: tl.constexpr = 4
    i = tl.num_programs(0) - 1 - tl.program_id(0)  # tile of queries, the last first: their rows are the longest
    h = tl.program_id(1)  # query head
    g = h // 2  # key head
    b = tl.program_id(2)  # sequence
    q_rows = i * BLOCK_Q + tl.arange(0, BLOCK_Q)
    q = q_rows[:, None]  # positions, [BLOCK_Q, 1]
    q_part = tl.minimum(q + 1, n)
    q_tile = Q.load([b, h, i * BLOCK_Q, 0]).reshape([BLOCK_Q, HEAD_DIM])
    do_tile = dO.load([b, h, i * BLOCK_Q, 0]).reshape([BLOCK_Q, VALUE_DIM])
    row_base = (b * HEADS + h).to(tl.int64) * nq
    lse = tl.load(LSE2 + row_base + q_rows, mask=q_rows < nq, other=float("inf"))[:, None]
    delta = tl.load(Delta + row_base + q_rows, mask=q_rows < nq, other=0.0)[:, None]
    dq = tl.zeros([BLOCK_Q, HEAD_DIM], tl.float32)
    lo = 0  # touched tiles
    hi = tl.minimum(2 * i + 2, (n + 63) >> 6)
    full_hi = tl.maximum(tl.minimum(tl.minimum(2 * i, hi), n >> 6), lo)  # full tiles
    # masked where the tile is not full
    for j in tl.range(lo, hi):
        masked = (j < lo) | (j >= full_hi)
        k_rows = j * BLOCK_K + tl.arange(0, BLOCK_K)
        k = k_rows[None, :]  # positions, [1, BLOCK_K]
        k_tile = K.load([b, g, j * BLOCK_K, 0]).reshape([BLOCK_K, HEAD_DIM])
        v_tile = V.load([b, g, j * BLOCK_K, 0]).reshape([BLOCK_K, VALUE_DIM])
        scores = tl.dot(q_tile, tl.trans(k_tile))  # [BLOCK_Q, BLOCK_K]
        dp = tl.dot(do_tile, tl.trans(v_tile))  # [BLOCK_Q, BLOCK_K]
        p = tl.exp2(scores * 0.18033688011112042 - lse)
        if masked:
            p = tl.where(k < q_part, p, 0.0)  # causal.spat:3
        ds = p * (dp - delta)  # gradient of the logits
        dq = tl.dot(ds.to(tl.bfloat16), k_tile, dq)  # [BLOCK_Q, HEAD_DIM]
    dq_base = dQ + b.to(tl.int64) * dq_stride_b + h.to(tl.int64) * dq_stride_h
    dq_offsets = tl.arange(0, BLOCK_Q)[:, None] * dq_stride_n + tl.arange(0, HEAD_DIM)[None, :]
    dq_step = tl.full([], BLOCK_Q, tl.int64) * dq_stride_n  # from tile to tile
    dq = dq * 0.125
    tl.store(dq_base + i * dq_step + dq_offsets, dq.to(tl.bfloat16), mask=(q_rows < nq)[:, None])


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
    k_rows = j * BLOCK_K + tl.arange(0, BLOCK_K)
    k = k_rows[:, None]  # positions, [BLOCK_K, 1]
    k_tile = K.load([b, g, j * BLOCK_K, 0]).reshape([BLOCK_K, HEAD_DIM])
    v_tile = V.load([b, g, j * BLOCK_K, 0]).reshape([BLOCK_K, VALUE_DIM])
    dk = tl.zeros([BLOCK_K, HEAD_DIM], tl.float32)
    dv = tl.zeros([BLOCK_K, VALUE_DIM], tl.float32)
    lo = 2 * j  # touched tiles
    hi = (n + 63) >> 6
    full_lo = tl.minimum(tl.maximum(2 * j + 2, lo), hi)  # full tiles
    full_hi = tl.maximum(tl.minimum(tl.minimum((n + 63) >> 6, hi), nq >> 6), full_lo)
    # heads of the group
    for r in tl.range(0, 2):
        h = g * 2 + r  # query head
        row_base = (b * HEADS + h).to(tl.int64) * nq
        # masked where the tile is not full
        for i in tl.range(lo, hi):
            masked = (i < full_lo) | (i >= full_hi)
            q_rows = i * BLOCK_Q + tl.arange(0, BLOCK_Q)
            q = q_rows[None, :]  # positions, [1, BLOCK_Q]
            q_tile = Q.load([b, h, i * BLOCK_Q, 0]).reshape([BLOCK_Q, HEAD_DIM])
            do_tile = dO.load([b, h, i * BLOCK_Q, 0]).reshape([BLOCK_Q, VALUE_DIM])
            lse = tl.load(LSE2 + row_base + q_rows, mask=q_rows < nq, other=float("inf"))[None, :]
            delta = tl.load(Delta + row_base + q_rows, mask=q_rows < nq, other=0.0)[None, :]
            scores = tl.dot(k_tile, tl.trans(q_tile))  # [BLOCK_K, BLOCK_Q]
            p = tl.exp2(scores * 0.18033688011112042 - lse)
            if masked:
                p = tl.where(q >= k, p, 0.0)  # causal.spat:3
            dp = tl.dot(v_tile, tl.trans(do_tile))  # [BLOCK_K, BLOCK_Q]
            dv = tl.dot(p.to(tl.bfloat16), do_tile, dv)  # [BLOCK_K, VALUE_DIM]
            ds = p * (dp - delta)  # gradient of the logits
            dk = tl.dot(ds.to(tl.bfloat16), q_tile, dk)  # [BLOCK_K, HEAD_DIM]
    dk_base = dK + b.to(tl.int64) * dk_stride_b + g.to(tl.int64) * dk_stride_h
    dk_offsets = tl.arange(0, BLOCK_K)[:, None] * dk_stride_n + tl.arange(0, HEAD_DIM)[None, :]
    dk_step = tl.full([], BLOCK_K, tl.int64) * dk_stride_n  # from tile to tile
    dk = dk * 0.125
    tl.store(dk_base + j * dk_step + dk_offsets, dk.to(tl.bfloat16), mask=(k_rows < n)[:, None])
    dv_base = dV + b.to(tl.int64) * dv_stride_b + g.to(tl.int64) * dv_stride_h
    dv_offsets = tl.arange(0, BLOCK_K)[:, None] * dv_stride_n + tl.arange(0, VALUE_DIM)[None, :]
    dv_step = tl.full([], BLOCK_K, tl.int64) * dv_stride_n  # from tile to tile
    tl.store(dv_base + j * dv_step + dv_offsets, dv.to(tl.bfloat16), mask=(k_rows < n)[:, None])


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
    number = tl.program_id(0)  # in the order of programs
    lo = j  # touched tiles
    hi = (n + 127) >> 7
    full_lo = tl.minimum(tl.maximum(j + 1, lo), hi)  # full tiles
    full_hi = tl.maximum(tl.where((j + 1) * 128 > n, full_lo, tl.minimum(tl.minimum((n + 127) >> 7, hi), nq >> 7)), full_lo)
    # heads of the group
    for r in tl.range(0, 2):
        h = g * 2 + r  # query head
        # masked where the tile is not full
        for i in tl.range(lo, hi):
            masked = (i < full_lo) | (i >= full_hi)
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
