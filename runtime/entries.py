"""Selections among keys, or distances, that look at no query: few long rows, one for each head.

From: a selection and the arrays of a call.  To: bools.  Selections that rank the same numbers in the same order share
the keys of these, and a cut that several of them ask for is sought once.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spdsl.runtime.arrays import Arrays
from spdsl.runtime.chain_kernels import loaded
from spdsl.runtime.chain_runs import Run
from spdsl.runtime.choosing import WIDEST, Keys, Room, choose
from spdsl.runtime.cut_kernels import cuts_of
from spdsl.runtime.cut_marks import up_to_cuts
from spdsl.runtime.memo import Memo
from spdsl.runtime.tilings import LEAST
from spdsl.semantics.graph import Select
from spdsl.semantics.nodes import Const


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """Keys of rows, and the cuts that were sought among them, by what was asked for."""

    held: Keys
    cuts: dict[Hashable, Tensor] = field(default_factory=dict)

    def cut(self, by: str, amount: Tensor, number: Hashable, *, signed: bool) -> Tensor:
        """The cuts for an amount, which is a ``number`` or, where that is None, has no other name."""
        rows = self.held.keys.view(-1, self.held.pitch)[:, : self.held.columns]
        if number is None:
            return cuts_of(rows, by, amount, signed=signed)
        key = by, number, signed
        if key not in self.cuts:
            self.cuts[key] = cuts_of(rows, by, amount, signed=signed)
        return self.cuts[key]


def chosen_entries(arrays: Arrays, name: str) -> Tensor | None:
    """A selection without queries, bools ``[batch or 1, …, entries]``, or None."""
    found, stage = loaded(arrays, name), arrays.stages[name]
    if found is None:
        return None
    assert isinstance(stage, Select)
    run, rows, by = Run.of(arrays, found), found.chain.rows, found.chain.by
    count, columns = (arrays.lines.size(rows) if rows else 1), run.columns
    if columns <= 0:
        return None
    order = (stage.axes, stage.over, by, stage.value, stage.only, stage.forced)
    if order not in arrays.ranked:
        arrays.ranked[order] = _ranked(run, count)
    ranked = arrays.ranked[order]
    if stage.by == "mass" or columns > WIDEST:
        chosen = _up_to_cuts(run, stage, ranked).view(run.batch, count, columns)
        return chosen if rows else chosen[:, 0]
    # There are few rows: with room for all entries nobody waits for how many are chosen.
    device, width = arrays.lines.device, columns
    if isinstance(stage.amount, Const):
        width = max(1, min(int(stage.amount.value), columns))
    room = Room(lists=torch.empty(run.batch, count, width, dtype=torch.int32, device=device))
    lists = choose(ranked.held, by, run.amounts(stage, 0, count), room).view(run.batch, count, -1)
    chosen = torch.zeros(run.batch, count, columns + 1, dtype=torch.bool, device=device)
    chosen = chosen.scatter_(-1, lists.clamp(max=columns).long(), value=True)[..., :columns]
    return chosen if rows else chosen[:, 0]


def _ranked(run: Run, count: int) -> Ranked:
    """The keys of all rows; behind the last column there is anything."""
    device, pitch = run.arrays.lines.device, -(-run.columns // 16) * 16
    run.keys = torch.empty(run.batch, count, pitch, dtype=torch.int32, device=device)
    run.ends = torch.zeros(1, run.batch, -(-count // LEAST.rows), dtype=torch.int32, device=device)
    return Ranked(held=run.keyed(0, count))


def _up_to_cuts(run: Run, stage: Select, ranked: Ranked) -> Tensor:
    """Which keys of long rows are chosen, bools ``[rows, columns]``."""
    keys, others = ranked.held.keys.view(-1, ranked.held.pitch), None
    amount = run.amounts(stage, 0, ranked.held.rows)
    number = stage.amount.value if isinstance(stage.amount, Const) else None
    cuts = ranked.cut(stage.by, amount, number, signed=stage.least is not None and stage.by == "mass")
    if stage.least is not None:
        number = max(0, int(run.arrays.evaluate(stage.least, (), None, Memo())))
        least = torch.full((1,), min(number, run.columns), dtype=torch.int32, device=keys.device)
        others = ranked.cut("count", least, number, signed=False)
    return up_to_cuts(keys, cuts, others, run.loaded.chain.by, run.columns)
