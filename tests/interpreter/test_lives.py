"""Lifetimes by kernels in Triton's interpreter, against operations of torch (run with ``TRITON_INTERPRET=1``)."""

from __future__ import annotations

import math
import os

import pytest
import torch

from spdsl.runtime import lives
from spdsl.runtime.life_kernels import living
from spdsl.semantics.lifetimes import RUN

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")


@pytest.mark.parametrize(
    ("n", "most", "kinds", "absent"),
    [(260, 200, 2, 0.0), (150, 3, 7, 0.1), (5, 3, 2, 0.3), (300, 65, 1000, 0.1), (200, 500, 9, 0.1)],
)
def test_both_ways_are_one(n: int, most: int, kinds: int, absent: float) -> None:
    generator = torch.Generator().manual_seed(n)
    value = torch.randint(0, kinds, (2, n), generator=generator).float()
    for corner in (math.nan, -math.inf, math.inf):
        value[torch.rand(2, n, generator=generator) < absent] = corner
    rank, order = lives._ranks(value)
    assert torch.equal(lives.last_by_kernels(rank, order, most).long(), lives._last_ranks(rank, order, most))
    until, lists = lives.lives(value, most)
    assert torch.equal(living(until, most + RUN, RUN), lists)
