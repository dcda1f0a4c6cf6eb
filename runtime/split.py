"""Which rows of tiles a launch cuts into parts, and into how many.

From: the plan of a kernel and the sizes of a call, or the lengths of listed rows.  To: a `Split`.  A row counts as long
when one program would still be busy with it after the others have done their share; where a call has few queries, or
few keys, all rows do.  Nothing here changes results by more than the order in which sums are added, which depends on
shapes and the device alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from spdsl.analysis.plans import KernelPlan
from spdsl.analysis.sharing import PARTS, TURNS, cut_into
from spdsl.analysis.tiles import COUNT, Interval, ListWalk, SlotWalk
from spdsl.runtime.calls import Call, RowOrder, TileList
from spdsl.runtime.evaluate import value_of
from spdsl.runtime.tile_grid import TileGrid
from spdsl.semantics.nodes import Extent
from spdsl.semantics.rewrite import walk

FEW_TURNS = 4
"""The same for few queries, whose tiles are small."""

TAIL = 8
"""A listed row is long when it takes more than one part in so many of what one program would do if all were equal."""

CUTS = 4
"""Parts of each of the rows that count as long where the device is not asked."""

INTERPRETER = 8
"""Multiprocessors where there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """``long`` programs' rows of each head are cut into ``parts``, beginning with row ``first`` or in ``order``; the
    ``others`` are left whole."""

    long: int
    others: int
    parts: int
    first: int = 0
    order: RowOrder | None = None


def split_of(call: Call, kernel: KernelPlan, programs: int, heads: int) -> Split:
    """How to launch ``kernel``, which has ``programs`` rows of tiles for each of ``heads``."""
    each = heads * call.q.shape[0]
    lists = call.lists[kernel.kind] if isinstance(kernel.walk, ListWalk) else None
    order = lists.order if isinstance(lists, TileList) else None
    if kernel.few:
        most = TileGrid.of(kernel).key_tiles(call.keys) if order is None else order.most
        parts = parts_for(programs * each, most, FEW_TURNS, call.q.device)
        return Split(long=programs, others=0, parts=parts, order=order)
    if order is not None:
        parts = parts_for(order.long * each, order.most, TURNS, call.q.device)
        return Split(long=order.long, others=programs - order.long, parts=parts, order=order)
    assert isinstance(kernel.walk, SlotWalk)
    if kernel.walk.long is None:
        # Few keys: programs go through all heads of a group.
        most = TileGrid.of(kernel).query_tiles(call.q.shape[2])
        ratio = call.q.shape[1] // call.k.shape[1]
        parts = parts_for(programs * each, most * ratio, TURNS, call.q.device)
        return Split(long=programs, others=0, parts=min(parts, max(1, most)))
    first, long, most = long_rows(call, kernel, kernel.walk.long, programs)
    return Split(
        long=long, others=programs - long, parts=parts_for(long * each, most, TURNS, call.q.device), first=first
    )


def long_rows(call: Call, kernel: KernelPlan, interval: Interval, programs: int) -> tuple[int, int, int]:
    """The first of the rows of an ``interval`` that are cut, of ``programs`` rows; how many they are, and how many
    tiles one of them has at most."""
    lo, hi = _rows(interval, call)
    first = min(max(lo * kernel.classes, 0), programs)
    grid = TileGrid.of(kernel)
    most = grid.key_tiles(call.keys) if grid.by == "query" else grid.query_tiles(call.q.shape[2])
    return first, min(max(hi * kernel.classes, first), programs) - first, most


def _rows(interval: Interval, call: Call) -> tuple[int, int]:
    """The bounds of an interval of rows; empty if they depend on what only the device knows."""
    bounds = (interval.lo, interval.hi)
    if call.places is not None and any(isinstance(node, Extent) for bound in bounds for node in walk(bound)):
        return 0, 0
    env = {"nq": call.q.shape[2], "n": call.keys, "q_start": call.q_start, **call.parameters}
    env |= {} if call.marks is None else {COUNT.name: call.marks.rows.shape[-1]}
    lo, hi = (int(value_of(bound, env)) for bound in bounds)
    return lo, hi


def parts_for(rows: int, turns: int, least: int, device: torch.device) -> int:
    """Into how many parts to cut ``rows`` long rows, over heads and sequences, with at most ``turns`` tiles each, and
    at least ``least`` for a part."""
    return cut_into(rows, turns, least, multiprocessors(device))


def multiprocessors(device: torch.device) -> int:
    """How many programs run side by side, at least."""
    return _multiprocessors(device) if device.type == "cuda" else INTERPRETER


@lru_cache(maxsize=64)
def _multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def order_of(lists: TileList, batch: int, heads: int, longest: int | None = None) -> RowOrder:
    """The rows of lists of so many sequences, the long ones of each of ``heads`` first, the longest before the others,
    else as they were.

    Where programs go through the heads of a group, rows count with the tiles of all of them.  Asks the device once
    which rows are long; where it is said how many tiles a row has at most, so many count as long that the
    multiprocessors have `CUTS` parts of each.
    """
    turns = (lists.end - lists.begin).long()
    if turns.shape[1] > heads:
        turns = turns.unflatten(1, (heads, -1)).sum(2)
    if not turns.shape[-1]:
        return RowOrder(rows=turns.int(), long=0, most=0)
    if longest is not None:
        count = min(max(1, PARTS * multiprocessors(turns.device) // (CUTS * heads * batch)), turns.shape[-1])
        return _ordered(turns, count, longest)
    repeats = batch * heads // (turns.shape[0] * turns.shape[1])
    share = turns.sum() * repeats // (PARTS * multiprocessors(turns.device))
    long = (turns > (share // TAIL).clamp(min=2 * TURNS)).sum(-1).amax()
    return _ordered(turns, *torch.stack([long, turns.amax()]).tolist())


def _ordered(turns: Tensor, count: int, longest: int) -> RowOrder:
    first = turns.argsort(dim=-1, descending=True, stable=True)[..., :count]
    rest = torch.ones_like(turns, dtype=torch.uint8).scatter_(-1, first, 0).argsort(dim=-1, stable=True)[..., count:]
    return RowOrder(rows=torch.cat([first, rest], dim=-1).int(), long=count, most=longest)
