"""`spdsl.nn.SelfAttention`: its meaning, whole graphs of two layers, checkpoints, and what torch cannot do with it."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

import spdsl
from spdsl.nn import SelfAttention


def two_layers() -> torch.nn.Sequential:
    torch.manual_seed(0)
    first = SelfAttention(32, 4, "streaming", groups=2, window=5, sinks=1)
    return torch.nn.Sequential(first, torch.nn.GELU(), SelfAttention(32, 4, "sliding_window", bias=True, window=3))


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def gradients(model: torch.nn.Module, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(model(x).square().sum(), list(model.parameters())))


def test_the_meaning() -> None:
    layer = two_layers()[0]
    x = torch.randn(2, 11, 32)
    q, k, v = (each.unflatten(-1, (-1, 8)).transpose(1, 2) for each in layer.project(x).split([32, 16, 16], dim=-1))
    at = torch.arange(11)
    q_at, k_at = at[:, None], at[None]
    kept = (k_at <= q_at) & ((q_at - k_at < 5) | (k_at < 1))
    out = scaled_dot_product_attention(q, k, v, attn_mask=kept, enable_gqa=True)
    torch.testing.assert_close(layer(x), layer.back(out.transpose(1, 2).flatten(2)))
    assert "streaming(window=5, sinks=1)" in repr(layer)


def test_two_layers_are_one_graph() -> None:
    model = two_layers()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=True)
    for length in range(16, 26):
        x = torch.randn(1, length, 32)
        for found, expected in zip(gradients(compiled, x), gradients(model, x), strict=True):
            torch.testing.assert_close(found, expected)
    assert counter.frame_count == 1


@pytest.mark.slow
def test_ten_lengths_need_two_graphs_where_nothing_is_said() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(two_layers(), fullgraph=True, backend=counter)
    for length in range(16, 26):
        gradients(compiled, torch.randn(1, length, 32))
    assert counter.frame_count <= 2


def test_checkpoints_and_copies() -> None:
    model = two_layers()
    x = torch.randn(2, 20, 32, requires_grad=True)
    (expected,) = torch.autograd.grad(model(x).sum(), x)
    again = checkpoint(copy.deepcopy(model), x, use_reentrant=False)
    (found,) = torch.autograd.grad(again.sum(), x)
    torch.testing.assert_close(found, expected)


def test_autocast() -> None:
    model, x = two_layers(), torch.randn(2, 20, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), model(x), atol=2e-2, rtol=2e-2)


def test_transforms_are_refused() -> None:
    with pytest.raises(spdsl.SpatError) as caught:
        torch.func.vmap(two_layers())(torch.randn(3, 1, 8, 32))
    assert caught.value.code == "SP349"


@pytest.mark.parametrize(
    ("dim", "heads", "pattern", "given", "code"),
    [
        (30, 4, "causal", {}, "SP343"),
        (32, 4, "causal", {"groups": 3}, "SP343"),
        (32, 4, "streamin", {}, "SP601"),
        (32, 4, spdsl.compile("streaming"), {"window": 3}, "SP330"),
    ],
)
def test_refused(dim: int, heads: int, pattern: object, given: dict[str, int], code: str) -> None:
    with pytest.raises(spdsl.SpatError) as caught:
        SelfAttention(dim, heads, pattern, **given)
    assert caught.value.code == code


@pytest.mark.parametrize("name", ["flex", "language", "models", "nn"])
def test_modules_need_no_import(name: str) -> None:
    assert spdsl.__getattr__(name).__name__ == f"spdsl.{name}"
    assert name in dir(spdsl)
