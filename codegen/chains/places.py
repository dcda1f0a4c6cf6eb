"""Where an array of a stage is read: an index for each of its axes, as expressions of the names of a kernel.

From: expressions written at a point of a stage's axes.  To: the same at a place, without coordinates.  Axes by tables,
into parts, and of grids have no closed form here: `UncoveredError` says so, and the stage is left to torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce

from spdsl.codegen.chains.affine import Sum, sum_of, tidy
from spdsl.semantics import axes as axis_rules
from spdsl.semantics import build
from spdsl.semantics.expand import expand
from spdsl.semantics.graph import DISTANCE, Windows, side_of
from spdsl.semantics.nodes import Axis, BoundPattern, Const, Coord, Expr, Extent, Index, Side
from spdsl.semantics.rewrite import substitute


class UncoveredError(Exception):
    """Why a stage is left to torch."""


FIRST_DISTANCE = build.add(build.sub(Extent(name="q_start"), Extent(name="n")), 1)
"""The smallest ``q - k``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The index along every axis that is known: heads, free axes, and one axis of each side.

    Of ``q`` and ``k`` it is the position, of coarser axes the number of the entry; a distance stands for both sides.
    """

    at: Mapping[str, Expr]

    def side(self, side: Side) -> str | None:
        """The axis of a side."""
        return next((axis for axis in self.at if side_of(axis) == side), None)

    @property
    def key(self) -> tuple[tuple[str, Expr], ...]:
        """What tells places apart."""
        return tuple(sorted(self.at.items(), key=lambda item: item[0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """The entries of one axis for an entry of another: ``first`` and the ``most - 1`` after it.

    ``last``, where given, is the last that counts.  ``weighed``: whether an entry counts once for each position that
    both have in common, else once.
    """

    first: Expr
    most: int
    last: Expr | None
    weighed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The axes of a pattern in closed form; ``limits`` are the largest values of names that count heads of a group."""

    pattern: BoundPattern
    named: dict[str, Axis] = field(init=False)
    limits: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "named", {axis.name: axis for axis in self.pattern.axes})

    def index(self, expr: Expr, place: Place) -> Expr | None:
        """An index or coordinate at a place; None for what is no leaf of this kind."""
        match expr:
            case Index(name="g") if "g" not in place.at:
                return self._group(sum_of(self._at(place, "h")))
            case Index(name="b"):
                return Index(name="b")
            case Index(name=name):
                return self._at(place, name)
            case Coord(side=side, axis=axis):
                return self._coordinate(axis, side, place)
            case _:
                return None

    def _group(self, head: Sum) -> Expr:
        """The group of a head; of a member of a known group, that group."""
        ratio = self.pattern.heads // self.pattern.groups
        inside = [(term, factor) for term, factor in head.terms if factor % ratio]
        most = head.constant
        for term, factor in inside:
            if not isinstance(term, Index) or term.name not in self.limits or factor < 0:
                return build.floordiv(head.expr(), ratio)
            most += factor * self.limits[term.name]
        if not 0 <= head.constant <= most < ratio:
            return build.floordiv(head.expr(), ratio)
        groups = tuple((term, factor // ratio) for term, factor in head.terms if factor % ratio == 0)
        return Sum(terms=groups, constant=0).expr()

    def _at(self, place: Place, name: str) -> Expr:
        if DISTANCE in place.at and name in ("q", "k"):
            return place.at[DISTANCE] if name == "q" else Const(value=0)
        if name not in place.at:
            raise UncoveredError(f"`{name}` is read where it has no place")
        return place.at[name]

    def _coordinate(self, name: str, side: Side, place: Place) -> Expr:
        own = place.side(side)
        if own is None:
            raise UncoveredError(f"`{side}.{name}` is read where it has no place")
        if own == f"{side}.{name}":
            return place.at[own]
        if name not in self.named:
            raise UncoveredError("coordinates of grids")
        position = place.at[own] if own == side else self.first(own, place.at[own])
        found = substitute(expand(self.pattern, Coord(side=side, axis=name)), {Index(name=side): position})
        return tidy(found)

    def first(self, axis: str, entry: Expr) -> Expr:
        """The first position of an entry, as declared."""
        return self._edge(axis, entry, last=False)

    def last(self, axis: str, entry: Expr) -> Expr:
        """The last position of an entry, as declared."""
        return self._edge(axis, entry, last=True)

    def _edge(self, axis: str, entry: Expr, *, last: bool) -> Expr:
        name = axis.partition(".")[2]
        if not name:
            return entry
        declared = self.named.get(name)
        if declared is None or declared.into is not None:
            raise UncoveredError("axes of grids, and those into parts")
        rule = axis_rules.last if last else axis_rules.first
        found = rule(declared, entry, self.named)
        if found is None:
            raise UncoveredError("axes by tables, and those of several coordinates")
        return tidy(found)

    def count(self, axis: str) -> Expr:
        """How many entries an axis of keys has."""
        name = axis.partition(".")[2]
        return tidy(expand(self.pattern, axis_rules.count(self.named[name]))) if name else Extent(name="n")

    # ------------------------------------------------------------ entries of one axis among those of another

    def members(self, over: str, per: str, entry: Expr, windows: Windows | None) -> Members:
        """The entries of ``over`` that lie inside an entry of ``per``, touch it, or share positions with it."""
        low = self._linear(over, last=windows != "inside")
        high = self._linear(over, last=windows == "inside")
        begin, end = (sum_of(self._edge(per, Index(name="?"), last=last)) for last in (False, True))
        step = dict(low.terms).get(Index(name="?"), 0)
        wide = dict(begin.terms).get(Index(name="?"), 0)
        if step <= 0 or wide <= 0 or len(low.terms) > 1 or len(begin.terms) > 1:
            raise UncoveredError("axes of uneven sizes")
        # An entry e is in where step * e + low >= begin and step * e + high <= end.
        first = build.floordiv(build.add(build.mul(entry, wide), begin.constant - low.constant + step - 1), step)
        weighed = windows is None and over not in ("q", "k")
        room = end.constant - high.constant
        if wide % step == 0:
            least = -(-(begin.constant - low.constant) // step)
            return Members(first=tidy(first), most=room // step - least + 1, last=None, weighed=weighed)
        last = build.floordiv(build.add(build.mul(entry, wide), room), step)
        most = (end.constant - begin.constant + low.constant - high.constant) // step + 1
        return Members(first=tidy(first), most=max(most, 0), last=tidy(last), weighed=weighed)

    def _linear(self, axis: str, *, last: bool) -> Sum:
        return sum_of(self._edge(axis, Index(name="?"), last=last))

    def shared(self, over: str, entry: Expr, per: str, other: Expr, begin: Expr, end: Expr) -> tuple[Expr, Expr]:
        """How many of the positions from ``begin`` to ``end`` an entry shares with one of another axis, and whether
        any; of the first of the two axes alone, if both are the same."""
        firsts = tuple(dict.fromkeys((self.first(over, entry), self.first(per, other), begin)))
        lasts = tuple(dict.fromkeys((self.last(over, entry), self.last(per, other), end)))
        first = reduce(lambda left, right: build.apply("max", left, right), firsts)
        last = reduce(lambda left, right: build.apply("min", left, right), lasts)
        some = build.conj(*(tidy(build.apply("le", low, high)) for low in firsts for high in lasts))
        return tidy(build.apply("max", build.add(build.sub(last, first), 1), Const(value=0))), some
