"""Attention kernels of the pattern `documents`, written by spdsl.

bf16, 4 query heads on 2 key heads, shape square.
forward: tiles of 64 queries and 64 keys, tiles from lists.
dq: tiles of 64 queries and 64 keys, tiles from lists.
dkdv: tiles of 64 queries and 128 keys, tiles from lists.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["nq", "n", "list_stride_b", "list_stride_h", "items", "parts", "long_rows", "other_rows", "order_stride_b", "order_stride_h", "stride_doc_b", "size_doc_0"])
def forward(
    Q,  # [batch, heads, nq, 64]
    K,  # [batch, groups, n, 64]
    V,  # [batch, groups, n, 64]
    O,  # [batch, heads, nq, 64]
    o_stride_b, o_stride_h, o_stride_n,
    LSE,  # [batch, heads, nq], natural logarithm
    nq,  # query rows
    n,  # keys
    list_begin,  # [batch or 1, heads or 1, rows]
    list_middle,  # [batch or 1, heads or 1, rows]
    list_end,  # [batch or 1, heads or 1, rows]
    list_tiles, list_stride_b, list_stride_h,
    items,  # parts of all long rows
    parts,  # of each long row
    long_rows,  # long rows of a head
    other_rows,
    row_order,  # [batch or 1, h or 1, rows], the long rows first
    order_stride_b, order_stride_h,
    Part_acc,  # [items, BLOCK_Q, VALUE_DIM]
    Part_m,  # [items, BLOCK_Q]
    Part_l,  # [items, BLOCK_Q]
    t_doc,  # table doc[token]
    stride_doc_b, stride_doc_0, size_doc_0,
):
    """Output and LSE: each program owns a tile of queries and walks the tiles of keys that its rows touch."""
    BLOCK_Q: tl.constexpr = 64
    BLOCK_K: tl.constexpr = 64
    HEAD_DIM: tl.constexpr = 64
    VALUE_DIM: tl.constexpr = 64
    HEADS: tl.constexpr = 4
    item = tl.program_id(0)
    is_part = item < items  # the parts of long rows come first
    shares = tl.where(is_part, parts, 1)
    part = tl.where(is_part, item % parts, 0)
    row = tl.where(is_part, item // parts, item - items)  # among those of all heads and sequences
    rows = tl.where(is_part, long_rows, other_rows)
    h = row // rows % 4  # query head
    b = row // rows // 4  # sequence
    row = row % rows
    g = h // 2  # key head
    other = other_rows - 1 - row  # the last first: their rows are the longest
    order_at = b * order_stride_b + h * order_stride_h + tl.where(is_part, row, long_rows + other)
    i = tl.load(row_order + order_at)  # tile of queries
    q_rows = i * BLOCK_Q + tl.arange(0, BLOCK_Q)
    q = q_rows[:, None]  # positions, [BLOCK_Q, 1]
    doc_at_q = tl.load(t_doc + b.to(tl.int64) * stride_doc_b + q * stride_doc_0, mask=(q >= 0) & (q < size_doc_0), other=0).to(tl.int32)
    q_tile = Q.load([b, h, i * BLOCK_Q, 0]).reshape([BLOCK_Q, HEAD_DIM])
    m = tl.full([BLOCK_Q], float("-inf"), tl.float32)  # running maximum of the logits
    l = tl.zeros([BLOCK_Q], tl.float32)  # running sum of the weights
    acc = tl.zeros([BLOCK_Q, VALUE_DIM], tl.float32)
    list_at = b * list_stride_b + h * list_stride_h + i
    begin = tl.load(list_begin + list_at)
    middle = tl.load(list_middle + list_at)
    end = tl.load(list_end + list_at)
    turns = (tl.maximum(end - begin, 0) + shares - 1) // shares  # of this part
    first = begin + part * turns
    last = tl.minimum(first + turns, end)
    cut_0 = tl.minimum(tl.maximum(middle, first), last)
    # listed tiles that are full
    for t in tl.range(first, cut_0):
        j = tl.load(list_tiles + t)
        k_tile = K.load([b, g, j * BLOCK_K, 0]).reshape([BLOCK_K, HEAD_DIM])
        scores = tl.dot(q_tile, tl.trans(k_tile))  # [BLOCK_Q, BLOCK_K]
        m_new = tl.maximum(m, tl.max(scores, 1) * 0.18033688011112042)
        p = tl.exp2(scores * 0.18033688011112042 - m_new[:, None])
        alpha = tl.exp2(m - m_new)
        l = l * alpha + tl.sum(p, 1)
        acc = acc * alpha[:, None]
        m = m_new
        v_tile = V.load([b, g, j * BLOCK_K, 0]).reshape([BLOCK_K, VALUE_DIM])
        acc = tl.dot(p.to(tl.bfloat16), v_tile, acc)  # [BLOCK_Q, VALUE_DIM]
    # listed tiles with an edge
    for t in tl.range(cut_0, last):
        j = tl.load(list_tiles + t)
        k_rows = j * BLOCK_K + tl.arange(0, BLOCK_K)
        k = k_rows[None, :]  # positions, [1, BLOCK_K]
        k_tile = K.load([b, g, j * BLOCK_K, 0]).reshape([BLOCK_K, HEAD_DIM])
        scores = tl.dot(q_tile, tl.trans(k_tile))  # [BLOCK_Q, BLOCK_K]
        doc_at_k = tl.load(t_doc + b.to(tl.int64) * stride_doc_b + k * stride_doc_0, mask=(k >= 0) & (k < size_doc_0), other=0).to(tl.int32)
        scores = tl.where((k <= q) & (doc_at_q == doc_at_k) & (k < n), scores, float("-inf"))  # documents.spat:4
        m_new = tl.maximum(m, tl.max(scores, 1) * 0.18033688011112042)
        shift = tl.where(m_new == float("-inf"), 0.0, m_new)  # a row may have nothing yet
        p = tl.exp2(scores * 0.18033688011112042 - shift[:, None])
        alpha = tl.exp2(m - shift)
        l = l * alpha + tl.sum(p, 1)
        acc = acc * alpha[:, None]
        m = m_new
        v_tile = V.load([b, g, j * BLOCK_K, 0]).reshape([BLOCK_K, VALUE_DIM])
        acc = tl.dot(p.to(tl.bfloat16), v_tile, acc)  # [BLOCK_Q, VALUE_DIM]
    if shares > 1:
        tl.store(Part_acc + item.to(tl.int64) * (BLOCK_Q * VALUE_DIM) + tl.arange(0, BLOCK_Q)[:, None] * VALUE_DIM + tl.arange(0, VALUE_DIM)[None, :], acc)
        tl.store(Part_m + item.to(tl.int64) * BLOCK_Q + tl.arange(0, BLOCK_Q), m)
        tl.store(Part_l + item.to(tl.int64) * BLOCK_Q + tl.arange(0, BLOCK_Q), l)
    else:
        norm = tl.where(l == 0.0, 1.0, l)  # rows that keep nothing give zeros
        acc = acc / norm[:, None]
        lse = (m + tl.log2(norm)) * 0.6931471805599453
        o_base = O + b.to(tl.int64) * o_stride_b + h.to(tl.int64) * o_stride_h
        o_offsets = tl.arange(0, BLOCK_Q)[:, None] * o_stride_n + tl.arange(0, VALUE_DIM)[None, :]
        o_step = tl.full([], BLOCK_Q, tl.int64) * o_stride_n  # from tile to tile
        tl.store(o_base + i * o_step + o_offsets, acc.to(tl.bfloat16), mask=(q_rows < nq)[:, None])
        row_base = (b * HEADS + h).to(tl.int64) * nq
        tl.store(LSE + row_base + q_rows, lse, mask=q_rows < nq)


@triton.jit(do_not_specialize=["nq", "n"])
def delta(
    O,  # [batch, heads, nq, 64]
    o_stride_b, o_stride_h, o_stride_n,
    dO,  # [batch, heads, nq, 64]
    do_stride_b, do_stride_h, do_stride_n,
    LSE,  # [batch, heads, nq], natural logarithm
    dLSE,  # [batch, heads, nq]
    LSE2,  # [batch, heads, nq], in powers of two, +inf for rows that keep nothing
    Delta,  # [batch, heads, nq]
    nq,  # query rows
    n,  # keys
):
    """Delta: the row sums of dO * O minus dLSE."""
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
    d_lse = tl.load(dLSE + row_base + q_rows, mask=q_rows < nq, other=0.0)
    lse = tl.load(LSE + row_base + q_rows, mask=q_rows < nq, other=float("-inf"))
    lse2 = tl.where(lse == float("-inf"), float("inf"), lse * 1.4426950408889634)  # exponents of rows that keep nothing: -inf
    delta = tl.sum(o_tile.to(tl.float32) * do_tile.to(tl.float32), 1) - d_lse
    delta = tl.where(lse == float("-inf"), 0.0, delta)
    tl.store(LSE2 + row_base + q_rows, lse2, mask=q_rows < nq)
    tl.store(Delta + row_base + q_rows, delta, mask=q_rows < nq)


@triton.jit(do_not_specialize=["nq", "n", "list_stride_b", "list_stride_h", "items", "parts", "long_rows", "other_rows", "order_stride_b", "order_stride_h", "stride_doc_b", "size_doc_0"])
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
    list_begin,  # [batch or 1, heads or 1, rows]
    list_middle,  # [batch or 1, heads or 1, rows]
    list_end,  # [batch or 1, heads or 1, rows]
    list_tiles, list_stride_b, list_stride_h,
    items,  # parts of all long rows
    parts,  # of each long row
    long_rows,  # long rows of a head
    other_rows,
    row_order,  # [batch or 1, h or 1, rows], the long rows first
    order_stride_b, order_stride_h,
    Part_dq,  # [items, BLOCK_Q, HEAD_DIM]
    t_doc,  # table doc[token]
    stride_doc_b, stride_doc_0, size_doc_0,
):
    """dQ: each program owns a tile of queries."""
    BLOCK_Q: tl.constexpr = 64
    BLOCK_K: tl.constexpr = 64
    HEAD_DIM: tl.constexpr = 64
    VALUE_DIM: tl.constexpr = 64
    HEADS: tl.constexpr = 4
    item = tl.program_id(0)
    is_part = item < items  # the parts of long rows come first
    shares = tl.where(is_part, parts, 1)
    part = tl.where(is_part, item % parts, 0)
    row = tl.where(is_part, item // parts, item - items)  # among those of all heads and sequences
    rows = tl.where(is_part, long_rows, other_rows)
    h = row // rows % 4  # query head
    b = row // rows // 4  # sequence
    row = row % rows
    g = h // 2  # key head
    other = other_rows - 1 - row  # the last first: their rows are the longest
    order_at = b * order_stride_b + h * order_stride_h + tl.where(is_part, row, long_rows + other)
    i = tl.load(row_order + order_at)  # tile of queries
    q_rows = i * BLOCK_Q + tl.arange(0, BLOCK_Q)
    q = q_rows[:, None]  # positions, [BLOCK_Q, 1]
    doc_at_q = tl.load(t_doc + b.to(tl.int64) * stride_doc_b + q * stride_doc_0, mask=(q >= 0) & (q < size_doc_0), other=0).to(tl.int32)
    q_tile = Q.load([b, h, i * BLOCK_Q, 0]).reshape([BLOCK_Q, HEAD_DIM])
    do_tile = dO.load([b, h, i * BLOCK_Q, 0]).reshape([BLOCK_Q, VALUE_DIM])
    row_base = (b * HEADS + h).to(tl.int64) * nq
    lse = tl.load(LSE2 + row_base + q_rows, mask=q_rows < nq, other=float("inf"))[:, None]
    delta = tl.load(Delta + row_base + q_rows, mask=q_rows < nq, other=0.0)[:, None]
    dq = tl.zeros([BLOCK_Q, HEAD_DIM], tl.float32)
    list_at = b * list_stride_b + h * list_stride_h + i
    begin = tl.load(list_begin + list_at)
    middle = tl.load(list_middle + list_at)
    end = tl.load(list_end + list_at)
    turns = (tl.maximum(end - begin, 0) + shares - 1) // shares  # of this part
    first = begin + part * turns
    last = tl.minimum(first + turns, end)
    cut_0 = tl.minimum(tl.maximum(middle, first), last)
    # listed tiles that are full
    for t in tl.range(first, cut_0):
        j = tl.load(list_tiles + t)
        k_tile = K.load([b, g, j * BLOCK_K, 0]).reshape([BLOCK_K, HEAD_DIM])
        v_tile = V.load([b, g, j * BLOCK_K, 0]).reshape([BLOCK_K, VALUE_DIM])
        scores = tl.dot(q_tile, tl.trans(k_tile))  # [BLOCK_Q, BLOCK_K]
        dp = tl.dot(do_tile, tl.trans(v_tile))  # [BLOCK_Q, BLOCK_K]
        p = tl.exp2(scores * 0.18033688011112042 - lse)
        ds = p * (dp - delta)  # gradient of the logits
        dq = tl.dot(ds.to(tl.bfloat16), k_tile, dq)  # [BLOCK_Q, HEAD_DIM]
    # listed tiles with an edge
    for t in tl.range(cut_0, last):
        j = tl.load(list_tiles + t)
        k_rows = j * BLOCK_K + tl.arange(0, BLOCK_K)
        k = k_rows[None, :]  # positions, [1, BLOCK_K]
        k_tile = K.load([b, g, j * BLOCK_K, 0]).reshape([BLOCK_K, HEAD_DIM])
        v_tile = V.load([b, g, j * BLOCK_K, 0]).reshape([BLOCK_K, VALUE_DIM])
        scores = tl.dot(q_tile, tl.trans(k_tile))  # [BLOCK_Q, BLOCK_K]
        dp = tl.dot(do_tile, tl.trans(v_tile))  # [BLOCK_Q, BLOCK_K]
        p = tl.exp2(scores * 0.18033688011112042 - lse)
        doc_at_k = tl.load(t_doc + b.to(tl.int64) * stride_doc_b + k * stride_doc_0, mask=(k >= 0) & (k < size_doc_0), other=0).to(tl.int32)
        p = tl.where((k <= q) & (doc_at_q == doc_at_k) & (k < n), p, 0.0)  # documents.spat:4
        ds = p * (dp - delta)  # gradient of the logits
        dq = tl.dot(ds.to(tl.bfloat16), k_tile, dq)  # [BLOCK_Q, HEAD_DIM]
    if shares > 1:
        tl.store(Part_dq + item.to(tl.int64) * (BLOCK_Q * HEAD_DIM) + tl.arange(0, BLOCK_Q)[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :], dq)
    else:
        dq_base = dQ + b.to(tl.int64) * dq_stride_b + h.to(tl.int64) * dq_stride_h
        dq_offsets = tl.arange(0, BLOCK_Q)[:, None] * dq_stride_n + tl.arange(0, HEAD_DIM)[None, :]
        dq_step = tl.full([], BLOCK_Q, tl.int64) * dq_stride_n  # from tile to tile
        dq = dq * 0.125
        tl.store(dq_base + i * dq_step + dq_offsets, dq.to(tl.bfloat16), mask=(q_rows < nq)[:, None])


@triton.jit(do_not_specialize=["nq", "n", "list_stride_b", "list_stride_h", "items", "parts", "long_rows", "other_rows", "order_stride_b", "order_stride_h", "stride_doc_b", "size_doc_0"])
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
    list_begin,  # [batch or 1, heads or 1, rows]
    list_middle,  # [batch or 1, heads or 1, rows]
    list_end,  # [batch or 1, heads or 1, rows]
    list_tiles, list_stride_b, list_stride_h,
    items,  # parts of all long rows
    parts,  # of each long row
    long_rows,  # long rows of a head
    other_rows,
    row_order,  # [batch or 1, g or 1, rows], the long rows first
    order_stride_b, order_stride_h,
    Part_dk,  # [items, BLOCK_K, HEAD_DIM]
    Part_dv,  # [items, BLOCK_K, VALUE_DIM]
    t_doc,  # table doc[token]
    stride_doc_b, stride_doc_0, size_doc_0,
):
    """dK and dV: each program owns a tile of keys and walks the tiles of queries, for every query head of its group."""
    BLOCK_Q: tl.constexpr = 64
    BLOCK_K: tl.constexpr = 128
    HEAD_DIM: tl.constexpr = 64
    VALUE_DIM: tl.constexpr = 64
    HEADS: tl.constexpr = 4
    item = tl.program_id(0)
    is_part = item < items  # the parts of long rows come first
    shares = tl.where(is_part, parts, 1)
    part = tl.where(is_part, item % parts, 0)
    row = tl.where(is_part, item // parts, item - items)  # among those of all heads and sequences
    rows = tl.where(is_part, long_rows, other_rows)
    g = row // rows % 2  # key head
    b = row // rows // 2  # sequence
    row = row % rows
    other = row
    order_at = b * order_stride_b + g * order_stride_h + tl.where(is_part, row, long_rows + other)
    j = tl.load(row_order + order_at)  # tile of keys
    k_rows = j * BLOCK_K + tl.arange(0, BLOCK_K)
    k = k_rows[:, None]  # positions, [BLOCK_K, 1]
    doc_at_k = tl.load(t_doc + b.to(tl.int64) * stride_doc_b + k * stride_doc_0, mask=(k >= 0) & (k < size_doc_0), other=0).to(tl.int32)
    k_tile = K.load([b, g, j * BLOCK_K, 0]).reshape([BLOCK_K, HEAD_DIM])
    v_tile = V.load([b, g, j * BLOCK_K, 0]).reshape([BLOCK_K, VALUE_DIM])
    dk = tl.zeros([BLOCK_K, HEAD_DIM], tl.float32)
    dv = tl.zeros([BLOCK_K, VALUE_DIM], tl.float32)
    # heads of the group
    for r in tl.range(0, 2):
        h = g * 2 + r  # query head
        row_base = (b * HEADS + h).to(tl.int64) * nq
        list_at = b * list_stride_b + h * list_stride_h + j
        begin = tl.load(list_begin + list_at)
        middle = tl.load(list_middle + list_at)
        end = tl.load(list_end + list_at)
        turns = (tl.maximum(end - begin, 0) + shares - 1) // shares  # of this part
        first = begin + part * turns
        last = tl.minimum(first + turns, end)
        cut_0 = tl.minimum(tl.maximum(middle, first), last)
        # listed tiles that are full
        for t in tl.range(first, cut_0):
            i = tl.load(list_tiles + t)
            q_rows = i * BLOCK_Q + tl.arange(0, BLOCK_Q)
            q = q_rows[None, :]  # positions, [1, BLOCK_Q]
            q_tile = Q.load([b, h, i * BLOCK_Q, 0]).reshape([BLOCK_Q, HEAD_DIM])
            do_tile = dO.load([b, h, i * BLOCK_Q, 0]).reshape([BLOCK_Q, VALUE_DIM])
            lse = tl.load(LSE2 + row_base + q_rows, mask=q_rows < nq, other=float("inf"))[None, :]
            delta = tl.load(Delta + row_base + q_rows, mask=q_rows < nq, other=0.0)[None, :]
            scores = tl.dot(k_tile, tl.trans(q_tile))  # [BLOCK_K, BLOCK_Q]
            p = tl.exp2(scores * 0.18033688011112042 - lse)
            dp = tl.dot(v_tile, tl.trans(do_tile))  # [BLOCK_K, BLOCK_Q]
            dv = tl.dot(p.to(tl.bfloat16), do_tile, dv)  # [BLOCK_K, VALUE_DIM]
            ds = p * (dp - delta)  # gradient of the logits
            dk = tl.dot(ds.to(tl.bfloat16), q_tile, dk)  # [BLOCK_K, HEAD_DIM]
        # listed tiles with an edge
        for t in tl.range(cut_0, last):
            i = tl.load(list_tiles + t)
            q_rows = i * BLOCK_Q + tl.arange(0, BLOCK_Q)
            q = q_rows[None, :]  # positions, [1, BLOCK_Q]
            q_tile = Q.load([b, h, i * BLOCK_Q, 0]).reshape([BLOCK_Q, HEAD_DIM])
            do_tile = dO.load([b, h, i * BLOCK_Q, 0]).reshape([BLOCK_Q, VALUE_DIM])
            lse = tl.load(LSE2 + row_base + q_rows, mask=q_rows < nq, other=float("inf"))[None, :]
            delta = tl.load(Delta + row_base + q_rows, mask=q_rows < nq, other=0.0)[None, :]
            scores = tl.dot(k_tile, tl.trans(q_tile))  # [BLOCK_K, BLOCK_Q]
            p = tl.exp2(scores * 0.18033688011112042 - lse)
            doc_at_q = tl.load(t_doc + b.to(tl.int64) * stride_doc_b + q * stride_doc_0, mask=(q >= 0) & (q < size_doc_0), other=0).to(tl.int32)
            p = tl.where((k <= q) & (doc_at_q == doc_at_k), p, 0.0)  # documents.spat:4
            dp = tl.dot(v_tile, tl.trans(do_tile))  # [BLOCK_K, BLOCK_Q]
            dv = tl.dot(p.to(tl.bfloat16), do_tile, dv)  # [BLOCK_K, VALUE_DIM]
            ds = p * (dp - delta)  # gradient of the logits
            dk = tl.dot(ds.to(tl.bfloat16), q_tile, dk)  # [BLOCK_K, HEAD_DIM]
    if shares > 1:
        tl.store(Part_dk + item.to(tl.int64) * (BLOCK_K * HEAD_DIM) + tl.arange(0, BLOCK_K)[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :], dk)
        tl.store(Part_dv + item.to(tl.int64) * (BLOCK_K * VALUE_DIM) + tl.arange(0, BLOCK_K)[:, None] * VALUE_DIM + tl.arange(0, VALUE_DIM)[None, :], dv)
    else:
        dk_base = dK + b.to(tl.int64) * dk_stride_b + g.to(tl.int64) * dk_stride_h
        dk_offsets = tl.arange(0, BLOCK_K)[:, None] * dk_stride_n + tl.arange(0, HEAD_DIM)[None, :]
        dk_step = tl.full([], BLOCK_K, tl.int64) * dk_stride_n  # from tile to tile
        dk = dk * 0.125
        tl.store(dk_base + j * dk_step + dk_offsets, dk.to(tl.bfloat16), mask=(k_rows < n)[:, None])
        dv_base = dV + b.to(tl.int64) * dv_stride_b + g.to(tl.int64) * dv_stride_h
        dv_offsets = tl.arange(0, BLOCK_K)[:, None] * dv_stride_n + tl.arange(0, VALUE_DIM)[None, :]
        dv_step = tl.full([], BLOCK_K, tl.int64) * dv_stride_n  # from tile to tile
        tl.store(dv_base + j * dv_step + dv_offsets, dv.to(tl.bfloat16), mask=(k_rows < n)[:, None])


@triton.jit(do_not_specialize=["nq", "n", "parts", "long_rows", "order_stride_b", "order_stride_h"])
def forward_combine(
    O,  # [batch, heads, nq, 64]
    o_stride_b, o_stride_h, o_stride_n,
    LSE,  # [batch, heads, nq], natural logarithm
    nq,  # query rows
    n,  # keys
    parts,  # of each long row
    long_rows,  # long rows of a head
    row_order,  # [batch or 1, h or 1, rows], the long rows first
    order_stride_b, order_stride_h,
    Part_acc,  # [items, BLOCK_Q, VALUE_DIM]
    Part_m,  # [items, BLOCK_Q]
    Part_l,  # [items, BLOCK_Q]
):
    """The parts of long rows added up: each program owns some rows of a tile."""
    BLOCK_Q: tl.constexpr = 16
    BLOCK_K: tl.constexpr = 64
    HEAD_DIM: tl.constexpr = 64
    VALUE_DIM: tl.constexpr = 64
    HEADS: tl.constexpr = 4
    row = tl.program_id(0) // 4  # long row, among those of all heads and sequences
    piece = tl.program_id(0) % 4  # of its tile
    first_item = row * parts
    rows = long_rows
    h = row // rows % 4  # query head
    b = row // rows // 4  # sequence
    row = row % rows
    g = h // 2  # key head
    i = tl.load(row_order + b * order_stride_b + h * order_stride_h + row)
    i = i * 4 + piece
    q_rows = i * BLOCK_Q + tl.arange(0, BLOCK_Q)
    q = q_rows[:, None]  # positions, [BLOCK_Q, 1]
    m = tl.full([BLOCK_Q], float("-inf"), tl.float32)  # running maximum of the logits
    l = tl.zeros([BLOCK_Q], tl.float32)  # running sum of the weights
    acc = tl.zeros([BLOCK_Q, VALUE_DIM], tl.float32)
    # parts of the row, in order
    for p in tl.range(0, parts):
        item = (first_item + p) * 4 + piece
        acc_part = tl.load(Part_acc + item.to(tl.int64) * (BLOCK_Q * VALUE_DIM) + tl.arange(0, BLOCK_Q)[:, None] * VALUE_DIM + tl.arange(0, VALUE_DIM)[None, :])  # [BLOCK_Q, VALUE_DIM]
        m_part = tl.load(Part_m + item.to(tl.int64) * BLOCK_Q + tl.arange(0, BLOCK_Q))  # [BLOCK_Q]
        l_part = tl.load(Part_l + item.to(tl.int64) * BLOCK_Q + tl.arange(0, BLOCK_Q))  # [BLOCK_Q]
        m_new = tl.maximum(m, m_part)
        shift = tl.where(m_new == float("-inf"), 0.0, m_new)  # a part may have nothing
        alpha = tl.exp2(m - shift)
        beta = tl.exp2(m_part - shift)
        l = l * alpha + l_part * beta
        acc = acc * alpha[:, None] + acc_part * beta[:, None]
        m = m_new
    norm = tl.where(l == 0.0, 1.0, l)  # rows that keep nothing give zeros
    acc = acc / norm[:, None]
    lse = (m + tl.log2(norm)) * 0.6931471805599453
    o_base = O + b.to(tl.int64) * o_stride_b + h.to(tl.int64) * o_stride_h
    o_offsets = tl.arange(0, BLOCK_Q)[:, None] * o_stride_n + tl.arange(0, VALUE_DIM)[None, :]
    o_step = tl.full([], BLOCK_Q, tl.int64) * o_stride_n  # from tile to tile
    tl.store(o_base + i * o_step + o_offsets, acc.to(tl.bfloat16), mask=(q_rows < nq)[:, None])
    row_base = (b * HEADS + h).to(tl.int64) * nq
    tl.store(LSE + row_base + q_rows, lse, mask=q_rows < nq)


@triton.jit(do_not_specialize=["nq", "n", "parts", "long_rows", "order_stride_b", "order_stride_h"])
def dq_combine(
    dQ,  # [batch, heads, nq, 64]
    dq_stride_b, dq_stride_h, dq_stride_n,
    nq,  # query rows
    n,  # keys
    parts,  # of each long row
    long_rows,  # long rows of a head
    row_order,  # [batch or 1, h or 1, rows], the long rows first
    order_stride_b, order_stride_h,
    Part_dq,  # [items, BLOCK_Q, HEAD_DIM]
):
    """The parts of long rows added up: each program owns some rows of a tile."""
    BLOCK_Q: tl.constexpr = 16
    BLOCK_K: tl.constexpr = 64
    HEAD_DIM: tl.constexpr = 64
    VALUE_DIM: tl.constexpr = 64
    HEADS: tl.constexpr = 4
    row = tl.program_id(0) // 4  # long row, among those of all heads and sequences
    piece = tl.program_id(0) % 4  # of its tile
    first_item = row * parts
    rows = long_rows
    h = row // rows % 4  # query head
    b = row // rows // 4  # sequence
    row = row % rows
    g = h // 2  # key head
    i = tl.load(row_order + b * order_stride_b + h * order_stride_h + row)
    i = i * 4 + piece
    q_rows = i * BLOCK_Q + tl.arange(0, BLOCK_Q)
    q = q_rows[:, None]  # positions, [BLOCK_Q, 1]
    dq = tl.zeros([BLOCK_Q, HEAD_DIM], tl.float32)
    # parts of the row, in order
    for p in tl.range(0, parts):
        item = (first_item + p) * 4 + piece
        dq_part = tl.load(Part_dq + item.to(tl.int64) * (BLOCK_Q * HEAD_DIM) + tl.arange(0, BLOCK_Q)[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :])  # [BLOCK_Q, HEAD_DIM]
        dq += dq_part
    dq_base = dQ + b.to(tl.int64) * dq_stride_b + h.to(tl.int64) * dq_stride_h
    dq_offsets = tl.arange(0, BLOCK_Q)[:, None] * dq_stride_n + tl.arange(0, HEAD_DIM)[None, :]
    dq_step = tl.full([], BLOCK_Q, tl.int64) * dq_stride_n  # from tile to tile
    dq = dq * 0.125
    tl.store(dq_base + i * dq_step + dq_offsets, dq.to(tl.bfloat16), mask=(q_rows < nq)[:, None])


@triton.jit(do_not_specialize=["nq", "n", "parts", "long_rows", "order_stride_b", "order_stride_h"])
def dkdv_combine(
    dK,  # [batch, groups, n, 64]
    dk_stride_b, dk_stride_h, dk_stride_n,
    dV,  # [batch, groups, n, 64]
    dv_stride_b, dv_stride_h, dv_stride_n,
    nq,  # query rows
    n,  # keys
    parts,  # of each long row
    long_rows,  # long rows of a head
    row_order,  # [batch or 1, g or 1, rows], the long rows first
    order_stride_b, order_stride_h,
    Part_dk,  # [items, BLOCK_K, HEAD_DIM]
    Part_dv,  # [items, BLOCK_K, VALUE_DIM]
):
    """The parts of long rows added up: each program owns some rows of a tile."""
    BLOCK_Q: tl.constexpr = 64
    BLOCK_K: tl.constexpr = 16
    HEAD_DIM: tl.constexpr = 64
    VALUE_DIM: tl.constexpr = 64
    HEADS: tl.constexpr = 4
    row = tl.program_id(0) // 8  # long row, among those of all heads and sequences
    piece = tl.program_id(0) % 8  # of its tile
    first_item = row * parts
    rows = long_rows
    g = row // rows % 2  # key head
    b = row // rows // 2  # sequence
    row = row % rows
    j = tl.load(row_order + b * order_stride_b + g * order_stride_h + row)
    j = j * 8 + piece
    k_rows = j * BLOCK_K + tl.arange(0, BLOCK_K)
    k = k_rows[:, None]  # positions, [BLOCK_K, 1]
    dk = tl.zeros([BLOCK_K, HEAD_DIM], tl.float32)
    dv = tl.zeros([BLOCK_K, VALUE_DIM], tl.float32)
    # parts of the row, in order
    for p in tl.range(0, parts):
        item = (first_item + p) * 8 + piece
        dk_part = tl.load(Part_dk + item.to(tl.int64) * (BLOCK_K * HEAD_DIM) + tl.arange(0, BLOCK_K)[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :])  # [BLOCK_K, HEAD_DIM]
        dv_part = tl.load(Part_dv + item.to(tl.int64) * (BLOCK_K * VALUE_DIM) + tl.arange(0, BLOCK_K)[:, None] * VALUE_DIM + tl.arange(0, VALUE_DIM)[None, :])  # [BLOCK_K, VALUE_DIM]
        dk += dk_part
        dv += dv_part
    dk_base = dK + b.to(tl.int64) * dk_stride_b + g.to(tl.int64) * dk_stride_h
    dk_offsets = tl.arange(0, BLOCK_K)[:, None] * dk_stride_n + tl.arange(0, HEAD_DIM)[None, :]
    dk_step = tl.full([], BLOCK_K, tl.int64) * dk_stride_n  # from tile to tile
    dk = dk * 0.125
    tl.store(dk_base + j * dk_step + dk_offsets, dk.to(tl.bfloat16), mask=(k_rows < n)[:, None])
    dv_base = dV + b.to(tl.int64) * dv_stride_b + g.to(tl.int64) * dv_stride_h
    dv_offsets = tl.arange(0, BLOCK_K)[:, None] * dv_stride_n + tl.arange(0, VALUE_DIM)[None, :]
    dv_step = tl.full([], BLOCK_K, tl.int64) * dv_stride_n  # from tile to tile
    tl.store(dv_base + j * dv_step + dv_offsets, dv.to(tl.bfloat16), mask=(k_rows < n)[:, None])
