"""Attention of a pattern with stages: sequence by sequence where they stand at places of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from spdsl.diagnostics import error
from spdsl.reference import attention, stages
from spdsl.reference.worlds import World
from spdsl.semantics.features import refuse_other_features
from spdsl.semantics.graph import Attention, Merge, is_free
from spdsl.semantics.nodes import BoundPattern, CheckedPattern
from spdsl.semantics.shared_axes import check_shared
from spdsl.semantics.softmaxes import MEMBER, POSITIONS, softmax_pattern


def attend(
    pattern: BoundPattern, q: Tensor, k: Tensor, v: Tensor, *, tables: Mapping[str, Tensor], q_start: int
) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
    """Output, LSE (None where arithmetic follows the softmax) and exports of sequences that stand at the same places.

    Keys are at positions 0 … n − 1.  Raises `SpatError` as `attention.attend` does.
    """
    graph = pattern.graph
    assert graph is not None
    world, found = carried_out(pattern, q, k, v, tables=tables, q_start=q_start)
    exports = {each.name: stages.export(world, each) for each in graph.exports}
    if graph.returned is not None:
        return *found[graph.returned], exports
    out = world.whole(graph.result, ("h", "q", "d"))
    return torch.where(_existing(world), out, 0.0), None, exports


def carried_out(
    pattern: BoundPattern, q: Tensor, k: Tensor, v: Tensor, *, tables: Mapping[str, Tensor], q_start: int
) -> tuple[World, dict[str, tuple[Tensor, Tensor]]]:
    """The call with the arrays of all stages, and outputs and LSEs of the softmaxes."""
    graph = pattern.graph
    assert graph is not None
    refuse_other_features(pattern, q.shape[3], v.shape[3])
    given = {table.name: _batched(tables[table.name], len(table.axes), table.axes[:1]) for table in pattern.tables}
    check_shared(pattern, {name: table.shape[0] for name, table in given.items()})
    world = World(
        pattern=pattern,
        arrays={"Q": q.double(), "K": k.double(), "V": v.double(), **given},
        batch=q.shape[0],
        nq=q.shape[2],
        n=k.shape[2],
        q_start=q_start,
    )
    world = replace(world, arrays={**world.arrays, "Q": torch.where(_existing(world), world.arrays["Q"], 0.0)})
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for stage in graph.stages:
        match stage:
            case Attention():
                found[stage.name] = _softmax(world, stage)
            case Merge():
                found[stage.name] = _merged(stage, [found[name] for name in stage.parts])
            case _:
                world = stages.add(world, stage)
                continue
        world = stages.with_array(world, stage.name, stage.axes, found[stage.name][0])
    return world, found


def _existing(world: World) -> Tensor:
    """Which queries exist, ``[nq, 1]``."""
    return (torch.arange(world.nq, device=world.device) + world.q_start >= 0)[:, None]


def _batched(table: Tensor, axes: int, first: tuple[object, ...]) -> Tensor:
    names_batch = bool(first) and getattr(first[0], "kind", "") == "b"
    found = table if names_batch or table.dim() > axes else table.unsqueeze(0)
    return found.double() if found.is_floating_point() else found


def _softmax(world: World, stage: Attention) -> tuple[Tensor, Tensor]:
    features = [axis for axis in stage.axes if is_free(axis) and axis != stage.member]
    q = _tensor(world, stage, "query", "h", stage.rows)
    k, v = (_tensor(world, stage, part, "g", stage.columns) for part in ("key", "value"))
    assert len(features) == 1
    pattern = softmax_pattern(world.pattern, stage.name)
    tables = {t.name: world.arrays[t.name] for t in pattern.tables if t.name not in (POSITIONS, MEMBER)}
    tables |= {POSITIONS: torch.tensor([world.n], device=q.device)}
    start = world.q_start if stage.rows == "q" else 0
    if stage.member is None:
        return attention.attend(pattern, q, k, v, tables=tables, q_start=start)
    place = 1 + stage.axes.index(stage.member)
    outs, lses = [], []
    for number in range(_members(world, stage)):
        own = {name: _of_member(world, stage, name, table, number) for name, table in tables.items()}
        own |= {MEMBER: torch.tensor([number], device=q.device)}
        out, lse = attention.attend(pattern, q, k, v, tables=own, q_start=start)
        outs.append(out)
        lses.append(lse)
    return torch.stack(outs, place), torch.stack(lses, place)


def _members(world: World, stage: Attention) -> int:
    assert stage.member is not None
    clauses = (stage.attend.keep, stage.attend.bias, stage.attend.sink_logit)
    return max(len(world.points(stage.member, clause)) for clause in clauses if clause is not None)


def _of_member(world: World, stage: Attention, name: str, table: Tensor, number: int) -> Tensor:
    """What a table has for one member of a free axis; one that does not lie along the axis, whole."""
    axes = world.axes.get(name)
    if axes is None:
        declared = next((each for each in world.pattern.tables if each.name == name), None)
        axes = () if declared is None else tuple(axis.label for axis in declared.axes)
    if stage.member not in axes:
        return table
    return table.select(table.dim() - len(axes) + axes.index(stage.member), number)


def _tensor(world: World, stage: Attention, part: str, heads: str, rows: str) -> Tensor:
    from spdsl.semantics.rewrite import free_axes

    expr = getattr(stage, part)
    feature = next(axis for axis in sorted(free_axes(expr)) if is_free(axis))
    return world.whole(expr, (heads, rows, feature))


def _merged(stage: Merge, parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if stage.over is not None:
        # Heads come first, then the members.
        parts = [pair for out, lse in parts for pair in zip(out.unbind(2), lse.unbind(2), strict=True)]
    lses = torch.stack([lse for _, lse in parts])
    if stage.by == "mean":
        kept = (lses > -torch.inf)[..., None]
        total = torch.where(kept, torch.stack([out for out, _ in parts]), 0.0).sum(0)
        return total / kept.sum(0).clamp(min=1), lses[0]
    largest = lses.amax(0)
    largest = torch.where(torch.isfinite(largest), largest, 0.0).detach()
    weights = torch.exp(lses - largest)
    weights = weights.detach() if stage.stopped else weights
    total = weights.sum(0)
    out = (torch.stack([out for out, _ in parts]) * weights[..., None]).sum(0)
    empty = total == 0
    divisor = torch.where(empty, 1.0, total)
    return out / divisor[..., None], torch.where(empty, -torch.inf, largest + torch.log(divisor))


def refuse_no_lse(pattern: BoundPattern | CheckedPattern) -> None:
    """Refuse to return an LSE that there is not.  Raises `SpatError` (SP306)."""
    if pattern.graph is not None and pattern.graph.returned is None:
        raise error(
            "SP306",
            f"`{pattern.name}` computes with its softmaxes, so its result has no LSE",
            pattern.graph.result.span,
            help="leave `return_lse` out",
        )
