"""Which rows a launch cuts into parts: chosen by length, bounded by the device, the same in every run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from spdsl.analysis.tiles import Interval, ListWalk, SlotWalk
from spdsl.runtime import split
from spdsl.runtime.calls import Call, TileList
from spdsl.semantics.nodes import Extent
from tests.runtime.build import CAUSAL, const, op, plan

CPU = torch.device("cpu")


def call(batch: int = 1, heads: int = 2, groups: int = 2, nq: int = 640, n: int = 640, **more: object) -> Call:
    chosen = plan(CAUSAL, heads=heads, groups=groups, head_dim=16)
    q, k = torch.empty(batch, heads, nq, 16), torch.empty(batch, groups, n, 16)
    return Call(plan=chosen, q=q, k=k, v=k, **more)  # type: ignore[arg-type]


def lists(turns: list[list[int]]) -> TileList:
    """Lists of so many tiles for each head and row, of one batch."""
    counts = torch.tensor([turns])
    end = counts.flatten().cumsum(0).view(counts.shape)
    return TileList(begin=(end - counts).int(), middle=end.int(), end=end.int(), tiles=torch.zeros(0).int())


def test_long_listed_rows_come_first() -> None:
    found = split.order_of(lists([[3, 90, 2, 400, 1], [1, 1, 500, 1, 1]]), 1, 2)
    assert (found.long, found.most) == (2, 500)
    assert found.rows.tolist() == [[[3, 1, 0, 2, 4], [2, 0, 1, 3, 4]]]


def test_heads_of_a_group_count_together() -> None:
    turns = [[3, 90, 2], [3, 90, 2], [3, 2, 90], [3, 2, 90]]
    found = split.order_of(lists(turns), 1, 2)
    assert found.most == 180
    assert found.rows.tolist() == [[[1, 0, 2], [2, 0, 1]]]


@pytest.mark.parametrize("turns", [[[]], [[0, 0, 0]], [[7, 7, 7]]])
def test_rows_that_are_alike_keep_their_order(turns: list[list[int]]) -> None:
    found = split.order_of(lists(turns), 1, 1)
    assert found.long == 0
    assert found.rows.tolist() == [[list(range(len(turns[0])))]]


@pytest.mark.parametrize("turns", [0, 5, 16, 100, 10_000, 1 << 20])
@pytest.mark.parametrize("rows", [0, 1, 3, 16, 17, 1000])
def test_memory_is_bounded_by_the_device(rows: int, turns: int) -> None:
    parts = split.parts_for(rows, turns, split.TURNS, CPU)
    assert 1 <= parts <= max(1, turns // split.TURNS)
    assert parts == 1 or rows * parts <= split.PARTS * split.multiprocessors(CPU)


def walk(low: object, high: object) -> SlotWalk:
    return SlotWalk(slots=(), long=Interval(lo=const(low), hi=const(high)))  # type: ignore[arg-type]


N = Extent(name="n")


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [((0, 2), (0, 2)), ((-3, 1), (0, 1)), ((8, 99), (8, 2)), ((5, 2), (5, 0)), ((-9, -4), (0, 0)), ((99, 120), (10, 0))]
)  # fmt: skip
def test_rows_in_closed_form_stay_within_those_that_exist(bounds: tuple[int, int], expected: tuple[int, int]) -> None:
    made = call()
    kernel = replace(made.plan.forward, walk=walk(*bounds), splits=True)
    found = split.split_of(made, kernel, 10, 2)
    assert (found.first, found.long) == expected
    assert found.long + found.others == 10


def test_what_the_device_alone_knows_is_not_split() -> None:
    places = torch.tensor([[0, 0, 640]], dtype=torch.int32)
    for given, expected in ((None, 3), (places, 0)):
        made = call(places=given)
        kernel = replace(made.plan.forward, walk=walk(op("sub", op("floordiv", N, 64), 3), op("floordiv", N, 64)))
        assert split.split_of(made, kernel, 10, 2).long == expected


def test_lists_are_split_by_their_order() -> None:
    found = replace(lists([[400, 1], [400, 1]]), order=None)
    order = split.order_of(found, 1, 2)
    made = call(lists={"forward": replace(found, order=order)})
    kernel = replace(made.plan.forward, walk=ListWalk(reason=""), splits=True)
    chosen = split.split_of(made, kernel, 2, 2)
    assert (chosen.long, chosen.others, chosen.order) == (1, 1, order)
    assert chosen.parts == split.PARTS * split.INTERPRETER // 2
