"""From `CheckedPattern` to `BoundPattern`: parameters, layer and head counts become constants, and all is folded.

Does not look at inputs or lengths: those come with each call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import TypeAlias

from spdsl.diagnostics import Span, error
from spdsl.semantics import nodes as ir
from spdsl.semantics.bounds import Facts, interval
from spdsl.semantics.fold import fold
from spdsl.semantics.given import integer, open_parameter, values_of
from spdsl.semantics.graph import (
    Attention,
    Merge,
    Select,
    Smooth,
    Stage,
    StageGraph,
    expressions,
)
from spdsl.semantics.joined_sets import with_joined_sets
from spdsl.semantics.nesting import check_nested
from spdsl.semantics.nodes import Attend, BoundPattern, CheckedPattern, Const, Expr, Extent
from spdsl.semantics.outside import refuse_outside
from spdsl.semantics.regraph import mapped, needed
from spdsl.semantics.rewrite import mentions, substitute, walk
from spdsl.semantics.show import print_expr
from spdsl.semantics.windows import lift_windows

Fix: TypeAlias = Callable[[Expr], Expr]


def bind(
    checked: CheckedPattern,
    parameters: Mapping[str, object],
    *,
    layer: int | None = None,
    heads: int,
    groups: int,
    head_dim: int,
    free: Collection[str] = (),
) -> BoundPattern:
    """Fix what is known before tensors are seen.

    Parameters named in ``free`` get no value and stay open, as `FreeParam`; `reasons_to_fix` tells which may.

    Raises:
        SpatError: a parameter that is unknown (SP330), missing (SP331), of the wrong kind (SP332), out of range (SP333)
            or of the wrong length (SP334); no layer for a pattern that asks for it (SP335); arithmetic that fails
            (SP336); an axis or grid of no size (SP337); heads and groups that do not fit (SP338); a scale or cap that
            is not finite (SP339); stages or gates that read outside of an input (SP320).
    """
    values = values_of(checked, parameters, free)
    _check_heads(heads, groups, head_dim)
    mapping: dict[Expr, Expr] = {
        Extent(name="heads"): Const(value=heads),
        Extent(name="groups"): Const(value=groups),
        Extent(name="d"): Const(value=head_dim),
    }
    if layer is not None:
        mapping[Extent(name="layer")] = Const(value=integer(layer, "layer", None))
    elif any(mentions(expr, Extent(name="layer")) for expr in _expressions(checked)):
        raise error(
            "SP335",
            f"`{checked.name}` depends on the layer, but none is given",
            checked.span,
            help="pass `layer=…`, counted from 0",
        )
    for declared in checked.parameters:
        if declared.name in free:
            mapping[ir.Param(name=declared.name, dtype=declared.dtype)] = open_parameter(declared)
            continue
        value = values[declared.name]
        if isinstance(value, tuple):
            for item, one in enumerate(value):
                mapping[ir.Param(name=declared.name, dtype=declared.dtype, item=item)] = Const(value=one)
        else:
            mapping[ir.Param(name=declared.name, dtype=declared.dtype)] = Const(value=value)
    tables = {t.name: (t.bounds.low, t.bounds.high) for t in checked.tables if t.bounds is not None}
    facts = Facts(tables=tables, indices={"h": (0, heads - 1), "g": (0, groups - 1)}, extents={"n": (1, None)})
    folded: dict[int, Expr] = {}

    def fix(expr: Expr) -> Expr:
        if id(expr) not in folded:
            folded[id(expr)] = fold(substitute(expr, mapping), code="SP336", facts=facts)
        return folded[id(expr)]

    grids = tuple(_grid(grid, fix) for grid in checked.grids)
    _check_nested(grids)
    bound = BoundPattern(
        name=checked.name,
        parameters=tuple((each.name, values[each.name]) for each in checked.parameters if each.name in values),
        free=tuple(open_parameter(each) for each in checked.parameters if each.name in free),
        tables=tuple(_table(table, fix) for table in checked.tables),
        axes=tuple(_axis(axis, fix) for axis in checked.axes),
        grids=grids,
        attend=_attend(checked.attend, fix),
        graph=None if checked.graph is None else _graph(checked.graph, fix),
        layer=0 if layer is None else int(layer),
        heads=heads,
        groups=groups,
        head_dim=head_dim,
        text=checked.text,
        span=checked.span,
    )
    if bound.graph is None:
        return lift_windows(bound)
    check_nested(bound)
    refuse_outside(bound, facts)
    return bound


def _expressions(checked: CheckedPattern) -> list[Expr]:
    attend = checked.attend
    found: list[Expr | None] = [attend.keep, attend.bias, attend.scale, attend.softcap, attend.sink_logit]
    found += [axis.size for table in checked.tables for axis in table.axes]
    for axis in checked.axes:
        found += [*axis.of, *(axis.size or ()), axis.step, axis.into, *axis.extents]
    for grid in checked.grids:
        found += [grid.of, *(extent for _, extent in grid.coordinates)]
    found += () if checked.graph is None else expressions(checked.graph)
    return [expr for expr in found if expr is not None]


def _check_heads(heads: int, groups: int, head_dim: int) -> None:
    sizes: dict[str, object] = {"heads": heads, "groups": groups, "head_dim": head_dim}
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise error(
                "SP338",
                f"{name} must be an int of at least 1, not {value!r:.80}",
                help="check the shapes of the tensors",
            )
    if heads % groups:
        raise error(
            "SP338",
            f"{heads} heads cannot share {groups} key and value heads evenly",
            help="the number of query heads must be a multiple of the number of key heads",
        )


# ---------------------------------------------------------------- declarations


def _table(table: ir.Table, fix: Fix) -> ir.Table:
    fixed = tuple(replace(axis, size=fix(axis.size)) for axis in table.axes)
    for axis in fixed:
        _at_least_one(axis.size, f"the axis `{axis.label}` of `{table.name}`", axis.span)
    return replace(table, axes=fixed)


def _axis(axis: ir.Axis, fix: Fix) -> ir.Axis:
    fixed = replace(
        axis,
        of=tuple(fix(part) for part in axis.of),
        size=None if axis.size is None else tuple(fix(part) for part in axis.size),
        step=None if axis.step is None else fix(axis.step),
        into=None if axis.into is None else fix(axis.into),
        extents=tuple(fix(part) for part in axis.extents),
    )
    for part in (*(fixed.size or ()), *((fixed.step,) if fixed.step else ()), *((fixed.into,) if fixed.into else ())):
        _at_least_one(part, f"the axis `{axis.name}`", axis.span)
        if not isinstance(part, Const):
            raise error(
                "SP337",
                f"the size of the axis `{axis.name}` is not fixed by the parameters",
                axis.span,
                help="use parameters and numbers; lengths of a call cannot be block sizes",
            )
    # Windows that begin one after the other are blocks.
    return replace(fixed, step=None) if fixed.size is not None and fixed.step == fixed.size[0] else fixed


def _grid(grid: ir.Grid, fix: Fix) -> ir.Grid:
    coordinates = tuple((name, fix(extent)) for name, extent in grid.coordinates)
    for name, extent in coordinates:
        _at_least_one(extent, f"the extent of `{name}`", grid.span)
    return replace(grid, of=fix(grid.of), coordinates=coordinates)


def _check_nested(grids: tuple[ir.Grid, ...]) -> None:
    """An unnamed grid inside another covers the coordinate that it divides exactly."""
    sizes = {name: extent for grid in grids for name, extent in grid.coordinates}
    for grid in grids:
        outer = sizes.get(grid.of.axis) if grid.name is None and isinstance(grid.of, ir.Coord) else None
        extents = [extent.value for _, extent in grid.coordinates if isinstance(extent, Const)]
        if not isinstance(grid.of, ir.Coord) or not isinstance(outer, Const) or len(extents) < len(grid.coordinates):
            continue
        places = math.prod(extents)
        if places != outer.value:
            raise error(
                "SP337",
                f"this grid has {places} places, but `{grid.of.axis}` has {outer.value}",
                grid.span,
                help="change its extents, or name the grid: what it does not reach is outside of a named grid",
            )


def _at_least_one(expr: Expr, what: str, span: Span | None) -> None:
    _, high = interval(expr)
    if high is not None and high < 1:
        shown = f"{expr.value}" if isinstance(expr, Const) else "below 1"
        raise error(
            "SP337", f"{what} is {shown}, but must be at least 1", span, help="check the parameters that it is made of"
        )


def _taken(graph: StageGraph) -> StageGraph:
    """The graph without softmaxes that keep nothing, whatever the call: choices by layers and parameters."""

    def keeps(name: str) -> bool:
        match graph.stage(name):
            case Attention(attend=attend):
                return attend.keep != Const(value=False) or attend.sink_logit is not None
            case _:
                return True

    def taken(stage: Stage) -> Stage:
        if not isinstance(stage, Merge) or stage.over is not None or stage.by != "lse":
            return stage
        kept = tuple(name for name in stage.parts if keeps(name))
        return replace(stage, parts=kept or stage.parts[:1])

    return needed(with_joined_sets(replace(graph, stages=tuple(map(taken, graph.stages)))))


def _graph(graph: StageGraph, fix: Fix) -> StageGraph:
    fixed = mapped(graph, fix)
    for old, new in zip(graph.stages, fixed.stages, strict=True):
        if isinstance(old, Attention):
            _attend(old.attend, fix)
        amount = new.amount if isinstance(new, Select) else None
        if isinstance(new, Select) and isinstance(amount, Const):
            most = math.inf if new.by == "count" else 1
            if not 0 <= amount.value <= most:
                word = "top" if new.by == "count" else "top_p"
                raise error(
                    "SP333",
                    f"`{word}` cannot take {amount.value}",
                    new.span,
                    help="pass a number of at least 0" if new.by == "count" else "pass a share between 0 and 1",
                )
        if isinstance(new, Select) and new.rank is not None and not isinstance(amount, Const):
            raise error(
                "SP333",
                f"the axis `{new.rank}` has as many members as `top` takes, which parameters must decide",
                new.span,
                help="leave `n` and inputs out of the number",
            )
        if isinstance(new, Smooth) and not (
            isinstance(new.width, Const) and new.width.value % 2 == 1 and new.width.value > 0
        ):
            raise error(
                "SP333",
                f"`smooth` takes an odd number of neighbours, not {print_expr(new.width)}",
                new.span,
                help="pass 1, 3, 5, …",
            )
    return _taken(fixed)


def _attend(attend: Attend, fix: Fix) -> Attend:
    def one(expr: Expr | None) -> Expr | None:
        return None if expr is None else fix(expr)

    keep = fix(attend.keep)
    scale, softcap = one(attend.scale), one(attend.softcap)
    for word, setting in (("scale", scale), ("softcap", softcap)):
        if setting is None:
            continue
        if not isinstance(setting, Const):
            raise error(
                "SP339",
                f"`{word}` is not fixed by the parameters",
                setting.span,
                help="use parameters and numbers alone",
            )
        if not math.isfinite(setting.value) or (word == "softcap" and setting.value <= 0):
            wanted = "finite" if word == "scale" else "finite and above 0"
            raise error(
                "SP339",
                f"`{word}` is {setting.value}, but must be {wanted}",
                setting.span,
                help="check the parameters that it is made of",
            )
    for node in walk(keep):
        if isinstance(node, ir.Top) and isinstance(node.count, Const) and node.count.value < 0:
            raise error(
                "SP333",
                f"`top` cannot take {node.count.value} candidates",
                node.span,
                help="pass a number of at least 0",
            )
    return replace(
        attend, keep=keep, bias=one(attend.bias), scale=scale, softcap=softcap, sink_logit=one(attend.sink_logit)
    )
