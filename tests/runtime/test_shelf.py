"""Steps of repeated calls hold at most so many bytes: those that were used last stay."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from spdsl.diagnostics import SpatError
from spdsl.runtime import repeated, shelf, whole_calls
from spdsl.runtime.direct import kind_of, plain
from spdsl.runtime.recent import Recent
from spdsl.runtime.shelf import Shelf, limit
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


def test_a_number_that_was_used_before_has_no_old_place() -> None:
    """What tells steps apart may tell others apart later."""
    mine, steps, gone = Shelf(), [kind() for _ in range(3)], list[int]()
    for at in (0, 1, 0, 2):
        mine.put(steps[at], CPU, limit(CPU) // 2, partial(gone.append, at))
    assert gone == [1]


def test_what_does_not_fit_at_all_drives_nothing_out(bounded: Shelf) -> None:
    steps, gone = [kind() for _ in range(3)], list[int]()
    for at, nbytes in enumerate((SIZE, SIZE, 3 * SIZE)):
        bounded.put(steps[at], CPU, nbytes, partial(gone.append, at))
    assert gone == [2]


def test_what_graphs_read_stays_and_counts(bounded: Shelf) -> None:
    steps, gone = [kind() for _ in range(4)], list[int]()
    bounded.put(steps[0], CPU, SIZE, partial(gone.append, 0))
    bounded.pin(steps[0])
    for at in (1, 2, 3):
        bounded.put(steps[at], CPU, SIZE, partial(gone.append, at))
    assert gone == [1, 2]
    assert held(bounded) == 2 * SIZE


def test_kinds_that_take_the_room_of_others(bounded: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are watched ever less often; and as soon as there is room their steps stay."""
    kinds, turns = [kind() for _ in range(3)], list[int]()
    watched = WholeCalls.watched
    for turn in range(64):
        monkeypatch.setattr(WholeCalls, "watched", lambda *given, at=turn: (turns.append(at), watched(*given))[1])
        for each in kinds:
            call(each)
    assert sum(turn >= 32 for turn in turns) <= 8  # of 96 calls
    monkeypatch.setenv("SPDSL_STEPS_LIMIT", "1 GB")
    for _ in range(64):
        for each in kinds:
            call(each)
    assert all(each.ways is not None for each in kinds)
    kinds[0].forget(kinds[0].ways[0])  # type: ignore[index]  # after many calls that repeated them
    call(kinds[0])
    assert kinds[0].ways is not None


def test_selections_without_room(bounded: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeated, "_steps", Recent(size=2))
    monkeypatch.setattr(repeated, "_sights", Recent(size=2))
    monkeypatch.setattr(repeated, "SHELF", bounded)
    watch, watched = repeated.watch, list[int]()
    lines: Any = SimpleNamespace(pattern=object(), q_start=0, device=CPU)

    def select(turn: int) -> None:
        given = torch.randn(1000)
        monkeypatch.setattr(repeated, "watch", lambda *given: (watched.append(turn), watch(*given))[1])
        arrays: Any = SimpleNamespace(tensors={"q": given}, lines=lines, known=False)
        (found,) = repeated.repeated(arrays, "some", lambda: (given + torch.arange(1000.0),))
        assert torch.equal(found, given + torch.arange(1000.0))

    monkeypatch.setenv("SPDSL_STEPS_LIMIT", "0")
    for turn in range(1, 17):
        select(turn)
    assert watched == [2, 4, 8, 16]
    monkeypatch.setenv("SPDSL_STEPS_LIMIT", "1 GB")
    for turn in range(17, 40):
        select(turn)
    assert watched == [2, 4, 8, 16, 32]
    ((known, _),) = repeated._steps.entries.values()
    assert known.sights.repeats == 7


def test_others_are_not_dropped() -> None:
    memory: Recent[object] = Recent(size=2)
    one, other = object(), object()
    memory.get("key", None, lambda: one)
    memory.drop("key", other)
    assert memory.find("key") is one
    memory.drop("key", one)
    assert memory.find("key") is None


def test_how_much_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPDSL_STEPS_LIMIT", raising=False)
    assert limit(CPU) == 1 << 28

    class Card:
        total_memory = 80 << 30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Card())
    shelf._share.cache_clear()
    assert limit(torch.device("cuda", 0)) == (80 << 30) // 64
    shelf._share.cache_clear()
    monkeypatch.setenv("SPDSL_STEPS_LIMIT", "1.5 MB")
    assert limit(CPU) == 3 << 19
    monkeypatch.setenv("SPDSL_STEPS_LIMIT", "much")
    with pytest.raises(SpatError, match="SP509"):
        limit(CPU)
