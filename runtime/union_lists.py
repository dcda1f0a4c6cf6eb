"""Unions of sets of blocks, as lists: what each list names is noted, and the entries that are noted become one list.

From: a `Mark` that is a union of other sets, each where a condition on heads holds, and of sets of blocks of one side.
To: its lists.  What is held besides lists is a number for each pair of blocks of as many rows as fit into a constant
amount of memory.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from spdsl.codegen.binaries import options_of
from spdsl.codegen.chains.parts import ABSENT
from spdsl.runtime.arrays import Arrays
from spdsl.runtime.choosing import KEYS, marked
from spdsl.runtime.memo import Memo
from spdsl.runtime.plain import Launch, start, start_given
from spdsl.runtime.ranking import joined
from spdsl.semantics.graph import Mark, on_side
from spdsl.semantics.joined_sets import Part, parts_of
from spdsl.semantics.nodes import Expr

ROWS, WIDTH = 4, 256
"""Rows of a program, and entries of each that it looks at together."""


@triton.jit(do_not_specialize=["first_row", "rows", "columns", "pitch", "width"])  # type: ignore[untyped-decorator]
def note_entries(  # type: ignore[no-untyped-def]
    keys,  # [batch * heads, rows, pitch], int32: 1 where a list has named the entry
    lists,  # [batch or 1, heads or 1, all rows, width], int32
    list_b,
    list_h,
    list_r,
    where,  # [batch or 1, heads or 1], uint8: whether the list counts
    where_b,
    where_h,
    first_row,
    rows,
    columns,
    pitch,
    width,
    heads,
    SHARING: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Note what the lists of some rows name."""
    owner = tl.program_id(0).to(tl.int64)
    b, head = owner // heads, owner % heads
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    counts = tl.load(where + b * where_b + head * where_h) != 0
    start = lists + b * list_b + head // SHARING * list_h + (first_row + row).to(tl.int64) * list_r
    for first in range(0, width, WIDTH):
        at = first + tl.arange(0, WIDTH)[None, :]
        entry = tl.load(start + at, mask=(row < rows) & (at < width) & counts, other=2147483647)
        to = keys + (owner * rows + row) * pitch + entry
        tl.store(to, 1, mask=(entry < columns) & (row < rows))


@triton.jit(do_not_specialize=["first_row", "rows", "columns", "pitch"])  # type: ignore[untyped-decorator]
def note_blocks(  # type: ignore[no-untyped-def]
    keys,  # [batch * heads, rows, pitch], int32: 1 where the condition holds
    where,  # [batch or 1, heads or 1, all rows or 1, columns or 1], uint8
    where_b,
    where_h,
    where_r,
    where_c,
    first_row,
    rows,
    columns,
    pitch,
    heads,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Note the pairs of blocks for which a condition holds, for some rows."""
    owner = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)[None, :]
    exist = (row < rows) & (column < columns)
    start = where + owner // heads * where_b + owner % heads * where_h
    holds = tl.load(start + (first_row + row).to(tl.int64) * where_r + column * where_c, mask=exist, other=0) != 0
    tl.store(keys + (owner * rows + row) * pitch + column, 1, mask=holds)


def lists_of_union(arrays: Arrays, name: str, width: int | None, lists: Callable[[str], Tensor]) -> Tensor | None:
    """The lists of such a set, int32 ``[batch or 1, …, rows, most]``; None where it is something else."""
    parts = union_of(arrays, name)
    if not parts:
        return None
    stage, lines = arrays.stages[name], arrays.lines
    query, key = on_side(stage.axes, "q"), on_side(stage.axes, "k")
    assert query is not None
    assert key is not None
    over = next((axis for axis in stage.axes if axis in ("h", "g")), None)
    axes = (*stage.axes[: int(over is not None)], query, key)
    sources = [
        _Condition.of(arrays, axes, part.where) if part.source is None else _Source.of(arrays, axes[:-2], part, lists)
        for part in parts
    ]
    heads, rows, columns = lines.size(over) if over else 1, lines.size(query), lines.size(key)
    batch = max(each.batch for each in sources)
    every, pitch, device = batch * heads, -(-columns // 16) * 16, lines.device
    step = max(1, min(rows, KEYS // (pitch * every)))
    made = []
    for first in range(0, rows, step):
        some = min(step, rows - first)
        keys = torch.full((every, some, pitch), ABSENT, dtype=torch.int32, device=device)
        for each in sources:
            each.note(keys, first, columns, heads)
        made.append(marked(keys, columns, width).view(batch, heads, some, -1))
    whole = made[0] if len(made) == 1 else joined(made, 2)
    return whole if over else whole[:, 0]


def union_of(arrays: Arrays, name: str) -> tuple[Part, ...]:
    """The sets of which one is the union; none if it is something else, or there is nothing to put together."""
    stage = arrays.stages[name]
    if not isinstance(stage, Mark):
        return ()
    sizes = [arrays.lines.size(axis) for axis in stage.axes if axis not in ("h", "g")]
    return parts_of(arrays.stages, stage.value) if all(sizes) else ()


class _Condition:
    """Which pairs of blocks are in a set, uint8 ``[batch or 1, heads or 1, rows or 1, columns or 1]``."""

    def __init__(self, where: Tensor) -> None:
        self.where = where

    @staticmethod
    def of(arrays: Arrays, axes: tuple[str, ...], where: Expr) -> _Condition:
        """A condition at the points of these axes, heads being the first if there are any."""
        found = arrays.filter(where, axes, None, Memo())
        return _Condition((found if len(axes) > 2 else found.unsqueeze(1)).to(torch.uint8))

    @property
    def batch(self) -> int:
        """The number of sequences, or 1."""
        return self.where.shape[0]

    def note(self, keys: Tensor, first: int, columns: int, heads: int) -> None:
        """Note the pairs of the rows of keys, the first of which is ``first``."""
        every, rows, pitch = keys.shape
        steps = [self.where.stride(axis) if self.where.shape[axis] > 1 else 0 for axis in range(4)]
        start_given(
            note_blocks,
            (every, -(-rows // ROWS), -(-columns // WIDTH)),
            (keys, self.where, *steps, first, rows, columns, pitch, heads),
            {"ROWS": ROWS, "WIDTH": WIDTH},
            ("keys",),
            options_of(4),
            keys.device,
        )


class _Source:
    """Lists ``[batch or 1, heads or 1, rows, width]``, and where they count, uint8 ``[batch or 1, heads or 1]``."""

    def __init__(self, lists: Tensor, where: Tensor, sharing: int) -> None:
        self.lists, self.where, self.sharing = lists, where, sharing

    @staticmethod
    def of(arrays: Arrays, heads: tuple[str, ...], part: Part, lists: Callable[[str], Tensor]) -> _Source:
        """What a part of a union over these ``heads`` is read from."""
        assert part.source is not None
        found = lists(part.source)
        found = found if found.dim() == 4 else found.unsqueeze(1)
        shared = "g" in arrays.stages[part.source].axes and "h" in heads
        where = arrays.tensor(part.where, heads, None, Memo())
        where = where.view(-1, 1) if where.dim() < 2 else where
        sharing = arrays.lines.heads // arrays.lines.groups if shared else 1
        return _Source(found, where.to(torch.uint8), sharing)

    @property
    def batch(self) -> int:
        """The number of sequences, or 1."""
        return max(self.lists.shape[0], self.where.shape[0])

    def note(self, keys: Tensor, first: int, columns: int, heads: int) -> None:
        """Note what the lists name for the rows of keys, the first of which is ``first``."""
        every, rows, pitch = keys.shape
        given = (self.lists, self.where)
        steps = [each.stride(axis) if each.shape[axis] > 1 else 0 for each in given for axis in (0, 1)]
        values = {"keys": keys, "lists": self.lists, "list_b": steps[0], "list_h": steps[1]}
        values |= {"list_r": self.lists.stride(2), "where": self.where, "where_b": steps[2], "where_h": steps[3]}
        values |= {"first_row": first, "rows": rows, "columns": columns, "pitch": pitch}
        values |= {"width": self.lists.shape[-1], "heads": heads, "SHARING": self.sharing}
        start(
            Launch(
                function=note_entries,
                grid=(every, -(-rows // ROWS), 1),
                values={**values, "ROWS": ROWS, "WIDTH": WIDTH},
                options=options_of(4),
                writes=("keys",),
                device=keys.device,
            )
        )
