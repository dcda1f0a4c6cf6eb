"""Which (query, key) pairs exist in a call, and the values of the index variables over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from spdsl.runtime.calls import PLACES, Call


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """The pairs of some batches that have the same lengths.

    ``queries`` rows stand at the positions from ``q_start`` on, ``keys`` keys at the positions from 0 on.  Queries at
    negative positions are padding.  ``batches`` are the numbers of the batches, ``key_offset`` is the row of the
    first key.
    """

    queries: int
    keys: int
    q_start: int
    heads: int
    groups: int
    batches: range
    device: torch.device
    key_offset: int = 0
    parameters: Mapping[str, int] = field(default_factory=dict)

    def extents(self) -> dict[str, Tensor | int]:
        """The run-time extents and the free parameters by name."""
        return {
            **self.parameters,
            "n": self.keys,
            "nq": self.queries,
            "q_start": self.q_start,
            "heads": self.heads,
            "groups": self.groups,
        }

    def outer(self, axes: int) -> dict[str, Tensor | int]:
        """``b h g`` with ``axes`` dimensions to the right: shapes ``[batch, 1, …]`` and ``[heads, …]``."""
        head = torch.arange(self.heads, device=self.device).view(-1, *[1] * axes)
        batch = torch.arange(self.batches.start, self.batches.stop, device=self.device).view(-1, 1, *[1] * axes)
        return {"b": batch, "h": head, "g": head // (self.heads // self.groups)}


def pairs_of(call: Call) -> Pairs:
    """The pairs of a call of shape ``square`` or ``offset``."""
    batch, heads, queries, _ = call.q.shape
    return Pairs(
        queries=queries,
        keys=call.keys,
        q_start=call.q_start,
        heads=heads,
        groups=call.k.shape[1],
        batches=range(batch),
        device=call.q.device,
        parameters=call.parameters,
    )


def pairs_by_batch(call: Call) -> tuple[Pairs, ...]:
    """The pairs of a call, split where batches differ in their places; on a GPU that waits for the device."""
    pairs = pairs_of(call)
    if call.places is None:
        return (pairs,)
    return tuple(
        replace(pairs, q_start=q_start, key_offset=k_start, keys=k_len, batches=range(b, b + 1))
        for b, (q_start, k_start, k_len) in enumerate(call.places[:, :PLACES].tolist())
    )
