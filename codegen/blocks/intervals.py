"""Blocks of kernels that search a sorted table for the tiles of a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spdsl.analysis.tiles import Reach, Shape
from spdsl.semantics.nodes import Expr, Side


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalProgram:
    """A program that owns TILES tiles of ``side`` and finds the interval of walked rows of each.

    Names ``tiles``, the positions of their rows, ``exist``, which of these there are, ``first`` and ``end`` of the
    positions of the other side, ``columns`` 0 to 3 and ``found``, the ends of all positions, both ``[TILES, 4]``.
    """

    side: Side
    ratio: int
    heads: Literal["h", "g"] | None
    shape: Shape
    far: int
    classes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchBegin:
    """Name ``wanted``, the least, greatest, least and greatest ``value`` of each tile, and ``lo`` and ``hi``, between
    which the first positions that reach them lie; ``steps`` halvings find these.  ``long`` compares in 64 bits."""

    value: Expr
    long: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchMiddle:
    """Name the positions of ``side`` half way between ``lo`` and ``hi``, ``[TILES, 4]``."""

    side: Side


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchStep:
    """Go on below the middle where its ``mark`` reaches what is wanted, else above it."""

    side: Side
    mark: Expr
    start: Reach | None
    end: Reach | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchEnd:
    """Narrow ``found`` to what begins, and ends, where the search did; rows count from the first of the tensor."""

    side: Side
    shape: Shape
    far: int
    start: Reach | None
    end: Reach | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreIntervals:
    """Write ``found`` into ``pointer`` ``[batch or 1, heads or 1, interval_rows, 4]`` (contiguous, int32)."""

    pointer: str
    heads: Literal["h", "g"] | None
