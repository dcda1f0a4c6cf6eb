"""Blocks that name what a program works on, positions, and values that are looked up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from spdsl.analysis.tiles import Shape
from spdsl.semantics.nodes import Dtype, Expr, Side

By: TypeAlias = Literal["query", "key"]
Part: TypeAlias = Literal["own", "walked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Which tile, head and sequence this program works on; names ``i`` or ``j``, ``h``, ``g``, ``b``.

    ``ratio`` query heads share a key head.  A kernel by key starts from ``g`` and loops over the heads of the group.
    ``reverse`` starts with the last tile, which under causal patterns has the longest row.  With ``classes`` a program
    owns a tile of one residue class of the rows, ``q_class`` or ``k_class``.  With ``counted`` the tiles of all heads
    and sequences are counted through, and ``item`` is the number of this one, with ``looped`` of those of the program.
    With ``heads_first`` a kernel by key starts the first tiles of all heads before the second ones.
    """

    by: By
    ratio: int
    reverse: bool
    shape: Shape
    classes: int | None = None
    counted: bool = False
    looped: bool = False
    heads_first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkItem:
    """What a program works on where long rows are split: as `Program`, and ``part`` of ``shares`` of the row's turns.

    Programs count over ``heads`` (of queries, or of keys in a kernel by key) and sequences: first ``items``, ``parts``
    for each of the ``long_rows`` of every head, then the other rows, one each.  Long rows are neighbours from
    ``first_long`` on, or with ``listed`` those that ``row_order`` names first.  Rows of a head are
    neighbours, or with ``heads_first`` the same rows of all heads.  With ``packed`` heads of queries share a tile, and
    programs count over those of keys.  With ``looped`` a program does several items, of which this is one.
    """

    by: By
    ratio: int
    heads: int
    reverse: bool
    shape: Shape
    listed: bool
    heads_first: bool
    classes: int | None = None
    packed: int | None = None
    looped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeRow:
    """What a program works on that adds up the parts of a long row: `WorkItem`'s names, and ``first_item`` of the row.

    A tile is cut into ``pieces`` of its rows, of which each program takes one, and from then on counts in such tiles.
    """

    by: By
    ratio: int
    heads: int
    shape: Shape
    listed: bool
    heads_first: bool
    pieces: int
    classes: int | None = None
    packed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """Rows of the tensors and absolute positions of one side: ``q_rows`` and ``q``, or ``k_rows`` and ``k``.

    With ``classes`` every so many-th row, from the first of the class on; with ``marked`` those that are listed.  With
    ``packed`` a tile has so many rows of each query, of which the first ``ratio`` are the heads ``h`` of the group; the
    others are no rows of the tensors.
    """

    side: Side
    part: Part
    shape: Shape
    classes: int | None = None
    marked: bool = False
    packed: int | None = None
    ratio: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxLanes:
    """Where the rows of a tile lie inside a box of ``sizes``: ``q_lane0``, ``q_lane1``, … along the axes with more than
    one place, and ``q_within``, how many rows after its first.  Neighbours along an axis are ``strides`` rows apart."""

    side: Side
    sizes: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxPositions:
    """As `Positions`, for the box ``i0 i1 …`` (or ``j0 …``), with the coordinates ``q0``, ``q1``, … (or ``k0`` …).

    With ``flag``, where the named value holds, they are those of consecutive rows from the first on.
    Places are ``steps`` apart, from ``class0``, ``class1``, … on where these are not 1.  Those past the end of the axes
    ``ragged`` count as rows past the end.
    """

    side: Side
    part: Part
    sizes: tuple[int, ...]
    extents: tuple[int, ...]
    steps: tuple[int, ...]
    ragged: tuple[int, ...]
    flag: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Define:
    """A named value of an expression; ``note`` becomes a comment."""

    name: str
    value: Expr
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableIndex:
    """One index of a gather: its value, the name of the stride, and of the size when bounds have to be checked.

    ``rows``: the axis counts query rows, so that ``q_start`` is subtracted.
    """

    value: Expr
    stride: str
    size: str | None
    rows: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Gather:
    """Elements of a table at the given indices; 0 where an index is out of bounds.

    ``batch_stride`` names the stride of the leading batch axis, None if the table's own axes name ``b``.  ``wide``
    computes offsets in 64 bits; ``long`` keeps ints of 64 bits as they are.  With ``wanted`` the indices name a list of
    ``most`` ascending ints, and the result is whether it holds that number.
    """

    name: str
    pointer: str
    batch_stride: str | None
    indices: tuple[TableIndex, ...]
    dtype: Dtype
    wide: bool
    long: bool = False
    wanted: Expr | None = None
    most: str = ""
