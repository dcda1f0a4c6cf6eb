"""Reductions over all queries: what is left belongs to keys, or to distances, and is added up chunk by chunk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spdsl.runtime.memo import Memo
from spdsl.semantics.graph import DISTANCE, Pool, on_side, side_of
from spdsl.semantics.nodes import Expr
from spdsl.semantics.rewrite import conjuncts, free_axes

if TYPE_CHECKING:
    from spdsl.runtime.arrays import Arrays


def over_rows(arrays: Arrays, stage: Pool) -> Tensor:
    """The array of a reduction over an axis of queries, or per distance."""
    inner = _inner(stage)
    own = on_side(inner, "q")
    assert own is not None
    rows = arrays.lines.points_of_rows(own)
    exist = torch.ones_like(rows, dtype=torch.bool)
    for condition in rows_alone(stage.only):
        # Rows that a probe leaves out are not computed.
        exist = exist & arrays.tensor(condition, (own,), rows, Memo()).view(-1)
    if own == "q":
        exist = exist & (arrays.lines.points("q") >= 0)
        weights = torch.ones_like(rows)
    else:
        weights = arrays.lines.shares(stage.over, None, stage.windows).weights[0]
        exist = exist & (weights > 0)
    rows = rows[exist]
    total = _Total(stage=stage, arrays=arrays)
    for some in rows.split(max(1, arrays.budget // max(1, arrays.row_width(stage)))):
        memo = Memo()
        value = arrays.full(stage.value, inner, some, memo)
        only = arrays.filter(stage.only, inner, some, memo)
        shape = torch.broadcast_shapes(value.shape, only.shape)
        total.add(value.expand(shape), only.expand(shape), weights[some], some)
    return total.result()


def _inner(stage: Pool) -> tuple[str, ...]:
    if stage.over != DISTANCE:
        return (*stage.axes, stage.over)
    return (*(axis for axis in stage.axes if axis != DISTANCE), "q", "k")


class _Total:
    """Sums, counts and extremes so far: entries in the last dimension are those of the result's last axis."""

    def __init__(self, *, stage: Pool, arrays: Arrays) -> None:
        self.stage, self.arrays = stage, arrays
        self.value: Tensor | None = None
        self.count: Tensor | None = None

    def add(self, value: Tensor, only: Tensor, weights: Tensor, rows: Tensor) -> None:
        kind = self.stage.kind
        weight = weights[:, None] if self.stage.over == DISTANCE else weights
        if value.is_floating_point() and kind in ("min", "max"):
            only = only & ~value.isnan()
        if kind in ("any", "all"):
            value = (value if kind == "any" else ~value).long()
        if kind in ("min", "max"):
            far = -torch.inf if value.is_floating_point() else torch.iinfo(value.dtype).min
            value = torch.where(only, value if kind == "max" else -value, far)
            part = self._largest(value, rows)
            self.value = part if self.value is None else torch.maximum(self.value, part)
        else:
            weighted = value * weight.to(value.dtype)
            nothing = torch.zeros((), dtype=weighted.dtype, device=value.device)
            part = self._sum(torch.where(only, weighted, nothing), rows)
            self.value = part if self.value is None else self.value + part
        counts = self._sum(torch.where(only, weight, 0), rows)
        self.count = counts if self.count is None else self.count + counts

    def _sum(self, value: Tensor, rows: Tensor) -> Tensor:
        if self.stage.over != DISTANCE:
            return value.sum(-1)
        flat, index = value.flatten(-2), self._distances(rows)
        room = torch.zeros(*flat.shape[:-1], self.arrays.lines.size(DISTANCE), dtype=flat.dtype, device=flat.device)
        return room.index_add(-1, index, flat)

    def _largest(self, value: Tensor, rows: Tensor) -> Tensor:
        if self.stage.over != DISTANCE:
            return value.amax(-1)
        flat, index = value.flatten(-2), self._distances(rows)
        far = -torch.inf if value.is_floating_point() else torch.iinfo(value.dtype).min
        room = torch.full(
            (*flat.shape[:-1], self.arrays.lines.size(DISTANCE)), far, dtype=flat.dtype, device=flat.device
        )
        return room.scatter_reduce(-1, index.expand(flat.shape), flat, "amax")

    def _distances(self, rows: Tensor) -> Tensor:
        lines = self.arrays.lines
        distance = rows[:, None] + lines.q_start - lines.points("k") - lines.first_distance
        return distance.flatten()

    def result(self) -> Tensor:
        stage, lines = self.stage, self.arrays.lines
        if self.value is None or self.count is None:
            sizes = [lines.size(axis) for axis in stage.axes]
            dtype = {"bool": torch.bool, "int": torch.int64, "float": torch.float32}[stage.dtype]
            return torch.full((1, *sizes), stage.kind == "all", device=lines.device).to(dtype)
        value = self.value
        match stage.kind:
            case "any":
                value = value > 0
            case "all":
                value = value == 0
            case "mean":
                value = value / self.count.clamp(min=1)
            case "min":
                value = torch.where(self.count > 0, -value, 0)
            case "max":
                value = torch.where(self.count > 0, value, 0)
            case _:
                pass
        if stage.over != DISTANCE:
            return value
        return value.movedim(-1, 1 + stage.axes.index(DISTANCE))


def rows_alone(expr: Expr) -> list[Expr]:
    """The parts of a condition that depend on queries alone."""
    return [
        part
        for part in conjuncts(expr)
        if {side_of(axis) for axis in free_axes(part)} <= {"q"}
        and free_axes(part)
        and not free_axes(part) & {"h", "g", "b"}
    ]
