"""What counts as affine, what becomes a parameter, and how the refusal reads."""

from __future__ import annotations

import subprocess
import sys

import pytest

from spdsl.analysis.affine import NotAffineError, abstract
from spdsl.analysis.relation import tile_relation
from spdsl.analysis.tiles import ListWalk, SlotWalk
from spdsl.analysis.wording import describe
from spdsl.semantics.nodes import Apply, Const, Expr, Noise, Reduce, Top
from tests.analysis.build import Term, apply, b, causal, g, h, k, load, n, nq, q, q_start, where
from tests.runtime.build import table


def reason(keep: Term) -> str:
    relation = tile_relation(keep.expr, block_q=64, block_k=64, shape="square", heads=4, groups=2)
    lists = [walk for walk in (relation.by_query, relation.by_key) if isinstance(walk, ListWalk)]
    assert lists[0] == lists[-1]
    culprit = lists[0].culprit
    return lists[0].reason if culprit is None else f"`{describe(culprit)}` {lists[0].reason}"


def anything(side: str) -> Term:
    return Term(Reduce(kind="any", side=side, axis="blk", body=causal.expr, dtype="bool"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (causal & load("doc", q).eq(load("doc", k)), "`doc[q]` is read from a table at every position"),
        (causal & apply("is_pow2", q - k, dtype="bool"), "`is_pow2(q - k)` is not linear in the positions"),
        (q * k < 100, "`q * k` multiplies two values that are not constants"),
        (k * load("rate", b) < q, "`k * rate[b]` multiplies two values that are not constants"),
        (q // load("size", b) < 3, "`q // size[b]` divides by a value that is not a constant"),
        (q % 0 < 3, "`q % 0` divides by a value that is not a constant"),
        (anything("q"), "`any(k <= q, per = q.blk)` is computed from the inputs or drawn at random"),
        (apply("lt", Term(Noise(seed=Const(value=1), per=(q.expr,))), Term(Const(value=0.5)), dtype="bool"), "`noise("),
        (
            Term(Top(value=q.expr, only=causal.expr, count=Const(value=3), side="k", axis=None)),
            "`q |> only(k <= q) |> top(3)` is",
        ),
    ],
)
def test_reasons_name_the_culprit(keep: Term, said: str) -> None:
    assert said in reason(keep)


@pytest.mark.parametrize(
    "keep",
    [
        k < load("prefix", b),
        causal & (load("wide", g, dtype="bool") | (q - k < 64)),
        q - k < h * load("rate", b),
        q - k < apply("bitlen", n) * 16,
        q - k < where(h % 2 < 1, 64, 128),
        where(load("wide", g, dtype="bool"), causal, q - k < 64),
        apply("is_pow2", h, dtype="bool").eq(causal),
    ],
)
def test_program_constants_are_parameters(keep: Term) -> None:
    relation = tile_relation(keep.expr, block_q=64, block_k=64, shape="offset", heads=4, groups=2)
    assert isinstance(relation.by_query, SlotWalk)
    assert isinstance(relation.by_key, SlotWalk)


def test_equal_loads_share_a_parameter() -> None:
    keep = (k < load("prefix", b)) | (q < load("prefix", b)) | (q - k < load("prefix", b + 1))
    _, symbols = abstract([keep.expr], shape="offset", heads=1, groups=1)
    assert sorted(describe(expr) for _, expr in symbols.meaning) == ["b", "prefix[b + 1]", "prefix[b]"] or sorted(
        describe(expr) for _, expr in symbols.meaning
    ) == ["prefix[b + 1]", "prefix[b]"]


def test_square_shapes_have_one_length() -> None:
    _, symbols = abstract([(q - q_start + nq < n).expr], shape="square", heads=1, groups=1)
    assert symbols.names == ("n",)


def test_over_keeps_what_it_can() -> None:
    doc = load("doc", q).eq(load("doc", k))
    (grown,), _ = abstract([(causal & doc).expr], shape="square", heads=1, groups=1, over=True)
    assert grown == (causal & True).expr
    (grown,), _ = abstract([(~(causal & ~doc)).expr], shape="square", heads=1, groups=1, over=True)
    assert grown == (~(causal & ~Term(Const(value=True)))).expr
    with pytest.raises(NotAffineError):
        abstract([(causal & doc).expr], shape="square", heads=1, groups=1)


@pytest.mark.parametrize(
    ("term", "text"),
    [
        (q - (k - 1), "q - (k - 1)"),
        ((q - k) - 1, "q - k - 1"),
        ((q + k) * 2, "(q + k) * 2"),
        (~(causal | (q < 3)), "not (k <= q or q < 3)"),
        (-(q + 1), "-(q + 1)"),
        (where(causal, q, 3), "(if k <= q then q else 3)"),
        (load("f", q // 2, h), "f[q // 2, h]"),
        (Term(Const(value=True)), "true"),
    ],
)
def test_wording(term: Term, text: str) -> None:
    assert describe(term.expr) == text


def test_wording_is_cut() -> None:
    expr: Expr = q.expr
    for _ in range(40):
        expr = Apply(op="add", args=(expr, k.expr), dtype="int")
    assert len(describe(expr)) == 60


def test_light_modules_do_not_import_isl() -> None:
    light = "tiles plans wording"
    code = "import sys\n" + "".join(f"import spdsl.analysis.{name}\n" for name in light.split())
    code += "assert not {'islpy', 'numpy', 'torch', 'sympy'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_promise_is_advised() -> None:
    for declared, said in ((False, "is read from a table at every position and not declared `sorted`"), (True, None)):
        tables = (table("doc", "int", "token", sorted=declared),)
        keep = causal & load("doc", q).eq(load("doc", k))
        relation = tile_relation(keep.expr, block_q=64, block_k=64, shape="square", heads=1, groups=1, tables=tables)
        assert (relation.by_query.reason if isinstance(relation.by_query, ListWalk) else None) == said
