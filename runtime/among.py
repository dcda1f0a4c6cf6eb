"""Selections among the members of what an earlier one has chosen, and those by searches: keys of candidates.

From: a selection of a call whose chain is of candidates.  To: its lists.  What is held besides lists is keys of as many
rows as fit into a constant amount of memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from spdsl.codegen.binaries import options_of
from spdsl.runtime.chain_kernels import loaded
from spdsl.runtime.chain_runs import Run
from spdsl.runtime.choosing import KEYS, Keys, Room, choose
from spdsl.runtime.notes import Grid
from spdsl.runtime.plain import Launch, start
from spdsl.runtime.ranking import FAR, joined
from spdsl.runtime.sweeps import swept_lists
from spdsl.runtime.tilings import Tiling
from spdsl.semantics.graph import Stage

if TYPE_CHECKING:
    from spdsl.codegen.chains.candidates import Candidates

SCORED, SEARCHED = (64, 4, 2), (64, 4, 1)
"""Candidates of a tile that are scored, or searched, the warps of its program, and stages of its loop."""


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
    swept, arrays = swept_lists(run), run.arrays
    if swept is None:
        return _searched(run, stage, width, 0)
    done = swept[stage.name].shape[2]
    if done == arrays.lines.size(run.loaded.chain.rows):
        return swept[stage.name]
    # The rows behind these are searched, by one selection after the other.
    lists: dict[str, Tensor] = {}
    for name, some in swept.items():
        found = loaded(arrays, name)
        assert found is not None
        each = run if name == stage.name else Run.of(arrays, found)
        each.lists = lists.__getitem__
        lists[name] = joined([some, _searched(each, arrays.stages[name], some.shape[-1], done)], 2)
    return lists[stage.name]


def _searched(run: Run, stage: Stage, width: int | None, begin: int) -> Tensor:
    """The lists of the rows from ``begin`` on."""
    chain, kernel, lines = run.loaded.chain, run.loaded.chain.kernels[-1], run.arrays.lines
    device, outer = lines.device, _Outer.of(run)
    batch, heads = max(run.batch, 1 if outer is None else outer.lists.shape[0]), run.heads
    of = 1 if chain.among is None else chain.among.rows
    rows, every = lines.size(chain.rows), batch * heads
    total = run.columns if outer is None else outer.total
    pitch = -(-total // 16) * 16
    step = max(1, KEYS // (pitch * every) // of) * of
    # The rows of a tile are those of one run, or the queries of one row.
    block = max(16, min(64 if not chain.queries else 128, 1 << (max(of, chain.queries) - 1).bit_length()))
    columns, warps, stages = SEARCHED if chain.queries else SCORED
    tiling = Tiling(rows=block, columns=columns, warps=warps, stages=stages)
    made = []
    for first in range(begin, rows, step):
        some = min(step, rows - first)
        keys = torch.empty(every, some, pitch, dtype=torch.int32, device=device)
        given = {"keys": keys, "first_row": first, "chunk_rows": some, "column_count": run.columns}
        given |= {"pitch": pitch, "heads": heads, "total": total, **({} if outer is None else outer.given)}

        def grid(tiling: Tiling, some: int = some) -> Grid:
            across = -(-total // tiling.columns)
            return (some, across, every) if chain.queries else (across, -(-some // of) * -(-of // tiling.rows), every)

        run.launch(kernel, given, grid, some * every, ("keys",), tiling)
        ends = torch.full((every, 1), total, dtype=torch.int32, device=device)
        held = Keys(keys=keys, chunks=every, rows=some, pitch=pitch, columns=total, ends=ends, block=some)
        room = None
        if width is not None:
            room = Room(lists=torch.empty(every, some, max(1, width), dtype=torch.int32, device=device))
        found = choose(held, chain.by, run.amounts(stage, first, some), room)
        if outer is not None:
            outer.name(found, every * some, some, first, heads)
        made.append(found.view(batch, heads, some, -1))
    if not made:
        return torch.full((batch, heads, rows, 1), FAR, dtype=torch.int32, device=device)
    return made[0] if len(made) == 1 else joined(made, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outer:
    """The lists whose entries have the candidates as members, and how kernels are given them."""

    lists: Tensor
    among: Candidates
    total: int
    given: dict[str, Any]

    @staticmethod
    def of(run: Run) -> _Outer | None:
        """Those of a selection; None where every column is a candidate."""
        among = run.loaded.chain.among
        if among is None:
            return None
        assert run.lists is not None
        lists = run.lists(among.outer)
        lists = lists if lists.dim() == 4 else lists.unsqueeze(1)
        coarse = next(axis for axis in run.arrays.stages[among.outer].axes if axis.startswith("k"))
        given = {
            "lists": lists,
            "list_b": lists.stride(0) if lists.shape[0] > 1 else 0,
            "list_h": lists.stride(1) if among.sharing else 0,
            "list_r": lists.stride(2),
            "list_count": run.arrays.lines.size(coarse),
        }
        return _Outer(lists=lists, among=among, total=lists.shape[-1] * among.each, given=given)

    def name(self, found: Tensor, rows: int, chunk_rows: int, first: int, heads: int) -> None:
        """Turn numbers of candidates into those of entries."""
        width, (batch, head, row) = found.shape[-1], (self.given[f"list_{axis}"] for axis in "bhr")
        values = {"lists": found, "outer": self.lists, "outer_b": batch, "outer_h": head, "outer_r": row}
        values |= {"total": self.total, "rows": rows, "chunk_rows": chunk_rows, "first_row": first, "width": width}
        values |= {"OF": self.among.rows, "EACH": self.among.each, "SHARING": self.among.sharing, "SIZE": 1024}
        start(
            Launch(
                function=name_candidates,
                grid=(triton.cdiv(rows * width, 1024), 1, 1),
                values={**values, "heads": heads},
                options=options_of(4),
                writes=("lists",),
                device=found.device,
            )
        )
