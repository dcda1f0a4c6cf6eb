"""Which tiles of the attention matrix a pattern touches, and how a kernel walks them.

Bounds are int expressions of `spdsl.semantics.nodes`: of ``Index("i")`` (query tile) when walking by query, of
``Index("j")`` (key tile) when walking by key, of ``Extent`` run-time lengths, and of `Load`s and indices that are
constant for a program (``prefix[b]``, ``h``, ``g``).  All intervals are half open.  Under `Residues` also of
``Index("q_class")`` and ``Index("k_class")``.  Boxes of a grid are `spdsl.analysis.box_tiles`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from spdsl.semantics.nodes import Expr, Extent, Side
from spdsl.semantics.rewrite import free_indices

Shape: TypeAlias = Literal["square", "origin", "offset", "batched"]
"""How positions relate to rows of the tensors.

``square``: as many queries as keys, the first query at position 0.  ``offset``: the first query row is at the run-time
position ``q_start``.  ``origin``: as ``offset``, with a ``q_start`` of 0, so that tiles begin where runs of queries do.
``batched``: as ``offset``, with ``q_start`` and the existing keys given for each sequence of the batch (a kernel reads
them once and goes on as in ``offset``).  ``q_start`` may be negative: rows at negative positions are padding, keep
nothing, and give zeros.
"""

FAR = 1 << 28
"""Stands for no bound; no tile index comes near it."""


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


Reach: TypeAlias = Literal["ge", "gt"]
"""Whether a mark reaches a value by being at least as large, or only by being larger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A clause that keeps, for every own position, an interval of the walked positions.

    ``value`` is an int expression of own positions, ``mark`` one of walked positions that never falls from one to the
    next.  Kept are the positions from the first whose mark reaches the value by ``start`` (None: from the beginning) up
    to, without it, the first whose mark reaches it by ``end`` (None: to the last).
    """

    value: Expr
    mark: Expr
    start: Reach | None
    end: Reach | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuts:
    """Cuts of a walk, and the table of intervals that is made of them before the walk: four ints for every own tile.

    Some own position of the tile keeps walked rows from ``names[0]`` on and before ``names[3]`` only; all of them keep
    the rows from ``names[1]`` to ``names[2]``.  They are rows of the walked tensor, or `FAR_ROW`.  Bounds of slots load
    them under these names, by head (``heads`` is ``h``, ``g``, or None where heads do not differ) and by the number of
    the program's tile.
    """

    by: Literal["query", "key"]
    block: int
    names: tuple[str, str, str, str]
    heads: Literal["h", "g"] | None
    cuts: tuple[Cut, ...]


FAR_ROW = 1 << 30
"""Stands for the row of a position that there is not; no tensor has so many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotWalk:
    """Disjoint slots in closed form.

    No metadata, or with ``cuts`` four ints for each row, which the bounds of the slots load.  ``long`` are rows whose
    number of tiles grows with the lengths of a call while that of the others does not; its bounds are of run-time
    lengths and positions.
    """

    slots: tuple[Slot, ...]
    cuts: Cuts | None = None
    long: Interval | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Turned:
    """By key, what queries have picked: whole runs of ``rows`` queries by the blocks of ``block`` keys in the lists of
    ``table``, each of which serves ``heads`` query heads that are neighbours.

    A tile lies in one run and one block, so that lists say all of it but ``keep``; or it holds ``held`` blocks, and
    lists say with a bit for each which of them the run has picked.  ``bounds`` are those of ``keep`` by tiles: those
    of ``full`` need no mask.
    """

    table: str
    rows: int
    block: int
    heads: int
    keep: Expr
    bounds: Slot
    held: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ListWalk:
    """Tiles from lists that the run time builds from the tables; of what queries have picked, ``turned`` by key.

    ``reason`` says why no closed form is used; where one part of the set is to blame, ``culprit`` is its subject.
    """

    reason: str
    culprit: Expr | None = None
    turned: Turned | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxWalk:
    """The boxes in a product of intervals, one interval for each axis of the grid; no metadata.

    Boxes that lie in the full interval of every axis need no mask; ``full`` is None where there are none.
    """

    touched: tuple[Interval, ...]
    full: tuple[Interval, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DistanceWalk:
    """The same distances, in tiles, from every row of a class; ``reason`` and ``culprit`` as in `ListWalk`.

    The predicate does not change when ``q`` and ``k`` both move by ``period`` positions, nor do the tiles it touches
    when the row moves by ``span``, a multiple of it and of the walked tiles.  Let a row begin ``at`` a position, from
    the first walked tile on.  Its class is ``at % span // grain``, and its tiles are ``at // span`` whole spans
    of tiles past the distances listed for the class, as far as they exist.  The run time lists them (`TileList`,
    with classes for rows and distances for tiles).  ``by_head`` and ``by_batch``: they may depend on ``h`` or ``g``, on
    ``b``; ``tables`` and ``extents`` are the inputs, and the lengths and parameters by the names of their variables, on
    which they depend.
    """

    period: int
    span: int
    grain: int
    by_head: bool
    by_batch: bool
    tables: tuple[str, ...]
    extents: tuple[str, ...]
    reason: str
    culprit: Expr | None = None

    @property
    def classes(self) -> int:
        """How many kinds of rows there are."""
        return self.span // self.grain


@dataclass(frozen=True, slots=True, kw_only=True)
class PickWalk:
    """The tiles of keys that queries have picked (`Picks`); by key, the queries that have picked a tile's block.

    The run time lists them.  ``bounds`` are those of the rest of the set, by key of queries one by one: tiles outside
    of ``touched`` keep nothing, and those in ``full`` need no mask for it.  With ``speaks`` that is so of the rest
    without what tables tell of single keys, and tiles of which these tell something are masked wherever they lie.
    """

    bounds: Slot
    speaks: bool = False


Walk: TypeAlias = SlotWalk | BoxWalk | DistanceWalk | ListWalk | PickWalk


def depends_on_head(walk: Walk) -> bool:
    """Whether the tiles of a row differ from query head to query head."""
    match walk:
        case ListWalk():
            return True
        case SlotWalk(slots=slots):
            return any("h" in free_indices(bound) for slot in slots for bound in _expressions(slot))
        case BoxWalk(touched=touched, full=full):
            return any("h" in free_indices(end) for each in (*touched, *(full or ())) for end in (each.lo, each.hi))
        case DistanceWalk(by_head=by_head):
            return by_head
        case PickWalk():
            return False  # heads are packed


def _expressions(slot: Slot) -> tuple[Expr, ...]:
    intervals = (slot.touched,) if slot.full is None else (slot.touched, slot.full)
    found = [bound for interval in intervals for bound in (interval.lo, interval.hi)]
    return (*found, *(each for each in (slot.phase, slot.filter) if each is not None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Residues:
    """Every kept pair has ``(q - k) % modulus == shift``, and tiles are made of rows of one residue class.

    Tile ``i`` of class ``q_class`` holds the query rows ``(i * block_q + t) * modulus + q_class``.  They meet keys of
    one class alone, ``k_class = (q_start + q_class - shift) % modulus``, whose rows lie in tiles in the same way; by
    key the query class follows from that of the keys.  So a dilated window becomes a dense one.  ``keep`` is what is
    left to test of such pairs.  Kept distances are ``stride`` apart, a multiple of the modulus.
    """

    modulus: int
    shift: int
    keep: Expr
    stride: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """Tiles of one ``side`` are made of the rows for which ``where`` holds, in order, wherever they stand.

    The run time lists these rows; how many there are is `COUNT`.  ``keep`` is what is left to test of their pairs.
    ``by_group``: each key head has rows of its own, those for which ``where`` holds for any of its query heads.  With
    ``alike`` these are all rows, in such an order that those of a tile keep nearly the same interval of the other side.
    """

    side: Side
    where: Expr
    keep: Expr
    by_group: bool = False
    alike: bool = False


COUNT = Extent(name="marked_rows")


PickOrder: TypeAlias = Literal["alike", "union", "gathered"]
"""``alike``: neighbours of one run, which have picked the same blocks.  ``union``: neighbours, and what is walked is
what any of them has picked, with a bit for each.  ``gathered``: those that have picked one block, from wherever they
are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picks:
    """Queries pick blocks of keys, and tiles are made of what has been picked.

    ``table`` lists the blocks of ``block`` keys that each run of ``rows`` queries has picked, once for ``heads`` query
    heads that are neighbours; so a tile of queries holds all of these for ``positions`` queries, head by head.  The
    ``order`` says which queries these are.  With ``fine`` blocks are gathered into tiles of keys.  ``keep`` is what is
    left to test of a query and a key that it has picked.  With ``where`` all queries of a head have picked the same
    single keys, those for which it holds: there is no table, ``rows`` is 0, and a tile meets those of these keys that
    lie between the bounds of its walk.  With ``runs`` that table says which run of queries each belongs to; a tile by
    query then holds parts of several, and by key these are cut into pieces of ``rows`` queries at most.
    """

    table: str
    rows: int
    block: int
    heads: int
    positions: int
    order: PickOrder
    keep: Expr
    fine: bool = False
    where: Expr | None = None
    runs: str = ""

    @property
    def lanes(self) -> int:
        """The rows of a tile for each query: its heads, rounded up to a power of two."""
        return lanes_of(self.heads)


def lanes_of(heads: int) -> int:
    """The least power of two that is no less than ``heads``."""
    return 1 << (heads - 1).bit_length()


def tiles_among(rows: int, block: int, classes: int) -> int:
    """How many tiles with a row that exists there are of all residue classes, counted with the classes changing
    fastest: tile ``t`` holds the rows ``(t // classes * block + x) * classes + t % classes``."""
    if rows == 0:
        return 0
    before = (rows - 1) // (block * classes)
    return before * classes + min(classes, rows - before * block * classes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Which two tiles a program owns, where every so many are much longer than the others: alike ones.

    Tiles ``t`` with ``t % period == residue`` are long.  Of ``2 * period`` neighbouring tiles the two long ones are the
    first pair, and the others follow in order.  ``residue`` depends on heads and sequences at most.
    """

    period: int
    residue: Expr

    def programs(self, tiles: int) -> int:
        """How many pairs there are; the last may lie past the end."""
        return -(-tiles // (2 * self.period)) * self.period


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
