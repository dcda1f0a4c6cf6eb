"""Which keys of very long rows are chosen, marked by many programs for each row.

From: rows of keys, int32 in the order in which entries are chosen, and their cuts (`spdsl.runtime.cut_kernels`).  To:
bools.  Of keys at the cut the first ones are chosen.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from spdsl.runtime.cut_kernels import start_kernel
from spdsl.runtime.row_parts import WIDTH, count_before, leave_count, own_part, parts_of


def up_to_cuts(keys: Tensor, cuts: Tensor, others: Tensor | None, by: str, columns: int) -> Tensor:
    """Which of the first ``columns`` keys of rows ``[rows, pitch]`` are chosen by ``cuts``, bools ``[rows, columns]``.

    With the ``others`` of the same order, what either of both sets has: that with the lower cut is the larger.
    """
    rows, device = keys.shape[0], keys.device
    parts = parts_of(columns)
    counts = torch.empty(rows, parts, dtype=torch.int32, device=device)
    chosen = torch.empty(rows, columns, dtype=torch.uint8, device=device)
    given: dict[str, object] = {
        "keys": keys,
        "cuts": cuts,
        "others": cuts if others is None else others,
        "counts": counts,
    }
    given |= {"pitch": keys.stride(0), "columns": columns, "BY": by, "LEAST": others is not None}
    given |= {"PARTS": parts, "WIDTH": WIDTH}
    start_kernel(count_ties, (rows * parts, 1, 1), given, ("counts",), device)
    start_kernel(mark_chosen, (rows * parts, 1, 1), {**given, "chosen": chosen}, ("chosen",), device)
    return chosen.view(torch.bool)


@triton.jit  # type: ignore[untyped-decorator]
def _cut_of(cuts, others, row, LEAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """The last key that is chosen, and how many entries with it."""
    last = tl.load(cuts + row * 2)
    ties = tl.load(cuts + row * 2 + 1)
    if LEAST:
        other = tl.load(others + row * 2)
        more = tl.load(others + row * 2 + 1)
        ties = tl.where(other == last, tl.maximum(ties, more), tl.where(other < last, more, ties))
        last = tl.minimum(last, other)
    return last, ties


@triton.jit  # type: ignore[untyped-decorator]
def _is_tied(key, last, BY: tl.constexpr):  # type: ignore[no-untyped-def]
    """Whether a key is the last that is chosen."""
    return (key == last) & ((key != -2147483648) if BY == "count" else (key > 0))


@triton.jit(do_not_specialize=["columns"])  # type: ignore[untyped-decorator]
def count_ties(  # type: ignore[no-untyped-def]
    keys,  # [rows, pitch], int32
    cuts,  # [rows, 2], int32
    others,
    counts,  # [rows, parts], int32
    pitch,
    columns,
    BY: tl.constexpr,
    LEAST: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """How many keys of a part of a row are the last that is chosen."""
    part, row, begin, end = own_part(columns, PARTS)
    last, _ties = _cut_of(cuts, others, row, LEAST)
    found = tl.zeros([WIDTH], tl.int32)
    for first in range(begin, end, WIDTH):
        at = first + tl.arange(0, WIDTH)
        key = tl.load(keys + row * pitch + at, mask=at < end, other=-2147483648)
        found += _is_tied(key, last, BY).to(tl.int32)
    leave_count(counts, row, part, found, PARTS)


@triton.jit(do_not_specialize=["columns"])  # type: ignore[untyped-decorator]
def mark_chosen(  # type: ignore[no-untyped-def]
    keys,
    cuts,
    others,
    counts,
    chosen,  # [rows, columns], uint8
    pitch,
    columns,
    BY: tl.constexpr,
    LEAST: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Keys beyond the cut, and of those at it the first ones."""
    part, row, begin, end = own_part(columns, PARTS)
    last, ties = _cut_of(cuts, others, row, LEAST)
    met = count_before(counts, row, part, PARTS)
    for first in range(begin, end, WIDTH):
        at = first + tl.arange(0, WIDTH)
        key = tl.load(keys + row * pitch + at, mask=at < end, other=-2147483648)
        tied = _is_tied(key, last, BY).to(tl.int32)
        place = met + tl.cumsum(tied, 0)
        beyond = key > last
        if BY == "mass":
            beyond = beyond | ((key < 0) & (at < end))
        tl.store(chosen + row * columns + at, (beyond | ((tied != 0) & (place <= ties))).to(tl.uint8), mask=at < end)
        met += tl.sum(tied, 0)
