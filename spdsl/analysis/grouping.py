"""Pieces → groups: pieces on one lattice are joined while their union has no gap, so that two bounds describe it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import islpy as isl

from spdsl.analysis.linear import Linear
from spdsl.analysis.pieces import Piece, gap_free
from spdsl.analysis.rows import Lattice, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Pieces whose union has no gap on their lattice."""

    region: isl.Set
    members: tuple[Piece, ...]

    @property
    def lattice(self) -> Lattice:
        """The lattice of all members."""
        return self.members[0].lattice

    @property
    def filters(self) -> tuple[Linear, ...]:
        """The tests of the one member, if it has any."""
        return self.members[0].filters

    @property
    def rank(self) -> tuple[bool, int, int, bool]:
        """Dense groups first, then strided ones, single tiles and tested ones last."""
        lattice = self.lattice
        single = all(piece.is_single for piece in self.members)
        return bool(self.filters), lattice.step // lattice.run, lattice.step, single


def in_order(groups: Iterable[Group]) -> list[Group]:
    """Groups in the order in which they become slots."""
    return sorted(groups, key=lambda group: group.rank)


def group(pieces: Sequence[Piece], row: Row, *, merge: bool = True) -> list[Group]:
    """Join pieces on one lattice as long as their union has no gap."""
    groups = [Group(region=piece.region, members=(piece,)) for piece in pieces]
    joined = merge
    while joined:
        joined = False
        for a, b in itertools.combinations(range(len(groups)), 2):
            one, other = groups[a], groups[b]
            if one.filters or other.filters or one.lattice != other.lattice:
                continue
            union = one.region.union(other.region).coalesce()
            if gap_free(union, one.lattice, row):
                groups[a] = Group(region=union, members=one.members + other.members)
                del groups[b]
                joined = True
                break
    return groups
