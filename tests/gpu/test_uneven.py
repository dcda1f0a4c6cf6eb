"""Selections of uneven runs of queries on a GPU: small ones, and some whose tiles are those of large calls."""

from __future__ import annotations

import pytest
import torch

import spdsl
from spdsl.runtime.run_means import of_runs
from spdsl.runtime.runs import Runs
from tests.library.compare import TOLERANCE, relative_error
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_reductions_of_runs(dtype: torch.dtype) -> None:
    """Runs of one row to some thousands, and some without rows, of queries that begin later."""
    sizes = torch.tensor([1, 0, 3000, 63, 64, 65, 0, 300], device="cuda")
    table = torch.arange(len(sizes), device="cuda").repeat_interleave(sizes).int()
    x = torch.randn(2, 3, 3000, 96, device="cuda", dtype=dtype, requires_grad=True)
    offset = len(table) - x.shape[2]
    runs, own = Runs.of(table, len(sizes)), table[offset:].long()
    some = torch.bincount(own, minlength=len(sizes))[:, None]
    for kind in ("sum", "mean"):
        found = of_runs(x, runs, offset, kind)
        wanted = torch.zeros(found.shape, device="cuda", dtype=torch.float64).index_add(2, own, x.double())
        wanted = wanted / some.clamp(min=1) if kind == "mean" else wanted
        assert relative_error(found, wanted) <= 1e-5
        d_found = torch.randn_like(found)
        (one,), (two,) = torch.autograd.grad(found, x, d_found), torch.autograd.grad(wanted, x, d_found.double())
        assert relative_error(one, two) <= TOLERANCE[dtype]
    for kind, way in (("max", "amax"), ("min", "amin")):
        empty = torch.zeros_like(of_runs(x, runs, offset, kind))
        at = own[:, None].expand_as(x)
        wanted = empty.scatter_reduce(2, at, x.detach().float(), way, include_self=False)
        assert torch.equal(of_runs(x, runs, offset, kind), wanted)


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
