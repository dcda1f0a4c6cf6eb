"""Members of which each query has an interval of keys, by kernels, with their gradients.

From: tensors of a call, and intervals.  To: output and LSE of every query of every member, by one launch for the
intervals of members and one for those that they have in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spdsl.codegen.binaries import options_of
from spdsl.runtime.items import Launches, Stretches, add_members, from_members, readable
from spdsl.runtime.member_kernels import by_owner
from spdsl.runtime.plain import start_given
from spdsl.runtime.transforms import second_derivative

_ITEMS = 1024
"""Items of a program that puts them in order."""


def in_order(low: Tensor, high: Tensor, nothing: int) -> Stretches:
    """Intervals in the order of their beginnings; those of no keys begin at ``nothing``, behind all keys."""
    batch, heads, _, _ = low.shape
    first = low.flatten(2)
    whole = torch.arange(batch * heads, device=low.device).view(batch, heads, 1) * (nothing + 1)
    keys = first + (whole.int() if batch * heads * (nothing + 1) < 2**31 else whole)
    # All heads at once: rows are too few, and too long, to be sorted side by side.
    order = keys.flatten().argsort(stable=True).view(first.shape)
    order = order - torch.arange(batch * heads, device=low.device).view(batch, heads, 1) * first.shape[2]
    return Stretches(low=low, high=high, order=order.int(), begins=first.gather(2, order))


def sorted_by(keys: Tensor, low: Tensor, high: Tensor, nothing: int) -> Stretches:
    """As `in_order`, by keys that are beginnings, those of each head behind all of the one before."""
    batch, heads, members, nq = keys.shape
    begins, order = keys.flatten().sort(stable=True)
    items, shape = members * nq, (batch, heads, members * nq)
    first, place = (torch.empty(shape, dtype=torch.int32, device=keys.device) for _ in range(2))
    given = (begins, order, first, place, items, nothing + 1)
    grid = (-(-items // _ITEMS), batch * heads, 1)
    writes = ("first", "place")
    start_given(by_owner, grid, given, {"BLOCK": _ITEMS}, writes, options_of(4), keys.device)
    return Stretches(low=low, high=high, order=place, begins=first)


def attend_stretches(
    q: Tensor, k: Tensor, v: Tensor, own: Stretches, near: Stretches | None, scale: float, q_start: int
) -> tuple[Tensor, Tensor]:
    """Output ``[batch, heads, members, nq, dv]`` in the type of the queries, and LSE: of each query of each member over
    its ``own`` keys, and those ``near``, in common to all members."""
    stretches = [
        part for each in (own, near) if each is not None for part in (each.low, each.high, each.order, each.begins)
    ]
    return _Stretched.apply(q, k, v, scale, q_start, *stretches)  # type: ignore[no-any-return, no-untyped-call]


def _stretches_of(tensors: Sequence[Tensor]) -> list[Stretches]:
    return [Stretches(*tensors[at : at + 4]) for at in range(0, len(tensors), 4)]


class _Stretched(torch.autograd.Function):
    """`attend_stretches`, differentiable in queries, keys and values."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, start: int, *stretches: Tensor
    ) -> tuple[Tensor, Tensor]:
        q, k, v = map(readable, (q, k, v))
        own, *near = (
            Launches(q=q, k=k, v=v, given=each, scale=scale, q_start=start) for each in _stretches_of(stretches)
        )
        earlier = near[0].forward() if near else None
        out, lse = own.forward(q.dtype, earlier)
        shape = stretches[0].shape
        ctx.numbers = scale, start
        ctx.save_for_backward(q, k, v, out, lse, lse if earlier is None else earlier[1], *stretches)
        return out.view(*shape, v.shape[-1]), lse.view(shape)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor | None, d_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise second_derivative()
        q, k, v, out, lse, log, *tensors = ctx.saved_tensors
        scale, start = ctx.numbers
        own, *near = (
            Launches(q=q, k=k, v=v, given=each, scale=scale, q_start=start) for each in _stretches_of(tensors)
        )
        d_out = torch.zeros_like(out) if d_out is None else d_out.contiguous()
        d_lse = torch.zeros_like(lse) if d_lse is None else d_lse.contiguous()
        of_items, delta = own.of_queries(out, lse, d_out, d_lse, lse)
        of_items, shared, earlier = of_items.view(*tensors[0].shape, -1), None, None
        for each in near:
            # What all have in common is differentiated once.
            d_near, less = from_members(d_out, delta, lse, log)
            shared, earlier = each.of_known(log, d_near, less), each.of_keys(log, d_near, log, less)
        d_k, d_v = own.of_keys(lse, d_out, lse, delta, earlier)
        return add_members(of_items, shared, q.dtype), d_k, d_v, None, None, *(None for _ in tensors)
