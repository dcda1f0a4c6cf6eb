"""Pairs of blocks that meet a set of distances, as lists: one kernel that counts distances between two ends.

From: a stage that is ``any`` of a set of distances per pair of blocks.  To: its lists.  What is held besides lists is
keys of as many rows as fit into a constant amount of memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from spdsl.codegen.binaries import options_of
from spdsl.codegen.chains.parts import ABSENT
from spdsl.runtime.arrays import Arrays
from spdsl.runtime.choosing import KEYS, marked
from spdsl.runtime.diagonals import distances_before, distances_of
from spdsl.runtime.plain import Launch, start
from spdsl.runtime.ranking import joined
from spdsl.semantics.graph import Pool, on_side
from spdsl.semantics.nodes import Const


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["first_row", "rows", "columns", "pitch", "heads", "ends", "q_start", "nq", "n"]
)
def mark_blocks(  # type: ignore[no-untyped-def]
    keys,  # [batch * heads, rows, pitch], int32: 1 where a pair of blocks meets the set
    before,  # [batch, heads, ends], int32: how many distances of the set are smaller, from q_start - n + 1 on
    before_b,
    before_h,
    first_row,
    rows,
    columns,
    pitch,
    heads,
    ends,
    q_start,
    nq,
    n,
    SIZE_Q: tl.constexpr,
    SIZE_K: tl.constexpr,
    NOTHING: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Of a block of queries and one of keys all distances occur from the smallest to the largest."""
    column_tiles, row_tiles = tl.cdiv(columns, BLOCK_C), tl.cdiv(rows, BLOCK_R)
    row = tl.program_id(0) // column_tiles % row_tiles * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    column = tl.program_id(0) % column_tiles * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    owner = (tl.program_id(0) // column_tiles // row_tiles).to(tl.int64)
    q_first = tl.maximum((first_row + row) * SIZE_Q, tl.maximum(q_start, 0))
    q_last = tl.minimum((first_row + row) * SIZE_Q + SIZE_Q, q_start + nq) - 1
    k_first = column * SIZE_K
    k_last = tl.minimum(k_first + SIZE_K, n) - 1
    exist = (row < rows) & (column < columns)
    low = tl.minimum(tl.maximum(q_first - k_last - (q_start - n + 1), 0), ends - 1)
    high = tl.minimum(tl.maximum(q_last - k_first - (q_start - n + 1) + 1, 0), ends - 1)
    start = before + owner // heads * before_b + owner % heads * before_h
    meets = tl.load(start + high, mask=exist, other=0) > tl.load(start + low, mask=exist, other=0)
    meets = meets & (q_first <= q_last) & (k_first <= k_last)
    at = (owner * rows + row) * pitch + column
    tl.store(keys + at, tl.where(meets, 1, NOTHING), mask=exist)


ROWS, COLUMNS = 16, 128
"""The tile of a program."""


def is_of_diagonals(arrays: Arrays, name: str) -> bool:
    """Whether a set of pairs is made of a set of distances by this kernel."""
    return _sizes(arrays, name) is not None


def _sizes(arrays: Arrays, name: str) -> tuple[int, int] | None:
    """The sizes of the blocks of queries and keys, where these are neighbours."""
    stage = arrays.stages[name]
    if not isinstance(stage, Pool) or distances_of(dict(arrays.stages), stage) is None:
        return None
    if len(stage.axes) > 2 and stage.axes[0] not in ("h", "g"):
        return None
    found = []
    for each in stage.axes[-2:]:
        label = each.partition(".")[2]
        axis = next((axis for axis in arrays.lines.pattern.axes if axis.name == label), None)
        if axis is None or not arrays.lines.is_even(label):
            return None
        match axis.size:
            case (Const(value=int() as size),):
                found.append(size)
            case _:
                return None
    return found[0], found[1]


def lists_of_diagonals(arrays: Arrays, name: str, width: int | None) -> Tensor | None:
    """The lists of such a set, int32 ``[batch or 1, …, rows, most]``; None where it is something else.

    ``width`` is the most entries of a row, where it is known.
    """
    sizes, stage, lines = _sizes(arrays, name), arrays.stages[name], arrays.lines
    row = on_side(stage.axes, "q")
    if sizes is None or row is None or not lines.size(row) or not lines.size(stage.axes[-1]):
        return None
    assert isinstance(stage, Pool)
    source = distances_of(dict(arrays.stages), stage)
    assert source is not None
    before = distances_before(arrays, stage, source)
    heads = before.shape[1:-1].numel()
    before = before.reshape(before.shape[0], heads, -1)
    every, rows, columns = before.shape[0] * heads, lines.size(row), lines.size(stage.axes[-1])
    pitch = -(-columns // 16) * 16
    step = max(1, min(rows, KEYS // (pitch * every)))
    parts = []
    for first in range(0, rows, step):
        some = min(step, rows - first)
        keys = torch.empty(every, some, pitch, dtype=torch.int32, device=lines.device)
        values = {"keys": keys, "before": before, "before_b": before.stride(0), "before_h": before.stride(1)}
        values |= {"first_row": first, "rows": some, "columns": columns, "pitch": pitch, "heads": heads}
        values |= {"ends": before.shape[-1], "q_start": lines.q_start, "nq": lines.nq, "n": lines.n}
        values |= {"SIZE_Q": sizes[0], "SIZE_K": sizes[1], "NOTHING": ABSENT, "BLOCK_R": ROWS, "BLOCK_C": COLUMNS}
        start(
            Launch(
                function=mark_blocks,
                grid=(-(-some // ROWS) * -(-columns // COLUMNS) * every, 1, 1),
                values=values,
                options=options_of(4),
                writes=("keys",),
                device=lines.device,
            )
        )
        found = marked(keys, columns, width)
        parts.append(found.view(before.shape[0], *(() if len(stage.axes) == 2 else (heads,)), some, -1))
    return parts[0] if len(parts) == 1 else joined(parts, len(stage.axes) - 1)
