"""Closed forms → expressions of `spdsl.semantics.nodes` for kernels, with floor semantics and exact run-time lengths.

Names become what they stand for; rounded lengths become divisions of the exact ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce

from typing_extensions import assert_never

from spdsl.analysis.full import ClosedSlot
from spdsl.analysis.linear import Atom, Floor, Linear, Remainder, linear
from spdsl.analysis.rows import Branch, ClosedForm
from spdsl.analysis.tiles import Interval, Slot
from spdsl.semantics.nodes import Apply, Const, Expr

FAR = 1 << 30
"""Stands for no bound; no tile index comes near it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Emission:
    """How names are written.

    ``meaning`` gives the expression of every name, the walked tile included.  ``count`` is the number of walked tiles
    as it occurs in terms (rounded), ``exact_count`` the expression of the number that exist; with ``clamp`` the first may
    be larger, and walks must not go that far.
    """

    meaning: Mapping[str, Expr]
    count: Linear
    exact_count: Expr
    clamp: bool

    def slot(self, slot: ClosedSlot) -> Slot:
        """The slot as kernels and the CPU back end read it."""
        touched = self._interval(slot.touched)
        full = None
        if slot.full is not None:
            lo = self._low(slot.full.lows) if slot.full.lows else touched.lo
            hi = self._high(slot.full.highs) if slot.full.highs else touched.hi
            full = Interval(lo=lo, hi=hi)
        lattice = slot.touched.lattice
        return Slot(
            touched=touched,
            full=full,
            step=lattice.step,
            run=lattice.run,
            phase=self.term(lattice.phase) if lattice.step > 1 else None,
            filter=self._any(slot.touched.filters) if slot.touched.filters else None,
        )

    def _interval(self, form: ClosedForm) -> Interval:
        hi = self._high(form.highs)
        if self.clamp and not self._names_count(form.highs):
            hi = apply("min", hi, self.exact_count)
        return Interval(lo=self._low(form.lows), hi=hi)

    def _names_count(self, highs: tuple[Branch, ...]) -> bool:
        last = self.count.shifted(-1)
        return all(last in branch.terms for branch in highs)

    def _low(self, lows: tuple[Branch, ...]) -> Expr:
        branches = [self._branch(b, b.terms, "max", FAR) for b in _in_order(lows)]
        return reduce(lambda a, b: apply("min", a, b), branches)

    def _high(self, highs: tuple[Branch, ...]) -> Expr:
        # closed forms include their upper bound, intervals do not
        branches = [self._branch(b, [t.shifted(1) for t in b.terms], "min", -FAR) for b in _in_order(highs)]
        return reduce(lambda a, b: apply("max", a, b), branches)

    def _branch(self, branch: Branch, terms: Iterable[Linear], op: str, missing: int) -> Expr:
        value = reduce(lambda a, b: apply(op, a, b), (self.term(t) for t in sorted(terms, key=_length_then_text)))
        if not branch.guards:
            return value
        # not 0: a lower bound may be negative, and [lo, 0) would not be empty
        return Apply(op="where", args=(self.conjunction(branch.guards), value, Const(value=missing)), dtype="int")

    def _any(self, alternatives: tuple[tuple[Linear, ...], ...]) -> Expr:
        return reduce(lambda a, b: _logic("or", a, b), (self.conjunction(terms) for terms in alternatives))

    def conjunction(self, terms: tuple[Linear, ...]) -> Expr:
        """The bool expression that all terms are ≥ 0; a term and its opposite become one equation."""
        tests: list[Expr] = []
        pending = list(dict.fromkeys(terms))
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
        left = Linear(terms=tuple(t for t in term.terms if t[1] > 0), constant=max(0, term.constant))
        right = Linear(terms=tuple((a, -c) for a, c in term.terms if c < 0), constant=max(0, -term.constant))
        if not left.terms:
            left, right, op = right, left, {"ge": "le"}.get(op, op)
        return Apply(op=op, args=(self.term(left), self.term(right)), dtype="bool")

    def term(self, term: Linear) -> Expr:
        """The int expression of a term."""
        if term == self.count:
            return self.exact_count
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
                value = self.meaning[atom]
            case _:
                assert_never(atom)
        times = abs(coefficient)
        value = value if times == 1 else apply("mul", Const(value=times), value)
        return (1 if coefficient > 0 else -1), value


def _length_then_text(term: Linear) -> tuple[int, str]:
    return len(term.terms), str(term)


def _in_order(branches: tuple[Branch, ...]) -> list[Branch]:
    """An order that does not depend on isl's."""
    return sorted(branches, key=lambda b: (len(b.guards), [str(t) for t in (*b.terms, *b.guards)]))


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
    """An int operation on two expressions."""
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
