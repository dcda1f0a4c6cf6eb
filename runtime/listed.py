"""Which tiles a set of pairs touches that is given as lists of keys, and which it fills.

From: the lists of the rows of each tile, and the index of each key.  To: `Truth` for the tiles.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spdsl.runtime.ranges import Truth

_ROOM = 1 << 26
"""Numbers that are held at once."""


def tiles_of_lists(lists: Tensor, points: Tensor) -> Truth:
    """The truth of ``[…, tiles of queries, tiles of keys]``.

    ``lists`` is ``[…, tiles, rows, most]``: the indices of each row, ascending, each once.  ``points`` is
    ``[tiles, keys]``: the index at each key.
    """
    first = int(points.min()) if points.numel() else 0
    size = int(points.max()) - first + 1 if points.numel() else 1
    # The different indices of each tile of keys: few, or as many as it has keys.
    tile = torch.arange(len(points), device=points.device)[:, None].expand(points.shape)
    pairs = torch.unique(tile * size + (points - first))
    tile, index = pairs // size, pairs % size
    step = max(1, _ROOM // max(1, lists.shape[:-3].numel() * max(size, len(pairs))))
    parts = [_chunk(some, first, size, tile, index, len(points)) for some in lists.split(step, dim=-3)]
    return Truth(may=torch.cat([part.may for part in parts], -2), must=torch.cat([part.must for part in parts], -2))


def _chunk(lists: Tensor, first: int, size: int, tile: Tensor, index: Tensor, tiles: int) -> Truth:
    flat = lists.flatten(-2) - first if first else lists.flatten(-2)
    inside = (flat >= 0) & (flat < size)
    counts = torch.zeros(*flat.shape[:-1], size + 1, dtype=torch.int32, device=flat.device)
    # What is elsewhere counts in a place of its own.
    one = torch.ones((), dtype=torch.int32, device=flat.device)
    counts.scatter_add_(-1, torch.where(inside, flat, size).long(), one.expand(flat.shape))
    seen = counts[..., index]
    room = torch.zeros(*flat.shape[:-1], tiles, dtype=torch.int32, device=flat.device)
    touched = room.index_add(-1, tile, (seen > 0).int())
    full = room.index_add(-1, tile, (seen == lists.shape[-2]).int())
    kinds = torch.bincount(tile, minlength=tiles).int()
    return Truth(may=touched > 0, must=full == kinds)
