"""From expressions over coordinates to arithmetic over positions: ``q.blk`` becomes ``q // 64``.

From: an expression of a bound pattern.  To: the same value, written with ``q`` and ``k`` and loads of sorted tables alone.
The inside of `Reduce` and `Top` keeps its coordinates: what they range over is told by coordinates, not by positions.
"""

from __future__ import annotations

from spdsl.semantics import axes as axis_rules
from spdsl.semantics import build
from spdsl.semantics.fold import fold
from spdsl.semantics.nodes import BoundPattern, Coord, Expr, Grid, Index, Side
from spdsl.semantics.rewrite import transform


def expand(pattern: BoundPattern, expr: Expr) -> Expr:
    """``expr`` without coordinates outside of stages, folded."""

    def rewrite(node: Expr) -> Expr | None:
        return coordinate(pattern, node.side, node.axis) if isinstance(node, Coord) else None

    return fold(transform(expr, rewrite, into_stages=False))


def coordinate(pattern: BoundPattern, side: Side, name: str) -> Expr:
    """The coordinate ``name`` of the position of a side, as arithmetic over the position."""
    for axis in pattern.axes:
        if axis.name == name:
            return expand(pattern, axis_rules.coordinate(axis, side))
    for grid in pattern.grids:
        if any(name == each for each, _ in grid.coordinates):
            return _grid_coordinate(pattern, grid, side, name)
    raise KeyError(name)


def _grid_coordinate(pattern: BoundPattern, grid: Grid, side: Side, name: str) -> Expr:
    """Row-major: what is left after dividing by the extents to the right, within the extent (the first is not cut off)."""
    place = expand(pattern, on_side(grid.of, side))
    names = [each for each, _ in grid.coordinates]
    position = names.index(name)
    for _, extent in reversed(grid.coordinates[position + 1 :]):
        place = build.floordiv(place, extent)
    return place if position == 0 else build.mod(place, grid.coordinates[position][1])


def on_side(expr: Expr, side: Side) -> Expr:
    """An expression of key positions, written for a side."""

    def rewrite(node: Expr) -> Expr | None:
        match node:
            case Index(name="k"):
                return Index(name=side)
            case Coord():
                return Coord(side=side, axis=node.axis)
            case _:
                return None

    return transform(expr, rewrite)
