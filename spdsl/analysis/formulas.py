"""Counts of pairs as text: from `cardinality.Count` to formulas that a person reads.

Polynomials are simplified and printed by sympy.  A formula that differs by residue of n is written with ``r = n % p``
where its coefficients are polynomials of r; else the formula for multiples of the period is given, and said to be that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import sympy

from spdsl.analysis.cardinality import Count, Formula, Polynomial, count
from spdsl.analysis.pairs import Subject
from spdsl.analysis.polynomials import Counted, polynomial

_N, _R = sympy.symbols("n r", positive=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Kept pairs of a head on average, over all n × n pairs, and keys per query at large n; for n ≥ ``first``.

    ``where`` says what else must hold of n, or what r is.
    """

    pairs: str
    share: str
    keys: str
    first: int
    where: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """What is certainly kept and what may be; the same object where they agree."""

    least: Share
    most: Share


def shares(subject: Subject) -> Shares | str:
    """The kept pairs of a subject as formulas, or why there are none."""
    free = polynomial(subject)
    if free is not None:
        share = _of_parameters(free)
        return Shares(least=share, most=share)
    found = count(subject)
    if isinstance(found, str):
        return found
    least = _share(found.least, found)
    return Shares(least=least, most=least if found.least == found.most else _share(found.most, found))


def _of_parameters(found: Counted) -> Share:
    n = sympy.Symbol("n")
    square, linear = (found.pairs.coeff(n, power) for power in (2, 1))
    return Share(
        pairs=_text(found.pairs),
        share=sympy.sstr(sympy.cancel(found.pairs / n**2)),
        keys=f"about {_text(square * n if square else linear)} keys per query",
        first=1,
        where=", ".join(found.conditions),
    )


def _share(formula: Formula | int, counted: Count) -> Share:
    if isinstance(formula, int):
        assert counted.length is not None
        square = counted.length * counted.length
        pairs = Fraction(formula, counted.units)
        keys = pairs / counted.length
        return Share(
            pairs=_number(pairs), share=f"{float(pairs / square):.4%}", keys=f"{_number(keys)} keys per query", first=1
        )
    expr, where = _expression(formula)
    expr = expr / counted.units
    return Share(
        pairs=_text(expr),
        share=sympy.sstr(sympy.cancel(expr / _N**2)),
        keys=_keys(formula, counted.units),
        first=formula.first,
        where=where,
    )


def _number(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else f"{float(value):.2f}"


def _expression(formula: Formula) -> tuple[sympy.Expr, str]:
    if formula.multiples:
        where = f"n % {formula.period} == 0"
        return _polynomial(formula.by_residue[0]), where
    if len(set(formula.by_residue)) == 1:
        return _polynomial(formula.by_residue[0]), ""
    parts = [_of_residue([each[i] for each in formula.by_residue]) for i in range(3)]
    if any(part is None for part in parts):
        return _polynomial(formula.by_residue[0]), f"n % {formula.period} == 0"
    square, linear, rest = parts
    return square * _N**2 + linear * _N + rest, f"r = n % {formula.period}"


def _polynomial(of: Polynomial) -> sympy.Expr:
    square, linear, rest = (sympy.Rational(each.numerator, each.denominator) for each in of)
    return square * _N**2 + linear * _N + rest


def _of_residue(values: Sequence[Fraction]) -> sympy.Expr | None:
    """A polynomial of r of degree 2 at most that has these values at 0, 1, 2 and so on."""
    rationals = [sympy.Rational(value.numerator, value.denominator) for value in values]
    points = list(enumerate(rationals))
    found = sympy.interpolate(points[:3], _R) if len(points) > 1 else rationals[0]
    poly = sympy.Poly(found, _R)
    return poly.as_expr() if all(poly.eval(at) == value for at, value in points) else None


def _text(expr: sympy.Expr) -> str:
    """The shorter of the factored and the expanded form."""
    forms = [sympy.sstr(sympy.expand(expr)), sympy.sstr(sympy.factor(expr))]
    return str(min(forms, key=len))


def _keys(formula: Formula, units: int) -> str:
    """Keys per query, to leading order."""
    squares, linears = ({each[i] for each in formula.by_residue} for i in (0, 1))
    if len(squares) > 1:
        return ""
    (square,) = squares
    if square:
        return f"about {_text(_polynomial((Fraction(0), square / units, Fraction(0))))} keys per query"
    if len(linears) > 1:
        return ""
    (linear,) = linears
    return f"about {_number(linear / units)} keys per query"
