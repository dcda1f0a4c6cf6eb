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

_FEW = 4
"""Picks up to which all of one distance are under way at one time."""


def picked_scores(left: Tensor, right: Tensor, made: Placed, q_start: int) -> Tensor:
    """The scores ``[batch, heads, picks, nq]``, fp32, of vectors ``[batch or 1, heads or fewer, rows, features]``."""
    return _Scores.apply(left, right, made, q_start)  # type: ignore[no-any-return, no-untyped-call]


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, made: Placed, q_start: int) -> Tensor:
        ctx.numbers = made.scale, q_start
        ctx.save_for_backward(left, right, made.places, made.distances)
        return made.values.view_as(made.values)

    @staticmethod
    def backward(ctx: Any, d_values: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise second_derivative()
        left, right, places, distances = ctx.saved_tensors
        scale, q_start = ctx.numbers
        batch, heads, picks, nq = places.shape
        d_values, size, n = d_values.contiguous(), left.shape[-1], right.shape[2]
        sizes = {"PICKS": picks, "D": size, "BLOCK_D": 1 << (size - 1).bit_length(), "BLOCK": _ROWS}

        def shares(own: Tensor) -> tuple[int, int, int, int]:
            """All heads, those of a tensor, and how many heads and sequences share each of its own."""
            return heads, own.shape[1], heads // own.shape[1], batch // own.shape[0]

        def run(kernel: Any, own: Tensor, rows: int, given: tuple[object, ...], name: str, **others: object) -> Tensor:
            found = own.new_empty((*own.shape[:2], rows, size))
            grid = (-(-rows // _ROWS), own.shape[0] * own.shape[1], 1)
            first = [found if each is None else each for each in given]
            start_given(kernel, grid, first, {**sizes, **others}, (name,), options_of(4), own.device)
            return found

        d_left = d_right = None
        if ctx.needs_input_grad[0]:
            given: tuple[object, ...] = (
                right,
                places,
                d_values,
                None,
                scale,
                nq,
                *shares(left),
                *strides_of(right, heads),
            )
            d_left = run(kernels.of_left, left, nq, given, "d_left")
        if ctx.needs_input_grad[1]:
            lengths = (len(distances), nq, n, q_start)
            given = (left, distances, places, d_values, None, scale, *lengths, *shares(right), *strides_of(left, heads))
            d_right = run(kernels.of_right, right, n, given, "d_right", FEW=picks <= _FEW, UNROLL=4)
        return d_left, d_right, None, None


def strides_of(vectors: Tensor, heads: int) -> tuple[int, int, int, int]:
    """Of batch, heads and rows, and how many heads share vectors."""
    batch, own, rows = vectors.stride()[:3]
    return batch if vectors.shape[0] > 1 else 0, own, rows, heads // vectors.shape[1]
