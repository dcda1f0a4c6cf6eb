"""How many pairs a pattern keeps, as a polynomial of the length and of parameters that are left free.

For sets without quotients whose vertices are integers: beyond the lengths at which their vertices change, the number of
points is one polynomial of n and the parameters together, of degree 2 at most (the theory is that of `cardinality`,
with several parameters).  So exact counts at the corners of one simplex of side 2 in the region determine it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import islpy as isl
import sympy
from islpy import dim_type

from spdsl.analysis.budget import BudgetSpentError, as_int, limited
from spdsl.analysis.pairs import Pairs, Subject
from spdsl.analysis.wording import describe
from spdsl.semantics.nodes import Load

_SECONDS = 1.5
_MOST = 3  # parameters, n among them


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """The number of kept pairs as a sympy expression over n and parameters, where ``conditions`` hold."""

    pairs: sympy.Expr
    conditions: tuple[str, ...]


def polynomial(subject: Subject) -> Counted | None:
    """The polynomial for a subject with free parameters; None if it has none, or there is no single polynomial."""
    try:
        with limited(seconds=_SECONDS):
            pairs = Pairs.of([subject])
            names = {name: expr for name, expr in pairs.symbols.meaning if name != "n"}
            is_plain = all(isinstance(expr, Load) and not expr.indices for expr in names.values())
            if not 0 < len(names) < _MOST or pairs.atoms or not is_plain:
                return None
            labels = {"n": "n", **{name: describe(expr) for name, expr in names.items()}}
            return _counted(pairs, labels)
    except BudgetSpentError:
        return None


def _counted(pairs: Pairs, labels: Mapping[str, str]) -> Counted | None:
    points = pairs.kept[0]
    count = points.dim(dim_type.param)
    names = [points.get_dim_name(dim_type.param, i) for i in range(count)]
    # regions of parameters are sets of [i0, i1, …], in the order of their names
    region = pairs.exist.params().move_dims(dim_type.set, 0, dim_type.param, 0, count).reset_tuple_id()
    known = region
    for piece in points.make_disjoint().compute_divs().get_basic_sets():
        cell = None if piece.dim(dim_type.div) else _last_cell(piece)
        if cell is None:
            return None
        region = region.intersect(cell)
    basic = region.coalesce().remove_redundancies().get_basic_sets()
    if len(basic) != 1:
        return None
    symbols = [sympy.Symbol(labels[name]) for name in names]
    found = _through(points, region, names, symbols)
    if found is None:
        return None
    conditions = isl.Set.from_basic_set(basic[0]).gist(known).get_basic_sets()
    return Counted(pairs=found, conditions=_conditions(conditions[0], symbols))


def _last_cell(piece: isl.BasicSet) -> isl.Set | None:
    """Where the vertices of a piece are those at large n, if that is one region and they are integers."""
    found: list[isl.Set] = []
    integers = True

    def vertex(each: isl.Vertex) -> None:
        nonlocal integers
        place = each.get_expr()
        affs = [place.get_at(i) for i in range(place.dim(dim_type.out))]
        integers = integers and all(aff.get_denominator_val().is_one() for aff in affs)

    def cell(each: isl.Cell) -> None:
        domain = each.get_domain()
        if _goes_on(domain):
            found.append(_region_of(domain))
            each.foreach_vertex(vertex)

    piece.compute_vertices().foreach_cell(cell)
    return found[0] if len(found) == 1 and integers else None


def _region_of(domain: isl.BasicSet) -> isl.Set:
    """The integer points of a rational set of parameters, as a set of ``[i0, i1, …]``."""
    places = [f"i{i}" for i in range(domain.dim(dim_type.param))]
    texts = []
    for constraint in domain.get_constraints():
        by = [as_int(constraint.get_coefficient_val(dim_type.param, i)) for i in range(len(places))]
        rest = as_int(constraint.get_constant_val())
        terms = " + ".join([*(f"{c} * {place}" for c, place in zip(by, places, strict=True)), str(rest)])
        texts.append(f"{terms} {'=' if constraint.is_equality() else '>='} 0")
    return isl.Set(f"{{ [{', '.join(places)}] : {' and '.join(texts) or '0 = 0'} }}")


def _goes_on(domain: isl.BasicSet) -> bool:
    """Whether n may grow without end wherever it is in the region."""
    at = isl.Set.from_basic_set(domain).find_dim_by_name(dim_type.param, "n")
    for constraint in domain.get_constraints():
        of = constraint.get_coefficient_val(dim_type.param, at)
        if of.is_neg() or (constraint.is_equality() and not of.is_zero()):
            return False
    return True


def _through(
    points: isl.Set, region: isl.Set, names: Sequence[str], symbols: Sequence[sympy.Symbol]
) -> sympy.Expr | None:
    """The polynomial of degree 2 through a simplex of points of the region."""
    corners = [region]
    for at in range(len(names)):
        here = ", ".join(f"i{i}" for i in range(len(names)))
        moved = ", ".join(f"i{i} - 2" if i == at else f"i{i}" for i in range(len(names)))
        corners.append(region.apply(isl.Map(f"{{ [{here}] -> [{moved}] }}")))
    inside = reduce(lambda a, b: a.intersect(b), corners)
    if inside.is_empty():
        return None
    base = inside.lexmin().sample_point()
    start = [as_int(base.get_coordinate_val(dim_type.set, i)) for i in range(len(names))]
    steps_taken = [s for s in itertools.product(range(3), repeat=len(names)) if sum(s) <= 2]
    monomials = [sympy.prod(x**power for x, power in zip(symbols, s, strict=True)) for s in steps_taken]
    rows, values = [], []
    for step in steps_taken:
        place = [a + b for a, b in zip(start, step, strict=True)]
        rows.append([each.subs(dict(zip(symbols, place, strict=True))) for each in monomials])
        values.append(_count_at(points, names, place))
    solution = sympy.Matrix(rows).LUsolve(sympy.Matrix(values))
    return sympy.expand(sum(c * m for c, m in zip(solution, monomials, strict=True)))


def _count_at(points: isl.Set, names: Sequence[str], place: Sequence[int]) -> int:
    isl.DEFAULT_CONTEXT.reset_operations()
    for name, value in zip(names, place, strict=True):
        points = points.fix_val(dim_type.param, points.find_dim_by_name(dim_type.param, name), isl.Val(value))
    return as_int(points.count_val())


def _conditions(region: isl.BasicSet, symbols: Sequence[sympy.Symbol]) -> tuple[str, ...]:
    """What must hold of n and the parameters, in words of the language."""
    found = []
    for constraint in region.get_constraints():
        by = [as_int(constraint.get_coefficient_val(dim_type.set, i)) for i in range(len(symbols))]
        term = sympy.Integer(as_int(constraint.get_constant_val()))
        term += sum(c * x for c, x in zip(by, symbols, strict=True) if x.name != "n")
        of = next(c for c, x in zip(by, symbols, strict=True) if x.name == "n")
        sign = "==" if constraint.is_equality() else ">="
        alone = [x for x in symbols if term.coeff(x) == 1 and (term - x).is_number]
        if of > 0:
            found.append(f"n {sign} {sympy.sstr(-term / of)}")
        elif alone and not of:
            found.append(f"{alone[0]} {sign} {alone[0] - term}")
        else:
            found.append(f"{sympy.sstr(of * sympy.Symbol('n') + term)} {sign} 0")
    return tuple(sorted(found))
