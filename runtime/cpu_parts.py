"""A call on the CPU, cut into parts of equal lengths, and the chunks of rows that each kernel of a plan computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from spdsl.analysis.plans import KernelPlan
from spdsl.runtime.calls import PLACES, Call
from spdsl.runtime.cpu_logits import Logits
from spdsl.runtime.cpu_rows import Chunk, Schedule, schedule
from spdsl.runtime.evaluate import Tables, tables_for
from spdsl.runtime.lists import listed
from spdsl.runtime.pairs import Pairs, pairs_by_batch
from spdsl.runtime.recent import Recent
from spdsl.runtime.tile_grid import By

_recent: Recent[Schedule] = Recent(size=32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some batches of a call, with the keys that exist in them."""

    call: Call
    pairs: Pairs
    tables: Tables

    def queries(self, x: Tensor) -> Tensor:
        """The part's share of a tensor of queries."""
        return x[self.pairs.batches.start : self.pairs.batches.stop]

    def keys(self, x: Tensor) -> Tensor:
        """The part's share of a tensor of keys; a view, unless they lie in pages."""
        if self.call.plan.problem.page:
            return self.rows(x, torch.arange(self.pairs.keys))
        first = self.pairs.key_offset
        return x[self.pairs.batches.start : self.pairs.batches.stop, :, first : first + self.pairs.keys]

    def rows(self, x: Tensor, keys: Tensor) -> Tensor:
        """Some rows of the part's share of a tensor of keys, ``[batch, groups, keys, dim]``; of neighbours a view."""
        page = self.call.plan.problem.page
        if page:
            assert self.call.places is not None
            (table,) = self.call.places[self.pairs.batches.start : self.pairs.batches.stop, PLACES:]
            return x[table[keys // page].long(), :, keys % page].transpose(0, 1)[None]
        given = self.keys(x)
        if len(keys) and int(keys[-1]) - int(keys[0]) + 1 == len(keys):
            return given.narrow(2, int(keys[0]), len(keys))
        return given.index_select(2, keys)

    def logits(self, kernel: KernelPlan) -> Logits:
        """How the logits of a kernel are made."""
        by, own, other = _sides(kernel)
        return Logits(plan=self.call.plan, pairs=self.pairs, tables=self.tables, by=by, block=own, other_block=other)

    def key_units(self, units: Tensor) -> Tensor:
        """The pair of batch and group, as one number, of each pair of batch and head."""
        heads, groups = self.pairs.heads, self.pairs.groups
        return units // heads * groups + units % heads // (heads // groups)

    def work(self, kernel: KernelPlan) -> Iterator[tuple[Chunk, Tensor]]:
        """Chunks of rows, each with numbers ``batch * heads + head`` (batches of this part) to compute together."""
        plan = _schedule(self.call, kernel).chunks
        for batch, by_head in enumerate(plan):
            here = torch.arange(len(self.pairs.batches))
            if len(plan) > 1:
                here = here[torch.tensor(self.pairs.batches) == batch]
            for head, chunks in enumerate(by_head):
                heads = torch.arange(self.pairs.heads) if len(by_head) == 1 else torch.tensor([head])
                units = (here[:, None] * self.pairs.heads + heads).flatten()
                for chunk in chunks if len(units) else ():
                    for some in units.split(chunk.heads_at_once(len(units))):
                        yield chunk, some


def parts_of(call: Call) -> Iterator[Part]:
    """The parts of a call; one, unless sequences have places of their own."""
    tables = tables_for(call.plan.tables, call.tables)
    for pairs in pairs_by_batch(call):
        yield Part(call=call, pairs=pairs, tables=tables)


def _sides(kernel: KernelPlan) -> tuple[By, int, int]:
    if kernel.by == "key":
        return "key", kernel.block_k, kernel.block_q
    return "query", kernel.block_q, kernel.block_k


def _schedule(call: Call, kernel: KernelPlan) -> Schedule:
    _, own, other = _sides(kernel)
    lists = listed(call, kernel)
    return _recent.get((id(lists), own, other), lists, lambda: schedule(lists, own, other))
