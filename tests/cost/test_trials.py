"""Candidates that are tried: in which order they are timed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Lock, Thread
from types import SimpleNamespace
from typing import Any

import pytest

from spdsl import trials
from spdsl.analysis.plans import Tiles
from spdsl.trials import Trial, tried


@pytest.mark.parametrize("gpus", [1, 2])
def test_a_slow_build_holds_up_no_other(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is built only once all others are timed; these go in order."""
    waiting, told, lock = [Future[str]() for _ in range(5)], list[int](), Lock()
    for each in (0, 2, 3, 4):
        waiting[each].set_result("built")

    @contextmanager
    def building(*_: object) -> Iterator[Sequence[Future[str]]]:
        yield waiting

    def bench(made: Any, kind: object) -> float:
        del kind
        with lock:
            told.append(made.number)
            if len(told) == 4:
                waiting[1].set_result("built")
        return 1.0

    def plan(number: int) -> Any:
        return SimpleNamespace(number=number)

    monkeypatch.setattr(trials, "_building", building)
    tiles = Tiles(block_q=64, block_k=64, warps=4, stages=2)
    every = [Trial(kind="dq", tiles=tiles, plan=plan(number), predicted=None) for number in range(5)]
    assert len(tried(every, [bench] * gpus, "sm_90", lambda trial, seconds: None)) == 5
    assert told[-1] == 1
    if gpus == 1:
        assert told == [0, 2, 3, 4, 1]


@pytest.mark.parametrize("gpus", [1, 2])
def test_what_cannot_be_kept_ends_all(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Builders are ended, what they have not built is cancelled, and nobody waits for it."""
    waiting = [Future[str]() for _ in range(4)]
    waiting[0].set_result("built")

    @contextmanager
    def building(*_: object) -> Iterator[Sequence[Future[str]]]:
        try:
            yield waiting
        finally:
            for each in waiting:
                each.cancel()

    def keep(trial: Trial, seconds: float | None) -> None:
        del trial, seconds
        raise OSError("no room")

    monkeypatch.setattr(trials, "_building", building)
    tiles = Tiles(block_q=64, block_k=64, warps=4, stages=2)
    every = [Trial(kind="dq", tiles=tiles, plan=SimpleNamespace(), predicted=None) for _ in waiting]  # type: ignore[arg-type]
    failed: list[str] = []

    def tune() -> None:
        try:
            tried(every, [lambda made, kind: 1.0] * gpus, "sm_90", keep)
        except OSError as refused:
            failed.append(str(refused))

    aside = Thread(target=tune, daemon=True)
    aside.start()
    aside.join(20)
    assert failed == ["no room"]
