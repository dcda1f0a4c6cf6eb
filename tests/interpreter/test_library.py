"""Every library pattern in Triton's interpreter against the float64 reference (run with ``TRITON_INTERPRET=1``)."""

from __future__ import annotations

import os

import pytest
import torch

from tests.library.cases import CASES, Case, Sizes
from tests.library.compare import check

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")

SHAPE = Sizes(batch=1, heads=2, groups=1, nq=150, n=150)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_pattern(case: Case) -> None:
    check(case, SHAPE, d=16, dv=16, dtype=torch.float32, backend="triton")


@pytest.mark.parametrize("case", [case for case in CASES if case.n is None], ids=lambda case: case.id)
def test_fewer_queries(case: Case) -> None:
    shape = Sizes(batch=1, heads=2, groups=2, nq=20, n=141)
    check(case, shape, d=24, dv=8, dtype=torch.float32, backend="triton")
