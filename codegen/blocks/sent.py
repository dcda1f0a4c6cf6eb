"""Blocks of the kernel by key whose queries a warp of its own copies from wherever they stand."""

from __future__ import annotations

from dataclasses import dataclass

from spdsl.analysis.plans import Precision
from spdsl.analysis.tiles import Shape
from spdsl.codegen.blocks.streamed import Corner


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchPicks:
    """The copying warp loads the program's keys and values, and then the ``turns`` tiles of queries that have picked
    them, with LSE, delta and the numbers of their rows.

    A tile holds ``positions`` queries with ``heads`` heads each, query by query, of runs of ``rows`` that are listed;
    the copy engine moves ``halves`` of the columns of one query at once.
    """

    keys: Corner
    values: Corner
    positions: int
    heads: int
    rows: int
    halves: int
    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class PicksBegin:
    """The accumulators ``dk`` and ``dv``; waits for keys and values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldQueries:
    """Wait for tile ``t``, and read the rows ``nearest`` and ``farthest``, between which its queries lie."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PicksScores:
    """Start both products with the tile, and name the weights ``p``; ``factor`` as in `OnlineSoftmax`."""

    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SentRows:
    """Name ``q_listed``, the rows of the tile's queries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PicksGradients:
    """From ``p`` to sums in ``dk`` and ``dv``; the tile's place is free then."""

    dtype: Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class PicksEnd:
    """Write ``dk``, times ``scale``, and ``dv``, or with ``added`` add them to what is there."""

    dtype: Precision
    scale: float
    keys: Corner
    values: Corner
    added: bool
