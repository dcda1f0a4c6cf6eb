"""Stages that look along a line of keys: the mean of neighbours, and sums of all keys up to a query.

From: a stage and rows of queries.  To: its array.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spdsl.runtime.memo import Memo
from spdsl.runtime.points import TENSOR_AXES
from spdsl.semantics.build import TRUE
from spdsl.semantics.graph import TENSORS, Prefix, Smooth
from spdsl.semantics.nodes import Load

if TYPE_CHECKING:
    from spdsl.runtime.arrays import Arrays


def smoothed(arrays: Arrays, stage: Smooth, rows: Tensor | None, memo: Memo) -> Tensor:
    """The mean of the entries around each, where what is absent or past an end counts as 0."""
    dim = 1 + stage.axes.index(stage.over)
    value = arrays.full(stage.value, stage.axes, rows, memo)
    only = arrays.filter(stage.only, stage.axes, rows, memo)
    width = int(arrays.evaluate(stage.width, (), None, memo))
    value = torch.where(only, value, 0.0).movedim(dim, -1)
    if not value.numel():
        return value.movedim(-1, dim)
    lines = value.reshape(-1, 1, value.shape[-1])
    found = torch.nn.functional.avg_pool1d(lines, width, stride=1, padding=width // 2)
    return found.reshape(value.shape).movedim(-1, dim)


def prefix(arrays: Arrays, stage: Prefix, rows: Tensor | None, memo: Memo) -> Tensor:
    """For each query the sum or mean of what the keys up to it have; 0 where there are none."""
    inner = tuple("k" if axis == "q" else axis for axis in stage.axes)
    dim = 1 + inner.index("k")
    lines = arrays.lines
    if stage.name not in arrays.sums and (made := _by_kernels(arrays, stage, inner)) is not None:
        arrays.sums[stage.name] = made
    if stage.name not in arrays.sums:
        # What belongs to keys is summed up once; sums in float64 stay exact enough for differences of any length.
        value = arrays.full(stage.value, inner, None, memo)
        only = arrays.filter(stage.only, inner, None, memo)
        # Rows of keys lie together: to add along another dimension takes a hundred times as long.
        found = torch.where(only, value, 0.0).movedim(dim, -1).double().cumsum(-1)
        if stage.kind == "mean":
            there = only.expand(torch.broadcast_shapes(only.shape, (1,) * value.dim())).movedim(dim, -1)
            counts = there.expand(*there.shape[:-1], found.shape[-1]).cumsum(-1)
            found = found / counts.clamp(min=1)
        arrays.sums[stage.name] = torch.nn.functional.pad(found, (1, 0)).float().movedim(-1, dim)
    sums: Tensor = arrays.sums[stage.name]
    whole = rows is None or rows is lines.points_of_rows("q")
    if whole and lines.q_start >= 0 and lines.q_start + lines.nq < sums.shape[dim]:
        return sums.narrow(dim, lines.q_start + 1, lines.nq)
    numbers = lines.points("q") if rows is None else rows + lines.q_start
    return sums.index_select(dim, (numbers + 1).clamp(0, sums.shape[dim] - 1))


def _by_kernels(arrays: Arrays, stage: Prefix, inner: tuple[str, ...]) -> Tensor | None:
    """What stands before each key and behind the last, of vectors of all keys; None where torch adds up."""
    plain = arrays.kernels and stage.only == TRUE and len(inner) == 3 and inner[1] == "k"
    if not plain or not isinstance(stage.value, Load) or not arrays.reads_whole(stage.value):
        return None
    if stage.value.table in TENSORS and inner == TENSOR_AXES[stage.value.table]:
        value = arrays.tensors[stage.value.table]  # as it is, in its own type
    else:
        value = arrays.full(stage.value, inner, None, Memo())
    if value.requires_grad or not value.is_floating_point():
        return None
    from spdsl.runtime.prefix_kernels import up_to_each

    return up_to_each(value, mean=stage.kind == "mean")
