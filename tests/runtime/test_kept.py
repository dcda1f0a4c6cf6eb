"""benchmarks/perplexity.py: pairs that are counted by an LSE are those of the set."""

from __future__ import annotations

import torch

import spdsl
from benchmarks.perplexity import kept

PATTERN = """pattern counted(block: int = 8) {
  axis blk = token by block
  let chosen = score(Q, mean(K, per = k.blk)) |> only(k.blk < q.blk) |> top(2)
  keep causal and (chosen or k.blk == q.blk)
  export set = causal and (chosen or k.blk == q.blk)
}
"""


def test_pairs_of_a_selection() -> None:
    q, k, v = torch.randn(1, 4, 50, 8), torch.randn(1, 2, 50, 8), torch.randn(1, 2, 50, 8)
    attn = spdsl.compile(spdsl.loads(PATTERN))
    assert kept(attn, q, k, v) == int(attn.exports(q, k, v)["set"].sum())


def test_pairs_of_a_static_pattern() -> None:
    q, k, v = torch.randn(1, 2, 40, 8), torch.randn(1, 2, 40, 8), torch.randn(1, 2, 40, 8)
    attn = spdsl.compile("streaming", window=7, sinks=2)
    assert kept(attn, q, k, v) == int(attn.pattern.mask(40, 40, heads=2, window=7, sinks=2).sum())


def test_compiled_calls_are_left_as_they_are() -> None:
    attn = spdsl.compile(spdsl.loads(PATTERN))
    q, k, v = torch.randn(3, 1, 2, 40, 8)

    def doubled(q: torch.Tensor) -> torch.Tensor:
        out = attn(2 * q, k, v)
        assert isinstance(out, torch.Tensor)
        return out + 1

    compiled = torch.compile(doubled, backend="eager")
    torch.testing.assert_close(compiled(q), doubled(q))
