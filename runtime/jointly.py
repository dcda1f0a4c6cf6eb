"""Selections in which the rows of a head are ranked together: `top_p(0.9, over = (q.blk, k.blk))`.

From: a selection of a call whose chain is of all rows.  To: its lists.  The keys of all rows are held at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spdsl.codegen.chains.parts import ABSENT
from spdsl.runtime.choosing import KEYS, Room, choose
from spdsl.runtime.cut_kernels import cuts_by_row, cuts_of
from spdsl.runtime.tilings import LEAST, rows_of
from spdsl.semantics.graph import Select

if TYPE_CHECKING:
    from spdsl.runtime.chain_runs import Run

MOST = 4 * KEYS
"""Keys that may be held at once."""


def chosen_jointly(run: Run, stage: Select, width: int | None) -> Tensor | None:
    """The lists of such a selection, int32 ``[batch, heads, rows, most]``; None where there are too many rows."""
    chain, device = run.loaded.chain, run.arrays.lines.device
    every, rows, pitch = run.batch * run.heads, run.arrays.lines.size(chain.rows), -(-run.columns // 16) * 16
    if every * rows * pitch > MOST:
        return None
    # Tiles in which nothing can be chosen are not written.
    nothing = ABSENT if chain.by == "count" else 0
    run.keys = torch.full((every, rows, pitch), nothing, dtype=torch.int32, device=device)
    run.ends = torch.zeros(1, every, -(-rows // rows_of(chain.kernels[-1], LEAST)), dtype=torch.int32, device=device)
    held = run.keyed(0, rows)
    cuts = cuts_of(run.keys.view(every, rows * pitch), chain.by, run.amounts(stage, 0, rows))
    room = None
    if width is not None:
        room = Room(lists=torch.empty(every, rows, max(1, width), dtype=torch.int32, device=device))
    found = choose(held, chain.by, cuts_by_row(run.keys, cuts, chain.by, run.columns), room, cut=True)
    return found.view(run.batch, run.heads, rows, -1)
