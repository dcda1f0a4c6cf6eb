"""Where parts of memory begin that is taken at once, so that those used at one time do not overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNED = 256
"""Bytes at whose multiples a part begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """So many bytes, which are used from one step until another, both included."""

    bytes: int
    first: int
    last: int


def offsets_of(claims: Sequence[Claim]) -> tuple[list[int], int]:
    """Where what each claims begins, and how many bytes there are in all.

    The largest come first, each as low as those that are used with it allow.
    """
    placed: list[tuple[int, int, Claim]] = []
    begins = [0] * len(claims)
    for at in sorted(range(len(claims)), key=lambda at: -claims[at].bytes):
        claim, size, begin = claims[at], -(-claims[at].bytes // ALIGNED) * ALIGNED, 0
        for low, high, other in sorted(placed, key=lambda each: each[0]):
            if other.first <= claim.last and claim.first <= other.last and low < begin + size and begin < high:
                begin = high
        begins[at] = begin
        placed.append((begin, begin + size, claim))
    return begins, max((high for _, high, _ in placed), default=0)
