"""Predicates that stay the same when query and key move together: from an expanded expression to a `DistanceWalk`.

Found by a small abstract interpretation: how much a part of the expression changes when ``q`` and ``k`` both grow by
the same number of positions.  Which tiles are touched is not decided here: the run time evaluates one period of rows
(`spdsl.runtime.distance_lists`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from spdsl.analysis.tiles import DistanceWalk, ListWalk, SlotWalk, TileRelation, Walk
from spdsl.semantics.nodes import Apply, Const, Expr, Extent, FreeParam, Index, Load, Noise
from spdsl.semantics.rewrite import children, free_indices
from spdsl.semantics.rewrite import walk as parts_of

LARGEST = 4096
"""The longest period, in positions.  The distances of a period's rows are listed, so it should be short."""

SLOTS = 4
"""More slots than this are walked more slowly than a list of distances."""

ANYWHERE = 512
"""The most rows of a period for which queries may begin anywhere at no cost: there are lists for every position."""

_COMPARE = frozenset({"lt", "le", "gt", "ge", "eq", "ne"})


def with_distances(relation: TileRelation, keep: Expr) -> TileRelation:
    """The relation with walks by distance in the place of lists and of long closed forms, where they serve."""
    period = None if relation.residues is not None else period_of(keep)
    if period is None:
        return relation
    by_query = _better(relation, "by query", keep, period)
    by_key = _better(relation, "by key", keep, period)
    listed = [side for side, walk in (("by query", by_query), ("by key", by_key)) if isinstance(walk, DistanceWalk)]
    notes = tuple(note for note in relation.notes if not note.startswith(tuple(listed)))
    return replace(relation, by_query=by_query, by_key=by_key, notes=notes)


def _better(relation: TileRelation, side: str, keep: Expr, period: int) -> Walk:
    walk = relation.by_query if side == "by query" else relation.by_key
    culprit: Expr | None = None
    match walk:
        case ListWalk(reason=reason, culprit=culprit):
            pass
        case SlotWalk(slots=slots) if len(slots) > SLOTS:
            reason = f"its closed form has {len(slots)} runs of tiles"
        case _:
            return walk
    own, walked = relation.block_q, relation.block_k
    if side == "by key":
        own, walked = walked, own
    span = math.lcm(period, walked)
    extents = tuple(sorted({name for node in parts_of(keep) for name in _run_time(node)}))
    if span > LARGEST or (relation.shape == "batched" and (side == "by key" or not _stands_anywhere(span, extents))):
        return walk
    together, names = math.gcd(own, span), free_indices(keep)
    tables = tuple(sorted({node.table for node in parts_of(keep) if isinstance(node, Load)}))
    return DistanceWalk(
        reason=reason,
        culprit=culprit,
        period=period,
        span=span,
        grain=together if relation.shape == "square" or span > ANYWHERE else 1,
        by_head=bool(names & {"h", "g"}),
        by_batch="b" in names or bool(tables),
        tables=tables,
        extents=extents,
    )


def _stands_anywhere(span: int, extents: tuple[str, ...]) -> bool:
    """Whether one list serves sequences whose lengths and positions the device alone knows."""
    return span <= ANYWHERE and not {"n", "nq", "q_start"} & set(extents)


def _run_time(node: Expr) -> tuple[str, ...]:
    """The name among a call's numbers of what it brings."""
    match node:
        case Extent(name=name) | FreeParam(variable=name):
            return (name,)
        case _:
            return ()


class _NotWholeError(Exception):
    """The period must be ``factor`` times as long for some division to come out even."""

    def __init__(self, factor: int) -> None:
        self.factor = factor
        super().__init__(factor)


class _VariesError(Exception):
    """Some part changes in a way that depends on where it is."""


def period_of(keep: Expr) -> int | None:
    """By how many positions ``q`` and ``k`` can both move without any effect on the predicate: a small number, of which
    all multiples are periods too.  None if none is found up to `LARGEST`."""
    period = 1
    while period <= LARGEST:
        factor = _missing(keep, period)
        if factor is None or factor == 1:
            return period if factor else None
        period *= factor
    return None


def _missing(keep: Expr, period: int) -> int | None:
    """How many times longer a period must at least be: 1 if the predicate has this one, None if it has none."""
    try:
        return None if _change(keep, period) else 1
    except _NotWholeError as problem:
        return problem.factor
    except _VariesError:
        return None


def _change(expr: Expr, period: int) -> int:
    """How much the value grows, wherever it is, when ``q`` and ``k`` grow by ``period``."""
    found: dict[int, int] = {}
    for node in parts_of(expr):
        found[id(node)] = _change_of(node, [found[id(part)] for part in children(node)], period)
    return found[id(expr)]


def _change_of(node: Expr, parts: list[int], period: int) -> int:
    match node:
        case Index(name="q" | "k"):
            return period
        case Const() | Index() | Extent() | FreeParam():
            return 0
        case Apply(op=op, dtype="int") if op in _CHANGES:
            return _CHANGES[op](node, parts)
        case Apply(op=op) if op in _COMPARE:
            _same(parts)
            return 0
        case Apply() | Load() | Noise():
            # Any function of what does not change does not change.
            if any(parts):
                raise _VariesError
            return 0
        case _:
            raise _VariesError


def _same(parts: list[int]) -> int:
    if len(set(parts)) > 1:
        raise _VariesError
    return parts[0]


def _product(node: Apply, parts: list[int]) -> int:
    factors = [part.value for part in node.args if isinstance(part, Const)]
    if not any(parts):
        return 0
    if not factors:
        raise _VariesError
    return int(factors[0]) * (parts[1] if isinstance(node.args[0], Const) else parts[0])


def _divided(node: Apply, parts: list[int]) -> int:
    if not any(parts):
        return 0
    divisor = node.args[1]
    if not isinstance(divisor, Const) or divisor.value == 0:
        raise _VariesError
    by = int(divisor.value)
    if parts[0] % by:
        raise _NotWholeError(abs(by) // math.gcd(parts[0], by))
    return parts[0] // by


def _remaining(node: Apply, parts: list[int]) -> int:
    _divided(node, parts)
    return 0


def _chosen(_: Apply, parts: list[int]) -> int:
    if parts[0]:
        raise _VariesError
    return _same(parts[1:])


_CHANGES: dict[str, Callable[[Apply, list[int]], int]] = {
    "add": lambda _, parts: parts[0] + parts[1],
    "sub": lambda _, parts: parts[0] - parts[1],
    "neg": lambda _, parts: -parts[0],
    "mul": _product,
    "floordiv": _divided,
    "mod": _remaining,
    "min": lambda _, parts: _same(parts),
    "max": lambda _, parts: _same(parts),
    "where": _chosen,
}
"""The change of ints whose parts may change."""
