"""The intervals of cuts, found by a kernel before the one that walks within them.

Nothing here waits for the device or depends on values: what is launched and allocated follows from shapes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from spdsl.analysis.cuts import tables_of
from spdsl.analysis.plans import KernelPlan, Plan
from spdsl.analysis.tiles import Cuts, tiles_among
from spdsl.codegen.cuts import interval_kernel
from spdsl.codegen.tables import INTERVALS
from spdsl.runtime.calls import Call
from spdsl.semantics.rewrite import free_indices

Value: TypeAlias = "Tensor | int"
Values: TypeAlias = Mapping[str, Value]
Launch: TypeAlias = Callable[[str, Call, int, int, int, Values], None]


def interval_values(call: Call, kernel: KernelPlan, values: Values, launch: Launch) -> dict[str, Value]:
    """The intervals of a kernel's tiles, int32 ``[batch or 1, heads or 1, tiles, 4]``, if its walk has cuts.

    ``values`` are those of the call; ``launch`` runs the kernel of a name on so many rows, heads and sequences.
    """
    cuts = kernel.cuts
    if cuts is None:
        return {}
    batch, heads, tiles = interval_shape(call, kernel, cuts)
    found = call.empty((batch, heads, tiles, 4), torch.int32)
    given = {**values, INTERVALS: found, "interval_rows": tiles}
    launch(interval_kernel(kernel), call, tiles, heads, batch, given)
    return {
        INTERVALS: found,
        f"{INTERVALS}_stride_b": heads * tiles * 4 if batch > 1 else 0,
        f"{INTERVALS}_stride_h": tiles * 4,
    }


def interval_shape(call: Call, kernel: KernelPlan, cuts: Cuts) -> tuple[int, int, int]:
    """Batches, heads and tiles that have intervals of their own; four ints each."""
    rows = call.q.shape[2] if cuts.by == "query" else call.keys
    heads = {None: 1, "h": call.q.shape[1], "g": call.k.shape[1]}[cuts.heads]
    return call.q.shape[0] if _by_batch(call, cuts) else 1, heads, tiles_among(rows, cuts.block, kernel.classes)


def _by_batch(call: Call, cuts: Cuts) -> bool:
    """Whether sequences differ: in their places, or in a table that the cuts read."""
    named, shared = _read(call.plan, cuts)
    return call.places is not None or named or any(call.tables[name].shape[0] > 1 for name in shared)


_reads: dict[tuple[int, int], tuple[Plan, bool, tuple[str, ...]]] = {}


def _read(plan: Plan, cuts: Cuts) -> tuple[bool, tuple[str, ...]]:
    """Whether the cuts of a plan name sequences, and which tables they read whose sequences may be one or all."""
    # By identity, as kernels are kept: hashing takes longer than a launch.  The entry keeps the plan alive.
    key = (id(plan), id(cuts))
    found = _reads.get(key)
    if found is None:
        named = {table.name for table in plan.tables if any(axis.kind == "b" for axis in table.axes)}
        by_name = any("b" in free_indices(expr) for cut in cuts.cuts for expr in (cut.value, cut.mark))
        shared = tuple(sorted(name for name in tables_of(cuts) if name not in named))
        found = _reads[key] = plan, by_name, shared
    return found[1:]
