"""When an index leaves its table, decided by isl for every length and every value that the declared bounds allow.

Clauses that are not affine count as kept, which makes the answer weaker, never wrong.
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
from spdsl.analysis.writing import Writer
from spdsl.semantics.nodes import Const, Expr, Extent, Index, Table

_LENGTHS = ("n", "nq", "q_start")


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
