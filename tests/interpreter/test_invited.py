"""Members that invite queries and keys, their invitations chosen by a kernel, in Triton's interpreter.

Run with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import os

import pytest
import torch

import spdsl
from spdsl.runtime.ranking import best
from tests.interpreter.test_chains import dense

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")


def test_the_largest_of_rows() -> None:
    """Ties go to the first, and zeros of both signs are one number."""
    from spdsl.runtime.choosing import largest

    kinds = torch.tensor([0.0, -0.0, 1.0, 1.0, -2.0, float("inf"), float("-inf"), float("nan")])
    generator = torch.Generator().manual_seed(0)
    value = kinds[torch.randint(0, len(kinds), (2, 3, 45), generator=generator)]
    only = torch.rand(2, 3, 45, generator=generator) < 0.6
    for count in (1, 6, 45):
        assert torch.equal(dense(largest(value, only, count), 45), best(value, only, None, count))


def test_clusters() -> None:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, heads, 45, 16, generator=generator) for heads in (4, 2, 2))
    mu = torch.randn(4, 3, 16, generator=generator)
    attn = spdsl.compile("routing", clusters=3, width=9, backend="triton")
    assert torch.allclose(attn(q, k, v, mu=mu), attn.reference(q, k, v, mu=mu).float(), atol=1e-5)
