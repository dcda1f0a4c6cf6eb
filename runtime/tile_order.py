"""Tensors whose tokens are put in the order of their tiles, and results that are put back.

From: tensors of a call over a grid.  To: the same over tokens tile by tile (`spdsl.semantics.tilewise`).  Each is one
copy, which autograd sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from spdsl.semantics.nodes import Table
from spdsl.semantics.tilewise import Tilewise


def in_tiles(x: Tensor, axis: int, order: Tilewise) -> Tensor:
    """The tensor with the tokens along ``axis`` in the order of their tiles."""
    axis %= x.dim()
    sizes = [size for extent, tile in _pairs(order) for size in (extent // tile, tile)]
    places = [*(2 * at for at in order.order), *(2 * at + 1 for at in range(len(order.extents)))]
    return _moved(x, axis, sizes, places)


def out_of_tiles(x: Tensor, axis: int, order: Tilewise) -> Tensor:
    """The opposite of `in_tiles`."""
    axis %= x.dim()
    outer = [order.extents[at] // order.tiles[at] for at in order.order]
    count = len(outer)
    places = [place for at in range(count) for place in (order.order.index(at), count + at)]
    return _moved(x, axis, [*outer, *order.tiles], places)


def tables_in_tiles(given: Mapping[str, Tensor], declared: Sequence[Table], order: Tilewise) -> dict[str, Tensor]:
    """Inputs with their axes of tokens and queries in the order of tiles."""
    found = dict(given)
    for table in declared:
        for at, axis in enumerate(table.axes):
            if axis.kind in ("q", "token"):
                found[table.name] = in_tiles(found[table.name], at - len(table.axes), order)
    return found


def _pairs(order: Tilewise) -> zip[tuple[int, int]]:
    return zip(order.extents, order.tiles, strict=True)


def _moved(x: Tensor, axis: int, sizes: Sequence[int], places: Sequence[int]) -> Tensor:
    """The parts of an axis, of these sizes, in another order."""
    last = axis + len(sizes)
    parts: Tensor = x.unflatten(axis, sizes)
    moved: Tensor = parts.permute(*range(axis), *(axis + at for at in places), *range(last, parts.dim()))
    return moved.flatten(axis, last - 1)
