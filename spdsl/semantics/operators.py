"""Operators on values: what each asks of its operands, and the type, axes and conditions of the result."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from spdsl.diagnostics import Span, SpatError
from spdsl.semantics import build
from spdsl.semantics.bounds import is_non_negative
from spdsl.semantics.expressions import Arg, Evaluator, Want
from spdsl.semantics.fold import fold_constants
from spdsl.semantics.nodes import Const, Expr
from spdsl.semantics.ops import OPS
from spdsl.semantics.values import POISON, Branch, Candidates, Merged, Scalar, Value, describe
from spdsl.semantics.wording import excerpt

MAX_SIZE = 20_000
"""The most nodes one expression may have when every `let` and `def` is written out."""

MAX_DEPTH = 250
"""The most operations that may stand inside each other, every `let` and `def` written out: later passes recurse."""


def operate(ev: Evaluator, op: str, args: tuple[Arg, ...], span: Span | None, context: str) -> Value:
    """An operation on arguments, typed by its signature in `OPS`."""
    signature = OPS[op].signature
    if signature in ("arith", "divide") and any(isinstance(arg.value, Branch | Merged) for arg in args):
        from spdsl.semantics.branches import output

        args = tuple(replace(arg, value=output(ev, arg)) for arg in args)
    if any(isinstance(arg.value, Candidates) for arg in args):
        return _of_present(ev, op, args, span, context)
    wants = _wants(op, len(args))
    scalars = [ev.expect(arg, want, context) for arg, want in zip(args, wants, strict=True)]
    if any(scalar is None for scalar in scalars):
        return POISON
    found = tuple(scalar for scalar in scalars if scalar is not None)
    if signature in ("equal", "where"):
        pair = found[-2:]
        if (pair[0].dtype == "bool") != (pair[1].dtype == "bool"):
            one, two = args[-2], args[-1]
            return ev.error(
                "SP203",
                f"{excerpt(one.node)} is {describe(pair[0])} and {excerpt(two.node)} is {describe(pair[1])}: "
                f"{context} needs both of one type",
                span,
                help="compare or choose between two sets or between two numbers",
            )
    return ev.combine(op, found, span)


def _of_present(ev: Evaluator, op: str, args: tuple[Arg, ...], span: Span | None, context: str) -> Value:
    """An operation on values some of which are absent: absent where one of its arguments is; a bool is false there."""
    masks: list[Scalar] = []
    plain: list[Arg] = []
    for arg in args:
        match arg.value:
            case Candidates(forced=Scalar()):
                return ev.error(
                    "SP204", "`force` is of use before `top` and `top_p` alone", arg.node.span, help="leave it out"
                )
            case Candidates(value=value, only=only):
                plain.append(replace(arg, value=value))
                masks.append(only)
            case _:
                plain.append(arg)
    found = operate(ev, op, tuple(plain), span, context)
    present = combine(ev, "and", tuple(masks), span) if len(masks) == 2 else masks[0]
    if not isinstance(found, Scalar) or not isinstance(present, Scalar):
        return POISON
    if found.dtype == "bool":
        return ev.combine("and", (present, found), span)
    return Candidates(value=found, only=present)


def combine(ev: Evaluator, op: str, scalars: tuple[Scalar, ...], span: Span | None) -> Value:
    """An operation on well-typed arrays: the type rules of floats, and the conditions of named grids."""
    exprs = [scalar.expr for scalar in scalars]
    floats = any(expr.dtype == "float" for expr in exprs)
    if op in ("div", "floordiv", "mod") and isinstance(exprs[1], Const) and exprs[1].value == 0:
        return ev.error(
            "SP215",
            "division by zero",
            exprs[1].span or span,
            help="divide by something else, or choose with `if … then … else …`",
        )
    if op == "floordiv" and floats:
        # Floors as for ints, and is an int like them.
        expr = build.apply("floor", build.apply("div", *exprs), span=span)
    elif op == "mod" and floats:
        quotient = build.apply("floor", build.apply("div", *exprs))
        expr = build.apply("sub", exprs[0], build.apply("mul", quotient, exprs[1]), span=span)
    elif op == "pow" and not floats and not is_non_negative(exprs[1], ev.unit.facts):
        expr = build.apply("pow", build.to_float(exprs[0]), exprs[1], span=span)
    else:
        expr = build.apply(op, *exprs, span=span)
    if all(isinstance(part, Const) for part in exprs):
        try:
            expr = fold_constants(expr, code="SP215")
        except SpatError as failure:
            return ev.error(failure.code, failure.diagnostics[0].message, span, help=failure.help)
    return whole(ev, expr, scalars, span)


def whole(ev: Evaluator, expr: Expr, scalars: tuple[Scalar, ...] | list[Scalar], span: Span | None) -> Value:
    """An array of the axes of its parts, within the limit of size; a bool holds inside named grids only."""
    axes = frozenset[str]().union(*(scalar.axes for scalar in scalars))
    guards = frozenset[tuple[Literal["q", "k"], str]]().union(*(scalar.guards for scalar in scalars))
    size = 1 + sum(scalar.size for scalar in scalars)
    depth = 1 + max((scalar.depth for scalar in scalars), default=0)
    if size > MAX_SIZE or depth > MAX_DEPTH:
        return ev.error(
            "SP216",
            "this expression is too large once every `let` and `def` is written out",
            span,
            help="split the pattern, or let fewer definitions build on each other twice",
        )
    result = Scalar(expr=expr, axes=axes, guards=guards, size=size, depth=depth)
    if expr.dtype == "bool" and guards:
        return _guarded(ev, result, span)
    return result


def _guarded(ev: Evaluator, value: Scalar, span: Span | None) -> Value:
    """A comparison of coordinates of named grids, which is false outside of them."""
    conditions = [ev.unit.inside(side, grid) for side, grid in sorted(value.guards)]
    expr = build.conj(*(condition.expr for condition in conditions), value.expr)
    axes = value.axes.union(*(condition.axes for condition in conditions))
    size = value.size + sum(condition.size + 1 for condition in conditions)
    return Scalar(expr=build.place(expr, span), axes=axes, size=size, depth=value.depth + 1)


def _wants(op: str, number: int) -> tuple[Want, ...]:
    """What the signature of an operation asks of its arguments."""
    want: Want
    match OPS[op].signature:
        case "where":
            return ("bool", "any", "any")
        case "logic":
            want = "bool"
        case "equal":
            want = "any"
        case "int" | "test" if op not in ("floordiv", "mod"):
            want = "int"
        case _:
            want = "number"
    return (want,) * number
