"""Softmaxes of *items*: queries one by one, in an order in which neighbours meet the same keys.

An item is a query of one member of a free axis, and has an interval of keys.  Tiles of neighbouring items go through
the keys that any of them meets: where items are *listed*, those that their member lists; elsewhere the positions
from the first to the last of their intervals.  Rows of queries are gathered, and every item has a row of its own in
the output and in the gradient of the queries, so that all sums have one order.  Memory is that of the items.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def items_of(  # type: ignore[no-untyped-def]
    rows, low, high, tile, owner, items, width, nq, n, q_start, LISTED: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Of a tile of items: which exist, their rows, their queries, and the first and the last key of each."""
    if LISTED:
        tiles = tl.cdiv(width, BLOCK_M)
        place = tile % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
        row = tile // tiles * width + place
        query = tl.load(rows + owner * items + row, mask=place < width, other=nq)
        exist = query < nq
        query = tl.where(exist, query, 0)
        first = tl.zeros([BLOCK_M], tl.int32)
        last = query + q_start if CAUSAL else first + n - 1
    else:
        at = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        row = tl.load(rows + owner * items + at, mask=at < items, other=0)
        query = row % nq
        first = tl.load(low + owner * items + row, mask=at < items, other=0)
        last = tl.load(high + owner * items + row, mask=at < items, other=-1)
        exist = (at < items) & (first <= last)
    return exist, row, query, first, last


@triton.jit  # type: ignore[untyped-decorator]
def written(row, tile, items, width, LISTED: tl.constexpr, BLOCK_M: tl.constexpr):  # type: ignore[no-untyped-def]
    """Which rows of the results are those of a tile of items, also of items that do not exist or meet no key."""
    if LISTED:
        return row < (tile // tl.cdiv(width, BLOCK_M) + 1) * width
    else:  # noqa: RET505
        return tile * BLOCK_M + tl.arange(0, BLOCK_M) < items


@triton.jit  # type: ignore[untyped-decorator]
def stretch(exist, first, last, tile, width, key_width, n, LISTED: tl.constexpr, BLOCK_M: tl.constexpr):  # type: ignore[no-untyped-def]
    """Which keys a tile of items goes through: places in the list of its member, or positions."""
    if LISTED:
        begin = tile // tl.cdiv(width, BLOCK_M) * key_width
        end = begin + key_width
    else:
        begin = tl.maximum(tl.min(tl.where(exist, first, n)), 0)
        end = tl.minimum(tl.max(tl.where(exist, last, -1)) + 1, n)
    return begin, end


@triton.jit  # type: ignore[untyped-decorator]
def key_at(columns, owner, keys, at, end, n, LISTED: tl.constexpr):  # type: ignore[no-untyped-def]
    """The positions of keys; past the last one, ``n``."""
    if LISTED:
        return tl.load(columns + owner * keys + at, mask=at < end, other=n)
    else:  # noqa: RET505  # Triton has no value after a return inside of a branch
        return tl.where(at < end, at, n)


@triton.jit  # type: ignore[untyped-decorator]
def gathered(x, row, exist, stride, SIZE: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows of a tensor as a tile; zeros where none exists."""
    feature = tl.arange(0, BLOCK)
    at = x + row.to(tl.int64)[:, None] * stride + feature[None, :]
    return tl.load(at, mask=exist[:, None] & (feature < SIZE)[None, :], other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def product(x, y, EXACT: tl.constexpr):  # type: ignore[no-untyped-def]
    """A product of tiles in fp32; of numbers of 32 bits an exact one."""
    if EXACT:
        return tl.dot(x, y, input_precision="ieee")
    else:  # noqa: RET505
        return tl.dot(x, y)


@triton.jit(do_not_specialize=["items", "width", "keys", "key_width", "nq", "n", "q_start"])  # type: ignore[untyped-decorator]
def attend(  # type: ignore[no-untyped-def]
    q, k, v, out, lse, out_before, lse_before, rows, low, high, columns, scale,
    items, width, keys, key_width, nq, n, q_start, heads, ratio,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n,
    LATER: tl.constexpr,
    LISTED: tl.constexpr, CAUSAL: tl.constexpr, EXACT: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Output ``[owners, items, dv]``, and LSE ``[owners, items]``: zeros and −inf where nothing is kept.

    What is ``LATER`` goes on from the output and LSE of another softmax of its queries, ``[owners, nq, …]``.
    """
    tile = tl.program_id(0)
    owner = tl.program_id(1).to(tl.int64)
    batch, head = owner // heads, owner % heads
    exist, row, query, first, last = items_of(
        rows, low, high, tile, owner, items, width, nq, n, q_start, LISTED, CAUSAL, BLOCK_M
    )
    begin, end = stretch(exist, first, last, tile, width, key_width, n, LISTED, BLOCK_M)
    own = gathered(q + batch * q_b + head * q_h, query, exist, q_n, D, BLOCK_D)
    k += batch * k_b + head // ratio * k_h
    v += batch * v_b + head // ratio * v_h
    total = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    divisor = tl.zeros([BLOCK_M], tl.float32)
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    if LATER:
        found = tile * BLOCK_M + tl.arange(0, BLOCK_M) < items
        total += gathered(out_before + owner * nq * DV, query, found, DV, DV, BLOCK_DV).to(tl.float32)
        largest = tl.load(lse_before + owner * nq + query, mask=found, other=float("-inf")) * 1.4426950408889634
        divisor = tl.where(largest > float("-inf"), 1.0, 0.0)
    for base in tl.range(begin, end, BLOCK_N):
        key = key_at(columns, owner, keys, base + tl.arange(0, BLOCK_N), end, n, LISTED)
        there = gathered(k, key, key < n, k_n, D, BLOCK_D)
        logit = product(own, tl.trans(there), EXACT) * (scale * 1.4426950408889634)
        kept = (key[None, :] >= first[:, None]) & (key[None, :] <= last[:, None]) & (key < n)[None, :]
        logit = tl.where(kept & exist[:, None], logit, float("-inf"))
        more = tl.maximum(largest, tl.max(logit, 1))
        beside = tl.where(more == float("-inf"), 0.0, more)
        weight = tl.exp2(logit - beside[:, None])
        factor = tl.exp2(largest - beside)
        divisor = divisor * factor + tl.sum(weight, 1)
        values = gathered(v, key, key < n, v_n, DV, BLOCK_DV)
        total = total * factor[:, None] + product(weight.to(values.dtype), values, EXACT)
        largest = more
    kept = divisor > 0
    total = total / tl.where(kept, divisor, 1.0)[:, None]
    feature = tl.arange(0, BLOCK_DV)
    exist = written(row, tile, items, width, LISTED, BLOCK_M)
    to = owner * items + row
    mask = exist[:, None] & (feature < DV)[None, :]
    tl.store(out + to[:, None] * DV + feature[None, :], total.to(out.dtype.element_ty), mask=mask)
    log = (largest + tl.log2(tl.where(kept, divisor, 1.0))) * 0.6931471805599453
    tl.store(lse + to, tl.where(kept, log, float("-inf")), mask=exist)


@triton.jit  # type: ignore[untyped-decorator]
def given_to(  # type: ignore[no-untyped-def]
    d_out, shares, owner, row, query, exist, items, nq, LISTED: tl.constexpr, DV: tl.constexpr, BLOCK: tl.constexpr
):
    """The gradients of the outputs of items: each its own, or its share of that of its query."""
    if LISTED:
        share = tl.load(shares + owner * nq + query, mask=exist, other=0.0)
        return gathered(d_out + owner * nq * DV, query, exist, DV, DV, BLOCK).to(tl.float32) * share[:, None]
    else:  # noqa: RET505
        return gathered(d_out + owner * items * DV, row, exist, DV, DV, BLOCK).to(tl.float32)


@triton.jit(do_not_specialize=["items", "width", "keys", "key_width", "nq", "n", "q_start"])  # type: ignore[untyped-decorator]
def of_queries(  # type: ignore[no-untyped-def]
    q, k, v, out, lse, d_out, d_lse, shares, delta, d_q, rows, low, high, columns, scale,
    items, width, keys, key_width, nq, n, q_start, heads, ratio,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n,
    KNOWN: tl.constexpr,
    LISTED: tl.constexpr, CAUSAL: tl.constexpr, EXACT: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The gradient of the query of each item, fp32 ``[owners, items, d]``, and what weights are compared with, unless
    it is ``KNOWN``."""
    tile = tl.program_id(0)
    owner = tl.program_id(1).to(tl.int64)
    batch, head = owner // heads, owner % heads
    exist, row, query, first, last = items_of(
        rows, low, high, tile, owner, items, width, nq, n, q_start, LISTED, CAUSAL, BLOCK_M
    )
    begin, end = stretch(exist, first, last, tile, width, key_width, n, LISTED, BLOCK_M)
    own = gathered(q + batch * q_b + head * q_h, query, exist, q_n, D, BLOCK_D)
    k += batch * k_b + head // ratio * k_h
    v += batch * v_b + head // ratio * v_h
    to = owner * items + row
    # An item without keys of its own may have some in common with others.
    found = exist if LISTED else written(row, tile, items, width, LISTED, BLOCK_M)
    given = given_to(d_out, shares, owner, row, query, found, items, nq, LISTED, DV, BLOCK_DV)
    if KNOWN:
        less = tl.load(delta + to, mask=found, other=0.0)
    else:
        made = gathered(out + owner * items * DV, row, found, DV, DV, BLOCK_DV).to(tl.float32)
        less = tl.sum(given * made, 1)
        if not LISTED:
            less -= tl.load(d_lse + to, mask=found, other=0.0)
        tl.store(delta + to, less, mask=found)
    log = tl.load(lse + to, mask=exist, other=float("-inf")) * 1.4426950408889634
    some = log > float("-inf")
    log = tl.where(some, log, 0.0)
    given = given.to(v.dtype.element_ty)
    total = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for base in tl.range(begin, end, BLOCK_N):
        key = key_at(columns, owner, keys, base + tl.arange(0, BLOCK_N), end, n, LISTED)
        there = gathered(k, key, key < n, k_n, D, BLOCK_D)
        logit = product(own, tl.trans(there), EXACT) * (scale * 1.4426950408889634)
        kept = (key[None, :] >= first[:, None]) & (key[None, :] <= last[:, None]) & (key < n)[None, :]
        weight = tl.where(kept & some[:, None], tl.exp2(logit - log[:, None]), 0.0)
        values = gathered(v, key, key < n, v_n, DV, BLOCK_DV)
        change = weight * (product(given, tl.trans(values), EXACT) - less[:, None])
        total += product(change.to(there.dtype), there, EXACT)
    feature = tl.arange(0, BLOCK_D)
    exist = written(row, tile, items, width, LISTED, BLOCK_M)
    tl.store(d_q + to[:, None] * D + feature[None, :], total * scale, mask=exist[:, None] & (feature < D)[None, :])


@triton.jit(do_not_specialize=["items", "width", "keys", "key_width", "nq", "n", "q_start", "starts_tiles"])  # type: ignore[untyped-decorator]
def of_keys(  # type: ignore[no-untyped-def]
    q, k, v, lse, d_out, shares, delta, d_k, d_v, rows, low, high, columns, starts, scale,
    items, width, keys, key_width, nq, n, q_start, starts_tiles, heads, ratio,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n,
    ADDED: tl.constexpr,
    LISTED: tl.constexpr, CAUSAL: tl.constexpr, EXACT: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The gradients of keys and values: of each listed one a row in fp32, else of all that heads share, as they are,
    ``ADDED`` to what stands there."""
    tile = tl.program_id(0)
    which = tl.program_id(1).to(tl.int64)
    if LISTED:
        batch, group, first_head = which // heads, which % heads // ratio, which % heads
        tiles = tl.cdiv(key_width, BLOCK_N)
        place = tile % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
        to = tile // tiles * key_width + place
        inside = place < key_width
        key = tl.load(columns + which * keys + to, mask=inside, other=n)
    else:
        groups = heads // ratio
        batch, group, first_head = which // groups, which % groups, which % groups * ratio
        to = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = to < n
        key = to
    there = gathered(k + batch * k_b + group * k_h, key, inside & (key < n), k_n, D, BLOCK_D)
    values = gathered(v + batch * v_b + group * v_h, key, inside & (key < n), v_n, DV, BLOCK_DV)
    of_key = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    of_value = tl.zeros([BLOCK_N, BLOCK_DV], tl.float32)
    for other in tl.range(0, 1 if LISTED else ratio):
        head = first_head + other
        owner = batch * heads + head
        if LISTED:
            begin = tile // tl.cdiv(key_width, BLOCK_N) * tl.cdiv(width, BLOCK_M)
            end = begin + tl.cdiv(width, BLOCK_M)
        else:
            at = starts + (owner * starts_tiles + tile) * 2
            begin = tl.load(at).to(tl.int32) // BLOCK_M
            end = tl.cdiv(tl.load(at + 1).to(tl.int32), BLOCK_M)
        for step in tl.range(begin, end):
            exist, row, query, first, last = items_of(
                rows, low, high, step, owner, items, width, nq, n, q_start, LISTED, CAUSAL, BLOCK_M
            )
            own = gathered(q + batch * q_b + head * q_h, query, exist, q_n, D, BLOCK_D)
            given = given_to(d_out, shares, owner, row, query, exist, items, nq, LISTED, DV, BLOCK_DV)
            given = given.to(values.dtype)
            less = tl.load(delta + owner * items + row, mask=exist, other=0.0)
            log = tl.load(lse + owner * items + row, mask=exist, other=float("-inf")) * 1.4426950408889634
            some = log > float("-inf")
            log = tl.where(some, log, 0.0)
            logit = product(there, tl.trans(own), EXACT) * (scale * 1.4426950408889634)
            kept = (key[:, None] >= first[None, :]) & (key[:, None] <= last[None, :]) & (key < n)[:, None]
            weight = tl.where(kept & some[None, :], tl.exp2(logit - log[None, :]), 0.0)
            of_value += product(weight.to(given.dtype), given, EXACT)
            change = weight * (product(values, tl.trans(given), EXACT) - less[None, :])
            of_key += product(change.to(own.dtype), own, EXACT)
    feature, feature_v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    at = which * (keys if LISTED else n) + to
    mask = inside[:, None] & (feature < D)[None, :]
    to_key = d_k + at[:, None] * D + feature[None, :]
    of_key = of_key * scale
    if ADDED:
        of_key += tl.load(to_key, mask=mask, other=0.0).to(tl.float32)
    tl.store(to_key, of_key.to(d_k.dtype.element_ty), mask=mask)
    mask = inside[:, None] & (feature_v < DV)[None, :]
    to_value = d_v + at[:, None] * DV + feature_v[None, :]
    if ADDED:
        of_value += tl.load(to_value, mask=mask, other=0.0).to(tl.float32)
    tl.store(to_value, of_value.to(d_v.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["count"])  # type: ignore[untyped-decorator]
def add_up(  # type: ignore[no-untyped-def]
    given, lse, order, starts, found, shares, count,
    MEAN: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Of each of ``count`` rows the sum of its items, in their order; the mean of those that keep something."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    begin = tl.load(starts + row, mask=row < count, other=0)
    end = tl.load(starts + row + 1, mask=row < count, other=0)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    some = tl.zeros([ROWS], tl.float32)
    for step in tl.range(0, tl.max(end - begin)):
        exist = begin + step < end
        item = tl.load(order + begin + step, mask=exist, other=0)
        total += gathered(given, item, exist, SIZE, SIZE, BLOCK)
        if MEAN:
            some += (tl.load(lse + item, mask=exist, other=float("-inf")) > float("-inf")).to(tl.float32)
    if MEAN:
        share = 1.0 / tl.maximum(some, 1.0)
        total = total * share[:, None]
        tl.store(shares + row, share, mask=row < count)
    feature = tl.arange(0, BLOCK)
    to = row.to(tl.int64)[:, None] * SIZE + feature[None, :]
    tl.store(found + to, total.to(found.dtype.element_ty), mask=(row < count)[:, None] & (feature < SIZE)[None, :])
