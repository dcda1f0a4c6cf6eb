"""From coordinates to arithmetic: ``q.blk`` becomes ``q // 64``, a coordinate by a table becomes a load.

`Reduce`, `Top` and `Noise` inside them keep their coordinates: they become stage tables, one axis for each coordinate.
Overlapping windows have no coordinate of a position: `bind` has replaced them.
"""

from __future__ import annotations

from spdsl.semantics import axes as axis_rules
from spdsl.semantics import build
from spdsl.semantics.fold import fold
from spdsl.semantics.nodes import Axis, BoundPattern, CheckedPattern, Coord, Expr, Grid, Index, Side
from spdsl.semantics.rewrite import on_side, transform


def expand(pattern: BoundPattern | CheckedPattern, expr: Expr, *, on: Grid | None = None) -> Expr:
    """The expression without coordinates outside of stages; folded.

    The coordinates of the grid ``on`` become indices ``q0``, ``q1``, … and ``k0``, ``k1``, … by the numbers of its
    axes.
    """
    axes = {axis.name: axis for axis in pattern.axes}
    grids = {name: (grid, place) for grid in pattern.grids for place, (name, _) in enumerate(grid.coordinates)}
    done: dict[tuple[Side, str], Expr] = {}

    def coordinate(side: Side, name: str) -> Expr:
        key = (side, name)
        if key not in done and on is not None and name in grids and grids[name][0] is on:
            done[key] = Index(name=f"{side}{grids[name][1]}")
        elif key not in done:
            raw = _axis(axes[name], side) if name in axes else _grid(*grids[name], side)
            done[key] = fold(transform(raw, rewrite, into_stages=False))
        return done[key]

    def rewrite(node: Expr) -> Expr | None:
        return coordinate(node.side, node.axis) if isinstance(node, Coord) else None

    return fold(transform(expr, rewrite, into_stages=False))


def _axis(axis: Axis, side: Side) -> Expr:
    return axis_rules.coordinate(axis, side)


def _grid(grid: Grid, place: int, side: Side) -> Expr:
    """Row-major: divide by the extents that vary faster, then wrap; the slowest is not wrapped."""
    value = on_side(grid.of, side)
    faster: Expr | None = None
    for _, extent in grid.coordinates[place + 1 :]:
        faster = extent if faster is None else build.mul(faster, extent)
    if faster is not None:
        value = build.floordiv(value, faster)
    return value if place == 0 else build.mod(value, grid.coordinates[place][1])
