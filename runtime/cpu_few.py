"""Output and LSE on the CPU where a call has few queries, as in decoding: no tiles, but the keys that any query keeps.

From a part of a call.  To its forward.  A tile of queries would be padding for the most part, and lists of tiles would
take longer to make than a step of decoding.  Bounds of the walk that are numbers say which keys are in reach; the
predicate is evaluated there, and keys and values are read where it holds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spdsl.analysis.tiles import SlotWalk
from spdsl.runtime.cpu_parts import Part
from spdsl.runtime.evaluate import evaluate, value_of

QUERIES = 16
"""The most queries that are few."""

LOGITS = 1 << 24
"""The most logits that are held at once."""


def is_few(part: Part) -> bool:
    """Whether the queries of a part are few."""
    batch, heads, queries, _ = part.call.q.shape
    return queries <= QUERIES and batch * heads * queries * part.pairs.keys <= LOGITS


def forward_few(part: Part) -> tuple[Tensor, Tensor]:
    """Output ``[batch, heads, nq, dv]`` and LSE ``[batch, heads, nq]`` of a part without its sink, both fp32."""
    call, plan, pairs = part.call, part.call.plan, part.pairs
    spans = _reach(part)
    keys = torch.cat([torch.arange(*span) for span in spans])
    env = {**pairs.extents(), **pairs.outer(2), "q": (torch.arange(pairs.queries) + pairs.q_start)[:, None]}
    kept = evaluate(plan.keep, {**env, "k": keys}, part.tables)
    if pairs.q_start < 0:
        kept = kept & (env["q"] >= 0)
    kept = kept.expand(torch.broadcast_shapes(kept.shape, (pairs.queries, len(keys))))
    seen = kept.flatten(0, -2).any(0)
    if not seen.all():
        keys, kept = keys[seen], kept[..., seen]
    k, v = (part.rows(x, keys).float() for x in (call.k, call.v))
    q = part.queries(call.q).float()
    batch, heads, queries, _ = q.shape
    grouped = q.reshape(batch, k.shape[1], heads // k.shape[1] * queries, q.shape[3])
    logits = (grouped @ k.transpose(2, 3) * plan.scale).view(batch, heads, queries, len(keys))
    if plan.softcap is not None:
        logits = logits.div_(plan.softcap).tanh_().mul_(plan.softcap)
    if plan.bias is not None:
        logits += evaluate(plan.bias, {**env, "k": keys}, part.tables, torch.float32)
    if not kept.all():
        logits.masked_fill_(~kept, -torch.inf)
    lse = logits.logsumexp(-1)
    weights = logits.sub_(lse.masked_fill(lse == -torch.inf, 0.0)[..., None]).exp_()
    out = (weights.view(*grouped.shape[:3], len(keys)) @ v).view(batch, heads, queries, v.shape[3])
    return out, lse


def _reach(part: Part) -> list[tuple[int, int]]:
    """Intervals of keys, ascending and apart, outside of which no query keeps any."""
    pairs, kernel = part.pairs, part.call.plan.forward
    whole = [(0, pairs.keys)]
    if not isinstance(kernel.walk, SlotWalk) or kernel.walk.cuts is not None or pairs.queries > kernel.block_q:
        return whole
    env: dict[str, Tensor | int] = {**pairs.extents(), "i": 0}
    found: list[tuple[int, int]] = []
    for slot in kernel.walk.slots:
        try:
            lo, hi = (value_of(end, env) for end in (slot.touched.lo, slot.touched.hi))
        except KeyError:  # it depends on heads, sequences or tables
            return whole
        if isinstance(lo, Tensor) or isinstance(hi, Tensor):
            return whole
        found.append((max(0, int(lo) * kernel.block_k), min(pairs.keys, int(hi) * kernel.block_k)))
    return _joined(sorted(span for span in found if span[0] < span[1])) or [(0, 0)]


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ascending intervals, those that touch as one."""
    found: list[tuple[int, int]] = []
    for start, stop in spans:
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], stop)
        else:
            found.append((start, stop))
    return found
