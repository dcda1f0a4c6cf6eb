"""Gradients on the CPU: dQ and table gradients by query tiles, dK and dV by key tiles.

With P the weights, dP = dO V', delta = rowsum(dO * O) - dLSE: the gradient of a logit is P * (dP - delta).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spdsl.runtime.cpu_gradients import TableSums
from spdsl.runtime.cpu_logits import Blocks, Logits, blocks
from spdsl.runtime.cpu_parts import Part
from spdsl.runtime.cpu_rows import Chunk, Segment
from spdsl.runtime.scratch import scratch


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """What backward starts from, fp32: ``d_out [batch, heads, nq, dv]``; ``lse``, ``delta [batch, heads, nq, 1]``.

    ``lse`` is infinite for rows without keys, so that their weights are zero.
    """

    d_out: Tensor
    lse: Tensor
    delta: Tensor


def incoming(part: Part, out: Tensor, lse: Tensor, d_out: Tensor, d_lse: Tensor | None) -> Incoming:
    """The part's share of what backward starts from."""
    out, d_out, lse = part.queries(out).float(), part.queries(d_out).float(), part.queries(lse).float()
    delta = (out * d_out).sum(-1, keepdim=True)
    if d_lse is not None:
        delta = delta - part.queries(d_lse).float()[..., None]
    lse = lse.masked_fill(lse == -torch.inf, torch.inf)[..., None]
    # A row without keys has no gradient, whatever comes in for its LSE.
    return Incoming(d_out=d_out, lse=lse, delta=delta.masked_fill(lse == torch.inf, 0.0))


def query_gradient(part: Part, given: Incoming, sums: TableSums) -> Tensor:
    """The gradient dQ ``[batch, heads, nq, d]``; adds the gradients of biases to ``sums``."""
    call, kernel = part.call, part.call.plan.dq
    q, d_out = blocks("q", part.queries(call.q), kernel.block_q), blocks("d_out", given.d_out, kernel.block_q)
    lse, delta = _padded_lse(given.lse, kernel.block_q), blocks("delta", given.delta, kernel.block_q)
    k, v = (blocks(name, part.keys(x), kernel.block_k) for name, x in (("k", call.k), ("v", call.v)))
    batch, heads, tiles, block = q.tiles.shape[:4]
    found = torch.zeros_like(q.joined).view(batch * heads, *q.tiles.shape[2:])
    logits = part.logits(kernel)
    for chunk, units in part.work(kernel):
        kv = part.key_units(units)
        own = [each.rows(units, chunk) for each in (q, d_out, lse, delta)]
        for segment in chunk.segments:
            keys = k.others(kv, segment)
            weights, factor = _weights(logits, own[0], keys, own[2], units, chunk, segment)
            d_logits = _product("d_logits", own[1], v.others(kv, segment).transpose(1, 2)).sub_(own[3]).mul_(weights)
            sums.add(logits, d_logits, units, chunk, segment)
            if factor is not None:
                d_logits.mul_(factor)
            product = _product("product", d_logits, keys).mul_(call.plan.scale)
            _accumulate(found, product, units, chunk)
    return found.view(batch, heads, tiles * block, found.shape[-1])[:, :, : call.q.shape[2]]


def key_gradients(part: Part, given: Incoming) -> tuple[Tensor, Tensor]:
    """The gradients dK ``[batch, groups, n, d]`` and dV ``[batch, groups, n, dv]`` of the part's keys."""
    call, kernel = part.call, part.call.plan.dkdv
    q, d_out = blocks("q", part.queries(call.q), kernel.block_q), blocks("d_out", given.d_out, kernel.block_q)
    lse, delta = _padded_lse(given.lse, kernel.block_q), blocks("delta", given.delta, kernel.block_q)
    k, v = (blocks(name, part.keys(x), kernel.block_k) for name, x in (("k", call.k), ("v", call.v)))
    tiles = k.tiles.shape[2]
    heads = len(part.pairs.batches) * part.pairs.heads
    d_k, d_v = (x.joined.new_zeros(heads, tiles, *x.tiles.shape[3:]) for x in (k, v))
    logits = part.logits(kernel)
    for chunk, units in part.work(kernel):
        kv = part.key_units(units)
        keys, values = k.rows(kv, chunk), v.rows(kv, chunk)
        for segment in chunk.segments:
            queries, d_outs = q.others(units, segment), d_out.others(units, segment)
            row_lse, row_delta = (each.others(units, segment).transpose(1, 2) for each in (lse, delta))
            weights, factor = _weights(logits, keys, queries, row_lse, units, chunk, segment)
            _accumulate(d_v, _product("product", weights, d_outs), units, chunk)
            d_logits = _product("d_logits", values, d_outs.transpose(1, 2)).sub_(row_delta).mul_(weights)
            if factor is not None:
                d_logits.mul_(factor)
            _accumulate(d_k, _product("product", d_logits, queries).mul_(call.plan.scale), units, chunk)
    d_key, d_value = (_by_group(part, x) for x in (d_k, d_v))
    return d_key, d_value


def _weights(
    logits: Logits, own: Tensor, others: Tensor, lse: Tensor, units: Tensor, chunk: Chunk, segment: Segment
) -> tuple[Tensor, Tensor | None]:
    """The weights of the softmax, and the derivative of the soft cap."""
    capped = logits.capped(own, others)
    cap = logits.plan.softcap
    factor = None if cap is None else 1.0 - (capped / cap).square_()
    return logits.finish(capped, units, chunk, segment).sub_(lse).exp_(), factor


def _padded_lse(lse: Tensor, block: int) -> Blocks:
    """LSE in tiles, infinite past the end: the weights of rows that do not exist are zero."""
    short = -lse.shape[2] % block
    return blocks("lse", torch.nn.functional.pad(lse, (0, 0, 0, short), value=torch.inf), block)


def _product(name: str, left: Tensor, right: Tensor) -> Tensor:
    """Batched product of matrices; overwritten by the next of this name."""
    return torch.bmm(left, right, out=scratch(name, *left.shape[:2], right.shape[2]))


def _accumulate(total: Tensor, product: Tensor, units: Tensor, chunk: Chunk) -> None:
    """Add rows of a chunk to ``total [units, tiles, block, dim]``; no row occurs twice in a chunk."""
    product = product.view(len(units), len(chunk.rows), *total.shape[2:])
    if len(units) == 1 and chunk.first is not None:
        total[int(units[0]), chunk.first : chunk.first + len(chunk.rows)] += product[0]
    else:
        total[units[:, None], chunk.rows] += product


def _by_group(part: Part, total: Tensor) -> Tensor:
    """Sum what the heads of a group give to its keys, in their order."""
    pairs = part.pairs
    rows = total.shape[1] * total.shape[2]
    shape = (len(pairs.batches), pairs.groups, pairs.heads // pairs.groups, rows, total.shape[-1])
    return total.view(shape).sum(2)[:, :, : pairs.keys]
