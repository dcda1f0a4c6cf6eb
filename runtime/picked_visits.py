"""How many tiles a kernel walks that follows what queries have picked, from the lists of a call."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from spdsl.analysis.plans import KernelPlan
from spdsl.runtime.calls import Call, GatheredItems, PickedItems
from spdsl.runtime.picks import picked_lists
from spdsl.runtime.shared_keys import shared_turns


@dataclass(frozen=True, slots=True, kw_only=True)
class PickedVisits:
    """Tiles that a kernel walks over heads and sequences, the most of one program, and bytes of its lists."""

    touched: int
    longest: int
    metadata: int


def picked_visits(call: Call, kernel: KernelPlan) -> PickedVisits:
    """What a kernel walks in a call."""
    picks = kernel.picks
    assert picks is not None
    lists = picked_lists(call, kernel)
    tiles = max(1, picks.block // kernel.block_k)
    if isinstance(lists, GatheredItems):
        used = int((lists.last > lists.first).sum())
        return PickedVisits(touched=used * tiles, longest=tiles, metadata=lists.nbytes)
    if isinstance(lists, PickedItems):
        queries = (lists.last - lists.first).long() * picks.rows
        count = -(-queries // picks.positions) * tiles
        longest = int(count.max()) if count.numel() else 0
        return PickedVisits(touched=int(count.sum()), longest=longest, metadata=lists.nbytes)
    count = (lists.end - lists.begin).long()
    if picks.where is not None:
        count = shared_turns(call, kernel, lists).long()
    elif picks.order == "alike":
        every = -(-call.q.shape[2] // picks.positions)
        run = torch.arange(every, device=count.device) // (picks.rows // picks.positions)
        count = count[..., run]
    count = -(-count * picks.block // kernel.block_k) if picks.fine and picks.rows else count
    owners = call.q.shape[1] // picks.heads
    times = (call.q.shape[0] // count.shape[0]) * (owners // count.shape[1]) * tiles
    return PickedVisits(
        touched=int(count.sum()) * times,
        longest=int(count.max()) * tiles if count.numel() else 0,
        metadata=lists.nbytes,
    )
