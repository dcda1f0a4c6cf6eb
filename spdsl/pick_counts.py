"""The pairs of a selection, counted from its lists: a pick counts as a whole wherever the rest of the set is the same.

From: a call, and the lists that its set looks pairs up in.  To: a number, over batch and heads.  The rest of the set
(a causal edge, what another part of a union has) is bounded in tiles that hold whole runs of queries and whole blocks
of keys: picks in full tiles are counted by their size, those in others not at all, and only picks in tiles in doubt,
those that an edge crosses, are looked at pair by pair.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spdsl.analysis.picks import Picked
from spdsl.runtime.calls import Call
from spdsl.runtime.distance import with_distances
from spdsl.runtime.evaluate import Tables, depends_on, evaluate, tables_for
from spdsl.runtime.intervals import TileBounds, bounds_over
from spdsl.runtime.pairs import Pairs, pairs_of
from spdsl.runtime.ranges import truth_shape

_TILE = 64
"""The least rows and keys of a tile, except where there are fewer."""

_CHUNK = 1 << 22
"""Picks, tiles and pairs that are held at once."""


def count_picks(call: Call, picks: Picked) -> int:
    """The pairs that are picked and that the rest of the set keeps."""
    pairs, tables = pairs_of(call), tables_for(call.plan.tables, call.tables)
    lists = _for_owners(call, picks, depends_on(picks.keep, tables))
    batch, heads, runs, _ = lists.shape
    weight = (call.q.shape[0] // batch) * (call.q.shape[1] // heads)
    first = 0 if picks.rows > 1 else pairs.q_start
    per_row, per_column = (max(1, -(-_TILE // size)) for size in (picks.rows, picks.block))
    # Positions of whole runs; past an end, and before 0, the nearest that exists is repeated.
    last = pairs.q_start + pairs.queries - 1
    queries = _tiles(runs, per_row * picks.rows, picks.rows, first, pairs).clamp(max(0, pairs.q_start), max(0, last))
    keys = _tiles(-(-pairs.keys // picks.block), per_column * picks.block, picks.block, 0, pairs)
    bounds = bounds_over(with_distances(picks.keep), pairs, tables, queries, keys.clamp(max=pairs.keys - 1))
    total = 0
    step = max(1, _CHUNK // max(1, batch * heads * max(bounds.columns, per_row * lists.shape[-1])))
    for begin in range(0, bounds.rows, step):
        rows = slice(begin, min(begin + step, bounds.rows))
        total += _rows(lists, picks, bounds, rows, per_row, per_column)
    return weight * total


def _for_owners(call: Call, picks: Picked, varies: frozenset[str]) -> Tensor:
    """The lists ``[batch or 1, lists of heads, runs, most]``, one for each head or batch that the rest tells apart."""
    lists = call.tables[picks.table]
    (declared,) = (each for each in call.plan.tables if each.name == picks.table)
    lists = lists if declared.axes[0].kind in ("g", "h") else lists.unsqueeze(1)
    if varies & {"h", "g"}:
        heads = call.q.shape[1]
        lists = lists[:, torch.arange(heads, device=lists.device) * lists.shape[1] // heads]
    return lists.expand(call.q.shape[0], -1, -1, -1) if "b" in varies else lists


def _tiles(count: int, span: int, size: int, first: int, pairs: Pairs) -> Tensor:
    """Positions ``[tiles, span]`` that hold ``count`` runs of ``size`` from ``first`` on."""
    tiles = -(-count * size // span)
    return first + torch.arange(tiles * span, device=pairs.device).view(tiles, span)


def _rows(lists: Tensor, picks: Picked, bounds: TileBounds, rows: slice, per_row: int, per_column: int) -> int:
    """The pairs of some rows of tiles."""
    pairs = bounds.pairs
    truth = bounds.of(rows, slice(0, bounds.columns))
    shape = truth_shape(truth, rows, slice(0, bounds.columns))
    may, must = truth.may.expand(shape), truth.must.expand(shape)
    some = lists[:, :, rows.start * per_row : rows.stop * per_row]
    blocks = -(-pairs.keys // picks.block)
    batch, head, run, place = (some < blocks).nonzero(as_tuple=True)
    block = some[batch, head, run, place].long()
    at = (batch.clamp(max=shape[0] - 1), head.clamp(max=shape[1] - 1), run // per_row, block // per_column)
    whole, doubted = must[at], may[at] & ~must[at]
    run = run + rows.start * per_row
    begin = run * picks.rows + (0 if picks.rows > 1 else pairs.q_start)
    lowest, end = max(0, pairs.q_start), pairs.q_start + pairs.queries
    queries = ((begin + picks.rows).clamp(max=end) - begin.clamp(min=lowest)).clamp(min=0)
    keys = (pairs.keys - block * picks.block).clamp(max=picks.block)
    total = int((queries * keys * whole).sum())
    step = max(1, _CHUNK // (picks.rows * picks.block))
    left = torch.stack((batch, head, begin, block * picks.block), 1)[doubted]
    heads = some.shape[1]
    return total + sum(_look(chunk, picks, pairs, heads, bounds.tables) for chunk in left.split(step))


def _look(cells: Tensor, picks: Picked, pairs: Pairs, lists: int, tables: Tables) -> int:
    """The pairs of picks, ``[count, 4]``: batch, list, first query and first key."""
    device = cells.device
    batch, owner, q, k = (each.view(-1, 1, 1) for each in cells.unbind(1))
    q = q + torch.arange(picks.rows, device=device)[:, None]
    k = k + torch.arange(picks.block, device=device)
    # Where lists stand for several heads, the rest is the same for all of these.
    head = owner * (pairs.heads // lists)
    env = pairs.extents() | {"b": batch, "h": head, "g": head // (pairs.heads // pairs.groups), "q": q, "k": k}
    kept = evaluate(picks.keep, env, tables)
    exists = (q >= max(0, pairs.q_start)) & (q < pairs.q_start + pairs.queries) & (k < pairs.keys)
    return int((kept & exists).sum())
