"""Int expressions as sums of multiples: what is left of divisions and remainders when indices have constant factors.

From: an expression.  To: one with the same values.  ``(8 * c + j + 8 * r + 3) % 8`` becomes ``(j + 3) % 8``, and where
``j`` is a number, a number: so conditions that count modulo something are decided while kernels are written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from spdsl.semantics import build
from spdsl.semantics.fold import fold
from spdsl.semantics.nodes import Apply, Const, Expr
from spdsl.semantics.rewrite import transform


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """``constant`` and the terms, each a factor and what it is a factor of."""

    terms: tuple[tuple[Expr, int], ...]
    constant: int

    def expr(self) -> Expr:
        """The sum as an expression."""
        found: Expr | None = None
        for term, factor in self.terms:
            part = term if abs(factor) == 1 else build.mul(term, abs(factor))
            if found is None:
                found = part if factor > 0 else build.apply("neg", part)
            else:
                found = build.add(found, part) if factor > 0 else build.sub(found, part)
        if found is None:
            return Const(value=self.constant)
        if self.constant == 0:
            return found
        return build.add(found, self.constant) if self.constant > 0 else build.sub(found, -self.constant)


def sum_of(expr: Expr) -> Sum:
    """An int expression as a sum; what is no sum is its own only term."""
    match expr:
        case Const(value=int() as value):
            return Sum(terms=(), constant=value)
        case Apply(op="add", args=(left, right)):
            return _plus(sum_of(left), sum_of(right), 1)
        case Apply(op="sub", args=(left, right)):
            return _plus(sum_of(left), sum_of(right), -1)
        case Apply(op="neg", args=(inner,)):
            return _plus(Sum(terms=(), constant=0), sum_of(inner), -1)
        case Apply(op="mul", args=(inner, Const(value=int() as factor)) | (Const(value=int() as factor), inner)):
            return _plus(Sum(terms=(), constant=0), sum_of(inner), factor)
        case _:
            return Sum(terms=((expr, 1),), constant=0)


def _plus(left: Sum, right: Sum, factor: int) -> Sum:
    terms = dict(left.terms)
    for term, number in right.terms:
        terms[term] = terms.get(term, 0) + factor * number
    kept = tuple((term, number) for term, number in terms.items() if number)
    return Sum(terms=kept, constant=left.constant + factor * right.constant)


def tidy(expr: Expr) -> Expr:
    """The expression with sums collected, and divisions and remainders of sums by constants taken apart."""
    return fold(transform(fold(expr), _tidied))


def _tidied(node: Expr) -> Expr | None:
    match node:
        case Apply(op="mod", args=(inner, Const(value=int() as by))) if by > 0:
            whole = sum_of(inner)
            rest = Sum(
                terms=tuple((term, number % by) for term, number in whole.terms if number % by),
                constant=whole.constant % by,
            )
            if not rest.terms:
                return Const(value=rest.constant)
            return build.mod(rest.expr(), by) if len(rest.terms) < len(whole.terms) else None
        case Apply(op="floordiv", args=(inner, Const(value=int() as by))) if by > 0:
            return _divided(sum_of(inner), by)
        case Apply(op="lt" | "le" | "gt" | "ge" | "eq" | "ne", args=(left, right)) if (
            left.dtype == right.dtype == "int"
        ):
            both = _plus(sum_of(left), sum_of(right), -1)
            return None if both.terms else build.apply(node.op, both.constant, 0)
        case Apply(op="add" | "sub" | "neg" | "mul", dtype="int"):
            return sum_of(node).expr()
        case _:
            return None


def _divided(whole: Sum, by: int) -> Expr | None:
    """The quotient of a sum: multiples of the divisor leave it, and common factors are shortened."""
    out = tuple((term, number // by) for term, number in whole.terms if number % by == 0)
    rest = tuple((term, number) for term, number in whole.terms if number % by)
    steps, left = divmod(whole.constant, by)
    outside = Sum(terms=out, constant=steps)
    if not rest:
        return outside.expr()
    common = math.gcd(by, *(number for _, number in rest))
    inner = Sum(terms=tuple((term, number // common) for term, number in rest), constant=left // common)
    if not out and common == 1 and steps == 0:
        return None
    quotient = build.floordiv(inner.expr(), by // common)
    return build.add(quotient, outside.expr()) if out or steps else quotient
