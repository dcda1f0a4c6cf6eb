"""Tensors cut into tiles, and the logits of chunks of rows, on the CPU.

Everything here is in fp32, shapes ``[heads * rows, block, length]``: ``heads`` pairs of batch and head that are
computed together, ``rows`` tile rows, ``block`` elements of a row, ``length`` elements of the tiles it meets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spdsl.analysis.plans import Plan
from spdsl.runtime.cpu_rows import Chunk, Segment
from spdsl.runtime.evaluate import Tables, depends_on, evaluate
from spdsl.runtime.pairs import Pairs
from spdsl.runtime.scratch import scratch
from spdsl.runtime.tile_grid import By
from spdsl.semantics.nodes import Expr

_KEPT_MASK = 1 << 22
"""Masks up to this many elements are kept for the next call."""

_OUTER = frozenset({"b", "h", "g"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """A tensor ``[batch, heads, tiles, block, dim]`` in fp32, zeros past the end; ``joined`` joins the first three.

    What `rows` and `others` give is overwritten by their next call for a tensor of the same ``name``.
    """

    name: str
    tiles: Tensor
    joined: Tensor

    def rows(self, units: Tensor, chunk: Chunk) -> Tensor:
        """The rows of a chunk, ``[units * rows, block, dim]``."""
        if len(units) == 1 and chunk.first is not None:
            return self._unit(units)[chunk.first : chunk.first + len(chunk.rows)]
        return self._gather(self._places(units, chunk.rows))

    def others(self, units: Tensor, segment: Segment) -> Tensor:
        """The tiles of a segment side by side, ``[units * rows, count * block, dim]``; a view if a slice."""
        rows, count = segment.tiles.shape
        block, dim = self.tiles.shape[-2:]
        if len(units) == 1 and segment.first is not None:
            source = self._unit(units)
            if source.stride(0) == block * source.stride(1):
                size, stride = (rows, count * block, dim), (segment.step * source.stride(0), *source.stride()[1:])
                return source.as_strided(size, stride, source.storage_offset() + segment.first * source.stride(0))
        places = self._places(units, segment.tiles.flatten())
        return self._gather(places).view(len(units) * rows, count * block, dim)

    def _unit(self, units: Tensor) -> Tensor:
        batch, head = divmod(int(units[0]), self.tiles.shape[1])
        return self.tiles[batch, head]

    def _gather(self, places: Tensor) -> Tensor:
        found = scratch(self.name, len(places), *self.joined.shape[1:])
        return torch.index_select(self.joined, 0, places, out=found)

    def _places(self, units: Tensor, tiles: Tensor) -> Tensor:
        return (units[:, None] * self.tiles.shape[2] + tiles).flatten()


def blocks(name: str, x: Tensor, block: int) -> Blocks:
    """Cut ``[batch, heads, length, dim]`` into tiles; no copy where the length is whole and the type fp32."""
    tiles = cut(x, block)
    return Blocks(name=name, tiles=tiles, joined=tiles.reshape(-1, *tiles.shape[-2:]))


def cut(x: Tensor, block: int) -> Tensor:
    """``[batch, heads, length, dim]`` in fp32 as ``[batch, heads, tiles, block, dim]``, zeros past the end."""
    x = x.float()
    short = -x.shape[2] % block
    if short:
        x = torch.nn.functional.pad(x, (0, 0, 0, short))
    tiles: Tensor = x.unflatten(2, (x.shape[2] // block, block))
    return tiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Logits:
    """How logits of a chunk are made from products of queries and keys.

    ``by`` says which side the rows are; the other side runs along the last dimension.
    """

    plan: Plan
    pairs: Pairs
    tables: Tables
    by: By
    block: int
    other_block: int

    def capped(self, own: Tensor, others: Tensor) -> Tensor:
        """Scaled and soft-capped products, without bias and mask; overwritten by the next."""
        out = scratch("logits", *own.shape[:2], others.shape[1])
        torch.baddbmm(out, own, others.transpose(1, 2), beta=0, alpha=self.plan.scale, out=out)
        cap = self.plan.softcap
        return out if cap is None else out.div_(cap).tanh_().mul_(cap)

    def finish(self, logits: Tensor, units: Tensor, chunk: Chunk, segment: Segment) -> Tensor:
        """Add the bias and remove what is not kept, in place."""
        shaped = logits.view(len(units), len(chunk.rows), self.block, -1)
        if self.plan.bias is not None:
            shaped += evaluate(self.plan.bias, self.env(units, chunk, segment.tiles), self.tables, torch.float32)
        for begin, end in segment.masked:
            part = shaped[..., begin * self.other_block : end * self.other_block]
            part.masked_fill_(self._removed(units, chunk, segment, begin, end), -torch.inf)
        return logits

    def env(self, units: Tensor, chunk: Chunk, tiles: Tensor) -> dict[str, Tensor | int]:
        """Index variables, broadcastable over ``[units, rows, block, length]``."""
        own = (chunk.rows[:, None] * self.block + torch.arange(self.block))[None, :, :, None]
        other = (tiles[..., None] * self.other_block + torch.arange(self.other_block)).flatten(1)[None, :, None, :]
        q, k = (own, other) if self.by == "query" else (other, own)
        return self.outer(units, 3) | {"q": q + self.pairs.q_start, "k": k}

    def outer(self, units: Tensor, axes: int) -> dict[str, Tensor | int]:
        """Extents, and ``b h g`` of the units with ``axes`` dimensions to the right."""
        heads = self.pairs.heads
        shape = (-1, *[1] * axes)
        head = (units % heads).view(shape)
        batch = (units // heads + self.pairs.batches.start).view(shape)
        return self.pairs.extents() | {"b": batch, "h": head, "g": head // (heads // self.pairs.groups)}

    def _removed(self, units: Tensor, chunk: Chunk, segment: Segment, begin: int, end: int) -> Tensor:
        """Pairs that are not kept in some columns of tiles; what all heads share is computed once."""
        if begin in segment.masks:
            return segment.masks[begin]
        env = self.env(units, chunk, segment.tiles[:, begin:end])
        removed = ~self._kept(env)
        if removed.numel() <= _KEPT_MASK and _OUTER.isdisjoint(depends_on(self.plan.keep, self.tables)):
            segment.masks[begin] = removed
        return removed

    def _kept(self, env: dict[str, Tensor | int]) -> Tensor:
        q, k = env["q"], env["k"]
        assert isinstance(q, Tensor)
        assert isinstance(k, Tensor)
        kept = evaluate(self.plan.keep, env, self.tables)
        if self.pairs.keys % (self.block if self.by == "key" else self.other_block):
            kept = kept & (k < self.pairs.keys)
        return kept & (q >= 0) if self.pairs.q_start < 0 else kept

    def at_queries(self, expr: Expr, units: Tensor, count: int) -> Tensor:
        """A value of queries, ``[units, count]`` in fp32."""
        env = self.outer(units, 1) | {"q": torch.arange(count) + self.pairs.q_start}
        return evaluate(expr, env, self.tables, torch.float32).expand(len(units), count)
