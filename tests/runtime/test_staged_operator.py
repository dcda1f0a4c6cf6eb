"""Patterns that select by queries and keys in graphs of torch's compiler, and in exported programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import spdsl
from spdsl import staged
from spdsl.nn import SelfAttention

MOBA = {"block": 8, "picks": 2}
N, HEADS, DIM = 40, 4, 16


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def tensors(n: int = N, *, requires_grad: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, HEADS, n, DIM), (2, 2, n, DIM), (2, 2, n, DIM))
    made = (torch.randn(shape, generator=generator).requires_grad_(requires_grad) for shape in shapes)
    return tuple(made)  # type: ignore[return-value]


def gated() -> tuple[spdsl.Attention, dict[str, Tensor]]:
    """Branches behind a gate that wants a gradient, over pooled keys and a selection."""
    attn = spdsl.compile("nsa", compress=8, stride=4, block=8, picks=2, window=6)
    gate = torch.rand(3, HEADS, N, generator=torch.Generator().manual_seed(1))
    return attn, {"gate": gate.requires_grad_()}


@pytest.mark.parametrize("name", ["moba", "nsa"])
def test_one_graph_with_gradients(name: str) -> None:
    attn, inputs = (spdsl.compile("moba", **MOBA), {}) if name == "moba" else gated()
    leaves = (*tensors(), *inputs.values())

    def loss(q: Tensor, k: Tensor, v: Tensor, *more: Tensor) -> Tensor:
        out = attn(q * 2, k, v, **dict(zip(inputs, more, strict=True)))
        assert isinstance(out, Tensor)
        return torch.nn.functional.gelu(out).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*leaves), loss(*leaves))
    found, expected = (torch.autograd.grad(run(*leaves), leaves) for run in (compiled, loss))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
        assert one.abs().max() > 0


def test_lse_and_places() -> None:
    attn = spdsl.compile("moba", **MOBA)
    q, k, v = tensors()
    start = torch.tensor([0, 5], dtype=torch.int32)

    def run(q: Tensor, k: Tensor, v: Tensor, start: Tensor) -> Any:
        return attn(q, k, v, return_lse=True, k_start=start)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    weights = torch.randn(2, HEADS, N, generator=torch.Generator().manual_seed(2)).abs()
    gradients = []
    for each in (compiled, run):
        out, lse = each(q, k, v, start)
        seen = lse.isfinite()  # queries before the first key have none
        gradients.append(torch.autograd.grad(out.sum() + (lse * weights)[seen].sum(), (q, k, v)))
        torch.testing.assert_close((out, lse), run(q, k, v, start))
    torch.testing.assert_close(*gradients)


def test_two_layers_and_four_lengths() -> None:
    torch.manual_seed(0)
    first, second = (SelfAttention(32, 4, "moba", **MOBA) for _ in range(2))
    model = torch.nn.Sequential(first, torch.nn.GELU(), second)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=True)
    for length in (16, 17, 20, 25):
        x = torch.randn(1, length, 32)
        losses = [run(x).square().sum() for run in (compiled, model)]
        found, expected = (torch.autograd.grad(loss, list(model.parameters())) for loss in losses)
        torch.testing.assert_close(found, expected)
    assert counter.frame_count == 1


@pytest.mark.parametrize("checks", ["test_schema", "test_autograd_registration", "test_faketensor"])
def test_opcheck(checks: str) -> None:
    attn, inputs = gated()
    torch.library.opcheck(
        staged.attend_staged, (*tensors(), list(inputs.values()), None, attn._open_key, 0), test_utils=checks
    )


def test_exported_programs(tmp_path: Any) -> None:
    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = spdsl.compile("moba", **MOBA)

        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self.attn(q, k, v)  # type: ignore[return-value]

    given = tensors(requires_grad=False)
    torch.export.save(torch.export.export(Module(), given), tmp_path / "program.pt2")
    loaded = torch.export.load(tmp_path / "program.pt2").module()
    torch.testing.assert_close(loaded(*given), Module()(*given))


def test_an_lse_that_there_is_not() -> None:
    attn, inputs = gated()
    with pytest.raises(spdsl.SpatError) as caught:
        attn(*tensors(), return_lse=True, **inputs)
    assert caught.value.code == "SP306"


def test_gradients_of_gradients_are_refused() -> None:
    attn = spdsl.compile("moba", **MOBA)
    q, k, v = tensors()
    out, _ = staged.attend_staged(q, k, v, [], None, attn._open_key, 0)
    (grad,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(spdsl.SpatError) as caught:
        torch.autograd.grad(grad.sum(), v)
    assert caught.value.code == "SP349"
