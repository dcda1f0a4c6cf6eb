"""Output and LSE on the CPU, by query tiles.

Method: online softmax over segments of keys (Milakov and Gimelshein 2018); most rows have one segment.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spdsl.runtime.cpu_few import forward_few, is_few
from spdsl.runtime.cpu_logits import Blocks, Logits, blocks
from spdsl.runtime.cpu_parts import Part
from spdsl.runtime.cpu_rows import Chunk
from spdsl.runtime.scratch import scratch


def forward(part: Part) -> tuple[Tensor, Tensor]:
    """Output ``[batch, heads, nq, dv]`` and LSE ``[batch, heads, nq]`` of a part, both fp32."""
    if is_few(part):
        out, lse = forward_few(part)
        return _with_sink(part, part.logits(part.call.plan.forward), out, lse)
    call, kernel = part.call, part.call.plan.forward
    q = blocks("q", part.queries(call.q), kernel.block_q)
    k, v = (blocks(name, part.keys(x), kernel.block_k) for name, x in (("k", call.k), ("v", call.v)))
    batch, heads, rows, block = q.tiles.shape[:4]
    out = q.joined.new_zeros(batch * heads, rows, block, call.v.shape[3])
    lse = q.joined.new_full((batch * heads, rows, block), -torch.inf)
    logits = part.logits(kernel)
    for chunk, units in part.work(kernel):
        found, norm = _rows(logits, q, k, v, units, part.key_units(units), chunk)
        place = _place(units, chunk)
        out[place] = found.view(len(units), len(chunk.rows), block, -1)
        lse[place] = norm.view(len(units), len(chunk.rows), block)
    queries = call.q.shape[2]
    return _with_sink(
        part,
        logits,
        out.view(batch, heads, rows * block, out.shape[-1])[:, :, :queries],
        lse.view(batch, heads, rows * block)[..., :queries],
    )


def _rows(
    logits: Logits, q: Blocks, k: Blocks, v: Blocks, units: Tensor, key_units: Tensor, chunk: Chunk
) -> tuple[Tensor, Tensor]:
    """Output ``[units * rows, block, dv]`` (overwritten by the next), LSE ``[units * rows, block]``, without sink."""
    own = q.rows(units, chunk)
    peak = total = out = None
    for number, segment in enumerate(chunk.segments):
        scores = logits.finish(logits.capped(own, k.others(key_units, segment)), units, chunk, segment)
        top = scores.amax(-1, keepdim=True)
        if peak is not None:
            top = torch.maximum(top, peak)
        # A row without a key so far has no peak; any finite number keeps its weights at zero.
        safe = top.masked_fill(top == -torch.inf, 0.0)
        weights = scores.sub_(safe).exp_()
        here = weights.sum(-1, keepdim=True)
        # The sum so far lies in the other of two places.
        values = scratch(f"values_{number % 2}", *weights.shape[:2], v.tiles.shape[-1])
        torch.bmm(weights, v.others(key_units, segment), out=values)
        if peak is not None and total is not None and out is not None:
            fade = (peak - safe).exp_()
            here, values = here.addcmul_(total, fade), values.addcmul_(out, fade)
        peak, total, out = top, here, values
    assert peak is not None
    assert total is not None
    assert out is not None
    norm = peak + total.log()
    return out.div_(total.masked_fill_(total == 0, 1.0)), norm.squeeze(-1)


def _place(units: Tensor, chunk: Chunk) -> tuple[Tensor | slice, ...]:
    if len(units) == 1 and chunk.first is not None:
        unit = int(units[0])
        return slice(unit, unit + 1), slice(chunk.first, chunk.first + len(chunk.rows))
    return units[:, None], chunk.rows


def _with_sink(part: Part, logits: Logits, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    sink = part.call.plan.sink_logit
    if sink is None:
        return out, lse
    batch, heads, queries = lse.shape
    rest = logits.at_queries(sink, torch.arange(batch * heads), queries).view(lse.shape)
    total = torch.logaddexp(lse, rest)
    share = (lse - total).exp().masked_fill(lse == -torch.inf, 0.0)
    return out * share[..., None], total
