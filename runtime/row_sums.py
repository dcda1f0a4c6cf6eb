"""The sums of a softmax: which rows have programs, and how many programs share the columns of each.

A probe leaves few rows, whose columns are as many as ever: one program for each tile of rows would go through them
while all others are done.  So rows that a condition leaves out have no program, and few rows have several each, whose
sums a second kernel puts together in an order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from spdsl.codegen.binaries import options_of
from spdsl.runtime.plain import start_given

MOST = 64
"""Parts of a row, at most."""

SHARE = 512
"""Columns that are worth a part of their own."""

BLOCK = 128
"""A multiple of the rows of all tiles."""

INFINITE = 3.0e38
"""What stands for the logarithm of the sum of a row that has infinite entries, or none."""

ROWS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RowParts:
    """``count`` rows from ``begin`` on, whole tiles of them, whose columns ``parts`` programs share."""

    begin: int
    count: int
    parts: int


def row_parts(probed: range, rows: int, owners: int, columns: int, at_once: int) -> RowParts:
    """How programs share the ``probed`` ones among the ``rows`` of each of ``owners``, where ``at_once`` run side by
    side."""
    begin = probed.start // BLOCK * BLOCK
    count = max(1, -(-(min(probed.stop, rows) - begin) // BLOCK)) * BLOCK
    parts = max(1, min(2 * at_once * BLOCK // max(1, count * owners), MOST, columns // SHARE))
    return RowParts(begin=begin, count=count, parts=parts)


def empty_sums(shape: tuple[int, ...], device: torch.device, *, whole: bool) -> Tensor:
    """Room for sums ``[batch, heads, rows, 2]``; where programs do not fill the ``whole`` of it, that of rows that have
    no entries."""
    if whole:
        return torch.empty(shape, dtype=torch.float32, device=device)
    nothing = torch.full((2,), torch.inf, device=device)
    nothing[:1].fill_(INFINITE)
    return nothing.expand(shape).clone(memory_format=torch.contiguous_format)


def join_sums(parts: Tensor, sums: Tensor, first: int) -> None:
    """Put sums ``[parts, owners, some rows, 2]`` together into ``sums`` ``[batch, heads, rows, 2]``, from row ``first``
    on."""
    count, owners, rows, _ = parts.shape
    given = (parts, sums, count, owners, rows, first, sums.shape[2])
    grid = (owners * -(-rows // ROWS), 1, 1)
    start_given(add_parts, grid, given, {"ROWS": ROWS}, ("sums",), options_of(2), sums.device)


@triton.jit(do_not_specialize=["count", "owners", "rows", "first", "all_rows"])  # type: ignore[untyped-decorator]
def add_parts(parts, sums, count, owners, rows, first, all_rows, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Infinite entries share what there is, and all others are nothing beside them."""
    tiles = tl.cdiv(rows, ROWS)
    owner = tl.program_id(0) // tiles
    row = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    exist = (row < rows) & (first + row < all_rows)
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    infinite = tl.zeros([ROWS], tl.float32)
    for part in range(count):
        at = parts + ((part * owners + owner).to(tl.int64) * rows + row) * 2
        log = tl.load(at, mask=exist, other=3.0e38)
        most = tl.load(at + 1, mask=exist, other=float("inf"))
        number = tl.where(log < 3.0e38, log, float("-inf"))
        more = tl.maximum(largest, number)
        beside = tl.where(more == float("-inf"), 0.0, more)
        total = total * tl.exp2(largest - beside) + tl.exp2(number - beside)
        largest = more
        infinite += tl.where((log >= 3.0e38) & (most < float("inf")), tl.exp2(-most), 0.0)
    finite = (infinite == 0) & (total > 0)
    to = sums + (owner.to(tl.int64) * all_rows + first + row) * 2
    tl.store(to, tl.where(finite, largest + tl.log2(total), 3.0e38), mask=exist)
    tl.store(to + 1, tl.where(finite, float("inf"), -tl.log2(infinite)), mask=exist)
