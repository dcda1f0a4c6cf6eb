"""Kernels that walk by distance, in Triton's interpreter: output, LSE and gradients against dense attention."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from spdsl.analysis.tiles import DistanceWalk, ListWalk
from spdsl.semantics.nodes import Expr
from tests.interpreter.test_kernels import Case, poison, run
from tests.runtime.build import CAUSAL, G, H, K, Q, dense, every, load, op, table
from tests.runtime.test_distance_lists import repeating

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")

D = op("sub", Q, K)


def blocks(size: int) -> Expr:
    return op("sub", op("floordiv", Q, size), op("floordiv", K, size))


KEEPS = {
    "powers": op("or", op("eq", Q, K), op("is_pow2", D)),
    "both sides": op("is_pow2", op("abs", D)),
    "blocks": every(CAUSAL, op("or", op("lt", blocks(32), 2), op("is_pow2", blocks(32)))),
    "odd blocks": op("or", op("is_pow2", blocks(24)), op("eq", op("mod", op("bitlen", D), 3), 1)),
    "ahead": op("is_pow2", op("neg", blocks(16))),
    "heads": op("is_pow2", op("sub", D, op("mul", H, 20))),
    "groups": every(CAUSAL, op("eq", op("mod", op("isqrt", D), 4), G)),
}


def run_all(keep: Expr, tiles: tuple[int, int], shape: str, nq: int, n: int, q_start: int = 0) -> None:
    chosen = repeating(keep, blocks=tiles, shape=shape, heads=4, groups=2, head_dim=16)
    assert isinstance(chosen.forward.walk, DistanceWalk)
    assert isinstance(chosen.dkdv.walk, DistanceWalk)
    run(Case(plan=chosen, nq=nq, n=n, q_start=q_start))


@pytest.mark.parametrize("name", list(KEEPS))
def test_square(name: str) -> None:
    run_all(KEEPS[name], (32, 16), "square", 90, 90)


@pytest.mark.parametrize("tiles", [(16, 16), (16, 64)], ids=str)
def test_tiles(tiles: tuple[int, int]) -> None:
    run_all(KEEPS["odd blocks"], tiles, "square", 70, 70)


@pytest.mark.parametrize("n", [1, 64, 130])
def test_lengths(n: int) -> None:
    run_all(KEEPS["blocks"], (32, 32), "square", n, n)


@pytest.mark.parametrize(("nq", "n", "q_start"), [(20, 77, 57), (77, 40, -13), (33, 33, 100), (40, 40, -100)])
@pytest.mark.parametrize("name", ["blocks", "heads"])
def test_offset(name: str, nq: int, n: int, q_start: int) -> None:
    run_all(KEEPS[name], (16, 32), "offset", nq, n, q_start)


def test_tables() -> None:
    allowed = torch.rand(2, 4, 60, generator=torch.Generator().manual_seed(3)) < 0.1
    allowed[:, :, 0] = True
    keep = every(CAUSAL, load("allowed", H, op("min", op("max", D, 0), 59), dtype="bool"))
    declared = (table("allowed", "bool", "h", "60"),)
    chosen = repeating(keep, blocks=(32, 16), heads=4, groups=2, head_dim=16, tables=declared)
    assert isinstance(chosen.dkdv.walk, DistanceWalk)
    run(Case(plan=chosen, batch=2, nq=100, n=100, tables={"allowed": allowed}))


@pytest.mark.parametrize("name", ["powers", "blocks", "heads"])
def test_batched(name: str) -> None:
    """Lengths and positions of each sequence; the last stands further from its keys than the lists reach."""
    from spdsl.runtime.calls import Call
    from spdsl.runtime.cpu_engine import CpuEngine
    from spdsl.runtime.lists import lists_for
    from spdsl.runtime.triton_engine import TritonEngine

    chosen = repeating(KEEPS[name], blocks=(16, 32), shape="batched", heads=4, groups=2, head_dim=16)
    chosen = replace(chosen, problem=replace(chosen.problem, value_dim=16))
    assert isinstance(chosen.forward.walk, DistanceWalk)
    assert isinstance(chosen.dkdv.walk, ListWalk)
    torch.manual_seed(1)
    q, k, v = torch.randn(5, 4, 20, 16), torch.randn(5, 2, 90, 16), torch.randn(5, 2, 90, 16)
    places = torch.tensor([[50, 0, 70], [-7, 10, 40], [33, 5, 53], [0, 0, 0], [2040, 2, 80]], dtype=torch.int32)
    call = lists_for(Call(plan=chosen, q=q, k=k, v=v, places=places), ("forward", "dq", "dkdv"))
    d_out = torch.randn(q.shape)
    for engine in (TritonEngine(), CpuEngine()):
        poison()
        out, lse = engine.forward(call)
        poison()
        found = engine.backward(call, out, lse, d_out, None, frozenset("qkv"))
        for b, (start, first, length) in enumerate(places.tolist()):
            keys = slice(first, first + length)
            leaves = [x.double().requires_grad_() for x in (q[b : b + 1], k[b : b + 1, :, keys], v[b : b + 1, :, keys])]
            expected, expected_lse = dense(chosen, *leaves, q_start=start)
            torch.testing.assert_close(out[b : b + 1].double(), expected.detach(), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(lse[b : b + 1].double(), expected_lse.detach(), atol=1e-4, rtol=1e-5)
            gradients = torch.autograd.grad((expected * d_out[b : b + 1]).sum(), leaves)
            for mine, true in zip((found.q[b], found.k[b, :, keys], found.v[b, :, keys]), gradients, strict=True):
                torch.testing.assert_close(mine.double(), true[0], atol=1e-5, rtol=1e-4)
