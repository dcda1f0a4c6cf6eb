"""Changing lengths, windows, sinks, positions and batches: how many kernels Triton would be asked to compile.

Calls go the whole way to the launch, where Triton's own binder says what it would specialise on; nothing is compiled.
"""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import spdsl
from spdsl import prepare
from spdsl.codegen.blocks import Kernel
from spdsl.runtime.calls import Call
from spdsl.runtime.launch import Loaded

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted")

Asked = dict[str, set[tuple[Any, ...]]]
"""By the name of a kernel, what distinguishes the binaries that its launches need."""

RANGES = {
    "sliding_window": {"window": (1, 5000)},
    "streaming": {"window": (1, 5000), "sinks": (0, 300)},
    "head_modes": {"window": (1, 5000), "sinks": (0, 300)},
    "dilated": {"span": (1, 5000)},
    "longformer": {"window": (0, 900)},
    "power": {"local_blocks": (0, 20)},
    "segments": {"window": (1, 5000)},
}

MORE = {"streaming": ("dkdv_combine",), "segments": ("intervals_q128", "intervals_q64", "intervals_k128")}
"""Kernels besides the four that all patterns have."""

FEW = ("longformer",)
"""Where a call of those drawn has so few queries that a forward kernel of its own runs."""

SEGMENTS = """pattern segments(window: int in 1..) {
  input doc: int[token] sorted
  keep causal and doc[q] == doc[k] and q - k < window
}
"""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    backend = make_backend(GPUTarget("cuda", 90, 32))
    found: Asked = defaultdict(set)

    def run(
        self: Loaded, kernel: Kernel, grid: tuple[int, ...], given: dict[str, Any], stages: int, *_: object
    ) -> None:
        function = self._function(kernel)
        bind = create_function_from_signature(function.signature, function.params, backend)
        _, specialised, _ = bind(**given)
        found[kernel.name].add((self.source.digest, kernel.warps, stages, *specialised))

    monkeypatch.setattr(Loaded, "_run", run)
    monkeypatch.setattr(prepare, "choose_backend", lambda asked, device: "triton")
    caches = (prepare._planned, prepare._settled)
    for cache in caches:
        cache.cache_clear()
    yield found
    for cache in caches:
        cache.cache_clear()


def call(chance: random.Random, name: str, values: dict[str, int], *, square: bool, dim: int = 64) -> None:
    """Forward and backward with lengths, positions and a batch drawn by chance."""
    batch, n = chance.randint(1, 3), chance.choice([chance.randint(1, 3000), 128 * chance.randint(1, 20)])
    nq = n if square else chance.randint(1, n)
    places: dict[str, int] = {}
    if not square:
        places = chance.choice([{}, {"q_start": chance.randint(0, 100)}, {"k_start": n // 3, "k_len": n // 2}])
    q = torch.empty(batch, 4, nq, dim, dtype=torch.bfloat16, requires_grad=True)
    k, v = (torch.empty(batch, 2, n, dim, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    inputs: dict[str, Tensor] = {"full": torch.tensor([True, False])} if name == "head_modes" else {}
    if name == "longformer":
        inputs = {"is_global": torch.zeros(n, dtype=torch.bool)}
    if name == "segments":
        inputs = {"doc": torch.arange(n, dtype=torch.int32) // 300}
    pattern = spdsl.loads(SEGMENTS) if name == "segments" else name
    out = spdsl.compile(pattern, **values)(q, k, v, **places, **inputs)
    torch.autograd.grad(out.sum(), (q, k, v))  # type: ignore[union-attr]


@pytest.mark.parametrize("name", RANGES)
def test_thirty_calls(name: str, asked: Asked) -> None:
    chance = random.Random(7)
    for number in range(30):
        values = {each: chance.randint(*ends) for each, ends in RANGES[name].items()}
        call(chance, name, values, square=number % 2 == 0)
    # One where queries and keys are the same positions, and one for all other places.
    expected = dict.fromkeys(("forward", "delta", "dq", "dkdv", *MORE.get(name, ())), 2)
    few = name in FEW
    assert {kernel: len(each) for kernel, each in asked.items()} == expected | {"forward": 3 if few else 2}
    assert prepare._planned.cache_info().misses == (3 if few else 2)


def test_the_fused_backward(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Call, "fuses", lambda self, wanted: self.plan.fused is not None)
    chance = random.Random(5)
    for number in range(30):
        values = {each: chance.randint(*ends) for each, ends in RANGES["streaming"].items()}
        call(chance, "streaming", values, square=number % 2 == 0, dim=128)
    found = {kernel: len(each) for kernel, each in asked.items() if kernel != "fused_combine"}
    assert found.pop("forward_combine", 1) <= 2
    assert found == {"forward": 3, "delta": 2, "fused": 2, "scaled": 2}  # one for few queries


def test_other_parameters_are_constants(asked: Asked) -> None:
    chance = random.Random(3)
    for dilation in (2, 3, 4):
        call(chance, "dilated", {"dilation": dilation}, square=True)
    assert len(asked["forward"]) == 3
