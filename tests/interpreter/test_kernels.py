"""Generated kernels in Triton's interpreter against dense float64 attention: output, LSE, all gradients.

Run in a process of its own with ``TRITON_INTERPRET=1``: Triton reads it when a kernel is decorated.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

import spdsl
from spdsl.analysis.plans import Plan, Precision, TableGradient
from spdsl.analysis.tiles import ListWalk
from spdsl.runtime.calls import DTYPES, Call
from spdsl.runtime.lists import lists_for
from spdsl.semantics.nodes import Const, Expr
from tests.interpreter import walks
from tests.interpreter.walks import BLOCK_K, BLOCK_Q, Walks
from tests.runtime.build import CAUSAL, B, G, H, K, Q, dense, error, every, load, op, plan, table, window

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")

TOLERANCE = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 1e-2}
LISTS = (ListWalk(reason="test"), ListWalk(reason="test"))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A plan and the sizes of a call."""

    plan: Plan
    batch: int = 1
    nq: int = 77
    n: int = 77
    value_dim: int = 16
    dtype: Precision = "fp32"
    q_start: int = 0
    tables: dict[str, Tensor] = field(default_factory=dict)


def make(
    keep: Expr, tiles: Walks | None = None, *, heads: int = 2, groups: int = 1, dim: int = 16, blocks=None, **rest
) -> Plan:  # type: ignore[no-untyped-def]
    return plan(
        keep,
        walks=tiles or LISTS,
        blocks=blocks or (BLOCK_Q, BLOCK_K),
        heads=heads,
        groups=groups,
        head_dim=dim,
        **rest,
    )


def poison() -> None:
    """Fill memory that is given back with NaN, so that what a kernel does not write shows."""
    held = [torch.full((size,), torch.nan) for size in (1 << 8, 1 << 10, 1 << 12, 1 << 14, 1 << 16) for _ in range(4)]
    del held


def run(case: Case) -> None:
    from spdsl.runtime.triton_engine import TritonEngine

    problem = case.plan.problem
    pattern = problem.pattern
    chosen = replace(case.plan, problem=replace(problem, dtype=case.dtype, value_dim=case.value_dim))
    torch.manual_seed(1)
    dtype = DTYPES[case.dtype]
    q = torch.randn(case.batch, case.nq, pattern.heads, pattern.head_dim, dtype=dtype).transpose(1, 2)
    k = torch.randn(case.batch, pattern.groups, case.n, pattern.head_dim, dtype=dtype)
    v = torch.randn(case.batch, pattern.groups, case.n, case.value_dim + 3, dtype=dtype)[..., : case.value_dim]
    call = lists_for(
        Call(plan=chosen, q=q, k=k, v=v, q_start=case.q_start, tables=case.tables), ("forward", "dq", "dkdv")
    )
    engine = TritonEngine()
    poison()
    out, lse = engine.forward(call)

    floats = {name: x.double().requires_grad_() for name, x in case.tables.items() if x.is_floating_point()}
    leaves = [x.double().requires_grad_() for x in (q, k, v)]
    expected, expected_lse = dense(chosen, *leaves, q_start=case.q_start, tables=case.tables | floats)
    tolerance = TOLERANCE[case.dtype]
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    assert error(out, expected) <= tolerance
    torch.testing.assert_close(lse.double(), expected_lse.detach(), atol=1e-4, rtol=1e-5)

    d_out, d_lse = torch.randn(out.shape).to(dtype), torch.randn(lse.shape)
    d_lse = d_lse.masked_fill(expected_lse == -torch.inf, torch.nan)
    names = frozenset({"q", "k", "v", *(gradient.table for gradient in chosen.gradients)})
    poison()
    found = engine.backward(call, out, lse, d_out, d_lse, names)
    empty = expected_lse == -torch.inf
    loss = (expected * d_out.double()).sum() + (
        expected_lse.masked_fill(empty, 0.0) * d_lse.masked_fill(empty, 0.0)
    ).sum()
    wanted = [floats[name] for name in found.tables]
    gradients = torch.autograd.grad(loss, [*leaves, *wanted], allow_unused=True)
    for mine, true in zip([found.q, found.k, found.v, *found.tables.values()], gradients, strict=True):
        assert mine is not None
        assert mine.shape == (true if true is not None else mine).shape
        assert error(mine, torch.zeros_like(mine).double() if true is None else true) <= 2 * tolerance


# ---------------------------------------------------------------- walks


@pytest.mark.parametrize("n", [1, 31, 32, 77])
def test_causal(n: int) -> None:
    run(Case(plan=make(CAUSAL, walks.causal(), heads=4, groups=2), batch=2, nq=n, n=n))


def test_half_precision() -> None:
    run(Case(plan=make(CAUSAL, walks.causal()), dtype="fp16"))


def test_the_interpreter_has_no_bfloat16() -> None:
    """It would multiply the bits as ints; that type is left to GPUs, and said so rather than computed wrongly."""
    q, k, v = torch.randn(3, 1, 2, 20, 16).bfloat16()
    for name in ("causal", "minference_blocks"):
        with pytest.raises(spdsl.SpatError) as caught:
            spdsl.compile(name, backend="triton")(q, k, v)
        assert caught.value.code == "SP310"


@pytest.mark.parametrize(("dim", "value_dim"), [(8, 40), (40, 16), (64, 24)])
def test_head_dims(dim: int, value_dim: int) -> None:
    run(Case(plan=make(CAUSAL, walks.causal(), dim=dim), value_dim=value_dim, nq=50, n=50))


def test_everything() -> None:
    run(Case(plan=make(Const(value=True), walks.everything(), heads=1, groups=1)))


@pytest.mark.parametrize("size", [1, 20, 50])
def test_window(size: int) -> None:
    run(Case(plan=make(window(size), walks.window(size)), nq=130, n=130))


def test_two_runs() -> None:
    keep = every(CAUSAL, op("or", op("lt", op("sub", Q, K), 20), op("lt", K, 5)))
    run(Case(plan=make(keep, walks.streaming(20, 5)), nq=130, n=130))


@pytest.mark.parametrize(("step", "run_length"), [(4, 1), (5, 2)])
def test_lattice(step: int, run_length: int) -> None:
    tiles = op("sub", op("floordiv", Q, 16), op("floordiv", K, 16))
    keep = every(op("le", op("floordiv", K, 16), op("floordiv", Q, 16)), op("lt", op("mod", tiles, step), run_length))
    run(Case(plan=make(keep, walks.lattice(step, run_length), blocks=(16, 16)), nq=200, n=200))


def test_filter() -> None:
    distance = op("sub", op("floordiv", Q, 32), op("floordiv", K, 16))
    keep = op("is_pow2", distance)
    chosen = op("is_pow2", op("sub", walks.I, walks.J))
    by_query, by_key = (replace(walk, slots=(replace(walk.slots[0], filter=chosen),)) for walk in walks.masked())
    run(Case(plan=make(keep, (by_query, by_key)), nq=130, n=130))


def test_lists() -> None:
    run(Case(plan=make(window(40), heads=4, groups=2), batch=2, nq=130, n=130))


@pytest.mark.parametrize(("nq", "n", "q_start"), [(20, 77, 57), (77, 40, -13), (33, 33, 100), (77, 77, -100)])
def test_offset(nq: int, n: int, q_start: int) -> None:
    chosen = make(CAUSAL, walks.causal(walks.START), shape="offset")
    run(Case(plan=chosen, nq=nq, n=n, q_start=q_start))


def test_offset_lists() -> None:
    run(Case(plan=make(CAUSAL, shape="offset"), nq=50, n=77, q_start=20))


# ---------------------------------------------------------------- what a tile computes


def test_softcap_and_negative_scale() -> None:
    run(Case(plan=make(CAUSAL, walks.causal(), softcap=2.0, scale=0.5)))
    run(Case(plan=make(CAUSAL, walks.causal(), scale=-0.5)))


def test_rows_without_keys() -> None:
    run(Case(plan=make(every(CAUSAL, op("ge", K, 40)), walks.masked())))


def test_bias_of_minus_infinity() -> None:
    values = torch.randn(1, 77)
    values[:, :40] = -torch.inf
    bias = load("fade", K, dtype="float")
    run(
        Case(
            plan=make(CAUSAL, walks.causal(), bias=bias, tables=(table("fade", "float", "token"),)),
            tables={"fade": values},
        )
    )


def test_tables() -> None:
    doc = torch.cat([torch.arange(77) // 20, torch.arange(77) // 33]).view(2, 77).int()
    prefix = torch.tensor([5, 30], dtype=torch.int64)
    modes = torch.tensor([[True, False]])
    keep = every(
        op("or", CAUSAL, op("lt", K, load("prefix", B))),
        op("or", op("eq", load("doc", Q), load("doc", K)), load("modes", G, dtype="bool")),
    )
    declared = (table("doc", "int", "token"), table("prefix", "int", "b"), table("modes", "bool", "g"))
    chosen = make(keep, walks.masked(), heads=4, groups=2, tables=declared)
    types = (("doc", "int32"), ("prefix", "int64"), ("modes", "bool"))
    chosen = replace(chosen, problem=replace(chosen.problem, tables=types))
    run(Case(plan=chosen, batch=2, tables={"doc": doc, "prefix": prefix, "modes": modes}))


@pytest.mark.parametrize(
    "value",
    [
        op("floordiv", op("sub", K, Q), 3),
        op("mod", op("sub", K, Q), 3),
        op("mod", op("sub", K, Q), -3),
        op("isqrt", op("mul", Q, 1000003)),
        op("bitlen", op("sub", Q, K)),
        op("pow", op("sub", Q, K), 3),
        op("floor", op("div", op("sub", Q, K), 7)),
        op("ceil", op("sub", op("mul", op("pow", Q, 0.5), op("sqrt", K)), 0.3)),
        op("where", op("is_pow2", Q), op("max", Q, 5), op("min", op("abs", op("sub", K, 9)), 3)),
    ],
    ids=lambda value: value.op,
)
def test_int_operations(value: Expr) -> None:
    keep = op("or", op("eq", op("mod", value, 2), 0), op("eq", Q, K))
    run(Case(plan=make(keep, walks.masked(), heads=1, groups=1), nq=70, n=70))


def test_float_operations() -> None:
    bias = op(
        "sub", op("exp", op("neg", op("pow", 2, op("div", op("neg", op("add", H, 1)), 2)))), op("log", op("add", 1, K))
    )
    run(Case(plan=make(CAUSAL, walks.causal(), bias=bias)))


# ---------------------------------------------------------------- gradients of tables

TRAINED = {
    "none": (("h",), (H,), (2,)),
    "query": (("h", "q"), (H, Q), (2, 77)),
    "key": (("token",), (op("floordiv", K, 3),), (77,)),
    "distance": (("h", "100"), (H, op("min", op("abs", op("sub", Q, K)), 50)), (2, 100)),
    "pair": (("h", "q", "token"), (H, Q, K), (2, 77, 77)),
}


@pytest.mark.parametrize("by", list(TRAINED))
@pytest.mark.parametrize("rows", [1, 2])
def test_bias_gradients(by: str, rows: int) -> None:
    kinds, indices, shape = TRAINED[by]
    bias = op("mul", load("lean", *indices, dtype="float"), op("div", op("add", Q, 1), 50))
    gradient = TableGradient(
        table="lean",
        of="bias",
        factor=op("div", op("add", Q, 1), 50),
        indices=indices,
        by=by,  # type: ignore[arg-type]
    )
    chosen = make(
        window(30), walks.window(30), bias=bias, tables=(table("lean", "float", *kinds),), gradients=(gradient,)
    )
    run(Case(plan=chosen, batch=2, tables={"lean": torch.randn(rows, *shape)}))


def test_distance_gradient_through_a_cap() -> None:
    kinds, indices, shape = TRAINED["distance"]
    load_ = load("lean", *indices, dtype="float")
    gradient = TableGradient(table="lean", of="bias", factor=Const(value=1.0), indices=indices, by="distance")
    chosen = make(
        CAUSAL, walks.causal(walks.START), bias=load_, softcap=3.0, shape="offset", heads=2, groups=2,
        tables=(table("lean", "float", *kinds),), gradients=(gradient,),
    )  # fmt: skip
    run(Case(plan=chosen, nq=30, n=77, q_start=47, tables={"lean": torch.randn(1, *shape)}))


@pytest.mark.parametrize("by", ["none", "query"])
def test_sink_gradients(by: str) -> None:
    kinds, indices, shape = TRAINED[by]
    sink = op("mul", load("rest", *indices, dtype="float"), 2.0)
    gradient = TableGradient(table="rest", of="sink_logit", factor=Const(value=2.0), indices=indices, by=by)  # type: ignore[arg-type]
    keep = every(CAUSAL, op("ge", K, 10))
    chosen = make(
        keep, walks.masked(), sink_logit=sink, tables=(table("rest", "float", *kinds),), gradients=(gradient,)
    )
    run(Case(plan=chosen, batch=2, tables={"rest": torch.randn(1, *shape)}))


# ---------------------------------------------------------------- places


def test_places() -> None:
    """Each sequence has its own first query and its own keys; other keys have no gradient."""
    from spdsl.runtime.triton_engine import TritonEngine

    chosen = make(CAUSAL, walks.causal(walks.START), shape="batched", heads=2, groups=2)
    torch.manual_seed(2)
    q, k, v = torch.randn(3, 2, 20, 16), torch.randn(3, 2, 90, 16), torch.randn(3, 2, 90, 16)
    places = torch.tensor([[50, 7, 70], [-5, 0, 40], [3, 60, 0]], dtype=torch.int32)
    call = Call(plan=chosen, q=q, k=k, v=v, places=places)
    engine = TritonEngine()
    poison()
    out, lse = engine.forward(call)
    d_out, d_lse = torch.randn_like(out), torch.randn_like(lse)
    poison()
    found = engine.backward(call, out, lse, d_out, d_lse, frozenset({"q", "k", "v"}))
    single = replace(chosen, problem=replace(chosen.problem, shape="offset"))
    for b, (start, first, count) in enumerate(places.tolist()):
        keys = slice(first, first + count)
        leaves = [x.double().requires_grad_() for x in (q[b : b + 1], k[b : b + 1, :, keys], v[b : b + 1, :, keys])]
        expected, expected_lse = dense(single, *leaves, q_start=start) if count else (torch.zeros(1, 2, 20, 16), None)
        assert error(out[b], expected[0]) <= 1e-5
        if expected_lse is None:
            assert (lse[b] == -torch.inf).all()
            for gradient in (found.q, found.k, found.v):
                assert gradient is not None
                assert not gradient[b].any()
            continue
        torch.testing.assert_close(lse[b].double(), expected_lse[0].detach(), atol=1e-4, rtol=1e-5)
        finite = expected_lse != -torch.inf
        loss = (expected * d_out[b].double()).sum() + (expected_lse[finite] * d_lse[b : b + 1][finite].double()).sum()
        gradients = torch.autograd.grad(loss, leaves)
        outside = torch.ones(90, dtype=torch.bool)
        outside[keys] = False
        assert error(found.q[b], gradients[0][0]) <= 2e-5  # type: ignore[index]
        for mine, true in zip((found.k, found.v), gradients[1:], strict=True):
            assert error(mine[b][:, keys], true[0]) <= 2e-5  # type: ignore[index]
            assert not mine[b][:, outside].any()  # type: ignore[index]
