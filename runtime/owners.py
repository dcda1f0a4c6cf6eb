"""Items of lists that several sequences or heads share, for each of these: lists stand there once, sums do not.

From: items by key of the lists as they are.  To: those of all sequences and heads.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from spdsl.runtime.calls import PickedItems


def for_owners(items: PickedItems, owners: tuple[int, int], given: tuple[int, int]) -> PickedItems:
    """Items of lists that sequences or heads share, for each of them; ``owners`` are those, ``given`` those of lists.

    What queries have picked stands there once, sums are kept for each.
    """
    (batch, heads), (of_batch, of_heads) = owners, given
    if owners == given:
        return items
    device = items.rows.device
    # Which of the sequences and heads that share a list each copy of the items is for.
    copy = torch.arange(batch // of_batch * (heads // of_heads), device=device)
    sequence, head = copy.div(heads // of_heads, rounding_mode="floor"), copy % (heads // of_heads)
    owner = items.rows.div(items.blocks, rounding_mode="floor").long()
    sequence = sequence[:, None] + owner.div(of_heads, rounding_mode="floor")
    owner = sequence * heads + head[:, None] + owner % of_heads
    kept = (copy * items.kept)[:, None]
    shape = (of_batch, of_heads, items.blocks)
    number = copy.view(batch // of_batch, heads // of_heads, 1)
    number = number.expand(batch, heads, 1) if items.blocks else number
    row_slots = items.row_slots.view(shape) + number * items.kept
    return replace(
        items,
        # The first items of all begin first: under causal patterns they are the longest.
        rows=(owner * items.blocks + items.rows % max(items.blocks, 1)).t().flatten().int(),
        first=items.first.repeat_interleave(len(copy)),
        last=items.last.repeat_interleave(len(copy)),
        slots=torch.where(items.slots < 0, items.slots, items.slots + kept).t().flatten().int(),
        row_slots=row_slots.expand(batch, heads, -1).flatten().int(),
        # What has one block would be one number, looked at several times.
        row_parts=items.row_parts.view(shape).expand(batch, heads, -1).flatten().contiguous(),
        kept=items.kept * len(copy),
    )
