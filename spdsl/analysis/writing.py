"""Terms → expressions of `spdsl.semantics.nodes`: sums, floors, remainders and comparisons as a person writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce

from typing_extensions import assert_never

from spdsl.analysis.linear import Atom, Floor, Linear, Remainder, linear
from spdsl.semantics.nodes import Apply, Const, Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """``meaning`` gives the expression of every name; ``known`` that of whole terms which have a shorter one."""

    meaning: Mapping[str, Expr]
    known: Mapping[Linear, Expr] = field(default_factory=dict)

    def any_of(self, alternatives: tuple[tuple[Linear, ...], ...]) -> Expr:
        """The bool expression that all terms of some alternative are ≥ 0."""
        return reduce(lambda a, b: _logic("or", a, b), (self.all_of(terms) for terms in alternatives))

    def all_of(self, terms: tuple[Linear, ...]) -> Expr:
        """The bool expression that all terms are ≥ 0; a term and its opposite become one equation."""
        tests: list[Expr] = []
        pending = sorted(set(terms), key=str)
        while pending:
            term = pending.pop(0)
            opposite = term.scaled(-1)
            equal = opposite in pending and opposite != term
            if equal:
                pending.remove(opposite)
            if equal or not _is_certain(term):
                tests.append(self._test(term, "eq" if equal else "ge"))
        return reduce(lambda a, b: _logic("and", a, b), tests) if tests else Const(value=True)

    def _test(self, term: Linear, op: str) -> Expr:
        """``term >= 0`` (or ``== 0``) with its negative part on the right."""
        term = _with_remainders(term)
        match term:
            case Linear(terms=((str() as name, 1),), constant=-1) if self.meaning[name].dtype == "bool":
                return self.meaning[name]
            case Linear(terms=((str() as name, -1),), constant=0) if self.meaning[name].dtype == "bool":
                return Apply(op="not", args=(self.meaning[name],), dtype="bool")
        left = Linear(terms=tuple(t for t in term.terms if t[1] > 0), constant=max(0, term.constant))
        right = Linear(terms=tuple((a, -c) for a, c in term.terms if c < 0), constant=max(0, -term.constant))
        if not left.terms:
            left, right, op = right, left, {"ge": "le"}.get(op, op)
        if op == "le" and right == Linear() and isinstance(left.terms[0][0], Remainder) and len(left.terms) == 1:
            op = "eq"
        return Apply(op=op, args=(self.term(left), self.term(right)), dtype="bool")

    def term(self, term: Linear) -> Expr:
        """The int expression of a term."""
        if term in self.known:
            return self.known[term]
        signed = [self._signed(a, c) for a, c in _absorb(_with_remainders(term)).terms]
        constant = _absorb(_with_remainders(term)).constant
        if not signed:
            return Const(value=constant)
        signed.sort(key=lambda part: part[0] < 0)
        (sign, total), *others = signed
        if sign < 0:
            negative = Apply(op="neg", args=(total,), dtype="int")
            total, constant = (apply("sub", Const(value=constant), total), 0) if constant > 0 else (negative, constant)
        for sign, value in others:
            total = apply("add" if sign > 0 else "sub", total, value)
        if constant:
            total = apply("add" if constant > 0 else "sub", total, Const(value=abs(constant)))
        return total

    def _signed(self, atom: Atom, coefficient: int) -> tuple[int, Expr]:
        """(sign, value) of a multiple of an atom."""
        match atom:
            case Floor(of=of, by=by) if all(c < 0 for _, c in of.terms):
                # floor(-x / d) is -((x + d - 1) // d): the numerator is then mostly not negative
                coefficient = -coefficient
                value = apply("floordiv", self.term(of.scaled(-1).shifted(by - 1)), Const(value=by))
            case Floor(of=of, by=by):
                value = apply("floordiv", self.term(of), Const(value=by))
            case Remainder(of=of, by=by):
                value = apply("mod", self.term(of), Const(value=by))
            case str():
                value = _as_int(self.meaning[atom])
            case _:
                assert_never(atom)
        times = abs(coefficient)
        value = value if times == 1 else apply("mul", Const(value=times), value)
        return (1 if coefficient > 0 else -1), value


def _as_int(expr: Expr) -> Expr:
    """A bool counts as 0 or 1."""
    if expr.dtype != "bool":
        return expr
    return Apply(op="where", args=(expr, Const(value=1), Const(value=0)), dtype="int")


def _is_certain(term: Linear) -> bool:
    """Whether ``term >= 0`` says no more than that a remainder lies in its range."""
    match _with_remainders(term):
        case Linear(terms=((Remainder(), 1),), constant=constant):
            return constant >= 0
        case Linear(terms=((Remainder(by=by), -1),), constant=constant):
            return constant >= by - 1
        case _:
            return False


def _with_remainders(term: Linear) -> Linear:
    """Write ``x - d * (x // d)`` as ``x % d`` where that leaves fewer terms."""
    for atom, coefficient in term.terms:
        if isinstance(atom, Floor) and coefficient % atom.by == 0:
            times = -coefficient // atom.by
            rest = term.without(atom).plus(atom.of, -times)
            if len(rest.terms) < len(term.terms) - 1:
                return _with_remainders(rest).plus(linear([(Remainder(of=atom.of, by=atom.by), times)]))
    return term


def apply(op: str, a: Expr, b: Expr) -> Expr:
    """An int operation on two expressions; ``max(min(a, b), b)`` and its like are b."""
    for one, other in ((a, b), (b, a)):
        match op, one:
            case (("min" | "max"), _) if one == other:
                return one
            case ("min", Apply(op="max", args=parts)) | ("max", Apply(op="min", args=parts)) if other in parts:
                return other
            case _:
                continue
    return Apply(op=op, args=(a, b), dtype="int")


def _logic(op: str, a: Expr, b: Expr) -> Expr:
    return Apply(op=op, args=(a, b), dtype="bool")


def _absorb(term: Linear) -> Linear:
    """Take the constant beside a single floor into it: ``x // d + 1`` is ``(x + d) // d``."""
    floors = [atom for atom, c in term.terms if isinstance(atom, Floor) and c == 1]
    if len(floors) != 1 or not term.constant:
        return term
    (floor,) = floors
    inside = Floor(of=floor.of.shifted(term.constant * floor.by), by=floor.by)
    terms = tuple((inside if atom == floor else atom, c) for atom, c in term.terms)
    return Linear(terms=terms)
