"""Operators on values: what each asks of its operands, and the type, axes and conditions of the result."""

from __future__ import annotations

from typing import Literal

from spdsl.diagnostics import Span, SpatError
from spdsl.semantics import build
from spdsl.semantics.bounds import is_non_negative
from spdsl.semantics.expressions import Arg, Evaluator, Want, excerpt
from spdsl.semantics.fold import fold_constants
from spdsl.semantics.nodes import Const, Expr
from spdsl.semantics.ops import OPS
from spdsl.semantics.values import POISON, Branch, Candidates, Scalar, TensorRef, Value, describe

MAX_SIZE = 20_000
"""The most nodes one expression may have when every `let` and `def` is written out."""

MAX_DEPTH = 250
"""The most operations that may stand inside each other, every `let` and `def` written out: later passes recurse."""


def operate(ev: Evaluator, op: str, args: tuple[Arg, ...], span: Span | None, context: str) -> Value:
    """An operation on arguments, typed by its signature in `OPS`."""
    if any(isinstance(arg.value, TensorRef) for arg in args):
        return ev.unsupported("arithmetic on tensors", span)
    if any(isinstance(arg.value, Branch) for arg in args) and OPS[op].signature in ("arith", "divide"):
        return ev.unsupported("arithmetic on softmax branches", span)
    if any(isinstance(arg.value, Candidates) for arg in args):
        return ev.unsupported("arithmetic after `only`", span)
    signature = OPS[op].signature
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
