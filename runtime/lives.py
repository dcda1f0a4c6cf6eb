"""Until which query each key is among the best of its past, and the keys that live for each run of queries.

From: a number for each key, ``[…, n]``.  To: the tables of `spdsl.semantics.lifetimes`.  Everything is made on the
device of the numbers, which nobody waits for, some runs at a time: memory is that of the lists and of so many runs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spdsl.runtime.ranking import FAR
from spdsl.semantics.lifetimes import RUN

_RUNS = 512
"""Runs of queries that are looked at at once."""


def lives(value: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """``until``, int32 ``[…, n]``, and lists ``[…, runs, most + RUN]``, if the ``most`` best of each prefix are kept.

    Ties go to the smaller index; a NaN is absent.
    """
    shape, n = value.shape[:-1], value.shape[-1]
    if n == 0:
        return value.int(), value.new_empty((*shape, 0, most + RUN), dtype=torch.int32)
    rank, order = _ranks(value.reshape(-1, n))
    kernels = value.device.type == "cuda"
    last = last_by_kernels(rank, order, most) if kernels else _last_ranks(rank, order, most)
    # The ranks of the last that are kept fall from query to query; the first below that of a key ends its life.
    at = torch.arange(n, device=value.device)
    ends = torch.searchsorted(-last, -rank.to(last.dtype), right=True)
    until = torch.where(rank < n, torch.maximum(ends, at), 0).int()
    if kernels:
        from spdsl.runtime.life_kernels import living

        lists = living(until, most + RUN, RUN)
    else:
        lists = _of_runs(until, most + RUN)
    return until.view(value.shape), lists.view(*shape, *lists.shape[1:])


def _ranks(value: Tensor) -> tuple[Tensor, Tensor]:
    """The place of each key, the best first and absent ones ``n``; and the keys in this order, with ``n`` for those."""
    n = value.shape[1]
    absent = value.isnan()
    # The first of what is sorted so are those that are absent.
    order = value.sort(dim=1, descending=True, stable=True).indices
    places = torch.arange(n, device=value.device)
    order = order.gather(1, (places + absent.sum(1, keepdim=True)) % n)
    places = places.expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, places)
    return rank.masked_fill(absent, n), order.masked_fill(absent.gather(1, order), n)


def _last_ranks(rank: Tensor, order: Tensor, most: int) -> Tensor:
    """For each query the rank of the last that is kept of the keys up to it; ``n`` where fewer than ``most`` exist.

    Ranks are counted in buckets.  Before a run, the last few of those that are kept are found, one more than a run may
    drive out: its bucket by how many keys of the prefix there are up to each, and which of the bucket by the places of
    its keys.  Within a run, the last one is among these few and the keys of the run.
    """
    rows, n = rank.shape
    few, buckets = min(most, RUN + 1), -(-n // RUN)
    runs = -(-n // RUN)
    padded = torch.nn.functional.pad(rank, (0, runs * RUN - n), value=n).view(rows, runs, RUN)
    members = torch.nn.functional.pad(order, (0, buckets * RUN - n), value=n)
    before = torch.zeros(rows, 1, buckets + 1, dtype=torch.int64, device=rank.device)
    found = []
    for first in range(0, runs, _RUNS):
        own = padded[:, first : first + _RUNS]
        counts = torch.zeros(rows, own.shape[1], buckets + 1, dtype=torch.int64, device=rank.device)
        # Absent keys have a bucket of their own, which no one looks at.
        counts.scatter_add_(2, torch.where(own < n, own // RUN, buckets), torch.ones_like(own))
        past = before + counts.cumsum(1) - counts
        before = before + counts.sum(1, keepdim=True)
        start = torch.arange(first, first + own.shape[1], device=rank.device)[:, None] * RUN
        kept = _best(past[..., :-1].cumsum(2), members, start, range(most - few + 1, most + 1), n)
        found.append(_within(kept, own, few, n))
    return torch.cat(found, 1).flatten(1)[:, :n]


def last_by_kernels(rank: Tensor, order: Tensor, most: int) -> Tensor:
    """As `_last_ranks`, int32, by a kernel that counts buckets up to each, some runs at a time."""
    from spdsl.runtime.life_kernels import last_ranks

    rows, n = rank.shape
    runs = buckets = -(-n // RUN)
    rank, order = rank.int(), order.int()
    padded = torch.nn.functional.pad(rank, (0, runs * RUN - n), value=n).view(rows, runs, RUN)
    before = torch.zeros(rows, 1, buckets + 1, dtype=torch.int32, device=rank.device)
    last = torch.empty_like(rank)
    for first in range(0, runs, _RUNS):
        own = padded[:, first : first + _RUNS]
        counts = torch.zeros(rows, own.shape[1], buckets + 1, dtype=torch.int32, device=rank.device)
        # Absent keys have a bucket of their own, which no one looks at.
        counts.scatter_add_(2, torch.where(own < n, own // RUN, buckets).long(), torch.ones_like(own))
        past = counts.cumsum(1, dtype=torch.int32).sub_(counts).add_(before)
        before = past[:, -1:] + counts[:, -1:]
        last_ranks(rank, order, past[..., :-1].cumsum(2, dtype=torch.int32), last, most, first, RUN)
    return last


def _best(counts: Tensor, members: Tensor, start: Tensor, places: range, n: int) -> Tensor:
    """The ranks of those at ``places`` among the keys before ``start``, counted from 1; ``n`` past the last.

    ``counts``, ``[rows, runs, buckets]``: how many of these there are up to each bucket; ``members``: the keys by rank.
    """
    rows, runs, buckets = counts.shape
    wanted = torch.arange(places.start, places.stop, device=counts.device).expand(rows, runs, -1).contiguous()
    bucket = torch.searchsorted(counts, wanted)
    there = bucket.clamp(max=buckets - 1)
    rest = wanted - torch.where(there > 0, counts.gather(2, (there - 1).clamp(min=0)), 0)
    ranks = there[..., None] * RUN + torch.arange(RUN, device=counts.device)
    inside = members.gather(1, ranks.flatten(1)).view(ranks.shape) < start[..., None]
    place = (inside.cumsum(3, dtype=torch.int32) < rest[..., None]).sum(3)
    return torch.where(bucket < buckets, there * RUN + place, n)


def _within(kept: Tensor, own: Tensor, few: int, n: int) -> Tensor:
    """The rank of the last that is kept, for each query of runs: the one at place ``few`` among the last ones
    ``kept`` before the run and the keys of the run up to it."""
    every = torch.cat([kept, own], 2)
    earlier = (kept[:, :, None] <= every[..., None]).sum(3, dtype=torch.int32)
    # How many keys of the run up to each query are among them; small whole numbers are exact in any type.
    dtype = torch.float32 if own.device.type == "cpu" else torch.float16
    up_to = torch.ones(RUN, RUN, dtype=dtype, device=own.device).tril()
    later = (up_to @ (own[..., None] <= every[:, :, None]).to(dtype)).int()
    return torch.where(earlier[:, :, None] + later >= few, every[:, :, None], n).amin(3)


def _of_runs(until: Tensor, width: int) -> Tensor:
    """The keys that live for any query of each run, ascending, and then `FAR`: int32 ``[rows, runs, width]``."""
    rows, n = until.shape
    runs = -(-n // RUN)
    at = torch.arange(n, device=until.device)
    length = torch.where(until > at, (until - 1) // RUN - at // RUN + 1, 0)
    ends = length.cumsum(1)
    slots = torch.arange(runs * width, device=until.device).expand(rows, -1).contiguous()
    key = torch.searchsorted(ends, slots, right=True)
    inside = key < n
    key = key.clamp(max=n - 1)
    run = torch.where(inside, key // RUN + slots - (ends - length).gather(1, key), runs)
    # All rows at once; runs of a row come after those of the rows before.
    run = (run + torch.arange(rows, device=until.device)[:, None] * (runs + 1)).int().flatten()
    run, order = run.sort(stable=True)
    every = torch.arange(rows * (runs + 1) + 1, dtype=torch.int32, device=until.device)
    starts = torch.searchsorted(run, every)
    first, last = (part.view(rows, -1)[:, :runs, None] for part in (starts[:-1], starts[1:]))
    place = first + torch.arange(width, device=until.device)
    lists = key.flatten()[order[place.clamp(max=len(order) - 1)]]
    return torch.where(place < last, lists, FAR).int()
