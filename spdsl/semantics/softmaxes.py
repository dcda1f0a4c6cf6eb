"""From one softmax of a graph to a bound pattern of its own: what a kernel that attends has to know.

Its queries and keys are rows: where they are blocks, ``q`` and ``k`` count blocks.  Stages become tables, sets of pairs
as lists.
"""

from __future__ import annotations

from dataclasses import replace

from spdsl.diagnostics import error
from spdsl.semantics import axes as axis_rules
from spdsl.semantics import build
from spdsl.semantics.fold import fold
from spdsl.semantics.graph import DISTANCE, Attention, Mark, Select, Stage, index_of, loads, on_side, side_of
from spdsl.semantics.nodes import (
    Apply,
    Attend,
    Axis,
    BoundPattern,
    Const,
    Coord,
    Expr,
    Extent,
    Index,
    Load,
    Side,
    Table,
    TableAxis,
)
from spdsl.semantics.rewrite import substitute, transform
from spdsl.semantics.windows import lift_windows

POSITIONS = "positions"
"""The table of one number that holds ``n``, where keys are blocks."""


def softmax_pattern(pattern: BoundPattern, name: str) -> BoundPattern:
    """The pattern of the `Attention` stage ``name``; its tables are those it reads, given or made."""
    assert pattern.graph is not None
    stages = {stage.name: stage for stage in pattern.graph.stages}
    stage = stages[name]
    assert isinstance(stage, Attention)
    plain = stage.rows == "q" and stage.columns == "k"
    clauses = (stage.attend.keep, stage.attend.bias, stage.attend.sink_logit)
    fixed = [None if clause is None else _at_rows(pattern, stage, stages, clause) for clause in clauses]
    if stage.member is not None:
        along = Index(name=stage.member)
        fixed = [None if clause is None else _of_member(clause, along) for clause in fixed]
    read = frozenset[str]().union(*(loads(clause) for clause in fixed if clause is not None))
    read |= {axis.table for axis in pattern.axes if axis.table is not None}
    given = tuple(
        replace(table, made=not plain, axes=tuple(axis for axis in table.axes if axis.label != stage.member))
        for table in pattern.tables
        if table.name in read
    )
    made = tuple(_declared(pattern, stage, each) for each in stages.values() if each.name in read)
    positions = tuple(table for table in (_POSITIONS, _MEMBER) if table.name in read)
    keep, bias, sink = fixed
    assert keep is not None
    found = replace(
        pattern,
        name=f"{pattern.name}_{name}",
        tables=(*given, *made, *positions),
        grids=pattern.grids if plain else (),
        attend=replace(stage.attend, keep=keep, bias=bias, sink_logit=sink),
        graph=None,
    )
    return lift_windows(found)


MEMBER = "free_member"
"""The table of one number that holds the member of a free axis, of which each has a softmax."""

_MEMBER = Table(name=MEMBER, dtype="int", axes=(), bounds=None, sorted=False, made=True)
_POSITIONS = Table(name=POSITIONS, dtype="int", axes=(), bounds=None, sorted=False, made=True)


def _at_rows(pattern: BoundPattern, stage: Attention, stages: dict[str, Stage], clause: Expr) -> Expr:
    """The clause at a pair of rows: coordinates of blocks are indices, lengths are those of the pattern."""
    coarse = {side: axis for side, axis in (("q", stage.rows), ("k", stage.columns)) if axis != side}

    def rewrite(node: Expr) -> Expr | None:
        match node:
            case Coord(side=side, axis=axis) if side in coarse:
                return _relative(pattern, coarse[side].partition(".")[2], axis, side)
            case Extent(name="n") if coarse:
                return Load(table=POSITIONS, dtype="int")
            case Load(table=table, indices=indices) if table in stages and DISTANCE in stages[table].axes:
                # Distances begin with that of the first query from the last key.
                shift = build.sub(build.sub(Extent(name="n"), 1), Extent(name="q_start"))
                place = stages[table].axes.index(DISTANCE)
                moved = build.add(indices[place], shift)
                return replace(node, indices=(*indices[:place], moved, *indices[place + 1 :]))
            case _:
                return None

    return fold(transform(clause, rewrite))


def _of_member(clause: Expr, along: Index) -> Expr:
    """The clause for one member of a free axis: arrays along it lose it, and its number is read from a table."""

    def drop(node: Expr) -> Expr | None:
        if isinstance(node, Load) and along in node.indices:
            return replace(node, indices=tuple(index for index in node.indices if index != along))
        return None

    # Parts come before wholes, so that the index itself is replaced only where it is left.
    number = Load(table=MEMBER, dtype="int")
    return substitute(transform(clause, drop), {along: number})


def _relative(pattern: BoundPattern, own: str, wanted: str, side: Side) -> Expr:
    """A coordinate at a member of the axis ``own``, whose number is the index of the side."""
    if own == wanted:
        return Index(name=side)
    axes = {axis.name: axis for axis in pattern.axes}
    coarse = axes[wanted]
    match axes[own], coarse:
        case Axis(of=one, size=(Const(value=small),)), Axis(of=two, size=(Const(value=large),)) if one == two:
            return build.floordiv(Index(name=side), int(large) // int(small))
        case _:
            inner = axis_rules.coordinate(coarse, side)

            def rewrite(node: Expr) -> Expr | None:
                return _relative(pattern, own, node.axis, side) if isinstance(node, Coord) else None

            return transform(inner, rewrite)


def _declared(pattern: BoundPattern, softmax: Attention, stage: Stage) -> Table:
    listed = stage.dtype == "bool" and on_side(stage.axes, "q") is not None and on_side(stage.axes, "k") is not None
    return Table(
        name=stage.name,
        dtype=stage.dtype,
        axes=tuple(_table_axis(pattern, softmax, axis) for axis in stage.axes if axis != softmax.member),
        bounds=None,
        sorted=False,
        made=True,
        listed=listed,
        most=_most(stage) if listed else None,
    )


def _most(stage: Stage) -> int | None:
    """The most elements that a selection keeps of a row, if that is known."""
    match stage:
        case Select(by="count", amount=Const(value=count)):
            return int(count)
        case _:
            return None


def _table_axis(pattern: BoundPattern, softmax: Attention, axis: str) -> TableAxis:
    match axis:
        case "h":
            return TableAxis(kind="h", size=Const(value=pattern.heads), label="h")
        case "g":
            return TableAxis(kind="g", size=Const(value=pattern.groups), label="g")
        case "q":
            return TableAxis(kind="q", size=Extent(name="nq"), label="q")
        case "k":
            return TableAxis(kind="token", size=Extent(name="n"), label="k")
        case _ if side_of(axis) is None:
            # Distances: of no size that anybody asks for.
            return TableAxis(kind="own", size=Extent(name="n"), label=axis)
        case _ if axis == softmax.rows:
            return TableAxis(kind="q", size=Extent(name="nq"), label=axis)
        case _:
            return TableAxis(kind="own", size=Extent(name="n"), label=axis)


def static_part(pattern: BoundPattern) -> BoundPattern:
    """What a pattern with one softmax over its own queries and keys may keep: selections count as everything.

    Raises:
        SpatError: it has several softmaxes, or one over other keys (SP290).
    """
    if pattern.graph is None:
        return pattern
    found = pattern.graph.attentions
    if len(found) != 1 or (found[0].rows, found[0].columns) != ("q", "k") or found[0].member is not None:
        raise error(
            "SP290",
            f"a mask of `{pattern.name}`, which has several softmaxes or one over blocks, is not supported yet",
            pattern.span,
            help=f"`spdsl show --emit tiles {pattern.name}` draws the tiles of each softmax; "
            "a pattern with one of its sets has a mask",
        )
    made = frozenset(stage.name for stage in pattern.graph.stages)
    keep = fold(_widest(pattern.attend.keep, made))
    return lift_windows(replace(pattern, attend=Attend(keep=keep, span=pattern.attend.span), graph=None))


def _widest(expr: Expr, made: frozenset[str], kept: bool = True) -> Expr:
    """The most that a condition keeps, or with ``kept`` false the least, whatever the stages ``made`` hold."""
    if loads(expr).isdisjoint(made):
        return expr
    match expr:
        case Apply(op="and" | "or", args=args):
            return replace(expr, args=tuple(_widest(arg, made, kept) for arg in args))
        case Apply(op="not", args=(arg,)):
            return replace(expr, args=(_widest(arg, made, not kept),))
        case _:
            return Const(value=kept, span=expr.span)


def among_candidates(pattern: BoundPattern) -> BoundPattern:
    """The same pattern for proofs: what is chosen stands beside the static part of what it was chosen among."""
    graph = pattern.graph
    assert graph is not None
    made = frozenset(stage.name for stage in graph.stages)
    within: dict[str, tuple[tuple[str, ...], Expr]] = {}

    def beside(node: Expr) -> Expr | None:
        match node:
            case Load(table=name, indices=indices) if name in within:
                axes, bound = within[name]
                places = {index_of(axis): index for axis, index in zip(axes, indices, strict=True)}
                return build.conj(node, substitute(bound, places))
            case _:
                return None

    for stage in graph.stages:
        match stage:
            case Select(only=only, forced=forced):
                candidates = build.disj(only, forced)
            case Mark(value=candidates):
                pass
            case _:
                continue
        bound = fold(_widest(transform(candidates, beside), made))
        if bound != Const(value=True):
            within[stage.name] = stage.axes, bound

    def kept(stage: Stage) -> Stage:
        if not isinstance(stage, Attention):
            return stage
        return replace(stage, attend=replace(stage.attend, keep=transform(stage.attend.keep, beside)))

    return replace(pattern, graph=replace(graph, stages=tuple(map(kept, graph.stages))))
