"""Sets that outlive a call, as lists: exported, and given to other layers and steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import spdsl
from spdsl.diagnostics import SpatError
from tests.library.compare import relative_error

FAR = 2**31 - 1


def tensors(nq: int = 75, n: int = 75, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    q = torch.randn(batch, 4, nq, 8, generator=generator)
    k, v = torch.randn(2, batch, 2, n, 8, generator=generator)
    return [x.requires_grad_() for x in (q, k, v)]


def written_out(lists: Tensor, size: int) -> Tensor:
    found = torch.zeros(*lists.shape[:-1], size, dtype=torch.bool)
    for place in torch.cartesian_prod(*(torch.arange(extent) for extent in lists.shape)):
        key = int(lists[tuple(place)])
        if key != FAR:
            found[(*place[:-1].tolist(), key)] = True
    return found


def test_steps_reuse_blocks() -> None:
    """One step chooses blocks, a later one keeps them: the same with lists as with bools, gradients too."""
    q, k, v = tensors()
    build = spdsl.compile("sparsed_build", ratio=0.2, rows=16, columns=8)
    prompt = torch.tensor([20, 40], dtype=torch.int32)
    bools = build.exports(q, k, v, prompt=prompt)["chosen"]
    lists = build.exports(q, k, v, prompt=prompt, compact=True)["chosen"]
    assert lists.dtype == torch.int32
    assert lists.shape[:3] == (2, 4, 5)
    assert lists.shape[-1] < bools.shape[-1]
    assert torch.equal(written_out(lists, 10), bools)
    reuse = spdsl.compile("sparsed_reuse", rows=16, columns=8)
    out, other = reuse(q, k, v, chosen=bools), reuse(q, k, v, chosen=lists)
    torch.testing.assert_close(out, other)
    assert relative_error(other, reuse.reference(q, k, v, chosen=lists)) <= 1e-5
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    for one, two in zip(
        torch.autograd.grad(out, (q, k, v), weight), torch.autograd.grad(other, (q, k, v), weight), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("nq", "n"), [(75, 75), (9, 60)])
def test_layers_reuse_pages(nq: int, n: int) -> None:
    """A choosing layer exports pages, the next one reads them."""
    q, k, v = tensors(nq, n)
    small = {"page": 8, "picks": 3, "recent": 1}
    chooses, reads = (spdsl.compile("delta", layer=layer, **small) for layer in (14, 15))
    none = torch.zeros(nq, -(-n // 8), dtype=torch.bool)
    bools = chooses.exports(q, k, v, reused=none)["chosen"]
    lists = chooses.exports(q, k, v, reused=none, compact=True)["chosen"]
    assert lists.shape == (2, nq, 3)
    torch.testing.assert_close(reads(q, k, v, reused=lists), reads(q, k, v, reused=bools))
    out, lse = reads(q, k, v, reused=lists, return_lse=True)
    assert relative_error(out, reads.reference(q, k, v, reused=bools)) <= 1e-5
    assert lse.shape == (2, 4, nq)


def test_keys_of_another_layer() -> None:
    q, k, v = tensors()
    full = torch.zeros(64, dtype=torch.bool)
    reused = torch.rand(2, 2, 75, 75, generator=torch.Generator().manual_seed(0)) < 0.1
    most = int(reused.sum(-1).max())
    lists = torch.full((2, 2, 75, most), FAR, dtype=torch.int32)
    for b, g, t in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(75)).tolist():
        keys = reused[b, g, t].nonzero().flatten()
        lists[b, g, t, : len(keys)] = keys.int()
    attn = spdsl.compile("hylra", layer=5)
    torch.testing.assert_close(attn(q, k, v, full=full, reused=lists), attn(q, k, v, full=full, reused=reused))


def test_lists_that_do_not_ascend() -> None:
    q, k, v = tensors()
    lists = torch.tensor([3, 1], dtype=torch.int32).expand(4, 5, 2)
    with pytest.raises(SpatError) as caught:
        spdsl.compile("sparsed_reuse", rows=16, columns=8)(q, k, v, chosen=lists)
    assert caught.value.code == "SP350"


def test_stages_do_not_read_lists() -> None:
    text = """pattern weighs(block: int = 8) {
      axis blk = token by block
      input seen: bool[q, k.blk]
      let chosen = score(Q, mean(K, per = k.blk)) |> only(seen) |> top(2)
      keep causal and chosen
    }"""
    q, k, v = tensors()
    lists = torch.zeros(75, 1, dtype=torch.int32)
    with pytest.raises(SpatError) as caught:
        spdsl.compile(spdsl.loads(text))(q, k, v, seen=lists)
    assert caught.value.code == "SP347"
