"""The scores of keys that were picked at set distances, differentiable in both vectors, by kernels.

From: vectors, and what has been chosen of their products.  To: the scores.  They are known since they were ranked;
their gradients take no more memory than those of the vectors, and their sums have one order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spdsl.codegen.binaries import options_of
from spdsl.runtime import stripe_kernels as kernels
from spdsl.runtime.plain import start_given
from spdsl.runtime.transforms import second_derivative

if TYPE_CHECKING:
    from spdsl.runtime.stripes import Placed

_ROWS = 64
"""Queries, or keys, of a program."""

_PLACES = 1024
"""Places of a program that says whose they are."""


def picked_scores(left: Tensor, right: Tensor, made: Placed) -> Tensor:
    """The scores ``[batch, heads, picks, nq]``, fp32, of vectors ``[batch or 1, heads or fewer, rows, features]``."""
    return _Scores.apply(left, right, made)  # type: ignore[no-any-return, no-untyped-call]


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, made: Placed) -> Tensor:
        ctx.scale = made.scale
        ctx.save_for_backward(left, right, made.places)
        return made.values.view_as(made.values)

    @staticmethod
    def backward(ctx: Any, d_values: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise second_derivative()
        left, right, places = ctx.saved_tensors
        d_values = d_values.contiguous()
        d_left = _of_left(left, right, places, d_values, ctx.scale) if ctx.needs_input_grad[0] else None
        d_right = _of_right(left, right, places, d_values, ctx.scale) if ctx.needs_input_grad[1] else None
        return d_left, d_right, None


def _of_left(left: Tensor, right: Tensor, places: Tensor, d_values: Tensor, scale: float) -> Tensor:
    heads, picks, nq = places.shape[1:]
    found = left.new_empty(left.shape)
    given = (right, places, d_values, found, scale, nq, *_shares(left, places), *strides_of(right, heads))
    grid, sizes = (-(-nq // _ROWS), left.shape[0] * left.shape[1], 1), {"PICKS": picks, **_sizes(left)}
    start_given(kernels.of_left, grid, given, sizes, ("d_left",), options_of(4), left.device)
    return found


def _of_right(left: Tensor, right: Tensor, places: Tensor, d_values: Tensor, scale: float) -> Tensor:
    heads, picks, nq = places.shape[1:]
    owners, n, total, picked = right.shape[0] * right.shape[1], right.shape[2], places.numel(), picks * nq
    keys = torch.empty(total, dtype=torch.int32 if owners * n < 2**31 else torch.int64, device=right.device)
    given: tuple[object, ...] = (places, keys, total, picked, n, *_shares(right, places), owners)
    grid = (-(-total // _PLACES), 1, 1)
    start_given(kernels.by_key, grid, given, {"BLOCK": _PLACES}, ("keys",), options_of(4), right.device)
    keys, order = keys.sort(stable=True)
    found = right.new_empty(right.shape)
    given = (left, keys, order, d_values, found, scale, total, picked, nq, n, heads, *strides_of(left, heads))
    grid = (-(-n // _ROWS), owners, 1)
    start_given(kernels.of_right, grid, given, _sizes(right), ("d_right",), options_of(4), right.device)
    return found


def _shares(own: Tensor, places: Tensor) -> tuple[int, int, int, int]:
    """All heads, those of a tensor, and how many heads and sequences share each of its own."""
    batch, heads = places.shape[:2]
    return heads, own.shape[1], heads // own.shape[1], batch // own.shape[0]


def _sizes(vectors: Tensor) -> dict[str, int]:
    size = vectors.shape[-1]
    return {"D": size, "BLOCK_D": 1 << (size - 1).bit_length(), "BLOCK": _ROWS}


def strides_of(vectors: Tensor, heads: int) -> tuple[int, int, int, int]:
    """Of batch, heads and rows, and how many heads share vectors."""
    batch, own, rows = vectors.stride()[:3]
    return batch if vectors.shape[0] > 1 else 0, own, rows, heads // vectors.shape[1]
