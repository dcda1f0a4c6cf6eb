"""Merges of softmaxes and weighted key streams: one softmax over all keys, whatever it is made of."""

from __future__ import annotations

import pytest
import torch

import spdsl
from spdsl.diagnostics import SpatError
from tests.library.compare import relative_error

APART = """pattern apart(window: int = 9, block: int = 4) {
  axis blk = token by block
  let far = score(Q, mean(K, per = k.blk)) |> only(k.blk.last <= q) |> top(3)
  let near = attend { keep causal and q - k < window }
  let rest = attend { keep q - k >= window and far }
  return merge(near, rest)
}
"""
TOGETHER = APART.replace("let near = attend", "let unused = attend").replace(
    "return merge(near, rest)", "return attend { keep causal and (q - k < window or far) }"
)


def test_a_merge_is_one_softmax() -> None:
    q, k, v = (x.requires_grad_() for x in torch.randn(3, 2, 2, 45, 8).unbind(0))
    apart, together = (spdsl.compile(spdsl.loads(text)) for text in (APART, TOGETHER))
    out, lse = apart(q, k, v, return_lse=True)
    expected, expected_lse = together(q, k, v, return_lse=True)
    assert relative_error(out, expected) <= 1e-5
    torch.testing.assert_close(lse, expected_lse)
    weight = torch.randn_like(out)
    for found, other in zip(
        torch.autograd.grad((out * weight).sum() + lse.sum(), (q, k, v)),
        torch.autograd.grad((expected * weight).sum() + expected_lse.sum(), (q, k, v)),
        strict=True,
    ):
        assert relative_error(found, other) <= 2e-5
    reference, reference_lse = apart.reference(q, k, v, return_lse=True)
    assert relative_error(out, reference) <= 1e-5
    assert float((lse - reference_lse).detach().abs().max()) <= 1e-4


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ("causal and chosen", "causal and not chosen", False),
        ("causal and q - k < 4", "causal and q - k > 4", False),
        ("causal and q - k < 4", "causal and q - k > 2", True),
        ("causal and chosen", "causal and q - k > 2", True),
        ("past", "causal and k.blk == q.blk", False),
        ("past or k.blk == q.blk - 1", "causal and k.blk == q.blk", False),
        ("past", "causal and k.blk < q.blk", True),
    ],
)
def test_what_is_proved(first: str, second: str, shared: bool) -> None:
    text = f"""pattern merged() {{
      axis blk = token by 4
      let chosen = score(Q, mean(K, per = k.blk)) |> top(1)
      let past = score(Q, mean(K, per = k.blk)) |> only(k.blk < q.blk) |> top(1)
      return merge(attend {{ keep {first} }}, attend {{ keep {second} }})
    }}"""
    q, k, v = torch.randn(3, 1, 1, 12, 4)
    if not shared:
        spdsl.compile(spdsl.loads(text))(q, k, v)
        return
    with pytest.raises(SpatError) as caught:
        spdsl.compile(spdsl.loads(text))(q, k, v)
    assert caught.value.code == "SP415"
    is_chosen = "past" in text.partition("return")[2] or "chosen" in text.partition("return")[2]
    assert ("may share pairs" in caught.value.message) == is_chosen
    counted = spdsl.compile(spdsl.loads(text.replace(" })\n", " }, overlap = counted)\n")))
    assert relative_error(counted(q, k, v), counted.reference(q, k, v)) <= 1e-5


def test_streams_with_weights() -> None:
    """Blocks that are not chosen count by their means, as often as they have tokens."""
    text = """pattern streams() {
      axis blk = token by 4
      let KB = mean(K, per = k.blk)
      let VB = mean(V, per = k.blk)
      let chosen = score(Q, KB) |> top(2)
      return attend {
        keep chosen
        keep not chosen from (KB, VB) weight k.blk.size
      }
    }"""
    q, k, v = (x.requires_grad_() for x in torch.randn(3, 1, 2, 22, 8).unbind(0))
    attn = spdsl.compile(spdsl.loads(text))
    out, lse = attn(q, k, v, return_lse=True)
    expected, expected_lse = attn.reference(q, k, v, return_lse=True)
    assert relative_error(out, expected) <= 1e-5
    assert float((lse - expected_lse).detach().abs().max()) <= 1e-4
    found = torch.autograd.grad(out.square().sum(), (q, k, v))
    for gradient, other in zip(found, torch.autograd.grad(expected.square().sum(), (q, k, v)), strict=True):
        assert relative_error(gradient, other) <= 2e-5
    # Where every block is of equal keys, its mean stands for each of them: dense attention.
    same = torch.randn(1, 2, 6, 8).repeat_interleave(4, 2)[:, :, :22]
    dense = torch.nn.functional.scaled_dot_product_attention(q, same, same)
    assert relative_error(attn(q, same, same), dense) <= 1e-5


def test_softmaxes_for_the_items_of_a_tuple_are_numbered() -> None:
    text = """pattern widths(window: int[i: 3] = (2, 4, 8)) {
      let near = attend { keep 0 <= q - k < window[i] }
      return mean(near, over = i)
    }"""
    lines = spdsl.compile(spdsl.loads(text)).report(*torch.randn(3, 1, 1, 16, 8).unbind(0)).text().splitlines()
    assert [line for line in lines if line.startswith("softmax")] == [f"softmax near_{i}" for i in (1, 2, 3)]
