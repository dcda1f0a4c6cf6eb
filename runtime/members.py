"""Which positions belong to each value of a coordinate.

From: a coordinate of a bound pattern and the number of positions.  To: a table of positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spdsl.diagnostics import error
from spdsl.runtime.evaluate import Tables, evaluate
from spdsl.runtime.pairs import Pairs
from spdsl.semantics import axes
from spdsl.semantics.expand import expand
from spdsl.semantics.nodes import BoundPattern, Coord, Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """``positions [count, most]`` of each value of a coordinate, ascending; ``exist`` false where there are fewer.

    Places that do not exist repeat the first member, or 0 where a value has none.
    """

    positions: Tensor
    exist: Tensor

    @property
    def first(self) -> Tensor:
        """One member of each value, ``[count]``."""
        return self.positions[:, 0]


def members(pattern: BoundPattern, axis: str | None, pairs: Pairs, tables: Tables) -> Members:
    """The positions of each value of a coordinate; without ``axis`` each position is a value of its own.

    Raises:
        SpatError: the axis has overlapping windows (SP404).
    """
    position = torch.arange(pairs.keys, device=pairs.device)
    if axis is None:
        return Members(positions=position[:, None], exist=torch.ones_like(position, dtype=torch.bool)[:, None])
    _refuse_windows(pattern, axis)
    env = pairs.extents() | {"k": position}
    coordinate = evaluate(expand(pattern, Coord(side="k", axis=axis)), env, tables).expand(pairs.keys)
    count = int(evaluate(expand(pattern, count_of(pattern, axis)), pairs.extents(), tables))
    return _grouped(coordinate, count)


def everything(pairs: Pairs) -> Members:
    """All positions as the members of one value."""
    position = torch.arange(pairs.keys, device=pairs.device)
    return Members(positions=position[None], exist=torch.ones_like(position, dtype=torch.bool)[None])


def count_of(pattern: BoundPattern, name: str) -> Expr:
    """How many values a coordinate has."""
    for axis in pattern.axes:
        if axis.name == name:
            return axes.count(axis)
    return next(size for grid in pattern.grids for part, size in grid.coordinates if part == name)


def _refuse_windows(pattern: BoundPattern, name: str) -> None:
    for axis in pattern.axes:
        if axis.name == name and axis.step is not None and (axis.size is None or axis.step != axis.size[0]):
            raise error(
                "SP404",
                f"reductions over the overlapping windows of `{name}` are not supported yet",
                axis.span,
                help="leave out `step`, so that each token is in one window",
            )


def _grouped(coordinate: Tensor, count: int) -> Members:
    """Positions sorted by coordinate; those with a coordinate outside the axis belong to none."""
    coordinate = torch.where((coordinate >= 0) & (coordinate < count), coordinate, count)
    order = torch.sort(coordinate, stable=True).indices
    sizes = torch.bincount(coordinate, minlength=count + 1)[:count]
    starts = sizes.cumsum(0) - sizes
    most = max(1, int(sizes.max())) if count else 1
    place = torch.arange(most, device=coordinate.device)
    exist = place < sizes[:, None]
    places = torch.where(exist, starts[:, None] + place, starts[:, None]).clamp(max=max(len(order) - 1, 0))
    positions = order[places] if len(order) else places
    return Members(positions=torch.where(sizes[:, None] > 0, positions, 0), exist=exist)
