"""Unions whose sets are computed one after the other, on a GPU: numbers, and the same bits in every run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import spdsl
from tests.library.compare import relative_error

pytestmark = pytest.mark.gpu

BODIES = {
    # Few local keys: the largest weight of a row is often one of the later set.
    "few": "keep causal and (q - k < 5 or (q - k) % 16 == 0)",
    "strided": "keep causal and (q - k < 100 or (q - k) % 64 == 0)",
    "sinks": "keep causal and (k < 70 or (q - k < 1500 and (q - k) % 4 == 0))  sink_logit 0.5",
    "documents": "input doc: int[token] sorted\n"
    "  keep causal and doc[q] == doc[k] and (q - k < 200 or (q - k) % 16 == 0)  softcap 20.0",
}
LIMITS = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("size", [(2, 4, 2, 3000, 3000, 64), (1, 2, 2, 333, 2100, 128)])
@pytest.mark.parametrize("name", BODIES)
def test_union(name: str, size: tuple[int, ...], dtype: torch.dtype) -> None:
    batch, heads, groups, nq, n, d = size
    attn = spdsl.compile(spdsl.loads(f"pattern union() {{\n  {BODIES[name]}\n}}"), deterministic=True)
    torch.manual_seed(0)
    shapes = ((batch, heads, nq, d), (batch, groups, n, d), (batch, groups, n, d))
    leaves = [torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True) for shape in shapes]
    inputs: dict[str, Tensor] = {"doc": torch.arange(n, device="cuda") // 700} if name == "documents" else {}
    d_out, d_lse = torch.randn(batch, heads, nq, d, device="cuda"), torch.randn(batch, heads, nq, device="cuda")

    def run(attention: object) -> list[Tensor]:
        out, lse = attention(*leaves, return_lse=True, **inputs)  # type: ignore[operator]
        grads = torch.autograd.grad((out, lse), leaves, (d_out.to(out.dtype), d_lse.to(lse.dtype)))
        return [out, lse, *grads]

    found, again, wanted = run(attn), run(attn), run(attn.reference)
    for place, (one, other, expected) in enumerate(zip(found, again, wanted, strict=True)):
        assert torch.equal(one, other)
        assert relative_error(one, expected) <= LIMITS[dtype] * (1 if place < 2 else 2)
