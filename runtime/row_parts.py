"""Long rows that several programs go through, a part each, twice: first they count, then they know what stands before.

``PARTS`` is how many programs a row has, a power of two.
"""

from __future__ import annotations

import triton
import triton.language as tl

PARTS, WIDTH = 64, 1024
"""Programs of a row, at most, and the entries that one looks at together."""


def parts_of(count: int) -> int:
    """How many programs share ``count`` entries."""
    return min(PARTS, 1 << max(0, -(-count // WIDTH) - 1).bit_length())


@triton.jit  # type: ignore[untyped-decorator]
def own_part(columns, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The part and the row of a program, and which of the row's ``columns`` it goes through: from one up to another."""
    part, row = tl.program_id(0) % PARTS, (tl.program_id(0) // PARTS).to(tl.int64)
    share = tl.cdiv(columns, PARTS)
    return part, row, part * share, tl.minimum((part + 1) * share, columns)


@triton.jit  # type: ignore[untyped-decorator]
def leave_count(counts, row, part, found, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Store how many a part has, of which ``found`` are the numbers of entries that it has looked at together."""
    tl.store(counts + row * PARTS + part, tl.sum(found, 0))


@triton.jit  # type: ignore[untyped-decorator]
def count_before(counts, row, part, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """How many the parts before this one have."""
    parts = tl.arange(0, PARTS)
    return tl.sum(tl.where(parts < part, tl.load(counts + row * PARTS + parts), 0), 0)
