"""Calls whose steps are repeated on a GPU: the numbers of calls that are carried out as they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import spdsl
from spdsl import staged
from spdsl.runtime import graphs, repeated

pytestmark = pytest.mark.gpu

# Heads, groups, tokens and head dim.
CASES: dict[str, tuple[int, int, int, int]] = {
    "llsa": (4, 4, 4096, 64),
    "infllm_v2": (32, 2, 4096, 128),
    "minference_blocks": (6, 2, 4096, 64),
    "flashprefill": (6, 2, 4096, 64),
    "hip": (8, 2, 4096, 64),
    "moba": (8, 8, 4096, 64),
    "vertical_slash": (8, 2, 4096, 64),
    "flexprefill": (6, 2, 4096, 64),
}

WAITING = ("vertical_slash", "flexprefill")
"""Patterns whose backward waits for how many columns there are."""


def tensors(name: str, seed: int, *, trained: bool) -> list[Tensor]:
    heads, groups, n, dim = CASES[name]
    generator = torch.Generator("cuda").manual_seed(seed)
    make = {"device": "cuda", "dtype": torch.bfloat16, "generator": generator}
    made = [torch.randn(1, count, n, dim, **make) for count in (heads, groups, groups)]  # type: ignore[call-overload]
    return [each.requires_grad_(trained) for each in made]


@pytest.fixture
def carried_out(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One element for each call that is carried out as it is."""
    found: list[str] = []
    attend = staged.attend
    monkeypatch.setattr(staged, "attend", lambda *given: (found.append(given[5]), attend(*given))[1])
    return found


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_repeated_calls(name: str, trained: bool, carried_out: list[str]) -> None:
    if trained and name in WAITING:
        pytest.skip("the host waits for how many columns there are")
    attn, other = spdsl.compile(name), spdsl.compile(name)

    def results(attn: spdsl.Attention, given: list[Tensor]) -> list[Tensor]:
        out = attn(*given)
        assert isinstance(out, Tensor)
        gradients = torch.autograd.grad(out, given, torch.ones_like(out)) if trained else ()
        return [out.detach(), *gradients]

    for seed in range(4):
        given = tensors(name, seed, trained=trained)
        other._direct._whole.clear()
        repeated._steps.entries.clear()
        repeated._sights.entries.clear()
        graphs._direct.cache_clear()
        for one, two in zip(results(attn, given), results(other, given), strict=True):
            # Fused backward kernels add to dQ in no fixed order.
            error = (one.float() - two.float()).norm() / two.float().norm()
            assert float(error) <= 1e-3
    assert len(carried_out) == 2 + 4
    (kind,) = attn._direct._whole.values()
    assert kind.ways is not None


def test_a_graph_of_both_ways() -> None:
    """A call whose steps are known is captured with its backward, and replayed with other numbers."""
    attn, other = spdsl.compile("llsa"), spdsl.compile("llsa")
    held = tensors("llsa", 0, trained=True)

    def run(attn: spdsl.Attention, given: list[Tensor]) -> tuple[Tensor, ...]:
        out = attn(*given)
        assert isinstance(out, Tensor)
        return (out, *torch.autograd.grad(out, given, torch.ones_like(out)))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run(attn, held)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run(attn, held)
    given = tensors("llsa", 1, trained=True)
    with torch.no_grad():
        for mine, theirs in zip(held, given, strict=True):
            mine.copy_(theirs)
    graph.replay()
    for one, two in zip(found, run(other, given), strict=True):
        assert torch.equal(one, two)
