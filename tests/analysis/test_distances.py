"""Which predicates stay the same when queries and keys move together, and by how much they must move."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from spdsl.analysis.distances import LARGEST, period_of, with_distances
from spdsl.analysis.plan import plan
from spdsl.analysis.plans import Problem
from spdsl.analysis.tiles import DistanceWalk, ListWalk, SlotWalk, TileRelation
from spdsl.semantics.nodes import Expr, Extent
from tests.analysis.evaluate_rows import evaluate_many
from tests.library.bound import library, program
from tests.runtime.build import CAUSAL, H, K, Q, every, load, op

D = op("sub", Q, K)
LISTED = ListWalk(reason="test")


def blocks(size: int) -> Expr:
    return op("sub", op("floordiv", Q, size), op("floordiv", K, size))


PERIODS = [
    (CAUSAL, 1),
    (op("is_pow2", D), 1),
    (op("lt", op("mul", D, D), op("mul", H, 100)), 1),
    (op("eq", op("mod", op("isqrt", op("abs", D)), 3), 0), 1),
    (op("lt", op("sub", op("mul", Q, 2), K), op("add", op("add", Q, 5), Extent(name="n"))), 1),
    (op("is_pow2", blocks(128)), 128),
    (every(CAUSAL, op("is_pow2", blocks(48))), 48),
    (op("eq", op("mod", K, 7), 3), 7),
    (op("or", op("eq", op("mod", K, 6), 3), op("is_pow2", blocks(4))), 12),
    # the second division needs a multiple of 32, not of 8
    (op("is_pow2", op("sub", op("floordiv", op("floordiv", Q, 4), 8), op("floordiv", op("floordiv", K, 4), 8))), 32),
    (op("is_pow2", op("sub", op("floordiv", op("mul", Q, 3), -12), op("floordiv", K, -4))), 4),
    (op("lt", op("max", op("add", Q, 3), K), op("add", Q, 9)), 1),
    (load("allowed", H, op("min", op("max", D, 0), 99), dtype="bool"), 1),
    (op("lt", op("floordiv", D, op("add", H, 1)), 9), 1),
    (op("where", op("lt", D, 9), op("lt", op("mod", Q, 4), 2), op("is_pow2", D)), 4),
    (op("lt", op("div", D, 3), 2.5), 1),
    # none
    (op("lt", K, 5), None),
    (op("is_pow2", op("add", Q, K)), None),
    (op("eq", op("floordiv", op("mul", Q, 2), 8), op("floordiv", K, 8)), None),
    (op("eq", load("doc", Q), load("doc", K)), None),
    (op("lt", op("mul", Q, K), 9), None),
    (op("lt", op("mul", Q, 0.5), op("mul", K, 0.5)), None),
    (op("lt", op("floordiv", Q, op("add", H, 1)), 9), None),
    (op("lt", op("abs", Q), op("abs", K)), None),
    (op("is_pow2", blocks(LARGEST + 1)), None),
]


@pytest.mark.parametrize(("keep", "period"), PERIODS)
def test_periods(keep: Expr, period: int | None) -> None:
    assert period_of(keep) == period


@pytest.mark.parametrize(("keep", "period"), [(keep, period) for keep, period in PERIODS if period])
def test_nothing_changes_within_a_period(keep: Expr, period: int) -> None:
    tables = {"allowed": np.random.default_rng(1).random((3, 100)) < 0.5}
    for head in (0, 2):
        for offset in (0, 1000):
            q, k = np.arange(300)[:, None] + offset, np.arange(300)[None, :] + offset
            env = {"h": head, "n": 150}
            here = evaluate_many(keep, {**env, "q": q, "k": k}, tables)
            there = evaluate_many(keep, {**env, "q": q + period, "k": k + period}, tables)
            assert (here == there).all()


def relation(shape: str = "square", block_q: int = 64, block_k: int = 32) -> TileRelation:
    return TileRelation(block_q=block_q, block_k=block_k, shape=shape, by_query=LISTED, by_key=LISTED)  # type: ignore[arg-type]


def test_rows_are_told_apart_as_far_as_they_differ() -> None:
    found = with_distances(relation(), op("is_pow2", D))
    assert isinstance(found.by_query, DistanceWalk)
    assert isinstance(found.by_key, DistanceWalk)
    assert (found.by_query.span, found.by_query.classes) == (32, 1)
    assert (found.by_key.span, found.by_key.classes) == (64, 2)
    found = with_distances(relation("offset"), op("is_pow2", D))
    assert isinstance(found.by_query, DistanceWalk)
    assert (found.by_query.span, found.by_query.classes) == (32, 32)
    found = with_distances(relation("offset"), op("is_pow2", blocks(1024)))
    assert isinstance(found.by_query, DistanceWalk)
    assert (found.by_query.span, found.by_query.classes) == (1024, 16)


def test_what_they_depend_on() -> None:
    keep = op("or", load("allowed", H, op("min", op("abs", D), 9), dtype="bool"), op("lt", D, Extent(name="n")))
    found = with_distances(relation(), keep).by_query
    assert isinstance(found, DistanceWalk)
    assert (found.by_head, found.by_batch, found.tables, found.extents) == (True, True, ("allowed",), ("n",))
    alone = with_distances(relation(), CAUSAL).by_query
    assert isinstance(alone, DistanceWalk)
    assert (alone.by_head, alone.by_batch, alone.tables, alone.extents) == (False, False, (), ())


def test_lists_stay_where_nothing_repeats() -> None:
    assert with_distances(relation(), op("lt", K, 5)).by_query == LISTED
    # the period is short enough, but not together with the tiles
    far = with_distances(relation(), op("is_pow2", blocks(4095)))
    assert far.by_query == far.by_key == LISTED


def test_sequences_with_places_of_their_own() -> None:
    found = with_distances(relation("batched"), op("is_pow2", D))
    assert isinstance(found.by_query, DistanceWalk)
    assert found.by_query.grain == 1
    assert found.by_key == LISTED
    # lists for every position would be long, or each sequence would need its own
    assert with_distances(relation("batched"), op("is_pow2", blocks(1024))).by_query == LISTED
    assert with_distances(relation("batched"), op("lt", D, Extent(name="n"))).by_query == LISTED


def test_long_closed_forms_give_way() -> None:
    few, many = (
        replace(relation(), by_query=SlotWalk(slots=(None,) * count), by_key=LISTED, notes=("by query: much",))  # type: ignore[arg-type]
        for count in (4, 5)
    )
    assert isinstance(with_distances(few, CAUSAL).by_query, SlotWalk)
    assert with_distances(few, CAUSAL).notes == few.notes
    assert isinstance(with_distances(many, CAUSAL).by_query, DistanceWalk)
    assert not with_distances(many, CAUSAL).notes


@pytest.mark.parametrize("name", ["power", "log_sparse"])
@pytest.mark.parametrize("target", ["cpu", "sm_80", "sm_90"])
def test_library(name: str, target: str) -> None:
    pattern = library(name, heads=2, groups=1, head_dim=64)
    made = plan(Problem(pattern=pattern, dtype="bf16", value_dim=64, shape="square"), target)
    assert all(isinstance(kernel.walk, DistanceWalk) for kernel in (made.forward, made.dq, made.dkdv))


@pytest.mark.parametrize("name", ["s2", "sliding_window", "strided", "dilated"])
def test_short_closed_forms_stay(name: str) -> None:
    pattern = library(name, heads=8, groups=8, head_dim=64)
    made = plan(Problem(pattern=pattern, dtype="bf16", value_dim=64, shape="square"), "sm_90")
    assert all(isinstance(kernel.walk, SlotWalk) for kernel in (made.forward, made.dq, made.dkdv))


@pytest.mark.parametrize(
    "text",
    [
        "pattern wide() { input window: int[h] in 0..  keep abs(q - k) <= window[h] }",
        "pattern wide() { keep causal and q - k < 64 * (h + 1) }",
        "pattern some() { input full: bool[g]  keep causal and (full[g] or q - k < 256 or k < 64) }",
    ],
)
def test_what_varies_by_head_in_closed_form_stays_so(text: str) -> None:
    pattern = program(text, heads=8, groups=4, head_dim=64)
    tables = tuple((each.name, {"int": "int32", "bool": "bool"}[each.dtype]) for each in pattern.tables)
    made = plan(Problem(pattern=pattern, dtype="bf16", value_dim=64, shape="square", tables=tables), "sm_90")
    assert all(isinstance(kernel.walk, SlotWalk) for kernel in (made.forward, made.dq, made.dkdv))
