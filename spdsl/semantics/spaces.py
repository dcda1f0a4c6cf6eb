"""The axes of stages: which arrays fit together, and along which axes the result lies."""

from __future__ import annotations

from collections.abc import Iterable

from spdsl.diagnostics import Span
from spdsl.semantics import build
from spdsl.semantics.expressions import Evaluator
from spdsl.semantics.graph import DISTANCE, TENSORS, Stage, index_of, is_free, loads, ordered
from spdsl.semantics.nesting import refines
from spdsl.semantics.nodes import Coord, Expr, Index, Load, Side
from spdsl.semantics.report import listing
from spdsl.semantics.rewrite import children
from spdsl.semantics.values import Scalar

SIDES: tuple[Side, Side] = ("q", "k")
WHAT = {"q": "queries", "k": "keys"}
TRUE = Scalar(expr=build.TRUE)
FALSE = Scalar(expr=build.FALSE)


def is_dynamic(ev: Evaluator, value: Scalar) -> bool:
    """Whether a value comes from queries, keys or values."""
    return any(is_free(axis) for axis in value.axes) or not loads(value.expr).isdisjoint((*TENSORS, *ev.unit.stages))


def space(ev: Evaluator, values: Iterable[Scalar], span: Span | None) -> tuple[str, ...] | None:
    """The axes of an array that is made of these pointwise; None after a mistake."""
    given = tuple(values)
    names = frozenset[str]().union(*(value.axes for value in given)) - {"b"}
    if "h" in names:
        names -= {"g"}
    if DISTANCE in names:
        apart = all(value.axes.isdisjoint(SIDES) or _by_distance(value.expr) for value in given)
        names = names - set(SIDES) if apart else names - {DISTANCE} | set(SIDES)
    for side in SIDES:
        # What stands first decides where sizes are not known yet: the values, and not the sets that filter them.
        seen = (axis for value in given for axis in sorted(value.axes) if axis in names)
        own = tuple(dict.fromkeys(axis for axis in seen if axis.partition(".")[0] == side))
        finest = _finest(ev, side, own)
        if finest is None and own:
            ev.error(
                "SP218",
                f"{listing(sorted(own))} divide {WHAT[side]} independently",
                span,
                help="reduce one of them to the other first, for example with `max(…, per = k.blk)`",
            )
            return None
        names = names - set(own) | (frozenset() if finest is None else {finest})
    return ordered(names)


def _by_distance(expr: Expr) -> bool:
    """Whether positions take part only in ``q - k``."""
    whole = index_of(DISTANCE)
    stack = [expr]
    while stack:
        node = stack.pop()
        if isinstance(node, (Coord, Index)) and node in (Index(name="q"), Index(name="k")):
            return False
        if isinstance(node, Coord):
            return False
        if node != whole:
            stack.extend(children(node))
    return True


def _finest(ev: Evaluator, side: Side, own: tuple[str, ...]) -> str | None:
    if side in own:
        return side
    return next((axis for axis in own if all(refines(ev.unit.axes, axis, other) for other in own)), None)


def array(axes: tuple[str, ...], stage: Stage) -> Scalar:
    """A stage as a value at one point."""
    indices = tuple(index_of(axis) for axis in axes)
    return Scalar(
        expr=Load(table=stage.name, dtype=stage.dtype, indices=indices, span=stage.span), axes=frozenset(axes), size=4
    )


def add(ev: Evaluator, stage: Stage) -> Scalar:
    """Add a stage to the pattern; its value."""
    over = getattr(stage, "over", None)
    items = [axis for axis in (*stage.axes, over) if axis in ev.unit.members]
    if items:
        ev.unsupported(
            f"a stage along `{items[0]}`, the axis of a tuple,",
            stage.span,
            help=f"use items of the tuple, or vary sets of `attend` alone: `merge(attend {{ … }}, over = {items[0]})`",
        )
    ev.unit.stages[stage.name] = stage
    return array(stage.axes, stage)


def closed(ev: Evaluator, value: Scalar, span: Span | None, context: str) -> bool:
    """Whether no free axis is left; records the mistake."""
    left = sorted(axis for axis in value.axes if is_free(axis))
    if left:
        reduced, more = ("any", "") if value.dtype == "bool" else ("sum", ", or let `score` multiply along it")
        ev.error(
            "SP219",
            f"the axis `{left[0]}` is not closed, but {context} has one value for each pair",
            span,
            help=f"reduce over it, for example with `{reduced}(…, over = {left[0]})`{more}",
        )
    return not left
