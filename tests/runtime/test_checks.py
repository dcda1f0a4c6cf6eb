"""Checks of calls: each mistake has its code and names its values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from spdsl.diagnostics import SpatError
from spdsl.runtime import values
from spdsl.runtime.calls import Call
from spdsl.runtime.checks import check_call
from spdsl.runtime.deferred import raise_pending
from spdsl.semantics.nodes import Bounds, Expr, Grid, Index, Table
from tests.runtime.build import CAUSAL, H, K, Q, const, every, load, op, plan, table


def call(
    *tables: Table, keep: Expr = CAUSAL, bias: Expr | None = None, batch: int = 2, nq: int = 12, **given: Tensor
) -> Call:
    chosen = plan(keep, bias=bias, tables=tables, heads=4, groups=2, head_dim=8)
    q, k = torch.zeros(batch, 4, nq, 8), torch.zeros(batch, 2, 12, 8)
    return Call(plan=chosen, q=q, k=k, v=k, q_start=12 - nq, tables=given)


DOC = table("doc", "int", "token")
RANGED = replace(DOC, bounds=Bounds(low=0, high=7))
SLOPE = table("slope", "float", "h")
READ_DOC = every(CAUSAL, op("eq", load("doc", Q), load("doc", K)))


def bad(changes: Callable[[Call], Call]) -> Call:
    return changes(call())


MISTAKES: list[tuple[str, str, Call]] = [
    ("SP340", "`q` has 3 dimensions", bad(lambda c: replace(c, q=c.q[0]))),
    ("SP340", "`k` has 12 tokens, but `v` has 11", bad(lambda c: replace(c, v=c.v[:, :, :11]))),
    ("SP341", "`q` is float64", bad(lambda c: replace(c, q=c.q.double()))),
    ("SP341", "`v` is float16, but `q` is float32", bad(lambda c: replace(c, v=c.v.half()))),
    ("SP342", "`k` is on meta, but `q` is on cpu", bad(lambda c: replace(c, k=c.k.to("meta")))),
    ("SP343", "`k` has 2 heads, but `v` has 1", bad(lambda c: replace(c, v=c.v[:, :1]))),
    ("SP343", "`q` has 3 heads, which is no multiple of the 2", bad(lambda c: replace(c, q=c.q[:, :3]))),
    ("SP344", "`k` has head dim 4, but `q` has 8", bad(lambda c: replace(c, k=c.k[..., :4]))),
    ("SP345", "`k` has batch 1, but `q` has batch 2", bad(lambda c: replace(c, k=c.k[:1]))),
    ("SP346", "the input `doc` is missing", call(DOC)),
    ("SP346", "`doc` has 11 elements on axis `token`, but there are 12 keys", call(DOC, doc=torch.zeros(1, 11).int())),
    ("SP346", "`doc` has batch 3, but `q` has batch 2", call(DOC, doc=torch.zeros(3, 12).int())),
    ("SP346", "`doc` has shape [12]", call(DOC, doc=torch.zeros(12).int())),
    ("SP346", "`slope` has 3 elements on axis `h`, but there are 4 heads", call(SLOPE, slope=torch.zeros(1, 3))),
    (
        "SP346",
        "`t` has 4 elements on axis `5`, but the axis has 5",
        call(table("t", "int", "5"), t=torch.zeros(1, 4).int()),
    ),
    ("SP346", "`p` has batch 1, but", call(table("p", "int", "b"), p=torch.zeros(1).int())),
    ("SP347", "`doc` is float32, but is declared int", call(DOC, doc=torch.zeros(1, 12))),
    ("SP347", "`slope` is int64, but is declared float", call(SLOPE, slope=torch.zeros(1, 4).long())),
    ("SP348", "`doc` is on meta, but `q` is on cpu", call(DOC, doc=torch.zeros(1, 12, device="meta").int())),
    (
        "SP350",
        "of sequence 1 falls from 2 at token 3 to 0",
        call(replace(DOC, sorted=True), doc=torch.tensor([[0] * 12, [0, 1, 2, 2, 0] + [5] * 7])),
    ),
    ("SP351", "`doc` is 9 at [0, 11], but must be in 0..7", call(RANGED, doc=torch.tensor([[0] * 11 + [9]]))),
    (
        "SP320",
        "`lean` is read outside of its axis `5`, which has 5 elements",
        call(table("lean", "float", "5"), bias=load("lean", op("sub", Q, K), dtype="float"), lean=torch.zeros(1, 5)),
    ),
    (
        "SP320",
        "`doc` is read outside of its axis `token`",
        call(DOC, keep=op("gt", load("doc", op("add", K, 1)), 0), doc=torch.zeros(1, 12).int()),
    ),
    (
        "SP320",
        "`tree` is read outside of its axis `6`",
        call(
            table("tree", "bool", "6", "6"),
            keep=every(CAUSAL, load("tree", Q, op("floordiv", K, 2), dtype="bool")),
            tree=torch.ones(1, 6, 6).bool(),
        ),
    ),
]


@pytest.mark.parametrize(("code", "message", "given"), MISTAKES, ids=[each[1] for each in MISTAKES])
def test_mistakes_have_a_code_and_values(code: str, message: str, given: Call) -> None:
    with pytest.raises(SpatError) as found:
        check_call(given)
    assert found.value.code == code
    assert message in found.value.message
    assert found.value.help


def test_a_grid_covers_the_keys() -> None:
    given = call()
    grid = Grid(name=None, of=Index(name="k"), coordinates=(("y", const(3)), ("x", const(5))))
    pattern = replace(given.plan.problem.pattern, grids=(grid,))
    given = replace(given, plan=replace(given.plan, problem=replace(given.plan.problem, pattern=pattern)))
    with pytest.raises(SpatError, match=r"the grid \(y: 3, x: 5\) has 15 positions, but there are 12 keys") as found:
        check_call(given)
    assert found.value.code == "SP324"


FINE = [
    call(),
    call(nq=3),
    call(DOC, keep=READ_DOC, doc=torch.zeros(1, 12).int()),
    call(DOC, keep=READ_DOC, doc=torch.zeros(2, 12).long()),
    call(replace(RANGED, sorted=True), keep=READ_DOC, doc=torch.arange(12)[None] // 2),
    call(table("a", "float", "q"), bias=load("a", Q, dtype="float"), nq=3, a=torch.zeros(1, 3)),
    call(
        table("lean", "float", "h", "5"),
        keep=every(CAUSAL, op("lt", op("sub", Q, K), 5)),
        bias=load("lean", H, op("sub", Q, K), dtype="float"),
        lean=torch.zeros(1, 4, 5),
    ),
    call(
        table("tree", "bool", "6", "6"),
        keep=every(op("lt", Q, 6), op("lt", K, 6), load("tree", Q, K, dtype="bool")),
        tree=torch.ones(1, 6, 6).bool(),
    ),
]


@pytest.mark.parametrize("given", FINE)
def test_right_calls_pass(given: Call) -> None:
    check_call(given)
    check_call(given)
    raise_pending()


def test_a_table_that_changes_is_checked_again() -> None:
    doc = torch.zeros(1, 12, dtype=torch.int32)
    given = call(RANGED, keep=READ_DOC, doc=doc)
    check_call(given)
    doc[0, 4] = 8
    with pytest.raises(SpatError, match="`doc` is 8 at"):
        check_call(given)


def test_pairs_are_not_looked_at_where_indices_stay_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    def looked(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(values, "tile_bounds", looked)
    doc = torch.zeros(1, 12, dtype=torch.int32)
    check_call(call(DOC, keep=READ_DOC, doc=doc))
    with pytest.raises(AssertionError):
        check_call(call(DOC, keep=every(CAUSAL, op("eq", load("doc", op("add", Q, 1)), 0)), doc=doc))
