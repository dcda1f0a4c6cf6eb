"""Integer linear terms with floor division: the form in which tile bounds are found, and its way to and from isl.

A term is ``constant + Σ coefficient · atom``; an atom is a name or the floor of a term divided by a positive constant.
Nothing here knows what a name stands for: `emission` does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import TypeAlias

import islpy as isl
from islpy import dim_type

TILE = "tile"
"""The name of the walked tile, the one set dimension of a row's space; all other names are parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """``of // by``, with ``by`` positive."""

    of: Linear
    by: int

    def __str__(self) -> str:
        return f"({self.of})//{self.by}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Remainder:
    """``of % by``, with ``by`` positive; only made for printing, isl has floors alone."""

    of: Linear
    by: int

    def __str__(self) -> str:
        return f"({self.of})%{self.by}"


Atom: TypeAlias = str | Floor | Remainder


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """``constant + Σ coefficient · atom``; no coefficient is 0, atoms stand in a fixed order."""

    terms: tuple[tuple[Atom, int], ...] = ()
    constant: int = 0

    def __str__(self) -> str:
        return "".join(f"{c:+d}*{a} " for a, c in self.terms) + f"{self.constant:+d}"

    def plus(self, other: Linear, times: int = 1) -> Linear:
        """``self + times · other``."""
        return linear((*self.terms, *((a, c * times) for a, c in other.terms)), self.constant + times * other.constant)

    def shifted(self, by: int) -> Linear:
        """``self + by``."""
        return Linear(terms=self.terms, constant=self.constant + by)

    def scaled(self, by: int) -> Linear:
        """``by · self``."""
        return linear(((a, c * by) for a, c in self.terms), self.constant * by)

    def coefficient(self, atom: Atom) -> int:
        """How often ``atom`` occurs outside floors."""
        return next((c for a, c in self.terms if a == atom), 0)

    def without(self, atom: Atom) -> Linear:
        """The same term with coefficient 0 for ``atom``."""
        return Linear(terms=tuple((a, c) for a, c in self.terms if a != atom), constant=self.constant)

    def mentions(self, name: str) -> bool:
        """Whether ``name`` occurs, inside floors or outside."""
        return any(a == name or (isinstance(a, Floor) and a.of.mentions(name)) for a, _ in self.terms)

    def floors_of(self, name: str) -> tuple[Floor, ...]:
        """The floors in which ``name`` occurs."""
        return tuple(a for a, _ in self.terms if isinstance(a, Floor) and a.of.mentions(name))


def linear(terms: Iterable[tuple[Atom, int]], constant: int = 0) -> Linear:
    """Collect equal atoms, drop zeros, sort."""
    total: dict[Atom, int] = {}
    for atom, coefficient in terms:
        total[atom] = total.get(atom, 0) + coefficient
    kept = sorted(
        ((a, c) for a, c in total.items() if c), key=lambda term: (not isinstance(term[0], str), str(term[0]))
    )
    return Linear(terms=tuple(kept), constant=constant)


def number(value: int) -> Linear:
    """A constant term."""
    return Linear(constant=value)


def symbol(name: str, coefficient: int = 1) -> Linear:
    """``coefficient · name``."""
    return linear([(name, coefficient)])


def floor_div(term: Linear, by: int) -> Linear:
    """``⌊term / by⌋`` with whatever is a multiple of ``by`` taken out of the floor."""
    common = reduce(math.gcd, (abs(c) for _, c in term.terms), by)
    if common > 1:
        term = Linear(terms=tuple((a, c // common) for a, c in term.terms), constant=term.constant // common)
        by //= common
    outside = linear(((a, c // by) for a, c in term.terms if c % by == 0), term.constant // by)
    inside = [(a, c) for a, c in term.terms if c % by]
    if not inside:
        return outside
    return outside.plus(linear([(Floor(of=linear(inside, term.constant % by), by=by), 1)]))


def ceil_div(term: Linear, by: int) -> Linear:
    """``⌈term / by⌉``."""
    return floor_div(term.shifted(by - 1), by)


# ---------------------------------------------------------------- from isl


class UnknownDivisionError(Exception):
    """isl holds an existential variable without an explicit floor for it."""


def _int(value: isl.Val) -> int:
    if not value.is_int():
        raise UnknownDivisionError
    return int(value.to_python())


def from_aff(aff: isl.Aff) -> tuple[Linear, int]:
    """(numerator, denominator) of an isl affine expression over parameters and, if it has one, the tile."""
    denominator = _int(aff.get_denominator_val())
    scale = isl.Val(denominator)
    terms: list[tuple[Atom, int]] = []
    for kind in (dim_type.param, dim_type.in_):
        for position in range(aff.dim(kind)):
            coefficient = _int(aff.get_coefficient_val(kind, position).mul(scale))
            if coefficient:
                name = aff.get_dim_name(kind, position) if kind == dim_type.param else TILE
                terms.append((str(name), coefficient))
    total = linear(terms, _int(aff.get_constant_val().mul(scale)))
    for position in range(aff.dim(dim_type.div)):
        coefficient = _int(aff.get_coefficient_val(dim_type.div, position).mul(scale))
        if coefficient:
            inner, by = from_aff(aff.get_div(position))
            total = total.plus(floor_div(inner, by), coefficient)
    return total, denominator


def from_constraint(constraint: isl.Constraint) -> Linear:
    """The term that a constraint holds to be ≥ 0 (or = 0)."""
    terms: list[tuple[Atom, int]] = []
    for position in range(constraint.dim(dim_type.param)):
        name = str(constraint.get_dim_name(dim_type.param, position))
        terms.append((name, _int(constraint.get_coefficient_val(dim_type.param, position))))
    if constraint.dim(dim_type.set):
        terms.append((TILE, _int(constraint.get_coefficient_val(dim_type.set, 0))))
    total = linear(terms, _int(constraint.get_constant_val()))
    for position in range(constraint.dim(dim_type.div)):
        coefficient = _int(constraint.get_coefficient_val(dim_type.div, position))
        if coefficient:
            division = constraint.get_div(position)
            if division is None:
                raise UnknownDivisionError
            inner, by = from_aff(division)
            total = total.plus(floor_div(inner, by), coefficient)
    return total


# ---------------------------------------------------------------- to isl


def to_aff(term: Linear, space: isl.Space) -> isl.Aff:
    """The term as an affine expression on a set space whose one dimension is the tile."""
    local = isl.LocalSpace.from_space(space)
    total = isl.Aff.zero_on_domain(local).add_constant_val(isl.Val(term.constant))
    for atom, coefficient in term.terms:
        if isinstance(atom, Floor):
            part = to_aff(atom.of, space).scale_down_val(isl.Val(atom.by)).floor()
        elif isinstance(atom, Remainder):
            part = to_aff(atom.of, space).mod_val(isl.Val(atom.by))
        elif atom == TILE:
            part = isl.Aff.var_on_domain(local, dim_type.set, 0)
        else:
            part = isl.Aff.var_on_domain(local, dim_type.param, space.find_dim_by_name(dim_type.param, atom))
        total = total.add(part.scale_val(isl.Val(coefficient)))
    return total


def nonnegative(term: Linear, space: isl.Space) -> isl.Set:
    """The set where ``term >= 0``."""
    return to_aff(term, space).ge_set(isl.Aff.zero_on_domain(isl.LocalSpace.from_space(space)))
