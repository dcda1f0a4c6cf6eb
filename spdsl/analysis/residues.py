"""Masks whose kept pairs all have ``(q - k) % modulus == shift``: from an expression to `Residues`.

The modulus is read off the stride of ``{q - k}``; clauses that are not affine are left out for that, which only adds
pairs.  What a modulus means for tiles is decided where tiles are related (`spdsl.analysis.relation`); here are the
names of the classes and the facts about them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import gcd

import islpy as isl

from spdsl.analysis.affine import NotAffineError, abstract, pairs_where, space_of
from spdsl.analysis.budget import BudgetSpentError, limited
from spdsl.analysis.linear import Linear, nonnegative, number, symbol, to_aff
from spdsl.analysis.tiles import Residues, Shape
from spdsl.semantics.nodes import Apply, Const, Expr, Index, Table
from spdsl.semantics.rewrite import conjuncts

LARGEST = 128
"""The largest modulus.  At sensible lengths more classes than this have fewer rows than a tile."""

OPERATIONS = 150_000
"""isl operations for the search: some tens of milliseconds.  Masks that need more than that rarely have a stride."""

_QUERY = "q class"
_KEY = "k class"


def residues_of(keep: Expr, *, shape: Shape, heads: int, groups: int, tables: Sequence[Table] = ()) -> Residues | None:
    """The residues of an expanded predicate; None where kept distances have no common stride, or none is found."""
    try:
        with limited(operations=OPERATIONS):
            found = _modulus(keep, shape, heads, groups, tables)
            return None if found is None else _without_implied(keep, found, shape, heads, groups)
    except (NotAffineError, BudgetSpentError):
        return None


def _modulus(keep: Expr, shape: Shape, heads: int, groups: int, tables: Sequence[Table]) -> tuple[int, int, int] | None:
    """The modulus, the remainder, and the stride of the distances."""
    (affine,), symbols = abstract([keep], shape=shape, heads=heads, groups=groups, tables=tables, over=True)
    space = space_of(symbols.names)
    kept = pairs_where(affine, space).intersect(symbols.context(space))
    stride, offset = _stride(kept.apply(isl.Map.from_aff(_difference(space))).project_out_all_params())
    if stride == 0:
        return None  # nothing is kept, or one distance
    # A divisor of a stride is a stride too.
    modulus = max(divisor for divisor in range(1, LARGEST + 1) if stride % divisor == 0)
    same = _same_class(modulus, offset % modulus, space)
    return (modulus, offset % modulus, stride) if modulus > 1 and kept.is_subset(same) else None


def _stride(distances: isl.Set) -> tuple[int, int]:
    """The largest s, and a value c, so that every distance is c plus a multiple of s; s is 0 for a single distance."""
    stride, first = 0, None
    for basic in distances.get_basic_sets():
        if basic.is_empty():
            continue
        step, value = _stride_of(isl.Set.from_basic_set(basic))
        first = value if first is None else first
        stride = gcd(stride, step, value - first)
    return stride, first or 0


def _stride_of(distances: isl.Set) -> tuple[int, int]:
    if distances.is_singleton():
        return 0, int(distances.sample_point().get_coordinate_val(isl.dim_type.set, 0).to_python())
    info = distances.get_stride_info(0)
    return int(info.get_stride().to_python()), int(info.get_offset().get_constant_val().to_python())


def _difference(space: isl.Space) -> isl.Aff:
    local = isl.LocalSpace.from_space(space)
    q, k = (isl.Aff.var_on_domain(local, isl.dim_type.set, side) for side in (0, 1))
    return q.sub(k)


def _same_class(modulus: int, shift: int, space: isl.Space) -> isl.Set:
    """The pairs with ``(q - k) % modulus == shift``."""
    zero = isl.Aff.zero_on_domain(isl.LocalSpace.from_space(space))
    return _difference(space).mod_val(isl.Val(modulus)).eq_set(zero.add_constant_val(isl.Val(shift)))


# ---------------------------------------------------------------- what is left to test


def _without_implied(keep: Expr, found: tuple[int, int, int], shape: Shape, heads: int, groups: int) -> Residues:
    modulus, shift, stride = found
    left = [clause for clause in conjuncts(keep) if not _is_implied(clause, (modulus, shift), shape, heads, groups)]
    rest = reduce(lambda a, b: Apply(op="and", args=(a, b), dtype="bool"), left) if left else Const(value=True)
    return Residues(modulus=modulus, shift=shift, keep=rest, stride=stride)


def _is_implied(clause: Expr, found: tuple[int, int], shape: Shape, heads: int, groups: int) -> bool:
    """Whether the clause holds for every pair of the classes that meet."""
    try:
        (affine,), symbols = abstract([clause], shape=shape, heads=heads, groups=groups)
    except NotAffineError:
        return False
    space = space_of(symbols.names)
    return bool(_same_class(*found, space).intersect(symbols.context(space)).is_subset(pairs_where(affine, space)))


# ---------------------------------------------------------------- classes in sets


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """The first rows of a query class and of the key class that it meets, as terms, and what their names mean."""

    modulus: int
    shift: int
    query: Linear
    key: Linear
    square: bool

    @property
    def meaning(self) -> Mapping[str, Expr]:
        """What kernels know by these names."""
        known = {_QUERY: Index(name="q_class"), _KEY: Index(name="k_class")}
        return {name: expr for name, expr in known.items() if symbol(name) in (self.query, self.key)}

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters of the sets."""
        return tuple(self.meaning)

    def context(self, space: isl.Space) -> isl.Set:
        """Which pairs of classes there are, as a set of ``space``."""
        known = isl.Set.universe(space)
        for name in self.names:
            for fact in (symbol(name), symbol(name, -1).shifted(self.modulus - 1)):
                known = known.intersect(nonnegative(fact, space))
        if len(self.names) == 2:
            start = number(0) if self.square else symbol("q_start")
            apart = self.query.plus(start).plus(self.key, -1).shifted(-self.shift)
            zero = isl.Aff.zero_on_domain(isl.LocalSpace.from_space(space))
            known = known.intersect(to_aff(apart, space).mod_val(isl.Val(self.modulus)).eq_set(zero))
        return known


def classes_of(residues: Residues | None, shape: Shape) -> Classes:
    """The classes of ``residues``; without them one class of all rows."""
    square = shape == "square"
    if residues is None:
        return Classes(modulus=1, shift=0, query=number(0), key=number(0), square=square)
    same = square and residues.shift == 0
    return Classes(
        modulus=residues.modulus,
        shift=residues.shift,
        query=symbol(_QUERY),
        key=symbol(_QUERY if same else _KEY),
        square=square,
    )
