"""Touched closed form and full tiles → slots: the touched tiles with one interval of full ones inside.

Where a slot holds several intervals of full tiles it is cut in two, or all but one are left to be masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import islpy as isl

from spdsl.analysis.bounds import Proof, closed_form
from spdsl.analysis.budget import BudgetSpentError, operations_end_as_spent
from spdsl.analysis.grouping import group, in_order
from spdsl.analysis.pieces import Piece, TooComplexError, pieces_of
from spdsl.analysis.rows import DENSE, ClosedForm, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedSlot:
    """One slot: its tiles and, inside them, those known to be full.

    ``full`` has the lattice and filter of ``touched`` and is meant inside its bounds; a side without branches is open.
    ``exact`` is false when some full tiles are left to be masked.
    """

    touched: ClosedForm
    full: ClosedForm | None
    exact: bool = True


def fill(touched: ClosedForm, full: isl.Set, row: Row, cuts: int) -> tuple[ClosedSlot, ...]:
    """The slot of ``touched``, or those that at most ``cuts`` cuts make of it, each with one interval of full tiles."""
    try:
        with operations_end_as_spent():
            region = touched.region(row.space).intersect_params(row.context)
            inner = row.known(full.intersect(region))
            if inner.is_empty():
                return (ClosedSlot(touched=touched, full=None),)
            pieces = pieces_of(inner, row)
            groups = [g.members for g in in_order(group(pieces, row))]
    except (TooComplexError, BudgetSpentError):
        return (ClosedSlot(touched=touched, full=None, exact=False),)

    def is_all(form: ClosedForm) -> bool:
        return row.equal(form.region(row.space).intersect(region), inner)

    def is_part(form: ClosedForm) -> bool:
        return row.within(form.region(row.space).intersect(region), inner)

    whole = _bounds(pieces, row, is_all)
    if whole is not None:
        return (ClosedSlot(touched=touched, full=whole),)
    parts = [part for members in groups if (part := _bounds(members, row, is_part)) is not None]
    if cuts and len(parts) > 1 and touched.lattice == DENSE and not touched.filters:
        for part in parts:
            slots = _cut(region, part, full, row, cuts - 1)
            if slots and all(slot.exact for slot in slots):
                return slots
    return (ClosedSlot(touched=touched, full=parts[0] if parts else None, exact=False),)


def _bounds(members: Sequence[Piece], row: Row, proof: Proof) -> ClosedForm | None:
    try:
        return closed_form(members, row, proof, lattice=DENSE, may_open=True)
    except (TooComplexError, BudgetSpentError):
        return None


def _cut(region: isl.Set, part: ClosedForm, full: isl.Set, row: Row, cuts: int) -> tuple[ClosedSlot, ...] | None:
    """Slots of the tiles up to the end of ``part`` and of those after it, if both have closed forms."""
    slots: list[ClosedSlot] = []
    for end in ("head", "tail"):
        try:
            with operations_end_as_spent():
                head = row.known(region.intersect(ClosedForm(lows=(), highs=part.highs).region(row.space)))
                half = head if end == "head" else row.known(region.subtract(head))
                groups = group(pieces_of(half, row), row)
        except (TooComplexError, BudgetSpentError):
            return None
        if len(groups) != 1 or groups[0].lattice != DENSE or groups[0].filters:
            return None
        form = _bounds_of_half(groups[0].members, half, row)
        if form is None:
            return None
        slots += fill(form, full, row, cuts)
    return tuple(slots)


def _bounds_of_half(members: Sequence[Piece], half: isl.Set, row: Row) -> ClosedForm | None:
    try:
        return closed_form(members, row, lambda form: row.equal(form.region(row.space), half), lattice=DENSE)
    except (TooComplexError, BudgetSpentError):
        return None
