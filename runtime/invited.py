"""Members of a free axis that have invited queries and keys: each attends among these alone, and queries take the mean.

From: the mean over members whose sets are a selection of queries times one of keys, and what positions say.  To: the
output.  Rows are gathered, so that a member costs its invitations squared, and nothing is as long as the sequence once
for each.  Members are small dense softmaxes, which torch computes and differentiates; what a query has from several is
added in one order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from spdsl.runtime.arrays import Arrays
from spdsl.runtime.evaluate import evaluate
from spdsl.runtime.memo import Memo
from spdsl.semantics import build
from spdsl.semantics.graph import Attention, Merge, Select, StageGraph, expressions, loads
from spdsl.semantics.nodes import Apply, Const, Expr, Extent, Index, Load
from spdsl.semantics.rewrite import conjuncts, walk

WIDEST = 2048
"""Invitations of a member up to which all of its pairs are computed."""

_PAIRS = 1 << 28
"""Pairs that are computed at once."""

_CAUSAL = Apply(op="le", args=(Index(name="k"), Index(name="q")), dtype="bool")

_MOST = 512
"""Graphs that are remembered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Invited:
    """A softmax for each member, the selections of its queries and of its keys, and what is left to test of a pair."""

    attention: Attention
    queries: Select
    keys: Select
    rest: Expr


_invited: dict[int, tuple[StageGraph, dict[str, Invited]]] = {}


def invited(graph: StageGraph) -> dict[str, Invited]:
    """The means of a graph whose members have invited queries and keys, by name."""
    # By identity: hashing a graph takes longer than a launch.  The entry keeps it alive.
    key = id(graph)
    if key not in _invited:
        if len(_invited) >= _MOST:
            _invited.clear()
        read = frozenset[str]().union(*map(loads, expressions(graph)))
        means = (stage for stage in graph.stages if isinstance(stage, Merge) and stage.by == "mean")
        found = {stage.name: _invited_by(graph, stage, read) for stage in means}
        _invited[key] = graph, {name: each for name, each in found.items() if each is not None}
    return _invited[key][1]


def _invited_by(graph: StageGraph, merge: Merge, read: frozenset[str]) -> Invited | None:
    if len(merge.parts) != 1 or merge.over is None or merge.parts[0] in read:
        return None
    stages = {stage.name: stage for stage in graph.stages}
    stage = stages[merge.parts[0]]
    others = [each for each in graph.stages if isinstance(each, Merge) and each is not merge]
    if not isinstance(stage, Attention) or any(stage.name in each.parts for each in others):
        return None
    attend = stage.attend
    own = [(stage.query, "Q"), (stage.key, "K"), (stage.value, "V")]
    plain = attend.bias is None and attend.softcap is None and attend.sink_logit is None
    plain = plain and (attend.scale is None or isinstance(attend.scale, Const))
    plain = plain and all(isinstance(expr, Load) and expr.table == name for expr, name in own)
    if not plain or stage.member != merge.over or (stage.rows, stage.columns) != ("q", "k"):
        return None
    sides: dict[str, Select] = {}
    rest: list[Expr] = []
    for clause in conjuncts(attend.keep):
        chosen = stages.get(clause.table) if isinstance(clause, Load) else None
        if isinstance(chosen, Select) and chosen.over in ("q", "k") and chosen.over not in sides:
            if not _is_of_members(chosen, merge.over):
                return None
            sides[chosen.over] = chosen
        elif all(_is_of_positions(node) for node in walk(clause)):
            rest.append(clause)
        else:
            return None
    if len(sides) < 2:
        return None
    return Invited(attention=stage, queries=sides["q"], keys=sides["k"], rest=build.conj(*rest))


def _is_of_members(chosen: Select, member: str) -> bool:
    """Whether so many are chosen for each member, and for each head, each group or all of them."""
    few = isinstance(chosen.amount, Const) and chosen.by == "count" and chosen.amount.value <= WIDEST
    return few and not chosen.also and chosen.axes[-2:] == (member, chosen.over) and len(chosen.axes) <= 3


def _is_of_positions(node: Expr) -> bool:
    return isinstance(node, Apply | Const | Extent) or node in (Index(name="q"), Index(name="k"))


def mean_of_invited(given: Invited, chosen: Arrays, q: Tensor, k: Tensor, v: Tensor, q_start: int) -> Tensor:
    """The output ``[batch, heads, nq, dv]``: of each query the mean over the members that keep something of it."""
    with torch.no_grad():
        asked, answered = (_entries(chosen, each, *q.shape[:2]) for each in (given.queries, given.keys))
    match given.attention.attend.scale:
        case Const(value=value):
            factor = float(value)
        case _:
            factor = 1 / math.sqrt(q.shape[-1])
    if chosen.kernels and given.rest in (build.TRUE, _CAUSAL):
        from spdsl.runtime.items import LARGEST, Lists
        from spdsl.runtime.member_means import mean_of_lists

        if max(q.shape[-1], v.shape[-1]) <= LARGEST:
            lists = Lists(queries=asked, keys=answered, causal=given.rest == _CAUSAL)
            return mean_of_lists(q, k, v, lists, factor, q_start)
    return _mean_by_torch(given.rest, (asked.long(), answered.long()), (q, k, v), q_start, factor)


def _mean_by_torch(
    rest: Expr, entries: tuple[Tensor, Tensor], tensors: tuple[Tensor, Tensor, Tensor], q_start: int, factor: float
) -> Tensor:
    """As `mean_of_invited`, for any condition on pairs."""
    (asked, answered), (q, k, v) = entries, tensors
    (batch, heads, queries, _), (groups, keys) = q.shape, k.shape[1:3]
    owner = torch.arange(batch * heads, device=q.device).view(batch, heads, 1, 1)
    rows = owner * queries + asked.clamp(max=queries - 1)
    sequence, head = owner // heads, owner % heads
    columns = (sequence * groups + head // (heads // groups)) * keys + answered.clamp(max=keys - 1)
    flat = [x.reshape(-1, x.shape[-1]) for x in (q, k, v)]
    total = q.new_zeros(batch * heads * queries, v.shape[-1], dtype=torch.promote_types(q.dtype, torch.float32))
    count = total.new_zeros(len(total))
    step = max(1, _PAIRS // max(1, batch * heads * rows.shape[-1] * columns.shape[-1]))
    extents = {"n": keys, "nq": queries, "q_start": q_start}
    for first in range(0, rows.shape[2], step):
        some = slice(first, first + step)
        at, to = rows[:, :, some].flatten(0, 1), columns[:, :, some].flatten(0, 1)
        place, key = asked[:, :, some].flatten(0, 1)[..., None], answered[:, :, some].flatten(0, 1)[..., None, :]
        there = (place < queries) & (key < keys)
        pairs = there & evaluate(rest, {**extents, "q": place + q_start, "k": key})
        kept = pairs.any(-1, keepdim=True)
        # A row that keeps nothing attends to something, which is then left out.
        own = scaled_dot_product_attention(flat[0][at], flat[1][to], flat[2][to], attn_mask=pairs | ~kept, scale=factor)
        own = torch.where(kept, own.to(total.dtype), 0.0)
        total = total.index_put((at,), own, accumulate=True)
        count = count.index_put((at,), kept[..., 0].to(count.dtype), accumulate=True)
    return (total / count.clamp(min=1)[:, None]).view(batch, heads, queries, -1).to(q.dtype)


def _entries(arrays: Arrays, stage: Select, batch: int, heads: int) -> Tensor:
    """The entries that are chosen, ascending, ints ``[batch, heads, members, width]``, and then numbers of none."""
    assert isinstance(stage.amount, Const)
    size = arrays.lines.size(stage.over)
    width = max(0, min(int(stage.amount.value), size))
    if arrays.kernels and width and stage.forced == build.FALSE:
        from spdsl.runtime.choosing import largest

        rows = arrays.lines.points_of_rows("q") if stage.over == "q" else None
        value = arrays.full(stage.value, stage.axes, rows, Memo())
        only = arrays.filter(stage.only, stage.axes, rows, Memo())
        found = largest(value, only, width)
    else:
        chosen = arrays.whole(stage.name)
        place = torch.where(chosen, chosen.cumsum(-1) - 1, width).clamp(max=width)
        room = torch.full((*chosen.shape[:-1], width + 1), size, dtype=torch.int64, device=chosen.device)
        entries = torch.arange(size, device=chosen.device).expand(chosen.shape)
        found = room.scatter_(-1, place, entries)[..., : max(1, width)]
    found = found if len(stage.axes) == 3 else found.unsqueeze(1)
    if stage.axes[0] == "g":
        found = found.repeat_interleave(heads // arrays.lines.groups, 1)
    return found.expand(batch, heads, *found.shape[2:])
