"""How rows are parted into tiles: runs of consecutive rows, or rows of residue classes.

A kernel owns the tiles of one side, of all classes with the classes changing fastest, and walks those tiles of the
other side that belong to the class it meets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

from spdsl.analysis.plans import KernelPlan
from spdsl.analysis.tiles import tiles_among

By: TypeAlias = Literal["query", "key"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TileGrid:
    """Tile sizes and classes (`Residues`); ``modulus`` is 1 for tiles of consecutive rows."""

    by: By
    block_q: int
    block_k: int
    modulus: int = 1
    shift: int = 0

    @classmethod
    def of(cls, kernel: KernelPlan) -> TileGrid:
        """The grid of a kernel."""
        by: By = kernel.by
        shift = 0 if kernel.residues is None else kernel.residues.shift
        return cls(by=by, block_q=kernel.block_q, block_k=kernel.block_k, modulus=kernel.classes, shift=shift)

    @property
    def spans(self) -> tuple[int, int]:
        """From tile to tile of a class, in rows of queries and of keys."""
        return self.block_q * self.modulus, self.block_k * self.modulus

    def query_tiles(self, rows: int) -> int:
        """Tiles among ``rows`` queries: of all classes where programs own them, else of one class."""
        return tiles_among(rows, self.block_q, self.modulus) if self.by == "query" else -(-rows // self.spans[0])

    def key_tiles(self, rows: int) -> int:
        """Tiles among ``rows`` keys, likewise."""
        return tiles_among(rows, self.block_k, self.modulus) if self.by == "key" else -(-rows // self.spans[1])

    def within(self, i: Tensor, j: Tensor, q_start: int) -> dict[str, Tensor]:
        """The tiles ``i`` and ``j`` counted within their classes, and the classes ``q_class`` and ``k_class``."""
        if self.by == "query":
            q_class = i % self.modulus
            k_class = (q_class + q_start - self.shift) % self.modulus
            return {"i": i // self.modulus, "j": j, "q_class": q_class, "k_class": k_class}
        k_class = j % self.modulus
        q_class = (k_class + self.shift - q_start) % self.modulus
        return {"i": i, "j": j // self.modulus, "q_class": q_class, "k_class": k_class}
