"""The way to FlexAttention of torch and back: masks of a pattern as `mask_mod` and `BlockMask`, block masks as inputs.

From: a pattern with its parameters, lengths, and inputs.  To: what `torch.nn.attention.flex_attention` takes.  Blocks
are decided by the tile lists of the run time, exactly; no mask of pairs is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, noop_mask

from spdsl.api import Attention
from spdsl.arguments import tables_of
from spdsl.diagnostics import error
from spdsl.explain import call_like
from spdsl.runtime.calls import Call, TileList
from spdsl.runtime.evaluate import evaluate, tables_for
from spdsl.runtime.lists import tile_lists
from spdsl.runtime.pairs import pairs_of
from spdsl.runtime.tile_grid import TileGrid

__all__ = ["block_mask", "blocks", "mask_mod"]

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Batch, head, query and key, each counted from 0 → whether the pair is kept."""


def mask_mod(
    attention: Attention,
    nq: int,
    nk: int,
    /,
    *,
    heads: int = 1,
    groups: int | None = None,
    batch: int = 1,
    device: torch.device | str = "cpu",
    **inputs: Any,
) -> MaskMod:
    """The set of a pattern as a function of FlexAttention; queries are the last ``nq`` of ``nk`` positions.

    Args:
        attention: a pattern with its parameters.
        nq: queries.
        nk: keys.
        heads: query heads.
        groups: key/value heads, by default as many as ``heads``.
        batch: sequences.
        device: of the inputs.
        inputs: what the pattern declares.

    Raises:
        SpatError: a pattern that is more than a set of positions and inputs (SP643), and what a call would raise.
    """
    return _mod(_call(attention, nq, nk, heads, groups, batch, device, inputs))


def block_mask(
    attention: Attention,
    nq: int,
    nk: int,
    /,
    *,
    heads: int = 1,
    groups: int | None = None,
    batch: int = 1,
    device: torch.device | str = "cpu",
    block_size: int | tuple[int, int] = 128,
    **inputs: Any,
) -> BlockMask:
    """The `BlockMask` of a pattern: which blocks are touched, which of them whole, and `mask_mod` for the others.

    Arguments and errors as for `mask_mod`; ``block_size`` is that of FlexAttention's kernels.  Batches and heads for
    which the blocks are the same share them.
    """
    call = _call(attention, nq, nk, heads, groups, batch, device, inputs)
    block_q, block_k = (block_size, block_size) if isinstance(block_size, int) else block_size
    lists = tile_lists(call, by="query", block_q=block_q, block_k=block_k, exact=True)
    columns = TileGrid(by="query", block_q=block_q, block_k=block_k).key_tiles(nk)
    partly, whole = _rows(lists, lists.middle, lists.end, columns), _rows(lists, lists.begin, lists.middle, columns)
    return BlockMask.from_kv_blocks(
        *partly, *whole, BLOCK_SIZE=(block_q, block_k), mask_mod=_mod(call), seq_lengths=(nq, nk)
    )


def blocks(mask: BlockMask, *, partly: bool = False) -> Tensor:
    """The blocks of a `BlockMask`, for inputs such as ``open: bool[h, q.blk, k.blk]`` with ``axis blk = token by 128``.

    Args:
        mask: as FlexAttention takes it.
        partly: whether blocks count of which the mask's function keeps a part.  Which pairs of them are kept must then
            be said by the pattern, as in ``keep causal and open``.

    Returns:
        bool ``[batch, heads, q blocks, k blocks]``; without heads where the mask has one for all.

    Raises:
        SpatError: some blocks are kept in part, and ``partly`` does not allow it (SP643).
    """
    if not partly and mask.mask_mod is not noop_mask and bool(mask.kv_num_blocks.any()):
        help = "say by the pattern which of their pairs are kept, and pass `partly=True`"
        raise error("SP643", "some blocks of this mask are kept in part", help=help)
    found = mask.to_dense().bool()
    return found[:, 0] if found.shape[1] == 1 else found


def _call(
    attention: Attention,
    nq: int,
    nk: int,
    heads: int,
    groups: int | None,
    batch: int,
    device: torch.device | str,
    inputs: dict[str, Any],
) -> Call:
    """A call with tensors of these sizes, whose numbers nothing reads."""
    checked, name = attention.pattern.checked, attention.pattern.name
    if checked.graph is not None:
        help = "masks of FlexAttention are made before queries and keys are known"
        raise error("SP643", f"`{name}` chooses by scores, or computes with softmaxes", help=help)
    clauses = {word: getattr(checked.attend, word) for word in ("bias", "scale", "softcap", "sink_logit")}
    more = [word for word, value in clauses.items() if value is not None]
    if more:
        help = "write it as a `score_mod`, and take the mask of a pattern that has `keep` alone"
        raise error("SP643", f"`{name}` also has `{more[0]}`, which no mask holds", help=help)
    device = torch.device(device)
    number = torch.zeros((), device=device)
    q = number.expand(batch, heads, nq, 64)
    k = number.expand(batch, heads if groups is None else groups, nk, 64)
    tables = tables_of(checked, inputs, device)
    return call_like(attention._key, q, k, k, tables, "cpu")  # noqa: SLF001  # as `explain` is given it


def _mod(call: Call) -> MaskMod:
    keep, tables, pairs = call.plan.keep, tables_for(call.plan.tables, call.tables), pairs_of(call)
    extents, share = pairs.extents(), pairs.heads // pairs.groups

    def kept(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        # FlexAttention asks about whole blocks: the indices of pairs past the end stay inside of tables.
        inside = (q_idx < pairs.queries) & (kv_idx < pairs.keys)
        q, k = q_idx.clamp(max=pairs.queries - 1) + pairs.q_start, kv_idx.clamp(max=pairs.keys - 1)
        return inside & evaluate(keep, extents | {"b": b, "h": h, "g": h // share, "q": q, "k": k}, tables)

    return kept


def _rows(lists: TileList, begin: Tensor, end: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """How many blocks each row has, and which: ``[batch, heads, rows]`` and ``[batch, heads, rows, columns]``."""
    counts = (end - begin).int()
    place = torch.arange(columns, device=counts.device)
    at = (begin[..., None] + place).clamp(max=max(len(lists.tiles) - 1, 0)).long()
    tiles = lists.tiles if len(lists.tiles) else lists.tiles.new_zeros(1)
    # Past the end of a row, FlexAttention asks for any block that there is.
    return counts, torch.where(place < counts[..., None], tiles[at], 0).int()
