"""Selections among the members of what an earlier one has chosen, by kernels: keys of candidates, and their names.

From: a selection of a call whose chain is of candidates.  To: its lists.  What is held besides lists is keys of as many
rows as fit into a constant amount of memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from spdsl.codegen.binaries import options_of
from spdsl.runtime.ranking import FAR, joined
from spdsl.semantics.graph import Stage

if TYPE_CHECKING:
    from spdsl.runtime.chains import Run


@triton.jit(do_not_specialize=["total", "rows", "chunk_rows", "first_row", "width", "outer_b", "outer_h", "outer_r"])  # type: ignore[untyped-decorator]
def name_candidates(  # type: ignore[no-untyped-def]
    lists,  # [batch * heads, chunk_rows, width], int32: numbers of candidates, which become those of entries
    outer,  # [batch, heads, rows, …], int32: of what candidates are members
    outer_b,
    outer_h,
    outer_r,
    total,
    rows,
    chunk_rows,
    first_row,
    width,
    heads,
    OF: tl.constexpr,
    EACH: tl.constexpr,
    SHARING: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Candidate c of a list is member c % EACH of its entry c // EACH."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    exist = at < rows * width
    candidate = tl.load(lists + at, mask=exist, other=total)
    row = at // width
    owner, row = row // chunk_rows, (first_row + row % chunk_rows) // OF
    head = owner % heads // SHARING if SHARING > 0 else owner * 0
    start = outer + owner // heads * outer_b + head * outer_h + row * outer_r
    chosen = exist & (candidate < total)
    entry = tl.load(start + candidate // EACH, mask=chosen, other=0)
    tl.store(lists + at, entry * EACH + candidate % EACH, mask=chosen)


def among_candidates(run: Run, stage: Stage, width: int | None) -> Tensor:
    """The lists of a selection, int32 ``[batch, heads, rows, most]``."""
    from spdsl.runtime.chains import KEYS, Keys, Tiling, choose

    chain, arrays, kernel = run.loaded.chain, run.arrays, run.loaded.chain.kernels[-1]
    among, lines = chain.among, run.arrays.lines
    assert among is not None
    assert run.lists is not None
    outer = run.lists(among.outer)
    outer = outer if outer.dim() == 4 else outer.unsqueeze(1)
    batch, heads = max(run.batch, outer.shape[0]), run.heads
    rows, total, every = lines.size(chain.rows), outer.shape[-1] * among.each, batch * heads
    strides = [outer.stride(0) if outer.shape[0] > 1 else 0, outer.stride(1) if among.sharing else 0, outer.stride(2)]
    device, pitch = lines.device, -(-total // 16) * 16
    step = max(1, KEYS // (pitch * every) // among.rows) * among.rows
    block = max(16, min(64, 1 << (among.rows - 1).bit_length()))
    tiling = Tiling(rows=block, columns=64, warps=4, stages=2)
    coarse = lines.size(_coarse(run, among.outer))
    made = []
    for first in range(0, rows, step):
        some = min(step, rows - first)
        keys = torch.empty(every, some, pitch, dtype=torch.int32, device=device)
        given = {"keys": keys, "lists": outer, "list_b": strides[0], "list_h": strides[1], "list_r": strides[2]}
        given |= {"list_count": coarse, "first_row": first, "chunk_rows": some, "column_count": run.columns}
        given |= {"pitch": pitch, "heads": heads, "total": total}

        def grid(tiling: Tiling, some: int = some) -> tuple[int, ...]:
            tiles = -(-some // among.rows) * -(-among.rows // tiling.rows)
            return -(-total // tiling.columns), tiles, every

        run.launch(kernel, given, grid, some * every, tiling)
        ends = torch.full((every, 1), total, dtype=torch.int32, device=device)
        found = choose(
            Keys(keys=keys, columns=total, ends=ends, block=some), chain.by, run.amounts(stage, first, some), width
        )
        count = found.shape[-1]
        name_candidates[(triton.cdiv(every * some * count, 1024),)](
            found,
            outer,
            *strides,
            total,
            every * some,
            some,
            first,
            count,
            heads,
            OF=among.rows,
            EACH=among.each,
            SHARING=among.sharing,
            SIZE=1024,
            **options_of(4),
        )
        made.append(found.view(batch, heads, some, count))
    if not made:
        return torch.full((batch, heads, rows, 1), FAR, dtype=torch.int32, device=arrays.lines.device)
    return made[0] if len(made) == 1 else joined(made, 2)


def _coarse(run: Run, outer: str) -> str:
    """The axis of keys of the earlier selection."""
    return next(axis for axis in run.arrays.stages[outer].axes if axis.startswith("k"))
