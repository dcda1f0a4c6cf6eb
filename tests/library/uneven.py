"""Selections that runs of queries of uneven length share: random ones, and dense float64 attention over them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spdsl import prepare
from spdsl.pipeline import bound, key_of, opened, read, softmax_key
from spdsl.runtime import operator, requests
from spdsl.runtime.ranking import FAR
from tests.library.compare import TOLERANCE, relative_error

requests.install(prepare.prepare)


@dataclass(frozen=True, kw_only=True)
class Uneven:
    """Runs of about ``mean`` queries pick ``picks`` blocks of the past, for each of ``lists`` heads (none: for all)."""

    heads: int
    groups: int
    n: int
    mean: float
    axis: str = ""
    block: int = 1
    picks: int = 20
    batch: int = 1
    lists: int = 1
    missing: int = 0
    dim: int = 16
    dtype: torch.dtype = torch.float16


CASES = {
    "shared by all": Uneven(heads=4, groups=2, n=150, mean=9, batch=2),
    "by group": Uneven(heads=8, groups=2, n=130, mean=30, axis="g", batch=2, lists=2),
    "by head": Uneven(heads=2, groups=2, n=140, mean=5, axis="h", lists=2, dtype=torch.float32),
    "later queries": Uneven(heads=3, groups=1, n=170, mean=20, missing=77),
    "blocks of 4": Uneven(heads=4, groups=2, n=150, mean=2, block=4, picks=9, axis="g", lists=2),
    "blocks of 16": Uneven(heads=2, groups=1, n=200, mean=12, block=16, picks=4),
    "one run": Uneven(heads=2, groups=2, n=100, mean=1e9),
    "runs of one query": Uneven(heads=2, groups=1, n=70, mean=1.0),
}


def check(case: Uneven, device: str = "cpu") -> None:
    """Compare output, LSE and gradients twice, bit by bit the second time."""
    axes = f"{case.axis}, q.run, k.blk" if case.axis else "q.run, k.blk"
    text = (
        f"pattern program() {{\n  input cut: int[token] sorted\n  axis run = token by cut\n"
        f"  axis blk = token by {case.block}\n  input s: float[{axes}]\n  let c = s |> top({case.picks})\n"
        f"  keep causal and c\n}}"
    )
    checked = read(text)
    assert checked.graph is not None
    key = key_of(checked, {}, None, "triton", deterministic=False)
    key, _ = opened(softmax_key(key, checked.graph.attentions[0].name))
    names = [table.name for table in bound(key, case.heads, case.groups, case.dim).tables]
    assert names[0] == "cut"
    generator = torch.Generator().manual_seed(case.n)
    nq = case.n - case.missing
    cut = (torch.rand(case.n, generator=generator) < 1 / case.mean).cumsum(0).int()
    runs, blocks = int(cut.max()) + 1, -(-case.n // case.block)
    last = torch.zeros(runs, dtype=torch.int64).scatter_reduce(0, cut.long(), torch.arange(case.n), "amax")
    batch = case.batch if case.axis else 1
    score = torch.rand(batch, case.lists, runs, blocks, generator=generator)
    score = score.masked_fill(torch.arange(blocks) > last[:, None] // case.block, -1.0)
    best = score.topk(min(case.picks, blocks))
    lists = torch.where(best.values >= 0, best.indices.int(), FAR).sort(-1).values.int().to(device)
    q, d_out = torch.randn(2, case.batch, case.heads, nq, case.dim, generator=generator).to(device, case.dtype)
    k, v = torch.randn(2, case.batch, case.groups, case.n, case.dim, generator=generator).to(device, case.dtype)
    d_lse = torch.randn(d_out.shape[:3], generator=generator).to(device)
    leaves, cut = [each.requires_grad_() for each in (q, k, v)], cut.to(device)
    expected = dense(case, *leaves, cut.long(), lists)
    kept = expected[1] > -torch.inf
    wanted = torch.autograd.grad((expected[0], expected[1][kept]), leaves, (d_out.double(), d_lse.double()[kept]))
    results = []
    for _ in range(2):
        if device == "cuda":
            torch.full((1 << 28,), float("nan"), device="cuda")  # memory that kernels take next
        given = lists if case.axis else lists[:, 0]
        shape = "offset" if case.missing else "square"
        out, lse = operator.attend(*leaves, [cut[None], given], None, key, shape, case.missing, ())
        found = torch.autograd.grad((out, lse), leaves, (d_out, d_lse))
        results.append((out, lse, *found))
        assert relative_error(out, expected[0]) <= TOLERANCE[case.dtype]
        torch.testing.assert_close(lse.double(), expected[1], rtol=1e-3, atol=5e-3)
        for gradient, other in zip(found, wanted, strict=True):
            assert relative_error(gradient, other) <= 2 * TOLERANCE[case.dtype]
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def dense(case: Uneven, q: Tensor, k: Tensor, v: Tensor, cut: Tensor, lists: Tensor) -> tuple[Tensor, Tensor]:
    """Output and LSE in float64."""
    q, k, v = q.double(), *(x.double().repeat_interleave(case.heads // case.groups, 1) for x in (k, v))
    at = torch.arange(case.n, device=q.device)
    blocks = -(-case.n // case.block)
    chosen = torch.zeros(*lists.shape[:3], blocks + 1, dtype=torch.bool, device=q.device)
    chosen = chosen.scatter_(-1, lists.clamp(max=blocks).long(), value=True)
    keep = chosen[:, :, cut][..., at // case.block] & (at <= at[:, None])
    keep = keep.repeat_interleave(case.heads // case.lists, 1)[..., case.missing :, :]
    logits = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~keep, -torch.inf)
    lse = torch.logsumexp(logits, -1)
    return torch.exp(logits - lse.masked_fill(lse == -torch.inf, 0.0)[..., None]) @ v, lse
