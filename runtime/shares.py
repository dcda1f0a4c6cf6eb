"""Which entries of one axis count for each member of another, and how often.

From: two axes of one side.  To: for each member a row of entries and their weights, padded by weights of 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spdsl.semantics.graph import Windows


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The entries of an axis: the positions that exist and the entry of each (one row for each window that overlaps,
    −1 for none), how many entries there are, and their declared ends where they have any."""

    entries: Tensor
    count: int
    ends: tuple[Tensor, Tensor] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """``entries`` and ``weights``, both int64 ``[members, most]``.

    ``blocks`` is the size of the members where these are consecutive runs of all entries in order, each entry counting
    once, the last run perhaps shorter; else 0.
    """

    entries: Tensor
    weights: Tensor
    blocks: int


def shares(over: Line, per: Line | None, windows: Windows | None) -> Shares:
    """How entries of ``over`` are shared out among the members of ``per``, or all to one."""
    device = over.entries.device
    if per is None:
        counts = _sizes(over)
        weights = (counts > 0).long() if windows is not None else counts
        return Shares(entries=torch.arange(over.count, device=device)[None], weights=weights[None], blocks=0)
    if windows is not None and over.ends is not None and per.ends is not None:
        return _by_ends(over, per, over.ends, per.ends, windows)
    pairs = torch.cat([(a * per.count + b)[(a >= 0) & (b >= 0)] for a in over.entries for b in per.entries])
    found, counts = pairs.flatten().unique(return_counts=True)
    entry, member = found // per.count, found % per.count
    if windows == "inside":
        inside = counts == _sizes(over)[entry]
        entry, member, counts = entry[inside], member[inside], counts[inside]
    return _table(entry, member, counts if windows is None else torch.ones_like(counts), over.count, per.count)


def by_member(kind: str, body: Tensor, member: Tensor, count: int) -> Tensor:
    """A reduction of one line, one number for each of ``count`` members; over nothing false, true or 0."""
    # What belongs to no member counts in a place behind them: the host need not know how much that is.
    member = torch.where((member >= 0) & (member < count), member, count)
    match kind:
        case "any" | "all":
            want = body if kind == "any" else ~body
            found = torch.zeros(count + 1, dtype=torch.int64, device=body.device).index_add(0, member, want.long()) > 0
            found = found[:count]
            return found if kind == "any" else ~found
        case "sum" | "mean":
            total = torch.zeros(count + 1, dtype=body.dtype, device=body.device).index_add(0, member, body)[:count]
            if kind == "sum":
                return total
            sizes = torch.zeros(count + 1, dtype=torch.int64, device=body.device)
            sizes = sizes.index_add(0, member, torch.ones_like(member))[:count]
            return total.double() / sizes.clamp(min=1)
        case _:
            room = torch.zeros(count + 1, dtype=body.dtype, device=body.device)
            return room.scatter_reduce(0, member, body, "amin" if kind == "min" else "amax", include_self=False)[:count]


def _by_ends(over: Line, per: Line, one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor], windows: Windows) -> Shares:
    """Windows and blocks of even sizes: those inside a member, or touching it, are neighbours."""
    first, last = one
    if windows == "inside":
        low, high = torch.searchsorted(first, two[0]), torch.searchsorted(last, two[1], right=True)
    else:
        low, high = torch.searchsorted(last, two[0]), torch.searchsorted(first, two[1], right=True)
    size = (high - low).clamp(min=0)
    member = torch.repeat_interleave(torch.arange(per.count, device=size.device), size)
    begin = size.cumsum(0) - size
    entry = torch.arange(len(member), device=size.device) - begin[member] + low[member]
    return _table(entry, member, torch.ones_like(entry), over.count, per.count)


def _sizes(line: Line) -> Tensor:
    flat = line.entries.flatten()
    return torch.bincount(flat[flat >= 0], minlength=line.count)


def _table(entry: Tensor, member: Tensor, counts: Tensor, entries: int, members: int) -> Shares:
    order = (member * max(entries, 1) + entry).argsort()
    entry, member, counts = entry[order], member[order], counts[order]
    sizes = torch.bincount(member, minlength=members)
    most = max(1, int(sizes.max())) if members else 1
    place = torch.arange(len(member), device=member.device) - (sizes.cumsum(0) - sizes)[member]
    table = torch.zeros(members, most, dtype=torch.int64, device=member.device)
    weights = torch.zeros_like(table)
    table[member, place], weights[member, place] = entry, counts
    runs = len(entry) == entries == len(entry.unique()) and bool((counts == 1).all())
    runs = runs and bool((entry.diff() == 1).all()) and bool((sizes[:-1] == most).all())
    return Shares(entries=table, weights=weights, blocks=most if runs else 0)
