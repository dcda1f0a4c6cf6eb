"""Interval analysis of number expressions: from an expression and what is known of its leaves to (low, high).

Sound, not tight: every value the expression can take lies in the interval.  A side of None is open.  Says nothing about
relations between indices (``k <= q``); that is the analysis' business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from spdsl.semantics.nodes import Apply, Const, Coord, Expr, Extent, FreeParam, Index, Load, Noise, Param, Reduce, Top
from spdsl.semantics.ops import bitlen, isqrt
from spdsl.semantics.rewrite import children, walk

Number: TypeAlias = "int | float"
Range: TypeAlias = "tuple[Number | None, Number | None]"

UNKNOWN: Range = (None, None)
NATURAL: Range = (0, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Ranges of leaves.  Heads, groups, batches, tiles and keys count from 0; queries do unless said otherwise."""

    indices: Mapping[str, Range] = field(default_factory=dict)
    extents: Mapping[str, Range] = field(default_factory=dict)
    tables: Mapping[str, Range] = field(default_factory=dict)
    params: Mapping[str, Range] = field(default_factory=dict)
    largest: int | None = None  # magnitude of free parameters


def interval(expr: Expr, facts: Facts | None = None) -> Range:
    """The range of an int or float expression; of a bool, a part of (0, 1)."""
    return ranges(expr, facts or Facts())[id(expr)]


def ranges(expr: Expr, facts: Facts) -> dict[int, Range]:
    """The ranges of all parts of an expression, by their identity."""
    found: dict[int, Range] = {}
    for node in walk(expr):
        found[id(node)] = _range(node, [found[id(part)] for part in children(node)], facts)
    return found


def is_non_negative(expr: Expr, facts: Facts | None = None) -> bool:
    """Whether the expression is proved to be at least 0, so that truncating and flooring division agree."""
    low, _ = interval(expr, facts)
    return low is not None and low >= 0


def _range(node: Expr, parts: list[Range], facts: Facts) -> Range:
    match node:
        case Const(value=value):
            return (value, value) if not (isinstance(value, float) and math.isnan(value)) else UNKNOWN
        case Index(name=name):
            return facts.indices.get(name, NATURAL)
        case Extent(name=name):
            return facts.extents.get(name, UNKNOWN if name == "q_start" else NATURAL)
        case Param(name=name):
            return (0, 1) if node.dtype == "bool" else facts.params.get(name, UNKNOWN)
        case FreeParam(low=low, high=high):
            if facts.largest is None:
                return (low, high)
            most = facts.largest
            return (-most if low is None else max(low, -most), most if high is None else min(high, most))
        case Coord():
            return UNKNOWN
        case Load(table=table):
            return (0, 1) if node.dtype == "bool" else facts.tables.get(table, UNKNOWN)
        case Noise():
            return (0.0, 1.0)
        case Top():
            return (0, 1)
        case Reduce(kind=kind):
            return parts[0] if kind in ("min", "max", "mean") else (0, 1) if kind in ("any", "all") else _sum(parts[0])
        case Apply(op=op):
            return (0, 1) if node.dtype == "bool" else _RULES[op](*parts)


def _sum(part: Range) -> Range:
    low, high = part
    return (0 if low is not None and low >= 0 else None, 0 if high is not None and high <= 0 else None)


def _plus(a: Number | None, b: Number | None) -> Number | None:
    return None if a is None or b is None else a + b


def _minus(a: Number | None) -> Number | None:
    return None if a is None else -a


def _add(a: Range, b: Range) -> Range:
    return (_plus(a[0], b[0]), _plus(a[1], b[1]))


def _neg(a: Range) -> Range:
    return (_minus(a[1]), _minus(a[0]))


def _sub(a: Range, b: Range) -> Range:
    return _add(a, _neg(b))


def _ends(a: Range) -> tuple[float, float]:
    """The range with infinities for open sides."""
    return (-math.inf if a[0] is None else a[0], math.inf if a[1] is None else a[1])


def _close(low: Number, high: Number) -> Range:
    return (None if math.isinf(low) or low != low else low, None if math.isinf(high) or high != high else high)


def _times(a: Number, b: Number) -> Number:
    return 0 if a == 0 or b == 0 else a * b


def _mul(a: Range, b: Range) -> Range:
    products = [_times(x, y) for x in _ends(a) for y in _ends(b)]
    return _close(min(products), max(products))


def _quotient(a: Range, b: Range, divide: Callable[[Number, Number], Number]) -> Range:
    """Division by a divisor of known sign that is not 0."""
    if b[0] is not None and b[0] > 0:
        pass
    elif b[1] is not None and b[1] < 0:
        a, b = _neg(a), _neg(b)
    else:
        return UNKNOWN
    quotients: list[Number] = []
    for x in _ends(a):
        for y in _ends(b):
            if math.isinf(x):
                # An infinite numerator over any positive divisor.
                quotients.append(x)
            elif math.isinf(y):
                quotients.append(0 if x >= 0 else divide(-1, 1) if divide is _floor else 0)
            else:
                quotients.append(divide(x, y))
    return _close(min(quotients), max(quotients))


def _floor(x: Number, y: Number) -> Number:
    return x // y


def _true(x: Number, y: Number) -> Number:
    return x / y


def _mod(a: Range, b: Range) -> Range:
    if b[0] is not None and b[0] > 0:
        high = None if b[1] is None else b[1] - 1
        if a[0] is not None and a[0] >= 0 and a[1] is not None:
            if a[1] < b[0]:
                return a
            high = a[1] if high is None else min(a[1], high)
        return (0, high)
    if b[1] is not None and b[1] < 0:
        return (None if b[0] is None else b[0] + 1, 0)
    return UNKNOWN


def _pow(a: Range, b: Range) -> Range:
    if a[0] is None or a[0] < 0 or b[0] is None or b[0] < 0:
        return (0, None) if a[0] is not None and a[0] >= 0 else UNKNOWN
    low = a[0] ** min(b[0], 64) if a[0] >= 1 else 0
    if a[1] is None or b[1] is None or b[1] > 64 or a[1] > 2**31:
        return (low, None)
    return (low, max(a[1], 1) ** b[1])


def _abs(a: Range) -> Range:
    low, high = _ends(a)
    if low >= 0:
        return a
    if high <= 0:
        return _neg(a)
    return _close(0, max(-low, high))


def _min(a: Range, b: Range) -> Range:
    (al, ah), (bl, bh) = _ends(a), _ends(b)
    return _close(min(al, bl), min(ah, bh))


def _max(a: Range, b: Range) -> Range:
    (al, ah), (bl, bh) = _ends(a), _ends(b)
    return _close(max(al, bl), max(ah, bh))


def _monotone(function: Callable[[Number], Number]) -> Callable[[Range], Range]:
    def rule(a: Range) -> Range:
        return (None if a[0] is None else function(a[0]), None if a[1] is None else function(a[1]))

    return rule


def _bitlen(a: Range) -> Range:
    low, high = _abs(a)
    return (bitlen(int(low or 0)), None if high is None else bitlen(int(high)))


def _isqrt(a: Range) -> Range:
    return (0 if a[0] is None else isqrt(int(a[0])), None if a[1] is None else isqrt(int(a[1])))


def _sqrt(a: Range) -> Range:
    return (math.sqrt(max(a[0] or 0, 0)), None if a[1] is None or a[1] < 0 else math.sqrt(a[1]))


def _exp(a: Range) -> Range:
    fits = a[1] is not None and a[1] < 700
    return (
        math.exp(min(a[0], 700)) if a[0] is not None else 0.0,
        math.exp(a[1]) if fits and a[1] is not None else None,
    )


def _log(a: Range) -> Range:
    return (math.log(a[0]) if a[0] and a[0] > 0 else None, math.log(a[1]) if a[1] and a[1] > 0 else None)


def _where(_: Range, a: Range, b: Range) -> Range:
    return (_min(a, b)[0], _max(a, b)[1])


_RULES: dict[str, Callable[..., Range]] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": lambda a, b: _quotient(a, b, _true),
    "floordiv": lambda a, b: _quotient(a, b, _floor),
    "mod": _mod,
    "pow": _pow,
    "neg": _neg,
    "abs": _abs,
    "min": _min,
    "max": _max,
    "isqrt": _isqrt,
    "bitlen": _bitlen,
    "floor": _monotone(math.floor),
    "ceil": _monotone(math.ceil),
    "sqrt": _sqrt,
    "exp": _exp,
    "log": _log,
    "float": lambda a: a,
    "where": _where,
}
"""A rule for each operation of `OPS` that gives a number."""
