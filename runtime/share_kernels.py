"""Softmaxes of rows of numbers that were made beforehand, in one launch.

From: scores, fp32 ``[…, columns]``, −inf where entries are absent, or of few members along another axis.  To: their
shares.  A NaN is absent, infinite ones share all there is, and a row without entries has zeros.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from spdsl.codegen.binaries import options_of
from spdsl.runtime.plain import start_given
from spdsl.runtime.transforms import second_derivative

WIDTH = 1024
"""Numbers that a program looks at together."""

_BLOCK = 256
"""Rows of few members that a program has."""


def shares_of(value: Tensor) -> Tensor:
    """The shares of scores, fp32 ``[…, columns]``."""
    value = value.contiguous()
    found, columns = torch.empty_like(value), value.shape[-1]
    rows = value.numel() // max(1, columns)
    given, writes = (value, found, columns), ("found",)
    start_given(share_rows, (rows, 1, 1), given, {"WIDTH": WIDTH}, writes, options_of(8), value.device)
    return found


def shares_among(value: Tensor, only: Tensor | None, dim: int) -> Tensor:
    """The shares of scores, fp32, along a dimension that is not the last: of those where ``only`` holds, bools that
    broadcast; differentiable."""
    return _Shares.apply(value, None if only is None else only.expand(value.shape).contiguous(), dim)  # type: ignore[no-any-return, no-untyped-call]


class _Shares(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, only: Tensor | None, dim: int) -> Tensor:
        value = value.contiguous()
        found, given = torch.empty_like(value), value if only is None else only.view(torch.uint8)
        _start(share_members, value, (value, given, found), "found", dim, ALL=only is None)
        ctx.dim, ctx.all = dim, only is None
        ctx.save_for_backward(value, given, found)
        return found

    @staticmethod
    def backward(ctx: Any, d_shares: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise second_derivative()
        value, given, found = ctx.saved_tensors
        made = torch.empty_like(value)
        tensors = (value, given, found, d_shares.contiguous(), made)
        _start(of_shares, value, tensors, "made", ctx.dim, ALL=ctx.all)
        return made, None, None


def _start(kernel: Any, value: Tensor, tensors: tuple[Tensor, ...], writes: str, dim: int, **constants: bool) -> None:
    members, inner = value.shape[dim], value.shape[dim + 1 :].numel()
    rows = value.numel() // max(1, members)
    grid, given = (-(-rows // _BLOCK), 1, 1), (*tensors, rows, members, inner)
    start_given(kernel, grid, given, {"BLOCK": _BLOCK, **constants}, (writes,), options_of(4), value.device)


@triton.jit
def _present(value, row, columns, at):  # type: ignore[no-untyped-def]
    """Scores of a row, −inf for what is absent."""
    score = tl.load(value + row * columns + at, mask=at < columns, other=float("-inf"))
    return tl.where(score == score, score, float("-inf"))


@triton.jit
def _power(score, largest):  # type: ignore[no-untyped-def]
    """What a score weighs beside the largest."""
    power = tl.exp(tl.where(score == largest, 0.0, score - largest))
    power = tl.where(largest == float("inf"), (score == largest).to(tl.float32), power)
    return tl.where(score == float("-inf"), 0.0, power)


@triton.jit(do_not_specialize=["columns"])  # type: ignore[untyped-decorator]
def share_rows(value, found, columns, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Shares of a row: its largest score, the sum beside it, and what each has of that."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, WIDTH)
    most = tl.full([WIDTH], float("-inf"), tl.float32)
    for first in range(0, columns, WIDTH):
        most = tl.maximum(most, _present(value, row, columns, first + place))
    largest = tl.max(most, 0)
    sums = tl.zeros([WIDTH], tl.float32)
    for first in range(0, columns, WIDTH):
        sums += _power(_present(value, row, columns, first + place), largest)
    total = tl.sum(sums, 0)
    total = tl.where(total > 0.0, total, 1.0)
    for first in range(0, columns, WIDTH):
        at = first + place
        share = _power(_present(value, row, columns, at), largest) / total
        tl.store(found + row * columns + at, share, mask=at < columns)


@triton.jit  # type: ignore[untyped-decorator]
def _place(rows, members, inner, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows, and where their first members stand."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return row < rows, row // inner * members * inner + row % inner


@triton.jit  # type: ignore[untyped-decorator]
def _member(value, only, at, exist, ALL: tl.constexpr):  # type: ignore[no-untyped-def]
    """Scores of one member, −inf for what is absent."""
    score = tl.load(value + at, mask=exist, other=float("-inf"))
    there = score == score
    if not ALL:
        there = there & (tl.load(only + at, mask=exist, other=0) != 0)
    return tl.where(there, score, float("-inf"))


@triton.jit(do_not_specialize=["rows", "inner"])  # type: ignore[untyped-decorator]
def share_members(value, only, found, rows, members, inner, ALL: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Shares of rows whose members lie ``inner`` numbers apart."""
    exist, first = _place(rows, members, inner, BLOCK)
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    for member in range(members):
        largest = tl.maximum(largest, _member(value, only, first + member * inner, exist, ALL))
    total = tl.zeros([BLOCK], tl.float32)
    for member in range(members):
        total += _power(_member(value, only, first + member * inner, exist, ALL), largest)
    total = tl.where(total > 0.0, total, 1.0)
    for member in range(members):
        at = first + member * inner
        tl.store(found + at, _power(_member(value, only, at, exist, ALL), largest) / total, mask=exist)


@triton.jit(do_not_specialize=["rows", "inner"])  # type: ignore[untyped-decorator]
def of_shares(  # type: ignore[no-untyped-def]
    value, only, found, d_shares, made, rows, members, inner, ALL: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The gradient of scores; those of rows with infinite ones are constants."""
    exist, first = _place(rows, members, inner, BLOCK)
    mean = tl.zeros([BLOCK], tl.float32)
    infinite = tl.zeros([BLOCK], tl.int1)
    for member in range(members):
        at = first + member * inner
        share = tl.load(found + at, mask=exist, other=0.0)
        mean += share * tl.load(d_shares + at, mask=exist, other=0.0)
        infinite = infinite | (_member(value, only, at, exist, ALL) == float("inf"))
    for member in range(members):
        at = first + member * inner
        share = tl.load(found + at, mask=exist, other=0.0)
        change = share * (tl.load(d_shares + at, mask=exist, other=0.0) - mean)
        tl.store(made + at, tl.where(infinite | (share == 0.0), 0.0, change), mask=exist)
