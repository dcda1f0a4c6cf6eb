"""Philox4x32-10, the counter-based generator behind ``noise``.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).  Written with operators alone,
so that the same lines draw one number from ints or many at once from int64 tensors that broadcast against each other.
Products are taken in halves of 16 bits because a 32 by 32 bit product does not fit into an int64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

Words: TypeAlias = Any
"""An int, or an int64 tensor (of torch or numpy), each element a 32 bit word."""

WORD = 2**32
COUNTER_WORDS = 4
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def key_schedule(seed: int) -> tuple[tuple[int, int], ...]:
    """The two key words of each round; the first round has the seed's low and high word (seeds are modulo 2**64)."""
    low, high = seed % WORD, seed // WORD % WORD
    return tuple(((low + r * _KEY_STEPS[0]) % WORD, (high + r * _KEY_STEPS[1]) % WORD) for r in range(_ROUNDS))


def first_word(seed: int, indices: Sequence[Words]) -> Words:
    """The first of the four words drawn for a counter of one to four indices, padded with zeros."""
    if not 1 <= len(indices) <= COUNTER_WORDS:
        raise ValueError(f"a counter has one to {COUNTER_WORDS} indices, got {len(indices)}")
    words: list[Words] = [index & (WORD - 1) for index in indices]
    a, b, c, d = words + [0] * (COUNTER_WORDS - len(words))
    for key_low, key_high in key_schedule(seed):
        left_high, left_low = _product(a, _MULTIPLIERS[0])
        right_high, right_low = _product(c, _MULTIPLIERS[1])
        a, b, c, d = right_high ^ b ^ key_low, right_low, left_high ^ d ^ key_high, left_low
    return a


def uniform(seed: int, indices: Sequence[Words]) -> Words:
    """``noise(seed, per = indices)``: in [0, 1), a multiple of 2**-32; tensors become their default float type.

    A default float type of 24 bits rounds: compare `first_word` where every bit counts.
    """
    return first_word(seed, indices) / WORD


def _product(word: Words, factor: int) -> tuple[Words, Words]:
    """High and low word of ``word * factor``."""
    by_low, by_high = (word & 0xFFFF) * factor, (word >> 16) * factor
    middle = by_high + (by_low >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (by_low & 0xFFFF)
