"""Inputs along blocks where each sequence has a length, tokens outside of a named grid, values of another size."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import spdsl
from spdsl.diagnostics import SpatError
from tests.library.compare import relative_error

AMONG = """pattern among() {
  axis blk = token by 8
  input open: bool[h, q.blk, k.blk]
  let best = score(Q, K) |> only(open and causal) |> top(6)
  keep best or k == q
}"""
# Tokens after the picture have rows of it in arithmetic alone.
AROUND = """pattern around() {
  grid picture (y: 7, x: 8)
  axis strip = y by 2
  let chosen = score(Q, mean(K, per = k.strip)) |> top(2)
  keep chosen or k == q
}"""
MEAN = """pattern averaged(window: int[i: 3] = (4, 16, 64), step: int[i: 3] = (1, 2, 8)) {
  return mean(attend { keep 0 <= q - k < window[i] and (q - k) % step[i] == 0 }, over = i)
}"""
GATED = """pattern gated() {
  input gate: float[h, q, d]
  export pooled = mean(V, over = k)
  return gate * attend { keep causal }
}"""
SECOND = """pattern second() {
  input special: bool[token]
  input VG: float[g, token, d]
  return if special[q] then attend(Q, K, VG) { keep all } else attend { keep causal }
}"""


def close(text: str, tensors: tuple[torch.Tensor, ...], **given: Any) -> None:
    attend: Any = spdsl.compile(spdsl.loads(text))
    leaves = [x.requires_grad_() for x in tensors]
    out, expected = attend(*leaves, **given), attend.reference(*leaves, **given)
    assert relative_error(out, expected) <= 1e-5
    weight = torch.randn_like(out)
    pairs = (torch.autograd.grad((each * weight).sum(), leaves) for each in (out, expected))
    for found, wanted in zip(*pairs, strict=True):
        assert relative_error(found, wanted) <= 2e-5


def test_inputs_along_blocks_and_a_length_for_each_sequence() -> None:
    q, k, v = torch.randn(3, 2, 7, 8), *torch.randn(2, 3, 1, 60, 8)
    lengths = torch.tensor([60, 33, 9], dtype=torch.int32)
    close(AMONG, (q, k, v), open=torch.rand(3, 2, 8, 8) < 0.5, k_len=lengths)


def test_what_is_chosen_along_a_named_grid_is_false_outside() -> None:
    close(AROUND, (torch.randn(1, 2, 70, 8), *torch.randn(2, 1, 1, 70, 8)))


def test_a_mean_of_softmaxes_that_share_pairs() -> None:
    close(MEAN, (torch.randn(1, 2, 70, 8), *torch.randn(2, 1, 1, 70, 8)))


@pytest.mark.parametrize(
    ("text", "given"),
    [
        (GATED, {"gate": torch.ones(2, 9, 8)}),
        (SECOND, {"special": torch.arange(9) == 3, "VG": torch.ones(1, 9, 8)}),
    ],
    ids=("gated", "second"),
)
def test_values_of_another_size_beside_vectors_along_d(text: str, given: dict[str, torch.Tensor]) -> None:
    attend: Any = spdsl.compile(spdsl.loads(text))
    q, k, v = torch.randn(1, 2, 9, 8), torch.randn(1, 1, 9, 8), torch.randn(1, 1, 9, 12)
    for call in (attend, attend.reference, attend.exports):
        with pytest.raises(SpatError, match="vectors of 12 numbers and `q` of 8") as found:
            call(q, k, v, **given)
        assert found.value.code == "SP340"
        assert found.value.place is not None
        assert attend(q, k, v[..., :8], **given).shape == q.shape
