"""Every library pattern on the GPU: output, LSE and all gradients against the float64 reference."""

from __future__ import annotations

import pytest
import torch

from tests.library.cases import CASES, Case, Sizes
from tests.library.compare import TOLERANCE, check

pytestmark = pytest.mark.gpu

SHAPES = (
    Sizes(batch=1, heads=2, groups=2, nq=1, n=1),
    Sizes(batch=2, heads=4, groups=2, nq=333, n=333),
    Sizes(batch=1, heads=6, groups=2, nq=100, n=1027),
    Sizes(batch=1, heads=2, groups=1, nq=5000, n=5000),
)
DIMS = ((64, 64), (128, 128), (72, 40), (256, 64), (16, 16))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.nq}x{s.n}")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_pattern(case: Case, shape: Sizes, dtype: torch.dtype) -> None:
    d, dv = DIMS[(CASES.index(case) + SHAPES.index(shape)) % len(DIMS)]
    check(case, shape, d=d, dv=dv, dtype=dtype, device="cuda", seed=shape.n)


@pytest.mark.parametrize("case", [case for case in CASES if case.n is None], ids=lambda case: case.id)
def test_places(case: Case) -> None:
    shape = Sizes(batch=3, heads=4, groups=2, nq=150, n=400)
    starts = torch.tensor([0, 37, 250], dtype=torch.int32, device="cuda")
    check(case, shape, d=64, dv=64, dtype=torch.bfloat16, device="cuda", k_start=starts, k_len=400 - starts)
