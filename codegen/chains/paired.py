"""Sums of scores over pairs of members, each of one side with one of the other: one long product.

From: a sum over the members of an entry of one side, of sums over those of an entry of the other, of a score under a
condition that leaves every member one partner, the next one a fixed step further, as on the diagonals and antidiagonals
of a cell, or around its ends.  To: a loop of products that add to one tile, whose vectors are read piece by piece, so
that tiles are as large as those of a plain matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spdsl.codegen.chains.affine import tidy
from spdsl.codegen.chains.parts import LONG, Terms
from spdsl.codegen.chains.places import Place
from spdsl.codegen.chains.products import product, scale
from spdsl.codegen.chains.reductions import member
from spdsl.semantics import build
from spdsl.semantics.graph import Pool, Score
from spdsl.semantics.nodes import Const, Expr, Index, Load, Param

if TYPE_CHECKING:
    from spdsl.codegen.chains.values import Values

_ALONE = Terms(queries=1, keys=1)
"""Numbers of 16 bits as they are."""

MOST = 64
"""The most members of an entry whose partners are sought while a kernel is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """The members of two entries: ``inner`` is that of the other side for a member of ``outer``, a number that grows
    from ``first`` by ``step``; where it goes ``around``, so many are left out."""

    outer: Pool
    inner: Pool
    score: Score
    count: int
    first: int
    step: int
    around: int


def pairs_of(values: Values, stage: Pool, place: Place) -> Pairs | None:
    """The pairs of a sum, or None where it is no sum of these."""
    inner = _stage(values, stage.value)
    if stage.kind != "sum" or not isinstance(inner, Pool) or inner.kind != "sum":
        return None
    score = _stage(values, inner.value)
    if not isinstance(score, Score) or (stage.over, inner.over) not in (("k", "q"), ("q", "k")):
        return None
    # Of what is infinite the largest terms tell, so that others are not added to a sum of several products.
    if inner.per is None or stage.per is None or values.terms[score.name] not in (LONG, _ALONE):
        return None
    if not _is_there(values, stage.only, inner):
        return None
    outer_members = values.places.members(stage.over, stage.per, place.at[stage.per], stage.windows)
    inner_members = values.places.members(inner.over, inner.per, place.at[inner.per], inner.windows)
    if outer_members.last is not None or inner_members.last is not None:
        return None
    if not 1 < outer_members.most <= MOST or inner_members.most > MOST:
        return None
    partners = []
    for number in range(outer_members.most):
        at, _, _ = member(values, stage, place, outer_members, Const(value=number))
        found = []
        for other in range(inner_members.most):
            both, _, _ = member(values, inner, at, inner_members, Const(value=other))
            holds = tidy(values.at(inner.only, both))
            if holds not in (build.TRUE, build.FALSE):
                return None
            found += [other] if holds == build.TRUE else []
        if len(found) != 1:
            return None
        partners += found
    most, first, step = inner_members.most, partners[0], partners[1] - partners[0]
    straight = [first + step * number for number in range(len(partners))]
    if partners not in (straight, [number % most for number in straight]):
        return None
    around = 0 if partners == straight else most
    return Pairs(outer=stage, inner=inner, score=score, count=len(partners), first=first, step=step, around=around)


def _stage(values: Values, expr: Expr) -> object:
    return values.stages.get(expr.table) if isinstance(expr, Load) else None


def _is_there(values: Values, only: Expr, inner: Pool) -> bool:
    """Whether a condition says no more than that there is a partner."""
    if only == build.TRUE:
        return True
    match _stage(values, only):
        case Pool(kind="any", over=over, per=per, windows=windows) as found:
            alike = (over, per, windows) == (inner.over, inner.per, inner.windows)
            return alike and tidy(build.conj(found.value, found.only)) == tidy(inner.only)
        case _:
            return False


def write_pairs(values: Values, pairs: Pairs, place: Place) -> Expr:
    """The sum over all pairs, of those that exist.

    Vectors that do not exist are read as zeros, which add nothing to finite numbers; where the sum is NaN the pairs
    are gone through again, and what does not exist is left out.
    """
    program = values.program
    what = values.known(place)
    values.paired = max(values.paired, pairs.count)
    total = program.fresh("total")
    nothing = f"{total} = tl.full({what.shape}, 0, tl.float32)"
    program.known[total] = what
    program.line(nothing, what.depth)
    so_far = Param(name=total, dtype="float")
    step = program.fresh("pair")
    with program.loop(f"for {step} in range({pairs.count}):", what.depth, step):
        at, _ = _place(values, pairs, place, Index(name=step))
        program.line(f"{total} = {program.text(product(values, pairs.score, at, so_far=so_far))}")
    program.line("# Beside what is infinite, a pair that does not exist is no zero.", what.depth)
    with program.loop(f"if tl.sum(({total} != {total}).to(tl.int32)) > 0:", what.depth):
        program.line(nothing)
        step = program.fresh("pair")
        with program.loop(f"for {step} in range({pairs.count}):", what.depth + 1, step):
            at, there = _place(values, pairs, place, Index(name=step))
            added = program.text(product(values, pairs.score, at))
            program.line(f"{total} += tl.where({program.text(there)}, {added}, 0.0)")
    factor = Param(name=scale(values, pairs.score), dtype="float")
    return program.name("score", build.mul(so_far, factor))


def _place(values: Values, pairs: Pairs, place: Place, number: Expr) -> tuple[Place, Expr]:
    """The place of a pair, and whether it exists."""
    outer, inner = pairs.outer, pairs.inner
    assert outer.per is not None
    assert inner.per is not None
    members = values.places.members(outer.over, outer.per, place.at[outer.per], outer.windows)
    at, there, _ = member(values, outer, place, members, number)
    members = values.places.members(inner.over, inner.per, at.at[inner.per], inner.windows)
    other = tidy(build.add(build.mul(number, pairs.step), pairs.first))
    other = build.mod(other, pairs.around) if pairs.around else other
    both, also, _ = member(values, inner, at, members, other)
    return both, build.conj(there, also)
