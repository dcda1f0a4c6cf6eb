"""Steps of repeated calls hold at most so many bytes: those that were used last stay."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from spdsl.diagnostics import SpatError
from spdsl.runtime import shelf, whole_calls
from spdsl.runtime.direct import kind_of, plain
from spdsl.runtime.shelf import Shelf, room
from spdsl.runtime.whole_calls import Found, WholeCalls

CPU = torch.device("cpu")
SIZE = 4000


@pytest.fixture
def bounded(monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """There is room for what two calls keep."""
    monkeypatch.setenv("SPDSL_STEPS_LIMIT", str(2 * SIZE))
    mine = Shelf()
    monkeypatch.setattr(whole_calls, "SHELF", mine)
    return mine


def kind() -> WholeCalls:
    """Calls whose steps keep a line of a thousand numbers."""

    def make(tensors: Sequence[Tensor]) -> Found:
        return tensors[0] + torch.arange(1000.0), None

    return WholeCalls(make=make, trained=False, kind_of=kind_of, plain=plain)


def call(kind: WholeCalls) -> None:
    given = torch.randn(1000)
    assert torch.equal(kind((given,))[0], given + torch.arange(1000.0))


def held(mine: Shelf) -> int:
    return sum(each.nbytes for each in mine.entries.values() if each.steps() is not None)


def test_those_used_last_stay(bounded: Shelf) -> None:
    kinds = [kind() for _ in range(4)]
    for each in kinds[:2]:
        call(each)
        call(each)
    assert held(bounded) == 2 * SIZE
    call(kinds[0])  # the second is the one that was not used for longest
    call(kinds[2])
    call(kinds[2])
    assert [each.ways is not None for each in kinds] == [True, False, True, False]
    for _ in range(5):
        for each in kinds:
            call(each)
            assert held(bounded) <= 2 * SIZE


def test_what_is_gone_holds_nothing(bounded: Shelf) -> None:
    for _ in range(5):
        one = kind()
        call(one)
        call(one)
        assert one.ways is not None
        del one
    gc.collect()
    last = kind()
    call(last)
    call(last)
    assert held(bounded) == SIZE


def test_no_room(bounded: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPDSL_STEPS_LIMIT", "0")
    one = kind()
    for _ in range(6):
        call(one)
        assert one.ways is None
    assert not bounded.entries


def test_how_much_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPDSL_STEPS_LIMIT", raising=False)
    assert room(CPU) == 1 << 28

    class Card:
        total_memory = 80 << 30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Card())
    shelf._share.cache_clear()
    assert room(torch.device("cuda", 0)) == (80 << 30) // 64
    shelf._share.cache_clear()
    monkeypatch.setenv("SPDSL_STEPS_LIMIT", "1.5 MB")
    assert room(CPU) == 3 << 19
    monkeypatch.setenv("SPDSL_STEPS_LIMIT", "much")
    with pytest.raises(SpatError, match="SP509"):
        room(CPU)
