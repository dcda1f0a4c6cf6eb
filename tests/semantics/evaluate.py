"""Bound patterns at one pair, with Python numbers: slow, short, and independent of every fast path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from spdsl.semantics.expand import expand
from spdsl.semantics.nodes import Apply, BoundPattern, Const, Coord, Expr, Extent, Index, Load, Noise, Reduce, Top
from spdsl.semantics.ops import OPS
from spdsl.semantics.philox import uniform


@dataclass(frozen=True, kw_only=True)
class Place:
    """The indices, lengths and tables at which an expression is evaluated."""

    pattern: BoundPattern
    n: int
    q: int
    k: int
    h: int = 0
    b: int = 0
    nq: int | None = None
    tables: Mapping[str, Any] = field(default_factory=dict)


def value(expr: Expr, at: Place) -> Any:
    """The value of an expression, expanded or not."""
    match expr:
        case Const(value=constant):
            return constant
        case Index(name="g"):
            return at.h // (at.pattern.heads // at.pattern.groups)
        case Index(name=name):
            return getattr(at, name)
        case Extent(name="n"):
            return at.n
        case Extent(name="nq"):
            return at.n if at.nq is None else at.nq
        case Coord():
            return value(expand(at.pattern, expr), at)
        case Load(table=table, indices=indices):
            found = at.tables[table]
            for index in indices:
                place = value(index, at)
                assert 0 <= place < len(found), f"{table}[{place}]"
                found = found[place]
            return found.item() if hasattr(found, "item") else found
        case Apply(op="and", args=(left, right)):
            return bool(value(left, at)) and bool(value(right, at))
        case Apply(op="or", args=(left, right)):
            return bool(value(left, at)) or bool(value(right, at))
        case Apply(op="where", args=(condition, yes, no)):
            return value(yes if value(condition, at) else no, at)
        case Apply(op=op, args=args):
            return OPS[op].fold(*(value(arg, at) for arg in args))
        case Reduce(kind=kind, side=side, axis=axis, body=body):
            found = [value(body, replace(at, **{side: p})) for p in _members(at, side, axis)]
            rules = {"any": any, "all": all, "sum": sum, "min": min, "max": max, "mean": lambda x: sum(x) / len(x)}
            return rules[kind](found)  # type: ignore[operator]
        case Noise(seed=seed, per=per):
            return uniform(value(seed, at), tuple(value(index, at) for index in per))
        case Top():
            raise NotImplementedError("selections are tested with the reference")
        case _:
            raise TypeError(type(expr).__name__)


def _members(at: Place, side: str, axis: str | None) -> list[int]:
    """The existing positions of the coordinate at hand, or all of them."""
    if axis is None:
        return list(range(at.n))
    assert side in ("q", "k")
    coordinate = expand(at.pattern, Coord(side="q" if side == "q" else "k", axis=axis))
    mine = value(coordinate, at)
    return [p for p in range(at.n) if value(coordinate, replace(at, **{side: p})) == mine]
