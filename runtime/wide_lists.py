"""Lists of tiles in which every row has room for all of them, made without waiting for the device.

From: which tiles are full and which are masked.  To: a `TileList`, full tiles first, each part ascending.  Where lists
are as long as what they hold, the host has to ask how much that is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spdsl.runtime.calls import TileList

MOST = 1 << 23
"""Tiles, over heads and sequences, up to which rows have room for all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """Tiles of queries by tiles of keys that are full, and that are masked: bool ``[batch or 1, heads or 1, rows,
    columns]``."""

    full: Tensor
    masked: Tensor

    def lists(self, by: str, rows: int) -> TileList:
        """The lists of tiles of queries, or of keys; those past the last have none."""
        full, masked = self.full, self.masked
        if by == "key":
            full, masked = full.transpose(-1, -2), masked.transpose(-1, -2)
        return _listed(full, masked, rows)


def _listed(full: Tensor, masked: Tensor, rows: int) -> TileList:
    batch, heads, some, columns = full.shape
    begin = torch.arange(batch * heads * rows, dtype=torch.int32, device=full.device).view(batch, heads, rows)
    begin = begin * (columns + 1)
    counts = (torch.nn.functional.pad(each.sum(-1), (0, rows - some)).int() for each in (full, masked))
    middle, end = (begin + each for each in torch.stack(tuple(counts)).cumsum(0, dtype=torch.int32).unbind(0))
    # Past the last column stands what is not listed.
    place = torch.where(full, full.cumsum(-1) - 1, columns)
    place = torch.where(masked, full.sum(-1, keepdim=True) + masked.cumsum(-1) - 1, place)
    tiles = torch.zeros(batch, heads, rows, columns + 1, dtype=torch.int32, device=full.device)
    column = torch.arange(columns, dtype=torch.int32, device=full.device).expand(place.shape)
    tiles[:, :, :some].scatter_(-1, place, column)
    return TileList(begin=begin, middle=middle, end=end, tiles=tiles.flatten())
