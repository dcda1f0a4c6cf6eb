"""Masks of patterns in FlexAttention, and its block masks in patterns, compared with torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention, noop_mask

import spdsl
from spdsl import flex

DOC = (torch.arange(300) // 90).int()
PER_HEAD = spdsl.loads(
    "pattern own(w: int) { input first: int[b]  keep causal and q - k < w * (h + 1) and k >= first }"
)


def causal_window(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (k <= q) & ((q - k < 70) | (k < 5))


def documents(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (k <= q) & (DOC[q] == DOC[k])


def last_queries(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (k <= q + 100) & (q + 100 - k < 40)


def by_head(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (k <= q) & (q - k < 50 * (h + 1)) & (k >= 30 * b)


CASES: dict[str, tuple[spdsl.Attention, int, int, dict[str, Any], Callable[..., Tensor]]] = {
    "window": (spdsl.compile("streaming", window=70, sinks=5), 300, 300, {}, causal_window),
    "documents": (spdsl.compile("documents"), 300, 300, {"doc": DOC}, documents),
    "last": (spdsl.compile("sliding_window", window=40), 130, 230, {}, last_queries),
    "head": (
        spdsl.compile(PER_HEAD, w=50),
        200,
        200,
        {"heads": 3, "batch": 2, "first": torch.tensor([0, 30])},
        by_head,
    ),
}


# Plans of several patterns take seconds each.
SOME = [each if each == "head" else pytest.param(each, marks=pytest.mark.slow) for each in CASES]


@pytest.mark.parametrize("name", SOME)
def test_blocks_are_those_of_the_mask(name: str) -> None:
    attention, nq, nk, given, mod = CASES[name]
    found = flex.block_mask(attention, nq, nk, block_size=64, **given)
    batch, heads = found.kv_num_blocks.shape[:2]
    expected = create_block_mask(mod, batch, heads, nq, nk, device="cpu", BLOCK_SIZE=64)
    assert found.shape[-2:] == (nq, nk)
    assert torch.equal(found.to_dense(), expected.to_dense())
    # Torch counts ragged blocks at the end as partial; here those are whole whose existing queries are.
    whole, most = (_whole(each) for each in (expected, found))
    assert (most >= whole).all()
    assert torch.equal(most[..., : nq // 64, :], whole[..., : nq // 64, :])


def _whole(mask: BlockMask) -> Tensor:
    counts, indices = mask.full_kv_num_blocks, mask.full_kv_indices
    used = torch.arange(indices.shape[-1]) < counts[..., None]
    return torch.zeros(indices.shape, dtype=torch.long).scatter_add(3, indices.long(), used.long())


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", SOME)
def test_attention_is_the_same(name: str) -> None:
    attention, nq, nk, given, _ = CASES[name]
    torch.manual_seed(0)
    heads, batch = given.get("heads", 1), given.get("batch", 1)
    q = torch.randn(batch, heads, nq, 16)
    k, v = torch.randn(2, batch, heads, nk, 16)
    inputs = {key: value for key, value in given.items() if key not in ("heads", "batch")}
    out = flex_attention(q, k, v, block_mask=flex.block_mask(attention, nq, nk, **given))
    torch.testing.assert_close(attention(q, k, v, **inputs), out)


def test_mask_mod_alone() -> None:
    attention, nq, nk, given, mod = CASES["head"]
    made = create_block_mask(flex.mask_mod(attention, nq, nk, **given), 2, 3, nq, nk, device="cpu")
    assert torch.equal(made.to_dense(), create_block_mask(mod, 2, 3, nq, nk, device="cpu").to_dense())


@pytest.mark.parametrize("heads", [1, 2])
def test_a_block_mask_as_an_input(heads: int) -> None:
    torch.manual_seed(0)
    axes = "h, q.blk, k.blk" if heads > 1 else "q.blk, k.blk"
    text = f"pattern chosen() {{ axis blk = token by 128  input open: bool[{axes}]  keep causal and open }}"
    attention = spdsl.compile(spdsl.loads(text))

    def mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & ((q // 128 + k // 128 + h) % 2 == 0)

    mask = create_block_mask(mod, 1, heads, 400, 400, device="cpu")
    q, k, v = torch.randn(3, 1, 2, 400, 16)
    with pytest.raises(spdsl.SpatError, match="SP643"):
        flex.blocks(mask)
    out = attention(q, k, v, open=flex.blocks(mask, partly=True))
    kept = torch.stack([mod(0, h if heads > 1 else 0, torch.arange(400)[:, None], torch.arange(400)) for h in range(2)])
    truth = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=kept)
    torch.testing.assert_close(out, torch.where(kept.any(-1)[None, ..., None], truth, 0.0))
    assert flex.blocks(create_block_mask(noop_mask, 1, 1, 256, 256, device="cpu")).all()


@pytest.mark.parametrize("name", ["alibi", "moba", "softcap"])
def test_more_than_a_mask_is_refused(name: str) -> None:
    with pytest.raises(spdsl.SpatError) as caught:
        flex.block_mask(spdsl.compile(name), 64, 64, slope=[0.5])
    assert caught.value.code == "SP643"
    assert caught.value.help
