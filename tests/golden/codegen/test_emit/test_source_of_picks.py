"""Attention kernels of the pattern `nsa_stage_9`, written by spdsl.

bf16, 32 query heads on 2 key heads, shape square.
forward: tiles of 64 queries and 64 keys, those picked, 16 heads of 4 queries to a tile.
dq: tiles of 64 queries and 64 keys, those picked, 16 heads of 4 queries to a tile.
dkdv: tiles of 64 queries and 64 keys, queries gathered by what they have picked, 16 heads of each to a tile.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["nq", "n", "list_stride_b", "list_stride_h"])
def forward(
    Q,  # [batch, heads, nq, 128]
    K,  # [batch, groups, n, 128]
    V,  # [batch, groups, n, 128]
    O,  # [batch, heads, nq, 128]
    o_stride_b, o_stride_h, o_stride_n,
    LSE,  # [batch, heads, nq], natural logarithm
    nq,  # query rows
    n,  # keys
    list_begin,  # [batch or 1, lists of heads or 1, rows]
    list_end,  # [batch or 1, lists of heads or 1, rows]
    list_tiles,
    list_bits,  # queries of each block
    list_stride_b, list_stride_h,
):
    """Output and LSE: each program owns a tile of queries and walks the tiles of keys that its rows touch."""
    BLOCK_Q: tl.constexpr = 64
    BLOCK_K: tl.constexpr = 64
    HEAD_DIM: tl.constexpr = 128
    VALUE_DIM: tl.constexpr = 128
    HEADS: tl.constexpr = 32
    i = tl.num_programs(0) - 1 - tl.program_id(0)  # tile of queries, the last first: their rows are the longest
    owner = tl.program_id(1)  # 16 query heads that share a list
    first_head = owner * 16
    g = owner  # key head
    b = tl.program_id(2)  # sequence
    q_places = tl.arange(0, BLOCK_Q) % 4  # queries of a tile, head by head
    h_rows = first_head + tl.arange(0, BLOCK_Q) // 4
    h = h_rows[:, None]  # query heads
    q_rows = i * 4 + q_places
    q = q_rows[:, None]  # positions, [BLOCK_Q, 1]
    q_part = tl.minimum(q + 1, n)
    q_tile = Q.load([b, first_head, i * 4, 0]).reshape([BLOCK_Q, HEAD_DIM])
    m = tl.full([BLOCK_Q], float("-inf"), tl.float32)  # running maximum of the logits
    l = tl.zeros([BLOCK_Q], tl.float32)  # running sum of the weights
    acc = tl.zeros([BLOCK_Q, VALUE_DIM], tl.float32)
    lo = 0  # touched tiles
    hi = (i + 16) >> 4
    full_hi = tl.maximum(tl.minimum(tl.minimum(i >> 4, hi), n >> 6), lo)  # full tiles
    list_at = b * list_stride_b + owner * list_stride_h + i
    begin = tl.load(list_begin + list_at)
    end = tl.load(list_end + list_at)
    # blocks that any of the queries has picked
    for t in tl.range(begin, tl.where(lo < hi, end, begin)):
        j = tl.load(list_tiles + t)
        bits = tl.load(list_bits + t)  # one for each query that has picked it
        masked = (j < lo) | (j >= full_hi) | (bits != 15)
        k_rows = j * BLOCK_K + tl.arange(0, BLOCK_K)
        k = k_rows[None, :]  # positions, [1, BLOCK_K]
        k_tile = K.load([b, g, j * BLOCK_K, 0]).reshape([BLOCK_K, HEAD_DIM])
        scores = tl.dot(q_tile, tl.trans(k_tile))  # [BLOCK_Q, BLOCK_K]
        if masked:
            picked = ((bits >> q_places) & 1)[:, None] != 0
            scores = tl.where((k < q_part) & picked, scores, float("-inf"))  # nsa.spat:14
        m_new = tl.maximum(m, tl.max(scores, 1) * 0.12751743082459868)
        shift = tl.where(m_new == float("-inf"), 0.0, m_new)  # a row may have nothing yet
        p = tl.exp2(scores * 0.12751743082459868 - shift[:, None])
        alpha = tl.exp2(m - shift)
        l = l * alpha + tl.sum(p, 1)
        acc = acc * alpha[:, None]
        m = m_new
        v_tile = V.load([b, g, j * BLOCK_K, 0]).reshape([BLOCK_K, VALUE_DIM])
        acc = tl.dot(p.to(tl.bfloat16), v_tile, acc)  # [BLOCK_Q, VALUE_DIM]
    norm = tl.where(l == 0.0, 1.0, l)  # rows that keep nothing give zeros
    acc = acc / norm[:, None]
    lse = (m + tl.log2(norm)) * 0.6931471805599453
    o_base = O + b.to(tl.int64) * o_stride_b + h_rows.to(tl.int64)[:, None] * o_stride_h
    tl.store(o_base + q_rows.to(tl.int64)[:, None] * o_stride_n + tl.arange(0, VALUE_DIM)[None, :], acc.to(tl.bfloat16), mask=(q_rows < nq)[:, None])
    row_base = (b * HEADS + h_rows).to(tl.int64) * nq
    tl.store(LSE + row_base + q_rows, lse, mask=q_rows < nq)


@triton.jit(do_not_specialize=["dlse_rows", "nq", "n"])
def delta(
    O,  # [batch, heads, nq, 128]
    o_stride_b, o_stride_h, o_stride_n,
    dO,  # [batch, heads, nq, 128]
    do_stride_b, do_stride_h, do_stride_n,
    LSE,  # [batch, heads, nq], natural logarithm
    dLSE,  # [batch, heads, nq]
    dlse_rows,  # nq, or 0: LSE has no gradient
    LSE2,  # [batch, heads, nq], in powers of two, +inf for rows that keep nothing
    Delta,  # [batch, heads, nq]
    nq,  # query rows
    n,  # keys
):
    """Delta: the row sums of dO * O minus dLSE."""
    BLOCK_Q: tl.constexpr = 64
    BLOCK_K: tl.constexpr = 64
    HEAD_DIM: tl.constexpr = 128
    VALUE_DIM: tl.constexpr = 128
    HEADS: tl.constexpr = 32
    i = tl.program_id(0)  # tile of queries
    h = tl.program_id(1)  # query head
    g = h // 16  # key head
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


@triton.jit(do_not_specialize=["nq", "n", "list_stride_b", "list_stride_h"])
def dq(
    Q,  # [batch, heads, nq, 128]
    K,  # [batch, groups, n, 128]
    V,  # [batch, groups, n, 128]
    dO,  # [batch, heads, nq, 128]
    LSE2,  # [batch, heads, nq], in powers of two, +inf for rows that keep nothing
    Delta,  # [batch, heads, nq]
    dQ,  # [batch, heads, nq, 128]
    dq_stride_b, dq_stride_h, dq_stride_n,
    nq,  # query rows
    n,  # keys
    list_begin,  # [batch or 1, lists of heads or 1, rows]
    list_end,  # [batch or 1, lists of heads or 1, rows]
    list_tiles,
    list_bits,  # queries of each block
    list_stride_b, list_stride_h,
):
    """dQ: each program owns a tile of queries."""
    BLOCK_Q: tl.constexpr = 64
    BLOCK_K: tl.constexpr = 64
    HEAD_DIM: tl.constexpr = 128
    VALUE_DIM: tl.constexpr = 128
    HEADS: tl.constexpr = 32
    i = tl.num_programs(0) - 1 - tl.program_id(0)  # tile of queries, the last first: their rows are the longest
    owner = tl.program_id(1)  # 16 query heads that share a list
    first_head = owner * 16
    g = owner  # key head
    b = tl.program_id(2)  # sequence
    q_places = tl.arange(0, BLOCK_Q) % 4  # queries of a tile, head by head
    h_rows = first_head + tl.arange(0, BLOCK_Q) // 4
    h = h_rows[:, None]  # query heads
    q_rows = i * 4 + q_places
    q = q_rows[:, None]  # positions, [BLOCK_Q, 1]
    q_part = tl.minimum(q + 1, n)
    q_tile = Q.load([b, first_head, i * 4, 0]).reshape([BLOCK_Q, HEAD_DIM])
    do_tile = dO.load([b, first_head, i * 4, 0]).reshape([BLOCK_Q, VALUE_DIM])
    row_base = (b * HEADS + h_rows).to(tl.int64) * nq
    lse = tl.load(LSE2 + row_base + q_rows, mask=q_rows < nq, other=float("inf"))[:, None]
    delta = tl.load(Delta + row_base + q_rows, mask=q_rows < nq, other=0.0)[:, None]
    dq = tl.zeros([BLOCK_Q, HEAD_DIM], tl.float32)
    lo = 0  # touched tiles
    hi = (i + 16) >> 4
    full_hi = tl.maximum(tl.minimum(tl.minimum(i >> 4, hi), n >> 6), lo)  # full tiles
    list_at = b * list_stride_b + owner * list_stride_h + i
    begin = tl.load(list_begin + list_at)
    end = tl.load(list_end + list_at)
    # blocks that any of the queries has picked
    for t in tl.range(begin, tl.where(lo < hi, end, begin)):
        j = tl.load(list_tiles + t)
        bits = tl.load(list_bits + t)  # one for each query that has picked it
        masked = (j < lo) | (j >= full_hi) | (bits != 15)
        k_rows = j * BLOCK_K + tl.arange(0, BLOCK_K)
        k = k_rows[None, :]  # positions, [1, BLOCK_K]
        k_tile = K.load([b, g, j * BLOCK_K, 0]).reshape([BLOCK_K, HEAD_DIM])
        v_tile = V.load([b, g, j * BLOCK_K, 0]).reshape([BLOCK_K, VALUE_DIM])
        scores = tl.dot(q_tile, tl.trans(k_tile))  # [BLOCK_Q, BLOCK_K]
        dp = tl.dot(do_tile, tl.trans(v_tile))  # [BLOCK_Q, BLOCK_K]
        p = tl.exp2(scores * 0.12751743082459868 - lse)
        if masked:
            picked = ((bits >> q_places) & 1)[:, None] != 0
            p = tl.where((k < q_part) & picked, p, 0.0)  # nsa.spat:14
        ds = p * (dp - delta)  # gradient of the logits
        dq = tl.dot(ds.to(tl.bfloat16), k_tile, dq)  # [BLOCK_Q, HEAD_DIM]
    dq_base = dQ + b.to(tl.int64) * dq_stride_b + h_rows.to(tl.int64)[:, None] * dq_stride_h
    dq = dq * 0.08838834764831843
    tl.store(dq_base + q_rows.to(tl.int64)[:, None] * dq_stride_n + tl.arange(0, HEAD_DIM)[None, :], dq.to(tl.bfloat16), mask=(q_rows < nq)[:, None])


@triton.jit(do_not_specialize=["nq", "n", "blocks"])
def dkdv_combine(
    dK,  # [batch, groups, n, 128]
    dk_stride_b, dk_stride_h, dk_stride_n,
    dV,  # [batch, groups, n, 128]
    dv_stride_b, dv_stride_h, dv_stride_n,
    nq,  # query rows
    n,  # keys
    row_slots,  # [blocks], where the parts of each begin
    row_parts,  # [blocks], how many there are; 1: none are kept
    blocks,  # blocks of keys of a head
    Part_dk,  # [parts, BLOCK_K, HEAD_DIM]
    Part_dv,  # [parts, BLOCK_K, VALUE_DIM]
):
    """The parts of blocks that many queries have picked, added up: each program owns some keys."""
    BLOCK_Q: tl.constexpr = 64
    BLOCK_K: tl.constexpr = 16
    HEAD_DIM: tl.constexpr = 128
    VALUE_DIM: tl.constexpr = 128
    HEADS: tl.constexpr = 32
    row = tl.program_id(0) // 4  # block of keys, among those of all heads and sequences
    piece = tl.program_id(0) % 4  # of its tiles
    first_slot = tl.load(row_slots + row)
    count = tl.load(row_parts + row)
    owner = row // blocks % 2
    b = row // blocks // 2  # sequence
    first_head = owner * 16
    g = owner  # key head
    j = row % blocks * 4 + piece
    k_rows = j * BLOCK_K + tl.arange(0, BLOCK_K)
    k = k_rows[:, None]  # positions, [BLOCK_K, 1]
    if count > 1:
        dk = tl.zeros([BLOCK_K, HEAD_DIM], tl.float32)
        dv = tl.zeros([BLOCK_K, VALUE_DIM], tl.float32)
        # parts of the block, in order
        for p in tl.range(0, count):
            item = (first_slot + p) * 4 + piece
            dk_part = tl.load(Part_dk + item.to(tl.int64) * (BLOCK_K * HEAD_DIM) + tl.arange(0, BLOCK_K)[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :])  # [BLOCK_K, HEAD_DIM]
            dv_part = tl.load(Part_dv + item.to(tl.int64) * (BLOCK_K * VALUE_DIM) + tl.arange(0, BLOCK_K)[:, None] * VALUE_DIM + tl.arange(0, VALUE_DIM)[None, :])  # [BLOCK_K, VALUE_DIM]
            dk += dk_part
            dv += dv_part
        dk_base = dK + b.to(tl.int64) * dk_stride_b + g.to(tl.int64) * dk_stride_h
        dk_offsets = tl.arange(0, BLOCK_K)[:, None] * dk_stride_n + tl.arange(0, HEAD_DIM)[None, :]
        dk_step = tl.full([], BLOCK_K, tl.int64) * dk_stride_n  # from tile to tile
        dk = dk * 0.08838834764831843
        tl.store(dk_base + j * dk_step + dk_offsets, dk.to(tl.bfloat16), mask=(k_rows < n)[:, None])
        dv_base = dV + b.to(tl.int64) * dv_stride_b + g.to(tl.int64) * dv_stride_h
        dv_offsets = tl.arange(0, BLOCK_K)[:, None] * dv_stride_n + tl.arange(0, VALUE_DIM)[None, :]
        dv_step = tl.full([], BLOCK_K, tl.int64) * dv_stride_n  # from tile to tile
        tl.store(dv_base + j * dv_step + dv_offsets, dv.to(tl.bfloat16), mask=(k_rows < n)[:, None])
