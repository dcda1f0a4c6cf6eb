"""Which tiles of the attention matrix a pattern touches, and how a kernel walks them.

Bounds are int expressions of `spdsl.semantics.nodes`: of ``Index("i")`` (query tile) when walking by query, of
``Index("j")`` (key tile) when walking by key, of ``Extent`` run-time lengths, and of `Load`s and indices that are
constant for a program (``prefix[b]``, ``h``, ``g``).  All intervals are half open.  Under `Residues` also of
``Index("q_class")`` and ``Index("k_class")``; of `Boxes` in place of the tiles, axis by axis, ``Index("i0")`` and
``Index("j0")``, ``Index("i1")`` and so on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Literal, TypeAlias

from spdsl.semantics.nodes import Apply, Const, Expr, Side

Shape: TypeAlias = Literal["square", "offset", "batched"]
"""How positions relate to rows of the tensors.

``square``: as many queries as keys, the first query at position 0.  ``offset``: the first query row is at the run-time
position ``q_start``.  ``batched``: as ``offset``, with ``q_start`` and the existing keys given for each sequence of
the batch (a kernel reads them once and goes on as in ``offset``).  ``q_start`` may be negative: rows at negative
positions are padding, keep nothing, and give zeros.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Tiles ``lo <= t < hi``; empty when ``hi <= lo``."""

    lo: Expr
    hi: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One run of touched tiles of a row: those of ``touched`` on the lattice for which ``filter`` holds.

    The lattice is ``(t - phase) % step < run``; ``step`` 1 means all.  ``filter`` is a bool expression that may also
    use the walked tile.  Tiles of ``full`` (clamped to ``touched``) need no mask; all others are masked.
    """

    touched: Interval
    full: Interval | None = None
    step: int = 1
    run: int = 1
    phase: Expr | None = None
    filter: Expr | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotWalk:
    """Disjoint slots in closed form; no metadata.

    ``long`` are rows whose number of tiles grows with the lengths of a call while that of the others does not; its
    bounds are of run-time lengths and positions.
    """

    slots: tuple[Slot, ...]
    long: Interval | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListWalk:
    """Tiles from lists that the run time builds from the tables.

    ``reason`` says why no closed form is used; where one part of the set is to blame, ``culprit`` is its subject.
    """

    reason: str
    culprit: Expr | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxWalk:
    """The boxes in a product of intervals, one interval for each axis of the grid; no metadata.

    Boxes that lie in the full interval of every axis need no mask; ``full`` is None where there are none.
    """

    touched: tuple[Interval, ...]
    full: tuple[Interval, ...] | None


Walk: TypeAlias = SlotWalk | BoxWalk | ListWalk


@dataclass(frozen=True, slots=True, kw_only=True)
class Residues:
    """Every kept pair has ``(q - k) % modulus == shift``, and tiles are made of rows of one residue class.

    Tile ``i`` of class ``q_class`` holds the query rows ``(i * block_q + t) * modulus + q_class``.  They meet keys of
    one class alone, ``k_class = (q_start + q_class - shift) % modulus``, whose rows lie in tiles in the same way; by
    key the query class follows from that of the keys.  So a dilated window becomes a dense one.  ``keep`` is what is
    left to test of such pairs.
    """

    modulus: int
    shift: int
    keep: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxes:
    """Tiles that are boxes of a grid, which the positions 0 to n - 1 fill row by row.

    Axis ``a`` has ``extents[a]`` places; a tile holds ``box_q[a]`` of them for queries and ``box_k[a]`` for keys, and
    the places of a box, too, are counted row by row.  Places past the end of an axis are rows that do not exist.  In
    expressions ``q0``, ``q1``, … and ``k0``, ``k1``, … are the coordinates of a pair, ``i0`` … and ``j0`` … those of a
    box of queries and of keys.  A pair is kept where ``rest`` and, for every axis, ``along`` hold; ``along[a]`` is
    about the coordinates of axis ``a`` alone.
    """

    extents: tuple[int, ...]
    box_q: tuple[int, ...]
    box_k: tuple[int, ...]
    along: tuple[Expr, ...]
    rest: Expr

    @property
    def keep(self) -> Expr:
        """What is to be tested of a pair."""
        clauses = [clause for clause in (*self.along, self.rest) if clause != Const(value=True)]
        return reduce(lambda a, b: Apply(op="and", args=(a, b), dtype="bool"), clauses) if clauses else self.rest

    @property
    def strides(self) -> tuple[int, ...]:
        """How many rows lie between neighbours along each axis."""
        return tuple(prod(self.extents[axis + 1 :]) for axis in range(len(self.extents)))

    def box(self, side: Side) -> tuple[int, ...]:
        """The sizes of a box of queries or of keys."""
        return self.box_q if side == "q" else self.box_k

    def counts(self, side: Side) -> tuple[int, ...]:
        """How many boxes there are along each axis."""
        return tuple(-(-extent // size) for extent, size in zip(self.extents, self.box(side), strict=True))

    def ragged(self, side: Side) -> tuple[int, ...]:
        """The axes whose last box has places past the end."""
        sizes = zip(self.extents, self.box(side), strict=True)
        return tuple(axis for axis, (extent, size) in enumerate(sizes) if extent % size)


def tiles_among(rows: int, block: int, classes: int) -> int:
    """How many tiles with a row that exists there are of all residue classes, counted with the classes changing
    fastest: tile ``t`` holds the rows ``(t // classes * block + x) * classes + t % classes``."""
    if rows == 0:
        return 0
    before = (rows - 1) // (block * classes)
    return before * classes + min(classes, rows - before * block * classes)


@dataclass(frozen=True, slots=True, kw_only=True)
class TileRelation:
    """The touched and full tiles of a pattern for one pair of tile sizes, by query tile and by key tile.

    With ``residues`` those of a pair of classes.
    ``notes`` tells what the analysis gave up to stay within its budget, for `explain`.
    """

    block_q: int
    block_k: int
    shape: Shape
    by_query: Walk
    by_key: Walk
    notes: tuple[str, ...] = ()
    residues: Residues | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxRelation:
    """The touched and full boxes of a pattern on a grid, by box of queries and by box of keys.

    ``notes`` tells what the analysis gave up, for `explain`.
    """

    boxes: Boxes
    by_query: BoxWalk
    by_key: BoxWalk
    notes: tuple[str, ...] = ()
