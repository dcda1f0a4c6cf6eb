"""Rows in doubt: all that rounding may turn are among them, and where nothing is near a tie there are none."""

from __future__ import annotations

import pytest
import torch

import spdsl
from spdsl import reference

TEXTS = {
    "threshold": "let c = score(Q, K, scale = 1.0) >= 3.0  keep causal and c",
    "largest": "let s = score(Q, K) |> only(causal)  let c = s >= max(s, over = k) * 0.5  keep causal and c",
    "share": "let c = score(Q, K) |> only(causal) |> softmax |> sum(per = g) |> top_p(0.7)  keep causal and c",
    "experts": "let c = score(Q, K) |> only(causal) |> top(9, over = q)  keep causal and c",
    "heads": "axis blk = token by 8  let c = score(Q, mean(K, per = k.blk)) |> max(per = q.blk) |> max(over = h)"
    " |> only(k.blk <= q.blk) |> top(2)  keep causal and c",
}
NAMED = {
    "moba": {"block": 8, "picks": 3},
    "quest": {"page": 8, "budget": 32},
    "llsa": {"block": 4, "picks": (3, 2)},
    "hip": {
        "rows": 8,
        "chunk": (16, 8, 4),
        "budget": (48, 24, 8),
        "every": 2,
        "sinks": 3,
        "window": 9,
    },
}


def made(name: str) -> spdsl.Attention:
    if name in NAMED:
        return spdsl.compile(name, **NAMED[name])  # type: ignore[arg-type]
    return spdsl.compile(spdsl.loads(f"pattern some() {{ {TEXTS[name]} }}"))


@pytest.mark.parametrize("name", [*TEXTS, *NAMED])
def test_what_a_little_noise_turns_is_in_doubt(name: str) -> None:
    """Small whole numbers have many ties; the noise is below the margin."""
    generator = torch.Generator().manual_seed(3)
    q = torch.randint(-2, 3, (2, 4, 61, 8), generator=generator).double()
    k, v = torch.randint(-2, 3, (2, 2, 2, 61, 8), generator=generator).double()
    pattern = made(name).bind(4, 2, 8)
    doubtful = reference.doubtful(pattern, q, k, v, tables={}, q_start=0)
    out, _ = reference.attend(pattern, q, k, v, q_start=0)
    turned = torch.zeros_like(doubtful)
    for _ in range(3):
        one, two = (x * (1 + 1e-7 * torch.randn(x.shape, generator=generator)) for x in (q, k))
        other, _ = reference.attend(pattern, one, two, v, q_start=0)
        turned |= (other - out).norm(dim=-1) > 1e-4 * out.norm(dim=-1)
    assert bool(turned.any())
    assert not bool((turned & ~doubtful).any())


@pytest.mark.parametrize("name", [*TEXTS, *NAMED])
def test_there_is_little_doubt_of_numbers_that_are_far_apart(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 61, 8, generator=generator) for heads in (4, 2, 2))
    found = reference.doubtful(made(name).bind(4, 2, 8), q, k, v, tables={}, q_start=0)
    assert float(found.double().mean()) < 0.02


def test_blocks_that_are_alike() -> None:
    """From the fourth on there is a choice."""
    q, v = torch.randn(2, 1, 2, 100, 8)
    pattern = spdsl.compile("moba", block=8, picks=3).bind(2, 2, 8)
    found = reference.doubtful(pattern, q, torch.zeros_like(q), v, tables={}, q_start=0)
    assert torch.equal(found[0, 0], torch.arange(100) >= 24)
