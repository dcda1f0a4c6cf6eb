"""What a predicate can be in each tile of the attention matrix, without looking at its pairs.

From: an expanded bool expression, tables and lengths.  To: for blocks of tiles, `Truth` tensors ``[batch?, heads?,
rows, columns]``.  Sound, not complete: a tile that is neither empty nor full by these bounds may still be either.

Expressions of one side are evaluated at all positions of the side, expressions of the distance ``q - k`` at all
distances: O(N) values, whose extremes over a tile are exact.  Only where both sides meet, interval arithmetic takes
over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spdsl.runtime.distance import with_distances
from spdsl.runtime.evaluate import NO_TABLES, Tables, evaluate, own_names, rows_of
from spdsl.runtime.listed import tiles_of_lists
from spdsl.runtime.pairs import Pairs
from spdsl.runtime.ranges import Bounded, Range, Truth, apply_range, exactly, extremes, joined, unknown
from spdsl.semantics.nodes import Apply, Expr, Index, Load
from spdsl.semantics.rewrite import children, walk

_MOST_COMBINATIONS = 64
"""How many elements of a table are read for one tile before it counts as unknown."""

_SIDES = frozenset({"q", "k", "d"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TileBounds:
    """Bounds of ``expr`` in tiles; make one with `tile_bounds` or `bounds_over`.

    ``query_tiles [rows, block]`` and ``key_tiles [columns, block]`` are the positions of each tile; where a tile has
    fewer positions, one of them is repeated.
    """

    expr: Expr
    pairs: Pairs
    tables: Tables
    query_tiles: Tensor
    key_tiles: Tensor
    names: dict[int, frozenset[str]]
    kept: dict[int, Bounded | Distances] = field(default_factory=dict, repr=False)

    @property
    def rows(self) -> int:
        """How many tiles of queries there are."""
        return self.query_tiles.shape[0]

    @property
    def columns(self) -> int:
        """How many tiles of keys there are."""
        return self.key_tiles.shape[0]

    def of(self, rows: slice, columns: slice) -> Truth:
        """Bounds for a block of tiles, broadcastable over ``[batch, heads, rows, columns]``.

        Pairs that do not exist take no part.
        """
        found = self.bounds(self.expr, rows, columns, {})
        assert isinstance(found, Truth)
        return found

    def bounds(self, node: Expr, rows: slice, columns: slice, memo: dict[int, Bounded]) -> Bounded:
        """Bounds of a part of the expression, for a block of tiles."""
        if id(node) not in memo:
            memo[id(node)] = self._bounds(node, rows, columns, memo)
        return memo[id(node)]

    def _bounds(self, node: Expr, rows: slice, columns: slice, memo: dict[int, Bounded]) -> Bounded:
        sides = self.names[id(node)] & _SIDES
        if not sides:
            return exactly(evaluate(node, self.pairs.extents() | self.pairs.outer(2), self.tables))
        if sides == {"q"}:
            return _cut(self._side(node, "q"), rows, -2)
        if sides == {"k"}:
            return _cut(self._side(node, "k"), columns, -1)
        if sides == {"d"}:
            return self._distances(node).between(*self._distance_range(rows, columns))
        if isinstance(node, Apply):
            return apply_range(node.op, [self.bounds(arg, rows, columns, memo) for arg in node.args], node.dtype)
        if isinstance(node, Load) and node.table in self.tables.listed:
            return self._listed(node, rows, columns)
        if isinstance(node, Load):
            return self._load(node, [self.bounds(index, rows, columns, memo) for index in node.indices])
        return unknown(node.dtype, self.pairs.device)

    def _side(self, node: Expr, side: str) -> Bounded:
        """Bounds in all tiles of one side, ``[…, rows, 1]`` or ``[…, 1, columns]``."""
        found = self.kept.get(id(node))
        if found is None:
            tiles = self.query_tiles if side == "q" else self.key_tiles
            env = self.pairs.extents() | self.pairs.outer(1) | {side: tiles.flatten()}
            values = _at_each(tiles.flatten(), evaluate(node, env, self.tables))
            found = _lifted(extremes(values.unflatten(-1, tiles.shape), -1), side)
            self.kept[id(node)] = found
        assert not isinstance(found, Distances)
        return found

    def _distance_range(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        q, k = self.query_tiles[rows], self.key_tiles[columns]
        return q.amin(1)[:, None] - k.amax(1), q.amax(1)[:, None] - k.amin(1)

    def _distances(self, node: Expr) -> Distances:
        found = self.kept.get(id(node))
        if found is None:
            q, k = self.query_tiles, self.key_tiles
            first, last = int(q.min() - k.max()), int(q.max() - k.min())
            distance = torch.arange(first, last + 1, device=self.pairs.device)
            env = self.pairs.extents() | self.pairs.outer(1) | {"d": distance}
            values = _at_each(distance, evaluate(node, env, self.tables))
            found = Distances(first=first, lowest=[values], highest=[values])
            self.kept[id(node)] = found
        assert isinstance(found, Distances)
        return found

    def _load(self, node: Load, indices: list[Bounded]) -> Bounded:
        """Bounds of an element whose place depends on both sides: all places are read if they are few."""
        ranges = [index for index in indices if isinstance(index, Range)]
        spans = [int((index.hi - index.lo).max()) + 1 for index in ranges]
        places = torch.Size(spans).numel()
        table = self.tables.values[node.table]
        if places > _MOST_COMBINATIONS:
            if not table.numel():
                return unknown(node.dtype, self.pairs.device)
            return _lifted_scalar(extremes(_typed(table, node).flatten(), 0))
        names = [f"index {n}" for n in range(len(ranges))]
        element = Load(table=node.table, dtype=node.dtype, indices=tuple(Index(name=name) for name in names))
        found: Bounded | None = None
        for place in range(places):
            env = self.pairs.extents() | self.pairs.outer(2)
            for name, index, span in zip(names, ranges, spans, strict=True):
                env[name] = torch.minimum(index.lo + place % span, index.hi)
                place //= span
            read = exactly(evaluate(element, env, self.tables))
            found = read if found is None else joined(found, read)
        assert found is not None
        return found

    def _listed(self, node: Load, rows: slice, columns: slice) -> Bounded:
        """Bounds of a set of pairs that is given as lists: how many rows of a tile have each index in theirs."""
        *row, wanted = node.indices
        by_row = frozenset[str]().union(*(self.names[id(index)] for index in row)) <= {"q", "b", "h", "g"}
        if not by_row or self.names[id(wanted)] != {"k"}:
            return unknown(node.dtype, self.pairs.device)
        env = self.pairs.extents() | self.pairs.outer(1)
        queries = self.query_tiles[rows]
        points = evaluate(wanted, env | {"k": self.key_tiles[columns].flatten()}, self.tables)
        points = points.expand(self.key_tiles[columns].numel()).view(-1, self.key_tiles.shape[1])
        changes = self._changes(row, queries, env)
        if changes is not None:
            lists = rows_of(node, env | {"q": queries[changes]}, self.tables)
            return tiles_of_lists(lists, points, changes.nonzero()[:, 0], len(queries))
        queries = queries[:, :: self._run(row, queries, env)]
        lists = rows_of(node, env | {"q": queries.flatten()}, self.tables)
        return tiles_of_lists(lists.unflatten(-2, queries.shape), points)

    def _changes(self, row: Sequence[Expr], queries: Tensor, env: Mapping[str, Tensor | int]) -> Tensor | None:
        """Which queries read another list than their neighbour, where a table of tokens says so: bool, as ``queries``;
        None where no table does."""
        read = [index for index in row if "q" in self.names[id(index)]]
        if any(self.names[id(index)] != {"q"} for index in read) or not any(map(_reads, read)):
            return None
        found = torch.zeros_like(queries, dtype=torch.bool)
        found[:, 0] = True
        for index in read:
            points = evaluate(index, {**env, "q": queries.flatten()}, self.tables)
            points = points.expand(queries.numel()).view(queries.shape)
            found[:, 1:] |= points[:, 1:] != points[:, :-1]
        return found

    def _run(self, row: Sequence[Expr], queries: Tensor, env: Mapping[str, Tensor | int]) -> int:
        """Of how many neighbours in each tile one stands for all, as they read one list."""
        read = [index for index in row if "q" in self.names[id(index)]]
        if any(self.names[id(index)] != {"q"} or _reads(index) for index in read):
            return 1
        found = queries.shape[1]
        for index in read:
            points = evaluate(index, {**env, "q": queries.flatten()}, self.tables)
            points = points.expand(queries.numel()).view(queries.shape)
            changes = (points[:, 1:] != points[:, :-1]).any(0).nonzero().flatten() + 1
            found = math.gcd(found, *changes.tolist())
        return found


def _reads(expr: Expr) -> bool:
    """Whether an expression looks anything up."""
    return any(isinstance(part, Load) for part in walk(expr))


@dataclass(frozen=True, slots=True, kw_only=True)
class Distances:
    """Values of a function of ``q - k`` at the distances from ``first`` on, with extremes over 1, 2, 4, … of them."""

    first: int
    lowest: list[Tensor]
    highest: list[Tensor]

    def between(self, lo: Tensor, hi: Tensor) -> Bounded:
        """Bounds over the distances ``lo … hi``; tiles have few different lengths, each is looked up in turn."""
        found: Bounded | None = None
        lengths = hi - lo + 1
        for length in lengths.unique().tolist():
            level = int(length).bit_length() - 1
            self._extend(level)
            left, right = lo - self.first, hi - self.first + 1 - (1 << level)
            # Places of other lengths may leave the values; they are not chosen below.
            size = self.lowest[level].shape[-1]
            left, right = left.clamp(0, size - 1), right.clamp(0, size - 1)
            low = torch.minimum(_number(self.lowest[level][..., left]), _number(self.lowest[level][..., right]))
            high = torch.maximum(_number(self.highest[level][..., left]), _number(self.highest[level][..., right]))
            here = _as_bounds(low, high, self.lowest[0].dtype)
            found = here if found is None else _select(lengths == length, here, found)
        assert found is not None
        return found

    def _extend(self, level: int) -> None:
        while len(self.lowest) <= level:
            half = 1 << (len(self.lowest) - 1)
            low, high = _number(self.lowest[-1]), _number(self.highest[-1])
            kind = self.lowest[0].dtype
            self.lowest.append(torch.minimum(low[..., :-half], low[..., half:]).to(kind))
            self.highest.append(torch.maximum(high[..., :-half], high[..., half:]).to(kind))


def tile_bounds(expr: Expr, pairs: Pairs, tables: Tables = NO_TABLES, *, block_q: int, block_k: int) -> TileBounds:
    """The bounds of a predicate in tiles of ``block_q`` times ``block_k`` pairs."""
    # Rows at negative positions are padding, so the first real position stands for them.
    queries = (pairs.q_start + _tiles(pairs.queries, block_q, pairs.device)).clamp(min=0)
    keys = _tiles(pairs.keys, block_k, pairs.device)
    return bounds_over(with_distances(expr), pairs, tables, queries, keys)


def bounds_over(expr: Expr, pairs: Pairs, tables: Tables, query_tiles: Tensor, key_tiles: Tensor) -> TileBounds:
    """The bounds of an expression in tiles of any positions."""
    names: dict[int, frozenset[str]] = {}
    for node in walk(expr):
        names[id(node)] = own_names(node, tables).union(*(names[id(part)] for part in children(node)))
    return TileBounds(expr=expr, pairs=pairs, tables=tables, query_tiles=query_tiles, key_tiles=key_tiles, names=names)


def _tiles(length: int, block: int, device: torch.device) -> Tensor:
    """Positions of whole tiles; past the end the last one is repeated."""
    count = -(-length // block) * block
    return torch.arange(count, device=device).clamp(max=length - 1).view(-1, block)


def _at_each(points: Tensor, values: Tensor) -> Tensor:
    """The values with one for each point: a choice may turn out not to depend on them."""
    return values.expand(torch.broadcast_shapes(values.shape, points.shape))


def _number(values: Tensor) -> Tensor:
    return values.byte() if values.dtype == torch.bool else values


def _as_bounds(low: Tensor, high: Tensor, kind: torch.dtype) -> Bounded:
    if kind == torch.bool:
        return Truth(may=high.bool(), must=low.bool())
    return Range(lo=low, hi=high)


def _select(condition: Tensor, yes: Bounded, no: Bounded) -> Bounded:
    match yes, no:
        case Range(), Range():
            return Range(lo=torch.where(condition, yes.lo, no.lo), hi=torch.where(condition, yes.hi, no.hi))
        case Truth(), Truth():
            return Truth(may=torch.where(condition, yes.may, no.may), must=torch.where(condition, yes.must, no.must))
        case _:
            raise TypeError("bounds of two kinds")


def _typed(table: Tensor, node: Load) -> Tensor:
    return table.bool() if node.dtype == "bool" else table.long() if node.dtype == "int" else table.double()


def _map(bounds: Bounded, function: object) -> Bounded:
    assert callable(function)
    if isinstance(bounds, Range):
        return Range(lo=function(bounds.lo), hi=function(bounds.hi))
    return Truth(may=function(bounds.may), must=function(bounds.must))


def _lifted(bounds: Bounded, side: str) -> Bounded:
    return _map(bounds, lambda x: x.unsqueeze(-1 if side == "q" else -2))


def _lifted_scalar(bounds: Bounded) -> Bounded:
    return _map(bounds, lambda x: x.view(1, 1))


def _cut(bounds: Bounded, part: slice, dim: int) -> Bounded:
    return _map(bounds, lambda x: x[..., part, :] if dim == -2 else x[..., part])
