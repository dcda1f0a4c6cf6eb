"""Every library pattern on the CPU back end against the float64 reference."""

from __future__ import annotations

import pytest
import torch

from tests.library.cases import CASES, Case, Sizes
from tests.library.compare import check

SHAPES = (
    Sizes(batch=1, heads=2, groups=2, nq=1, n=1),
    Sizes(batch=2, heads=4, groups=2, nq=203, n=203),
    Sizes(batch=1, heads=6, groups=2, nq=50, n=333),
    Sizes(batch=2, heads=6, groups=2, nq=3, n=171),
)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.nq}x{s.n}")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_float32(case: Case, shape: Sizes) -> None:
    check(case, shape, d=24, dv=16, dtype=torch.float32, seed=shape.n)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES[::4], ids=lambda case: case.id)
def test_half(case: Case, dtype: torch.dtype) -> None:
    check(case, SHAPES[1], d=32, dv=32, dtype=dtype)


@pytest.mark.parametrize("case", [case for case in CASES if case.n is None], ids=lambda case: case.id)
def test_places(case: Case) -> None:
    shape = Sizes(batch=3, heads=2, groups=1, nq=40, n=160)
    starts = torch.tensor([0, 37, 150], dtype=torch.int32)
    check(case, shape, d=16, dv=16, dtype=torch.float32, k_start=starts, k_len=160 - starts)


@pytest.mark.parametrize("case", [case for case in CASES if case.n is None], ids=lambda case: case.id)
def test_steps_of_decoding(case: Case) -> None:
    shape = Sizes(batch=4, heads=4, groups=2, nq=2, n=160)
    starts, lengths = torch.tensor([0, 37, 150, 20]), torch.tensor([160, 123, 7, 0])
    check(case, shape, d=16, dv=16, dtype=torch.float32, k_start=starts.int(), k_len=lengths.int())
