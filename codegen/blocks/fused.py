"""Blocks of the fused backward."""

from __future__ import annotations

from dataclasses import dataclass

from spdsl.analysis.plans import Precision
from spdsl.codegen.blocks.streamed import Corner
from spdsl.semantics.nodes import Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchOwn:
    """The copying warp loads the program's keys and values."""

    keys: Corner
    values: Corner


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchTile:
    """The copying warp loads tile ``i`` of Q and dO, with LSE and delta, into the next place of the ring, and says
    which it is; ``masked`` is told if it differs from tile to tile, and at ``bits`` those of its blocks of keys."""

    masked: Expr | None
    bits: int | None
    queries: Corner
    outputs: Corner


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockBits:
    """Name ``picked``, whether queries of the tile have picked the block of a key, ``block`` keys each, from the bits
    that are told at ``at``."""

    block: int
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchEnd:
    """The copying warp says that there are no more tiles of a head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedBegin:
    """A computing warp's accumulators ``dk`` and ``dv``; waits for its keys and values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedScores:
    """Start both products with the tile, and name the weights ``p``; ``factor`` as in `OnlineSoftmax`."""

    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedGradients:
    """From ``p`` to sums in ``dk`` and ``dv`` and to dQ in memory: each group sums half of its columns, or half of its
    rows where there are twice as many, which ``sums`` tells; all of it where it is ``alone``.  ``ordered`` leaves it to
    another warp to add them."""

    dtype: Precision
    sums: Corner
    ordered: bool = False
    alone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RowNumber:
    """``number`` of the program's row among those of its head, in the order in which their programs start."""

    splits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Touch:
    """Note that row ``number`` adds to tile ``i`` of dQ."""

    classes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AddBegin:
    """A warp that adds what the groups leave has none of their tiles yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddInTurn:
    """Add tile ``i`` to dQ when all rows of a lower ``number`` that touch it have done so, if it is one of those of
    this warp, which are every second."""

    sums: Corner
    classes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClearSums:
    """Zeros in the rows of ``Sums`` that the program owns, to which the fused kernel adds; ``sums_rows`` is 0 where
    there are none.  ``padded``: tiles are wider than rows."""

    padded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleSums:
    """Write the program's share of ``Sums`` of a head, times ``scale``, to ``dQ``, or with ``added`` add it to what is
    there."""

    dtype: Precision
    scale: float
    added: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedEnd:
    """Write ``dk``, times ``scale``, and ``dv``, or with ``added`` add them to what is there."""

    dtype: Precision
    scale: float
    keys: Corner
    values: Corner
    added: bool = False
