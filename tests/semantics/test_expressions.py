"""Folding, intervals and derivatives of random expressions against plain evaluation."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spdsl.diagnostics import SpatError
from spdsl.semantics import build
from spdsl.semantics.bounds import Facts, interval, is_non_negative
from spdsl.semantics.differentiate import derivative
from spdsl.semantics.fold import fold
from spdsl.semantics.nodes import Apply, Attend, BoundPattern, Const, Coord, Expr, Index, Load, Reduce
from spdsl.semantics.rewrite import free_axes, free_indices, substitute, transform, walk
from spdsl.semantics.show import print_expr
from tests.semantics.evaluate import Place, value

Q, K, H = Index(name="q"), Index(name="k"), Index(name="h")
PATTERN = BoundPattern(
    name="p", parameters=(), tables=(), axes=(), grids=(), attend=Attend(keep=build.TRUE), layer=0, heads=4, groups=2,
    head_dim=8, text="",
)  # fmt: skip


def at(expr: Expr, q: int, k: int, h: int = 1, **tables: Any) -> Any:
    return value(expr, Place(pattern=PATTERN, n=50, q=q, k=k, h=h, tables=tables))


def ints(depth: int) -> st.SearchStrategy[Expr]:
    leaves = st.sampled_from([Q, K, H]) | st.integers(-9, 9).map(build.lift)
    if depth == 0:
        return leaves
    inner = ints(depth - 1)
    two = st.tuples(inner, inner)
    divisor = st.sampled_from([-3, -1, 1, 2, 5]).map(build.lift)
    return st.one_of(
        leaves,
        st.tuples(st.sampled_from(["add", "sub", "mul", "min", "max"]), two).map(lambda t: build.apply(t[0], *t[1])),
        st.tuples(st.sampled_from(["floordiv", "mod"]), inner, divisor).map(lambda t: build.apply(*t)),
        st.tuples(st.sampled_from(["neg", "abs", "isqrt", "bitlen"]), inner).map(lambda t: build.apply(*t)),
        st.tuples(bools(depth - 1), two).map(lambda t: build.apply("where", t[0], *t[1])),
    )


def bools(depth: int) -> st.SearchStrategy[Expr]:
    two = st.tuples(ints(depth), ints(depth))
    compare = st.tuples(st.sampled_from(["lt", "le", "gt", "ge", "eq", "ne"]), two).map(
        lambda t: build.apply(t[0], *t[1])
    )
    if depth == 0:
        return compare | st.sampled_from([build.TRUE, build.FALSE])
    inner = bools(depth - 1)
    return st.one_of(
        compare,
        st.tuples(st.sampled_from(["and", "or"]), inner, inner).map(lambda t: build.apply(*t)),
        inner.map(lambda part: build.apply("not", part)),
        inner.map(lambda part: build.apply("and", part, part)),
    )


PLACES = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 3))


@settings(max_examples=300, deadline=None)
@given(ints(3) | bools(3), PLACES)
def test_folding_keeps_the_value(expr: Expr, place: tuple[int, int, int]) -> None:
    folded = fold(expr, facts=Facts(indices={"h": (0, 3)}))
    assert at(folded, *place) == at(expr, *place)
    assert type(at(folded, *place)) is type(at(expr, *place))
    assert fold(folded, facts=Facts(indices={"h": (0, 3)})) == folded


@settings(max_examples=300, deadline=None)
@given(ints(3), PLACES)
def test_intervals_hold_the_value(expr: Expr, place: tuple[int, int, int]) -> None:
    low, high = interval(expr, Facts(indices={"q": (0, 40), "h": (0, 3)}))
    found = at(expr, *place)
    assert low is None or low <= found
    assert high is None or found <= high


@settings(max_examples=100, deadline=None)
@given(ints(3), PLACES)
def test_text_is_read_back_by_python(expr: Expr, place: tuple[int, int, int]) -> None:
    text = print_expr(expr)
    if "if" not in text:
        names = {"q": place[0], "k": place[1], "h": place[2], "isqrt": lambda x: math.isqrt(max(x, 0))}
        assert eval(text, {**names, "bitlen": lambda x: x.bit_length()}) == at(expr, *place)  # noqa: S307


@pytest.mark.parametrize(
    ("expr", "bounds"),
    [
        (build.mod(Q, 8), (0, 7)),
        (build.floordiv(build.add(Q, 3), 4), (0, None)),
        (build.sub(Q, K), (None, None)),
        (build.apply("max", build.sub(Q, K), 0), (0, None)),
        (build.apply("bitlen", build.mod(Q, 8)), (0, 3)),
    ],
)
def test_intervals(expr: Expr, bounds: tuple[int | None, int | None]) -> None:
    assert interval(expr) == bounds
    assert is_non_negative(expr) == (bounds[0] is not None and bounds[0] >= 0)


def test_queries_may_lie_before_the_start() -> None:
    # Padding rows have negative positions; only keys are known to count from 0.
    assert fold(build.apply("ge", Q, 0)) == build.apply("ge", Q, 0)
    assert fold(build.apply("ge", K, 0)) == build.TRUE


# ---------------------------------------------------------------- derivatives

LOAD = Load(table="t", dtype="float", indices=(Q,))
OTHER = Load(table="t", dtype="float", indices=(K,))


@pytest.mark.parametrize(
    "expr",
    [
        build.mul(build.to_float(build.sub(Q, K)), LOAD),
        build.apply("neg", build.mul(LOAD, LOAD)),
        build.apply("exp", build.mul(LOAD, 0.5)),
        build.apply("div", 1.0, build.add(LOAD, OTHER)),
        build.apply("sqrt", build.add(build.apply("abs", LOAD), 1.0)),
        build.apply("log", build.add(build.apply("pow", LOAD, 2.0), 1.0)),
        build.apply("where", build.apply("lt", Q, K), LOAD, build.mul(OTHER, 3.0)),
        build.apply("max", LOAD, build.apply("min", OTHER, build.mul(LOAD, 2.0))),
        build.to_float(build.sub(Q, K)),
    ],
)
@pytest.mark.parametrize(("q", "k"), [(0, 1), (1, 0), (2, 3), (3, 1)])
def test_derivatives(expr: Expr, q: int, k: int) -> None:
    table = [0.7, 1.3, -0.4, 2.1]
    step = 1e-6
    up, down = list(table), list(table)
    up[q] += step
    down[q] -= step
    slope = (at(expr, q, k, t=up) - at(expr, q, k, t=down)) / (2 * step)
    assert at(derivative(expr, LOAD), q, k, t=table) == pytest.approx(slope, abs=1e-5)


def test_derivatives_that_are_refused() -> None:
    with pytest.raises(SpatError):
        derivative(Reduce(kind="mean", side="q", axis=None, body=LOAD, dtype="float"), LOAD)


# ---------------------------------------------------------------- walking


def test_shared_nodes_are_visited_once_and_stay_shared() -> None:
    expr: Expr = Q
    for _ in range(200):
        expr = build.add(expr, expr)
    seen = list(walk(expr))
    assert len(seen) == 201
    changed = transform(expr, lambda node: K if node is Q else None)
    assert isinstance(changed, Apply)
    assert changed.args[0] is changed.args[1]
    assert free_indices(changed) == {"k"}


def test_reductions_bind_their_side() -> None:
    body = build.apply("lt", Q, K)
    coarse = Reduce(kind="any", side="q", axis="blk", body=body, dtype="bool")
    assert free_axes(coarse) == {"q.blk", "k"}
    assert free_indices(Reduce(kind="any", side="q", axis=None, body=body, dtype="bool")) == {"k"}
    moved = substitute(coarse, {Q: Const(value=3), K: Const(value=4)})
    assert isinstance(moved, Reduce)
    assert moved.body == build.apply("lt", Q, 4)
    assert substitute(Coord(side="q", axis="blk"), {Coord(side="q", axis="blk"): Q}) is Q
