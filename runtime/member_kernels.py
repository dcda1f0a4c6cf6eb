"""What members of an axis have in common is differentiated once, for all of them: small kernels beside those of items.

A softmax over own keys and common ones is a mean of two, of which the common one has the share exp(its LSE − that of
both).  So the gradient of the common softmax is the sum of those of the members by these shares.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["nq"])  # type: ignore[untyped-decorator]
def from_members(  # type: ignore[no-untyped-def]
    d_out,  # [owners, members, nq, DV]
    delta,  # [owners, members, nq]
    lse,  # [owners, members, nq]
    common,  # [owners, nq]: the LSE of what they have in common
    d_common,  # [owners, nq, DV]
    delta_common,  # [owners, nq]
    members,
    nq,
    DV: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The gradient of the common softmax, and what weights are compared with."""
    owner = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    feature = tl.arange(0, BLOCK_DV)
    inside = (row < nq)[:, None] & (feature < DV)[None, :]
    log = tl.load(common + owner * nq + row, mask=row < nq, other=float("-inf"))
    total = tl.zeros([ROWS, BLOCK_DV], tl.float32)
    less = tl.zeros([ROWS], tl.float32)
    for member in range(members):
        at = (owner * members + member) * nq + row
        whole = tl.load(lse + at, mask=row < nq, other=0.0)
        some = (log > float("-inf")) & (whole > float("-inf"))
        share = tl.where(some, tl.exp(tl.where(some, log - whole, 0.0)), 0.0)
        total += share[:, None] * tl.load(d_out + at[:, None] * DV + feature[None, :], mask=inside, other=0.0).to(
            tl.float32
        )
        less += share * tl.load(delta + at, mask=some, other=0.0)
    to = owner * nq + row
    tl.store(d_common + to[:, None] * DV + feature[None, :], total.to(d_common.dtype.element_ty), mask=inside)
    tl.store(delta_common + to, less, mask=row < nq)


@triton.jit(do_not_specialize=["size"])  # type: ignore[untyped-decorator]
def add_members(items, common, found, members, size, COMMON: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sum of numbers ``[owners, members, size]``, and of common ones ``[owners, size]``, in the type of the
    result."""
    owner = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for member in range(members):
        total += tl.load(items + (owner * members + member) * size + at, mask=at < size, other=0.0)
    if COMMON:
        total += tl.load(common + owner * size + at, mask=at < size, other=0.0)
    tl.store(found + owner * size + at, total.to(found.dtype.element_ty), mask=at < size)


@triton.jit(do_not_specialize=["items", "tiles", "width"])  # type: ignore[untyped-decorator]
def meet(begins, longest, found, items, tiles, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """From which item on, and up to which, some may meet each of ``tiles`` of ``width`` keys: ``[owners, tiles, 2]``.

    ``begins`` are those of items, ascending, ``[owners, items]``; the ``longest`` of each owner has so many keys
    behind the first.
    """
    owner = tl.program_id(1).to(tl.int64)
    tile = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    end = tl.load(longest + owner)
    from_key = tile * width - tl.maximum(end, -1)
    to_key = (tile + 1) * width
    first = tl.zeros([BLOCK], tl.int32)
    last = tl.zeros([BLOCK], tl.int32)
    step = 1
    while step <= items // 2:
        step = step * 2
    while step > 0:
        for_first = first + step <= items
        here = tl.load(begins + owner * items + first + step - 1, mask=for_first, other=0)
        first = tl.where(for_first & (here < from_key), first + step, first)
        for_last = last + step <= items
        here = tl.load(begins + owner * items + last + step - 1, mask=for_last, other=0)
        last = tl.where(for_last & (here < to_key), last + step, last)
        step = step // 2
    to = found + (owner * tiles + tile) * 2
    tl.store(to, first, mask=tile < tiles)
    tl.store(to + 1, last, mask=tile < tiles)


@triton.jit(do_not_specialize=["items", "width"])  # type: ignore[untyped-decorator]
def by_owner(begins, order, first, place, items, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Beginnings, and numbers of items, as each owner counts them: of all, sorted, the keys and the items of each owner
    follow those of the one before."""
    owner = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    to = owner * items + at
    begin = tl.load(begins + to, mask=at < items, other=0).to(tl.int64) - owner * width
    item = tl.load(order + to, mask=at < items, other=0) - owner * items
    tl.store(first + to, begin.to(tl.int32), mask=at < items)
    tl.store(place + to, item.to(tl.int32), mask=at < items)
