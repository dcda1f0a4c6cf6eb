"""A small notation for expressions: ``q - k < 64`` builds the nodes that the checker would."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from spdsl.semantics.nodes import Apply, Const, Dtype, Expr, Extent, FreeParam, Index, Load

Operand: TypeAlias = "Term | int | bool"


@dataclass(frozen=True, eq=False)
class Term:
    """An expression with operators; comparisons are methods where Python's would not do."""

    expr: Expr

    @property
    def variable(self) -> str:
        """The variable of a free parameter."""
        assert isinstance(self.expr, FreeParam)
        return self.expr.variable

    def __add__(self, other: Operand) -> Term:
        return apply("add", self, other)

    def __sub__(self, other: Operand) -> Term:
        return apply("sub", self, other)

    def __rsub__(self, other: Operand) -> Term:
        return apply("sub", other, self)

    def __mul__(self, other: Operand) -> Term:
        return apply("mul", self, other)

    __rmul__ = __mul__
    __radd__ = __add__

    def __floordiv__(self, other: Operand) -> Term:
        return apply("floordiv", self, other)

    def __mod__(self, other: Operand) -> Term:
        return apply("mod", self, other)

    def __neg__(self) -> Term:
        return apply("neg", self)

    def __abs__(self) -> Term:
        return apply("abs", self)

    def __lt__(self, other: Operand) -> Term:
        return apply("lt", self, other, dtype="bool")

    def __le__(self, other: Operand) -> Term:
        return apply("le", self, other, dtype="bool")

    def __gt__(self, other: Operand) -> Term:
        return apply("gt", self, other, dtype="bool")

    def __ge__(self, other: Operand) -> Term:
        return apply("ge", self, other, dtype="bool")

    def eq(self, other: Operand) -> Term:
        return apply("eq", self, other, dtype="bool")

    def ne(self, other: Operand) -> Term:
        return apply("ne", self, other, dtype="bool")

    def __and__(self, other: Operand) -> Term:
        return apply("and", self, other, dtype="bool")

    def __or__(self, other: Operand) -> Term:
        return apply("or", self, other, dtype="bool")

    def __invert__(self) -> Term:
        return apply("not", self, dtype="bool")


def _expr(value: Operand) -> Expr:
    return value.expr if isinstance(value, Term) else Const(value=value)


def apply(op: str, *args: Operand, dtype: Dtype = "int") -> Term:
    return Term(Apply(op=op, args=tuple(_expr(a) for a in args), dtype=dtype))


def minimum(a: Operand, b: Operand) -> Term:
    return apply("min", a, b)


def maximum(a: Operand, b: Operand) -> Term:
    return apply("max", a, b)


def where(condition: Term, chosen: Operand, other: Operand) -> Term:
    return apply("where", condition, chosen, other, dtype=_expr(chosen).dtype)


def load(table: str, *indices: Operand, dtype: Dtype = "int") -> Term:
    return Term(Load(table=table, dtype=dtype, indices=tuple(_expr(i) for i in indices)))


def parameter(name: str, low: int | None = None) -> Term:
    return Term(FreeParam(name=name, low=low))


q, k, h, g, b = (Term(Index(name=name)) for name in "qkhgb")
n, nq, q_start = (Term(Extent(name=name)) for name in ("n", "nq", "q_start"))
causal = k <= q
