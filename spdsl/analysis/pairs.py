"""The pairs that patterns keep, as isl sets in one space, for questions about every length.

From `Subject`s to `Pairs`.  The queries are the last ``nq`` of ``n`` positions; where no pattern mentions ``nq`` or
``q_start`` that is the same as all queries, and ``n`` alone is left.  What is opaque is a parameter: `affine.Symbols`
says what its name stands for, and atoms (`atoms.Atom`) are parameters that a set may be freed of.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import islpy as isl
from islpy import dim_type

from spdsl.analysis.affine import Symbols, abstract, pairs_where, space_of, value_of
from spdsl.analysis.atoms import Atom, split
from spdsl.analysis.plan import grid_length
from spdsl.semantics.expand import expand
from spdsl.semantics.nodes import BoundPattern, Const, Expr, Extent, Index, Table
from spdsl.semantics.rewrite import mentions

_PLACES = ("nq", "q_start")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A bound pattern that a question is about, its ``keep`` expanded."""

    pattern: BoundPattern
    keep: Expr

    @staticmethod
    def of(pattern: BoundPattern) -> Subject:
        """The subject of a pattern."""
        return Subject(pattern=pattern, keep=expand(pattern, pattern.attend.keep))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """``kept[i]`` are the pairs ``[q, k]`` of subject i, within ``exist``; both have the parameters of ``symbols``."""

    kept: tuple[isl.Set, ...]
    exist: isl.Set
    symbols: Symbols
    atoms: tuple[Atom, ...]

    @staticmethod
    def of(subjects: Sequence[Subject]) -> Pairs:
        """The sets of subjects with the same heads and groups.  Uses isl: call it under a budget."""
        first = subjects[0].pattern
        tables = tables_of(subjects)
        skeletons, atoms = split([s.keep for s in subjects], tables, lambda expr: expand(first, expr))
        square = not any(mentions(s.keep, Extent(name=name)) for s in subjects for name in _PLACES)
        lengths = [Extent(name=name) for name in (("n",) if square else ("n", *_PLACES))]
        bounds = [bound for atom in atoms for bound in (atom.certain, atom.possible)]
        named, symbols = abstract(
            [*lengths, *(atom.symbol for atom in atoms), *skeletons, *bounds],
            shape="square" if square else "offset",
            heads=first.heads,
            groups=first.groups,
            tables=tables,
        )
        space = space_of(symbols.names)
        flags = named[len(lengths) : len(lengths) + len(atoms)]
        kept = named[len(lengths) + len(atoms) :]
        exist = _existing(space, symbols, square, {grid_length(s.pattern) for s in subjects} - {None})
        for at, flag in enumerate(flags):
            certain, possible = (pairs_where(kept[len(skeletons) + 2 * at + side], space) for side in (0, 1))
            holds = pairs_where(flag, space)
            known = holds.intersect(possible).union(holds.complement().subtract(certain))
            exist = exist.intersect(known).coalesce()
        return Pairs(
            kept=tuple(pairs_where(e, space).intersect(exist).coalesce() for e in kept[: len(skeletons)]),
            exist=exist,
            symbols=symbols,
            atoms=atoms,
        )

    def somehow(self, pairs: isl.Set) -> isl.Set:
        """The points of ``pairs`` under some values of the atoms, freed of them."""
        return self._without(pairs, [name for name, expr in self.symbols.meaning if expr in self._flags])

    def always(self, pairs: isl.Set) -> isl.Set:
        """The points that are in ``pairs`` (a part of ``exist``) whatever the atoms are, freed of them."""
        if not self.atoms:
            return pairs
        return self.somehow(self.exist).subtract(self.somehow(self.exist.subtract(pairs))).coalesce()

    @property
    def _flags(self) -> list[Expr]:
        return [atom.symbol for atom in self.atoms]

    @staticmethod
    def _without(pairs: isl.Set, names: Iterable[str]) -> isl.Set:
        for name in names:
            pairs = pairs.project_out(dim_type.param, pairs.find_dim_by_name(dim_type.param, name), 1)
        return pairs.coalesce()


def tables_of(subjects: Sequence[Subject]) -> tuple[Table, ...]:
    """The inputs of all subjects; those of one name are one."""
    return tuple({table.name: table for s in subjects for table in s.pattern.tables}.values())


def _existing(space: isl.Space, symbols: Symbols, square: bool, lengths: set[int | None]) -> isl.Set:
    """The pairs of existing positions, with everything that is known about the parameters."""

    def value(expr: Expr) -> isl.PwAff:
        return value_of(expr, space)

    q, k, zero, n = (value(e) for e in (Index(name="q"), Index(name="k"), Const(value=0), Extent(name="n")))
    exist = symbols.context(space).intersect(q.ge_set(zero)).intersect(q.lt_set(n))
    exist = exist.intersect(k.ge_set(zero)).intersect(k.lt_set(n))
    for length in lengths:
        assert length is not None
        exist = exist.intersect(n.eq_set(value(Const(value=length))))
    if not square:
        start, queries = value(Extent(name="q_start")), value(Extent(name="nq"))
        exist = exist.intersect(start.ge_set(zero)).intersect(start.add(queries).eq_set(n)).intersect(q.ge_set(start))
    return exist.coalesce()
