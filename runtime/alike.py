"""Coarse values tile by tile, each kind of tile computed once.

From: an expression with reductions over both sides, and the members of the coarse points.  To: its value for each
pair of coarse points.

A tile's value depends on the rows of numbers that the one-sided parts of the expression give over its members.  Where
the sides meet in a difference or comparison of ints, only the rows up to a shift and the shift between them matter.
Tiles in which all these agree are alike; among the kinds so found, parts of both sides that are constant in a tile
count by their value alone.  Patterns on regular grids have few kinds: Radial Attention over 128 frames of 3,840
tokens has 14.7 million tiles of 128 by 128 pairs, some ten thousand kinds by shifts, and some hundred by values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spdsl.runtime.coarse import Coarse, Points
from spdsl.runtime.evaluate import Tables, evaluate
from spdsl.runtime.members import Members
from spdsl.runtime.pairs import Pairs
from spdsl.semantics.nodes import Apply, Expr, Index, Reduce, Side
from spdsl.semantics.rewrite import children, free_indices, rebuild, walk

_TILES = 1 << 18
"""Tiles that are told apart at once."""

_PAIRS = 1 << 19
"""Pairs that are evaluated at once."""

_SHIFTED = frozenset({"sub", "lt", "le", "gt", "ge", "eq", "ne"})
"""Operations that give the same when both arguments grow by the same number."""

_MIX = (-0x61C8864680B583EB, 0x2545F4914F6CDD1D)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """The members of the coarse points of both sides, and the axes they belong to."""

    q: Members
    k: Members
    axes: Mapping[Side, str | None]

    def of(self, side: Side) -> Members:
        """The members of one side."""
        return self.q if side == "q" else self.k


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """What a one-sided part is over the members of each point.

    ``kind`` numbers the different rows of values, ``shifted`` the different rows less their ``first`` value, and
    ``constant`` says whether a row has one value.
    """

    kind: Tensor
    shifted: Tensor
    first: Tensor
    constant: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tiles:
    """The parts of an expression over all points of both sides."""

    expr: Expr
    sides: Sides
    pairs: Pairs
    tables: Tables
    names: dict[int, frozenset[str]]
    reducing: frozenset[int]
    one_sided: dict[int, _Rows] = field(default_factory=dict)

    def side(self, node: Expr) -> Side:
        """The side of a one-sided part."""
        return "q" if "q" in self.names[id(node)] else "k"

    def meets(self, node: Expr) -> tuple[Expr, Expr] | None:
        """The parts of q and of k of a difference or comparison of ints that have one side each."""
        match node:
            case Apply(op=op, args=(left, right)) if op in _SHIFTED and left.dtype == right.dtype == "int":
                names = [self.names[id(part)] & {"q", "k"} for part in (left, right)]
                if names == [{"q"}, {"k"}]:
                    return left, right
                return (right, left) if names == [{"k"}, {"q"}] else None
            case _:
                return None

    def rows(self, node: Expr) -> _Rows:
        """What a one-sided part is over the members of each point of its side."""
        if id(node) not in self.one_sided:
            positions = self.sides.of(self.side(node)).positions
            env = self.pairs.extents() | {self.side(node): positions}
            values = _bits(evaluate(node, env, self.tables).expand(positions.shape))
            first = values[:, :1]
            self.one_sided[id(node)] = _Rows(
                kind=_numbered(values),
                shifted=_numbered(values - first),
                first=first[:, 0],
                constant=(values == first).all(1),
            )
        return self.one_sided[id(node)]


def tile_values(expr: Expr, sides: Sides, pairs: Pairs, tables: Tables) -> Tensor:
    """The value of ``expr`` for all pairs of coarse points, float64 ``[points of q, points of k]``."""
    expr = _shared(expr)
    parts = list(walk(expr))
    names = {id(node): free_indices(node) | _bound(node) for node in parts}
    reducing: set[int] = set()
    for node in parts:
        if isinstance(node, Reduce) or any(id(part) in reducing for part in children(node)):
            reducing.add(id(node))
    tiles = _Tiles(expr=expr, sides=sides, pairs=pairs, tables=tables, names=names, reducing=frozenset(reducing))
    rows, columns = len(sides.q.positions), len(sides.k.positions)
    marks = _marks(tiles)
    step = max(1, _TILES // max(1, columns))
    known: dict[int, tuple[tuple[int, ...], float]] = {}
    found = [_block(tiles, marks, slice(start, min(start + step, rows)), known) for start in range(0, rows, step)]
    return torch.cat(found)


def _bound(node: Expr) -> frozenset[str]:
    """Both sides for a reduction: its value belongs to a pair of points."""
    return frozenset({"q", "k"}) if isinstance(node, Reduce) else frozenset()


def _shared(expr: Expr) -> Expr:
    """The same expression with equal parts as one node."""
    seen: dict[Expr, Expr] = {}
    done: dict[int, Expr] = {}
    for node in walk(expr):
        new = rebuild(node, tuple(done[id(part)] for part in children(node)))
        done[id(node)] = seen.setdefault(new, new)
    return done[id(expr)]


# ---------------------------------------------------------------- kinds by shifts


@dataclass(frozen=True, slots=True, kw_only=True)
class _Marks:
    """What tells tiles apart: a number for each point of q and of k, and shifts between them."""

    q: Tensor
    k: Tensor
    shifts: tuple[tuple[Tensor, Tensor], ...]

    def of(self, rows: slice) -> Tensor:
        """``[tiles, marks]`` of some rows of tiles."""
        shape = (rows.stop - rows.start, len(self.k))
        columns = [self.q[rows, None].expand(shape), self.k.expand(shape)]
        columns += [q_first[rows, None] - k_first for q_first, k_first in self.shifts]
        return torch.stack([column.flatten() for column in columns], dim=1)


def _marks(tiles: _Tiles) -> _Marks:
    of_side: dict[Side, list[Tensor]] = {
        "q": [_numbered(tiles.sides.q.exist.long())], "k": [_numbered(tiles.sides.k.exist.long())]
    }  # fmt: skip
    shifts: list[tuple[Tensor, Tensor]] = []
    for node, shifted in _leaves(tiles, tiles.expr, set()):
        rows = tiles.rows(node)
        of_side[tiles.side(node)].append(rows.shifted if shifted else rows.kind)
    for node in walk(tiles.expr):
        meeting = None if id(node) in tiles.reducing else tiles.meets(node)
        if meeting is not None:
            shifts.append((tiles.rows(meeting[0]).first, tiles.rows(meeting[1]).first))
    joint = {side: _numbered(torch.stack(columns, dim=1)) for side, columns in of_side.items()}
    return _Marks(q=joint["q"], k=joint["k"], shifts=tuple(shifts))


def _leaves(tiles: _Tiles, node: Expr, seen: set[int]) -> Iterator[tuple[Expr, bool]]:
    """The largest one-sided parts, and whether they matter only up to a shift."""
    sides = tiles.names[id(node)] & {"q", "k"}
    if id(node) in seen or not sides:
        return
    seen.add(id(node))
    meeting = tiles.meets(node)
    if id(node) not in tiles.reducing and len(sides) == 1:
        yield node, False
    elif id(node) not in tiles.reducing and meeting is not None:
        yield from ((part, True) for part in meeting)
    else:
        for part in children(node):
            yield from _leaves(tiles, part, seen)


def _block(tiles: _Tiles, marks: _Marks, rows: slice, known: dict[int, tuple[tuple[int, ...], float]]) -> Tensor:
    """The values of some rows of tiles; ``known`` are marks and values of the kinds met so far, by hash."""
    here = marks.of(rows)
    hashes, kind = _hashed(here).unique(return_inverse=True)
    example = _first_of_each(kind, len(hashes))
    assert torch.equal(here[example][kind], here), "two kinds of tiles have the same hash"
    new: list[int] = []
    for place, (key, mark) in enumerate(zip(hashes.tolist(), here[example].tolist(), strict=True)):
        if key not in known:
            new.append(place)
        else:
            assert known[key][0] == tuple(mark), "two kinds of tiles have the same hash"
    if new:
        tile = example[torch.tensor(new, device=here.device)]
        columns = len(marks.k)
        values = _by_value(tiles, tile // columns + rows.start, tile % columns)
        for place, value, mark in zip(new, values.tolist(), here[tile].tolist(), strict=True):
            known[int(hashes[place])] = (tuple(mark), value)
    found = torch.tensor([known[key][1] for key in hashes.tolist()], dtype=torch.float64, device=here.device)
    return found[kind].view(rows.stop - rows.start, -1)


# ---------------------------------------------------------------- kinds by values


@dataclass(frozen=True, slots=True, kw_only=True)
class _Constant:
    """Where a part of both sides is constant in its tile, and what it is there; ``[tiles]``."""

    node: Expr
    known: Tensor
    value: Tensor


def _by_value(tiles: _Tiles, row: Tensor, column: Tensor) -> Tensor:
    """The values of the tiles ``(row, column)``, all of different kinds."""
    constants: dict[int, _Constant] = {}
    columns = [_numbered(tiles.sides.q.exist.long())[row], _numbered(tiles.sides.k.exist.long())[column]]
    columns += _columns(tiles, tiles.expr, row, column, constants, set())
    kinds, kind = torch.stack(columns, dim=1).unique(dim=0, return_inverse=True)
    example = _first_of_each(kind, len(kinds))
    known = [constant.known[example] for constant in constants.values()]
    patterns, pattern = torch.stack([torch.ones_like(example).bool(), *known], dim=1).unique(dim=0, return_inverse=True)
    values = torch.zeros(len(kinds), dtype=torch.float64, device=row.device)
    # Tiles with the same constant parts go together: what is constant is computed once for a tile.
    for number in range(len(patterns)):
        places = (pattern == number).nonzero().squeeze(1)
        some = example[places]
        given = {id(c.node): c.value[some] for c in constants.values() if bool(c.known[some].all())}
        values[places] = _evaluated(tiles, row[some], column[some], given)
    return values[kind]


def _columns(
    tiles: _Tiles, node: Expr, row: Tensor, column: Tensor, constants: dict[int, _Constant], seen: set[int]
) -> list[Tensor]:
    """Numbers ``[tiles]`` on which the value of ``node`` depends."""
    sides = tiles.names[id(node)] & {"q", "k"}
    if not sides or id(node) in seen:
        return []
    if id(node) in tiles.reducing:
        seen.add(id(node))
        parts = (_columns(tiles, part, row, column, constants, seen) for part in children(node))
        return [found for part in parts for found in part]
    if len(sides) == 1:
        return [tiles.rows(node).kind[row if sides == {"q"} else column]]
    known = torch.ones_like(row, dtype=torch.bool)
    for leaf, _ in _leaves(tiles, node, set()):
        known = known & tiles.rows(leaf).constant[row if tiles.side(leaf) == "q" else column]
    env = tiles.pairs.extents() | {"q": tiles.sides.q.first[row], "k": tiles.sides.k.first[column]}
    value = evaluate(node, env, tiles.tables).expand(row.shape)
    constants[id(node)] = _Constant(node=node, known=known, value=value)
    if known.all():
        return [_bits(value)]
    meeting = tiles.meets(node)
    if meeting is not None:
        q, k = (tiles.rows(part) for part in meeting)
        inner = [q.shifted[row], k.shifted[column], q.first[row] - k.first[column]]
    else:
        parts = (_columns(tiles, part, row, column, constants, set()) for part in children(node))
        inner = [found for part in parts for found in part]
    return [known.long(), torch.where(known, _bits(value), 0), *(torch.where(known, 0, part) for part in inner)]


def _evaluated(tiles: _Tiles, row: Tensor, column: Tensor, constants: Mapping[int, Tensor]) -> Tensor:
    """The values of tiles in which the given parts are constant."""
    named = {key: f"constant {number}" for number, key in enumerate(constants)}
    done: dict[int, Expr] = {}
    for node in walk(tiles.expr):
        whole = rebuild(node, tuple(done[id(part)] for part in children(node)))
        done[id(node)] = Index(name=named[id(node)]) if id(node) in named else whole
    q, k = tiles.sides.q, tiles.sides.k
    size = q.positions.shape[1] * k.positions.shape[1]
    found = []
    for some in torch.arange(len(row), device=row.device).split(max(1, _PAIRS // size)):
        i, j = row[some], column[some]
        place = Coarse(
            sides={
                "q": Points(
                    axis=tiles.sides.axes["q"], positions=q.positions[i][..., None], exist=q.exist[i][..., None]
                ),
                "k": Points(axis=tiles.sides.axes["k"], positions=k.positions[j][:, None], exist=k.exist[j][:, None]),
            },
            everything={},
            candidates={},
            extents=tiles.pairs.extents(),
            tables=tiles.tables,
            constants={named[key]: value[some].view(-1, 1, 1) for key, value in constants.items()},
        )
        value = torch.as_tensor(place.value(done[id(tiles.expr)]), device=row.device)
        found.append(value.double().expand(len(some), 1, 1).flatten())
    return torch.cat(found)


# ---------------------------------------------------------------- numbering


def _bits(values: Tensor) -> Tensor:
    """Numbers as int64 that are equal only if the numbers are."""
    return values.double().contiguous().view(torch.int64) if values.is_floating_point() else values.long()


def _numbered(rows: Tensor) -> Tensor:
    """A number for each row, the same for equal rows."""
    number: Tensor = rows.unique(dim=0, return_inverse=True)[1]
    return number


def _hashed(marks: Tensor) -> Tensor:
    """A 64-bit hash of each row."""
    found = torch.zeros_like(marks[:, 0])
    for column in marks.unbind(1):
        found = (found ^ column) * _MIX[0]
        found = (found ^ (found >> 29)) * _MIX[1]
    return found


def _first_of_each(kind: Tensor, count: int) -> Tensor:
    place = torch.arange(len(kind), device=kind.device)
    return torch.full((count,), len(kind), device=kind.device).scatter_reduce_(0, kind, place, "amin")
