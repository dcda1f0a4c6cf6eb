"""Free parameters in Triton's interpreter: one file of kernels for all their values, against the reference."""

from __future__ import annotations

import os

import pytest

import spdsl
from spdsl.semantics.free import LARGEST
from tests.runtime.test_open import PATTERNS, check, check_values

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")


@pytest.mark.parametrize("name", PATTERNS)
def test_values_that_change(name: str) -> None:
    check_values(PATTERNS[name], "triton", 4)


@pytest.mark.parametrize(
    "limit", ["16 * (16 * w)", "w * 16 + w * 16 + w * 16", "w * 32 * (h + 1)", "w * 1000 + k - k // 2 * 2"]
)
def test_multiples_that_exceed_32_bits(limit: str) -> None:
    """Values whose multiples are too large for kernels of all values are constants of kernels of their own."""
    text = f"pattern opened(w: int in 1..) {{ keep causal and q - k < {limit} }}"
    for value in (1, 1 << 20, LARGEST - 1):
        if "h" not in limit or value < LARGEST - 1:
            check(spdsl.compile(spdsl.loads(text), backend="triton", w=value), 70, 70)
