"""Rows that later tokens change: warnings about patterns whose pairs are causal, and whose stages are not.

From a bound pattern with stages to warnings.  A row is stable if it is the same for every longer sequence: decoding
then gives what prefill gives, and training shows no query its future.  Patterns that keep later keys are left alone.
What is read of summaries is a claim about sets, and what is not proved is warned about.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from spdsl.analysis.claims import decide
from spdsl.analysis.pairs import Subject
from spdsl.diagnostics import Diagnostic, Span
from spdsl.semantics import axes as axis_rules
from spdsl.semantics import build
from spdsl.semantics.graph import (
    DISTANCE,
    TENSORS,
    Attention,
    Pool,
    Score,
    Select,
    Smooth,
    Softmax,
    Stage,
    StageGraph,
    loads,
    on_side,
    parts,
    ranks_queries,
    side_of,
)
from spdsl.semantics.nodes import Attend, BoundPattern, Coord, Expr, Extent, Index
from spdsl.semantics.rewrite import mentions
from spdsl.semantics.softmaxes import softmax_pattern


def unstable(pattern: BoundPattern) -> tuple[Diagnostic, ...]:
    """What later tokens change, one remark for each stage that reads them."""
    graph = pattern.graph
    if graph is None or not all(_is_causal(pattern, stage) for stage in graph.attentions):
        return ()
    read = _read_by_attention(graph)
    stages = (stage for stage in graph.stages if stage.name in read)
    # A reduction of values and that of what is present of them stand at one place.
    found = {(what, str(span)): (what, span) for stage in stages for what, span in _reasons(pattern, graph, stage)}
    return tuple(
        Diagnostic(
            severity="warning",
            code="SP416",
            message=f"later tokens change what a query gets: {what}",
            span=span,
            help="decoding will differ from prefill, and in training a query learns of its future",
        )
        for what, span in found.values()
    )


def _is_causal(pattern: BoundPattern, stage: Attention) -> bool:
    if (stage.rows, stage.columns) != ("q", "k"):
        return stage.rows == "q" and _is_complete(pattern, stage.attend.keep, "q", stage.columns)
    return decide("causal", [Subject.of(softmax_pattern(pattern, stage.name))]).verdict == "proven"


def _read_by_attention(graph: StageGraph) -> frozenset[str]:
    """The stages on which the softmaxes depend, not those that are exported alone."""
    found = {stage.name for stage in graph.attentions}
    for stage in reversed(graph.stages):
        if stage.name in found:
            found |= frozenset[str]().union(*(loads(part) for part in parts(stage)))
    return frozenset(found)


def _reasons(pattern: BoundPattern, graph: StageGraph, stage: Stage) -> Iterator[tuple[str, Span | None]]:
    match stage:
        case Pool(over=over, per=per) if over == DISTANCE or (side_of(over) == "q" and per is None):
            yield "it is summed over all queries", stage.span
            return
        case Pool(over=over) if side_of(over) == "q":
            yield "its block of queries is pooled", stage.span
            return
        case Select() if ranks_queries(stage):
            yield "queries compete with each other", stage.span
            return
        case Smooth() if on_side(stage.axes, "q") is not None:
            yield "the neighbours of keys that it sees take part", stage.span
        case Softmax(over=over) | Select(over=over) if "." in over and _reads_summaries(graph, stage, over):
            rows = on_side(stage.axes, "q")
            if rows != "q" and any(isinstance(each, Pool) and side_of(each.over) == "q" for each in graph.stages):
                pass  # told where queries are pooled
            elif rows != "q":
                yield "its block of queries is pooled", stage.span
            elif not _is_complete(pattern, stage.only, rows, over):
                yield f"it may see a part of `{over}` whose rest comes later", stage.span
        case _:
            pass
    for part in parts(stage):
        if mentions(part, Extent(name="n")) or mentions(part, Extent(name="nq")):
            yield "the number of tokens takes part", part.span or stage.span
            return


def _reads_summaries(graph: StageGraph, stage: Stage, axis: str) -> bool:
    """Whether scores of keys that are pooled along ``axis`` are ranked, as they are or shared by heads."""
    stages = {each.name: each for each in graph.stages}
    for name in loads(parts(stage)[0]) - {*TENSORS}:
        match stages.get(name):
            case Score(left=left, right=right):
                pools = (stages.get(read) for read in loads(left) | loads(right))
                if any(isinstance(pool, Pool) and pool.per == axis for pool in pools):
                    return True
            case Pool(over=over) as pool if side_of(over) != "k":
                if _reads_summaries(graph, pool, axis):
                    return True
            case _:
                pass
    return False


def _is_complete(pattern: BoundPattern, only: Expr, rows: str, columns: str) -> bool:
    """Whether a member of an axis of keys that a query sees has no token after the query."""
    name = columns.partition(".")[2]
    axes = {axis.name: axis for axis in pattern.axes}
    if name not in axes or pattern.graph is None:
        return False
    last = axis_rules.last(axes[name], Coord(side="k", axis=name), axes)
    if last is None:
        return False
    seen, past = (_subject(pattern, keep, rows, columns) for keep in (only, build.apply("le", last, Index(name="q"))))
    return decide("within", [seen, past]).verdict == "proven"


def _subject(pattern: BoundPattern, keep: Expr, rows: str, columns: str) -> Subject:
    """A set of queries and members of an axis of keys, as the set of a softmax over these."""
    assert pattern.graph is not None
    one = pattern.graph.attentions[0]
    asked = replace(one, name="asked", rows=rows, columns=columns, attend=Attend(keep=keep))
    graph = replace(pattern.graph, stages=(*pattern.graph.stages, asked))
    return Subject.of(softmax_pattern(replace(pattern, graph=graph), "asked"))
