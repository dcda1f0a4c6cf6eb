"""Stages by the values of queries and keys: ``score``, ``softmax``, ``only``, ``force``, ``top`` and ``top_p``."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from spdsl.diagnostics import Span
from spdsl.grammar import nodes as syntax
from spdsl.semantics import build, spaces
from spdsl.semantics.expressions import Arg, Evaluator, Invocation
from spdsl.semantics.graph import DISTANCE, Score, Select, Softmax, is_free, on_side, ordered
from spdsl.semantics.nesting import refines
from spdsl.semantics.nodes import Const, Coord, Expr, Index, Load, Side
from spdsl.semantics.report import did_you_mean, listing
from spdsl.semantics.spaces import FALSE, TRUE
from spdsl.semantics.values import POISON, AxisRef, Candidates, Entry, Items, Poison, Scalar, TableRef, Value
from spdsl.semantics.wording import excerpt

_TENSORS = {"Q": ("h", "q"), "K": ("g", "k"), "V": ("g", "k")}


def tensor(name: str, span: Span | None = None) -> Scalar:
    """``Q``, ``K`` or ``V`` as an array along heads, positions and features."""
    axes = (*_TENSORS[name], "d")
    indices = (Index(name="b"), *(Index(name=axis) for axis in axes))
    return Scalar(expr=Load(table=name, dtype="float", indices=indices, span=span), axes=frozenset(axes))


def keyword(ev: Evaluator, call: Invocation, *known: str) -> bool:
    """Whether all named arguments are known; records the mistake."""
    for name, argument in call.keywords.items():
        if name not in known:
            ev.mark_used(argument)
            ev.error(
                "SP204",
                f"`{call.name}` takes no argument `{name}`",
                argument.span,
                help=did_you_mean(name, known) or "leave it out",
            )
            return False
    return True


# ---------------------------------------------------------------- scores


def score(ev: Evaluator, call: Invocation) -> Value:
    """``score(Q, K)``: products of vectors, along the free axis that both have."""
    if not keyword(ev, call, "scale"):
        return POISON
    if len(call.args) != 2:
        return ev.error(
            "SP204",
            f"`score` takes two arrays of vectors, not {len(call.args)}",
            call.span,
            help="for example `score(Q, mean(K, per = k.blk))`",
        )
    left, right = (_vectors(ev, arg, side) for arg, side in zip(call.args, spaces.SIDES, strict=True))
    scale = None
    if "scale" in call.keywords:
        scale = ev.scalar(call.keywords["scale"].value, "number", "`scale`")
        if scale is not None and scale.axes:
            return ev.error(
                "SP213",
                f"`scale` depends on {listing(sorted(scale.axes))}, but may depend on parameters alone",
                call.keywords["scale"].span,
                help="multiply the score by what varies",
            )
    if left is None or right is None or ("scale" in call.keywords and scale is None):
        return POISON
    shared = sorted(axis for axis in left.axes & right.axes if is_free(axis))
    if len(shared) != 1:
        what = f"they share {listing(shared)}" if shared else "they share none"
        return ev.error(
            "SP219",
            f"`score` multiplies along one free axis of both arrays, but {what}",
            call.span,
            note=f"{_along(left)} and {_along(right)}",
            help="vectors are `Q`, `K`, `V`, what is made of them, and inputs such as `float[h, q, e]`",
        )
    whole = spaces.space(ev, (left, right), call.span)
    if whole is None:
        return POISON
    axes = ordered(frozenset(whole) - {shared[0]})
    stage = Score(
        name=ev.unit.stage_name(),
        axes=axes,
        left=build.to_float(left.expr),
        right=build.to_float(right.expr),
        over=shared[0],
        scale=None if scale is None else build.to_float(scale.expr),
        span=call.span,
    )
    return spaces.add(ev, stage)


def _along(value: Scalar) -> str:
    return f"along {listing(ordered(value.axes))}"


def _vectors(ev: Evaluator, arg: Arg, side: Side) -> Scalar | None:
    """An argument of `score`; positions of a table are those of its side."""
    match arg.value:
        case TableRef(table=table):
            from spdsl.semantics.access import load

            found = load(ev, table, (), arg.node, position=side)
            return ev.expect(Arg(value=found, node=arg.node), "number", "`score`")
        case Candidates(value=value, only=only):
            # What is absent adds nothing to a product.
            return Scalar(
                expr=build.apply("where", only.expr, value.expr, 0.0),
                axes=value.axes | only.axes,
                size=value.size + only.size + 2,
            )
        case _:
            return ev.expect(arg, "number", "`score`")


# ---------------------------------------------------------------- filters


def candidates(ev: Evaluator, arg: Arg, context: str) -> Candidates | None:
    """A value with what is present of it; None after a mistake."""
    if isinstance(arg.value, Candidates):
        return arg.value
    found = ev.expect(arg, "number", context)
    return None if found is None else Candidates(value=found, only=TRUE)


def only(ev: Evaluator, call: Invocation) -> Value:
    """Values of which only those in a set are present."""
    if len(call.args) != 2 or call.keywords:
        return ev.error("SP204", "`only` takes one set", call.span, help="for example `x |> only(k.blk <= q.blk)`")
    keep = ev.expect(call.args[1], "bool", "`only`")
    value = candidates(ev, call.args[0], "`only`")
    if value is None or keep is None or not _fits(ev, value, keep, call, 1):
        return POISON
    if value.forced is not None:
        return ev.error("SP204", "`only` comes before `force`", call.span, help="change their order")
    joined = keep if value.only == TRUE else ev.combine("and", (value.only, keep), call.span)
    return Candidates(value=value.value, only=joined) if isinstance(joined, Scalar) else POISON


def force(ev: Evaluator, call: Invocation) -> Value:
    """Values of which those in a set come first, whatever they are."""
    if len(call.args) != 2 or call.keywords:
        return ev.error("SP204", "`force` takes one set", call.span, help="for example `x |> force(k.blk == q.blk)`")
    forced = ev.expect(call.args[1], "bool", "`force`")
    value = candidates(ev, call.args[0], "`force`")
    if value is None or forced is None or not _fits(ev, value, forced, call, 1):
        return POISON
    if value.forced is not None:
        joined = ev.combine("or", (value.forced, forced), call.span)
        if not isinstance(joined, Scalar):
            return POISON
        forced = joined
    return Candidates(value=value.value, only=value.only, forced=forced)


def _fits(ev: Evaluator, value: Candidates, keep: Scalar, call: Invocation, place: int) -> bool:
    """Whether a set varies along the axes of the values and nothing finer."""
    chosen = call.args[place]
    for name in sorted(keep.axes):
        side = name.partition(".")[0]
        own = sorted(axis for axis in value.value.axes if axis.partition(".")[0] == side)
        coarse = [axis for axis in own if "." in axis]
        if side not in ("q", "k") or not coarse or len(coarse) < len(own):
            continue
        if name == side or not any(refines(ev.unit.axes, axis, name) for axis in coarse):
            _too_fine(ev, call.name, chosen, side, coarse[0])
            return False
    return True


def _too_fine(ev: Evaluator, word: str, chosen: Arg, side: str, coordinate: str) -> None:
    example = f"`{coordinate}.last <= q` or `{coordinate}.first <= q`" if side == "k" else f"`k <= {coordinate}.last`"
    ev.error(
        "SP212",
        f"{excerpt(chosen.node)} varies inside a block of {spaces.WHAT[side]}: {example}",
        chosen.node.span,
        note=f"`{side}` must appear through `{coordinate}`",
        help=f"`{word}` never refines an axis; compare blocks, or their first or last positions",
    )


# ---------------------------------------------------------------- softmax and selections


def softmax(ev: Evaluator, call: Invocation) -> Value:
    """``x |> softmax``, ``softmax(x, within = SET)``, ``softmax(x, over = k.blk)``."""
    if not keyword(ev, call, "within", "over"):
        return POISON
    if len(call.args) != 1:
        return ev.error("SP204", "`softmax` takes one value", call.span, help="for example `score(Q, K) |> softmax`")
    if "within" in call.keywords:
        argument = call.keywords["within"]
        filtered = Invocation(name="only", span=call.span, args=(call.args[0], ev.arg(argument.value)), keywords={})
        value = only(ev, filtered)
    else:
        value = call.args[0].value
    found = candidates(ev, Arg(value=value, node=call.args[0].node), "`softmax`")
    if found is None or found.forced is not None:
        if found is not None:
            ev.error("SP204", "`force` is of use before `top` and `top_p` alone", call.span, help="leave it out")
        return POISON
    axes = spaces.space(ev, (found.value, found.only), call.span)
    over = None if axes is None else along(ev, call, axes)
    if axes is None or over is None:
        return POISON
    stage = Softmax(
        name=ev.unit.stage_name(),
        axes=axes,
        value=build.to_float(found.value.expr),
        only=found.only.expr,
        over=over,
        span=call.span,
    )
    return wrapped(spaces.add(ev, stage), found.only)


def wrapped(value: Scalar, only: Scalar) -> Value:
    """A value with what is present of it; without anything absent, the value itself."""
    return value if only.expr == build.TRUE else Candidates(value=value, only=only)


def select(ev: Evaluator, call: Invocation) -> Value:
    """``top(n)`` and ``top_p(p)``: a set."""
    if not keyword(ev, call, "over", "rank" if call.name == "top" else "least"):
        return POISON
    example = f"`x |> {call.name}({'3' if call.name == 'top' else '0.9'})`"
    if len(call.args) != 2:
        return ev.error("SP204", f"`{call.name}` takes a number", call.span, help=f"for example {example}")
    by: Literal["count", "mass"] = "count" if call.name == "top" else "mass"
    found = candidates(ev, call.args[0], f"`{call.name}`")
    amount = ev.expect(call.args[1], "int" if by == "count" else "number", f"`{call.name}`")
    if found is None or amount is None or not _amount(ev, call, amount):
        return POISON
    forced = FALSE if found.forced is None else found.forced
    axes = spaces.space(ev, (found.value, found.only, forced), call.span)
    if axes is None:
        return POISON
    ranked = _ranked(ev, call, axes)
    least = ev.scalar(call.keywords["least"].value, "int", "`least`") if "least" in call.keywords else None
    rank = _rank(ev, call, amount) if "rank" in call.keywords else None
    if ranked is None or (least is None and "least" in call.keywords) or (rank is None and "rank" in call.keywords):
        return POISON
    if least is not None and least.axes:
        what = listing(ordered(least.axes))
        span = call.keywords["least"].span
        return ev.error("SP203", f"`least` depends on {what}", span, help="it may depend on parameters and `n`")
    only = found.only
    if "q" in ranked:
        # Queries before the first position do not exist, and compete with no other.
        exist = Scalar(expr=build.apply("ge", Index(name="q"), 0), axes=frozenset("q"), size=3)
        joined = ev.combine("and", (exist, only), call.span)
        only = joined if isinstance(joined, Scalar) else only
    stage = Select(
        name=ev.unit.stage_name(),
        axes=axes if rank is None else ordered(frozenset({*axes, rank})),
        value=build.to_float(found.value.expr),
        only=only.expr,
        forced=forced.expr,
        amount=amount.expr if by == "count" else build.to_float(amount.expr),
        by=by,
        over=ranked[-1],
        also=ranked[:-1],
        least=None if least is None else least.expr,
        rank=rank,
        span=call.span,
    )
    return spaces.add(ev, stage)


def _ranked(ev: Evaluator, call: Invocation, axes: tuple[str, ...]) -> tuple[str, ...] | None:
    """The axes along which entries compete, as they are written."""
    argument = call.keywords.get("over")
    if argument is None or not isinstance(argument.value, syntax.Tuple):
        one = along(ev, call, axes)
        return None if one is None else (one,)
    found: list[str] = []
    for item in argument.value.items:
        keywords = {"over": replace(argument, value=item)}
        one = along(ev, replace(call, keywords=keywords), axes)
        if one is None or one in found:
            if one is not None:
                ev.error("SP203", f"`{one}` stands twice in `over`", item.span, help="leave one of them out")
            return None
        found.append(one)
    return tuple(found)


def _rank(ev: Evaluator, call: Invocation, amount: Scalar) -> str | None:
    """The free axis of places in the order, made known by the name that `rank = …` gives it."""
    argument = call.keywords["rank"]
    match argument.value:
        case syntax.Name(id=name) if ev.free_name(name):
            pass
        case node:
            ev.error(
                "SP203",
                f"`rank` names a free axis, but {excerpt(node)} is none",
                node.span,
                help="write a lower-case name that means nothing yet, for example `rank = a`",
            )
            return None
    if amount.axes or "over" in call.keywords:
        what = "`over`" if "over" in call.keywords else f"a number that depends on {listing(ordered(amount.axes))}"
        ev.unsupported(f"`rank` with {what}", argument.span)
        return None
    ev.scope.entries.setdefault(
        name,
        Entry(
            value=Scalar(expr=Index(name=name), axes=frozenset((name,))),
            span=argument.span,
            kind="free axis",
            used=True,
        ),
    )
    return name


def _amount(ev: Evaluator, call: Invocation, amount: Scalar) -> bool:
    """Whether the number that is asked for makes sense; records the mistake."""
    node = call.args[1].node
    if any(axis not in ("b", "h", "g") for axis in amount.axes):
        ev.error(
            "SP203",
            f"the number that `{call.name}` takes may not depend on {listing(ordered(amount.axes))}",
            node.span,
            help="it may depend on parameters, `n`, `h` and `g`",
        )
        return False
    match amount.expr:
        case Const(value=value) if value < 0 or (call.name == "top_p" and not value <= 1):
            what = f"take {value} candidates" if call.name == "top" else f"reach {value} times the sum"
            wanted = "of at least 0" if call.name == "top" else "between 0 and 1"
            ev.error("SP203", f"`{call.name}` cannot {what}", node.span, help=f"give a number {wanted}")
            return False
        case _:
            return True


def along(ev: Evaluator, call: Invocation, axes: tuple[str, ...]) -> str | None:
    """The axis along which a stage ranks: the one given, or that of keys."""
    if "over" in call.keywords:
        argument = call.keywords["over"]
        named = axis_of(ev.evaluate(argument.value))
        if named is None:
            ev.unsupported(f"`{call.name}` over several axes", argument.span)
        elif named not in axes:
            ev.error(
                "SP203",
                f"`{call.name}` works along an axis of its values: {listing(axes)}",
                argument.span,
                help="name one of these",
            )
        elif named.partition(".")[0] == "q" and call.name not in ("top", "top_p"):
            ev.unsupported(f"`{call.name}` over queries", argument.span)
        else:
            return named
        return None
    found = DISTANCE if DISTANCE in axes else on_side(axes, "k")
    if found is None:
        ev.error(
            "SP203",
            f"`{call.name}` needs one axis of keys to select along",
            call.span,
            note=f"it has {listing(axes)}" if axes else "it has none",
            help=f"name an axis: `{call.name}(…, over = …)`",
        )
    return found


def axis_of(value: Value) -> str | None:
    """The name of an axis that is written as a value: ``k``, ``k.blk``, ``h``, ``q - k``, a free axis."""
    match value:
        case Scalar(expr=Index(name=name)):
            return name
        case Scalar(expr=Coord(side=side, axis=axis)):
            return f"{side}.{axis}"
        case Scalar(expr=expr) if expr == _DISTANCE:
            return DISTANCE
        case Poison() | Items() | AxisRef() | _:
            return None


_DISTANCE: Expr = build.sub(Index(name="q"), Index(name="k"))
