"""Which tiles of the attention matrix a pattern touches, and how a kernel walks them.

Bounds are int expressions of `spdsl.semantics.nodes`: of ``Index("i")`` (query tile) when walking by query, of
``Index("j")`` (key tile) when walking by key, of ``Extent`` run-time lengths, and of `Load`s and indices that are
constant for a program (``prefix[b]``, ``h``, ``g``).  All intervals are half open.  Under `Residues` also of
``Index("q_class")`` and ``Index("k_class")``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from spdsl.semantics.nodes import Expr

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
    """Disjoint slots in closed form; no metadata."""

    slots: tuple[Slot, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListWalk:
    """Tiles from lists that the run time builds from the tables.

    ``reason`` says why no closed form is used; where one part of the set is to blame, ``culprit`` is its subject.
    """

    reason: str
    culprit: Expr | None = None


Walk: TypeAlias = SlotWalk | ListWalk


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
