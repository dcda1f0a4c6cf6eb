"""Orders of tokens in which those that are near on a grid stand together: `z_order(32, 32)`, `tiled((30, 48), (8, 8))`.

Patterns that divide *positions* into blocks (`llsa`, `moba`, `block_local`) meet square neighbourhoods of an image
where its tokens come in such an order, and stripes of one row where they come row by row.  Patterns that name a grid
need none of this: their coordinates are those of row-major order, whatever order their kernels walk in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spdsl.diagnostics import error

__all__ = ["Layout", "tiled", "z_order"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """An order of the places of a grid.

    Args:
        extents: places along each axis.
        order: int64 ``[n]``: the row-major number of the place that each token stands for.
    """

    extents: tuple[int, ...]
    order: Tensor

    @property
    def places(self) -> Tensor:
        """int64 ``[n]``: where the token of each place stands, places in row-major order."""
        found = torch.empty_like(self.order)
        found[self.order] = torch.arange(len(self.order))
        return found

    def arrange(self, x: Tensor, dim: int = -2) -> Tensor:
        """Tokens along ``dim`` from row-major order into this one.

        Raises:
            SpatError: another number of tokens (SP353).
        """
        return self._picked(x, dim, self.order)

    def restore(self, x: Tensor, dim: int = -2) -> Tensor:
        """Tokens along ``dim`` from this order back into row-major order.

        Raises:
            SpatError: another number of tokens (SP353).
        """
        return self._picked(x, dim, self.places)

    def _picked(self, x: Tensor, dim: int, order: Tensor) -> Tensor:
        if x.shape[dim] != len(order):
            grid = " × ".join(map(str, self.extents))
            found = (
                f"{x.shape[dim]} tokens along axis {dim} of {list(x.shape)}, where a grid of {grid} has {len(order)}"
            )
            raise error("SP353", found, help="name the axis of tokens: `arrange(x, dim=1)`")
        return x.index_select(dim, order.to(x.device))


def z_order(*extents: int) -> Layout:
    """Places by the bits of their coordinates, interleaved (Morton, 1966).

    Of a grid whose extents are one power of two, the tokens of every aligned block of 4, 16, 64, … (on two axes) are a
    square, and blocks of blocks are squares too.  Of any other grid it is the order of the places that exist.

    Raises:
        SpatError: an extent below 1 (SP353).
    """
    coordinates = _coordinates(extents)
    bits = max(extent - 1 for extent in extents).bit_length()
    code = torch.zeros_like(coordinates[0])
    for bit in range(bits):
        for axis, coordinate in enumerate(reversed(coordinates)):
            code += (coordinate >> bit & 1) << (bit * len(extents) + axis)
    return Layout(extents=tuple(extents), order=code.argsort(stable=True))


def tiled(extents: Sequence[int], tile: Sequence[int]) -> Layout:
    """Tile after tile in row-major order, and the places of each in row-major order; tiles at the far ends may be cut.

    Raises:
        SpatError: an extent or size below 1, or more of one than of the other (SP353).
    """
    coordinates = _coordinates(extents)
    if len(tile) != len(extents) or any(size < 1 for size in tile):
        raise error("SP353", f"tiles of {tuple(tile)} on a grid of {tuple(extents)}", help="give a size for each axis")
    number = torch.zeros_like(coordinates[0])
    for coordinate, extent, size in zip(coordinates, extents, tile, strict=True):
        number = number * -(-extent // size) + coordinate // size
    return Layout(extents=tuple(extents), order=number.argsort(stable=True))


def _coordinates(extents: Sequence[int]) -> tuple[Tensor, ...]:
    """The coordinates of all places in row-major order, int64 ``[n]`` each."""
    if not extents or any(extent < 1 for extent in extents):
        raise error("SP353", f"a grid of {tuple(extents)}", help="give one or more extents of at least 1")
    return torch.unravel_index(torch.arange(math.prod(extents)), tuple(extents))
