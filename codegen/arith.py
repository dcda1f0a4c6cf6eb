"""Small constructors of int and bool expressions, with the foldings that keep generated bounds short."""

from __future__ import annotations

from spdsl.semantics.nodes import Apply, Const, Expr, Index
from spdsl.semantics.ops import OPS


def number(value: int) -> Const:
    """An int literal."""
    return Const(value=value)


def index(name: str) -> Index:
    """The index variable ``name``."""
    return Index(name=name)


def add(left: Expr, right: Expr) -> Expr:
    """``left + right``."""
    if right == number(0):
        return left
    return right if left == number(0) else _int("add", left, right)


def sub(left: Expr, right: Expr) -> Expr:
    """``left - right``."""
    return left if right == number(0) else _int("sub", left, right)


def mul(left: Expr, right: Expr) -> Expr:
    """``left * right``."""
    if right == number(1):
        return left
    return right if left == number(1) else _int("mul", left, right)


def floordiv(left: Expr, right: Expr) -> Expr:
    """``left // right``, floored."""
    return left if right == number(1) else _int("floordiv", left, right)


def mod(left: Expr, right: Expr) -> Expr:
    """``left % right``, with the sign of ``right``."""
    return number(0) if right == number(1) else _int("mod", left, right)


def minimum(left: Expr, right: Expr) -> Expr:
    """The smaller of the two."""
    return left if left == right else _int("min", left, right)


def maximum(left: Expr, right: Expr) -> Expr:
    """The larger of the two."""
    return left if left == right else _int("max", left, right)


def compare(op: str, left: Expr, right: Expr) -> Expr:
    """A comparison by the name of its operation."""
    return Apply(op=op, args=(left, right), dtype="bool")


def both(left: Expr | None, right: Expr | None) -> Expr | None:
    """``left and right``; None means true."""
    left = None if left == Const(value=True) else left
    right = None if right == Const(value=True) else right
    if left is None or right is None:
        return right if left is None else left
    return Apply(op="and", args=(left, right), dtype="bool")


def either(left: Expr, right: Expr) -> Expr:
    """``left or right``."""
    return Apply(op="or", args=(left, right), dtype="bool")


def choose(condition: Expr, left: Expr, right: Expr) -> Expr:
    """``left`` where ``condition`` holds, else ``right``."""
    return left if left == right else Apply(op="where", args=(condition, left, right), dtype="int")


def ceildiv(left: Expr, divisor: int) -> Expr:
    """The least number of parts of ``divisor`` that hold ``left``."""
    return floordiv(add(left, number(divisor - 1)), number(divisor))


def _int(op: str, left: Expr, right: Expr) -> Expr:
    if isinstance(left, Const) and isinstance(right, Const):
        return Const(value=OPS[op].fold(left.value, right.value))
    return Apply(op=op, args=(left, right), dtype="int")
