"""The fused backward kernel against the separate ones: all kinds of walks, ragged sizes, groups of heads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import spdsl
from tests.library.compare import relative_error

pytestmark = pytest.mark.gpu

Inputs = Callable[[int, int], dict[str, Tensor]]
SIZES = ((1, 4, 4, 1024, 1024), (2, 4, 2, 1000, 1000), (1, 4, 1, 333, 777), (1, 2, 2, 65, 65))

PATTERNS: dict[str, tuple[dict[str, object], Inputs]] = {
    "full": ({}, lambda batch, n: {}),
    "causal": ({}, lambda batch, n: {}),
    "sliding_window": ({"window": 100}, lambda batch, n: {}),
    "streaming": ({"sinks": 64, "window": 256}, lambda batch, n: {}),
    "s2": ({}, lambda batch, n: {}),
    "strided": ({}, lambda batch, n: {}),
    "power": ({"block": 64}, lambda batch, n: {}),
    "log_sparse": ({}, lambda batch, n: {}),
    "dilated": ({"span": 400}, lambda batch, n: {}),
    "bigbird": ({}, lambda batch, n: {}),
    "documents": ({}, lambda batch, n: {"doc": torch.arange(n, device="cuda") // 97}),
    "prefix_lm": ({}, lambda batch, n: {"prefix": torch.full((batch,), 50, device="cuda", dtype=torch.int32)}),
    "longformer": ({}, lambda batch, n: {"is_global": torch.arange(n, device="cuda") % 300 == 0}),
}


def gradients(attn: spdsl.Attention, leaves: list[Tensor], inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    out, lse = attn(*leaves, return_lse=True, **inputs)
    weights = torch.randn_like(out), torch.randn_like(lse)
    return torch.autograd.grad((out, lse), leaves, weights)


def leaves_of(size: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    batch, heads, groups, nq, n = size
    torch.manual_seed(0)
    shapes = ((batch, heads, nq, 128), (batch, groups, n, 128), (batch, groups, n, 128))
    return [torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PATTERNS)
def test_equals_the_separate_kernels(name: str, size: tuple[int, ...]) -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the fused kernel is for Hopper")
    parameters, inputs = PATTERNS[name]
    dtype = torch.float16 if size[0] == 2 else torch.bfloat16
    leaves, given = leaves_of(size, dtype), inputs(size[0], size[4])
    fused = gradients(spdsl.compile(name, **parameters), leaves, given)
    separate = gradients(spdsl.compile(name, deterministic=True, **parameters), leaves, given)
    for a, b in zip(fused, separate, strict=True):
        assert relative_error(a, b.double()) < 2e-3


def test_repeats_bitwise_when_asked() -> None:
    leaves = leaves_of((1, 4, 2, 1500, 1500), torch.bfloat16)
    attn = spdsl.compile("streaming", deterministic=True)
    for a, b in zip(gradients(attn, leaves, {}), gradients(attn, leaves, {}), strict=True):
        assert torch.equal(a, b)
    torch.use_deterministic_algorithms(True)
    try:
        again = gradients(spdsl.compile("streaming"), leaves, {})
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(gradients(attn, leaves, {}), again, strict=True):
        assert torch.equal(a, b)


def test_is_what_runs_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    from spdsl.runtime.launch import Loaded

    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the fused kernel is for Hopper")
    ran: list[str] = []
    start = Loaded.launch

    def launch(self: Loaded, name: str, *rest: object) -> None:
        ran.append(name)
        start(self, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Loaded, "launch", launch)
    leaves = leaves_of(SIZES[0], torch.bfloat16)
    gradients(spdsl.compile("causal"), leaves, {})
    assert "fused" in ran
    ran.clear()
    gradients(spdsl.compile("causal", deterministic=True), leaves, {})
    assert "fused" not in ran


@pytest.mark.parametrize("n", [100, 128, 300])
def test_weights_of_keys_that_do_not_exist(n: int) -> None:
    """Where all logits are far below zero those of keys past the end, which are zeros, would be infinite."""
    leaves = leaves_of((1, 2, 2, n, n), torch.float16)
    with torch.no_grad():
        leaves[0].add_(4.0)
        leaves[1].sub_(4.0)
    fused = gradients(spdsl.compile("full"), leaves, {})
    separate = gradients(spdsl.compile("full", deterministic=True), leaves, {})
    for a, b in zip(fused, separate, strict=True):
        assert relative_error(a, b.double()) < 2e-3
