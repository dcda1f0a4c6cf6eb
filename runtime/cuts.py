"""The intervals of cuts, computed with torch: what the kernel of `spdsl.codegen.cuts` writes, for the CPU and counts.

From: `Cuts`, lengths and tables.  To: four tables, each an int for every tile of a kernel's own side.  Method: the
least and the greatest value of a tile, and a binary search of the walked side for each; O(N) values and
O(tiles · log N) marks.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from spdsl.analysis.tiles import FAR_ROW, Cut, Cuts
from spdsl.runtime.evaluate import Tables, evaluate
from spdsl.runtime.pairs import Pairs
from spdsl.runtime.tile_grid import TileGrid
from spdsl.semantics.nodes import Index

_FURTHEST = (1 << 63) - 1


def with_intervals(tables: Tables, cuts: Cuts, found: Tensor) -> Tables:
    """The tables, and those of the `intervals` that the bounds of a walk with ``cuts`` load."""
    values = {name: found[..., column] for column, name in enumerate(cuts.names)}
    return replace(tables, values={**tables.values, **values})


def intervals(cuts: Cuts, pairs: Pairs, tables: Tables, grid: TileGrid) -> Tensor:
    """int64 ``[batch or 1, (heads or groups,) tiles, 4]``: rows of the walked side, `FAR_ROW` for none."""
    rows, exists = _own_rows(cuts, pairs, grid)
    found = torch.tensor([0, 0, FAR_ROW, FAR_ROW], device=pairs.device).view(1, 1, 1, 4)
    for cut in cuts.cuts:
        found = _narrowed(found, cut, _ends(cut, cuts, rows, exists, pairs, tables))
    found = found.expand(*found.shape[:2], len(rows), 4)
    match cuts.heads:
        case None:
            return found[:, 0]
        case "h":
            return found.expand(found.shape[0], pairs.heads, -1, -1)
        case "g":
            return found.expand(found.shape[0], pairs.heads, -1, -1)[:, :: pairs.heads // pairs.groups]


def _own_rows(cuts: Cuts, pairs: Pairs, grid: TileGrid) -> tuple[Tensor, Tensor]:
    """Positions ``[tiles, block]`` of the own side, and which exist."""
    count = grid.query_tiles(pairs.queries) if cuts.by == "query" else grid.key_tiles(pairs.keys)
    program = torch.arange(count, device=pairs.device)[:, None]
    row = torch.arange(cuts.block, device=pairs.device)
    rows = (program // grid.modulus * cuts.block + row) * grid.modulus + program % grid.modulus
    if cuts.by == "key":
        return rows, rows < pairs.keys
    q = rows + pairs.q_start
    return q, (rows < pairs.queries) & (q >= 0)


def _ends(cut: Cut, cuts: Cuts, own: Tensor, exists: Tensor, pairs: Pairs, tables: Tables) -> Tensor:
    """The first rows that reach the least and the greatest value, by ``start``, then by ``end``: ``[…, tiles, 4]``."""
    fixed = pairs.extents() | pairs.outer(2)
    name, walked = ("q", "k") if cuts.by == "query" else ("k", "q")
    value = evaluate(cut.value, fixed | {name: own}, tables)
    least = torch.where(exists, value, _FURTHEST).amin(-1)
    greatest = torch.where(exists, value, -_FURTHEST).amax(-1)
    wanted = torch.stack((least, greatest, least, greatest), dim=-1)
    wanted = wanted.view(*[1] * (4 - wanted.dim()), *wanted.shape)
    start = 0 if walked == "k" else pairs.q_start
    first, end = max(0, start), start + (pairs.keys if walked == "k" else pairs.queries)
    if cut.mark == Index(name=walked):
        # The position that reaches a value is the value itself, or the next.
        above = torch.tensor([edge == "gt" for edge in (cut.start, cut.start, cut.end, cut.end)], device=wanted.device)
        at = (wanted.clamp(first - 1, end) + above).clamp(min=first)
        return torch.where(at < end, at - start, FAR_ROW)
    low = torch.full_like(wanted, first)
    high = torch.full_like(wanted, max(first, end))
    for _ in range((end - first).bit_length() if end > first else 0):
        middle = (low + high) >> 1
        mark = evaluate(cut.mark, fixed | {walked: middle}, tables)
        reached = _reached(cut, mark, wanted) | (low >= high)
        low, high = torch.where(reached, low, middle + 1), torch.where(reached, middle, high)
    return torch.where(low < end, low - start, FAR_ROW)


def _reached(cut: Cut, mark: Tensor, wanted: Tensor) -> Tensor:
    by_start = mark > wanted if cut.start == "gt" else mark >= wanted
    by_end = mark > wanted if cut.end == "gt" else mark >= wanted
    is_start = torch.arange(4, device=wanted.device) < 2
    return torch.where(is_start, by_start, by_end)


def _narrowed(found: Tensor, cut: Cut, ends: Tensor) -> Tensor:
    """The intersection of the intervals so far with those of one more cut."""
    both = torch.maximum(found, ends)[..., :2], torch.minimum(found, ends)[..., 2:]
    parts = torch.broadcast_tensors(found, ends)[0]
    return torch.cat(
        (parts[..., :2] if cut.start is None else both[0], parts[..., 2:] if cut.end is None else both[1]), dim=-1
    )
