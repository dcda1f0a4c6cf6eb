"""The CPU engine against dense float64 attention: output, LSE, all gradients."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from spdsl.analysis.plans import Plan, TableGradient
from spdsl.runtime.calls import Call
from spdsl.runtime.cpu_engine import CpuEngine
from spdsl.semantics.nodes import Const, Expr
from tests.runtime.build import CAUSAL, B, G, H, K, Q, dense, error, every, load, op, plan, table, window

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@dataclass(frozen=True)
class Case:
    plan: Plan
    batch: int = 1
    heads: int = 2
    groups: int = 2
    nq: int = 150
    n: int = 150
    dim: int = 24
    value_dim: int = 24
    q_start: int = 0
    tables: dict[str, Tensor] = field(default_factory=dict)


def _tensors(case: Case, dtype: torch.dtype) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    q = torch.randn(case.batch, case.nq, case.heads, case.dim, dtype=dtype).transpose(1, 2)
    k = torch.randn(case.batch, case.groups, case.n, case.dim, dtype=dtype)
    v = torch.randn(case.batch, case.groups, case.n, case.value_dim, dtype=dtype)
    return q, k, v


def compare(case: Case, dtype: torch.dtype = torch.float32) -> None:
    q, k, v = _tensors(case, dtype)
    engine = CpuEngine()
    call = Call(plan=case.plan, q=q, k=k, v=v, q_start=case.q_start, tables=case.tables)
    out, lse = engine.forward(call)

    floats = {name: x.double().requires_grad_() for name, x in case.tables.items() if x.is_floating_point()}
    leaves = [x.double().requires_grad_() for x in (q, k, v)]
    expected, expected_lse = dense(case.plan, *leaves, q_start=case.q_start, tables=case.tables | floats)
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    assert error(out, expected) <= TOLERANCE[dtype]
    torch.testing.assert_close(lse.double(), expected_lse, atol=1e-4, rtol=1e-5)

    d_out = torch.randn_like(out)
    d_lse = torch.randn_like(lse)
    names = frozenset({"q", "k", "v", *(gradient.table for gradient in case.plan.gradients)})
    found = engine.backward(call, out, lse, d_out, d_lse, names)
    finite = expected_lse.masked_fill(expected_lse == -torch.inf, 0.0)
    loss = (expected * d_out.double()).sum() + (finite * d_lse.double()).sum()
    wanted = [floats[name] for name in found.tables]
    gradients = torch.autograd.grad(loss, [*leaves, *wanted], allow_unused=True)
    results = [found.q, found.k, found.v, *found.tables.values()]
    for mine, true in zip(results, gradients, strict=True):
        assert mine is not None
        assert true is not None
        assert mine.shape == true.shape
        assert error(mine, true) <= 2 * TOLERANCE[dtype]

    again = engine.forward(call)
    assert torch.equal(again[0], out)
    assert torch.equal(again[1], lse)


ALIBI: Expr = op("mul", op("neg", load("slope", H, dtype="float")), op("sub", Q, K))
NEAR = op("le", op("abs", op("sub", Q, K)), 40)


def _gradient(name: str, factor: Expr, *indices: Expr, by: str, of: str = "bias") -> TableGradient:
    return TableGradient(table=name, of=of, factor=factor, indices=indices, by=by)  # type: ignore[arg-type]


def _doc(n: int) -> Tensor:
    return torch.arange(n).div(37, rounding_mode="floor")[None].int()


CASES = {
    "window": Case(plan(window(50), blocks=(32, 32))),
    "causal, unequal tiles": Case(plan(CAUSAL, blocks=(64, 16))),
    "grouped heads, value dim": Case(plan(window(50), blocks=(32, 64)), heads=6, groups=2, batch=2, value_dim=40),
    "single row": Case(plan(CAUSAL), nq=1, n=150, q_start=149),
    "chunk of queries": Case(plan(window(40), blocks=(16, 32), shape="offset"), nq=37, n=150, q_start=113),
    "padding": Case(plan(CAUSAL, blocks=(16, 32), shape="offset"), nq=60, n=30, q_start=-30),
    "more queries than keys": Case(plan(NEAR, blocks=(32, 32)), nq=150, n=61),
    "strided": Case(plan(every(CAUSAL, op("eq", op("mod", op("sub", Q, K), 7), 0)), blocks=(32, 32))),
    "far tiles": Case(plan(every(CAUSAL, op("is_pow2", op("sub", Q, K))), blocks=(16, 16))),
    "by head": Case(
        plan(op("lt", op("abs", op("sub", Q, K)), op("mul", op("add", H, 1), 11)), blocks=(32, 32)), heads=4
    ),
    "by group": Case(plan(op("or", op("eq", G, 0), op("lt", K, 5)), blocks=(32, 32)), heads=4, groups=2),
    "documents": Case(
        plan(
            every(CAUSAL, op("eq", load("doc", Q), load("doc", K))),
            tables=(table("doc", "int", "token"),),
            blocks=(32, 32),
        ),
        tables={"doc": _doc(150)},
        batch=2,
    ),
    "a table for each batch": Case(
        plan(op("lt", K, load("prefix", B)), tables=(table("prefix", "int", "b"),), blocks=(32, 32)),
        tables={"prefix": torch.tensor([3, 0, 150])},
        batch=3,
    ),
    "softcap": Case(plan(window(50), softcap=2.0, scale=0.7, blocks=(32, 32))),
    "alibi": Case(
        plan(
            CAUSAL,
            bias=ALIBI,
            tables=(table("slope", "float", "h"),),
            blocks=(32, 32),
            softcap=3.0,
            gradients=(_gradient("slope", op("neg", op("float", op("sub", Q, K))), H, by="none"),),
        ),
        tables={"slope": torch.rand(1, 4)},
        heads=4,
        groups=2,
        batch=2,
    ),
    "distances": Case(
        plan(
            window(50),
            bias=load("lean", H, op("sub", Q, K), dtype="float"),
            tables=(table("lean", "float", "h", "50"),),
            gradients=(_gradient("lean", Const(value=1), H, op("sub", Q, K), by="distance"),),
            blocks=(32, 16),
        ),
        tables={"lean": torch.randn(2, 2, 50)},
        batch=2,
    ),
    "queries and keys": Case(
        plan(
            CAUSAL,
            bias=op("add", load("a", Q, dtype="float"), op("mul", load("c", K, dtype="float"), 2.0)),
            tables=(table("a", "float", "q"), table("c", "float", "token")),
            shape="offset",
            blocks=(32, 16),
            gradients=(
                _gradient("a", Const(value=1.0), Q, by="query"),
                _gradient("c", Const(value=2.0), K, by="key"),
            ),
        ),
        tables={"a": torch.randn(1, 50), "c": torch.randn(1, 150)},
        nq=50,
        q_start=100,
    ),
    "sinks": Case(
        plan(
            every(window(50), op("ge", Q, 20)),
            sink_logit=load("rest", H, dtype="float"),
            blocks=(32, 32),
            tables=(table("rest", "float", "h"),),
            gradients=(_gradient("rest", Const(value=1), H, by="none", of="sink_logit"),),
        ),
        tables={"rest": torch.randn(1, 2)},
        batch=2,
    ),
    "empty rows": Case(plan(every(CAUSAL, op("ge", Q, 40), op("ne", op("mod", Q, 3), 0)), blocks=(32, 32))),
}


@pytest.mark.parametrize("name", CASES)
def test_like_dense(name: str) -> None:
    compare(CASES[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    compare(CASES["grouped heads, value dim"], dtype)


def test_long_rows_come_in_segments() -> None:
    compare(Case(plan(CAUSAL, blocks=(256, 256)), n=5000, nq=300, q_start=4700, heads=1, groups=1))


def test_nothing_kept() -> None:
    q, k, v = _tensors(Case(plan(CAUSAL)), torch.float32)
    call = Call(plan=plan(op("gt", K, 1000)), q=q, k=k, v=v)
    out, lse = CpuEngine().forward(call)
    assert torch.equal(out, torch.zeros_like(out))
    assert bool((lse == -torch.inf).all())
    found = CpuEngine().backward(call, out, lse, out + 1, None, frozenset("qkv"))
    for gradient in (found.q, found.k, found.v):
        assert gradient is not None
        assert not gradient.any()


def test_only_what_is_wanted() -> None:
    q, k, v = _tensors(Case(plan(CAUSAL)), torch.float32)
    call = Call(plan=plan(CAUSAL), q=q, k=k, v=v)
    out, lse = CpuEngine().forward(call)
    found = CpuEngine().backward(call, out, lse, out, None, frozenset("v"))
    assert found.q is None
    assert found.k is None
    assert found.v is not None
    assert not found.tables


def test_batches_with_places_of_their_own() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(4, 4, 40, 16), torch.randn(4, 2, 90, 16), torch.randn(4, 2, 90, 16)
    places = torch.tensor([[50, 0, 90], [10, 20, 50], [-25, 3, 15], [0, 90, 0]], dtype=torch.int32)
    chosen = plan(window(30), shape="batched", blocks=(16, 32))
    call = Call(plan=chosen, q=q, k=k, v=v, places=places)
    out, lse = CpuEngine().forward(call)
    d_out = torch.randn_like(out)
    found = CpuEngine().backward(call, out, lse, d_out, None, frozenset("qkv"))
    assert found.q is not None
    assert found.k is not None
    assert found.v is not None
    assert not out[3].any()
    assert bool((lse[3] == -torch.inf).all())
    assert not found.k[3].any()
    for b, (q_start, k_start, k_len) in enumerate(places.tolist()[:3]):
        there = slice(k_start, k_start + k_len)
        leaves = [x.double().requires_grad_() for x in (q[b : b + 1], k[b : b + 1, :, there], v[b : b + 1, :, there])]
        expected, expected_lse = dense(chosen, *leaves, q_start=q_start)
        assert error(out[b : b + 1], expected) < 1e-5
        torch.testing.assert_close(lse[b : b + 1].double(), expected_lse, atol=1e-4, rtol=1e-5)
        gradients = torch.autograd.grad((expected * d_out[b : b + 1]).sum(), leaves)
        mine = (found.q[b : b + 1], found.k[b : b + 1, :, there], found.v[b : b + 1, :, there])
        for one, true in zip(mine, gradients, strict=True):
            assert error(one, true) < 2e-5
