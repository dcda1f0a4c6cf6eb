"""Blocks of the forward with specialised warps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spdsl.analysis.plans import Precision
from spdsl.semantics.nodes import Expr, Side


@dataclass(frozen=True, slots=True, kw_only=True)
class Corner:
    """Where a tile begins in a tensor that the copy engine reads or writes.

    With ``classes`` rows are split into those of residue classes; with ``box`` they are those of a grid, of which a
    tile takes a box of these sizes, and ``heads`` is how many heads a descriptor joins with the batch, if it does.
    Where groups of warps have ``shared`` a tile, each has its part of the rows, or of the box along the axis ``split``;
    with ``by_columns`` its part of the columns.  ``tile`` is the number of the tile, in text, where it is not ``i`` or
    ``j``.
    """

    tensor: str
    side: Side
    head: Literal["h", "g"]
    classes: int | None = None
    box: tuple[int, ...] = ()
    heads: int | None = None
    split: int | None = None
    shared: bool
    by_columns: bool = False
    tile: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchQueries:
    """The copying warp loads the program's queries, each group's by itself; with ``again`` when those before have been
    read, and tells whose they are."""

    corner: Corner
    again: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaks:
    """Name 2 if ``value`` holds for any key of a tile, else 1."""

    name: str
    value: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class SendTile:
    """The copying warp waits for a place in the ring, writes the values of ``names`` there, and loads keys and values.

    The first name is that of a coordinate, never negative; ``masked`` is a value of its own if it differs from tile to
    tile.
    """

    names: tuple[str, ...]
    masked: Expr | None
    keys: Corner
    values: Corner


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedBlocks:
    """The copying warp reads the first keys of the blocks of tile ``t``: ``count`` of ``block`` keys, the last of the
    list again where there are fewer.  Names them ``row_0``, …, and ``nearest`` and ``farthest``, between which all of
    these keys lie."""

    block: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SendBlocks:
    """As `SendTile`, of a tile that is put together from `ListedBlocks`: each of them is copied by itself, columns in
    ``halves``, and past the end of the list zeros.  Where they begin is told, too."""

    block: int
    count: int
    halves: int
    masked: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class SendEnd:
    """The copying warp says that there are no more tiles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamBegin:
    """A computing group's state of the softmax, as `SoftmaxState` or with ``resumed`` as `SoftmaxResumed`; waits for
    its queries, if nobody has (``again``)."""

    sink: Expr | None
    again: bool = False
    resumed: bool = False
    first: Expr | None = None
    padded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEnd:
    """Divide ``acc`` by ``l``; zeros for empty rows.  Names ``lse`` (natural logarithm)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyOut:
    """A group writes its rows of ``acc`` by the copy engine, which leaves out what does not exist."""

    corner: Corner
    dtype: Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOut:
    """A group writes its rows of ``acc`` that exist, by their addresses."""

    dtype: Precision
    padded: bool
