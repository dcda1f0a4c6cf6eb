"""Tokens of a grid of which only the tile counts: numbered tile by tile, tiles are blocks of tokens in a row.

From: a bound pattern with stages.  To: the same pattern over tokens in that order, and what the order is.  None where
a clause asks for more of a position than its tile, where tiles differ in size, or where ties between single positions
are decided: those go by the numbers that the positions have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

from spdsl.semantics.graph import Attention, Mark, Merge, Pool, Score, Select, Softmax, Stage, expressions, side_of
from spdsl.semantics.nodes import Apply, Axis, BoundPattern, Const, Coord, Expr, Extent, Grid, Index, Load, Table
from spdsl.semantics.rewrite import children, walk

_POSITIONS = (Index(name="q"), Index(name="k"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tilewise:
    """A pattern over tokens in the order of their tiles.

    ``extents`` are those of the grid, ``tiles`` the sizes of a tile along each of its axes, and ``order`` these axes as
    tiles are counted; inside of a tile tokens come as they did.
    """

    pattern: BoundPattern
    extents: tuple[int, ...]
    tiles: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """How many there are."""
        return math.prod(self.extents)


def tilewise(pattern: BoundPattern) -> Tilewise | None:
    """The pattern over tokens in the order of their tiles, where it is the same."""
    if pattern.graph is None or len(pattern.axes) != 1 or len(pattern.grids) != 1:
        return None
    (axis,), (grid,) = pattern.axes, pattern.grids
    found = _order(axis, grid)
    if found is None or not all(map(_is_of_places, pattern.tables)):
        return None
    if not all(map(_is_apart, pattern.graph.stages)):
        return None
    tables = {table.name: table for table in pattern.tables}
    if not all(map(partial(_sees_tiles, axis=axis.name, tables=tables), expressions(pattern.graph))):
        return None
    extents, tiles, order = found
    size = Const(value=math.prod(tiles))
    blocks = replace(axis, of=(Index(name="k"),), size=(size,), extents=(Extent(name="n"),))
    return Tilewise(pattern=replace(pattern, axes=(blocks,), grids=()), extents=extents, tiles=tiles, order=order)


def _order(axis: Axis, grid: Grid) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None:
    """Extents, sizes of tiles, and the order in which tiles are counted, if all tiles are alike."""
    if grid.name is not None or grid.of != Index(name="k") or axis.size is None or axis.step is not None:
        return None
    places = {name: at for at, (name, _) in enumerate(grid.coordinates)}
    extents = [size.value for _, size in grid.coordinates if isinstance(size, Const)]
    divided = [places[part.axis] for part in axis.of if isinstance(part, Coord) and part.axis in places]
    sizes = [size.value for size in axis.size if isinstance(size, Const)]
    if len(extents) < len(places) or len(divided) < len(axis.of) or len(sizes) < len(axis.of):
        return None
    if len(set(divided)) < len(divided):
        return None
    tiles = [int(extent) for extent in extents]
    for at, size in zip(divided, sizes, strict=True):
        tiles[at] = int(size)
    if any(int(extent) % tile for extent, tile in zip(extents, tiles, strict=True)):
        return None
    rest = (at for at in range(len(extents)) if at not in divided)
    return tuple(int(extent) for extent in extents), tuple(tiles), (*divided, *rest)


def _is_of_places(table: Table) -> bool:
    """Whether what an input says of a position does not depend on those around it, or on its number."""
    return not (table.sorted or (table.listed and table.axes[-1].kind in ("q", "token")))


def _is_apart(stage: Stage) -> bool:
    """Whether a stage makes of permuted positions what it makes of them as they stand, permuted."""
    match stage:
        case Score() | Softmax() | Mark() | Attention() | Merge():
            return True
        case Pool(windows=windows, over=over):
            return windows is None and (side_of(over) is not None or over == "h")
        case Select(over=over, also=also):
            # Ties go to the smaller number.
            return not {"q", "k"} & {over, *also}
        case _:
            return False


def _sees_tiles(expr: Expr, *, axis: str, tables: dict[str, Table]) -> bool:
    """Whether an expression asks for no more of positions than their tiles, or what stands there in a table."""
    if expr in _POSITIONS:
        return False
    for node in walk(expr):
        match node:
            case Load(table=name, indices=indices):
                kinds = [each.kind for each in tables[name].axes] if name in tables else []
                if any(index in _POSITIONS and kind not in ("q", "token") for index, kind in zip(indices, kinds)):  # noqa: B905  # stages declare none
                    return False
            case Coord(axis=name):
                if name != axis:
                    return False
            case Apply():
                if any(part in _POSITIONS for part in children(node)):
                    return False
            case Const() | Extent() | Index():
                pass
            case _:
                return False
    return True
