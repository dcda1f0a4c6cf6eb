"""From a graph of stages to another: without what nobody reads, or with every expression changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from typing_extensions import assert_never

from spdsl.semantics.graph import (
    Attention,
    Descend,
    Mark,
    Merge,
    Pool,
    Prefix,
    Score,
    Select,
    Smooth,
    Softmax,
    Stage,
    StageGraph,
    loads,
    parts,
)
from spdsl.semantics.nodes import Expr


def needed(graph: StageGraph) -> StageGraph:
    """The graph without stages that neither the result nor an export reads."""
    wanted = set(loads(graph.result))
    for export in graph.exports:
        wanted |= loads(export.value) | loads(export.only)
    kept: list[Stage] = []
    for stage in reversed(graph.stages):
        if stage.name in wanted:
            kept.append(stage)
            wanted |= frozenset(stage.parts) if isinstance(stage, Merge) else frozenset[str]()
            for part in parts(stage):
                wanted |= loads(part)
    return replace(graph, stages=tuple(reversed(kept)))


def mapped(graph: StageGraph, change: Callable[[Expr], Expr]) -> StageGraph:
    """The graph with every expression changed."""
    return replace(
        graph,
        stages=tuple(_mapped(stage, change) for stage in graph.stages),
        result=change(graph.result),
        exports=tuple(replace(each, value=change(each.value), only=change(each.only)) for each in graph.exports),
    )


def _mapped(stage: Stage, change: Callable[[Expr], Expr]) -> Stage:
    def maybe(expr: Expr | None) -> Expr | None:
        return None if expr is None else change(expr)

    match stage:
        case Score():
            return replace(stage, left=change(stage.left), right=change(stage.right), scale=maybe(stage.scale))
        case Pool() | Softmax() | Prefix() | Descend():
            return replace(stage, value=change(stage.value), only=change(stage.only))
        case Smooth():
            return replace(stage, value=change(stage.value), only=change(stage.only), width=change(stage.width))
        case Select():
            return replace(
                stage,
                value=change(stage.value),
                only=change(stage.only),
                forced=change(stage.forced),
                amount=change(stage.amount),
                least=maybe(stage.least),
            )
        case Mark():
            return replace(stage, value=change(stage.value))
        case Attention(attend=attend):
            clauses = replace(
                attend,
                keep=change(attend.keep),
                bias=maybe(attend.bias),
                scale=maybe(attend.scale),
                softcap=maybe(attend.softcap),
                sink_logit=maybe(attend.sink_logit),
            )
            return replace(
                stage, query=change(stage.query), key=change(stage.key), value=change(stage.value), attend=clauses
            )
        case Merge():
            return stage
        case _:
            assert_never(stage)
