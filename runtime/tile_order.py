"""Tensors whose tokens are put in the order of their tiles, and results that are put back.

From: tensors of a call over a grid.  To: the same over tokens tile by tile (`spdsl.semantics.tilewise`).  Each is one
copy, which autograd sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from spdsl.semantics.nodes import Table
from spdsl.semantics.tilewise import Tilewise

_WIDE = torch.complex128
"""A type of 16 bytes, the most that a thread copies at once."""


def in_tiles(x: Tensor, axis: int, order: Tilewise) -> Tensor:
    """The tensor with the tokens along ``axis`` in the order of their tiles."""
    sizes = [size for extent, tile in _pairs(order) for size in (extent // tile, tile)]
    places = [*(2 * at for at in order.order), *(2 * at + 1 for at in range(len(order.extents)))]
    return _moved(x, axis % x.dim(), sizes, places)


def out_of_tiles(x: Tensor, axis: int, order: Tilewise) -> Tensor:
    """The opposite of `in_tiles`."""
    outer = [order.extents[at] // order.tiles[at] for at in order.order]
    count = len(outer)
    places = [place for at in range(count) for place in (order.order.index(at), count + at)]
    return _moved(x, axis % x.dim(), [*outer, *order.tiles], places)


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


class _Moved(torch.autograd.Function):
    """The parts of an axis in another order; the gradient goes the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: int, sizes: Sequence[int], places: Sequence[int]) -> Tensor:
        ctx.back = axis, [sizes[at] for at in places], [places.index(at) for at in range(len(places))]
        wide = _is_wide(x, axis)
        last = axis + len(sizes)
        parts: Tensor = (x.view(_WIDE) if wide else x).unflatten(axis, sizes)
        parts = parts.permute(*range(axis), *(axis + at for at in places), *range(last, parts.dim()))
        moved = parts.contiguous().flatten(axis, last - 1)
        return moved.view(x.dtype) if wide else moved

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _moved(gradient, *ctx.back), None, None, None


def _moved(x: Tensor, axis: int, sizes: Sequence[int], places: Sequence[int]) -> Tensor:
    """The parts of an axis, of these sizes, in another order."""
    return _Moved.apply(x, axis, sizes, places)  # type: ignore[no-any-return, no-untyped-call]


def _is_wide(x: Tensor, axis: int) -> bool:
    """Whether what lies side by side behind the axis can be copied sixteen bytes at a time."""
    each = _WIDE.itemsize // x.dtype.itemsize
    if axis == x.dim() - 1 or x.stride(-1) != 1 or x.dtype.is_complex:
        return False
    return all(size % each == 0 for size in (x.shape[-1], x.storage_offset(), *x.stride()[:-1]))
