"""Every library pattern on the GPU: output, LSE and all gradients against the float64 reference."""

from __future__ import annotations

import pytest
import torch

import spdsl
from tests.library.cases import CASES, Case, Sizes

pytestmark = pytest.mark.gpu

TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
SHAPES = (
    Sizes(batch=1, heads=2, groups=2, nq=1, n=1),
    Sizes(batch=2, heads=4, groups=2, nq=333, n=333),
    Sizes(batch=1, heads=6, groups=2, nq=100, n=1027),
    Sizes(batch=1, heads=2, groups=1, nq=5000, n=5000),
)
DIMS = ((64, 64), (128, 128), (72, 40))


def _sizes(case: Case, shape: Sizes) -> Sizes:
    if case.n is None:
        return shape
    return Sizes(batch=shape.batch, heads=shape.heads, groups=shape.groups, nq=min(shape.nq, case.n), n=case.n)


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.double(), expected.double()
    assert torch.isfinite(found).all()
    norm = expected.norm()
    return float((found - expected).norm() / norm) if norm > 0 else float(found.norm())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.nq}x{s.n}")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_pattern(case: Case, shape: Sizes, dtype: torch.dtype) -> None:
    d, dv = DIMS[(CASES.index(case) + SHAPES.index(shape)) % len(DIMS)]
    if shape.n > 2000 and dtype == torch.float32:
        d = dv = 64
    sizes = _sizes(case, shape)
    generator = torch.Generator().manual_seed(sizes.n)
    inputs = {name: value.cuda() for name, value in case.inputs(sizes, generator).items()}

    def leaf(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator).to("cuda", dtype).requires_grad_()

    q = leaf(sizes.batch, sizes.heads, sizes.nq, d)
    k = leaf(sizes.batch, sizes.groups, sizes.n, d)
    v = leaf(sizes.batch, sizes.groups, sizes.n, dv)
    for name in case.trained:
        inputs[name].requires_grad_()
    leaves = [q, k, v, *(inputs[name] for name in case.trained)]
    attn = spdsl.compile(case.name, **case.parameters)
    out, lse = attn(q, k, v, return_lse=True, **inputs)
    expected, expected_lse = attn.reference(q, k, v, return_lse=True, **inputs)
    seen = torch.isfinite(expected_lse)
    assert torch.equal(seen, torch.isfinite(lse))
    assert _error(out, expected) <= TOLERANCE[dtype]
    if seen.any():
        assert (lse[seen].double() - expected_lse[seen]).abs().max() <= (1e-4 if dtype == torch.float32 else 1e-3)
    d_out = torch.randn(out.shape, generator=generator).to("cuda", dtype)
    d_lse = torch.where(seen, torch.randn(lse.shape, generator=generator).cuda(), 0.0)
    found = torch.autograd.grad((out, lse), leaves, (d_out, d_lse))
    wanted = torch.autograd.grad((expected, expected_lse), leaves, (d_out.double(), d_lse.double()))
    for name, gradient, reference in zip(("q", "k", "v", *case.trained), found, wanted, strict=True):
        assert _error(gradient, reference) <= 2 * TOLERANCE[dtype], name
