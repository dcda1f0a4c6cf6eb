"""Set of a row's tiles → pieces, each with the bounds, lattice, guards and filters read off its constraints.

One basic set gives one piece or a few.  Bounds read off are candidates: `bounds` proves what is kept of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import islpy as isl

from spdsl.analysis.linear import (
    TILE,
    Linear,
    UnknownDivisionError,
    ceil_div,
    floor_div,
    from_aff,
    from_constraint,
    number,
    symbol,
    to_aff,
)
from spdsl.analysis.rows import DENSE, Lattice, Row

PERIOD = 4096
"""isl needs minutes for proofs about sets that are periodic in the tile with a longer period than this."""

PIECES = 32
"""More pieces than this are not worth grouping."""


class TooComplexError(Exception):
    """No closed form of a sensible length was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Tiles of ``region``: at least ``lows``, at most ``highs``, on the lattice, where guards and filters are ≥ 0."""

    region: isl.Set
    lows: tuple[Linear, ...]
    highs: tuple[Linear, ...]
    guards: tuple[Linear, ...] = ()
    filters: tuple[Linear, ...] = ()
    lattice: Lattice = DENSE

    @property
    def is_single(self) -> bool:
        """Whether it is one tile at most."""
        return len(self.lows) == 1 and self.lows == self.highs


def pieces_of(tiles: isl.Set, row: Row) -> list[Piece]:
    """The pieces of ``tiles``, which may overlap.  Raises `TooComplexError`."""
    found: list[Piece] = []
    for basic in tiles.compute_divs().get_basic_sets():
        simple = isl.Set.from_basic_set(basic).gist_params(row.context).coalesce().compute_divs()
        for part in simple.get_basic_sets():
            row.budget.step()
            region = isl.Set.from_basic_set(part).intersect_params(row.context)
            if not region.is_empty():
                found += _pieces_of_basic(part, region, row)
    if len(found) > PIECES:
        raise TooComplexError(f"{len(found)} pieces")
    return found


def _pieces_of_basic(basic: isl.BasicSet, region: isl.Set, row: Row) -> list[Piece]:
    try:
        read = [(from_constraint(c), bool(c.is_equality())) for c in basic.get_constraints()]
    except UnknownDivisionError as problem:
        raise TooComplexError("an unknown division") from problem
    constraints = [each for term, equality in read for each in _without_floor(term, equality)]
    floors = {floor for term, _ in constraints for floor in term.floors_of(TILE)}
    if not floors:
        return [_closed(region, _Sides.read(constraints), row)]
    period = math.lcm(*(floor.by for floor in floors))
    if period > PERIOD:
        raise TooComplexError(f"the tiles repeat only after {period} tiles")
    return (
        _strided(basic, region, row)
        or _residues(constraints, region, row)
        or _hull_of_interval(region, row)
        or [_filtered(constraints, region, row)]
    )


def _without_floor(term: Linear, equality: bool) -> list[tuple[Linear, bool]]:
    """A constraint as bounds of the tile, if the tile occurs in one floor alone: ``64 * (tile // 64) >= x`` is
    ``tile >= 64 * ceil(x / 64)``."""
    floors = term.floors_of(TILE)
    if len(floors) != 1 or term.coefficient(TILE) or floors[0].of.floors_of(TILE):
        return [(term, equality)]
    (floor,) = floors
    bounds: list[tuple[Linear, bool]] = []
    for signed in (term, term.scaled(-1)) if equality else (term,):
        times, rest = signed.coefficient(floor), signed.without(floor)
        if times > 0:
            bounds.append((floor.of.plus(ceil_div(rest.scaled(-1), times), -floor.by), False))
        else:
            last = floor_div(rest, -times).scaled(floor.by).shifted(floor.by - 1)
            bounds.append((last.plus(floor.of, -1), False))
    return bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sides:
    """Constraints without the tile inside a floor, sorted by what they bound."""

    lows: tuple[Linear, ...]
    highs: tuple[Linear, ...]
    guards: tuple[Linear, ...]

    @staticmethod
    def read(constraints: Sequence[tuple[Linear, bool]]) -> _Sides:
        lows: dict[Linear, None] = {}
        highs: dict[Linear, None] = {}
        guards: dict[Linear, None] = {}
        for term, equality in constraints:
            for signed in (term, term.scaled(-1)) if equality else (term,):
                times = signed.coefficient(TILE)
                rest = signed.without(TILE)
                if times > 0:
                    lows[ceil_div(rest.scaled(-1), times)] = None
                elif times < 0:
                    highs[floor_div(rest, -times)] = None
                else:
                    guards[rest] = None
        return _Sides(lows=tuple(lows), highs=tuple(highs), guards=tuple(guards))


def _closed(region: isl.Set, sides: _Sides, row: Row, **more: object) -> Piece:
    """A piece from its sides; gist may have dropped a bound that the number of tiles implies."""
    piece = Piece(
        region=region,
        lows=sides.lows or (number(0),),
        highs=sides.highs or (row.count.shifted(-1),),
        guards=sides.guards,
    )
    return replace(piece, **more)  # type: ignore[arg-type]  # fields of Piece, passed on by the functions below


def _strided(basic: isl.BasicSet, region: isl.Set, row: Row) -> list[Piece]:
    """Pieces on ``tile = step * t + offset``, or none if isl finds no such stride."""
    whole = isl.Set.from_basic_set(basic)
    info = whole.get_stride_info(0)
    step = int(info.get_stride().to_python())
    if step <= 1:
        return []
    try:
        offset, denominator = from_aff(info.get_offset())
    except UnknownDivisionError:
        return []
    if denominator != 1 or offset.mentions(TILE):
        return []
    substitution = isl.MultiAff.from_aff(to_aff(symbol(TILE, step).plus(offset), row.space))
    inner = whole.align_params(row.space).preimage_multi_aff(substitution).coalesce().compute_divs()
    parts = inner.get_basic_sets()
    lifted: list[Piece] = []
    for part in parts:
        constraints = [(from_constraint(c), bool(c.is_equality())) for c in part.get_constraints()]
        if any(term.floors_of(TILE) for term, _ in constraints):
            return []
        sides = _Sides.read([(_lifted(term, step, offset), equality) for term, equality in constraints])
        own = region
        if len(parts) > 1:
            image = isl.Map.from_multi_aff(substitution)
            own = isl.Set.from_basic_set(part).apply(image).intersect_params(row.context)
        lifted.append(_closed(own, sides, row, lattice=Lattice(step=step, phase=offset)))
    return lifted


def _lifted(term: Linear, step: int, offset: Linear) -> Linear:
    """A constraint on t as one on ``tile = step * t + offset``; the lattice does the rounding to multiples."""
    times = term.coefficient(TILE)
    if not times:
        return term
    return term.without(TILE).scaled(step).plus(offset, -times).plus(symbol(TILE, times))


def _residues(constraints: Sequence[tuple[Linear, bool]], region: isl.Set, row: Row) -> list[Piece]:
    """A piece on ``(tile - phase) % step < run``, if one floor alone mentions the tile and bounds its remainder."""
    floors = {floor for term, _ in constraints for floor in term.floors_of(TILE)}
    if len(floors) != 1:
        return []
    (floor,) = floors
    sign = floor.of.coefficient(TILE)
    if sign not in (1, -1) or floor.of.floors_of(TILE):
        return []
    first, last = 0, floor.by - 1
    others: list[tuple[Linear, bool]] = []
    for term, equality in constraints:
        times = term.coefficient(floor)
        if not times:
            others.append((term, equality))
            continue
        # ± remainder + constant >= 0, where remainder = floor.of - by * floor
        if equality or abs(times) != floor.by:
            return []
        side = -times // floor.by
        rest = term.without(floor).plus(floor.of, -side)
        if rest.terms:
            return []
        if side > 0:
            first = max(first, -rest.constant)
        else:
            last = min(last, rest.constant)
    run = last - first + 1
    if run <= 0:
        return []
    base = floor.of.without(TILE)
    phase = number(first).plus(base, -1) if sign > 0 else base.shifted(-last)
    lattice = DENSE if run == floor.by else Lattice(step=floor.by, run=run, phase=phase)
    return [_closed(region, _Sides.read(others), row, lattice=lattice)]


def _hull_of_interval(region: isl.Set, row: Row) -> list[Piece]:
    """A piece without floors of the tile, if the region has no gap and isl finds one expression for each end."""
    if not gap_free(region, DENSE, row):
        return []
    ends: list[tuple[Linear, ...]] = []
    for end in (region.dim_min(0), region.dim_max(0)):
        affs: list[isl.Aff] = []
        end.foreach_piece(lambda _, aff, affs=affs: affs.append(aff))
        if len(affs) != 1:
            return []
        try:
            term, denominator = from_aff(affs[0])
        except UnknownDivisionError:
            return []
        if denominator != 1:
            return []
        ends.append((term,))
    guards = _guards_of(region.params(), row)
    if guards is None:
        return []
    return [Piece(region=region, lows=ends[0], highs=ends[1], guards=guards)]


def _guards_of(parameters: isl.Set, row: Row) -> tuple[Linear, ...] | None:
    """The conditions under which a piece has tiles at all, if they are one conjunction."""
    simple = parameters.gist(row.context).coalesce().compute_divs()
    if simple.n_basic_set() != 1:
        return None
    try:
        (basic,) = simple.get_basic_sets()
        constraints = [(from_constraint(c), bool(c.is_equality())) for c in basic.get_constraints()]
    except UnknownDivisionError:
        return None
    return _Sides.read(constraints).guards


def _filtered(constraints: Sequence[tuple[Linear, bool]], region: isl.Set, row: Row) -> Piece:
    """The bounds that do not need floors of the tile, and the other constraints as a test of each tile."""
    plain = [(term, equality) for term, equality in constraints if not term.floors_of(TILE)]
    tests: list[Linear] = []
    for term, equality in constraints:
        if term.floors_of(TILE):
            tests += [term, term.scaled(-1)] if equality else [term]
    return _closed(region, _Sides.read(plain), row, filters=tuple(tests))


def gap_free(tiles: isl.Set, lattice: Lattice, row: Row) -> bool:
    """Whether every lattice tile between two tiles of the set is in the set, for all parameters."""

    def ask() -> bool:
        below = isl.Map.lex_lt(row.space)
        above = isl.Map.lex_gt(row.space)
        between = tiles.apply(below).intersect(tiles.apply(above)).subtract(tiles)
        if lattice.step > 1:
            between = between.intersect(lattice.region(row.space))
        return bool(between.is_empty())

    return row.budget.prove(ask)
