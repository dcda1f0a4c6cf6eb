"""Whether any entry of an axis fulfils a condition on indices alone, in closed form instead of by going through them.

From: a reduction ``any`` whose condition is a conjunction of comparisons.  To: a condition without the entry: every
comparison that reads it bounds it from one side, and there is one if the bounds leave room.  A remainder that one
member has says which it is; what else counts modulo something, reads numbers, or is no conjunction has no such form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spdsl.codegen.chains.affine import Sum, sum_of, tidy
from spdsl.codegen.chains.places import Place, UncoveredError
from spdsl.codegen.chains.reductions import count, member, positions
from spdsl.semantics import build
from spdsl.semantics.bounds import is_non_negative
from spdsl.semantics.graph import DISTANCE, Pool, Stage, side_of
from spdsl.semantics.nodes import Apply, Const, Expr, Extent, Index, Load
from spdsl.semantics.rewrite import conjuncts, free_axes, substitute, transform, walk

if TYPE_CHECKING:
    from spdsl.codegen.chains.values import Values


def presence(values: Values, stage: Stage, place: Place) -> Expr | None:
    """Whether an entry of such a reduction fulfils its condition, at a place; None where that has no closed form."""
    match stage:
        case Pool(kind="any", over=over) if side_of(over) is not None or over == DISTANCE:
            pass
        case _:
            return None
    try:
        return _without_entry(values, stage, place)
    except UncoveredError:
        return None


def opened(values: Values, expr: Expr, place: Place) -> Expr:
    """A condition at a place; sets with a closed form are replaced by it, other stages stay as they are."""

    def rewrite(node: Expr) -> Expr | None:
        match node:
            case Load(table=name, indices=indices) if name in values.stages:
                stage = values.stages[name]
                inner = Place(at=dict(zip(stage.axes, indices, strict=True)))
                return presence(values, stage, inner)
            case Load(dtype="int") if free_axes(node) <= {"b"} and _is_not_negative(values, node):
                return values.at(node, place)  # one number for a whole tile, whose differences from places are ints
            case _:
                found = values.places.index(node, place)
                return None if found is None else tidy(found)

    return tidy(transform(expr, rewrite, into_stages=False))


def _is_not_negative(values: Values, node: Load) -> bool:
    """Whether an input is declared to hold no number below 0."""
    table = next((each for each in values.pattern.tables if each.name == node.table), None)
    low = None if table is None or table.bounds is None else table.bounds.low
    return low is not None and low >= 0


def _without_entry(values: Values, stage: Pool, place: Place) -> Expr | None:
    entry = Index(name=f"?{stage.name}")
    there: Expr = build.TRUE
    if stage.over == DISTANCE:
        # Of the pairs at a distance, the query is sought.
        low, high = positions("q")
        key, most = build.sub(entry, place.at[DISTANCE]), None
        rest = {axis: each for axis, each in place.at.items() if axis != DISTANCE}
        at = Place(at={**rest, "q": entry, "k": key})
        there = build.conj(build.apply("ge", key, 0), build.apply("lt", key, Extent(name="n")))
        bounds = _Bounds(low=[(low, 1)], high=[(high, 1)])
    elif stage.per is None:
        low, high = positions(stage.over)
        if stage.over not in ("q", "k"):
            if side_of(stage.over) == "q" and stage.windows is None:
                return None
            low, high = build.lift(0), build.sub(count(values, stage.over), 1)
        at, most = Place(at={**place.at, stage.over: entry}), None
        bounds = _Bounds(low=[(low, 1)], high=[(high, 1)])
    elif side_of(stage.per) is not None:
        members = values.places.members(stage.over, stage.per, place.at[stage.per], stage.windows)
        at, there, _ = member(values, stage, place, members, entry)
        most = members.most
        bounds = _Bounds(low=[(Const(value=0), 1)], high=[(Const(value=most - 1), 1)])
    else:
        return None
    kept: list[Expr] = []
    condition = _within(opened(values, build.conj(stage.value, stage.only), at), entry, most)
    parts = conjuncts(condition) + conjuncts(there)
    for part in parts:
        only = _only_member(part, entry, most)
        if only is not None:
            parts = [tidy(substitute(each, {entry: only})) for each in parts if each != part]
            break
    for part in parts:
        if entry not in set(walk(part)):
            kept.append(part)
        elif not bounds.add(part, entry):
            return None
    kept += bounds.meet()
    if any(isinstance(node, Load) for part in kept for node in walk(part)):
        return None
    return tidy(build.conj(*dict.fromkeys(_alike(part) for each in kept for part in conjuncts(tidy(each)))))


def _within(expr: Expr, entry: Expr, most: int | None) -> Expr:
    """The condition for the numbers of members, of which a larger number is no multiple and leaves all of a sum."""
    if most is None:
        return expr

    def rewrite(node: Expr) -> Expr | None:
        match node:
            case Apply(op="floordiv", args=(inner, Const(value=int() as by))) if inner == entry and most <= by:
                return Const(value=0)
            case Apply(op="mod", args=(inner, Const(value=int() as by))):
                whole = sum_of(inner)
                first = whole.constant % by
                for factor in (1, -1):
                    fits = tuple((term, (each - factor) % by) for term, each in whole.terms) == ((entry, 0),)
                    if fits and 0 <= first + factor * (most - 1) < by:
                        return Sum(terms=((entry, factor),), constant=first).expr()
                return None
            case _:
                return None

    return tidy(transform(expr, rewrite))


def _only_member(part: Expr, entry: Expr, most: int | None) -> Expr | None:
    """The one of ``most`` members for which a sum of it has a remainder, where there are as many of these."""
    match part:
        case Apply(op="eq", args=(Apply(op="mod", args=(inner, Const(value=int() as by))), Const(value=int() as rest))):
            whole = sum_of(inner)
        case _:
            return None
    others = Sum(terms=tuple(each for each in whole.terms if each[0] != entry), constant=whole.constant - rest)
    factor = dict(whole.terms).get(entry, 0) % by
    if most != by or not 0 <= rest < by or factor not in (1, by - 1):
        return None
    if any(entry in set(walk(term)) for term, _ in others.terms):
        return None
    found = others.expr() if factor == by - 1 else build.apply("neg", others.expr())
    return tidy(build.mod(found, by))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bounds:
    """What an entry is not below (``low``) and not above (``high``): numbers, to be divided by an int above 0; and
    conditions that turned out to be about nothing but ``others``."""

    low: list[tuple[Expr, int]]
    high: list[tuple[Expr, int]]
    others: list[Expr] = field(default_factory=list)

    def add(self, part: Expr, entry: Expr) -> bool:
        """Note what a comparison says of the entry; False where it is no bound."""
        match part:
            case Apply(op="lt" | "le" | "gt" | "ge" as op, args=(left, right)) if left.dtype == right.dtype == "int":
                # In any case: what is below or equal to 0.
                whole = sum_of(build.sub(left, right) if op in ("lt", "le") else build.sub(right, left))
            case _:
                return False
        factor = dict(whole.terms).get(entry, 0)
        terms = tuple((term, each) for term, each in whole.terms if term != entry)
        if any(entry in set(walk(term)) for term, _ in terms):
            return False
        rest = Sum(terms=terms, constant=whole.constant + (op in ("lt", "gt"))).expr()
        if factor == 0:
            self.others.append(_at_most(rest, build.lift(0)))
        elif factor > 0:
            self.high.append((build.apply("neg", rest), factor))
        else:
            self.low.append((rest, -factor))
        return True

    def meet(self) -> list[Expr]:
        """Conditions under which an int lies between all bounds."""
        found = [*self.others]
        highs = _tightest(self.high, lambda one, other: build.sub(one, other))
        for low, below in _tightest(self.low, lambda one, other: build.sub(other, one)):
            for high, above in highs:
                if below > 1 < above:
                    low, below = build.apply("neg", build.floordiv(build.apply("neg", low), below)), 1
                found.append(_at_most(build.mul(low, above), build.mul(high, below)))
        return found


def _tightest(bounds: list[tuple[Expr, int]], beyond: Callable[[Expr, Expr], Expr]) -> list[tuple[Expr, int]]:
    """The bounds without those that lie ``beyond`` another, as far as ints tell that are not below 0."""
    kept: list[tuple[Expr, int]] = []
    for place, (bound, by) in enumerate(bounds):
        others = kept + bounds[place + 1 :]
        if not any(by == each and is_non_negative(tidy(beyond(bound, other))) for other, each in others):
            kept.append((bound, by))
    return kept


def _alike(part: Expr) -> Expr:
    """A comparison of ints in the one form that all have which say the same."""
    match part:
        case Apply(op="lt" | "le" | "gt" | "ge" as op, args=(left, right)) if left.dtype == right.dtype == "int":
            low, high = (left, right) if op in ("lt", "le") else (right, left)
            return tidy(_at_most(build.add(low, 1) if op in ("lt", "gt") else low, high))
        case _:
            return part


def _at_most(low: Expr, high: Expr) -> Expr:
    """``low <= high``, without what both have in common, and with nothing that is taken away."""
    whole = sum_of(tidy(build.sub(high, low)))
    less = tuple((term, -each) for term, each in whole.terms if each < 0)
    more = tuple((term, each) for term, each in whole.terms if each > 0)
    left = Sum(terms=less, constant=max(-whole.constant, 0))
    return build.apply("le", left.expr(), Sum(terms=more, constant=max(whole.constant, 0)).expr())
