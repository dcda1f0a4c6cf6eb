"""Keys with lifetimes on a GPU: against dense float64 attention over the best keys of every prefix, call by call."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import spdsl
from tests.library.compare import TOLERANCE, relative_error

pytestmark = pytest.mark.gpu


def dense(q: Tensor, k: Tensor, v: Tensor, delta: Tensor, width: int) -> Tensor:
    """The output in float64; queries are the last positions."""
    nq, n, ratio = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    past = torch.arange(n - nq, n, device=q.device)[:, None] >= torch.arange(n, device=q.device)
    value = delta.detach().double()[..., None, :].expand(-1, -1, nq, -1)
    best = value.masked_fill(~past, -torch.inf).topk(min(width, n), dim=-1).indices
    keep = (torch.zeros_like(past).expand(value.shape).scatter(-1, best, value=True) & past).repeat_interleave(ratio, 1)
    k, v = (each.double().repeat_interleave(ratio, 1) for each in (k, v))
    logits = q.double() @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    logits = logits + delta.double().repeat_interleave(ratio, 1)[..., None, :]
    return logits.masked_fill(~keep, -torch.inf).softmax(-1) @ v


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    ("batch", "heads", "groups", "nq", "n", "dim", "width", "dtype"),
    [
        (2, 8, 2, 1501, 1501, 128, 200, torch.bfloat16),
        (1, 3, 3, 1000, 1000, 64, 70, torch.float16),
        (1, 16, 1, 700, 1900, 128, 333, torch.bfloat16),
        (2, 12, 4, 400, 400, 32, 1000, torch.float16),
    ],
)
def test_calls_are_those_of_dense_attention(
    batch: int, heads: int, groups: int, nq: int, n: int, dim: int, width: int, dtype: torch.dtype, trained: bool
) -> None:
    attn = spdsl.compile("dma", width=width)
    generator = torch.Generator().manual_seed(n)
    for _ in range(3):  # the first is carried out, the second is watched, the third repeats its steps
        q = torch.randn(batch, heads, nq, dim, generator=generator).to("cuda", dtype)
        k, v = torch.randn(2, batch, groups, n, dim, generator=generator).to("cuda", dtype)
        delta = torch.randn(batch, groups, n, generator=generator).cuda().requires_grad_(trained)
        leaves = [each.requires_grad_() for each in (q, k, v)] + ([delta] if trained else [])
        d_out = torch.randn(q.shape, generator=generator).to("cuda", dtype)
        torch.full((1 << 28,), float("nan"), device="cuda")  # memory that kernels take next
        out = attn(q, k, v, delta=delta)
        assert isinstance(out, Tensor)
        found = torch.autograd.grad(out, leaves, d_out, retain_graph=True)
        expected = dense(q, k, v, delta, width)
        wanted = torch.autograd.grad(expected, leaves, d_out.double())
        assert relative_error(out, expected) <= TOLERANCE[dtype]
        for one, other in zip(found, wanted, strict=True):
            assert relative_error(one, other) <= 2 * TOLERANCE[dtype]
        for one, other in zip(found, torch.autograd.grad(out, leaves, d_out), strict=True):
            assert torch.equal(one, other)
