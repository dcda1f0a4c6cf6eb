"""Functions of whole vectors and lines: ``unit``, ``norm``, ``mix``, ``smooth``."""

from __future__ import annotations

from spdsl.semantics import build, spaces
from spdsl.semantics.expressions import Evaluator, Invocation
from spdsl.semantics.graph import Descend, Pool, Score, Smooth, is_free, on_side, ordered
from spdsl.semantics.nodes import Const, Coord, Index
from spdsl.semantics.report import listing
from spdsl.semantics.selections import along, axis_of, candidates, keyword, wrapped
from spdsl.semantics.values import POISON, Scalar, Value
from spdsl.semantics.wording import excerpt

TINY = 1e-24
"""The square of the length below which a vector counts as that short."""


def norm(ev: Evaluator, call: Invocation) -> Value:
    """``norm(x)``: the length of each vector."""
    squares = _squares(ev, call)
    if squares is None:
        return POISON
    root = build.apply("sqrt", build.apply("max", squares.expr, TINY), span=call.span)
    # At 0 the root has no slope, and its gradient would be infinite.
    expr = build.apply("where", build.apply("gt", squares.expr, TINY), root, 0.0, span=call.span)
    return Scalar(expr=expr, axes=squares.axes, size=squares.size + 8)


def unit(ev: Evaluator, call: Invocation) -> Value:
    """``unit(x)``: each vector divided by its length; zeros stay zeros."""
    squares = _squares(ev, call)
    if squares is None:
        return POISON
    value = ev.expect(call.args[0], "number", "`unit`")
    if value is None:
        return POISON
    root = build.apply("sqrt", build.apply("max", squares.expr, TINY))
    expr = build.apply("div", value.expr, root, span=call.span)
    return Scalar(expr=expr, axes=value.axes | squares.axes, size=value.size + squares.size + 4)


def _squares(ev: Evaluator, call: Invocation) -> Scalar | None:
    """The sums of squares of vectors along their features; None after a mistake."""
    if not keyword(ev, call):
        return None
    if len(call.args) != 1:
        ev.error("SP204", f"`{call.name}` takes one array of vectors", call.span, help=f"write `{call.name}(Q)`")
        return None
    value = ev.expect(call.args[0], "number", f"`{call.name}`")
    if value is None:
        return None
    features = sorted(axis for axis in value.axes if is_free(axis))
    if len(features) != 1:
        ev.error(
            "SP219",
            f"`{call.name}` is that of vectors along one free axis, but {excerpt(call.args[0].node)} "
            f"has {listing(features) if features else 'none'}",
            call.span,
            note=f"it varies along {listing(ordered(value.axes))}" if value.axes else "it is one number",
            help="vectors are `Q`, `K`, `V`, what is made of them, and inputs such as `float[h, q, e]`",
        )
        return None
    axes = spaces.space(ev, (value,), call.span)
    if axes is None:
        return None
    number = build.to_float(value.expr)
    stage = Pool(
        name=ev.unit.stage_name(),
        axes=ordered(frozenset(axes) - {features[0]}),
        kind="sum",
        value=build.mul(number, number),
        only=build.TRUE,
        over=features[0],
        per=None,
        windows=None,
        dtype="float",
        span=call.span,
    )
    return spaces.add(ev, stage)


def mix(ev: Evaluator, call: Invocation) -> Value:
    """``mix(share, V)``: for each query the sum of vectors of keys, each times its share; absent ones have none."""
    if not keyword(ev, call):
        return POISON
    if len(call.args) != 2:
        return ev.error(
            "SP204", "`mix` takes shares of keys, and a vector for each", call.span, help="write `mix(share, V)`"
        )
    shares = candidates(ev, call.args[0], "`mix`")
    values = ev.expect(call.args[1], "number", "`mix`")
    if shares is None or values is None:
        return POISON
    whole = spaces.space(ev, (shares.value, shares.only), call.span)
    own = on_side(values.axes, "k")
    features = [axis for axis in values.axes if is_free(axis)]
    if whole is None:
        return POISON
    if own is None or own != on_side(whole, "k") or len(features) != 1:
        return ev.error(
            "SP219",
            "`mix` adds up vectors along the axis of keys that its shares have",
            call.span,
            note=f"shares along {listing(whole)}, vectors along {listing(ordered(values.axes))}",
            help="pool the vectors per the same blocks: `mix(share, mean(V, per = k.blk))`",
        )
    axes = spaces.space(ev, (Scalar(expr=build.TRUE, axes=frozenset(whole)), values), call.span)
    if axes is None:
        return POISON
    present = shares.value.expr
    if shares.only != spaces.TRUE:
        present = build.apply("where", shares.only.expr, build.to_float(present), 0.0)
    stage = Score(
        name=ev.unit.stage_name(),
        axes=ordered(frozenset(axes) - {own}),
        left=build.to_float(present),
        right=build.to_float(values.expr),
        over=own,
        scale=Const(value=1.0),
        span=call.span,
    )
    return spaces.add(ev, stage)


def descend(ev: Evaluator, call: Invocation) -> Value:
    """One value for each block of keys, found by halving it."""
    if not keyword(ev, call, "per"):
        return POISON
    found = candidates(ev, call.args[0], "`descend`") if len(call.args) == 1 else None
    argument = call.keywords.get("per")
    if len(call.args) != 1 or argument is None:
        return ev.error(
            "SP204",
            "`descend` takes a value of keys, and `per = …`",
            call.span,
            help="for example `score(Q, K) |> descend(per = k.blk)`",
        )
    per = axis_of(ev.evaluate(argument.value))
    if found is None:
        return POISON
    axes = spaces.space(ev, (found.value, found.only), call.span)
    if axes is None:
        return POISON
    if per is None or not per.startswith("k.") or "k" not in axes or found.forced is not None:
        return ev.error(
            "SP203",
            f"`descend` goes from the positions of keys to blocks of them, not to {excerpt(argument.value)}",
            argument.span,
            note=f"the value varies along {listing(axes)}",
            help="write `per = k.blk`, where `blk` is an axis of neighbours",
        )
    if not _neighbours(ev, per.partition(".")[2]):
        return ev.unsupported(f"`descend` along `{per}`, whose members are not neighbours,", call.span)
    stage = Descend(
        name=ev.unit.stage_name(),
        axes=ordered(frozenset(axes) - {"k"} | {per}),
        value=build.to_float(found.value.expr),
        only=found.only.expr,
        per=per,
        span=call.span,
    )
    value = spaces.add(ev, stage)
    # What has met nothing is NaN, which is not equal to itself.
    return wrapped(value, Scalar(expr=build.apply("eq", value.expr, value.expr), axes=value.axes, size=9))


def _neighbours(ev: Evaluator, name: str) -> bool:
    """Whether the members of an axis are runs of positions, each position in one."""
    axis = ev.unit.axes.get(name)
    if axis is None or axis.step is not None or len(axis.of) != 1:
        return False
    match axis.of[0]:
        case Index(name="k"):
            return True
        case Coord(axis=inner):
            return _neighbours(ev, inner)
        case _:
            return False


def smooth(ev: Evaluator, call: Invocation) -> Value:
    """Neighbours along the axis of keys, averaged; what is absent counts as 0."""
    if not keyword(ev, call, "over"):
        return POISON
    if len(call.args) != 2:
        return ev.error(
            "SP204", "`smooth` takes a number of neighbours", call.span, help="for example `x |> smooth(5)`"
        )
    found = candidates(ev, call.args[0], "`smooth`")
    width = ev.expect(call.args[1], "int", "`smooth`")
    if found is None or width is None:
        return POISON
    if found.forced is not None:
        return ev.error("SP204", "`force` is of use before `top` and `top_p` alone", call.span, help="leave it out")
    if width.axes:
        return ev.error(
            "SP203",
            f"the width of `smooth` depends on {listing(sorted(width.axes))}",
            call.args[1].node.span,
            help="use parameters and numbers",
        )
    axes = spaces.space(ev, (found.value, found.only), call.span)
    over = None if axes is None else along(ev, call, axes)
    if axes is None or over is None:
        return POISON
    stage = Smooth(
        name=ev.unit.stage_name(),
        axes=axes,
        value=build.to_float(found.value.expr),
        only=found.only.expr,
        over=over,
        width=width.expr,
        span=call.span,
    )
    return wrapped(spaces.add(ev, stage), found.only)
