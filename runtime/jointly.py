"""Selections in which the rows of a head are ranked together, or the heads of a row: `top(9, over = (h, k.blk))`.

From: a selection of a call.  To: its lists.  Where rows are ranked together the keys of all of them are held at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spdsl.codegen.chains.parts import ABSENT
from spdsl.runtime.choosing import KEYS, WIDEST, Keys, Room, choose
from spdsl.runtime.cut_kernels import cuts_by_row, cuts_of
from spdsl.runtime.parted_lists import PARTED, part_lists
from spdsl.runtime.ranking import joined
from spdsl.runtime.split import multiprocessors
from spdsl.runtime.tilings import LEAST, rows_of
from spdsl.semantics.graph import Select

if TYPE_CHECKING:
    from spdsl.runtime.chain_runs import Run

MOST = 4 * KEYS
"""Keys that may be held at once."""


def chosen_jointly(run: Run, stage: Select, width: int | None) -> Tensor | None:
    """The lists of such a selection, int32 ``[batch, heads, rows, most]``; None where there are too many rows."""
    chain = run.loaded.chain
    every, rows, pitch = run.batch * run.heads, run.arrays.lines.size(chain.rows), -(-run.columns // 16) * 16
    together = stage.also == (chain.rows,)
    if together and every * rows * pitch > MOST:
        return None
    step = rows if together else max(1, min(rows, KEYS // (pitch * every)))
    tiles = -(-step // rows_of(chain.kernels[-1], LEAST))
    run.ends = torch.zeros(-(-rows // step), every, tiles, dtype=torch.int32, device=run.arrays.lines.device)
    made = []
    for first in range(0, rows, step):
        some = min(step, rows - first)
        # Tiles in which nothing can be chosen are not written.
        nothing = ABSENT if chain.by == "count" else 0
        run.keys = torch.full((every, step, pitch), nothing, dtype=torch.int32, device=run.ends.device)
        held, amounts = run.keyed(first, some), run.amounts(stage, first, some)
        if together:
            made.append(_lists(held, chain.by, amounts, width).view(run.batch, run.heads, rows, -1))
            continue
        # The heads of a row lie side by side.
        keys = run.keys.view(run.batch, run.heads, step, pitch)[:, :, :some].transpose(1, 2).contiguous()
        chunks = run.batch * some
        if _is_short(run, stage, chunks, pitch, width):
            made.append(_side_by_side(keys.view(run.batch, some, -1), amounts, run.heads, width))
            continue
        held = Keys(
            keys=keys.view(chunks, run.heads, pitch),
            chunks=chunks,
            rows=run.heads,
            pitch=pitch,
            columns=run.columns,
            ends=torch.full((chunks, 1), run.columns, dtype=torch.int32, device=keys.device),
            block=run.heads,
        )
        made.append(_lists(held, chain.by, amounts, width).view(run.batch, some, run.heads, -1).transpose(1, 2))
    return made[0].contiguous() if len(made) == 1 else joined(made, 2)


def _is_short(run: Run, stage: Select, rows: int, pitch: int, width: int | None) -> bool:
    """Whether the heads of a row are one short row, of many, of which few entries are chosen: as many as lists have
    room for, where that is less than all."""
    few = width is not None and 0 < width < min(run.columns, PARTED + 1)
    many = rows >= multiprocessors(run.arrays.lines.device)
    return few and many and stage.by == "count" and run.heads * pitch <= WIDEST


def _side_by_side(keys: Tensor, amounts: Tensor, heads: int, width: int | None) -> Tensor:
    """The lists of rows whose heads lie side by side, ``keys`` being ``[batch, rows, heads * pitch]``: one list for
    each row, and then one for each head.  int32 ``[batch, heads, rows, width]``."""
    assert width is not None
    batch, rows, columns = keys.shape
    ends = torch.full((batch * rows, 1), columns, dtype=torch.int32, device=keys.device)
    held = Keys(keys=keys, chunks=batch * rows, rows=1, pitch=columns, columns=columns, ends=ends, block=1)
    room = Room(lists=torch.empty(batch * rows, 1, width, dtype=torch.int32, device=keys.device))
    return part_lists(choose(held, "count", amounts, room).view(batch, rows, width), heads, columns // heads)


def _lists(held: Keys, by: str, amounts: Tensor, width: int | None) -> Tensor:
    """The lists of keys whose rows are ranked together, chunk by chunk: int32 ``[chunks, rows, most]``."""
    cuts = cuts_of(held.keys.view(held.chunks, -1), by, amounts)
    room = None
    if width is not None:
        shape = (held.chunks, held.rows, max(1, width))
        room = Room(lists=torch.empty(shape, dtype=torch.int32, device=held.keys.device))
    return choose(held, by, cuts_by_row(held.keys, cuts, by, held.columns), room, cut=True)
