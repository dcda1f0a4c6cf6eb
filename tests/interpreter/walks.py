"""Walks in closed form, by hand, for tiles of ``BLOCK_Q`` queries and ``BLOCK_K`` keys."""

from __future__ import annotations

from spdsl.analysis.tiles import Interval, Slot, SlotWalk
from spdsl.semantics.nodes import Expr, Extent, Index
from tests.runtime.build import const, op

BLOCK_Q, BLOCK_K = 32, 16
I, J = Index(name="i"), Index(name="j")  # noqa: E741  # as in tile bounds
N, NQ, START = Extent(name="n"), Extent(name="nq"), Extent(name="q_start")

Walks = tuple[SlotWalk, SlotWalk]


def up(value: Expr, size: int) -> Expr:
    return op("floordiv", op("add", value, size - 1), size)


def natural(value: Expr) -> Expr:
    return op("max", value, 0)


def slot(low: object, high: object, full: tuple[object, object] | None = None, **lattice: object) -> Slot:
    inner = None if full is None else Interval(lo=const(full[0]), hi=const(full[1]))  # type: ignore[arg-type]
    touched = Interval(lo=const(low), hi=const(high))  # type: ignore[arg-type]
    return Slot(touched=touched, full=inner, **lattice)  # type: ignore[arg-type]


KEYS, QUERIES = up(N, BLOCK_K), up(NQ, BLOCK_Q)
FIRST_Q, NEXT_Q = op("mul", I, BLOCK_Q), op("mul", op("add", I, 1), BLOCK_Q)
FIRST_K, NEXT_K = op("mul", J, BLOCK_K), op("mul", op("add", J, 1), BLOCK_K)


def everything() -> Walks:
    return SlotWalk(slots=(slot(0, KEYS, (0, KEYS)),)), SlotWalk(slots=(slot(0, QUERIES, (0, QUERIES)),))


def masked() -> Walks:
    """All tiles, none of them full."""
    return SlotWalk(slots=(slot(0, KEYS),)), SlotWalk(slots=(slot(0, QUERIES),))


def causal(start: Expr | int = 0) -> Walks:
    """Causal, the first query at ``start``."""
    below = op("min", KEYS, up(natural(op("add", NEXT_Q, start)), BLOCK_K))
    whole = op("floordiv", natural(op("add", op("add", FIRST_Q, start), 1)), BLOCK_K)
    first = op("floordiv", natural(op("sub", FIRST_K, start)), BLOCK_Q)
    later = up(natural(op("sub", NEXT_K, start)), BLOCK_Q)
    by_query = SlotWalk(slots=(slot(0, below, (0, whole)),))
    return by_query, SlotWalk(slots=(slot(first, QUERIES, (later, QUERIES)),))


def window(size: int) -> Walks:
    """Causal and ``q - k < size``."""
    low = op("floordiv", natural(op("sub", FIRST_Q, size - 1)), BLOCK_K)
    full_low = up(natural(op("sub", NEXT_Q, size)), BLOCK_K)
    full_high = op("floordiv", op("add", FIRST_Q, 1), BLOCK_K)
    by_query = slot(low, op("min", KEYS, up(NEXT_Q, BLOCK_K)), (full_low, full_high))
    high = op("min", QUERIES, up(op("add", NEXT_K, size - 1), BLOCK_Q))
    first = op("floordiv", FIRST_K, BLOCK_Q)
    by_key = slot(first, high, (up(NEXT_K, BLOCK_Q), op("floordiv", op("add", FIRST_K, size), BLOCK_Q)))
    return SlotWalk(slots=(by_query,)), SlotWalk(slots=(by_key,))


def streaming(size: int, sinks: int) -> Walks:
    """Causal and (``q - k < size`` or ``k < sinks``): two runs by query, one masked run by key."""
    (near,), _ = (walk.slots for walk in window(size))
    far = slot(0, op("min", up(const(sinks), BLOCK_K), near.touched.lo))
    first = op("floordiv", FIRST_K, BLOCK_Q)
    end = op("min", QUERIES, up(op("add", NEXT_K, size - 1), BLOCK_Q))
    high = op("where", op("lt", FIRST_K, sinks), QUERIES, end)
    return SlotWalk(slots=(far, near)), SlotWalk(slots=(slot(first, high),))


def lattice(step: int, run: int) -> Walks:
    """Key tiles ``j`` and query tiles ``i``, both of ``BLOCK_K``, with ``(i - j) % step < run``, and ``j <= i``."""
    below = op("min", KEYS, op("add", I, 1))
    # (i - j) % step < run, seen from i: j is one of the last `run` before i.
    by_query = slot(0, below, step=step, run=run, phase=op("sub", I, run - 1))
    return SlotWalk(slots=(by_query,)), SlotWalk(slots=(slot(J, up(NQ, BLOCK_K), step=step, run=run, phase=J),))
