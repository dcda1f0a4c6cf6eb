"""The clauses of a set: those that are affine, and those that may cut the walk of the others.

From a predicate to its affine part, abstracted, and the rest as `Cuts` for one direction.  Nothing is related to tiles
here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce

from spdsl.analysis.affine import NotAffineError, Symbols, abstract
from spdsl.analysis.cuts import By, NoCutError, cuts_of
from spdsl.analysis.tiles import Cuts, ListWalk, Shape
from spdsl.semantics.nodes import Apply, Const, Expr, Load, Table

_OPPOSITE = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt", "eq": "ne", "ne": "eq"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The affine clauses of a set, abstracted, and the others with the reason why there are any."""

    affine: Expr
    symbols: Symbols
    others: tuple[Expr, ...] = ()
    problem: NotAffineError | None = None

    def cuts(self, by: By, block: int) -> Cuts | ListWalk | None:
        """The cuts of the clauses that are not affine, in one direction; None if there is no such clause."""
        if self.problem is None:
            return None
        try:
            return cuts_of(self.others, by=by, block=block, tables=self.symbols.tables)
        except NoCutError:
            return ListWalk(reason=self.problem.why + self._advice(), culprit=self.problem.culprit)

    def _advice(self) -> str:
        """What may help where the culprit reads a table: a promise that it is sorted."""
        match self.problem:
            case NotAffineError(culprit=Load(table=name)):
                table = next((each for each in self.symbols.tables if each.name == name), None)
            case _:
                return ""
        if table is None or table.sorted or table.dtype != "int" or not table.axes or table.axes[-1].kind != "token":
            return ""
        return " and not declared `sorted`"


def affine_part(keep: Expr, *, shape: Shape, heads: int, groups: int, tables: Sequence[Table]) -> Parts:
    """What is affine of a set, whole or clause by clause."""

    def abstracted(expr: Expr) -> tuple[Expr, Symbols]:
        (affine,), symbols = abstract([expr], shape=shape, heads=heads, groups=groups, tables=tables)
        return affine, symbols

    try:
        affine, symbols = abstracted(keep)
        return Parts(affine=affine, symbols=symbols)
    except NotAffineError as found:
        problem = found
    clauses = _clauses_of(keep)
    fit = [_fits(clause, abstracted) for clause in clauses]
    affine, symbols = abstracted(_conjunction([clause for clause, fits in zip(clauses, fit, strict=True) if fits]))
    others = tuple(clause for clause, fits in zip(clauses, fit, strict=True) if not fits)
    return Parts(affine=affine, symbols=symbols, others=others, problem=problem)


def _fits(clause: Expr, abstracted: Callable[[Expr], object]) -> bool:
    try:
        abstracted(clause)
    except NotAffineError:
        return False
    return True


def _clauses_of(keep: Expr) -> tuple[Expr, ...]:
    """The parts of a conjunction; negations stand before single comparisons where they can."""
    return tuple(_clauses(keep, positive=True))


def _clauses(expr: Expr, *, positive: bool) -> Iterator[Expr]:
    match expr:
        case Apply(op="and", args=args) if positive:
            for arg in args:
                yield from _clauses(arg, positive=True)
        case Apply(op="or", args=args) if not positive:
            for arg in args:
                yield from _clauses(arg, positive=False)
        case Apply(op="not", args=(inner,)):
            yield from _clauses(inner, positive=not positive)
        case Apply(op=op, args=(left, _)) if not positive and op in _OPPOSITE and left.dtype == "int":
            yield replace(expr, op=_OPPOSITE[op])
        case _:
            yield expr if positive else Apply(op="not", args=(expr,), dtype="bool", span=expr.span)


def _conjunction(clauses: Sequence[Expr]) -> Expr:
    """All of these clauses together."""
    if not clauses:
        return Const(value=True)
    return reduce(lambda a, b: Apply(op="and", args=(a, b), dtype="bool"), clauses)
