"""Interval arithmetic on tensors: what an operation can give when its arguments range over intervals.

From: ranges of the arguments.  To: a range that holds every result.  Ranges may be wider than the truth, never
narrower; they treat arguments as independent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from spdsl.runtime.evaluate import TORCH_OPS
from spdsl.semantics.nodes import Dtype

FAR = 1 << 60
"""Stands for an unbounded int; sums of a few stay inside int64."""

_SLACK = 1e-12
"""Relative widening where a float function is not rounded monotonically."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Numbers ``lo <= x <= hi``, both int64 or both float64; a NaN is taken as able to be anything."""

    lo: Tensor
    hi: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """A condition over a set of points: ``may`` false says it holds nowhere, ``must`` true says it holds everywhere."""

    may: Tensor
    must: Tensor


Bounded: TypeAlias = Range | Truth


def truth_shape(truth: Truth, rows: slice, columns: slice) -> tuple[int, int, int, int]:
    """The shape ``[batch or 1, heads or 1, rows, columns]`` of a block of tiles."""
    shapes = torch.broadcast_shapes(truth.may.shape, truth.must.shape, (1, 1, 1, 1))
    return shapes[0], shapes[1], rows.stop - rows.start, columns.stop - columns.start


def exactly(value: Tensor) -> Bounded:
    """The bounds of one known value."""
    if value.dtype == torch.bool:
        return Truth(may=value, must=value)
    return _repaired(value, value)


def extremes(values: Tensor, dim: int) -> Bounded:
    """The bounds of the values along a dimension, which is removed."""
    if values.dtype == torch.bool:
        return Truth(may=values.any(dim), must=values.all(dim))
    return _repaired(values.amin(dim), values.amax(dim))


def unknown(dtype: Dtype, device: torch.device) -> Bounded:
    """Nothing is known."""
    if dtype == "bool":
        return Truth(may=torch.tensor(True, device=device), must=torch.tensor(False, device=device))
    far = float("inf") if dtype == "float" else FAR
    limit = torch.tensor(far, device=device, dtype=_kind(dtype))
    return Range(lo=-limit, hi=limit)


def joined(a: Bounded, b: Bounded) -> Bounded:
    """What holds if either bounds the value."""
    match a, b:
        case Range(), Range():
            return _repaired(torch.minimum(a.lo, b.lo), torch.maximum(a.hi, b.hi))
        case Truth(), Truth():
            return Truth(may=a.may | b.may, must=a.must & b.must)
        case _:
            raise TypeError("a bool and a number have no common bounds")


def apply_range(op: str, args: list[Bounded], dtype: Dtype) -> Bounded:
    """The bounds of an operation."""
    mixed = {arg.lo.dtype for arg in args if isinstance(arg, Range)}
    if dtype == "float" or len(mixed) > 1:
        args = [_as_float(arg) for arg in args]
    result = RANGE_OPS[op](*args)
    return _repaired(result.lo, result.hi) if isinstance(result, Range) else result


def _kind(dtype: Dtype) -> torch.dtype:
    return torch.float64 if dtype == "float" else torch.int64


def _as_float(x: Bounded) -> Bounded:
    return Range(lo=x.lo.double(), hi=x.hi.double()) if isinstance(x, Range) else x


def _repaired(lo: Tensor, hi: Tensor) -> Range:
    if lo.is_floating_point():
        unclear = lo.isnan() | hi.isnan()
        return Range(lo=torch.where(unclear, -torch.inf, lo), hi=torch.where(unclear, torch.inf, hi))
    return Range(lo=lo, hi=hi)


def _widened(lo: Tensor, hi: Tensor) -> Range:
    if not lo.is_floating_point():
        return Range(lo=lo, hi=hi)
    return Range(lo=lo - lo.abs() * _SLACK, hi=hi + hi.abs() * _SLACK)


def _hull(*corners: Tensor) -> Range:
    stack = torch.stack(torch.broadcast_tensors(*corners))
    return Range(lo=stack.amin(0), hi=stack.amax(0))


# ---------------------------------------------------------------- arithmetic


def _add(x: Range, y: Range) -> Range:
    return Range(lo=x.lo + y.lo, hi=x.hi + y.hi)


def _sub(x: Range, y: Range) -> Range:
    return Range(lo=x.lo - y.hi, hi=x.hi - y.lo)


def _mul(x: Range, y: Range) -> Range:
    return _hull(*(_product(a, b) for a in (x.lo, x.hi) for b in (y.lo, y.hi)))


def _product(a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point():
        return a * b
    size = a.double() * b.double()
    return torch.where(size.abs() < FAR, a * b, torch.where(size > 0, FAR, -FAR))


def _div(x: Range, y: Range) -> Range:
    corners = _hull(*(a / b for a in (x.lo, x.hi) for b in (y.lo, y.hi)))
    crosses = (y.lo <= 0) & (y.hi >= 0)
    return Range(lo=torch.where(crosses, -torch.inf, corners.lo), hi=torch.where(crosses, torch.inf, corners.hi))


def _floordiv(x: Range, y: Range) -> Range:
    corners = _hull(*(_apply("floordiv", a, b) for a in (x.lo, x.hi) for b in (y.lo, y.hi)))
    # No quotient of ints is larger than the dividend; a divisor of zero counts as one.
    largest = torch.maximum(x.lo.abs(), x.hi.abs())
    crosses = (y.lo <= 0) & (y.hi >= 0)
    return Range(lo=torch.where(crosses, -largest, corners.lo), hi=torch.where(crosses, largest, corners.hi))


def _mod(x: Range, y: Range) -> Range:
    one_period = (y.lo == y.hi) & (y.lo > 0) & (_apply("floordiv", x.lo, y.lo) == _apply("floordiv", x.hi, y.lo))
    below = (x.lo >= 0) & (x.hi < y.lo)
    limit = torch.maximum(y.lo.abs(), y.hi.abs())
    lo, hi = torch.where(y.lo > 0, 0, -limit), torch.where(y.lo > 0, y.hi - 1, limit)
    exact = one_period | below
    return Range(
        lo=torch.where(exact, _apply("mod", x.lo, y.lo), lo), hi=torch.where(exact, _apply("mod", x.hi, y.lo), hi)
    )


def _pow(x: Range, y: Range) -> Range:
    corners = _hull(*(_apply("pow", a, b) for a in (x.lo, x.hi) for b in (y.lo, y.hi)))
    # A power is monotonic in each argument where the base is not negative.
    known = x.lo >= 0 if not x.lo.is_floating_point() else x.lo > 0
    far = torch.inf if corners.lo.is_floating_point() else FAR
    return _widened(torch.where(known, corners.lo, -far), torch.where(known, corners.hi, far))


def _neg(x: Range) -> Range:
    return Range(lo=-x.hi, hi=-x.lo)


def _abs(x: Range) -> Range:
    lo, hi = x.lo.abs(), x.hi.abs()
    crosses = (x.lo <= 0) & (x.hi >= 0)
    return Range(lo=torch.where(crosses, 0, torch.minimum(lo, hi)), hi=torch.maximum(lo, hi))


def _min(x: Range, y: Range) -> Range:
    return Range(lo=torch.minimum(x.lo, y.lo), hi=torch.minimum(x.hi, y.hi))


def _max(x: Range, y: Range) -> Range:
    return Range(lo=torch.maximum(x.lo, y.lo), hi=torch.maximum(x.hi, y.hi))


def _rising(op: str) -> Callable[[Range], Range]:
    """A function that never falls, in ints."""
    return lambda x: Range(lo=_apply(op, x.lo), hi=_apply(op, x.hi))


def _rising_float(op: str) -> Callable[[Range], Range]:
    return lambda x: _widened(_apply(op, x.lo), _apply(op, x.hi))


def _rounded(op: str) -> Callable[[Range], Range]:
    def function(x: Range) -> Range:
        if not x.lo.is_floating_point():
            return x
        return Range(lo=_apply(op, x.lo.clamp(-FAR, FAR)), hi=_apply(op, x.hi.clamp(-FAR, FAR)))

    return function


def _apply(op: str, *args: Tensor) -> Tensor:
    result = TORCH_OPS[op](*args)
    assert isinstance(result, Tensor)
    return result


# ---------------------------------------------------------------- conditions


def _is_pow2(x: Range) -> Truth:
    least = x.lo.clamp(min=1)
    power = torch.bitwise_left_shift(torch.ones_like(least), _apply("bitlen", least - 1))
    single = (x.lo == x.hi) & _apply("is_pow2", x.lo)
    return Truth(may=(x.hi >= 1) & (power <= x.hi), must=single | (x.lo == 1) & (x.hi == 2))


def _lt(x: Range, y: Range) -> Truth:
    return Truth(may=x.lo < y.hi, must=x.hi < y.lo)


def _le(x: Range, y: Range) -> Truth:
    return Truth(may=x.lo <= y.hi, must=x.hi <= y.lo)


def _eq(x: Bounded, y: Bounded) -> Truth:
    match x, y:
        case Truth(), Truth():
            may = x.may & y.may | ~x.must & ~y.must
            return Truth(may=may, must=x.must & y.must | ~x.may & ~y.may)
        case Range(), Range():
            overlap = (x.lo <= y.hi) & (y.lo <= x.hi)
            return Truth(may=overlap, must=(x.lo == x.hi) & (y.lo == y.hi) & (x.lo == y.lo))
        case _:
            raise TypeError("a bool is not compared with a number")


def _not(x: Truth) -> Truth:
    return Truth(may=~x.must, must=~x.may)


def _and(x: Truth, y: Truth) -> Truth:
    return Truth(may=x.may & y.may, must=x.must & y.must)


def _or(x: Truth, y: Truth) -> Truth:
    return Truth(may=x.may | y.may, must=x.must | y.must)


def _where(c: Truth, x: Bounded, y: Bounded) -> Bounded:
    match x, y, joined(x, y):
        case Range(), Range(), Range() as either:
            return Range(lo=_choose(c, x.lo, y.lo, either.lo), hi=_choose(c, x.hi, y.hi, either.hi))
        case Truth(), Truth(), Truth() as either:
            return Truth(may=_choose(c, x.may, y.may, either.may), must=_choose(c, x.must, y.must, either.must))
        case _:
            raise TypeError("the branches of an `if` are of one kind")


def _choose(c: Truth, yes: Tensor, no: Tensor, either: Tensor) -> Tensor:
    return torch.where(c.must, yes, torch.where(c.may, either, no))


RANGE_OPS: dict[str, Callable[..., Bounded]] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "floordiv": _floordiv,
    "mod": _mod,
    "pow": _pow,
    "neg": _neg,
    "abs": _abs,
    "min": _min,
    "max": _max,
    "isqrt": _rising("isqrt"),
    "is_pow2": _is_pow2,
    "bitlen": lambda x: _rising("bitlen")(_abs(x)),
    "floor": _rounded("floor"),
    "ceil": _rounded("ceil"),
    "sqrt": _rising_float("sqrt"),
    "exp": _rising_float("exp"),
    "log": _rising_float("log"),
    "float": lambda x: x,
    "lt": _lt,
    "le": _le,
    "gt": lambda x, y: _lt(y, x),
    "ge": lambda x, y: _le(y, x),
    "eq": _eq,
    "ne": lambda x, y: _not(_eq(x, y)),
    "and": _and,
    "or": _or,
    "not": _not,
    "where": _where,
}
"""The bounds of each operation of `spdsl.semantics.ops.OPS`."""
