"""Blocks that load and store tiles, rows of numbers, and parts of sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spdsl.analysis.plans import Precision
from spdsl.analysis.tiles import Shape
from spdsl.codegen.blocks.naming import Part
from spdsl.semantics.nodes import Side


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointers:
    """The address of a tensor's part for this head, offsets inside a tile, and the stride from tile to tile.

    With ``classes`` of the part that is a residue class of the rows; with ``boxes`` the stride is that from row to row;
    with ``scattered`` every row has an address of its own, with ``packed`` that of a query and a head; with ``paged``
    every page has one.
    """

    tensor: str
    prefix: str
    side: Side
    columns: str
    head: Literal["h", "g"]
    shape: Shape
    classes: int | None = None
    boxes: bool = False
    scattered: bool = False
    packed: bool = False
    paged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PageOf:
    """Name ``k_page`` and ``k_within``: the pages of the rows of key tile ``j``, and the rows inside of them.

    A page has ``page`` rows; the tile lies in one page where ``block`` divides it and it has no ``classes``.
    """

    page: int
    block: int
    classes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadTile:
    """A tile ``[block, columns]``; zeros for rows that do not exist (``guarded``) and for padded columns.

    With ``descriptor`` the copy engine loads it and puts the zeros, so that no `Pointers` are needed.  With ``box``
    the rows of a box of these sizes; ``heads`` is how many heads a descriptor joins with the batch, if it does.
    With ``packed`` the rows are those of so many queries, head by head.
    """

    name: str
    tensor: str
    prefix: str
    side: Side
    columns: str
    head: Literal["h", "g"]
    guarded: bool
    padded: bool
    descriptor: bool
    box: tuple[int, ...] = ()
    heads: int | None = None
    scattered: bool = False
    packed: int | None = None
    paged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreTile:
    """Write ``value`` (times ``factor``) to the rows that exist, or with ``added`` add it to what is there."""

    value: str
    prefix: str
    side: Side
    columns: str
    padded: bool
    dtype: Precision
    factor: float | None = None
    boxes: bool = False
    scattered: bool = False
    packed: bool = False
    added: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """``lse`` (in powers of two, +inf for rows that keep nothing or do not exist, so that weights vanish) and
    ``delta``."""

    part: Part


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBase:
    """Name ``row_base``: where the rows of this sequence and head begin in ``[batch, heads, nq]``.

    With ``copied`` the copy engine loads them, and each head's, or of ``classes`` each residue class's, begin at a
    multiple of 16 bytes; those of ``boxes`` are together.  With ``packed`` every row has its own.
    """

    copied: bool = False
    classes: int | None = None
    packed: bool = False
    boxes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRows:
    """Write one number for each row of ``side`` into ``pointer`` ``[batch, heads, rows]`` (contiguous, fp32)."""

    value: str
    pointer: str
    side: Side


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePairs:
    """Write a tile of numbers into ``pointer`` ``[batch, heads, nq, n]`` (contiguous, fp32)."""

    value: str
    pointer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePart:
    """Write the accumulator ``name`` of ``item`` into its own memory, ``[items, *shape]`` in fp32.

    ``waits``: where warps are specialised, the copy engine may still be reading shared memory.
    """

    name: str
    shape: tuple[str, ...]
    waits: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPart:
    """Read what `StorePart` wrote for ``item``; names it ``{name}_part``."""

    name: str
    shape: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AddPart:
    """Add ``{name}_part`` to the accumulator ``name``."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeSoftmax:
    """Join ``m_part``, ``l_part`` and ``acc_part`` with the softmax so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Zeros:
    """An fp32 accumulator."""

    name: str
    shape: tuple[str, ...]
