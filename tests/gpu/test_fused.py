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
GRIDS: dict[str, tuple[dict[str, object], int]] = {
    "neighborhood_1d": ({"extents": (1000,), "window": (65,)}, 1000),
    "neighborhood_2d": ({"extents": (36, 44), "window": (9, 13)}, 36 * 44),
    "neighborhood_3d": ({"extents": (9, 14, 20), "window": (3, 5, 7)}, 9 * 14 * 20),
}
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


def apart(attn: spdsl.Attention, leaves: list[Tensor], inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Gradients by the separate kernels, which compute what is asked for where that is not all."""
    q, k, v = leaves
    found: list[Tensor] = []
    for given, wanted in (((q, k, v.detach()), [q, k]), ((q.detach(), k.detach(), v), [v])):
        torch.manual_seed(1)
        out, lse = attn(*given, return_lse=True, **inputs)
        weights = torch.randn_like(out), torch.randn_like(lse)
        found += torch.autograd.grad((out, lse), wanted, weights)
    return tuple(found)


def leaves_of(size: tuple[int, ...], dtype: torch.dtype, dims: tuple[int, int] = (128, 128)) -> list[Tensor]:
    batch, heads, groups, nq, n = size
    torch.manual_seed(0)
    shapes = ((batch, heads, nq, dims[0]), (batch, groups, n, dims[0]), (batch, groups, n, dims[1]))
    return [torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True) for shape in shapes]


def check(name: str, size: tuple[int, ...], dims: tuple[int, int]) -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the fused kernel is for Hopper")
    parameters, inputs = PATTERNS[name] if name in PATTERNS else (GRIDS[name][0], PATTERNS["full"][1])
    dtype = torch.float16 if size[0] == 2 else torch.bfloat16
    leaves, given = leaves_of(size, dtype, dims), inputs(size[0], size[4])
    separate = apart(spdsl.compile(name, **parameters), leaves, given)
    ordered = spdsl.compile(name, deterministic=True, **parameters)
    results = [gradients(each, leaves, given) for each in (spdsl.compile(name, **parameters), ordered, ordered)]
    for found in results:
        for a, b in zip(found, separate, strict=True):
            assert relative_error(a, b.double()) < 2e-3
    for a, b in zip(*results[1:], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PATTERNS)
def test_equals_the_separate_kernels(name: str, size: tuple[int, ...]) -> None:
    check(name, size, (128, 128))


@pytest.mark.parametrize("name", PATTERNS)
def test_head_dim_64(name: str) -> None:
    check(name, SIZES[1], (64, 64))


@pytest.mark.parametrize("dims", [(128, 128), (64, 64)])
@pytest.mark.parametrize("name", GRIDS)
def test_boxes(name: str, dims: tuple[int, int]) -> None:
    n = GRIDS[name][1]
    check(name, (2, 4, 2, n, n), dims)


@pytest.mark.parametrize("dims", [(72, 40), (16, 16), (40, 96)])
@pytest.mark.parametrize("name", ["streaming", "bigbird", "dilated"])
def test_other_head_dims(name: str, dims: tuple[int, int]) -> None:
    check(name, SIZES[2], dims)


def test_repeats_bitwise_when_asked() -> None:
    leaves = leaves_of((1, 4, 2, 15000, 15000), torch.bfloat16)
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
    assert {"touched", "ordered"} <= set(ran)
    assert "fused" not in ran
    ran.clear()
    apart(spdsl.compile("causal"), leaves, {})
    assert {"dq", "dkdv"} <= set(ran)


@pytest.mark.parametrize("n", [100, 128, 300])
def test_weights_of_keys_that_do_not_exist(n: int) -> None:
    """Where all logits are far below zero those of keys past the end, which are zeros, would be infinite."""
    leaves = leaves_of((1, 2, 2, n, n), torch.float16)
    with torch.no_grad():
        leaves[0].add_(4.0)
        leaves[1].sub_(4.0)
    fused = gradients(spdsl.compile("full"), leaves, {})
    separate = apart(spdsl.compile("full"), leaves, {})
    for a, b in zip(fused, separate, strict=True):
        assert relative_error(a, b.double()) < 2e-3
