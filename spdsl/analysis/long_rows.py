"""Which rows of a walk grow with the lengths of a call while the others do not: sinks by key, global queries.

From: the touched tiles of a row in closed form.  To: an interval of rows in closed form, or None.  Nothing depends on
it but time: a kernel cuts these rows into parts, and is right whichever rows it cuts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import islpy as isl
from islpy import dim_type

from spdsl.analysis.budget import Budget
from spdsl.analysis.linear import TILE, Linear, linear, nonnegative, number, symbol, to_aff
from spdsl.analysis.rows import DENSE, ROW, ClosedForm, Row
from spdsl.analysis.slots import closed_slots

MANY = 1 << 16
"""A row is long when it has more tiles than this at some length, and more than its pattern's parameters add to it."""

_TIMES = 8  # how many tiles a parameter may add for each of its units
_TURNS = "turns"
_SECONDS = 1.0
_PROOFS = 60


def long_rows(
    forms: Sequence[ClosedForm], row: Row, *, count: Linear, lengths: frozenset[str], known: frozenset[str]
) -> ClosedForm | None:
    """The rows, as a closed form whose bounds alone count, whose tiles in ``forms`` are not bounded by the pattern.

    There are ``count`` rows.  ``lengths`` names parameters that grow from call to call, ``known`` those beside them
    that the host knows before it launches a kernel; of all others (heads, tables) any value counts.  None where no rows
    are long, where their number grows with the lengths too, as under a causal mask, or where they are not in one run.

    Raises `BudgetSpentError` and `TooComplexError`.
    """
    row.budget.step()
    least = _least(row, lengths)
    parts = [part for form in forms if not (part := _long(form, row, least)).is_empty()]
    if not parts:
        return None
    rows = reduce(lambda a, b: a.union(b), parts)
    rows = _without(rows, frozenset(_names(rows)) - lengths - known)
    if not _are_few(rows, lengths):
        return None
    # Rows that are long at other lengths may be cut at these: bounds that follow no length are shorter.
    for name in sorted(lengths - {"n", "nq"}):
        position = rows.find_dim_by_name(dim_type.param, name)
        wider = rows.eliminate(dim_type.param, position, 1).coalesce()
        rows = wider if _are_few(wider, lengths) else rows
    inner = Row(space=rows.get_space(), context=rows.params(), count=count, budget=Budget(_SECONDS, _PROOFS))
    slots, _ = closed_slots(rows, isl.Set.empty(inner.space), inner)
    return slots[0].touched if len(slots) == 1 else None


def _least(row: Row, lengths: frozenset[str]) -> tuple[Linear, ...]:
    """What `_TURNS` has to be at least."""
    others = [name for name in _names(row.context) if name not in lengths and name != ROW]
    return number(MANY), linear([(name, _TIMES) for name in others], MANY)


def _long(form: ClosedForm, row: Row, least: tuple[Linear, ...]) -> isl.Set:
    """The rows, as a set, whose first and last tile of ``form`` lie at least `_TURNS` apart."""
    at = row.space.dim(dim_type.param)
    space = row.space.add_dims(dim_type.param, 1).set_dim_name(dim_type.param, at, _TURNS)
    hull = replace(form, lattice=DENSE, filters=()).region(space).intersect_params(row.context)
    later = isl.Map.from_multi_aff(isl.MultiAff.from_aff(to_aff(symbol(TILE).plus(symbol(_TURNS)), space)))
    found = hull.intersect(hull.apply(later))
    for term in least:
        found = found.intersect(nonnegative(symbol(_TURNS).plus(term, -1), space))
    named = isl.Set.from_params(found.params())
    position = named.find_dim_by_name(dim_type.param, ROW)
    return named.move_dims(dim_type.set, 0, dim_type.param, position, 1).set_dim_name(dim_type.set, 0, TILE).coalesce()


def _are_few(rows: isl.Set, lengths: frozenset[str]) -> bool:
    """Whether there is a bound on how far they lie apart that holds for all lengths."""
    apart = isl.Map.from_domain_and_range(rows, rows).deltas()
    return bool(_without(apart, lengths).is_bounded())


def _names(of: isl.Set) -> list[str]:
    return [str(of.get_dim_name(dim_type.param, position)) for position in range(of.dim(dim_type.param))]


def _without(of: isl.Set, names: frozenset[str]) -> isl.Set:
    """The set for any values of the named parameters."""
    for name in names & frozenset(_names(of)):
        of = of.project_out(dim_type.param, of.find_dim_by_name(dim_type.param, name), 1)
    return of.coalesce()
