"""Reducing and choosing along one dimension, member by member of an axis."""

from __future__ import annotations

import torch
from torch import Tensor

_NEUTRAL: dict[str, float] = {"any": 0, "all": 1, "sum": 0, "mean": 0}


def lifted(of_line: Tensor, of_points: Tensor) -> tuple[Tensor, Tensor, int]:
    """Numbers 0, 1, … in place of coordinates, in their order: (of the line's positions, of the points, how many)."""
    values, numbers = torch.unique(torch.cat([of_line.flatten(), of_points.flatten()]), return_inverse=True)
    ids, targets = numbers[: of_line.numel()], numbers[of_line.numel() :]
    return ids.reshape(of_line.shape), targets.reshape(of_points.shape), values.numel()


def segments(
    kind: str, body: Tensor, exist: Tensor, ids: Tensor, targets: Tensor, count: int, dimension: int
) -> Tensor:
    """``body`` reduced over the existing positions of each member, as seen from ``targets``.

    All tensors have four dimensions that broadcast against each other, except that ``dimension`` of ``targets`` counts
    points and that of the others positions.
    """
    body, exist, ids = _broadcast(body, exist, ids)
    members = scatter(kind, body, exist, ids, count, dimension)
    return _seen_from(members, targets, dimension)


def scatter(kind: str, body: Tensor, exist: Tensor, ids: Tensor, count: int, dimension: int) -> Tensor:
    """The reduction of each member; ``dimension`` of the result counts members."""
    shape = list(body.shape)
    shape[dimension] = count
    if kind in ("min", "max"):
        values = body.to(torch.int64) if body.dtype in (torch.bool, torch.int32) else body
        rule = "amin" if kind == "min" else "amax"
        # Positions that do not exist go to a member of their own, which is dropped.
        shape[dimension] = count + 1
        room = torch.zeros(shape, dtype=values.dtype, device=values.device)
        found = room.scatter_reduce(dimension, torch.where(exist, ids, count), values, rule, include_self=False)
        return found.narrow(dimension, 0, count)
    neutral = _NEUTRAL[kind]
    values = body if body.is_floating_point() else body.to(torch.int64)
    if kind == "all":
        return _sum(torch.where(exist, 1 - values, 0), ids, shape, dimension) == 0
    total = _sum(torch.where(exist, values, neutral), ids, shape, dimension)
    if kind == "any":
        return total > 0
    if kind == "mean":
        number = _sum(exist.to(torch.int64), ids, shape, dimension)
        return total.double() / number.clamp(min=1)
    return total


def _sum(values: Tensor, ids: Tensor, shape: list[int], dimension: int) -> Tensor:
    return torch.zeros(shape, dtype=values.dtype, device=values.device).scatter_add(dimension, ids, values)


def chosen(
    value: Tensor,
    present: Tensor,
    wanted: Tensor,
    *,
    exist: Tensor,
    ids: Tensor,
    targets: Tensor,
    count: int,
    dimension: int,
) -> Tensor:
    """Whether the member of each point is among the ``wanted`` present ones with the largest values.

    A member has the value of its first existing position.  NaN ranks as absent, ties go to the smaller member.
    """
    if exist.shape[dimension] == 0:
        return torch.zeros_like(targets, dtype=torch.bool)
    first = _first_positions(exist, ids, count, dimension)
    value, present = (_seen_from(x, first, dimension) for x in _broadcast(value, present))
    members_exist = scatter("any", exist, exist, ids.broadcast_to(exist.shape), count, dimension)
    present = present & members_exist & ~torch.isnan(value)
    order = torch.where(present, value, -torch.inf).argsort(dim=dimension, descending=True, stable=True)
    # A second stable sort puts those that are present before those that are absent, whatever their values.
    absent = torch.gather(~present, dimension, order).to(torch.int64)
    order = torch.gather(order, dimension, absent.argsort(dim=dimension, stable=True))
    rank = order.argsort(dim=dimension)
    return _seen_from(present & (rank < wanted), targets, dimension)


def _first_positions(exist: Tensor, ids: Tensor, count: int, dimension: int) -> Tensor:
    shape = [1, 1, 1, 1]
    shape[dimension] = exist.shape[dimension]
    line = torch.arange(exist.shape[dimension], device=exist.device).reshape(shape)
    line, exist, ids = _broadcast(line, exist, ids)
    return scatter("min", line, exist, ids, count, dimension)


def _broadcast(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.broadcast_tensors(*tensors))


def _seen_from(members: Tensor, targets: Tensor, dimension: int) -> Tensor:
    """``members`` gathered at ``targets`` along ``dimension``; the other dimensions broadcast."""
    others = [max(a, b) for a, b in zip(members.shape, targets.shape, strict=True)]
    source, index = list(others), list(others)
    source[dimension], index[dimension] = members.shape[dimension], targets.shape[dimension]
    return torch.gather(members.broadcast_to(source), dimension, targets.broadcast_to(index))
