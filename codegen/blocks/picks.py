"""Blocks that walk what queries have picked."""

from __future__ import annotations

from dataclasses import dataclass

from spdsl.analysis.plans import Precision
from spdsl.analysis.tiles import Shape
from spdsl.codegen.blocks.naming import By, Part


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedProgram:
    """Which tile of queries, heads and sequence this program works on; a tile holds ``heads`` that are neighbours.

    Names ``i``, ``owner``, the number of these heads, ``first_head``, ``g`` and ``b``.
    """

    heads: int
    ratio: int
    reverse: bool
    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class PickedItem:
    """Which block of keys, heads and sequence this program works on, and which of the queries that have picked it.

    Names ``j``, one of the ``parts`` tiles of the block, ``owner`` (of ``owners``), ``first_head``, ``g``, ``b``,
    ``first`` and ``last``, the place of these queries in the list, and ``slot`` and ``item``, where sums are kept.
    """

    heads: int
    ratio: int
    owners: int
    parts: int
    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class PickedRow:
    """As `PickedItem`, for a program that adds up parts: ``piece`` of ``pieces`` of a tile, in which ``j`` counts from
    then on, ``count`` parts from ``first_slot`` on."""

    heads: int
    ratio: int
    owners: int
    parts: int
    pieces: int
    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRows:
    """How the rows of a tile are laid out: ``positions`` queries for each of ``heads``, of which there are ``lanes``,
    the last ones only to fill the tile.  Names ``q_places`` and ``h_rows`` of each row, and ``h``."""

    part: Part
    heads: int
    lanes: int
    positions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedPositions:
    """As `Positions`, of a tile of ``positions`` queries with their heads; ``padded``: rows of no head are past the
    end."""

    shape: Shape
    positions: int
    heads: int
    padded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PickedBounds:
    """Read ``begin`` and ``end`` of the program's list: that of its tile, or of ``runs`` tiles that are neighbours;
    with ``within`` of what a head has picked for all of its queries, from key ``lo`` to before ``hi``."""

    runs: int | None
    within: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PickedTile:
    """Read the number ``j`` of the walked tile, one of ``parts`` of a block, and with ``many`` the ``bits`` of the
    queries that have picked it."""

    parts: int
    many: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBits:
    """Name ``picked``, whether the query of a row has picked the tile, or with ``each`` the key, from ``bits``.

    These are of queries for each block, or in a kernel by key of keys for each query.
    """

    each: bool
    by: By


@dataclass(frozen=True, slots=True, kw_only=True)
class PickedKeys:
    """Read the keys of the walked tile ``t``, ``k_listed``, past the end where there are none: ``columns`` of those in
    the listed blocks of ``block``.

    With ``many`` the ``bits`` of the queries that have picked each, with ``ends`` the keys ``nearest`` and
    ``farthest``, between which they lie.
    """

    block: int
    columns: int
    many: bool
    ends: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GatheredKeys:
    """As `Positions`, of the keys that `PickedKeys` has read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PickedQueries:
    """Read which queries the walked tile ``t`` holds: ``positions`` of those in runs of ``rows`` that are listed.

    Names ``q_listed``, their rows, past the end where there are none, and with ``ends`` the rows ``nearest`` and
    ``farthest``, between which they lie.  With ``bits`` those of the keys of the tile that each has picked.  With
    ``pieces`` what is listed is the first query of each piece of a run, which has ``rows`` at most, and where it ends.
    """

    rows: int
    positions: int
    shape: Shape
    ends: bool
    bits: bool
    padded: bool
    heads: int
    pieces: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedPositions:
    """As `Positions`, of the queries that `PickedQueries` or `GatheredItem` has read."""

    shape: Shape
    part: Part


@dataclass(frozen=True, slots=True, kw_only=True)
class GatheredItem:
    """As `PickedItem`, for a program by query: which queries it owns, ``q_listed``, and the ``block`` that they have
    picked.  They stand in the list from ``first`` to ``last``, and between the rows ``nearest`` and ``farthest``."""

    heads: int
    ratio: int
    owners: int
    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class GatheredRows:
    """Name ``q_listed``, the queries of a `GatheredItem` by the rows of its tile."""

    positions: int
    heads: int
    padded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GatheredTurns:
    """Name ``turns``, the ``parts`` tiles of the block, or none where the program has no queries."""

    parts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreEntries:
    """Write ``value`` ``[BLOCK_Q, columns]``, or with ``columns`` empty one number for each row, to where what belongs
    to an entry of the list and a head is kept: ``pointer`` ``[entries, heads, columns]``."""

    value: str
    pointer: str
    columns: str
    heads: int
    positions: int
    dtype: Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryAt:
    """Name ``entry_at``, where what belongs to pick ``p`` of every row is kept, below 0 if there is none."""

    heads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadEntries:
    """Read what `StoreEntries` wrote for ``entry_at``, in fp32; ``other`` where there is no entry."""

    name: str
    pointer: str
    columns: str
    other: float
