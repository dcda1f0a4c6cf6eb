"""How many pairs a pattern keeps, as a formula of the length: counted at a few lengths, and proved for all.

A set of positions is a disjoint union of polytopes with the length as parameter, after each quotient has become a
coordinate of its own.  Beyond the last length at which a vertex appears or vanishes, the number of integer points is
a quasi-polynomial in n, whose period divides the least common multiple of the denominators of n in the vertices
(Clauss, "Counting solutions to linear and nonlinear constraints through Ehrhart polynomials", 1996); its degree is at
most 2, since there are n² pairs.  So three exact counts for each residue of n prove the formula.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import islpy as isl
from islpy import dim_type

from spdsl.analysis.budget import BudgetSpentError, as_int, limited, operations_end_as_spent
from spdsl.analysis.pairs import Pairs, Subject
from spdsl.analysis.plan import grid_length

PERIOD = 128
"""Up to this period there is a formula for every residue of n; beyond it, for multiples of the period alone."""

_PIECES = 80
_SECONDS = 3.0
_SEARCH_SECONDS = 0.5  # for smaller lengths at which the formula holds, too
_LENGTHS = ("n", "nq", "q_start")

Polynomial = tuple[Fraction, Fraction, Fraction]
"""Coefficients of n², n and 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Formula:
    """The number of pairs of a set: for n ≥ ``first``, ``by_residue[n % period]`` at n.

    Where ``multiples`` holds, there is one polynomial, for the multiples of ``period`` alone.
    """

    first: int
    period: int
    by_residue: tuple[Polynomial, ...]
    multiples: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """Pairs that are certainly kept and pairs that may be, the same unless inputs or draws matter.

    ``units`` is by how many n × n matrices to divide: heads or groups if they differ.  With ``length`` the counts are
    ints at this length, else formulas.
    """

    least: Formula | int
    most: Formula | int
    units: int
    length: int | None = None


def count(subject: Subject) -> Count | str:
    """The number of kept pairs, or why there is no formula."""
    deadline = time.monotonic() + _SECONDS
    length = grid_length(subject.pattern)
    try:
        with limited(seconds=_SECONDS):
            least, most, units = _bounds(Pairs.of([subject]), subject)
            if length is not None:
                fixed = [_count_at(each, length) for each in (least, most)]
                return Count(least=fixed[0], most=fixed[1], units=units, length=length)
            low = _formula(least, deadline)
            high = low if least.is_equal(most) else _formula(most, deadline)
            return Count(least=low, most=high, units=units)
    except BudgetSpentError:
        return "the count took too long"
    except _UncountableError as problem:
        return str(problem)


class _UncountableError(Exception):
    """Why a set is not counted."""


def _bounds(pairs: Pairs, subject: Subject) -> tuple[isl.Set, isl.Set, int]:
    """The sets ``[q, k, head]`` that are certainly and possibly kept, with n as their parameter, and the heads."""
    names = [name for name, _ in pairs.symbols.meaning]
    kept, missing, exist = pairs.kept[0], pairs.exist.subtract(pairs.kept[0]), pairs.exist
    for name in names:
        if name not in (*_LENGTHS, "h", "g"):
            kept, missing, exist = (_project(each, name) for each in (kept, missing, exist))
    heads = [name for name in ("h", "g") if name in names]
    units = {"h": subject.pattern.heads, "g": subject.pattern.groups}[heads[0]] if heads else 1
    return _counted(exist.subtract(missing), heads), _counted(kept, heads), units


def _project(points: isl.Set, name: str) -> isl.Set:
    return points.project_out(dim_type.param, points.find_dim_by_name(dim_type.param, name), 1).coalesce()


def _counted(points: isl.Set, heads: Sequence[str]) -> isl.Set:
    for name in heads:
        at = points.find_dim_by_name(dim_type.param, name)
        points = points.move_dims(dim_type.set, points.dim(dim_type.set), dim_type.param, at, 1)
    if points.find_dim_by_name(dim_type.param, "q_start") >= 0:  # all queries
        points = points.fix_val(dim_type.param, points.find_dim_by_name(dim_type.param, "q_start"), isl.Val(0))
        for name in ("q_start", "nq"):
            points = _project(points, name)
    return points.coalesce()


def _count_at(points: isl.Set, length: int) -> int:
    at = points.find_dim_by_name(dim_type.param, "n")
    isl.DEFAULT_CONTEXT.reset_operations()
    with operations_end_as_spent():
        return as_int(points.fix_val(dim_type.param, at, isl.Val(length)).count_val())


# ---------------------------------------------------------------- formulas


def _formula(points: isl.Set, deadline: float) -> Formula:
    first, period = 1, 1
    pieces = points.make_disjoint().compute_divs().get_basic_sets()
    if len(pieces) > _PIECES:
        raise _UncountableError("the set has too many pieces to count")
    for piece in pieces:
        for begin, denominator in _cells(piece):
            first, period = max(first, begin), math.lcm(period, denominator)
        _check(deadline)
    multiples = period > PERIOD
    found = []
    for residue in range(1 if multiples else period):
        start = first + (residue - first) % period
        at = [start + step * period for step in range(3)]
        found.append(_through(at, [_count_at(points, n) for n in at]))
        _check(deadline)
    formula = Formula(first=first, period=period, by_residue=tuple(found), multiples=multiples)
    return _extended(formula, points)


def _check(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise _UncountableError("the count took too long")
    isl.DEFAULT_CONTEXT.reset_operations()


def _cells(piece: isl.BasicSet) -> Iterator[tuple[int, int]]:
    """From which length on the vertices of a piece stay the same, and the common denominator of n in them.

    Nothing for a piece that is empty at large lengths: it counts up to the length that it begins with.
    """
    (lifted,) = isl.Set.from_basic_set(piece.lift()).flatten().get_basic_sets()
    found: list[tuple[int, int]] = []
    last = 0

    def cell(each: isl.Cell) -> None:
        nonlocal last
        domain = each.get_domain().to_set()
        low, high = _ends(domain)
        if high is not None:
            last = max(last, high + 1)
            return
        denominators = [1]
        each.foreach_vertex(lambda vertex: denominators.extend(_denominators(vertex)))
        found.append((low, math.lcm(*denominators)))

    lifted.compute_vertices().foreach_cell(cell)
    yield from found
    yield (last, 1)


def _ends(domain: isl.Set) -> tuple[int, int | None]:
    """The first and the last length of an interval of lengths."""
    at = domain.find_dim_by_name(dim_type.param, "n")
    lengths = domain.move_dims(dim_type.set, 0, dim_type.param, at, 1)
    low, high = lengths.dim_min_val(0), lengths.dim_max_val(0)
    first = math.ceil(Fraction(str(low))) if low.is_int() or low.is_rat() else 0
    return max(first, 0), None if not high.is_rat() else math.floor(Fraction(str(high)))


def _denominators(vertex: isl.Vertex) -> list[int]:
    place = vertex.get_expr()
    at = place.find_dim_by_name(dim_type.param, "n")
    affs = (place.get_at(i) for i in range(place.dim(dim_type.out)))
    return [as_int(aff.get_coefficient_val(dim_type.param, at).get_den_val()) for aff in affs]


def _through(at: Sequence[int], values: Sequence[int]) -> Polynomial:
    """The polynomial of degree 2 through three points."""
    (a, b, c), (x, y, z) = at, values
    first, second = Fraction(y - x, b - a), Fraction(z - y, c - b)
    square = (second - first) / (c - a)
    linear = first - square * (a + b)
    return square, linear, x - square * a * a - linear * a


def value_at(formula: Formula, length: int) -> Fraction:
    """The value of a formula; ``length`` is one of those it is for."""
    square, linear, rest = formula.by_residue[0 if formula.multiples else length % formula.period]
    return square * length * length + linear * length + rest


def _extended(formula: Formula, points: isl.Set) -> Formula:
    """The formula with the smallest first length that is found soon."""
    deadline = time.monotonic() + _SEARCH_SECONDS
    first = formula.first
    step = formula.period if formula.multiples else 1
    if formula.multiples:
        first += -first % step
    while first > step and time.monotonic() < deadline:
        if _count_at(points, first - step) != value_at(formula, first - step):
            break
        first -= step
    return Formula(first=first, period=formula.period, by_residue=formula.by_residue, multiples=formula.multiples)
