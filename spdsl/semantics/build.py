"""Writing expressions by hand, tersely: ``add(Index(name="q"), 1)``.

Plain numbers become constants; ints mixed with floats get their ``float``.  Nothing is simplified here: see `fold`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeAlias

from spdsl.diagnostics import Span
from spdsl.semantics.nodes import Apply, Const, Dtype, Expr
from spdsl.semantics.ops import OPS

Operand: TypeAlias = "Expr | bool | int | float"

TRUE = Const(value=True)
FALSE = Const(value=False)


def lift(operand: Operand) -> Expr:
    """A Python number as a constant; expressions as they are."""
    return Const(value=operand) if isinstance(operand, (bool, int, float)) else operand


def to_float(expr: Expr) -> Expr:
    """An int or bool as a float; a float as it is."""
    match expr:
        case Const(value=bool() | int() as value):
            return Const(value=float(value), span=expr.span)
        case _ if expr.dtype == "float":
            return expr
        case _ if expr.dtype == "bool":
            return Apply(op="where", args=(expr, Const(value=1.0), Const(value=0.0)), dtype="float", span=expr.span)
        case _:
            return Apply(op="float", args=(expr,), dtype="float", span=expr.span)


def apply(op: str, *operands: Operand, span: Span | None = None) -> Expr:
    """An operation of `OPS` on well-typed operands, its type by the signature."""
    args = tuple(lift(operand) for operand in operands)
    dtypes = {arg.dtype for arg in args}
    dtype: Dtype
    match OPS[op].signature:
        case "arith":
            dtype = "float" if "float" in dtypes else "int"
            args = tuple(to_float(arg) for arg in args) if dtype == "float" else args
        case "divide" | "real":
            dtype = "float"
            args = args if op == "float" else tuple(to_float(arg) for arg in args)
        case "int" | "round":
            dtype = "int"
        case "compare" | "equal":
            dtype = "bool"
            args = tuple(to_float(arg) for arg in args) if "float" in dtypes else args
        case "where":
            dtype = args[1].dtype
            if "float" in (args[1].dtype, args[2].dtype):
                dtype = "float"
                args = (args[0], to_float(args[1]), to_float(args[2]))
        case _:
            dtype = "bool"
    return Apply(op=op, args=args, dtype=dtype, span=span)


def add(a: Operand, b: Operand) -> Expr:
    """``a + b``."""
    return apply("add", a, b)


def sub(a: Operand, b: Operand) -> Expr:
    """``a - b``."""
    return apply("sub", a, b)


def mul(a: Operand, b: Operand) -> Expr:
    """``a * b``."""
    return apply("mul", a, b)


def floordiv(a: Operand, b: Operand) -> Expr:
    """``a // b`` of ints."""
    return apply("floordiv", a, b)


def ceildiv(a: Operand, b: Operand) -> Expr:
    """The quotient of ints rounded up, for a positive divisor."""
    return floordiv(add(a, sub(b, 1)), b)


def mod(a: Operand, b: Operand) -> Expr:
    """``a % b`` of ints."""
    return apply("mod", a, b)


def conj(*parts: Expr) -> Expr:
    """All of the parts; true for none."""
    whole: Expr | None = None
    for part in parts:
        whole = part if whole is None else apply("and", whole, part, span=whole.span)
    return TRUE if whole is None else whole


def disj(*parts: Expr) -> Expr:
    """Any of the parts; false for none."""
    whole: Expr | None = None
    for part in parts:
        whole = part if whole is None else apply("or", whole, part, span=whole.span)
    return FALSE if whole is None else whole


def place(expr: Expr, span: Span | None) -> Expr:
    """The same expression, standing elsewhere in the text."""
    return replace(expr, span=span)
