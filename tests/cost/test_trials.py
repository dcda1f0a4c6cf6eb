"""Candidates that are tried: in which order they are timed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Lock
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
