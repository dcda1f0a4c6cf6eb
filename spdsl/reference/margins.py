"""Rows whose selections are in doubt: there a call with fewer digits may choose others, and is no less right.

From: a call all of whose stages have been computed.  To: bools ``[batch, heads, nq]``.  A selection is in doubt where
what is chosen and what is not lie less than `MARGIN` apart at the cut, and a comparison where its sides do.  Whatever
reads something in doubt is so, too, and in all rows that it makes of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spdsl.reference.stages import chosen, descended, members, ranked
from spdsl.reference.worlds import World
from spdsl.semantics.graph import Descend, Mark, Pool, Select, Softmax, Stage, loads, parts, ranks_queries, side_of
from spdsl.semantics.nodes import Apply
from spdsl.semantics.rewrite import walk

MARGIN = 1e-5
"""Of the numbers that are compared; where some of a row are negative, of the largest: a small one may be a difference
of large ones."""

_COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")


def doubtful(world: World) -> Tensor:
    """The rows ``[batch, heads, nq]`` with a selection in doubt."""
    graph = world.pattern.graph
    assert graph is not None
    nothing = torch.zeros(world.batch, world.pattern.heads, world.nq, dtype=torch.bool, device=world.device)
    found: dict[str, Tensor] = {}
    for stage in graph.stages:
        read = {name for part in parts(stage) for name in loads(part)}
        rows = nothing
        for name in read & found.keys():
            rows = rows | found[name]
        rows = _spread(world, stage, rows)
        match stage:
            case Select():
                rows = rows | _of_choice(world, stage)
            case Mark():
                rows = rows | _of_comparisons(world, stage)
            case Descend():
                rows = rows | _rows(world, stage.axes, descended(world, stage, MARGIN)[1])
            case _:
                pass
        found[stage.name] = rows
    return torch.stack([nothing, *found.values()]).any(0)


# ---------------------------------------------------------------- what is in doubt


def _of_choice(world: World, stage: Select) -> Tensor:
    entries = ranked(world, stage)
    kept, place = chosen(world, stage, entries)
    value, forced = entries.value, entries.forced
    only = entries.only & ~value.isnan() & ~forced
    inside, outside = kept & only, only & ~kept
    least = torch.where(inside, value, torch.inf).amin(-1, keepdim=True)
    most = torch.where(outside, value, -torch.inf).amax(-1, keepdim=True)
    scale = _scale(value, only, least, most)
    near = (inside & (value - most <= scale)) | (outside & (least - value <= scale))
    near = near & (least - most <= scale)
    if stage.rank is not None:
        near = near | _near_in_order(value, only, place, entries.amount)
    if stage.by == "mass":
        near = near | _near_the_share(value, only, place, entries.amount)
    return _rows(world, entries.axes, entries.restored(near))


def _scale(value: Tensor, only: Tensor, *two: Tensor) -> Tensor:
    """`MARGIN` of what two numbers at a cut are compared to, for each row."""
    there = only & value.isfinite()
    largest = torch.where(there, value.abs(), 0.0).amax(-1, keepdim=True)
    signed = (there & (value < 0)).any(-1, keepdim=True)
    here = torch.stack([torch.where(each.isfinite(), each.abs(), 0.0) for each in two]).amax(0)
    return MARGIN * torch.where(signed, largest, here)


def _near_in_order(value: Tensor, only: Tensor, place: Tensor, amount: Tensor) -> Tensor:
    """Rows in which two that are chosen one after the other may change places."""
    line = torch.full_like(value, torch.nan).scatter(-1, place, torch.where(only, value, torch.nan))
    one, two = line[..., :-1], line[..., 1:]
    at = torch.arange(one.shape[-1], device=value.device)
    near = (one - two <= _scale(value, only, one, two)) & (at < amount)
    return near.any(-1, keepdim=True).expand_as(value)


def _near_the_share(value: Tensor, only: Tensor, place: Tensor, amount: Tensor) -> Tensor:
    """Rows whose share is reached, or is not, by less than the margin."""
    mass = torch.where(only, value, 0.0).clamp(min=0)
    line = torch.zeros_like(mass).scatter(-1, place, mass)
    total = line.sum(-1, keepdim=True)
    before = line.cumsum(-1) - line
    near = ((before - amount * total).abs() <= MARGIN * total) & (line > 0) & (amount < 1)
    return near.any(-1, keepdim=True).expand_as(value)


def _of_comparisons(world: World, stage: Mark) -> Tensor:
    near = torch.zeros_like(world.whole(stage.value, stage.axes))
    for node in walk(stage.value, into_stages=False):
        if isinstance(node, Apply) and node.op in _COMPARISONS and any(each.dtype == "float" for each in node.args):
            one, two = (each.double() for each in world.together(node.args, stage.axes))
            near = near | _near(one, two)
    return _rows(world, stage.axes, near)


def _near(one: Tensor, two: Tensor) -> Tensor:
    """Whether two numbers differ by less than the margin; of a row is what stands along the last dimension."""
    there = one.isfinite() & two.isfinite()
    larger = torch.where(there, torch.maximum(one.abs(), two.abs()), 0.0)
    signed = (there & (torch.minimum(one, two) < 0)).any(-1, keepdim=True)
    scale = torch.where(signed, larger.amax(-1, keepdim=True), larger) if one.dim() > 1 and one.numel() else larger
    return there & ((one - two).abs() <= MARGIN * scale)


# ---------------------------------------------------------------- which rows these are


def _spread(world: World, stage: Stage, rows: Tensor) -> Tensor:
    """The rows of a result that read these rows of what it is made of."""
    match stage:
        case Pool(over="h", per="g"):
            of_groups = rows.unflatten(1, (world.pattern.groups, -1)).any(2)
            shared: Tensor = of_groups.repeat_interleave(world.pattern.heads // world.pattern.groups, 1)
            return shared
        case Pool(over=over, per=str() as per) if side_of(over) == "q" and side_of(per) == "q":
            of_members = _members(world, per)
            together: Tensor = (rows.double() @ of_members.T > 0).double() @ of_members > 0
            return together
        case Pool(over=over) | Softmax(over=over) | Select(over=over):
            heads = over in ("h", "g") or (isinstance(stage, Select) and {"h", "g"} & set(stage.also))
            rows = rows.any(1, keepdim=True).expand_as(rows) if heads else rows
            across = ranks_queries(stage) or side_of(over) == "q" or over == "q-k"
            return rows.any(2, keepdim=True).expand_as(rows) if across else rows
        case _:
            return rows


def _members(world: World, axis: str) -> Tensor:
    """Which queries belong to each entry of an axis of theirs, float64 ``[entries, nq]``."""
    name, positions = axis.partition(".")[2], torch.arange(world.nq, device=world.device) + world.q_start
    count = world.count("q", name) if name else world.nq
    return members(world, axis, count, positions).double()


def _rows(world: World, axes: tuple[str, ...], entries: Tensor) -> Tensor:
    """The rows that entries ``[batch, *axes]`` belong to; all of them along axes that these have not."""
    for place in reversed(range(len(axes))):
        if axes[place] not in ("h", "g") and side_of(axes[place]) != "q":
            entries = entries.any(1 + place)
    left = tuple(axis for axis in axes if axis in ("h", "g") or side_of(axis) == "q")
    sides = [axis for axis in left if side_of(axis) == "q"]
    if not sides:
        entries = entries[..., None]
    elif sides[0] != "q":
        of_members = _members(world, sides[0])
        entries = (entries.double() @ of_members[: entries.shape[-1]]) > 0
    if not {"h", "g"} & set(left):
        entries = entries[:, None]
    elif "g" in left and "h" not in left:
        entries = entries.repeat_interleave(world.pattern.heads // world.pattern.groups, 1)
    return entries.expand(world.batch, world.pattern.heads, world.nq)
