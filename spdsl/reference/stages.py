"""What each stage of a graph computes: dense, in float64, differentiable by autograd."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import assert_never

from spdsl.diagnostics import error
from spdsl.reference.worlds import World, first_positions, last_positions
from spdsl.semantics.graph import (
    DISTANCE,
    Attention,
    Descend,
    Export,
    Mark,
    Merge,
    Pool,
    Prefix,
    Score,
    Select,
    Smooth,
    Softmax,
    Stage,
    side_of,
)
from spdsl.semantics.nodes import Expr, Index
from spdsl.semantics.rewrite import free_axes


def add(world: World, stage: Stage) -> World:
    """The world with the array of one more stage, which is no softmax of attention."""
    match stage:
        case Score():
            array = _score(world, stage)
        case Pool():
            array = _pool(world, stage)
        case Softmax():
            array = _softmax(world, stage)
        case Select():
            array = _select(world, stage)
        case Smooth():
            array = _smooth(world, stage)
        case Prefix():
            array = _prefix(world, stage)
        case Descend():
            array, _ = descended(world, stage)
        case Mark(value=value):
            array = world.whole(value, stage.axes)
        case Attention() | Merge():
            raise TypeError(stage)
        case _:
            assert_never(stage)
    return with_array(world, stage.name, stage.axes, array)


def with_array(world: World, name: str, axes: tuple[str, ...], array: Tensor) -> World:
    """The world with one more array."""
    return replace(world, arrays={**world.arrays, name: array}, axes={**world.axes, name: axes})


def export(world: World, exported: Export) -> Tensor:
    """The value of an export, ``[batch, *axes]``; 0 where it is absent."""
    value = world.whole(exported.value, exported.axes)
    return torch.where(world.evaluate(exported.only, exported.axes), value, torch.zeros_like(value))


# ---------------------------------------------------------------- scores and softmax


def _score(world: World, stage: Score) -> Tensor:
    left, right = (_own_axes(stage, side) for side in (stage.left, stage.right))
    one, two = world.whole(stage.left, left), world.whole(stage.right, right)
    letters = {axis: chr(ord("a") + place) for place, axis in enumerate((*stage.axes, stage.over))}
    spelled = ["z" + "".join(letters[axis] for axis in axes) for axes in (left, right, stage.axes)]
    scale = 1 / math.sqrt(one.shape[-1]) if stage.scale is None else float(world.evaluate(stage.scale, ()).max())
    return torch.einsum(f"{spelled[0]},{spelled[1]}->{spelled[2]}", one, two) * scale


def _own_axes(stage: Score, expr: Expr) -> tuple[str, ...]:
    """The axes of a score along which one of its sides varies."""
    read = free_axes(expr)
    sides = {side_of(axis) for axis in read} - {None}

    def varies(axis: str) -> bool:
        return axis in read or side_of(axis) in sides or (axis == "h" and "g" in read)

    return (*(axis for axis in stage.axes if varies(axis)), stage.over)


def _softmax(world: World, stage: Softmax) -> Tensor:
    dim = 1 + stage.axes.index(stage.over)
    value, only = world.together((stage.value, stage.only), stage.axes)
    only = only & ~value.isnan()
    # Infinite scores share all of the mass.
    infinite = only & (value == math.inf)
    some = infinite.any(dim, keepdim=True)
    only = torch.where(some, infinite, only) & (value > -math.inf)
    value = torch.where(only & ~some, value, 0.0)
    largest = torch.where(only, value, -math.inf).amax(dim, keepdim=True).clamp(min=-1e300).detach()
    weights = torch.where(only, torch.exp(value - largest), 0.0)
    total = weights.sum(dim, keepdim=True)
    return weights / torch.where(total == 0, 1.0, total)


# ---------------------------------------------------------------- selections


def _select(world: World, stage: Select) -> Tensor:
    entries = ranked(world, stage)
    kept, place = chosen(world, stage, entries)
    if stage.rank is not None:
        one_by_one = torch.stack([kept & (place == number) for number in range(int(entries.amount.max()))])
        over = entries.axes.index(stage.over)
        return one_by_one.movedim(-1, 2 + over).movedim(0, 1 + stage.axes.index(stage.rank))
    return entries.restored(kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """What is ranked together along the last dimension, and how many of it, or what share; ``axes`` without ranks."""

    axes: tuple[str, ...]
    value: Tensor
    only: Tensor
    forced: Tensor
    amount: Tensor
    dimensions: tuple[int, ...]
    sizes: tuple[int, ...]

    def restored(self, found: Tensor) -> Tensor:
        """Something for each entry, ``[batch, *axes]``."""
        whole: Tensor = found.unflatten(-1, self.sizes)
        return whole.movedim(tuple(range(-len(self.sizes), 0)), self.dimensions)


def ranked(world: World, stage: Select) -> Ranked:
    """The entries of a selection."""
    axes = tuple(axis for axis in stage.axes if axis != stage.rank)
    dimensions = tuple(1 + axes.index(axis) for axis in (*stage.also, stage.over))
    last = tuple(range(-len(dimensions), 0))
    parts = world.together((stage.value, stage.only, stage.forced), axes)
    value, only, forced = (part.detach().movedim(dimensions, last) for part in parts)
    sizes = tuple(value.shape[value.dim() - len(last) :])
    value, only, forced = (part.flatten(-len(last)) for part in (value, only, forced))
    amount = world.evaluate(stage.amount, axes).double().movedim(dimensions, last).flatten(-len(last))
    return Ranked(axes=axes, value=value, only=only, forced=forced, amount=amount, dimensions=dimensions, sizes=sizes)


def chosen(world: World, stage: Select, entries: Ranked) -> tuple[Tensor, Tensor]:
    """What is chosen along the last dimension, and the place of each entry in the order."""
    dim, value, forced, amount = -1, entries.value, entries.forced, entries.amount
    only = entries.only & ~value.isnan()
    rank = torch.where(only & ~forced, value, -math.inf)
    order = rank.argsort(dim=dim, descending=True, stable=True)
    present = only | forced
    for later in (~forced, ~present):
        # Sorts are stable, so that the last one counts most: what is absent comes last, what is forced first.
        key = torch.gather(later, dim, order).to(torch.int64)
        order = torch.gather(order, dim, key.argsort(dim=dim, stable=True))
    place = order.argsort(dim=dim)
    if stage.by == "count":
        return present & (place < amount), place
    mass = torch.gather(torch.where(only, value, 0.0).clamp(min=0), dim, order)
    before = mass.cumsum(dim) - mass
    total = mass.sum(dim, keepdim=True)
    # All of the sum takes all that adds to it, whatever rounding makes of the sums.
    enough = ((before < amount * total) | (amount >= 1)) & (mass > 0)
    taken = torch.gather(enough, dim, place)
    if stage.least is not None:
        taken = taken | (place < world.evaluate(stage.least, ()).reshape(()))
    return forced | present & taken, place


# ---------------------------------------------------------------- neighbours and prefixes


def _smooth(world: World, stage: Smooth) -> Tensor:
    dim = 1 + stage.axes.index(stage.over)
    value, only = world.together((stage.value, stage.only), stage.axes)
    value = torch.where(only, value, 0.0).movedim(dim, -1)
    width, size = int(world.evaluate(stage.width, ()).max()), value.shape[-1]
    line = torch.arange(size, device=value.device)
    near = ((line[:, None] - line).abs() <= width // 2).double()
    return (value @ near / width).movedim(-1, dim)


def descended(world: World, stage: Descend, margin: float = 0.0) -> tuple[Tensor, Tensor]:
    """The best values of the members, and in which of them two halves differed by no more than this share of the
    largest value."""
    inner = tuple("k" if axis == stage.per else axis for axis in stage.axes)
    dim = 1 + inner.index("k")
    value, only = world.together((stage.value, stage.only), inner)
    # What is absent is a NaN: smaller than all numbers, −inf among them.
    value = torch.where(only, value, math.nan).movedim(dim, -1)
    line = world.points("k", stage.value)
    member = world.at_position(stage.per.partition(".")[2], line)
    least = margin * torch.where(value.isfinite(), value.abs(), 0.0).max() if value.numel() else value.sum()
    found, near = [], []
    for each in range(world.count("k", stage.per.partition(".")[2])):
        positions = line[member == each]
        best = torch.full(value.shape[:-1], math.nan, dtype=value.dtype, device=value.device)
        first = torch.full(value.shape[:-1], int(positions[0]) if len(positions) else 0, device=value.device)
        size = torch.full_like(first, len(positions))
        alike = torch.zeros_like(best, dtype=torch.bool)
        while int(size.max()) > 1:
            half = (size + 1) // 2
            starts, lengths = (first, first + half), (half, size - half)
            seen = []
            for start, length in zip(starts, lengths, strict=True):
                middle = (start + start + length) // 2
                here = value.gather(-1, middle.clamp(max=value.shape[-1] - 1)[..., None])[..., 0]
                seen.append(torch.where(length > 0, here, math.nan))
            better = (seen[1] > seen[0]) | (seen[0].isnan() & ~seen[1].isnan())
            alike = alike | ((size > 1) & ((seen[1] - seen[0]).abs() <= least))
            best = torch.where(size > 1, torch.fmax(best, torch.fmax(*seen)), best)
            first, size = torch.where(better, starts[1], starts[0]), torch.where(better, lengths[1], lengths[0])
        if len(positions) == 1:
            best = value[..., int(positions[0])]
        found.append(best)
        near.append(alike)
    place = 1 + stage.axes.index(stage.per)
    if not found:
        return value[..., :0].movedim(-1, place), value[..., :0].movedim(-1, place) > 0
    return torch.stack(found, place), torch.stack(near, place)


def _prefix(world: World, stage: Prefix) -> Tensor:
    inner = tuple("k" if axis == "q" else axis for axis in stage.axes)
    dim = 1 + inner.index("k")
    value, only = world.together((stage.value, stage.only), inner)
    before = (world.points("k", stage.value) <= world.points("q", stage.value)[:, None]).double()
    total = torch.movedim(torch.where(only, value, 0.0).movedim(dim, -1) @ before.T, -1, dim)
    if stage.kind == "sum":
        return total
    counts = torch.movedim(only.double().movedim(dim, -1) @ before.T, -1, dim)
    return total / counts.clamp(min=1)


# ---------------------------------------------------------------- reductions


def _pool(world: World, stage: Pool) -> Tensor:
    if stage.over == DISTANCE:
        return _diagonals(world, stage)
    inner = _inner(stage)
    dim = 1 + inner.index(stage.over)
    value, only = world.together((stage.value, stage.only), inner)
    counts = _counts(world, stage, value.shape[dim])
    found = []
    for member in range(counts.shape[1]):
        entries = counts[:, member].nonzero().flatten()
        weights = counts[entries, member].reshape(-1, *[1] * (value.dim() - 1 - dim))
        parts = value.index_select(dim, entries), only.index_select(dim, entries)
        found.append(_reduced(stage, *parts, weights, dim))
    if not found:
        shape = [size for place, size in enumerate(value.shape) if place != dim]
        shape.insert(1 + stage.axes.index(stage.per or ""), 0)
        return value.new_zeros(shape)
    if stage.per is None:
        return found[0]
    return torch.stack(found, dim=1 + stage.axes.index(stage.per))


def _inner(stage: Pool) -> tuple[str, ...]:
    """The axes of what is reduced: `over` stands where `per` will, or last."""
    if stage.per is None:
        return (*stage.axes, stage.over)
    return tuple(stage.over if axis == stage.per else axis for axis in stage.axes)


def _reduced(stage: Pool, value: Tensor, only: Tensor, weights: Tensor, dim: int) -> Tensor:
    match stage.kind:
        case "any":
            return (value & only).any(dim)
        case "all":
            return (value | ~only).all(dim)
        case "sum":
            return torch.where(only, value * weights, 0).sum(dim)
        case "mean":
            total = torch.where(only, value * weights, 0).sum(dim)
            return total / torch.where(only, weights, 0).sum(dim).clamp(min=1)
        case "max" | "min":
            sign = 1 if stage.kind == "max" else -1
            if value.shape[dim] == 0:
                return value.sum(dim)
            far = -math.inf if value.is_floating_point() else torch.iinfo(value.dtype).min
            best = torch.where(only & ~_nan(value), sign * value, far).amax(dim)
            return torch.where((only & ~_nan(value)).any(dim), sign * best, 0)
        case _:
            assert_never(stage.kind)


def _nan(value: Tensor) -> Tensor:
    return value.isnan() if value.is_floating_point() else torch.zeros_like(value, dtype=torch.bool)


def _counts(world: World, stage: Pool, entries: int) -> Tensor:
    """How often each entry of the axis that goes counts for each member of the one that takes its place."""
    over, per, device = stage.over, stage.per, world.device
    side = side_of(over)
    if side is None:
        if per == "g":
            ratio = world.pattern.heads // world.pattern.groups
            heads, groups = torch.arange(entries, device=device), torch.arange(world.pattern.groups, device=device)
            return (heads[:, None] // ratio == groups).long()
        return torch.ones(entries, 1, dtype=torch.int64, device=device)
    positions = world.points(side, Index(name=side))
    exist = (positions >= 0) & ((positions < world.n) if side == "k" else True)
    of_entries = members(world, over, entries, positions) & exist
    if per is None:
        shared = of_entries.sum(1, keepdim=True)
        return (shared > 0).long() if stage.windows else shared
    name = per.partition(".")[2]
    count = world.count(side, name)
    of_members = members(world, per, count, positions) & exist
    if stage.windows is None:
        return _shared(of_entries, of_members)
    return _windows(world, stage, of_entries, of_members).long()


def _shared(one: Tensor, two: Tensor) -> Tensor:
    """How many positions each pair of members shares; GPUs multiply no matrices of ints."""
    return (one.double() @ two.double().T).long()


def _windows(world: World, stage: Pool, of_entries: Tensor, of_members: Tensor) -> Tensor:
    """Which entries lie inside a member, or touch it; by declared ends where axes have them."""
    ends = []
    for axis, count in ((stage.over, len(of_entries)), (stage.per or "", len(of_members))):
        name = axis.partition(".")[2]
        line = torch.arange(count, device=world.device)
        last = last_positions(world, name, line) if name else line
        ends.append(None if last is None else (first_positions(world, name, line) if name else line, last))
    one, two = ends
    if one is None or two is None:
        shared = _shared(of_entries, of_members)
        return shared > 0 if stage.windows == "touching" else (shared == of_entries.sum(1)[:, None]) & (shared > 0)
    first, last = one[0][:, None], one[1][:, None]
    if stage.windows == "inside":
        return (two[0] <= first) & (last <= two[1])
    return (first <= two[1]) & (two[0] <= last)


def members(world: World, axis: str, count: int, positions: Tensor) -> Tensor:
    """Which positions belong to each entry of an axis, bool ``[entries, positions]``."""
    name = axis.partition(".")[2]
    line = torch.arange(count, device=world.device)[:, None]
    if not name:
        return line == torch.arange(len(positions), device=world.device)
    declared = world.axis(name) if any(each.name == name for each in world.pattern.axes) else None
    if declared is None or declared.step is None:
        return line == world.at_position(name, positions)
    end = last_positions(world, name, line.flatten())
    if end is None:
        raise error("SP404", f"windows of `{name}` have no ends", declared.span)
    return (first_positions(world, name, line.flatten())[:, None] <= positions) & (positions <= end[:, None])


def _diagonals(world: World, stage: Pool) -> Tensor:
    """One value for each distance, from all pairs that lie so far apart."""
    others = tuple(axis for axis in stage.axes if axis != DISTANCE)
    inner = (*others, "q", "k")
    value, only = world.together((stage.value, stage.only), inner)
    q = world.points("q", stage.value)
    only = only & (q >= 0)[:, None]
    found = []
    for each in world.points(DISTANCE, stage.value).tolist():
        # Keys stand at q - each, so that columns run ahead of rows by what is left.
        some, present = (x.diagonal(world.q_start - each, -2, -1) for x in (value, only))
        found.append(_reduced(stage, some, present, torch.ones(some.shape[-1], device=value.device), -1))
    place = 1 + stage.axes.index(DISTANCE)
    if not found:  # one query and no key
        return value.new_zeros(*value.shape[:place], 0, *value.shape[place:-2])
    return torch.stack(found, place)
