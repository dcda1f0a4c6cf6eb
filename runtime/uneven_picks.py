"""Softmaxes over few blocks that each query has picked, of which no constant says how long they are.

From: a softmax whose set is a selection of blocks (`axis bin = token into 256`, or by a sorted table), and intervals
(`causal`).  To: output and LSE.  What a query meets of each block is an interval of keys, so that its picks are members
with intervals (`spdsl.runtime.stretches`): queries that have picked the same stand side by side, wherever they are.
Every pick has a row of output, and those of a query are put together in their order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spdsl.analysis.tiling import KEPT
from spdsl.runtime.arrays import Arrays
from spdsl.runtime.items import LARGEST
from spdsl.runtime.lines import Lines
from spdsl.runtime.member_stretches import attend_stretches
from spdsl.runtime.members_joined import joined_members
from spdsl.runtime.sets import lists
from spdsl.runtime.stretches import Interval, interval_of, is_plain, scale_of, stretches_of
from spdsl.semantics.graph import Attention, Select, index_of
from spdsl.semantics.nodes import Axis, BoundPattern, Index, Load
from spdsl.semantics.rewrite import conjuncts

_MOST = 512
"""Patterns that are remembered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnevenPicks:
    """A softmax over the blocks of the ``axis`` of keys that the selection ``chosen`` has, as far as the interval
    ``rest`` has them."""

    attention: Attention
    chosen: Select
    axis: str
    rest: Interval


_known: dict[int, tuple[BoundPattern, dict[str, UnevenPicks]]] = {}


def uneven_picks(pattern: BoundPattern) -> dict[str, UnevenPicks]:
    """The softmaxes of a pattern that are of this kind, by name."""
    # By identity: hashing a pattern takes longer than a launch.  The entry keeps it alive.
    key = id(pattern)
    if key not in _known:
        if len(_known) >= _MOST:
            _known.clear()
        assert pattern.graph is not None
        found = {stage.name: _uneven(pattern, stage) for stage in pattern.graph.attentions}
        _known[key] = pattern, {name: each for name, each in found.items() if each is not None}
    return _known[key][1]


def _uneven(pattern: BoundPattern, stage: Attention) -> UnevenPicks | None:
    assert pattern.graph is not None
    if not is_plain(stage) or stage.axes != ("h", "q", "d"):
        return None
    sets = {each.name: each for each in pattern.graph.stages if isinstance(each, Select)}
    clauses = conjuncts(stage.attend.keep)
    picked = [each for each in clauses if isinstance(each, Load) and each.table in sets]
    rest, bounds = Interval(), [interval_of(each) for each in clauses if each not in picked]
    for bound in bounds:
        if bound is None:
            return None
        rest = rest.and_(bound)
    if len(picked) != 1:
        return None
    chosen = sets[picked[0].table]
    head, row, key = ("", *chosen.axes) if len(chosen.axes) == 2 else chosen.axes
    own = chosen.rank is None and picked[0].indices == tuple(map(index_of, chosen.axes))
    axis = next((each for each in pattern.axes if f"k.{each.name}" == key), None)
    if not own or head not in ("", "h", "g") or row != "q" or axis is None or not _is_uneven(axis):
        return None
    return UnevenPicks(attention=stage, chosen=chosen, axis=axis.name, rest=rest)


def _is_uneven(axis: Axis) -> bool:
    """Whether blocks are intervals of positions that have no constant length."""
    whole = axis.of == (Index(name="k"),) and axis.step is None
    return whole and (axis.table is not None or axis.into is not None)


def attended_picks(given: UnevenPicks, chosen: Arrays, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor] | None:
    """Output ``[batch, heads, nq, dv]`` and LSE, or None where queries have too many picks for this."""
    with torch.no_grad():
        table = lists(chosen, given.chosen.name)
    most = table.shape[-1]
    fits = q.numel() > 0 and k.numel() > 0 and 0 < most <= KEPT and max(q.shape[-1], v.shape[-1]) <= LARGEST
    if not fits or q.shape[1] * most * q.shape[2] >= 2**31:
        return None
    batch, heads, queries = q.shape[:3]
    with torch.no_grad():
        table = table.unsqueeze(1) if len(given.chosen.axes) == 2 else table
        if given.chosen.axes[0] == "g":
            table = table.repeat_interleave(heads // table.shape[1], 1)
        ends = _ends(chosen.lines, given.axis, table.transpose(2, 3))
        shape = batch, heads, most, queries
        own = stretches_of(chosen, given.rest, ("h", "q"), shape, ends)
    out, lse = attend_stretches(q, k, v, own, None, scale_of(given.attention, q), chosen.lines.q_start)
    return joined_members(out, lse)


def _ends(lines: Lines, name: str, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last position of blocks; of what stands for none, the first behind the last."""
    axis = next(each for each in lines.pattern.axes if each.name == name)
    if axis.table is None:
        # Numbers that stand for none are large, and so are their ends.
        some = blocks.long()
        return lines.edge(name, some, last=False), lines.edge(name, some, last=True)
    table = lines.tables[axis.table].reshape(-1)[: lines.n].long()
    wanted = blocks.long().contiguous()
    return torch.searchsorted(table, wanted), torch.searchsorted(table, wanted, right=True) - 1
