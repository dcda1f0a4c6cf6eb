"""Where expressions are evaluated: every pair of a query and a key of a call, and the positions of a reduction."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from spdsl.semantics.nodes import BoundPattern, Side

DIMENSION: dict[Side, int] = {"q": 2, "k": 3}
"""The dimensions of positions in ``[batch, heads, queries, keys]``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Index tensors that broadcast to ``[batch, heads, queries, keys]``.

    ``indices`` holds ``b h g q k``, ``extents`` holds ``n nq q_start``; all int64 with four dimensions.  ``q`` and
    ``k`` are positions: a query may stand before position 0 (a row of padding), a key outside ``0 <= k < n`` does not
    exist.  ``span`` is the largest ``n``, ``query_axes`` names the axes of tables that have a row for each query.
    """

    pattern: BoundPattern
    tables: dict[str, Tensor]
    indices: dict[str, Tensor]
    extents: dict[str, Tensor]
    span: int
    query_axes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def exist(self) -> Tensor:
        """bool, broadcasting to all points: the pairs of a query and a key that exist."""
        q, k, n = self.indices["q"], self.indices["k"], self.extents["n"]
        return (q >= 0) & (k >= 0) & (k < n)

    def along(self, side: Side) -> Points:
        """The same points with all positions 0 … span - 1 in place of those of one side."""
        shape = [1, 1, 1, 1]
        shape[DIMENSION[side]] = self.span
        line = torch.arange(self.span, device=self.indices["q"].device).reshape(shape)
        return replace(self, indices={**self.indices, side: line})


def points(
    pattern: BoundPattern,
    tables: dict[str, Tensor],
    *,
    batch: int,
    nq: int,
    rows: int,
    q_start: Tensor,
    k_start: Tensor,
    n: Tensor,
) -> Points:
    """The points of a call with ``rows`` rows of keys; ``q_start``, ``k_start``, ``n`` are int64 ``[batch or 1]``."""
    device = q_start.device

    def column(values: Tensor) -> Tensor:
        return values.reshape(-1, 1, 1, 1)

    def line(length: int, dimension: int) -> Tensor:
        shape = [1, 1, 1, 1]
        shape[dimension] = length
        return torch.arange(length, device=device).reshape(shape)

    heads = line(pattern.heads, 1)
    return Points(
        pattern=pattern,
        tables=tables,
        indices={
            "b": line(batch, 0),
            "h": heads,
            "g": heads // (pattern.heads // pattern.groups),
            "q": column(q_start) + line(nq, DIMENSION["q"]),
            "k": line(rows, DIMENSION["k"]) - column(k_start),
        },
        extents={"n": column(n), "nq": torch.full((1, 1, 1, 1), nq, device=device), "q_start": column(q_start)},
        span=int(n.max()) if n.numel() else 0,
        query_axes={
            table.name: tuple(place for place, axis in enumerate(table.axes) if axis.kind == "q")
            for table in pattern.tables
        },
    )
