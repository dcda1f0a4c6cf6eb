"""Where the members of an axis lie: count, first, last and size of a coordinate, as expressions.

Positions are counted in tokens; a division of a grid coordinate counts in units of that coordinate.  Constant sizes
and run-time lengths alike: nothing is bound yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from spdsl.semantics import build
from spdsl.semantics.nodes import Axis, Coord, Expr, Extent, Index, Load

Edge = Callable[[Expr], Expr]


def count(axis: Axis) -> Expr:
    """How many coordinates there are: windows that begin before the end; the last value of a table, plus one."""
    if axis.into is not None:
        return axis.into
    if axis.table is not None:
        last = Load(table=axis.table, dtype="int", indices=(build.sub(Extent(name="n"), 1),))
        return build.add(last, 1)
    counts = [build.ceildiv(extent, stride) for extent, stride in zip(axis.extents, strides(axis), strict=True)]
    whole = counts[0]
    for part in counts[1:]:
        whole = build.mul(whole, part)
    return whole


def strides(axis: Axis) -> tuple[Expr, ...]:
    """The distance from one member to the next, for each dimension."""
    if axis.step is not None:
        return (axis.step,)
    return axis.size or ()


def first(axis: Axis, coordinate: Expr, axes: Mapping[str, Axis]) -> Expr | None:
    """The first position of a coordinate, nominal; None where it would have to be searched for."""
    return _edge(axis, coordinate, axes, last=False)


def last(axis: Axis, coordinate: Expr, axes: Mapping[str, Axis]) -> Expr | None:
    """The last position of a coordinate, nominal: the end of the data does not clip it."""
    return _edge(axis, coordinate, axes, last=True)


def size(axis: Axis, coordinate: Expr, axes: Mapping[str, Axis]) -> Expr | None:
    """How many positions of the coordinate exist."""
    begin, end = first(axis, coordinate, axes), last(axis, coordinate, axes)
    if begin is None or end is None:
        return None
    return build.sub(build.apply("min", build.add(end, 1), _length(axis, axes)), begin)


def _length(axis: Axis, axes: Mapping[str, Axis]) -> Expr:
    match axis.of[0]:
        case Coord(axis=name) if name in axes:
            return _length(axes[name], axes)
        case _:
            return axis.extents[0]


def _edge(axis: Axis, coordinate: Expr, axes: Mapping[str, Axis], *, last: bool) -> Expr | None:
    if axis.table is not None or len(axis.of) != 1:
        return None
    if axis.into is not None:
        # The positions p with p * into // length == c begin at the ceiling of c * length / into.
        begin = build.ceildiv(build.mul(build.add(coordinate, 1 if last else 0), axis.extents[0]), axis.into)
        edge = build.sub(begin, 1) if last else begin
    else:
        assert axis.size is not None
        edge = build.mul(coordinate, strides(axis)[0])
        edge = build.add(edge, build.sub(axis.size[0], 1)) if last else edge
    match axis.of[0]:
        case Coord(axis=name) if name in axes:
            return _edge(axes[name], edge, axes, last=last)
        case _:
            return edge


def coordinate(axis: Axis, side: str) -> Expr:
    """The coordinate of a position, for axes whose members do not overlap, by coordinates it is made of."""
    parts = [_of_side(part, side) for part in axis.of]
    if axis.table is not None:
        return Load(table=axis.table, dtype="int", indices=(parts[0],))
    if axis.into is not None:
        return build.floordiv(build.mul(parts[0], axis.into), axis.extents[0])
    assert axis.size is not None
    whole: Expr | None = None
    for part, size, extent in zip(parts, axis.size, axis.extents, strict=True):
        tile = build.floordiv(part, size)
        whole = tile if whole is None else build.add(build.mul(whole, build.ceildiv(extent, size)), tile)
    assert whole is not None
    return whole


def _of_side(part: Expr, side: str) -> Expr:
    match part:
        case Coord(axis=name):
            return Coord(side="q" if side == "q" else "k", axis=name)
        case _:
            return Index(name=side)
