"""The mean over members that list queries and keys, by kernels, with its gradients.

From: tensors of a call, and lists.  To: of each query the mean of the softmaxes of those members that keep something of
it.  What a query or a key has from several members is added up in one order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spdsl.codegen.binaries import options_of
from spdsl.runtime import item_kernels as kernels
from spdsl.runtime.items import Launches, Lists, power, readable
from spdsl.runtime.pick_kernels import by_block
from spdsl.runtime.plain import start_given
from spdsl.runtime.transforms import second_derivative

_ROWS = 16
"""Rows that one program adds up."""


def mean_of_lists(q: Tensor, k: Tensor, v: Tensor, lists: Lists, scale: float, q_start: int) -> Tensor:
    """The output ``[batch, heads, nq, dv]``: of each query the mean over the members that keep something of it."""
    return _Mean.apply(q, k, v, lists.queries, lists.keys, lists.causal, scale, q_start)  # type: ignore[no-any-return, no-untyped-call]


class _Mean(torch.autograd.Function):
    """`mean_of_lists`, differentiable in queries, keys and values."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, queries: Tensor, keys: Tensor, causal: bool, scale: float, start: int
    ) -> Tensor:
        q, k, v = map(readable, (q, k, v))
        lists = Lists(queries=queries.contiguous(), keys=keys.contiguous(), causal=causal)
        run = Launches(q=q, k=k, v=v, given=lists, scale=scale, q_start=start)
        out, lse = run.forward()
        _, order, starts = by_block(lists.queries, q.shape[2])
        found, shares = added_up(out, order, starts, q, lse)
        ctx.numbers = causal, scale, start
        ctx.save_for_backward(q, k, v, lists.queries, lists.keys, out, lse, order, starts, shares)
        return found

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise second_derivative()
        q, k, v, queries, keys, out, lse, order, starts, shares = ctx.saved_tensors
        causal, scale, start = ctx.numbers
        lists = Lists(queries=queries, keys=keys, causal=causal)
        run = Launches(q=q, k=k, v=v, given=lists, scale=scale, q_start=start)
        d_out = d_out.contiguous()
        of_items, delta = run.of_queries(out, lse, d_out, lse, shares)
        d_q = added_up(of_items, order, starts, q, None)[0] if ctx.needs_input_grad[0] else None
        d_k, d_v = None, None
        if any(ctx.needs_input_grad[1:3]):
            of_keys, of_values = run.of_keys(lse, d_out, shares, delta)
            by_group = keys.view(keys.shape[0], k.shape[1], -1, keys.shape[-1])
            _, order, starts = by_block(by_group, k.shape[2])
            d_k, d_v = (added_up(each, order, starts, k, None)[0] for each in (of_keys, of_values))
        return d_q, d_k, d_v, None, None, None, None, None


def added_up(given: Tensor, order: Tensor, starts: Tensor, like: Tensor, lse: Tensor | None) -> tuple[Tensor, Tensor]:
    """Of each row of ``like`` the sum of its items, in its type; with an LSE the mean of those that keep something, and
    the share of each."""
    rows, size = like.numel() // like.shape[-1], given.shape[-1]
    found = like.new_empty((*like.shape[:3], size))
    shares = given.new_empty(like.shape[:3]) if lse is not None else given
    constants = {"MEAN": lse is not None, "SIZE": size, "BLOCK": power(size), "ROWS": _ROWS}
    arguments = (given, given if lse is None else lse, order, starts, found, shares, rows)
    start_given(
        kernels.add_up, (-(-rows // _ROWS), 1, 1), arguments, constants, ("found", "shares"), options_of(4), like.device
    )
    return found, shares
