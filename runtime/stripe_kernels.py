"""The best keys at set distances from each query, in their order, by one kernel, and the gradients of their scores.

A tile of neighbouring queries meets, at one distance, as many neighbouring keys: their products are those of rows in
pairs.  What is best so far stays in registers, so that nothing is held but the results.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def pushed(order, key, order_a, key_a, order_b, key_b):  # type: ignore[no-untyped-def]
    """What stands at place ``b``, behind ``a``, after an entry has come: of equal ones the earlier stay in front."""
    further, here = order > order_a, order > order_b
    return (
        tl.where(further, order_a, tl.where(here, order, order_b)),
        tl.where(further, key_a, tl.where(here, key, key_b)),
    )


@triton.jit(do_not_specialize=["count", "nq", "n", "q_start", "heads"])  # type: ignore[untyped-decorator]
def best_at(  # type: ignore[no-untyped-def]
    left, right, distances, places, values, scale, count, nq, n, q_start, heads,
    left_b, left_h, left_n, left_each, right_b, right_h, right_n, right_each,
    PICKS: tl.constexpr, POWER: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr,
    UNROLL: tl.constexpr,
):  # fmt: skip
    """``PICKS`` places and values of each query, ``[owners, picks, nq]``: keys, and −1 where there are fewer.

    Distances descend, so that of equal values the first key is met first.
    """
    FAR: tl.constexpr = -2147483648
    FEW: tl.constexpr = 4
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    owner = tl.program_id(1).to(tl.int64)
    batch, head = owner // heads, owner % heads
    row = tile * BLOCK + tl.arange(0, BLOCK)
    feature = tl.arange(0, BLOCK_D)
    at = left + batch * left_b + head // left_each * left_h + row.to(tl.int64)[:, None] * left_n + feature[None, :]
    query = tl.load(at, mask=(row < nq)[:, None] & (feature < D)[None, :], other=0.0).to(tl.float32)
    right += batch * right_b + head // right_each * right_h
    slot = tl.arange(0, POWER)
    # Few stand in registers of their own, in their order.
    order_0 = tl.full([BLOCK], FAR, tl.int32)
    order_1, order_2, order_3 = order_0, order_0, order_0
    key_0 = tl.full([BLOCK], -1, tl.int32)
    key_1, key_2, key_3 = key_0, key_0, key_0
    # A value and, below it, the place among the distances, the first the largest: no two are alike.
    best = (tl.full([BLOCK, POWER], FAR, tl.int64) << 32) + slot[None, :]
    # What is further away than the last query of the tile is no candidate of any.
    begin = 0
    last = tl.minimum(tile * BLOCK + BLOCK, nq) - 1 + q_start
    for base in tl.range(0, count, BLOCK):
        place = base + tl.arange(0, BLOCK)
        begin += tl.sum((tl.load(distances + place, mask=place < count, other=-2147483648) > last).to(tl.int32))
    for step in tl.range(begin, count, loop_unroll_factor=UNROLL):
        key = row + q_start - tl.load(distances + step)
        exist = (row < nq) & (row + q_start >= 0) & (key >= 0) & (key < n)
        there = right + key.to(tl.int64)[:, None] * right_n + feature[None, :]
        other = tl.load(there, mask=exist[:, None] & (feature < D)[None, :], other=0.0).to(tl.float32)
        value = tl.sum(query * other, 1) * scale + 0.0
        bits = value.to(tl.int32, bitcast=True)
        order = tl.where(exist & (value == value), bits ^ ((bits >> 31) & 0x7FFFFFFF), FAR)
        if PICKS <= FEW:
            key = tl.where(order == FAR, -1, key)
            order_3, key_3 = pushed(order, key, order_2, key_2, order_3, key_3)
            order_2, key_2 = pushed(order, key, order_1, key_1, order_2, key_2)
            order_1, key_1 = pushed(order, key, order_0, key_0, order_1, key_1)
            order_0, key_0 = tl.where(order > order_0, order, order_0), tl.where(order > order_0, key, key_0)
        else:
            new = (order.to(tl.int64) << 32) + tl.where(order == FAR, 0, count - step + POWER)
            least = tl.min(best, 1)
            best = tl.where((best == least[:, None]) & (new > least)[:, None], new[:, None], best)
    if PICKS <= FEW:
        for number in tl.static_range(PICKS):
            if number == 0:
                order, key = order_0, key_0
            elif number == 1:
                order, key = order_1, key_1
            elif number == 2:
                order, key = order_2, key_2
            else:
                order, key = order_3, key_3
            bits = order ^ ((order >> 31) & 0x7FFFFFFF)
            to = (owner * PICKS + number) * nq + row
            tl.store(places + to, key, mask=row < nq)
            tl.store(values + to, tl.where(key >= 0, bits.to(tl.float32, bitcast=True), 0.0), mask=row < nq)
    else:
        best = tl.sort(best, 1, descending=True)
        order = (best >> 32).to(tl.int32)
        exist = order != FAR
        step = count + POWER - (best & 0x7FFFFFFF).to(tl.int32)
        distance = tl.load(distances + tl.where(exist, step, 0), mask=exist, other=0)
        bits = order ^ ((order >> 31) & 0x7FFFFFFF)
        to = (owner * PICKS + slot[None, :]) * nq + row[:, None]
        mask = (row < nq)[:, None] & (slot < PICKS)[None, :]
        tl.store(places + to, tl.where(exist, row[:, None] + q_start - distance, -1), mask=mask)
        tl.store(values + to, tl.where(exist, bits.to(tl.float32, bitcast=True), 0.0), mask=mask)


@triton.jit(do_not_specialize=["nq"])  # type: ignore[untyped-decorator]
def of_left(  # type: ignore[no-untyped-def]
    right, places, grads, d_left, scale, nq, heads, own_heads, own_each, own_batches,
    right_b, right_h, right_n, right_each,
    PICKS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of queries ``[own batches, own heads, nq, D]``: of each the keys it has picked, by gradients."""
    own = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    feature = tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for other in range(own_batches * own_each):
        batch = own // own_heads * own_batches + other // own_each
        head = own % own_heads * own_each + other % own_each
        for pick in range(PICKS):
            at = ((batch * heads + head) * PICKS + pick) * nq + row
            key = tl.load(places + at, mask=row < nq, other=-1)
            grad = tl.load(grads + at, mask=key >= 0, other=0.0)
            there = right + batch * right_b + head // right_each * right_h + key.to(tl.int64) * right_n
            mask = (grad != 0.0)[:, None] & (feature < D)[None, :]
            value = tl.load(there[:, None] + feature[None, :], mask=mask, other=0.0).to(tl.float32)
            total += grad[:, None] * value
    to = d_left + (own * nq + row)[:, None] * D + feature[None, :]
    tl.store(to, (total * scale).to(d_left.dtype.element_ty), mask=(row < nq)[:, None] & (feature < D)[None, :])


@triton.jit(do_not_specialize=["total", "picked", "n"])  # type: ignore[untyped-decorator]
def by_key(  # type: ignore[no-untyped-def]
    places, keys, total, picked, n, heads, own_heads, own_each, own_batches, owners, BLOCK: tl.constexpr
):  # fmt: skip
    """Which of the keys ``[owners, n]`` each of ``total`` places names, ``picked`` of a head; behind all for none."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    place = tl.load(places + at, mask=at < total, other=-1)
    line = at // picked
    own = line // heads // own_batches * own_heads + line % heads // own_each
    key = tl.where(place >= 0, own * n + place, owners * n)
    tl.store(keys + at, key.to(keys.dtype.element_ty), mask=at < total)


@triton.jit  # type: ignore[untyped-decorator]
def below(keys, total, wanted, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """How many of ``total`` keys, which ascend, are below each that is wanted."""
    found = tl.zeros([BLOCK], tl.int32)
    step = 1
    while step <= total // 2:
        step = step * 2
    while step > 0:
        there = found + step <= total
        here = tl.load(keys + found + step - 1, mask=there, other=0)
        found = tl.where(there & (here < wanted), found + step, found)
        step = step // 2
    return found


@triton.jit(do_not_specialize=["total", "picked", "nq", "n"])  # type: ignore[untyped-decorator]
def of_right(  # type: ignore[no-untyped-def]
    left, keys, order, grads, d_right, scale, total, picked, nq, n, heads,
    left_b, left_h, left_n, left_each,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of keys ``[owners, n, D]``: of each the queries that have picked it, by gradients, in their order.

    ``keys`` are those of all places, sorted, and ``order`` says whose they are.
    """
    own = tl.program_id(1).to(tl.int64)
    key = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    feature = tl.arange(0, BLOCK_D)
    begin = below(keys, total, own * n + key, BLOCK)
    end = tl.where(key < n, below(keys, total, own * n + key + 1, BLOCK), begin)
    made = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for step in range(tl.max(end - begin)):
        exist = begin + step < end
        item = tl.load(order + begin + step, mask=exist, other=0)
        grad = tl.load(grads + item, mask=exist, other=0.0)
        line = item // picked
        there = left + line // heads * left_b + line % heads // left_each * left_h + item % nq * left_n
        mask = (grad != 0.0)[:, None] & (feature < D)[None, :]
        value = tl.load(there[:, None] + feature[None, :], mask=mask, other=0.0).to(tl.float32)
        made += grad[:, None] * value
    to = d_right + (own * n + key)[:, None] * D + feature[None, :]
    tl.store(to, (made * scale).to(d_right.dtype.element_ty), mask=(key < n)[:, None] & (feature < D)[None, :])
