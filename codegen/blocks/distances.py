"""Blocks of kernels that sum gradients by distance."""

from __future__ import annotations

from dataclasses import dataclass

from spdsl.analysis.tiles import Shape
from spdsl.semantics.nodes import Expr, Side


@dataclass(frozen=True, slots=True, kw_only=True)
class DistanceProgram:
    """A program that owns the distances from ``first`` on, of rows minus keys, for one query head.

    Slots count from 0 at the least distance, ``1 - key_rows``.  Names ``first``, and ``lo`` and ``hi``: the query tiles
    with such pairs.
    """

    ratio: int
    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class DistancePositions:
    """Rows and positions of query tile ``i`` and of the 2 * BLOCK_D keys that reach all its pairs at the owned
    distances."""

    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRows:
    """A tile of ``k_rows`` or ``q_rows``, wherever they begin; zeros for rows that do not exist."""

    name: str
    prefix: str
    side: Side
    columns: str
    padded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SumDiagonals:
    """Add the diagonals of ``ds * factor`` to ``name``, one number for each owned distance."""

    name: str
    factor: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreDistances:
    """Write one number for each owned distance into ``pointer`` ``[batch, heads, nq + key_rows - 1]``."""

    value: str
    pointer: str
