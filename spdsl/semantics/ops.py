"""The operations of the language, in one table.

Each layer that gives them a meaning (isl, intervals, torch, Triton text) keeps a table with the same keys, and a test
compares the keys.  ``fold`` is the meaning on Python numbers.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """An operation: how many arguments, its types, and what it does to numbers.

    ``signature`` names the rule by which the checker types it: ``arith`` (numbers; int only if all are), ``int`` (ints
    to int), ``divide`` (numbers to float), ``real`` (numbers to float), ``round`` (numbers to int), ``compare``
    (numbers to bool), ``equal`` (alike to bool), ``logic`` (bools), ``test`` (an int to bool), ``where`` (bool, alike,
    alike).
    """

    name: str
    arity: int
    signature: str
    fold: Callable[..., Any]
    symbol: str = ""


def bitlen(x: int) -> int:
    """Bits needed to write a non-negative int: 0 → 0, 1 → 1, 2 and 3 → 2; of a negative int, those of its magnitude."""
    return abs(x).bit_length()


def is_pow2(x: int) -> bool:
    """Whether x is 1, 2, 4, …; false for 0 and below."""
    return x > 0 and x & (x - 1) == 0


def isqrt(x: int) -> int:
    """The floor of the square root; 0 for negative ints."""
    return math.isqrt(x) if x > 0 else 0


def power(x: float, y: float) -> float:
    """``x ** y``; an int to a negative power is a float."""
    result: float = x**y
    return result


OPS: dict[str, Op] = {
    op.name: op
    for op in (
        Op(name="add", arity=2, signature="arith", fold=operator.add, symbol="+"),
        Op(name="sub", arity=2, signature="arith", fold=operator.sub, symbol="-"),
        Op(name="mul", arity=2, signature="arith", fold=operator.mul, symbol="*"),
        Op(name="div", arity=2, signature="divide", fold=operator.truediv, symbol="/"),
        Op(name="floordiv", arity=2, signature="int", fold=operator.floordiv, symbol="//"),
        Op(name="mod", arity=2, signature="int", fold=operator.mod, symbol="%"),
        Op(name="pow", arity=2, signature="arith", fold=power, symbol="**"),
        Op(name="neg", arity=1, signature="arith", fold=operator.neg, symbol="-"),
        Op(name="abs", arity=1, signature="arith", fold=abs),
        Op(name="min", arity=2, signature="arith", fold=min),
        Op(name="max", arity=2, signature="arith", fold=max),
        Op(name="isqrt", arity=1, signature="int", fold=isqrt),
        Op(name="is_pow2", arity=1, signature="test", fold=is_pow2),
        Op(name="bitlen", arity=1, signature="int", fold=bitlen),
        Op(name="floor", arity=1, signature="round", fold=math.floor),
        Op(name="ceil", arity=1, signature="round", fold=math.ceil),
        Op(name="sqrt", arity=1, signature="real", fold=math.sqrt),
        Op(name="exp", arity=1, signature="real", fold=math.exp),
        Op(name="log", arity=1, signature="real", fold=math.log),
        Op(name="float", arity=1, signature="real", fold=float),
        Op(name="lt", arity=2, signature="compare", fold=operator.lt, symbol="<"),
        Op(name="le", arity=2, signature="compare", fold=operator.le, symbol="<="),
        Op(name="gt", arity=2, signature="compare", fold=operator.gt, symbol=">"),
        Op(name="ge", arity=2, signature="compare", fold=operator.ge, symbol=">="),
        Op(name="eq", arity=2, signature="equal", fold=operator.eq, symbol="=="),
        Op(name="ne", arity=2, signature="equal", fold=operator.ne, symbol="!="),
        Op(name="and", arity=2, signature="logic", fold=lambda a, b: a and b, symbol="and"),
        Op(name="or", arity=2, signature="logic", fold=lambda a, b: a or b, symbol="or"),
        Op(name="not", arity=1, signature="logic", fold=operator.not_, symbol="not"),
        Op(name="where", arity=3, signature="where", fold=lambda c, a, b: a if c else b),
    )
}
"""All operations by name.

``floordiv`` and ``mod`` floor; ``clamp(x, a, b)`` is ``min(max(x, a), b)`` and ``in`` an ``or`` of ``eq``.
"""
