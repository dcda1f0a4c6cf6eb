"""Reductions over positions, and the selection ``noise(…) |> only(SET) |> top(n)``.

What is computed from queries, keys and values is a stage: see `pools` and `selections`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from spdsl.grammar import nodes as syntax
from spdsl.semantics import build, operators, spaces
from spdsl.semantics.expressions import Evaluator, Invocation
from spdsl.semantics.graph import is_free
from spdsl.semantics.members import members
from spdsl.semantics.nodes import Const, Coord, Dtype, Expr, Index, Noise, Reduce, Side, Top
from spdsl.semantics.pools import pool, prefix
from spdsl.semantics.report import did_you_mean, listing
from spdsl.semantics.selections import axis_of, select
from spdsl.semantics.values import POISON, Branch, Candidates, Items, Merged, Poison, Scalar, Value
from spdsl.semantics.wording import excerpt

REDUCTIONS = ("any", "all", "mean", "sum", "min", "max")


def reduce(ev: Evaluator, call: Invocation) -> Value:
    """``mean(x, per = q.blk)``, ``any(x, over = k)`` and their kin."""
    directions = [word for word in ("per", "over", "upto") if word in call.keywords]
    if any(isinstance(arg.value, Poison) for arg in call.args):
        for argument in call.keywords.values():
            ev.mark_used(argument)
        return POISON
    for name, argument in call.keywords.items():
        if name not in ("per", "over", "upto", "windows"):
            help = did_you_mean(name, ("per", "over"))
            return ev.error("SP204", f"`{call.name}` takes no argument `{name}`", argument.span, help=help)
    if len(call.args) != 1 or len(directions) != 1:
        return ev.error(
            "SP204",
            f"`{call.name}` takes one value, and `per = …` or `over = …`",
            call.span,
            help=f"for example `{call.name}(x, per = q.blk)` or `{call.name}(x, over = k)`",
        )
    if directions == ["upto"]:
        return prefix(ev, call)
    want = "bool" if call.name in ("any", "all") else "any" if call.name in ("mean", "sum") else "number"
    if isinstance(call.args[0].value, Branch | Merged) and directions == ["over"]:
        axis = axis_of(ev.evaluate(call.keywords["over"].value))
        if axis is None or is_free(axis):
            return members(ev, call)
        # Over positions, a softmax stands for its set.
    if isinstance(call.args[0].value, Candidates):
        return pool(ev, call, call.args[0].value, directions[0])
    value = ev.expect(call.args[0], want, f"`{call.name}`")  # type: ignore[arg-type]
    if value is not None and (spaces.is_dynamic(ev, value) or "windows" in call.keywords):
        return pool(ev, call, Candidates(value=value, only=spaces.TRUE), directions[0])
    return _reduce(ev, call, directions[0], value)


def _reduce(ev: Evaluator, call: Invocation, direction: str, value: Scalar | None) -> Value:
    argument = call.keywords[direction]
    along = ev.evaluate(argument.value)
    parts = along.items if isinstance(along, Items) else (along,)
    if value is None or any(isinstance(part, Poison) for part in parts):
        return POISON
    if len(parts) > 1 and direction == "over":
        return ev.unsupported("`over` of several axes", argument.span)
    whole: Value = value
    for part in parts:
        match part, direction:
            case Scalar(expr=Coord() as coordinate), "per" if coordinate.axis in ev.unit.axes:
                whole = _along(ev, call, cast(Scalar, whole), coordinate.side, coordinate.axis)
            case Scalar(expr=Index(name="q" | "k" as side)), "over":
                whole = _along(ev, call, cast(Scalar, whole), side, None)
            case _:
                return ev.unsupported(
                    f"`{direction} = {_written(argument.value)}`",
                    argument.span,
                    help="static sets reduce `per` a coordinate of an axis, or `over` q or k",
                )
        if not isinstance(whole, Scalar):
            return whole
    return whole


def _written(node: syntax.Expr) -> str:
    return excerpt(node).strip("`")


def _along(ev: Evaluator, call: Invocation, value: Scalar, side: Side, axis: str | None) -> Value:
    own = {name for name in value.axes if name.partition(".")[0] == side}
    result = f"{side}.{axis}"
    if axis is not None and own <= {result} and call.name != "sum":
        # One value for each coordinate already: pooling it again changes nothing but its type.  A sum counts positions.
        return replace(value, expr=_body(call.name, value.expr)[0])
    if value.guards and any(guard[0] == side for guard in value.guards):
        return ev.unsupported(
            f"`{call.name}` of coordinates of a named grid",
            call.span,
            help="compare them first: outside the grid they mean nothing",
        )
    body, dtype = _body(call.name, value.expr)
    expr = Reduce(kind=call.name, side=side, axis=axis, body=body, dtype=dtype, span=call.span)  # type: ignore[arg-type]
    axes = value.axes - own | (frozenset() if axis is None else frozenset((result,)))
    return Scalar(expr=expr, axes=axes, guards=value.guards, size=value.size + 1, depth=value.depth + 1)


def _body(kind: str, body: Expr) -> tuple[Expr, Dtype]:
    match kind:
        case "any" | "all":
            return body, "bool"
        case "mean":
            return build.to_float(body), "float"
        case _ if body.dtype == "bool":
            return build.apply("where", body, 1, 0, span=body.span), "int"
        case _:
            return body, body.dtype


def noise(ev: Evaluator, call: Invocation) -> Value:
    """``noise(seed, per = (h, q.blk, k.blk))``: a number in [0, 1) for each combination of the indices."""
    if len(call.args) != 1 or set(call.keywords) != {"per"}:
        return ev.error(
            "SP204",
            "`noise` takes a seed and `per = (…)`",
            call.span,
            help="for example `noise(seed, per = (h, q.blk, k.blk))`",
        )
    seed = ev.expect(call.args[0], "int", "a seed")
    node = call.keywords["per"].value
    nodes = node.items if isinstance(node, syntax.Tuple) else (node,)
    indices = [ev.scalar(item, "int", "an index of `noise`") for item in nodes]
    found = [index for index in indices if index is not None]
    if seed is None or len(found) != len(indices):
        return POISON
    if len(found) > 4:
        return ev.unsupported("`noise` of more than four indices", call.span)
    if seed.axes:
        return ev.error(
            "SP203",
            f"{excerpt(call.args[0].node)} varies along {listing(sorted(seed.axes))}, but a seed is one number",
            call.args[0].node.span,
            help="put what varies into `per`",
        )
    axes = frozenset[str]().union(*(index.axes for index in found))
    guards = frozenset[tuple[Side, str]]().union(*(index.guards for index in found))
    expr = Noise(seed=seed.expr, per=tuple(index.expr for index in found), span=call.span)
    return Scalar(expr=expr, axes=axes, guards=guards, size=1 + seed.size + sum(index.size for index in found))


def top(ev: Evaluator, call: Invocation) -> Value:
    """The set of the largest candidates along the axis of keys."""
    if call.args and isinstance(call.args[0].value, Poison):
        for argument in call.keywords.values():
            ev.mark_used(argument)
        return POISON
    if len(call.args) != 2 or not _is_drawn(ev, call):
        return select(ev, call)
    count = ev.expect(call.args[1], "int", "`top`")
    match call.args[0].value:
        case Candidates(value=value, only=chosen):
            pass
        case _:
            found = ev.expect(call.args[0], "number", "`top`")
            if found is None:
                return POISON
            value, chosen = found, Scalar(expr=build.TRUE)
    if count is None:
        return POISON
    if any(name.partition(".")[0] in ("q", "k") for name in count.axes):
        return ev.error(
            "SP203",
            "the number that `top` takes may not depend on positions",
            call.args[1].node.span,
            help="it may depend on parameters, `n`, `h` and `g`",
        )
    if isinstance(count.expr, Const) and count.expr.value < 0:
        return ev.error(
            "SP203",
            f"`top` cannot take {count.expr.value} candidates",
            call.args[1].node.span,
            help="give a number of at least 0",
        )
    along = _along_axis(ev, call, value)
    if along is None:
        return POISON
    side, axis = along
    expr = Top(value=value.expr, only=chosen.expr, count=count.expr, side=side, axis=axis, span=call.span)
    return operators.whole(ev, expr, (value, chosen, count), call.span)


def _is_drawn(ev: Evaluator, call: Invocation) -> bool:
    """Whether the candidates have random numbers, and nothing takes part that is computed from queries and keys."""
    match call.args[0].value:
        case Candidates(value=Scalar(expr=Noise()), only=chosen, forced=None):
            return not spaces.is_dynamic(ev, chosen) and set(call.keywords) <= {"over"}
        case Scalar(expr=Noise()):
            return set(call.keywords) <= {"over"}
        case _:
            return False


def _along_axis(ev: Evaluator, call: Invocation, value: Scalar) -> tuple[Side, str | None] | None:
    """The axis along which `top` selects: the one given, or that of keys."""
    if "over" in call.keywords:
        argument = call.keywords["over"]
        match ev.evaluate(argument.value):
            case Scalar(expr=Coord(side=side, axis=axis)) if f"{side}.{axis}" in value.axes:
                return side, axis
            case Scalar(expr=Index(name="q" | "k" as name)) if name in value.axes:
                return name, None
            case Poison():
                return None
            case Items():
                ev.unsupported("`over` of several axes", argument.span)
            case _:
                names = listing(sorted(value.axes))
                ev.error(
                    "SP203",
                    f"`top` selects along an axis of its values: {names}",
                    argument.span,
                    help="name one of these",
                )
        return None
    found = sorted(name for name in value.axes if name.partition(".")[0] == "k")
    if len(found) != 1:
        ev.error(
            "SP203",
            "`top` needs one axis of keys to select along",
            call.span,
            note="it has none" if not found else f"it has {listing(found)}",
            help="name it: `top(n, over = k.blk)`",
        )
        return None
    return "k", found[0].partition(".")[2] or None
