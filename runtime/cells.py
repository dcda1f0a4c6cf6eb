"""Lists of tiles from tiles in any order, the transpose of lists, and those of several sequences as one.

Nothing is decided about tiles.  Memory is that of a few numbers for each tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spdsl.runtime.calls import TileList


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """Tiles one by one, each flat: the number of its row among ``shape`` (``[batch or 1, heads or 1, rows]``), its own
    number, which may be negative, and whether it is masked."""

    shape: tuple[int, int, int]
    row: Tensor
    tile: Tensor
    masked: Tensor

    @classmethod
    def of(cls, lists: TileList) -> Cells:
        """The tiles of lists."""
        batch, heads, rows = lists.begin.shape
        row, place = places(lists)
        masked = place >= lists.middle.flatten().long()[row]
        return cls(shape=(batch, heads, rows), row=row, tile=lists.tiles[place].long(), masked=masked)

    def lists(self) -> TileList:
        """The tiles in the order of rows, full ones first, ascending."""
        if not len(self.tile):
            nothing = torch.zeros(self.shape, dtype=torch.int32, device=self.tile.device)
            return TileList(begin=nothing, middle=nothing, end=nothing, tiles=self.tile.int())
        low, high = (int(end) for end in torch.stack(self.tile.aminmax()).tolist())
        width = high - low + 1
        keys = ((self.row * 2 + self.masked) * width + (self.tile - low)).sort().values
        batch, heads, rows = self.shape
        counts = (keys // width).bincount(minlength=2 * batch * heads * rows)
        ends = counts.cumsum(0)
        begin, middle = (ends - counts).view(batch, heads, rows, 2).unbind(-1)
        end = ends.view(batch, heads, rows, 2)[..., 1]
        return TileList(
            begin=begin.int().contiguous(),
            middle=middle.int().contiguous(),
            end=end.int().contiguous(),
            tiles=(keys % width + low).int(),
        )


def places(lists: TileList) -> tuple[Tensor, Tensor]:
    """Of each tile, row by row, the number of its row and where it stands in `TileList.tiles`."""
    begin, end = (each.flatten().long() for each in (lists.begin, lists.end))
    count = end - begin
    row = torch.repeat_interleave(torch.arange(len(begin), device=begin.device), count)
    return row, torch.arange(len(row), device=begin.device) + (begin - count.cumsum(0) + count)[row]


def transposed(lists: TileList, rows: int) -> TileList:
    """The same tiles by the other side, which has ``rows`` tiles."""
    cells = Cells.of(lists)
    batch, heads, others = cells.shape
    row = torch.div(cells.row, max(others, 1), rounding_mode="floor") * rows + cells.tile
    return Cells(shape=(batch, heads, rows), row=row, tile=cells.row % max(others, 1), masked=cells.masked).lists()


def joined(lists: Sequence[TileList]) -> TileList:
    """The lists of single batches as one."""
    if len(lists) == 1:
        return lists[0]
    heads = max(one.begin.shape[1] for one in lists)
    starts = [0]
    for one in lists:
        starts.append(starts[-1] + len(one.tiles))

    def stacked(field: str) -> Tensor:
        rows = [getattr(one, field) + start for one, start in zip(lists, starts, strict=False)]
        return torch.cat([row.expand(1, heads, -1) for row in rows])

    return TileList(
        begin=stacked("begin"),
        middle=stacked("middle"),
        end=stacked("end"),
        tiles=torch.cat([one.tiles for one in lists]),
    )
