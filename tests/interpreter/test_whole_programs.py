"""Random whole patterns through the kernels, in Triton's interpreter.  Run with ``TRITON_INTERPRET=1``."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.runtime.whole_programs import check, program

pytestmark = [
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1"),
    pytest.mark.slow,
]


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False), st.integers(0, 99))
def test_many(rng: random.Random, seed: int) -> None:
    made = program(rng, longest=40, groups=((1, 1), (2, 1), (2, 2), (4, 2)))
    check(made, seed, backend="triton", d=16, backward=seed % 3 == 0)
