"""Keys at set distances chosen in their order, and spans around them, by kernels in Triton's interpreter.

Run with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

import spdsl
from spdsl.pipeline import bound
from spdsl.runtime import graphs, stretches, ways
from spdsl.runtime.inputs import arrays_of
from spdsl.runtime.plain import start_given
from spdsl.runtime.ranking import in_order

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")


def tensors(batch: int, heads: int, groups: int, n: int, nq: int) -> list[Tensor]:
    """Queries, keys, values, and queries that search."""
    generator = torch.Generator().manual_seed(n)
    shapes = (batch, heads, nq), (batch, groups, n), (batch, groups, n), (batch, heads, nq)
    return [torch.randn(*shape, 16, generator=generator).requires_grad_() for shape in shapes]


@pytest.mark.parametrize(
    ("batch", "heads", "groups", "n", "nq", "parameters"),
    [
        (1, 2, 1, 40, 40, {"local": 8}),
        (2, 1, 1, 66, 13, {"local": 3, "ahead": 0.7, "picks": 2}),
        pytest.param(2, 4, 2, 300, 131, {"local": 20, "picks": 5, "back": 0.4}, marks=pytest.mark.slow),
    ],
)
def test_output_and_gradients(
    batch: int, heads: int, groups: int, n: int, nq: int, parameters: dict[str, object]
) -> None:
    given = tensors(batch, heads, groups, n, nq)
    attn = spdsl.compile("superlinear", backend="triton", **parameters)  # type: ignore[arg-type]
    results = []
    for call in (attn, attn.reference):
        out = call(*given[:3], Q1=given[3])
        assert isinstance(out, Tensor)
        results.append((out, *torch.autograd.grad(out.square().sum(), given)))
    for found, wanted in zip(*results, strict=True):
        assert torch.allclose(found.double(), wanted.double(), atol=2e-5)


def test_members_of_all_heads_need_no_second_axis_of_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which a GPU has 65,535: as many heads and members there are in a large batch."""
    grids = list[object]()

    def start(kernel: Any, grid: tuple[int, int, int], *given: Any) -> None:
        grids.append(grid)
        start_given(kernel, grid, *given)

    monkeypatch.setattr(stretches, "start_given", start)
    *given, search = (each.detach() for each in tensors(2, 2, 1, 20, 20))
    attn = spdsl.compile("superlinear", backend="triton", local=3, picks=2)
    found, wanted = (call(*given, Q1=search) for call in (attn, attn.reference))
    assert grids == [(2 * 2 * 2, 1, 1)]
    assert isinstance(found, Tensor)
    assert isinstance(wanted, Tensor)
    assert torch.allclose(found, wanted.float(), atol=2e-5)


@pytest.mark.slow
def test_steps_that_cannot_keep_all_that_is_common(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls repeat their steps however large the intervals are that all have in common."""
    monkeypatch.setattr(ways, "KEPT", 1 << 9)
    attn = spdsl.compile("superlinear", local=8, picks=2, backend="triton")
    found = []
    for _ in range(3):
        given = tensors(1, 1, 1, 40, 40)
        out = attn(*given[:3], Q1=given[3])
        assert isinstance(out, Tensor)
        found.append((out, *torch.autograd.grad(out.square().sum(), given)))
    (kind,) = attn._direct._whole.values()
    assert kind.ways is not None
    assert kind.ways[0].nbytes <= 1 << 10  # what both hold counts twice
    for first, last in zip(found[0], found[2], strict=True):
        assert torch.equal(first, last)


@pytest.mark.parametrize("common", ["q % 4 == 0", "not q % 4 == 0"])
def test_a_condition_on_queries_beside_a_span(common: str) -> None:
    """What is in common to all members and no comparison is left out of their own keys."""
    text = f"""pattern program(local: int in 1..) {{
  input Q1: float[h, q, d]
  let stripe = (q - k) % 5 == 0 and q - k >= local
  let found = score(Q1, K, scale = 1.0) |> only(stripe)
  let anchor = found |> top(2, rank = a)
  let place = k |> only(anchor) |> max(over = k)
  let worth = found |> only(anchor) |> max(over = k) |> softmax(over = a)
  let spans = attend {{ keep causal and (place - 3 <= k <= place or {common}) }}
  return sum(worth * spans, over = a)
}}"""
    q, k, v, search = (each.detach() for each in tensors(1, 2, 1, 30, 30))
    attn = spdsl.compile(spdsl.loads(text), local=6, backend="triton")
    assert torch.allclose(attn(q, k, v, Q1=search), attn.reference(q, k, v, Q1=search).float(), atol=2e-5)


def test_nothing_is_as_large_as_all_pairs() -> None:
    """The candidates are asked for alone, and members attend together."""
    seen: list[int] = []

    class Watching(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            seen.extend(each.untyped_storage().nbytes() for each in (result,) if isinstance(each, Tensor))
            return result

    attn = spdsl.compile("superlinear", local=15, backend="triton")
    q, k, v, search = (each.detach() for each in tensors(1, 1, 1, 120, 120))
    with Watching(), torch.no_grad():
        attn(q, k, v, Q1=search)
    assert max(seen) < 120 * 120 * 4


@pytest.mark.parametrize("picks", [3, 6])
def test_the_best_at_distances(picks: int) -> None:
    """In their order: ties go to the smaller key, a NaN is absent, and there may be fewer than are asked for."""
    from spdsl.runtime.stripes import placed

    attn = spdsl.compile("superlinear", picks=picks, local=2, backend="triton")
    pattern = bound(attn._key, 1, 1, 16)
    # Whole numbers: many scores are equal.
    generator = torch.Generator().manual_seed(4)
    q, k, search = (torch.randint(-1, 2, (1, 1, 90, 16), generator=generator).float() for _ in range(3))
    k[:, :, ::7] = torch.nan
    k[:, :, ::5], search[..., 0] = torch.inf, search[..., 0].abs() + 1
    call = graphs.Inputs(q=q, k=k, v=k, tables={"Q1": search[0]}, q_start=0, kernels=True)
    arrays = arrays_of(pattern, call, grad=False)
    found = placed(arrays, "stage_1")
    assert found is not None
    line = torch.arange(90)
    distance = line[:, None] - line
    stripe = ((distance + 1).clamp(min=0).double().sqrt() % 1 == 0) & (distance >= 2)
    wanted = in_order(search @ k.transpose(2, 3), stripe.expand(1, 1, 90, 90), None, picks)
    keys = torch.where(wanted.any(-1), wanted.int().argmax(-1), -1).permute(1, 2, 0, 3)
    assert torch.equal(found.places, keys.int())
