"""In which order programs go through listed tiles where their sums have an order.

From lists by key to the same with `TileList.turns`.  A program may add to a tile of dQ when all that start before it
have done so.  It waits least if all go through the tiles in one order, and if that leads from the tiles that later
programs meet first to those that earlier ones have passed: downwards, as the sets of most patterns move up with the
keys.  Tiles that most programs meet come first, as programs start one after the other in any case.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from spdsl.runtime.calls import TileList
from spdsl.runtime.cells import places


def with_turns(lists: TileList) -> TileList:
    """The lists with the order in which each row is gone through."""
    row, place = places(lists)
    turns = torch.zeros_like(lists.tiles)
    if not len(place):
        return replace(lists, turns=turns)
    tile, rows = lists.tiles[place].long(), lists.begin.shape[-1]
    width = int(tile.amax()) + 1
    column = torch.div(row, rows, rounding_mode="floor") * width + tile
    rare = column.bincount()[column] * 2 <= rows
    order = ((row * 2 + rare) * width + (width - 1 - tile)).argsort()
    turns[place] = place[order].int()
    return replace(lists, turns=turns)
