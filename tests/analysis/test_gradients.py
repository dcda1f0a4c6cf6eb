"""How the element that a pair reads is found again when gradients are summed."""

from __future__ import annotations

import pytest
import torch

import spdsl
from spdsl.analysis.gradients import table_gradients
from spdsl.diagnostics import SpatError
from spdsl.semantics.nodes import Const, Expr, Load
from tests.library.compare import relative_error
from tests.runtime.build import K, Q, op


def way(*indices: Expr) -> str:
    load = Load(table="w", dtype="float", indices=indices)
    (found,) = table_gradients((("bias", load),), frozenset({"w"}))
    return found.by


@pytest.mark.parametrize(
    ("indices", "by"),
    [
        ((Const(value=3),), "none"),
        ((op("floordiv", Q, 4),), "query"),
        ((K,), "key"),
        ((op("sub", Q, K),), "distance"),
        ((op("sub", op("add", Q, 1), K),), "distance"),
        ((op("add", op("neg", K), op("add", 5, Q)),), "distance"),
        ((op("min", op("floordiv", op("sub", K, Q), 8), 3),), "distance"),
        ((op("sub", op("add", Q, Q), op("add", K, K)),), "distance"),
        ((Q, K), "pair"),
    ],
)
def test_ways(indices: tuple[Expr, ...], by: str) -> None:
    assert way(*indices) == by


@pytest.mark.parametrize("index", [op("add", Q, K), op("sub", op("add", Q, Q), K), op("mul", Q, K)])
def test_other_indices_are_refused(index: Expr) -> None:
    with pytest.raises(SpatError) as caught:
        way(index)
    assert caught.value.code == "SP402"


def test_the_gradient_of_a_shifted_distance() -> None:
    torch.manual_seed(0)
    attn = spdsl.compile(
        spdsl.loads("pattern p() { input w: float[h, 12]  keep causal  bias w[h, min(q + 1 - k, 11)] }")
    )
    q, k, v = (torch.randn(1, 2, 90, 8) for _ in range(3))
    w = torch.randn(2, 12, requires_grad=True)
    (found,) = torch.autograd.grad(attn(q, k, v, w=w).square().sum(), w)
    (expected,) = torch.autograd.grad(attn.reference(q, k, v, w=w).square().sum(), w)
    assert relative_error(found, expected) < 1e-5
