"""Sets of the same blocks, and of keys alone, put together before attention looks at them.

From: a graph of stages.  To: one in which `a or b` of a softmax's set is one `Mark`, where both are sets of pairs of
the same blocks of queries and keys, or one is a set of these blocks of either side: then it is one list for each row,
and its kernels walk what has been picked.  So is a condition on several sets of keys, or of distances seen from blocks,
of which kernels then look at one; and a set of pairs that is exported, which is made as any other then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeGuard

from spdsl.semantics import build
from spdsl.semantics.graph import (
    DISTANCE,
    Attention,
    Export,
    Mark,
    Pool,
    Stage,
    StageGraph,
    index_of,
    on_side,
    ordered,
    side_of,
)
from spdsl.semantics.nodes import Apply, Const, Expr, Load
from spdsl.semantics.rewrite import children, conjuncts, disjuncts, free_axes, walk


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A set of pairs of blocks where a condition on heads holds: ``source`` is the stage, ``where`` the condition.

    Without a source it is all pairs for which the condition holds, which then is one on heads and on blocks of either
    side.
    """

    source: str | None
    where: Expr


def with_joined_sets(graph: StageGraph) -> StageGraph:
    """The graph with such sets put together."""
    stages = {stage.name: stage for stage in graph.stages}
    found: list[Stage] = []
    for stage in graph.stages:
        if isinstance(stage, Attention) and stage.member is None:
            marks = list[Mark]()
            keep = build.conj(*(_joined(stages, stage, clause, marks) for clause in conjuncts(stage.attend.keep)))
            found += marks
            stage = replace(stage, attend=replace(stage.attend, keep=keep)) if marks else stage
        elif _is_seen_from_blocks(stage) and not isinstance(stage.value, Load) and of_distances(stages, stage.value):
            name, axes = f"{stage.name}_distances", ordered((free_axes(stage.value) & {"h", "g"}) | {DISTANCE})
            found.append(Mark(name=name, axes=axes, value=stage.value, span=stage.span))
            read = Load(table=name, dtype="bool", indices=tuple(map(index_of, axes)), span=stage.span)
            stage = replace(stage, value=read)
        found.append(stage)
    exports = tuple(_exported(stages, each, found) for each in graph.exports)
    return replace(graph, stages=tuple(found), exports=exports)


def _exported(stages: Mapping[str, Stage], exported: Export, found: list[Stage]) -> Export:
    """An export that reads one set, which is added to the stages, in the place of a condition on several."""
    axes, span = exported.axes, exported.span
    sides = [side_of(axis) for axis in axes]
    read = {node.table for node in walk(exported.value) if isinstance(node, Load)} & set(stages)
    one = isinstance(exported.value, Load) and exported.only == build.TRUE
    if exported.value.dtype != "bool" or sides[-1:] != ["k"] or sides.count("q") != 1 or one or not read:
        return exported
    numbers = (each.name.removeprefix("stage_") for each in found)
    name = f"stage_{1 + max((int(each) for each in numbers if each.isdecimal()), default=-1)}"
    value = build.conj(*(each for each in (exported.value, exported.only) if each != build.TRUE))
    found.append(Mark(name=name, axes=axes, value=value, span=span))
    seen = Load(table=name, dtype="bool", indices=tuple(map(index_of, axes)), span=span)
    return replace(exported, value=seen, only=build.TRUE)


def _is_seen_from_blocks(stage: Stage) -> TypeGuard[Pool]:
    return (
        isinstance(stage, Pool)
        and stage.kind == "any"
        and stage.over == "q"
        and stage.per is not None
        and stage.windows is None
        and stage.only == build.TRUE
    )


def of_distances(stages: Mapping[str, Stage], value: Expr) -> bool:
    """Whether a value reads sets of distances, along their own axes, and besides what belongs to heads."""
    seen = False

    def fits(node: Expr) -> bool:
        nonlocal seen
        match node:
            case Load(table=name, indices=indices) if name in stages:
                axes = stages[name].axes
                seen = seen or DISTANCE in axes
                own = indices[len(indices) - len(axes) :] == tuple(map(index_of, axes))
                return own and all(side_of(axis) is None for axis in axes)
            case Const() | Apply():
                return all(map(fits, children(node)))
            case _:
                return False

    return fits(value) and seen


def parts_of(stages: Mapping[str, Stage], value: Expr) -> tuple[Part, ...]:
    """The sets of which a condition is the union, one of them at least a set of pairs; none if it is something else."""
    parts = [_part(stages, each) or _part_of_blocks(stages, each) for each in disjuncts(value)]
    found = tuple(each for each in parts if each is not None)
    return found if None not in parts and any(each.source is not None for each in found) else ()


def _joined(stages: Mapping[str, Stage], stage: Attention, clause: Expr, marks: list[Mark]) -> Expr:
    for each in disjuncts(clause):
        if _is_of_keys(stages, each):
            clause = _marked(stage, clause, [each], marks)
    alike: dict[tuple[str | None, str | None], list[Expr]] = {}
    for each in disjuncts(clause):
        part = _part(stages, each)
        if part is not None and part.source is not None:
            axes = stages[part.source].axes
            alike.setdefault((on_side(axes, "q"), on_side(axes, "k")), []).append(each)
    for each in disjuncts(clause):
        if _part_of_blocks(stages, each) is not None:
            beside = (parts for sides, parts in alike.items() if free_axes(each) - {"h", "g"} <= set(sides))
            next(beside, list[Expr]()).append(each)
    for parts in alike.values():
        if len(parts) > 1:
            clause = _marked(stage, clause, parts, marks)
    return clause


def _marked(stage: Attention, clause: Expr, parts: list[Expr], marks: list[Mark]) -> Expr:
    """The clause with one set in the place of some of its parts."""
    span, every = parts[0].span, frozenset().union(*map(free_axes, parts))
    axes = ordered(every - ({"b", "g"} if "h" in every else {"b"}))
    mark = Mark(name=f"{stage.name}_sets_{len(marks)}", axes=axes, value=build.disj(*parts), span=span)
    marks.append(mark)
    seen = Load(table=mark.name, dtype="bool", indices=tuple(map(index_of, axes)), span=span)
    return build.disj(seen, *(each for each in disjuncts(clause) if each not in parts))


def _is_of_keys(stages: Mapping[str, Stage], expr: Expr) -> bool:
    """Whether a condition reads several sets of single keys, and beside them what belongs to heads."""
    read = [node for node in walk(expr) if isinstance(node, Load)]
    own = all(
        node.table in stages
        and node.indices == tuple(map(index_of, stages[node.table].axes))
        and set(stages[node.table].axes) <= {"h", "g", "k"}
        for node in read
    )
    sets = {node.table for node in read if own and "k" in stages[node.table].axes}
    return own and len(sets) > 1 and free_axes(expr) - {"b"} <= {"h", "g", "k"}


def _part(stages: Mapping[str, Stage], expr: Expr) -> Part | None:
    """A set of pairs of blocks, read along its own axes, and what else is asked for, of heads alone."""
    sets, where = list[str](), list[Expr]()
    for each in conjuncts(expr):
        match each:
            case Load(table=name, indices=indices) if name in stages and _is_of_blocks(stages[name]):
                if indices != tuple(map(index_of, stages[name].axes)):
                    return None
                sets.append(name)
            case _ if all(side_of(axis) is None and axis in ("h", "g") for axis in free_axes(each)):
                if any(isinstance(node, Load) and node.table not in stages for node in walk(each)):
                    return None
                where.append(each)
            case _:
                return None
    return Part(source=sets[0], where=build.conj(*where)) if len(sets) == 1 else None


def _part_of_blocks(stages: Mapping[str, Stage], expr: Expr) -> Part | None:
    """A set of blocks of one side that stages have found."""
    read = [node for node in walk(expr) if isinstance(node, Load)]
    if not read or not all(node.table in stages and _is_of_side(stages[node.table], node) for node in read):
        return None
    sides = free_axes(expr) - {"h", "g"}
    return Part(source=None, where=expr) if len(sides) == 1 and not sides & {"q", "k", "b"} else None


def _is_of_side(stage: Stage, node: Load) -> bool:
    """Whether a set is one of blocks of queries or of keys, for heads, and read along its own axes."""
    (*heads, last) = stage.axes or ("",)
    own = node.indices == tuple(map(index_of, stage.axes))
    return own and stage.dtype == "bool" and side_of(last) is not None and set(heads) <= {"h", "g"}


def _is_of_blocks(stage: Stage) -> bool:
    query, key = on_side(stage.axes, "q"), on_side(stage.axes, "k")
    others = set(stage.axes) - {query, key}
    return stage.dtype == "bool" and query not in (None, "q") and key not in (None, "k") and others <= {"h", "g"}
