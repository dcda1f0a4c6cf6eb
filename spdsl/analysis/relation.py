"""The tile relation of a set of pairs: which tiles it touches, which are full, and how to walk them both ways.

From an expanded ``keep`` expression to `TileRelation`.  Lengths are rounded up to whole tiles: tiles beyond the ragged
end are never walked, and a last tile that is full over the existing positions may be reported full.  The walks are
exact, or mask more tiles than need be and say so in ``notes``.  Clauses that are not affine clamp the walk of the
others where they are `Cut`s; then a tile may be walked in vain that both touch, but not in the same pairs.  What has
no closed form becomes a `ListWalk`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import islpy as isl
from islpy import dim_type

from spdsl.analysis.affine import Symbols, pairs_where, space_of
from spdsl.analysis.budget import Budget, BudgetSpentError, limited, operations_end_as_spent
from spdsl.analysis.clauses import affine_part
from spdsl.analysis.cuts import clamped
from spdsl.analysis.emission import Emission
from spdsl.analysis.full import ClosedSlot
from spdsl.analysis.linear import TILE, Linear, nonnegative, symbol
from spdsl.analysis.long_rows import long_rows
from spdsl.analysis.pieces import TooComplexError
from spdsl.analysis.residues import Classes, classes_of
from spdsl.analysis.rows import ROW, Row, row_form
from spdsl.analysis.slots import closed_slots
from spdsl.analysis.tiles import Cuts, Interval, ListWalk, Residues, Shape, SlotWalk, TileRelation, Walk
from spdsl.analysis.writing import Writer
from spdsl.semantics.nodes import Apply, Const, Expr, Extent, Index, Table

_UNITS = "units"  # square: lengths in multiples of both tile sizes
_QUERY_TILES = "q tiles"
_KEY_TILES = "k tiles"


def tile_relation(
    keep: Expr,
    *,
    block_q: int,
    block_k: int,
    shape: Shape,
    heads: int,
    groups: int,
    tables: Sequence[Table] = (),
    length: int | None = None,
    residues: Residues | None = None,
) -> TileRelation:
    """How to walk the tiles of ``keep``, ``block_q`` queries by ``block_k`` keys.

    Every tile with a kept pair of existing positions is walked exactly once, in range; in a full interval every pair of
    existing positions is kept.  Positions exist from 0 to ``n - 1`` (keys) and from ``max(0, q_start)`` to
    ``q_start + nq - 1`` (queries).  ``length`` is a value of ``n`` that every call is known to have: patterns on grids
    become much simpler by it.  With ``residues`` of ``keep`` the tiles are those of a query class and of the key class
    that it meets, and the bounds hold for every such pair of classes.
    """
    return _tile_relation(keep, block_q, block_k, shape, heads, groups, tuple(tables), length, residues)


@lru_cache(maxsize=1024)
def _tile_relation(
    keep: Expr,
    block_q: int,
    block_k: int,
    shape: Shape,
    heads: int,
    groups: int,
    tables: tuple[Table, ...],
    length: int | None,
    residues: Residues | None = None,
) -> TileRelation:
    tiling = _tiling(shape, block_q, block_k, length, residues)

    def relation(by_query: Walk, by_key: Walk, notes: tuple[str, ...] = ()) -> TileRelation:
        return TileRelation(
            block_q=block_q,
            block_k=block_k,
            shape=shape,
            by_query=by_query,
            by_key=by_key,
            notes=notes,
            residues=residues,
        )

    part = affine_part(keep, shape=shape, heads=heads, groups=groups, tables=tables)
    query_cuts, key_cuts = part.cuts("query", block_q), part.cuts("key", block_k)
    if isinstance(query_cuts, ListWalk) and isinstance(key_cuts, ListWalk):
        return relation(query_cuts, key_cuts)
    try:
        with limited():
            tiles = _Tiles.of(part.affine, part.symbols, tiling)
    except BudgetSpentError as problem:
        walk = ListWalk(reason=f"no closed form was found within the budget of {problem}")
        return relation(walk, walk)
    by_query, query_notes = _walk(tiles, part.symbols, tiling, query_cuts, residues, walked=1)
    by_key, key_notes = _walk(tiles, part.symbols, tiling, key_cuts, residues, walked=0)
    notes = tuple(f"by query: {note}" for note in query_notes) + tuple(f"by key: {note}" for note in key_notes)
    return relation(by_query, by_key, notes)


# ---------------------------------------------------------------- lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tiling:
    """Tile sizes and how rounded lengths are written: ``counts`` tiles of queries and of keys, in ``lengths``.

    The rows of a tile are ``classes.modulus`` apart; ``spans`` are the tile sizes in rows of the tensors.
    """

    blocks: tuple[int, int]
    classes: Classes
    square: bool
    unit: int  # square only: the rows of one unit, a multiple of both spans
    counts: tuple[Linear, Linear]
    lengths: Mapping[str, Expr]
    length: int | None

    @property
    def names(self) -> tuple[str, ...]:
        """Parameters beside those of the pattern."""
        return (*self.lengths, *self.classes.names)

    @property
    def spans(self) -> tuple[int, int]:
        """From tile to tile of a class, in rows of queries and of keys."""
        return self.blocks[0] * self.classes.modulus, self.blocks[1] * self.classes.modulus

    def rounds(self, side: int) -> bool:
        """Whether ``counts[side]`` may exceed the number of tiles that exist."""
        return self.square and self.spans[side] != self.unit

    def exact_count(self, side: int) -> Expr:
        """The number of tiles of queries (0) or keys (1) that exist."""
        name = "n" if self.square or side == 1 else "nq"
        return _ceil(Extent(name=name), self.spans[side])


def _ceil(length: Expr, by: int) -> Expr:
    if by == 1:
        return length
    more = Apply(op="add", args=(length, Const(value=by - 1)), dtype="int")
    return Apply(op="floordiv", args=(more, Const(value=by)), dtype="int")


def _tiling(shape: Shape, block_q: int, block_k: int, length: int | None, residues: Residues | None) -> _Tiling:
    blocks = (block_q, block_k)
    classes = classes_of(residues, shape)
    if shape == "square":
        tiles = math.lcm(block_q, block_k)
        counts = (symbol(_UNITS, tiles // block_q), symbol(_UNITS, tiles // block_k))
        unit = tiles * classes.modulus
        lengths = {_UNITS: _ceil(Extent(name="n"), unit)}
        return _Tiling(
            blocks=blocks, classes=classes, square=True, unit=unit, counts=counts, lengths=lengths, length=length
        )
    return _Tiling(
        blocks=blocks,
        classes=classes,
        square=False,
        unit=1,
        length=length,
        counts=(symbol(_QUERY_TILES), symbol(_KEY_TILES)),
        lengths={
            "q_start": Extent(name="q_start"),
            _QUERY_TILES: _ceil(Extent(name="nq"), block_q * classes.modulus),
            _KEY_TILES: _ceil(Extent(name="n"), block_k * classes.modulus),
        },
    )


# ---------------------------------------------------------------- sets


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tiles:
    """Touched and full tiles as sets of ``[i, j]``, and what is known about the parameters."""

    touched: isl.Set
    full: isl.Set
    context: isl.Set

    @staticmethod
    def of(affine: Expr, symbols: Symbols, tiling: _Tiling) -> _Tiles:
        names = tuple(dict.fromkeys((*tiling.names, *symbols.names)))
        space = space_of(names)
        context = _context(symbols, tiling, space)
        positions = _positions(tiling, space)
        exist = _existing(tiling, positions, space).intersect(context).coalesce()
        kept = pairs_where(affine, space).preimage_multi_aff(positions).intersect(exist).coalesce()
        to_tile = _to_tile(tiling, space)
        touched = kept.apply(to_tile).coalesce()
        not_full = exist.subtract(kept).coalesce().apply(to_tile).coalesce()
        return _Tiles(touched=touched, full=touched.subtract(not_full).coalesce(), context=context.params())


def _context(symbols: Symbols, tiling: _Tiling, space: isl.Space) -> isl.Set:
    """What is known about the parameters: declared ranges, and how exact lengths lie to rounded ones."""
    known = symbols.context(space)
    if tiling.square:
        facts = [symbol(_UNITS).shifted(-1)]
        pairs = [("n", symbol(_UNITS, tiling.unit), tiling.unit)]
    else:
        facts = [symbol(_QUERY_TILES).shifted(-1), symbol(_KEY_TILES)]
        pairs = [
            ("nq", symbol(_QUERY_TILES, tiling.spans[0]), tiling.spans[0]),
            ("n", symbol(_KEY_TILES, tiling.spans[1]), tiling.spans[1]),
        ]
    if tiling.length is not None:
        _, rounded, unit = pairs[-1]
        facts += _equal(rounded, -(-tiling.length // unit) * unit)
        facts += _equal(symbol("n"), tiling.length) if "n" in symbols.names else []
    for name, rounded, unit in pairs:
        if name in symbols.names:
            facts += [rounded.plus(symbol(name), -1), symbol(name).plus(rounded, -1).shifted(unit - 1)]
    for fact in facts:
        known = known.intersect(nonnegative(fact, space))
    return known.intersect(tiling.classes.context(space))


def _equal(term: Linear, value: int) -> list[Linear]:
    """Terms that are all ≥ 0 where ``term`` has this value."""
    return [term.shifted(-value), term.scaled(-1).shifted(value)]


def _positions(tiling: _Tiling, space: isl.Space) -> isl.MultiAff:
    """``[row of a query's class, row of a key's class] -> [q, k]``."""
    q, k = (
        row.scale_val(isl.Val(tiling.classes.modulus)).add(_affine(first, space))
        for row, first in zip(_rows(space), (tiling.classes.query, tiling.classes.key), strict=True)
    )
    if not tiling.square:
        q = q.add(_parameter("q_start", space))
    return isl.MultiAff.from_aff(q).flat_range_product(isl.MultiAff.from_aff(k))


def _existing(tiling: _Tiling, positions: isl.MultiAff, space: isl.Space) -> isl.Set:
    """The pairs of rows that exist, lengths rounded up; rows at negative positions do not."""
    zero = isl.Aff.zero_on_domain(isl.LocalSpace.from_space(space))
    pairs = positions.get_at(0).ge_set(zero)
    for row, count, block in zip(_rows(space), tiling.counts, tiling.blocks, strict=True):
        length = _affine(count, space).scale_val(isl.Val(block))
        pairs = pairs.intersect(row.ge_set(zero)).intersect(row.lt_set(length))
    return pairs


def _to_tile(tiling: _Tiling, space: isl.Space) -> isl.Map:
    """From pairs of rows to ``[i, j]``."""
    i, j = (row.scale_down_val(isl.Val(block)).floor() for row, block in zip(_rows(space), tiling.blocks, strict=True))
    return isl.Map.from_multi_aff(isl.MultiAff.from_aff(i).flat_range_product(isl.MultiAff.from_aff(j)))


def _rows(space: isl.Space) -> tuple[isl.Aff, isl.Aff]:
    local = isl.LocalSpace.from_space(space)
    return isl.Aff.var_on_domain(local, dim_type.set, 0), isl.Aff.var_on_domain(local, dim_type.set, 1)


def _parameter(name: str, space: isl.Space) -> isl.Aff:
    return _affine(symbol(name), space)


def _affine(term: Linear, space: isl.Space) -> isl.Aff:
    """A term over parameters alone, on ``space``."""
    total = isl.Aff.zero_on_domain(isl.LocalSpace.from_space(space)).add_constant_val(isl.Val(term.constant))
    for atom, coefficient in term.terms:
        assert isinstance(atom, str)
        position = space.find_dim_by_name(dim_type.param, atom)
        part = isl.Aff.var_on_domain(isl.LocalSpace.from_space(space), dim_type.param, position)
        total = total.add(part.scale_val(isl.Val(coefficient)))
    return total


# ---------------------------------------------------------------- walks


def _walk(
    tiles: _Tiles,
    symbols: Symbols,
    tiling: _Tiling,
    cuts: Cuts | ListWalk | None,
    residues: Residues | None,
    *,
    walked: int,
) -> tuple[Walk, tuple[str, ...]]:
    """The walk over key tiles (``walked`` 1) of a query tile, or over query tiles (0) of a key tile."""
    if isinstance(cuts, ListWalk):
        return cuts, ()
    emission = _emission(symbols, tiling, walked)
    try:
        with limited() as budget:
            row, touched, full = _row_sets(tiles, tiling, walked, budget)
            closed, notes = closed_slots(touched, full, row)
            long = _long(closed, row, tiling, _emission(symbols, tiling, 1 - walked), symbols.free)
    except (TooComplexError, BudgetSpentError) as problem:
        return ListWalk(reason=f"the tiles have no closed form of sensible length: {problem}"), ()
    slots = tuple(emission.slot(slot) for slot in closed)
    if cuts is not None:
        slots = tuple(clamped(slot, cuts, block=tiling.blocks[walked], residues=residues) for slot in slots)
    return SlotWalk(slots=slots, cuts=cuts if slots else None, long=long), notes


def _long(
    slots: Sequence[ClosedSlot], row: Row, tiling: _Tiling, emission: Emission, known: frozenset[str]
) -> Interval | None:
    """The long rows as kernels' launches read them."""
    try:
        with operations_end_as_spent():
            form = long_rows(
                [slot.touched for slot in slots],
                row,
                count=emission.count,
                lengths=frozenset((*tiling.lengths, "n", "nq")),
                known=known,
            )
    except (TooComplexError, BudgetSpentError):
        return None
    return None if form is None else emission.interval(form)


def _emission(symbols: Symbols, tiling: _Tiling, walked: int) -> Emission:
    names = ("i", "j")
    return Emission(
        writer=Writer(
            meaning={
                **tiling.lengths,
                **tiling.classes.meaning,
                **dict(symbols.meaning),
                ROW: Index(name=names[1 - walked]),
                TILE: Index(name=names[walked]),
            },
            known={tiling.counts[walked]: tiling.exact_count(walked)},
        ),
        count=tiling.counts[walked],
        exact_count=tiling.exact_count(walked),
        rounded=tiling.rounds(walked),
        promised=symbols.has_promises,
    )


def _row_sets(tiles: _Tiles, tiling: _Tiling, walked: int, budget: Budget) -> tuple[Row, isl.Set, isl.Set]:
    touched, full = row_form(tiles.touched, walked), row_form(tiles.full, walked)
    space = touched.get_space()
    inside = nonnegative(symbol(ROW), space)
    inside = inside.intersect(nonnegative(tiling.counts[1 - walked].plus(symbol(ROW), -1).shifted(-1), space))
    context = inside.params().intersect_params(tiles.context)
    return Row(space=space, context=context, count=tiling.counts[walked], budget=budget), touched, full
