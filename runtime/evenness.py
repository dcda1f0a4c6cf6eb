"""Whether all rows of a walk are about as long: how many programs to start for a kernel that may do several tiles each.

From a plan and the sizes of a call to a number of programs.  Rows that are short and alike go round the multiprocessors
in turn, and each begins while the one before ends.  Where they differ, a program for each lets the device balance them.
Nothing here changes results.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from spdsl.analysis.plans import KernelPlan
from spdsl.analysis.tiles import SlotWalk
from spdsl.runtime.calls import Call
from spdsl.runtime.evaluate import evaluate
from spdsl.runtime.split import multiprocessors
from spdsl.runtime.tile_grid import TileGrid
from spdsl.semantics.nodes import Load
from spdsl.semantics.rewrite import walk as parts_of

LONGEST = 64
"""Tiles of a row above which its begin and end no longer count."""

SAMPLES = 64

ROUNDS = 16
"""Tiles for each multiprocessor above which what is left at the end no longer counts."""

CACHE = 16 << 20
"""Bytes that a GPU keeps of keys and values that are read by many programs at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """How many ``programs`` to start for items of which each may do several, and whether they take what comes next from
    a queue; elsewhere every so many-th is theirs."""

    programs: int
    queued: bool = False


def rounds_for(call: Call, kernel: KernelPlan, items: int) -> Rounds:
    """How a call of ``kernel`` does its ``items``: one for each program where they are few."""
    if not kernel.persistent:
        return Rounds(programs=items)
    at_once = multiprocessors(call.q.device) * (2 if kernel.groups == 1 else 1)
    if items <= 2 * at_once:
        return Rounds(programs=items)
    return Rounds(programs=at_once, queued=not is_even(call, kernel))


def heads_together(call: Call, programs: int) -> int:
    """How many heads, of all sequences, take turns tile by tile in a kernel of so many ``programs``: where these are
    few, as many as have their keys and values in the cache, so that the long rows of all of them come first.  Where
    long rows may stand anywhere, all: none is the last alone."""
    batch, heads = call.q.shape[:2]
    if call.plan.forward.cuts is not None:
        return batch * heads
    if programs > ROUNDS * multiprocessors(call.q.device):
        return 1
    groups = call.k.shape[1]
    size = call.keys * (call.k.shape[-1] + call.v.shape[-1]) * call.k.element_size()
    most = max(1, min(batch * groups, CACHE // max(size, 1)))
    return heads // groups * max(each for each in range(1, most + 1) if batch * groups % each == 0)


def is_even(call: Call, kernel: KernelPlan) -> bool:
    """Whether rows are known to be short and alike."""
    if not isinstance(kernel.walk, SlotWalk) or kernel.splits or any(_loads(kernel.walk)):
        return False
    counts = _lengths(call, kernel)
    most = int(counts.max())
    return 0 < most <= LONGEST and float(counts.float().median()) > 0.9 * most


def _loads(slots: SlotWalk) -> Iterator[Load]:
    """What the bounds of the slots read of tables."""
    for slot in slots.slots:
        for bound in (slot.touched.lo, slot.touched.hi, slot.filter):
            yield from (node for node in parts_of(bound) if isinstance(node, Load)) if bound is not None else ()


def _lengths(call: Call, kernel: KernelPlan) -> Tensor:
    """The numbers of tiles of some rows, evenly spread."""
    assert isinstance(kernel.walk, SlotWalk)
    grid = TileGrid.of(kernel)
    rows, walked = -(-call.q.shape[2] // grid.spans[0]), -(-call.keys // grid.spans[1])
    env: dict[str, Tensor | int] = {
        "nq": call.q.shape[2],
        "n": call.keys,
        "q_start": call.q_start,
        **call.parameters,
        **dict.fromkeys(("b", "h", "g", "q_class", "k_class"), 0),
        "i": torch.linspace(0, max(0, rows - 1), SAMPLES).long(),
    }
    total = torch.zeros(SAMPLES, dtype=torch.int64)
    for slot in kernel.walk.slots:
        low, high = (evaluate(bound, env) for bound in (slot.touched.lo, slot.touched.hi))
        total = total + (high.clamp(max=walked) - low.clamp(min=0)).clamp(min=0) // slot.step
    return total
