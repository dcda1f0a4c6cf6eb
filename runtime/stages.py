"""Fill the tables of a plan's stages before its kernels run.

From: a call with its inputs.  To: the call with a table for each stage.  Reductions and selections are evaluated in
chunks of coarse rows; nothing of the size of all pairs is held.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import torch
from torch import Tensor

from spdsl.analysis.plans import Stage, StageAxis
from spdsl.diagnostics import error
from spdsl.runtime.alike import Sides, tile_values
from spdsl.runtime.calls import Call
from spdsl.runtime.coarse import Coarse, Points
from spdsl.runtime.evaluate import Tables, own_names, tables_for
from spdsl.runtime.members import Members, everything, members
from spdsl.runtime.pairs import Pairs, pairs_by_batch
from spdsl.runtime.recent import ByContent
from spdsl.semantics.expand import expand
from spdsl.semantics.nodes import BoundPattern, Const, Coord, Expr, Index, Load, Reduce, Side, Top
from spdsl.semantics.rewrite import children, rebuild, substitute, transform, walk

_PAIRS = 1 << 21
"""Pairs that are evaluated at once."""

_recent: ByContent[Tensor] = ByContent(size=16)

_TYPES = {"bool": torch.bool, "int": torch.int32, "float": torch.float32}


def materialise(call: Call) -> Call:
    """The call with the tables of all stages of its plan.

    Raises:
        SpatError: a stage needs something that is not supported yet (SP404, SP405).
    """
    if not call.plan.stages:
        return call
    tables = dict(call.tables)
    for stage in call.plan.stages:
        read = [tables[name] for name in sorted(_tables_of(stage, call.plan.problem.pattern)) if name in tables]
        numbers = (call.q_start, *call.parameters.items())
        sizes = (call.q.shape[:3], call.k.shape[1], call.keys, numbers, str(call.q.device))
        make = partial(_stage_table, stage, replace(call, tables=dict(tables)))
        tables[stage.name] = _recent.get(
            (id(stage), sizes), (call.places, *read), stage, make, compare=call.q.device.type == "cpu"
        )
    return replace(call, tables=tables)


def _tables_of(stage: Stage, pattern: BoundPattern) -> set[str]:
    """The tables that a stage reads, and those that make its axes, or axes that it reads coordinates of."""
    found = {node.table for node in walk(stage.value) if isinstance(node, Load)}
    made = {axis.name: axis for axis in pattern.axes}
    names = {axis.axis for axis in stage.axes}
    names |= {node.axis for node in walk(stage.value) if isinstance(node, Reduce | Top | Coord)}
    seen = set[str]()
    while names:
        name = names.pop()
        if name is None or name in seen or name not in made:
            continue
        seen.add(name)
        found |= {made[name].table or ""}
        names |= {node.axis for of in made[name].of for node in walk(of) if isinstance(node, Coord)}
    return found


def _stage_table(stage: Stage, call: Call) -> Tensor:
    """The table of a stage: a leading batch axis unless ``b`` is one of the axes, then the axes in order."""
    pattern = call.plan.problem.pattern
    tables = tables_for(call.plan.tables, call.tables)
    expr = _expanded(pattern, stage.value)
    batched = call.places is not None or any("b" in own_names(node, tables) for node in walk(expr))
    parts = []
    for pairs in pairs_by_batch(call):
        for batch in pairs.batches if batched else pairs.batches[:1]:
            one = replace(pairs, batches=range(batch, batch + 1))
            parts.append(_one_batch(stage, expr, pattern, one, _of_batch(tables, batch, expr)))
    size = [max(part.shape[axis] for part in parts) for axis in range(parts[0].dim())]
    table = torch.stack([_padded(part, size) for part in parts]).to(_TYPES[stage.value.dtype])
    named = [axis.name for axis in stage.axes]
    return table.movedim(0, named.index("b")) if "b" in named else table


def _expanded(pattern: BoundPattern, expr: Expr) -> Expr:
    """Coordinates as arithmetic everywhere, also inside of reductions and selections."""

    def inner(node: Expr) -> Expr | None:
        if isinstance(node, (Reduce, Top)):
            return rebuild(node, tuple(_expanded(pattern, part) for part in children(node)))
        return None

    return expand(pattern, transform(expr, inner, into_stages=False))


def _of_batch(tables: Tables, batch: int, expr: Expr) -> Tables:
    """Tables with a leading batch axis, cut to one batch."""
    values = dict(tables.values)
    for node in walk(expr):
        if isinstance(node, Load) and values[node.table].dim() == len(node.indices) + 1:
            table = tables.values[node.table]
            values[node.table] = table[batch : batch + 1] if table.shape[0] > 1 else table
    return replace(tables, values=values)


def _padded(part: Tensor, size: list[int]) -> Tensor:
    pads = [pad for have, want in zip(reversed(part.shape), reversed(size), strict=True) for pad in (0, want - have)]
    return torch.nn.functional.pad(part, pads)


# ---------------------------------------------------------------- one batch


def _one_batch(stage: Stage, expr: Expr, pattern: BoundPattern, pairs: Pairs, tables: Tables) -> Tensor:
    """The table of a stage for one batch: the axes of the stage in order, without ``b``."""
    outer = [axis for axis in stage.axes if axis.name in ("h", "g")]
    sides = {axis.side: axis for axis in stage.axes if axis.side is not None}
    if len(sides) + len(outer) + ("b" in [axis.name for axis in stage.axes]) != len(stage.axes):
        raise error(
            "SP405",
            "a reduction or selection over two axes of one side is not supported yet",
            stage.value.span,
            help="use one axis of q and one axis of k",
        )
    counts = {"h": pairs.heads, "g": pairs.groups}
    found: list[Tensor] = []
    points = {side: members(pattern, axis.axis, pairs, tables) for side, axis in sides.items()}
    for place in product(*(range(counts[axis.name]) for axis in outer)):
        fixed: dict[Expr, Expr] = {Index(name="b"): Const(value=pairs.batches.start)}
        fixed |= {Index(name=axis.name): Const(value=number) for axis, number in zip(outer, place, strict=True)}
        if Index(name="h") in fixed and "g" not in {axis.name for axis in outer}:
            number = fixed[Index(name="h")]
            assert isinstance(number, Const)
            fixed[Index(name="g")] = Const(value=int(number.value) // (pairs.heads // pairs.groups))
        found.append(_plane(substitute(expr, fixed), sides, points, pairs, tables))
    table = torch.stack(found).view([*(counts[axis.name] for axis in outer), *found[0].shape])
    order = [axis.name for axis in outer] + [sides[side].name for side in ("q", "k") if side in sides]
    wanted = [axis.name for axis in stage.axes if axis.name != "b"]
    return table.permute(*(order.index(name) for name in wanted)) if wanted else table


def _plane(
    expr: Expr, sides: Mapping[Side, StageAxis], points: Mapping[Side, Members], pairs: Pairs, tables: Tables
) -> Tensor:
    """The values over the points of the sides that the stage has: ``[points of q, points of k]``, or fewer axes."""
    nodes = list(walk(expr))
    reduced = {node.side for node in nodes if isinstance(node, Reduce) and node.axis is not None}
    if reduced == {"q", "k"} and not any(isinstance(node, Top) or _over_all(node) for node in nodes):
        both = Sides(q=points["q"], k=points["k"], axes={side: axis.axis for side, axis in sides.items()})
        return tile_values(expr, both, pairs, tables)
    return _grid(expr, sides, points, pairs, tables)


def _over_all(node: Expr) -> bool:
    return isinstance(node, Reduce) and node.axis is None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """How the points of both sides lie in a tensor ``[points of q, points of k, members of q, members of k]``."""

    side: Side

    def points(self, axis: str | None, given: Members) -> Points:
        """The points of the side; a side that the stage lacks has one."""
        points, members = given.positions.shape
        shape = (points, 1, members, 1) if self.side == "q" else (1, points, 1, members)
        return Points(axis=axis, positions=given.positions.view(shape), exist=given.exist.view(shape))


def _grid(
    expr: Expr, sides: Mapping[Side, StageAxis], points: Mapping[Side, Members], pairs: Pairs, tables: Tables
) -> Tensor:
    """All points, in chunks along a side whose points are not ranked against each other."""
    ranked = {node.side for node in walk(expr) if isinstance(node, Top)}
    if len(ranked) > 1:
        raise error("SP405", "selections along both sides in one are not supported yet", expr.span)
    along: Side = "k" if "q" in ranked else "q"
    if along not in points:
        return _chunk(expr, sides, points, pairs, tables)
    given = points[along]
    other = points.get("k" if along == "q" else "q")
    each = _width(expr, along, given, pairs) * (1 if other is None else len(other.positions))
    each *= _width(expr, "k" if along == "q" else "q", other, pairs)
    parts = []
    for some in torch.arange(len(given.positions), device=pairs.device).split(max(1, _PAIRS // max(1, each))):
        cut = Members(positions=given.positions[some], exist=given.exist[some])
        parts.append(_chunk(expr, sides, {**points, along: cut}, pairs, tables))
    if not parts:
        return _chunk(expr, sides, points, pairs, tables)
    return torch.cat(parts, dim=-1 if along == "k" else 0)


def _width(expr: Expr, side: Side, given: Members | None, pairs: Pairs) -> int:
    """How many positions of a side are looked at for one point."""
    found = 1
    for node in walk(expr):
        if isinstance(node, Reduce) and node.side == side:
            found = max(found, pairs.keys if node.axis is None or given is None else given.positions.shape[1])
    return found


def _chunk(
    expr: Expr, sides: Mapping[Side, StageAxis], points: Mapping[Side, Members], pairs: Pairs, tables: Tables
) -> Tensor:
    both: tuple[Side, Side] = ("q", "k")
    place = Coarse(
        sides={side: _Layout(side=side).points(sides[side].axis, given) for side, given in points.items()},
        everything={side: _Layout(side=side).points(None, everything(pairs)) for side in both},
        candidates={"q": -4, "k": -3},
        extents=pairs.extents(),
        tables=tables,
    )
    shape = tuple(len(points[side].positions) if side in points else 1 for side in both)
    value = torch.as_tensor(place.value(expr), device=pairs.device)
    value = value.expand(*shape, 1, 1).reshape(shape)
    for axis, side in reversed(list(enumerate(both))):
        value = value if side in points else value.squeeze(axis)
    return value
