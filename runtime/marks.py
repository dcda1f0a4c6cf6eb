"""The rows that kernels gather: from a condition on rows of one side to their list, built on the device.

Lists are kept for tables of the same content; the device is asked once how many rows there are, and in how many tiles.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from spdsl.analysis.plans import KernelPlan
from spdsl.analysis.tiles import Marked
from spdsl.runtime.calls import BLOCK, Call, Marks
from spdsl.runtime.evaluate import evaluate, tables_for
from spdsl.runtime.pairs import pairs_of
from spdsl.runtime.recent import ByContent
from spdsl.semantics.nodes import Load
from spdsl.semantics.rewrite import walk

_recent: ByContent[Marks] = ByContent(size=16)


def with_marks(call: Call) -> Call:
    """The call with the rows that its kernels gather, if they do."""
    marked = call.plan.dkdv.marked
    if marked is None or marked.alike:
        return call
    read = sorted({node.table for node in walk(marked.where) if isinstance(node, Load)})
    numbers = (call.q.shape[0], call.q.shape[2], call.keys, call.q_start, *call.parameters.values())
    tensors = tuple(call.tables[name] for name in read)
    key = (id(marked), numbers, str(call.q.device))
    # What selections have chosen is made anew in each call.
    given = not any(table.listed for table in call.plan.tables)
    return replace(call, marks=_recent.get(key, tensors, marked, lambda: _marks(call, marked), compare=given))


def marked_tiles(call: Call, kernel: KernelPlan) -> tuple[int, int]:
    """How many tiles a kernel of gathered rows owns in each head, and how many each of them meets."""
    assert call.marks is not None
    assert kernel.marked is not None
    lengths = {"q": call.q.shape[2], "k": call.keys, kernel.marked.side: call.marks.rows.shape[-1]}
    queries, keys = -(-lengths["q"] // kernel.block_q), -(-lengths["k"] // kernel.block_k)
    return (keys, queries) if kernel.by == "key" else (queries, keys)


def _marks(call: Call, marked: Marked) -> Marks:
    """Rows past the end fill up the lists of sequences, and of heads, that have fewer."""
    length, start = (call.q.shape[2], call.q_start) if marked.side == "q" else (call.keys, 0)
    row = torch.arange(length, device=call.q.device)
    pairs = pairs_of(call)
    env = pairs.extents() | pairs.outer(1) | {marked.side: row + start}
    found = evaluate(marked.where, env, tables_for(call.plan.tables, call.tables)) & (row + start >= 0)
    batch, heads, _ = torch.broadcast_shapes((1, 1, length), found.shape)
    found = found.expand(batch, pairs.heads if marked.by_group else heads, length)
    found = found.unflatten(1, (pairs.groups, -1)).any(2) if marked.by_group else found[:, :1]
    tiles = torch.nn.functional.pad(found, (0, -length % BLOCK)).unflatten(-1, (-1, BLOCK)).any(-1)
    count, many = torch.stack([found.sum(-1).amax(), tiles.sum(-1).amax()]).tolist() if length else (0, 0)
    rows = torch.where(found, row, length).int().sort(dim=-1).values[..., :count].contiguous()
    return Marks(rows=rows, tiles=many)
