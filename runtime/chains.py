"""Selections by generated kernels: sums of softmaxes, keys of some rows at a time, and the entries that these choose.

From: a selection and the arrays of a call.  To: its lists, or None where stages are left to torch.  What is held is
the lists, the sums of rows, and keys of as many rows as fit into a constant amount of memory.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spdsl.codegen.chains.alone import is_alone
from spdsl.codegen.chains.columns import belongs_to_columns, is_without_queries
from spdsl.codegen.chains.rows import is_of_blocks, is_of_rows
from spdsl.runtime.among import among_candidates
from spdsl.runtime.arrays import Arrays
from spdsl.runtime.chain_kernels import loaded
from spdsl.runtime.chain_runs import Run
from spdsl.runtime.choosing import KEYS, Room
from spdsl.runtime.entries import chosen_entries
from spdsl.runtime.jointly import chosen_jointly
from spdsl.runtime.ranking import FAR, joined
from spdsl.runtime.tilings import LEAST, Tiling, rows_of
from spdsl.semantics.graph import DISTANCE, Mark, Pool, Select, Stage

_ONE_ROW = Tiling(rows=1, columns=1024, warps=4, stages=1)
"""The tile of a reduction that leaves one number."""


def chosen_lists(arrays: Arrays, name: str, width: int | None, lists: Callable[[str], Tensor]) -> Tensor | None:
    """The lists of a selection, int32 ``[batch or 1, …, rows, most]``, or None; ``width`` is the most entries of a row
    where that is known beforehand, ``lists`` gives those of earlier selections."""
    found = loaded(arrays, name)
    if found is None or (found.chain.among is not None and found.chain.rows == "q" and arrays.lines.q_start):
        return None
    run = Run.of(arrays, found)
    run.lists = lists
    stage = arrays.stages[name]
    rows = arrays.lines.size(found.chain.rows)
    if not rows or not run.columns or width == 0:
        shape = (run.batch, *((run.heads,) if found.chain.heads else ()), rows, 1)
        return torch.full(shape, FAR, dtype=torch.int32, device=arrays.lines.device)
    if found.chain.among is not None or found.chain.queries:
        among = among_candidates(run, stage, width)
        return among if found.chain.heads else among[:, 0]
    *before, kernel = found.chain.kernels
    for each in before:
        if each.role == "sums":
            run.sums[each.stage] = run.summed(each)
    if isinstance(stage, Select) and stage.also:
        jointly = chosen_jointly(run, stage, width)
        return jointly if jointly is None or found.chain.heads else jointly[:, 0]
    pitch = -(-run.columns // 16) * 16
    step = max(1, min(rows, KEYS // (pitch * run.batch * run.heads)))
    step = step // 128 * 128 if 128 <= step < rows else step
    device, every = arrays.lines.device, run.batch * run.heads
    chunks = [(first, min(step, rows - first)) for first in range(0, rows, step)]
    run.keys = torch.empty(every, step, pitch, dtype=torch.int32, device=device)
    run.ends = torch.zeros(len(chunks), every, -(-step // rows_of(kernel, LEAST)), dtype=torch.int32, device=device)
    if width is None:
        made = [run.chosen(stage, first, size, None).unflatten(0, (run.batch, -1)) for first, size in chunks]
        whole = made[0] if len(made) == 1 else joined(made, 2)
    else:
        flat = torch.empty(every, rows, width, dtype=torch.int32, device=device)
        for first, size in chunks:
            run.chosen(stage, first, size, Room(lists=flat, first=first))
        whole = flat.view(run.batch, run.heads, rows, width)
    return whole if found.chain.heads else whole[:, 0]


def made_whole(arrays: Arrays, name: str) -> Tensor | None:
    """What kernels leave of one side alone, ``[batch or 1, …, entries]``, or None.

    That is reductions that leave a value for each row of queries, those over all queries that leave one
    for each key or distance, and selections among these.
    """
    stage = arrays.stages[name]
    if is_without_queries(stage):
        return chosen_entries(arrays, name)
    if is_alone(stage):
        return _alone(arrays, stage)
    of_rows = is_of_rows(arrays.stages, name) or is_of_blocks(arrays.stages, name)
    if not of_rows and not belongs_to_columns(stage):
        return None
    found = loaded(arrays, name)
    if found is None:
        return None
    run = Run.of(arrays, found)
    if not arrays.lines.size(found.chain.rows) or run.columns <= 0:
        return None
    for kernel in found.chain.kernels[:-1]:
        run.sums[kernel.stage] = run.summed(kernel)
    last = found.chain.kernels[-1]
    values = run.reduced(last) if of_rows else run.left(last)
    return values if found.chain.heads else values[:, 0]


def _alone(arrays: Arrays, stage: Stage) -> Tensor | None:
    """A condition without queries, or a reduction of such numbers: ``[batch or 1, axis, …]``; or None."""
    lines, axes = arrays.lines, (*stage.axes, getattr(stage, "over", DISTANCE))
    if not all(lines.is_even(axis.partition(".")[2]) for axis in axes if "." in axis):
        return None
    found = loaded(arrays, stage.name)
    if found is None:
        return None
    run, (kernel,) = Run.of(arrays, found), found.chain.kernels
    if run.columns <= 0:
        return None
    values = run.left(kernel) if isinstance(stage, Mark) else run.reduced(kernel, _ONE_ROW)[..., 0]
    values = values if found.chain.heads else values[:, 0]
    return values if found.chain.columns or isinstance(stage, Pool) else values[..., 0]
