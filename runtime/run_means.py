"""Kernels of reductions over runs of neighbours of uneven length: each vector is read once, and none is padded.

From: vectors of rows in order, and where each run begins among positions.  To: their sums or means, differentiable, or
the largest or smallest of their numbers.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from spdsl.codegen.binaries import options_of
from spdsl.runtime.plain import Launch, start, start_given
from spdsl.runtime.runs import Runs
from spdsl.semantics.graph import Reduction

SPAN = 32
"""Rows that a program reads at once."""


@triton.jit(do_not_specialize=["runs", "rows", "offset", "heads"])  # type: ignore[untyped-decorator]
def gather_runs(  # type: ignore[no-untyped-def]
    x,  # [batch, heads, rows, columns]
    x_b,
    x_h,
    x_r,
    x_d,
    begins,  # [runs + 1]: the first position of each run
    found,  # [batch, heads, runs, columns], fp32
    runs,
    rows,
    offset,  # the position of row 0
    heads,
    columns,
    KIND: tl.constexpr,
    SPAN: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The rows of one run, SPAN at a time."""
    SUMS: tl.constexpr = (KIND == "sum") | (KIND == "mean")
    SIGN: tl.constexpr = -1.0 if KIND == "min" else 1.0
    run, owner = tl.program_id(0) % runs, (tl.program_id(0) // runs).to(tl.int64)
    begin = tl.minimum(tl.maximum(tl.load(begins + run) - offset, 0), rows).to(tl.int32)
    end = tl.minimum(tl.maximum(tl.load(begins + run + 1) - offset, 0), rows).to(tl.int32)
    column = tl.arange(0, COLUMNS)
    start = x + owner // heads * x_b + owner % heads * x_h + column[None, :] * x_d
    total = tl.full([SPAN, COLUMNS], 0.0 if SUMS else float("-inf"), tl.float32)
    some = tl.zeros([SPAN, COLUMNS], tl.int32)
    for first in range(begin, end, SPAN):
        row = first + tl.arange(0, SPAN)[:, None]
        there = (row < end) & (column < columns)[None, :]
        value = tl.load(start + row.to(tl.int64) * x_r, mask=there, other=0.0).to(tl.float32)
        if SUMS:
            total += value
        else:
            there = there & (value == value)  # a NaN is absent
            total = tl.maximum(total, tl.where(there, SIGN * value, float("-inf")))
            some = some | there.to(tl.int32)
    whole = tl.sum(total, 0) if SUMS else tl.where(tl.max(some, 0) > 0, SIGN * tl.max(total, 0), 0.0)
    if KIND == "mean":
        whole = whole / tl.maximum(end - begin, 1).to(tl.float32)
    tl.store(found + (owner * runs + run) * columns + column, whole, mask=column < columns)


@triton.jit(do_not_specialize=["runs", "rows", "offset", "length", "step"])  # type: ignore[untyped-decorator]
def spread_runs(  # type: ignore[no-untyped-def]
    d_found,  # [batch, heads, runs, columns], fp32
    table,  # [positions]: the run of each
    begins,  # [runs + 1]
    d_x,  # [batch, heads, rows, columns]
    runs,
    rows,
    offset,
    length,  # of the table
    step,  # from one number of the table to the next
    columns,
    MEAN: tl.constexpr,
    SPAN: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradients of SPAN rows, each from that of its run."""
    tiles = tl.cdiv(rows, SPAN)
    owner = (tl.program_id(0) // tiles).to(tl.int64)
    column = tl.arange(0, COLUMNS)[None, :]
    row = tl.program_id(0) % tiles * SPAN + tl.arange(0, SPAN)
    exist = (row < rows) & (row + offset >= 0) & (row + offset < length)
    run = tl.load(table + (row + offset).to(tl.int64) * step, mask=exist, other=-1).to(tl.int32)
    inside = exist & (run >= 0) & (run < runs)
    at = d_found + (owner * runs + run)[:, None] * columns + column
    value = tl.load(at, mask=inside[:, None] & (column < columns), other=0.0)
    if MEAN:
        begin = tl.load(begins + run, mask=inside, other=0)
        end = tl.load(begins + run + 1, mask=inside, other=0)
        begin, end = tl.maximum(begin - offset, 0), tl.minimum(end - offset, rows)
        value = value / tl.maximum(end - begin, 1).to(tl.float32)[:, None]
    to = d_x + (owner * rows + row)[:, None] * columns + column
    tl.store(to, value.to(d_x.dtype.element_ty), mask=(row < rows)[:, None] & (column < columns))


def of_runs(x: Tensor, runs: Runs, offset: int, kind: Reduction) -> Tensor:
    """Reductions ``[batch, heads, runs, columns]``, fp32, of ``x``, whose row 0 stands at position ``offset``; sums and
    means are differentiated."""
    if kind in ("sum", "mean"):
        found: Tensor = _OfRuns.apply(x, runs.table, runs.begins, offset, kind == "mean")  # type: ignore[no-untyped-call]
        return found
    return _gathered(x.detach(), runs.begins, offset, kind)


def _gathered(x: Tensor, begins: Tensor, offset: int, kind: Reduction) -> Tensor:
    batch, heads, rows, columns = x.shape
    runs = len(begins) - 1
    found = torch.empty(batch, heads, runs, columns, dtype=torch.float32, device=x.device)
    if found.numel():
        strides = dict(zip(("x_b", "x_h", "x_r", "x_d"), x.stride(), strict=True))
        lengths = {"runs": runs, "rows": rows, "offset": offset, "heads": heads, "columns": columns}
        values = {"x": x, **strides, "begins": begins, "found": found, **lengths, "KIND": kind, **_sizes(columns)}
        start(
            Launch(
                function=gather_runs,
                grid=(runs * batch * heads, 1, 1),
                values=values,
                options=options_of(4),
                writes=("found",),
                device=x.device,
            )
        )
    return found


class _OfRuns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, begins: Tensor, offset: int, mean: bool) -> Tensor:
        ctx.save_for_backward(table, begins)
        ctx.settings, ctx.shape, ctx.dtype = (offset, mean), x.shape, x.dtype
        return _gathered(x, begins, offset, "mean" if mean else "sum")

    @staticmethod
    def backward(ctx: Any, d_found: Tensor) -> tuple[Tensor | None, ...]:
        (table, begins), (offset, mean) = ctx.saved_tensors, ctx.settings
        batch, heads, rows, columns = ctx.shape
        d_x = torch.empty(ctx.shape, dtype=ctx.dtype, device=d_found.device)
        if d_x.numel():
            lengths = (len(begins) - 1, rows, offset, len(table), table.stride(0), columns)
            given = (d_found.contiguous(), table, begins, d_x, *lengths)
            grid = (-(-rows // SPAN) * batch * heads, 1, 1)
            constants = {"MEAN": mean, **_sizes(columns)}
            start_given(spread_runs, grid, given, constants, ("d_x",), options_of(4), d_x.device)
        return d_x, None, None, None, None


def _sizes(columns: int) -> dict[str, int]:
    return {"SPAN": SPAN, "COLUMNS": triton.next_power_of_2(columns)}
