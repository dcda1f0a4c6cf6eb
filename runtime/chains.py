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
from spdsl.codegen.chains.parts import ABSENT
from spdsl.codegen.chains.rows import is_of_blocks, is_of_rows
from spdsl.runtime.among import among_candidates
from spdsl.runtime.arrays import Arrays
from spdsl.runtime.chain_kernels import loaded
from spdsl.runtime.chain_runs import Run
from spdsl.runtime.choosing import KEYS, WIDEST, Room
from spdsl.runtime.cut_kernels import cuts_of
from spdsl.runtime.cut_marks import up_to_cuts
from spdsl.runtime.jointly import chosen_jointly
from spdsl.runtime.memo import Memo
from spdsl.runtime.ranking import FAR, joined
from spdsl.runtime.tilings import LEAST, Tiling, rows_of
from spdsl.semantics.graph import DISTANCE, Mark, Pool, Select, Stage
from spdsl.semantics.nodes import Const

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
        run.sums[each.stage] = run.summed(each)
    if isinstance(stage, Select) and stage.also:
        jointly = chosen_jointly(run, stage, width)
        return jointly if jointly is None or found.chain.heads else jointly[:, 0]
    pitch = -(-run.columns // 16) * 16
    step = max(1, min(rows, KEYS // (pitch * run.batch * run.heads)))
    step = max(1, step // 128 * 128) if step >= 128 else step
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
        return _chosen_entries(arrays, name)
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


def _chosen_entries(arrays: Arrays, name: str) -> Tensor | None:
    """A selection without queries, bools ``[batch or 1, …, entries]``, or None."""
    found, stage = loaded(arrays, name), arrays.stages[name]
    if found is None:
        return None
    assert isinstance(stage, Select)
    run, device, rows = Run.of(arrays, found), arrays.lines.device, found.chain.rows
    count, columns = (arrays.lines.size(rows) if rows else 1), run.columns
    if columns <= 0:
        return None
    nothing, pitch = 0 if found.chain.by == "mass" else ABSENT, -(-columns // 16) * 16
    run.keys = torch.empty(run.batch, count, pitch, dtype=torch.int32, device=device)
    if pitch > columns:
        run.keys.fill_(nothing)
    run.ends = torch.zeros(1, run.batch, -(-count // LEAST.rows), dtype=torch.int32, device=device)
    if stage.by == "mass" or columns > WIDEST:
        run.keyed(0, count)
        chosen = _up_to_cuts(run, stage).view(run.batch, count, columns)
        return chosen if rows else chosen[:, 0]
    # There are few rows: with room for all entries nobody waits for how many are chosen.
    width = columns
    if isinstance(stage.amount, Const):
        width = max(1, min(int(stage.amount.value), columns))
    room = Room(lists=torch.empty(run.batch, count, width, dtype=torch.int32, device=device))
    lists = run.chosen(stage, 0, count, room).view(run.batch, count, -1)
    chosen = torch.zeros(run.batch, count, columns + 1, dtype=torch.bool, device=device)
    chosen = chosen.scatter_(-1, lists.clamp(max=columns).long(), value=True)[..., :columns]
    return chosen if rows else chosen[:, 0]


def _up_to_cuts(run: Run, stage: Select) -> Tensor:
    """Which keys of long rows are chosen, bools ``[rows, columns]``."""
    keys, others = run.keys.view(-1, run.keys.shape[-1]), None
    cuts = cuts_of(keys, stage.by, run.amounts(stage, 0, run.keys.shape[1]), signed=stage.least is not None)
    if stage.least is not None:
        number = max(0, int(run.arrays.evaluate(stage.least, (), None, Memo())))
        amount = torch.full((1,), min(number, keys.shape[1]), dtype=torch.int32, device=keys.device)
        others = cuts_of(keys, "count", amount)
    return up_to_cuts(keys, cuts, others, run.loaded.chain.by, run.columns)
