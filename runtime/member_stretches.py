"""Members of which each query has an interval of keys, by kernels, with their gradients.

From: tensors of a call, and intervals.  To: output and LSE of every query of every member, by one launch for the
intervals of members and one for those that they have in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spdsl.runtime.items import Launches, Stretches, readable
from spdsl.runtime.transforms import second_derivative


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
        out, lse = own.forward(q.dtype, near[0].forward() if near else None)
        shape = stretches[0].shape
        ctx.numbers = scale, start
        ctx.save_for_backward(q, k, v, out, lse, *stretches)
        return out.view(*shape, v.shape[-1]), lse.view(shape)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor | None, d_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise second_derivative()
        q, k, v, out, lse, *tensors = ctx.saved_tensors
        scale, start = ctx.numbers
        own, *near = _stretches_of(tensors)
        d_out = torch.zeros_like(out) if d_out is None else d_out.contiguous()
        d_lse = torch.zeros_like(lse) if d_lse is None else d_lse.contiguous()
        found: list[Tensor] | None = None
        for each in (own, *(_of_members(each, own) for each in near)):
            run = Launches(q=q, k=k, v=v, given=each, scale=scale, q_start=start)
            of_items, delta = run.of_queries(out, lse, d_out, d_lse, lse)
            here = [of_items.view(*own.low.shape, -1).sum(2), *run.of_keys(lse, d_out, lse, delta)]
            found = here if found is None else [one + two for one, two in zip(found, here, strict=True)]
        assert found is not None
        d_q, d_k, d_v = found
        return d_q.to(q.dtype), d_k, d_v, None, None, *(None for _ in tensors)


def _of_members(near: Stretches, own: Stretches) -> Stretches:
    """The same intervals for every member."""
    low, high = (each.expand(own.low.shape).contiguous() for each in (near.low, near.high))
    queries, members = low.shape[3], low.shape[2]
    order = near.order[..., None] + torch.arange(members, device=low.device, dtype=torch.int32) * queries
    begins = near.begins.repeat_interleave(members, 2)
    return Stretches(low=low, high=high, order=order.flatten(2), begins=begins)
