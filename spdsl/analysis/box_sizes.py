"""How large the boxes of a grid should be on every axis: from the keys that each query touches to powers of two.

A box of queries computes every box of keys that it touches, so the pairs computed are a product over the axes, and all
ways to part a tile among the axes are tried.  Sizes change how much is computed, never what.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod

from spdsl.analysis.tiles import Interval
from spdsl.semantics.fold import fold
from spdsl.semantics.nodes import Apply, Const, Expr, FreeParam, Index, Load
from spdsl.semantics.ops import OPS
from spdsl.semantics.rewrite import transform, walk

MOST = 4096
"""Places of an axis that are looked at; longer axes are judged by their beginning."""

EXAMPLE = 3
"""Stands for inputs and parameters of a call where sizes are chosen: those on grids are small windows mostly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """The places of an axis, and for each of them as a query the interval of the keys that it touches."""

    lows: tuple[int, ...]
    highs: tuple[int, ...]

    @property
    def extent(self) -> int:
        """How many places there are."""
        return len(self.lows)

    def touched(self, box_q: int, box_k: int) -> int:
        """Pairs of boxes that are touched."""
        total = 0
        for start in range(0, self.extent, box_q):
            part = slice(start, start + box_q)
            kept = [(lo, hi) for lo, hi in zip(self.lows[part], self.highs[part], strict=True) if lo < hi]
            if kept:
                total += -(-max(hi for _, hi in kept) // box_k) - min(lo for lo, _ in kept) // box_k
        return total

    def share(self, box_q: int, box_k: int) -> float:
        """Pairs of boxes that are touched over all."""
        return self.touched(box_q, box_k) / (-(-self.extent // box_q) * -(-self.extent // box_k))


def reach_of(touched: Interval, extent: int, own: str) -> Reach:
    """The reach of an axis by its interval for boxes of one place, whose number is called ``own``."""
    places = range(min(extent, MOST))
    ends = [(value(touched.lo, {own: place}), value(touched.hi, {own: place})) for place in places]
    return Reach(lows=tuple(lo for lo, _ in ends), highs=tuple(min(hi, len(places)) for _, hi in ends))


def with_examples(clause: Expr) -> Expr:
    """A clause in which `EXAMPLE` stands for what only a call knows: inputs and parameters; and head 0 for all."""

    def rewrite(node: Expr) -> Expr | None:
        match node:
            case Load(dtype="bool"):
                return Const(value=True)
            case FreeParam(low=low, high=high):
                return Const(value=min(max(EXAMPLE, low or 0), EXAMPLE if high is None else high))
            case Load():
                return Const(value=EXAMPLE)
            case Index(name="h" | "g" | "b"):
                return Const(value=0)
            case _:
                return None

    return fold(transform(clause, rewrite))


def is_open(bound: Expr, own: str) -> bool:
    """Whether a bound depends on more than ``own``: on heads, sequences, inputs or parameters of a call."""
    return any(not isinstance(node, Const | Apply) and node != Index(name=own) for node in walk(bound))


def value(expr: Expr, env: dict[str, int]) -> int:
    """The value of a bound of constants and the indices in ``env``."""
    match expr:
        case Const(value=number):
            return int(number)
        case Index(name=name):
            return env[name]
        case Apply(op="where", args=(condition, chosen, other)):
            return value(chosen if value(condition, env) else other, env)
        case Apply(op=op, args=args):
            return int(OPS[op].fold(*(value(arg, env) for arg in args)))
        case _:
            raise TypeError(f"{type(expr).__name__} has no value here")


def best_sizes(axes: Sequence[Reach], block_q: int, block_k: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Boxes of ``block_q`` queries and ``block_k`` keys that compute the fewest pairs, and how many these are.

    Places past the end of an axis count.  Among equals the longest on the fastest axes are taken.
    """

    @cache
    def touched(axis: int, box_q: int, box_k: int) -> int:
        return axes[axis].touched(box_q, box_k)

    def cost(sizes: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[int, list[int]]:
        boxes = prod(touched(axis, *pair) for axis, pair in enumerate(zip(*sizes, strict=True)))
        return boxes * block_q * block_k, [-size for part in sizes for size in reversed(part)]

    queries, keys = tuple(_parts(block_q, len(axes))), tuple(_parts(block_k, len(axes)))
    chosen = min(((q, k) for q in queries for k in keys), key=cost)
    return *chosen, cost(chosen)[0]


def _parts(block: int, axes: int) -> Iterator[tuple[int, ...]]:
    """All ways to write a power of two as a product of powers of two."""
    if axes == 1:
        yield (block,)
        return
    size = 1
    while size <= block:
        for rest in _parts(block // size, axes - 1):
            yield (size, *rest)
        size *= 2


def consecutive(axes: Sequence[Reach], block_q: int, block_k: int) -> float:
    """About how many pairs tiles of consecutive rows compute: along an axis such a tile holds as many places as it
    covers blocks of the faster axes."""
    total = 1.0
    faster = 1
    for axis in reversed(axes):
        sizes = (min(axis.extent, -(-block // faster)) for block in (block_q, block_k))
        total *= axis.extent**2 * axis.share(*sizes)
        faster *= axis.extent
    return total
