"""Coarse values tile by tile, each kind of tile computed once.

From: an expression with reductions over both sides, and the members of the coarse points.  To: its value for each pair of
coarse points.

A tile's value depends on what the parts of the expression are over its members: parts of one side give a row of numbers,
parts of both sides that are constant in the tile give one number.  Tiles in which all these agree are alike.  So are tiles
that differ by a shift, where the sides meet in a difference or comparison.  Patterns on regular grids have few kinds of
tiles: Radial Attention over 128 frames of 3,840 tokens has 14.7 million tiles of 128 by 128 pairs and some thousand kinds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spdsl.runtime.coarse import Coarse, Points
from spdsl.runtime.evaluate import Tables, evaluate
from spdsl.runtime.intervals import TileBounds, bounds_over
from spdsl.runtime.members import Members
from spdsl.runtime.pairs import Pairs
from spdsl.runtime.ranges import Bounded, Range
from spdsl.semantics.nodes import Apply, Expr, Index, Reduce
from spdsl.semantics.rewrite import children, rebuild, walk

_TILES = 1 << 18
"""Tiles that are told apart at once."""

_PAIRS = 1 << 20
"""Pairs that are evaluated at once."""

_SHIFTED = frozenset({"sub", "lt", "le", "gt", "ge", "eq", "ne"})
"""Operations that give the same when both arguments grow by the same number."""

_MIX = (-0x61C8864680B583EB, 0x2545F4914F6CDD1D)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """The members of the coarse points of both sides, and the axes they belong to."""

    q: Members
    k: Members
    axes: Mapping[str, str | None]


def tile_values(expr: Expr, sides: Sides, pairs: Pairs, tables: Tables) -> Tensor:
    """The value of ``expr`` for all pairs of coarse points, ``[points of q, points of k]``."""
    bounds = bounds_over(expr, pairs, tables, sides.q.positions, sides.k.positions)
    reducing = {id(node) for node in walk(expr) if any(isinstance(part, Reduce) for part in walk(node))}
    kinds = _Kinds(expr=expr, sides=sides, bounds=bounds, reducing=frozenset(reducing))
    step = max(1, _TILES // max(1, bounds.columns))
    parts = [kinds.rows(slice(start, min(start + step, bounds.rows))) for start in range(0, bounds.rows, step)]
    return torch.cat(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Constant:
    """Where a part is constant in its tile, and what it is there; ``[rows, columns]``."""

    node: Expr
    known: Tensor
    value: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kinds:
    """The kinds of tiles met so far, by hash: what tells them apart, and their values."""

    expr: Expr
    sides: Sides
    bounds: TileBounds
    reducing: frozenset[int]
    values: dict[int, tuple[tuple[int, ...], float]] = field(default_factory=dict)
    classes: dict[tuple[int, bool], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def rows(self, rows: slice) -> Tensor:
        """The values of some rows of tiles."""
        constants: list[_Constant] = []
        shape = (rows.stop - rows.start, self.bounds.columns)
        columns = [self._existing("q")[rows, None], self._existing("k")[None, :]]
        columns += self._columns(self.expr, rows, {}, constants)
        marks = torch.stack([column.expand(shape).flatten() for column in columns], dim=1)
        hashes, kind = _hashed(marks).unique(return_inverse=True)
        example = _first_of_each(kind, len(hashes))
        assert torch.equal(marks[example][kind], marks), "two kinds of tiles have the same hash"
        self._learn(hashes.tolist(), marks[example].tolist(), example, rows, constants)
        known = [self.values[key][1] for key in hashes.tolist()]
        return torch.tensor(known, dtype=torch.float64, device=marks.device)[kind].view(shape)

    # ------------------------------------------------------------ what tells tiles apart

    def _columns(
        self, node: Expr, rows: slice, memo: dict[int, Bounded], constants: list[_Constant]
    ) -> list[Tensor]:
        """Numbers ``[rows, columns]`` (or broadcastable) on which the value of ``node`` in a tile depends."""
        sides = self.bounds.names[id(node)] & {"q", "k"}
        if not sides:
            return []
        if id(node) in self.reducing:
            return [column for part in children(node) for column in self._columns(part, rows, memo, constants)]
        if sides == {"q"}:
            return [self._class(node, shifted=False)[0][rows, None]]
        if sides == {"k"}:
            return [self._class(node, shifted=False)[0][None, :]]
        known, value = _constancy(self.bounds.bounds(node, rows, slice(None), memo))
        constants.append(_Constant(node=node, known=known, value=value))
        if known.all():
            return [_bits(value)]
        inner = self._shifted(node, rows)
        if inner is None:
            inner = [column for part in children(node) for column in self._columns(part, rows, memo, constants)]
        return [known.long(), torch.where(known, _bits(value), 0), *(torch.where(known, 0, part) for part in inner)]

    def _shifted(self, node: Expr, rows: slice) -> list[Tensor] | None:
        """For a difference or comparison of ints of one side each: both up to a shift, and the shift between them."""
        match node:
            case Apply(op=op, args=(left, right)) if op in _SHIFTED and left.dtype == right.dtype == "int":
                names = [self.bounds.names[id(part)] & {"q", "k"} for part in (left, right)]
            case _:
                return None
        if names == [{"q"}, {"k"}]:
            of_q, of_k = left, right
        elif names == [{"k"}, {"q"}]:
            of_q, of_k = right, left
        else:
            return None
        (q_class, q_first), (k_class, k_first) = (self._class(part, shifted=True) for part in (of_q, of_k))
        return [q_class[rows, None], k_class[None, :], q_first[rows, None] - k_first[None, :]]

    def _class(self, node: Expr, *, shifted: bool) -> tuple[Tensor, Tensor]:
        """Numbers of the kinds of rows of values over a point's members, and the first value of each."""
        key = (id(node), shifted)
        if key not in self.classes:
            side = "q" if "q" in self.bounds.names[id(node)] else "k"
            positions = self._members(side).positions
            env = self.bounds.pairs.extents() | {side: positions}
            values = _bits(evaluate(node, env, self.bounds.tables).expand(positions.shape))
            first = values[:, 0]
            values = values - first[:, None] if shifted else values
            self.classes[key] = (values.unique(dim=0, return_inverse=True)[1], first)
        return self.classes[key]

    def _existing(self, side: str) -> Tensor:
        return self._members(side).exist.unique(dim=0, return_inverse=True)[1]

    def _members(self, side: str) -> Members:
        return self.sides.q if side == "q" else self.sides.k

    # ------------------------------------------------------------ values

    def _learn(
        self, hashes: list[int], marks: list[list[int]], example: Tensor, rows: slice, constants: list[_Constant]
    ) -> None:
        """Compute the values of kinds that are new."""
        new: list[int] = []
        for place, (key, mark) in enumerate(zip(hashes, marks, strict=True)):
            if key not in self.values:
                new.append(place)
            else:
                assert self.values[key][0] == tuple(mark), "two kinds of tiles have the same hash"
        if not new:
            return
        for group in _by_pattern(example[torch.tensor(new, device=example.device)], constants, self.bounds.columns):
            places = [new[each] for each in group.tolist()]
            tiles = example[torch.tensor(places, device=example.device)]
            found = self._evaluate(tiles, rows, constants)
            for place, value in zip(places, found.tolist(), strict=True):
                self.values[hashes[place]] = (tuple(marks[place]), value)

    def _evaluate(self, tiles: Tensor, rows: slice, constants: list[_Constant]) -> Tensor:
        """The values of tiles ``row * columns + column`` that are constant in the same parts."""
        replaced: dict[int, Expr] = {}
        given: dict[str, Tensor] = {}
        for number, constant in enumerate(constants):
            if bool(_at(constant.known, tiles, self.bounds.columns).all()):
                replaced[id(constant.node)] = Index(name=f"constant {number}")
                given[f"constant {number}"] = _at(constant.value, tiles, self.bounds.columns)
        expr = _with(self.expr, replaced)
        size = self.sides.q.positions.shape[1] * self.sides.k.positions.shape[1]
        parts = []
        for some in torch.arange(len(tiles), device=tiles.device).split(max(1, _PAIRS // size)):
            here = {name: values[some].view(-1, 1, 1) for name, values in given.items()}
            parts.append(self._coarse(tiles[some], rows, here, expr))
        return torch.cat(parts)

    def _coarse(self, tiles: Tensor, rows: slice, given: dict[str, Tensor], expr: Expr) -> Tensor:
        row, column = tiles // self.bounds.columns + rows.start, tiles % self.bounds.columns
        q, k = self.sides.q, self.sides.k
        place = Coarse(
            sides={
                "q": Points(
                    axis=self.sides.axes["q"], positions=q.positions[row][..., None], exist=q.exist[row][..., None]
                ),
                "k": Points(
                    axis=self.sides.axes["k"], positions=k.positions[column][:, None], exist=k.exist[column][:, None]
                ),
            },
            everything={},
            candidates={},
            extents=self.bounds.pairs.extents(),
            tables=self.bounds.tables,
            constants=given,
        )
        return torch.as_tensor(place.value(expr)).double().expand(len(tiles), 1, 1).flatten()


def _constancy(bounds: Bounded) -> tuple[Tensor, Tensor]:
    if isinstance(bounds, Range):
        return bounds.lo == bounds.hi, bounds.lo
    return bounds.may == bounds.must, bounds.may


def _bits(values: Tensor) -> Tensor:
    """Numbers as int64 that are equal only if the numbers are."""
    return values.double().contiguous().view(torch.int64) if values.is_floating_point() else values.long()


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


def _at(values: Tensor, tiles: Tensor, columns: int) -> Tensor:
    """The values, broadcastable over ``[rows, columns]``, at tiles ``row * columns + column``."""
    rows = values.expand(*values.shape[:-1], columns) if values.dim() else values.expand(1, columns)
    row, column = tiles // columns, tiles % columns
    return rows[row if rows.shape[0] > 1 else torch.zeros_like(row), column]


def _by_pattern(tiles: Tensor, constants: list[_Constant], columns: int) -> list[Tensor]:
    """Places of tiles that have the same constant parts; the fewer parts vary, the cheaper a tile is."""
    if not constants:
        return [torch.arange(len(tiles), device=tiles.device)]
    known = torch.stack([_at(constant.known, tiles, columns) for constant in constants], dim=1)
    kinds, kind = known.unique(dim=0, return_inverse=True)
    return [(kind == number).nonzero().squeeze(1) for number in range(len(kinds))]


def _with(expr: Expr, replaced: Mapping[int, Expr]) -> Expr:
    """The expression with some nodes, given by identity, replaced."""
    done: dict[int, Expr] = {}
    for node in walk(expr):
        new = replaced.get(id(node))
        done[id(node)] = new if new is not None else rebuild(node, tuple(done[id(part)] for part in children(node)))
    return done[id(expr)]
