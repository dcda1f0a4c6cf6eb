"""The arrays of scores, softmaxes and selections, for some rows of queries."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spdsl.diagnostics import error
from spdsl.runtime.memo import Memo
from spdsl.runtime.ranking import best, heaviest, in_order
from spdsl.semantics.build import TRUE
from spdsl.semantics.graph import Score, Select, Softmax, side_of
from spdsl.semantics.nodes import Const, Expr
from spdsl.semantics.rewrite import free_axes

if TYPE_CHECKING:
    from spdsl.runtime.arrays import Arrays


def score(arrays: Arrays, stage: Score, rows: Tensor | None, memo: Memo) -> Tensor:
    """Products of vectors, times the scale."""
    left, right = (_vectors(arrays, stage, part, rows, memo) for part in (stage.left, stage.right))
    names = dict.fromkeys((*left[0], *right[0]))
    letters = {axis: chr(ord("a") + place) for place, axis in enumerate(names)}
    wanted = [each for axis in stage.axes for each in (("g", "r") if axis == "h" and "r" in names else (axis,))]
    spelled = ["".join(letters[axis] for axis in axes) for axes in (left[0], right[0], ("b", *wanted))]
    batch = max(left[1].shape[0], right[1].shape[0])
    one, two = (x.expand(batch, *x.shape[1:]) if x.shape[0] != batch else x for x in (left[1], right[1]))
    size, other = one.shape[left[0].index(stage.over)], two.shape[right[0].index(stage.over)]
    refuse_unequal(stage, size, other)
    scale = 1 / math.sqrt(size) if stage.scale is None else float(arrays.evaluate(stage.scale, (), None, memo))
    if scale != 1:  # the smaller side takes less time than the product
        one, two = (one * scale, two) if one.numel() < two.numel() else (one, two * scale)
    product = torch.einsum(f"{spelled[0]},{spelled[1]}->{spelled[2]}", one, two)
    if "r" in names and "h" in stage.axes:
        place = 1 + wanted.index("g")
        product = product.flatten(place, place + 1)
    return product


def _vectors(
    arrays: Arrays, stage: Score, expr: Expr, rows: Tensor | None, memo: Memo
) -> tuple[tuple[str, ...], Tensor]:
    """One side of a score, and its axes; heads that share keys are ``g`` and ``r``."""
    read = free_axes(expr)
    sides = {side_of(axis) for axis in read} - {None}
    axes = tuple(axis for axis in stage.axes if axis in read or side_of(axis) in sides)
    by_group = "h" in stage.axes and "h" not in read and "g" in read
    axes = (("g",) if by_group else ()) + tuple(axis for axis in axes if axis != "g" or not by_group)
    space = (*axes, stage.over)
    value = arrays.full(expr, space, rows if "q" in sides else None, memo)
    if "h" in stage.axes and "h" in axes:
        place = space.index("h")
        value = value.unflatten(1 + place, (arrays.lines.groups, -1))
        return ("b", *space[:place], "g", "r", *space[place + 1 :]), value
    return ("b", *space), value


def softmax(arrays: Arrays, stage: Softmax, rows: Tensor | None, memo: Memo) -> Tensor:
    """Shares of the entries that are present; 0 for all others."""
    dim = 1 + stage.axes.index(stage.over)
    value = arrays.full(stage.value, stage.axes, rows, memo)
    if arrays.kernels and dim < value.dim() - 1 and value.numel():
        from spdsl.runtime.share_kernels import shares_among

        only = None if stage.only == TRUE else arrays.filter(stage.only, stage.axes, rows, memo)
        return shares_among(value, only, dim)
    if stage.only != TRUE:
        value = value.masked_fill(~arrays.filter(stage.only, stage.axes, rows, memo), -torch.inf)
    if not value.shape[dim]:
        return value
    if arrays.kernels and dim == value.dim() - 1 and not value.requires_grad:
        from spdsl.runtime.share_kernels import shares_of

        return shares_of(value)
    largest = value.amax(dim, keepdim=True).detach()
    # Where kernels do the rest this is little, and not worth waiting for a number in every call.
    if not arrays.kernels and bool(torch.isfinite(torch.where(largest == -torch.inf, 0.0, largest)).all()):
        return torch.softmax(value, dim).masked_fill(largest == -torch.inf, 0.0)
    # A NaN is absent, and infinite scores share all of the mass.
    value = value.masked_fill(value.isnan(), -torch.inf)
    largest = value.amax(dim, keepdim=True).detach()
    value = torch.where(largest == torch.inf, torch.where(value == torch.inf, 0.0, -torch.inf), value)
    empty = largest == -torch.inf
    found = torch.softmax(torch.where(empty, 0.0, value), dim)
    return torch.where(empty, 0.0, found)


def select(arrays: Arrays, stage: Select, rows: Tensor | None, memo: Memo) -> Tensor:
    """The set of chosen entries, bools."""
    axes = tuple(axis for axis in stage.axes if axis != stage.rank)
    # What is ranked together stands last, as one dimension.
    ranked = [1 + axes.index(axis) for axis in (*stage.also, stage.over)]
    last = list(range(-len(ranked), 0))
    value = arrays.full(stage.value, axes, rows, memo)
    only = arrays.filter(stage.only, axes, rows, memo)
    forced = None if stage.forced == Const(value=False) else arrays.filter(stage.forced, axes, rows, memo)
    shape = torch.broadcast_shapes(*(part.shape for part in (value, only, forced) if part is not None))
    sizes = [shape[dim] for dim in ranked]
    value, only = (part.expand(shape).movedim(ranked, last).flatten(last[0]) for part in (value, only))
    if forced is not None:
        forced = forced.expand(shape).movedim(ranked, last).flatten(last[0])
    amount = arrays.evaluate(stage.amount, axes, rows, memo)
    if isinstance(amount, Tensor):
        amount = amount.movedim(ranked, last).flatten(last[0])
    if stage.by == "mass":
        share = amount if isinstance(amount, Tensor) else float(amount)
        chosen = heaviest(value, only, forced, share)
        if stage.least is not None:
            chosen = chosen | best(value, only, forced, max(0, int(arrays.evaluate(stage.least, (), None, memo))))
    else:
        number = amount.clamp(min=0) if isinstance(amount, Tensor) else max(0, int(amount))
        if stage.rank is not None:
            found = in_order(value, only, forced, int(number))
            return found.movedim(-1, 2 + axes.index(stage.over)).movedim(0, 1 + stage.axes.index(stage.rank))
        chosen = best(value, only, forced, number)
    whole: Tensor = chosen.unflatten(-1, sizes)
    return whole.movedim(last, ranked)


def refuse_unequal(stage: Score, one: int, other: int) -> None:
    """Refuse a product of vectors of ``one`` and of ``other`` numbers."""
    if one != other:
        raise error(
            "SP346",
            f"vectors of {one} and of {other} numbers cannot be multiplied",
            stage.span,
            help=f"give both the same number of features along `{stage.over}`",
        )
