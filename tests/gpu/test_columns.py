"""Keys that each head has marked beside blocks that its queries have picked, on a GPU, both ways, against float64."""

from __future__ import annotations

import pytest
import torch

import spdsl
from spdsl.runtime.ranking import FAR

pytestmark = pytest.mark.gpu

TEXT = """pattern picked() {{
  axis blk = token by {block}
  input chosen: bool[h, q.blk, k.blk]
  input column: bool[h, token]
  keep causal and (chosen or column[h, k])
}}
"""


UNEVEN = -1.0
"""A share of columns that differs from block to block: of some many, of some few, of some none."""


@pytest.mark.parametrize(("block", "dim"), [(64, 64), (64, 128), (128, 64), (128, 128), (32, 128)])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0, UNEVEN])
def test_blocks_and_columns(block: int, dim: int, share: float) -> None:
    """Also with no column, or all of them."""
    check(block, dim, share, torch.bfloat16, (1e-2, 2e-2))


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(("dtype", "limits"), [(torch.float16, (2e-3, 4e-3)), (torch.float32, (1e-5, 2e-5))])
def test_other_types(dtype: torch.dtype, limits: tuple[float, float], deterministic: bool) -> None:
    check(64, 64, UNEVEN, dtype, limits, deterministic=deterministic)


def check(
    block: int,
    dim: int,
    share: float,
    dtype: torch.dtype,
    limits: tuple[float, float],
    *,
    deterministic: bool | None = None,
) -> None:
    """Compare output and gradients with those in float64."""
    batch, heads, groups, n = 2, 4, 2, 1111
    chance = torch.Generator().manual_seed(block + dim)
    make = {"generator": chance}
    q, d_out = torch.randn(2, batch, heads, n, dim, **make).to(dtype).cuda()
    k, v = torch.randn(2, batch, groups, n, dim, **make).to(dtype).cuda()
    rows = -(-n // block)
    picked = torch.rand(batch, heads, rows, rows, **make) < 0.3
    shares = torch.tensor([0.7, 0.03, 0.0, 0.2])[torch.arange(n) // block % 4] if share == UNEVEN else share
    column = (torch.rand(batch, heads, n, **make) < shares).cuda()
    lists = torch.where(picked, torch.arange(rows), FAR).sort(-1).values.int().cuda()
    leaves = [each.requires_grad_() for each in (q, k, v)]
    attn = spdsl.compile(spdsl.loads(TEXT.format(block=block)), deterministic=deterministic)
    out = attn(*leaves, chosen=lists, column=column)
    assert isinstance(out, torch.Tensor)
    found = [out.detach(), *torch.autograd.grad(out, leaves, d_out)]
    at = torch.arange(n)
    keep = picked[:, :, at // block][:, :, :, at // block] | column.cpu()[:, :, None]
    keep = keep & (at <= at[:, None])
    exact = [each.detach().cpu().double().requires_grad_() for each in leaves]
    keys, values = (each.repeat_interleave(heads // groups, 1) for each in exact[1:])
    scores = (exact[0] @ keys.mT / dim**0.5).masked_fill(~keep, -torch.inf)
    weights = torch.where(keep.any(-1, keepdim=True), scores.softmax(-1), 0.0)
    result = weights @ values
    wanted = [result.detach(), *torch.autograd.grad(result, exact, d_out.cpu().double())]
    for one, other, limit in zip(found, wanted, (limits[0], *3 * (limits[1],)), strict=True):
        assert float((one.cpu().double() - other).norm() / other.norm()) <= limit
