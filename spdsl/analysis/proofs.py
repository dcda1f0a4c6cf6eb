"""Questions about sets of pairs that isl decides: empty rows, causality, equality, and reads outside a table.

All answers are about every length and every value that the declared bounds allow.  Clauses that are not affine count as
kept where that makes the answer weaker, never wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import islpy as isl
from islpy import dim_type

from spdsl.analysis.affine import NotAffineError, Symbols, abstract, children, pairs_where, space_of, value_of
from spdsl.analysis.budget import BudgetSpentError, limited
from spdsl.analysis.linear import Linear, UnknownDivisionError, from_constraint
from spdsl.analysis.tiles import Shape
from spdsl.analysis.wording import describe
from spdsl.analysis.writing import Writer
from spdsl.semantics.nodes import Const, Expr, Extent, Index, Table

_LENGTHS = ("n", "nq", "q_start")
_SMALL = 1 << 20  # counterexamples are looked for among these values first


@dataclass(frozen=True, slots=True, kw_only=True)
class EmptyRow:
    """A query that keeps nothing, and lengths and values for which it does, by the names the user knows."""

    query: int
    values: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        return ", ".join(f"{name} = {value}" for name, value in (("q", self.query), *self.values))


def empty_rows(
    keep: Expr,
    *,
    heads: int = 1,
    groups: int = 1,
    tables: Sequence[Table] = (),
    shape: Shape = "square",
    length: int | None = None,
) -> EmptyRow | None:
    """A small example of a query that keeps nothing, or None if there is none or none is found.

    ``length`` is a value of ``n`` that every call is known to have.
    """
    try:
        question = _Question.ask(
            [keep], heads=heads, groups=groups, tables=tables, shape=shape, over=True, length=length
        )
        with limited():
            (kept,) = question.sets()
            exist = question.existing()
            missing = exist.project_out(dim_type.set, 1, 1).subtract(kept.project_out(dim_type.set, 1, 1))
            return None if missing.is_empty() else _example(missing, question.symbols)
    except (NotAffineError, BudgetSpentError):
        return None


def is_causal(keep: Expr, *, heads: int = 1, groups: int = 1, tables: Sequence[Table] = ()) -> bool:
    """Whether ``k <= q`` is proved for every kept pair, wherever the queries start."""
    try:
        question = _Question.ask([keep], heads=heads, groups=groups, tables=tables, shape="offset", over=True)
        with limited():
            (kept,) = question.sets()
            local = isl.LocalSpace.from_space(kept.get_space())
            q, k = (isl.Aff.var_on_domain(local, dim_type.set, side) for side in (0, 1))
            return bool(kept.is_subset(k.le_set(q)))
    except (NotAffineError, BudgetSpentError):
        return False


def equal(a: Expr, b: Expr, *, heads: int = 1, groups: int = 1, tables: Sequence[Table] = ()) -> bool | None:
    """Whether two expressions keep the same pairs, for all lengths and starts; None if that is not decided."""
    try:
        question = _Question.ask([a, b], heads=heads, groups=groups, tables=tables, shape="offset")
        with limited():
            one, other = question.sets()
            return bool(one.is_equal(other))
    except (NotAffineError, BudgetSpentError):
        return None


def violations(
    index: Expr,
    guard: Expr,
    extent: Expr,
    *,
    heads: int = 1,
    groups: int = 1,
    tables: Sequence[Table] = (),
    shape: Shape = "offset",
    length: int | None = None,
) -> Expr | Literal["never", "unknown"]:
    """When an index leaves ``0 <= index < extent`` for an existing pair at which ``guard`` holds.

    The condition is a bool expression over ``n nq q_start``, other extents and loads that depend on neither q nor k;
    over ``h g b`` only if such loads mention them, and then it is to be tested for each.  ``unknown`` means that
    nothing is proved, not even a weaker condition: test the values.
    """
    try:
        question = _Question.ask(
            [guard, index, extent], heads=heads, groups=groups, tables=tables, shape=shape, over=True, length=length
        )
        with limited():
            return question.outside()
    except (NotAffineError, BudgetSpentError, UnknownDivisionError):
        return "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """Abstracted expressions in a space that has all lengths and names as parameters."""

    exprs: tuple[Expr, ...]
    symbols: Symbols
    space: isl.Space
    square: bool
    exact: bool
    length: int | None

    @staticmethod
    def ask(
        exprs: Sequence[Expr],
        *,
        heads: int,
        groups: int,
        tables: Sequence[Table],
        shape: Shape,
        over: bool = False,
        length: int | None = None,
    ) -> _Question:
        square = shape == "square"
        lengths = tuple(Extent(name=name) for name in (_LENGTHS[:1] if square else _LENGTHS))
        options: dict[str, object] = {"shape": shape, "heads": heads, "groups": groups, "tables": tables}
        found, symbols = abstract([*lengths, *exprs], **options, over=over)  # type: ignore[arg-type]
        exact = not over or _is_affine(exprs, options)
        return _Question(
            exprs=found[len(lengths) :],
            symbols=symbols,
            space=space_of(symbols.names),
            square=square,
            exact=exact,
            length=length,
        )

    def existing(self) -> isl.Set:
        """The pairs of positions that exist, exactly, with everything that is known about the parameters."""

        def value(expr: Expr) -> isl.PwAff:
            return value_of(expr, self.space)

        q, k, zero = value(Index(name="q")), value(Index(name="k")), value(Const(value=0))
        n = value(Extent(name="n"))
        start, rows = (zero, n) if self.square else (value(Extent(name="q_start")), value(Extent(name="nq")))
        known = self.symbols.context(self.space)
        if self.length is not None:
            known = known.intersect(n.eq_set(value(Const(value=self.length))))
        queries = q.ge_set(zero).intersect(q.ge_set(start)).intersect(q.lt_set(start.add(rows)))
        return queries.intersect(k.ge_set(zero)).intersect(k.lt_set(n)).intersect(known)

    def sets(self) -> tuple[isl.Set, ...]:
        """The kept pairs of all expressions."""
        exist = self.existing()
        return tuple(pairs_where(expr, self.space).intersect(exist).coalesce() for expr in self.exprs)

    def outside(self) -> Expr | Literal["never", "unknown"]:
        """The answer of `violations`."""
        guard, index, extent = self.exprs
        place = value_of(index, self.space)
        below = place.lt_set(value_of(Const(value=0), self.space))
        bad = below.union(place.ge_set(value_of(extent, self.space)))
        pairs = bad.intersect(pairs_where(guard, self.space)).intersect(self.existing())
        if pairs.is_empty():
            return "never"
        if not self.exact:
            return "unknown"
        return _condition(self._without_heads(pairs.params()), self.symbols)

    def _without_heads(self, condition: isl.Set) -> isl.Set:
        """For some head: h and g are projected out, unless a load's value goes with them."""
        opaque = [expr for name, expr in self.symbols.meaning if name.startswith("$")]
        if any(_mentions(expr, ("h", "g")) for expr in opaque):
            return condition
        for name in ("h", "g"):
            position = condition.find_dim_by_name(dim_type.param, name)
            if position >= 0:
                condition = condition.project_out(dim_type.param, position, 1)
        return condition


def _is_affine(exprs: Sequence[Expr], options: dict[str, object]) -> bool:
    try:
        abstract(exprs, **options)  # type: ignore[arg-type]
    except NotAffineError:
        return False
    return True


def _mentions(expr: Expr, names: tuple[str, ...]) -> bool:
    return (isinstance(expr, Index) and expr.name in names) or any(_mentions(c, names) for c in children(expr))


def _condition(parameters: isl.Set, symbols: Symbols) -> Expr:
    """A set of parameters as a bool expression.  Raises `UnknownDivisionError`."""
    simple = parameters.coalesce().compute_divs()
    writer = Writer(meaning=dict(symbols.meaning))
    alternatives: list[tuple[Linear, ...]] = []
    for basic in simple.get_basic_sets():
        terms: list[Linear] = []
        for constraint in basic.get_constraints():
            term = from_constraint(constraint)
            terms += [term, term.scaled(-1)] if constraint.is_equality() else [term]
        alternatives.append(tuple(terms))
    return writer.any_of(tuple(alternatives))


def _example(rows: isl.Set, symbols: Symbols) -> EmptyRow:
    """A point of a set of rows ``[q]``: the smallest in the order of the names, if some point has no negative value."""
    names = [*(str(rows.get_dim_name(dim_type.param, i)) for i in range(rows.dim(dim_type.param))), "q"]
    points = rows.move_dims(dim_type.set, 0, dim_type.param, 0, rows.dim(dim_type.param))
    small = points
    for position in range(len(names)):
        small = small.lower_bound_val(dim_type.set, position, isl.Val(0))
        small = small.upper_bound_val(dim_type.set, position, isl.Val(_SMALL))
    point = (points if small.is_empty() else small.lexmin()).sample_point()
    found = {name: int(point.get_coordinate_val(dim_type.set, i).to_python()) for i, name in enumerate(names)}
    values = tuple((describe(expr), found[name]) for name, expr in symbols.meaning)
    return EmptyRow(query=found["q"], values=values)
