"""Which candidates are the best: by number, or by their share of the sum.

From: values ``[…, candidates]``, what is present, and what is forced.  To: bools of that shape.  The order is forced
candidates by their indices, then larger values, then smaller indices; a NaN is absent.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def best(value: Tensor, only: Tensor, forced: Tensor | None, count: Tensor | int) -> Tensor:
    """The first ``count`` candidates; ``count`` is one number, or ``[…, 1]``."""
    only = only & ~value.isnan()
    if forced is None:
        return _largest(value, only, count)
    chosen = forced & (forced.cumsum(-1) <= count)
    left = (count - forced.sum(-1, keepdim=True)).clamp(min=0)
    most = count if isinstance(count, int) else None
    return chosen | _largest(value, only & ~forced, left, most)


def in_order(value: Tensor, only: Tensor, forced: Tensor | None, count: int) -> Tensor:
    """The first ``count`` candidates one by one, ``[count, …, candidates]``, each a set of at most one."""
    only = only & ~value.isnan()
    there = only if forced is None else only | forced
    # Sorts are stable, so that the last one counts most: what is absent comes last, what is forced first.
    ranked = only if forced is None else only & ~forced
    order = torch.where(ranked, value, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    for later in (~there,) if forced is None else (~forced, ~there):
        key = later.gather(-1, order).to(torch.uint8)
        order = order.gather(-1, key.argsort(dim=-1, stable=True))
    found = torch.zeros(count, *value.shape, dtype=torch.bool, device=value.device)
    for place in range(min(count, value.shape[-1])):
        entry = order[..., place : place + 1]
        found[place].scatter_(-1, entry, there.gather(-1, entry))
    return found


def _largest(value: Tensor, only: Tensor, count: Tensor | int, most: int | None = None) -> Tensor:
    if isinstance(count, int):
        most = count
    if most is None:
        assert isinstance(count, Tensor)
        most = int(count.max()) if count.numel() else 0
    most = min(most, value.shape[-1])
    if most <= 0:
        return torch.zeros_like(only)
    value = torch.where(only, value, -torch.inf)
    largest = value.topk(most, dim=-1).values
    if isinstance(count, int):
        wanted: Tensor | int = most
        least = largest[..., -1:]
    else:
        wanted = count.clamp(max=most).expand(*value.shape[:-1], 1)
        least = largest.gather(-1, (wanted - 1).clamp(min=0))
    above = only & (value > least)
    ties = only & (value == least)
    # What is left after the larger ones goes to the first of the equal ones.
    left = wanted - above.sum(-1, keepdim=True)
    chosen = above | ties & (ties.cumsum(-1) <= left)
    return chosen if isinstance(count, int) else chosen & (count > 0)


def heaviest(value: Tensor, only: Tensor, forced: Tensor | None, share: Tensor | float) -> Tensor:
    """All that is forced, and then as many as it takes for ``share`` of the sum; negative values count as 0."""
    only = only & ~value.isnan()
    weight = torch.where(only, value, 0.0).clamp(min=0).double()
    total = weight.sum(-1, keepdim=True)
    others = only if forced is None else only & ~forced
    order = torch.where(others, value, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    # Present −inf and absent ones have no weight, so that their order does not matter.
    sorted_weight = torch.where(others, weight, 0.0).gather(-1, order)
    before = sorted_weight.cumsum(-1) - sorted_weight
    if forced is not None:
        before = before + torch.where(forced, weight, 0.0).sum(-1, keepdim=True)
    # All of the sum takes all that adds to it, whatever rounding makes of the sums.
    enough = sorted_weight > 0
    if isinstance(share, Tensor):
        enough = enough & ((before < share * total) | (share >= 1))
    elif share < 1:
        enough = enough & (before < share * total)
    taken = torch.zeros_like(only).scatter(-1, order, enough) & others
    return taken if forced is None else taken | forced


def counted(marks: Tensor) -> Tensor:
    """How many of ``[…, entries]`` are marked up to each entry, int32; in two steps, as torch sums long rows slowly."""
    entries = marks.shape[-1]
    parts = torch.nn.functional.pad(marks, (0, -entries % _SPAN)).unflatten(-1, (-1, _SPAN))
    inside = parts.cumsum(-1, dtype=torch.int32)
    ends = inside[..., -1]
    before = ends.cumsum(-1, dtype=torch.int32) - ends
    whole: Tensor = (inside + before[..., None]).flatten(-2)
    return whole[..., :entries]


_SPAN = 512
"""Entries that are counted in one step."""


def as_lists(chosen: Tensor, width: int) -> Tensor:
    """The indices of the true elements of ``[…, candidates]``, ascending, in ``[…, width]``; then ``FAR``.

    ``width`` is at least the number of them in any row.
    """
    place = chosen.cumsum(-1) - 1
    room = torch.full((*chosen.shape[:-1], width + 1), FAR, dtype=torch.int32, device=chosen.device)
    numbers = torch.arange(chosen.shape[-1], dtype=torch.int32, device=chosen.device).expand(chosen.shape)
    return room.scatter_(-1, torch.where(chosen, place, width), numbers)[..., :width]


def joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    """The lists of some rows after those of others, along ``dim``; all as wide as the widest."""
    widest = max(part.shape[-1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, widest - part.shape[-1]), value=FAR) for part in parts], dim)


FAR = 2**31 - 1
"""Stands at the end of lists, where a row has fewer elements than others."""
