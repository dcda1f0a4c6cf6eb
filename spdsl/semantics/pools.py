"""Reductions as stages: of tensors, of scores, of what is present after ``only``, and of dynamic sets."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from spdsl.grammar import nodes as syntax
from spdsl.semantics import build, spaces
from spdsl.semantics.expressions import Evaluator, Invocation
from spdsl.semantics.graph import DISTANCE, Pool, Prefix, Reduction, Windows, on_side, ordered, side_of
from spdsl.semantics.nodes import Dtype, Side
from spdsl.semantics.selections import axis_of, candidates, wrapped
from spdsl.semantics.values import POISON, AxisRef, Candidates, Items, Poison, Scalar, Value
from spdsl.semantics.wording import excerpt


def pool(ev: Evaluator, call: Invocation, found: Candidates, direction: str) -> Value:
    """``mean(K, per = k.blk)``, ``max(x, over = h)``, ``sum(x, per = k.blk, windows = inside)``."""
    argument = call.keywords[direction]
    windows = _windows(ev, call)
    target = ev.evaluate(argument.value)
    parts = target.items if isinstance(target, Items) else (target,)
    if windows == "wrong" or any(isinstance(part, Poison) for part in parts):
        return POISON
    if found.forced is not None:
        return ev.error("SP204", "`force` is of use before `top` and `top_p` alone", call.span, help="leave it out")
    for part in parts:
        axis = axis_of(part)
        if isinstance(part, AxisRef):
            name = part.name
            help = f"write `{direction} = k.{name}` or `{direction} = q.{name}`"
            help = f"write `{direction} = k` or `{direction} = q`" if name == "token" else help
            return ev.error("SP201", f"`{name}` needs a side", argument.span, help=help)
        if axis is None:
            return _refused(ev, direction, argument)
        step = _steps(ev, call, found, direction, axis, argument)
        if step is None:
            return POISON
        for over, per, entries in step:
            done = _one(ev, call, found, over, per, "touching" if entries else cast("Windows | None", windows))
            if done is None:
                return POISON
            found = done
    return wrapped(found.value, found.only)


def prefix(ev: Evaluator, call: Invocation) -> Value:
    """``mean(V, upto = q)``: one value for each query, of the keys up to it."""
    found = candidates(ev, call.args[0], f"`{call.name}`")
    argument = call.keywords["upto"]
    target = ev.evaluate(argument.value)
    if found is None or isinstance(target, Poison):
        return POISON
    axes = spaces.space(ev, (found.value, found.only), call.span)
    if axes is None:
        return POISON
    if axis_of(target) != "q" or "k" not in axes or on_side(axes, "q") is not None:
        return ev.unsupported(
            f"`upto = {excerpt(argument.value).strip('`')}` of a value along {', '.join(f'`{axis}`' for axis in axes)}",
            argument.span,
            help="what each key has is reduced `upto = q`, for example `mean(V, upto = q)`",
        )
    if call.name not in ("sum", "mean") or found.forced is not None:
        return ev.unsupported(f"`{call.name}` with `upto = …`", call.span, help="`sum` and `mean` are")
    stage = Prefix(
        name=ev.unit.stage_name(),
        axes=ordered(frozenset(axes) - {"k"} | {"q"}),
        kind="sum" if call.name == "sum" else "mean",
        value=build.to_float(found.value.expr),
        only=found.only.expr,
        span=call.span,
    )
    return spaces.add(ev, stage)


def _windows(ev: Evaluator, call: Invocation) -> str | None:
    if "windows" not in call.keywords:
        return None
    match call.keywords["windows"].value:
        case syntax.Name(id="inside" | "touching" as word):
            return word
        case node:
            ev.error(
                "SP204",
                f"{excerpt(node)} is not a way to count windows",
                node.span,
                help="`windows = inside` takes those inside a member, `windows = touching` all that share a position",
            )
            return "wrong"


def _refused(ev: Evaluator, direction: str, argument: syntax.Argument) -> Value:
    written = excerpt(argument.value).strip("`")
    return ev.unsupported(
        f"`{direction} = {written}`",
        argument.span,
        help="reduce `per` a coordinate, `g` or `q - k`, or `over` an axis of the value",
    )


def _steps(
    ev: Evaluator, call: Invocation, found: Candidates, direction: str, axis: str, argument: syntax.Argument
) -> list[tuple[str, str | None, bool]] | None:
    """The axes that go and those that take their place, and whether entries count instead of positions.

    None after a mistake; nothing to do where the value does not vary along the axis.
    """
    axes = spaces.space(ev, (found.value, found.only), call.span)
    if axes is None:
        return None
    side = side_of(axis)
    if direction == "over":
        own = axis if axis in axes else on_side(axes, side) if side == axis else None
        if own is None:
            ev.error(
                "SP203",
                f"the value does not vary along `{axis}`",
                argument.span,
                note=f"it varies along {', '.join(f'`{name}`' for name in axes)}",
                help="reduce over one of these axes",
            )
            return None
        return [(own, None, "." in axis)]
    match axis:
        case "g":
            return [("h", "g", False)] if "h" in axes else []
        case _ if axis == DISTANCE:
            if {"q", "k"} <= set(axes):
                return [(DISTANCE, DISTANCE, False)]
            ev.error(
                "SP203",
                "a reduction per `q - k` needs values for each query and key",
                argument.span,
                note=f"it varies along {', '.join(f'`{name}`' for name in axes)}",
                help="reduce before the axes become coarser",
            )
            return None
        case _ if side is not None and "." in axis:
            own = on_side(axes, side)
            if own is None and DISTANCE in axes:
                own = side
            if own is None:
                return [(side, axis, False)] if call.name == "sum" else []
            return [] if own == axis and call.name != "sum" else [(own, axis, False)]
        case _:
            _refused(ev, direction, argument)
            return None


def _one(
    ev: Evaluator, call: Invocation, found: Candidates, over: str, per: str | None, windows: Windows | None
) -> Candidates | None:
    own = ev.unit.axes.get(over.partition(".")[2])
    if own is not None and own.step is not None and windows is None and per is not None:
        ev.error(
            "SP220",
            f"the windows of `{over}` may overlap, so that `{per}` shares positions with several",
            call.span,
            help="say which of them count: `windows = inside` or `windows = touching`",
        )
        return None
    axes = set(spaces.space(ev, (found.value, found.only), call.span) or ())
    if DISTANCE in axes and over in ("q", "k"):
        axes = axes - {DISTANCE} | {"q", "k"}
    axes -= {"q", "k"} if over == DISTANCE else {over}
    axes |= set() if per is None else {per}
    if "h" in axes:
        axes -= {"g"}
    only = found.only
    value, dtype = _body(call.name, found.value)
    stage = Pool(
        name=ev.unit.stage_name(),
        axes=ordered(frozenset(axes)),
        kind=cast(Reduction, call.name),
        value=value.expr,
        only=only.expr,
        over=over,
        per=per,
        windows=windows,
        dtype=dtype,
        span=call.span,
    )
    pooled = spaces.add(ev, stage)
    return Candidates(value=pooled, only=_presence(ev, call, only, over, per, windows))


def _presence(
    ev: Evaluator, call: Invocation, only: Scalar, over: str, per: str | None, windows: Windows | None
) -> Scalar:
    """What is present after a reduction: where anything was before."""
    side: Side | None = side_of(over)
    touched = {"q", "k", DISTANCE} if over == DISTANCE else {over} if side is None else {side, DISTANCE}
    varies = any(axis in touched or (side is not None and axis.startswith(f"{side}.")) for axis in only.axes)
    if only.expr == build.TRUE or not varies:
        return only
    axes = set(spaces.space(ev, (only,), call.span) or ())
    if DISTANCE in axes and over in ("q", "k"):
        axes = axes - {DISTANCE} | {"q", "k"}
    if over != DISTANCE and over not in axes:
        # The set is coarser than the values: it is lifted to their axis.
        axes = {axis for axis in axes if side_of(axis) != side} | {over}
    axes -= {"q", "k"} if over == DISTANCE else {over}
    axes |= set() if per is None else {per}
    stage = Pool(
        name=ev.unit.stage_name(),
        axes=ordered(frozenset(axes)),
        kind="any",
        value=only.expr,
        only=build.TRUE,
        over=over,
        per=per,
        windows=windows,
        dtype="bool",
        span=call.span,
    )
    return spaces.add(ev, stage)


def _body(kind: str, value: Scalar) -> tuple[Scalar, Dtype]:
    match kind:
        case "any" | "all":
            return value, "bool"
        case "mean":
            return replace(value, expr=build.to_float(value.expr)), "float"
        case _ if value.dtype == "bool":
            return replace(value, expr=build.apply("where", value.expr, 1, 0)), "int"
        case _:
            return value, value.dtype
