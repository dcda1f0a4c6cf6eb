"""The patterns that select by scores on a GPU, against the float64 reference on the same tensors."""

from __future__ import annotations

import pytest
import torch

from tests.library.cases import Case, Sizes
from tests.library.routers import ROUTERS
from tests.library.selections import SELECTIONS
from tests.library.test_selections import check

pytestmark = pytest.mark.gpu

SHAPES = (
    Sizes(batch=1, heads=4, groups=2, nq=333, n=333),
    Sizes(batch=2, heads=3, groups=3, nq=130, n=130),
    Sizes(batch=1, heads=16, groups=1, nq=260, n=260),
)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.heads}of{s.groups}x{s.n}")
@pytest.mark.parametrize("case", [*SELECTIONS, *ROUTERS], ids=lambda case: case.id)
def test_pattern(case: Case, shape: Sizes, dtype: torch.dtype) -> None:
    if case.n is not None and shape.n < case.n:
        pytest.skip("a grid has one length")
    fixed = (
        shape
        if case.n is None
        else Sizes(batch=shape.batch, heads=shape.heads, groups=shape.groups, nq=case.n, n=case.n)
    )
    check(case, fixed, dtype=dtype, device="cuda")
