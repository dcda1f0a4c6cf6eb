"""Which tiles a set of pairs touches that is given as lists of keys, and which it fills.

From: the lists of the rows of each tile, and the index of each key.  To: `Truth` for the tiles.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spdsl.runtime.ranges import Truth

_ROOM = 1 << 26
"""Numbers that are held at once."""


def tiles_of_lists(lists: Tensor, points: Tensor, owners: Tensor | None = None, tiles: int = 0) -> Truth:
    """The truth of ``[…, tiles of queries, tiles of keys]``.

    ``lists`` is ``[…, tiles, rows, most]``: the indices of each row, ascending, each once.  With ``owners``, which say
    to which of so many ``tiles`` each row belongs, it is ``[…, rows, most]``.  ``points`` is ``[tiles, keys]``: the
    index at each key.
    """
    first = int(points.min()) if points.numel() else 0
    size = int(points.max()) - first + 1 if points.numel() else 1
    # The different indices of each tile of keys: few, or as many as it has keys.
    tile = torch.arange(len(points), device=points.device)[:, None].expand(points.shape)
    pairs = torch.unique(tile * size + (points - first))
    tile, index = pairs // size, pairs % size
    if owners is not None:
        return _truth(*_counted(lists, owners, tiles, first, size), tile, index, len(points))
    step = max(1, _ROOM // max(1, lists.shape[:-3].numel() * max(size, len(pairs))))
    parts = [_chunk(some, first, size, tile, index, len(points)) for some in lists.split(step, dim=-3)]
    return Truth(may=torch.cat([part.may for part in parts], -2), must=torch.cat([part.must for part in parts], -2))


def _counted(lists: Tensor, owners: Tensor, tiles: int, first: int, size: int) -> tuple[Tensor, Tensor]:
    """How many rows of each tile have each index, and how many rows each tile has."""
    flat = lists - first
    flat = torch.where((flat >= 0) & (flat < size), flat, size).long()
    has = torch.zeros(*lists.shape[:-1], size + 1, dtype=torch.int32, device=lists.device)
    has.scatter_(-1, flat, 1)
    counts = torch.zeros(*lists.shape[:-2], tiles, size + 1, dtype=torch.int32, device=lists.device)
    rows = torch.zeros(tiles, dtype=torch.int32, device=lists.device)
    one = torch.ones_like(owners, dtype=torch.int32)
    return counts.index_add_(-2, owners, has), rows.index_add_(0, owners, one)[:, None]


def _chunk(lists: Tensor, first: int, size: int, tile: Tensor, index: Tensor, tiles: int) -> Truth:
    flat = lists.flatten(-2) - first if first else lists.flatten(-2)
    inside = (flat >= 0) & (flat < size)
    counts = torch.zeros(*flat.shape[:-1], size + 1, dtype=torch.int32, device=flat.device)
    # What is elsewhere counts in a place of its own.
    one = torch.ones((), dtype=torch.int32, device=flat.device)
    counts.scatter_add_(-1, torch.where(inside, flat, size).long(), one.expand(flat.shape))
    return _truth(counts, lists.shape[-2], tile, index, tiles)


def _truth(counts: Tensor, rows: Tensor | int, tile: Tensor, index: Tensor, tiles: int) -> Truth:
    """The truth of tiles of keys, each of which has some indices, by how many of the ``rows`` have each index."""
    seen = counts[..., index]
    # Each has room of its own, which steps take anew: kept, it would take more than all else.
    shape = (2, *counts.shape[:-1], tiles)
    touched, full = torch.zeros(shape, dtype=torch.int32, device=counts.device).unbind(0)
    touched.index_add_(-1, tile, (seen > 0).int())
    full.index_add_(-1, tile, (seen == rows).int())
    kinds = torch.bincount(tile, minlength=tiles).int()
    return Truth(may=touched > 0, must=full == kinds)
