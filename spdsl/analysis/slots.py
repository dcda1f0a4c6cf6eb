"""Touched and full tiles of a row → ordered disjoint slots, each with one interval of full tiles inside.

The touched tiles are few intervals or lattices, also where the partial ones are many; so the touched tiles are
described first, and inside each slot the full ones.  A kernel walks a slot as masked head, full middle, masked tail.

When a budget ends, the ladder goes down: leave out full intervals; one slot between the hull's ends with a test of each
tile; and then `TooComplexError`, upon which the caller takes lists.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import islpy as isl

from spdsl.analysis.bounds import closed_form
from spdsl.analysis.budget import Budget, BudgetSpentError, operations_end_as_spent
from spdsl.analysis.full import ClosedSlot, fill
from spdsl.analysis.grouping import Group, group, in_order
from spdsl.analysis.linear import Linear, UnknownDivisionError, from_constraint
from spdsl.analysis.pieces import TooComplexError, pieces_of
from spdsl.analysis.rows import Branch, ClosedForm, Row

SLOTS = 12
"""More slots than this make a kernel slower than a list."""

LENGTH = 1600
"""Characters of all bounds of a walk."""

_ORDERS = 6
_CUTS = 2
_HULL_SECONDS = 2.0
_REST_ROUNDS = 40


def closed_slots(touched: isl.Set, full: isl.Set, row: Row) -> tuple[tuple[ClosedSlot, ...], tuple[str, ...]]:
    """The slots of a row and notes on what was given up.  Raises `TooComplexError`.

    ``touched`` and ``full`` are sets of ``row.space``, full within touched.
    """
    touched, full = row.known(touched), row.known(full)
    if touched.is_empty():
        return (), ()
    try:
        with operations_end_as_spent():
            best = _best_plan(touched, full, row)
    except (TooComplexError, BudgetSpentError) as problem:
        form = _tested_hull(touched, replace(row, budget=Budget(_HULL_SECONDS, proofs=20)))
        return (ClosedSlot(touched=form, full=None, exact=full.is_empty()),), (
            f"every touched tile is found by a test and masked, because the exact bounds are too complex ({problem})",
        )
    notes = () if all(slot.exact for slot in best) else ("some tiles that are full are masked",)
    return best, notes


def _best_plan(touched: isl.Set, full: isl.Set, row: Row) -> tuple[ClosedSlot, ...]:
    """Try plans until one has an exact full interval in every slot; else the cheapest.  Raises `TooComplexError`."""
    best: tuple[ClosedSlot, ...] | None = None
    problem: Exception = TooComplexError("no arrangement")
    for plan in _plans(touched, full, row):
        slots = _attempt(plan)
        if isinstance(slots, Exception):
            problem = slots
            continue
        if best is None or _cost(slots) < _cost(best):
            best = slots
        if _is_ideal(best):
            break
    if best is None:
        raise problem
    if sum(slot.touched.length + (slot.full.length if slot.full else 0) for slot in best) > LENGTH:
        raise TooComplexError("the bounds are too long")
    return best


def _is_ideal(slots: Sequence[ClosedSlot]) -> bool:
    return all(slot.exact and not slot.touched.filters for slot in slots)


def _cost(slots: Sequence[ClosedSlot]) -> int:
    """Characters, with charges for slots, tests and full tiles that are masked."""
    total = 0
    for slot in slots:
        total += 150 + slot.touched.length + (60 + slot.full.length if slot.full else 0)
        total += 300 * (not slot.exact) + 100 * bool(slot.touched.filters)
    return total


# ---------------------------------------------------------------- touched tiles


def _plans(touched: isl.Set, full: isl.Set, row: Row) -> Iterator[Callable[[], tuple[ClosedSlot, ...]]]:
    """Ways to part the touched tiles into slots, the most promising first; slots are cut where nothing else helps."""
    pieces = pieces_of(touched, row)
    joined = in_order(group(pieces, row))
    apart = in_order(group(pieces, row, merge=False))
    orders = [joined]
    if 2 <= len(apart) <= 4:
        orders += [list(order) for order in itertools.islice(itertools.permutations(apart), _ORDERS)]
    for order in orders:
        yield partial(_plan, order, full, row, 0)
    yield partial(_plan, joined, full, row, _CUTS)


def _plan(groups: list[Group], full: isl.Set, row: Row, cuts: int) -> tuple[ClosedSlot, ...]:
    return tuple(slot for form in _disjoint(groups, row) for slot in fill(form, full, row, cuts))


def _attempt(plan: Callable[[], tuple[ClosedSlot, ...]]) -> tuple[ClosedSlot, ...] | Exception:
    try:
        with operations_end_as_spent():
            return plan()
    except (TooComplexError, BudgetSpentError) as problem:
        return problem


def _disjoint(queue: list[Group], row: Row) -> list[ClosedForm]:
    """Closed forms of the groups in order, each without the tiles of those before it."""
    forms: list[ClosedForm] = []
    seen: isl.Set | None = None
    rounds = 0
    while queue:
        row.budget.step()
        first, *queue = queue
        rounds += 1
        if rounds > _REST_ROUNDS or len(forms) > SLOTS:
            raise TooComplexError(f"more than {SLOTS} slots")
        if seen is not None and not first.region.is_disjoint(seen):
            rest = row.known(first.region.subtract(seen))
            if not rest.is_empty():
                queue = in_order(group(pieces_of(rest, row), row)) + queue
            continue
        region = first.region.intersect_params(row.context)
        forms.append(
            closed_form(
                first.members,
                row,
                lambda form, region=region: row.equal(form.region(row.space), region),  # type: ignore[misc]
                lattice=first.lattice,
                filters=(first.filters,) if first.filters else (),
            )
        )
        seen = first.region if seen is None else seen.union(first.region).coalesce()
    return forms


def _tested_hull(touched: isl.Set, row: Row) -> ClosedForm:
    """One slot over the hull of all touched tiles, with a test of each tile.  Raises `TooComplexError`."""
    isl.DEFAULT_CONTEXT.reset_operations()
    try:
        alternatives = []
        for basic in touched.compute_divs().get_basic_sets():
            simple = isl.Set.from_basic_set(basic).gist_params(row.context).compute_divs()
            for part in simple.get_basic_sets():
                alternatives.append(_tests_of(part))  # noqa: PERF401
        hull = isl.Set.from_basic_set(touched.simple_hull())
        pieces = pieces_of(hull, row)
    except (isl.Error, BudgetSpentError, UnknownDivisionError) as problem:
        raise TooComplexError("no closed form within the budget") from problem
    if len(pieces) != 1:
        raise TooComplexError("the hull is not one piece")
    (piece,) = pieces
    bounds = ClosedForm(
        lows=(Branch(terms=piece.lows),),
        highs=(Branch(terms=piece.highs),),
        lattice=piece.lattice,
        filters=tuple(alternatives),
    )
    if bounds.length > LENGTH:
        raise TooComplexError("the test of a tile is too long")
    return bounds


def _tests_of(basic: isl.BasicSet) -> tuple[Linear, ...]:
    """All constraints of a basic set as terms that are ≥ 0."""
    terms: list[Linear] = []
    for constraint in basic.get_constraints():
        term = from_constraint(constraint)
        terms += [term, term.scaled(-1)] if constraint.is_equality() else [term]
    return tuple(terms)
