"""Calls with few queries, as in decoding: rows of a tile are the query heads of a group, for one query or some.

Such a call reads its keys once and computes little, so time is that of reading.  All heads of a group read the same
keys: a tile holds all of them, and no key is read twice.  There are few rows of tiles, and each is walked by several
programs (`spdsl.runtime.split`).  Tensor cores want 16 rows at least; no more than 64 take the fewest registers.
"""

from __future__ import annotations

from spdsl.analysis.plans import Problem, Tiles
from spdsl.analysis.tiles import lanes_of

ROWS = (16, 64)
"""Rows of a tile: one kernel for decoding, one for several tokens at a time."""

FEW = "there are few queries, and reading keys takes the time"
"""Why the forward kernel has no warps of its own for copies."""


def few_rows(shape: str, queries: int, heads: int, groups: int) -> int:
    """Rows of a tile for a call of so many queries on keys that were there before, or 0 where they are not few."""
    if shape == "square":
        return 0
    rows = queries * heads_together(heads, groups)
    return next((most for most in ROWS if rows <= most), 0)


SCARCE = 64
"""Programs by key that leave most of a large GPU idle."""


def few_keys(shape: str, queries: int, keys: int, groups: int) -> bool:
    """Whether a call has so few keys beside its queries (pooled ones, those of another text) that a backward kernel by
    key has few programs, all of them long."""
    return shape in ("origin", "offset") and 4 * keys <= queries and -(-keys // 128) * groups <= SCARCE


def heads_together(heads: int, groups: int) -> int:
    """How many rows of a tile the query heads of a group take for each query: a power of two."""
    return lanes_of(heads // groups)


def few_tiles(problem: Problem, together: int, target: str) -> Tiles:
    """The tiles of a forward kernel of ``problem.few`` rows, of which ``together`` belong to one query; ``block_q`` is
    in queries."""
    wide = max(problem.pattern.head_dim, problem.value_dim) > 128
    block_q = problem.few // together
    if problem.dtype == "fp32":
        return Tiles(block_q=block_q, block_k=16 if wide else 32, warps=4, stages=1)
    if target.startswith("gfx"):
        return Tiles(block_q=block_q, block_k=32 if wide else 64, warps=4, stages=1)
    stages = 3 if target in ("sm_90", "sm_100") else 2
    if problem.page:
        # The number of a page is read ahead of its keys, which takes a stage for every one of theirs.
        stages = 2 * stages - 1
    return Tiles(block_q=block_q, block_k=32 if wide else 64, warps=4, stages=stages)
