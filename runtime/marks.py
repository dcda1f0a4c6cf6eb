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
    marked = call.plan.forward.marked
    if marked is None:
        return call
    read = sorted({node.table for node in walk(marked.where) if isinstance(node, Load)})
    numbers = (call.q.shape[0], call.q.shape[2], call.keys, call.q_start, *call.parameters.values())
    tensors = tuple(call.tables[name] for name in read)
    key = (id(marked), numbers, str(call.q.device))
    return replace(call, marks=_recent.get(key, tensors, marked, lambda: _marks(call, marked)))


def marked_tiles(call: Call, kernel: KernelPlan) -> tuple[int, int]:
    """How many tiles a kernel of gathered rows owns in each head, and how many each of them meets."""
    assert call.marks is not None
    assert kernel.marked is not None
    lengths = {"q": call.q.shape[2], "k": call.keys, kernel.marked.side: call.marks.rows.shape[1]}
    queries, keys = -(-lengths["q"] // kernel.block_q), -(-lengths["k"] // kernel.block_k)
    return (keys, queries) if kernel.by == "key" else (queries, keys)


def _marks(call: Call, marked: Marked) -> Marks:
    """Rows past the end fill up the lists of sequences that have fewer."""
    length, start = (call.q.shape[2], call.q_start) if marked.side == "q" else (call.keys, 0)
    row = torch.arange(length, device=call.q.device)
    batches = torch.arange(call.q.shape[0], device=call.q.device)[:, None]
    env = pairs_of(call).extents() | {"b": batches, marked.side: row + start}
    found = evaluate(marked.where, env, tables_for(call.plan.tables, call.tables)) & (row + start >= 0)
    found = found.expand(torch.broadcast_shapes(found.shape, (1, length)))
    tiles = torch.nn.functional.pad(found, (0, -length % BLOCK)).unflatten(1, (-1, BLOCK)).any(-1)
    count, many = torch.stack([found.sum(-1).amax(), tiles.sum(-1).amax()]).tolist() if length else (0, 0)
    rows = torch.where(found, row, length).sort(dim=-1).values[:, :count].int().contiguous()
    return Marks(rows=rows, tiles=many)
