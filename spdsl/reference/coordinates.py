"""What ``q.blk`` and ``k.y`` are, from the declarations of a bound pattern."""

from __future__ import annotations

from spdsl.semantics import build
from spdsl.semantics.nodes import Axis, BoundPattern, Coord, Expr, Grid, Index, Load, Side
from spdsl.semantics.rewrite import transform


def coordinate(pattern: BoundPattern, side: Side, name: str) -> Expr:
    """The coordinate ``name`` of a position, as arithmetic on ``Index(side)`` and other coordinates of that side."""
    for axis in pattern.axes:
        if axis.name == name:
            return _of_side(_on_axis(axis), side)
    for grid in pattern.grids:
        for place, (label, _) in enumerate(grid.coordinates):
            if label == name:
                return _of_side(_on_grid(grid, place), side)
    raise KeyError(name)


def _on_axis(axis: Axis) -> Expr:
    if axis.table is not None:
        return Load(table=axis.table, dtype="int", indices=axis.of)
    if axis.into is not None:
        return build.floordiv(build.mul(axis.of[0], axis.into), axis.extents[0])
    assert axis.size is not None
    whole: Expr = build.lift(0)
    for part, size, extent in zip(axis.of, axis.size, axis.extents, strict=True):
        whole = build.add(build.mul(whole, build.ceildiv(extent, size)), build.floordiv(part, size))
    return whole


def _on_grid(grid: Grid, place: int) -> Expr:
    """Row-major; the first coordinate goes on counting past the end of the grid."""
    inner: Expr = build.lift(1)
    for _, extent in grid.coordinates[place + 1 :]:
        inner = build.mul(inner, extent)
    whole = build.floordiv(grid.of, inner)
    return whole if place == 0 else build.mod(whole, grid.coordinates[place][1])


def _of_side(expr: Expr, side: Side) -> Expr:
    def turn(node: Expr) -> Expr | None:
        match node:
            case Index(name="k"):
                return Index(name=side)
            case Coord(axis=axis):
                return Coord(side=side, axis=axis)
            case _:
                return None

    return transform(expr, turn)
