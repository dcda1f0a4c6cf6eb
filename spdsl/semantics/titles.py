"""What readers see in place of the names of stages, which are numbers so that kernels are shared by what they compute.

From a graph to one that is the same but for its names: only for texts, never for kernels or caches.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from itertools import count

from spdsl.grammar import nodes as syntax
from spdsl.semantics.fold import fold
from spdsl.semantics.graph import Attention, Descend, Merge, Pool, Prefix, Select, Smooth, Softmax, Stage, StageGraph
from spdsl.semantics.nodes import Apply, Const, Expr, Load
from spdsl.semantics.regraph import mapped
from spdsl.semantics.rewrite import transform


def titles_of(
    stages: Iterable[Stage], patterns: Iterable[syntax.Pattern], taken: Collection[str]
) -> tuple[tuple[str, str], ...]:
    """Pairs of a stage's name and that of the `let` whose value it is, unless that is ``taken`` by an input.

    Softmaxes for the items of a tuple are numbered from 1.
    """
    lets = {
        statement.value.span: statement.name
        for pattern in patterns
        for statement in pattern.statements
        if isinstance(statement, syntax.Let) and statement.name not in taken
    }
    # Merges stand where their first part does.
    placed: dict[str, list[Stage]] = {}
    for each in stages:
        if each.span in lets and not isinstance(each, Merge):
            placed.setdefault(lets[each.span], []).append(each)
    found: list[tuple[str, str]] = []
    for title, made in placed.items():
        numbered = [(each.name, f"{title}_{number}") for number, each in enumerate(made, 1)]
        known = {*lets.values(), *taken}
        if len(made) > 1 and all(isinstance(each, Attention) for each in made):
            # A softmax for each item of a tuple.
            found += [pair for pair in numbered if pair[1] not in known]
        else:
            # What is made last of the stages of one place is its value.
            found.append((made[-1].name, title))
    return tuple(found)


def titles(graph: StageGraph) -> dict[str, str]:
    """The title of every stage: that of its `let`; a softmax without one is called `attend`; else its name."""
    found = dict(graph.titles)
    nameless = [each.name for each in graph.attentions if each.name not in found]
    free = (f"attend_{number}" for number in count(1) if f"attend_{number}" not in found.values())
    for name in nameless:
        found[name] = "attend" if len(nameless) == 1 else next(free)
    for softmax in graph.attentions:
        # Sets that were put together for a softmax are named after it (`joined_sets`).
        own = [each.name for each in graph.stages if each.name.startswith(f"{softmax.name}_")]
        found |= {name: found[softmax.name] + name.removeprefix(softmax.name) for name in own}
    return {stage.name: found.get(stage.name, stage.name) for stage in graph.stages}


def in_titles(text: str, called: Mapping[str, str]) -> str:
    """A text with the titles of stages, as `titles` finds them, for their names."""
    return re.sub(r"stage_\d+", lambda found: called.get(found[0], found[0]), text)


def titled(graph: StageGraph) -> StageGraph:
    """The graph with its titles for names."""
    found = titles(graph)

    def rename(node: Expr) -> Expr | None:
        match node:
            case Load(table=name) if found.get(name, name) != name:
                return replace(node, table=found[name])
            case _:
                return None

    renamed = mapped(graph, lambda expr: transform(expr, rename))
    return replace(renamed, stages=tuple(_called(stage, found) for stage in renamed.stages), titles=())


def _called(stage: Stage, found: dict[str, str]) -> Stage:
    match stage:
        case Merge(parts=parts):
            return replace(stage, name=found[stage.name], parts=tuple(found[part] for part in parts))
        case _:
            return replace(stage, name=found[stage.name])


def as_written(graph: StageGraph) -> tuple[Stage, ...]:
    """Stages with their titles, without the conditions `x == x` of what `descend` has found, which nobody writes."""
    shown = titled(graph)
    searches = {stage.name for stage in shown.stages if isinstance(stage, Descend)}
    return tuple(_without_searched(stage, searches) for stage in shown.stages)


def _without_searched(stage: Stage, searches: Collection[str]) -> Stage:

    def leave_out(node: Expr) -> Expr | None:
        match node:
            case Apply(op="eq", args=(Load(table=name) as one, other)) if name in searches and one == other:
                return Const(value=True)
            case _:
                return None

    match stage:
        case Pool() | Softmax() | Select() | Smooth() | Descend() | Prefix():
            return replace(stage, only=fold(transform(stage.only, leave_out)))
        case _:
            return stage
