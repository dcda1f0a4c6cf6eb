"""Whether a condition may hold anywhere in a tile, from the ends of the tile alone: a scalar of the kernel.

From: a condition, a place, and ends of the names that vary inside of a tile.  To: a condition on scalars that is true
wherever the given one holds at some point (`may`), or false wherever it fails at some point (`must`).  What is not
understood may hold, and need not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from spdsl.codegen.chains.affine import sum_of, tidy
from spdsl.semantics import build
from spdsl.semantics.nodes import Apply, Const, Expr, Extent, Index, Param

Ends = tuple[Expr, Expr]


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """``ends`` of names that vary, both included; other names are scalars, and of numbers that the kernel has read
    those for which ``scalar`` holds.  ``inside`` opens a stage that is a set: the condition of which it is ``any``,
    with its members' ends, or None."""

    ends: Mapping[str, Ends]
    inside: Callable[[Expr], tuple[Expr, Intervals] | None]
    scalar: Callable[[str], bool] = lambda name: False  # noqa: ARG005  # none is known to be one

    def may(self, expr: Expr) -> Expr:
        """True wherever the condition holds at some point."""
        return self._decided(expr, possible=True)

    def must(self, expr: Expr) -> Expr:
        """True only where the condition holds at every point."""
        return self._decided(expr, possible=False)

    def _decided(self, expr: Expr, *, possible: bool) -> Expr:
        unknown = Const(value=possible)
        match expr:
            case Const():
                return expr
            case Apply(op="and" | "or" as op, args=args):
                return build.apply(op, *(self._decided(arg, possible=possible) for arg in args))
            case Apply(op="not", args=(arg,)):
                return build.apply("not", self._decided(arg, possible=not possible))
            case Apply(op="lt" | "le" | "gt" | "ge" | "eq" as op, args=(left, right)) if left.dtype == "int":
                difference = self.range(build.sub(left, right))
                return unknown if difference is None else _compared(op, difference, possible=possible)
            case _:
                opened = self.inside(expr)
                if opened is None:
                    return unknown
                inner, intervals = opened
                return intervals.may(inner) if possible else intervals.must(inner)

    def range(self, expr: Expr) -> Ends | None:
        """The ends of an int expression; None where nothing is known."""
        whole = sum_of(tidy(expr))
        low: Expr = Const(value=whole.constant)
        high: Expr = low
        for term, factor in whole.terms:
            ends = self._term(term)
            if ends is None:
                return None
            first, last = ends if factor > 0 else (ends[1], ends[0])
            low, high = build.add(low, build.mul(first, factor)), build.add(high, build.mul(last, factor))
        return low, high

    def _term(self, expr: Expr) -> Ends | None:
        match expr:
            case Index(name=name):
                return self.ends.get(name, (expr, expr))
            case Extent() | Const():
                return expr, expr
            case Param(name=name) if self.scalar(name):
                return expr, expr
            case Apply(op="floordiv", args=(inner, Const(value=int() as by))) if by > 0:
                ends = self.range(inner)
                return None if ends is None else (build.floordiv(ends[0], by), build.floordiv(ends[1], by))
            case Apply(op="min" | "max" as op, args=(left, right)):
                one, two = self.range(left), self.range(right)
                if one is None or two is None:
                    return None
                return build.apply(op, one[0], two[0]), build.apply(op, one[1], two[1])
            case _:
                return None


def _compared(op: str, difference: Ends, *, possible: bool) -> Expr:
    """A comparison of a difference with 0, at its better or at its worse end."""
    low, high = difference
    if op == "eq":
        joined = "and"
        ends = (("le", low), ("ge", high)) if possible else (("ge", low), ("le", high))
        return build.apply(joined, *(build.apply(one, end, 0) for one, end in ends))
    less = op in ("lt", "le")
    return build.apply(op, low if less == possible else high, 0)
