"""Decide tiles by a look at their pairs where bounds leave them in doubt.

From: the bounds of a predicate.  To: tiles that are surely touched, full or neither, as far as the look went.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spdsl.runtime.evaluate import depends_on, evaluate
from spdsl.runtime.intervals import TileBounds
from spdsl.runtime.ranges import Truth, truth_shape

_CHUNK_PAIRS = 1 << 21
"""Pairs that are evaluated at once."""

_DOUBT = 4
"""Tiles in doubt are looked at when there are at most this many for each row and column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """Bounds, improved by a look at all tiles in doubt (``exact`` True), at none (False), or at few (None)."""

    bounds: TileBounds
    exact: bool | None = None

    @property
    def rows(self) -> int:
        """Tiles of queries."""
        return self.bounds.rows

    @property
    def columns(self) -> int:
        """Tiles of keys."""
        return self.bounds.columns

    def of(self, rows: slice, columns: slice) -> Truth:
        """Which tiles are touched and full, in ``[batch or 1, heads or 1, rows, columns]``.

        Bounds may be the same for all heads where the pairs are not: what is looked at is looked at for each of them.
        """
        truth = self.bounds.of(rows, columns)
        shape = truth_shape(truth, rows, columns)
        may, must = truth.may.expand(shape), truth.must.expand(shape)
        if self.exact is False:
            return Truth(may=may, must=must)
        wide = torch.Size((*self._outer(shape), *shape[2:]))
        doubt = (may & ~must).expand(wide).nonzero()
        many = len(doubt) > _DOUBT * (shape[-2] + shape[-1])
        if self.exact is None and (many or not len(doubt)):
            return Truth(may=may, must=must)
        may, must = may.expand(wide), must.expand(wide)
        if not len(doubt):
            return Truth(may=may, must=must)
        offset = torch.tensor([0, 0, rows.start, columns.start], device=doubt.device)
        step = max(1, _CHUNK_PAIRS // (self.bounds.query_tiles.shape[1] * self.bounds.key_tiles.shape[1]))
        looks = [_look(self.bounds, chunk + offset) for chunk in doubt.split(step)]
        may, must = may.clone(), must.clone()
        may[tuple(doubt.T)] = torch.cat([look.may for look in looks])
        must[tuple(doubt.T)] = torch.cat([look.must for look in looks])
        return Truth(may=may, must=must)

    def _outer(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Sequences and heads whose pairs may differ; those of ``shape`` where there are more."""
        names, pairs = depends_on(self.bounds.expr, self.bounds.tables), self.bounds.pairs
        batches = len(pairs.batches) if "b" in names else 1
        heads = pairs.heads if names & {"h", "g"} else 1
        return max(shape[0], batches), max(shape[1], heads)


def _look(bounds: TileBounds, tiles: Tensor) -> Truth:
    """Whether the tiles ``[count, 4]`` (batch, head, row, column) are touched, and whether they are full."""
    pairs = bounds.pairs
    batch, head, row, column = (index.view(-1, 1, 1) for index in tiles.T)
    q = bounds.query_tiles[row[:, 0, 0]].unsqueeze(-1)
    k = bounds.key_tiles[column[:, 0, 0]].unsqueeze(-2)
    outer: dict[str, Tensor | int] = {
        "b": batch + pairs.batches.start,
        "h": head,
        "g": head // (pairs.heads // pairs.groups),
    }
    kept = evaluate(bounds.expr, pairs.extents() | outer | {"q": q, "k": k, "d": q - k}, bounds.tables)
    kept = kept.expand(len(tiles), q.shape[1], k.shape[2])
    return Truth(may=kept.any(-1).any(-1), must=kept.all(-1).all(-1))
