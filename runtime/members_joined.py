"""The softmaxes of the members of a query as one over the keys of all of them, by a kernel, with its gradients.

From: outputs and LSEs of every member.  To: those of all members together, which are added up in their order.
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

_ROWS = 32
"""Queries of a program."""


@triton.jit  # type: ignore[untyped-decorator]
def _row(nq, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The head of a program and its queries."""
    tiles = tl.cdiv(nq, ROWS)
    return (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)


@triton.jit(do_not_specialize=["nq", "members"])  # type: ignore[untyped-decorator]
def join_members(  # type: ignore[no-untyped-def]
    parts,  # [owners, members, nq, WIDTH]
    logs,  # [owners, members, nq], fp32
    out,  # [owners, nq, WIDTH]
    lse,  # [owners, nq], fp32
    nq,
    members,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The mean of outputs by the sums of which their LSEs are logarithms; where all are empty, zeros."""
    owner, row = _row(nq, ROWS)
    feature = tl.arange(0, BLOCK)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    divisor = tl.zeros([ROWS], tl.float32)
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    for member in range(members):
        at = (owner * members + member) * nq + row
        log = tl.load(logs + at, mask=row < nq, other=float("-inf"))
        more = tl.maximum(largest, log)
        beside = tl.where(more == float("-inf"), 0.0, more)
        weight, factor = tl.exp(log - beside), tl.exp(largest - beside)
        # What a member without keys has is not looked at.
        there = (log > float("-inf"))[:, None] & (feature < WIDTH)[None, :]
        part = tl.load(parts + at[:, None] * WIDTH + feature[None, :], mask=there, other=0.0).to(tl.float32)
        total = total * factor[:, None] + part * weight[:, None]
        divisor = divisor * factor + weight
        largest = more
    some = divisor > 0
    total = total / tl.where(some, divisor, 1.0)[:, None]
    to = owner * nq + row
    mask = (row < nq)[:, None] & (feature < WIDTH)[None, :]
    tl.store(out + to[:, None] * WIDTH + feature[None, :], total.to(out.dtype.element_ty), mask=mask)
    log = tl.where(some, largest + tl.log(tl.where(some, divisor, 1.0)), float("-inf"))
    tl.store(lse + to, log, mask=row < nq)


@triton.jit(do_not_specialize=["nq", "members"])  # type: ignore[untyped-decorator]
def part_gradients(  # type: ignore[no-untyped-def]
    parts,  # [owners, members, nq, WIDTH]
    logs,  # [owners, members, nq], fp32
    out,  # [owners, nq, WIDTH]
    lse,  # [owners, nq], fp32
    d_out,  # [owners, nq, WIDTH]
    d_lse,  # [owners, nq], fp32
    d_parts,  # [owners, members, nq, WIDTH]
    d_logs,  # [owners, members, nq], fp32
    nq,
    members,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """What the output and the LSE of each member have of the gradients of the whole."""
    owner, row = _row(nq, ROWS)
    feature = tl.arange(0, BLOCK)
    inside = (row < nq)[:, None] & (feature < WIDTH)[None, :]
    at_whole = owner * nq + row
    wide = at_whole[:, None] * WIDTH + feature[None, :]
    whole = tl.load(out + wide, mask=inside, other=0.0).to(tl.float32)
    given = tl.load(d_out + wide, mask=inside, other=0.0).to(tl.float32)
    log_whole = tl.load(lse + at_whole, mask=row < nq, other=float("-inf"))
    of_log = tl.load(d_lse + at_whole, mask=row < nq, other=0.0)
    some = log_whole > float("-inf")
    log_whole = tl.where(some, log_whole, 0.0)
    for member in range(members):
        at = (owner * members + member) * nq + row
        log = tl.load(logs + at, mask=row < nq, other=float("-inf"))
        share = tl.where(some, tl.exp(log - log_whole), 0.0)
        there = (log > float("-inf"))[:, None] & inside
        to = at[:, None] * WIDTH + feature[None, :]
        part = tl.load(parts + to, mask=there, other=0.0).to(tl.float32)
        apart = tl.sum(given * (part - whole), 1)
        tl.store(d_parts + to, (share[:, None] * given).to(d_parts.dtype.element_ty), mask=inside)
        tl.store(d_logs + at, share * (of_log + apart), mask=row < nq)


def joined_members(parts: Tensor, logs: Tensor) -> tuple[Tensor, Tensor]:
    """Output ``[batch, heads, nq, dv]`` and LSE of members ``[batch, heads, members, nq, dv]``."""
    return _Joined.apply(parts, logs)  # type: ignore[no-any-return, no-untyped-call]


class _Joined(torch.autograd.Function):
    """`joined_members`, differentiable in both."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, logs: Tensor) -> tuple[Tensor, Tensor]:
        batch, heads, members, nq, width = parts.shape
        parts, logs = parts.contiguous(), logs.contiguous()
        out = parts.new_empty((batch, heads, nq, width))
        lse = logs.new_empty((batch, heads, nq))
        _start(join_members, (parts, logs, out, lse), members, ("out", "lse"))
        ctx.save_for_backward(parts, logs, out, lse)
        return out, lse

    @staticmethod
    def backward(ctx: Any, d_out: Tensor | None, d_lse: Tensor | None) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled():
            raise second_derivative()
        parts, logs, out, lse = ctx.saved_tensors
        d_out = torch.zeros_like(out) if d_out is None else d_out.contiguous()
        d_lse = torch.zeros_like(lse) if d_lse is None else d_lse.contiguous()
        d_parts, d_logs = torch.empty_like(parts), torch.empty_like(logs)
        tensors = (parts, logs, out, lse, d_out, d_lse, d_parts, d_logs)
        _start(part_gradients, tensors, parts.shape[2], ("d_parts", "d_logs"))
        return d_parts, d_logs


def _start(kernel: Any, tensors: tuple[Tensor, ...], members: int, writes: tuple[str, ...]) -> None:
    batch, heads, nq, width = tensors[2].shape
    constants = {"WIDTH": width, "BLOCK": 1 << (width - 1).bit_length(), "ROWS": _ROWS}
    grid = (-(-nq // _ROWS) * batch * heads, 1, 1)
    start_given(kernel, grid, (*tensors, nq, members), constants, writes, options_of(4), tensors[0].device)
