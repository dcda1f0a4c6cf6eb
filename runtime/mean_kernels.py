"""Kernels of means over blocks and windows: vectors are read where they lie, and the way back writes each once."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from spdsl.codegen.binaries import options_of
from spdsl.runtime.plain import Launch, start, start_given

SPAN = 64
"""The most entries that a program reads at once."""


@triton.jit(do_not_specialize=["blocks", "length", "heads"])  # type: ignore[untyped-decorator]
def gather_means(  # type: ignore[no-untyped-def]
    x,  # [batch, heads, entries, columns]
    x_b,
    x_h,
    x_r,
    x_d,
    means,  # [batch, heads, blocks, columns], fp32
    blocks,
    length,  # positions that exist
    heads,
    columns,
    floor,
    SIZE: tl.constexpr,
    STEP: tl.constexpr,
    EACH: tl.constexpr,
    MEAN: tl.constexpr,
    SPAN: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNIT: tl.constexpr,
):
    """A block of SIZE entries, STEP after the one before; each counts as often as it has positions, of which there are
    EACH but at the end.  UNIT: each at length 1, or shorter where the sum of its squares is less than ``floor``."""
    block, owner = tl.program_id(0) % blocks, (tl.program_id(0) // blocks).to(tl.int64)
    column = tl.arange(0, COLUMNS)[None, :]
    total = tl.zeros([COLUMNS], tl.float32)
    for first in range(0, SIZE, SPAN):
        place = first + tl.arange(0, SPAN)
        entry = block * STEP + place
        weight = tl.minimum(length - entry * EACH, EACH)
        exist = (place < SIZE) & (weight > 0)
        at = owner // heads * x_b + owner % heads * x_h + entry.to(tl.int64)[:, None] * x_r + column * x_d
        value = tl.load(x + at, mask=exist[:, None] & (column < columns), other=0.0).to(tl.float32)
        if UNIT:
            value = value / tl.sqrt_rn(tl.maximum(tl.sum(value * value, 1), floor))[:, None]
        if EACH > 1:
            value = value * tl.where(exist, weight, 0).to(tl.float32)[:, None]
        total += tl.sum(value, 0)
    if MEAN:
        total = total / tl.maximum(tl.minimum(length - block * STEP * EACH, SIZE * EACH), 1).to(tl.float32)
    to = means + (owner * blocks + block) * columns + tl.arange(0, COLUMNS)
    tl.store(to, total, mask=tl.arange(0, COLUMNS) < columns)


@triton.jit(do_not_specialize=["entries", "blocks", "length"])  # type: ignore[untyped-decorator]
def spread_means(  # type: ignore[no-untyped-def]
    d_means,  # [batch, heads, blocks, columns], fp32
    d_x,  # [batch, heads, entries, columns]
    entries,
    blocks,
    length,
    columns,
    SIZE: tl.constexpr,
    STEP: tl.constexpr,
    EACH: tl.constexpr,
    MEAN: tl.constexpr,
    SPAN: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradients of SPAN entries, each from those of the blocks in which it lies."""
    tiles = tl.cdiv(entries, SPAN)
    owner = (tl.program_id(0) // tiles).to(tl.int64)
    column = tl.arange(0, COLUMNS)[None, :]
    entry = tl.program_id(0) % tiles * SPAN + tl.arange(0, SPAN)
    exist = (entry < entries)[:, None] & (column < columns)
    total = tl.zeros([SPAN, COLUMNS], tl.float32)
    for back in tl.static_range((SIZE + STEP - 1) // STEP):
        block = entry // STEP - back
        inside = (block >= 0) & (block < blocks) & (entry - block * STEP < SIZE)
        at = d_means + (owner * blocks + block)[:, None] * columns + column
        value = tl.load(at, mask=exist & inside[:, None], other=0.0)
        weight = tl.minimum(length - entry * EACH, EACH).to(tl.float32)
        if MEAN:
            weight = weight / tl.maximum(tl.minimum(length - block * STEP * EACH, SIZE * EACH), 1).to(tl.float32)
        total += value * weight[:, None]
    to = d_x + (owner * entries + entry)[:, None] * columns + column
    tl.store(to, total.to(d_x.dtype.element_ty), mask=exist)


def of_blocks(
    x: Tensor, size: int, step: int, blocks: int, each: int, length: int, mean: bool, floor: float | None = None
) -> Tensor:
    """Means or sums over ``blocks`` runs of ``size`` entries, ``step`` apart, fp32; an entry is ``each`` of the
    ``length`` positions.  With ``floor`` entries are taken at length 1, and there are no gradients."""
    if floor is not None:
        return _reduced(x, size, step, blocks, each, length, mean, floor)
    found: Tensor = _Blocks.apply(x, size, step, blocks, each, length, mean)  # type: ignore[no-untyped-call]
    return found


def _reduced(
    x: Tensor, size: int, step: int, blocks: int, each: int, length: int, mean: bool, floor: float | None
) -> Tensor:
    batch, heads, _, columns = x.shape
    means = torch.empty(batch, heads, blocks, columns, dtype=torch.float32, device=x.device)
    if means.numel():
        constants = _constants(size, step, each, mean, min(SPAN, triton.next_power_of_2(size)), columns)
        strides = dict(zip(("x_b", "x_h", "x_r", "x_d"), x.stride(), strict=True))
        lengths = {"blocks": blocks, "length": length, "heads": heads, "columns": columns}
        unit = {"floor": 0.0 if floor is None else floor, "UNIT": floor is not None}
        start(
            Launch(
                function=gather_means,
                grid=(blocks * batch * heads, 1, 1),
                values={"x": x, **strides, "means": means, **lengths, **constants, **unit},
                options=options_of(4 if size > 16 else 1),
                writes=("means",),
                device=x.device,
            )
        )
    return means


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, step: int, blocks: int, each: int, length: int, mean: bool) -> Tensor:
        ctx.settings, ctx.shape, ctx.dtype = (size, step, each, length, mean), x.shape, x.dtype
        return _reduced(x, size, step, blocks, each, length, mean, None)

    @staticmethod
    def backward(ctx: Any, d_means: Tensor) -> tuple[Tensor | None, ...]:
        size, step, each, length, mean = ctx.settings
        batch, heads, entries, columns = ctx.shape
        d_x = torch.empty(ctx.shape, dtype=ctx.dtype, device=d_means.device)
        if d_x.numel():
            constants = _constants(size, step, each, mean, SPAN, columns)
            given = (d_means.contiguous(), d_x, entries, d_means.shape[2], length, columns)
            grid = (-(-entries // SPAN) * batch * heads, 1, 1)
            start_given(spread_means, grid, given, constants, ("d_x",), options_of(4), d_x.device)
        return d_x, None, None, None, None, None, None


def _constants(size: int, step: int, each: int, mean: bool, span: int, columns: int) -> dict[str, int | bool]:
    wide = triton.next_power_of_2(columns)
    return {"SIZE": size, "STEP": step, "EACH": each, "MEAN": mean, "SPAN": span, "COLUMNS": wide}
