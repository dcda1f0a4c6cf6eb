"""Stages against loops over all pairs, written from the definition of reductions and selections."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import spdsl
from spdsl.analysis.plans import Stage, StageAxis
from spdsl.runtime.calls import Call
from spdsl.runtime.coarse import select
from spdsl.runtime.philox import uniform
from spdsl.runtime.stages import materialise
from spdsl.semantics.nodes import (
    Attend,
    Axis,
    BoundPattern,
    Coord,
    Expr,
    Extent,
    Grid,
    Index,
    Noise,
    Reduce,
    Side,
    Table,
    Top,
)
from tests.runtime.build import CAUSAL, H, K, Q, const, every, load, op, plan, table

Kind = Literal["any", "all", "sum", "mean", "min", "max"]
AXES: dict[str, StageAxis] = {
    "h": StageAxis(name="h"),
    "g": StageAxis(name="g"),
    "q": StageAxis(name="q", side="q"),
    "q.blk": StageAxis(name="q.blk", side="q", axis="blk"),
    "k.blk": StageAxis(name="k.blk", side="k", axis="blk"),
    "k.seg": StageAxis(name="k.seg", side="k", axis="seg"),
}
BLOCK = 8


def reduce(kind: Kind, side: Side, axis: str | None, body: Expr) -> Reduce:
    dtype = "bool" if kind in ("any", "all") else "float" if kind == "mean" else "int"
    return Reduce(kind=kind, side=side, axis=axis, body=body, dtype=dtype)


def materialised(
    value: Expr,
    axes: str,
    n: int,
    *,
    tables: tuple[Table, ...] = (),
    grids: tuple[Grid, ...] = (),
    batch: int = 1,
    **given: Any,
) -> torch.Tensor:
    blk = Axis(name="blk", of=(K,), size=(const(BLOCK),), step=None, table=None, into=None, extents=(Extent(name="n"),))
    seg = Axis(name="seg", of=(K,), size=None, step=None, table="doc", into=None, extents=(Extent(name="n"),))
    pattern = BoundPattern(
        name="test",
        parameters=(),
        tables=tables,
        axes=(blk, seg),
        grids=grids,
        attend=Attend(keep=const(True)),
        layer=0,
        heads=4,
        groups=2,
        head_dim=8,
        text="",
    )
    stage = Stage(name="made", value=value, axes=tuple(AXES[name] for name in axes.split()))  # type: ignore[arg-type]
    chosen = plan(const(True), stages=(stage,), tables=tables, pattern=pattern)
    q, k = torch.zeros(batch, 4, n, 8), torch.zeros(batch, 2, n, 8)
    return materialise(Call(plan=chosen, q=q, k=k, v=k, tables=given)).tables["made"]


def blocks(values: NDArray[Any], function: Any) -> NDArray[Any]:
    """A function of each block of the first axis."""
    return np.stack([function(values[start : start + BLOCK]) for start in range(0, len(values), BLOCK)])


FLAG = table("flag", "bool", "token")
DOC = table("doc", "int", "token", sorted=True)


@pytest.mark.parametrize("kind", ["any", "all", "sum", "mean", "min", "max"])
def test_reductions_of_one_side(kind: Kind) -> None:
    n = 37
    flag = np.random.default_rng(0).random(n) < 0.6
    body = load("flag", K, dtype="bool") if kind in ("any", "all") else op("where", load("flag", K, dtype="bool"), K, 3)
    values = flag if kind in ("any", "all") else np.where(flag, np.arange(n), 3)
    found = materialised(reduce(kind, "k", "blk", body), "k.blk", n, tables=(FLAG,), flag=torch.tensor(flag)[None])
    assert found.shape == (1, 5)
    np.testing.assert_allclose(found[0].numpy(), blocks(values, getattr(np, kind)), rtol=1e-6)


def test_a_table_for_each_batch() -> None:
    flag = torch.rand(3, 20) < 0.2
    found = materialised(
        reduce("any", "k", "blk", load("flag", K, dtype="bool")), "k.blk", 20, tables=(FLAG,), batch=3, flag=flag
    )
    assert torch.equal(found, torch.stack([flag[:, :8].any(1), flag[:, 8:16].any(1), flag[:, 16:].any(1)], dim=1))


def test_over_all_keys() -> None:
    n = 20
    found = materialised(reduce("sum", "k", None, CAUSAL), "q", n)
    assert found[0].tolist() == [q + 1 for q in range(n)]
    found = materialised(reduce("max", "k", None, op("mul", K, H)), "h", n)
    assert found[0].tolist() == [h * 19 for h in range(4)]


def test_ragged_segments() -> None:
    doc = torch.tensor([[0, 0, 0, 1, 3, 3, 3, 3, 3, 4]], dtype=torch.int32)
    found = materialised(reduce("sum", "k", "seg", op("add", K, 1)), "k.seg", 10, tables=(DOC,), doc=doc)
    assert found[0].tolist() == [6, 4, 0, 35, 10]


BODIES: dict[str, Expr] = {
    "causal": CAUSAL,
    "diagonals": op("eq", op("mod", op("sub", Q, K), 5), 0),
    "grid": op(
        "le", op("abs", op("sub", Coord(side="q", axis="x"), Coord(side="k", axis="x"))), Coord(side="k", axis="y")
    ),
    "squares": op("lt", op("mul", Q, K), 300),
    "flags": op("or", load("flag", Q, dtype="bool"), op("ge", op("sub", K, Q), 3)),
}


def _dense(name: str, n: int, flag: NDArray[np.bool_]) -> NDArray[np.bool_]:
    q, k = np.arange(n)[:, None], np.arange(n)[None]
    values = {
        "causal": k <= q,
        "diagonals": (q - k) % 5 == 0,
        "grid": np.abs(q % 6 - k % 6) <= k // 6,
        "squares": q * k < 300,
        "flags": flag[q] | (k - q >= 3),
    }
    return np.broadcast_to(values[name], (n, n))


@pytest.mark.parametrize("n", [48, 53])
@pytest.mark.parametrize("name", BODIES)
def test_reductions_of_both_sides(name: str, n: int) -> None:
    """``fill = mean(rule, per = q.blk)``, and the share of key columns that are filled."""
    flag = np.random.default_rng(1).random(n) < 0.2
    body = BODIES[name]
    fill = reduce("mean", "q", "blk", body)
    value = op(
        "gt",
        op("mul", 3, reduce("sum", "k", "blk", op("gt", fill, 0.34))),
        reduce("sum", "k", "blk", op("gt", reduce("sum", "q", "blk", body), 0)),
    )
    grid = Grid(
        name=None, of=Index(name="k"), coordinates=(("y", op("floordiv", Extent(name="n"), 6)), ("x", const(6)))
    )
    found = materialised(value, "q.blk k.blk", n, tables=(FLAG,), grids=(grid,), flag=torch.tensor(flag)[None])
    rule = _dense(name, n, flag)
    columns = blocks(rule, lambda rows: rows.mean(0))
    hits = blocks(rule, lambda rows: rows.sum(0))
    dense = blocks((columns > 0.34).T, lambda part: part.sum(0)).T
    some = blocks((hits > 0).T, lambda part: part.sum(0)).T
    assert found.shape[0] == 1
    np.testing.assert_array_equal(found[0].numpy(), 3 * dense > some)


def test_random_blocks() -> None:
    n, count = 96, 3
    q_block, k_block = Coord(side="q", axis="blk"), Coord(side="k", axis="blk")
    only = op("lt", k_block, q_block)
    value = Top(
        value=Noise(seed=const(7), per=(H, q_block, k_block)), only=only, count=const(count), side="k", axis="blk"
    )
    found = materialised(value, "h q.blk k.blk", n)
    assert found.shape == (1, 4, 12, 12)
    drawn = uniform(7, [torch.arange(4).view(-1, 1, 1), torch.arange(12).view(-1, 1), torch.arange(12)])
    for head in range(4):
        for row in range(12):
            best = sorted(range(row), key=lambda column: (-float(drawn[head, row, column]), column))[:count]
            assert found[0, head, row].nonzero().flatten().tolist() == sorted(best)


def test_selection_of_reductions() -> None:
    """The two blocks of keys with most flags, and among those of equal counts the first."""
    n = 64
    flag = torch.rand(1, n) < 0.3
    many = reduce("sum", "k", "blk", load("flag", K, dtype="bool"))
    value = Top(value=many, only=const(True), count=const(2), side="k", axis="blk")
    found = materialised(value, "k.blk", n, tables=(FLAG,), flag=flag)
    counts = flag.view(8, 8).sum(1).tolist()
    best = sorted(range(8), key=lambda block: (-counts[block], block))[:2]
    assert found[0].nonzero().flatten().tolist() == sorted(best)


@pytest.mark.parametrize("seed", range(20))
def test_selection(seed: int) -> None:
    rng = np.random.default_rng(seed)
    value = torch.tensor(rng.integers(0, 4, (5, 9)).astype(float))
    value[rng.random((5, 9)) < 0.1] = float("nan")
    value[rng.random((5, 9)) < 0.1] = -float("inf")
    only = torch.tensor(rng.random((5, 9)) < 0.7)
    count = torch.tensor(rng.integers(0, 12, (5, 1)))
    found = select(value, only, count, -1)
    for row in range(5):
        there = [c for c in range(9) if only[row, c] and not value[row, c].isnan()]
        best = sorted(there, key=lambda c, row=row: (-float(value[row, c]), c))[: int(count[row])]
        assert found[row].nonzero().flatten().tolist() == sorted(best)


def test_stages_are_kept() -> None:
    flag = torch.rand(1, 24) < 0.5
    stage = Stage(name="made", value=reduce("any", "k", "blk", load("flag", K, dtype="bool")), axes=(AXES["k.blk"],))
    blk = Axis(name="blk", of=(K,), size=(const(BLOCK),), step=None, table=None, into=None, extents=(Extent(name="n"),))
    pattern = BoundPattern(
        name="test",
        parameters=(),
        tables=(FLAG,),
        axes=(blk,),
        grids=(),
        attend=Attend(keep=const(True)),
        layer=0,
        heads=1,
        groups=1,
        head_dim=8,
        text="",
    )
    chosen = plan(every(CAUSAL), stages=(stage,), tables=(FLAG,), pattern=pattern)
    q = torch.zeros(1, 1, 24, 8)
    call = Call(plan=chosen, q=q, k=q, v=q, tables={"flag": flag})
    first = materialise(call).tables["made"]
    assert materialise(call).tables["made"] is first
    flag.logical_not_()
    assert materialise(call).tables["made"] is not first


def test_a_stage_follows_the_table_that_makes_its_axis() -> None:
    """What is kept of one call is no answer where the runs of another are others."""
    text = """pattern program() {
      input piece: int[token] sorted
      input text: bool[token]
      axis pc = token by piece
      keep any(text[k], per = k.pc)
    }"""
    attn = spdsl.compile(spdsl.loads(text), backend="cpu")
    marked = torch.arange(12) == 5
    x = torch.randn(1, 1, 12, 8, generator=torch.Generator().manual_seed(0))
    for size in (2, 3, 4):
        piece = (torch.arange(12) // size).int()
        found, wanted = attn(x, x, x, piece=piece, text=marked), attn.reference(x, x, x, piece=piece, text=marked)
        assert torch.allclose(found.double(), wanted, atol=1e-6)
