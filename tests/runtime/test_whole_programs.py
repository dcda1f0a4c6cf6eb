"""Random whole patterns on the CPU."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.runtime.whole_programs import check, program

FEW = settings(max_examples=8, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))


@FEW
@given(st.randoms(use_true_random=False), st.integers(0, 99))
def test_some(rng: random.Random, seed: int) -> None:
    check(program(rng, longest=60), seed, backend="cpu")


@pytest.mark.slow
@MANY
@given(st.randoms(use_true_random=False), st.integers(0, 99))
def test_many(rng: random.Random, seed: int) -> None:
    check(program(rng, longest=90), seed, backend="cpu")
