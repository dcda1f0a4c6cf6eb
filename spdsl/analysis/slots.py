"""Touched and full tiles of a row → ordered disjoint slots, each with one interval of full tiles inside.

The touched tiles are few intervals or lattices, also where the partial ones are many; so the touched tiles are described
first, and inside each slot the full ones.  A kernel walks a slot as masked head, full middle, masked tail.

When a budget ends, the ladder goes down: leave out full intervals; one slot between the hull's ends with a test of each
tile; and then `TooComplex`, upon which the caller takes lists.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import islpy as isl

from spdsl.analysis.bounds import closed_form
from spdsl.analysis.budget import Budget, BudgetSpent
from spdsl.analysis.linear import Linear, UnknownDivision, from_constraint
from spdsl.analysis.pieces import Piece, TooComplex, gap_free, pieces_of
from spdsl.analysis.rows import Branch, ClosedForm, Lattice, Row

SLOTS = 12
"""More slots than this make a kernel slower than a list."""

LENGTH = 1600
"""Characters of all bounds of a walk."""

_ORDERS = 6
_HULL_SECONDS = 0.5
_REST_ROUNDS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedSlot:
    """One slot: its tiles and, inside them, those known to be full.

    ``full`` has the lattice and filter of ``touched`` and is meant inside its bounds; a side without branches is open.
    ``exact`` is false when some full tiles are left to be masked.
    """

    touched: ClosedForm
    full: ClosedForm | None
    exact: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Pieces whose union has no gap on their lattice."""

    region: isl.Set
    members: tuple[Piece, ...]

    @property
    def lattice(self) -> Lattice:
        return self.members[0].lattice

    @property
    def filters(self) -> tuple[Linear, ...]:
        return self.members[0].filters

    @property
    def rank(self) -> tuple[bool, int, int, bool]:
        """Dense groups first, then strided ones, single tiles and tested ones last."""
        lattice = self.lattice
        single = all(piece.is_single for piece in self.members)
        return bool(self.filters), lattice.step // lattice.run, lattice.step, single


def closed_slots(touched: isl.Set, full: isl.Set, row: Row) -> tuple[tuple[ClosedSlot, ...], tuple[str, ...]]:
    """The slots of a row and notes on what was given up.  Raises `TooComplex`.

    ``touched`` and ``full`` are sets of ``row.space``, full within touched.
    """
    touched, full = row.known(touched), row.known(full)
    if touched.is_empty():
        return (), ()
    try:
        best = _best_plan(touched, full, row)
    except (TooComplex, BudgetSpent) as problem:
        form = _tested_hull(touched, replace(row, budget=Budget(_HULL_SECONDS, proofs=20)))
        return (ClosedSlot(touched=form, full=None, exact=full.is_empty()),), (
            f"every touched tile is found by a test and masked, because the exact bounds are too complex ({problem})",
        )
    notes = () if all(slot.exact for slot in best) else ("some tiles that are full are masked",)
    return best, notes


def _best_plan(touched: isl.Set, full: isl.Set, row: Row) -> tuple[ClosedSlot, ...]:
    """Try arrangements of the touched tiles until one has an exact full interval in every slot."""
    best: tuple[ClosedSlot, ...] | None = None
    problem: Exception = TooComplex("no arrangement")
    arrangements = _arrangements(touched, row)
    while best is None or not _is_ideal(best):
        try:
            groups = next(arrangements, None)
            if groups is None:
                break
            slots = tuple(_with_full(form, full, row) for form in _disjoint(groups, row))
        except TooComplex as found:
            problem = found
            continue
        except BudgetSpent as found:
            problem = found
            break
        if best is None or _cost(slots) < _cost(best):
            best = slots
    if best is None:
        raise problem
    if sum(slot.touched.length + (slot.full.length if slot.full else 0) for slot in best) > LENGTH:
        raise TooComplex("the bounds are too long")
    return best


def _is_ideal(slots: Sequence[ClosedSlot]) -> bool:
    return all(slot.exact and not slot.touched.filters for slot in slots)


def _cost(slots: Sequence[ClosedSlot]) -> int:
    """Characters, with charges for slots, tests and full tiles that are masked."""
    total = 0
    for slot in slots:
        total += 60 + slot.touched.length + (60 + slot.full.length if slot.full else 0)
        total += 300 * (not slot.exact) + 100 * bool(slot.touched.filters)
    return total


# ---------------------------------------------------------------- touched tiles


def _arrangements(touched: isl.Set, row: Row) -> Iterator[list[_Group]]:
    """Ways to part the touched tiles into groups, in the order in which they become slots."""
    pieces = pieces_of(touched, row)
    yield _sorted(_group(pieces, row))
    apart = _sorted(_group(pieces, row, merge=False))
    if 2 <= len(apart) <= 4:
        for order in itertools.islice(itertools.permutations(apart), _ORDERS):
            yield list(order)


def _sorted(groups: Iterable[_Group]) -> list[_Group]:
    return sorted(groups, key=lambda group: group.rank)


def _group(pieces: Sequence[Piece], row: Row, *, merge: bool = True) -> list[_Group]:
    """Join pieces on one lattice as long as their union has no gap."""
    groups = [_Group(region=piece.region, members=(piece,)) for piece in pieces]
    joined = merge
    while joined:
        joined = False
        for a, b in itertools.combinations(range(len(groups)), 2):
            one, other = groups[a], groups[b]
            if one.filters or other.filters or one.lattice != other.lattice:
                continue
            union = one.region.union(other.region).coalesce()
            if gap_free(union, one.lattice, row):
                groups[a] = _Group(region=union, members=one.members + other.members)
                del groups[b]
                joined = True
                break
    return groups


def _disjoint(queue: list[_Group], row: Row) -> list[ClosedForm]:
    """Closed forms of the groups in order, each without the tiles of those before it."""
    forms: list[ClosedForm] = []
    seen: isl.Set | None = None
    rounds = 0
    while queue:
        row.budget.step()
        group, *queue = queue
        rounds += 1
        if rounds > _REST_ROUNDS or len(forms) > SLOTS:
            raise TooComplex(f"more than {SLOTS} slots")
        if seen is not None and not group.region.is_disjoint(seen):
            rest = row.known(group.region.subtract(seen))
            if not rest.is_empty():
                queue = _sorted(_group(pieces_of(rest, row), row)) + queue
            continue
        region = group.region.intersect_params(row.context)
        forms.append(
            closed_form(
                group.members,
                row,
                lambda form, region=region: row.equal(form.region(row.space), region),  # type: ignore[misc]
                lattice=group.lattice,
                filters=(group.filters,) if group.filters else (),
            )
        )
        seen = group.region if seen is None else seen.union(group.region).coalesce()
    return forms


def _tested_hull(touched: isl.Set, row: Row) -> ClosedForm:
    """One slot over the hull of all touched tiles, with a test of each tile.  Raises `TooComplex`."""
    try:
        alternatives = []
        for basic in touched.compute_divs().get_basic_sets():
            simple = isl.Set.from_basic_set(basic).gist_params(row.context).compute_divs()
            for part in simple.get_basic_sets():
                alternatives.append(_tests_of(part))
        hull = isl.Set.from_basic_set(touched.simple_hull())
        pieces = pieces_of(hull, row)
    except (isl.Error, BudgetSpent, UnknownDivision) as problem:
        raise TooComplex("no closed form within the budget") from problem
    if len(pieces) != 1:
        raise TooComplex("the hull is not one piece")
    (piece,) = pieces
    bounds = ClosedForm(
        lows=(Branch(terms=piece.lows),),
        highs=(Branch(terms=piece.highs),),
        lattice=piece.lattice,
        filters=tuple(alternatives),
    )
    if bounds.length > LENGTH:
        raise TooComplex("the test of a tile is too long")
    return bounds


def _tests_of(basic: isl.BasicSet) -> tuple[Linear, ...]:
    """All constraints of a basic set as terms that are ≥ 0."""
    terms: list[Linear] = []
    for constraint in basic.get_constraints():
        term = from_constraint(constraint)
        terms += [term, term.scaled(-1)] if constraint.is_equality() else [term]
    return tuple(terms)


# ---------------------------------------------------------------- full tiles


def _with_full(touched: ClosedForm, full: isl.Set, row: Row) -> ClosedSlot:
    """The slot with the best interval of full tiles; leaving some or all of them out is right too."""
    try:
        region = touched.region(row.space).intersect_params(row.context)
        inner = row.known(full.intersect(region))
        if inner.is_empty():
            return ClosedSlot(touched=touched, full=None)
        pieces = pieces_of(inner, row)
        groups = _sorted(_group(pieces, row))
    except (TooComplex, BudgetSpent):
        return ClosedSlot(touched=touched, full=None, exact=False)

    def is_all(form: ClosedForm) -> bool:
        return row.equal(form.region(row.space).intersect(region), inner)

    def is_part(form: ClosedForm) -> bool:
        return row.within(form.region(row.space).intersect(region), inner)

    attempts = [(pieces, is_all), *((group.members, is_part) for group in groups)]
    for members, proof in attempts:
        try:
            form = closed_form(members, row, proof, lattice=Lattice(), may_open=proof is is_all)
            return ClosedSlot(touched=touched, full=form, exact=proof is is_all)
        except TooComplex:
            continue
        except BudgetSpent:
            break
    return ClosedSlot(touched=touched, full=None, exact=False)
