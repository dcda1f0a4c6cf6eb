"""One row of tiles as isl sees it, and the closed forms that describe sets of its tiles.

A row's sets live in a space with one dimension, the walked tile; the row's own tile index is the parameter ``row``,
beside the lengths and whatever else a pattern names.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import islpy as isl
from islpy import dim_type

from spdsl.analysis.budget import Budget
from spdsl.analysis.linear import TILE, Linear, nonnegative, symbol, to_aff

ROW = "row"
"""The name of the parameter that holds the row's own tile index."""

_ZERO = Linear()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of tiles.

    ``context`` holds everything known about the parameters; there are ``count`` tiles, 0 to count - 1.
    """

    space: isl.Space
    context: isl.Set
    count: Linear
    budget: Budget

    def known(self, tiles: isl.Set) -> isl.Set:
        """``tiles`` within the context, simplified."""
        return tiles.intersect_params(self.context).coalesce()

    def equal(self, a: isl.Set, b: isl.Set) -> bool:
        """Whether two sets are proved equal in the context; ``b`` lies in it already."""
        return self.budget.prove(lambda: bool(a.intersect_params(self.context).is_equal(b)))

    def within(self, a: isl.Set, b: isl.Set) -> bool:
        """Whether ``a`` is proved a subset of ``b`` in the context."""
        return self.budget.prove(lambda: bool(a.intersect_params(self.context).is_subset(b)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lattice:
    """The tiles with ``(tile - phase) % step < run``; all tiles for step 1."""

    step: int = 1
    run: int = 1
    phase: Linear = _ZERO

    def region(self, space: isl.Space) -> isl.Set:
        """The lattice as a set."""
        if self.step == 1:
            return isl.Set.universe(space)
        offset = to_aff(symbol(TILE).plus(self.phase, -1), space).mod_val(isl.Val(self.step))
        last = isl.Aff.zero_on_domain(isl.LocalSpace.from_space(space)).add_constant_val(isl.Val(self.run - 1))
        return offset.le_set(last)


DENSE = Lattice()
"""All tiles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """One bound of a closed form: all ``terms`` bind (largest lower or smallest upper) where all ``guards`` are ≥ 0."""

    terms: tuple[Linear, ...]
    guards: tuple[Linear, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedForm:
    """A set of tiles between bounds, both inclusive: the least of ``lows`` and the greatest of ``highs``.

    No branch at all leaves that side open.  ``filters`` are terms that must be ≥ 0 and mention the tile; of the
    alternatives in ``filters`` one must hold entirely.
    """

    lows: tuple[Branch, ...]
    highs: tuple[Branch, ...]
    lattice: Lattice = DENSE
    filters: tuple[tuple[Linear, ...], ...] = ()

    def region(self, space: isl.Space) -> isl.Set:
        """The closed form as a set."""
        tile = symbol(TILE)
        low = [_all([*(tile.plus(t, -1) for t in b.terms), *b.guards], space) for b in self.lows]
        high = [_all([*(t.plus(tile, -1) for t in b.terms), *b.guards], space) for b in self.highs]
        parts = [_any(side) for side in (low, high) if side]
        if self.filters:
            parts.append(_any([_all(list(alternative), space) for alternative in self.filters]))
        return reduce(lambda a, b: a.intersect(b), parts, self.lattice.region(space))

    @property
    def length(self) -> int:
        """A measure of how long the text of the bounds will be."""
        total = sum(len(str(t)) for b in (*self.lows, *self.highs) for t in (*b.terms, *b.guards))
        return total + sum(len(str(t)) for alternative in self.filters for t in alternative)


def _all(terms: list[Linear], space: isl.Space) -> isl.Set:
    return reduce(lambda a, b: a.intersect(b), (nonnegative(t, space) for t in terms), isl.Set.universe(space))


def _any(sets: list[isl.Set]) -> isl.Set:
    return reduce(lambda a, b: a.union(b), sets)


def row_form(tiles: isl.Set, walked: int) -> isl.Set:
    """A set of ``[i, j]`` as the set of its dimension ``walked``, the other one moved to the parameter `ROW`."""
    moved = tiles.move_dims(dim_type.param, tiles.dim(dim_type.param), dim_type.set, 1 - walked, 1)
    named = moved.set_dim_name(dim_type.param, moved.dim(dim_type.param) - 1, ROW)
    return named.set_dim_name(dim_type.set, 0, TILE)
