"""Lists of tiles with room for all: what they hold, and that the host waits for nothing while they are made."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import spdsl
from spdsl.runtime import lists as module
from spdsl.runtime.calls import Call, TileList
from spdsl.runtime.lists import tile_lists
from spdsl.runtime.ways import watch
from spdsl.runtime.wide_lists import Decided
from tests.library.cases import Case, Sizes
from tests.library.test_selections import check


def rows_of(lists: TileList) -> list[tuple[list[int], list[int]]]:
    """Of each row its full tiles and its masked ones."""
    begin, middle, end = (each.flatten().tolist() for each in (lists.begin, lists.middle, lists.end))
    tiles = lists.tiles.tolist()
    return [(tiles[a:b], tiles[b:c]) for a, b, c in zip(begin, middle, end, strict=True)]


@pytest.mark.parametrize("by", ["query", "key"])
def test_lists_of_what_was_decided(by: str) -> None:
    draw = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    full, masked = draw < 0.3, draw > 0.6
    found = rows_of(Decided(full=full, masked=masked).lists(by, 9))
    if by == "key":
        full, masked = full.mT, masked.mT
    wanted = []
    for b in range(2):
        for h in range(3):
            for row in range(9):
                parts = ([], []) if row >= full.shape[2] else (full[b, h, row], masked[b, h, row])
                wanted.append(tuple([at for at, each in enumerate(part) if each] for part in parts))
    assert found == wanted


HIP: dict[str, Any] = {
    "rows": 8,
    "chunk": (16, 8, 4),
    "budget": (48, 24, 8),
    "every": 2,
    "sinks": 3,
    "window": 9,
}


@pytest.mark.parametrize(("name", "parameters"), [("hip", HIP), ("minference_blocks", {"block": 16, "picks": 3})])
def test_output_and_gradients(name: str, parameters: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_UNASKED", {"cpu"})
    monkeypatch.setattr(module, "_compact", lambda *_: pytest.fail("the host waits"))
    check(Case(name=name, parameters=parameters), Sizes(batch=2, heads=4, groups=2, nq=123, n=123))


@pytest.mark.parametrize("by", ["query", "key"])
def test_nothing_is_decided_while_they_are_made(by: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was seen while lists were made of some picks makes those of others."""
    monkeypatch.setattr(module, "_UNASKED", {"cpu"})
    calls: list[Call] = []
    lists_for = module.lists_for
    monkeypatch.setattr(module, "lists_for", lambda call, kinds: (calls.append(call), lists_for(call, kinds))[1])
    from spdsl.runtime import operator

    monkeypatch.setattr(operator, "lists_for", module.lists_for)
    attn = spdsl.compile("minference_blocks", block=16, picks=3)
    for seed in range(2):
        q, k, v = torch.randn(3, 1, 2, 90, 8, generator=torch.Generator().manual_seed(seed))
        attn(q, k, v)
    first, second = calls
    ((name, given),) = first.tables.items()

    def made(call: Call) -> tuple[torch.Tensor, ...]:
        lists = tile_lists(call, by=by, block_q=16, block_k=16, split=2)
        assert lists.order is not None
        return lists.middle, lists.end, lists.tiles, lists.order.rows

    _, steps = watch(lambda: made(first), [given])
    assert steps is not None
    found = steps.play([second.tables[name]])
    assert all(torch.equal(one, two) for one, two in zip(found, made(second), strict=True))
    assert found[2] is not None
    assert not torch.equal(found[2], made(first)[2])
