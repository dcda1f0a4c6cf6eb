"""What calls on a GPU promise beside numbers: repeatability, checks that do not wait, strides, sizes, whole graphs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import spdsl
from tests.library.compare import relative_error

pytestmark = pytest.mark.gpu


def tensors(n: int = 1500, d: int = 64, heads: int = 4, groups: int = 2) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = ((1, heads, n, d), (1, groups, n, d), (1, groups, n, d))
    return [torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("name", ["alibi", "documents", "streaming", "bigbird"])
def test_everything_repeats_bitwise(name: str) -> None:
    leaves = tensors()
    inputs: dict[str, Tensor] = {}
    if name == "alibi":
        inputs["slope"] = torch.rand(4, device="cuda", requires_grad=True)
        leaves.append(inputs["slope"])
    if name == "documents":
        inputs["doc"] = torch.arange(1500, device="cuda") // 400
    attn = spdsl.compile(name)

    def once() -> list[Tensor]:
        out, lse = attn(*leaves[:3], return_lse=True, **inputs)
        return [out, lse, *torch.autograd.grad(out.float().square().sum(), leaves)]

    for first, second in zip(once(), once(), strict=True):
        assert torch.equal(first, second)


def test_values_are_checked_without_waiting() -> None:
    q, k, v = (each.detach() for each in tensors(n=300))
    attn = spdsl.compile("documents")
    wrong = torch.arange(300, device="cuda").flip(0).int()
    attn(q, k, v, doc=wrong)
    with pytest.raises(spdsl.SpatError) as caught:
        spdsl.raise_pending()
    assert caught.value.code == "SP350"
    spdsl.raise_pending()


def test_any_strides() -> None:
    q, k, v = (torch.randn(2, 700, heads, 64, device="cuda", dtype=torch.float16) for heads in (4, 2, 2))
    attn = spdsl.compile("sliding_window", window=100)
    turned = [each.transpose(1, 2) for each in (q, k, v)]
    assert torch.equal(attn(*turned), attn(*(each.contiguous() for each in turned)))


def test_more_elements_than_32_bits_count() -> None:
    n, window = 300_000, 64
    q, k, v = (torch.randn(1, 60, n, 128, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    assert q.numel() > 2**31
    out = spdsl.compile("sliding_window", window=window)(q, k, v)
    for row in (0, n // 2, n - 1):
        keys = slice(max(0, row - window + 1), row + 1)
        logits = q[0, -1, row].double() @ k[0, -1, keys].double().T / 128**0.5
        assert relative_error(out[0, -1, row], torch.softmax(logits, -1) @ v[0, -1, keys].double()) < 1e-2


def test_whole_graphs_compile() -> None:
    leaves = tensors(n=512)
    attn = spdsl.compile("streaming", window=100, sinks=4)

    def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.nn.functional.gelu(attn(q * 2, k, v)).float().sum()

    expected = torch.autograd.grad(loss(*leaves), leaves)
    found = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*leaves), leaves)
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) < 2e-2
