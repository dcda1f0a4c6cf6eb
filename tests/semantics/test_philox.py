"""The generator behind `noise` against the published answers and against an independent one."""

from __future__ import annotations

import random

import pytest
import torch

from spdsl.runtime import philox as on_tensors
from spdsl.semantics import philox
from tests.library import masks

# From the test vectors of Random123: counter, key, first word.
KNOWN = (
    ((0, 0, 0, 0), (0, 0), 0x6627E8D5),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, 0x408F276D),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0), 0xD16CFE09),
)


@pytest.mark.parametrize(("counter", "key", "word"), KNOWN)
def test_published_answers(counter: tuple[int, ...], key: tuple[int, int], word: int) -> None:
    seed = key[0] + (key[1] << 32)
    assert masks.philox(counter, key)[0] == word
    assert philox.first_word(seed, counter) == word
    assert on_tensors.first_words(seed, [torch.tensor([index]) for index in counter]).tolist() == [word]


@pytest.mark.parametrize("length", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 + 12345])
def test_same_numbers_from_ints_and_tensors(seed: int, length: int) -> None:
    source = random.Random(length)
    counters = [[source.randrange(2**32) for _ in range(length)] for _ in range(20)]
    expected = [masks.philox_uniform(seed, counter) for counter in counters]
    assert [philox.uniform(seed, counter) for counter in counters] == expected
    columns = torch.tensor(counters).unbind(1)
    assert on_tensors.uniform(seed, columns).tolist() == expected


def test_counters_broadcast() -> None:
    found = on_tensors.uniform(5, [torch.arange(3)[:, None], torch.arange(4)])
    assert found.tolist() == [[masks.philox_uniform(5, (i, j)) for j in range(4)] for i in range(3)]


@pytest.mark.parametrize("length", [0, 5])
def test_a_counter_has_four_words(length: int) -> None:
    with pytest.raises(ValueError, match="one to 4 indices"):
        philox.first_word(0, [1] * length)
