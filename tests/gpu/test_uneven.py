"""Selections of uneven runs of queries on a GPU: small ones, and some whose tiles are those of large calls."""

from __future__ import annotations

import pytest
import torch

import spdsl
from tests.library.uneven import CASES, Uneven, check

pytestmark = pytest.mark.gpu

LARGE = {
    "4 heads of 128 numbers": Uneven(
        heads=8, groups=2, n=1501, mean=64, picks=200, batch=2, dim=128, dtype=torch.bfloat16
    ),
    "1 head, by head": Uneven(
        heads=3, groups=3, n=1200, mean=40, axis="h", lists=3, picks=130, dim=64, dtype=torch.bfloat16
    ),
    "16 heads, by group, later": Uneven(
        heads=32, groups=2, n=1100, mean=25, axis="g", lists=2, batch=2, picks=99, missing=300, dim=128
    ),
}


@pytest.mark.parametrize("name", [*LARGE, *CASES])
def test_uneven_runs(name: str) -> None:
    check((LARGE | CASES)[name], "cuda")


def test_calls_that_repeat_their_steps() -> None:
    """The third call with the same tensors gives what the first did, gradients included."""
    attn = spdsl.compile("dhsa", budget=200, local=20)
    q, k, v = (torch.randn(1, heads, 1000, 64, device="cuda", dtype=torch.bfloat16) for heads in (4, 2, 2))
    cut = (torch.rand(1000, device="cuda") < 1 / 30).cumsum(0).int()
    leaves, d_out = [each.requires_grad_() for each in (q, k, v)], torch.randn_like(q)
    results = []
    for _ in range(4):
        out = attn(*leaves, cut=cut)
        assert isinstance(out, torch.Tensor)
        results.append((out, *torch.autograd.grad(out, leaves, d_out)))
    for again in results[1:]:
        for one, other in zip(again, results[0], strict=True):
            assert torch.equal(one, other)
