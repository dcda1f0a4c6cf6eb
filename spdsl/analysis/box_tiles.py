"""Tiles that are boxes of a grid, and which of them a pattern touches.

Bounds of their walks (`spdsl.analysis.tiles.BoxWalk`) are expressions of ``Index("i0")`` and ``Index("j0")``,
``Index("i1")`` and so on, axis by axis, in the place of the tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from math import prod

from spdsl.analysis.tiles import BoxWalk, tiles_among
from spdsl.semantics.nodes import Apply, Const, Expr, Index, Side


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxAxis:
    """One axis of a grid whose tiles are boxes.

    It has ``extent`` places, of which a box holds ``box_q`` for queries and ``box_k`` for keys, ``step`` apart: every
    kept pair has ``(q - k) % step == 0`` along the axis, and a box of queries meets boxes of its own class of places.
    ``keep`` is what the pattern asks of the coordinates of this axis, ``test`` what is left to ask of such pairs.
    """

    extent: int
    box_q: int
    box_k: int
    step: int
    keep: Expr
    test: Expr

    def box(self, side: Side) -> int:
        """The places of a box of queries or of keys."""
        return self.box_q if side == "q" else self.box_k

    def count(self, side: Side) -> int:
        """How many boxes there are, of all classes."""
        return tiles_among(self.extent, self.box(side), self.step)


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxes:
    """Tiles that are boxes of a grid, which the positions 0 to n - 1 fill row by row.

    The places of a box, too, are counted row by row; those past the end of an axis are rows that do not exist.  In
    expressions ``q0``, ``q1``, … and ``k0``, ``k1``, … are the coordinates of a pair, ``i0`` … and ``j0`` … those of a
    box of queries and of keys within its class of places, ``class0`` ….  Place ``x`` of box ``i0`` is the coordinate
    ``(i0 * box + x) * step + class0``.  A pair is kept where ``rest`` holds and ``keep`` of every axis.  With ``tail``
    there may be rows after those of the grid, or fewer: a row after the grid keeps, and is kept by, every row, and lies
    in a tile of consecutive rows.
    """

    axes: tuple[BoxAxis, ...]
    rest: Expr
    tail: bool = False

    @property
    def keep(self) -> Expr:
        """What is to be tested of a pair of rows of boxes that meet."""
        tests = [test for test in (*(axis.test for axis in self.axes), self.rest) if test != Const(value=True)]
        found = reduce(lambda a, b: Apply(op="and", args=(a, b), dtype="bool"), tests) if tests else self.rest
        for side in ("q", "k") if self.tail else ():
            after = Apply(op="ge", args=(Index(name=side), Const(value=self.places)), dtype="bool")
            found = Apply(op="or", args=(after, found), dtype="bool")
        return found

    @property
    def places(self) -> int:
        """The places of the grid."""
        return prod(self.extents)

    @property
    def extents(self) -> tuple[int, ...]:
        """The places of every axis."""
        return tuple(axis.extent for axis in self.axes)

    @property
    def steps(self) -> tuple[int, ...]:
        """How far the places of a box are apart on every axis."""
        return tuple(axis.step for axis in self.axes)

    @property
    def strides(self) -> tuple[int, ...]:
        """How many rows lie between neighbours along each axis."""
        return tuple(prod(self.extents[axis + 1 :]) for axis in range(len(self.axes)))

    def box(self, side: Side) -> tuple[int, ...]:
        """The sizes of a box of queries or of keys."""
        return tuple(axis.box(side) for axis in self.axes)

    def counts(self, side: Side) -> tuple[int, ...]:
        """How many boxes there are along each axis, of all classes."""
        return tuple(axis.count(side) for axis in self.axes)

    def ragged(self, side: Side) -> tuple[int, ...]:
        """The axes some of whose boxes have places past the end."""
        return tuple(at for at, axis in enumerate(self.axes) if axis.extent % (axis.box(side) * axis.step))


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxRelation:
    """The touched and full boxes of a pattern on a grid, by box of queries and by box of keys.

    ``notes`` tells what the analysis gave up, for `explain`.
    """

    boxes: Boxes
    by_query: BoxWalk
    by_key: BoxWalk
    notes: tuple[str, ...] = ()
