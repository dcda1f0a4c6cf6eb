"""Outputs of several softmaxes put together by their LSEs on a GPU, in one pass over memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from spdsl.codegen.binaries import options_of
from spdsl.runtime.plain import start_given

MOST = 4
"""Softmaxes that one launch puts together."""

ROWS = 32


@triton.jit  # type: ignore[untyped-decorator]
def join(  # type: ignore[no-untyped-def]
    out,  # [rows, columns]
    lse,  # [rows]
    out_0,
    out_1,
    out_2,
    out_3,
    lse_0,
    lse_1,
    lse_2,
    lse_3,
    rows,
    columns,
    COUNT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The mean of outputs by the sums of which their LSEs are logarithms; where all are empty, zeros."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)[None, :]
    at = row.to(tl.int64)[:, None] * columns + column
    exist = (row < rows)[:, None] & (column < columns)
    nothing = float("-inf")
    one = tl.load(lse_0 + row, mask=row < rows, other=nothing)
    two = tl.load(lse_1 + row, mask=row < rows, other=nothing)
    three = tl.full([ROWS], nothing, tl.float32)
    four = tl.full([ROWS], nothing, tl.float32)
    if COUNT > 2:
        three = tl.load(lse_2 + row, mask=row < rows, other=nothing)
    if COUNT > 3:
        four = tl.load(lse_3 + row, mask=row < rows, other=nothing)
    largest = tl.maximum(tl.maximum(one, two), tl.maximum(three, four))
    largest = tl.where(largest == nothing, 0.0, largest)
    one = tl.exp(one - largest)
    two = tl.exp(two - largest)
    three = tl.exp(three - largest)
    four = tl.exp(four - largest)
    total = one + two + three + four
    divisor = tl.where(total == 0, 1.0, total)
    found = tl.load(out_0 + at, mask=exist, other=0.0).to(tl.float32) * (one / divisor)[:, None]
    found += tl.load(out_1 + at, mask=exist, other=0.0).to(tl.float32) * (two / divisor)[:, None]
    if COUNT > 2:
        found += tl.load(out_2 + at, mask=exist, other=0.0).to(tl.float32) * (three / divisor)[:, None]
    if COUNT > 3:
        found += tl.load(out_3 + at, mask=exist, other=0.0).to(tl.float32) * (four / divisor)[:, None]
    tl.store(out + at, found.to(out.dtype.element_ty), mask=exist)
    tl.store(lse + row, tl.where(total == 0, nothing, largest + tl.log(divisor)), mask=row < rows)


def put_together(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Output ``[…, rows, columns]`` and LSE (fp32) of one softmax over the keys of several."""
    if len(outs) == 1:
        return outs[0], lses[0]
    if len(outs) > MOST:
        first, more = put_together(outs[:MOST], lses[:MOST]), (outs[MOST:], lses[MOST:])
        return put_together((first[0], *more[0]), (first[1], *more[1]))
    outs, lses = [each.contiguous() for each in outs], [each.contiguous() for each in lses]
    out, lse = torch.empty_like(outs[0]), torch.empty_like(lses[0])
    rows, columns = lse.numel(), out.shape[-1]
    if rows and columns:
        filled = [[*each, *each[:1] * (MOST - len(each))] for each in (outs, lses)]
        sizes = {"COUNT": len(outs), "ROWS": ROWS, "COLUMNS": triton.next_power_of_2(columns)}
        grid, given = (triton.cdiv(rows, ROWS), 1, 1), (out, lse, *filled[0], *filled[1], rows, columns)
        start_given(join, grid, given, sizes, ("out", "lse"), options_of(4), out.device)
    return out, lse
